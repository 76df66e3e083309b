"""Recipes of generative.dcgan that benchmarks.dcgan_by_clock compares: sets of options, by name.

`fast` and `r3` are the presets of these names, `-signed` gives the discriminator images from -1 to 1, and
`-diffaugment` and `-ada` augment its input. The others have the tutorial's channels, twice those of `fast`; those
whose names begin with spectral or r1 have no BatchNorm in the discriminator and no instance noise.

Most of the time of `r3` is that of its penalties and of its finest feature maps (benchmarks/r3_blocks.py). `-half` has
half the preset's channels, `-every-16` penalties at every 16th update in place of every fourth, and `r3-r1` no R2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_WIDE = ("--generator-width", "1", "--discriminator-width", "1")
_NO_NOISE = ("--instance-noise", "0", "--final-instance-noise", "0")
_NO_NORM = (*_WIDE, *_NO_NOISE, "--discriminator-norm", "none")
_SIGNED = ("--discriminator-input", "signed")
_SPECTRAL = (
    *(*_NO_NORM, "--spectral-norm", "--loss", "hinge"),
    *("--generator-learning-rate", "5e-4", "--discriminator-learning-rate", "5e-4"),
)
_DIFFAUGMENT = ("--diffaugment", "color", "translation", "cutout")
_ADA = ("--ada", "blit", "geometry", "color")
_R3 = ("--preset", "r3")
_HALF = ("--generator-width", "0.25", "--discriminator-width", "0.25")
_EVERY_16 = ("--penalty-every-updates", "16")
_R1 = (*_NO_NORM, "--r1", "0.05", *_EVERY_16)
RECIPES: Mapping[str, Sequence[str]] = {
    "fast": (),
    "fast-signed": _SIGNED,
    "fast-diffaugment": _DIFFAUGMENT,
    "fast-ada": _ADA,
    "wide": _WIDE,
    "spectral": _SPECTRAL,
    "spectral-conditional": (*_SPECTRAL, "--conditional"),
    "r1": _R1,
    "r1-signed": (*_R1, *_SIGNED),
    "r1-every-4": (*_R1, "--penalty-every-updates", "4"),
    "r1-every-64": (*_R1, "--penalty-every-updates", "64"),
    "r1-ema-50": (*_R1, "--ema-half-life-updates", "50"),
    "r1-ema-1000": (*_R1, "--ema-half-life-updates", "1000"),
    "r1-batch-256": (*_R1, "--batch-size", "256", "--accumulation-steps", "4"),
    "r1-ada": (*_R1, *_ADA),
    "r1-diffaugment": (*_R1, *_DIFFAUGMENT),
    "r1-flip": (*_R1, "--flip"),
    "r1-conditional": (*_R1, "--conditional"),
    "r1-relativistic": (*_R1, "--loss", "relativistic"),
    "r1-resize": (*_R1, "--upsample", "resize"),
    "r3": _R3,
    "r3-half": (*_R3, *_HALF),
    "r3-every-16": (*_R3, *_EVERY_16),
    "r3-half-every-16": (*_R3, *_HALF, *_EVERY_16),
    "r3-r1-every-16": (*_R3, "--r2", "0", *_EVERY_16),
    "paper": ("--preset", "paper"),  # 64x64, unless --image-size is given
}
