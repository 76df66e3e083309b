"""Tests of the replay buffer against the reference implementation: every transition, at every boundary."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.agents.fakes import (
    CPU,
    GAMMA,
    SCRIPT,
    Event,
    ScriptedEnvs,
    Stream,
    check_all,
    check_rows,
    fill,
    make,
    streams,
)
from zerokara.agents.qlearning.replay import Batch, Replay


def sample_with_slots(
    replay: Replay, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Batch, list[tuple[int, int]]]:
    """Sample a batch, and return it with the (environment, slot) of each row."""
    seen: list[tuple[int, int]] = []
    gather = replay.gather

    def spy(env_B: Tensor, slot_B: Tensor) -> Batch:
        seen.extend(zip(env_B.tolist(), slot_B.tolist(), strict=True))
        return gather(env_B, slot_B)

    with monkeypatch.context() as patch:
        patch.setattr(replay, "gather", spy)
        return replay.sample(batch_size), seen


@pytest.mark.parametrize(("dtype", "frame_bytes"), [(np.uint8, 12), (np.float32, 48)])
def test_slots_and_bytes(dtype: type[np.generic], frame_bytes: int) -> None:
    options: dict[str, Any] = {"dtype": dtype, "n_step": 1, "gamma": GAMMA, "seed": 0, "device": CPU}
    replay = Replay(30, 3, (2, 3, 4), 1, **options)
    assert (replay.window, replay.slots, replay.bytes) == (10, 10, 30 * (frame_bytes + 9))
    replay = Replay(30, 3, (2, 3, 4), 1, checkpoint_margin=7, **options)  # a third of it for each environment
    assert (replay.window, replay.slots, replay.bytes) == (10, 13, 39 * (frame_bytes + 9))


@pytest.mark.parametrize("terminal_on_life_loss", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_every_transition_equals_the_reference_over_several_laps(
    n_step: int, channels: int, terminal_on_life_loss: bool
) -> None:
    envs = ScriptedEnvs(3, channels=channels, terminal_on_life_loss=terminal_on_life_loss)
    replay = make(envs, 3 * 23, n_step=n_step)
    checked = 0
    for step in range(130):  # more than five laps of ring buffers of 23 slots
        envs.step(replay, [script[step % len(script)] for script in SCRIPT])
        checked += check_all(replay, envs, n_step, window=23)
    assert checked > 3 * 130 * 10
    assert all(len(slots) > 5 * 23 for slots in envs.slots)


@pytest.mark.parametrize("checkpoint_margin", [0, 17])
def test_the_checkpoint_margin_is_not_sampled(checkpoint_margin: int) -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 2 * 20, n_step=3, checkpoint_margin=checkpoint_margin)
    for step in range(90):
        envs.step(replay, ["truncated" if step % 9 == 4 else "continue", "terminal" if step % 7 == 6 else "continue"])
        check_all(replay, envs, 3, window=20)


# Cases computed by hand: one environment, gamma 0.9, rewards 1, 2, 4, 8, ..., frames of one pixel with their number.


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
        """Return obs, reward, discount, next obs and weight of the transition at a slot."""
        batch = self.replay.gather(torch.tensor([0]), torch.tensor([slot]))
        obs, next_obs = batch.obs.flatten().tolist(), batch.next_obs.flatten().tolist()
        return obs, batch.reward.item(), batch.discount.item(), next_obs, batch.weight.item()


def test_three_steps_by_hand_up_to_the_write_position() -> None:
    three = ByHand(n_step=3)
    for obs, reward in (([0, 0, 1], 1), ([0, 1, 2], 2), ([1, 2, 3], 4), ([2, 3, 4], 8), ([3, 4, 5], 16)):
        three.add(obs, reward)
    assert three.at(0) == ([0, 0, 1], pytest.approx(1 + 0.9 * 2 + 0.81 * 4), pytest.approx(0.729), [2, 3, 4], 1)
    assert three.at(1) == ([0, 1, 2], pytest.approx(2 + 0.9 * 4 + 0.81 * 8), pytest.approx(0.729), [3, 4, 5], 1)
    # Fewer than three steps are stored: returns over two steps and one step. The newest slot has no next observation.
    assert three.at(2) == ([1, 2, 3], pytest.approx(4 + 0.9 * 8), pytest.approx(0.81), [3, 4, 5], 1)
    assert three.at(3) == ([2, 3, 4], 8, pytest.approx(0.9), [3, 4, 5], 1)
    assert three.at(4)[-1] == 0


def test_three_steps_by_hand_at_a_terminal() -> None:
    three = ByHand(n_step=3)
    three.add([0, 0, 1], 1)
    three.add([0, 1, 2], 2)
    three.add([1, 2, 3], 4, "terminal")
    # A terminal transition can be sampled as soon as it is stored.
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
    assert three.at(2)[-1] == 0, "no transition starts at the true last observation"
    assert three.at(3) == ([0, 0, 50], 8, pytest.approx(0.9), [0, 50, 51], 1)


def test_three_steps_by_hand_at_a_lost_life() -> None:
    three = ByHand(n_step=3)
    three.add([0, 0, 1], 1)
    three.add([0, 1, 2], 2, "life")
    three.add([1, 2, 3], 4)
    three.add([2, 3, 4], 8)
    assert three.at(0)[:3] == ([0, 0, 1], pytest.approx(1 + 0.9 * 2), 0)
    assert three.at(1)[:3] == ([0, 1, 2], 2, 0)
    # The frame stack continues after the lost life.
    assert three.at(2) == ([1, 2, 3], 4, pytest.approx(0.9), [2, 3, 4], 1)


def test_a_lost_life_is_no_boundary_without_life_lost() -> None:
    envs = ScriptedEnvs(1, terminal_on_life_loss=False)
    replay = make(envs, 20)
    script: tuple[Event, ...] = ("continue", "life", "continue")
    for event in script:
        envs.step(replay, [event])
    batch = replay.gather(torch.tensor([0]), torch.tensor([1]))
    assert batch.discount.item() == pytest.approx(GAMMA)


@pytest.mark.parametrize("n_step", [1, 3])
def test_samples_are_stored_transitions(n_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 2 * 15, n_step=n_step)
    weights: list[float] = []
    for step in range(70):
        envs.step(replay, [SCRIPT[0][step % len(SCRIPT[0])], SCRIPT[1][step % len(SCRIPT[1])]])
        batch, pairs = sample_with_slots(replay, 64, monkeypatch)
        assert all(slot in envs.sampleable_slots(env, 15) for env, slot in pairs)
        check_rows(batch, envs, pairs, n_step)
        weights += batch.weight.tolist()
    assert set(weights) == {0.0, 1.0}
    assert np.mean(weights) > 0.75


def test_sampling_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ScriptedEnvs(3)
    replay = make(envs, 3 * 20, seed=5)
    for step in range(60):
        envs.step(replay, ["continue", "terminal" if step % 9 == 0 else "continue", "continue"])
    cells = [(env, slot) for env in range(3) for slot in envs.sampleable_slots(env, 20)]
    assert len(cells) == 3 * 17  # the oldest three of 20 are used only as frames of stacks
    num_samples = 51_000
    _, pairs = sample_with_slots(replay, num_samples, monkeypatch)
    counts = Counter(pairs)
    assert set(counts) == set(cells)
    expected = num_samples / len(cells)
    chi_square = sum((counts[cell] - expected) ** 2 / expected for cell in cells)
    # 50 degrees of freedom: 0.1% and 99.9% quantiles.
    assert 24.7 < chi_square < 86.7


def test_the_seed_determines_the_samples() -> None:
    batches = []
    for seed in (1, 1, 2):
        envs = ScriptedEnvs(2)
        replay = make(envs, 60, seed=seed)
        for _ in range(20):
            envs.step(replay, ["continue", "continue"])
        batches.append(replay.sample(32))
    for left, right in zip(batches[0], batches[1], strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(batches[0].obs, batches[2].obs)


def test_n_step_and_gamma_can_change() -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 60, n_step=4)
    fill(envs, replay, 25)
    for n_step in (2, 4, 1, 3):
        replay.set_n_step_and_gamma(n_step, GAMMA)
        assert check_all(replay, envs, n_step, window=30) > 30
    env_B, slot_B = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    replay.set_n_step_and_gamma(1, GAMMA)
    tensors = replay._current_n_step, replay._discount
    one_step = replay.gather(env_B, slot_B)
    replay.set_n_step_and_gamma(2, 0.25)
    batch = replay.gather(env_B, slot_B)
    assert batch.discount.tolist() == [0.0625] * 4
    assert replay._current_n_step is tensors[0], "a CUDA graph refers to the address of the tensor"
    assert replay._discount is tensors[1]
    torch.testing.assert_close(batch.reward[:3], one_step.reward[:3] + 0.25 * one_step.reward[1:])


def test_tensors_are_on_the_device_of_the_buffer() -> None:
    """A tensor created without a device would be on the default device, here one without data."""
    envs = ScriptedEnvs(2)
    with torch.device("meta"):
        replay = make(envs, 80, n_step=2)
        replay.set_n_step_and_gamma(2, 0.9)
        fill(envs, replay, 10)
        batch = replay.sample(8)
    assert {tensor.device.type for tensor in batch} == {"cpu"}
    assert batch.weight.max() == 1


def test_types_and_shapes_of_a_batch() -> None:
    envs = ScriptedEnvs(2, frame_stack=3, channels=3)
    replay = make(envs, 60, n_step=2)
    for _ in range(9):
        envs.step(replay, ["continue", "continue"])
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


def test_length_is_the_number_of_sampleable_slots() -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 30, checkpoint_margin=100)
    assert len(replay) == 0
    envs.step(replay, ["continue", "truncated"])
    assert len(replay) == 3
    for _ in range(40):
        envs.step(replay, ["continue", "continue"])
    assert len(replay) == 30


def test_added_arrays_are_copied() -> None:
    envs = ScriptedEnvs(1)
    replay = make(envs, 20)
    obs = np.full((1, 4, 2, 2), 7, np.uint8)
    zero = np.zeros(1, np.float32)
    for _ in range(2):
        replay.add(obs, np.array([1]), zero, zero > 0, zero > 0, obs)
    obs[:] = 9
    assert replay.gather(torch.tensor([0]), torch.tensor([0])).obs.max() == 7


@settings(max_examples=300)
@given(streams())
def test_any_stream_equals_the_reference(stream: Stream) -> None:
    envs, n_step, window, checkpoint_margin, steps = stream
    replay = make(envs, window * envs.num_envs, n_step=n_step, checkpoint_margin=checkpoint_margin * envs.num_envs)
    for events in steps:
        envs.step(replay, events)
    check_all(replay, envs, n_step, window)


@settings(max_examples=60)
@given(streams())
def test_samples_contain_only_stored_observations(stream: Stream) -> None:
    envs, n_step, window, checkpoint_margin, steps = stream
    replay = make(envs, window * envs.num_envs, n_step=n_step, checkpoint_margin=checkpoint_margin * envs.num_envs)
    for events in steps:
        envs.step(replay, events)
    acted_on = {slot.obs.tobytes() for slots in envs.slots for slot in slots[-window:] if slot.action is not None}
    shown = {slot.obs.tobytes() for slots in envs.slots for slot in slots[-window:]}
    batch = replay.sample(64)
    for row in torch.nonzero(batch.weight).flatten().tolist():
        assert batch.obs[row].numpy().tobytes() in acted_on
        if batch.discount[row] > 0:
            assert batch.next_obs[row].numpy().tobytes() in shown


@settings(max_examples=60)
@given(streams(), st.integers(0, 49))
def test_samples_of_a_checkpoint_do_not_change_after_further_writes(stream: Stream, cut: int) -> None:
    envs, n_step, window, _, steps = stream
    cut = min(cut, len(steps))
    # A truncated step writes two slots.
    replay = make(envs, window * envs.num_envs, n_step=n_step, checkpoint_margin=2 * (len(steps) - cut) * envs.num_envs)
    for events in steps[:cut]:
        envs.step(replay, events)
    state = replay.state_dict()
    before = replay.sample(32)
    for events in steps[cut:]:
        envs.step(replay, events)
    replay.load_state_dict(state)
    after = replay.sample(32)
    valid = before.weight > 0
    assert torch.equal(before.weight, after.weight)
    for left, right in zip(before, after, strict=True):
        ended = before.discount == 0
        keep = valid & ~ended if left is before.next_obs else valid  # after a terminal next_obs is arbitrary
        assert torch.equal(left[keep], right[keep])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_buffer_on_a_gpu_equals_one_on_the_cpu() -> None:
    envs = ScriptedEnvs(3)
    options: dict[str, Any] = {"n_step": 3, "gamma": GAMMA, "seed": 0}
    replay = Replay(3 * 23, 3, envs.obs_shape, 1, device=torch.device("cuda"), **options)
    twin = ScriptedEnvs(3)
    reference = make(twin, 3 * 23, n_step=3)
    for _ in range(60):
        fill(envs, replay, 1)
        fill(twin, reference, 1)
    pairs = [(env, slot) for env in range(3) for slot in envs.sampleable_slots(env, 23)]
    env_B, slot_B = torch.tensor([env for env, _ in pairs]), torch.tensor([slot for _, slot in pairs])
    expected = reference.gather(env_B, slot_B)
    for left, right in zip(replay.gather(env_B.to("cuda"), slot_B.to("cuda")), expected, strict=True):
        assert left.device.type == "cuda"
        torch.testing.assert_close(left.to("cpu"), right)


def test_episodes_that_are_not_continued_are_truncated_at_their_newest_observation() -> None:
    hand = ByHand(n_step=3)
    for number in range(1, 5):
        hand.add([0, 0, number], 2.0 ** (number - 1))
    hand.replay.end_episodes()
    hand.replay.end_episodes()  # nothing is left to end
    hand.add([0, 0, 50], 100.0)
    hand.add([0, 50, 51], 200.0)
    batch = hand.replay.gather(torch.zeros(6, dtype=torch.int64), torch.arange(6))
    # Slot 3 is the last observation of the old episode: no transition starts there, and returns bootstrap from it.
    assert batch.weight.tolist() == [1, 1, 1, 0, 1, 0]
    assert batch.reward[:3].tolist() == pytest.approx([1 + 0.9 * 2 + 0.81 * 4, 2 + 0.9 * 4, 4])
    assert batch.discount[:3].tolist() == pytest.approx([0.729, 0.81, 0.9])
    assert batch.next_obs[:3, -1, 0, 0].tolist() == [4, 4, 4]
    assert batch.obs[4].flatten().tolist() == [0, 0, 50], "the new episode has no frames of the old one"


def test_the_end_of_an_episode_is_not_changed_by_ending_it_again() -> None:
    hand = ByHand(n_step=1)
    hand.add([0, 0, 1], 1.0)
    hand.add([0, 1, 2], 2.0, "terminal")
    hand.replay.end_episodes()
    hand.add([0, 0, 9], 4.0)
    batch = hand.replay.gather(torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert (batch.weight.tolist(), batch.reward.tolist()) == ([1, 1], [1, 2])
    assert batch.discount.tolist() == pytest.approx([0.9, 0])
