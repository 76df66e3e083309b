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
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
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

    def evaluate(shard: slice) -> None:
        signal.raise_signal(signal.SIGTERM)
        after.append("the rest of the evaluation")

    def evaluate_in_processes(run: Run, *_args: Any) -> Any:
        return evaluate_shards(World(), run, 1, evaluate)

    training.score_in_processes.side_effect = training.generate_in_processes.side_effect = evaluate_in_processes
    monkeypatch.setattr(segment, "overlay_indices", lambda images: [0])
    with Run(Config(), kind="k", name="a", resume=False, quiet=True, root=tmp_path) as run, run.signals():
        with pytest.raises(Stopped):
            validate(training, run)
        assert (after, training.record_validation.called) == ([], False)
