"""Tests of the names around the settings of vision.caption: old names."""

from __future__ import annotations

import dataclasses

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import from_dict
from zerokara.vision.captioning import names
from zerokara.vision.captioning.config import PRESETS, Config

FIELDS = {field.name for field in dataclasses.fields(Config)}


def parsed(*words: str) -> Config:
    return parse(Config, PRESETS, list(words), "Train an image captioner.")


def test_old_names_are_accepted_in_saved_configs_and_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    old = {
        "learn_eye": True,
        "eye_learning_rate": 0.5,
        "at_least": 2,
        "longest": 7,
        "beams": 4,
        "length_power": 0.1,
        "split": 8,
    }
    expected = Config(
        finetune_backbone=True,
        backbone_learning_rate=0.5,
        min_word_count=2,
        max_length=7,
        beam_size=4,
        length_penalty=0.1,
        embedding_dim=3,
        hidden_units=9,
        split_seed=8,
        named_splits=False,  # of runs before this option
    )
    assert from_dict(Config, {**old, "embedding": 3, "hidden": 9}, "config.json") == expected
    assert parsed("--learn-eye", "false", "--beams=4", "--split", "3") == Config(
        finetune_backbone=False, beam_size=4, split_seed=3
    )
    notes = capsys.readouterr().err
    assert "--beams is called --beam-size now." in notes
    assert "--split is called --split-seed now." in notes
    assert set(names.RENAMED.values()) <= FIELDS
    assert not names.RENAMED.keys() & FIELDS
