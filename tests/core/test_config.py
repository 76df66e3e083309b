"""The command line: presets, defaults, refusals in one sentence, help, and what config.json gives back."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import pytest

from zerokara.core.config import Range, UserError, field_help, from_dict, parse, run_main, to_dict, validate


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the tests configure."""

    preset: str = "fast"
    """Named set of defaults."""
    num_envs: Annotated[int, Range(1)] = 8
    """Environments
    stepped together."""
    learning_rate: Annotated[float, Range(0, 1, low_open=True)] = 1e-4
    """Adam's learning rate."""
    double: bool = True
    """Let the online network choose the target's action."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    name: str | None = None
    """Folder under runs/."""
    hidden: Annotated[tuple[int, ...], Range(1)] = (512,)
    """Widths of the hidden layers."""
    eval_steps: Annotated[int | None, Range(1)] = None
    """Steps between evaluations."""


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "nature": {"num_envs": 1, "double": False, "learning_rate": 2.5e-4, "hidden": (256, 128)},
}


def parsed(*words: str) -> Config:
    return parse(Config, PRESETS, words, "Deep Q-learning.")


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        parsed(*words)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert not set(message) & set("╭│╰")
    return message


def test_defaults_then_preset_then_flags() -> None:
    assert parsed() == Config()
    assert parsed("--preset", "nature") == Config(
        preset="nature", num_envs=1, double=False, learning_rate=2.5e-4, hidden=(256, 128)
    )
    # wherever --preset stands, it comes first
    assert parsed("--num-envs", "3", "--double", "--preset=nature").num_envs == 3
    assert parsed("--num-envs", "3", "--double", "--preset=nature").double is True


def test_a_layer_lies_over_the_preset_and_under_the_flags() -> None:
    layers = {"device": {"cpu": {"num_envs": 2, "hidden": (7,)}}}

    def layered(*words: str, saved: Config | None = None) -> Config:
        return parse(Config, PRESETS, words, "", saved, layers=layers)

    over = layered("--preset", "nature", "--device", "cpu")
    assert (over.num_envs, over.hidden, over.double) == (2, (7,), False)
    assert layered("--num-envs", "3", "--device=cpu").num_envs == 3
    assert layered("--preset", "nature") == parsed("--preset", "nature")  # where it is not typed, it is not there
    assert layered("--device", "cuda").num_envs == 8
    assert layered("--device", "cpu", saved=Config(num_envs=5)).num_envs == 5  # a run goes on as it was


def test_the_type_of_every_field() -> None:
    words = "--num_envs 16 --learning-rate=1e-3 --no-double --device cpu --name x --hidden 4 5 6 --eval-steps 100"
    assert parsed(*words.split()) == Config(
        num_envs=16, learning_rate=1e-3, double=False, device="cpu", name="x", hidden=(4, 5, 6), eval_steps=100
    )
    assert type(parsed("--learning-rate", "1")) is Config
    assert isinstance(parsed("--learning-rate", "1").learning_rate, float)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--preset natur", ["'natur'", "did you mean nature?", "--preset {fast,nature}"]),
        ("--preset", ["--preset needs a value"]),
        ("--num-env 3", ["no flag --num-env", "did you mean --num-envs?"]),
        ("--no-doubel", ["no flag --no-doubel", "did you mean --double?"]),
        ("--xyzzy 3", ["no flag --xyzzy;"]),
        ("--num-envs 0", ["--num-envs", "0", "a whole number, at least 1"]),
        ("--num-envs 1e6", ["--num-envs", "'1e6'", "a whole number, at least 1"]),
        ("--num-envs x", ["--num-envs", "'x'", "a whole number"]),
        ("--learning-rate 0", ["--learning-rate", "a number, above 0 and at most 1"]),
        ("--learning-rate 1.5", ["--learning-rate", "1.5", "at most 1"]),
        ("--learning-rate nan", ["--learning-rate", "nan"]),
        ("--learning-rate", ["--learning-rate needs a value"]),
        ("--device tpu", ["--device", "'tpu'", "auto, cpu, cuda"]),
        ("--hidden 4 0", ["--hidden", "(4, 0)", "at least 1"]),
        ("--hidden 4 x", ["--hidden", "whole number"]),
        ("--eval-steps 0", ["--eval-steps", "at least 1"]),
        ("stray", ["'stray'"]),
        ("--preset nature stray", ["'stray'"]),
        ("--double true", ["'true'", "--no-flag"]),
    ],
)
def test_refusals(words: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(*words.split())
    for part in parts:
        assert part in message
    assert capsys.readouterr() == ("", "")  # entry() prints it, nobody else


def test_a_preset_is_checked_too() -> None:
    with pytest.raises(UserError, match="--num-envs cannot be 0"):
        parse(Config, {"fast": {"num_envs": 0}}, [], "")


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
def test_validate_refuses_wrong_types(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} cannot be"):
        validate(dataclasses.replace(Config(), **{field: value}))


def test_a_range_knows_its_ends() -> None:
    assert [number in Range(0, 1) for number in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [number in Range(0, low_open=True) for number in (0, 1e-9)] == [False, True]
    assert [number in Range() for number in (0.0, math.nan, math.inf)] == [True, False, False]
    assert str(Range(0, 1, low_open=True)) == "above 0 and at most 1"


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as leaving:
        parsed("--help", "--preset", "nature")
    assert not leaving.value.code
    text = capsys.readouterr().out
    helps = field_help(Config)
    assert list(helps) == [field.name for field in dataclasses.fields(Config)]
    for name, explanation in helps.items():
        assert f"--{name.replace('_', '-')}" in text
        assert explanation in text
    assert "Environments stepped together. At least 1. (default: 1)" in text  # range, and the preset's default
    assert "{fast,nature}" in text
    assert "nature: --num-envs 1 --no-double --learning-rate 0.00025 --hidden 256 128" in text
    assert "Deep Q-learning." in text


def test_help_of_inherited_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(Config):
        atoms: int = 51
        """Atoms of the distribution."""

    assert field_help(More) == {**field_help(Config), "atoms": "Atoms of the distribution."}
    assert parse(More, {"fast": {}}, ["--atoms", "3"], "") == More(atoms=3)


def test_a_saved_config_stands_in_for_the_preset() -> None:
    saved = Config(preset="nature", num_envs=5)
    assert parse(Config, PRESETS, ["--learning-rate", "0.5"], "", saved=saved) == dataclasses.replace(
        saved, learning_rate=0.5
    )
    assert parse(Config, PRESETS, ["--preset", "nature"], "", saved=saved) == saved
    with pytest.raises(UserError, match="cannot change its preset"):
        parse(Config, PRESETS, ["--preset", "fast"], "", saved=saved)


def test_json_and_back() -> None:
    config = parsed("--preset", "nature", "--name", "x")
    assert from_dict(Config, json.loads(json.dumps(to_dict(config))), "config.json") == config


def test_a_config_of_another_version() -> None:
    values = to_dict(Config())
    del values["double"]
    with pytest.raises(UserError, match=r"runs/x/config.json .* \(unknown color; missing double\)"):
        from_dict(Config, {**values, "color": 1}, "runs/x/config.json")
    with pytest.raises(UserError, match=r"runs/x/config.json does not fit: --device cannot be 'tpu'"):
        from_dict(Config, {**to_dict(Config()), "device": "tpu"}, "runs/x/config.json")


def raising(error: BaseException) -> Callable[[], None]:
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
def test_entry_has_words_and_exit_codes(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        run_main(raising(error))
    assert leaving.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_entry_lets_real_bugs_through() -> None:
    with pytest.raises(PermissionError):
        run_main(raising(PermissionError(errno.EACCES, "no")))
    run_main(lambda: None)


def test_a_closed_pipe_is_no_stack_trace() -> None:
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


def test_importing_config_is_cheap() -> None:
    code = "import sys, core.config; print(sorted({'tyro', 'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True).stdout == b"[]\n"
