"""Tests of the config of vision.segment: old names, and the width of the backbone."""

from __future__ import annotations

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import from_dict, to_dict
from zerokara.vision.segmentation import names
from zerokara.vision.segmentation.config import PRESETS, Config, read_config, width_of


def test_old_names_are_accepted_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(Config, PRESETS, ["--colour", "0.3", "--unlabelled", "7"], "")
    assert config == Config(color_jitter=0.3, unlabeled=7)
    assert capsys.readouterr().err.splitlines() == [
        "note: --colour is called --color-jitter now.",
        "note: --unlabelled is called --unlabeled now.",
    ]


def test_old_names_are_accepted_in_saved_configs() -> None:
    saved = to_dict(Config(color_jitter=0.3, unlabeled=7))
    for old in ("colour", "unlabelled"):
        saved[old] = saved.pop(names.RENAMED[old])
    assert from_dict(Config, saved, "config.json") == Config(color_jitter=0.3, unlabeled=7)


@pytest.mark.parametrize(
    ("words", "width"),
    [
        ([], 0.45),
        (["--backbone", "vgg16"], 1.0),
        (["--backbone", "vgg16", "--width-multiplier", "0.5"], 0.5),
        (["--width-multiplier", "1"], 1.0),
        (["--preset", "segnet-slim"], 0.45),
        (["--preset", "fcn8s", "--backbone", "resnet18"], 1.0),
    ],
)
def test_only_the_default_backbone_is_narrow(words: list[str], width: float) -> None:
    assert read_config(words, "").width_multiplier == width  # saved with the run


def test_the_width_of_a_config_made_in_python() -> None:
    assert (width_of(Config()), width_of(Config(backbone="vgg16"))) == (0.45, 1.0)
