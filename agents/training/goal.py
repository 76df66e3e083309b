"""When a run with a target return is evaluated early: as soon as the returns of its training episodes are near it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

MIN_STEPS = 40_000
"""Agent steps between an early evaluation and the evaluation before it. On Pong 30 episodes take as long as about
14,000 training steps, and a run is near the target for about 75,000: the sum of evaluations and of steps behind the
target is least at sqrt(2 * 14,000 * 75,000)."""
FIRST = 20
"""Number of episodes at the start of a run whose mean return stands for a policy that has learned nothing."""
RECENT = 10
"""Number of last episodes that are compared. They began long before the present policy, the more of them the longer."""
SHARE = 0.9
"""Part of the way from the first episodes' mean return to the target that the last ones must have come. It is below 1
because training episodes contain more random actions than an evaluation, and earlier policies."""


class Goal:
    """Mean raw return at which a run stops, compared with the returns of its training episodes.

    Args:
        target: `stop_at_return`; None: the run has no target.
    """

    def __init__(self, target: float | None) -> None:
        self.target = target
        self.first_returns: list[float] = []

    def record(self, returns: Iterable[float]) -> None:
        """Add raw returns of training episodes that have just ended; only the first `FIRST` of a run are kept."""
        if len(self.first_returns) < FIRST:
            self.first_returns = [*self.first_returns, *returns][:FIRST]

    def allows(self, steps: int) -> bool:
        """Return True if there is a target, and the last evaluation was enough agent steps ago for an early one."""
        return self.target is not None and steps >= MIN_STEPS

    def is_near(self, returns: Sequence[float]) -> bool:
        """Return True if raw returns of the last training episodes, oldest first, are near the target."""
        if self.target is None or len(self.first_returns) < FIRST or len(returns) < RECENT:
            return False
        way = max(0.0, self.target - float(np.mean(self.first_returns)))
        return float(np.mean(returns[-RECENT:])) >= self.target - (1 - SHARE) * way
