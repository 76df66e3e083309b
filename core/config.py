"""A frozen dataclass is the command line, the saved config.json and TensorBoard's hparams.

    @dataclass(frozen=True, kw_only=True)
    class Config:
        preset: str = "fast"
        \"""Named set of defaults.\"""
        num_envs: Annotated[int, Range(1)] = 32
        \"""Environments stepped together.\"""

    PRESETS = {"fast": {}, "nature": {"num_envs": 1}}
    config = parse(Config, PRESETS, argv=None, description="Deep Q-learning from pixels.")

Whatever a person can get wrong raises `UserError` with one sentence: what was wrong, what was expected, what to type.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import errno
import inspect
import io
import itertools
import math
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from zerokara.core.programs import program

ConfigT = TypeVar("ConfigT")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over the quota, over the process's file size limit


class UserError(Exception):
    """A person's mistake in one sentence: what was wrong, what was expected, what to type."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a number, as in `Annotated[float, Range(0, 1)]`; of a tuple, those of every element.

    Both ends belong to it, but for `low` where `low_open` is set. NaN and infinity are never inside.
    """

    low: float | None = None
    high: float | None = None
    low_open: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        """In words: "at least 1", "above 0 and at most 1"."""
        low = None if self.low is None else f"{'above' if self.low_open else 'at least'} {self.low:g}"
        high = None if self.high is None else f"at most {self.high:g}"
        return " and ".join(part for part in (low, high) if part) or "finite"


@dataclass(frozen=True)
class Positional:
    """Marks a field of texts that stand without a flag, as in `Annotated[tuple[str, ...], Positional("run")]`.

    `word` is what `--help` calls one of them. Such a field needs an empty default; the entry says what is missing.
    """

    word: str


def flag(name: str) -> str:
    """The command-line flag of a field: num_envs -> --num-envs."""
    return "--" + name.replace("_", "-")


def suggest(word: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """The words " (did you mean X?)" with the nearest known word, spelt by `spell`; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {spell(near[0])}?)" if near else ""


def parse(
    config_class: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    description: str,
    saved: ConfigT | None = None,
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType({}),
) -> ConfigT:
    """The config that a command line asks for: class defaults, then the preset's overrides, then the flags.

    Args:
        config_class: frozen dataclass, keywords only, with a field `preset: str`; the string literal after a field is
            its help, numbers may carry a `Range`, texts may be `Positional`.
        presets: overrides by name. The field's default names the preset in force without `--preset`. Where there are
            no presets, there need not be such a field.
        argv: words after the program's name; None takes the process's own.
        description: what the program does, for `--help`, which prints and raises SystemExit(0).
        saved: the config of a run that is resumed; it stands in the place of class and preset, and flags change it.
        layers: further overrides, by the field that names a set of them and by its value: where its flag is typed, they
            lie over the preset and under the other flags.

    Raises:
        UserError: unknown flag or preset, wrong type, missing value, value out of range; another preset than that
            of `saved`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = _preset_asked_for(saved or config_class, words)
    if presets and name not in presets:
        raise UserError(
            f"There is no preset {name!r}{suggest(name, presets)}; choose one with --preset {{{','.join(presets)}}}."
        )
    preset = {**presets[name], "preset": name} if presets else {}
    default = saved or config_class(**(preset | _typed_layers(layers, words)))
    validate(default)
    if saved is not None and name != _preset_asked_for(saved, ()):
        raise UserError(
            f"A run cannot change its preset: leave --preset {name} out, or start afresh with another --name."
        )

    config, unknown = _parse_with_tyro(config_class, default, words, _describe(description, presets, name), presets)
    if unknown:
        raise UserError(_complaint(unknown[0], [field.name for field in _fields(config_class)]))
    validate(config)
    return config


def validate(config: Any) -> None:
    """Check every field of a config against its type, `Literal` and `Range`.

    Raises:
        UserError: naming the flag, the value and what is allowed.
    """
    hints = _hints(type(config))
    for field in _fields(type(config)):
        value = getattr(config, field.name)
        hint, range_ = _split(hints[field.name])
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if v is not None]
        if not _fits(value, hint) or (range_ is not None and any(number not in range_ for number in numbers)):
            raise UserError(f"{flag(field.name)} cannot be {value!r}: it must be {_in_words(hint, range_)}.")


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a config as plain values that JSON keeps (tuples become lists)."""
    return {field.name: _plain(getattr(config, field.name)) for field in _fields(type(config))}


def from_dict(config_class: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """The config that `to_dict` gave, checked. `source` names where it was read, for the message.

    Raises:
        UserError: unknown or missing keys (another version wrote it), or values that do not fit.
    """
    hints = _hints(config_class)
    renamed = renamed_fields(config_class)
    values = {renamed.get(key, key): value for key, value in values.items()}
    unknown = sorted(set(values) - set(hints))
    missing = sorted(set(hints) - set(values))
    if unknown or missing:
        found = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise UserError(
            f"{source} was written by another version of zerokara ({'; '.join(found)}): "
            f"go on with the version that wrote it, or start a fresh run under another --name."
        )
    config = config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{source} does not fit: {error}") from None
    return config


def run_main(main: Callable[[], None]) -> None:
    """Run a program's `main`: a `UserError` or a full disk is one line on stderr and exit code 2, Ctrl-C is 130."""
    try:
        main()
    except UserError as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:  # `... | head` is no mistake; without a stdout the interpreter would complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f" for {error.filename}" if error.filename else ""
        _leave(f"error: The disk is full{where}: free some space and type the same command again.", 2)


def error_summary(error: Exception) -> str:
    """An exception in a few words for a sentence: "the disk is full", or its first line."""
    if isinstance(error, OSError) and error.strerror:
        return "the disk is full" if error.errno in DISK_FULL else error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def _fields(config_class: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(config_class)


def renamed_fields(config_class: type[Any]) -> dict[str, str]:
    """Old name -> new name of fields: the attributes RENAMED of a config class and of the classes it derives from."""
    return {old: new for owner in reversed(config_class.__mro__) for old, new in vars(owner).get("RENAMED", {}).items()}


def _hints(config_class: type[Any]) -> dict[str, Any]:
    """Type annotations of the fields, with their `Range` and `Positional` marks."""
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: hints[field.name] for field in _fields(config_class)}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _preset_asked_for(config: Any, words: Sequence[str]) -> str:
    """The last --preset on the command line, or that of the config (of a class: its default)."""
    return _value_of("--preset", words).split(" ")[0] or str(getattr(config, "preset", ""))


def _typed_layers(layers: Mapping[str, Mapping[str, Mapping[str, Any]]], words: Sequence[str]) -> dict[str, Any]:
    """The overrides of those layers that the command line names; of what it misspells tyro complains."""
    asked = {field: _value_of(flag(field), words).split(" ")[0] for field in layers}
    overrides = (layers[field][name] for field, name in asked.items() if name in layers[field])
    return {key: value for changes in overrides for key, value in changes.items()}


def _describe(description: str, presets: Mapping[str, Mapping[str, Any]], chosen: str) -> str:
    """The description, and a line for each preset with what it changes."""
    if not presets:
        return description.strip()
    lines = [description.strip(), "", f"Presets (the defaults below are those of {chosen}):"]
    for name, overrides in presets.items():
        changes = " ".join(_as_flag(key, value) for key, value in overrides.items())
        lines.append(f"  {name}: {changes or 'the defaults as they stand in the code'}")
    return "\n".join(lines)


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else "--no-" + flag(name)[2:]
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _complaint(word: str, names: Sequence[str]) -> str:
    """One sentence on a word that nobody knows."""
    if not word.startswith("-"):
        return f"{word!r} stands alone on the command line; values go as --flag value, switches as --flag or --no-flag."
    asked = word.split("=")[0].removeprefix("--no-").lstrip("-")
    near = suggest(asked.replace("-", "_"), names, flag)
    return f"There is no flag {word.split('=')[0]}{near}; --help lists them all."


def _parse_with_tyro(
    config_class: type[ConfigT], default: ConfigT, words: Sequence[str], description: str, presets: Iterable[str]
) -> tuple[ConfigT, list[str]]:
    """Let tyro read the words; its boxed complaint becomes one sentence."""
    import tyro  # costs a fifth of a second, and only entries need it

    # tyro knows nothing of Range, so it is shown a class of the same fields whose help ends with the range.
    helps = field_help(config_class)
    fields: list[tuple[str, Any, Any]] = []
    for name, annotation in _hints(config_class).items():
        bare, range_ = _split(annotation)
        allowed = "" if range_ is None else f" {str(range_).capitalize()}."
        choices: Any = Literal[tuple(presets)] if name == "preset" and presets else bare
        shown: Any = Annotated[choices, tyro.conf.arg(help=helps.get(name, "") + allowed)]
        for mark in get_args(annotation)[1:] if get_origin(annotation) is Annotated else ():
            if isinstance(mark, Positional):
                told = tyro.conf.arg(help=helps.get(name), metavar=mark.word, help_behavior_hint="")
                annotated: Any = Annotated  # built at run time, which type checkers do not follow
                positional: Any = tyro.conf.Positional
                shown = positional[annotated[bare, told]]
        fields.append((name, shown, dataclasses.field(default=getattr(default, name))))
    cli_class: Any = dataclasses.make_dataclass(config_class.__name__, fields, kw_only=True)

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                cli_class, prog=program(), args=words, description=description, return_unknown_args=True
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise  # --help
        raise UserError(_sentence(complaint.getvalue(), config_class, words)) from None
    return config_class(**{name: getattr(parsed, name) for name, _, _ in fields}), unknown


def field_help(config_class: type[Any]) -> dict[str, str]:
    """The attribute docstring of every field that has one: the string literal that follows it in the source."""
    helps: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for line, following in itertools.pairwise(definition.body):
            match line, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    helps[name] = " ".join(text.split())
    return helps


def _sentence(complaint: str, config_class: type[Any], words: Sequence[str]) -> str:
    """Tyro's box as one sentence of ours: which flag, what it was given, what it takes."""
    lines = (line.strip("│ ") for line in complaint.splitlines() if line[:1] not in "╭╰")
    text = " ".join(itertools.takewhile(lambda line: not line.startswith("─"), lines))
    hints = _hints(config_class)
    named = re.search(r"--[a-z0-9][a-z0-9-]*", text)
    name = named[0].removeprefix("--").replace("-", "_") if named else ""
    if named is None or name not in hints:
        return f"{text.rstrip('.') or 'The command line could not be read'}; see --help."
    given = _value_of(named[0], words)
    wrong = f"cannot be {given!r}: it must be" if given else "needs a value:"
    return f"{named[0]} {wrong} {_in_words(*_split(hints[name]))}."


def _value_of(flag_: str, words: Sequence[str]) -> str:
    """What followed the flag the last time it was given, or nothing."""
    given: list[str] = []
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag_:
            rest = itertools.takewhile(lambda following: not following.startswith("--"), words[index + 1 :])
            given = [value] if equals else list(rest)
    return " ".join(given)


def _split(annotation: Any) -> tuple[Any, Range | None]:
    """The bare type and the Range of an annotation."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    hint, *marks = get_args(annotation)
    return hint, next((mark for mark in marks if isinstance(mark, Range)), None)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type `hint`; a whole number is good for a float, True is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = args[:1] * len(value) if args[1:] == (...,) else args
        return len(value) == len(items) and all(_fits(v, arg) for v, arg in zip(value, items, strict=True))
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, types.NoneType if hint is None else hint)


def _in_words(hint: Any, range_: Range | None) -> str:
    """What a field takes: "a whole number, at least 1"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        words = "one of " + ", ".join(map(str, args))
    elif origin in (Union, types.UnionType):
        words = " or ".join(_in_words(arg, None) for arg in args)
    elif origin is tuple:
        words = f"several of {_in_words(args[0], None)}"
    else:
        names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}
        words = names.get(hint, str(hint))
    return words if range_ is None else f"{words}, {range_}"
