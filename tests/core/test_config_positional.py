"""Tests of positional arguments and of configs without presets, as used by programs for finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a program for several runs."""

    runs: Annotated[tuple[str, ...], Positional("folder")] = ()
    """Folders of runs."""
    episodes: Annotated[int, Range(1)] = 3
    """Number of episodes."""
    verbose: bool = False
    """Print more."""


@dataclass(frozen=True, kw_only=True)
class One:
    """Options of a program for one run."""

    run: Annotated[str, Positional("folder")] = ""
    """Folder of a run."""


def options(*argv: str) -> Options:
    return parse(Options, {}, argv, "Do something.")


def test_positional_arguments_keep_their_order() -> None:
    assert options() == Options()
    assert options("runs/b", "runs/a") == Options(runs=("runs/b", "runs/a"))
    assert options("runs/a", "--episodes", "5", "--verbose") == Options(runs=("runs/a",), episodes=5, verbose=True)
    assert options("--episodes", "5", "runs/a") == Options(runs=("runs/a",), episodes=5)


def test_a_single_positional_field_takes_one_argument() -> None:
    assert parse(One, {}, ["runs/a"], "").run == "runs/a"
    assert parse(One, {}, [], "").run == ""
    with pytest.raises(UserError, match="'runs/b' is neither a flag nor the value of one"):
        parse(One, {}, ["runs/a", "runs/b"], "")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["runs/a", "--episode", "5"], r"no flag --episode \(did you mean --episodes\?\)"),
        (["runs/a", "--episodes", "0"], "--episodes cannot be 0: it must be a whole number, at least 1"),
        (["runs/a", "--episodes", "many"], "--episodes cannot be 'many': it must be a whole number"),
    ],
)
def test_errors_are_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        options(*argv)


def test_help_lists_the_positional_argument_and_no_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        options("--help")
    shown = capsys.readouterr().out
    assert exit_info.value.code in (0, None)
    assert "usage: " in shown.splitlines()[0]
    assert "[folder ...]" in shown.splitlines()[0]
    assert "  folder " in shown
    assert "Folders of runs." in shown
    assert "presets" not in shown
