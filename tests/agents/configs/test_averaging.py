"""Tests of the warning about averaged weights of PQN (--average-every rollout)."""

from __future__ import annotations

import dataclasses

import pytest

from zerokara.agents.configs.pqn import Config, averaging_warning

ROLLOUT = Config(env="zerokara/Catch-v0", num_envs=128, rollout_steps=32, average_every="rollout")


@pytest.mark.parametrize(("processes", "num_envs"), [(2, 128), (8, 128), (2, 32)])
def test_enough_steps_per_process_are_not_warned_of(processes: int, num_envs: int) -> None:
    """128 environments of 32 steps are 4,096 steps, 512 in each of eight processes."""
    assert averaging_warning(dataclasses.replace(ROLLOUT, num_envs=num_envs), processes) is None


@pytest.mark.parametrize(("processes", "num_envs", "steps"), [(16, 128, 256), (4, 32, 256)])
def test_too_few_steps_per_process_are_named(processes: int, num_envs: int, steps: int) -> None:
    warning = averaging_warning(dataclasses.replace(ROLLOUT, num_envs=num_envs), processes)
    assert warning is not None
    assert f"each process trains on {steps} steps before" in warning


def test_one_process_has_nothing_to_average() -> None:
    assert averaging_warning(ROLLOUT, 1) == "--average-every rollout has no effect, because there is one process."


@pytest.mark.parametrize("processes", [1, 2, 64])
def test_averaged_gradients_are_not_warned_of(processes: int) -> None:
    assert averaging_warning(dataclasses.replace(ROLLOUT, average_every="minibatch"), processes) is None
