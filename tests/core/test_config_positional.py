"""Positional arguments and configs without presets, as used by programs that evaluate finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Config with a positional field of several values."""

    runs: Annotated[tuple[str, ...], Positional("folder")] = ()
    """Folders of runs."""
    episodes: Annotated[int, Range(1)] = 3
    """Episodes to play."""
    verbose: bool = False
    """Print more."""


@dataclass(frozen=True, kw_only=True)
class SingleOptions:
    """Config with a positional field of one value."""

    run: Annotated[str, Positional("folder")] = ""
    """Folder of a run."""


def options(*argv: str) -> Options:
    return parse(Options, {}, argv, "Do something.")


def test_positional_arguments_keep_their_order() -> None:
    assert options() == Options()
    assert options("runs/b", "runs/a") == Options(runs=("runs/b", "runs/a"))
    assert options("runs/a", "--episodes", "5", "--verbose") == Options(runs=("runs/a",), episodes=5, verbose=True)
    assert options("--episodes", "5", "runs/a") == Options(runs=("runs/a",), episodes=5)


def test_single_positional_field_accepts_one_argument() -> None:
    assert parse(SingleOptions, {}, ["runs/a"], "").run == "runs/a"
    assert parse(SingleOptions, {}, [], "").run == ""
    with pytest.raises(UserError, match="'runs/b' is neither a flag nor the value of one"):
        parse(SingleOptions, {}, ["runs/a", "runs/b"], "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runs/a", "--episode", "5"], r"no flag --episode \(did you mean --episodes\?\)"),
        (["runs/a", "--episodes", "0"], "--episodes cannot be 0: it must be a whole number, at least 1"),
        (["runs/a", "--episodes", "many"], "--episodes cannot be 'many': it must be a whole number"),
    ],
)
def test_error_messages(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(*argv)


def test_help_lists_the_positional_field_and_no_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        options("--help")
    text = capsys.readouterr().out
    assert exit_.value.code in (0, None)
    assert "usage: " in text.splitlines()[0]
    assert "[folder ...]" in text.splitlines()[0]
    assert "  folder " in text
    assert "Folders of runs." in text
    assert "presets" not in text
