"""Settings with which an image would be no image any more are refused in a sentence."""

from __future__ import annotations

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.vision.binarization import config as binary_config
from zerokara.vision.classification import config


@pytest.mark.parametrize("module", [config, binary_config])
@pytest.mark.parametrize(
    ("flag", "most", "too_much"),
    [("--scale", "0.9", "1"), ("--shear-degrees", "80", "90"), ("--rotation-degrees", "180", "181")],
)
def test_maps_that_leave_no_image_are_refused(module: object, flag: str, most: str, too_much: str) -> None:
    """A factor of nothing and a tangent of 90 degrees send every pixel to infinity."""
    kind, presets = module.Config, module.PRESETS  # type: ignore[attr-defined]
    parse(kind, presets, [flag, most], "")
    with pytest.raises(UserError, match=f"{flag} cannot be {too_much}.*at most {most}"):
        parse(kind, presets, [flag, too_much], "")
