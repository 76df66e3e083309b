"""Prioritised replay: transitions are drawn the more often, the more wrong the network was about them last time.

Schaul et al. 2016, "Prioritized Experience Replay", proportional variant. Sums of priorities stand in a flat tree of
few levels, on the device where the replay is: a level is one tensor, a node the sum of `FAN_OUT` neighbours in the
level below, and drawing or changing a batch is a handful of tensor operations for each level, whatever the batch.

A slot has priority 0 where no transition may be drawn: where a truncated episode's last observation stands, at the
write head until its successor is there, and where it only lends frames to stacks or awaits being overwritten.

Shapes: E environments, L slots of a ring, B batch, R rows that change, S = FAN_OUT children of a node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning.replay import LAST, TERMINAL, Batch, Replay

FAN_OUT = 64  # three levels for 262,144 transitions, four for 16,777,216
PRIORITY_EPSILON = 1e-6  # added to errors, so that everything can be drawn again (section 3.3)


class SumTree:
    """Numbers that can be drawn in proportion to their size.

    Args:
        size: of them, all 0 at first.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.levels: list[Tensor] = []  # the numbers themselves first, each level padded to whole nodes
        while True:
            padded = -(-size // FAN_OUT) * FAN_OUT
            self.levels.append(torch.zeros(padded, device=device))
            size = padded // FAN_OUT
            if size == 1:
                break

    def get(self, row_B: Tensor) -> Tensor:
        """Numbers (B,)."""
        return self.levels[0][row_B]

    def set(self, row_R: Tensor, value_R: Tensor) -> None:
        """Change numbers, none of them below 0. Of a row that comes twice the greater value stays."""
        self.levels[0].scatter_reduce_(0, row_R, value_R, "amax", include_self=False)
        for below, level in zip(self.levels[:-1], self.levels[1:], strict=True):
            row_R = row_R // FAN_OUT
            level[row_R] = below.view(-1, FAN_OUT)[row_R].sum(dim=1)

    def sample(self, uniform_DB: Tensor) -> Tensor:
        """Rows (B,), each with a probability proportional to its number.

        Args:
            uniform_DB: a number from 0 to 1 for each level and row: every level chooses afresh, so that 24 random bits
                are enough for any size.
        """
        node_B = torch.zeros(uniform_DB.shape[1], dtype=torch.int64, device=uniform_DB.device)
        for level, uniform_B in zip(reversed(self.levels), uniform_DB, strict=True):
            nodes = level.view(-1, FAN_OUT)
            # Where all is 0, the last child is taken, which may have no node in the next level.
            sum_BS = nodes[node_B.clamp(max=len(nodes) - 1)].cumsum(dim=1)
            total_B = sum_BS[:, -1]
            # Below the total also after rounding, so that the child found has a part of it: no row of 0 is drawn.
            aim_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
            child_B = (sum_BS <= aim_B[:, None]).sum(dim=1).clamp(max=FAN_OUT - 1)
            node_B = node_B * FAN_OUT + child_B
        return node_B


class PrioritizedReplay(Replay):
    """Replay that draws transitions by their priority, (error + `SMALLEST`) ** exponent.

    Args:
        exponent: alpha; 0 would draw all alike.
        args, options: as for `Replay`.
    """

    def __init__(self, *args: Any, alpha: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.alpha = alpha
        self.tree = SumTree(self.num_envs * self.slots, self.device)
        self.max_priority = torch.ones((), device=self.device)  # priority so far: what new transitions get
        self.beta = torch.ones((), device=self.device)  # beta, set by whoever knows the step
        self._drawn_B = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._cleared = np.zeros(self.num_envs, np.int64)  # (E,) slots below have lost their priority

    @property
    def priority_tensors(self) -> list[Tensor]:
        """The tensors that `rank` changes."""
        return [*self.tree.levels, self.max_priority]

    def add(self, *args: Any, **options: Any) -> None:
        """As `Replay.add`; what can be drawn from now on has the highest priority so far."""
        before = self.head.copy()
        super().add(*args, **options)
        # From the slot that had no successor yet to the newest, and those that have left the window.
        fresh_ES = (before - 1)[:, None] + np.arange(3)
        low = self.oldest
        gone_ES = self._cleared[:, None] + np.arange(self.frame_stack + 2)
        self._cleared = low
        fresh = (fresh_ES >= low[:, None]) & (fresh_ES >= 0) & (fresh_ES < self.head[:, None])
        gone = gone_ES < low[:, None]
        start_E = (np.arange(self.num_envs) * self.slots)[:, None]
        fresh_row, gone_row = (start_E + slots % self.slots for slots in (fresh_ES, gone_ES))
        flag = self._host["flag"][fresh_row]
        ended = (flag & TERMINAL) > 0
        # What could be drawn before keeps its priority.
        known = ended & (fresh_ES == (before - 1)[:, None])
        drawable = ((flag & LAST) == 0) & (ended | (fresh_ES < self.head[:, None] - 1))
        row = np.concatenate([gone_row[gone], fresh_row[fresh & ~known]])
        is_new = np.concatenate([np.zeros(gone.sum(), bool), drawable[fresh & ~known]])
        is_new_R = torch.from_numpy(is_new).to(self.device)
        self.tree.set(torch.from_numpy(row).to(self.device), torch.where(is_new_R, self.max_priority, 0.0))

    def sample(self, batch_size: int) -> Batch:
        """Draw transitions by their priority, with weights that make up for it, the greatest of them 1.

        The weight is probability ** -beta over the batch's greatest (section 3.4). Never waits for the device.
        """
        depth = len(self.tree.levels)
        uniform_DB = torch.rand((depth, batch_size), generator=self.generator, device=self.device)
        # One of each B-th of the whole, which is what the paper does (appendix B.2.1).
        uniform_DB[0] = (uniform_DB[0] + torch.arange(batch_size, device=self.device)) / batch_size
        row_B = self.tree.sample(uniform_DB).clamp(max=self.num_envs * self.slots - 1)
        self._drawn_B = row_B
        env_B = row_B // self.slots
        # The newest lap of the ring in which this row was written.
        newest_B = self._newest_slot[env_B]
        slot_B = newest_B - (newest_B - row_B) % self.slots
        batch = self.gather(env_B, slot_B.clamp(min=0))
        priority_B = self.tree.get(row_B).clamp(min=torch.finfo(torch.float32).tiny)
        weight_B = (priority_B / priority_B.min()) ** -self.beta
        return batch._replace(weight=batch.weight * weight_B)

    def update_priorities(self, td_error_B: Tensor) -> None:
        """Give the transitions drawn last the priorities of these errors (B,), none of them below 0."""
        priority_B = (td_error_B + PRIORITY_EPSILON) ** self.alpha
        may_be_drawn = self.tree.get(self._drawn_B) > 0
        priority_B = torch.where(may_be_drawn, priority_B, 0.0)
        self.max_priority.copy_(torch.maximum(self.max_priority, priority_B.max()))
        self.tree.set(self._drawn_B, priority_B)

    def state_dict(self) -> dict[str, Any]:
        """That of `Replay`, and the priorities."""
        levels = [level.clone() for level in self.tree.levels]
        gone = torch.from_numpy(self._cleared.copy())
        return {**super().state_dict(), "priorities": levels, "highest": self.max_priority.clone(), "gone": gone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Replay`; where its rings stay empty, so do the priorities.

        Raises:
            UserError: as `Replay.load_state_dict`.
        """
        super().load_state_dict(state)
        self.max_priority.copy_(state["highest"])
        if self.head.any():
            for level, kept in zip(self.tree.levels, state["priorities"], strict=True):
                level.copy_(kept)
            self._cleared = state["gone"].numpy().copy()
