"""Tests that generative programs read the data of a resumed run by the rules of the release that began it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerokara.core.data.reading_rules import active_rules
from zerokara.core.media import write_png
from zerokara.generative import fast_style
from zerokara.generative.gan import config as gan_config
from zerokara.generative.gan import data
from zerokara.generative.style import fast_config as style_config


class Reached(Exception):
    """Data would be read now."""


@pytest.mark.parametrize(
    ("load", "config"),
    [
        (data.Data.load, gan_config.Config),
        (fast_style.Data.load, lambda **run: style_config.Config(style="style.png", **run)),
    ],
    ids=["dcgan", "fast_style"],
)
def test_programs_read_by_the_rules_of_their_run(
    load: Callable[[Any], Any], config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any) -> None:
        raise Reached(active_rules().version)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "_audited", reached)
    write_png(Path("style.png"), np.zeros((32, 32, 3), np.uint8))
    Path("set").mkdir()
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/config.json").write_text(json.dumps({"kind": "any", "config": {}, "extra": {}}))
    for resume, version in ((True, 1), (False, 2)):
        with pytest.raises(Reached, match=f"^{version}$"):
            load(config(data="./set", name="old", resume=resume))
