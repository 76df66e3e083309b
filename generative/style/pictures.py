"""Pictures in and out of style transfer: files of any size, the sizes it is painted at, and the memory that it takes.

Shapes: B pictures, C channels, H, W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.data.pictures import MOST_BYTES, decode, with_channels
from zerokara.generative.style.perceptual import SMALLEST_SIDE

SHARE = 0.85  # of the free memory that may be taken: the estimate is no promise
TEMPORARIES = 4  # largest maps that the way back holds beside what the way there kept


def read_picture(path: Path) -> np.ndarray:
    """A picture (H, W, 3) uint8.

    Raises:
        UserError: it is not there, cannot be decoded, or is too small to show anything.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size / 2**20:,.0f} MiB, too many for a picture.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error_summary(error)}): name a picture that is there.") from None
    picture_HWC = with_channels(decode(content, str(path)), False)
    if min(picture_HWC.shape[:2]) < SMALLEST_SIDE:
        height, width = picture_HWC.shape[:2]
        raise UserError(f"{path} has {width}x{height} pixels: give a picture of at least {SMALLEST_SIDE} each way.")
    return picture_HWC


def fingerprint(picture_HWC: np.ndarray) -> str:
    """What tells a picture from others, whatever its file is called."""
    return hashlib.sha256(picture_HWC.tobytes() + str(picture_HWC.shape).encode()).hexdigest()[:16]


def sizes(height: int, width: int, longest: int, scales: int) -> list[tuple[int, int]]:
    """(H, W) at which a picture is painted, from coarse to fine, each twice the one before.

    Args:
        height, width: of the file.
        longest: side of the last size in pixels; 0: as in the file.
        scales: how many sizes at most; those with a side below SMALLEST_SIDE are left out, but never the last.

    Raises:
        UserError: even the last has such a side.
    """
    factor = longest / max(height, width) if longest else 1.0
    found = []
    for halvings in range(scales - 1, -1, -1):
        share = factor / 2**halvings
        size = (max(1, round(height * share)), max(1, round(width * share)))
        if min(size) >= SMALLEST_SIDE:
            found.append(size)
    if not found:
        raise UserError(
            f"--size {longest} makes {max(1, round(width * factor))}x{max(1, round(height * factor))} pixels of "
            f"{width}x{height}: the shorter side needs at least {SMALLEST_SIDE}, so give a larger --size."
        )
    return found


def resized(picture_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at (H, W): smaller by averaging areas, larger by cubic interpolation."""
    height, width = size
    if picture_HWC.shape[:2] == size:
        return picture_HWC
    way = cv2.INTER_AREA if height < picture_HWC.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(picture_HWC), (width, height), interpolation=way)


def to_pixels(picture_HWC: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W) float32 from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(picture_HWC.transpose(2, 0, 1))[None]).float() / 255


def to_picture(pixels_1CHW: Tensor) -> np.ndarray:
    """(1, 3, H, W) from 0 to 1 as (H, W, 3) uint8; what lies beyond is cut off."""
    rounded = (pixels_1CHW.detach()[0] * 255).round().clamp(0, 255).to(torch.uint8)
    return Compute.to_host(rounded).permute(1, 2, 0).contiguous().numpy()


def kept_bytes(network: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Bytes of the way there and back through a network for pictures (B, C, H, W) in float32, without taking any.

    What the way there keeps for the way back is counted to the byte, on tensors that have shapes only; the way back
    needs some more, of which a generous share is added.

    Raises:
        UserError: pictures too small for the network's strides.
    """
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    shapes_only = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    pixels = torch.empty(shape, device="meta", requires_grad=True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            torch.func.functional_call(network, shapes_only, (pixels,))
    except RuntimeError as error:
        raise UserError(
            f"Pictures of {shape[3]}x{shape[2]} pixels are too small for this network ({error_summary(error)}): "
            f"make them larger."
        ) from error
    weights = {tensor.untyped_storage()._cdata for tensor in shapes_only.values()}
    held = [tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights]
    return sum(held) + TEMPORARIES * max(held, default=0)


def check_memory(needed: Mapping[str, int], compute_device: str, size: tuple[int, int], instead: str) -> str:
    """What will be taken, in words, before it is.

    Args:
        needed: bytes, by what they are for.
        compute_device: auto, cpu, cuda, ...
        size: (H, W) of the pictures.
        instead: what to type where it does not fit; {side} in it becomes a side that would.

    Raises:
        UserError: it does not fit into what is free.
    """
    total, free = sum(needed.values()), free_bytes(compute_device)
    gib = 2**30
    what = ", ".join(f"{value / gib:,.1f} GiB for {name}" for name, value in needed.items())
    if total > SHARE * free:
        side = int(max(size) * (SHARE * free / total) ** 0.5) // 16 * 16
        raise UserError(
            f"{size[1]}x{size[0]} pixels need about {total / gib:,.1f} GiB ({what}), and {free / gib:,.1f} GiB are "
            f"free: {instead.format(side=max(SMALLEST_SIDE, side))}."
        )
    return f"memory: up to {total / gib:,.1f} GiB of {free / gib:,.1f} free ({what})"


def free_bytes(device: str) -> int:
    """Free memory of the device that a --device names, in bytes."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return torch.cuda.mem_get_info(device if ":" in device else None)[0]
    return psutil.virtual_memory().available
