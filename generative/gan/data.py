"""Training images of a GAN.

Named data sets are read by core.data, and frames by envs. Folders, zip files and LSUN databases are read here: images
that cannot be read are named and left out, and images of different modes are converted and counted.

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
from zerokara.core.data.image_files import (
    SUFFIXES,
    convert_channels,
    convert_image_set,
    decode,
    read_file,
    read_member,
    resize_and_crop,
)
from zerokara.core.data.types import image_set
from zerokara.envs.frames import record
from zerokara.generative.gan.config import Config

FRAMES = "frames:"
SPLIT_SEED = 0  # the same images are held out whatever the run's seed
TEST_EVERY = 10  # without a test folder every tenth image is a test image
MIN_IMAGES = 100  # for training
MIN_HELD_OUT = 8  # the metrics need neighbors and covariances
MIN_READABLE_SIDE = 8  # pixels
MIN_SIDE, MAX_SIDE = 28, 256  # pixels, of the images that the networks generate
CONVERTED_MODES = {
    "1": "of 1 bit",
    "P": "with a palette",
    "RGBA": "with transparency, placed on white",
    "LA": "with transparency, placed on white",
    "PA": "with transparency, placed on white",
    "CMYK": "in CMYK",
    "YCbCr": "in YCbCr",
    "I;16": "of 16 bits, reduced to 8",
    "I;16B": "of 16 bits, reduced to 8",
}


@dataclass(frozen=True)
class Data:
    """Training images, and held-out images for evaluation. Neither contains test images."""

    train: ImageSet
    held_out: ImageSet
    messages: tuple[str, ...]  # number of images, conversions, images left out

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Data:
        """Read the training images and hold some out.

        Raises:
            UserError: no such data, too few images, or sizes that the networks do not support.
        """
        all_images, messages = load_split(config, "train", progress)
        _, height, width = all_images.shape
        if not (min(height, width) >= MIN_SIDE and max(height, width) <= MAX_SIDE):
            raise UserError(
                f"{all_images.source} has images of {height}x{width} pixels, and sides of {MIN_SIDE} to "
                f"{MAX_SIDE} are supported: resize them with --image-size 64, for example."
            )
        if 0 < config.held_out_images < MIN_HELD_OUT:
            raise UserError(
                f"--held-out-images must be at least {MIN_HELD_OUT}, or 0 for a twelfth of the images, got "
                f"{config.held_out_images}."
            )
        number = config.held_out_images or min(5_000, len(all_images) // 12)
        if len(all_images) - number < max(MIN_IMAGES, config.batch_size):
            raise UserError(
                f"{all_images.source} has {len(all_images):,} images, too few for training: "
                f"at least {max(MIN_IMAGES, config.batch_size) + max(1, number):,} are needed."
            )
        if config.data.startswith(FRAMES):  # consecutive frames are similar, so separate episodes are held out
            train = all_images.take(slice(0, len(all_images) - number))
            held_out = _frames(config, "held out", number, progress)
        else:
            train, held_out = hold_out(all_images, number, SPLIT_SEED)
        if config.conditional and len(train.classes) < 2:
            raise UserError(
                f"--conditional needs classes, and {all_images.source} has no classes: remove it, or put the "
                f"images into folders, one for each class."
            )
        return cls(train, held_out, tuple(messages))


def size_of(config: Config) -> tuple[int, int] | None:
    """Return (H, W) of --image-size, or None if images are not resized.

    Raises:
        UserError: more than two numbers.
    """
    size = config.image_size
    if len(size) > 2:
        raise UserError(f"--image-size takes one side, or height and width, got {' '.join(map(str, size))}.")
    return None if not size else (size[0], size[-1])


def load_split(config: Config, split: Split, progress: Progress | None = None) -> tuple[ImageSet, list[str]]:
    """Load the training images (with those to be held out) or the test images, and messages about them.

    Raises:
        UserError: no such data, or no usable images in them.
    """
    size = size_of(config)
    folder = Path(config.data_dir) if config.data_dir else None
    if config.data.startswith(FRAMES):
        number = config.frames if split == "train" else max(MIN_IMAGES, config.frames // 5)
        return _frames(config, split, number, progress), []
    if config.data in DATASETS:
        images = data.load(config.data, split, data_dir=folder, progress=progress)
        return convert_image_set(images, size, config.grayscale), []
    path = Path(config.data).expanduser()
    if not path.exists():
        images = data.load(
            config.data, split, data_dir=folder, image_size=None, grayscale=config.grayscale, progress=progress
        )
        return convert_image_set(images, size, config.grayscale), []
    return _audited(path, split, size, config.grayscale, progress)


def _frames(
    config: Config, part: Literal["train", "held out", "test"], number: int, progress: Progress | None
) -> ImageSet:
    """Record frames of random play. Each part has its own episodes."""
    id, size = config.data.removeprefix(FRAMES), size_of(config)
    grayscale = True if config.grayscale is None else config.grayscale
    fixed_size = id.startswith("zerokara/")  # these games are always rendered at 84x84
    side = 84 if fixed_size or size is None else max(size)
    if config.frame_stack > 1 and size not in (None, (side, side)):
        raise UserError("--frame-stack above 1 needs square images of the environment's own size: remove --image-size.")
    images_NCHW = record(
        id,
        number,
        seed=config.seed * 3 + ("train", "held out", "test").index(part),
        frame_stack=config.frame_stack,
        size=side,
        grayscale=grayscale,
        progress=progress,
    )
    source = f"frames of {id} ({part}), {config.frame_stack} per image, random policy"
    images = image_set(images_NCHW, np.zeros(number, np.int64), (id,), source)
    return images if config.frame_stack > 1 else convert_image_set(images, size, None)


@dataclass
class _Audit:
    """Counts of converted images and errors of unreadable ones, collected while reading a folder."""

    kinds: Counter[str] = field(default_factory=Counter)
    grayscale: int = 0
    broken: list[str] = field(default_factory=list)

    def messages(self, where: str, used: int, color: bool) -> list[str]:
        """Format the audit as messages."""
        lines = [f"{where}: {used:,} images"]
        kinds = [f"{number:,} {kind}" for kind, number in sorted(self.kinds.items())]
        if color and self.grayscale:
            kinds.append(f"{self.grayscale:,} grayscale images among color images, repeated in three channels")
        if kinds:
            lines.append(f"converted: {', '.join(kinds)}")
        if self.broken:
            examples = " ".join(self.broken[:5])
            more = f" And {len(self.broken) - 5:,} more." if len(self.broken) > 5 else ""
            lines.append(f"{len(self.broken):,} left out: {examples}{more}")
        return lines


def _audited(
    path: Path, split: Split, size: tuple[int, int] | None, grayscale: bool | None, progress: Progress | None
) -> tuple[ImageSet, list[str]]:
    """Read all images in a folder and its subfolders, in a zip file, or in LSUN databases."""
    audit = _Audit()
    decoded: list[np.ndarray] = []
    labels: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    with _opened(path, split) as members:
        for index, (name, label, read) in enumerate(members):
            try:
                image_HWC = _decode(read(), f"{name} in {path}", audit)
            except UserError as error:
                audit.broken.append(str(error))
                continue
            if size is not None:
                image_HWC = resize_and_crop(image_HWC, size)
            elif max(image_HWC.shape[:2]) > MAX_SIDE:  # unresized photographs could fill the memory
                height, width = image_HWC.shape[:2]
                raise UserError(
                    f"{name} in {path} has {width}x{height} pixels, and sides of {MIN_SIDE} to {MAX_SIDE} are "
                    f"supported: resize all images with --image-size 64, for example."
                )
            image_HWC = convert_channels(image_HWC, grayscale)
            sizes[image_HWC.shape[0], image_HWC.shape[1]] += 1
            decoded.append(image_HWC)
            labels.append(label)
            if progress is not None and index % 256 == 255:
                progress(f"reading {path}", index + 1, 0)
    if not decoded:
        reason = f": {audit.broken[0]}" if audit.broken else "."
        raise UserError(f"There are no readable images in {path}{reason}")
    if len(sizes) > 1:
        (height, width), _ = sizes.most_common(1)[0]
        raise UserError(
            f"{path} has images of {len(sizes):,} sizes, most of {height}x{width} pixels: resize all to one size with "
            f"--image-size {min(MAX_SIDE, max(MIN_SIDE, min(height, width)))}, for example."
        )
    color = any(image.shape[2] == 3 for image in decoded)
    images_NHWC = np.stack([convert_channels(image, False) if color else image for image in decoded])
    classes = tuple(sorted(set(labels)))
    source = f"{path.stem} ({split}), images in {path}"
    images = image_set(
        images_NHWC.transpose(0, 3, 1, 2), np.array([classes.index(label) for label in labels]), classes, source
    )
    return images, audit.messages(str(path), len(decoded), color)


def _decode(content: bytes, name: str, audit: _Audit) -> np.ndarray:
    """Decode an image (H, W, C) uint8 and count its conversion in `audit`.

    Raises:
        UserError: it cannot be used, with the reason.
    """
    image_HWC = decode(content, name)
    height, width, channels = image_HWC.shape
    if min(height, width) < MIN_READABLE_SIDE:
        raise UserError(f"{name} has {width}x{height} pixels: at least {MIN_READABLE_SIDE} per side are needed.")
    audit.grayscale += channels == 1
    with Image.open(io.BytesIO(content)) as opened:
        if kind := CONVERTED_MODES.get(opened.mode):
            audit.kinds[kind] += 1
    return image_HWC


Member = tuple[str, str, Callable[[], bytes]]  # name, class, function that reads its bytes


@contextmanager
def _opened(path: Path, split: Split) -> Iterator[Iterator[Member]]:
    """Open a folder, zip file or LSUN database, and yield the images of a split."""
    if path.is_dir() and (databases := lsun.databases(path)):
        yield _lsun(databases, split)
    elif path.is_dir():
        names = (p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        yield ((name, label, lambda n=name: read_file(path / n)) for name, label in _split(names, split))  # type: ignore[misc]
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is not a valid zip file ({error}): give a folder or zip of images.") from None
        with archive:
            names = (info.filename for info in archive.infolist() if not info.is_dir())
            yield (
                (name, label, lambda n=name: read_member(archive, n))  # type: ignore[misc]
                for name, label in _split(names, split)
            )


def _split(names: Iterator[str], split: Split) -> list[tuple[str, str]]:
    """Return the images of a split and their classes.

    The class is the folder of an image, below train/ and test/ (or val/) if these exist.
    """
    images = sorted(
        name
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    )
    while images and len({name.split("/")[0] for name in images}) == 1 and all("/" in name for name in images):
        prefix = images[0].split("/")[0]
        if prefix in ("train", "test", "val"):
            break
        inner = [name[len(prefix) + 1 :] for name in images]
        if not any("/" in name for name in inner):
            break  # a single class folder
        return [(f"{prefix}/{name}", label) for name, label in _split(iter(inner), split)]
    tops = {name.split("/")[0] for name in images if "/" in name}
    test = next((folder for folder in ("test", "val") if folder in tops), None) if "train" in tops else None
    if test is not None:
        folder = "train" if split == "train" else test
        return [(name, _class(name[len(folder) + 1 :])) for name in images if name.startswith(f"{folder}/")]
    return [
        (name, _class(name.removeprefix("train/")))
        for index, name in enumerate(images)
        if (index % TEST_EVERY == 0) == (split == "test")
    ]


def _class(name: str) -> str:
    """Return the class of an image: its first folder, or "all"."""
    return name.split("/")[0] if "/" in name else "all"


def _lsun(databases: dict[str, dict[Split, Path]], split: Split) -> Iterator[Member]:
    """Yield the images of a split of LSUN databases, by category."""
    for category, splits in databases.items():
        with lsun.opened(splits.get(split, splits["train"])) as (keys, read):
            for index, key in enumerate(keys):
                if "test" in splits or (index % TEST_EVERY == 0) == (split == "test"):
                    yield key, category, lambda k=key: read(k)  # type: ignore[misc]
