"""Loading of a trained classifier from its run folder, for programs that analyze it.

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
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.core.models.model_file import MODEL_FILE
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data, load_split
from zerokara.vision.classification.scoring import Scores, score

KIND = "classify"  # kind of the runs of vision.classify
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Trained:
    """Trained classifier in evaluation mode and float32, with its run folder, config and data."""

    folder: Path
    config: Config
    classifier: Classifier
    metadata: ClassifierMetadata
    compute: Compute

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.resolve().name

    @cached_property
    def data(self) -> Data:
        """Training and validation images of the run."""
        return Data.load(self.config)

    def images(self, split: Split) -> ImageSet:
        """Return the training, validation or test images.

        Raises:
            UserError: the data are missing, or their classes or shapes differ from those that the run was trained on.
        """
        if split == "test":
            images = load_split(self.config, "test")
        else:
            images = self.data.train if split == "train" else self.data.validation
        if images.classes != self.metadata.classes or images.shape != (
            self.metadata.channels,
            *self.metadata.image_size,
        ):
            trained_shape = (self.metadata.channels, *self.metadata.image_size)
            raise UserError(
                f"{self.config.data} has {len(images.classes)} classes of images of shape {images.shape}, but "
                f"{self.folder} was trained on {len(self.metadata.classes)} classes of shape {trained_shape}: "
                f"restore the data that it was trained on."
            )
        return images

    def score(self, images: ImageSet) -> Scores:
        """Evaluate the classifier with the number of views of the run's final evaluation."""
        config = self.config
        return score(
            self.classifier,
            self.metadata,
            self.compute,
            images,
            views=config.tta_views,
            batch_size=config.eval_batch_size,
        )

    def initial_network(self) -> Classifier:
        """Return the network with its initial weights, reproduced from the seed of the run.

        Raises:
            UserError: the file of the run's pretrained weights is missing.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            classifier = self.metadata.build()
        if self.config.weights:
            classifier.load_published(Path(self.config.weights))
        if self.config.pretrained_backbone:
            load_pretrained_backbone(classifier.backbone, zoo.find_weights(self.config.pretrained_backbone))
        return self.compute.module(classifier.eval())


def load_trained(folder: Path, *, device: str = "cpu", threads: int = 0) -> Trained:
    """Load the classifier of a run in float32. Nothing is locked or changed, so the run may still be training.

    Args:
        folder: runs/<name>.
        device: one of auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads; 0: one per core.

    Raises:
        UserError: the run does not exist or is of another kind, its model file is missing or damaged, or there is no
            such device.
    """
    content = Run.read_config(folder, KIND)
    config = from_dict(Config, content["config"], str(folder / "config.json"))
    classifier, metadata = ClassifierMetadata.load(folder)
    compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
    return Trained(folder, config, compute.module(classifier), metadata, compute)


def single_run_folder(runs: Sequence[str], program: str) -> Path:
    """Return the folder of the single run that the command line names.

    Args:
        runs: positional arguments of the command line.
        program: the command, for the error message.

    Raises:
        UserError: no run or more than one run is given.
    """
    given = [run for run in runs if run]
    if len(given) == 1:
        return Path(given[0])
    existing = sorted(path.parent for path in Path("runs").glob("*/" + MODEL_FILE))
    example = given[0] if given else existing[0] if existing else "runs/<name>"
    problem = f"{len(given)} runs were given, but exactly one is needed" if given else "No run was given"
    raise UserError(f"{problem}: give a run folder, as in {program} {example}.")
