"""One's own pictures as a network wants them: any size, any colours, dark on light or light on dark.

A network for digits expects what MNIST is: light ink on black, the digit as large as 20 of 28 pixels, its centre of
mass in the middle (LeCun et al. 1998, section III.A). A photograph of a digit on paper is none of that.

Shapes: H, W pixels, C colours (1 grey, 3 RGB).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from zerokara.core.data.pictures import fit, with_channels
from zerokara.core.models.model_file import ClassifierMetadata

DIGITS = tuple("0123456789")
DARK = 0.4  # grey sets with a mean below this are light things on a dark ground: MNIST .13, Fashion-MNIST .29
BOX = 20 / 28  # longer side of a digit, of the image's
LARGEST = 512  # pixels to which a picture is made smaller before ink is looked for
GROUND = 0.4  # of the picture's longer side: what is thinner may be ink
FAINT = 25  # ink that stands out less, of 255, is none
SPECK = 0.05  # of the largest piece of ink: what is smaller is dirt
THIN = 1 / 12  # of the digit's longer side: a stroke that is thinner would fade in a small image
PEN = 1 / 9  # and is made so thick


@dataclass(frozen=True)
class Prepared:
    """A picture as the network sees it (C, H, W) uint8, and in words what was done to it."""

    pixels_CHW: np.ndarray
    done: str


def prepare(image_HWC: np.ndarray, metadata: ClassifierMetadata, *, as_is: bool = False) -> Prepared:
    """A picture for the network of this card.

    Where the network learnt light things on dark ground, a picture whose border is bright is inverted; where it learnt
    digits, the ink is found, thickened if it is thin, and centred. A picture of the network's own size is inverted at
    most.

    Args:
        image_HWC: uint8 of any size, grey or RGB.
        card: of the network.
        as_is: size and colours only.
    """
    done = []
    own_size = image_HWC.shape[:2] == metadata.image_size
    image_HWC = with_channels(image_HWC, metadata.channels == 1)
    if metadata.channels == 1 and metadata.mean[0] < DARK and not as_is:
        if bright_border(image_HWC[..., 0]):
            image_HWC = 255 - image_HWC
            done.append("inverted")
        if metadata.classes == DIGITS and not own_size:
            digit_HW = centred_digit(image_HWC[..., 0], metadata.image_size)
            if digit_HW is not None:
                return Prepared(digit_HW[None], ", ".join([*done, "digit cut out and centred"]))
            done.append("no ink found")
    if not own_size:
        height, width = image_HWC.shape[:2]
        image_HWC = fit(image_HWC, metadata.image_size)
        square = height * metadata.image_size[1] == width * metadata.image_size[0]
        done.append("resized" if square else "resized, middle cut out")
    return Prepared(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)), ", ".join(done) or "as it is")


def bright_border(image_HW: np.ndarray) -> bool:
    """Whether the border is nearer to the picture's lightest than to its darkest."""
    border = np.concatenate([image_HW[0], image_HW[-1], image_HW[:, 0], image_HW[:, -1]])
    low, high = np.percentile(image_HW, (0.1, 99.9))  # a thin pen covers less than one pixel in a hundred
    return bool(np.median(border) > (low + high) / 2)


def centred_digit(image_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The light ink of a picture (H, W), cut out and put into an image of `size` as in MNIST; None where there is none.

    Light that falls unevenly goes with the ground, which is what is left when everything thinner than two fifths of
    the picture is taken away.
    """
    shrink = LARGEST / max(image_HW.shape)
    if shrink < 1:
        image_HW = cv2.resize(image_HW, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    reach = max(3, round(GROUND * max(image_HW.shape)))
    # Noise must not decide what the ground is: its darkest specks would.
    ground = cv2.morphologyEx(cv2.medianBlur(image_HW, 3), cv2.MORPH_OPEN, np.ones((reach, reach), np.uint8))
    ink = cv2.subtract(image_HW, cv2.blur(ground, (reach, reach)))
    level, mask = cv2.threshold(cv2.GaussianBlur(ink, (3, 3), 0), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if level < FAINT or not mask.any():
        return None
    number, pieces, figures, _ = cv2.connectedComponentsWithStats(mask)
    areas = figures[:, cv2.CC_STAT_AREA]
    large = [piece for piece in range(1, number) if areas[piece] >= SPECK * areas[1:].max()]
    mask = np.isin(pieces, large).astype(np.uint8)
    ink = np.where(cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0, ink, 0).astype(np.uint8)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    thickness = 4 * cv2.distanceTransform(mask, cv2.DIST_L2, 3)[mask > 0].mean()  # a strip's mean is a quarter of it
    if thickness < THIN * longest:
        more = round(PEN * longest - thickness) + 1
        ink = cv2.copyMakeBorder(ink, more, more, more, more, cv2.BORDER_CONSTANT)
        ink = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (more, more)))
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX * min(size) / longest
    shape = tuple(max(1, round(side * scale)) for side in digit.shape)
    digit = cv2.resize(digit, shape[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    digit = (np.minimum(digit / np.percentile(digit[digit > 0], 90), 1) * 255).round().astype(np.uint8)
    return _about_centre_of_mass(digit, size)


def _about_centre_of_mass(digit_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The digit in an image of `size`, its centre of mass in the middle, or as near as it goes without a cut."""
    placed = np.zeros(size, np.uint8)
    corner = []
    for axis in (0, 1):
        mass = digit_HW.sum(1 - axis, dtype=np.float64)
        centre = (mass * np.arange(len(mass))).sum() / mass.sum()
        corner.append(int(np.clip(round((size[axis] - 1) / 2 - centre), 0, size[axis] - len(mass))))
    top, left = corner
    placed[top : top + digit_HW.shape[0], left : left + digit_HW.shape[1]] = digit_HW
    return placed
