"""Signals during the validation of the programs that train vision models."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from zerokara.core.config import Stopped
from zerokara.core.run import Run
from zerokara.vision import binary, caption, classify, detect, segment


@dataclass(frozen=True)
class Config:
    """Config of the tests."""

    resume: bool = False


def validate_detector(training: Any, run: Run) -> object:
    return detect.validate(training, run, MagicMock(), [])


@pytest.mark.parametrize(
    "validate", [classify.validate, segment.validate, caption.validate, binary.validate, validate_detector]
)
def test_a_signal_interrupts_the_validation(
    validate: Callable[[Any, Run], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, after = MagicMock(), list[str]()

    def evaluate(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        after.append("the rest of the evaluation")
        return MagicMock(), MagicMock()

    training.score.side_effect = training.generate.side_effect = evaluate
    monkeypatch.setattr(segment, "overlay_indices", lambda images: [0])
    with Run(Config(), kind="k", name="a", resume=False, quiet=True, root=tmp_path) as run, run.signals():
        with pytest.raises(Stopped):
            validate(training, run)
        assert (after, training.record_validation.called) == ([], False)
