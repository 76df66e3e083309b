"""Grids of runs: spreads by hand, cells that are trained once, killed ones that go on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from zerokara.core import data
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.run import Run
from zerokara.vision.classification.learner import Training
from zerokara.vision.studies import grid as experiment
from zerokara.vision.studies.grid import Cell, Options, Result, base_config, percent, spread

pytestmark = pytest.mark.usefixtures("few_glyphs")


def cells(*seeds: int, **overrides: object) -> list[Cell]:
    options = Options(validation_images=20, device="cpu", precision="float32", threads=1)
    settings = {"batch_size": 10, "epochs": 2, "warmup_epochs": 0.0, **overrides}
    return [Cell(f"seed{seed}", base_config(options, "adamw", seed=seed, **settings)) for seed in seeds]


def grid(*, resume: bool = False) -> Run:
    return Run(Options(), kind="grid", name="g", resume=resume, quiet=True)


def test_spread_by_hand() -> None:
    """1, 2, 3, 4, 5: deviation sqrt(2.5), and t = 2.7764 with four degrees of freedom."""
    found = spread([1, 2, 3, 4, 5])
    assert (found.runs, found.mean) == (5, 3)
    assert found.deviation == pytest.approx(2.5**0.5)
    assert found.high == pytest.approx(3 + 2.776445 * (2.5 / 5) ** 0.5)
    assert found.low == pytest.approx(3 - 2.776445 * (2.5 / 5) ** 0.5)


def test_one_run_and_equal_runs_have_no_interval() -> None:
    assert spread([0.25]) == experiment.Spread(1, 0.25, 0.0, 0.25, 0.25)
    assert (spread([0.5, 0.5]).low, spread([0.5, 0.5]).high) == (0.5, 0.5)
    assert percent(spread([0.0125])) == "1.25%"
    assert percent(spread([0.01, 0.02])) == "1.50 ± 0.71 %"


def test_every_setting_that_augments_is_off_without_augmentation() -> None:
    """What `Config.augment` passes on, and nothing else, so that a new kind of augmentation is not forgotten."""
    config = base_config(Options(), "adamw", **experiment.NOTHING)
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(config.augment()(image, torch.Generator().manual_seed(0)), image)
    assert set(experiment.NOTHING) == set(vars(config.augment()))
    assert all(set(settings) == set(experiment.NOTHING) for settings in experiment.AUGMENTATION.values())


def test_cells_that_are_done_are_not_trained_again_and_new_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with grid() as run:
        first = experiment.train_cells(run, cells(1), points=2)
    trained = []
    monkeypatch.setattr(experiment, "_train", lambda run, cell, *_: trained.append(cell.name))
    with grid(resume=True) as run:
        again = experiment.train_cells(run, cells(1, 2), points=2)
    assert trained == ["seed2"]
    assert again == first
    assert [len(result.curve) for result in first] == [2]
    assert [point[0] for point in first[0].curve] == [1, 2]


def killed_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die in the update after `number` ones, as a killed process does: without a word."""
    update = Training.update

    def dying(self: Training, index_B: torch.Tensor) -> None:
        if self.updates == number:
            raise SystemExit
        update(self, index_B)

    monkeypatch.setattr(Training, "update", dying)


def test_a_killed_cell_goes_on_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Options(), kind="grid", name="whole", resume=False, quiet=True) as run:
        (whole,) = experiment.train_cells(run, cells(1), points=2)
    monkeypatch.setattr(experiment, "SAVE_SECONDS", -1.0)  # at every update
    with monkeypatch.context() as context:
        killed_after(13, context)
        with pytest.raises(SystemExit), grid() as run:
            experiment.train_cells(run, cells(1), points=2)
    started = []
    update = Training.update

    def noted(self: Training, index_B: torch.Tensor) -> None:
        started.append(self.updates)
        update(self, index_B)

    monkeypatch.setattr(Training, "update", noted)
    with grid(resume=True) as run:
        (result,) = experiment.train_cells(run, cells(1), points=2)
    assert started[0] == 13
    assert (result.error, result.train_error, result.curve) == (whole.error, whole.train_error, whole.curve)
    assert [path.name for path in Path("runs/g/cells/seed1").iterdir()] == ["result.json"]


def test_weights_that_are_no_numbers_make_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with grid() as run, pytest.raises(UserError, match=r"no number any more at update .* of the cell seed1"):
        experiment.train_cells(run, cells(1, learning_rate=1e30), points=1)
    assert not list(Path("runs/g/cells").glob("*/*.json"))
    update = Training.update

    def broken(self: Training, index_B: torch.Tensor) -> None:
        update(self, index_B)
        with torch.no_grad():
            next(self.network.parameters()).fill_(torch.inf)

    monkeypatch.setattr(Training, "update", broken)
    monkeypatch.setattr(experiment, "SAVE_SECONDS", -1.0)  # at every update
    with grid(resume=True) as run, pytest.raises(UserError, match="no number any more at update 1 of the cell"):
        experiment.train_cells(run, cells(1), points=1)
    assert not list(Path("runs/g/cells").glob("*/*")), "weights that are no numbers were kept"


def test_a_signal_keeps_the_cell_that_is_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Training.update

    def signalled(self: Training, index_B: torch.Tensor) -> None:
        update(self, index_B)
        run.stop_requested = "SIGTERM"

    monkeypatch.setattr(Training, "update", signalled)
    with grid() as run:
        assert experiment.train_cells(run, cells(1, 2), points=2) == []
        assert "SIGTERM: 0 of 2 cells" in experiment.closing(run, 0, 2, "python -m vision.depth")
        assert "python -m vision.depth --name g --resume" in experiment.closing(run, 0, 2, "python -m vision.depth")
    assert [path.parent.name for path in Path("runs/g/cells").glob("*/checkpoint.pt")] == ["seed1"]


def test_a_cell_of_another_command_is_refused() -> None:
    with grid() as run:
        experiment.train_cells(run, cells(1), points=1)
    with grid(resume=True) as run, pytest.raises(UserError, match="another learning_rate than this command"):
        experiment.train_cells(run, cells(1, learning_rate=1e-4), points=1)
    with grid(resume=True) as run:
        elsewhere = [Cell(cell.name, cell.config.__class__(**{**vars(cell.config), "threads": 2})) for cell in cells(1)]
        assert len(experiment.train_cells(run, elsewhere, points=1)) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}'])
def test_a_damaged_result_is_named(text: str) -> None:
    path = Path("runs/g/cells/seed1/result.json")
    with grid() as run:
        run.path("cells", "seed1", "result.json").write_text(text)
        with pytest.raises(UserError, match=r"seed1.* (is damaged: delete|was trained with another)"):
            experiment.train_cells(run, cells(1), points=1)
    assert path.read_text() == text


def test_the_test_set_is_read_when_asked_for_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []
    load = data.load

    def noted(name: str, split: data.Split, **options: object) -> ImageSet:
        splits.append(split)
        return load(name, split, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "load", noted)
    with grid() as run:
        experiment.train_cells(run, cells(1, epochs=1), points=1)
        assert splits == ["train"]
        experiment.train_cells(run, [Cell("tested", cells(2, epochs=1, test=True)[0].config)], points=1)
    assert splits == ["train", "test"]  # the training images are those that were there


def test_results_are_kept_with_what_they_are() -> None:
    with grid() as run:
        results = [Result(cell, 7, 0.25, 0.5, ((1.0, 0.5, 0.25),), 0.1) for cell in cells(1)]
        experiment.save_results(run, Options(), results)
    content = json.loads(Path("runs/g/results.json").read_text())
    assert content["error"] == "validation error"
    assert content["cells"] == [{"cell": "seed1", "parameters": 7, "error": 0.25, "train_error": 0.5}]
