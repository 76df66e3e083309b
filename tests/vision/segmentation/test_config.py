"""Tests of the config of vision.segment: groups of `--help`, old names, names of other libraries."""

from __future__ import annotations

import dataclasses

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, flag, from_dict, to_dict
from zerokara.vision.segmentation import names
from zerokara.vision.segmentation.config import PRESETS, Config

FIELDS = [field.name for field in dataclasses.fields(Config)]


def test_every_option_is_in_one_group() -> None:
    grouped = [name for group in names.GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(FIELDS)
    assert set(names.COMMON) < set(FIELDS)
    assert len(set(names.COMMON)) == len(names.COMMON)


def test_every_preset_has_a_summary() -> None:
    assert list(names.PRESET_SUMMARIES) == list(PRESETS)


def test_help_lists_the_common_options_first_and_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse(Config, PRESETS, ["--help"], "Train a semantic segmentation network.")
    text = capsys.readouterr().out
    lines = text.splitlines()
    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[:-1] == ["most used", *names.GROUPS]
    options = [line.split()[0].replace("[no-]", "") for line in lines if line.startswith("  --")]
    assert options[: len(names.COMMON)] == [flag(name) for name in names.COMMON]
    assert len(options) == len(FIELDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", names.FOREIGN_NAMES)
def test_names_of_other_libraries_are_answered(name: str) -> None:
    answer = names.FOREIGN_NAMES[name]
    assert name not in {*FIELDS, *names.RENAMED}
    with pytest.raises(UserError) as error:
        parse(Config, PRESETS, [flag(name), "1"], "")
    if answer in FIELDS:
        assert str(error.value) == f"{flag(name)} is {flag(answer)} here."
    else:
        assert str(error.value) == f"{flag(name)} {answer}"
        assert answer.startswith("is ")
        assert answer.endswith(".")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0.01"], "--lr is --learning-rate here."),
        (["--batch", "4"], "--batch is --batch-size here."),
        (["-b", "4"], "-b is --batch-size here."),
        (["--arch", "unet"], "--arch is --network and --backbone here"),
        (["--img-size", "256"], "--img-size is --image-size here."),
        (["--dataset", "voc"], "--dataset is --data here."),
        (["--data_path", "voc"], "--data-path is --data here."),
        (["--wd", "0.1"], "--wd is --weight-decay here."),
        (["--no-val"], "--no-val is not an option here"),
    ],
)
def test_answers_to_names_of_other_libraries(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Config, PRESETS, words, "")
    assert str(error.value).startswith(message)


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
