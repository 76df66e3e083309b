"""Augmentation against the size of the training set: what is compared, and the command line on a few drawn digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from zerokara.core.config import UserError
from zerokara.vision import augmentation
from zerokara.vision.augmentation import Options, errors_by_size, make_cells
from zerokara.vision.studies import grid
from zerokara.vision.studies.grid import NO_AUGMENTATION, Cell, Result

pytestmark = pytest.mark.usefixtures("few_glyphs")


def test_every_cell_makes_the_updates_that_were_asked_for() -> None:
    """1,000 updates: of 30 images in one batch 1,000 passes, of 250 in two batches 500, of all 1,000 in ten 100."""
    cells = make_cells(Options(sizes=(30, 250, 0), seeds=(1,), updates=1_000), available=1_000)
    assert [cell.name for cell in cells[:2]] == ["30-without-seed1", "30-with-seed1"]
    assert cells[-1].name == "all-with-seed1"
    assert [(cell.config.batch_size, cell.config.epochs) for cell in cells[::2]] == [
        (30, 1_000),
        (100, 500),
        (100, 100),
    ]
    assert [cell.config.train_images for cell in cells[::2]] == [30, 250, 0]


def test_with_and_without_differ_in_augmentation_only_and_see_the_same_images() -> None:
    without, with_ = make_cells(Options(sizes=(30,), seeds=(4,), validation_images=20), available=100)
    differing = {name for name, value in vars(without.config).items() if getattr(with_.config, name) != value}
    assert differing == {"rotation_degrees", "shift", "scale", "shear_degrees"}
    chosen = [grid.load_data(cell.config).train.images for cell in (without, with_)]
    assert torch.equal(*chosen)
    other = make_cells(Options(sizes=(30,), seeds=(5,), validation_images=20), available=100)[0]
    assert not torch.equal(grid.load_data(other.config).train.images, chosen[0])


def test_errors_are_sorted_by_size_and_the_change_is_of_the_means() -> None:
    options = Options(sizes=(0, 30), seeds=(1, 2))
    errors = {"30-without": (0.4, 0.2), "30-with": (0.2, 0.1), "all-without": (0.1, 0.1), "all-with": (0.1, 0.1)}
    results = [
        Result(cell, 1, errors[cell.name.rpartition("-")[0]][cell.config.seed - 1], 0.0, (), 0.0)
        for cell in make_cells(options, available=100)
    ]
    found = errors_by_size(results, available=100)
    assert found == {"without": {30: [0.4, 0.2], 100: [0.1, 0.1]}, "with": {30: [0.2, 0.1], 100: [0.1, 0.1]}}
    changes = list(augmentation.table(found, options).columns[4].cells)
    assert changes == ["-50%", "+0%"]


def test_a_half_done_grid_has_a_table_with_gaps() -> None:
    (without, _) = make_cells(Options(sizes=(30,), seeds=(1,)), available=100)
    found = errors_by_size([Result(without, 1, 0.5, 0.0, (), 0.0)], available=100)
    assert [list(column.cells) for column in augmentation.table(found, Options()).columns[2:]] == [
        ["50.00%"],
        ["-"],
        ["-"],
    ]
    assert all(getattr(without.config, name) == off for name, off in NO_AUGMENTATION.items())
    assert isinstance(without, Cell)


def test_mistakes_are_told_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match="--sizes cannot be 5000: there are 100 images"):
        augmentation.main(["--sizes", "5000", "--validation-images", "20"])
    with pytest.raises(UserError, match=r"no backbone 'deepcnn' \(did you mean deep_cnn"):
        augmentation.main(["--backbone", "deepcnn"])
    assert not Path("runs").exists()


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sizes", "20", "0", "--seeds", "1", "2", "--updates", "2", "--validation-images", "20"]
    augmentation.main([*words, "--device", "cpu", "--precision", "float32", "--threads", "1", "--name", "a"])
    said = capsys.readouterr().out
    assert "8 cells trained" in said
    with Image.open("runs/a/augmentation.png") as picture:
        assert picture.height > 500
    results = json.loads(Path("runs/a/results.json").read_text())
    assert [cell["cell"] for cell in results["cells"]][:3] == ["20-without-seed1", "20-with-seed1", "20-without-seed2"]
    with pytest.raises(UserError, match="already holds a run: go on with it by --resume"):
        augmentation.main([*words, "--name", "a"])


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"start it with python -m vision\.augmentation"):
        augmentation.main([])
    assert not Path("runs").exists()
