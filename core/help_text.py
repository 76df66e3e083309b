"""Help texts of the command line: `--help` with one line per option, `--help-all` with everything.

A config class may say more about its options in class attributes:

    GROUPS             title of a group -> names of its fields, in the order of the help text
    COMMON             names of the fields that people change most; they come first
    PRESET_SUMMARIES   name of a preset -> one line
"""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from zerokara.core.config import (
    NamesOrPath,
    Positional,
    Range,
    class_mapping,
    field_help,
    field_types,
    flag,
    is_switch,
    negated_flag,
    split_annotation,
)
from zerokara.core.programs import program

LABEL_COLUMNS = 34  # the texts of options begin in this column
PRESET_COLUMNS = 18
MAX_COLUMNS = 120


def help_text(
    config_class: type[Any],
    default: Any,
    presets: Mapping[str, Mapping[str, Any]],
    description: str,
    *,
    everything: bool,
) -> str:
    """Return the text of `--help` or, with `everything`, of `--help-all`.

    Args:
        default: config whose values are shown as defaults.
        presets: values by preset name.
        description: module docstring of the program.
    """
    annotations, helps = field_types(config_class), field_help(config_class)
    words = [f" [{mark.word} ...]" for name in annotations for mark in _marks(annotations[name], Positional)]
    text = description.strip()
    lines = [f"usage: {program()}{''.join(words)} [options]", "", text if everything else _first_paragraphs(text)]
    for title, names in _groups(config_class, annotations).items():
        lines += ["", f"{title}:"]
        for name in names:
            lines += _field(default, presets, name, annotations[name], helps.get(name, ""), everything)
    if presets:
        lines += ["", f"presets (the defaults above are those of {default.preset}):"]
    summaries = class_mapping(config_class, "PRESET_SUMMARIES")
    for name, values in presets.items():
        lines += _columns(name, summaries.get(name, ""), PRESET_COLUMNS)
        if everything and values:
            lines += _columns(
                "", "= " + " ".join(_as_flag(key, value) for key, value in values.items()), PRESET_COLUMNS
            )
    if not everything:
        presets_too = " and lists what each preset sets" if presets else ""
        more = f"{program()} --help-all explains every option in full{presets_too}."
        lines += ["", *textwrap.wrap(more, _columns_left(0))]
    return "\n".join(lines)


def _first_paragraphs(text: str) -> str:
    """Return the title and the examples of a module docstring, without the details."""
    title, *rest = text.split("\n\n")
    return "\n\n".join([title, *itertools.takewhile(lambda paragraph: paragraph.startswith("    "), rest)])


def _groups(config_class: type[Any], fields: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return titles and fields in the order of the help text; fields without a group are last, under "options"."""
    common = tuple(getattr(config_class, "COMMON", ()))
    shown = {"most used": common}
    for title, names in class_mapping(config_class, "GROUPS").items():
        shown[title] = tuple(name for name in names if name not in common)
    listed = {name for names in shown.values() for name in names}
    shown["options"] = tuple(name for name in fields if name not in listed)
    return {title: names for title, names in shown.items() if names}


def _field(default: Any, presets: Iterable[str], name: str, annotation: Any, text: str, everything: bool) -> list[str]:
    """Lines about one field."""
    hint, _ = split_annotation(annotation)
    for mark in _marks(annotation, Positional):
        return _columns(mark.word, text, LABEL_COLUMNS)
    if everything:
        text += "".join(f" {str(range_).capitalize()}." for range_ in _marks(annotation, Range))
    placeholder = _placeholder(name, hint, presets)
    for names in _marks(annotation, NamesOrPath):
        placeholder = f"{{{','.join(names.names)},file.py:Name}}"
    label = f"--[no-]{flag(name)[2:]}" if is_switch(annotation) else f"{flag(name)} {placeholder}"
    end = f" (default: {_shown(getattr(default, name))})"
    if not everything:
        text = textwrap.shorten(
            _first_sentence(text), max(_columns_left(LABEL_COLUMNS) - len(end), 20), placeholder=" ..."
        )
    return _columns(label, text + end, LABEL_COLUMNS)


def _marks(annotation: Any, kind: type[Any]) -> list[Any]:
    return [mark for mark in split_annotation(annotation)[1] if isinstance(mark, kind)]


def _placeholder(name: str, hint: Any, presets: Iterable[str]) -> str:
    """Placeholder for the value of a flag: {auto,on,off}, INT, FLOAT|None."""
    if name == "preset" and presets:
        return "NAME"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"{{{','.join(map(str, args))}}}"
    if origin is tuple:
        return f"[{_placeholder('', args[0], ())} ...]"
    if origin in (Union, types.UnionType):
        return "|".join(_placeholder("", arg, ()) for arg in args)
    return {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT", types.NoneType: "None"}.get(hint, "VALUE")


def _shown(value: Any) -> str:
    """Format a default value as text; an empty string or tuple is "none"."""
    if value in ("", ()):
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!et al)\. |; ", text)[0].rstrip(".")


def _columns_left(indent: int) -> int:
    """Columns of the terminal to the right of `indent`."""
    return max(min(shutil.get_terminal_size((100, 24)).columns, MAX_COLUMNS) - indent, 20)


def _columns(label: str, text: str, indent: int) -> list[str]:
    """Format a label with wrapped text beside it, or below it if the label is long."""
    wrapped = textwrap.wrap(text, _columns_left(indent))
    head = f"  {label}"
    if len(head) < indent and wrapped:
        head, wrapped = head.ljust(indent) + wrapped[0], wrapped[1:]
    return [head, *(" " * indent + line for line in wrapped)] if head.strip() else [" " * indent + w for w in wrapped]


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else negated_flag(name)
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
