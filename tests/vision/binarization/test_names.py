"""Tests of the names around the settings of vision.binary: old names."""

from __future__ import annotations

import dataclasses

import pytest

from zerokara.core.command_line import parse
from zerokara.vision.binarization import names
from zerokara.vision.binarization.config import PRESETS, Config

FIELDS = {field.name for field in dataclasses.fields(Config)}


def parsed(*words: str) -> Config:
    return parse(Config, PRESETS, list(words), "Train a binary network.")


def test_old_names_are_accepted_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("--units", "8", "--layers=2") == Config(hidden_units=8, num_hidden_layers=2)
    assert "--layers is called --num-hidden-layers now." in capsys.readouterr().err
    assert set(names.RENAMED.values()) <= FIELDS
