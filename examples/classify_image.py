"""Classify images: files, arrays and pictures of Pillow.

python examples/classify_image.py photo.jpg              # with the digits classifier that ships with zerokara
python examples/classify_image.py photo.jpg runs/mine    # with a classifier of your own
"""

from __future__ import annotations

import sys

import numpy as np

import zerokara


def main() -> None:
    """Classify a file and an array."""
    classifier = zerokara.load_classifier(sys.argv[2] if len(sys.argv) > 2 else "digits")
    prediction = classifier.predict(sys.argv[1])
    print(f"{sys.argv[1]}: {prediction.name} ({prediction.probability:.1%})")
    empty = np.zeros((28, 28), np.uint8)
    print(f"an empty image: {classifier.predict(empty).name}")


if __name__ == "__main__":
    main()
