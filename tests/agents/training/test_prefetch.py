"""Tests of updates whose batches a second thread prepares: they are those without it, bit for bit in float32."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.agents.resources import resources
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config, read_config
from zerokara.agents.qlearning.replay import Batch, Replay
from zerokara.core import training_program
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run

NUM_ENVS = 4
ITERATIONS = 28


def make_training(folder: Path, **changes: Any) -> dqn.Training:
    """Create a run with one update per agent step, 4 per iteration; the target network changes between two of them."""
    config = Config(**{
        "env": "zerokara/Catch-v0", "num_envs": NUM_ENVS, "frame_stack": 2, "width_multiplier": 0.25,
        "hidden_units": 8, "batch_size": 8, "train_every_steps": 1, "learning_starts": 50, "target_update_steps": 10,
        "epsilon_decay_steps": 100, "replay_capacity": 400, "save_replay": False, "final_learning_rate": 1e-4,
    } | changes)  # fmt: skip
    with Run(config, kind="dqn", name="run", resume=False, quiet=True, root=folder) as run:
        training = dqn.Training(config, run, resources(config))
    training.obs = training.env.reset(0)
    return training


def assert_equal(one: Any, other: Any, name: str = "state") -> None:
    """Compare nested states."""
    assert type(one) is type(other), name
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f"{name} {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for index, values in enumerate(zip(one, other, strict=True)):
            assert_equal(*values, f"{name} {index}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), name
    elif name != "state hours":
        assert one == other, name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"double": True, "head": "c51", "n_step": 3},
        {"munchausen": True, "dueling": False},
        {"head": "qr", "num_quantiles": 5, "random_shift": 2},
        {"target_tau": 0.1, "target_update_steps": 3},
        {"reset_every_updates": 30, "gradient_steps": 2, "target_update_steps": 50},
    ],
    ids=["q", "c51", "munchausen", "qr", "average", "resets"],
)
def test_updates_are_those_of_one_thread(changes: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for prefetch_targets in (False, True):
        training = make_training(tmp_path / str(prefetch_targets), prefetch_targets=prefetch_targets, **changes)
        before = {name: weight.clone() for name, weight in training.learner.network.state_dict().items()}
        for _ in range(ITERATIONS):
            training.iterate()
        after = training.learner.network.state_dict()
        assert all(not torch.equal(before[name], after[name]) for name in before), "nothing was learned"
        states.append(training.state_dict())
    assert states[0]["updates"] == ((ITERATIONS - 1) * NUM_ENVS - 50) * changes.get("gradient_steps", 1)
    assert_equal(*states)


def test_a_second_thread_samples_and_the_first_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str, int]] = []  # function, thread, step
    training = make_training(tmp_path, prefetch_targets=True, target_update_steps=1_000)
    sample = training.replay.sample

    def record_sample(batch_size: int) -> Batch:
        calls.append(("sample", threading.current_thread().name, training.step))
        return sample(batch_size)

    act = training.policy.act

    def act_after_sampling(*args: Any, **options: Any) -> Any:
        """Act when the second thread has prepared what it prepares meanwhile."""
        assert training.prefetched is not None
        for prepared in training.prefetched._prepared:
            prepared.result(timeout=60)
        calls.append(("act", threading.current_thread().name, training.step))
        return act(*args, **options)

    monkeypatch.setattr(training.replay, "sample", record_sample)
    monkeypatch.setattr(training.policy, "act", act_after_sampling)
    while training.updates < 20:
        training.iterate()
    main = threading.main_thread().name
    assert {name for function, name, _ in calls if function == "sample"} == {"prefetch_0"}
    last = [function for function, _, step in calls if step == calls[-1][2]]
    assert last == ["sample"] * NUM_ENVS + ["act"], "the updates of an iteration are prepared before it acts"
    assert {name for function, name, _ in calls if function == "act"} == {main}


def test_no_update_is_prepared_when_an_iteration_ends(tmp_path: Path) -> None:
    training = make_training(tmp_path, prefetch_targets=True, gradient_steps=3)
    assert training.prefetched is not None
    for _ in range(ITERATIONS):
        training.iterate()
        assert not training.prefetched._prepared
    assert training.updates > 100


def test_an_error_in_the_second_thread_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training(tmp_path, prefetch_targets=True)

    def fail(replay: Replay, batch_size: int) -> Batch:
        raise UserError("The disk with the replay buffer cannot be read.")

    while training.updates < 9:
        training.iterate()
    monkeypatch.setattr(Replay, "sample", fail)
    with pytest.raises(UserError, match=r"^The disk with the replay buffer cannot be read\.$"):
        training.iterate()


@pytest.mark.parametrize(
    "words",
    [
        "--per-alpha 0.5",
        "--noisy",
        "--head iqn",
        "--spr-weight 2",
        "--n-step-start 20",
        "--gamma-start 0.97",
        "--actors 2",
    ],
)
def test_what_changes_with_every_update_is_refused(words: str) -> None:
    given = words.removesuffix(" 0.5").removesuffix(" 20").removesuffix(" 2").removesuffix(" 0.97")
    with pytest.raises(UserError, match=f"^--prefetch-targets and {given}.* cannot be combined, because .*"):
        read_config(["--prefetch-targets", *words.split()])


def test_a_core_is_left_to_the_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerokara.core.compute.usable_cores", lambda: 8)
    step = TrainStep(lambda compute, size: lambda: None, 8)
    threads = []
    try:
        for prefetch_targets in (False, True):
            config = Config(prefetch_targets=prefetch_targets, device="cpu", precision="float32", compile="off")
            threads.append(training_program.choose_compute(config, World(), step).threads)
    finally:
        Compute(threads=1).apply()
    assert threads == [8, 7]
