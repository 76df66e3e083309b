"""Command line: presets, flags, old names and names of other libraries, error messages, help."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from zerokara.core import config as config_module
from zerokara.core.command_line import format_arguments, named_fields, parse
from zerokara.core.config import Range, UserError, field_help


@dataclass(frozen=True, kw_only=True)
class Config:
    """Config of the tests."""

    RENAMED: ClassVar[dict[str, Any]] = {
        "envs": "num_envs",
        "hidden_sizes": "hidden",
        "twice": "double",
        "two_streams": "dueling",
    }
    RENAMED_VALUES: ClassVar = {"device": {"gpu": "cuda"}, "preset": {"dqn2015": "nature"}}
    FOREIGN_NAMES: ClassVar = {"lr": "learning_rate", "track": "is not an option here: use TensorBoard."}
    REQUIRES: ClassVar = {"eval_steps": (lambda config: config.device == "cpu", "--device cpu")}
    GROUPS: ClassVar = {
        "network": ("hidden", "double", "dueling"),
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
    """Learning rate of Adam."""
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
    dueling: bool | None = None
    """Two streams of the head; None: as the environment needs."""
    offset: float = 0.0
    """Any number."""


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "nature": {"num_envs": 1, "double": False, "learning_rate": 2.5e-4, "hidden": (256, 128)},
}


@pytest.fixture(autouse=True)
def _clear_printed_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which notes were printed: each one is printed only once per process."""
    monkeypatch.setattr(config_module, "_printed", set())


def parse_args(*argv: str) -> Config:
    return parse(Config, PRESETS, argv, "Deep Q-learning.")


def parse_error(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        parse_args(*argv)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert not set(message) & set("╭│╰")
    return message


def test_defaults_then_preset_then_flags() -> None:
    assert parse_args() == Config()
    assert parse_args("--preset", "nature") == Config(
        preset="nature", num_envs=1, double=False, learning_rate=2.5e-4, hidden=(256, 128)
    )
    # The preset is applied first, independent of the position of --preset.
    assert parse_args("--num-envs", "3", "--double", "--preset=nature").num_envs == 3
    assert parse_args("--num-envs", "3", "--double", "--preset=nature").double is True


def test_layers_override_the_preset_but_not_the_flags() -> None:
    layers = {"device": {"cpu": {"num_envs": 2, "hidden": (7,)}}}

    def parse_with_layers(*argv: str, saved: Config | None = None) -> Config:
        return parse(Config, PRESETS, argv, "", saved, layers=layers)

    config = parse_with_layers("--preset", "nature", "--device", "cpu")
    assert (config.num_envs, config.hidden, config.double) == (2, (7,), False)
    assert parse_with_layers("--num-envs", "3", "--device=cpu").num_envs == 3
    assert parse_with_layers("--preset", "nature") == parse_args("--preset", "nature")  # no layer without the flag
    assert parse_with_layers("--device", "cuda").num_envs == 8
    assert (
        parse_with_layers("--device", "cpu", saved=Config(num_envs=5)).num_envs == 5
    )  # a resumed run keeps its config
    names: set[str] = set()

    def adjust(config: Config, given: Collection[str]) -> Config:
        names.update(given)
        return config

    parse(Config, PRESETS, ["--envs", "3", "--device=cpu"], "", layers=layers, adjust=adjust)
    assert names == {"num_envs", "device", "hidden"}


def test_all_field_types() -> None:
    argv = "--num_envs 16 --learning-rate=1e-3 --no-double --device cpu --name x --hidden 4 5 6 --eval-steps 100"
    assert parse_args(*argv.split()) == Config(
        num_envs=16, learning_rate=1e-3, double=False, device="cpu", name="x", hidden=(4, 5, 6), eval_steps=100
    )
    offsets = [parse_args(*argv.split()).offset for argv in ("--offset -1e-3", "--offset=-2", "--offset -.5")]
    assert offsets == [-1e-3, -2, -0.5]
    with pytest.raises(UserError, match=r"--hidden cannot be \(-1, 2, -3\): it must be several"):
        parse_args("--hidden", "-1", "2", "-3")
    assert type(parse_args("--learning-rate", "1")) is Config
    assert isinstance(parse_args("--learning-rate", "1").learning_rate, float)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", None),
        ("--dueling", True),
        ("--no-dueling", False),
        ("--dueling true", True),
        ("--dueling=False", False),
        ("--no-dueling --dueling None", None),
        ("--dueling --double", True),
        ("--no-two-streams", False),
    ],
)
def test_switch_that_may_be_none(argv: str, expected: bool | None) -> None:
    assert parse_args(*argv.split()) == Config(dueling=expected)


@pytest.mark.parametrize(
    ("argv", "parts"),
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
        ("--offset -1,5", ["--offset cannot be '-1,5': it must be a number"]),
        ("--offset -x", ["--offset needs a value: a number"]),
        ("stray", ["'stray'"]),
        ("--preset nature stray", ["'stray'"]),
        ("--double true", ["'true'", "--no-flag"]),
        ("--double=true", ["--double takes no value: write --double or --no-double."]),
        ("--dueling maybe", ["--dueling cannot be 'maybe': it must be True or False or None."]),
        ("--no-dueling true", ["'true'", "--no-flag"]),
        ("--no-dueling=true", ["--no-dueling takes no value: write --dueling or --no-dueling."]),
        ("--twice=true", ["--twice takes no value: write --double or --no-double."]),
        # of several mistakes: the preset, then values in the order of the command line, then unknown words
        ("--xyzzy --num-envs x --preset natur", ["'natur'"]),
        ("--xyzzy --offset x stray --num-envs x", ["--offset cannot be 'x': it"]),
        ("--num-envs x --num-envs 3", ["--num-envs cannot be 'x': it"]),
        ("--num-envs 0 --xyzzy", ["no flag --xyzzy;"]),
    ],
)
def test_error_messages(argv: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = parse_error(*argv.split())
    for part in parts:
        assert part in message
    assert capsys.readouterr() == ("", "")  # printed by run_main


def test_presets_are_validated() -> None:
    with pytest.raises(UserError, match="--num-envs cannot be 0"):
        parse(Config, {"fast": {"num_envs": 0}}, [], "")


def help_text(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        parse_args(*argv)
    assert not exit_.value.code
    return capsys.readouterr().out


def test_help_lists_common_options_first_and_each_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys, "--help", "--preset", "nature")
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["most used:", "network:", "run:", "options:", "presets (the defaults above are those of nature):"]
    assert text.index("most used:") < text.index("--num-envs") < text.index("--name") < text.index("network:")
    for name in field_help(Config):
        assert text.count(f"--[no-]{name} " if name in ("double", "dueling") else f"--{name.replace('_', '-')} ") == 1
    assert (
        "Environments stepped together (default: 1)" in text
    )  # the first sentence of the help, and the default of the preset
    assert "  nature          Mnih et al. 2015" in text
    assert "0.00025 --hidden" not in text
    assert "Deep Q-learning." in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_is_printed_in_spite_of_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    nature = help_text(capsys, "--help", "--preset", "nature")
    assert help_text(capsys, "--xyzzy", "--num-envs", "x", "--help", "--preset", "nature") == nature


def test_help_all_prints_the_full_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = " ".join(help_text(capsys, "--help-all").split())
    for help_ in field_help(Config).values():
        assert help_ in text
    assert "They share one process. At least 1. (default: 8)" in text
    assert "= --num-envs 1 --no-double --learning-rate 0.00025 --hidden 256 128" in text


def test_help_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, help_text(capsys, "--help").splitlines())) <= 80


def test_old_names_are_accepted_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    old = "--envs 3 --hidden-sizes=4 --no-twice --device gpu --envs 5"
    assert parse_args(*old.split()) == Config(num_envs=5, hidden=(4,), double=False, device="cuda")
    parse_args("--envs", "3")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "note: the value 'gpu' of --device is called 'cuda' now.",
        "note: --envs is called --num-envs now.",
        "note: --hidden-sizes is called --hidden now.",
        "note: --twice is called --double now.",
    ]
    config_module._printed.clear()
    assert parse_args("--device=gpu").device == "cuda"
    assert capsys.readouterr().err == "note: the value 'gpu' of --device is called 'cuda' now.\n"
    assert parse_args("--preset", "dqn2015", "--envs", "3") == parse_args("--preset", "nature", "--num-envs", "3")
    assert "note: the value 'dqn2015' of --preset is called 'nature' now.\n" in capsys.readouterr().err


def test_an_old_name_may_depend_on_another_setting() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Renamed(Config):
        RENAMED: ClassVar = {
            "steps": lambda settings: "eval_steps" if settings.get("device") == "cpu" else "num_envs",
        }
        RENAMED_VALUES: ClassVar = {"device": {"processor": "cpu"}, "preset": {"dqn2015": "nature"}}

    presets = {"fast": {}, "nature": {"device": "cpu"}}
    assert parse(Renamed, presets, ["--steps", "3"], "").num_envs == 3
    assert parse(Renamed, presets, ["--steps", "3", "--device=cpu"], "").eval_steps == 3
    assert parse(Renamed, presets, ["--steps", "3", "--device=processor"], "").eval_steps == 3
    for preset in ("nature", "dqn2015"):
        assert parse(Renamed, presets, ["--steps", "3", "--preset", preset], "").eval_steps == 3
    assert parse(Renamed, presets, ["--steps", "3", "--preset", "nature", "--device", "cuda"], "").num_envs == 3
    assert parse(Renamed, presets, ["--steps", "3"], "", saved=Renamed(device="cpu")).eval_steps == 3


def test_flag_without_effect_is_an_error_unless_it_is_the_default() -> None:
    assert parse_args("--eval-steps", "9", "--device", "cpu").eval_steps == 9
    assert parse_args("--eval-steps", "None").eval_steps is None
    assert "has no effect" in parse_error("--eval-steps", "9", "--device", "cuda")


def test_effects_are_not_judged_before_the_settings_of_a_resumed_run_are_known() -> None:
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


def test_fields_as_a_command_line_give_the_same_config() -> None:
    values = {"envs": 3, "double": False, "name": "true", "hidden": (7, 9), "eval_steps": None, "offset": -1e-3}
    for more in ({"dueling": None}, {"dueling": True}, {"dueling": "false"}):
        words = format_arguments(Config, {**values, **more})
        config = parse(Config, {"fast": {}}, words, "")
        assert (config.num_envs, config.double, config.hidden, config.eval_steps, config.offset) == (
            3,
            False,
            (7, 9),
            None,
            -1e-3,
        )
        assert config.dueling is {"None": None, "True": True, "false": False}[str(more["dueling"])]
        assert named_fields(Config, words, {}) == {"num_envs", *(values.keys() - {"envs"}), "dueling"}
    assert named_fields(Config, ["--no-two_streams", "--gone=3", "cuda", "-1"], {}) == {"dueling", "gone"}


def test_help_of_inherited_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Subclass(Config):
        atoms: int = 51
        """Atoms of the distribution."""

    assert field_help(Subclass) == {**field_help(Config), "atoms": "Atoms of the distribution."}
    assert parse(Subclass, {"fast": {}}, ["--atoms", "3"], "") == Subclass(atoms=3)


def test_saved_config_replaces_the_preset() -> None:
    saved = Config(preset="nature", num_envs=5)
    assert parse(Config, PRESETS, ["--learning-rate", "0.5"], "", saved=saved) == dataclasses.replace(
        saved, learning_rate=0.5
    )
    assert parse(Config, PRESETS, ["--preset", "nature"], "", saved=saved) == saved
    with pytest.raises(UserError, match="A resumed run keeps its preset"):
        parse(Config, PRESETS, ["--preset", "fast"], "", saved=saved)
