"""Measure the error of vision.predict on simulated photographs of handwritten digits. Prints JSON.

    python -m benchmarks.own_pictures runs/<a run on MNIST> --number 300

Validation images of MNIST (neither training nor test images) are converted to photographs of ink on paper: enlarged,
off-center, shaded, noisy. Each kind is preprocessed as in vision.predict, and with its option --as-is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from zerokara.core import data
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.inputs import prepare
from zerokara.vision.classification.learner import SPLIT_SEED
from zerokara.vision.classification.scoring import predict_probabilities

INK, PAPER = (40, 40, 90), (235, 230, 210)
Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def enlarged(image_HW: np.ndarray, scale: int = 12) -> np.ndarray:
    """Enlarge the image by bicubic interpolation."""
    return cv2.resize(image_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def paper(
    big_HW: np.ndarray,
    rng: np.random.Generator,
    *,
    margin: float = 0.6,
    noise: float = 6,
    shade: float = 0.4,
    ink: tuple[int, int, int] = INK,
) -> np.ndarray:
    """Draw ink on paper (H, W, 3), off-center by up to `margin` times the side, with a brightness gradient `shade`."""
    above, left = (int(rng.uniform(0, margin) * side) for side in big_HW.shape)
    ink_HW1 = np.pad(big_HW / 255.0, ((above, above), (left, left)))[..., None]
    picture = np.array(PAPER) * (1 - ink_HW1) + np.array(ink) * ink_HW1
    down, right = np.mgrid[0 : 1 : picture.shape[0] * 1j, 0 : 1 : picture.shape[1] * 1j]
    picture *= (1 - shade * (right * rng.random() + down * rng.random()) / 2)[..., None]
    return (picture + rng.normal(0, noise, picture.shape)).clip(0, 255).astype(np.uint8)


def thin(image_HW: np.ndarray) -> np.ndarray:
    """Reduce the strokes to their center lines, to simulate a fine pen."""
    mask = (enlarged(image_HW, 16) > 128).astype(np.uint8)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    ridge = (depth >= cv2.dilate(depth, np.ones((5, 5))) - 0.5) & (depth > 8)
    return cv2.dilate(ridge.astype(np.uint8) * 255, np.ones((5, 5)))


def tight(image_HW: np.ndarray) -> np.ndarray:
    """Crop the image to the bounding box of the digit."""
    rows, columns = np.nonzero(image_HW > 60)
    return image_HW[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


KINDS: dict[str, Draw] = {
    "the image itself": lambda image, rng: image[..., None],
    "enlarged, light on dark": lambda image, rng: enlarged(image)[..., None],
    "ink on shaded paper": lambda image, rng: paper(enlarged(image), rng),
    "more shade and noise": lambda image, rng: paper(enlarged(image), rng, shade=0.6, noise=12),
    "a large sheet": lambda image, rng: paper(enlarged(image), rng, margin=2.5),
    "pencil": lambda image, rng: paper(enlarged(image), rng, ink=(150, 150, 150)),
    "a fine pen": lambda image, rng: paper(thin(image), rng, noise=4),
    "cut tightly": lambda image, rng: paper(enlarged(tight(image)), rng, margin=0.1),
}


def main() -> None:
    """Parse the arguments, draw and classify the images, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="run folder, model file, or name of a network in the zoo")
    parser.add_argument("--number", type=int, default=300, help="number of images")
    options = parser.parse_args()
    classifier, metadata = ClassifierMetadata.load(zoo.find_file(options.classifier))
    _, validation = data.hold_out(data.load("mnist", "train"), 5000, SPLIT_SEED)
    validation = validation.take(slice(0, options.number))
    compute = Compute()
    errors: dict[str, dict[str, float]] = {}
    for name, draw in KINDS.items():
        errors[name] = {}
        for way in ("as predict does", "as is"):
            rng = np.random.default_rng(0)
            seen = [
                prepare(draw(image_HW, rng), metadata, as_is=way == "as is").pixels_CHW
                for image_HW in validation.images[:, 0].numpy()
            ]
            found_NK = predict_probabilities(classifier, metadata, compute, torch.from_numpy(np.stack(seen)))
            errors[name][way] = round(float((found_NK.argmax(1) != validation.labels).double().mean()), 4)
    name = Path(options.classifier).name
    print(json.dumps({"classifier": name, "images": len(validation), "errors": errors}, indent=2))


if __name__ == "__main__":
    run_main(main)
