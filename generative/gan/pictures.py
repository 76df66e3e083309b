"""Image grids, training videos and curves that are logged while a GAN trains.

Shapes: N images, T frames, C channels, H, W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zerokara.core.media import grid
from zerokara.core.report import figure_pixels, new_figure, plain_ticks

VIDEO_FPS = 10.0
CURVES = {
    "losses": ("train/d_loss", "train/g_loss"),
    "discriminator accuracy": ("train/d_accuracy_real", "train/d_accuracy_fake"),
    "Fréchet distance": ("eval/fcd", "eval/random_fd"),
    "coverage and density": ("eval/coverage", "eval/density", "eval/spread"),
}


def displayable(images_NCHW: Tensor) -> Tensor:
    """Return images with 1 or 3 channels; of stacked frames, return the newest frame."""
    return images_NCHW if images_NCHW.shape[1] in (1, 3) else images_NCHW[:, -1:]


def evenly_spaced(images_NCHW: Tensor, number: int) -> Tensor:
    """Return this number of images, or all, from the first to the last: those of a folder are in the order of names."""
    return images_NCHW[torch.linspace(0, len(images_NCHW) - 1, min(number, len(images_NCHW))).round().long()]


def image_grid(images_NCHW: Tensor, columns: int | None = None) -> np.ndarray:
    """Arrange images in a grid (H, W, C) uint8. Images smaller than 64 pixels are enlarged."""
    side = max(images_NCHW.shape[2:])
    return grid(displayable(images_NCHW), columns, gap=1, scale=max(1, 64 // side))


def video_frames(frames: Sequence[Path], seconds: float = 12.0, hold_s: float = 2.0) -> Iterator[np.ndarray]:
    """Read PNG files of one size, one after another, as the frames of a video (H, W, 3) uint8.

    Args:
        frames: files in order. If there are more than fit, they are subsampled evenly; the first and the last stay.
        seconds: maximum length of the video, without the time that the last frame is held.
        hold_s: time that the last frame is held, in seconds.
    """
    number = min(len(frames), round(seconds * VIDEO_FPS))
    indices = np.linspace(0, len(frames) - 1, number).round().astype(int)
    repeats = [1] * (number - 1) + [round(hold_s * VIDEO_FPS)]
    for index, times in zip(indices, repeats, strict=True):
        with Image.open(frames[index]) as opened:
            frame_HWC = np.asarray(opened.convert("RGB"))
        yield from [frame_HWC] * times


def draw_curves(metrics: Path) -> np.ndarray | None:
    """Plot losses, accuracies and evaluation metrics over updates as RGB pixels. None if nothing is logged yet."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    series = {
        name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        for names in CURVES.values()
        for name in names
    }
    if not any(series.values()):
        return None
    figure, all_axes = new_figure(2, 2, width=4.5, height=3.0)
    for axes, (title, names) in zip(all_axes, CURVES.items(), strict=True):
        for name in names:
            if series[name]:
                axes.plot(*zip(*series[name], strict=True), label=name.split("/")[1])
        axes.set(title=title, xlabel="updates")
        if axes.lines:
            axes.legend(fontsize=8)
            if title == "Fréchet distance":
                axes.set_yscale("log")
                plain_ticks(axes.yaxis)
    return figure_pixels(figure)
