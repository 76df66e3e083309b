"""Evaluator: metrics of generated images against held-out real ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import draw_latents
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.distances import spread
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, FeatureSet, label_accuracy

FEW_HELD_OUT = 2_000  # below this number of images the Fréchet distance is biased far upward
EVAL_SEED = 20_160_107  # of the latent vectors of all evaluations, so that two scores differ by the weights alone
IMAGES_PER_HELD_OUT = 20  # generated images for each held-out one; more would not make the distance more exact
MIN_IMAGES, MAX_IMAGES = 1_000, 5_000  # generated
SPREAD_IMAGES = 500  # the first images, of which the spread is computed


class Evaluator:
    """Computes metrics of a generator against held-out images, whose features are extracted once.

    Features of real images are extracted when they are first needed, so training does not wait for them.

    Attributes:
        extractor: network whose features are compared.
        num_held_out: number of held-out images that generated ones are compared with.
        num_generated: number of generated images of an evaluation.
    """

    def __init__(self, config: Config, data: Data, run: Run) -> None:
        """Choose the feature extractor and the real images.

        Args:
            config: config of the run.
            data: held-out and training images.
            run: its `extra` records the origin of the pretrained backbone, and its folder holds --classifier.
        """
        self._run, self._train = run, data.train
        self.extractor = FeatureExtractor.of_run(config, data.train.shape, run)
        chosen = min(MAX_IMAGES, max(MIN_IMAGES, IMAGES_PER_HELD_OUT * len(data.held_out)))
        self.num_generated = config.eval_images or chosen
        self._held_out = data.held_out.images[: self.num_generated]
        self.num_held_out = len(self._held_out)
        self._real_spread = spread(self._held_out[:SPREAD_IMAGES])

    @functools.cached_property
    def real(self) -> FeatureSet:
        """Features of the held-out images. The processes of the run divide them, so all must access this together."""
        return self._extract(self._held_out)

    @functools.cached_property
    def floor(self) -> dict[str, float]:
        """Metrics of training images in place of generated ones, the best that a generator can expect; printed, too.

        The processes of the run divide the images and the metrics, so all must access this together.
        """
        # A random subset of the training images, since a data set may be sorted by class.
        order_N = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(EVAL_SEED))
        real, training = self.real, self._extract(self._train.images[order_N[: self.num_generated]])
        floor = self._compute(self.extractor.comparisons(real, training))
        self._run.print(f"floor (training images in place of generated ones): {format_scores(floor)}")
        return floor

    def _extract(self, images_NCHW: Tensor) -> FeatureSet:
        run = self._run
        return FeatureSet.concatenate(
            evaluate_shards(run.world, run, len(images_NCHW), lambda shard: self.extractor.extract(images_NCHW[shard]))
        )

    def _compute(self, comparisons: Sequence[Callable[[], dict[str, float]]]) -> dict[str, float]:
        """Return the metrics of all functions; the processes of the run divide the functions."""
        run = self._run
        parts = evaluate_shards(run.world, run, len(comparisons), lambda shard: [f() for f in comparisons[shard]])
        return {name: value for part in parts for metrics in part for name, value in metrics.items()}

    def protocol(self) -> Iterator[str]:
        """Describe how the metrics are computed, in lines of text."""
        yield self.extractor.protocol
        yield f"{self.num_generated:,} generated images against {self.num_held_out:,} held-out images"
        if self.num_held_out < FEW_HELD_OUT:
            yield (
                f"the Fréchet distance to only {self.num_held_out:,} images is biased upward: compare it only with "
                f"distances to the same number of images, or hold out more with --held-out-images"
            )

    def scores(self, sampler: Sampler, number: int) -> dict[str, float]:
        """Compute all metrics of `number` generated images, always of the same latent vectors.

        The processes of the run divide the images, and then the metrics, which need the features of all images.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """
        random = torch.Generator().manual_seed(EVAL_SEED)
        z_NZ = draw_latents(sampler.config, (number, sampler.config.latent_dim), random, torch.device("cpu"))
        label_N = sampler.labels(number)

        def generate(shard: slice) -> tuple[FeatureSet, Tensor]:
            images_nCHW = sampler.generate(z_NZ[shard], None if label_N is None else label_N[shard])
            return self.extractor.extract(images_nCHW), images_nCHW[: max(0, SPREAD_IMAGES - shard.start)]

        real, parts = self.real, evaluate_shards(self._run.world, self._run, number, generate)
        generated = FeatureSet.concatenate([features for features, _ in parts])
        images = torch.cat([images_nCHW for _, images_nCHW in parts])

        def of_images() -> dict[str, float]:
            scores = {"spread": spread(images) / max(self._real_spread, 1e-9)}
            metadata = self.extractor.metadata
            if label_N is not None and metadata is not None and metadata.classes == sampler.class_names:
                scores["accuracy"] = label_accuracy(generated, label_N)
            return scores

        return self._compute([*self.extractor.comparisons(real, generated), of_images])


def format_scores(scores: Mapping[str, float]) -> str:
    """Format metrics as one line of text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
