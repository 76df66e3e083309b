"""What a person sees of a painter: grids of samples, the film of them over training, curves.

Shapes: N images, T frames, C channels, H, W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from zerokara.core.media import grid
from zerokara.core.report import figure_pixels, plain_ticks

FILM_FPS = 10.0
CURVES = {
    "losses": ("train/d_loss", "train/g_loss"),
    "discriminator's accuracy": ("train/d_accuracy_real", "train/d_accuracy_fake"),
    "Fréchet distance": ("eval/fcd", "eval/random_fd"),
    "coverage and density": ("eval/coverage", "eval/density", "eval/spread"),
}


def shown(images_NCHW: Tensor) -> Tensor:
    """Images as a person can see them: of a stack of frames the newest."""
    return images_NCHW if images_NCHW.shape[1] in (1, 3) else images_NCHW[:, -1:]


def picture(images_NCHW: Tensor, columns: int | None = None) -> np.ndarray:
    """Images side by side (H, W, C) uint8, small ones enlarged."""
    side = max(images_NCHW.shape[2:])
    return grid(shown(images_NCHW), columns, gap=1, scale=max(1, 64 // side))


def film(frames: Sequence[Path], seconds: float = 12.0, hold_s: float = 2.0) -> np.ndarray:
    """PNG files of one size as RGB frames (T, H, W, 3) uint8 of so many seconds, the last one held for a while.

    Where there are more files than that takes, some at even distances, the first and the last among them.
    """
    number = min(len(frames), round(seconds * FILM_FPS))
    places = np.linspace(0, len(frames) - 1, number).round().astype(int)
    pixels = []
    for place in places:
        with Image.open(frames[place]) as opened:
            pixels.append(np.asarray(opened.convert("RGB")))
    return np.stack(pixels + pixels[-1:] * (round(hold_s * FILM_FPS) - 1))


def draw_curves(metrics: Path) -> np.ndarray | None:
    """Losses, accuracies and scores over updates as RGB pixels; None where nothing was logged yet."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    series = {
        name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        for names in CURVES.values()
        for name in names
    }
    if not any(series.values()):
        return None
    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for name in names:
            if series[name]:
                axes.plot(*zip(*series[name], strict=True), label=name.split("/")[1])
        axes.set(title=title, xlabel="updates")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
            if title == "Fréchet distance":
                axes.set_yscale("log")
                plain_ticks(axes.yaxis)
    return figure_pixels(figure)
