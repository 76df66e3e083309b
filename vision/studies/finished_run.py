"""A finished run read back: its network, what it learnt from, and where programs about it leave their files.

trained = load_trained(one_run(options.runs, program_command("vision.misread")))
scores = trained.score(trained.images("validation"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict
from zerokara.core.data import ImageSet
from zerokara.core.models import model_file
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.report import MODEL_FILE
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data, load_split
from zerokara.vision.classification.scoring import Scores, score

KIND = "classify"  # what vision/classify.py calls its runs
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Trained:
    """A trained classifier, in evaluation mode and float32, and what is known of its run."""

    folder: Path
    config: Config
    classifier: Classifier
    metadata: ClassifierMetadata
    compute: Compute

    @property
    def name(self) -> str:
        """The run's."""
        return self.folder.resolve().name

    @cached_property
    def data(self) -> Data:
        """What it learnt from and was chosen on."""
        return Data.load(self.config)

    def images(self, split: Split) -> ImageSet:
        """The images it learnt from, those it was chosen on, or the test set.

        Raises:
            UserError: data that are not there any more, or have other classes or shapes than the network learnt.
        """
        if split == "test":
            images = load_split(self.config, "test")
        else:
            images = self.data.train if split == "train" else self.data.validation
        if images.classes != self.metadata.classes or images.shape != (
            self.metadata.channels,
            *self.metadata.image_size,
        ):
            raise UserError(
                f"{self.config.data} has {len(images.classes)} classes of images of {images.shape} here, but "
                f"{self.folder} learnt {len(self.metadata.classes)} of {(self.metadata.channels, *self.metadata.image_size)}: "
                f"put the data there that it learnt from."
            )
        return images

    def score(self, images: ImageSet) -> Scores:
        """How well it does, over as many views of each image as in the run's own validation."""
        config = self.config
        return score(
            self.classifier,
            self.metadata,
            self.compute,
            images,
            views=config.tta_views,
            batch_size=config.eval_batch_size,
        )

    def at_start(self) -> Classifier:
        """The network as the run began with it: the same seed gives the same weights again.

        Raises:
            UserError: the file of weights that it began with is not there any more.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            classifier = self.metadata.build()
        if self.config.weights:
            classifier.load_published(Path(self.config.weights))
        if self.config.pretrained_backbone:
            load_pretrained_backbone(classifier.backbone, zoo.weights_source(self.config.pretrained_backbone))
        return self.compute.module(classifier.eval())


def load_trained(folder: Path, *, device: str = "cpu", threads: int = 0) -> Trained:
    """The classifier of a run, in float32. Nothing is locked or changed: the run may still be training.

    Args:
        folder: runs/<name>.
        device: auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads, 0 for all cores.

    Raises:
        UserError: no such run, or one of another kind or version; no weights yet, or damaged ones; no such device.
    """
    content = Run.read_config(folder, KIND)
    config = from_dict(Config, content["config"], str(folder / "config.json"))
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder} has no {MODEL_FILE} yet: wait until its first epoch is over, or give another run.")
    classifier, metadata = model_file.load(folder / MODEL_FILE)
    compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
    return Trained(folder, config, compute.module(classifier), metadata, compute)


def one_run(runs: Sequence[str], program: str) -> Path:
    """The folder of the one run that a command line names.

    Args:
        program: what to type, for the message.

    Raises:
        UserError: none is named, or several are.
    """
    named = [run for run in runs if run]
    if len(named) == 1:
        return Path(named[0])
    known = sorted(path.parent for path in Path("runs").glob("*/" + MODEL_FILE))
    example = named[0] if named else known[0] if known else "runs/<name>"
    wrong = f"{len(named)} runs were named, and one is looked at" if named else "No run was named"
    raise UserError(f"{wrong}: give its folder, as in {program} {example}.")
