"""Tests of prioritized replay: sum tree, sampling, weights and priorities, against simple loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.agents.fakes import CPU, GAMMA, SCRIPT, ScriptedEnvs, Stream, check_rows, streams
from zerokara.agents.qlearning.prioritized_replay import FAN_OUT, PrioritizedReplay, SumTree


def make(envs: ScriptedEnvs, window: int, *, n_step: int = 1, alpha: float = 1.0, **options: Any) -> PrioritizedReplay:
    return PrioritizedReplay(
        window * envs.num_envs,
        envs.num_envs,
        envs.obs_shape,
        envs.channels,
        n_step=n_step,
        gamma=GAMMA,
        seed=options.pop("seed", 0),
        device=CPU,
        alpha=alpha,
        **options,
    )


def sampleable_rows(envs: ScriptedEnvs, replay: PrioritizedReplay) -> set[int]:
    """Rows of the slots at which a transition starts, according to the reference."""
    return {
        env * replay.slots + slot % replay.slots
        for env in range(envs.num_envs)
        for slot in envs.sampleable_slots(env, replay.window)
        if envs.expected_transition(env, slot, replay.n_step) is not None
    }


def check_sums(tree: SumTree) -> None:
    for below, level in zip(tree.levels[:-1], tree.levels[1:], strict=True):
        sums = below.view(-1, FAN_OUT).sum(dim=1)
        torch.testing.assert_close(level[: len(sums)], sums)
        assert level[len(sums) :].eq(0).all()


# The tree


@pytest.mark.parametrize(("size", "levels"), [(1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3), (1_048_576, 4)])
def test_number_of_levels_of_the_tree(size: int, levels: int) -> None:
    tree = SumTree(size, CPU)
    assert len(tree.levels) == levels
    assert len(tree.levels[-1]) == FAN_OUT
    tree.set(torch.tensor([size - 1]), torch.tensor([2.0]))
    assert all(level.sum() == 2 for level in tree.levels)
    assert tree.sample(torch.rand(levels, 50)).eq(size - 1).all(), "the only value above 0"


def test_sums_are_correct_after_many_changes() -> None:
    tree, generator = SumTree(9000, CPU), torch.Generator().manual_seed(0)
    numbers = torch.zeros(9000)
    for _ in range(60):
        row = torch.randint(9000, (100,), generator=generator)
        value = torch.rand(100, generator=generator) * (torch.rand(100, generator=generator) > 0.3)
        tree.set(row, value)
        for r in set(row.tolist()):  # for a row that occurs twice, the larger value is stored
            numbers[r] = value[row == r].max()
        check_sums(tree)
    assert torch.equal(tree.levels[0][:9000], numbers)
    assert torch.equal(tree.get(torch.tensor([5, 17])), numbers[[5, 17]])


def test_samples_are_proportional_to_values() -> None:
    """Two levels, values from 1 to 100, and values of 0, which are never sampled."""
    tree, generator = SumTree(200, CPU), torch.Generator().manual_seed(3)
    numbers = torch.zeros(200)
    numbers[[3, 40, 63, 64, 120, 199]] = torch.tensor([1.0, 10, 100, 50, 5, 34])
    tree.set(torch.arange(200), numbers)
    num_samples = 200_000
    row_B = tree.sample(torch.rand(2, num_samples, generator=generator))
    counts = torch.bincount(row_B, minlength=200).double()
    assert counts[numbers == 0].sum() == 0
    expected = num_samples * numbers[numbers > 0].double() / 200
    chi_square = ((counts[numbers > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom: 99.9%


def test_a_value_of_0_is_never_sampled_after_rounding() -> None:
    """Values that float32 cannot add exactly, and the largest random number below 1."""
    tree = SumTree(640, CPU)
    numbers = torch.zeros(640)
    numbers[10:620:7] = 1e-3
    numbers[10], numbers[80] = 1e6, 3e-9
    tree.set(torch.arange(640), numbers)
    nearly_1 = torch.nextafter(torch.ones(1), torch.zeros(1))
    for last in (0.0, 1.0, nearly_1.item()):
        uniform = torch.tensor([[0.0, 0.5, 1.0, nearly_1.item()], [last] * 4])
        assert (tree.get(tree.sample(uniform)) > 0).all()


# Priorities


@pytest.mark.parametrize("checkpoint_margin", [0, 24])
@pytest.mark.parametrize("n_step", [1, 3])
def test_only_transitions_have_a_priority_over_several_laps(n_step: int, checkpoint_margin: int) -> None:
    envs = ScriptedEnvs(3)
    replay = make(envs, 20, n_step=n_step, checkpoint_margin=checkpoint_margin)
    for step in range(140):
        envs.step(replay, [script[step % len(script)] for script in SCRIPT])
        assert set(torch.nonzero(replay.tree.levels[0]).flatten().tolist()) == sampleable_rows(envs, replay), step
        check_sums(replay.tree)


@settings(max_examples=150, deadline=None)
@given(streams())
def test_only_transitions_have_a_priority_in_any_stream(stream: Stream) -> None:
    envs, n_step, window, checkpoint_margin, steps = stream
    replay = make(envs, window, n_step=n_step, checkpoint_margin=checkpoint_margin * envs.num_envs)
    for events in steps:
        envs.step(replay, events)
    assert set(torch.nonzero(replay.tree.levels[0]).flatten().tolist()) == sampleable_rows(envs, replay)


def record_samples(replay: PrioritizedReplay, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that is filled with the (environment, slot) of every sampled row."""
    seen: list[tuple[int, int]] = []
    gather = replay.gather

    def spy(env_B: Tensor, slot_B: Tensor) -> Any:
        seen.extend(zip(env_B.tolist(), slot_B.tolist(), strict=True))
        return gather(env_B, slot_B)

    monkeypatch.setattr(replay, "gather", spy)
    return seen


def test_a_sampled_row_is_the_transition_currently_stored_there(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ScriptedEnvs(3)
    replay = make(envs, 20, n_step=3, checkpoint_margin=17, alpha=0.7)
    seen = record_samples(replay, monkeypatch)
    for step in range(110):
        envs.step(replay, [script[step % len(script)] for script in SCRIPT])
        if step < 3:
            continue
        seen.clear()
        batch = replay.sample(32)
        assert (batch.weight > 0).all()
        check_rows(batch._replace(weight=(batch.weight > 0).float()), envs, seen, 3)
        replay.update_priorities(torch.rand(32))


def test_priorities_weights_and_new_transitions_by_hand() -> None:
    envs = ScriptedEnvs(1, frame_stack=1)
    replay = make(envs, 10, alpha=0.5)
    for _ in range(4):
        envs.step(replay, ["continue"])
    priorities = replay.tree.levels[0]
    assert priorities[:5].tolist() == [1, 1, 1, 0, 0], "priority 1 for new transitions, 0 for the newest slot"
    replay._sampled_row_B = torch.tensor([0, 1])
    replay.update_priorities(torch.tensor([9.0, 0.25]))
    assert priorities[:5].tolist() == pytest.approx([3, 0.5, 1, 0, 0], rel=1e-4)  # errors ** .5
    envs.step(replay, ["continue"])
    assert priorities[:5].tolist() == pytest.approx([3, 0.5, 1, 3, 0], rel=1e-4), "the largest priority so far"
    replay._sampled_row_B = torch.tensor([0])
    replay.update_priorities(torch.tensor([0.0]))
    assert 0 < priorities[0] <= 1.1e-3, "an error of 0 keeps a positive priority"
    envs.step(replay, ["terminal"])
    assert priorities[4:6].tolist() == pytest.approx([3, 3], rel=1e-4), "a terminal needs no next slot"
    replay._sampled_row_B = torch.tensor([5])
    replay.update_priorities(torch.tensor([1.0]))
    envs.step(replay, ["continue"])
    assert priorities[5:7].tolist() == pytest.approx([1, 0], rel=1e-4), "its priority is kept"

    replay.beta.fill_(0.4)
    batch = replay.sample(64)
    priority_B = priorities[replay._sampled_row_B]
    expected_B = (priority_B / priority_B.min()) ** -0.4
    torch.testing.assert_close(batch.weight, expected_B)
    assert batch.weight.max() == 1, "divided by the maximum in the batch"


def test_a_late_update_gives_no_priority_to_expired_slots() -> None:
    """Updating priorities after slots were overwritten or expired must not give these slots a priority."""
    envs = ScriptedEnvs(1)
    replay = make(envs, 12)
    for _ in range(12):
        envs.step(replay, ["continue"])
    replay.sample(64)
    for _ in range(6):
        envs.step(replay, ["continue"])
    replay.update_priorities(torch.full((64,), 5.0))
    assert set(torch.nonzero(replay.tree.levels[0]).flatten().tolist()) == sampleable_rows(envs, replay)


def test_sampling_frequencies_follow_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 30)
    for _ in range(30):
        envs.step(replay, ["continue", "continue"])
    rows = torch.arange(60)
    priority = torch.where(replay.tree.get(rows) > 0, 1.0 + rows % 7, 0.0)
    replay.tree.set(rows, priority)
    seen = record_samples(replay, monkeypatch)
    for _ in range(300):
        replay.sample(100)
    counts = np.zeros(60)
    for env, slot in seen:
        counts[env * 30 + slot] += 1
    expected = 30_000 * priority.numpy() / priority.sum().item()
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    # 57 degrees of freedom, 99.9%; stratified samples vary less than independent ones.
    assert chi_square < 99


@pytest.mark.parametrize("in_files", [True, False])
def test_a_restored_buffer_continues_bitwise_identically(tmp_path: Path, in_files: bool) -> None:
    options: dict[str, Any] = {
        "n_step": 3,
        "checkpoint_margin": 120,
        "alpha": 0.6,
        "folder": tmp_path if in_files else None,
    }
    envs = ScriptedEnvs(3)
    replay = make(envs, 20, **options)

    def run_steps(replay: PrioritizedReplay, envs: ScriptedEnvs, steps: int) -> list[Tensor]:
        sampled = []
        for step in range(steps):
            envs.step(replay, [script[step % len(script)] for script in SCRIPT])
            if step > 2:
                batch = replay.sample(16)
                sampled += [batch.obs, batch.reward, batch.weight]
                replay.update_priorities(batch.reward.abs())
        return sampled

    run_steps(replay, envs, 60)
    state = replay.state_dict()
    if in_files:
        other = make(envs, 20, seed=9, **options)
        other.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(replay.tree.levels, other.tree.levels, strict=True))
        assert torch.equal(replay.max_priority, other.max_priority)
        first, second = [r.sample(64) for r in (replay, other)]
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        run_steps(other, envs, 40)
        assert set(torch.nonzero(other.tree.levels[0]).flatten().tolist()) == sampleable_rows(envs, other)
        return
    expected = replay.sample(64)
    max_priority = replay.max_priority.clone()
    for _ in range(3):
        replay.update_priorities(torch.full((64,), 50.0))
    assert not torch.equal(replay.max_priority, max_priority)
    replay.load_state_dict(state)
    assert torch.equal(replay.max_priority, max_priority), "the state is a snapshot"
    assert all(torch.equal(a, b) for a, b in zip(expected, replay.sample(64), strict=True))
    empty = make(envs, 20, seed=9, **options)
    empty.load_state_dict(state)  # in a new process the data is lost
    assert len(empty) == 0
    assert empty.tree.levels[0].sum() == 0
    assert (empty.sample(8).weight == 0).all(), "no transitions"


def test_samples_are_stratified() -> None:
    """With equal priorities, a batch of as many samples as transitions has each of them once."""
    envs = ScriptedEnvs(1, frame_stack=1)
    replay = make(envs, 20, alpha=0.5)
    for _ in range(17):
        envs.step(replay, ["continue"])
    for _ in range(3):
        replay.sample(16)
        assert sorted(replay._sampled_row_B.tolist()) == list(range(16))


def test_weights_compensate_fully_before_beta_is_set() -> None:
    envs = ScriptedEnvs(1, frame_stack=1)
    replay = make(envs, 10, alpha=1.0)
    for _ in range(4):
        envs.step(replay, ["continue"])
    replay._sampled_row_B = torch.tensor([0, 1])
    replay.update_priorities(torch.tensor([4.0, 2.0]))
    batch = replay.sample(64)
    priority_B = replay.tree.get(replay._sampled_row_B)
    torch.testing.assert_close(batch.weight, priority_B.min() / priority_B)
    replay.set_beta(0.0)
    assert replay.sample(64).weight.unique().tolist() == [1]


def test_a_lost_life_can_be_given_by_name() -> None:
    replay = make(ScriptedEnvs(1, frame_stack=1), 10)
    obs, no, yes = np.zeros((1, 1, 2, 2), np.uint8), np.array([False]), np.array([True])
    replay.add(obs, np.array([1]), np.array([2.0], np.float32), no, no, obs, life_lost=yes)
    batch = replay.sample(4)
    assert batch.weight.tolist() == [1.0] * 4, "the newest slot is a transition only because the life was lost"
    assert batch.discount.tolist() == [0.0] * 4


def test_tensors_are_on_the_device_of_the_buffer() -> None:
    """A tensor created without a device would be on the default device, here one without data."""
    envs = ScriptedEnvs(2)
    with torch.device("meta"):
        replay = make(envs, 40, n_step=2)
        replay.set_beta(0.5)
        for _ in range(10):
            envs.step(replay, ["continue", "continue"])
        batch = replay.sample(8)
        replay.update_priorities(batch.reward.abs())
    assert {tensor.device.type for tensor in (*batch, *replay.priority_tensors)} == {"cpu"}


def test_a_fraction_of_the_samples_is_uniform() -> None:
    """Frequencies and weights of the mixture, as in DQN Zoo: (1 - u) p / sum of p + u / N."""
    envs = ScriptedEnvs(2)
    replay = make(envs, 30, uniform_fraction=0.4)
    for _ in range(31):
        envs.step(replay, ["continue", "continue"])
    rows = torch.arange(60)
    sampleable = replay.tree.get(rows) > 0
    priority = torch.where(sampleable, 1.0 + 20 * (rows % 7 == 0), 0.0)
    replay.tree.set(rows, priority)
    slots = replay.head - replay.oldest  # the newest slot has no next observation: it is drawn, but has weight 0
    uniform = 1 / (2 * torch.from_numpy(slots)[rows // 30].float())
    probability = 0.6 * priority / priority.sum() + 0.4 * uniform * (
        sampleable | (rows % 30 == (replay.head[0] - 1) % 30)
    )
    assert float(probability.sum()) == pytest.approx(1, abs=1e-5)
    replay.set_beta(0.7)
    counts = torch.zeros(60)
    for _ in range(300):
        batch = replay.sample(100)
        row_B = replay._sampled_row_B
        counts += torch.bincount(row_B, minlength=60)
        known_B = sampleable[row_B]
        assert torch.equal(batch.weight > 0, known_B)
        expected_B = (probability[row_B] / probability[row_B][known_B].min()) ** -0.7
        torch.testing.assert_close(batch.weight[known_B], expected_B[known_B])
    expected = 30_000 * probability
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi_square < 99  # about 57 degrees of freedom, 99.9%
    replay.update_priorities(torch.full((100,), 5.0))
    assert set(torch.nonzero(replay.tree.levels[0]).flatten().tolist()) == sampleable_rows(envs, replay)


def test_without_uniform_samples_the_random_numbers_are_the_same_as_before() -> None:
    envs = ScriptedEnvs(1)
    replay, other = (make(envs, 30, uniform_fraction=fraction) for fraction in (0.0, 1e-9))
    for buffer in (replay, other):
        for _ in range(20):
            envs.step(buffer, ["continue"])
    first, second = replay.sample(16), other.sample(16)
    assert torch.equal(replay._sampled_row_B, other._sampled_row_B)
    torch.testing.assert_close(first.weight, second.weight)
    assert not torch.equal(replay.generator.get_state(), other.generator.get_state())


def test_uniform_samples_of_an_empty_buffer() -> None:
    replay = make(ScriptedEnvs(2), 20, uniform_fraction=0.5)
    batch = replay.sample(8)
    assert batch.weight.tolist() == [0.0] * 8
