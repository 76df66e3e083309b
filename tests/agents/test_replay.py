"""Replay against what the environment itself showed.

`Play` is a scripted environment and, at once, the slow reference: it keeps every observation whole, in plain Python
lists, and walks them step by step. Every frame is unique, so that a sampled stack says where it was taken.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.replay import Batch, Replay, bytes_needed
from core.config import UserError

GAMMA = 0.9
CPU = torch.device("cpu")
# Shapes and types of what `Play` adds, for one environment.
ADDED: tuple[tuple[tuple[int, ...], type[np.generic]], ...] = (
    ((4, 2, 2), np.uint8),
    ((), np.int64),
    ((), np.float32),
    ((), np.bool_),
    ((), np.bool_),
    ((4, 2, 2), np.uint8),
)
Event = Literal["going", "terminal", "truncated", "life", "life+terminal", "life+truncated"]


@dataclass
class Slot:
    """What one slot of a ring stands for; `action` is None where no transition starts."""

    obs: np.ndarray  # (C, H, W)
    action: int | None
    reward: float = 0.0
    ends: bool = False  # no bootstrap behind this step


@dataclass
class Play:
    """Environments that follow a script, and the memory of everything they showed."""

    num_envs: int
    stack: int = 4
    channels: int = 1
    life_loss_ends: bool = True
    slots: list[list[Slot]] = field(default_factory=list)
    frames: int = 0  # made so far, all different
    steps: int = 0

    def __post_init__(self) -> None:
        self.slots = [[] for _ in range(self.num_envs)]
        self.episodes: list[list[np.ndarray]] = [[self.frame()] for _ in range(self.num_envs)]

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        return (self.stack * self.channels, 2, 2)

    def frame(self) -> np.ndarray:
        """A frame (F, 2, 2) that holds its own number, which is never 0, in its first four bytes."""
        self.frames += 1
        digits = [self.frames >> shift & 255 for shift in (24, 16, 8, 0)]
        return np.stack([np.array(digits, np.uint8).reshape(2, 2) + 100 * c for c in range(self.channels)]).astype(
            np.uint8
        )

    def see(self, env: int) -> np.ndarray:
        """The stack (C, H, W): the last frames of this episode, zeros before its start."""
        blank = np.zeros((self.channels, 2, 2), np.uint8)
        return np.concatenate(([blank] * self.stack + self.episodes[env])[-self.stack :])

    def feed(self, replay: Replay, events: list[Event]) -> None:
        """One vector step, put into the replay and into memory."""
        obs = np.stack([self.see(env) for env in range(self.num_envs)])
        action = np.array([(7 * self.steps + env) % 5 for env in range(self.num_envs)], np.int64)
        reward = np.array([(3 * self.steps + env) % 11 - 4 for env in range(self.num_envs)], np.float32)
        terminal = np.array(["terminal" in event for event in events])
        truncated = np.array(["truncated" in event for event in events])
        life_lost = np.array(["life" in event for event in events])
        last_obs = np.empty_like(obs)
        for env in range(self.num_envs):
            ends = bool(terminal[env] or (life_lost[env] and self.life_loss_ends))
            self.slots[env].append(Slot(obs[env], int(action[env]), float(reward[env]), ends))
            self.episodes[env].append(self.frame())
            last_obs[env] = self.see(env)
            if truncated[env] and not ends:
                self.slots[env].append(Slot(last_obs[env], None))
            if terminal[env] or truncated[env]:
                self.episodes[env] = [self.frame()]
        self.steps += 1
        replay.add(obs, action, reward, terminal, truncated, last_obs, life_lost if self.life_loss_ends else None)

    def makes(self, env: int, slot: int, n_step: int) -> tuple[np.ndarray, int, float, float, np.ndarray | None] | None:
        """The transition that starts at a slot: obs, action, reward, discount, next_obs; None where none starts."""
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

    def may_be_drawn(self, env: int, window: int) -> range:
        """Slots that can be sampled: the newest `window`, without those that only lend frames to stacks."""
        written = len(self.slots[env])
        return range(written - window + self.stack - 1 if written > window else 0, written)


def make(play: Play, capacity: int, *, n_step: int = 1, seed: int = 0, **options: Any) -> Replay:
    return Replay(
        capacity,
        play.num_envs,
        play.obs_shape,
        play.channels,
        n_step=n_step,
        gamma=GAMMA,
        seed=seed,
        device=CPU,
        **options,
    )


def check_rows(batch: Batch, play: Play, pairs: list[tuple[int, int]], n_step: int) -> int:
    """The rows of a batch are what the reference says of these (environment, slot). Returns how many transitions."""
    expected = [play.makes(env, slot, n_step) for env, slot in pairs]
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


def check_all(replay: Replay, play: Play, n_step: int, window: int) -> int:
    """Every slot that may be drawn is what the reference says. Returns how many transitions there were."""
    pairs = [(env, slot) for env in range(play.num_envs) for slot in play.may_be_drawn(env, window)]
    batch = replay.gather(torch.tensor([env for env, _ in pairs]), torch.tensor([slot for _, slot in pairs]))
    return check_rows(batch, play, pairs, n_step)


def drawn(replay: Replay, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Batch, list[tuple[int, int]]]:
    """A sample, and the (environment, slot) of each of its rows."""
    seen: list[tuple[int, int]] = []
    gather = replay.gather

    def spy(env_B: Tensor, slot_B: Tensor) -> Batch:
        seen.extend(zip(env_B.tolist(), slot_B.tolist(), strict=True))
        return gather(env_B, slot_B)

    with monkeypatch.context() as patch:
        patch.setattr(replay, "gather", spy)
        return replay.sample(batch_size), seen


SCRIPT: tuple[tuple[Event, ...], ...] = (
    # Episodes of all lengths, also of one step, and every ending, at different times in each environment.
    ("going",) * 7
    + ("terminal",)
    + ("going",) * 2
    + ("truncated", "terminal", "truncated")
    + ("going",) * 12
    + ("life",),
    ("truncated",)
    + ("going",) * 3
    + ("life",)
    + ("going",) * 2
    + ("life+terminal",)
    + ("going",) * 5
    + ("life+truncated",),
    ("going",) * 30 + ("truncated",),
)


@pytest.mark.parametrize("life_loss_ends", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_every_transition_is_what_the_environment_showed_over_several_laps(
    n_step: int, channels: int, life_loss_ends: bool
) -> None:
    play = Play(3, channels=channels, life_loss_ends=life_loss_ends)
    replay = make(play, 3 * 23, n_step=n_step)
    checked = 0
    for step in range(130):  # more than five laps of rings of 23
        play.feed(replay, [script[step % len(script)] for script in SCRIPT])
        checked += check_all(replay, play, n_step, window=23)
    assert checked > 3 * 130 * 10
    assert all(len(slots) > 5 * 23 for slots in play.slots)


@pytest.mark.parametrize("slack", [0, 17])
def test_slack_keeps_more_than_is_sampled(slack: int) -> None:
    play = Play(2)
    replay = make(play, 2 * 20, n_step=3, slack=slack)
    for step in range(90):
        play.feed(replay, ["truncated" if step % 9 == 4 else "going", "terminal" if step % 7 == 6 else "going"])
        check_all(replay, play, 3, window=20)


# One environment, gamma 0.9, rewards 1, 2, 4, 8, ..., frames whose only pixel value is their number: by hand.


class ByHand:
    def __init__(self, n_step: int, capacity: int = 12) -> None:
        self.replay = Replay(capacity, 1, (3, 1, 1), 1, n_step=n_step, gamma=0.9, seed=0, device=CPU)

    def add(self, obs: list[int], reward: float, event: str = "", last_obs: list[int] | None = None) -> None:
        def picture(values: list[int]) -> np.ndarray:
            return np.array(values, np.uint8).reshape(1, 3, 1, 1)

        ended = {name: np.array([event == name]) for name in ("terminal", "truncated", "life")}
        self.replay.add(
            picture(obs),
            np.array([int(reward) % 3]),
            np.array([reward], np.float32),
            ended["terminal"],
            ended["truncated"],
            picture(last_obs or [99, 99, 99]),
            ended["life"],
        )

    def at(self, slot: int) -> tuple[Any, ...]:
        """Obs, reward, discount, next obs, weight."""
        batch = self.replay.gather(torch.tensor([0]), torch.tensor([slot]))
        obs, next_obs = batch.obs.flatten().tolist(), batch.next_obs.flatten().tolist()
        return obs, batch.reward.item(), batch.discount.item(), next_obs, batch.weight.item()


def test_three_steps_by_hand_until_the_write_head() -> None:
    three = ByHand(n_step=3)
    for obs, reward in (([0, 0, 1], 1), ([0, 1, 2], 2), ([1, 2, 3], 4), ([2, 3, 4], 8), ([3, 4, 5], 16)):
        three.add(obs, reward)
    assert three.at(0) == ([0, 0, 1], pytest.approx(1 + 0.9 * 2 + 0.81 * 4), pytest.approx(0.729), [2, 3, 4], 1)
    assert three.at(1) == ([0, 1, 2], pytest.approx(2 + 0.9 * 4 + 0.81 * 8), pytest.approx(0.729), [3, 4, 5], 1)
    # Fewer than three steps are there: two, then one, with the discount that fits; the newest has no successor.
    assert three.at(2) == ([1, 2, 3], pytest.approx(4 + 0.9 * 8), pytest.approx(0.81), [3, 4, 5], 1)
    assert three.at(3) == ([2, 3, 4], 8, pytest.approx(0.9), [3, 4, 5], 1)
    assert three.at(4)[-1] == 0


def test_three_steps_by_hand_at_a_terminal() -> None:
    three = ByHand(n_step=3)
    three.add([0, 0, 1], 1)
    three.add([0, 1, 2], 2)
    three.add([1, 2, 3], 4, "terminal")
    # It is a transition as soon as it is stored.
    assert three.at(2)[1:3] == (4, 0)
    assert three.at(2)[-1] == 1
    three.add([0, 0, 50], 8)
    three.add([0, 50, 51], 16)
    assert three.at(0)[:3] == ([0, 0, 1], pytest.approx(1 + 0.9 * 2 + 0.81 * 4), 0)
    assert three.at(1)[:3] == ([0, 1, 2], pytest.approx(2 + 0.9 * 4), 0)
    assert three.at(2)[:3] == ([1, 2, 3], 4, 0)
    assert three.at(3) == ([0, 0, 50], 8, pytest.approx(0.9), [0, 50, 51], 1)


def test_three_steps_by_hand_at_a_truncation() -> None:
    three = ByHand(n_step=3)
    three.add([0, 0, 1], 1)
    three.add([0, 1, 2], 2, "truncated", last_obs=[1, 2, 3])
    assert three.at(1) == ([0, 1, 2], 2, pytest.approx(0.9), [1, 2, 3], 1)
    three.add([0, 0, 50], 8)
    three.add([0, 50, 51], 16)
    assert three.at(0) == ([0, 0, 1], pytest.approx(1 + 0.9 * 2), pytest.approx(0.81), [1, 2, 3], 1)
    assert three.at(1) == ([0, 1, 2], 2, pytest.approx(0.9), [1, 2, 3], 1)
    assert three.at(2)[-1] == 0, "the true last observation is no transition of its own"
    assert three.at(3) == ([0, 0, 50], 8, pytest.approx(0.9), [0, 50, 51], 1)


def test_three_steps_by_hand_at_a_lost_life() -> None:
    three = ByHand(n_step=3)
    three.add([0, 0, 1], 1)
    three.add([0, 1, 2], 2, "life")
    three.add([1, 2, 3], 4)
    three.add([2, 3, 4], 8)
    assert three.at(0)[:3] == ([0, 0, 1], pytest.approx(1 + 0.9 * 2), 0)
    assert three.at(1)[:3] == ([0, 1, 2], 2, 0)
    # The stack goes on across it: no reset.
    assert three.at(2) == ([1, 2, 3], 4, pytest.approx(0.9), [2, 3, 4], 1)


def test_without_life_lost_a_life_is_no_boundary() -> None:
    play = Play(1, life_loss_ends=False)
    replay = make(play, 20)
    script: tuple[Event, ...] = ("going", "life", "going")
    for event in script:
        play.feed(replay, [event])
    batch = replay.gather(torch.tensor([0]), torch.tensor([1]))
    assert batch.discount.item() == pytest.approx(GAMMA)


@pytest.mark.parametrize("n_step", [1, 3])
def test_samples_are_transitions_that_are_still_there(n_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(2)
    replay = make(play, 2 * 15, n_step=n_step)
    weights: list[float] = []
    for step in range(70):
        play.feed(replay, [SCRIPT[0][step % len(SCRIPT[0])], SCRIPT[1][step % len(SCRIPT[1])]])
        batch, pairs = drawn(replay, 64, monkeypatch)
        assert all(slot in play.may_be_drawn(env, 15) for env, slot in pairs)
        check_rows(batch, play, pairs, n_step)
        weights += batch.weight.tolist()
    assert set(weights) == {0.0, 1.0}
    assert np.mean(weights) > 0.75


def test_sampling_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(3)
    replay = make(play, 3 * 20, seed=5)
    for step in range(60):
        play.feed(replay, ["going", "terminal" if step % 9 == 0 else "going", "going"])
    cells = [(env, slot) for env in range(3) for slot in play.may_be_drawn(env, 20)]
    assert len(cells) == 3 * 17  # the oldest three of 20 only lend frames
    draws = 51_000
    _, pairs = drawn(replay, draws, monkeypatch)
    counts = Counter(pairs)
    assert set(counts) == set(cells)
    expected = draws / len(cells)
    chi_square = sum((counts[cell] - expected) ** 2 / expected for cell in cells)
    # 50 degrees of freedom: 0.1% and 99.9% quantiles.
    assert 24.7 < chi_square < 86.7


def test_the_same_seed_samples_the_same_and_another_does_not() -> None:
    batches = []
    for seed in (1, 1, 2):
        play = Play(2)
        replay = make(play, 60, seed=seed)
        for _ in range(20):
            play.feed(replay, ["going", "going"])
        batches.append(replay.sample(32))
    for left, right in zip(batches[0], batches[1], strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(batches[0].obs, batches[2].obs)


def test_types_and_shapes_of_a_batch() -> None:
    play = Play(2, stack=3, channels=3)
    replay = make(play, 60, n_step=2)
    for _ in range(9):
        play.feed(replay, ["going", "going"])
    batch = replay.sample(5)
    assert [tensor.dtype for tensor in batch] == [
        torch.uint8,
        torch.int64,
        torch.float32,
        torch.float32,
        torch.uint8,
        torch.float32,
    ]
    assert [tuple(tensor.shape) for tensor in batch] == [(5, 9, 2, 2), (5,), (5,), (5,), (5, 9, 2, 2), (5,)]


def test_an_empty_ring_holds_nothing_whatever_its_files_say(tmp_path: Path) -> None:
    play = Play(2)
    replay = make(play, 60, folder=tmp_path)
    for _ in range(5):
        play.feed(replay, ["terminal", "truncated"])
    fresh = make(play, 60, folder=tmp_path)
    assert len(fresh) == 0
    assert fresh.sample(20).weight.sum() == 0
    fresh.add(*(np.zeros((2, *shape), kind) for shape, kind in ADDED))
    assert fresh.sample(20).weight.sum() == 0, "nor does one whose only slot waits for its successor"


def test_length_counts_what_may_be_sampled() -> None:
    play = Play(2)
    replay = make(play, 30, slack=100)
    assert len(replay) == 0
    play.feed(replay, ["going", "truncated"])
    assert len(replay) == 3
    for _ in range(40):
        play.feed(replay, ["going", "going"])
    assert len(replay) == 30


def test_what_was_given_is_copied() -> None:
    play = Play(1)
    replay = make(play, 20)
    obs = np.full((1, 4, 2, 2), 7, np.uint8)
    zero = np.zeros(1, np.float32)
    for _ in range(2):
        replay.add(obs, np.array([1]), zero, zero > 0, zero > 0, obs)
    obs[:] = 9
    assert replay.gather(torch.tensor([0]), torch.tensor([0])).obs.max() == 7


EVENTS: tuple[Event, ...] = ("going", "terminal", "truncated", "life", "life+terminal", "life+truncated")


@st.composite
def streams(draw: st.DrawFn) -> tuple[Play, int, int, int, list[list[Event]]]:
    """A fresh Play, n_step, slots of a window, slack, and a script."""
    play = Play(
        draw(st.integers(1, 3)),
        stack=draw(st.integers(1, 4)),
        channels=draw(st.sampled_from([1, 3])),
        life_loss_ends=draw(st.booleans()),
    )
    n_step = draw(st.integers(1, 5))
    window = draw(st.integers(play.stack + n_step + 1, 16))
    slack = draw(st.sampled_from([0, 0, 5]))
    # Mostly going, so that episodes have some length; shrinking ends at "going".
    event = st.one_of(st.just(EVENTS[0]), st.just(EVENTS[0]), st.sampled_from(EVENTS))
    steps = draw(st.lists(st.lists(event, min_size=play.num_envs, max_size=play.num_envs), min_size=1, max_size=50))
    return play, n_step, window, slack, steps


@settings(max_examples=300)
@given(streams())
def test_any_stream_equals_the_reference(stream: tuple[Play, int, int, int, list[list[Event]]]) -> None:
    play, n_step, window, slack, steps = stream
    replay = make(play, window * play.num_envs, n_step=n_step, slack=slack * play.num_envs)
    for events in steps:
        play.feed(replay, events)
    check_all(replay, play, n_step, window)


@settings(max_examples=60)
@given(streams())
def test_any_sample_shows_stored_observations_only(stream: tuple[Play, int, int, int, list[list[Event]]]) -> None:
    play, n_step, window, slack, steps = stream
    replay = make(play, window * play.num_envs, n_step=n_step, slack=slack * play.num_envs)
    for events in steps:
        play.feed(replay, events)
    acted_on = {slot.obs.tobytes() for slots in play.slots for slot in slots[-window:] if slot.action is not None}
    shown = {slot.obs.tobytes() for slots in play.slots for slot in slots[-window:]}
    batch = replay.sample(64)
    for row in torch.nonzero(batch.weight).flatten().tolist():
        assert batch.obs[row].numpy().tobytes() in acted_on
        if batch.discount[row] > 0:
            assert batch.next_obs[row].numpy().tobytes() in shown


@settings(max_examples=60)
@given(streams(), st.integers(0, 49))
def test_any_checkpoint_samples_the_same_after_more_was_written(
    stream: tuple[Play, int, int, int, list[list[Event]]], cut: int
) -> None:
    play, n_step, window, _, steps = stream
    cut = min(cut, len(steps))
    # A step writes two slots where it is truncated.
    replay = make(play, window * play.num_envs, n_step=n_step, slack=2 * (len(steps) - cut) * play.num_envs)
    for events in steps[:cut]:
        play.feed(replay, events)
    state = replay.state_dict()
    before = replay.sample(32)
    for events in steps[cut:]:
        play.feed(replay, events)
    replay.load_state_dict(state)
    after = replay.sample(32)
    valid = before.weight > 0
    assert torch.equal(before.weight, after.weight)
    for left, right in zip(before, after, strict=True):
        ended = before.discount == 0
        keep = valid & ~ended if left is before.next_obs else valid  # behind an ending anything may stand
        assert torch.equal(left[keep], right[keep])


# Persistence


def fill(play: Play, replay: Replay, steps: int) -> None:
    for _ in range(steps):
        step = play.steps
        play.feed(replay, [script[step % len(script)] for script in SCRIPT[: play.num_envs]])


def test_another_instance_goes_on_from_the_files(tmp_path: Path) -> None:
    play = Play(3)
    replay = make(play, 3 * 23, n_step=3, folder=tmp_path, slack=60)
    fill(play, replay, 70)
    play.feed(replay, ["terminal", "truncated", "going"])  # two of the next slots begin an episode
    state = replay.state_dict()
    expected = [replay.sample(64) for _ in range(3)]

    other = make(play, 3 * 23, n_step=3, folder=tmp_path, slack=60, seed=99)
    other.load_state_dict(state)
    assert len(other) == len(replay)
    for batch in expected:
        for left, right in zip(batch, other.sample(64), strict=True):
            assert torch.equal(left, right)
    # It also goes on being written where the first one stood: starts of episodes are remembered.
    for _ in range(40):
        fill(play, other, 1)
        check_all(other, play, 3, window=23)


def test_what_is_written_after_a_checkpoint_spares_what_it_needs(tmp_path: Path) -> None:
    play = Play(3)
    slack = 3 * 2 * 30
    replay = make(play, 3 * 23, n_step=3, folder=tmp_path, slack=slack)
    fill(play, replay, 100)
    state = replay.state_dict()
    expected = replay.sample(200)
    for _ in range(30):  # the worst: every step truncated, two slots each
        play.feed(replay, ["truncated"] * 3)
    other = make(play, 3 * 23, n_step=3, folder=tmp_path, slack=slack)
    other.load_state_dict(state)
    valid = expected.weight > 0
    got = other.sample(200)
    assert torch.equal(expected.weight, got.weight)
    for left, right in zip(expected, got, strict=True):
        keep = valid & (expected.discount > 0) if left is expected.next_obs else valid
        assert torch.equal(left[keep], right[keep])


def test_the_state_is_a_snapshot() -> None:
    play = Play(2)
    replay = make(play, 60)
    fill(play, replay, 5)
    state = replay.state_dict()
    head = state["head"].clone()
    fill(play, replay, 20)
    replay.sample(8)
    assert torch.equal(state["head"], head)
    replay.load_state_dict(state)
    heads = state["head"].clone()
    fill(play, replay, 3)
    assert torch.equal(state["head"], heads), "loading must not tie the ring to the state"


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from agents.replay import Replay

folder = Path(sys.argv[1])
replay = Replay(40, 2, (4, 2, 2), 1, n_step=2, gamma=0.9, seed=3, device=torch.device("cpu"), folder=folder, slack=20)
no = np.zeros(2, bool)
def add(t):
    obs = np.full((2, 4, 2, 2), t, np.uint8)
    replay.add(obs, np.array([t % 4, t % 3]), np.array([t, -t], np.float32), no, no, obs)
for t in range(1, 31):
    add(t)
torch.save({**replay.state_dict()}, folder / "state.pt")
torch.save(tuple(replay.sample(16)), folder / "sample.pt")
for t in range(31, 36):
    add(t)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing_before_its_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    replay = Replay(40, 2, (4, 2, 2), 1, n_step=2, gamma=0.9, seed=0, device=CPU, folder=tmp_path, slack=20)
    replay.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for left, right in zip(torch.load(tmp_path / "sample.pt", weights_only=True), replay.sample(16), strict=True):
        assert torch.equal(left, right)


def test_a_state_of_other_rings_is_refused() -> None:
    play = Play(2)
    state = make(play, 60).state_dict()
    with pytest.raises(UserError, match="rings of 30 slots, but 2 rings of 40 were expected"):
        make(play, 80).load_state_dict(state)
    with pytest.raises(UserError, match="2 rings of 30 slots, but 3 rings of 30 were expected"):
        make(Play(3), 90).load_state_dict(state)


def test_files_of_another_size_are_refused_and_left_alone(tmp_path: Path) -> None:
    play = Play(2)
    replay = make(play, 60, folder=tmp_path)
    fill(play, replay, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"frame.bin", "action.bin", "reward.bin", "flag.bin"}
    with pytest.raises(UserError, match=r"bytes where this configuration needs .*--name"):
        make(play, 100, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_take_their_blocks_at_once(tmp_path: Path) -> None:
    replay = Replay(2000, 2, (4, 20, 20), 1, n_step=1, gamma=0.9, seed=0, device=CPU, folder=tmp_path, slack=100)
    on_disk = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert on_disk >= replay.bytes


def test_a_full_disk_leaves_no_half_made_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    allocate, made = os.posix_fallocate, []

    def fill_up(descriptor: int, offset: int, size: int) -> None:
        made.append(size)
        if len(made) == 3:
            os.ftruncate(descriptor, size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fill_up)
    play = Play(2)
    with pytest.raises(UserError, match=r"could not be made in .*full \(No space left on device\); free some space"):
        make(play, 60, folder=full)
    assert len(made) == 3
    assert list(full.iterdir()) == []
    # With room again, the same command works.
    monkeypatch.undo()
    replay = make(play, 60, folder=full)
    fill(play, replay, 20)
    check_all(replay, play, 1, window=30)


def test_a_full_disk_keeps_the_files_of_a_run_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(2)
    fill(play, make(play, 60, folder=tmp_path), 10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(UserError, match="No space left"):
        make(play, 60, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# What it takes


def test_a_million_transitions_fit_the_promise() -> None:
    # Pixels, 4 bytes each of action and reward, one of flags.
    assert bytes_needed(1_000_000, 0, (1, 84, 84)) == 1_000_000 * (84 * 84 + 9)
    assert bytes_needed(1_000_000, 10_000, (1, 84, 84)) <= 7.2e9
    assert bytes_needed(10, 5, (3, 6, 7)) == 15 * (126 + 9)


def test_bytes_are_those_of_the_arrays(tmp_path: Path) -> None:
    play = Play(3)
    replay = make(play, 100, folder=tmp_path, slack=50)
    one_frame = 4  # the zeros before an episode's start
    assert replay.bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) - one_frame
    assert replay.bytes == 3 * (34 + 17 + 1) * (4 + 9)
    assert replay.place().startswith("0.00 GB in files under ")
    assert make(play, 100).place() == "0.00 GB in memory, not kept on disk"


def test_too_little_memory_is_said_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2_000_000_000))
    options: dict[str, Any] = {"n_step": 1, "gamma": 0.9, "seed": 0, "device": CPU}
    for folder in (None, tmp_path / "replay"):
        with pytest.raises(UserError, match=r"needs 7\.07 GB of main memory and 2\.00 GB are free"):
            Replay(1_000_000, 1, (4, 84, 84), 1, folder=folder, **options)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_said_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"GB of disk in .* are free; lower --replay-capacity, free some space"):
        make(play, 60, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    # In memory the disk is nobody's business; and files that are there already take no more room.
    fill(play, make(play, 60), 3)
    monkeypatch.undo()
    replay = make(play, 60, folder=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    make(play, 60, folder=tmp_path).load_state_dict(replay.state_dict())


def test_rings_too_small_for_one_sample_are_refused() -> None:
    with pytest.raises(UserError, match="gives each of 8 environments 7 slots, fewer than the 8"):
        make(Play(8), 56, n_step=3)
    make(Play(8), 64, n_step=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_holds_the_same() -> None:
    play = Play(3)
    options: dict[str, Any] = {"n_step": 3, "gamma": GAMMA, "seed": 0}
    replay = Replay(3 * 23, 3, play.obs_shape, 1, device=torch.device("cuda"), **options)
    twin = Play(3)
    reference = make(twin, 3 * 23, n_step=3)
    for _ in range(60):
        fill(play, replay, 1)
        fill(twin, reference, 1)
    pairs = [(env, slot) for env in range(3) for slot in play.may_be_drawn(env, 23)]
    env_B, slot_B = torch.tensor([env for env, _ in pairs]), torch.tensor([slot for _, slot in pairs])
    expected = reference.gather(env_B, slot_B)
    for left, right in zip(replay.gather(env_B.to("cuda"), slot_B.to("cuda")), expected, strict=True):
        assert left.device.type == "cuda"
        torch.testing.assert_close(left.to("cpu"), right)
