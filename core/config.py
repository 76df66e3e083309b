"""Settings as a frozen dataclass: checked, saved in config.json, and read back from runs of older versions.

    @dataclass(frozen=True, kw_only=True)
    class Config:
        preset: str = "fast"
        \"""Named set of defaults.\"""
        num_envs: Annotated[int, Range(1)] = 32
        \"""Environments stepped together.\"""

The same object is the command line (core/command_line.py), the "config" of config.json and TensorBoard's hparams.

A saved config carries the version of its format. A config class describes what changed since older versions in class
attributes, all optional:

    RENAMED          old name of a field -> new name, or a function that takes the saved settings and returns the name
    RENAMED_VALUES   name of a field -> old value -> new value
    REMOVED          name of a field that no longer exists -> reason, in a few words
    VALUES_BEFORE    name of an added field -> the value that reproduces what older versions did; otherwise its default

A user error raises `UserError` with one sentence: what was wrong, what was expected, what to type.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import errno
import inspect
import itertools
import math
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

ConfigT = TypeVar("ConfigT")

CONFIG_VERSION = 2
"""Version of saved settings. Version 1, which has no number in its files, is that of zerokara 0.1."""
_VERSION_KEY = "config_version"

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over the quota, over the process's file size limit

EXIT_STOPPED = 75
"""Exit code of a run that has ended early and that can be resumed: EX_TEMPFAIL of sysexits.h, "try again"."""

_printed: set[str] = set()


MAX_MESSAGE = 1_000
"""Characters of a message. A longer one quotes a name or an error from a damaged file."""


class UserError(Exception):
    """User error with a message of one sentence: what was wrong, what was expected, what to type."""

    def __init__(self, message: str) -> None:
        super().__init__(abbreviate(message))


class ProcessLost(Exception):
    """Another process of the same run has ended or does not answer. The run can be resumed."""


class Stopped(BaseException):
    """A signal stopped the run, which can be resumed. No `Exception`, so that no handler of errors takes it for one."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a number, as in `Annotated[float, Range(0, 1)]`; of a tuple, those of every element.

    Both ends are included, except `low` with `low_open`. NaN and infinity are never inside.
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
        """Return the range as text for messages: "at least 1", "above 0 and at most 1"."""
        low = None if self.low is None else f"{'above' if self.low_open else 'at least'} {self.low:g}"
        high = None if self.high is None else f"at most {self.high:g}"
        return " and ".join(part for part in (low, high) if part) or "finite"


@dataclass(frozen=True)
class NamesOrPath:
    """Allowed values of a text: some names, or the import path of a class or function of one's own (core/importing.py).

    As in `Annotated[str, NamesOrPath(("nature", "impala"))]`.
    """

    names: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.names or is_import_path(value)

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}, or an import path such as my_file.py:MyClass"


@dataclass(frozen=True)
class Positional:
    """Marks a text field that is given without a flag, as in `Annotated[tuple[str, ...], Positional("run")]`.

    `word` is the placeholder in `--help`. Such a field needs an empty default; the program reports what is missing.
    """

    word: str


def is_import_path(name: str) -> bool:
    """Return True for `file.py:Name` and `module:Name`; names of our own have no colon."""
    return ":" in name


def flag(name: str) -> str:
    """Command-line flag of a field: num_envs -> --num-envs."""
    return "--" + name.replace("_", "-")


def negated_flag(name: str) -> str:
    """Command-line flag that sets a switch to False: double -> --no-double."""
    return "--no-" + flag(name)[2:]


def suggest(word: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Return " (did you mean X?)" with the most similar known word, formatted by `spell`; empty if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {spell(near[0])}?)" if near else ""


def note(line: str) -> None:
    """Print a line on stderr, separate from the program's output. The same line is printed only once."""
    if line not in _printed:
        _printed.add(line)
        print_on_stderr(f"note: {line}")


def print_on_stderr(line: str) -> None:
    """Print a line on stderr in one write, so that lines of several processes of a run do not mix.

    `print` writes the end of the line by itself where Python's output is unbuffered.
    """
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


# ---- fields and their types


_field_types: dict[type[Any], Mapping[str, Any]] = {}  # of classes that were asked for; evaluating them takes a while


def field_types(config_class: type[Any]) -> Mapping[str, Any]:
    """Return the type annotations of the fields, with their `Range` and `Positional` marks."""
    if config_class not in _field_types:
        hints = get_type_hints(config_class, include_extras=True)
        _field_types[config_class] = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}
    return _field_types[config_class]


def field_help(config_class: type[Any]) -> dict[str, str]:
    """Help text of every field that has one: the string literal that follows the field in the source."""
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


def split_annotation(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Bare type and marks of an annotation."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    hint, *marks = get_args(annotation)
    return hint, tuple(marks)


def describe_type(annotation: Any) -> str:
    """Return the allowed values of a field as text for messages: "a whole number, at least 1"."""
    hint, marks = split_annotation(annotation)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        words = "one of " + ", ".join(map(str, args))
    elif origin in (Union, types.UnionType):
        words = " or ".join(map(describe_type, args))
    elif origin is tuple:
        words = f"several of {describe_type(args[0])}"
    else:
        names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}
        words = "a mapping" if origin is Mapping else names.get(hint, str(hint))
    paths = [str(mark) for mark in marks if isinstance(mark, NamesOrPath)]
    return ", ".join([*(paths or [words]), *(str(mark) for mark in marks if isinstance(mark, Range))])


def is_switch(annotation: Any) -> bool:
    """Return True for bool and bool | None: fields that are set by --name and --no-name."""
    hint, _ = split_annotation(annotation)
    return hint is bool or (get_origin(hint) in (Union, types.UnionType) and bool in get_args(hint))


def validate(config: Any) -> None:
    """Check every field of a config against its type, `Literal` and `Range`.

    Raises:
        UserError: names the flag, the value and what is allowed.
    """
    for name, annotation in field_types(type(config)).items():
        value = getattr(config, name)
        hint, marks = split_annotation(annotation)
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if v is not None]
        allowed = [mark for mark in marks if isinstance(mark, Range | NamesOrPath)]
        if not fits(value, hint) or any(number not in mark for mark in allowed for number in numbers):
            raise UserError(f"{flag(name)} cannot be {value!r}: it must be {describe_type(annotation)}.")


def fits(value: Any, hint: Any) -> bool:
    """Return True if a value has the type `hint`; an int is accepted for a float, a bool is not a number.

    Of the content of mappings nothing is checked.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = args[:1] * len(value) if args[1:] == (...,) else args
        return len(value) == len(items) and all(fits(v, arg) for v, arg in zip(value, items, strict=True))
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, types.NoneType if hint is None else origin or hint)


# ---- saved configs


def to_dict(config: Any) -> dict[str, Any]:
    """Fields of a config as plain values for JSON (tuples become lists)."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_saved(config: Any) -> dict[str, Any]:
    """Return the content of "config" in config.json: the fields and the version of the format."""
    return {_VERSION_KEY: CONFIG_VERSION, **to_dict(config)}


def from_dict(config_class: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Read and validate a config saved by `to_saved`, in this version or an older one.

    Renamed fields are translated, added fields take the value that reproduces the older behavior, and each removed
    field is reported in one line.

    Args:
        values: "config" of a config.json.
        source: where the values were read, for messages.

    Raises:
        UserError: the format is newer, a field is unknown, or a value does not fit its field.
    """
    version = values.get(_VERSION_KEY, 1)
    if not isinstance(version, int) or version > CONFIG_VERSION:
        raise UserError(
            f"{source} was written by a newer version of zerokara (its settings have version {version}, this one reads "
            f"up to {CONFIG_VERSION}): update zerokara, or start a new run under another --name."
        )
    removed = class_mapping(config_class, "REMOVED")
    renamed_values = class_mapping(config_class, "RENAMED_VALUES")
    known = field_types(config_class)
    values = {name: _renamed_value(value, renamed_values.get(name, {})) for name, value in values.items()}
    settings = dict(class_mapping(config_class, "VALUES_BEFORE"))
    for saved_name, saved in values.items():
        name = rename(config_class, saved_name, values)
        if name in known:
            settings[name] = _renamed_value(saved, renamed_values.get(name, {}))
        elif name in removed:
            note(f"{source}: the setting {name!r} no longer exists ({removed[name]}) and is ignored.")
        elif name != _VERSION_KEY:
            raise UserError(
                f"{source} has a setting {name!r} that this version of zerokara does not know{suggest(name, known)}: "
                f"use the version that wrote it, or start a new run under another --name."
            )
    config = config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{source} does not fit: {error}") from None
    return config


def rename(config_class: type[Any], name: str, settings: Mapping[str, Any]) -> str:
    """Today's name of a field.

    Args:
        name: a name of today or of an older version.
        settings: values of the other fields, by which some old names are translated.
    """
    new = class_mapping(config_class, "RENAMED").get(name, name)
    return str(new(settings) if callable(new) else new)


def class_mapping(config_class: type[Any], attribute: str) -> dict[str, Any]:
    """Return a mapping from a class attribute, merged with those of the base classes."""
    return {
        key: value for owner in reversed(config_class.__mro__) for key, value in vars(owner).get(attribute, {}).items()
    }


def _renamed_value(value: Any, renamed: Mapping[Any, Any]) -> Any:
    if isinstance(value, list):
        return [_renamed_value(item, renamed) for item in value]
    return renamed.get(value, value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


# ---- the end of a program


def run_main(main: Callable[[], object]) -> None:
    """Run a program's `main`: a `UserError` or a full disk prints one line on stderr, exit code 2; Ctrl-C exits 130.

    A run that a signal stopped, or that lost one of its processes, can be resumed: it exits with `EXIT_STOPPED`.
    """
    try:
        main()
    except UserError as error:
        print_on_stderr(f"error: {error}")
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            from zerokara.core.rendezvous import report_failure

            report_failure()
        sys.exit(2)
    except ProcessLost as error:
        _leave(f"error: {error}", EXIT_STOPPED)
    except Stopped:
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:  # `... | head` is not an error; without stdout the interpreter would print another message
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        message = disk_full_message(error)
        if message is None:
            raise
        _leave(f"error: {message}", 2)


def disk_full_message(error: OSError) -> str | None:
    """Return the message for an exception that says that the disk is full; None for another one."""
    if error.errno not in DISK_FULL:
        return None
    where = f" for {error.filename}" if error.filename else ""
    return f"The disk is full{where}: free some space and type the same command again."


def format_count(number: int, singular: str, plural: str = "") -> str:
    """Format a number of things: "1 image", "1,234 images". The default plural is the singular with -s or -es."""
    ending = "es" if singular.endswith(("s", "x")) else "s"
    return f"{number:,} {singular if number == 1 else plural or singular + ending}"


def abbreviate(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a text with at most `limit` characters; of a longer one, the middle is left out."""
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def error_summary(error: Exception) -> str:
    """Return a short description of an exception for a message: "the disk is full", or its first line."""
    if isinstance(error, OSError) and error.strerror:
        return "the disk is full" if error.errno in DISK_FULL else error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _leave(message: str, code: int) -> None:
    print_on_stderr(message)
    sys.exit(code)
