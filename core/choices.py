"""Values of options, as types that configs share with the modules that use PyTorch, which takes seconds to import."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of the networks' arithmetic; auto: measured."""
Switch = Literal["auto", "on", "off"]
"""Switch for compilation; auto: measured."""
Stem = Literal["paper", "medium", "small"]
"""Downsampling of the first layers: as published for 224 pixels, by half of that factor, or by a quarter of it."""
Background = Literal["auto", "white", "black"]
"""Color behind transparent pixels; auto: white, or black if the image is so light that it would vanish on white."""
GradientCompression = Literal["none", "bfloat16", "powersgd"]
"""Compression of the gradients that processes exchange."""
