"""Values of the options of programs that show trained agents, as types."""

from __future__ import annotations

from typing import Literal

Which = Literal["best", "last"]
"""Weights of a run: those of its best evaluation, or of its last checkpoint."""
XAxis = Literal["steps", "frames", "minutes", "hours"]
"""X-axis of learning curves."""
