"""Tests of the votes of several processes between iterations: to stop, and to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tests.agents.training.recorded import Make, Recorded
from zerokara.core.distributed import World


@dataclass(frozen=True)
class Votes(World):
    """Another process votes to stop or to save at some steps; `steps` are those at which the processes voted."""

    stop: int = -1
    save: int = -1
    steps: list[int] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)

    def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
        step = self.recorded[0].session.step
        self.steps.append(step)
        return [max(values[0], step == self.stop), max(values[1], step == self.save)]

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        raise AssertionError("one collective operation per iteration is enough")


def trained(make: Make, world: Votes) -> Recorded:
    recorded = make(world=world)
    world.recorded.append(recorded)
    recorded.train()
    return recorded


def test_all_processes_save_when_one_needs_a_checkpoint(make: Make) -> None:
    """Otherwise they would have checkpoints of different steps, and none could be restored."""
    assert trained(make, Votes(save=8)).saves == [0, 8, 32, 64, 80]


def test_all_processes_stop_when_one_must(make: Make) -> None:
    recorded = trained(make, Votes(stop=40))
    assert recorded.session.step == 40
    assert recorded.saves == [0, 32, 40]


def test_the_processes_vote_once_per_iteration(make: Make) -> None:
    world = Votes()
    trained(make, world)
    assert world.steps == list(range(0, 81, 4))
