"""Readers of box annotations in a folder or zip: PASCAL VOC's XML, COCO's JSON, YOLO's text files.

All readers return boxes as in core.boxes: (x1, y1, x2, y2), edges in pixels of the image.
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
from zerokara.core.data.image_files import SUFFIXES

Read = Callable[[str], bytes]
Box = tuple[float, float, float, float]


@dataclass
class AnnotatedImage:
    """Image with its box annotations."""

    picture: str
    """Its path in the folder or archive."""
    annotation_file: str
    """Annotation file, for messages."""
    boxes: list[tuple[str, Box]] = field(default_factory=list)
    """Class and box, in pixels of the image."""
    relative: bool = False
    """True if boxes are fractions of the image's width and height instead of pixels."""


@dataclass
class Listing:
    """All annotated images of a folder or archive."""

    format_name: str
    """Name of the annotation format."""
    pictures: list[AnnotatedImage]
    classes: tuple[str, ...]
    dropped: list[str] = field(default_factory=list)
    """Description of every annotation that was left out."""

    def add(self, annotated: AnnotatedImage, label: str, box: Box) -> None:
        """Add a box to an image, or to `dropped` if it is empty."""
        if box[2] <= box[0] or box[3] <= box[1]:
            self.dropped.append(f"{label} ({', '.join(f'{value:g}' for value in box)}) in {annotated.annotation_file}")
        else:
            annotated.boxes.append((label, box))


def read_boxes(members: Sequence[str], read: Read, where: Path) -> Listing:
    """Read all annotations of a folder or archive, in the first format found of VOC, COCO and YOLO.

    The data's own split into training and test images is ignored. Images are sorted by path; classes are sorted by
    name if the format does not define their order.

    Args:
        members: paths in the folder or archive.
        read: function that returns the bytes of a path.
        where: the folder or archive, for messages.

    Raises:
        UserError: none of the formats was found, a file is damaged, or an annotated image is missing.
    """
    files = [name for name in members if not name.endswith("/") and not _hidden(name)]
    pictures = [name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        raise UserError(f"There are no images in {where}: give a folder or zip of images with box annotations.")
    for reader in (_read_voc, _read_coco, _read_yolo):
        listing = reader(files, pictures, read, where)
        if listing.pictures:
            listing.pictures.sort(key=lambda annotated: annotated.picture)
            return listing
    raise UserError(
        f"{where} has no box annotations: expected PASCAL VOC's XML in Annotations/, COCO's JSON with images and "
        f"annotations, or YOLO's text files next to the images or in labels/."
    )


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _ending(files: Sequence[str], suffix: str) -> list[str]:
    return [name for name in files if name.lower().endswith(suffix)]


def _invalid(name: str, where: Path, why: str) -> UserError:
    return UserError(f"{name} in {where} is invalid ({why}): replace it with an undamaged copy, or remove it.")


class _ImageFinder:
    """Lookup of the image that an annotation file refers to."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = set(paths)
        self._by_name = {PurePosixPath(path).name.lower(): path for path in reversed(paths)}
        self._by_stem = {PurePosixPath(path).stem.lower(): path for path in reversed(paths)}

    def find(self, name: str, near: str) -> str | None:
        """Find an image by its path relative to the file `near` or to the root, else by file name, else by stem."""
        name = name.replace("\\", "/")
        beside = (PurePosixPath(near).parent / name).as_posix()
        if beside in self._paths or name in self._paths:
            return beside if beside in self._paths else name
        last = PurePosixPath(name)
        return self._by_name.get(last.name.lower()) or self._by_stem.get(last.stem.lower())


# ---- PASCAL VOC


def _read_voc(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """Read PASCAL VOC: one XML file per image; corners are pixel indices from 1, and are part of the box."""
    image_finder, listing = _ImageFinder(pictures), Listing("PASCAL VOC XML", [], ())
    for name in _ending(files, ".xml"):
        try:
            root = ET.fromstring(read(name))  # expat limits the expansion of entities
        except ET.ParseError as error:
            raise _invalid(name, where, error_summary(error)) from None
        if root.tag != "annotation":
            continue
        # The name of the XML file takes precedence, because in many sets the names inside are outdated.
        picture = image_finder.find(PurePosixPath(name).stem, "") or image_finder.find(
            root.findtext("filename") or "", name
        )
        if picture is None:
            raise UserError(
                f"{name} in {where} annotates {root.findtext('filename') or 'an image'}, which does not exist: "
                f"add the image, or remove the file."
            )
        annotated = AnnotatedImage(picture, name)
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            try:
                x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{end}") or "") for end in _CORNERS)
            except ValueError:
                raise _invalid(name, where, f"a box of {label or 'no class'} without four numbers") from None
            if not label:
                raise _invalid(name, where, "an object without a name")
            # A box from a pixel to itself would be one pixel large; such boxes are accidental clicks in practice.
            empty = x2 <= x1 or y2 <= y1
            listing.add(annotated, label, (x1, y1, x2, y2) if empty else (x1 - 1, y1 - 1, x2, y2))
        listing.pictures.append(annotated)
    listing.classes = _classes_of(listing)
    return listing


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


# ---- COCO


def _read_coco(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """Read COCO: one or several JSON files; a box is corner and size. Crowds (iscrowd) are left out and listed."""
    image_finder, listing = _ImageFinder(pictures), Listing("COCO JSON", [], ())
    categories: dict[int, str] = {}
    for name in _ending(files, ".json"):
        try:
            content = json.loads(read(name))
        except ValueError as error:
            raise _invalid(name, where, error_summary(error)) from None
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
            continue
        try:
            categories |= {int(each["id"]): str(each["name"]) for each in content["categories"]}
            by_id: dict[Any, AnnotatedImage] = {}
            for each in content["images"]:
                picture = image_finder.find(str(each["file_name"]), name)
                if picture is None:
                    raise UserError(
                        f"{name} in {where} annotates {each['file_name']}, which does not exist: add the image."
                    )
                by_id[each["id"]] = AnnotatedImage(picture, f"{name} ({each['file_name']})")
            for each in content["annotations"]:
                x, y, width, height = map(float, each["bbox"])
                annotated, label = by_id[each["image_id"]], categories[int(each["category_id"])]
                if each.get("iscrowd"):
                    listing.dropped.append(f"a crowd of {label} in {annotated.annotation_file}")
                else:
                    listing.add(annotated, label, (x, y, x + width, y + height))
        except (KeyError, TypeError, ValueError) as error:
            raise _invalid(name, where, f"{type(error).__name__} {error_summary(error)}") from None
        listing.pictures += by_id.values()
    listing.classes = tuple(dict.fromkeys(categories[key] for key in sorted(categories)))
    return listing


# ---- YOLO


def _read_yolo(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """Read YOLO: one text file per image, with lines of class, x, y, width, height.

    The file is next to the image, or in labels/ if the image is in images/. A box is center and size, as fractions of
    the image's width and height. An image without a text file has no boxes. Class names are read from classes.txt,
    obj.names or data.yaml; without these, a class is named by its number.
    """
    texts, listing = set(_ending(files, ".txt")), Listing("YOLO text", [], ())
    rows: list[tuple[AnnotatedImage, int, Box]] = []
    for picture in pictures:
        stem = picture.rpartition(".")[0]
        swapped = "/".join("labels" if part == "images" else part for part in stem.split("/"))
        name = next((path for path in (f"{swapped}.txt", f"{stem}.txt") if path in texts), None)
        annotated = AnnotatedImage(picture, name or picture, relative=True)
        listing.pictures.append(annotated)
        for line in read(name).decode("utf-8", "replace").splitlines() if name else ():
            if not line.strip():
                continue
            try:
                word, *values = line.split()
                x, y, width, height = (float(value) for value in values[:4])
                rows.append((annotated, int(word), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)))
            except ValueError:
                raise _invalid(str(name), where, f"the line {line[:40]!r} is not class, x, y, width, height") from None
    if not rows:
        return Listing(listing.format_name, [], ())
    numbers = sorted({number for _, number, _ in rows})
    names = _yolo_names(read, files) or [str(number) for number in range(numbers[-1] + 1)]
    if wrong := [number for number in numbers if not 0 <= number < len(names)]:
        raise UserError(f"{where} has boxes of class {wrong[0]}, but names of {len(names)} classes: add its name.")
    for annotated, number, box in rows:
        listing.add(annotated, names[number], box)
    listing.classes = tuple(names)
    return listing


def _yolo_names(read: Read, files: Sequence[str]) -> list[str]:
    """Read the class names from classes.txt, *.names or *.yaml; an empty list if there is none."""
    for name in files:
        last = PurePosixPath(name).name.lower()
        if last == "classes.txt" or last.endswith(".names"):
            return [line.strip() for line in read(name).decode("utf-8", "replace").splitlines() if line.strip()]
        if last.endswith((".yaml", ".yml")) and (names := yaml_names(read(name).decode("utf-8", "replace"))):
            return names
    return []


def yaml_names(text: str) -> list[str]:
    """Parse the list `names` of a data.yaml: in brackets, with dashes, or numbered. Other YAML is not supported."""
    if match := re.search(r"^names:\s*[\[{](.*?)[\]}]", text, re.MULTILINE | re.DOTALL):
        words = [word for word in match[1].split(",") if word.strip()]
    elif match := re.search(r"^names:[ \t]*\n((?:[ \t]*(?:-|\d+:).*\n?)+)", text, re.MULTILINE):
        words = [line for line in match[1].splitlines() if line.strip()]
    else:
        return []
    return [re.sub(r"^\s*(-|\d+\s*:)?\s*", "", word).strip().strip("'\"") for word in words]


def _classes_of(listing: Listing) -> tuple[str, ...]:
    """Return the sorted names of all classes with boxes."""
    return tuple(sorted({label for annotated in listing.pictures for label, _ in annotated.boxes}))
