"""Reading and decoding of image files into arrays of one size.

Shapes: N images, H, W pixels, C channels (1 grayscale, 3 RGB).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import psutil
from PIL import Image, ImageOps

from zerokara.core.choices import Background
from zerokara.core.config import UserError, error_summary
from zerokara.core.data.audit import Audit
from zerokara.core.data.file_reading import read_file
from zerokara.core.data.label_colors import LabelColors, to_class_numbers
from zerokara.core.data.types import ImageSet, Progress, image_set
from zerokara.core.file_start import describe_start
from zerokara.core.programs import program_command

LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif"})
SUFFIXES = LOSSY_SUFFIXES | {".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
OPAQUE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".jpe", ".ppm", ".pgm", ".pbm", ".pnm"})
"""Suffixes of formats without transparency."""
UNSUPPORTED_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw"})
"""Suffixes of images that cannot be read here; files with them are named, not only counted."""
ORIENTATION, TURNED = 0x0112, range(2, 9)  # tag of EXIF, and its values that turn or mirror an image
SIDEWAYS = range(5, 9)  # those of them that exchange height and width
MAX_OF_12_BITS = 2**12 - 1
LIGHT = 224  # of 255: an image whose visible parts are lighter than this on average is placed on black
CONVERTED_MODES = {
    "1": "of 1 bit",
    "P": "with a palette",
    "CMYK": "in CMYK",
    "YCbCr": "in YCbCr",
    "I": "of 16 bits, reduced to 8",
    "I;16": "of 16 bits, reduced to 8",
    "I;16B": "of 16 bits, reduced to 8",
}
"""Mode of Pillow -> description for messages."""


def decode_all(
    names: Sequence[str],
    read: Callable[[str], bytes],
    where: str,
    image_size: int | None,
    grayscale: bool | None,
    progress: Progress | None,
    *,
    background: Background = "auto",
    audit: Audit | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Decode images into one array (N, C, H, W) uint8, without those that cannot be decoded.

    Args:
        names: names of the files, at least one; arguments of `read`, also used in messages.
        read: function that returns the bytes of a file.
        where: the folder or archive, for messages.
        image_size: height and width of the result in pixels (see `resize_and_crop`); None: no resizing, and all images
            must have one size.
        grayscale: True: C is 1, False: C is 3; None: C is 1 if all images are grayscale, else 3.
        progress: callback.
        background: color behind transparent pixels.
        audit: gets the conversions and the images that cannot be decoded; None: such an image is an error.

    Returns:
        The images, and the indices of their names.

    Raises:
        UserError: no image or less than nine tenths can be decoded, images have different sizes and `image_size` is
            None, or the images do not fit in memory.
    """
    images_NCHW: np.ndarray | None = None
    kept: list[int] = []
    left_out_before = 0 if audit is None else len(audit.left_out)
    for index, name in enumerate(names):
        if progress is not None and (index % 256 == 255 or index + 1 == len(names)):
            progress(f"images read from {where}", index + 1, len(names))
        try:
            image_HWC = decode(read(name), f"{name} in {where}", background=background, audit=audit)
        except UserError as error:
            if audit is None:
                raise
            audit.left_out.append(str(error))
            continue
        if image_size is not None:
            image_HWC = resize_and_crop(image_HWC, image_size)
        image_CHW = convert_channels(image_HWC, grayscale).transpose(2, 0, 1)
        if images_NCHW is None:
            images_NCHW = allocate_images(len(names), image_CHW.shape, where)
        if image_CHW.shape[1:] != images_NCHW.shape[2:]:
            raise UserError(
                f"{name} in {where} has {_size(image_CHW)} pixels, but {names[kept[0]]} has {_size(images_NCHW[0])}: "
                f"resize all with --image-size {min(images_NCHW.shape[2:])}, or another number."
            )
        if len(image_CHW) > images_NCHW.shape[1]:  # first color image after grayscale images
            color_NCHW = allocate_images(len(names), image_CHW.shape, where)
            color_NCHW[: len(kept)] = images_NCHW[: len(kept)]
            images_NCHW = color_NCHW
        images_NCHW[len(kept)] = image_CHW  # a grayscale channel is broadcast to all three
        kept.append(index)
    if images_NCHW is None:
        reason = audit.left_out[-1] if audit is not None and audit.left_out else "it is empty."
        raise UserError(f"There are no readable images in {where}: {reason}")
    if audit is not None:
        audit.check_left_out(left_out_before, len(kept), where)
    return images_NCHW[: len(kept)], kept


def is_hidden(path: str) -> bool:
    """Return True for files that operating systems create: .DS_Store, ._photo.jpg, __MACOSX, Thumbs.db."""
    return any(
        part.startswith((".", "__MACOSX")) or part.lower() in {"thumbs.db", "desktop.ini"} for part in path.split("/")
    )


def read_image(path: Path, *, background: Background = "auto") -> np.ndarray:
    """Read and decode an image file; see `decode`.

    Raises:
        UserError: the file does not exist, is too large, or cannot be decoded.
    """
    return decode(read_file(path), str(path), background=background)


def decode(
    data: bytes,
    name: str,
    *,
    background: Background = "auto",
    apply_exif: bool = True,
    audit: Audit | None = None,
) -> np.ndarray:
    """Decode an image to (H, W, C) uint8: grayscale images have one channel, all others are converted to RGB.

    16 bits are reduced to 8, and the first frame of an animation is used.

    Args:
        data: content of the file.
        name: of the file, for messages.
        background: color behind transparent pixels.
        apply_exif: turn the image as its EXIF orientation says.
        audit: gets the conversion.

    Raises:
        UserError: the file is empty, truncated, damaged or not an image, or it has more than 89 million pixels or
            32-bit pixels.
    """
    picture = _opened(data, name, apply_exif=apply_exif, audit=audit)
    conversion = CONVERTED_MODES.get(picture.mode)
    # Pillow reads PGM files of 16 bits as 32-bit integers from 0 to 65535.
    is_pgm = picture.mode == "I" and data[:2] in (b"P2", b"P5")
    if picture.mode in {"I", "F"} and not is_pgm:
        raise UserError(f"{name} has 32-bit pixels: save it with 8 or 16 bits per channel, or remove it.")
    if _may_have_transparency(picture):
        picture, ground = _on_background(picture, background)
        conversion = f"with transparency, placed on {ground}" if ground else conversion
    if picture.mode.startswith("I"):
        wide_HW = np.asarray(picture).astype(np.uint32)
        if wide_HW.max() <= MAX_OF_12_BITS:
            conversion = f"of 16 bits without values above {MAX_OF_12_BITS:,}, which become at most 15 of 255"
        image = (wide_HW * 255 // 65535).astype(np.uint8)
    else:
        image = np.asarray(picture if picture.mode == "L" else picture.convert("L" if picture.mode == "1" else "RGB"))
    if audit is not None and conversion:
        audit.converted[conversion] += 1
    return image[..., None] if image.ndim == 2 else image


def read_size(data: bytes, name: str) -> tuple[int, int]:
    """Return (H, W) from the header of an image, as its EXIF orientation says; decode no pixels.

    Raises:
        UserError: the file is empty or not an image, or it has more than 89 million pixels.
    """
    with _reading(data, name) as opened:
        # Pillow turns TIFF files itself, and would decode a PNG file to find EXIF data after its pixels.
        has_exif = "exif" in opened.info if opened.format == "PNG" else opened.format != "TIFF"
        sideways = has_exif and opened.getexif().get(ORIENTATION, 1) in SIDEWAYS
        return (opened.width, opened.height) if sideways else (opened.height, opened.width)


def read_visible_luma(data: bytes, name: str) -> float | None:
    """Return the mean luma (0 to 255) of the visible parts of an image; None without transparent pixels or such parts.

    Images that cannot have transparency are not decoded.

    Raises:
        UserError: see `decode`.
    """
    with _reading(data, name) as opened:
        if not _may_have_transparency(opened):
            return None
        opened.load()
        colors = opened.convert("RGBA")
    return None if colors.getchannel("A").getextrema()[0] == 255 else _visible_luma(colors)


def _may_have_transparency(picture: Image.Image) -> bool:
    # Pillow would clip an image of 16 bits to 8 instead of scaling it, so its transparent color stays as it is.
    has_color = "transparency" in picture.info and not picture.mode.startswith("I")
    return picture.mode in {"LA", "La", "RGBA", "RGBa", "PA"} or has_color


def _visible_luma(colors: Image.Image) -> float | None:
    """Return the mean luma of an RGBA image, weighted by its alpha; None if nothing is visible."""
    alpha = np.asarray(colors.getchannel("A"), np.float64)
    luma = np.asarray(colors.convert("RGB").convert("L"), np.float64)
    return float((luma * alpha).sum() / alpha.sum()) if alpha.any() else None


def _on_background(picture: Image.Image, background: Background) -> tuple[Image.Image, str]:
    """Place an image with transparency on a color. Returns it and the color; "" if no pixel is transparent."""
    colors = picture.convert("RGBA")
    mode = "L" if picture.mode in {"LA", "La"} else "RGB"
    if colors.getchannel("A").getextrema()[0] == 255:
        return colors.convert(mode), ""
    ground: str = background
    if background == "auto":
        luma = _visible_luma(colors)
        ground = "black" if luma is not None and luma > LIGHT else "white"
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), colors).convert(mode), ground


def decode_mask(data: bytes, name: str, colors: LabelColors = ()) -> np.ndarray:
    """Decode a mask to (H, W) uint8: the gray levels or the palette indices of the file, or the classes of its colors.

    Args:
        data: bytes of the file.
        name: of the file, for messages.
        colors: colors of the classes, for masks in color; empty: masks have no colors, and palettes no meaning.

    Raises:
        UserError: see `decode`; or the mask has a number above 255, or colors without a palette or without a class.
    """
    picture = _opened(data, name)
    if picture.mode in {"F", "I", "I;16", "I;16B", "I;16L"}:
        wide_HW = np.asarray(picture)
        if wrong := [value for value in (wide_HW.min(), wide_HW.max()) if not 0 <= value <= 255]:  # also NaN
            raise UserError(
                f"{name} has pixels of class {wrong[-1]}: class numbers must be 0 to 255; renumber the classes."
            )
        numbers_HW = wide_HW.astype(np.uint8)
        if len(fractions := wide_HW[wide_HW != numbers_HW]):
            raise UserError(f"{name} has a pixel of class {fractions[0]:g}: class numbers must be whole numbers.")
        return numbers_HW
    if picture.mode in {"L", "1"} or (picture.mode == "P" and not colors):
        return np.array(picture, np.uint8)
    colors_HWC = np.asarray(picture.convert("RGB"))
    if colors:
        return to_class_numbers(colors_HWC, colors, name)
    if (colors_HWC != colors_HWC[..., :1]).any():
        raise UserError(
            f"{name} has colors (mode {picture.mode}), but a mask must have a class number in every pixel: "
            f"save it as a grayscale PNG, or as a PNG with a palette."
        )
    return colors_HWC[..., 0]


def resize_and_crop(image_HWC: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize an image to cover (size, size), or (H, W), and crop its center.

    Downscaling averages areas; upscaling is bicubic.
    """
    height, width, channels = image_HWC.shape
    new_height, new_width = (size, size) if isinstance(size, int) else size
    scale = max(new_height / height, new_width / width)
    if scale != 1:
        shape = (max(new_width, round(width * scale)), max(new_height, round(height * scale)))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image_HWC = cv2.resize(np.ascontiguousarray(image_HWC), shape, interpolation=interpolation)
        image_HWC = image_HWC.reshape(shape[1], shape[0], channels)  # OpenCV drops a single channel
    top, left = (image_HWC.shape[0] - new_height) // 2, (image_HWC.shape[1] - new_width) // 2
    return image_HWC[top : top + new_height, left : left + new_width]


def resize(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to (H, W): area averaging if its height decreases, else bicubic interpolation.

    The aspect ratio is not preserved.
    """
    if image_HWC.shape[:2] == size:
        return image_HWC
    interpolation = cv2.INTER_AREA if size[0] < image_HWC.shape[0] else cv2.INTER_CUBIC
    scaled = cv2.resize(np.ascontiguousarray(image_HWC), size[::-1], interpolation=interpolation)
    return scaled.reshape(*size, image_HWC.shape[2])  # OpenCV drops a single channel


def resize_and_crop_mask(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize and crop a mask to (H, W) like its image in `resize_and_crop`, by nearest-neighbor interpolation."""
    height, width = mask_HW.shape
    scale = max(size[0] / height, size[1] / width)
    if scale != 1:
        shape = (max(size[1], round(width * scale)), max(size[0], round(height * scale)))
        mask_HW = cv2.resize(np.ascontiguousarray(mask_HW), shape, interpolation=cv2.INTER_NEAREST_EXACT)
    top, left = (mask_HW.shape[0] - size[0]) // 2, (mask_HW.shape[1] - size[1]) // 2
    return mask_HW[top : top + size[0], left : left + size[1]]


def convert_channels(image_HWC: np.ndarray, grayscale: bool | None) -> np.ndarray:
    """Convert an image to 1 channel (True; ITU-R BT.601 luma) or 3 channels (False); None: no conversion."""
    if grayscale is None or image_HWC.shape[2] == (1 if grayscale else 3):
        return image_HWC
    if grayscale:
        return cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY)[..., None]
    return np.repeat(image_HWC, 3, axis=2)


def convert_image_set(images: ImageSet, image_size: int | tuple[int, int] | None, grayscale: bool | None) -> ImageSet:
    """Resize an image set in memory and convert its channels, with the same operations as `decode_all`."""
    channels, height, width = images.shape
    right_size = image_size is None or (height, width) == image_size or height == width == image_size
    if right_size and grayscale in (None, channels == 1):
        return images
    images_NHWC = images.images.permute(0, 2, 3, 1).numpy()
    fitted = (image if image_size is None else resize_and_crop(image, image_size) for image in images_NHWC)
    images_NCHW = np.stack([convert_channels(image, grayscale) for image in fitted]).transpose(0, 3, 1, 2)
    return image_set(images_NCHW, images.labels.numpy(), images.classes, images.source, images.messages)


def _opened(data: bytes, name: str, *, apply_exif: bool = True, audit: Audit | None = None) -> Image.Image:
    """Open and load an image. The audit counts animations, and images that are turned."""
    with _reading(data, name) as opened:
        opened.load()
        picture = ImageOps.exif_transpose(opened) if apply_exif else opened.copy()
        if audit is not None and apply_exif and opened.getexif().get(ORIENTATION, 1) in TURNED:
            audit.converted["turned as their EXIF orientation says"] += 1
        if audit is not None:
            with contextlib.suppress(Exception):  # the first image may be sound, and the others not
                if getattr(opened, "is_animated", False):
                    audit.converted["with several images, of which the first is used"] += 1
        return picture


@contextmanager
def _reading(data: bytes, name: str) -> Iterator[Image.Image]:
    """Open an image without loading it, and turn errors of Pillow into a UserError."""
    if not data:
        raise UserError(f"{name} is empty: replace it with an undamaged copy, or remove it.")
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as opened:
            yield opened
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: make it smaller, or remove it."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow's readers raise many types on invalid bytes)
        raise UserError(
            f"{name} cannot be decoded as an image ({describe_start(data) or _brief(error)}): replace it with an "
            f"undamaged copy, or remove it."
        ) from None


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Turn Pillow's decompression bomb warning into an error and ignore its other warnings (unusual metadata)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def allocate_images(number: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Allocate an array (number, C, H, W) uint8.

    Args:
        number: of images.
        shape: (C, H, W) of an image.
        where: the folder or archive, for messages.

    Raises:
        UserError: the array does not fit in memory.
    """
    needed, free = number * int(np.prod(shape)), psutil.virtual_memory().available
    if needed > free * 0.8:
        raise UserError(
            f"The {number:,} images of {where} need {needed / 2**30:,.1f} GiB at {shape[2]}x{shape[1]}, but "
            f"{free / 2**30:,.1f} GiB of memory are free: give a smaller --image-size, or fewer images."
        )
    return np.empty((number, *shape), np.uint8)


def _size(image_CHW: np.ndarray) -> str:
    return f"{image_CHW.shape[2]}x{image_CHW.shape[1]}"


def _brief(error: Exception) -> str:
    """Summarize a Pillow error, without the memory address that some of its messages contain."""
    return "no format that Pillow supports" if "cannot identify image file" in str(error) else error_summary(error)


def list_image_files(words: Sequence[str]) -> list[Path]:
    """Return the given image files and the image files in the given folders.

    Raises:
        UserError: there are no image files.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        inside = _images_inside(path) if path.is_dir() else [path]
        found += inside
    if not found:
        raise UserError(
            "No image was given: type the classifier and then images, as in "
            f"{program_command('vision.predict')} runs/<name> photo.png."
        )
    return found


def _images_inside(folder: Path) -> list[Path]:
    """Return the image files in a folder, also those of formats that cannot be read here, so that they are named.

    Raises:
        UserError: there are none.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file.name))
    images = [file for file in files if file.suffix.lower() in SUFFIXES | UNSUPPORTED_SUFFIXES]
    if not images:
        raise UserError(f"The folder {folder} contains no images: give image files, or another folder.")
    return images
