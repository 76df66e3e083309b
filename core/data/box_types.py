"""Annotated images, and the lookup of the image that an annotation belongs to. All box readers share this module."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from zerokara.core.config import UserError
from zerokara.core.data.audit import Audit
from zerokara.core.data.mask_files import IMAGES
from zerokara.core.data.reading_rules import active_rules
from zerokara.core.data.splits import AnySplit, split_of

Read = Callable[[str], bytes]
Box = tuple[float, float, float, float]
ANNOTATIONS = frozenset({"annotations", "annotation", "labels", "label", "xml", "xmls", "ann", "anns"})
EXAMPLES = 3  # files that a message names


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
    size: tuple[int, int] | None = None
    """Width and height of the image as the annotation states them; None: not stated."""
    invalid: int = 0
    """Number of its annotations that cannot be read."""
    split: AnySplit | None = None
    """Split that a folder or the annotation file is named after; None: none."""


@dataclass
class Listing:
    """All annotated images of a folder or archive."""

    format_name: str
    """Name of the annotation format."""
    pictures: list[AnnotatedImage]
    classes: tuple[str, ...]
    audit: Audit = field(default_factory=Audit)
    """Annotations that were left out, and further remarks for the user."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Image without a readable annotation, or annotation file of an unknown image -> one sentence."""

    def add(self, annotated: AnnotatedImage, label: str, box: Box) -> None:
        """Add a box to an image, or a description of it to what is left out if it is empty or infinite."""
        sound = box[2] > box[0] and box[3] > box[1]  # also false for NaN
        if not sound or not all(map(math.isfinite, box)):
            values, why = ", ".join(f"{value:g}" for value in box), "is infinite" if sound else "has no area"
            self.audit.left_out.append(f"{label} ({values}) in {annotated.annotation_file}: the box {why}.")
            annotated.invalid += 1
        else:
            annotated.boxes.append((label, box))

    def leave_out_images(self) -> None:
        """Move the images that have annotations, but none that can be read, from `pictures` to `unusable`.

        As images without objects, they would teach a detector that there is none. A resumed run of an older release
        keeps them.
        """
        if active_rules().version < 2:
            return
        for each in self.pictures:
            if each.invalid and not each.boxes:
                self.unusable[each.picture] = f"{each.picture} has no valid annotation in {each.annotation_file}."
        self.pictures = [each for each in self.pictures if each.picture not in self.unusable]


def stated_size(width: object, height: object) -> tuple[int, int] | None:
    """Return the size that an annotation states for its image; None if it states none, or 0, as some tools write."""
    try:
        size = int(float(str(width))), int(float(str(height)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def name_some(paths: Sequence[str]) -> str:
    """Name the first of several files: "a.jpg, b.jpg, c.jpg and 20 more"."""
    rest = len(paths) - EXAMPLES
    return ", ".join(paths[:EXAMPLES]) + (f" and {rest:,} more" if rest > 0 else "")


def invalid(name: str, where: Path, why: str) -> UserError:
    """Return the error for an annotation file that cannot be read."""
    return UserError(f"{name} in {where} is invalid ({why}): replace it with an undamaged copy, or remove it.")


class ImageFinder:
    """Lookup of the image that an annotation belongs to.

    Args:
        paths: paths of all images in the folder or archive.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = set(paths)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in sorted(self._paths):
            last = path.rpartition("/")[2].lower()
            self._by_name.setdefault(last, []).append(path)
            self._by_stem.setdefault(last.rpartition(".")[0], []).append(path)

    def by_name(self, name: str, annotation: str) -> str | None:
        """Find an image by its path relative to an annotation file or to the root, or by its file name alone.

        Returns None if there is no such image, or several of which none belongs to the folder of the annotation file.
        """
        name = name.strip().replace("\\", "/")
        if not name:
            return None
        beside = (PurePosixPath(annotation).parent / name).as_posix()
        for path in (beside, name):
            if path in self._paths:
                return path
        return _choose(self._by_name.get(name.rpartition("/")[2].lower(), ()), annotation)

    def number_of(self, name: str) -> int:
        """Return the number of images of a file name, in all folders."""
        return len(self._by_name.get(name.strip().replace("\\", "/").rpartition("/")[2].lower(), ()))

    def by_stem(self, annotation: str) -> str | None:
        """Find the image with the name of an annotation file, apart from the suffix; see `by_name`."""
        return _choose(self._by_stem.get(annotation.rpartition("/")[2].rpartition(".")[0].lower(), ()), annotation)


def _choose(candidates: Sequence[str], annotation: str) -> str | None:
    """Return the candidate whose folder corresponds to that of the annotation file; None if that is not clear."""
    same = [path for path in candidates if _folder_key(path) == _folder_key(annotation)]
    if len(same) == 1:
        return same[0]
    # The file of one split may name the folder of its images: annotations/instances_train2017.json, train2017/1.jpg.
    words = _words(annotation.rpartition("/")[2].rpartition(".")[0])
    lengths = {path: max((_matched(part, words) for part in path.split("/")[:-1]), default=0) for path in candidates}
    longest = max(lengths.values(), default=0)
    named = [path for path, length in lengths.items() if length == longest > 0]
    if active_rules().version < 2:
        file = annotation.rpartition("/")[2].lower()
        named = [path for path in candidates if any(part.lower() in file for part in path.split("/")[:-1])]
    if len(named) == 1 and not same:
        return named[0]
    compatible = [path for path in candidates if None in (split_of(path), split_of(annotation))]
    return compatible[0] if len(candidates) == len(compatible) == 1 else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def _matched(folder: str, words: Sequence[str]) -> int:
    """Return the number of words of a folder's name if they follow one another in `words`, else 0.

    site_a is in instances_site_a, and train in instances_train2017.
    """
    parts = _words(folder)
    starts = range(len(words) - len(parts) + 1)
    found = any(
        all(part in (word, word.rstrip("0123456789")) for part, word in zip(parts, words[start:], strict=False))
        for start in starts
    )
    return len(parts) if found else 0


def _folder_key(path: str) -> tuple[str, ...]:
    """Return the folders of a path without those named after images or annotations, which are equal for both."""
    return tuple(part for part in path.split("/")[:-1] if part.lower() not in IMAGES | ANNOTATIONS)
