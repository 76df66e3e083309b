"""Loop over updates: log lines, validations, checkpoints, early stopping, signals, divergence.

The loop over epochs is tested in tests/vision/training/test_epochs.py.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.programs import metrics
from zerokara.core import checkpoint
from zerokara.core.choices import GradientCompression
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval
from zerokara.core.training_loop import TrainingState, run_updates, start_updates


@dataclass(frozen=True)
class Config:
    name: str = "n"
    seed: int = 1
    gradient_compression: GradientCompression = "none"
    log_every_updates: int = 2
    checkpoint_every_updates: int = 4


class Counting(TrainingState[nn.Linear]):
    """Ten updates, a validation after the third, sixth and ninth. The weight equals the number of updates."""

    total_updates = 10
    learning_rate = 0.25
    stop_after = 100

    def __init__(self, world: World = World()) -> None:  # noqa: B008  (frozen)
        super().__init__(Config(), Compute(), World(), lambda: nn.Linear(1, 1), ["train/loss"])
        self.world = world
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        self.poison_at = 100

    @property
    def is_validation_due(self) -> bool:
        return self.updates % 3 == 0

    @property
    def should_stop_early(self) -> bool:
        return self.updates >= self.stop_after

    def update(self) -> None:
        self.end_update(torch.tensor(float(self.updates)))
        with torch.no_grad():
            self.network.weight.fill_(torch.nan if self.updates == self.poison_at else self.updates)

    def interval_metrics(self, interval: LogInterval) -> dict[str, float]:
        return {"train/first": interval.count}

    def progress_fields(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        return {"loss": scalars.get("train/loss")}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def open_run(*, resume: bool = False, world: World = World()) -> Run:  # noqa: B008  (frozen)
    return Run(Config(), kind="numbers", name="n", resume=resume, quiet=True, world=world)


def saved_updates() -> int:
    return int(checkpoint.load(Path("runs/n/checkpoint-0.pt"), "numbers")["updates"])


def test_log_lines_validations_and_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    training, validated, saved = Counting(), [], []
    with open_run() as run:
        save = run.save

        def recording_save(path: Path, state: Mapping[str, Any]) -> None:
            saved.append(state["updates"])
            save(path, state)

        monkeypatch.setattr(run, "save", recording_save)
        assert not run_updates(training, run, training.update, lambda: validated.append(training.updates))
    assert validated == [3, 6, 9]
    assert saved == [3, 4, 6, 8, 9, 10], "after validations, every fourth update, and at the end"
    lines = metrics(Path("runs/n"))
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert [line["train/loss"] for line in lines] == [0.5, 2.5, 4.5, 6.5, 8.5], "means over the updates of an interval"
    # The time of a validation does not count, so a new interval starts after it.
    assert [line["train/first"] for line in lines] == [0, 3, 4, 6, 9]
    assert {line["train/learning_rate"] for line in lines} == {0.25}


def test_a_signal_saves_and_the_resumed_run_ends_the_same() -> None:
    whole, first, second = Counting(), Counting(), Counting()
    for _ in range(10):
        whole.update()
    with open_run() as run:

        def update() -> None:
            first.update()
            run.stop_requested = "SIGTERM" if first.updates == 5 else None

        assert run_updates(first, run, update, lambda: None)
    assert saved_updates() == 5
    with open_run(resume=True) as run:
        assert run.restore(run.checkpoint_path, second.load_state_dict)
        assert not run_updates(second, run, second.update, lambda: None)
    ours, theirs = second.state_dict(), whole.state_dict()
    assert (ours["updates"], ours["network"]) == (10, theirs["network"])
    assert torch.equal(ours["generator"], theirs["generator"])
    assert [line["train/loss"] for line in metrics(Path("runs/n"))] == [0.5, 2.5, 4.5, 6.5, 8.5], "sums were restored"


def test_a_signal_interrupts_a_validation_which_the_resumed_run_repeats() -> None:
    whole, first, second = Counting(), Counting(), Counting()
    for _ in range(10):
        whole.update()
    validated: list[tuple[str, int]] = []

    def validate(training: Counting, run: Run, *, signals: bool = False) -> None:
        with run.interruptible():
            if signals and training.updates == 6:
                signal.raise_signal(signal.SIGTERM)
        run.log(training.updates, {"val/seen": len(validated)})
        validated.append((run.stop_requested or "", training.updates))

    with open_run() as run, run.signals():
        assert run_updates(first, run, first.update, lambda: validate(first, run, signals=True))
        assert run.stopped
    assert (saved_updates(), validated) == (6, [("", 3)])
    for count in (1, 2):  # it may be interrupted again
        with open_run(resume=True) as run, run.signals():
            assert run.restore(run.checkpoint_path, second.load_state_dict)
            assert second.validation_pending
            again = partial(validate, second, run, signals=count == 1)
            assert run_updates(second, run, second.update, again) == (count == 1)
    assert validated == [("", 3), ("", 6), ("", 9)]
    assert not second.validation_pending
    assert second.state_dict()["network"] == whole.state_dict()["network"]
    seen = [(line["step"], line["val/seen"]) for line in metrics(Path("runs/n")) if "val/seen" in line]
    assert seen == [(3, 0), (6, 1), (9, 2)]


def test_a_validation_at_the_end_that_was_interrupted_is_repeated() -> None:
    training, again = Counting(), Counting()
    training.total_updates = again.total_updates = 9
    with open_run() as run, run.signals():

        def interrupted() -> None:
            with run.interruptible():
                if training.updates == 9:
                    signal.raise_signal(signal.SIGINT)

        assert run_updates(training, run, training.update, interrupted)
    validated: list[int] = []
    with open_run(resume=True) as run:
        run.restore(run.checkpoint_path, again.load_state_dict)
        assert not run_updates(again, run, again.update, lambda: validated.append(again.updates))
    assert validated == [9]


def test_early_stopping_ends_the_loop_after_a_validation() -> None:
    training = Counting()
    training.stop_after = 5
    with open_run() as run:
        assert not run_updates(training, run, training.update, lambda: None)
    assert training.updates == saved_updates() == 6


def test_divergence_is_noticed_before_validation_and_checkpoint() -> None:
    training, validated = Counting(), []
    training.poison_at = 6
    with open_run() as run, pytest.raises(UserError, match=r"diverged at update 6: .*NaN or Inf.*runs/n"):
        run_updates(training, run, training.update, lambda: validated.append(training.updates))
    assert (validated, saved_updates()) == ([3], 4)


def test_all_processes_validate_and_a_vote_of_another_process_stops_all() -> None:
    class Second(World):
        """Process 1 of two. The other process votes to stop after five updates of this one."""

        def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
            return flag

        def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
            return [max(values[0], training.updates >= 5), values[1]]

        def broadcast_value(self, value: Any) -> Any:
            return value

        def gather(self, value: Any) -> list[Any]:
            return [value] * 2

        def mean(self, tensor: Tensor) -> Tensor:
            return tensor.clone()

    world = Second(rank=1, size=2)
    training = Counting(world)
    Path("runs/n").mkdir(parents=True)
    validated: list[int] = []
    with open_run(world=world) as run:
        assert run_updates(training, run, training.update, lambda: validated.append(training.updates))
    state: dict[str, Tensor | int] = checkpoint.load(Path("runs/n/checkpoint-1.pt"), "numbers")
    assert training.updates == state["updates"] == 6, "there is a vote at every save"
    assert validated == [3, 6]


@pytest.mark.parametrize("updates", [0, 7])
def test_states_of_other_processes(updates: int) -> None:
    """A process without a checkpoint gets the state of the first one, and random numbers of its own."""
    saved = Counting()
    for _ in range(updates):
        saved.update()
    states = {0: saved.state_dict()}
    others = [Counting(), Counting()]
    for rank, other in enumerate(others, 1):
        other.world = World(rank, 3)
        other.generator.manual_seed(rank)
        assert "random numbers are drawn anew" in other.load_processes(states)
        assert (other.updates, other.network.weight.item()) == (updates, saved.network.weight.item())
        expected = torch.Generator().manual_seed(rank + 15_485_863 * updates)
        assert torch.equal(other.generator.get_state(), expected.get_state())
    own = Counting()
    own.world = World(1, 3)
    others[0].update()
    own.load_processes({0: states[0], 1: others[0].state_dict()})
    assert own.updates == updates + 1, "its own checkpoint, if it has one"


class Alike(World):
    """Process of two, of which the other one has the same flags."""

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        return flag


@pytest.mark.parametrize(
    ("updates", "size", "pending", "expected"),
    [
        (0, 1, [False], []),
        (0, 2, [False], ["save"]),
        (5, 2, [False], []),
        (5, 1, [True, False], ["evaluate", "save"]),
        (0, 2, [True, False], ["evaluate", "save"]),
        (5, 2, [True, True], ["evaluate"]),
    ],
    ids=["new", "new with two", "resumed", "interrupted", "interrupted before update 1", "interrupted again"],
)
def test_what_precedes_the_first_update(updates: int, size: int, pending: list[bool], expected: list[str]) -> None:
    calls: list[str] = []
    stops = start_updates(
        updates,
        lambda: pending[-1] if calls else pending[0],
        lambda: calls.append("evaluate"),
        lambda: calls.append("save"),
        Alike(0, size),
        torch.device("cpu"),
    )
    assert (calls, stops) == (expected, pending[-1])
