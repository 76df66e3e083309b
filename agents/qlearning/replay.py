"""Replay of single frames: one ring per environment, stacks and n-step returns rebuilt when sampled.

A frame is stored once, not the K times it appears in stacks and again as a successor: 84x84 grey, a million
transitions are 7.06 GB where the usual buffer takes 56. Everything that makes this hard happens at boundaries:

* a stack never reaches back across an episode's start (`FIRST`): what lies before is zeros, as the environment gave it;
* an n-step return stops at a terminal (discount 0) and at a truncation, where it bootstraps from the true last
  observation, which gets a slot of its own (`LAST`) from which no transition starts;
* nothing reaches across the write head: the newest slot waits for its successor, the oldest K - 1 only lend frames.

With a `folder`, the rings are memory-mapped files. A checkpoint then stores only the write heads: the rings hold
`slack` slots per environment more than are ever sampled, so what is written after a checkpoint cannot overwrite what
that checkpoint needs, and a killed process loses nothing (the pages belong to the kernel, not to the process).

Shapes: E environments, L slots of a ring, B batch, K stacked frames, F channels of one frame, H, W pixels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from zerokara.core.config import UserError

FIRST, TERMINAL, LAST = 1, 2, 4  # bits of a slot's flag


class Batch(NamedTuple):
    """Transitions as the learner wants them."""

    obs: Tensor  # (B, K * F, H, W) uint8
    action: Tensor  # (B,) int64
    reward: Tensor  # (B,) float32, sum of gamma^i * r_i over the steps until the bootstrap
    discount: Tensor  # (B,) float32, gamma^n, 0 after a terminal: multiplies the bootstrap value
    next_obs: Tensor  # (B, K * F, H, W) uint8
    weight: Tensor  # (B,) float32, 0 for the rare draw that holds no transition


Lookup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def bytes_needed(capacity: int, checkpoint_margin: int, frame_shape: tuple[int, int, int]) -> int:
    """Bytes of rings for `capacity` + `slack` slots of frames (F, H, W): pixels, action, reward, flag."""
    return (capacity + checkpoint_margin) * (int(np.prod(frame_shape)) + 4 + 4 + 1)


class Replay:
    """Uniform replay over `num_envs` rings.

    Args:
        capacity: slots that are sampled from, over all environments; a multiple is not required.
        obs_shape: (K * F, H, W) of one observation.
        frame_channels: F.
        n_step: steps of the return; gamma: discount of one step.
        device: where the rings live and batches appear.
        folder: where the rings are kept as files so that they outlive the process; None: in memory only.
        slack: slots beyond `capacity` (all environments) that may be written between two checkpoints; `crowded` says
            when they are used up.
        function: compiles dozens of small operations into one where that pays.
        say: is told how much is taken, and where, before it is.

    Raises:
        UserError: memory, disk or ring size do not suffice.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, int, int],
        frame_channels: int,
        *,
        n_step: int,
        gamma: float,
        seed: int,
        device: torch.device,
        folder: Path | None = None,
        checkpoint_margin: int = 0,
        function: Callable[[Lookup], Lookup] = lambda find: find,
        print_line: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.frame_stack = obs_shape[0] // frame_channels
        self.frame_shape = (frame_channels, *obs_shape[1:])
        self.num_envs, self.n_step, self.device = num_envs, n_step, device
        self._horizon: Tensor | None = None  # steps of the return, where that is annealed
        self._discount: Tensor | float = gamma  # of one step
        self.window = -(-capacity // num_envs)  # slots of one ring that may be sampled
        self.slots = self.window + -(-checkpoint_margin // num_envs)
        if self.window < self.frame_stack + n_step + 1:
            raise UserError(
                f"A replay of {capacity} transitions gives each of {num_envs} environments {self.window} slots, "
                f"fewer than the {self.frame_stack + n_step + 1} that one {n_step}-step sample spans; "
                f"raise --replay-capacity."
            )
        self.bytes = bytes_needed(num_envs * self.window, num_envs * (self.slots - self.window), self.frame_shape)
        self.folder, self._on_cpu = folder, device.type == "cpu"
        _check_size_fits(self.bytes, device, folder)
        print_line(f"replay of {num_envs * self.window:,} transitions takes {self.describe_size()}")

        total = num_envs * self.slots
        # One more frame, never written: the zeros that stand before an episode's start.
        shapes = {"frame": (total + 1, *self.frame_shape), "action": (total,), "reward": (total,), "flag": (total,)}
        self._host = _allocate_arrays(shapes) if folder is None else _open_files(folder, shapes)
        self._ring = {
            name: torch.from_numpy(array)
            if self._on_cpu
            else torch.zeros(array.shape, dtype=_TORCH[name], device=device)
            for name, array in self._host.items()
        }
        self.head = np.zeros(num_envs, np.int64)  # (E,) slots ever written
        self._checkpoint_head = self.head.copy()  # (E,) the head when `state_dict` was last taken
        self._starts_episode = np.ones(num_envs, bool)  # (E,) the next slot begins an episode
        self.generator = torch.Generator(device).manual_seed(seed)
        self._oldest_slot = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._num_sampleable = torch.ones(num_envs, dtype=torch.int64, device=device)
        self._newest_slot = torch.full((num_envs,), -1, dtype=torch.int64, device=device)
        self._lookup = function(self._lookup_eager)

    def __len__(self) -> int:
        """Slots that may be sampled now, over all environments."""
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
    ) -> None:
        """Store one vector step: what was seen (E, C, H, W), done (E,), and what came of it (E,).

        `life_lost` (E,), if given, ends returns like a terminal but neither resets the stack nor the episode.
        """
        envs = np.arange(self.num_envs)
        no_bootstrap = terminal if life_lost is None else terminal | life_lost
        flag = (FIRST * self._starts_episode + TERMINAL * no_bootstrap).astype(np.uint8)
        self._write(envs, obs, action, reward, flag)
        # Where a life was lost at the very truncation, the return has ended already, and nobody bootstraps.
        cut = np.flatnonzero(truncated & ~no_bootstrap)
        if cut.size:
            nothing = np.zeros(cut.size, np.float32)
            self._write(cut, last_obs[cut], nothing, nothing, np.full(cut.size, LAST, np.uint8))
        self._starts_episode = terminal | truncated
        self._update_sampling_range()

    @property
    def oldest(self) -> np.ndarray:
        """(E,) the oldest slots that may be sampled; those before only lend frames to their stacks."""
        return np.where(self.head > self.window, self.head - self.window + self.frame_stack - 1, 0)

    def set_n_step_and_gamma(self, n_step: int, gamma: float) -> None:
        """From now on sum returns over `n_step` steps, at most those that it was made for, with this discount."""
        if self._horizon is None or not isinstance(self._discount, Tensor):
            self._horizon = torch.zeros((), dtype=torch.int64, device=self.device)
            self._discount = torch.zeros((), device=self.device)
        self._horizon.fill_(n_step)
        self._discount.fill_(gamma)

    def _update_sampling_range(self) -> None:
        """Tell the device what may be sampled: from `low` on, `span` slots; `newest` waits for its successor."""
        low = self.oldest
        # The newest slot is drawn too when it ends an episode; elsewhere its weight is 0.
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
        """Draw transitions: an environment, then a slot of its ring, each uniformly. Never waits for the device."""
        env_B = torch.randint(self.num_envs, (batch_size,), generator=self.generator, device=self.device)
        # Whole numbers, since not every device has float64; of 62 bits, so that the remainder is uniform.
        draw_B = torch.randint(1 << 62, (batch_size,), generator=self.generator, device=self.device)
        slot_B = self._oldest_slot[env_B] + draw_B % self._num_sampleable[env_B]
        return self.gather(env_B, slot_B)

    def gather(self, env_B: Tensor, slot_B: Tensor) -> Batch:
        """The transitions that start at the given slots (counted since the beginning) of the given rings."""
        frame_2BK, action_B, reward_B, discount_B, weight_B = self._lookup(env_B, slot_B)
        obs_2B = self._ring["frame"].index_select(0, frame_2BK.flatten())
        obs_2B = obs_2B.view(2, len(slot_B), self.frame_stack * self.frame_shape[0], *self.frame_shape[1:])
        return Batch(obs_2B[0], action_B, reward_B, discount_B, obs_2B[1], weight_B)

    def _lookup_eager(self, env_B: Tensor, slot_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What makes a batch, but for the pixels: rows (2, B, K) of the frames of both stacks stand for them."""
        row_B = env_B * self.slots + slot_B % self.slots
        newest_B = self._newest_slot[env_B]
        flag_B = self._ring["flag"][row_B]

        reward_B = torch.zeros_like(row_B, dtype=torch.float32)
        discount_B = torch.ones_like(reward_B)
        going_B = torch.ones_like(row_B, dtype=torch.bool)  # the return has not ended before step i
        next_B = slot_B
        for i in range(self.n_step):
            row_i = env_B * self.slots + next_B % self.slots
            flag_i = self._ring["flag"][row_i]
            terminal_i = (flag_i & TERMINAL) > 0
            going_B = going_B & ((flag_i & LAST) == 0) & ((next_B < newest_B) | terminal_i)
            if self._horizon is not None:
                going_B = going_B & (self._horizon > i)
            reward_B = reward_B + torch.where(going_B, discount_B * self._ring["reward"][row_i], 0.0)
            discount_B = torch.where(going_B, torch.where(terminal_i, 0.0, discount_B * self._discount), discount_B)
            next_B = next_B + going_B.long()
            going_B = going_B & ~terminal_i
        # Behind a terminal stands nothing that is used, but it must be a slot that was written.
        next_B = torch.minimum(next_B, newest_B)

        frame_2BK = torch.stack([self._stack_rows(env_B, slot_B), self._stack_rows(env_B, next_B)])
        # The newest slot holds a transition only where it ended; an empty ring, whose newest is -1, holds none.
        ended_B = (slot_B == newest_B) & ((flag_B & TERMINAL) > 0)
        holds_one_B = ((flag_B & LAST) == 0) & ((slot_B < newest_B) | ended_B)
        action_B = self._ring["action"][row_B].long()
        return frame_2BK, action_B, reward_B, discount_B, holds_one_B.float()

    def _stack_rows(self, env_B: Tensor, slot_B: Tensor) -> Tensor:
        """Rows (B, K) of the frames of the stacks that end at the given slots, oldest first."""
        zeros = self.num_envs * self.slots
        rows = []
        inside_B = torch.ones_like(slot_B, dtype=torch.bool)
        for _ in range(self.frame_stack):
            row_B = env_B * self.slots + slot_B % self.slots
            rows.append(torch.where(inside_B, row_B, zeros))
            inside_B = inside_B & ((self._ring["flag"][row_B] & FIRST) == 0)
            slot_B = slot_B - 1
        return torch.stack(rows[::-1], dim=1)

    def describe_size(self) -> str:
        """What it takes, and where, in words."""
        where = f"in files under {self.folder}, cached in memory" if self.folder else "in memory, not kept on disk"
        return f"{self.bytes / 1e9:.2f} GB " + (where if self._on_cpu else f"on {self.device} and {where}")

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the next step could overwrite what the last checkpoint needs: another one is due first."""
        # One step writes two slots at most: a transition and, where it was truncated, its last observation.
        return self.folder is not None and int((self.head - self._checkpoint_head).max()) + 2 > self.slots - self.window

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: heads and generator; the frames already lie in the files."""
        self._checkpoint_head = self.head.copy()
        return {
            "head": torch.from_numpy(self.head.copy()),
            "starts": torch.from_numpy(self._starts_episode.copy()),
            "generator": self.generator.get_state(),
            "slots": self.slots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with the rings as they lie in the folder. Rings of a new process without one stay empty.

        Raises:
            UserError: the rings have another size than when the state was taken.
        """
        if state["slots"] != self.slots or len(state["head"]) != self.num_envs:
            raise UserError(
                f"The replay in {self.folder} holds {len(state['head'])} rings of {state['slots']} slots, but "
                f"{self.num_envs} rings of {self.slots} were expected; resume with the settings the run began with."
            )
        self.generator.set_state(state["generator"])
        if self.folder is None and not self.head.any():
            return
        self.head = state["head"].numpy().copy()
        self._checkpoint_head = self.head.copy()
        self._starts_episode = state["starts"].numpy().copy()
        if not self._on_cpu:
            for name, array in self._host.items():
                self._ring[name].copy_(torch.from_numpy(array))
        self._update_sampling_range()


_TORCH = {"frame": torch.uint8, "action": torch.int32, "reward": torch.float32, "flag": torch.uint8}
_NUMPY = {"frame": np.uint8, "action": np.int32, "reward": np.float32, "flag": np.uint8}


def _allocate_arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Zeros of these shapes."""
    return {name: np.zeros(shape, _NUMPY[name]) for name, shape in shapes.items()}


def _open_files(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The same as files whose blocks are all taken now, so that no later write can fail; those that exist go on.

    Raises:
        UserError: a file has another size, or the disk is full; then no new file is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: int(np.prod(shape)) * np.dtype(_NUMPY[name]).itemsize for name, shape in shapes.items()}
    paths = {name: folder / f"{name}.bin" for name in shapes}
    new = [name for name, path in paths.items() if not path.exists()]
    for name in sizes.keys() - set(new):
        there = paths[name].stat().st_size
        if there != sizes[name]:
            raise UserError(
                f"{paths[name]} has {there:,} bytes where this configuration needs {sizes[name]:,}; resume with the "
                f"settings the run began with, or start under another --name."
            )
    try:
        for name, path in paths.items():
            with path.open("ab") as file:
                _allocate(file, sizes[name])
    except OSError as error:
        for name in new:
            paths[name].unlink(missing_ok=True)
        raise UserError(
            f"The replay's files of {sum(sizes.values()) / 1e9:.2f} GB could not be made in {folder} "
            f"({error.strerror}); free some space, lower --replay-capacity, or pass --no-save-replay."
        ) from error
    return {name: np.memmap(path, _NUMPY[name], "r+", shape=shapes[name]) for name, path in paths.items()}


def _allocate(file: BinaryIO, size: int) -> None:
    """Make a file `size` bytes long, with all its blocks on the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    piece = bytes(1 << 20)  # macOS has no such call: write zeros
    file.writelines(piece[: size - begin] for begin in range(file.seek(0, os.SEEK_END), size, len(piece)))


def _check_size_fits(size: int, device: torch.device, folder: Path | None) -> None:
    """Refuse a replay that fits neither memory nor disk, before anything is taken."""
    room = {}
    if device.type == "cuda":
        room["cuda"] = torch.cuda.mem_get_info(device)[0]
    if device.type != "cuda" or folder is None:
        room["main"] = psutil.virtual_memory().available  # the device's rings have a copy there, or in the files
    for name, free in room.items():
        if size > free:
            raise UserError(
                f"The replay needs {size / 1e9:.2f} GB of {name} memory and {free / 1e9:.2f} GB are free; "
                f"lower --replay-capacity."
            )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        there = sum(file.stat().st_size for file in folder.glob("*.bin"))
        free = shutil.disk_usage(folder).free + there
        if size > free:
            raise UserError(
                f"The replay needs {size / 1e9:.2f} GB of disk in {folder} and {free / 1e9:.2f} GB are free; lower "
                f"--replay-capacity, free some space, or pass --no-save-replay to hold it in memory only."
            )
