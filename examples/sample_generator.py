"""Generate images with a trained generator and write them to a PNG file.

python examples/sample_generator.py                              # a trained generator that ships with zerokara
python examples/sample_generator.py runs/dcgan-mnist-fast-1
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

import zerokara


def main() -> None:
    """Write 16 images, four in a row."""
    generator = zerokara.load_generator(sys.argv[1] if len(sys.argv) > 1 else "conditional-digits")
    images_NHWC = generator.sample(16, seed=1)
    print(f"classes: {', '.join(generator.class_names) or 'none'}")
    rows = [np.concatenate(list(images_NHWC[start : start + 4]), axis=1) for start in range(0, 16, 4)]
    grid_HWC = np.concatenate(rows)
    Image.fromarray(grid_HWC[..., 0] if grid_HWC.shape[2] == 1 else grid_HWC).save("generated.png")
    print(f"generated.png: {grid_HWC.shape[1]}x{grid_HWC.shape[0]} pixels")


if __name__ == "__main__":
    main()
