"""Images and videos: mp4 for browsers, animated GIF for TensorBoard, PNG, and image grids.

Shapes: T frames, N images, H height and W width in pixels, C channels (1 grayscale, 3 RGB, 4 RGB with alpha).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from zerokara.core.checkpoint import write_atomically


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write RGB frames as H.264 video in yuv420p. An odd height or width is padded by repeating the edge.

    Args:
        path: of the file to write.
        frames: array (T, H, W, 3) uint8, or an iterable of frames (H, W, 3): a long video need not fit in memory.
        fps: frames per second.

    Raises:
        ValueError: wrong shape or dtype, frames of different sizes, or no frames.
        OSError: the file could not be written; no partial file remains.
    """
    import av

    encoded = io.BytesIO()  # writing files, PyAV does not report a full disk
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        shape: tuple[int, ...] = ()
        for frame_HWC in frames:
            _checked(frame_HWC[None])
            if not shape:
                shape = frame_HWC.shape
                height, width, _ = shape
                stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            if frame_HWC.shape != shape:
                raise ValueError(f"the frames of a video must be of one size, got {shape} and {frame_HWC.shape}")
            even_HWC = np.pad(frame_HWC, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even_HWC), format="rgb24")))
        if not shape:
            raise ValueError("frames must be (T, H, W, 3) uint8 and at least one, got none")
        container.mux(stream.encode())
    write_atomically(path, lambda file: file.write(encoded.getvalue()))


def gif_bytes(frames_THWC: np.ndarray, fps: float, max_frames: int = 300, max_side: int = 240) -> bytes:
    """Encode frames (T, H, W, 3) uint8 as a looping animated GIF small enough for TensorBoard.

    Frames are dropped and images reduced to meet the limits; the playback speed stays. Durations in a GIF are multiples
    of 10 ms, and browsers play frames shorter than 20 ms slowly.

    Args:
        frames_THWC: RGB frames.
        fps: frames per second of the input.
        max_frames: number of frames to keep at most.
        max_side: larger side of the GIF in pixels at most.

    Raises:
        ValueError: wrong shape or dtype, or no frames.
    """
    from PIL import Image

    frames_THWC = _checked(frames_THWC)
    frames, height, width, _ = frames_THWC.shape
    stride = max(math.ceil(frames / max_frames), math.ceil(fps * 0.02))
    shrink = math.ceil(max(height, width) / max_side)
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames_THWC[::stride]]
    if shrink > 1:
        pictures = [picture.reduce(shrink) for picture in pictures]
    # One palette for all frames: faster, and without flicker.
    sample = Image.fromarray(np.ascontiguousarray(np.concatenate(frames_THWC[:: max(1, frames // 8)][:8])))
    palette = sample.quantize(256, dither=Image.Dither.NONE)
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    out = io.BytesIO()
    first.save(
        out, "GIF", save_all=True, append_images=rest, loop=0, duration=max(20, round(1000 * stride / fps)), disposal=1
    )
    return out.getvalue()


def png_bytes(picture: np.ndarray) -> bytes:
    """Encode an image as PNG: uint8, (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4.

    Raises:
        ValueError: another shape or dtype.
    """
    from PIL import Image

    if picture.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, got {picture.dtype}")
    if picture.ndim == 3 and picture.shape[-1] not in (1, 3, 4) and picture.shape[0] in (1, 3, 4):
        picture = picture.transpose(1, 2, 0)
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    if not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] in (3, 4))) or 0 in picture.shape:
        raise ValueError(
            f"an image must be (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, got {picture.shape}"
        )
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(out, "PNG")
    return out.getvalue()


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write an image, given as to `png_bytes`, as a PNG file.

    Raises:
        ValueError: another shape or dtype.
        OSError: the file could not be written; no partial file remains.
    """
    content = png_bytes(picture)
    write_atomically(path, lambda file: file.write(content))


def grid(images: np.ndarray | torch.Tensor, columns: int | None = None, gap: int = 1, scale: int = 1) -> np.ndarray:
    """Arrange images in a grid (H, W, C) uint8.

    Args:
        images: (N, H, W) or (N, C, H, W) with C 1 or 3. uint8 values are kept; other values, such as filters or feature
            maps, are scaled linearly so that the minimum of all is black and the maximum white.
        columns: number of columns; None: as many as rows, or one more.
        gap: width in pixels of the black lines between images, after scaling.
        scale: integer factor by which each image is enlarged.

    Raises:
        ValueError: no images, or another shape.
    """
    if isinstance(images, torch.Tensor):  # NumPy has no bfloat16
        images = (images if images.dtype == torch.uint8 else images.float()).numpy(force=True)
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"images must be (N, H, W) or (N, C, H, W) with C 1 or 3, got {array.shape}")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = ((array - low) * (255 / (high - low or 1.0))).round().astype(np.uint8)
    array = array.repeat(scale, 2).repeat(scale, 3)
    count, channels, height, width = array.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    out = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.uint8)
    for index, image in enumerate(array):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        out[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return out


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Convert pixels from 0 to 1 to uint8, rounded; values outside of the range are clipped."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _checked(frames_THWC: np.ndarray) -> np.ndarray:
    """Return the frames if shape and dtype are valid, else raise ValueError."""
    shape = frames_THWC.shape
    if frames_THWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"frames must be (T, H, W, 3) uint8 and at least one, got {frames_THWC.dtype} of {shape}")
    return frames_THWC
