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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zerokara.core.config import UserError, error_summary
from zerokara.core.data.audit import Audit
from zerokara.core.data.coco_ids import spellings, unique_names
from zerokara.core.data.folders import opened
from zerokara.core.data.image_files import SUFFIXES, decode_all, is_hidden
from zerokara.core.data.sources import require_data
from zerokara.core.data.types import Progress

Pairs = list[tuple[str, str]]  # (file name of an image, caption)


@dataclass(frozen=True)
class CaptionSet:
    """Images of one size with their captions, on the CPU."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    names: tuple[str, ...]
    """File names of the images, sorted."""
    captions: tuple[tuple[str, ...], ...]
    """Captions of each image, at least one, in the order of the file."""
    source: str
    """Description of the images' origin, for logs."""
    messages: tuple[str, ...] = ()
    """Lines for the user: what was converted and left out while reading."""

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
        )


def load_captions(
    data: str, *, image_size: int, data_dir: Path | None = None, progress: Progress | None = None
) -> CaptionSet:
    """Load the captioned images of a folder or zip.

    Args:
        data: a path, or the name of a folder or of `<name>.zip` in `data_dir`.
        image_size: side of the images in pixels; images are scaled to cover the square, and the center is cropped.
        data_dir: folder of named data sets; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        progress: callback.

    Raises:
        UserError: the data do not exist, have no captions of images that they contain, or a file is damaged.
    """
    path = require_data(data, data_dir, "images and captions.txt")
    audit = Audit()
    with opened(path, audit) as (everything, read):
        members = [name for name in everything if not is_hidden(name)]
        pairs = [
            pair for name in members if (reader := reader_of(name)) for pair in _read(reader, read, name, path, audit)
        ]
        if not pairs:
            raise UserError(
                f"{path} has no captions: expected captions.txt with lines of image,caption, a *.token.txt of "
                f"Flickr8k, or captions_*.json of COCO next to the images."
                + "".join(f" {line}" for line in audit.left_out[:1])
            )
        path_of = {name.rpartition("/")[2]: name for name in members if Path(name).suffix.lower() in SUFFIXES}
        captions: dict[str, list[str]] = {}
        for image, sentence in pairs:
            captions.setdefault(image, []).append(sentence)
        names = sorted(set(captions) & set(path_of))
        missing = sorted(set(captions) - set(path_of))
        if not names:
            raise UserError(
                f"{path} has captions of {len(missing):,} images that it does not contain, the first of them "
                f"{missing[0]!r}: add the images."
            )
        audit.left_out += [f"{name} has captions, but does not exist." for name in missing]
        if without := sorted(set(path_of) - set(captions)):
            audit.notes.append(f"{len(without):,} images without a caption are not used, such as {without[0]}")
        images, kept = decode_all(
            [path_of[name] for name in names], read, str(path), image_size, False, progress, audit=audit
        )
    names = [names[index] for index in kept]
    sentences = tuple(tuple(captions[name]) for name in names)
    source = f"{path.stem}, images in {path}"
    return CaptionSet(torch.from_numpy(images), tuple(names), sentences, source, audit.messages())


MAX_CAPTION_LINES = 20  # lines of one caption
Reader = Callable[[str, list[str]], Pairs]
"""Function that parses the text of a file, and appends a sentence for each line that it leaves out to a list."""


def reader_of(name: str) -> Reader | None:
    """Return the parser of a caption file by its name; None for all other files."""
    file = name.rpartition("/")[2]
    if file == "captions.txt":
        return parse_csv
    if file.endswith(".token.txt"):
        return parse_tokens
    if file.startswith("captions") and file.endswith(".json"):
        return parse_coco
    return None


def parse_csv(text: str, left_out: list[str]) -> Pairs:
    """Parse CSV lines of image,caption with an optional header; a caption may be quoted.

    A quoted caption may have line breaks, which become spaces. A quotation mark without its counterpart does not
    swallow other lines: see `_join_lines`.
    """
    pairs = []
    for number, line in enumerate(_join_lines(_lines(text))):
        try:
            row = next(csv.reader([line]), [])
        except csv.Error:  # a field of more than 128 KiB
            left_out.append(f"The line {line[:40]!r} is too long.")
            continue
        if not row or (number == 0 and [field.strip().lower() for field in row] == ["image", "caption"]):
            continue
        sentence = ",".join(row[1:]).strip()  # some files have unquoted commas
        if sentence:
            pairs.append((row[0].strip().rpartition("/")[2], sentence))
        else:
            left_out.append(f"The line {line[:40]!r} has no caption.")
    return pairs


def _lines(text: str) -> list[str]:
    """Split at the ends of lines. Unlike `str.splitlines`, further separators of Unicode may be inside of captions."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _join_lines(lines: Sequence[str]) -> Iterator[str]:
    """Join the lines of a quoted caption with spaces.

    Lines belong together if a quotation mark is closed in one of the next lines, and none of these begins with the name
    of an image.
    """
    index = 0
    while index < len(lines):
        joined, count = lines[index], 1
        while not _is_complete(joined) and count < MAX_CAPTION_LINES and index + count < len(lines):
            following = lines[index + count]
            if Path(following.partition(",")[0].strip(' "')).suffix.lower() in SUFFIXES:
                break
            joined, count = f"{joined} {following}", count + 1
        if not _is_complete(joined):
            joined, count = lines[index], 1
        yield joined
        index += count


def _is_complete(line: str) -> bool:
    """Return True if no quoted field of a CSV line is open at its end."""
    try:
        next(csv.reader([line], strict=True), [])
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
        pairs.append(((key.rpartition("#")[0] or key).rpartition("/")[2], sentence.strip()))
    return pairs


def parse_coco(text: str, left_out: list[str]) -> Pairs:
    """Parse COCO's JSON: "images" with id and file_name, "annotations" with image_id and caption.

    Raises:
        ValueError: it is not JSON, a key is missing, or an id belongs to two images.
    """
    try:
        content = json.loads(text)
        images = ((image["id"], str(image["file_name"])) for image in content["images"])
        files = {id: name.rpartition("/")[2] for id, name in unique_names(images).items()}
        known = spellings(files)
        rows = [(one["image_id"], str(one["caption"]).strip()) for one in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}, which COCO's captions require") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    left_out += [f"A caption has the image_id {id!r}, which no image has." for id, _ in rows if id not in known]
    return [(files[known[id]], sentence) for id, sentence in rows if id in known]


def _read(reader: Reader, read: Callable[[str], bytes], name: str, path: Path, audit: Audit) -> Pairs:
    try:
        return reader(read(name).decode("utf-8-sig"), audit.left_out)
    except ValueError as error:  # includes invalid UTF-8 and invalid JSON
        raise UserError(
            f"{name} in {path} cannot be parsed as captions ({error_summary(error)}): correct this file."
        ) from None
