"""What a painter learns from: any images, audited first.

Named sets come from core.data, frames from envs. Folders, zips and LSUN databases are read here, because a painter
wants to hear what is in them: broken pictures are named and left out, mixed kinds are brought to one and counted.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from zerokara.core import data
from zerokara.core.config import UserError
from zerokara.core.data import DATASETS, ImageSet, Progress, Split, hold_out, lsun
from zerokara.core.data.pictures import MOST_BYTES, SUFFIXES, decode, fit, reshaped, with_channels
from zerokara.core.data.types import image_set
from zerokara.envs.frames import record
from zerokara.generative.gan.config import Config

FRAMES = "frames:"
SPLIT_SEED = 0  # the same images are held out whatever the run's seed
EVERY = 10  # without a test folder every tenth picture is for testing
FEWEST = 100  # images to learn from
FEWEST_HELD_OUT = 8  # neighbours are counted among them, and covariances taken
SMALLEST = 8  # pixels of a side
LEAST, LARGEST = 28, 256  # pixels of a side that can be painted
KINDS = {
    "1": "of 1 bit",
    "P": "with a palette",
    "RGBA": "with transparency, laid on white",
    "LA": "with transparency, laid on white",
    "PA": "with transparency, laid on white",
    "CMYK": "in CMYK",
    "YCbCr": "in YCbCr",
    "I;16": "of 16 bits, brought to 8",
    "I;16B": "of 16 bits, brought to 8",
}


@dataclass(frozen=True)
class Data:
    """Images to learn from, and images on which the best moment is chosen; test images are not among them."""

    train: ImageSet
    held_out: ImageSet
    remarks: tuple[str, ...]  # what the audit found, a sentence each

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Data:
        """Read the training images and hold some out.

        Raises:
            UserError: data that are not there, or too few; sizes that do not fit.
        """
        everything, remarks = load_split(config, "train", progress)
        _, height, width = everything.shape
        if not (min(height, width) >= LEAST and max(height, width) <= LARGEST):
            raise UserError(
                f"{everything.source} has images of {height}x{width} pixels, and sides of {LEAST} to {LARGEST} can be "
                f"painted: "
                f"bring them to a size with --image-size 64, or another one."
            )
        if 0 < config.held_out_images < FEWEST_HELD_OUT:
            raise UserError(
                f"--held-out-images {config.held_out_images} are too few to choose on: give at least "
                f"{FEWEST_HELD_OUT}, or 0 for a twelfth of the images."
            )
        number = config.held_out_images or min(5_000, len(everything) // 12)
        if len(everything) - number < max(FEWEST, config.batch_size):
            raise UserError(
                f"{everything.source} has {len(everything):,} images, too few to learn from: "
                f"at least {max(FEWEST, config.batch_size) + max(1, number):,} are needed."
            )
        if config.data.startswith(FRAMES):  # neighbours in time are alike, so whole games are held out
            train = everything.take(slice(0, len(everything) - number))
            held_out = _frames(config, "held out", number, progress)
        else:
            train, held_out = hold_out(everything, number, SPLIT_SEED)
        if config.conditional and len(train.classes) < 2:
            raise UserError(
                f"--conditional paints by class, and {everything.source} has no classes: leave it out, or sort the "
                f"images into folders, one for each class."
            )
        return cls(train, held_out, tuple(remarks))


def size_of(config: Config) -> tuple[int, int] | None:
    """(H, W) that `--image-size` asks for, None where images stay as they are.

    Raises:
        UserError: more than two numbers.
    """
    size = config.image_size
    if len(size) > 2:
        raise UserError(f"--image-size takes a side, or height and width, got {' '.join(map(str, size))}.")
    return None if not size else (size[0], size[-1])


def load_split(config: Config, split: Split, progress: Progress | None = None) -> tuple[ImageSet, list[str]]:
    """The training images (with those to be held out) or the test images, and what the audit found.

    Raises:
        UserError: no such data, or nothing in them that can be used.
    """
    size = size_of(config)
    folder = Path(config.data_dir) if config.data_dir else None
    if config.data.startswith(FRAMES):
        number = config.frames if split == "train" else max(FEWEST, config.frames // 5)
        return _frames(config, split, number, progress), []
    if config.data in DATASETS:
        images = data.load(config.data, split, data_dir=folder, progress=progress)
        return reshaped(images, size, config.grayscale), []
    path = Path(config.data).expanduser()
    if not path.exists():
        images = data.load(
            config.data, split, data_dir=folder, image_size=None, grayscale=config.grayscale, progress=progress
        )
        return reshaped(images, size, config.grayscale), []
    return _audited(path, split, size, config.grayscale, progress)


def _frames(
    config: Config, part: Literal["train", "held out", "test"], number: int, progress: Progress | None
) -> ImageSet:
    """Frames of random play; each part is of games of its own."""
    id, size = config.data.removeprefix(FRAMES), size_of(config)
    grayscale = True if config.grayscale is None else config.grayscale
    own = id.startswith("zerokara/")  # our games are drawn at 84x84, whatever is asked for
    side = 84 if own or size is None else max(size)
    if config.frame_stack > 1 and size not in (None, (side, side)):
        raise UserError(
            "--frame-stack above 1 takes square images as the environment gives them: leave --image-size out."
        )
    images_NCHW = record(
        id,
        number,
        seed=config.seed * 3 + ("train", "held out", "test").index(part),
        frame_stack=config.frame_stack,
        size=side,
        grayscale=grayscale,
        progress=progress,
    )
    source = f"frames of {id} ({part}), {config.frame_stack} in an image, played at random"
    images = image_set(images_NCHW, np.zeros(number, np.int64), (id,), source)
    return images if config.frame_stack > 1 else reshaped(images, size, None)


@dataclass
class _Audit:
    """What is found on the way through a folder."""

    kinds: Counter[str] = field(default_factory=Counter)
    grayscale: int = 0
    broken: list[str] = field(default_factory=list)

    def remarks(self, where: str, used: int, coloured: bool) -> list[str]:
        """Sentences for a person."""
        found = [f"{where}: {used:,} images"]
        kinds = [f"{number:,} {kind}" for kind, number in sorted(self.kinds.items())]
        if coloured and self.grayscale:
            kinds.append(f"{self.grayscale:,} grey among coloured ones, put into all three colours")
        if kinds:
            found.append(f"converted: {', '.join(kinds)}")
        if self.broken:
            shown = " ".join(self.broken[:5])
            more = f" And {len(self.broken) - 5:,} more." if len(self.broken) > 5 else ""
            found.append(f"{len(self.broken):,} left out: {shown}{more}")
        return found


def _audited(
    path: Path, split: Split, size: tuple[int, int] | None, grayscale: bool | None, progress: Progress | None
) -> tuple[ImageSet, list[str]]:
    """Every picture below a folder, in a zip or in LSUN databases, that can be read."""
    audit = _Audit()
    pictures: list[np.ndarray] = []
    labels: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    with _opened(path, split) as members:
        for index, (name, label, read) in enumerate(members):
            try:
                picture_HWC = _decode(read(), f"{name} in {path}", audit)
            except UserError as error:
                audit.broken.append(str(error))
                continue
            if size is not None:
                picture_HWC = fit(picture_HWC, size)
            elif max(picture_HWC.shape[:2]) > LARGEST:  # thousands of photographs as they are would fill the memory
                height, width = picture_HWC.shape[:2]
                raise UserError(
                    f"{name} in {path} has {width}x{height} pixels, and sides of {LEAST} to {LARGEST} can be painted: "
                    f"bring all pictures to a size with --image-size 64, or another one."
                )
            picture_HWC = with_channels(picture_HWC, grayscale)
            sizes[picture_HWC.shape[0], picture_HWC.shape[1]] += 1
            pictures.append(picture_HWC)
            labels.append(label)
            if progress is not None and index % 256 == 255:
                progress(f"reading {path}", index + 1, 0)
    if not pictures:
        reason = f": {audit.broken[0]}" if audit.broken else "."
        raise UserError(f"There are no images that can be read in {path}{reason}")
    if len(sizes) > 1:
        (height, width), _ = sizes.most_common(1)[0]
        raise UserError(
            f"{path} has images of {len(sizes):,} sizes, most of {height}x{width} pixels: "
            f"bring all to one with --image-size {min(LARGEST, max(LEAST, min(height, width)))}, or another number."
        )
    coloured = any(picture.shape[2] == 3 for picture in pictures)
    images_NHWC = np.stack([with_channels(picture, False) if coloured else picture for picture in pictures])
    classes = tuple(sorted(set(labels)))
    source = f"{path.stem} ({split}), pictures in {path}"
    images = image_set(
        images_NHWC.transpose(0, 3, 1, 2), np.array([classes.index(label) for label in labels]), classes, source
    )
    return images, audit.remarks(str(path), len(pictures), coloured)


def _decode(content: bytes, name: str, audit: _Audit) -> np.ndarray:
    """One picture (H, W, C) uint8, noted in the audit.

    Raises:
        UserError: it cannot be used; says why.
    """
    picture_HWC = decode(content, name)
    height, width, channels = picture_HWC.shape
    if min(height, width) < SMALLEST:
        raise UserError(f"{name} has {width}x{height} pixels, too few to show anything.")
    audit.grayscale += channels == 1
    with Image.open(io.BytesIO(content)) as opened:
        if kind := KINDS.get(opened.mode):
            audit.kinds[kind] += 1
    return picture_HWC


Member = tuple[str, str, Callable[[], bytes]]  # name, class, and what reads it


@contextmanager
def _opened(path: Path, split: Split) -> Iterator[Iterator[Member]]:
    """The pictures of a split, by name."""
    if path.is_dir() and (databases := lsun.databases(path)):
        yield _lsun(databases, split)
    elif path.is_dir():
        names = (p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        yield ((name, label, lambda n=name: _read(path / n)) for name, label in _split(names, split))  # type: ignore[misc]
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is no sound zip archive ({error}): give a folder or zip of images.") from None
        with archive:
            names = (info.filename for info in archive.infolist() if not info.is_dir())
            yield (
                (name, label, lambda n=name: _unzip(archive, n))  # type: ignore[misc]
                for name, label in _split(names, split)
            )


def _split(names: Iterator[str], split: Split) -> list[tuple[str, str]]:
    """Pictures of a split with their classes: the folders they lie in, below train/ and test/ or val/ if there are."""
    kept = sorted(
        name
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    )
    while kept and len({name.split("/")[0] for name in kept}) == 1 and all("/" in name for name in kept):
        prefix = kept[0].split("/")[0]
        if prefix in ("train", "test", "val"):
            break
        inner = [name[len(prefix) + 1 :] for name in kept]
        if not any("/" in name for name in inner):
            break  # a single class folder
        return [(f"{prefix}/{name}", label) for name, label in _split(iter(inner), split)]
    tops = {name.split("/")[0] for name in kept if "/" in name}
    test = next((folder for folder in ("test", "val") if folder in tops), None) if "train" in tops else None
    if test is not None:
        folder = "train" if split == "train" else test
        return [(name, _class(name[len(folder) + 1 :])) for name in kept if name.startswith(f"{folder}/")]
    return [
        (name, _class(name.removeprefix("train/")))
        for index, name in enumerate(kept)
        if (index % EVERY == 0) == (split == "test")
    ]


def _class(name: str) -> str:
    return name.split("/")[0] if "/" in name else "all"


def _lsun(databases: dict[str, dict[Split, Path]], split: Split) -> Iterator[Member]:
    for category, splits in databases.items():
        with lsun.opened(splits.get(split, splits["train"])) as (keys, read):
            for index, key in enumerate(keys):
                if "test" in splits or (index % EVERY == 0) == (split == "test"):
                    yield key, category, lambda k=key: read(k)  # type: ignore[misc]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size / 2**20:,.0f} MiB, too many for a picture.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _unzip(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise UserError(f"{name} has {archive.getinfo(name).file_size / 2**20:,.0f} MiB, too many for a picture.")
    try:
        return archive.read(name)
    except Exception as error:  # noqa: BLE001  (zlib, zipfile and codecs raise a dozen types on damaged archives)
        raise UserError(f"{name} cannot be unpacked ({error}).") from None
