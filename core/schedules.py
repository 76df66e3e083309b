"""Schedules as pure functions of the global step, so that a resumed run simply goes on."""

from __future__ import annotations

import math


def _fraction(step: float, begin_step: float, over_steps: float) -> float:
    """How much of the way from begin_step to begin_step + over_steps is done, 0 to 1; over_steps 0 is a jump."""
    if over_steps < 0:
        raise ValueError(f"over_steps must not be negative, got {over_steps}")
    if over_steps == 0:
        return float(step >= begin_step)
    return min(max((step - begin_step) / over_steps, 0.0), 1.0)


def linear(step: float, start: float, end: float, begin_step: float, over_steps: float) -> float:
    """`start` up to begin_step, then straight to `end` within over_steps, then `end`.

    Raises:
        ValueError: over_steps is negative.
    """
    fraction = _fraction(step, begin_step, over_steps)
    return start * (1 - fraction) + end * fraction  # exactly start and end at the ends


def cosine(step: float, start: float, end: float, begin_step: float, over_steps: float) -> float:
    """Like `linear`, along half a cosine wave: flat at both ends (Loshchilov and Hutter 2017, equation 5).

    Raises:
        ValueError: over_steps is negative.
    """
    fraction = (1 - math.cos(math.pi * _fraction(step, begin_step, over_steps))) / 2
    return start * (1 - fraction) + end * fraction


def warmup_cosine(step: float, warmup_steps: float, total_steps: float) -> float:
    """A factor for the learning rate: straight from 0 to 1 at warmup_steps, then along half a cosine to 0 at the end.

    In a run that ends before the warm-up it only rises.
    """
    if step < warmup_steps:
        return linear(step, 0.0, 1.0, 0.0, warmup_steps)
    return cosine(step, 1.0, 0.0, warmup_steps, max(0.0, total_steps - warmup_steps))


def exponential(step: float, start: float, end: float, begin_step: float, over_steps: float) -> float:
    """Like `linear`, but each step multiplies by the same factor; start and end are above 0.

    Raises:
        ValueError: over_steps is negative.
    """
    fraction = _fraction(step, begin_step, over_steps)
    return float(start ** (1 - fraction) * end**fraction)
