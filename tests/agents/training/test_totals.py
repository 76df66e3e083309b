"""Metrics of all processes for a log entry: sums, means, and the messages of processes that do not print."""

from __future__ import annotations

from typing import Any, cast

import torch

from zerokara.agents.training.totals import Totals, gather_returns, gather_totals, print_warnings
from zerokara.core.distributed import World


class Recorded:
    """World of two processes: this one, and one with the given values."""

    size = 2

    def __init__(self, other: Any) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def totals(**changes: Any) -> Totals:
    values = {"sums": {"train/games": 3}, "returns": [1.0], "lengths": [10], "learner": {}}
    return Totals(**{**values, **changes})


def test_a_single_process_keeps_its_values() -> None:
    own = totals(learner={"train/loss": torch.tensor(2.0)})
    assert gather_totals(World(), own) is own


def test_values_of_two_processes_are_combined() -> None:
    other = Totals({"train/games": 5}, [4.0, 7.0], [20, 30], {"train/loss": 4.0})
    own = totals(learner={"train/loss": torch.tensor(2.0)})
    assert gather_totals(cast("World", Recorded(other)), own) == Totals(
        {"train/games": 8},
        [1.0, 4.0, 7.0],
        [10, 20, 30],
        {"train/loss": 3.0},
    )


def test_without_updates_there_are_no_metrics_of_the_learner() -> None:
    assert gather_totals(cast("World", Recorded(totals(returns=[], lengths=[]))), totals()).learner == {}


def test_messages_of_all_processes_are_printed_once() -> None:
    own, printed = ["first"], list[str]()
    world = cast("World", Recorded(["an environment was restarted"]))
    print_warnings(world, own, printed.append)
    assert printed == ["first", "process 1: an environment was restarted"]
    assert own == []


def test_returns_of_all_processes_are_gathered() -> None:
    assert gather_returns(cast("World", Recorded([4.0, 7.0])), iter([1.0])) == [1.0, 4.0, 7.0]
    assert gather_returns(World(), iter([1.0])) == [1.0]
