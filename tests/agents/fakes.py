"""Scripted environments for tests of the replay buffer, which are also a slow reference implementation of it.

`ScriptedEnvs` stores all observations in Python lists and computes transitions step by step. Every frame is unique.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from hypothesis import strategies as st

from zerokara.agents.qlearning.replay import Batch, Replay

GAMMA = 0.9
CPU = torch.device("cpu")
Event = Literal["continue", "terminal", "truncated", "life", "life+terminal", "life+truncated"]
EVENTS: tuple[Event, ...] = ("continue", "terminal", "truncated", "life", "life+terminal", "life+truncated")


SCRIPT: tuple[tuple[Event, ...], ...] = (
    # Episodes of different lengths, some of one step, with every kind of ending, at different times in each
    # environment.
    ("continue",) * 7
    + ("terminal",)
    + ("continue",) * 2
    + ("truncated", "terminal", "truncated")
    + ("continue",) * 12
    + ("life",),
    ("truncated",)
    + ("continue",) * 3
    + ("life",)
    + ("continue",) * 2
    + ("life+terminal",)
    + ("continue",) * 5
    + ("life+truncated",),
    ("continue",) * 30 + ("truncated",),
)


@dataclass
class Slot:
    """Content of one slot of a ring buffer; `action` is None if no transition starts there."""

    obs: np.ndarray  # (C, H, W)
    action: int | None
    reward: float = 0.0
    ends: bool = False  # no bootstrapping after this step


@dataclass
class ScriptedEnvs:
    """Environments that follow a script, with a record of all observations."""

    num_envs: int
    frame_stack: int = 4
    channels: int = 1
    terminal_on_life_loss: bool = True
    slots: list[list[Slot]] = field(default_factory=list)
    frames: int = 0  # created so far, all different
    steps: int = 0

    def __post_init__(self) -> None:
        self.slots = [[] for _ in range(self.num_envs)]
        self.episodes: list[list[np.ndarray]] = [[self.frame()] for _ in range(self.num_envs)]

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        return (self.frame_stack * self.channels, 2, 2)

    def frame(self) -> np.ndarray:
        """Create a frame (F, 2, 2) whose first four bytes encode its number, which is never 0."""
        self.frames += 1
        digits = [self.frames >> shift & 255 for shift in (24, 16, 8, 0)]
        return np.stack([np.array(digits, np.uint8).reshape(2, 2) + 100 * c for c in range(self.channels)]).astype(
            np.uint8
        )

    def observe(self, env: int) -> np.ndarray:
        """Frame stack (C, H, W): the last frames of the episode, zeros before its start."""
        blank = np.zeros((self.channels, 2, 2), np.uint8)
        return np.concatenate(([blank] * self.frame_stack + self.episodes[env])[-self.frame_stack :])

    def step(self, replay: Replay, events: list[Event]) -> None:
        """Do one step in all environments, and store it in the replay buffer and in the record."""
        obs = np.stack([self.observe(env) for env in range(self.num_envs)])
        action = np.array([(7 * self.steps + env) % 5 for env in range(self.num_envs)], np.int64)
        reward = np.array([(3 * self.steps + env) % 11 - 4 for env in range(self.num_envs)], np.float32)
        terminal = np.array(["terminal" in event for event in events])
        truncated = np.array(["truncated" in event for event in events])
        life_lost = np.array(["life" in event for event in events])
        last_obs = np.empty_like(obs)
        for env in range(self.num_envs):
            ends = bool(terminal[env] or (life_lost[env] and self.terminal_on_life_loss))
            self.slots[env].append(Slot(obs[env], int(action[env]), float(reward[env]), ends))
            self.episodes[env].append(self.frame())
            last_obs[env] = self.observe(env)
            if truncated[env] and not ends:
                self.slots[env].append(Slot(last_obs[env], None))
            if terminal[env] or truncated[env]:
                self.episodes[env] = [self.frame()]
        self.steps += 1
        replay.add(
            obs, action, reward, terminal, truncated, last_obs, life_lost if self.terminal_on_life_loss else None
        )

    def expected_transition(
        self, env: int, slot: int, n_step: int
    ) -> tuple[np.ndarray, int, float, float, np.ndarray | None] | None:
        """Transition that starts at a slot: obs, action, reward, discount, next_obs; None if none starts there."""
        slots = self.slots[env]
        first = slots[slot]
        if first.action is None or (slot == len(slots) - 1 and not first.ends):
            return None
        total, k = 0.0, 0
        while k < n_step:
            here = slots[slot + k]
            if here.action is None or (slot + k == len(slots) - 1 and not here.ends):
                break
            total += GAMMA**k * here.reward
            k += 1
            if here.ends:
                return first.obs, first.action, total, 0.0, None
        return first.obs, first.action, total, GAMMA**k, slots[slot + k].obs

    def sampleable_slots(self, env: int, window: int) -> range:
        """Slots that can be sampled: the newest `window`, without those used only as frames of stacks."""
        written = len(self.slots[env])
        return range(written - window + self.frame_stack - 1 if written > window else 0, written)


def make(envs: ScriptedEnvs, capacity: int, *, n_step: int = 1, seed: int = 0, **options: Any) -> Replay:
    return Replay(
        capacity,
        envs.num_envs,
        envs.obs_shape,
        envs.channels,
        n_step=n_step,
        gamma=GAMMA,
        seed=seed,
        device=CPU,
        **options,
    )


def check_rows(batch: Batch, envs: ScriptedEnvs, pairs: list[tuple[int, int]], n_step: int) -> int:
    """Assert that a batch equals the reference at (environment, slot) pairs. Return the number of transitions."""
    expected = [envs.expected_transition(env, slot, n_step) for env, slot in pairs]
    assert batch.weight.tolist() == [float(row is not None) for row in expected]
    rows = [i for i, row in enumerate(expected) if row is not None]
    made = [row for row in expected if row is not None]
    if not rows:
        return 0
    obs, action, reward, discount, next_obs = zip(*made, strict=True)
    np.testing.assert_array_equal(batch.obs[rows].numpy(), np.stack(obs))
    np.testing.assert_array_equal(batch.action[rows].numpy(), action)
    np.testing.assert_allclose(batch.reward[rows].numpy(), reward, rtol=0, atol=1e-4)
    np.testing.assert_allclose(batch.discount[rows].numpy(), discount, rtol=1e-6)
    bootstraps = [i for i, picture in zip(rows, next_obs, strict=True) if picture is not None]
    if bootstraps:
        shown = np.stack([picture for picture in next_obs if picture is not None])
        np.testing.assert_array_equal(batch.next_obs[bootstraps].numpy(), shown)
    return len(rows)


def check_all(replay: Replay, envs: ScriptedEnvs, n_step: int, window: int) -> int:
    """Assert that all slots that can be sampled equal the reference. Return the number of transitions."""
    pairs = [(env, slot) for env in range(envs.num_envs) for slot in envs.sampleable_slots(env, window)]
    batch = replay.gather(torch.tensor([env for env, _ in pairs]), torch.tensor([slot for _, slot in pairs]))
    return check_rows(batch, envs, pairs, n_step)


def fill(envs: ScriptedEnvs, replay: Replay, steps: int) -> None:
    for _ in range(steps):
        step = envs.steps
        envs.step(replay, [script[step % len(script)] for script in SCRIPT[: envs.num_envs]])


Stream = tuple[ScriptedEnvs, int, int, int, list[list[Event]]]


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Strategy for new ScriptedEnvs, n_step, slots of the window, checkpoint margin, and a script."""
    envs = ScriptedEnvs(
        draw(st.integers(1, 3)),
        frame_stack=draw(st.integers(1, 4)),
        channels=draw(st.sampled_from([1, 3])),
        terminal_on_life_loss=draw(st.booleans()),
    )
    n_step = draw(st.integers(1, 5))
    window = draw(st.integers(envs.frame_stack + n_step + 1, 16))
    checkpoint_margin = draw(st.sampled_from([0, 0, 5]))
    # Mostly "continue", so that episodes have some length; shrinking ends at "continue".
    event = st.one_of(st.just(EVENTS[0]), st.just(EVENTS[0]), st.sampled_from(EVENTS))
    steps = draw(st.lists(st.lists(event, min_size=envs.num_envs, max_size=envs.num_envs), min_size=1, max_size=50))
    return envs, n_step, window, checkpoint_margin, steps
