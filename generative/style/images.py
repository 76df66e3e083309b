"""Image files, image sizes, the two images and memory estimates of style transfer.

Shapes: B images, C channels, H, W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.data.file_reading import read_file
from zerokara.core.data.image_files import convert_channels, decode
from zerokara.core.media import png_bytes, to_uint8
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.run_inputs import check_origin, resumed_file, save_input
from zerokara.generative.style.config import Config
from zerokara.generative.style.perceptual import MIN_SIDE

INPUT_FILES = ("content.png", "style.png")  # copies of the images in the run folder
MAX_MEMORY_FRACTION = 0.85  # of the free memory; the rest covers errors of the estimate
TEMPORARIES = 4  # feature maps of the largest size that the backward pass needs in addition


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8.

    Raises:
        UserError: no such file, not decodable, or smaller than `MIN_SIDE`.
    """
    image_HWC = convert_channels(decode(read_file(path), str(path)), False)
    if min(image_HWC.shape[:2]) < MIN_SIDE:
        height, width = image_HWC.shape[:2]
        raise UserError(f"{path} has {width}x{height} pixels: give an image of at least {MIN_SIDE}x{MIN_SIDE}.")
    return image_HWC


def read_input(config: Any, word: str, name: str) -> np.ndarray:
    """Read an image that a run is started from, as `read_image`; a resumed run reads the copy in its folder.

    Args:
        config: of the run.
        word: path of the image.
        name: of the copy.

    Raises:
        UserError: as `read_image`, or the folder of an older release has no copy, and the image does not exist.
    """
    if copy := resumed_file(config, name):
        return read_image(copy)
    check_origin(config, word)
    return read_image(Path(word).expanduser())


def fingerprint(image_HWC: np.ndarray) -> str:
    """Return a hash of the pixels, independent of the file's name and format."""
    return hashlib.sha256(image_HWC.tobytes() + str(image_HWC.shape).encode()).hexdigest()[:16]


def sizes(height: int, width: int, max_side: int, scales: int) -> list[tuple[int, int]]:
    """Return the sizes (H, W) of the optimization, from coarse to fine, each twice the previous.

    Args:
        height, width: of the file.
        max_side: longer side of the last size in pixels; 0: as in the file.
        scales: maximum number of sizes. Sizes with a side below `MIN_SIDE` are left out.

    Raises:
        UserError: the last size has a side below `MIN_SIDE`.
    """
    factor = max_side / max(height, width) if max_side else 1.0
    results = []
    for halvings in range(scales - 1, -1, -1):
        scale = factor / 2**halvings
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if min(size) >= MIN_SIDE:
            results.append(size)
    if not results:
        raise UserError(
            f"--size {max_side} gives {max(1, round(width * factor))}x{max(1, round(height * factor))} pixels for an "
            f"image of {width}x{height}: the shorter side needs at least {MIN_SIDE}, so give a larger --size."
        )
    return results


def to_pixels(image_HWC: np.ndarray) -> Tensor:
    """Convert (H, W, 3) uint8 to (1, 3, H, W) float32 from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1))[None]).float() / 255


def to_image(pixels_1CHW: Tensor) -> np.ndarray:
    """Convert (1, 3, H, W) from 0 to 1 to (H, W, 3) uint8. Values outside the range are clipped."""
    return Compute.to_host(to_uint8(pixels_1CHW.detach()[0])).permute(1, 2, 0).contiguous().numpy()


def activation_bytes(network: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Estimate the bytes of a forward and backward pass in float32, for images (B, C, H, W), without allocating them.

    Tensors that the forward pass saves for the backward pass are counted exactly, on the meta device. For the backward
    pass `TEMPORARIES` times the largest of them is added.

    Raises:
        UserError: images too small for the network's strides.
    """
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    meta_state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    pixels = torch.empty(shape, device="meta", requires_grad=True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            torch.func.functional_call(network, meta_state, (pixels,))
    except RuntimeError as error:
        raise UserError(
            f"Images of {shape[3]}x{shape[2]} pixels are too small for this network ({error_summary(error)}): "
            f"enlarge them."
        ) from error
    weights = {tensor.untyped_storage()._cdata for tensor in meta_state.values()}
    saved_bytes = [tensor.untyped_storage().nbytes() for storage, tensor in saved.items() if storage not in weights]
    return sum(saved_bytes) + TEMPORARIES * max(saved_bytes, default=0)


def check_memory(needed: Mapping[str, int], compute_device: str, size: tuple[int, int], instead: str) -> str:
    """Check that the needed memory is free. Returns a message about it.

    Args:
        needed: bytes by purpose.
        compute_device: auto, cpu, cuda, ...
        size: (H, W) of the images.
        instead: advice if memory is insufficient; {side} in it is replaced by a side that fits.

    Raises:
        UserError: more is needed than is free.
    """
    total, free = sum(needed.values()), free_bytes(compute_device)
    gib = 2**30
    purposes = ", ".join(f"{value / gib:,.1f} GiB for {name}" for name, value in needed.items())
    if total > MAX_MEMORY_FRACTION * free:
        side = int(max(size) * (MAX_MEMORY_FRACTION * free / total) ** 0.5) // 16 * 16
        raise UserError(
            f"{size[1]}x{size[0]} pixels need about {total / gib:,.1f} GiB ({purposes}), and {free / gib:,.1f} GiB are "
            f"free: {instead.format(side=max(MIN_SIDE, side))}."
        )
    return f"memory: up to {total / gib:,.1f} GiB of {free / gib:,.1f} free ({purposes})"


def free_bytes(device: str) -> int:
    """Return the free memory of a --device in bytes."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return torch.cuda.mem_get_info(device if ":" in device else None)[0]
    return psutil.virtual_memory().available


@dataclass(frozen=True)
class ImagePair:
    """Content and style image (H, W, 3) uint8, and the sizes (H, W) of the optimization."""

    content: np.ndarray
    style: np.ndarray
    sizes: list[tuple[int, int]]

    @classmethod
    def read(cls, config: Config) -> ImagePair:
        """Read both files; of a resumed run, the copies in its folder.

        Raises:
            UserError: not exactly two files, or they cannot be read.
        """
        if len(config.pictures) != 2:
            raise UserError(
                f"Two images are needed, content and style, and {len(config.pictures)} were named: "
                f"type {program_command('generative.style_transfer')} content.jpg style.jpg."
            )
        content, style = (read_input(config, *each) for each in zip(config.pictures, INPUT_FILES, strict=True))
        return cls(content, style, sizes(content.shape[0], content.shape[1], config.size, config.scales))

    def save(self, run: Run) -> None:
        """Save both images in the run folder, where a resumed run reads them."""
        for name, image in zip(INPUT_FILES, (self.content, self.style), strict=True):
            save_input(run, name, png_bytes(image))

    def style_size(self, index: int, scale: float) -> tuple[int, int]:
        """Return (H, W) of the style image at size `index`: its longer side is `scale` times the content image's."""
        max_side = max(1, round(max(self.sizes[index]) * scale))
        return sizes(self.style.shape[0], self.style.shape[1], max_side, 1)[0]
