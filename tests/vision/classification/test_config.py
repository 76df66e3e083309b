"""Tests of the ranges of augmentation settings."""

from __future__ import annotations

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.vision.binarization import config as binary_config
from zerokara.vision.classification import config


@pytest.mark.parametrize("module", [config, binary_config])
@pytest.mark.parametrize(
    ("flag", "maximum", "too_large"),
    [("--scale", "0.9", "1"), ("--shear-degrees", "80", "90"), ("--rotation-degrees", "180", "181")],
)
def test_degenerate_affine_maps_are_rejected(module: object, flag: str, maximum: str, too_large: str) -> None:
    """A scale factor of 0 and a shear of 90 degrees map every pixel to infinity."""
    kind, presets = module.Config, module.PRESETS  # type: ignore[attr-defined]
    parse(kind, presets, [flag, maximum], "")
    with pytest.raises(UserError, match=f"{flag} cannot be {too_large}.*at most {maximum}"):
        parse(kind, presets, [flag, too_large], "")
