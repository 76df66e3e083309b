"""Tests of the epoch loop: validations, checkpoints, resuming, early stopping and divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
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
from zerokara.core.ema import Ema
from zerokara.core.run import Run
from zerokara.vision.training.epochs import EpochTraining, restore, run_epochs, stopped_message


@dataclass(frozen=True)
class Config:
    data: str = "numbers"
    name: str = "n"
    epochs: int = 3
    batch_size: int = 4
    seed: int = 1
    gradient_compression: GradientCompression = "none"
    log_every_updates: int = 2
    checkpoint_every_updates: int = 100
    resume: bool = False


@dataclass(frozen=True)
class Data:
    train: Sequence[int] = range(14)


class Counting(EpochTraining[nn.Linear]):
    """Training with three updates per epoch. The weight equals the number of updates."""

    stop_at_epoch = math.inf
    every = 1

    def __init__(self, config: Config, world: World = World()) -> None:  # noqa: B008  (frozen)
        super().__init__(config, Data(), Compute(), world, lambda: nn.Linear(1, 1), ("train/loss",))
        nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        self.optimizer.param_groups[0]["lr_factor"] = 0.5
        self.seen: list[list[int]] = []

    learning_rate = 0.25

    @property
    def is_validation_epoch(self) -> bool:
        return self.epoch % self.every == 0

    @property
    def should_stop_early(self) -> bool:
        return self.epoch >= self.stop_at_epoch

    def format_metric(self, metric: float) -> str:
        return f"metric {metric:g}"

    def update(self, index_B: Tensor) -> None:
        self.seen.append(index_B.tolist())
        self.updates += 1
        with torch.no_grad():
            self.network.weight.fill_(self.updates)
        self._sums += torch.tensor([float(self.updates), 1.0])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_of(config: Config, *, resume: bool = False) -> Run:
    return Run(config, kind="numbers", name=config.name, resume=resume, quiet=True)


def updates_in_checkpoint() -> int:
    return int(checkpoint.load(Path("runs/n/checkpoint-0.pt"), "numbers")["updates"])


def test_each_epoch_has_every_image_once_in_a_new_order() -> None:
    config = Config()
    training = Counting(config)
    validated: list[tuple[int, int]] = []
    with run_of(config) as run:
        assert not restore(training, run)
        training.save(run)
        # The checkpoint of an epoch is written after its validation.
        assert not run_epochs(training, run, lambda: validated.append((training.updates, updates_in_checkpoint())))
    assert validated == [(3, 0), (6, 3), (9, 6)]
    assert updates_in_checkpoint() == 9
    epochs = [list(itertools.chain(*training.seen[first : first + 3])) for first in (0, 3, 6)]
    assert all(len(set(epoch)) == 12 for epoch in epochs), "an image occurred twice in an epoch"
    assert len({tuple(epoch) for epoch in epochs}) == 3, "two epochs had the same order"
    lines = metrics(Path("runs/n"))
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["train/loss"] for line in lines] == [1.5, 3.5, 5.5, 7.5]
    assert [line["train/epoch"] for line in lines] == pytest.approx([2 / 3, 4 / 3, 2, 8 / 3])
    assert lines[0]["train/learning_rate"] == 0.25


def test_a_stopped_run_resumes_in_the_middle_of_an_epoch() -> None:
    config = Config(checkpoint_every_updates=2)
    whole, first, second = Counting(config), Counting(config), Counting(config)
    for _ in range(9):
        whole.update(whole.next_batch())
    with run_of(config) as run:
        update = first.update

        def signalled(index_B: Tensor) -> None:
            update(index_B)
            run.stop_requested = "SIGTERM" if first.updates == 5 else None

        first.update = signalled  # type: ignore[method-assign]
        assert run_epochs(first, run, lambda: first.record_validation(0.5, is_best=True, save_weights=False))
        assert stopped_message(first, run, "count") == (
            "numbers: stopped at epoch 1 of 3, validation metric 0.5; "
            "resume with: python -m vision.count --name n --resume"
        )
    assert updates_in_checkpoint() == 5
    with run_of(config, resume=True) as run:
        assert restore(second, run)
        assert (second.updates, second.last_metric, second.best) == (5, 0.5, {"epoch": 1, "figure": 0.5, "since": 1})
        assert float(second.network.weight.detach()) == 5
        assert not run_epochs(second, run, lambda: None)
    assert first.seen + second.seen == whole.seen
    assert [line["step"] for line in metrics(Path("runs/n"))] == [2, 4, 6, 8]


def test_stopped_message_before_the_first_validation() -> None:
    with run_of(Config()) as run:
        message = stopped_message(Counting(Config()), run, "count")
    assert message.startswith("numbers: stopped at epoch 0 of 3, not validated yet; resume with: ")


def test_a_run_that_stopped_early_does_not_continue_when_resumed() -> None:
    config = Config()
    training = Counting(config)
    training.stop_at_epoch = 2
    with run_of(config) as run:
        assert not run_epochs(training, run, lambda: None)
    assert training.updates == updates_in_checkpoint() == 6
    again = Counting(config)
    again.stop_at_epoch = 2
    with run_of(config, resume=True) as run:
        assert restore(again, run)
        assert not run_epochs(again, run, lambda: None)
    assert again.seen == []


def test_validation_every_second_epoch_and_checkpoints_in_between() -> None:
    config = Config(epochs=4, checkpoint_every_updates=5)
    training = Counting(config)
    training.every = 2
    validated, saved = [], []
    with run_of(config) as run:
        save_checkpoint = run.save

        def recording_save(path: Path, state: Any) -> None:
            saved.append(state["updates"])
            save_checkpoint(path, state)

        run.save = recording_save  # type: ignore[method-assign]
        run_epochs(training, run, lambda: validated.append(training.updates))
    assert validated == [6, 12]
    assert saved == [5, 6, 10, 12]


def test_divergence_is_detected_before_a_good_checkpoint_is_overwritten() -> None:
    config = Config()
    training = Counting(config)
    update, validated = training.update, []

    def diverging_update(index_B: Tensor) -> None:
        update(index_B)
        if training.updates == 5:
            training.network.bias.data.fill_(math.nan)
        elif training.updates > 5:
            training.network.bias.data.add_(1)

    training.update = diverging_update  # type: ignore[method-assign]
    with run_of(config) as run, pytest.raises(UserError, match=r"diverged at update 6: .*NaN or Inf.*runs/n"):
        run_epochs(training, run, lambda: validated.append(training.updates))
    assert (validated, updates_in_checkpoint()) == ([3], 3)


def test_best_weights_are_those_of_the_evaluation_network() -> None:
    training = Counting(Config())
    training.load_best_weights()  # does nothing, no weights were saved yet
    training.update(training.next_batch())
    training.record_validation(0.5, is_best=True, save_weights=True)
    training.update(training.next_batch())
    training.record_validation(0.75, is_best=False, save_weights=True)
    assert (training.last_metric, training.best is not None and training.best["figure"]) == (0.75, 0.5)
    training.load_best_weights()
    assert float(training.network.weight.detach()) == 1
    training.ema = Ema(training.network, half_life_steps=5)
    training.update(training.next_batch())
    training.record_validation(0.25, is_best=True, save_weights=True)
    assert training.best is not None
    assert training.evaluation_network is training.ema.module
    assert float(training.best["weights"]["weight"]) == 1, "these must be the averaged weights"


def test_initial_weights_are_copied_to_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    training = Counting(config)
    training.ema = Ema(training.network, half_life_steps=5)

    def load_weights(network: nn.Linear) -> list[str]:
        nn.init.constant_(network.weight, 7.0)
        return ["loaded"]

    with run_of(config) as run:
        printed: list[str] = []
        monkeypatch.setattr(run, "print", printed.append)
        assert not restore(training, run, load_weights)
        training.save(run)
    assert (printed, float(training.evaluation_network.weight.detach())) == (["loaded"], 7)
    other = Counting(config)
    with run_of(config, resume=True) as run:
        assert restore(other, run, lambda network: pytest.fail("a resumed run must not load initial weights"))


def test_parameter_groups_scale_the_learning_rate_by_lr_factor() -> None:
    training = Counting(Config())
    training.set_learning_rates()
    assert training.optimizer.param_groups[0]["lr"] == 0.125


def test_shard_takes_every_second_image_with_two_processes() -> None:
    training = Counting(Config())
    training.world = World(rank=1, size=2)
    assert training.shard(torch.tensor([5, 6, 7, 8])).tolist() == [6, 8]


def test_random_numbers_follow_from_seed_process_and_epoch() -> None:
    torch.manual_seed(77)  # earlier random numbers do not matter
    training = Counting(Config(seed=3))
    torch.manual_seed(3)
    assert torch.equal(training.network.bias.detach(), nn.Linear(1, 1).bias.detach())
    assert training.generator.initial_seed() == 3 * 1_000_003
    assert Counting(Config(seed=3), World(rank=2)).generator.initial_seed() == 3 * 1_000_003 + 2
    training.updates = 2 * 3 + 1  # the second batch of the third epoch
    shuffle = torch.Generator().manual_seed(3 * 7_919 + 2)
    assert training.next_batch().tolist() == torch.randperm(14, generator=shuffle).tolist()[4:8]


def test_fewer_images_than_a_batch_make_one_update() -> None:
    assert Counting(Config(batch_size=15)).updates_per_epoch == 1
    assert Counting(Config(batch_size=7)).updates_per_epoch == 2


def test_parameter_groups_without_a_factor_have_the_learning_rate_itself() -> None:
    training = Counting(Config())
    del training.optimizer.param_groups[0]["lr_factor"]
    training.set_learning_rates()
    assert training.optimizer.param_groups[0]["lr"] == 0.25


def test_an_equal_metric_keeps_the_first_epoch_that_had_it() -> None:
    training = Counting(Config())
    since = []
    for training.updates, metric in ((3, 0.5), (6, 0.5), (9, 0.25), (12, 0.25)):
        training.record_validation(metric, is_best=True, save_weights=False)
        assert training.best is not None
        assert (training.best["epoch"], training.best["figure"]) == (training.updates // 3, metric)
        assert "weights" not in training.best
        since.append(training.best["since"])
    assert since == [1, 1, 3, 3]


def test_saved_best_weights_do_not_change_with_the_network() -> None:
    training = Counting(Config())
    training.record_validation(0.5, is_best=True, save_weights=True)
    assert training.best is not None
    with torch.no_grad():
        training.network.weight.fill_(9.0)
    assert float(training.best["weights"]["weight"]) == 0
    assert not training.best["weights"]["weight"].requires_grad


def test_a_checkpoint_holds_the_whole_state() -> None:
    first, second = Counting(Config()), Counting(Config(seed=2))
    average, second.ema = (Ema(training.network, half_life_steps=5) for training in (first, second))
    first.ema = average
    for training in (first, second):
        training.optimizer = torch.optim.SGD(training.network.parameters(), lr=1.0, momentum=0.5)
    first.network(torch.ones(1, 1)).sum().backward()
    first.optimizer.step()
    average.update(first.network)
    first.update(torch.tensor([1, 2]))
    first.record_validation(0.5, is_best=True, save_weights=True)
    with run_of(Config()) as run:
        first.save(run)
        expected = torch.rand(3), torch.rand(3, generator=first.generator)
        state = checkpoint.load(Path("runs/n/checkpoint-0.pt"), "numbers")
        second.load_state_dict(state)
        assert torch.equal(torch.rand(3), expected[0])
        assert torch.equal(torch.rand(3, generator=second.generator), expected[1])
    assert state["hours"] > 0
    assert second.stopwatch() >= state["hours"]
    for ours, theirs in zip(
        (*second.network.state_dict().values(), *second.evaluation_network.state_dict().values(), second._sums),
        (*first.network.state_dict().values(), *first.evaluation_network.state_dict().values(), first._sums),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    momentum = [next(iter(t.optimizer.state_dict()["state"].values()))["momentum_buffer"] for t in (first, second)]
    assert torch.equal(*momentum)
    assert (second.updates, second.last_metric) == (first.updates, first.last_metric) == (1, 0.5)
    assert second.best is not None
    assert first.best is not None
    assert {**second.best, "weights": None} == {**first.best, "weights": None}


def test_metrics_are_written_when_they_are_logged() -> None:
    config = Config()
    training = Counting(config)
    written: list[list[int]] = []
    with run_of(config) as run:
        run_epochs(training, run, lambda: written.append([line["step"] for line in metrics(Path("runs/n"))]))
    assert written == [[2], [2, 4, 6], [2, 4, 6, 8]]


def test_other_processes_validate_too() -> None:
    config = Config()
    training = Counting(config)
    training.world = World(rank=1, size=1)
    validated: list[int] = []
    with run_of(config) as run:
        assert not run_epochs(training, run, lambda: validated.append(training.updates))
    assert validated == [3, 6, 9]
    assert training.updates == updates_in_checkpoint() == 9


def test_a_signal_is_reported_and_the_run_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    training = Counting(config)
    printed: list[str] = []
    with run_of(config) as run:
        monkeypatch.setattr(run, "print", printed.append)
        run.stop_requested = "SIGINT"
        assert run_epochs(training, run, lambda: None)
    assert (printed, training.updates, updates_in_checkpoint()) == (["SIGINT: saving"], 1, 1)
