"""When to worry: a discriminator that always wins, samples that become one, classes that are not painted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

WON = 0.99  # accuracy on real and on painted images at which a discriminator has won
WINDOWS = 4  # lines of metrics in a row
LEAST_SPREAD = 0.5  # of the distance between real images
NEVER_WIDE = 0.2  # of it: what is narrower than that, evaluation after evaluation, never was wide
WORSE = 2.0  # times the best score
MISSING = 0.1  # of the rarest class's share among real images: a class that is rarer is not painted


@dataclass
class Watch:
    """What was seen so far; plain values, so that a checkpoint can hold them."""

    won: int = 0  # lines of metrics in a row with a discriminator that has won
    best_spread: float = 0.0  # of the samples so far
    narrow: int = 0  # evaluations in a row with samples that are all but one
    warned_of_collapse: bool = False
    missing: int = 0  # evaluations in a row with a class that is not painted

    def discriminator(self, accuracy_real: float, accuracy_fake: float, update: int) -> str | None:
        """A warning where the discriminator has been winning for a while, once for each such stretch."""
        self.won = self.won + 1 if min(accuracy_real, accuracy_fake) >= WON else 0
        if self.won != WINDOWS:
            return None
        return (
            f"update {update:,}: the discriminator tells all images apart ({accuracy_real:.1%} of real and "
            f"{accuracy_fake:.1%} of painted ones), and the generator learns little from that: if samples get no "
            f"better, lower --discriminator-learning-rate, or add --diffaugment translation cutout."
        )

    def samples(self, spread: float, score: float, best: float | None, update: int) -> str | None:
        """A warning where samples are alike, or much worse than they were, once until it is over.

        Args:
            spread: mean distance between samples, in units of that between real images.
            score: of this evaluation, less is better.
            best: of those before.
        """
        self.best_spread = max(self.best_spread, spread)
        self.narrow = self.narrow + 1 if spread < NEVER_WIDE else 0
        # At the start all samples are grey; that they get no wider is no collapse in the word's sense, but as bad.
        alike = spread < LEAST_SPREAD * min(1.0, self.best_spread) or self.narrow > 1
        worse = best is not None and score > WORSE * max(best, 1e-9)
        first, self.warned_of_collapse = not self.warned_of_collapse, alike or worse
        if not (first and self.warned_of_collapse):
            return None
        what = (
            f"painted images are {spread:.0%} as far from each other as real ones"
            if alike
            else f"the score is {score:.3g}, after {best:.3g} at its best"
        )
        return (
            f"update {update:,}: the samples are collapsing ({what}): the best moment is kept, and "
            f"--resume --rollback goes on from there."
        )

    def classes(self, rarest: float | None, rarest_real: float | None, update: int) -> str | None:
        """A warning where a class is not painted in two evaluations in a row, once until it is.

        Args:
            rarest: share of painted images in the class that the fewest are taken for; None: nobody knows classes.
            rarest_real: of as many real images.
        """
        if rarest is None or rarest_real is None:
            return None
        self.missing = self.missing + 1 if rarest < MISSING * rarest_real else 0
        if self.missing != 2:
            return None
        return (
            f"update {update:,}: the classifier takes {rarest:.2%} of the samples for the class that is painted least, "
            f"and {rarest_real:.2%} of real images for their rarest: a part of the data is not painted; if it stays "
            f"so, go back with --resume --rollback, or add --diffaugment translation cutout."
        )

    def state_dict(self) -> dict[str, int | float | bool]:
        """Plain values."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, int | float | bool]) -> None:
        """Go on from `state_dict`; what a checkpoint of an earlier version lacks starts afresh."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, state.get(field.name, field.default))
