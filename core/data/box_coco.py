"""Reader of COCO's box annotations: JSON files with images, annotations and categories."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data.box_types import (
    AnnotatedImage,
    Box,
    ImageFinder,
    Listing,
    Read,
    invalid,
    name_some,
    stated_size,
)
from zerokara.core.data.coco_ids import spellings, unique_names
from zerokara.core.data.splits import split_of, split_of_file

KEYS = frozenset({"images", "annotations", "categories"})


def read_coco(files: Sequence[str], pictures: Sequence[str], read: Read, where: Path) -> Listing:
    """Read COCO: a box is corner and size; an annotation that only has a segmentation gets the box around it.

    Crowds (iscrowd) are left out and listed. Classes are sorted by id.

    Files of instances are read if there are any; those of keypoints, captions and panoptic masks annotate the same
    images. Classes of several files are matched by name.

    Raises:
        UserError: a file is damaged, or all of its images are missing.
    """
    finder, listing = ImageFinder(pictures), Listing("COCO JSON", [], ())
    parsed = {name: _parse(read, name, where) for name in files if name.lower().endswith(".json")}
    contents = {name: content for name, content in parsed.items() if content is not None}
    instances = [name for name in contents if name.rpartition("/")[2].lower().startswith("instances")]
    chosen = instances or [name for name, content in contents.items() if _has_boxes(content)]
    if others := [name for name in contents if name not in chosen]:
        listing.audit.notes.append(f"left out: files without boxes of instances: {name_some(others)}")
    order: dict[str, int] = {}
    for name in chosen:
        try:
            _read_file(name, contents[name], finder, listing, order, where)
        except ValueError as error:
            raise invalid(name, where, error_summary(error)) from None
        except (KeyError, TypeError, OverflowError) as error:
            raise invalid(name, where, f"{type(error).__name__} {error_summary(error)}") from None
    listing.classes = tuple(sorted(order, key=lambda label: (order[label], label)))
    return listing


def _parse(read: Read, name: str, where: Path) -> Mapping[str, Any] | None:
    """Parse a JSON file; None if it is not of COCO's structure."""
    try:
        content = json.loads(read(name).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise invalid(name, where, error_summary(error)) from None
    return content if isinstance(content, dict) and set(content) >= KEYS else None


def _is_image(entry: Any) -> bool:
    """Return True if an entry of "images" has an id and the name of a file."""
    return isinstance(entry, dict) and isinstance(entry.get("id"), int | str) and "file_name" in entry


def _has_boxes(content: Mapping[str, Any]) -> bool:
    """Return True if there are annotations with boxes or segmentations, or no annotations."""
    rows = content["annotations"]
    return (
        not isinstance(rows, list)
        or not rows
        or any({"bbox", "segmentation"} & set(row) for row in rows if isinstance(row, dict))
    )


def _read_file(
    name: str,
    content: Mapping[str, Any],
    finder: ImageFinder,
    listing: Listing,
    order: dict[str, int],
    where: Path,
) -> None:
    """Add the images and boxes of one file to `listing`, and its classes with their ids to `order`.

    Raises:
        UserError: all of its images are missing.
        KeyError, TypeError, ValueError: the content is invalid, or an id belongs to two images or categories.
    """
    names = unique_names((int(each["id"]), str(each["name"])) for each in content["categories"])
    for key, label in names.items():
        order[label] = min(key, order.get(label, key))
    images = [each for each in content["images"] if _is_image(each)]
    if len(images) < len(content["images"]):
        first = next(each for each in content["images"] if not _is_image(each))
        if not images:
            raise ValueError(f"the image {str(first)[:60]} has no id or no file_name")
        for index, each in enumerate(content["images"]):
            if not _is_image(each):
                listing.unusable[f"{name}[{index}]"] = f"The image {str(each)[:60]} in {name} has no id or file_name."
    known = spellings(unique_names((each["id"], str(each["file_name"])) for each in images))
    by_id: dict[Any, AnnotatedImage] = {}
    lost: list[str] = []
    for each in images:
        file_name = str(each["file_name"])
        picture = finder.by_name(file_name, name)
        if picture is None:
            lost.append(file_name)
            continue
        size = stated_size(each.get("width"), each.get("height"))
        split = split_of(picture) or split_of(name) or split_of_file(name)
        by_id[each["id"]] = AnnotatedImage(picture, f"{name} ({file_name})", size=size, split=split)
    if lost and not by_id:
        raise UserError(
            f"{name} in {where} annotates {format_count(len(lost), 'missing image')}, the first of them {lost[0]}: "
            f"add what is missing."
        )
    if lost:
        listing.audit.notes.append(
            f"left out: annotations in {name} of {format_count(len(lost), 'missing image')}: {name_some(lost)}"
        )
    listing.pictures += by_id.values()
    for each in content["annotations"]:
        _add_annotation(listing, each, by_id, known, names, name)


def _add_annotation(
    listing: Listing,
    row: Any,
    by_id: Mapping[Any, AnnotatedImage],
    known: Mapping[Any, Any],
    names: Mapping[int, str],
    name: str,
) -> None:
    """Add the box of an annotation, or a description of what is wrong with it."""
    try:
        annotated, label = by_id.get(known.get(row["image_id"])), names.get(int(row["category_id"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        listing.audit.left_out.append(f"the annotation {str(row)[:60]} in {name}: it has no image_id or category_id.")
        return
    which = f"annotation {row.get('id', '')} in {name}".replace("  ", " ")
    if annotated is None:
        if row["image_id"] not in known:
            listing.audit.left_out.append(f"{which}: there is no image with the id {row['image_id']!r}.")
    elif label is None:
        annotated.invalid += 1
        listing.audit.left_out.append(f"{which}: there is no category with the id {row['category_id']!r}.")
    elif row.get("iscrowd"):
        listing.audit.left_out.append(f"a crowd of {label} in {annotated.annotation_file}.")
    else:
        try:
            box = _read_box(row, listing)
        except (TypeError, ValueError) as error:
            listing.audit.left_out.append(f"{which}: {error}.")
            annotated.invalid += 1
            return
        listing.add(annotated, label, box)


def _read_box(row: Mapping[str, Any], listing: Listing) -> Box:
    """Return the box of an annotation, or without one the box around its segmentation, which is counted.

    Raises:
        TypeError, ValueError: it has neither, or invalid ones.
    """
    if (bbox := row.get("bbox") or None) is not None or not row.get("segmentation"):
        try:
            x, y, width, height = map(float, bbox or ())
        except (TypeError, ValueError):
            raise ValueError("its bbox is not four numbers") from None
        return x, y, x + width, y + height
    segmentation = row["segmentation"]
    if isinstance(segmentation, dict):
        box = _around_runs(segmentation)
        listing.audit.converted["given as a run-length mask without a bbox, read as the box around it"] += 1
        return box
    try:
        values = [[float(value) for value in polygon] for polygon in segmentation]
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in values):
            raise ValueError("a polygon has at least 3 corners")
    except (TypeError, ValueError):
        raise ValueError("it has no bbox, and its segmentation is not polygons of x, y, x, y, x, y, ...") from None
    xs = [x for polygon in values for x in polygon[::2]]
    ys = [y for polygon in values for y in polygon[1::2]]
    listing.audit.converted["given as polygons without a bbox, read as the box around them"] += 1
    return min(xs), min(ys), max(xs), max(ys)


def _around_runs(segmentation: Mapping[str, Any]) -> Box:
    """Return the box around a run-length mask: numbers of pixels off, on, off, ..., column by column.

    Raises:
        ValueError: the mask is compressed, empty or invalid.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if isinstance(counts, str):
        raise ValueError("it has no bbox, and its segmentation is a compressed run-length mask, which is not read")
    height, ends, sound = 0, list[int](), False
    try:
        height, width = map(int, size or ())
        ends = list(itertools.accumulate(int(count) for count in counts or ()))
        sound = height > 0 and ends == sorted(ends) and ends[-1:] == [height * width]
    except (TypeError, ValueError, OverflowError):
        pass
    if not sound:
        raise ValueError("it has no bbox, and the counts of its run-length mask do not fit its size")
    runs = [(start, end) for start, end in zip(ends[::2], ends[1::2], strict=False) if end > start]
    if not runs:
        raise ValueError("it has no bbox, and its run-length mask is empty")
    # A run that passes the bottom of a column covers the whole height of the box.
    whole = any(start // height < (end - 1) // height for start, end in runs)
    top = 0 if whole else min(start % height for start, _ in runs)
    bottom = height if whole else max((end - 1) % height for _, end in runs) + 1
    return runs[0][0] // height, top, (runs[-1][1] - 1) // height + 1, bottom
