"""Reader of PASCAL VOC's box annotations: one XML file per image."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data.box_types import AnnotatedImage, ImageFinder, Listing, Read, invalid, name_some, stated_size
from zerokara.core.data.splits import split_of

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """Read PASCAL VOC: corners are pixel indices from 1, and are part of the box. Classes are sorted by name.

    An object with several boxes, as some tools write it, is one object for each box. The name of an XML file takes
    precedence over the name inside, which is outdated in many sets.

    A damaged file is left out, and so is its image.

    Raises:
        UserError: all XML files are damaged, or annotate images that do not exist.
    """
    finder, listing = ImageFinder(pictures), Listing("PASCAL VOC XML", [], ())
    lost: list[str] = []
    several: list[str] = []
    for name in (name for name in files if name.lower().endswith(".xml")):
        try:
            root = _parse(read, name, where)
        except UserError as error:
            listing.unusable[finder.by_stem(name) or name] = str(error)
            continue
        if root.tag != "annotation":
            continue
        picture = finder.by_stem(name) or finder.by_name(root.findtext("filename") or "", name)
        if picture is None:
            lost.append(name)
            continue
        size = stated_size(root.findtext("size/width"), root.findtext("size/height"))
        annotated = AnnotatedImage(picture, name, size=size, split=split_of(picture) or split_of(name))
        several += [name for item in root.iter("object") if _add_object(listing, annotated, item) > 1]
        listing.pictures.append(annotated)
    if listing.unusable and not listing.pictures:
        raise UserError(next(iter(listing.unusable.values())))
    if lost and not listing.pictures:
        raise UserError(
            f"{where} has {format_count(len(lost), 'annotation')} without an image of the same name, the first of them "
            f"{lost[0]}: "
            f"add the images in JPEGImages/, with the names of the XML files."
        )
    if several:
        listing.audit.notes.append(
            format_count(len(several), "object has", "objects have")
            + f" several boxes, and each box counts as an object: {name_some(list(dict.fromkeys(several)))}"
        )
    if lost:
        listing.audit.notes.append(
            f"left out: {format_count(len(lost), 'annotation')} without an image of the same name: {name_some(lost)}"
        )
    listing.classes = tuple(sorted({label for annotated in listing.pictures for label, _ in annotated.boxes}))
    return listing


def _parse(read: Read, name: str, where: Path) -> ET.Element:
    """Parse an XML file.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        return ET.fromstring(read(name))  # expat limits the expansion of entities
    except (ET.ParseError, LookupError, ValueError) as error:  # LookupError: unknown encoding
        raise invalid(name, where, error_summary(error)) from None


def _add_object(listing: Listing, annotated: AnnotatedImage, item: ET.Element) -> int:
    """Add the boxes of an object, or a description of what is wrong with it. Return the number of its boxes."""
    label = (item.findtext("name") or "").strip()
    boxes = item.findall("bndbox")  # its own; those of its parts (head, hand) are inside <part>
    for corners in boxes or [item]:
        try:
            x1, y1, x2, y2 = (float(corners.findtext(end) or "") for end in CORNERS)
        except ValueError:
            what = label or "an object"
            listing.audit.left_out.append(f"{what} in {annotated.annotation_file}: the box has not four numbers.")
            annotated.invalid += 1
            continue
        if not label:
            listing.audit.left_out.append(f"an object in {annotated.annotation_file}: it has no name.")
            annotated.invalid += 1
            continue
        # A box from a pixel to itself would be one pixel large; such boxes are accidental clicks in practice.
        empty = x2 <= x1 or y2 <= y1
        listing.add(annotated, label, (x1, y1, x2, y2) if empty else (x1 - 1, y1 - 1, x2, y2))
    return len(boxes)
