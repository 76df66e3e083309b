"""Ids in COCO's JSON files, which tools write as numbers or as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def unique_names(entries: Iterable[tuple[Any, str]]) -> dict[Any, str]:
    """Return the names by id.

    Args:
        entries: id and name of each image or category; an entry may be repeated.

    Raises:
        ValueError: an id belongs to two names, as in files that were joined without new ids.
    """
    names: dict[Any, str] = {}
    for id, name in entries:
        if names.setdefault(id, name) != name:
            raise ValueError(f"the id {id!r} belongs to {names[id]} and to {name}")
    return names


def spellings(ids: Iterable[Any]) -> dict[Any, Any]:
    """Return each id by itself, and by its other spelling (7 for "7", and "7" for 7) if that means no other id."""
    known = {id: id for id in ids}
    others: dict[Any, list[Any]] = {}
    for id in known:
        if isinstance(id, str) and id.isdecimal():
            others.setdefault(int(id), []).append(id)
        elif isinstance(id, int):
            others.setdefault(str(id), []).append(id)
    return {other: meant[0] for other, meant in others.items() if len(meant) == 1} | known
