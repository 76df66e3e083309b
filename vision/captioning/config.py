"""The fields of a captioner's run and its presets; the photographs that it learns from; the eye that it begins with.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams.

Shapes: N photographs, C colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from zerokara.core.backbones.base import Backbone, Stem
from zerokara.core.backbones.registry import option_names
from zerokara.core.compute import Precision
from zerokara.core.config import Range, UserError
from zerokara.core.data.captions import CaptionSet, load_captions
from zerokara.core.data.moments import channel_moments
from zerokara.core.models import model_file
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.models.weights import LoadReport, load_into, load_pretrained_backbone, read_tensors
from zerokara.core.progress import loading
from zerokara.core.zoo import registry as zoo

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what torchvision publishes
Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A network that puts photographs into words."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "width": "width_multiplier",
        "init_backbone": "pretrained_backbone",
    }
    """Renamed fields, old name to new name. Old names are still accepted in saved configs and on the command line."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    data: str = "flickr8k-1000"
    """Captioned photographs: a folder or zip with captions.txt, *.token.txt or captions_*.json, or the name of one."""
    data_dir: str = ""
    """Where named data lie; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[int, Range(16, 1024)] = 128
    """Side to which photographs are brought, in pixels; the middle is cut out."""
    split: Annotated[int, Range(0, 10**6)] = 0
    """Which photographs are held out: another number, others. vision.caption_splits compares over several."""
    validation_images: Count = 100
    """Photographs on which the best moment is chosen."""
    test_images: Count = 100
    """Photographs on which it is scored, once, when it is over."""
    name: str = ""
    """Folder under runs/; empty: made of data, backbone, preset, split and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything else that is random."""
    epochs: Count = 30
    """Passes over the training photographs, with all that was said of each."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the eye ---------------------------------------------------------------------------------------------------
    backbone: str = "resnet18"
    """Network of core.backbones that sees, where --pretrained-backbone does not say it itself."""
    width_multiplier: Annotated[float, Range(0.01, 16)] = 1.0
    """Factor on its channels, where it has that option."""
    stem: Stem = "paper"
    """How much its first layers shrink a photograph, where it has that option."""
    pretrained_backbone: str = ""
    """Its weights from a run of ours (a folder or file), or from the zoo by name."""
    weights: str = ""
    """Its weights as torchvision publishes them: a file such as resnet18-f37072fd.pth."""
    learn_eye: bool | None = None
    """Whether the eye learns along; empty: only where it begins with random weights."""

    # --- the words -------------------------------------------------------------------------------------------------
    at_least: Count = 3
    """Times that a word must be said of the training photographs to be learnt."""
    longest: Annotated[int, Range(1, 100)] = 20
    """Words of a sentence at most."""
    embedding: Count = 512
    """Numbers that a word, or the image, is to the LSTM."""
    hidden: Count = 512
    """Numbers that the LSTM remembers."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.3
    """Probability with which a number is dropped before and behind the LSTM."""
    beams: Annotated[int, Range(1, 100)] = 5
    """Beginnings of a sentence that are kept while one is sought."""
    length_power: Annotated[float, Range(0, 2)] = 0.7
    """How far long sentences are forgiven that each word makes them less probable: 0 not at all, 1 wholly."""

    # --- learning --------------------------------------------------------------------------------------------------
    batch_size: Count = 32
    """Photographs in an update, each with all its sentences."""
    learning_rate: Positive = 1e-3
    """Largest step size of AdamW for the words."""
    eye_learning_rate: Positive = 3e-4
    """The same for the eye, where it learns."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """Decay of matrices and filters."""
    max_grad_norm: Positive = 5.0
    """Norm to which gradients are clipped."""
    select: Literal["bleu", "loss", "last"] = "bleu"
    """Which epoch's weights are kept, by the validation photographs: most BLEU-4, least loss, or simply the last."""
    log_every_updates: Count = 20
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints; each epoch ends with one as well."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the eye; auto: what a short measurement finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Vinyals et al. 2015, sections 3 and 4: words said five times, the sum of log probabilities, a beam of 20.
    "paper": {"at_least": 5, "beams": 20, "length_power": 0.0, "image_size": 224},
}


@dataclass(frozen=True)
class Data:
    """Photographs to learn from, to choose on, and to be scored on; no photograph is in two of them."""

    train: CaptionSet
    validation: CaptionSet
    test: CaptionSet

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read and split them.

        Raises:
            UserError: data that are not there or broken, or too few.
        """
        folder = Path(config.data_dir) if config.data_dir else None
        with loading(config.quiet) as progress:
            everything = load_captions(config.data, image_size=config.image_size, data_dir=folder, progress=progress)
        return cls.split(everything, config)

    @classmethod
    def split(cls, everything: CaptionSet, config: Config) -> Data:
        """By photograph, at random by `config.split` alone.

        Raises:
            UserError: nothing is left to learn from.
        """
        held = config.validation_images + config.test_images
        if len(everything) - held < config.batch_size:
            raise UserError(
                f"{everything.source} has {len(everything):,} photographs: with {config.validation_images} to choose "
                f"on and {config.test_images} to be scored on too few are left for a batch of {config.batch_size}; "
                f"lower --validation-images, --test-images or --batch-size."
            )
        order = np.random.default_rng(config.split).permutation(len(everything)).tolist()
        test, validation = order[: config.test_images], order[config.test_images : held]
        return cls(everything.take(sorted(order[held:])), everything.take(sorted(validation)), everything.take(test))


@dataclass(frozen=True)
class Start:
    """The eye that a run begins with: what it is, how it is fed, and what puts its weights in."""

    backbone: str
    options: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: Callable[[Backbone], LoadReport] | None  # None: random weights

    @classmethod
    def of(cls, config: Config, train: CaptionSet) -> Start:
        """What the config asks for.

        Raises:
            UserError: two sources of weights; a network of grey images; files as `core.models.weights`.
        """
        if config.weights and config.pretrained_backbone:
            raise UserError("--weights and --pretrained-backbone both say what the eye begins with: leave one out.")
        known = option_names(config.backbone)
        asked = {"width": config.width_multiplier, "stem": config.stem}
        usual = {"width": 1.0, "stem": "paper"}
        options = {name: value for name, value in asked.items() if name in known or value != usual[name]}
        if config.weights:
            source = Path(config.weights).expanduser()
            return cls(
                config.backbone, options, IMAGENET_MEAN, IMAGENET_STD, lambda eye: load_pretrained_backbone(eye, source)
            )
        if config.pretrained_backbone:
            metadata = _card(config.pretrained_backbone)
            if metadata is not None:
                path = zoo.find_file(config.pretrained_backbone)
                if metadata.channels != 3:
                    raise UserError(
                        f"{config.pretrained_backbone} sees grey images: give a network that learnt colours."
                    )
                return cls(
                    metadata.backbone, metadata.options, metadata.mean, metadata.std, lambda eye: _fill(eye, path)
                )
        mean, std = (tuple(of_C.tolist()) for of_C in channel_moments(train.images))
        if config.pretrained_backbone:
            source = Path(config.pretrained_backbone).expanduser()
            return cls(config.backbone, options, mean, std, lambda eye: load_pretrained_backbone(eye, source))
        return cls(config.backbone, options, mean, std, None)


def _card(word: str) -> ClassifierMetadata | None:
    """The card of a classifier of ours; None where the word names weights of another kind."""
    path = Path(word).expanduser()
    if (path.is_dir() and not (path / "model.safetensors").is_file()) or path.suffix in (".pt", ".pth"):
        return None
    fields, _ = model_file.read(zoo.find_file(word), model_file.FORMAT, "classifier")
    return model_file.parse_metadata(ClassifierMetadata, fields, path)


def _fill(eye: Backbone, path: Path) -> LoadReport:
    """Our own file: by its names, since here the backbone is sure to fit."""
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): x for name, x in read_tensors(path).items() if name.startswith(prefix)}
    return load_into(eye, tensors, path)
