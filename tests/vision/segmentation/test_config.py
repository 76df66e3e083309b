"""Tests of the config of vision.segment: old names."""

from __future__ import annotations

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import from_dict, to_dict
from zerokara.vision.segmentation import names
from zerokara.vision.segmentation.config import PRESETS, Config


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
