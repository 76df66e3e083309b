"""Picture files of any kind as arrays of one size.

Shapes: N images, H, W pixels, C colours (1 grey, 3 RGB).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zerokara.core.config import UserError, error_summary
from zerokara.core.programs import program_command

if TYPE_CHECKING:
    pass

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import psutil
from PIL import Image, ImageOps

from zerokara.core.data.types import ImageSet, Progress, image_set

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
MOST_BYTES = 256 * 2**20  # of one file


def decode_all(
    names: Sequence[str],
    read: Callable[[str], bytes],
    where: str,
    image_size: int | None,
    grayscale: bool | None,
    progress: Progress | None,
) -> np.ndarray:
    """Decode every picture into one array (N, C, H, W) uint8.

    Args:
        names: what to `read`, at least one, and what to call it in messages.
        read: the bytes of one file.
        where: the folder or archive, for messages.
        image_size: height and width of the result in pixels (see `fit`); None: all are of one size as they are.
        grey: C is 1 (True) or 3 (False); None: 1 where all the pictures are grey.

    Raises:
        UserError: a picture that cannot be decoded; several sizes without `image_size`; more than memory holds.
    """
    images_NCHW: np.ndarray | None = None
    for index, name in enumerate(names):
        image_HWC = decode(read(name), f"{name} in {where}")
        if image_size is not None:
            image_HWC = fit(image_HWC, image_size)
        image_CHW = with_channels(image_HWC, grayscale).transpose(2, 0, 1)
        if images_NCHW is None:
            images_NCHW = room(len(names), image_CHW.shape, where)
        if image_CHW.shape[1:] != images_NCHW.shape[2:]:
            raise UserError(
                f"{name} in {where} has {_size(image_CHW)} pixels and {names[0]} has {_size(images_NCHW[0])}: "
                f"bring all to one size with --image-size {min(images_NCHW.shape[2:])}, or another number."
            )
        if len(image_CHW) > images_NCHW.shape[1]:  # the first colours in a set that was grey until here
            coloured_NCHW = room(len(names), image_CHW.shape, where)
            coloured_NCHW[:index] = images_NCHW[:index]
            images_NCHW = coloured_NCHW
        images_NCHW[index] = image_CHW  # one grey channel goes into all three
        if progress is not None and (index % 256 == 255 or index + 1 == len(names)):
            progress(f"reading {where}", index + 1, len(names))
    assert images_NCHW is not None, "there are no pictures to decode"
    return images_NCHW


def decode(data: bytes, name: str) -> np.ndarray:
    """One picture as (H, W, C) uint8: grey stays grey, all else becomes RGB.

    Alpha is laid on white, 16 bits become 8, a photograph is turned as its EXIF says, of a film the first frame counts.

    Raises:
        UserError: empty, truncated or damaged, no picture, more than 89 million pixels, or floating-point pixels.
    """
    picture = _opened(data, name)
    if picture.mode.startswith("I;16"):
        return (np.asarray(picture).astype(np.uint32) * 255 // 65535).astype(np.uint8)[..., None]
    if picture.mode in {"I", "F"}:
        raise UserError(f"{name} has pixels of 32 bits: save it with 8 or 16 bits a channel, or remove it.")
    if picture.mode in {"LA", "La", "RGBA", "RGBa", "PA"} or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("L" if picture.mode == "LA" else "RGB")
    elif picture.mode != "L":
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    image = np.asarray(picture)
    return image[..., None] if image.ndim == 2 else image


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """A mask as (H, W) uint8: the numbers that a file of grey or of palette colours holds, whatever they look like.

    Raises:
        UserError: as `decode`, a number above 255, or colours that are no palette's.
    """
    picture = _opened(data, name)
    if picture.mode in {"I", "I;16", "I;16B", "I;16L"}:
        wide = np.asarray(picture)
        if wide.min() < 0 or wide.max() > 255:
            raise UserError(f"{name} has pixels of class {wide.max()}: a mask's numbers go from 0 to 255; number anew.")
        return wide.astype(np.uint8)
    if picture.mode in {"L", "P", "1"}:
        return np.array(picture, np.uint8)
    colours_HWC = np.asarray(picture.convert("RGB"))
    if (colours_HWC != colours_HWC[..., :1]).any():
        raise UserError(
            f"{name} has colours (mode {picture.mode}) where a mask has the number of a class in every pixel: "
            f"save it as PNG in grey or with a palette."
        )
    return colours_HWC[..., 0]


def fit(image_HWC: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The picture as (size, size, C), or of that height and width: scaled until it covers them, its middle cut out.

    Smaller is made by averaging areas, larger by cubic interpolation.
    """
    height, width, channels = image_HWC.shape
    new_height, new_width = (size, size) if isinstance(size, int) else size
    scale = max(new_height / height, new_width / width)
    if scale != 1:
        shape = (max(new_width, round(width * scale)), max(new_height, round(height * scale)))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image_HWC = cv2.resize(np.ascontiguousarray(image_HWC), shape, interpolation=way)
        image_HWC = image_HWC.reshape(shape[1], shape[0], channels)  # OpenCV drops a single channel
    top, left = (image_HWC.shape[0] - new_height) // 2, (image_HWC.shape[1] - new_width) // 2
    return image_HWC[top : top + new_height, left : left + new_width]


def fit_mask(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask brought to a height and width as `fit` brings its picture; every pixel keeps the number of one class."""
    height, width = mask_HW.shape
    scale = max(size[0] / height, size[1] / width)
    if scale != 1:
        shape = (max(size[1], round(width * scale)), max(size[0], round(height * scale)))
        mask_HW = cv2.resize(np.ascontiguousarray(mask_HW), shape, interpolation=cv2.INTER_NEAREST_EXACT)
    top, left = (mask_HW.shape[0] - size[0]) // 2, (mask_HW.shape[1] - size[1]) // 2
    return mask_HW[top : top + size[0], left : left + size[1]]


def with_channels(image_HWC: np.ndarray, grayscale: bool | None) -> np.ndarray:
    """The picture with 1 channel (True; ITU-R BT.601's luma), 3 (False), or as it is (None)."""
    if grayscale is None or image_HWC.shape[2] == (1 if grayscale else 3):
        return image_HWC
    if grayscale:
        return cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY)[..., None]
    return np.repeat(image_HWC, 3, axis=2)


def reshaped(images: ImageSet, image_size: int | tuple[int, int] | None, grayscale: bool | None) -> ImageSet:
    """A set that is in memory already, brought to a size and to colours as `decode_all` does it."""
    channels, height, width = images.shape
    right_size = image_size is None or (height, width) == image_size or height == width == image_size
    if right_size and grayscale in (None, channels == 1):
        return images
    images_NHWC = images.images.permute(0, 2, 3, 1).numpy()
    fitted = (image if image_size is None else fit(image, image_size) for image in images_NHWC)
    images_NCHW = np.stack([with_channels(image, grayscale) for image in fitted]).transpose(0, 3, 1, 2)
    return image_set(images_NCHW, images.labels.numpy(), images.classes, images.source)


def _opened(data: bytes, name: str) -> Image.Image:
    """The file's picture, whole and upright."""
    if not data:
        raise UserError(f"{name} is empty: put a sound copy in its place, or remove it.")
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{name} says that it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: make it smaller, or remove it."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow's readers raise a dozen types on bytes that make no sense)
        raise UserError(
            f"{name} cannot be decoded as a picture ({_brief(error)}): put a sound copy in its place, or remove it."
        ) from None


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow's warning of a decompression bomb as an error; its other warnings (odd metadata) say nothing to us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def room(number: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array for `number` images (C, H, W), uint8.

    Raises:
        UserError: more than memory holds.
    """
    needed, free = number * int(np.prod(shape)), psutil.virtual_memory().available
    if needed > free * 0.8:
        raise UserError(
            f"The {number:,} images of {where} need {needed / 2**30:,.1f} GiB at {shape[2]}x{shape[1]}, and "
            f"{free / 2**30:,.1f} GiB of memory are free: make them smaller with --image-size, or take fewer of them."
        )
    return np.empty((number, *shape), np.uint8)


def _size(image_CHW: np.ndarray) -> str:
    return f"{image_CHW.shape[2]}x{image_CHW.shape[1]}"


def _brief(error: Exception) -> str:
    """Pillow names the bytes' object in some messages, with an address that helps nobody."""
    return "no format that Pillow knows" if "cannot identify image file" in str(error) else error_summary(error)


def picture_files(words: Sequence[str]) -> list[Path]:
    """The pictures that are named, and those in folders that are named.

    Raises:
        UserError: none at all.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"The folder {path} holds no pictures: name files, or another folder.")
        found += inside
    if not found:
        raise UserError(
            "No picture was named: type the classifier and then pictures, as in "
            f"{program_command('vision.predict')} runs/<name> photo.png."
        )
    return found
