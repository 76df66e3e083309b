"""Tests of vision.augmentation: cells, table, and the command line with a few synthetic digits."""

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


def test_every_cell_makes_the_same_number_of_updates() -> None:
    """1,000 updates are 1,000 epochs of 30 images in one batch, 500 of 250 in two, 100 of 1,000 in ten."""
    cells = make_cells(Options(sizes=(30, 250, 0), seeds=(1,), updates=1_000), available=1_000)
    assert [cell.name for cell in cells[:2]] == ["30-without-seed1", "30-with-seed1"]
    assert cells[-1].name == "all-with-seed1"
    assert [(cell.config.batch_size, cell.config.epochs) for cell in cells[::2]] == [
        (30, 1_000),
        (100, 500),
        (100, 100),
    ]
    assert [cell.config.train_images for cell in cells[::2]] == [30, 250, 0]


def test_modes_differ_only_in_augmentation_and_use_the_same_images() -> None:
    without, with_ = make_cells(Options(sizes=(30,), seeds=(4,), validation_images=20), available=100)
    differing = {name for name, value in vars(without.config).items() if getattr(with_.config, name) != value}
    assert differing == {"rotation_degrees", "shift", "scale", "shear_degrees"}
    chosen = [grid.load_data(cell.config).train.images for cell in (without, with_)]
    assert torch.equal(*chosen)
    other = make_cells(Options(sizes=(30,), seeds=(5,), validation_images=20), available=100)[0]
    assert not torch.equal(grid.load_data(other.config).train.images, chosen[0])


def test_errors_by_size_and_relative_change_of_the_means() -> None:
    options = Options(sizes=(0, 30), seeds=(1, 2))
    errors = {"30-without": (0.4, 0.2), "30-with": (0.2, 0.1), "all-without": (0.1, 0.1), "all-with": (0.1, 0.1)}
    results = [
        Result(cell, 1, errors[cell.name.rpartition("-")[0]][cell.config.seed - 1], 0.0, (), 0.0)
        for cell in make_cells(options, available=100)
    ]
    errors_of_modes = errors_by_size(results, available=100)
    assert errors_of_modes == {"without": {30: [0.4, 0.2], 100: [0.1, 0.1]}, "with": {30: [0.2, 0.1], 100: [0.1, 0.1]}}
    changes = list(augmentation.table(errors_of_modes, options).columns[4].cells)
    assert changes == ["-50%", "+0%"]


def test_table_of_an_unfinished_grid() -> None:
    (without, _) = make_cells(Options(sizes=(30,), seeds=(1,)), available=100)
    errors_of_modes = errors_by_size([Result(without, 1, 0.5, 0.0, (), 0.0)], available=100)
    assert [list(column.cells) for column in augmentation.table(errors_of_modes, Options()).columns[2:]] == [
        ["50.00%"],
        ["-"],
        ["-"],
    ]
    assert all(getattr(without.config, name) == off for name, off in NO_AUGMENTATION.items())
    assert isinstance(without, Cell)


def test_errors_are_raised_before_training() -> None:
    with pytest.raises(UserError, match="--sizes cannot be 5000: there are 100 training images"):
        augmentation.main(["--sizes", "5000", "--validation-images", "20"])
    with pytest.raises(UserError, match=r"no backbone 'deepcnn' \(did you mean deep_cnn"):
        augmentation.main(["--backbone", "deepcnn"])
    assert not Path("runs").exists()


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sizes", "20", "0", "--seeds", "1", "2", "--updates", "2", "--validation-images", "20"]
    augmentation.main([*words, "--device", "cpu", "--precision", "float32", "--threads", "1", "--name", "a"])
    printed = capsys.readouterr().out
    assert "8 cells trained" in printed
    with Image.open("runs/a/augmentation.png") as picture:
        assert picture.height > 500
    results = json.loads(Path("runs/a/results.json").read_text())
    assert [cell["cell"] for cell in results["cells"]][:3] == ["20-without-seed1", "20-with-seed1", "20-without-seed2"]
    with pytest.raises(UserError, match="already holds a run: resume it with --resume"):
        augmentation.main([*words, "--name", "a"])


def test_torchrun_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"start it with python -m vision\.augmentation"):
        augmentation.main([])
    assert not Path("runs").exists()
