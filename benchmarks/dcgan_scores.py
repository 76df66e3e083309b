"""Scores of generators in benchmarks.dcgan_by_clock: FD-Lite0, and the metrics of generative.metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.dcgan_against_tutorial import SAMPLE_SEED, order
from zerokara.core.command_line import parse
from zerokara.core.data import ImageSet
from zerokara.core.progress import Progress
from zerokara.generative import metrics
from zerokara.generative.gan import finished
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.lite0 import Lite0, refuse_biased

PROGRAM = "benchmarks.dcgan_by_clock"
MIN_METRICS_IMAGES = 100  # of generative.metrics


def classifier_scores(folder: Path, which: str, images: int) -> dict[str, Any]:
    """Compute the metrics of generative.metrics: distances in a classifier's features, confidence, accuracy by class.

    Returns:
        The metrics, their floors (names with the prefix floor_), and as "protocol" how they were computed, with the
        hash of the classifier and its own metrics.

    Raises:
        UserError: see `generative.metrics`.
    """
    number = str(max(MIN_METRICS_IMAGES, images))
    options = parse(metrics.Options, {}, [str(folder), "--which", which, "--images", number], "")
    sampler = finished.load_sampler(options, PROGRAM)
    report = metrics.report(options, sampler, Progress(silent=True))
    floor = {f"floor_{name}": value for name, value in report["scores"]["floor"].items()}
    return {**report["scores"]["painted"], **floor, "protocol": report["protocol"]}


class Score:
    """FD-Lite0 to real images.

    Attributes:
        number: of real images, and of generated ones.
        protocol: network, preprocessing, real images, their number and split, and the floor, as plain values.
    """

    def __init__(self, real: ImageSet, split: str, train: ImageSet, images: int) -> None:
        """Extract the features of at most this number of real images, chosen at random, and compute the floor.

        Args:
            real: images that generated ones are compared with.
            split: name of their split.
            train: training images, which take the place of generated ones in the floor.
            images: number of them.
        """
        self._network = Lite0(PROGRAM, real.shape[0])
        self.number = min(images, len(real))
        self._real = self._network.extract(real.images[order(len(real), SAMPLE_SEED)[: self.number]])
        floor = train.images[order(len(train), SAMPLE_SEED)[: self.number]]
        self.protocol: dict[str, Any] = {
            **self._network.protocol,
            "real": f"{self.number:,} of {real.source}, {split} split",
            "real_images": self.number,
            "generated_images": self.number,
            "floor_images": len(floor),
            "split": split,
            "floor": self(floor),
        }

    def __call__(self, images_NCHW: Tensor) -> dict[str, float]:
        """Compute all distances in these features."""
        return self._network.compare(self._real, self._network.extract(images_NCHW))

    def of_run(self, folder: Path, which: str) -> dict[str, float]:
        """Compute the distances of the best or the last generator of a run.

        Raises:
            UserError: the discriminator's backbone was initialized from the weights of the score.
        """
        sampler = Sampler.load(folder, which)
        refuse_biased(finished.run_extra(sampler), sampler.config.pretrained_backbone)
        return self(sampler.generate(sampler.latents(self.number, SAMPLE_SEED), sampler.labels(self.number)))
