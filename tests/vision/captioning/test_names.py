"""Tests of the names around the settings of vision.caption: old names, names in other libraries, groups of --help."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, flag, from_dict, negated_flag
from zerokara.vision.captioning import names
from zerokara.vision.captioning.config import PRESETS, Config

FIELDS = {field.name for field in dataclasses.fields(Config)}


def parsed(*words: str) -> Config:
    return parse(Config, PRESETS, list(words), "Train an image captioner.")


def test_every_option_is_in_one_group_and_the_common_options_exist() -> None:
    assert Counter(name for group in names.GROUPS.values() for name in group) == Counter(FIELDS)
    assert set(names.COMMON) <= FIELDS
    assert names.PRESET_SUMMARIES.keys() == PRESETS.keys()


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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lr", "--lr is --learning-rate here."),
        ("--batch", "--batch is --batch-size here."),
        ("--max-len", "--max-len is --max-length here."),
        ("--num-beams", "--num-beams is --beam-size here."),
        ("--dataset", "--dataset is --data here."),
        ("--wd", "--wd is --weight-decay here."),
        ("--amp", "--amp is --precision bfloat16 here."),
        ("--freeze-encoder", "--freeze-encoder is --no-finetune-backbone here."),
        ("--optimizer", "--optimizer is not an option here: the optimizer is AdamW."),
    ],
)
def test_names_of_other_libraries_are_answered_with_the_name_here(option: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parsed(option, "3")


def test_names_of_other_libraries_lead_to_options_that_exist() -> None:
    assert not names.FOREIGN_NAMES.keys() & (FIELDS | names.RENAMED.keys())
    flags = {flag(name) for name in FIELDS} | {"--logdir", negated_flag("finetune_backbone")}
    for name, answer in names.FOREIGN_NAMES.items():
        assert answer in FIELDS or set(re.findall(r"--[a-z-]+", answer)) <= flags, name
        assert answer in FIELDS or answer.startswith("is "), name
