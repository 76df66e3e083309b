"""Images with captions from a folder or zip, in the formats of Flickr8k and COCO.

    captioned = load_captions("flickr8k-1000", image_size=128)

Supported files: `captions.txt` (CSV: image,caption), `*.token.txt` (image#0, a tab, the caption), and COCO's JSON
(captions_*.json). Images may be in any folder; they are found by their file name.

Shapes: N images, H, W pixels.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zerokara.core.choices import Background
from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data.audit import Audit
from zerokara.core.data.box_types import ImageFinder
from zerokara.core.data.coco_ids import spellings, unique_names
from zerokara.core.data.folders import opened
from zerokara.core.data.image_files import SUFFIXES, decode_all, is_hidden
from zerokara.core.data.sources import require_data
from zerokara.core.data.splits import SPLITS, AnySplit, split_of, split_of_file
from zerokara.core.data.types import Progress

Pairs = list[tuple[str, str]]  # (path of an image as it is written in a file, caption)


@dataclass(frozen=True)
class CaptionSet:
    """Images of one size with their captions, on the CPU."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    names: tuple[str, ...]
    """File names of the images, sorted; paths, where several images have one name."""
    captions: tuple[tuple[str, ...], ...]
    """Captions of each image, at least one, in the order of the file."""
    source: str
    """Description of the images' origin, for logs."""
    messages: tuple[str, ...] = ()
    """Lines for the user: what was converted and left out while reading."""
    splits: tuple[AnySplit | None, ...] = ()
    """Split of each image that a folder, a caption file or a list is named after; empty: none has one."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def take(self, indices: Sequence[int]) -> CaptionSet:
        """Select images by indices, in that order."""
        return dataclasses.replace(
            self,
            images=self.images[torch.tensor(list(indices), dtype=torch.int64)],
            names=tuple(self.names[index] for index in indices),
            captions=tuple(self.captions[index] for index in indices),
            splits=tuple(self.splits[index] for index in indices) if self.splits else (),
        )


def load_captions(
    data: str,
    *,
    image_size: int,
    data_dir: Path | None = None,
    background: Background = "auto",
    progress: Progress | None = None,
) -> CaptionSet:
    """Load the captioned images of a folder or zip.

    Args:
        data: a path, or the name of a folder or of `<name>.zip` in `data_dir`.
        image_size: side of the images in pixels; images are scaled to cover the square, and the center is cropped.
        data_dir: folder of named data sets; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        background: color behind transparent pixels.
        progress: callback.

    Raises:
        UserError: the data do not exist, have no captions of images that they contain, or a file is damaged.
    """
    path = require_data(data, data_dir, "images and captions.txt")
    audit = Audit()
    with opened(path, audit) as (everything, read):
        members = [name for name in everything if not is_hidden(name)]
        files = _caption_files(members, audit)
        read_pairs = {name: _read(reader, read, name, path, audit) for name, reader in files.items()}
        if not any(read_pairs.values()):
            raise UserError(
                f"{path} has no captions: expected captions.txt with lines of image,caption, a *.token.txt of "
                f"Flickr8k, or captions_*.json of COCO next to the images."
                + "".join(f" {line}" for line in audit.left_out[:1])
            )
        pictures = [name for name in members if Path(name).suffix.lower() in SUFFIXES]
        captions, file_of = _match(read_pairs, pictures, path, audit)
        if without := sorted(set(pictures) - set(captions)):
            number = format_count(len(without), "image")
            audit.notes.append(f"not used: {number} without a caption, such as {without[0]}")
        found = sorted(captions, key=lambda name: (name.rpartition("/")[2], name))
        images, kept = decode_all(
            found, read, str(path), image_size, False, progress, background=background, audit=audit
        )
        found = [found[index] for index in kept]
        listed = _listed_splits(members, read)
    last = [name.rpartition("/")[2] for name in found]
    repeated = {name for name, number in Counter(last).items() if number > 1}
    names = tuple(name if end in repeated else end for name, end in zip(found, last, strict=True))
    splits = tuple(
        listed.get(end) or split_of(name) or split_of(file_of[name]) or split_of_file(file_of[name])
        for name, end in zip(found, last, strict=True)
    )
    return CaptionSet(
        torch.from_numpy(images),
        names,
        tuple(tuple(captions[name]) for name in found),
        f"{path.stem}, images in {path}",
        audit.messages(),
        splits if len(set(splits)) > 1 else (),
    )


def _caption_files(members: Sequence[str], audit: Audit) -> dict[str, Reader]:
    """Return the caption files with their parsers.

    Flickr8k's archive has its captions a second time, with words in their base forms (lemmas); these are not used.
    """
    files = {name: reader for name in members if (reader := reader_of(name))}
    lemmas = [name for name in files if ".lemma." in name.lower()]
    if len(lemmas) < len(files):
        for name in lemmas:
            del files[name]
            audit.notes.append(f"{name} is not used, because its captions are those of another file in base forms")
    return files


def _match(
    read_pairs: Mapping[str, Pairs], pictures: Sequence[str], where: Path, audit: Audit
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Match captions with images.

    Args:
        read_pairs: caption file -> its pairs.
        pictures: paths of all images.
        where: the folder or archive, for messages.
        audit: gets captions without an image, and images with captions in several files.

    Returns:
        Captions by the path of the image, and the first caption file of each image.

    Raises:
        UserError: no caption has an image.
    """
    finder = ImageFinder(pictures)
    captions: dict[str, list[str]] = {}
    file_of: dict[str, str] = {}
    missing: dict[str, str] = {}  # image -> reason
    several: dict[str, str] = {}  # image with captions in several files -> the second file
    for file, pairs in read_pairs.items():
        found = {name: finder.by_name(name, file) for name in dict.fromkeys(name for name, _ in pairs)}
        for name, sentence in pairs:
            if (picture := found[name]) is None:
                number = finder.number_of(name)
                missing[name] = (
                    f"but it is not clear which of {number} images of this name" if number else "but does not exist"
                )
                continue
            if file_of.setdefault(picture, file) != file:
                several.setdefault(picture, file)
            captions.setdefault(picture, []).append(sentence)
    if not captions:
        first = min(missing)
        raise UserError(
            f"{where} has captions of {format_count(len(missing), 'missing image')}, the first of them {first!r}: "
            f"add what is missing."
        )
    audit.left_out += [f"{name} has captions, {reason}." for name, reason in sorted(missing.items())]
    if several:
        first = min(several)
        audit.notes.append(
            f"{format_count(len(several), 'image has', 'images have')} captions in several files, and all of them "
            f"count: {first} in {file_of[first]} and {several[first]}"
        )
    return captions, file_of


def _listed_splits(members: Sequence[str], read: Callable[[str], bytes]) -> dict[str, AnySplit]:
    """Return the splits of Flickr8k's lists, such as Flickr_8k.trainImages.txt, by file names of images."""
    splits: dict[str, AnySplit] = {}
    for name in members:
        if found := LIST.fullmatch(name.rpartition("/")[2]):
            names = _lines(read(name).decode("utf-8-sig", "replace"))
            splits |= dict.fromkeys((each.strip() for each in names if each.strip()), SPLITS[found[1].lower()])
    return splits


LIST = re.compile(r"Flickr_?\d+k\.(train|dev|test)Images\.txt", re.IGNORECASE)
MAX_CAPTION_LINES = 20  # lines of one caption
SEPARATORS = (",", ";", "\t", "|")
IMAGE_COLUMNS = frozenset({"image", "image_name", "image_path", "img", "file", "filename", "file_name", "name", "path"})
CAPTION_COLUMNS = frozenset({"caption", "captions", "comment", "text", "sentence", "description"})
Reader = Callable[[str, list[str]], Pairs]
"""Function that parses the text of a file, and appends a sentence for each line that it leaves out to a list."""


def reader_of(name: str) -> Reader | None:
    """Return the parser of a caption file by its name; None for all other files."""
    file = name.rpartition("/")[2].lower()
    if file in {"captions.txt", "captions.csv", "captions.tsv"}:
        return parse_csv
    if file.endswith(".token.txt"):
        return parse_tokens
    if file.startswith("captions") and file.endswith(".json"):
        return parse_coco
    return None


def parse_csv(text: str, left_out: list[str]) -> Pairs:
    """Parse CSV lines of image,caption with an optional header; a caption may be quoted.

    The header may name other columns beside them, in any order, and have another separator (";", "|" or a tab). A
    quoted caption may have line breaks, which become spaces. A quotation mark without its counterpart does not swallow
    other lines: see `_join_lines`.

    Raises:
        ValueError: the first line has several columns, and it is not clear which of them is the caption.
    """
    pairs: Pairs = []
    lines = _lines(text)
    columns = _read_header(lines[0])
    for line in _join_lines(lines[columns.is_header :], columns):
        try:
            row = next(csv.reader([line], delimiter=columns.separator), [])
        except csv.Error:  # a field of more than 128 KiB
            left_out.append(f"The line {line[:40]!r} is too long.")
            continue
        if not row:
            continue
        sentence, image = columns.caption_of(row), row[columns.image].strip() if columns.image < len(row) else ""
        if sentence and image:
            pairs.append((image, sentence))
        else:
            left_out.append(f"The line {line[:40]!r} has no {'caption' if image else 'image'}.")
    return pairs


@dataclass(frozen=True)
class _Columns:
    """Columns of a CSV file."""

    is_header: bool = False
    """The first line names the columns."""
    separator: str = ","
    image: int = 0
    caption: int = 1
    number: int = 2
    """Number of columns."""

    def caption_of(self, row: Sequence[str]) -> str:
        """Return the caption of a row; some files have unquoted separators in captions, which are the last column."""
        is_last = self.caption == self.number - 1
        return self.separator.join(row[self.caption : None if is_last else self.caption + 1]).strip()


def _read_header(line: str) -> _Columns:
    """Find the columns of image and caption in the first line of a CSV file.

    Raises:
        ValueError: the first line has several columns, and it is not clear which of them is the caption.
    """
    for separator in SEPARATORS:
        fields = [field.strip().strip('"').lower() for field in line.split(separator)]
        images = [index for index, field in enumerate(fields) if field in IMAGE_COLUMNS]
        captions = [index for index, field in enumerate(fields) if field in CAPTION_COLUMNS]
        if images and captions:
            return _Columns(True, separator, images[0], captions[0], len(fields))
    if line.count(",") >= 2 and line.partition(",")[0].strip() != "" and not _begins_with_image(line):
        raise ValueError(f"its first line is {line[:60]!r}: name the columns image and caption")
    return _Columns()


def _begins_with_image(line: str, separator: str = ",") -> bool:
    """Return True if the first field of a line is the name of an image."""
    return Path(line.partition(separator)[0].strip(' "')).suffix.lower() in SUFFIXES


def _lines(text: str) -> list[str]:
    """Split at the ends of lines. Unlike `str.splitlines`, further separators of Unicode may be inside of captions."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _join_lines(lines: Sequence[str], columns: _Columns) -> Iterator[str]:
    """Join the lines of a quoted caption with spaces.

    Lines belong together if a quotation mark is closed in one of the next lines, and none of these begins with the name
    of an image.
    """
    index = 0
    while index < len(lines):
        joined, count = lines[index], 1
        while not _is_complete(joined, columns.separator) and count < MAX_CAPTION_LINES and index + count < len(lines):
            following = lines[index + count]
            if _begins_with_image(following, columns.separator):
                break
            joined, count = f"{joined} {following}", count + 1
        if not _is_complete(joined, columns.separator):
            joined, count = lines[index], 1
        yield joined
        index += count


def _is_complete(line: str, separator: str) -> bool:
    """Return True if no quoted field of a CSV line is open at its end."""
    try:
        next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error as error:
        return "unexpected end of data" not in str(error)
    return True


def parse_tokens(text: str, left_out: list[str]) -> Pairs:
    """Parse Flickr8k.token.txt: lines of image.jpg#0, a tab, and the caption."""
    pairs = []
    for line in _lines(text):
        if not line.strip():
            continue
        key, tab, sentence = line.partition("\t")
        if not tab or not sentence.strip():
            left_out.append(f"The line {line[:40]!r} is not image#number, a tab, and a caption.")
            continue
        pairs.append((key.rpartition("#")[0] or key, sentence.strip()))
    return pairs


def parse_coco(text: str, left_out: list[str]) -> Pairs:
    """Parse COCO's JSON: "images" with id and file_name, "annotations" with image_id and caption.

    Raises:
        ValueError: it is not JSON, a key is missing, or an id belongs to two images.
    """
    try:
        content = json.loads(text)
        images = ((image["id"], str(image["file_name"])) for image in content["images"])
        files = unique_names(images)
        rows = list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}, which COCO's captions require") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    known = spellings(files)
    pairs: Pairs = []
    for row in rows:
        id, sentence = (row.get("image_id"), row.get("caption")) if isinstance(row, dict) else (None, None)
        if not isinstance(id, int | str) or not isinstance(sentence, str) or not sentence.strip():
            left_out.append(f"The annotation {str(row)[:60]!r} has no image_id or no caption.")
        elif id not in known:
            left_out.append(f"A caption has the image_id {id!r}, which no image has.")
        else:
            pairs.append((files[known[id]], sentence.strip()))
    return pairs


def _read(reader: Reader, read: Callable[[str], bytes], name: str, path: Path, audit: Audit) -> Pairs:
    try:
        return reader(read(name).decode("utf-8-sig"), audit.left_out)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} in {path} is not in UTF-8 (byte {error.start:,}): save it in this encoding.") from None
    except ValueError as error:  # includes invalid JSON
        raise UserError(
            f"{name} in {path} cannot be parsed as captions ({error_summary(error)}): correct this file."
        ) from None
