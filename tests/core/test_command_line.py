"""Tests of the command line: presets, flags, old and foreign names, errors of one sentence, help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from zerokara.core import config as config_module
from zerokara.core.command_line import parse
from zerokara.core.config import Range, UserError, field_help


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings for these tests."""

    RENAMED: ClassVar = {"envs": "num_envs", "hidden_sizes": "hidden", "twice": "double"}
    RENAMED_VALUES: ClassVar = {"device": {"gpu": "cuda"}}
    FOREIGN_NAMES: ClassVar = {"lr": "learning_rate", "track": "is not an option here: use TensorBoard."}
    REQUIRES: ClassVar = {"eval_steps": (lambda config: config.device == "cpu", "--device cpu")}
    GROUPS: ClassVar = {
        "network": ("hidden", "double"),
        "run": ("preset", "num_envs", "name", "eval_steps", "device"),
    }
    COMMON: ClassVar = ("num_envs", "name")
    PRESET_SUMMARIES: ClassVar = {"fast": "the default", "nature": "Mnih et al. 2015"}

    preset: str = "fast"
    """Named set of defaults."""
    num_envs: Annotated[int, Range(1)] = 8
    """Environments
    stepped together. They share one process."""
    learning_rate: Annotated[float, Range(0, 1, low_open=True)] = 1e-4
    """Adam's learning rate."""
    double: bool = True
    """Select the action of the target with the online network."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network."""
    name: str | None = None
    """Folder under runs/."""
    hidden: Annotated[tuple[int, ...], Range(1)] = (512,)
    """Widths of the hidden layers."""
    eval_steps: Annotated[int | None, Range(1)] = None
    """Steps between evaluations."""
    offset: float = 0.0
    """Any number."""


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "nature": {"num_envs": 1, "double": False, "learning_rate": 2.5e-4, "hidden": (256, 128)},
}


@pytest.fixture(autouse=True)
def _reset_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the printed notes, because each note is printed only once per process."""
    monkeypatch.setattr(config_module, "_printed", set())


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
    # --preset is applied first, at any position
    assert parsed("--num-envs", "3", "--double", "--preset=nature").num_envs == 3
    assert parsed("--num-envs", "3", "--double", "--preset=nature").double is True


def test_a_layer_overrides_the_preset_and_flags_override_the_layer() -> None:
    layers = {"device": {"cpu": {"num_envs": 2, "hidden": (7,)}}}

    def layered(*words: str, saved: Config | None = None) -> Config:
        return parse(Config, PRESETS, words, "", saved, layers=layers)

    over = layered("--preset", "nature", "--device", "cpu")
    assert (over.num_envs, over.hidden, over.double) == (2, (7,), False)
    assert layered("--num-envs", "3", "--device=cpu").num_envs == 3
    assert layered("--preset", "nature") == parsed("--preset", "nature")  # without its flag the layer is not applied
    assert layered("--device", "cuda").num_envs == 8
    assert layered("--device", "cpu", saved=Config(num_envs=5)).num_envs == 5  # a resumed run keeps its settings


def test_the_type_of_every_field() -> None:
    words = "--num_envs 16 --learning-rate=1e-3 --no-double --device cpu --name x --hidden 4 5 6 --eval-steps 100"
    assert parsed(*words.split()) == Config(
        num_envs=16, learning_rate=1e-3, double=False, device="cpu", name="x", hidden=(4, 5, 6), eval_steps=100
    )
    offsets = [parsed(*words.split()).offset for words in ("--offset -1e-3", "--offset=-2", "--offset -.5")]
    assert offsets == [-1e-3, -2, -0.5]
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
        ("--eval-steps 9", ["--eval-steps has no effect without --device cpu"]),
        ("--lr 3", ["--lr is --learning-rate here."]),
        ("--track", ["--track is not an option here: use TensorBoard."]),
        ("--truck", ["no flag --truck;"]),
        ("--env 3", ["no flag --env (did you mean --num-envs?)"]),
        ("--offset -x", ["--offset cannot be '-x': it must be a number"]),
        ("stray", ["'stray'"]),
        ("--preset nature stray", ["'stray'"]),
        ("--double true", ["'true'", "--no-flag"]),
    ],
)
def test_invalid_command_lines_are_refused(words: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(*words.split())
    for part in parts:
        assert part in message
    assert capsys.readouterr() == ("", "")  # run_main prints it


def test_presets_are_validated() -> None:
    with pytest.raises(UserError, match="--num-envs cannot be 0"):
        parse(Config, {"fast": {"num_envs": 0}}, [], "")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        parsed(*words)
    assert not leaving.value.code
    return capsys.readouterr().out


def test_help_lists_the_common_options_first_and_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help", "--preset", "nature")
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["most used:", "network:", "run:", "options:", "presets (the defaults above are those of nature):"]
    assert text.index("most used:") < text.index("--num-envs") < text.index("--name") < text.index("network:")
    for name in field_help(Config):
        assert text.count(f"--[no-]{name}" if name == "double" else f"--{name.replace('_', '-')} ") == 1
    assert "Environments stepped together (default: 1)" in text  # the first sentence, and the preset's default
    assert "  nature          Mnih et al. 2015" in text
    assert "0.00025 --hidden" not in text
    assert "Deep Q-learning." in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_all_explains_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = " ".join(shown(capsys, "--help-all").split())
    for explanation in field_help(Config).values():
        assert explanation in text
    assert "They share one process. At least 1. (default: 8)" in text
    assert "= --num-envs 1 --no-double --learning-rate 0.00025 --hidden 256 128" in text


def test_help_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, shown(capsys, "--help").splitlines())) <= 80


def test_old_names_are_accepted_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    old = "--envs 3 --hidden-sizes=4 --no-twice --device gpu --envs 5"
    assert parsed(*old.split()) == Config(num_envs=5, hidden=(4,), double=False, device="cuda")
    parsed("--envs", "3")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "note: --envs is called --num-envs now.",
        "note: --hidden-sizes is called --hidden now.",
        "note: --twice is called --double now.",
        "note: the value 'gpu' of --device is called 'cuda' now.",
    ]


def test_a_flag_without_effect_is_refused_unless_it_changes_nothing() -> None:
    assert parsed("--eval-steps", "9", "--device", "cpu").eval_steps == 9
    assert parsed("--eval-steps", "None").eval_steps is None
    assert "has no effect" in refused("--eval-steps", "9", "--device", "cuda")


def test_flags_without_effect_are_checked_against_the_settings_of_the_resumed_run() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Resumable(Config):
        resume: bool = False
        """Resume the run."""

    words = ["--eval-steps", "9", "--device", "cuda"]
    with pytest.raises(UserError, match="has no effect"):
        parse(Resumable, {"fast": {}}, words, "")
    assert parse(Resumable, {"fast": {}}, [*words, "--resume"], "").eval_steps == 9
    with pytest.raises(UserError, match="has no effect"):
        parse(Resumable, {"fast": {}}, [*words, "--resume"], "", saved=Resumable(resume=True))


def test_help_of_inherited_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(Config):
        atoms: int = 51
        """Atoms of the distribution."""

    assert field_help(More) == {**field_help(Config), "atoms": "Atoms of the distribution."}
    assert parse(More, {"fast": {}}, ["--atoms", "3"], "") == More(atoms=3)


def test_a_saved_config_replaces_the_preset() -> None:
    saved = Config(preset="nature", num_envs=5)
    assert parse(Config, PRESETS, ["--learning-rate", "0.5"], "", saved=saved) == dataclasses.replace(
        saved, learning_rate=0.5
    )
    assert parse(Config, PRESETS, ["--preset", "nature"], "", saved=saved) == saved
    with pytest.raises(UserError, match="A resumed run keeps its preset"):
        parse(Config, PRESETS, ["--preset", "fast"], "", saved=saved)
