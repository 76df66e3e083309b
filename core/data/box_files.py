"""What people write boxes down in: PASCAL VOC's XML, COCO's JSON, YOLO's text; in a folder or zip.

Every reader gives boxes as in core.boxes: (x1, y1, x2, y2), edges in pixels of the picture.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from zerokara.core.config import UserError, error_summary
from zerokara.core.data.pictures import SUFFIXES

Read = Callable[[str], bytes]
Box = tuple[float, float, float, float]


@dataclass
class Marked:
    """A picture and what is marked in it."""

    picture: str
    """Its path in the folder or archive."""
    written_in: str
    """The file that marks it, for messages."""
    boxes: list[tuple[str, Box]] = field(default_factory=list)
    """Class and box, in pixels of the picture."""
    relative: bool = False
    """Boxes are in widths and heights of the picture instead."""


@dataclass
class Listing:
    """All that a folder or archive marks."""

    form: str
    """What it is written in, in words."""
    pictures: list[Marked]
    classes: tuple[str, ...]
    dropped: list[str] = field(default_factory=list)
    """A few words on every box that is none."""

    def keep(self, marked: Marked, label: str, box: Box) -> None:
        """Note a box, or that it has no inside."""
        if box[2] <= box[0] or box[3] <= box[1]:
            self.dropped.append(f"{label} ({', '.join(f'{value:g}' for value in box)}) in {marked.written_in}")
        else:
            marked.boxes.append((label, box))


def read_boxes(members: Sequence[str], read: Read, where: Path) -> Listing:
    """Everything marked in a folder or archive, by the first of VOC, COCO and YOLO that is found there.

    Its own division into training and test pictures is not looked at. The pictures are in the order of their paths,
    and classes in that of their names where the form gives them none.

    Args:
        members: paths inside.
        read: the bytes of one.
        where: for messages.

    Raises:
        UserError: none of the three, a broken file, a marked picture that is not there.
    """
    files = [name for name in members if not name.endswith("/") and not _hidden(name)]
    pictures = [name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        raise UserError(f"There are no pictures in {where}: give a folder or zip of pictures and their boxes.")
    for reader in (_read_voc, _read_coco, _read_yolo):
        listing = reader(files, pictures, read, where)
        if listing.pictures:
            listing.pictures.sort(key=lambda marked: marked.picture)
            return listing
    raise UserError(
        f"{where} marks no boxes: expected PASCAL VOC's XML in Annotations/, COCO's JSON with images and annotations, "
        f"or YOLO's text files beside the pictures or in labels/."
    )


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _ending(files: Sequence[str], suffix: str) -> list[str]:
    return [name for name in files if name.lower().endswith(suffix)]


def _broken(name: str, where: Path, why: str) -> UserError:
    return UserError(f"{name} in {where} makes no sense ({why}): put a sound copy in its place, or remove it.")


class _Pictures:
    """Finds the picture that a file of boxes means."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = set(paths)
        self._by_name = {PurePosixPath(path).name.lower(): path for path in reversed(paths)}
        self._by_stem = {PurePosixPath(path).stem.lower(): path for path in reversed(paths)}

    def find(self, name: str, near: str) -> str | None:
        """The picture at that path, seen from the folder `near`; else of that name anywhere; else of that stem."""
        name = name.replace("\\", "/")
        beside = (PurePosixPath(near).parent / name).as_posix()
        if beside in self._paths or name in self._paths:
            return beside if beside in self._paths else name
        last = PurePosixPath(name)
        return self._by_name.get(last.name.lower()) or self._by_stem.get(last.stem.lower())


# ---- PASCAL VOC


def _read_voc(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """A file for each picture; corners are pixels, counted from 1, that belong to the box."""
    known, listing = _Pictures(pictures), Listing("PASCAL VOC XML", [], ())
    for name in _ending(files, ".xml"):
        try:
            root = ET.fromstring(read(name))  # expat refuses the expansion of entities that would fill memory
        except ET.ParseError as error:
            raise _broken(name, where, error_summary(error)) from None
        if root.tag != "annotation":
            continue
        # The file's own name first: many sets were renamed and keep the old name inside.
        picture = known.find(PurePosixPath(name).stem, "") or known.find(root.findtext("filename") or "", name)
        if picture is None:
            raise UserError(
                f"{name} in {where} marks {root.findtext('filename') or 'a picture'}, which is not there: "
                f"put the picture beside it, or remove the file."
            )
        marked = Marked(picture, name)
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            try:
                x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{end}") or "") for end in _CORNERS)
            except ValueError:
                raise _broken(name, where, f"a box of {label or 'no class'} without four numbers") from None
            if not label:
                raise _broken(name, where, "an object without a name")
            # A box from a pixel to itself would be one pixel; those that there are were clicks, not boxes.
            empty = x2 <= x1 or y2 <= y1
            listing.keep(marked, label, (x1, y1, x2, y2) if empty else (x1 - 1, y1 - 1, x2, y2))
        listing.pictures.append(marked)
    listing.classes = _classes_of(listing)
    return listing


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


# ---- COCO


def _read_coco(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """One or several files; a box is corner and size. Crowds (iscrowd) are dropped, and named."""
    known, listing = _Pictures(pictures), Listing("COCO JSON", [], ())
    categories: dict[int, str] = {}
    for name in _ending(files, ".json"):
        try:
            content = json.loads(read(name))
        except ValueError as error:
            raise _broken(name, where, error_summary(error)) from None
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
            continue
        try:
            categories |= {int(each["id"]): str(each["name"]) for each in content["categories"]}
            by_id: dict[Any, Marked] = {}
            for each in content["images"]:
                picture = known.find(str(each["file_name"]), name)
                if picture is None:
                    raise UserError(
                        f"{name} in {where} marks {each['file_name']}, which is not there: put the picture beside it."
                    )
                by_id[each["id"]] = Marked(picture, f"{name} ({each['file_name']})")
            for each in content["annotations"]:
                x, y, width, height = map(float, each["bbox"])
                marked, label = by_id[each["image_id"]], categories[int(each["category_id"])]
                if each.get("iscrowd"):
                    listing.dropped.append(f"a crowd of {label} in {marked.written_in}")
                else:
                    listing.keep(marked, label, (x, y, x + width, y + height))
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(name, where, f"{type(error).__name__} {error_summary(error)}") from None
        listing.pictures += by_id.values()
    listing.classes = tuple(dict.fromkeys(categories[key] for key in sorted(categories)))
    return listing


# ---- YOLO


def _read_yolo(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """A text for each picture, beside it or in labels/ where the picture is in images/; lines of class and box.

    A box is centre and size in widths and heights of the picture. A picture without a text has nothing in it. Names of
    classes stand in classes.txt, obj.names or data.yaml; else a class is called by its number.
    """
    texts, listing = set(_ending(files, ".txt")), Listing("YOLO text", [], ())
    rows: list[tuple[Marked, int, Box]] = []
    for picture in pictures:
        stem = picture.rpartition(".")[0]
        swapped = "/".join("labels" if part == "images" else part for part in stem.split("/"))
        name = next((path for path in (f"{swapped}.txt", f"{stem}.txt") if path in texts), None)
        marked = Marked(picture, name or picture, relative=True)
        listing.pictures.append(marked)
        for line in read(name).decode("utf-8", "replace").splitlines() if name else ():
            if not line.strip():
                continue
            try:
                word, *values = line.split()
                x, y, width, height = (float(value) for value in values[:4])
                rows.append((marked, int(word), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)))
            except ValueError:
                raise _broken(str(name), where, f"the line {line[:40]!r} is not class, x, y, width, height") from None
    if not rows:
        return Listing(listing.form, [], ())
    numbers = sorted({number for _, number, _ in rows})
    names = _yolo_names(read, files) or [str(number) for number in range(numbers[-1] + 1)]
    if wrong := [number for number in numbers if not 0 <= number < len(names)]:
        raise UserError(f"{where} marks the class {wrong[0]}, and there are names for {len(names)}: add its name.")
    for marked, number, box in rows:
        listing.keep(marked, names[number], box)
    listing.classes = tuple(names)
    return listing


def _yolo_names(read: Read, files: Sequence[str]) -> list[str]:
    """Names of the classes, from whatever of the usual files is there."""
    for name in files:
        last = PurePosixPath(name).name.lower()
        if last == "classes.txt" or last.endswith(".names"):
            return [line.strip() for line in read(name).decode("utf-8", "replace").splitlines() if line.strip()]
        if last.endswith((".yaml", ".yml")) and (names := yaml_names(read(name).decode("utf-8", "replace"))):
            return names
    return []


def yaml_names(text: str) -> list[str]:
    """The list `names` of a data.yaml: in brackets, as a list with dashes, or numbered, which is all that is used."""
    if match := re.search(r"^names:\s*[\[{](.*?)[\]}]", text, re.MULTILINE | re.DOTALL):
        words = [word for word in match[1].split(",") if word.strip()]
    elif match := re.search(r"^names:[ \t]*\n((?:[ \t]*(?:-|\d+:).*\n?)+)", text, re.MULTILINE):
        words = [line for line in match[1].splitlines() if line.strip()]
    else:
        return []
    return [re.sub(r"^\s*(-|\d+\s*:)?\s*", "", word).strip().strip("'\"") for word in words]


def _classes_of(listing: Listing) -> tuple[str, ...]:
    """The names that occur, sorted."""
    return tuple(sorted({label for marked in listing.pictures for label, _ in marked.boxes}))
