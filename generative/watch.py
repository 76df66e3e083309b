"""When to worry: a discriminator that always wins, and samples that become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WON = 0.99  # accuracy on real and on painted images at which a discriminator has won
WINDOWS = 4  # lines of metrics in a row
LEAST_SPREAD = 0.5  # of the distance between real images
WORSE = 2.0  # times the best score


@dataclass
class Watch:
    """What was seen so far; plain values, so that a checkpoint can hold them."""

    won: int = 0  # lines of metrics in a row with a discriminator that has won
    best_spread: float = 0.0  # of the samples so far: nothing collapses that was never wide
    warned_of_collapse: bool = False

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

    def samples(self, spread: float, real_spread: float, score: float, best: float | None, update: int) -> str | None:
        """A warning where samples are alike, or much worse than they were, once until it is over."""
        self.best_spread = max(self.best_spread, spread)
        alike = spread < LEAST_SPREAD * min(real_spread, self.best_spread)
        worse = best is not None and score > WORSE * max(best, 1e-9)
        first, self.warned_of_collapse = not self.warned_of_collapse, alike or worse
        if not (first and self.warned_of_collapse):
            return None
        what = (
            f"painted images are {spread / max(real_spread, 1e-9):.0%} as far from each other as real ones"
            if alike
            else f"the score is {score:.3g}, after {best:.3g} at its best"
        )
        return (
            f"update {update:,}: the samples are collapsing ({what}): the best moment is kept, and "
            f"--resume --rollback goes on from there."
        )

    def state_dict(self) -> dict[str, int | float | bool]:
        """Plain values."""
        return {"won": self.won, "best_spread": self.best_spread, "warned_of_collapse": self.warned_of_collapse}

    def load_state_dict(self, state: Mapping[str, int | float | bool]) -> None:
        """Go on from `state_dict`."""
        self.best_spread = float(state["best_spread"])
        self.won, self.warned_of_collapse = int(state["won"]), bool(state["warned_of_collapse"])
