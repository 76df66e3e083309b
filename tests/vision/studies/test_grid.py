"""Tests of grids of runs: means and intervals, training each cell once, resuming interrupted cells."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zerokara.core import data
from zerokara.core.compute import Compute
from zerokara.core.config import Stopped, UserError
from zerokara.core.data import ImageSet
from zerokara.core.run import Run
from zerokara.vision.classification.learner import Training
from zerokara.vision.studies import grid as experiment
from zerokara.vision.studies.grid import Cell, Result, base_config, format_percent, mean_interval
from zerokara.vision.studies.options import Options

pytestmark = pytest.mark.usefixtures("few_glyphs")


def cells(*seeds: int, **overrides: object) -> list[Cell]:
    options = Options(validation_images=20, device="cpu", precision="float32", threads=1)
    settings = {"batch_size": 10, "epochs": 2, "warmup_epochs": 0.0, **overrides}
    return [Cell(f"seed{seed}", base_config(options, "adamw", seed=seed, **settings)) for seed in seeds]


def grid(*, resume: bool = False) -> Run:
    return Run(Options(), kind="grid", name="g", resume=resume, quiet=True)


def test_mean_interval_against_hand_computed_values() -> None:
    """The standard deviation of 1 to 5 is sqrt(2.5), and t = 2.7764 for four degrees of freedom."""
    interval = mean_interval([1, 2, 3, 4, 5])
    assert (interval.runs, interval.mean) == (5, 3)
    assert interval.deviation == pytest.approx(2.5**0.5)
    assert interval.high == pytest.approx(3 + 2.776445 * (2.5 / 5) ** 0.5)
    assert interval.low == pytest.approx(3 - 2.776445 * (2.5 / 5) ** 0.5)


def test_interval_of_one_run_and_of_equal_runs_is_a_point() -> None:
    assert mean_interval([0.25]) == experiment.MeanInterval(1, 0.25, 0.0, 0.25, 0.25)
    assert (mean_interval([0.5, 0.5]).low, mean_interval([0.5, 0.5]).high) == (0.5, 0.5)
    assert format_percent(mean_interval([0.0125])) == "1.25%"
    assert format_percent(mean_interval([0.01, 0.02])) == "1.50 ± 0.71 %"


def test_no_augmentation_turns_all_augmentation_off() -> None:
    """The settings are those of `Config.augment`, so that a new kind of augmentation is not forgotten."""
    config = base_config(Options(), "adamw", **experiment.NO_AUGMENTATION)
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(config.augment()(image, torch.Generator().manual_seed(0)), image)
    switches = set(vars(config.augment())) - {"crop_padding"}  # fills what --crop-pixels uncovers
    assert set(experiment.NO_AUGMENTATION) == switches
    assert all(set(settings) == set(experiment.NO_AUGMENTATION) for settings in experiment.AUGMENTATION.values())


def test_finished_cells_are_not_trained_again_but_new_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with grid() as run:
        first = experiment.train_cells(run, cells(1), curve_points=2)
    trained = []

    def train(run: Run, cell: Cell, *_: Any) -> None:
        trained.append(cell.name)
        raise Stopped

    monkeypatch.setattr(experiment, "_train", train)
    with grid(resume=True) as run:
        again = experiment.train_cells(run, cells(1, 2), curve_points=2)
    assert trained == ["seed2"]
    assert again == first
    assert [len(result.curve) for result in first] == [2]
    assert [point[0] for point in first[0].curve] == [1, 2]


def kill_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit in the update after `number` updates without saving, as a killed process does."""
    update = Training.update

    def update_or_exit(self: Training, index_B: torch.Tensor) -> None:
        if self.updates == number:
            raise SystemExit
        update(self, index_B)

    monkeypatch.setattr(Training, "update", update_or_exit)


def test_a_killed_cell_is_resumed_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Options(), kind="grid", name="whole", resume=False, quiet=True) as run:
        (whole,) = experiment.train_cells(run, cells(1), curve_points=2)
    monkeypatch.setattr(experiment, "SAVE_SECONDS", -1.0)  # save at every update
    with monkeypatch.context() as context:
        kill_after(13, context)
        with pytest.raises(SystemExit), grid() as run:
            experiment.train_cells(run, cells(1), curve_points=2)
    started = []
    update = Training.update

    def recording_update(self: Training, index_B: torch.Tensor) -> None:
        started.append(self.updates)
        update(self, index_B)

    monkeypatch.setattr(Training, "update", recording_update)
    with grid(resume=True) as run:
        (result,) = experiment.train_cells(run, cells(1), curve_points=2)
    assert started[0] == 13
    assert (result.error, result.train_error, result.curve) == (whole.error, whole.train_error, whole.curve)
    assert [path.name for path in Path("runs/g/cells/seed1").iterdir()] == ["result.json"]


def test_a_diverged_cell_has_no_result_and_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with grid() as run, pytest.raises(UserError, match=r"diverged at update .* of the cell seed1: .*NaN or Inf"):
        experiment.train_cells(run, cells(1, learning_rate=1e30), curve_points=1)
    assert not list(Path("runs/g/cells").glob("*/*.json"))
    update = Training.update

    def diverging_update(self: Training, index_B: torch.Tensor) -> None:
        update(self, index_B)
        with torch.no_grad():
            next(self.network.parameters()).fill_(torch.inf)

    monkeypatch.setattr(Training, "update", diverging_update)
    monkeypatch.setattr(experiment, "SAVE_SECONDS", -1.0)  # save at every update
    with grid(resume=True) as run, pytest.raises(UserError, match="diverged at update 1 of the cell"):
        experiment.train_cells(run, cells(1), curve_points=1)
    assert not list(Path("runs/g/cells").glob("*/*")), "non-finite weights were saved"


def test_a_signal_saves_the_current_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Training.update

    def update_and_signal(self: Training, index_B: torch.Tensor) -> None:
        update(self, index_B)
        run.stop_requested = "SIGTERM"

    monkeypatch.setattr(Training, "update", update_and_signal)
    with grid() as run:
        assert experiment.train_cells(run, cells(1, 2), curve_points=2) == []
        message = experiment.closing_message(run, 0, 2, "python -m vision.depth")
        assert "SIGTERM: 0 of 2 cells" in message
        assert "python -m vision.depth --name g --resume" in message
    assert [path.parent.name for path in Path("runs/g/cells").glob("*/checkpoint.pt")] == ["seed1"]


def test_a_cell_with_other_settings_is_rejected() -> None:
    with grid() as run:
        experiment.train_cells(run, cells(1), curve_points=1)
    with grid(resume=True) as run, pytest.raises(UserError, match="another learning_rate than this command"):
        experiment.train_cells(run, cells(1, learning_rate=1e-4), curve_points=1)
    with grid(resume=True) as run:
        other_threads = [
            Cell(cell.name, cell.config.__class__(**{**vars(cell.config), "threads": 2})) for cell in cells(1)
        ]
        assert len(experiment.train_cells(run, other_threads, curve_points=1)) == 1


def in_precision(cells: list[Cell], precision: str) -> list[Cell]:
    return [Cell(cell.name, dataclasses.replace(cell.config, precision=precision)) for cell in cells]  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["float32", "auto"])
def test_cells_of_another_precision_are_not_mixed(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the command says "auto", and another precision is chosen on another machine."""
    with grid() as run:
        experiment.train_cells(run, in_precision(cells(1, epochs=1), "float32"), curve_points=1)
        chosen = run.extra["compute"]
    path = Path("runs/g/cells/seed1/result.json")
    assert json.loads(path.read_text())["precision"] == "float32"
    if asked == "auto":
        content = json.loads(path.read_text())
        content["config"]["precision"] = "auto"
        path.write_text(json.dumps(content))

    def adapt(run: Run, *_: object) -> Compute:
        """Change the hardware settings of a resumed run as `Run.compute` does."""
        run.save_extra(compute={**chosen, "precision": "bfloat16"})
        return Compute(**run.extra["compute"])

    refused = "seed1 was trained in float32, and this command computes in bfloat16: give --precision float32"
    with grid(resume=True) as run, pytest.raises(UserError, match=refused):
        experiment.train_cells(run, in_precision(cells(1, epochs=1), "bfloat16"), curve_points=1)
    for _ in range(2):  # a second attempt is refused, too
        with grid(resume=True) as run:
            monkeypatch.setattr(run, "compute", functools.partial(adapt, run))
            with pytest.raises(UserError, match=refused):
                experiment.train_cells(run, in_precision(cells(1, 2, epochs=1), "auto"), curve_points=1)
        assert run.extra["compute"] == chosen
    assert not Path("runs/g/cells/seed2/result.json").exists()
    with grid(resume=True) as run:
        assert len(experiment.train_cells(run, in_precision(cells(1, 2, epochs=1), "auto"), curve_points=1)) == 2


def test_finished_cells_of_older_versions_have_the_precision_that_was_chosen() -> None:
    with grid() as run:
        experiment.train_cells(run, cells(1, epochs=1), curve_points=1)
    path = Path("runs/g/cells/seed1/result.json")
    content = json.loads(path.read_text())
    del content["precision"]
    content["config"]["precision"] = "auto"
    path.write_text(json.dumps(content))
    with grid(resume=True) as run, pytest.raises(UserError, match="seed1 was trained in float32, and this command"):
        experiment.train_cells(run, in_precision(cells(1, epochs=1), "bfloat16"), curve_points=1)
    with grid(resume=True) as run:
        assert len(experiment.train_cells(run, in_precision(cells(1, 2, epochs=1), "auto"), curve_points=1)) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}'])
def test_a_damaged_result_is_reported(text: str) -> None:
    path = Path("runs/g/cells/seed1/result.json")
    with grid() as run:
        run.path("cells", "seed1", "result.json").write_text(text)
        with pytest.raises(UserError, match=r"seed1.* (is damaged: delete|was trained with another)"):
            experiment.train_cells(run, cells(1), curve_points=1)
    assert path.read_text() == text


def test_the_test_set_is_read_once_and_only_with_test(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []
    load = data.load

    def recording_load(name: str, split: data.Split, **options: object) -> ImageSet:
        splits.append(split)
        return load(name, split, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "load", recording_load)
    with grid() as run:
        experiment.train_cells(run, cells(1, epochs=1), curve_points=1)
        assert splits == ["train"]
        experiment.train_cells(run, [Cell("tested", cells(2, epochs=1, test=True)[0].config)], curve_points=1)
    assert splits == ["train", "test"]  # the training images are cached


def test_results_file() -> None:
    with grid() as run:
        results = [Result(cell, 7, 0.25, 0.5, ((1.0, 0.5, 0.25),), 0.1) for cell in cells(1)]
        experiment.save_results(run, Options(), results)
    content = json.loads(Path("runs/g/results.json").read_text())
    assert content["error"] == "validation error"
    assert content["cells"] == [{"cell": "seed1", "parameters": 7, "error": 0.25, "train_error": 0.5}]
