"""Why a network says what it says: Grad-CAM, occlusion, and the patches that excite a channel most.

Shapes: N images, B batch, C channels, H, W pixels of an image, h, w positions of a map, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.vision.studies.receptive_fields import Depth, Span, activations


def grad_cam(map_BChw: Tensor, gradient_BChw: Tensor) -> Tensor:
    """Grad-CAM (B, h, w): Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.

    A channel's weight is the mean of the score's gradient over its places; the channels are summed by weight, and what
    speaks against the class is left out.
    """
    weight_BC11 = gradient_BChw.mean((2, 3), keepdim=True)
    return F.relu((weight_BC11 * map_BChw).sum(1))


def grad_cam_of(network: nn.Module, x_BCHW: Tensor, class_B: Tensor, place: int = -1) -> Tensor:
    """Grad-CAM (B, H, W) of each image's class, before softmax, in the rectified map `place`, brought to image size."""
    with torch.enable_grad():
        logits_BK, maps = activations(network, x_BCHW.detach().requires_grad_())
        # Networks in evaluation mode know nothing of an image's neighbours, so one sum gives every image's gradient.
        (gradient,) = torch.autograd.grad(logits_BK.gather(1, class_B[:, None]).sum(), maps[place])
    small_Bhw = grad_cam(maps[place].detach(), gradient)
    return F.interpolate(small_Bhw[:, None], x_BCHW.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def occlusion(
    probability: Callable[[Tensor], Tensor], x_CHW: Tensor, side: int, step: int, batch_size: int = 256
) -> Tensor:
    """The probability (h, w) that is left when a grey square hides a part of the image.

    Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2. The square's centre
    goes over every step-th pixel, beginning with the first; what would stand out of the image is cut off.

    Args:
        probability: of the class in question (B,), for normalised images (B, C, H, W): grey is 0.
        side: of the square, in pixels.
        step: pixels between neighbouring places.
    """
    height, width = x_CHW.shape[1:]
    row_h, column_w = torch.arange(0, height, step), torch.arange(0, width, step)
    before = (side - 1) // 2  # pixels of the square above and left of its centre

    def hidden(centre: Tensor, length: int) -> Tensor:
        pixel = torch.arange(length)[None]
        return (pixel >= centre[:, None] - before) & (pixel < centre[:, None] - before + side)

    rows_hH, columns_wW = hidden(row_h, height), hidden(column_w, width)
    mask = (rows_hH[:, None, :, None] & columns_wW[None, :, None, :]).flatten(0, 1)  # (h * w, H, W)
    with torch.no_grad():
        left = [
            probability(x_CHW[None].masked_fill(part[:, None].to(x_CHW.device), 0.0)) for part in mask.split(batch_size)
        ]
    return torch.cat(left).view(len(row_h), len(column_w))


@dataclass(frozen=True)
class Excited:
    """The images that excite the channels of one depth most: best first, each image once."""

    depth: Depth
    value_CM: Tensor
    """The largest activation in each image."""
    image_CM: Tensor
    """Places of the images in their set."""
    row_CM: Tensor
    """Where in the map it is."""
    column_CM: Tensor


def most_exciting(
    network: nn.Module,
    metadata: ClassifierMetadata,
    compute: Compute,
    images: ImageSet,
    depths: Sequence[Depth],
    places: Sequence[int],
    most: int,
    batch_size: int = 250,
) -> list[Excited]:
    """For each channel of the chosen depths, the `most` images with the largest activation.

    Args:
        depths: all of the network's (`depths_of`); places: those to look at.
    """
    best: list[tuple[Tensor, Tensor, Tensor]] = []  # by chosen depth: value, image, position, each (C, M)
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels = images.images[start : start + batch_size].to(compute.torch_device)
            _, maps = activations(network, metadata.normalize(pixels.float() * (1 / 255)))
            number = torch.arange(start, start + len(pixels), device=compute.torch_device)
            for index, place in enumerate(places):
                value_BC, position_BC = maps[place].flatten(2).max(2)
                found = (value_BC.T, number.expand_as(value_BC.T), position_BC.T)
                if start:
                    found = tuple(torch.cat(pair, 1) for pair in zip(best[index], found, strict=True))  # type: ignore[assignment]
                value_CM, order_CM = found[0].topk(min(most, found[0].shape[1]), 1)
                kept = (value_CM, found[1].gather(1, order_CM), found[2].gather(1, order_CM))
                if start:
                    best[index] = kept
                else:
                    best.append(kept)
    excited = []
    for place, (value_CM, image_CM, position_CM) in zip(places, best, strict=True):
        width = depths[place].shape[2]
        place_CM = compute.to_host(position_CM)
        row_CM, column_CM = place_CM // width, place_CM % width
        excited.append(Excited(depths[place], compute.to_host(value_CM), compute.to_host(image_CM), row_CM, column_CM))
    return excited


def cut_out(image_CHW: Tensor, depth: Depth, row: int, column: int) -> tuple[Tensor, Tensor]:
    """What one position of a map sees of an image: a window (C, a, b), and which of its pixels are seen (a, b).

    The window is the receptive field as it lies, 0 where it stands out of the image; along an axis where the field is
    no smaller than the image, the window is the image.
    """
    channels, height, width = image_CHW.shape
    rows, columns = _axis(depth.rows, row, height), _axis(depth.columns, column, width)
    pixels = image_CHW.new_zeros(channels, len(rows.window), len(columns.window))
    pixels[:, rows.inside_window, columns.inside_window] = image_CHW[:, rows.inside_image, columns.inside_image]
    return pixels, rows.seen[:, None] & columns.seen[None]


@dataclass(frozen=True)
class _Axis:
    """A window along one axis."""

    window: range
    """Its pixels, as the image counts them."""
    inside_image: slice
    """Those of the image that it shows."""
    inside_window: slice
    """Where it shows them."""
    seen: Tensor
    """Which of the window's pixels the position sees, bool."""


def _axis(span: Span, position: int, side: int) -> _Axis:
    first, last = span.at(position)
    window = range(side) if span.size >= side else range(first, last + 1)
    image = slice(min(max(window.start, 0), side), min(max(window.stop, 0), side))
    pixel = torch.tensor(window)
    seen = (pixel >= max(first, 0)) & (pixel <= min(last, side - 1))
    return _Axis(window, image, slice(image.start - window.start, image.stop - window.start), seen)
