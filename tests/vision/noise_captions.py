"""Images of noise with a caption each, as a zip file with captions.txt: data for a captioner that learns nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from zerokara.core.media import png_bytes


def write(path: Path, number: int = 20, side: int = 64) -> Path:
    """Write this number of square images, `side` pixels wide, and their captions; return the zip file."""
    random = np.random.default_rng(0)
    lines = ["image,caption"]
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(number):
            archive.writestr(f"{index:02}.png", png_bytes(random.integers(0, 256, (side, side, 3), np.uint8)))
            lines.append(f"{index:02}.png,a picture of noise .")
        archive.writestr("captions.txt", "\n".join(lines))
    return path
