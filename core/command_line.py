"""The command line of a config dataclass: flags, presets, help, and answers to mistakes.

    config = parse(Config, PRESETS, argv=None, description="Deep Q-learning from pixels.")

Flags are read by argparse. Besides its fields, a config class may have these class attributes, all optional:

    RENAMED, RENAMED_VALUES  old names (core/config.py); an old flag is accepted, with one line that names the new one
    FOREIGN_NAMES            name of a setting in another library -> the field, or the text that completes the message
    REQUIRES                 name of a field -> (condition on the config, settings that fulfill it): otherwise the field
                             has no effect, and its flag is refused
    GROUPS, COMMON, PRESET_SUMMARIES   order and texts of --help (core/help_text.py)
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from zerokara.core.config import (
    Positional,
    UserError,
    class_mapping,
    describe_type,
    field_types,
    flag,
    is_switch,
    negated_flag,
    note,
    rename,
    run_main,
    split_annotation,
    suggest,
    validate,
)
from zerokara.core.help_text import help_text
from zerokara.core.programs import program, short_names

ConfigT = TypeVar("ConfigT", bound=Any)
Requirement = tuple[Callable[[Any], bool], str]
"""Condition on a config under which a field has an effect, and the settings that fulfill it."""

Given = list[tuple[str, list[str]]]
"""Names of fields and the words that were typed as their values, in the order of the command line."""

Layers = Mapping[str, Mapping[str, Mapping[str, Any]]]


def parse(
    config_class: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    description: str,
    saved: ConfigT | None = None,
    layers: Layers = MappingProxyType({}),
    *,
    without_effect: bool = False,
    adjust: Callable[[ConfigT, Collection[str]], ConfigT] | None = None,
) -> ConfigT:
    """Make the config that a command line describes: class defaults, then the preset's values, then the flags.

    Args:
        config_class: frozen dataclass with keyword-only fields; the string literal after a field is its help text,
            numbers may carry a `Range`, texts may be `Positional`.
        presets: values by preset name. The default of the field `preset` names the preset that applies without
            `--preset`. Without presets the class needs no such field.
        argv: words after the program's name; None: those of the process.
        description: what the program does; `--help` and `--help-all` print it and raise SystemExit(0).
        saved: config of a run that is resumed; it replaces class defaults and preset, and flags change it.
        layers: field -> its value -> values of other fields. They apply where the field's flag is given: over the
            preset, under the other flags.
        without_effect: accept flags that have no effect.
        adjust: changes the config of a new run where other settings require it. It gets the config, and the names of
            the fields that flags or layers set and that it must keep.

    Raises:
        UserError: unknown flag or preset, wrong type, missing value, value out of range, a flag without effect, or a
            preset other than that of `saved`.
    """
    words = _normalized(list(sys.argv[1:] if argv is None else argv))
    given, mistake = _split(config_class, words)
    given = _with_new_values(config_class, given)
    preset = " ".join(dict(given).get("preset", ())) or str(getattr(saved or config_class, "preset", ""))
    start = {**presets.get(preset, {}), "preset": preset} if presets else {}
    given = _with_new_names(config_class, given, saved or config_class(**start))
    if presets and preset not in presets:
        raise UserError(
            f"There is no preset {preset!r}{suggest(preset, presets)}; choose one with "
            f"--preset {{{','.join(presets)}}}."
        )
    layer_values: dict[str, Any] = {}
    for field, by_value in layers.items():
        layer_values |= by_value.get(" ".join(dict(given).get(field, ())), {})
    default: ConfigT = saved or config_class(**start | layer_values)
    validate(default)
    help_word = next((word for word in words if word in ("-h", "--help", "--help-all")), None)
    if help_word is not None:
        everything = help_word == "--help-all"
        print(help_text(config_class, default, presets, description, everything=everything))
        raise SystemExit(0)
    if saved is not None and preset != str(getattr(saved, "preset", "")):
        raise UserError(
            f"A resumed run keeps its preset: leave out --preset {preset}, or start a new run with another --name."
        )
    values = {name: _value(config_class, name, typed) for name, typed in given}
    if mistake:
        raise UserError(mistake)
    config: ConfigT = replace(default, **values)
    validate(config)
    if adjust is not None and saved is None:
        config = adjust(config, {*values, *layer_values})
        validate(config)
    resumes = saved is None and getattr(config, "resume", False)  # the other settings are those of the run
    if not without_effect and not resumes:
        _refuse_without_effect(config, default, values)
    return config


def check_command_line(read: Callable[[Sequence[str] | None, str], object], description: str | None) -> None:
    """Read the command line of this process before a program imports PyTorch and its other large libraries.

    Their imports take seconds; `--help` and mistakes are answered without them, and end the process. A line is printed,
    so that the start is seen at once: by a training program on stdout, without --quiet; by others on stderr if it is a
    terminal, because their stdout may hold JSON. A program calls this function above its imports, and reads the command
    line again in `main`:

        if __name__ == "__main__":
            check_command_line(read_config, __doc__)

    Args:
        read: returns the config, given the words after the program's name (None: those of the process) and what the
            program does.
        description: docstring of the program.
    """

    def check() -> None:
        config = read(None, description or "")
        is_first_process = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
        is_training = hasattr(config, "resume")
        if is_first_process and not getattr(config, "quiet", False) and (is_training or sys.stderr.isatty()):
            print(f"{program()}: loading PyTorch", file=sys.stdout if is_training else sys.stderr, flush=True)

    run_main(check)


def given_fields(config_class: type[Any], argv: Sequence[str] | None, saved: Any) -> frozenset[str]:
    """Return the names of the fields that a command line sets; arguments as for `parse`, which must accept them.

    They include fields that are set to the value they have without a flag.
    """
    words = _normalized(list(sys.argv[1:] if argv is None else argv))
    given, _ = _split(config_class, words)
    return frozenset(dict(_with_new_names(config_class, _with_new_values(config_class, given), saved)))


def parse_with_program(
    config_class: type[ConfigT], argv: Sequence[str] | None, description: str, programs: Collection[str]
) -> tuple[ConfigT, str, list[str]]:
    """Read a command line of three parts: a training program, options and, after --, the options of the program.

    Args:
        config_class: as for `parse`, without presets; has the positional field program.
        argv: as for `parse`.
        description: as for `parse`.
        programs: modules of the programs that may be given, also by their short names.

    Returns:
        The options, the module of the training program ("vision.classify"), and its arguments.

    Raises:
        UserError: an option is invalid, or the program is none of these.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    options = parse(config_class, {}, words[:split], description)
    names = {short: module for module, short in short_names().items() if module in programs}
    names |= {module: module for module in programs}
    if options.program not in names:
        given = (
            f"There is no training program {options.program!r} for it" if options.program else "No program was given"
        )
        raise UserError(f"{given}{suggest(options.program, names)}: give one of {', '.join(programs)}.")
    return options, names[options.program], words[split + 1 :]


def format_arguments(config_class: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Format fields of a config, by today's or older names, as a command line.

    A bool is set by --name or --no-name; None, the third value of a field of type bool | None, by --name None.
    """
    hints = field_types(config_class)
    arguments: list[str] = []
    for typed, value in values.items():
        field = rename(config_class, typed, values)
        texts = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        truth = texts[0].capitalize() if len(texts) == 1 and texts[0].lower() in {"true", "false"} else None
        if truth and is_switch(hints.get(field)):
            arguments.append(flag(field) if truth == "True" else negated_flag(field))
        else:
            arguments += [flag(field), *([truth] if truth else texts)]
    return arguments


def named_fields(config_class: type[Any], words: Iterable[str], settings: Mapping[str, Any]) -> set[str]:
    """Return the fields that the flags of a command line name, by today's names; the flags may be unknown today.

    Args:
        settings: as for `core.config.rename`.
    """
    flags = (word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--"))
    names = (name.removeprefix("--no-").removeprefix("--").replace("-", "_") for name in flags)
    return {rename(config_class, name, settings) for name in names}


# ---- from words to values


class _Append(argparse.Action):
    """Appends the name of a field and the words of its value to `given`, in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        words = self.const if self.nargs == 0 else [values] if isinstance(values, str) else values
        namespace.given.append((self.dest, words))


def _split(config_class: type[Any], words: list[str]) -> tuple[Given, str]:
    """Return the fields that the words set, and the message about the first word that sets none, or an empty one.

    argparse ends at a switch with a value (--double=1): the words after it are not read.
    """
    namespace = argparse.Namespace(given=[])
    try:
        _, unknown = _parser(config_class).parse_known_intermixed_args(words, namespace)
    except argparse.ArgumentError as error:
        option = str(error.argument_name)
        (name,) = named_fields(config_class, [option], {})
        return namespace.given, f"{option} takes no value: write {flag(name)} or {negated_flag(name)}."
    return namespace.given, _word_error(config_class, unknown[0]) if unknown else ""


def _parser(config_class: type[Any]) -> argparse.ArgumentParser:
    """Return a parser of the fields, by today's and older names. Values that are missing or wrong are no errors."""
    parser = argparse.ArgumentParser(
        prog=program(), add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    annotations = field_types(config_class)
    for name in {**annotations, **class_mapping(config_class, "RENAMED")}:
        annotation = annotations[rename(config_class, name, {})]
        hint, marks = split_annotation(annotation)
        positional = next((mark for mark in marks if isinstance(mark, Positional)), None)
        nargs = "*" if get_origin(hint) is tuple else "?"
        if positional is not None:
            parser.add_argument(name, action=_Append, nargs=nargs, metavar=positional.word)
        elif is_switch(annotation):  # bool | None: also --x true, --x false and --x None
            parser.add_argument(flag(name), dest=name, action=_Append, nargs=0 if hint is bool else "?", const=["True"])
            parser.add_argument(negated_flag(name), dest=name, action=_Append, nargs=0, const=["False"])
        else:
            parser.add_argument(flag(name), dest=name, action=_Append, nargs=nargs, const=[])
    return parser


def _value(config_class: type[Any], name: str, words: Sequence[str]) -> Any:
    """Convert the words of a value to the type of the field.

    Raises:
        UserError: the value is missing or has the wrong type.
    """
    annotation = field_types(config_class)[name]
    hint, _ = split_annotation(annotation)
    try:
        if get_origin(hint) is tuple:
            return tuple(_convert(get_args(hint)[0], word) for word in words)
        (word,) = words
        return _convert(hint, word)
    except ValueError:
        text = " ".join(words)
        wrong = f"cannot be {text!r}: it must be" if text else "needs a value:"
        raise UserError(f"{flag(name)} {wrong} {describe_type(annotation)}.") from None


def _convert(hint: Any, word: str) -> Any:
    """Convert a word to a value of type `hint`, or raise ValueError."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return _convert(option, word)
            except ValueError:
                continue
        raise ValueError(word)
    if origin is Literal:
        return next((value for value in get_args(hint) if str(value) == word), word)  # `validate` refuses others
    if hint is types.NoneType:
        if word != "None":
            raise ValueError(word)
        return None
    if hint is bool:
        if word not in ("True", "False", "true", "false"):
            raise ValueError(word)
        return word in ("True", "true")
    return hint(word)


def _normalized(words: list[str]) -> list[str]:
    """Words with `--num_envs` spelled `--num-envs`, and with a number like -1e-3 joined to its flag: `--x=-1e-3`."""
    result: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            result.append(name.replace("_", "-") + equals + value)
        elif _NEGATIVE_NUMBER.fullmatch(word) and result and result[-1].startswith("--") and "=" not in result[-1]:
            result[-1] += f"={word}"
        else:
            result.append(word)
    return result


# A word like -1e-3, which argparse takes for a flag; words like -2 and -.5 it takes for values.
_NEGATIVE_NUMBER = re.compile(r"(?i)-(?!\d+$|\d*\.\d+$)(\.?\d|inf|nan).*")


# ---- old names, names of other libraries, flags without effect


def _with_new_values(config_class: type[Any], given: Given) -> Given:
    """Replace old values of fields by the current ones. Each replacement prints one line on stderr."""
    renamed_values = class_mapping(config_class, "RENAMED_VALUES")
    result: Given = []
    for typed, words in given:
        name = rename(config_class, typed, {})
        new = renamed_values.get(name, {})
        for word in filter(new.__contains__, words):
            note(f"the value {word!r} of {flag(name)} is called {new[word]!r} now.")
        result.append((typed, [new.get(word, word) for word in words]))
    return result


def _with_new_names(config_class: type[Any], given: Given, base: Any) -> Given:
    """Replace old names of fields by the current ones. Each replacement prints one line on stderr."""
    settings = {**vars(base), **{name: " ".join(words) for name, words in given if words}}
    result: Given = []
    for old, words in given:
        name = rename(config_class, old, settings)
        if name != old:
            note(f"{flag(old)} is called {flag(name)} now.")
        result.append((name, words))
    return result


def _refuse_without_effect(config: Any, default: Any, given: Iterable[str]) -> None:
    """Refuse flags that change a setting which the other settings leave unused.

    Raises:
        UserError: naming the flag and the setting that it needs.
    """
    requires = class_mapping(type(config), "REQUIRES")
    for name in given:
        if name not in requires or getattr(config, name) == getattr(default, name):
            continue
        condition, needed = requires[name]
        if not condition(config):
            raise UserError(f"{flag(name)} has no effect without {needed}: add that, or leave {flag(name)} out.")


# ---- error messages


def _word_error(config_class: type[Any], word: str) -> str:
    """Return the error message for an unknown flag or an unexpected word."""
    if not word.startswith("-"):
        return f"{word!r} is neither a flag nor the value of one: write --flag value, or a switch --flag or --no-flag."
    typed = word.split("=")[0]
    typed_name = typed.removeprefix("--no-").lstrip("-").replace("-", "_")
    foreign = class_mapping(config_class, "FOREIGN_NAMES").get(typed_name.lower())
    names = list(field_types(config_class))
    if foreign is not None:
        return f"{typed} is {flag(foreign)} here." if foreign in names else f"{typed} {foreign}"
    if len(typed_name) == 1:
        return f"There is no flag {typed}; --help lists them all."
    renamed = {old: rename(config_class, old, {}) for old in class_mapping(config_class, "RENAMED")}
    known = {name: name for name in names} | renamed
    # Below this similarity a suggestion is a random word: --track is not --frame-stack.
    near = difflib.get_close_matches(typed_name, known, n=1, cutoff=0.75)
    hint = f" (did you mean {flag(known[near[0]])}?)" if near else ""
    return f"There is no flag {typed}{hint}; --help lists them all."
