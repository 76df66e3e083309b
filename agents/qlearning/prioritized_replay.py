"""Prioritized replay buffer, proportional variant (Schaul et al. 2016, "Prioritized Experience Replay").

The sum tree has few levels and is on the device of the replay buffer. Each level is one tensor; each node is the sum of
`FAN_OUT` neighboring nodes of the level below. Sampling or updating a batch takes a few tensor operations per level,
independent of the batch size.

A slot has priority 0 if no transition can be sampled there: the last observation of a truncated episode, the newest
slot until its next observation is stored, and old slots that are used only as frames of stacks or will be overwritten.

Shapes: E environments, B batch, P transitions, D levels of the tree, R changed rows, S slots, or the FAN_OUT children
of a node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning.replay import LAST, TERMINAL, Batch, Replay
from zerokara.agents.qlearning.replay_files import RingCopy

FAN_OUT = 64  # three levels for 262,144 transitions, four for 16,777,216
PRIORITY_EPSILON = 1e-6  # added to TD errors, so that every transition can be sampled again (section 3.3)


class SumTree:
    """Sum tree: samples indices with probabilities proportional to their values.

    Args:
        size: number of values, initially 0.
        device: device of the tree.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.levels: list[Tensor] = []  # leaves first; each level is padded to a multiple of FAN_OUT
        while True:
            padded = -(-size // FAN_OUT) * FAN_OUT
            self.levels.append(torch.zeros(padded, device=device))
            size = padded // FAN_OUT
            if size == 1:
                break

    def get(self, row_B: Tensor) -> Tensor:
        """Values (B,) at given rows."""
        return self.levels[0][row_B]

    def set(self, row_R: Tensor, value_R: Tensor) -> None:
        """Set non-negative values at given rows. For a row that occurs twice, the larger value is stored."""
        self.levels[0].scatter_reduce_(0, row_R, value_R, "amax", include_self=False)
        for below, level in zip(self.levels[:-1], self.levels[1:], strict=True):
            row_R = row_R // FAN_OUT
            level[row_R] = below.view(-1, FAN_OUT)[row_R].sum(dim=1)

    def sample(self, uniform_DB: Tensor) -> Tensor:
        """Sample rows (B,) with probabilities proportional to their values.

        Args:
            uniform_DB: uniform random numbers in [0, 1], one for each level and sample. Each level uses its own number,
                so that the 24 random bits of float32 are sufficient for any size.
        """
        node_B = torch.zeros(uniform_DB.shape[1], dtype=torch.int64, device=uniform_DB.device)
        for level, uniform_B in zip(reversed(self.levels), uniform_DB, strict=True):
            nodes = level.view(-1, FAN_OUT)
            # If all values are 0, the last child is selected, which may have no node in the next level.
            sum_BS = nodes[node_B.clamp(max=len(nodes) - 1)].cumsum(dim=1)
            total_B = sum_BS[:, -1]
            # Below the total also after rounding, so that a child with value 0 is never selected.
            threshold_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
            child_B = (sum_BS <= threshold_B[:, None]).sum(dim=1).clamp(max=FAN_OUT - 1)
            node_B = node_B * FAN_OUT + child_B
        return node_B


class PrioritizedReplay(Replay):
    """Replay buffer that samples transitions in proportion to (|TD error| + `PRIORITY_EPSILON`) ** alpha.

    Args:
        args: positional arguments of `Replay`.
        alpha: exponent of the priorities; 0 is uniform sampling of all transitions, however many each environment has.
        uniform_fraction: fraction of the samples that are drawn uniformly, as `Replay` does.
        given_priorities: new transitions are not sampled before `set_priorities`; False: they get the largest priority
            so far.
        options: keyword arguments of `Replay`.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float,
        uniform_fraction: float = 0.0,
        given_priorities: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.alpha, self.uniform_fraction = alpha, uniform_fraction
        self.tree = SumTree(self.num_envs * self.slots, self.device)
        self.max_priority = torch.ones((), device=self.device)  # largest priority so far, given to new transitions
        self._new_priority = torch.zeros((), device=self.device) if given_priorities else self.max_priority
        self.beta = torch.ones((), device=self.device)  # set by the training loop
        self._sampled_row_B = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._cleared = np.zeros(self.num_envs, np.int64)  # (E,) priorities of older slots have been set to 0

    @property
    def priority_tensors(self) -> list[Tensor]:
        """Tensors that `update_priorities` modifies."""
        return [*self.tree.levels, self.max_priority]

    def add(self, *args: Any, **options: Any) -> None:
        """Store one step as `Replay.add` does, and set the priorities of new transitions."""
        before = self.head.copy()
        super().add(*args, **options)
        # From the slot that had no next observation yet to the newest slot, and the slots that have left the window.
        new_ES = (before - 1)[:, None] + np.arange(3)
        oldest_E = self.oldest
        expired_ES = self._cleared[:, None] + np.arange(self.frame_stack + 2)
        self._cleared = oldest_E
        new = (new_ES >= oldest_E[:, None]) & (new_ES >= 0) & (new_ES < self.head[:, None])
        expired = expired_ES < oldest_E[:, None]
        start_E = (np.arange(self.num_envs) * self.slots)[:, None]
        new_row, expired_row = (start_E + slots % self.slots for slots in (new_ES, expired_ES))
        flag = self._host["flag"][new_row]
        ended = (flag & TERMINAL) > 0
        # Transitions that could be sampled before keep their priority.
        has_priority = ended & (new_ES == (before - 1)[:, None])
        sampleable = ((flag & LAST) == 0) & (ended | (new_ES < self.head[:, None] - 1))
        row = np.concatenate([expired_row[expired], new_row[new & ~has_priority]])
        is_new = np.concatenate([np.zeros(expired.sum(), bool), sampleable[new & ~has_priority]])
        is_new_R = torch.from_numpy(is_new).to(self.device)
        self.tree.set(torch.from_numpy(row).to(self.device), torch.where(is_new_R, self._new_priority, 0.0))

    def sample(self, batch_size: int) -> Batch:
        """Sample transitions by priority, with importance-sampling weights.

        The weights are probability ** -beta, divided by their maximum in the batch (section 3.4). Does not synchronize
        with the device.
        """
        depth = len(self.tree.levels)
        uniform_DB = torch.rand((depth, batch_size), generator=self.generator, device=self.device)
        # Stratified over the children of the root: each gets its fraction of the batch within one sample at either end.
        # Below the root the numbers are independent; in the paper (appendix B.2.1) B parts of the total are equal.
        uniform_DB[0] = (uniform_DB[0] + torch.arange(batch_size, device=self.device)) / batch_size
        row_B = self.tree.sample(uniform_DB).clamp(max=self.num_envs * self.slots - 1)
        if self.uniform_fraction:
            env_B, slot_B = self._draw(batch_size)
            is_uniform_B = torch.rand(batch_size, generator=self.generator, device=self.device) < self.uniform_fraction
            row_B = torch.where(is_uniform_B, env_B * self.slots + slot_B % self.slots, row_B)
        self._sampled_row_B = row_B
        env_B = row_B // self.slots
        # The latest slot number that was written to this row of the ring buffer.
        newest_B = self._newest_slot[env_B]
        slot_B = newest_B - (newest_B - row_B) % self.slots
        self._sampled = env_B, slot_B.clamp(min=0)
        batch = self._shift(self.gather(*self._sampled))
        priority_B = self.tree.get(row_B).clamp(min=torch.finfo(torch.float32).tiny)
        if self.uniform_fraction:
            priority_B = self._probabilities(row_B, env_B)
        weight_B = (priority_B / priority_B.min()) ** -self.beta
        return batch._replace(weight=batch.weight * weight_B)

    def _probabilities(self, row_B: Tensor, env_B: Tensor) -> Tensor:
        """Probabilities (B,) of rows in the mixture of prioritized and uniform samples; 1 for those without a priority.

        Rows without a transition have weight 0. With a probability of 1 they are not the smallest of the batch.
        """
        priority_B = self.tree.get(row_B)
        uniform_B = 1 / (self.num_envs * self._num_sampleable[env_B])
        mixed_B = torch.lerp(priority_B / self.tree.levels[-1].sum(), uniform_B, self.uniform_fraction)
        return torch.where(priority_B > 0, mixed_B, 1.0)

    def set_beta(self, beta: float) -> None:
        """Set the exponent of the importance-sampling weights."""
        self.beta.fill_(beta)

    def update_priorities(self, td_error_B: Tensor) -> None:
        """Update the priorities of the last batch from its absolute TD errors (B,)."""
        priority_B = (td_error_B + PRIORITY_EPSILON) ** self.alpha
        sampleable_B = self.tree.get(self._sampled_row_B) > 0
        priority_B = torch.where(sampleable_B, priority_B, 0.0)
        self.max_priority.copy_(torch.maximum(self.max_priority, priority_B.max()))
        self.tree.set(self._sampled_row_B, priority_B)

    def set_priorities(self, env: np.ndarray, slot: np.ndarray, td_error: np.ndarray) -> None:
        """Set priorities of transitions from their absolute TD errors; those that cannot be sampled are left out.

        Args:
            env: (P,) indices of the environments.
            slot: (P,) slots, numbered from the first write.
            td_error: (P,) float32.
        """
        row = env * self.slots + slot % self.slots
        flag = self._host["flag"][row]
        has_next = (slot < self.head[env] - 1) | ((flag & TERMINAL) > 0)
        usable = (slot >= self.oldest[env]) & ((flag & LAST) == 0) & has_next
        priority = (torch.from_numpy(td_error[usable]) + PRIORITY_EPSILON) ** self.alpha
        self.tree.set(torch.from_numpy(row[usable]).to(self.device), priority.to(self.device))

    def state_dict(self) -> dict[str, Any]:
        """State of `Replay`, and the priorities."""
        levels = [level.clone() for level in self.tree.levels]
        cleared = torch.from_numpy(self._cleared.copy())
        return {**super().state_dict(), "priorities": levels, "highest": self.max_priority.clone(), "gone": cleared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned. If the buffer stays empty, all priorities stay 0.

        Raises:
            UserError: as `Replay.load_state_dict`.
        """
        super().load_state_dict(state)
        self.max_priority.copy_(state["highest"])
        if self.head.any():
            for level, values in zip(self.tree.levels, state["priorities"], strict=True):
                level.copy_(values)
            self._cleared = state["gone"].numpy().copy()

    def _load_ring(self, copy: RingCopy) -> None:
        """Copy a ring buffer as `Replay` does, and its priorities."""
        super()._load_ring(copy)
        priority_S = copy.state["priorities"][0][torch.from_numpy(copy.saved_row_S)]
        self.tree.set(torch.from_numpy(copy.row_S).to(self.device), priority_S.to(self.device))
        self._cleared[copy.ring] = copy.state["gone"][copy.saved_ring]
        self.max_priority.copy_(torch.maximum(self.max_priority, copy.state["highest"].to(self.device)))
