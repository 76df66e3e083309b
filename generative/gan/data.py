"""Training images of a GAN.

Named data sets are read by core.data, and frames by envs. Folders, zip files and LSUN databases are read here: images
that cannot be read are named and left out, and images of different modes are converted and counted. Defaults for them
are chosen in generative/gan/own_defaults.py.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from zerokara.core import data
from zerokara.core.choices import Background
from zerokara.core.config import UserError, format_count
from zerokara.core.data import DATASETS, ImageSet, Progress, Split, hold_out
from zerokara.core.data.audit import Audit
from zerokara.core.data.emnist import check_no_emnist
from zerokara.core.data.image_files import convert_channels, convert_image_set, decode, resize_and_crop
from zerokara.core.data.reading_rules import rules_of
from zerokara.core.data.types import image_set
from zerokara.core.programs import program_command
from zerokara.envs.frames import record
from zerokara.generative.gan import own_defaults
from zerokara.generative.gan.config import FRAMES, Config
from zerokara.generative.gan.image_members import MAX_SIDE, MIN_SIDE, TEST_EVERY, check_readable_side, open_members

SPLIT_SEED = 0  # the same images are held out whatever the run's seed
MIN_FRAMES = 100  # of an environment, as test images
MIN_TRAINING = 64  # images
MIN_HELD_OUT = 8  # the metrics need neighbors and covariances


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
        return cls._held_out_of(config, *load_split(config, "train", progress), _twelfth, progress)

    @classmethod
    def load_with_defaults(cls, config: Config, progress: Progress | None = None) -> tuple[Config, Data]:
        """Read the training images as `load` does; a new run on pictures of one's own gets the defaults for them.

        Returns:
            The config with these defaults, which must be saved, and the data.

        Raises:
            UserError: see `load`.
        """
        if config.resume or not own_defaults.is_own(config):  # the defaults were chosen when the run started
            return config, cls.load(config, progress)
        config, before = own_defaults.for_reading(config, progress)
        images, messages = load_split(config, "train", progress)
        config, images, channels = own_defaults.for_channels(config, images)
        data = cls._held_out_of(config, images, [*messages, *channels], own_defaults.held_out_images, progress)
        config, after = own_defaults.for_training(config, len(data.train), len(data.held_out))
        return config, replace(data, messages=(*before, *data.messages, *after))

    @classmethod
    def _held_out_of(
        cls,
        config: Config,
        images: ImageSet,
        messages: Sequence[str],
        default: Callable[[int], int],
        progress: Progress | None,
    ) -> Data:
        """Hold images out; `default` is the number of them, given that of all images, without --held-out-images.

        Raises:
            UserError: too few images, sizes that the networks do not support, or --conditional without classes.
        """
        _, height, width = images.shape
        if not (min(height, width) >= MIN_SIDE and max(height, width) <= MAX_SIDE):
            raise UserError(
                f"{images.source} has images of {height}x{width} pixels, and sides of {MIN_SIDE} to "
                f"{MAX_SIDE} are supported: resize them with --image-size 64, for example."
            )
        _check_number(config, images, default)
        if 0 < config.held_out_images < MIN_HELD_OUT:
            raise UserError(
                f"--held-out-images must be at least {MIN_HELD_OUT}, or 0 for a twelfth of the images, got "
                f"{config.held_out_images}."
            )
        number = config.held_out_images or default(len(images))
        if config.data.startswith(FRAMES):  # consecutive frames are similar, so separate episodes are held out
            train = images.take(slice(0, len(images) - number))
            held_out = _frames(config, "held out", number, progress)
        else:
            train, held_out = hold_out(images, number, SPLIT_SEED)
        if config.conditional and len(train.classes) < 2:
            raise UserError(
                f"--conditional needs classes, and {images.source} has no classes: remove it, or put the "
                f"images into folders, one for each class."
            )
        return cls(train, held_out, tuple(messages))

    def few_images_warning(self, config: Config) -> str:
        """Return a warning that a data set of one's own is small, with what to expect; "" if it is not."""
        number = len(self.train)
        if number >= own_defaults.FEW_IMAGES or not own_defaults.are_files(config):
            return ""
        advice = ["more images"]
        if not (config.diffaugment or config.ada):
            advice += [f"--diffaugment {' '.join(own_defaults.FEW_AUGMENTATION)}", "--ada blit geometry color"]
        if not config.flip:
            advice += ["--flip, if mirror images are as good"]
        return (
            f"{number:,} training images are few: in {config.updates:,} updates the discriminator sees each of them "
            f"{config.updates * config.batch_size / number:,.0f} times and may memorize them. Expect images that "
            f"resemble the training images but are less diverse, and that become worse again at some point; the best "
            f"generator is kept. {program_command('generative.neighbours')} shows whether images were copied. "
            f"Measures to take in a new run: {', '.join(advice)}."
        )


def _twelfth(number: int) -> int:
    """Return the number of held-out images among `number` images of a named data set, or of frames."""
    return min(own_defaults.MAX_HELD_OUT, number // 12)


def _check_number(config: Config, images: ImageSet, default: Callable[[int], int]) -> None:
    """Check that enough images remain for training.

    Raises:
        UserError: they are fewer than a batch, or than MIN_TRAINING.
    """

    def remaining(number: int) -> int:
        return number - (config.held_out_images or default(number))

    needed = max(MIN_TRAINING, config.batch_size)
    if remaining(len(images)) >= needed:
        return
    number = next(each for each in itertools.count(needed) if remaining(each) >= needed)
    without_test = -(-number * TEST_EVERY // (TEST_EVERY - 1))
    in_folder = f", or {without_test:,} in a folder without test images of its own" * own_defaults.are_files(config)
    in_batch = f"; a --batch-size below {config.batch_size} needs fewer" * (config.batch_size > MIN_TRAINING)
    raise UserError(
        f"{images.source} has {format_count(len(images), 'image')}, too few for training: at least {number:,} are "
        f"needed ({number - needed:,} are held out){in_folder}{in_batch}."
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
        number = config.frames if split == "train" else max(MIN_FRAMES, config.frames // 5)
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
    with open_members(path, split, audit, progress) as (members, layout):
        left_out_before = len(audit.left_out)
        for index, (name, label, read) in enumerate(members):
            if progress is not None and (index % 256 == 255 or index + 1 == len(members)):
                progress(f"images read from {path}", index + 1, len(members))
            try:
                image_HWC = decode(read(), f"{name} in {path}", background=background, audit=audit)
                check_readable_side(image_HWC.shape[:2], f"{name} in {path}")
            except UserError as error:
                audit.left_out.append(str(error))
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
    if not decoded:
        reason = f": {audit.left_out[0]}" if audit.left_out else "."
        raise UserError(f"There are no readable images in {path}{reason}")
    audit.check_left_out(left_out_before, len(decoded), str(path))
    if len(sizes) > 1:
        (height, width), _ = sizes.most_common(1)[0]
        raise UserError(
            f"{path} has images of {len(sizes):,} sizes, most of {height}x{width} pixels: resize all to one size with "
            f"--image-size {min(MAX_SIDE, max(MIN_SIDE, min(height, width)))}, for example."
        )
    color = any(image.shape[2] == 3 for image in decoded)
    if color and (gray := sum(image.shape[2] == 1 for image in decoded)):
        audit.converted["of one channel, repeated in three, because others have three"] = gray
    images_NHWC = np.stack([convert_channels(image, False) if color else image for image in decoded])
    classes = tuple(sorted(set(labels)))
    source = f"{path.stem} ({split}), {layout} in {path}"
    images = image_set(
        images_NHWC.transpose(0, 3, 1, 2), np.array([classes.index(label) for label in labels]), classes, source
    )
    return images, [f"{path}: {format_count(len(decoded), 'image')}", *audit.messages()]
