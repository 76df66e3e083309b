"""Configs: types, ranges, round trip through JSON, configs of older versions; errors and exit status of programs."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import pytest

from zerokara.core import config
from zerokara.core.config import (
    MAX_MESSAGE,
    Range,
    UserError,
    abbreviate,
    format_count,
    from_dict,
    note,
    run_main,
    to_dict,
    to_saved,
    validate,
)
from zerokara.core.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """Config of the tests: the second version of a config class."""

    RENAMED: ClassVar = {
        "sticky": "repeat_action_probability",
        "size": lambda settings: "num_rows" if settings["shape"] == "rows" else "num_columns",
    }
    RENAMED_VALUES: ClassVar = {"distortions": {"colour": "color"}, "shape": {"lines": "rows"}}
    REMOVED: ClassVar = {"momentum": "Adam has none"}
    VALUES_BEFORE: ClassVar = {"clip": False}

    preset: str = "fast"
    """Named set of defaults."""
    num_envs: Annotated[int, Range(1)] = 8
    """Environments stepped together."""
    learning_rate: Annotated[float, Range(0, 1, low_open=True)] = 1e-4
    """Learning rate of Adam."""
    repeat_action_probability: float = 0.0
    """Probability that the previous action is repeated."""
    double: bool = True
    """Double Q-learning."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network."""
    name: str | None = None
    """Folder under runs/."""
    hidden: Annotated[tuple[int, ...], Range(1)] = (512,)
    """Widths of the hidden layers."""
    distortions: tuple[Literal["color", "cutout"], ...] = ()
    """Augmentations."""
    shape: Literal["rows", "columns"] = "rows"
    """Layout."""
    num_rows: int = 1
    """Rows."""
    num_columns: int = 1
    """Columns."""
    clip: bool = True
    """Clip rewards. Configs saved before this field was added did not."""


# Config saved by version 1: no version number, old names and values, a removed field, and no `clip`.
VERSION_1: dict[str, Any] = {
    "preset": "fast",
    "num_envs": 3,
    "learning_rate": 0.5,
    "sticky": 0.25,
    "double": False,
    "device": "cpu",
    "name": None,
    "hidden": [4, 5],
    "distortions": ["colour", "cutout"],
    "shape": "columns",
    "size": 7,
    "momentum": 0.9,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 2.0),
        ("num_envs", True),
        ("double", 1),
        ("device", "tpu"),
        ("name", 3),
        ("hidden", [4]),
        ("hidden", (4.5,)),
        ("learning_rate", float("inf")),
        ("learning_rate", "0.1"),
    ],
)
def test_validate_rejects_wrong_types(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} cannot be"):
        validate(dataclasses.replace(Config(), **{field: value}))


def test_limits_of_a_range() -> None:
    assert [number in Range(0, 1) for number in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [number in Range(0, low_open=True) for number in (0, 1e-9)] == [False, True]
    assert [number in Range() for number in (0.0, math.nan, math.inf)] == [True, False, False]
    assert str(Range(0, 1, low_open=True)) == "above 0 and at most 1"


def test_json_round_trip() -> None:
    config = Config(num_envs=3, hidden=(4, 5), distortions=("color",), name="x")
    assert from_dict(Config, json.loads(json.dumps(to_saved(config))), "config.json") == config
    assert to_saved(config) == {"config_version": 2, **to_dict(config)}


def test_config_of_an_older_version(capsys: pytest.CaptureFixture[str]) -> None:
    config = from_dict(Config, VERSION_1, "runs/x/config.json")
    assert config == Config(
        num_envs=3,
        learning_rate=0.5,
        repeat_action_probability=0.25,
        double=False,
        device="cpu",
        hidden=(4, 5),
        distortions=("color", "cutout"),
        shape="columns",
        num_columns=7,
        clip=False,
    )
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "runs/x/config.json: the setting 'momentum' no longer exists (Adam has none)" in err


def test_new_name_can_depend_on_other_fields() -> None:
    rows = from_dict(Config, {**VERSION_1, "shape": "lines"}, "runs/y/config.json")
    assert (rows.shape, rows.num_rows, rows.num_columns) == ("rows", 7, 1)


def test_invalid_saved_configs_are_errors() -> None:
    with pytest.raises(UserError, match=r"runs/x/config.json has a setting 'doubel' .*did you mean double\?"):
        from_dict(Config, {**to_saved(Config()), "doubel": 1}, "runs/x/config.json")
    with pytest.raises(UserError, match=r"written by a newer version .*version 3.*up to 2"):
        from_dict(Config, {**to_saved(Config()), "config_version": 3, "color": 1}, "runs/x/config.json")
    with pytest.raises(UserError, match=r"runs/x/config.json does not fit: --device cannot be 'tpu'"):
        from_dict(Config, {**to_saved(Config()), "device": "tpu"}, "runs/x/config.json")


def main_raising(error: BaseException) -> Callable[[], None]:
    def main() -> NoReturn:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("This is wrong."), 2, "error: This is wrong.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 2, "error: The disk is full for a.bin: "),
    ],
)
def test_message_and_exit_code(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(main_raising(error))
    assert exit_.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_lines_on_stderr_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a run share stderr: two that wrote a line and its end separately would mix them."""
    writes: list[str] = []
    stream = io.StringIO()
    stream.write = writes.append  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(config, "_printed", set())
    note("first")
    Progress(silent=True).warn("second")
    with pytest.raises(SystemExit):
        run_main(main_raising(UserError("third")))
    assert [text for text in writes if text] == ["note: first\n", "warning: second\n", "error: third\n"]


def test_other_exceptions_are_not_caught() -> None:
    with pytest.raises(PermissionError):
        run_main(main_raising(PermissionError(errno.EACCES, "no")))
    run_main(lambda: None)


def test_closed_pipe_ends_without_traceback() -> None:
    code = "from zerokara.core.config import run_main\nrun_main(lambda: [print('x' * 1000) for _ in range(1000)])"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_config_does_not_import_torch_or_numpy() -> None:
    code = "import sys, zerokara.core.config, zerokara.core.command_line; "
    code += "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True).stdout == b"[]\n"


def test_a_message_that_quotes_a_damaged_file_is_short() -> None:
    assert str(UserError("a" * MAX_MESSAGE)) == "a" * MAX_MESSAGE
    message = str(UserError(f"{'a' * MAX_MESSAGE} is a name: remove it."))
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("aaa")
    assert message.endswith("a is a name: remove it.")
    assert abbreviate("0123456789", 9) == "01 ... 89"


def test_numbers_of_things_have_a_singular() -> None:
    assert [format_count(number, "image") for number in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]
    assert [format_count(2, noun) for noun in ("class", "box")] == ["2 classes", "2 boxes"]
    assert [format_count(number, "image has", "images have") for number in (1, 2)] == ["1 image has", "2 images have"]
