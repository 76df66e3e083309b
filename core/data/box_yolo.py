"""Reader of YOLO's box annotations: one text file per image, and class names in a list or in a data.yaml."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data.box_types import AnnotatedImage, Box, Listing, Read, invalid, name_some
from zerokara.core.data.splits import split_of

NOT_LABELS = frozenset({"classes.txt", "readme.txt", "license.txt", "notes.txt", "train.txt", "val.txt", "test.txt"})


MAX_YAML_BYTES = 2**20
NULLS = ("null", "Null", "NULL", "~")  # of YAML, and the empty text
MAX_DIGITS = 12  # of the number of a class
FRACTIONS = (-0.5, 1.5)
"""Limits of the numbers of a line, which are 0 to 1 apart from objects at the edge; larger ones are pixels."""


def read_yolo(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """Read YOLO: lines of class, x, y, width, height, or of class and the corners of a polygon.

    The file is next to the image, or in labels/ if the image is in images/. If images/ occurs twice in a path, the last
    one counts first, as in YOLO. Numbers are fractions of the image's width and height; a box is center and size. A
    polygon becomes the box around it; keypoints after a box (kpt_shape in a data.yaml) are not read. An image without a
    text file has no boxes. Class names are read from classes.txt, *.names or a data.yaml; without these, a class is
    named by its number.

    Raises:
        UserError: names are invalid or contradict one another, a class has no name, or no line could be read.
    """
    texts = {name[: -len(".txt")]: name for name in files if name.lower().endswith(".txt")}
    documents = {name: _yaml(read(name), name, where) for name in files if name.lower().endswith((".yaml", ".yml"))}
    listing, keypoint_values = Listing("YOLO text", [], ()), _keypoint_values(documents, where)
    rows: list[tuple[AnnotatedImage, int, Box]] = []
    without_file, used = [], set[str]()
    for picture in pictures:
        name = next((texts[place] for place in _places(picture) if place in texts), None)
        annotated = AnnotatedImage(picture, name or picture, relative=True, split=split_of(picture))
        if name is None:
            without_file.append(picture)
            listing.pictures.append(annotated)
            continue
        used.add(name)
        listing.pictures.append(annotated)
        try:
            text = read(name).decode("utf-8-sig", "replace")
        except UserError as error:
            listing.unusable[picture] = str(error)
            continue
        for line in text.splitlines():
            if not line.strip():
                continue
            try:
                rows.append((annotated, *_parse_line(line, keypoint_values, listing.audit.converted)))
            except ValueError as error:
                listing.audit.left_out.append(f"the line {line[:40]!r} of {name}: {error}.")
                annotated.invalid += 1
    if not rows:
        if errors := [*listing.audit.left_out, *listing.unusable.values()]:
            raise UserError(f"{where} has no valid YOLO annotation, the first error is in {errors[0]}")
        return Listing(listing.format_name, [], ())
    if without_file:
        listing.audit.notes.append(
            format_count(
                len(without_file),
                "image without a text file counts as an image without objects",
                "images without a text file count as images without objects",
            )
            + f": {name_some(without_file)}"
        )
    unused = sorted(set(texts.values()) - used)
    if orphans := [name for name in unused if name.rpartition("/")[2].lower() not in NOT_LABELS]:
        listing.audit.notes.append(
            f"left out: {format_count(len(orphans), 'text file')} without an image of the same name: "
            f"{name_some(orphans)}"
        )
    names = _read_names(read, files, documents, where)
    numbers = sorted({number for _, number, _ in rows})
    if names and (wrong := [number for number in numbers if number not in names]):
        raise UserError(
            f"{where} has boxes of class {wrong[0]}, but names of {format_count(len(names), 'class')}, 0 to "
            f"{max(names)}: add its name."
        )
    if twice := [label for label, count in Counter(names.values()).items() if count > 1]:
        raise UserError(
            f"{where} has the class name {twice[0]!r} twice: give each class a name of its own in its list of names."
        )
    names = names or {number: str(number) for number in numbers}
    for annotated, number, box in rows:
        listing.add(annotated, names[number], box)
    listing.classes = tuple(dict.fromkeys(names[number] for number in sorted(names)))
    return listing


def _places(picture: str) -> list[str]:
    """Return the paths, without suffix, of the text file that an image may have: labels/ for images/, or beside it.

    The last images/ comes first, as in YOLO's own programs; the word is capitalized like that of the folder.
    """
    *folders, file = picture.split("/")
    stem = file.rpartition(".")[0]
    at = [index for index, folder in enumerate(folders) if folder.lower() == "images"]
    swaps = [*([index] for index in reversed(at)), *([at] if len(at) > 1 else []), []]
    return [
        "/".join([*(_labels(folder) if index in swap else folder for index, folder in enumerate(folders)), stem])
        for swap in swaps
    ]


def _labels(folder: str) -> str:
    """Return the name of the folder of labels for a folder of images: Labels for Images."""
    return "LABELS" if folder.isupper() else "Labels" if folder[0].isupper() else "labels"


def _parse_line(line: str, keypoint_values: int, converted: Counter[str]) -> tuple[int, Box]:
    """Parse the class and the box of a line.

    Args:
        line: of a text file.
        keypoint_values: numbers of keypoints that follow a box; 0: none.
        converted: a polygon is counted here.

    Raises:
        ValueError: it is not a class and a box or polygon.
    """
    word, *words = line.split()
    try:
        number, values = float(word), [float(each) for each in words]
    except ValueError:
        raise ValueError("it is not a class and numbers") from None
    if not all(FRACTIONS[0] <= value <= FRACTIONS[1] for value in values[: 4 if keypoint_values else None]):
        raise ValueError("its numbers must be fractions of the image's width and height, 0 to 1")
    if number < 0 or number != number // 1:
        raise ValueError("its class must be 0, 1, ...")
    if keypoint_values and len(values) == 4 + keypoint_values:
        values = values[:4]
    if len(values) == 4:
        x, y, width, height = values
        return int(number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        converted["given as a polygon, read as the box around it"] += 1
        return int(number), (min(xs), min(ys), max(xs), max(ys))
    raise ValueError(f"after the class come {len(values)} numbers, not 4 of a box or 6, 8, ... of a polygon")


def _read_names(read: Read, files: Sequence[str], documents: Mapping[str, Any], where: Path) -> dict[int, str]:
    """Read the class names by number from classes.txt, *.names or YAML documents; {} if there is no such file.

    Raises:
        UserError: a file is invalid, or two files contradict one another.
    """
    found: dict[str, dict[int, str]] = {}
    for name in sorted(files, key=lambda path: path.count("/")):
        last = PurePosixPath(name).name.lower()
        if last == "classes.txt" or last.endswith(".names"):
            try:
                lines = read(name).decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise invalid(name, where, "it is not in UTF-8") from None
            found[name] = dict(enumerate(line.strip() for line in lines if line.strip()))
        elif name in documents:
            found[name] = _yaml_names(documents[name], name, where)
    found = {name: names for name, names in found.items() if names}
    first, *others = found or [""]
    for other in others:
        if found[other] != found[first]:
            raise UserError(f"{first} and {other} in {where} have different class names: remove one of them.")
    return found.get(first, {})


def _keypoint_values(documents: Mapping[str, Any], where: Path) -> int:
    """Return how many numbers the keypoints of an object take, by kpt_shape of a data.yaml; 0 without keypoints."""
    for name, document in documents.items():
        shape = document.get("kpt_shape") if isinstance(document, dict) else None
        if shape is None:
            continue
        if not isinstance(shape, list) or not all(_is_number(size) and 0 < int(size) < 10_000 for size in shape):
            raise invalid(name, where, "kpt_shape must be the number of keypoints and of values of each")
        return math.prod(map(int, shape))
    return 0


def _yaml(content: bytes, name: str, where: Path) -> Any:
    """Parse a YAML file.

    Raises:
        UserError: it is not valid YAML, or larger than `MAX_YAML_BYTES`.
    """
    import yaml  # imported here, because few data sets need it

    if len(content) > MAX_YAML_BYTES:  # PyYAML parses about one megabyte in a second
        raise invalid(name, where, f"it has {len(content):,} bytes, and at most {MAX_YAML_BYTES:,} are read")
    try:
        # All values stay text: "yes" and "010" are names of classes, not True and 8.
        loader = yaml.BaseLoader(content)
        try:
            node = loader.get_single_node()
            _check_keys(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise invalid(name, where, error_summary(error)) from None


def _check_keys(root: Any) -> None:
    """Check the keys of YAML's nodes, of which PyYAML keeps the last one silently.

    Raises:
        ValueError: a mapping has a key twice.
    """
    import yaml

    visited, waiting = set[int](), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [key for key, count in keys.items() if count > 1]:
                raise ValueError(f"the key {twice[0][:60]!r} occurs twice")
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _yaml_names(document: Any, name: str, where: Path) -> dict[int, str]:
    """Return `names` of a data.yaml, a list or a mapping of numbers; {} if it has none.

    Raises:
        UserError: `names` is something else.
    """
    names = document.get("names") if isinstance(document, dict) else None
    if not names or names in NULLS:
        return {}
    if isinstance(names, list):
        names = {str(number): label for number, label in enumerate(names)}
    if not isinstance(names, dict) or not all(map(_is_number, names)) or not all(map(_is_text, names.values())):
        raise invalid(name, where, "names must be a list, or names by number")
    if _is_number(number := document.get("nc")) and int(number) != len(names):
        raise invalid(name, where, f"it has {format_count(len(names), 'name')}, but nc is {number}")
    return {int(number): label for number, label in names.items()}


def _is_number(value: Any) -> bool:
    """Return True for a number of a class or of keypoints, as YAML writes it."""
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < MAX_DIGITS


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
