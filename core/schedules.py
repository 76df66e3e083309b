"""Schedules as pure functions of the global step: a resumed run needs no saved state for them."""

from __future__ import annotations

import math


def _fraction(step: float, begin_step: float, over_steps: float) -> float:
    """Return the completed fraction, 0 to 1, of the steps from begin_step to begin_step + over_steps."""
    if over_steps < 0:
        raise ValueError(f"over_steps must not be negative, got {over_steps}")
    if over_steps == 0:
        return float(step >= begin_step)
    return min(max((step - begin_step) / over_steps, 0.0), 1.0)


def linear(step: float, start: float, end: float, begin_step: float, over_steps: float) -> float:
    """Interpolate linearly: `start` up to begin_step, `end` from begin_step + over_steps on.

    If over_steps is 0, the value jumps from `start` to `end` at begin_step.

    Raises:
        ValueError: over_steps is negative.
    """
    fraction = _fraction(step, begin_step, over_steps)
    return start * (1 - fraction) + end * fraction  # exact at both ends


def cosine(step: float, start: float, end: float, begin_step: float, over_steps: float) -> float:
    """Interpolate as `linear`, but along half a period of a cosine (Loshchilov and Hutter 2017, equation 5).

    Raises:
        ValueError: over_steps is negative.
    """
    fraction = (1 - math.cos(math.pi * _fraction(step, begin_step, over_steps))) / 2
    return start * (1 - fraction) + end * fraction


def warmup_cosine(step: float, warmup_steps: float, total_steps: float) -> float:
    """Return a factor for the learning rate: linear warmup from 0 to 1, then cosine decay to 0 at total_steps.

    If total_steps is smaller than warmup_steps, the run ends during the warmup.
    """
    if step < warmup_steps:
        return linear(step, 0.0, 1.0, 0.0, warmup_steps)
    return cosine(step, 1.0, 0.0, warmup_steps, max(0.0, total_steps - warmup_steps))


def warmup_linear(step: float, warmup_steps: float, total_steps: float) -> float:
    """Return a triangular factor for the learning rate: linear from 0 to 1, then linear to 0 at total_steps.

    If total_steps is smaller than warmup_steps, the run ends during the warmup.
    """
    if step < warmup_steps:
        return linear(step, 0.0, 1.0, 0.0, warmup_steps)
    return linear(step, 1.0, 0.0, warmup_steps, max(0.0, total_steps - warmup_steps))


def exponential(step: float, start: float, end: float, begin_step: float, over_steps: float) -> float:
    """Interpolate as `linear`, but exponentially: each step multiplies by the same factor. start and end must be > 0.

    Raises:
        ValueError: over_steps is negative.
    """
    fraction = _fraction(step, begin_step, over_steps)
    return float(start ** (1 - fraction) * end**fraction)


def exponential_approach(step: float, start: float, end: float, begin_step: float, time_constant: float) -> float:
    """Approach `end` exponentially: the distance to it is divided by e in each `time_constant` steps after begin_step.

    Raises:
        ValueError: time_constant is not positive.
    """
    if time_constant <= 0:
        raise ValueError(f"time_constant must be positive, got {time_constant}")
    return end + (start - end) * math.exp(-max(0.0, step - begin_step) / time_constant)
