"""The fields of a binarised network's run and its presets: the command line, config.json and TensorBoard's hparams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zerokara.core.compute import Precision
from zerokara.core.config import Range
from zerokara.vision.classification import config as classify_config

Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A binarised classifier."""

    preset: str = "mlp"
    """Named set of defaults for all that follows."""
    data: str = "glyphs"
    """Images: glyphs (drawn here), mnist, fashion-mnist, cifar10, cifar100, or a folder or zip of class folders."""
    data_dir: str = ""
    """Where named data lie or are downloaded to; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[int | None, Range(8, 1024)] = None
    """Height and width to which images are brought, in pixels; None: as they are."""
    validation_images: Annotated[int, Range(0)] = 0
    """Images held out of the training set to choose on; 0: a twelfth of it (5,000 of MNIST's 60,000)."""
    train_images: Annotated[int, Range(0)] = 0
    """Train on so many of the remaining images, chosen by the seed; 0: on all."""
    test: bool = True
    """Read the test set, once, when training is over; --no-test while one is still choosing."""
    name: str = ""
    """Folder under runs/; empty: made of data, network and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    epochs: Count = 50
    """Length of the run."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    network: Literal["mlp", "cnn"] = "mlp"
    """Layers of units, or the paper's convolutions for CIFAR-10."""
    units: Count = 1_024
    """Units of each hidden linear layer."""
    layers: Count = 3
    """Hidden layers of the mlp."""
    width_multiplier: Annotated[float, Range(0, 16, low_open=True)] = 1.0
    """Factor on the 128 to 512 channels of the cnn."""
    loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy"
    """What is minimised; the paper has the squared hinge."""
    batch_size: Count = 250
    """Images in an update."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = 5e-3
    """Step size of Adam at first; it falls to nothing along half a cosine."""
    rotation_degrees: Annotated[float, Range(0, 180)] = 5.0
    """Rotation of training images up to so many degrees either way."""
    shift: Annotated[float, Range(0, 1)] = 0.04
    """Shift up to this fraction of the side."""
    scale: Annotated[float, Range(0, 0.9)] = 0.05
    """Scaling by up to this fraction more or less."""
    shear_degrees: Annotated[float, Range(0, 80)] = 5.0
    """Shear up to so many degrees."""
    crop_pixels: Annotated[int, Range(0)] = 0
    """Padding on each side of which a window of the old size is cut out at random."""
    flip: bool = False
    """Mirror every other image, left to right."""

    eval_batch_size: Count = 500
    """Images that are evaluated together."""
    log_every_updates: Count = 50
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints; each epoch ends with one as well."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of sums over +1 and -1; auto: what a short measurement finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""

    def for_data(self) -> classify_config.Config:
        """As the readers of images take it."""
        names = ("data", "data_dir", "image_size", "validation_images", "train_images", "seed")
        return classify_config.Config(**{name: getattr(self, name) for name in names})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {},
    # The network of section 2.2 at half its channels, on photographs.
    "cnn": {
        "network": "cnn",
        "width_multiplier": 0.5,
        "batch_size": 100,
        "rotation_degrees": 0.0,
        "shift": 0.0,
        "scale": 0.0,
        "shear_degrees": 0.0,
        "crop_pixels": 4,
        "flip": True,
    },
}
