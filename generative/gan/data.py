"""Training images of a GAN.

Named data sets are read by core.data, and frames by envs. Folders, zip files and LSUN databases are read here: images
that cannot be read are named and left out, and images of different modes are converted and counted.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from zerokara.core import data
from zerokara.core.choices import Background
from zerokara.core.config import UserError, format_count
from zerokara.core.data import DATASETS, ImageSet, Progress, Split, hold_out, lsun
from zerokara.core.data.audit import Audit
from zerokara.core.data.emnist import check_no_emnist
from zerokara.core.data.folders import count_others, is_image, opened, test_split
from zerokara.core.data.image_files import (
    convert_channels,
    convert_image_set,
    decode,
    is_hidden,
    read_size,
    resize_and_crop,
)
from zerokara.core.data.reading_rules import rules_of
from zerokara.core.data.splits import AnySplit, describe_subfolders, find_split_folders
from zerokara.core.data.stylegan_labels import FILE, LAYOUT, keep_labeled, read_labels
from zerokara.core.data.types import image_set
from zerokara.core.programs import program_command
from zerokara.envs.frames import record
from zerokara.generative.gan.config import Config

FRAMES = "frames:"
SPLIT_SEED = 0  # the same images are held out whatever the run's seed
TEST_EVERY = 10  # without a test folder every tenth image is a test image
MIN_IMAGES = 100  # for training
MIN_HELD_OUT = 8  # the metrics need neighbors and covariances
MIN_READABLE_SIDE = 8  # pixels
MIN_SIDE, MAX_SIDE = 28, 256  # pixels, of the images that the networks generate
CHOSEN_SIDES = (64, 32)  # pixels; of the image sizes chosen for mixed sizes, the first that half of the images have
FEW_IMAGES = 2_000  # for training; below it a warning says what to expect


class MixedSizes(UserError):
    """The images must be resized: they have several sizes, or more than MAX_SIDE pixels.

    Attributes:
        side: a size for all of them.
    """

    def __init__(self, message: str, side: int = CHOSEN_SIDES[0]) -> None:
        super().__init__(message)
        self.side = side


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
                f"{all_images.source} has {format_count(len(all_images), 'image')}, too few for training: "
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

    @classmethod
    def load_resized(cls, config: Config, progress: Progress | None = None) -> tuple[Config, Data]:
        """Read the training images as `load` does, and resize them if they need it and --image-size is not given.

        Returns:
            The config with the image size, which must be saved, and the data.

        Raises:
            UserError: see `load`.
        """
        try:
            return config, cls.load(config, progress)
        except MixedSizes as error:
            if config.resume:  # the size was chosen when the run started, so the data have changed
                raise
            side = error.side
        config = replace(config, image_size=(side,))
        data = cls.load(config, progress)
        message = (
            f"{config.data}: the images have several sizes or large ones; all are resized to cover {side}x{side} "
            f"pixels, and cropped to their centers. --image-size chooses another size, or height and width."
        )
        return config, replace(data, messages=(message, *data.messages))

    def few_images_warning(self, config: Config) -> str:
        """Return a warning that a data set of one's own is small, with what to expect; "" if it is not."""
        number = len(self.train)
        if number >= FEW_IMAGES or config.data in DATASETS or config.data.startswith(FRAMES):
            return ""
        advice = ["--diffaugment color translation cutout"] if not config.diffaugment else []
        advice += ["--flip, if mirror images are as good"] if not config.flip else []
        return (
            f"{number:,} training images are few: in {config.updates:,} updates the discriminator sees each of them "
            f"{config.updates * config.batch_size / number:,.0f} times and may learn them by heart. Expect images that "
            f"resemble the training images but are less diverse, and that become worse again at some point; the best "
            f"generator is kept. {program_command('generative.neighbours')} shows whether images were copied."
            + (f" What helps: more images, {', '.join(advice)}." if advice else "")
        )


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
    with rules_of(config):
        return _load_split(config, split, progress)


def _load_split(config: Config, split: Split, progress: Progress | None) -> tuple[ImageSet, list[str]]:
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
            config.data,
            split,
            data_dir=folder,
            grayscale=config.grayscale,
            background=config.background,
            progress=progress,
        )
        return convert_image_set(images, size, config.grayscale), list(images.messages)
    check_no_emnist(path)
    return _audited(path, split, size, config.grayscale, config.background, progress)


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


def _audited(
    path: Path,
    split: Split,
    size: tuple[int, int] | None,
    grayscale: bool | None,
    background: Background,
    progress: Progress | None,
) -> tuple[ImageSet, list[str]]:
    """Read all images in a folder and its subfolders, in a zip file, or in LSUN databases."""
    audit = Audit()
    decoded: list[np.ndarray] = []
    labels: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    with _opened(path, split, audit, progress) as (members, layout):
        left_out_before = len(audit.left_out)
        for index, (name, label, read) in enumerate(members):
            if progress is not None and (index % 256 == 255 or index + 1 == len(members)):
                progress(f"images read from {path}", index + 1, len(members))
            try:
                image_HWC = decode(read(), f"{name} in {path}", background=background, audit=audit)
                _check_readable_side(image_HWC.shape, f"{name} in {path}")
            except UserError as error:
                audit.left_out.append(str(error))
                continue
            if size is not None:
                image_HWC = resize_and_crop(image_HWC, size)
            elif max(image_HWC.shape[:2]) > MAX_SIDE:  # unresized photographs could fill the memory
                height, width = image_HWC.shape[:2]
                decoded.clear()
                sizes.update(_sizes(members, index, path, progress))
                side = _choose_side(sizes)
                raise MixedSizes(
                    f"{name} in {path} has {width}x{height} pixels, and sides of {MIN_SIDE} to {MAX_SIDE} are "
                    f"supported: resize all images with --image-size {side}, for example.",
                    side,
                )
            image_HWC = convert_channels(image_HWC, grayscale)
            sizes[image_HWC.shape[0], image_HWC.shape[1]] += 1
            decoded.append(image_HWC)
            labels.append(label)
    if not decoded:
        reason = f": {audit.left_out[0]}" if audit.left_out else "."
        raise UserError(f"There are no readable images in {path}{reason}")
    audit.check_left_out(left_out_before, len(decoded), str(path))
    if len(sizes) > 1:
        (height, width), _ = sizes.most_common(1)[0]
        raise MixedSizes(
            f"{path} has images of {len(sizes):,} sizes, most of {height}x{width} pixels: resize all to one size with "
            f"--image-size {min(MAX_SIDE, max(MIN_SIDE, min(height, width)))}, for example.",
            _choose_side(sizes),
        )
    color = any(image.shape[2] == 3 for image in decoded)
    if color and (gray := sum(image.shape[2] == 1 for image in decoded)):
        audit.converted["grayscale images among color images, repeated in three channels"] = gray
    images_NHWC = np.stack([convert_channels(image, False) if color else image for image in decoded])
    classes = tuple(sorted(set(labels)))
    source = f"{path.stem} ({split}), {layout} in {path}"
    images = image_set(
        images_NHWC.transpose(0, 3, 1, 2), np.array([classes.index(label) for label in labels]), classes, source
    )
    return images, [f"{path}: {format_count(len(decoded), 'image')}", *audit.messages()]


def _choose_side(sizes: Counter[tuple[int, int]]) -> int:
    """Return the size for images of several sizes, from the number of images of each (H, W)."""
    median = statistics.median(min(size) for size in sizes.elements())
    return next((side for side in CHOSEN_SIDES if side <= median), CHOSEN_SIDES[-1])


def _check_readable_side(shape: Sequence[int], name: str) -> None:
    """Check that an image is large enough to be resized.

    Raises:
        UserError: it has a side below MIN_READABLE_SIDE.
    """
    height, width = shape[:2]
    if min(height, width) < MIN_READABLE_SIDE:
        raise UserError(f"{name} has {width}x{height} pixels: at least {MIN_READABLE_SIDE} per side are needed.")


Member = tuple[str, str, Callable[[], bytes]]  # name, class, function that reads its bytes


def _sizes(members: Sequence[Member], first: int, path: Path, progress: Progress | None) -> Iterator[tuple[int, int]]:
    """Yield (H, W) of the readable images from number `first` on, without decoding them."""
    for index, (name, _, read) in enumerate(members[first:], first):
        if progress is not None and (index % 256 == 255 or index + 1 == len(members)):
            progress(f"sizes of images read from {path}", index + 1, len(members))
        try:
            size = read_size(read(), f"{name} in {path}")
            _check_readable_side(size, f"{name} in {path}")
        except UserError:
            continue  # it is named when the resized images are read
        yield size


@contextmanager
def _opened(path: Path, split: Split, audit: Audit, progress: Progress | None) -> Iterator[tuple[list[Member], str]]:
    """Open a folder, zip file or LSUN database, and yield the images of a split and a description of them."""
    if path.is_dir() and (databases := lsun.databases(path)):
        with ExitStack() as stack:
            members = [
                part for name, splits in databases.items() for part in _lsun(name, splits, split, stack, progress)
            ]
            yield members, "images"
        return
    with opened(path, audit) as (everything, read):
        files = [name for name in everything if not name.endswith("/") and not is_hidden(name)]
        images = [name for name in files if is_image(name)]
        labels = read_labels(files, read, str(path))
        known = () if labels is None else (FILE,)
        others = [name for name in files if not is_image(name)]
        count_others([name for name in others if name.rpartition("/")[2] not in known], audit)
        if labels:  # of StyleGAN's dataset tool, whose folders are not classes
            images = keep_labeled(images, labels, audit)
        chosen = _split(images, split, path, audit)
        if labels is not None:
            chosen = [(name, labels.get(name, "all")) for name, _ in chosen]
        layout = f"images with {LAYOUT}" if labels else "images"
        yield [(name, label, partial(read, name)) for name, label in chosen], layout


def _split(images: list[str], split: Split, path: Path, audit: Audit) -> list[tuple[str, str]]:
    """Return the images of a split and their classes.

    The class is the first folder of an image, apart from the folders of the splits (see `core.data.splits`); "all"
    without such a folder. Without folders of the splits, every tenth image is a test image.
    """
    folders = find_split_folders(images, str(path))
    part: AnySplit | None = None
    if folders.level is not None:
        part = "train" if split == "train" else test_split(folders)
        audit.notes += folders.describe_unused(images)
    below = [(name, parts) for name in images if (parts := folders.below(name, part))]
    subfolders: dict[str, set[str]] = {}
    for _, parts in below:
        subfolders.setdefault(_class(parts), set()).update(parts[1:2] if len(parts) > 2 else [])
    audit.notes += describe_subfolders(subfolders)
    if part is None:
        below = [each for index, each in enumerate(below) if (index % TEST_EVERY == 0) == (split == "test")]
    return [(name, _class(parts)) for name, parts in below]


def _class(parts: list[str]) -> str:
    """Return the class of an image: its first folder, or "all"."""
    return parts[0] if len(parts) > 1 else "all"


def _lsun(
    category: str, splits: Mapping[Split, Path], split: Split, stack: ExitStack, progress: Progress | None
) -> Iterator[Member]:
    """Yield the images of a split of an LSUN database; it stays open as long as the stack."""
    keys, read = stack.enter_context(lsun.opened(splits.get(split, splits["train"]), progress))
    for index, key in enumerate(keys):
        if "test" in splits or (index % TEST_EVERY == 0) == (split == "test"):
            yield key, category, partial(read, key)
