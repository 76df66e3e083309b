"""Tests of --minutes: the number of epochs is measured once and kept when the run is resumed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.programs import metrics
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.data import glyphs
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.vision import classify
from zerokara.vision.classification import clock
from zerokara.vision.classification.clock import measure_epochs
from zerokara.vision.classification.config import PRESETS, Config
from zerokara.vision.classification.learner import Data, Training

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = (
    *("--train-images", "400", "--validation-images", "200", "--batch-size", "50", "--width-multiplier", "0.5"),
    "--no-test",
    *("--warmup-epochs", "1", "--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)


@pytest.fixture(autouse=True)
def _small_data_set_without_images_of_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 800, "test": 200})
    monkeypatch.setattr(classify, "choose_compute", lambda *_: Compute(threads=1))
    monkeypatch.setattr(classify, "log_misread", lambda *args, **options: None)
    monkeypatch.chdir(tmp_path)


def test_number_of_epochs_is_measured_only_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with --minutes equals the run with that number of epochs, even if resumed on another machine."""
    monkeypatch.setattr(classify, "measure_epochs", lambda *_: lambda epochs: 40.0 * epochs)
    update = Training.update

    def interrupted_update(self: Training, index_B: torch.Tensor) -> None:
        if self.updates == 8:
            raise KeyboardInterrupt
        update(self, index_B)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", interrupted_update)
        with pytest.raises(KeyboardInterrupt):
            classify.main([*TINY, "--quiet", "--name", "clock", "--minutes", "2"])
    monkeypatch.setattr(classify, "measure_epochs", lambda *_: lambda epochs: 10.0 * epochs)
    classify.main(["--name", "clock", "--resume"])
    assert "--minutes 2: 2 epochs" in capsys.readouterr().out
    assert checkpoint.load(Path("runs/clock/checkpoint-0.pt"), "classify")["updates"] == 16
    classify.main([*TINY, "--quiet", "--name", "epochs", "--epochs", "2", "--warmup-epochs", "0.4"])
    assert metrics(Path("runs/clock")) == metrics(Path("runs/epochs"))


def test_the_start_of_the_program_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow_choice(*_: Any) -> Compute:
        now[0] += 35.0
        return Compute(threads=1)

    monkeypatch.setattr(classify, "choose_compute", slow_choice)
    monkeypatch.setattr(classify, "measure_epochs", lambda *_: lambda epochs: 40.0 * epochs)
    monkeypatch.setattr(classify, "train", lambda config, *_: f"{config.epochs} epochs")
    classify.main([*TINY, "--name", "clock", "--minutes", "2"])
    assert Run.read_config(Path("runs/clock"))["extra"]["epochs"] == 1  # 114 s without the margin; 79 s remain


@pytest.mark.parametrize(("seconds", "updates"), [(0.1, 3 + 50), (1.0, 3 + 10), (6.0, 1 + 3), (20.0, 1 + 1)])
def test_few_long_updates_are_measured(seconds: float, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of 11 s took two minutes of a run of 20."""
    now, done = [0.0], [0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def update(self: Training, index_B: torch.Tensor) -> None:
        now[0] += seconds * 1.001
        done[0] += 1

    monkeypatch.setattr(Training, "update", update)
    config = parse(Config, PRESETS, [*TINY, "--minutes", "20"], "")
    seconds_of = measure_epochs(config, Data.load(config), Compute(threads=1), World())
    assert done[0] == updates
    assert seconds_of(3) == pytest.approx(3 * (8 * seconds * 1.001 + 1))


@pytest.mark.parametrize(("epochs", "compiles"), [(2, True), (0, True), (2, False)])
def test_updates_after_the_bias_is_frozen_are_measured_by_themselves(
    epochs: int, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take half as long. The 60 s in which they are compiled have passed then, and are no part of an epoch."""
    now, frozen = [0.0], list[int]()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def update(self: Training, index_B: torch.Tensor) -> None:
        if self.updates:
            now[0] += 0.5 if frozen or not compiles else 60.0
            frozen.append(self.updates)
        else:
            now[0] += 1.0

    monkeypatch.setattr(Training, "update", update)
    words = ("--preset", "airbench", "--minutes", "20", "--whitening-bias-epochs", str(epochs))
    config = parse(Config, PRESETS, [*TINY, *words], "")
    seconds_of = measure_epochs(config, Data.load(config), Compute(threads=1, compile=compiles), World())
    assert set(frozen) == ({16} if epochs else set())
    assert [seconds_of(number) for number in (1, 2, 5)] == pytest.approx([9, 18, 18 + 15] if epochs else [9, 18, 45])


def test_the_duration_follows_from_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch takes 19 s: 8 updates of 2 s, validation of 200 images at 0.01 s, and 1 s for the rest."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    original = {name: getattr(Training, name) for name in ("update", "score")}

    def slow(name: str) -> Any:
        def wrapped(self: Training, *args: Any) -> Any:
            now[0] += 2.0
            return original[name](self, *args)

        return wrapped

    for name in original:
        monkeypatch.setattr(Training, name, slow(name))
    config = parse(Config, PRESETS, [*TINY, "--minutes", "10.5"], "")
    images = Data.load(config)
    state = torch.get_rng_state()
    seconds_of = measure_epochs(config, images, Compute(threads=1), World())
    assert torch.equal(torch.get_rng_state(), state)
    assert seconds_of(1) == pytest.approx(19)
    assert seconds_of(31) == pytest.approx(31 * 19)


def test_processes_divide_the_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images at .1 s each are 10 s for each of two processes, after 4 updates of .5 s."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class TwoProcesses:
        updates_per_epoch = 4

        def __init__(self, *_: Any) -> None:
            self.read_metrics = lambda: {"train/loss": torch.zeros(())}

        def next_batch(self) -> int:
            return 50

        def update(self, index_B: int) -> None:
            now[0] += 0.01 * index_B

        def score(self, subset: Any) -> None:
            now[0] += 0.1 * len(subset)

    monkeypatch.setattr(clock, "Training", TwoProcesses)
    config = parse(Config, PRESETS, [*TINY, "--minutes", "10"], "")
    world: Any = SimpleNamespace(size=2, broadcast_value=lambda value: value)
    assert measure_epochs(config, Data.load(config), Compute(threads=1), world)(1) == pytest.approx(4 * 0.5 + 10 + 1)
