"""Images with captions from a folder or zip, in the formats of Flickr8k and COCO.

    captioned = load_captions("flickr8k-1000", image_size=128)

Supported files: `captions.txt` (CSV: image,caption), `*.token.txt` (image#0, a tab, the caption), and COCO's JSON
(captions_*.json). Images may be in any folder; they are found by their file name.

Shapes: N images, H, W pixels.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zerokara.core.config import UserError, error_summary, suggest
from zerokara.core.data.folders import opened
from zerokara.core.data.image_files import SUFFIXES, decode_all
from zerokara.core.data.sources import data_folder, find_data, list_data
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

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def take(self, indices: Sequence[int]) -> CaptionSet:
        """Select images by indices, in that order."""
        return CaptionSet(
            self.images[torch.tensor(list(indices), dtype=torch.int64)],
            tuple(self.names[index] for index in indices),
            tuple(self.captions[index] for index in indices),
            self.source,
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
        UserError: the data do not exist, have no captions, have captions of missing images, or are damaged.
    """
    folder = data_folder(data_dir)
    path = find_data(data, folder)
    if path is None:
        raise UserError(
            f"There is no data set {data!r}{suggest(data, list_data(folder))}: give the path of a folder or zip with "
            f"images and captions.txt, or the name of one in {folder}."
        )
    with opened(path) as (everything, read):
        members = [
            name for name in everything if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
        ]
        pairs = [pair for name in members if (reader := reader_of(name)) for pair in _read(reader, read, name, path)]
        if not pairs:
            raise UserError(
                f"{path} has no captions: expected captions.txt with lines of image,caption, a *.token.txt of "
                f"Flickr8k, or captions_*.json of COCO next to the images."
            )
        path_of = {name.rpartition("/")[2]: name for name in members if Path(name).suffix.lower() in SUFFIXES}
        captions: dict[str, list[str]] = {}
        for image, sentence in pairs:
            captions.setdefault(image, []).append(sentence)
        if missing := sorted(set(captions) - set(path_of)):
            raise UserError(
                f"{path} has captions of {len(missing):,} images that it does not contain, the first of them "
                f"{missing[0]!r}: add the images, or remove their captions."
            )
        names = sorted(captions)
        images = decode_all([path_of[name] for name in names], read, str(path), image_size, False, progress)
    sentences = tuple(tuple(captions[name]) for name in names)
    return CaptionSet(torch.from_numpy(images), tuple(names), sentences, f"{path.stem}, images in {path}")


Reader = Callable[[str], Pairs]


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


def parse_csv(text: str) -> Pairs:
    """Parse CSV lines of image,caption with an optional header; a caption may be quoted.

    Raises:
        ValueError: a line has no caption.
    """
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and [field.strip().lower() for field in rows[0]] == ["image", "caption"]:
        rows = rows[1:]
    for row in rows:
        if len(row) < 2 or not row[1].strip():
            raise ValueError(f"the line {','.join(row)[:60]!r} has no caption")
    return [(row[0].strip(), ",".join(row[1:]).strip()) for row in rows]  # some files have unquoted commas


def parse_tokens(text: str) -> Pairs:
    """Parse Flickr8k.token.txt: lines of image.jpg#0, a tab, and the caption.

    Raises:
        ValueError: a line has another format.
    """
    pairs = []
    for line in text.splitlines():
        if not line.strip():
            continue
        key, tab, sentence = line.partition("\t")
        if not tab or not sentence.strip():
            raise ValueError(f"the line {line[:60]!r} is not image#number, a tab, and a caption")
        pairs.append((key.rpartition("#")[0] or key, sentence.strip()))
    return pairs


def parse_coco(text: str) -> Pairs:
    """Parse COCO's JSON: "images" with id and file_name, "annotations" with image_id and caption.

    Raises:
        ValueError: a key is missing.
    """
    content = json.loads(text)
    try:
        files = {image["id"]: str(image["file_name"]).rpartition("/")[2] for image in content["images"]}
        return [(files[one["image_id"]], str(one["caption"]).strip()) for one in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}, which COCO's captions require") from None


def _read(reader: Reader, read: Callable[[str], bytes], name: str, path: Path) -> Pairs:
    try:
        return reader(read(name).decode("utf-8-sig"))
    except ValueError as error:  # includes invalid UTF-8 and invalid JSON
        raise UserError(
            f"{name} in {path} cannot be parsed as captions ({error_summary(error)}): correct this file."
        ) from None
