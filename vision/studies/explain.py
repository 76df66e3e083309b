"""Visual explanations of classifiers: Grad-CAM, occlusion, and the image patches with the largest activations.

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
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.vision.studies.receptive_fields import FeatureMap, Span, activations


def grad_cam(map_BChw: Tensor, gradient_BChw: Tensor) -> Tensor:
    """Compute Grad-CAM maps (B, h, w): Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.

    The weight of a channel is the mean of the gradient over its positions. The result is the weighted sum of the
    channels after a ReLU, so that evidence against the class is left out.

    Args:
        map_BChw: feature map.
        gradient_BChw: gradient of the class score with respect to the feature map.
    """
    weight_BC11 = gradient_BChw.mean((2, 3), keepdim=True)
    return F.relu((weight_BC11 * map_BChw).sum(1))


def compute_grad_cam(network: nn.Module, x_BCHW: Tensor, class_B: Tensor, map_index: int = -1) -> Tensor:
    """Compute Grad-CAM maps (B, H, W) of the logit of class_B in a feature map, upsampled to the size of the image.

    Args:
        network: classifier in evaluation mode.
        x_BCHW: normalized images.
        class_B: class of each image.
        map_index: index of the feature map, in the order of `feature_maps`.
    """
    with torch.enable_grad():
        logits_BK, maps = activations(network, x_BCHW.detach().requires_grad_())
        # In evaluation mode the images of a batch do not influence each other, so one backward pass of the sum has the
        # gradients of all images.
        (gradient,) = torch.autograd.grad(logits_BK.gather(1, class_B[:, None]).sum(), maps[map_index])
    small_Bhw = grad_cam(maps[map_index].detach(), gradient)
    return F.interpolate(small_Bhw[:, None], x_BCHW.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def occlusion(
    probability: Callable[[Tensor], Tensor], x_CHW: Tensor, side: int, step: int, batch_size: int = 256
) -> Tensor:
    """Compute the probability (h, w) of a class while a gray square hides a part of the image.

    Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2. The center of the
    square is at every step-th pixel, beginning with the first one. The square is clipped at the image border.

    Args:
        probability: function from normalized images (B, C, H, W) to the probabilities (B,) of the class.
        x_CHW: normalized image, in which gray is 0.
        side: side of the square, in pixels.
        step: pixels between neighboring positions of the square.
        batch_size: occluded images in a forward pass.
    """
    height, width = x_CHW.shape[1:]
    row_h, column_w = torch.arange(0, height, step), torch.arange(0, width, step)
    before = (side - 1) // 2  # pixels of the square above and left of its center

    def hidden(center: Tensor, length: int) -> Tensor:
        pixel = torch.arange(length)[None]
        return (pixel >= center[:, None] - before) & (pixel < center[:, None] - before + side)

    rows_hH, columns_wW = hidden(row_h, height), hidden(column_w, width)
    mask = (rows_hH[:, None, :, None] & columns_wW[None, :, None, :]).flatten(0, 1)  # (h * w, H, W)
    with torch.no_grad():
        remaining = [
            probability(x_CHW[None].masked_fill(part[:, None].to(x_CHW.device), 0.0)) for part in mask.split(batch_size)
        ]
    return torch.cat(remaining).view(len(row_h), len(column_w))


@dataclass(frozen=True)
class TopActivations:
    """Images with the largest activations of each channel of a feature map, in decreasing order, each image once."""

    feature_map: FeatureMap
    value_CM: Tensor
    """Largest activation in each image."""
    image_CM: Tensor
    """Indices of the images."""
    row_CM: Tensor
    """Row and column of the largest activation in the feature map."""
    column_CM: Tensor


def top_activations(
    network: nn.Module,
    metadata: ClassifierMetadata,
    compute: Compute,
    images: ImageSet,
    all_maps: Sequence[FeatureMap],
    map_indices: Sequence[int],
    max_images: int,
    batch_size: int = 250,
) -> list[TopActivations]:
    """Find the images with the largest activation for each channel of the selected feature maps.

    Args:
        network: classifier in evaluation mode.
        metadata: of the network.
        compute: device.
        images: images to search.
        all_maps: all feature maps of the network (`feature_maps`).
        map_indices: indices of the selected ones.
        max_images: images for each channel.
        batch_size: images in a forward pass.
    """
    best: list[tuple[Tensor, Tensor, Tensor]] = []  # for each selected map: value, image, position, each (C, M)
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels = images.images[start : start + batch_size].to(compute.torch_device)
            _, maps = activations(network, metadata.normalize_uint8(pixels))
            number = torch.arange(start, start + len(pixels), device=compute.torch_device)
            for slot, map_index in enumerate(map_indices):
                value_BC, position_BC = maps[map_index].flatten(2).max(2)
                candidates = (value_BC.T, number.expand_as(value_BC.T), position_BC.T)
                if start:
                    pairs = zip(best[slot], candidates, strict=True)
                    candidates = tuple(torch.cat(pair, 1) for pair in pairs)  # type: ignore[assignment]
                value_CM, order_CM = candidates[0].topk(min(max_images, candidates[0].shape[1]), 1)
                top = (value_CM, candidates[1].gather(1, order_CM), candidates[2].gather(1, order_CM))
                if start:
                    best[slot] = top
                else:
                    best.append(top)
    results = []
    for map_index, (value_CM, image_CM, position_CM) in zip(map_indices, best, strict=True):
        feature_map = all_maps[map_index]
        row_CM, column_CM = position_CM // feature_map.shape[2], position_CM % feature_map.shape[2]
        tensors = (compute.to_host(tensor) for tensor in (value_CM, image_CM, row_CM, column_CM))
        results.append(TopActivations(feature_map, *tensors))
    return results


def crop_receptive_field(image_CHW: Tensor, feature_map: FeatureMap, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Crop the receptive field of one position of a feature map from an image.

    Along an axis where the receptive field is at least as large as the image, the whole image is returned.

    Returns:
        The window (C, a, b), 0 outside of the image, and a mask (a, b) of the pixels in the receptive field.
    """
    channels, height, width = image_CHW.shape
    rows, columns = _axis(feature_map.rows, row, height), _axis(feature_map.columns, column, width)
    pixels = image_CHW.new_zeros(channels, len(rows.window), len(columns.window))
    pixels[:, rows.inside_window, columns.inside_window] = image_CHW[:, rows.inside_image, columns.inside_image]
    return pixels, rows.in_field[:, None] & columns.in_field[None]


@dataclass(frozen=True)
class _Axis:
    """Window along one axis."""

    window: range
    """Pixels of the window, in coordinates of the image."""
    inside_image: slice
    """Slice of the image that is in the window."""
    inside_window: slice
    """Slice of the window that is in the image."""
    in_field: Tensor
    """Mask of the window: pixels in the receptive field, bool."""


def _axis(span: Span, position: int, side: int) -> _Axis:
    first, last = span.pixels(position)
    window = range(side) if span.size >= side else range(first, last + 1)
    image = slice(min(max(window.start, 0), side), min(max(window.stop, 0), side))
    pixel = torch.tensor(window)
    in_field = (pixel >= max(first, 0)) & (pixel <= min(last, side - 1))
    return _Axis(window, image, slice(image.start - window.start, image.stop - window.start), in_field)
