"""Tests of the votes of several processes between iterations: to stop, and to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import torch

from tests.agents.training.recorded import Make, Recorded, scores
from zerokara.agents.training.start import ITERATIONS_PER_VOTE
from zerokara.core.distributed import World

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Two(World):
    """The other process votes to stop or to save from a step on; `steps` are those at which the processes voted.

    An iteration is 4 steps, and takes `seconds`, which decides when the next vote is.
    """

    size: int = 2
    stop: int = 1_000
    save: int = 1_000
    seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)

    def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
        step = self.recorded[0].session.step
        has_saved = max(self.recorded[0].saves, default=0) >= self.save
        self.steps.append(step)
        return [max(values[0], step >= self.stop), max(values[1], step >= self.save and not has_saved), self.seconds]

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        self.compared.append(self.recorded[0].session.step)
        return flag

    def broadcast_value(self, value: ValueT) -> ValueT:
        return value

    def gather(self, value: ValueT) -> list[ValueT]:
        return [value, value]

    def barrier(self) -> None:
        pass


def trained(make: Make, world: Two) -> Recorded:
    recorded = make(world=world)
    world.recorded.append(recorded)
    recorded.train()
    return recorded


@pytest.mark.parametrize(("seconds", "saved"), [(1.0, 8), (0.25, 20)])
def test_all_processes_save_at_the_next_vote_when_one_needs_a_checkpoint(
    make: Make, seconds: float, saved: int
) -> None:
    """Otherwise they would have checkpoints of different steps, and none could be restored."""
    assert trained(make, Two(save=8, seconds=seconds)).saves == [0, saved, 32, 64, 80]


@pytest.mark.parametrize(("seconds", "stopped"), [(1.0, 40), (0.25, 52)])
def test_all_processes_stop_at_the_next_vote_when_one_must(make: Make, seconds: float, stopped: int) -> None:
    recorded = trained(make, Two(stop=40, seconds=seconds))
    assert recorded.session.step == stopped
    assert recorded.saves == [0, 32, stopped]


@pytest.mark.parametrize(("seconds", "iterations"), [(2.0, 1), (0.5, 2), (0.001, ITERATIONS_PER_VOTE)])
def test_the_processes_vote_about_once_a_second(make: Make, seconds: float, iterations: int) -> None:
    world = Two(seconds=seconds)
    trained(make, world)
    assert world.steps == list(range(4, 81, 4 * iterations))
    assert world.compared == [0, 0], "at the start; no other collective operation in an iteration"


def test_the_processes_vote_after_an_evaluation(make: Make) -> None:
    world = Two(seconds=0.001)
    recorded = make(world=world, eval_every_steps=40, eval_episodes=9)
    world.recorded.append(recorded)
    recorded.scores = [scores(1.0)]
    recorded.train()
    assert world.steps == [4, 20, 36, 40, 56, 72, 80]


def test_the_processes_seldom_compare_whether_an_evaluation_is_due_early(make: Make) -> None:
    world = Two(seconds=1.0)
    recorded = make(world=world, stop_at_return=5.0)
    world.recorded.append(recorded)
    recorded.train(each=lambda: setattr(recorded.session, "last_evaluation_step", -40_000))
    assert world.compared == [0, 0, *range(16, 81, 4 * ITERATIONS_PER_VOTE)]


def test_a_single_process_stops_at_once(make: Make) -> None:
    recorded = make()
    recorded.train(each=lambda: setattr(recorded.session, "goal_reached", recorded.session.step >= 20))
    assert recorded.session.step == 20
