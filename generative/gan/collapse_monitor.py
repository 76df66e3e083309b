"""Warnings about failing GAN training: a perfect discriminator, mode collapse, and classes that are not generated.

Shapes: B batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

PERFECT_ACCURACY = 0.99  # on real and on generated images
MIN_INTERVALS = 4  # log intervals in a row with a perfect discriminator before a warning
MIN_SPREAD = 0.5  # relative to the spread of real images (and to the best spread so far); below it samples collapse
NEVER_SPREAD = 0.2  # relative to real images; below it in two evaluations in a row, samples never were diverse
MAX_SCORE_RATIO = 2.0  # of the score to the best score
MISSING_CLASS = 0.1  # relative to the rarest class of real images; a class below it counts as not generated


def accuracies(loss: str, real_B: Tensor, fake_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fractions of real and of generated images that the discriminator classifies correctly (two scalars).

    Args:
        loss: name of the loss function, on which the score depends that separates real from generated images. With
            wasserstein and relativistic only differences of scores are meaningful: it is the midpoint of the means.
        real_B: scores of real images.
        fake_B: scores of generated images.
    """
    boundary: Tensor | float = 0.5 if loss == "least-squares" else 0.0
    if loss in ("wasserstein", "relativistic"):
        boundary = (real_B.mean() + fake_B.mean()) / 2
    return (real_B > boundary).float().mean(), (fake_B < boundary).float().mean()


@dataclass
class CollapseMonitor:
    """Counters of warning signs. They are plain values, so that a checkpoint can hold them."""

    won: int = 0  # log intervals in a row with a perfect discriminator
    best_spread: float = 0.0  # of the samples so far
    narrow: int = 0  # evaluations in a row with nearly identical samples
    warned_of_collapse: bool = False
    missing: int = 0  # evaluations in a row with a class that is not generated

    def discriminator(self, accuracy_real: float, accuracy_fake: float, update: int) -> str | None:
        """Return a warning if the discriminator has been perfect for `MIN_INTERVALS` log intervals.

        The warning is repeated only after the accuracy has been lower in between.
        """
        self.won = self.won + 1 if min(accuracy_real, accuracy_fake) >= PERFECT_ACCURACY else 0
        if self.won != MIN_INTERVALS:
            return None
        return (
            f"update {update:,}: the discriminator classifies nearly all images correctly ({accuracy_real:.1%} of real "
            f"and {accuracy_fake:.1%} of generated images), so the generator receives little gradient. If samples stop "
            f"improving, start a new run with a lower --discriminator-learning-rate, or with more augmentation "
            f"(--ada blit geometry color, or --diffaugment color translation cutout)."
        )

    def samples(self, spread: float, score: float, best: float | None, update: int) -> str | None:
        """Return a warning if samples are nearly identical, or much worse than before.

        The warning is repeated only after an evaluation without these signs.

        Args:
            spread: mean distance between samples, relative to that between real images.
            score: Fréchet distance of this evaluation; lower is better.
            best: lowest score of the evaluations before; None at the first one.
        """
        self.best_spread = max(self.best_spread, spread)
        self.narrow = self.narrow + 1 if spread < NEVER_SPREAD else 0
        # At the start all samples are gray. If they stay so, nothing has collapsed, but training fails all the same.
        collapsed = spread < MIN_SPREAD * min(1.0, self.best_spread) or self.narrow > 1
        worse = best is not None and score > MAX_SCORE_RATIO * max(best, 1e-9)
        first, self.warned_of_collapse = not self.warned_of_collapse, collapsed or worse
        if not (first and self.warned_of_collapse):
            return None
        reason = (
            f"the mean distance between samples is {spread:.0%} of that between real images"
            if collapsed
            else f"the score is {score:.3g}, the best was {best:.3g}"
        )
        return (
            f"update {update:,}: mode collapse: {reason}. The best checkpoint is kept; resume from it with "
            f"--resume --rollback."
        )

    def classes(self, rarest: float | None, rarest_real: float | None, update: int) -> str | None:
        """Return a warning if a class is missing among the samples in two evaluations in a row.

        The warning is repeated only after an evaluation in which no class was missing.

        Args:
            rarest: fraction of samples in the rarest class; None without a classifier.
            rarest_real: the same of real images.
        """
        if rarest is None or rarest_real is None:
            return None
        self.missing = self.missing + 1 if rarest < MISSING_CLASS * rarest_real else 0
        if self.missing != 2:
            return None
        return (
            f"update {update:,}: a class is missing: the classifier assigns {rarest:.2%} of samples to their rarest "
            f"class, and {rarest_real:.2%} of real images to theirs. If this persists, resume from the best checkpoint "
            f"with --resume --rollback, or start a new run with more augmentation (--ada blit geometry color, or "
            f"--diffaugment color translation cutout)."
        )

    def state_dict(self) -> dict[str, int | float | bool]:
        """Return the counters as plain values."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, int | float | bool]) -> None:
        """Restore `state_dict`. Counters that an older checkpoint lacks start at their defaults."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, state.get(field.name, field.default))
