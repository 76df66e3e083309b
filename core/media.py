"""Images and videos: mp4 for browsers, animated GIF for TensorBoard, PNG, and image grids.

Shapes: T frames, N images, H height and W width in pixels, C channels (1 grayscale, 3 RGB, 4 RGB with alpha).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from zerokara.core.checkpoint import write_atomically

if TYPE_CHECKING:
    from PIL import Image

MAX_WIDTH, MAX_HEIGHT = 1280, 720  # pixels, of the videos of runs
MAX_FRAMES = 3_000  # of the videos of runs: 200 s of an Atari game


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
    write_atomically(path, lambda file: _encode(file, frames, fps))


def _encode(file: BinaryIO, frames: Iterable[np.ndarray], fps: float) -> None:
    """Encode frames one by one. PyAV writes to a Python file because it does not report a full disk by itself."""
    import av

    with av.open(file, "w", format="mp4") as container:
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
            even_HWC = frame_HWC
            if shape[0] % 2 or shape[1] % 2:  # np.pad takes a millisecond even if there is nothing to pad
                even_HWC = np.pad(frame_HWC, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even_HWC), format="rgb24")))
        if not shape:
            raise ValueError("frames must be (T, H, W, 3) uint8 and at least one, got none")
        container.mux(stream.encode())


class Gif:
    """Animated GIF, small enough for TensorBoard, of frames that arrive one at a time.

    Frames are dropped and reduced to meet the limits, so that at most `max_frames` small ones are in memory; the
    playback speed stays. Durations in a GIF are multiples of 10 ms, and browsers play frames shorter than 20 ms slowly.

    Args:
        fps: frames per second of the input.
        max_frames: number of frames to keep at most; of a longer video, at least half as many are kept.
        max_side: larger side of the GIF in pixels at most.
    """

    def __init__(self, fps: float, max_frames: int = 300, max_side: int = 240) -> None:
        self._fps, self._max_frames, self._max_side = fps, max_frames, max_side
        self._stride = math.ceil(fps * 0.02)  # every frame whose number is a multiple of it is kept
        self._number = 0
        self._pictures: list[Image.Image] = []

    def collect(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Add frames one by one, and yield each of them."""
        for frame_HWC in frames:
            self.add(frame_HWC)
            yield frame_HWC

    def add(self, frame_HWC: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8.

        Raises:
            ValueError: wrong shape or dtype.
        """
        from PIL import Image

        _checked(frame_HWC[None])
        if self._number % self._stride == 0 and len(self._pictures) == self._max_frames:
            del self._pictures[1::2]
            self._stride *= 2
        if self._number % self._stride == 0:
            picture = Image.fromarray(np.ascontiguousarray(frame_HWC))
            shrink = math.ceil(max(picture.size) / self._max_side)
            self._pictures.append(picture.reduce(shrink) if shrink > 1 else picture)
        self._number += 1

    def encode(self) -> bytes:
        """Encode the frames as a GIF that loops.

        Raises:
            ValueError: no frames.
        """
        from PIL import Image

        if not self._pictures:
            raise ValueError("frames must be (T, H, W, 3) uint8 and at least one, got none")
        # One palette for all frames: faster, and without flicker.
        sample = [np.asarray(picture) for picture in self._pictures[:: max(1, len(self._pictures) // 8)][:8]]
        palette = Image.fromarray(np.concatenate(sample)).quantize(256, dither=Image.Dither.NONE)
        quantized = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in self._pictures]
        out = io.BytesIO()
        quantized[0].save(
            out,
            "GIF",
            save_all=True,
            append_images=quantized[1:],
            loop=0,
            duration=max(20, round(1000 * self._stride / self._fps)),
            disposal=1,
        )
        return out.getvalue()


def fit(frame_HWC: np.ndarray, max_width: int = MAX_WIDTH, max_height: int = MAX_HEIGHT) -> np.ndarray:
    """Reduce an image (H, W, 3) so that it fits into a size, with its aspect ratio. A smaller one is not changed."""
    import cv2

    height, width = frame_HWC.shape[:2]
    scale = min(max_width / width, max_height / height)
    if scale >= 1:
        return frame_HWC
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(np.ascontiguousarray(frame_HWC), size, interpolation=cv2.INTER_AREA), np.uint8)


def within_limits(frames: Iterable[np.ndarray], name: str, warn: Callable[[str], object]) -> Iterator[np.ndarray]:
    """Yield the frames of a run's video, reduced to MAX_WIDTH and MAX_HEIGHT, and at most MAX_FRAMES of them.

    Args:
        frames: RGB frames (H, W, 3).
        name: name of the video in messages.
        warn: gets a message for each limit that applies, perhaps repeatedly.
    """
    for number, frame in enumerate(frames):
        if number == MAX_FRAMES:
            warn(f"the video {name!r} ends after {number:,} frames, although the recording is longer.")
            return
        reduced = fit(frame)
        if reduced is not frame:
            (height, width), (low, narrow) = frame.shape[:2], reduced.shape[:2]
            warn(f"the video {name!r} has {narrow}x{low} pixels, reduced from {width}x{height}.")
        yield reduced


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
