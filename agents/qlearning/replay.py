"""Replay buffer of single frames with one ring buffer per environment.

Frame stacks and n-step returns are computed when a batch is sampled. Each frame is stored once, instead of K times in
the stacks of observations and again in those of next observations: a million transitions of 84x84 grayscale frames take
7.06 GB instead of 56 GB. The special cases are at boundaries:

* A frame stack does not cross the start of an episode (`FIRST`). Frames before the start are zeros, as in the
  environment.
* An n-step return ends at a terminal (discount 0) and at a truncation. A truncated return bootstraps from the true last
  observation, which is stored in an additional slot (`LAST`). No transition starts at such a slot.
* Nothing crosses the write position. The newest slot is not sampled until its next observation is stored. The oldest
  K - 1 slots are used only as frames of later stacks.

With a `folder`, the ring buffers are memory-mapped files, and a checkpoint stores only the write positions. The ring
buffers have `checkpoint_margin` more slots than are sampled, so that data written after a checkpoint does not overwrite
data that the checkpoint needs. A killed process loses nothing, because the kernel writes the mapped pages to disk.

Shapes: E environments, B batch, K stacked frames, F channels of one frame, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning.replay_files import (
    RingCopy,
    allocate_arrays,
    array_layout,
    check_size_fits,
    open_files,
    ring_copies,
)
from zerokara.core import checkpoint
from zerokara.core.augment import shift_at_random
from zerokara.core.config import UserError

FIRST, TERMINAL, LAST = 1, 2, 4  # bits of the flag of a slot


class Batch(NamedTuple):
    """Batch of transitions."""

    obs: Tensor  # (B, K * F, H, W) uint8, or float32 of vectors
    action: Tensor  # (B,) int64
    reward: Tensor  # (B,) float32, sum of gamma^i * r_i over the steps before the bootstrap state
    discount: Tensor  # (B,) float32, factor on the bootstrap value: gamma^n, 0 after a terminal
    next_obs: Tensor  # (B, K * F, H, W) likewise
    weight: Tensor  # (B,) float32, weight in the loss; 0 for the rare sample without a transition


Rows = np.ndarray | slice  # some of the environments: indices, a mask (N,) bool, or a slice
ALL = slice(None)
Lookup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def bytes_needed(
    capacity: int, checkpoint_margin: int, frame_shape: tuple[int, int, int], dtype: type[np.generic] = np.uint8
) -> int:
    """Size in bytes of `capacity` + `checkpoint_margin` slots: frame (F, H, W), action, reward and flag."""
    return (capacity + checkpoint_margin) * (int(np.prod(frame_shape)) * np.dtype(dtype).itemsize + 4 + 4 + 1)


class Replay:
    """Replay buffer with uniform sampling over one ring buffer per environment.

    Args:
        capacity: number of slots that are sampled, summed over all environments; rounded up to a multiple of
            `num_envs`.
        num_envs: E.
        obs_shape: (K * F, H, W) of one observation.
        frame_channels: F.
        dtype: type of the frames: uint8, or float32 of vectors.
        n_step: maximum number of steps of a return.
        gamma: discount factor of one step.
        seed: seed of the sampling.
        device: device of the ring buffers and of the batches.
        folder: folder of the memory-mapped files that outlive the process; None: memory only.
        checkpoint_margin: additional slots, summed over all environments, that can be written between two checkpoints;
            `needs_checkpoint` is true when they are used up.
        steps_at_once: steps of an environment that are added between two checks of `needs_checkpoint`.
        random_shift: shift the images of a batch at random by up to this number of pixels; 0: do not.
        function: compiles a function that consists of many small operations.
        print_line: function that prints the size of the buffer before it is allocated.

    Raises:
        UserError: memory, disk space or the number of slots per environment are insufficient.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, int, int],
        frame_channels: int,
        *,
        dtype: type[np.generic] = np.uint8,
        n_step: int,
        gamma: float,
        seed: int,
        device: torch.device,
        folder: Path | None = None,
        checkpoint_margin: int = 0,
        steps_at_once: int = 1,
        random_shift: int = 0,
        function: Callable[[Lookup], Lookup] = lambda find: find,
        print_line: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.frame_stack = obs_shape[0] // frame_channels
        self.frame_shape, self._dtype = (frame_channels, *obs_shape[1:]), dtype
        self.num_envs, self.n_step, self.device = num_envs, n_step, device
        self._steps_at_once, self._random_shift = steps_at_once, random_shift
        self._current_n_step: Tensor | None = None  # n of the return, if it is annealed
        self._discount: Tensor | float = gamma  # of one step
        self.window = -(-capacity // num_envs)  # slots per ring buffer that are sampled
        self.slots = self.window + -(-checkpoint_margin // num_envs)
        if self.window < self.frame_stack + n_step + 1:
            raise UserError(
                f"A replay buffer of {capacity} transitions has {self.window} slots for each of {num_envs} "
                f"environments, fewer than the {self.frame_stack + n_step + 1} slots that a {n_step}-step return "
                f"requires: raise --replay-capacity."
            )
        spare = num_envs * (self.slots - self.window)
        self.bytes = bytes_needed(num_envs * self.window, spare, self.frame_shape, dtype)
        self.folder, self._on_cpu = folder, device.type == "cpu"
        check_size_fits(self.bytes, device, folder)
        print_line(f"replay buffer of {num_envs * self.window:,} transitions: {self.describe_size()}")

        layout = array_layout(num_envs * self.slots, self.frame_shape, dtype)
        self._lost: list[str] = []  # files of an earlier process that are missing or incomplete
        self._print_line = print_line
        self._host = allocate_arrays(layout) if folder is None else open_files(folder, layout, self._lost)
        self._ring = {
            name: torch.from_numpy(array)
            if self._on_cpu
            else torch.zeros(array.shape, dtype=torch.from_numpy(array[:0]).dtype, device=device)
            for name, array in self._host.items()
        }
        self.head = np.zeros(num_envs, np.int64)  # (E,) number of slots written so far
        self._checkpoint_head = self.head.copy()  # (E,) value of `head` at the last `state_dict`
        self._starts_episode = np.ones(num_envs, bool)  # (E,) True if the next slot starts an episode
        self.generator = torch.Generator(device).manual_seed(seed)
        self._oldest_slot = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._num_sampleable = torch.ones(num_envs, dtype=torch.int64, device=device)
        self._newest_slot = torch.full((num_envs,), -1, dtype=torch.int64, device=device)
        self._lookup = function(self._lookup_eager)
        self._sampled = self._newest_slot, self._newest_slot  # environments and slots of the last sample

    @property
    def priority_tensors(self) -> list[Tensor]:
        """Tensors that `update_priorities` modifies: none, since sampling is uniform."""
        return []

    def update_priorities(self, td_error_B: Tensor) -> None:
        """Do nothing, since sampling is uniform; `PrioritizedReplay` updates the priorities of the last batch."""

    def set_beta(self, beta: float) -> None:
        """Do nothing, since sampling is uniform; `PrioritizedReplay` sets the exponent of its weights."""

    def __len__(self) -> int:
        """Number of slots that can be sampled, summed over all environments."""
        return int(np.minimum(self.head, self.window).sum())

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminal: np.ndarray,
        truncated: np.ndarray,
        last_obs: np.ndarray,
        life_lost: np.ndarray | None = None,
        rows: Rows = ALL,
        *,
        usable: bool = True,
    ) -> None:
        """Store one step of all environments, or of E of them.

        Args:
            obs: observations (E, K * F, H, W) in which the actions were taken; their newest frames are sufficient.
            action: (E,).
            reward: (E,).
            terminal: (E,) bool.
            truncated: (E,) bool.
            last_obs: last observation of each episode that ended, (E, K * F, H, W), likewise.
            life_lost: (E,) bool; ends returns like a terminal, but neither the frame stack nor the episode. None: lost
                lives are ignored.
            rows: indices of the environments.
            usable: False: only the frames are used, in later stacks; no transition starts at this step.
        """
        envs = np.arange(self.num_envs)[rows]
        no_bootstrap = terminal if life_lost is None else terminal | life_lost
        flag = FIRST * self._starts_episode[rows] + TERMINAL * no_bootstrap + LAST * (not usable)
        flag = flag.astype(np.uint8)
        self._write(envs, obs, action, reward, flag)
        # If a life is lost at a truncation, the return ends without bootstrapping, so the last observation is not
        # needed.
        cut = np.flatnonzero(truncated & ~no_bootstrap)
        if cut.size:
            nothing = np.zeros(cut.size, np.float32)
            self._write(envs[cut], last_obs[cut], nothing, nothing, np.full(cut.size, LAST, np.uint8))
        self._starts_episode[rows] = terminal | truncated
        self._update_sampling_range()

    def end_episodes(self, rows: Rows = ALL) -> None:
        """End the episodes whose next step will not be stored, because the environments start new ones.

        The newest slot becomes the last observation of a truncated episode: returns bootstrap from it.
        """
        envs = np.arange(self.num_envs)[rows]
        envs = envs[~self._starts_episode[envs] & (self.head[envs] > 0)]
        row = envs * self.slots + (self.head[envs] - 1) % self.slots
        # A lost life has already ended the returns of its slot.
        row = row[(self._host["flag"][row] & TERMINAL) == 0]
        self._host["flag"][row] |= LAST
        if not self._on_cpu:
            self._ring["flag"].copy_(torch.from_numpy(self._host["flag"]))
        self._starts_episode[rows] = True

    @property
    def oldest(self) -> np.ndarray:
        """(E,) oldest slot that can be sampled; older slots are used only as frames of its stack."""
        return np.where(self.head > self.window, self.head - self.window + self.frame_stack - 1, 0)

    def set_n_step_and_gamma(self, n_step: int, gamma: float) -> None:
        """Set n (at most the `n_step` of the constructor) and the discount factor of returns sampled from now on."""
        if self._current_n_step is None or not isinstance(self._discount, Tensor):
            self._current_n_step = torch.zeros((), dtype=torch.int64, device=self.device)
            self._discount = torch.zeros((), device=self.device)
        self._current_n_step.fill_(n_step)
        self._discount.fill_(gamma)

    def _update_sampling_range(self) -> None:
        """Copy to the device the oldest slot, the number of slots that can be sampled, and the newest slot."""
        low = self.oldest
        # The range includes the newest slot. If it has no next observation and is not terminal, its weight is 0.
        values = {
            self._oldest_slot: low,
            self._num_sampleable: np.maximum(self.head - low, 1),
            self._newest_slot: self.head - 1,
        }
        for tensor, value in values.items():
            tensor.copy_(torch.from_numpy(value), non_blocking=True)

    def _write(
        self, envs: np.ndarray, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, flag: np.ndarray
    ) -> None:
        row = envs * self.slots + self.head[envs] % self.slots
        values = {"frame": obs[:, -self.frame_shape[0] :], "action": action, "reward": reward, "flag": flag}
        for name, value in values.items():
            self._host[name][row] = value
            if not self._on_cpu:
                ring = self._ring[name]
                ring[torch.from_numpy(row).to(self.device)] = torch.from_numpy(self._host[name][row]).to(self.device)
        self.head[envs] += 1

    def sample(self, batch_size: int) -> Batch:
        """Sample transitions: uniformly an environment, then uniformly a slot. Does not synchronize with the device."""
        self._sampled = self._draw(batch_size)
        return self._shift(self.gather(*self._sampled))

    def following(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what follows the first observations of the last `sample`, for self-predictive representations.

        Returns:
            The next S observations of each of them (B * S, K * F, H, W), shifted as those of a batch; the actions
            before these (B, S); 1 if the observation is in the same episode, else 0 (B, S).
        """
        env_B, slot_B = self._sampled
        rows, actions, inside = [], [], [torch.ones_like(slot_B, dtype=torch.bool)]
        for _ in range(steps):
            row_B = env_B * self.slots + slot_B % self.slots
            ended_B = (self._ring["flag"][row_B] & (TERMINAL | LAST)) > 0
            inside.append(inside[-1] & ~ended_B & (slot_B < self._newest_slot[env_B]))
            actions.append(self._ring["action"][row_B].long())
            slot_B = slot_B + inside[-1].long()
            rows.append(self._stack_rows(env_B, slot_B))
        obs = self._ring["frame"].index_select(0, torch.stack(rows, dim=1).flatten())
        obs = obs.view(-1, self.frame_stack * self.frame_shape[0], *self.frame_shape[1:])
        if self._random_shift:
            obs = shift_at_random(obs, self._random_shift, self.generator)
        return obs, torch.stack(actions, dim=1), torch.stack(inside[1:], dim=1).float()

    def _shift(self, batch: Batch) -> Batch:
        """Shift the images of a batch at random, if configured: observations and next observations independently.

        Yarats, Kostrikov and Fergus 2021, "Image Augmentation Is All You Need: Regularizing Deep Reinforcement Learning
        from Pixels" (DrQ), with one random shift of each (K = M = 1).
        """
        if not self._random_shift:
            return batch
        obs, next_obs = (shift_at_random(x, self._random_shift, self.generator) for x in (batch.obs, batch.next_obs))
        return batch._replace(obs=obs, next_obs=next_obs)

    def _draw(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Draw environments (B,) uniformly, and a slot (B,) of each uniformly."""
        env_B = torch.randint(self.num_envs, (batch_size,), generator=self.generator, device=self.device)
        # Integers, since not every device supports float64; of 62 bits, so that the bias of the modulo is negligible.
        draw_B = torch.randint(1 << 62, (batch_size,), generator=self.generator, device=self.device)
        return env_B, self._oldest_slot[env_B] + draw_B % self._num_sampleable[env_B]

    def gather(self, env_B: Tensor, slot_B: Tensor) -> Batch:
        """Return the transitions that start at given slots (numbered from the first write) of given environments."""
        frame_2BK, action_B, reward_B, discount_B, weight_B = self._lookup(env_B, slot_B)
        obs_2B = self._ring["frame"].index_select(0, frame_2BK.flatten())
        obs_2B = obs_2B.view(2, len(slot_B), self.frame_stack * self.frame_shape[0], *self.frame_shape[1:])
        return Batch(obs_2B[0], action_B, reward_B, discount_B, obs_2B[1], weight_B)

    def _lookup_eager(self, env_B: Tensor, slot_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Look up everything of a batch but the pixels.

        Returns frame rows (2, B, K) of observations and next observations, actions, rewards, discounts and weights
        (B,).
        """
        row_B = env_B * self.slots + slot_B % self.slots
        newest_B = self._newest_slot[env_B]
        flag_B = self._ring["flag"][row_B]

        reward_B = torch.zeros_like(row_B, dtype=torch.float32)
        discount_B = torch.ones_like(reward_B)
        in_return_B = torch.ones_like(row_B, dtype=torch.bool)  # True while the return has not ended before step i
        next_B = slot_B
        for i in range(self.n_step):
            row_i = env_B * self.slots + next_B % self.slots
            flag_i = self._ring["flag"][row_i]
            terminal_i = (flag_i & TERMINAL) > 0
            in_return_B = in_return_B & ((flag_i & LAST) == 0) & ((next_B < newest_B) | terminal_i)
            if self._current_n_step is not None:
                in_return_B = in_return_B & (self._current_n_step > i)
            reward_B = reward_B + torch.where(in_return_B, discount_B * self._ring["reward"][row_i], 0.0)
            discount_B = torch.where(in_return_B, torch.where(terminal_i, 0.0, discount_B * self._discount), discount_B)
            next_B = next_B + in_return_B.long()
            in_return_B = in_return_B & ~terminal_i
        # The next observation after a terminal is not used, but its slot must have been written.
        next_B = torch.minimum(next_B, newest_B)

        frame_2BK = torch.stack([self._stack_rows(env_B, slot_B), self._stack_rows(env_B, next_B)])
        # The newest slot is a transition only if it is terminal. An empty ring buffer (newest slot -1) has none.
        ended_B = (slot_B == newest_B) & ((flag_B & TERMINAL) > 0)
        is_transition_B = ((flag_B & LAST) == 0) & ((slot_B < newest_B) | ended_B)
        action_B = self._ring["action"][row_B].long()
        return frame_2BK, action_B, reward_B, discount_B, is_transition_B.float()

    def _stack_rows(self, env_B: Tensor, slot_B: Tensor) -> Tensor:
        """Rows (B, K) of the frames in the stacks that end at given slots, oldest frame first."""
        zeros = self.num_envs * self.slots
        rows = []
        inside_B = torch.ones_like(slot_B, dtype=torch.bool)
        for _ in range(self.frame_stack):
            row_B = env_B * self.slots + slot_B % self.slots
            rows.append(torch.where(inside_B, row_B, zeros))
            inside_B = inside_B & ((self._ring["flag"][row_B] & FIRST) == 0)
            slot_B = slot_B - 1
        return torch.stack(rows[::-1], dim=1)

    def close_files(self) -> None:
        """Close the memory-mapped files, so that they can be deleted, also on Windows. The buffer is unusable then."""
        # A file is closed when no array refers to it any more.
        self._host, self._ring = {}, {}

    def describe_size(self) -> str:
        """Describe size and location: "7.16 GB in files under runs/a/replay-0, cached in memory"."""
        where = f"in files under {self.folder}, cached in memory" if self.folder else "in memory, not saved on disk"
        return f"{self.bytes / 1e9:.2f} GB " + (where if self._on_cpu else f"on {self.device} and {where}")

    @property
    def needs_checkpoint(self) -> bool:
        """True if a checkpoint must be written before the next step, which could overwrite data that the last needs."""
        # One step writes at most two slots: a transition and, after a truncation, the last observation.
        margin = self.slots - self.window - 2 * self._steps_at_once
        return self.folder is not None and int((self.head - self._checkpoint_head).max()) > margin

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: write positions and generator. The frames are in the memory-mapped files."""
        self._checkpoint_head = self.head.copy()
        return {
            "head": torch.from_numpy(self.head.copy()),
            "starts": torch.from_numpy(self._starts_episode.copy()),
            "generator": self.generator.get_state(),
            "slots": self.slots,
            "folder": None if self.folder is None else self.folder.name,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned, with the data in the folder.

        Without a folder, the buffer of a new process stays empty; likewise if one of its files is missing or too short.

        Raises:
            UserError: the ring buffers have another size than in the checkpoint.
        """
        if state["slots"] != self.slots or len(state["head"]) != self.num_envs:
            raise UserError(
                f"The replay buffer in {self.folder} has {len(state['head'])} ring buffers of {state['slots']} slots, "
                f"but {self.num_envs} ring buffers of {self.slots} were expected: resume with the settings with which "
                f"the run was started."
            )
        checkpoint.restore_generator(self.generator, state["generator"])
        if self.folder is None and not self.head.any():
            return
        if self._lost and state["head"].any():
            lost = f"{', '.join(sorted(self._lost))} in {self.folder} is missing or too short"
            if self.folder is not None and self.folder.name != state.get("folder", self.folder.name):
                lost = f"the files in {self.folder.with_name(state['folder'])} were written after the checkpoint"
            self._print_line(f"replay buffer: {lost}; the buffer is empty, and updates resume when it is filled again")
            return
        self.head = state["head"].numpy().copy()
        self._checkpoint_head = self.head.copy()
        self._starts_episode = state["starts"].numpy().copy()
        self._copy_to_device()

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Copy the ring buffers of this process's environments from the files of the processes that saved.

        Those whose files are lost stay empty. See `agents.training.parts.Stateful`.
        """
        self.generator.manual_seed(checkpoint.later_seed(self.generator.initial_seed(), step))
        for copy in ring_copies(
            states,
            self.folder,
            rank,
            num_envs=self.num_envs,
            window=self.window,
            slots=self.slots,
            frame_shape=self.frame_shape,
            frame_dtype=self._dtype,
            print_line=self._print_line,
        ):
            self._load_ring(copy)
        self._checkpoint_head = self.head.copy()
        self._copy_to_device()

    def _load_ring(self, copy: RingCopy) -> None:
        """Copy the slots and the write position of a ring buffer."""
        copy.write(self._host)
        self.head[copy.ring] = copy.state["head"][copy.saved_ring]
        self._starts_episode[copy.ring] = copy.state["starts"][copy.saved_ring]

    def _copy_to_device(self) -> None:
        """Copy the ring buffers and the range that can be sampled to the device."""
        if not self._on_cpu:
            for name, array in self._host.items():
                self._ring[name].copy_(torch.from_numpy(array))
        self._update_sampling_range()
