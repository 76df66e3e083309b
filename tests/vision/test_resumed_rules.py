"""Tests that programs read the data of a resumed run by the rules of the release that began it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zerokara.core import data
from zerokara.core.data.reading_rules import active_rules
from zerokara.vision.binarization import config as binary_config
from zerokara.vision.captioning import config as caption_config
from zerokara.vision.captioning import inputs
from zerokara.vision.classification import config as classify_config
from zerokara.vision.classification import learner as classify
from zerokara.vision.detection import config as detect_config
from zerokara.vision.detection import learner as detect
from zerokara.vision.segmentation import config as segment_config
from zerokara.vision.segmentation import learner as segment


class Reached(Exception):
    """Data would be read now."""


@pytest.mark.parametrize(
    ("module", "function", "config"),
    [
        (data, "load", classify_config.Config),
        (data, "load", lambda **run: binary_config.Config(**run).for_data()),
        (segment, "load_masks", segment_config.Config),
        (detect, "load_boxes", detect_config.Config),
        (inputs, "load_captions", caption_config.Config),
    ],
    ids=["classify", "binary", "segment", "detect", "caption"],
)
def test_programs_read_by_the_rules_of_their_run(
    module: ModuleType,
    function: str,
    config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise Reached(active_rules().version)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, function, reached)
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/config.json").write_text(json.dumps({"kind": "any", "config": {}, "extra": {}}))
    load = classify.Data.load if module is data else getattr(module, "Data").load  # noqa: B009
    for resume, version in ((True, 1), (False, 2)):
        with pytest.raises(Reached, match=f"^{version}$"):
            load(config(name="old", resume=resume))
