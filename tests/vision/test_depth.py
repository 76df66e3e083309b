"""Tests of vision.depth: weights, receptive fields and widths, and the command line with a few synthetic digits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from zerokara.core.backbones.kernels import KERNELS
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import Stopped, UserError
from zerokara.vision import depth
from zerokara.vision.depth import (
    Options,
    filter_cells,
    layer_cells,
    measured_receptive_field,
    receptive_field,
    weights_per_pair,
)
from zerokara.vision.studies import grid

pytestmark = pytest.mark.usefixtures("few_glyphs")


@pytest.mark.parametrize(
    ("kernels", "weights", "field"),
    [((5,), 25, 5), ((3, 3), 18, 5), ((7,), 49, 7), ((3, 3, 3), 27, 7), ((3,), 9, 3)],
)
def test_weights_and_receptive_fields(kernels: tuple[int, ...], weights: int, field: int) -> None:
    assert weights_per_pair(kernels) == weights
    assert receptive_field(kernels) == field
    assert measured_receptive_field(kernels) == field


@pytest.mark.parametrize("name", KERNELS)
def test_number_of_parameters_of_a_stack(name: str) -> None:
    """With 32 channels: a stem of 9 x 32 + 32, then three stages with filters on 32 x 32 pairs and biases."""
    kernels = KERNELS[name].kernels
    backbone = make_backbone(name, 1, 28)
    filters = 3 * (weights_per_pair(kernels) * 32 * 32 + len(kernels) * 32)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 9 * 32 + 32 + filters
    assert backbone(torch.rand(2, 1, 28, 28)).shape == (2, 32, 3, 3)
    assert make_backbone(name, 1, 28, width=0.5).out_channels == 16


def test_receptive_field_of_a_stage_of_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by gradients: 3 of the stem, the receptive field of the filters, and 1 more by pooling."""
    for name, kernels in (("one5x5", (5,)), ("two3x3", (3, 3))):
        backbone = make_backbone(name, 1, 28)
        for parameter in backbone.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        x = torch.rand(1, 1, 28, 28, requires_grad=True)
        # Average pooling, because the gradient of a maximum has only one position.
        with monkeypatch.context() as context:
            context.setattr("torch.nn.functional.max_pool2d", torch.nn.functional.avg_pool2d)
            (gradient,) = torch.autograd.grad(backbone.stages(x)[0][0, 0, 7, 7], x)
        assert int(gradient[0, 0].any(1).sum()) == 3 + receptive_field(kernels) - 1 + 1


def test_width_for_finds_the_nearest_whole_number_of_channels() -> None:
    def count(width: float) -> int:
        return round(width * 32) ** 2

    assert depth.width_for(count, 100) == 10 / 32
    assert depth.width_for(count, 108) == 10 / 32  # 100 is closer than 121
    assert depth.width_for(count, 115) == 11 / 32


def test_all_stacks_have_about_the_same_parameters() -> None:
    options = Options(validation_images=20, seeds=(1,))
    images = grid.load_data(grid.base_config(options, "adamw"))
    counts = {
        cell.name: depth.count_parameters(cell.config.backbone, images, cell.config.width_multiplier)
        for cell in filter_cells(options, images)
    }
    assert counts["one5x5-seed1"] == 9 * 32 + 32 + 3 * (25 * 32 * 32 + 32) + 32 * 10 + 10
    assert max(counts.values()) / min(counts.values()) < 1.03


def test_plain_and_residual_networks_have_the_same_settings() -> None:
    cells = layer_cells(Options(seeds=(1, 2), depths=(8, 14), epochs=4))
    assert [cell.name for cell in cells[:4]] == ["plain8-seed1", "resnet8-seed1", "plain14-seed1", "resnet14-seed1"]
    fields = [{**vars(cell.config), "backbone": None} for cell in cells]
    assert fields[0] == fields[1] == fields[2] == fields[3]
    assert (fields[0]["epochs"], fields[0]["warmup_epochs"]) == (4, 0.2)  # 2 of 40 epochs, and 0.2 of 4
    assert depth.split_name("resnet110") == ("resnet", 110)


def test_an_invalid_depth_is_rejected() -> None:
    with pytest.raises(UserError, match=r"--depths cannot be 21: .* 6n \+ 2"):
        depth.main(["--depths", "20", "21"])


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Train both grids on 40 digits. Then add a seed: only its cells are trained."""
    shared = ["--depths", "8", "--train-images", "40", "--validation-images", "20", "--epochs", "1", "--device", "cpu"]
    fast = ["--precision", "float32", "--threads", "1"]
    depth.main([*shared, *fast, "--seeds", "1"])
    printed = capsys.readouterr().out
    assert "one 5x5" in printed
    assert "5 / 5" in printed
    assert "residual" in printed
    assert "6 cells trained" in printed
    folder = Path("runs/depth-glyphs")
    for name in ("filters.png", "layers.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 1000
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/result.json")}
    depth.main(["--resume", "--seeds", "1", "2", "--quiet"])
    results = json.loads((folder / "results.json").read_text())
    assert len(results["cells"]) == 12
    assert len(before) == 6
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    with pytest.raises(UserError, match="was started with --epochs 1 and cannot be resumed with 2"):
        depth.main(["--resume", "--epochs", "2"])


def test_a_signal_while_the_figures_are_drawn_ends_the_run_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Signals are handled from the start to the end of the run, not only while cells are trained."""
    few = ["--part", "filters", "--train-images", "40", "--validation-images", "20", "--epochs", "1", "--seeds", "1"]
    with monkeypatch.context() as context:
        context.setattr(depth, "draw_filters", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Stopped):
            depth.main([*few, "--device", "cpu", "--precision", "float32", "--threads", "1"])
    assert "SIGINT: stopped; resume with: " in capsys.readouterr().out
    depth.main(["--resume", "--name", "depth-glyphs"])
    assert "4 cells trained" in capsys.readouterr().out


def test_torchrun_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"start it with python -m vision\.depth"):
        depth.main([])
    assert not Path("runs").exists()
