"""Labels in dataset.json, which the dataset tool of StyleGAN writes beside folders 00000, 00001, ... of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data.audit import Audit
from zerokara.core.data.image_files import is_hidden

FILE = "dataset.json"
LAYOUT = f"labels of {FILE}"  # part of the description of images whose classes are these labels


def read_labels(members: Sequence[str], read: Callable[[str], bytes], where: str) -> dict[str, str] | None:
    """Read the class of each image, from all files of this name: there may be one in each folder of a split.

    Args:
        members: paths in the folder or archive.
        read: function that returns the bytes of a path.
        where: the folder or archive, for messages.

    Returns:
        The classes by path, whose names are the numbers in the files; {} if they say that there are no labels; None
        without such a file. The folders are not classes then, because the tool only limits the number of files in each.

    Raises:
        UserError: a file is damaged, its labels are not numbers of classes, or two files label an image differently.
    """
    labels: dict[str, str] | None = None
    for path in members:
        if path.rpartition("/")[2] != FILE or is_hidden(path) or (table := _read_table(path, read, where)) is None:
            continue
        labels = labels or {}
        if twice := [name for name, label in table.items() if labels.get(name, label) != label]:
            raise UserError(
                f"{twice[0]} in {where} has the label {labels[twice[0]]} in one {FILE} and {table[twice[0]]} in "
                f"another: remove one of the two."
            )
        labels |= table
    return labels


def _read_table(table: str, read: Callable[[str], bytes], where: str) -> dict[str, str] | None:
    """Read one file, as `read_labels` does; None if it is of another program."""
    try:
        content = json.loads(read(table).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{table} in {where} is not valid JSON ({error_summary(error)}): replace it with an undamaged copy, or "
            f"remove it."
        ) from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    rows = content["labels"]
    if rows is None:
        return {}
    if not (isinstance(rows, list) and rows and isinstance(rows[0], list) and len(rows[0]) == 2):
        return None  # a file of this name by another program
    folder = table.removesuffix(FILE)
    try:
        return {f"{folder}{name}": _class(label) for name, label in rows}
    except (TypeError, ValueError):
        raise UserError(
            f"{table} in {where} has labels that are not pairs of an image and the number of a class: correct it, or "
            f"remove it."
        ) from None


def keep_labeled(images: Sequence[str], labels: Mapping[str, str], audit: Audit) -> list[str]:
    """Return the images that have a label. The others are counted in the audit."""
    if unlabeled := [name for name in images if name not in labels]:
        number = format_count(len(unlabeled), "image")
        audit.notes.append(f"not used: {number} without a label, such as {unlabeled[0]}")
    return [name for name in images if name in labels]


def _class(label: object) -> str:
    """Return the name of a class.

    Raises:
        ValueError: it is not a number of a class.
    """
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise ValueError(label)
    return str(label)
