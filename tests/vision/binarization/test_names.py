"""Tests of the names around the settings of vision.binary: old names, names in other libraries, groups of --help."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, flag
from zerokara.vision.binarization import names
from zerokara.vision.binarization.config import PRESETS, Config

FIELDS = {field.name for field in dataclasses.fields(Config)}


def parsed(*words: str) -> Config:
    return parse(Config, PRESETS, list(words), "Train a binary network.")


def test_every_option_is_in_one_group_and_the_common_options_exist() -> None:
    assert Counter(name for group in names.GROUPS.values() for name in group) == Counter(FIELDS)
    assert set(names.COMMON) <= FIELDS
    assert names.PRESET_SUMMARIES.keys() == PRESETS.keys()


def test_old_names_are_accepted_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("--units", "8", "--layers=2") == Config(hidden_units=8, num_hidden_layers=2)
    assert "--layers is called --num-hidden-layers now." in capsys.readouterr().err
    assert set(names.RENAMED.values()) <= FIELDS


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lr", "--lr is --learning-rate here."),
        ("--batch", "--batch is --batch-size here."),
        ("--dataset", "--dataset is --data here."),
        ("--model", "--model is --network here."),
        ("--wd", "--wd is not an option here: latent weights are clipped to [-1, 1] instead."),
        ("--amp", "--amp is --precision bfloat16 here."),
    ],
)
def test_names_of_other_libraries_are_answered_with_the_name_here(option: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parsed(option, "3")


def test_names_of_other_libraries_lead_to_options_that_exist() -> None:
    assert not names.FOREIGN_NAMES.keys() & (FIELDS | names.RENAMED.keys())
    flags = {flag(name) for name in FIELDS} | {"--no-test", "--logdir", "--help"}
    for name, answer in names.FOREIGN_NAMES.items():
        assert answer in FIELDS or set(re.findall(r"--[a-z-]+", answer)) <= flags, name
        assert answer in FIELDS or answer.startswith("is "), name


def test_options_of_the_other_network_are_rejected() -> None:
    with pytest.raises(UserError, match="--num-hidden-layers has no effect without --network mlp"):
        parsed("--network", "cnn", "--num-hidden-layers", "2")
    with pytest.raises(UserError, match="--width-multiplier has no effect without --network cnn"):
        parsed("--width-multiplier", "2")
