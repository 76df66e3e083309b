"""Evaluator: scores of generated images against held-out real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from zerokara.generative.gan.config import Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import draw_latents
from zerokara.generative.gan.sampler import Painter
from zerokara.generative.scoring.distances import spread
from zerokara.generative.scoring.feature_extractor import Scorer, accuracy

FEW_HELD_OUT = 2_000  # images below which a Fréchet distance is far too high


EVAL_SEED = 20_160_107  # latents of all evaluations: two scores differ by the weights alone


class Judge:
    """What painted images are compared with: the held-out ones, seen once."""

    def __init__(self, config: Config, data: Data, extra: Mapping[str, Any]) -> None:
        self.scorer = Scorer.choose(config, data.train.shape, extra)
        images = data.held_out.images[: config.eval_images]
        self.real = self.scorer.look(images)
        self.real_spread = spread(images[:500])
        # What training images get in the place of painted ones, any of them: a set may be sorted by class.
        order_N = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(EVAL_SEED))
        training_images = data.train.images[order_N[: config.eval_images]]
        self.floor = self.scorer.compare(self.real, self.scorer.look(training_images))

    def protocol(self) -> Iterator[str]:
        """What stands beside the scores, in words."""
        yield self.scorer.protocol
        real = len(self.real.features_NF)
        yield f"against {real:,} held-out images; as many real images as are painted get: {in_words(self.floor)}"
        if real < FEW_HELD_OUT:
            yield (
                f"a Fréchet distance to {real:,} images comes out too high, so compare it with others to as many "
                f"only; --held-out-images holds out more"
            )

    def scores(self, painter: Painter, number: int) -> dict[str, float]:
        """Every score of `number` painted images, always of the same latents."""
        random = torch.Generator().manual_seed(EVAL_SEED)
        z_NZ = draw_latents(painter.config, (number, painter.config.latent), random, torch.device("cpu"))
        label_N = painter.labels(number)
        images = painter.paint(z_NZ, label_N)
        seen = self.scorer.look(images)
        scores = self.scorer.compare(self.real, seen) | {"spread": spread(images[:500]) / max(self.real_spread, 1e-9)}
        knows = self.scorer.metadata is not None and self.scorer.metadata.classes == painter.class_names
        if label_N is not None and knows:
            scores["accuracy"] = accuracy(seen, label_N)
        return scores


def in_words(scores: dict[str, float]) -> str:
    """Scores for a line of text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
