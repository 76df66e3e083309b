"""Defaults for pictures of one's own: size, background, channels, number of held-out images, and augmentation.

They are chosen when a run starts, from the files of its training images, and saved with its config. Each is printed
with the option that takes its place.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

from zerokara.core.data import DATASETS, ImageSet, Progress
from zerokara.core.data.audit import Audit
from zerokara.core.data.backgrounds import choose_background, describe_background
from zerokara.core.data.image_files import convert_image_set
from zerokara.core.data.survey import Survey, survey
from zerokara.generative.gan.config import FRAMES, Config
from zerokara.generative.gan.image_members import MIN_READABLE_SIDE, MIN_SIDE, open_members

SIDES = (64, 32)  # pixels; images are resized to the first that half of them have
FEW_IMAGES = 2_000  # for training; fewer are augmented, and a warning says what to expect
FEW_AUGMENTATION: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
MAX_HELD_OUT = 5_000
MIN_HELD_OUT, MAX_FRACTION = 50, 5  # of few images at least so many are held out, but at most a fifth


def are_files(config: Config) -> bool:
    """Return True if the images are files of the user, and neither a named data set nor frames."""
    return config.data not in DATASETS and not config.data.startswith(FRAMES)


def is_own(config: Config) -> bool:
    """Return True if the images are in a folder, a zip file or an LSUN database that exists."""
    return are_files(config) and Path(config.data).expanduser().exists()


def survey_members(path: Path, *, sizes: bool, transparency: bool, progress: Progress | None) -> Survey:
    """Look at the training images of a folder, a zip file or an LSUN database, as `core.data.survey`.

    Raises:
        UserError: the folder or file cannot be read.
    """
    with open_members(path, "train", Audit(), progress) as (members, _):
        files = [(name, read) for name, _, read in members]
        return survey(files, str(path), progress, sizes=sizes, transparency=transparency, min_side=MIN_READABLE_SIDE)


def choose_size(sizes: Counter[tuple[int, int]]) -> tuple[int, ...]:
    """Return --image-size for images of these sizes (H, W); empty: they are not resized.

    They are not if all have one size with sides of MIN_SIDE to 64 pixels. Otherwise the side is 64 pixels if at least
    half of the images have it, else 32.
    """
    if len(sizes) == 1 and all(MIN_SIDE <= side <= SIDES[0] for side in next(iter(sizes))):
        return ()
    median = statistics.median(min(size) for size in sizes.elements())
    return (next((side for side in SIDES if side <= median), SIDES[-1]),)


def held_out_images(number: int) -> int:
    """Return the number of held-out images: a twelfth of `number`, but at least 50, or a fifth if that is less."""
    return min(MAX_HELD_OUT, max(number // 12, min(MIN_HELD_OUT, number // MAX_FRACTION)))


def for_reading(config: Config, progress: Progress | None) -> tuple[Config, list[str]]:
    """Choose the image size and the background of a new run. Returns its config, and lines about the choices.

    Raises:
        UserError: the folder or file cannot be read.
    """
    if config.image_size and config.background != "auto":
        return config, []
    sizes, transparency = not config.image_size, config.background == "auto"
    found = survey_members(Path(config.data).expanduser(), sizes=sizes, transparency=transparency, progress=progress)
    lines = []
    if found.sizes and sizes:
        config = replace(config, image_size=choose_size(found.sizes))
        lines.append(f"{config.data}: {_describe_size(found.sizes, config.image_size)}")
    if found.lumas and transparency:
        config = replace(config, background=choose_background(found.lumas)[0])
        lines.append(describe_background(config.data, found.lumas))
    return config, lines


def _describe_size(sizes: Counter[tuple[int, int]], chosen: tuple[int, ...]) -> str:
    smallest, largest = (f"{width}x{height}" for height, width in (min(sizes, key=_area), max(sizes, key=_area)))
    have = (
        f"all images have {smallest} pixels"
        if len(sizes) == 1
        else f"the images have {len(sizes):,} sizes, from {smallest} to {largest} pixels"
    )
    if not chosen:
        return f"{have} and are not resized; --image-size chooses another size, or height and width."
    return (
        f"{have}; they are resized to cover {chosen[0]}x{chosen[0]} pixels, and cropped to their centers; --image-size "
        f"chooses another size, or height and width."
    )


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def for_channels(config: Config, images: ImageSet) -> tuple[Config, ImageSet, list[str]]:
    """Choose the number of channels of a new run: one if red, green and blue are equal in all images.

    Returns:
        The config; the images (N, C, H, W), with one channel if it was chosen; and lines about the choice.
    """
    first_NHW, *others = images.images.unbind(1)
    if config.grayscale is not None or not others or not all(first_NHW.equal(other_NHW) for other_NHW in others):
        return config, images, []
    line = (
        f"{config.data}: red, green and blue are equal in all images, so they are converted to grayscale; "
        f"--no-grayscale keeps three channels."
    )
    return replace(config, grayscale=True), convert_image_set(images, None, True), [line]


def for_training(config: Config, train: int, held_out: int) -> tuple[Config, list[str]]:
    """Choose the augmentation of a new run, and save the number of held-out images.

    Args:
        config: of the run.
        train: number of training images.
        held_out: number of held-out images.

    Returns:
        The config, and lines about the choices.
    """
    lines = []
    number = train + held_out
    if not config.held_out_images and held_out > number // 12:
        lines.append(
            f"{config.data}: {held_out:,} of {number:,} images are held out (a twelfth, but of few images "
            f"{MIN_HELD_OUT}, or a fifth if that is less), to choose the best generator: their scores are only good "
            f"for comparing generators of this run. --held-out-images chooses another number."
        )
    config = replace(config, held_out_images=held_out)
    if train < FEW_IMAGES and config.augment_few_images and not (config.diffaugment or config.ada):
        config = replace(config, diffaugment=FEW_AUGMENTATION)
        flips = " Images are not mirrored, which letters and digits must not be: --flip does it." * (not config.flip)
        lines.append(
            f"{config.data}: the discriminator's input is augmented (--diffaugment {' '.join(FEW_AUGMENTATION)}), "
            f"because of fewer than {FEW_IMAGES:,} training images; --no-augment-few-images leaves it out.{flips}"
        )
    return config, lines
