"""Photographs with sentences about them: Flickr8k's files and COCO's captions, in a folder or a zip.

    captioned = load_captions("flickr8k-1000", image_size=128)

Read are `captions.txt` (CSV: image,caption), `*.token.txt` (image#0, a tab, the caption), and JSON of COCO
(captions_*.json). The photographs may lie anywhere beside them; one is found by its file name.

Shapes: N photographs, H, W pixels.
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
from zerokara.core.data.pictures import SUFFIXES, decode_all
from zerokara.core.data.sources import home, inside, locate
from zerokara.core.data.types import Progress

Pairs = list[tuple[str, str]]  # file name of a photograph, and a sentence about it


@dataclass(frozen=True)
class CaptionSet:
    """Photographs of one size and what people said of them, on the CPU."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    names: tuple[str, ...]
    """Their file names, sorted."""
    captions: tuple[tuple[str, ...], ...]
    """Sentences about each, at least one, in the order of the file."""
    source: str
    """Where they came from, in words, for logs."""

    def __len__(self) -> int:
        """How many photographs."""
        return len(self.names)

    def take(self, places: Sequence[int]) -> CaptionSet:
        """The photographs at these places, in that order."""
        return CaptionSet(
            self.images[torch.tensor(list(places), dtype=torch.int64)],
            tuple(self.names[place] for place in places),
            tuple(self.captions[place] for place in places),
            self.source,
        )


def load_captions(
    data: str, *, image_size: int, data_dir: Path | None = None, progress: Progress | None = None
) -> CaptionSet:
    """Captioned photographs of a folder or zip.

    Args:
        data: a path, or the name of a folder or of `<name>.zip` in `data_dir`.
        image_size: side in pixels to which photographs are brought: scaled until they cover it, the middle cut out.
        data_dir: where named data lie; None: $ZEROKARA_DATA, else ~/.cache/zerokara.

    Raises:
        UserError: no such data, no captions in them, captions of photographs that are not there, broken files.
    """
    folder = home(data_dir)
    path = locate(data, folder)
    if path is None:
        raise UserError(
            f"There are no data {data!r}{suggest(data, inside(folder))}: give a path to a folder or zip with "
            f"photographs and captions.txt, or the name of one in {folder}."
        )
    with opened(path) as (everything, read):
        members = [
            name for name in everything if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
        ]
        pairs = [pair for name in members if (reader := reader_of(name)) for pair in _read(reader, read, name, path)]
        if not pairs:
            raise UserError(
                f"{path} has no captions: expected captions.txt with lines of image,caption, a *.token.txt of "
                f"Flickr8k, or captions_*.json of COCO beside the photographs."
            )
        places = {name.rpartition("/")[2]: name for name in members if Path(name).suffix.lower() in SUFFIXES}
        captions: dict[str, list[str]] = {}
        for image, sentence in pairs:
            captions.setdefault(image, []).append(sentence)
        if missing := sorted(set(captions) - set(places)):
            raise UserError(
                f"{path} has captions of {len(missing):,} photographs that are not in it, the first of them "
                f"{missing[0]!r}: put them there, or take their lines out."
            )
        names = sorted(captions)
        images = decode_all([places[name] for name in names], read, str(path), image_size, False, progress)
    sentences = tuple(tuple(captions[name]) for name in names)
    return CaptionSet(torch.from_numpy(images), tuple(names), sentences, f"{path.stem}, photographs in {path}")


Reader = Callable[[str], Pairs]


def reader_of(name: str) -> Reader | None:
    """What reads a file of captions by its name; None for all other files."""
    file = name.rpartition("/")[2]
    if file == "captions.txt":
        return parse_csv
    if file.endswith(".token.txt"):
        return parse_tokens
    if file.startswith("captions") and file.endswith(".json"):
        return parse_coco
    return None


def parse_csv(text: str) -> Pairs:
    """Lines of image,caption under a heading; a caption may be in quotes.

    Raises:
        ValueError: a line without a caption.
    """
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and [field.strip().lower() for field in rows[0]] == ["image", "caption"]:
        rows = rows[1:]
    for row in rows:
        if len(row) < 2 or not row[1].strip():
            raise ValueError(f"the line {','.join(row)[:60]!r} has no caption")
    return [(row[0].strip(), ",".join(row[1:]).strip()) for row in rows]  # some files have commas and no quotes


def parse_tokens(text: str) -> Pairs:
    """Flickr8k.token.txt: lines of image.jpg#0, a tab, and the caption.

    Raises:
        ValueError: a line of another form.
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
    """COCO: "images" with id and file_name, "annotations" with image_id and caption.

    Raises:
        ValueError: it is not of that form.
    """
    content = json.loads(text)
    try:
        files = {image["id"]: str(image["file_name"]).rpartition("/")[2] for image in content["images"]}
        return [(files[one["image_id"]], str(one["caption"]).strip()) for one in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}, which COCO's captions have") from None


def _read(reader: Reader, read: Callable[[str], bytes], name: str, path: Path) -> Pairs:
    try:
        return reader(read(name).decode("utf-8-sig"))
    except ValueError as error:  # also bytes that are no UTF-8, and broken JSON
        raise UserError(
            f"{name} in {path} makes no sense as captions ({error_summary(error)}): mend that file."
        ) from None
