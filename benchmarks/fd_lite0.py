"""Show what values of FD-Lite0 mean: its network's accuracy on photographs, and FD-Lite0 of altered training images.

    python -m benchmarks.fd_lite0 accuracy --data imagenette64      # ImageNet accuracy, on Imagenette's validation set
    python -m benchmarks.fd_lite0 baselines --data cifar10          # blurred, mixed, compressed, memorized, ... images

Prints a table to stderr and JSON to stdout. Needs the extra scores (pip install 'zerokara[scores]').

`baselines` compares test images with the same number of training images, and with the same training images after each
alteration; the training images themselves are the floor. One class is that of the first training image, with as many
images as it has, and at most that number. All choices of images are random with a fixed seed.

Shapes: N images, C channels, H, W pixels, F features, K classes.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from scipy.ndimage import gaussian_filter
from torch import Tensor

from zerokara.core import data
from zerokara.core.config import UserError, run_main
from zerokara.core.data import ImageSet
from zerokara.core.models import lite0
from zerokara.core.report import table_console
from zerokara.generative.scoring.distances import Features
from zerokara.generative.scoring.lite0 import Lite0

PROGRAM = "benchmarks.fd_lite0"
SEED = 0
MIN_IMAGES = 20
IMAGENET_CLASSES: Mapping[str, int] = {
    "tench": 0,
    "english_springer": 217,
    "cassette_player": 482,
    "chain_saw": 491,
    "church": 497,
    "french_horn": 566,
    "garbage_truck": 569,
    "gas_pump": 571,
    "golf_ball": 574,
    "parachute": 701,
}
"""Class folder of Imagenette -> index of its class in ImageNet's order."""
MEMORIZED = (10, 100, 1_000)


def blur(images_NCHW: Tensor, sigma: float) -> Tensor:
    """Blur images with a Gaussian of this standard deviation in pixels."""
    blurred = gaussian_filter(images_NCHW.numpy().astype(np.float32), (0, 0, sigma, sigma))
    return torch.from_numpy(blurred.round().astype(np.uint8))


def mix(images_NCHW: Tensor) -> Tensor:
    """Average each image with the next one."""
    return ((images_NCHW.float() + images_NCHW.roll(-1, 0)) / 2).round().byte()


def compress(images_NCHW: Tensor, quality: int) -> Tensor:
    """Compress and decompress images by JPEG of this quality, with Pillow's chroma subsampling."""
    decoded = []
    for image_CHW in images_NCHW.numpy():
        file = io.BytesIO()
        Image.fromarray(image_CHW.transpose(1, 2, 0).squeeze()).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)).reshape(*image_CHW.shape[1:], -1))
    return torch.from_numpy(np.stack(decoded).transpose(0, 3, 1, 2))


def add_noise(images_NCHW: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise of this standard deviation, in pixel values from 0 to 255."""
    noise = torch.randn(images_NCHW.shape, generator=torch.Generator().manual_seed(SEED))
    return (images_NCHW + deviation * noise).round().clamp(0, 255).byte()


def swap_halves(images_NCHW: Tensor) -> Tensor:
    """Swap the upper and the lower half of each image, and the left and the right half."""
    return images_NCHW.roll((images_NCHW.shape[2] // 2, images_NCHW.shape[3] // 2), (2, 3))


ALTERATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "JPEG, quality 75": lambda images: compress(images, 75),
    "JPEG, quality 10": lambda images: compress(images, 10),
    "blurred, sigma 0.5 pixels": lambda images: blur(images, 0.5),
    "blurred, sigma 1 pixel": lambda images: blur(images, 1),
    "Gaussian noise, sigma 10 of 255": lambda images: add_noise(images, 10),
    "halves swapped": swap_halves,
    "mixed, two images averaged": mix,
}


def choose(images: ImageSet, number: int) -> ImageSet:
    """Choose images at random."""
    return images.take(torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))[:number])


def score_baselines(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute all metrics of altered training images against test images.

    Raises:
        UserError: the package of the extra scores is not installed, no such data, or too few images.
    """
    if arguments.images < MIN_IMAGES:
        raise UserError(f"--images must be at least {MIN_IMAGES}, got {arguments.images}.")
    lite0.find_weights(PROGRAM)
    train = data.load(arguments.data, "train", data_dir=arguments.data_dir)
    test = data.load(arguments.data, "test", data_dir=arguments.data_dir)
    number = min(arguments.images, len(test), len(train))
    network = Lite0(PROGRAM, test.shape[0])
    real, chosen = choose(test, number), choose(train, number)
    real_features, floor = network.extract(real.images), network.extract(chosen.images)
    rows = [{"images": "training images (floor)", "number": number, **network.compare(real_features, floor)}]
    for name, alter in ALTERATIONS.items():
        features = network.extract(alter(chosen.images))
        rows.append({"images": name, "number": number, **network.compare(real_features, features)})
    for kept in (kept for kept in MEMORIZED if kept < number):
        repeated = Features(floor.features_NF[torch.arange(number) % kept])
        name = f"memorized, {kept:,} images repeated"
        rows.append({"images": name, "number": number, **network.compare(real_features, repeated)})
    one_class = choose(train.take(train.labels == train.labels[0]), number)
    one_features = network.extract(one_class.images)
    name = f"one class ({train.classes[int(train.labels[0])]})"
    rows.append({"images": name, "number": len(one_class), **network.compare(real_features, one_features)})
    protocol = {
        **network.protocol,
        "real": f"{number:,} of {test.source}, test split",
        "generated": f"{number:,} of {train.source}, training split",
        "image_shape": list(test.shape),
        "seed": SEED,
    }
    return {"what": "FD-Lite0 of altered training images", "protocol": protocol, "rows": rows}


def score_accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute the ImageNet accuracy of EfficientNet-Lite0 on Imagenette's validation images.

    Raises:
        UserError: the package of the extra scores is not installed, or the data are not Imagenette.
    """
    if arguments.images < 0:
        raise UserError(f"--images must be at least 1, or 0 for all, got {arguments.images}.")
    classifier = lite0.load(PROGRAM)
    images = data.load(arguments.data, "test", data_dir=arguments.data_dir)
    if unknown := sorted(set(images.classes) - set(IMAGENET_CLASSES)):
        raise UserError(f"{images.source} has a class {unknown[0]}: give Imagenette, with its ten classes by name.")
    if arguments.images:
        images = choose(images, arguments.images)
    index_K = torch.tensor([IMAGENET_CLASSES[name] for name in images.classes])
    label_N = index_K[images.labels]
    with torch.no_grad():
        logits = torch.cat([classifier(lite0.preprocess(chunk)) for chunk in images.images.split(50)])
    among_all = logits.argmax(1) == label_N
    among_ten = index_K[logits[:, index_K].argmax(1)] == label_N
    top_five = (logits.topk(5).indices == label_N[:, None]).any(1)
    return {
        "what": "ImageNet accuracy of EfficientNet-Lite0",
        "protocol": {
            "package": lite0.PACKAGE,
            "weights": lite0.SHA256[:16],
            "resize": lite0.RESIZE,
            "images": f"{len(images):,} of {images.source}",
            "image_shape": list(images.shape),
        },
        "accuracy_of_1000_classes": float(among_all.double().mean()),
        "accuracy_of_10_classes": float(among_ten.double().mean()),
        "top_5_accuracy_of_1000_classes": float(top_five.double().mean()),
    }


def make_table(result: Mapping[str, Any]) -> Table:
    """Make a table with a row for each alteration."""
    names = [name for name in result["rows"][0] if name not in ("images", "number")]
    table = Table("images", "number", *(name.removeprefix("lite0_").replace("_", " ") for name in names))
    for row in result["rows"]:
        table.add_row(row["images"], f"{row['number']:,}", *(f"{row[name]:.3g}" for name in names))
    return table


def main() -> None:
    """Parse the arguments, compute, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, example, images in (("accuracy", "imagenette64", 0), ("baselines", "cifar10", 2_000)):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("--data", default=example, help=f"data set, folder or zip; default: {example}")
        command.add_argument("--data-dir", type=Path, help="folder of named data sets; default: $ZEROKARA_DATA")
        command.add_argument("--images", type=int, default=images, help=f"number of images, default: {images or 'all'}")
    arguments = parser.parse_args()
    if arguments.command == "accuracy":
        result = score_accuracy(arguments)
    else:
        result = score_baselines(arguments)
        table_console(stderr=True).print(make_table(result))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_main(main)
