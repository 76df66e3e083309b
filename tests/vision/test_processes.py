"""Tests of a classifier and a detector that several processes train: equal weights, another number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.programs import metrics, run_processes
from tests.vision import drawn_boxes
from zerokara.core import checkpoint

pytestmark = pytest.mark.usefixtures("blank_figures")

# The program with few digits and without figures, which take half of the time; the first process gets a signal after
# an update, and all vote after each.
PROGRAM = """
import functools, os, signal, sys
from zerokara.core import training_loop
from zerokara.core.config import run_main
from zerokara.core.data import glyphs
from zerokara.vision import classify, detect
from zerokara.vision.classification import learner as classification
from zerokara.vision.detection import learner as detection
glyphs.NUMBER = {"train": 400, "test": 60}
classify.log_misread = classify.log_confusion = lambda *args, **options: None
training_loop.Votes = functools.partial(training_loop.Votes, seconds=0)
kind, stop_at = sys.argv.pop(), int(sys.argv.pop())
Training = {"classify": classification, "detect": detection}[kind].Training
update = Training.update
def update_and_stop(self, *index):
    update(self, *index)
    if self.updates == stop_at and self.world.is_main:
        os.kill(os.getpid(), signal.SIGTERM)
Training.update = update_and_stop
run_main({"classify": classify, "detect": detect}[kind].main)
"""
TINY = (
    *("--train-images", "240", "--validation-images", "60", "--epochs", "3", "--batch-size", "48"),
    *("--width-multiplier", "0.25", "--checkpoint-every-updates", "2", "--log-every-updates", "3"),
    *("--ema-half-life-updates", "5", "--mixup", "0.2", "--tta-views", "1", "--name", "run"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)
DETECT = (
    *("--data", "shapes", "--image-side", "96", "--proposals", "50"),
    *("--search-color-spaces", "rgb", "--search-scales", "50", "--backbone", "resnet20", "--width-multiplier", "0.25"),
    *("--stride", "4", "--bins", "2", "--hidden-units", "16", "--regions-per-update", "16", "--updates", "8"),
    *("--images-per-update", "2", "--checkpoint-every-updates", "2", "--log-every-updates", "2", "--name", "run"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1"),
)
UPDATES = 15
STATISTICS = ("running_mean", "running_var")  # of BatchNorm, over the images of the process


def train(folder: Path, size: int, *words: str, stop_at: int = 0, kind: str = "classify") -> str:
    """Run the program; return its stderr."""
    status = None if stop_at else 0
    return run_processes(folder, size, "-c", PROGRAM, *words, str(stop_at), kind, status=status)[1]


def states(run: Path, size: int) -> list[dict[str, Any]]:
    """Read the checkpoints of all processes, and check that they have the same weights, bit for bit."""
    loaded = [checkpoint.load(run / f"checkpoint-{rank}.pt", "classify") for rank in range(size)]
    for state in loaded[1:]:
        assert state["updates"] == loaded[0]["updates"]
        for networks in ("network", "ema"):
            ours, theirs = (s[networks].get("module", s[networks]) for s in (loaded[0], state))
            for name, weight in ours.items():
                assert name.endswith(STATISTICS) or torch.equal(weight, theirs[name]), name
    return loaded


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (1, 3), (3, 2)])
def test_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    run = tmp_path / "runs" / "run"
    train(tmp_path, before, *TINY, stop_at=7)
    assert [state["updates"] for state in states(run, before)] == [7] * before
    err = train(tmp_path, after, "--name", "run", "--resume", stop_at=9)
    one, other = (f"{number} process{'es' * (number > 1)}" for number in (after, before))
    assert f"warning: resumed at step 7 with {one} from checkpoints of {other}: random numbers are drawn anew" in err
    generators = [state["generator"] for state in states(run, after)]
    assert after == 1 or not torch.equal(generators[0], generators[1])
    assert train(tmp_path, after, "--name", "run", "--resume") == "", "the same number again: nothing is new"
    assert [state["updates"] for state in states(run, after)] == [UPDATES] * after
    assert [line["step"] for line in metrics(run) if "train/loss" in line] == [3, 6, 9, 12, 15]
    assert (run / "result.json").exists()


def test_processes_whose_checkpoints_are_of_different_updates_agree(tmp_path: Path) -> None:
    """They trained different networks from there on, and one missing checkpoint hung all."""
    run = tmp_path / "runs" / "run"
    train(tmp_path, 2, *TINY, stop_at=7)
    (run / "checkpoint-1-previous.pt").replace(run / "checkpoint-1.pt")
    err = train(tmp_path, 2, "--name", "run", "--resume", stop_at=9)
    assert "warning: resumed at step 6, the last one that every process has saved" in err
    states(run, 2)
    (run / "checkpoint-1.pt").unlink()
    err = train(tmp_path, 2, "--name", "run", "--resume")
    assert "warning: resumed at step 8, the last one that every process has saved" in err
    assert [state["updates"] for state in states(run, 2)] == [UPDATES] * 2


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data set and, after the first run, its proposals."""
    return drawn_boxes.write(tmp_path_factory.mktemp("drawn") / "shapes", 20).parent


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_detector_with_another_number_of_processes(drawn: Path, tmp_path: Path, before: int, after: int) -> None:
    run = tmp_path / "runs" / "run"
    folders = ("--data-dir", str(drawn), "--proposal-cache", str(drawn / "cache"))
    train(tmp_path, before, *DETECT, *folders, stop_at=3, kind="detect")
    err = train(tmp_path, after, "--name", "run", "--resume", stop_at=5, kind="detect")
    assert f"warning: resumed at step 3 with {after} process" in err
    assert "random numbers are drawn anew" in err
    saved = [checkpoint.load(run / f"checkpoint-{rank}.pt", "detect") for rank in range(after)]
    assert [state["updates"] for state in saved] == [5] * after
    for state in saved[1:]:
        assert not torch.equal(state["generator"], saved[0]["generator"]), "regions"
        assert not torch.equal(state["light_generator"], saved[0]["light_generator"]), "augmentation"
        for name, weight in saved[0]["detector"].items():
            assert name.endswith(STATISTICS) or torch.equal(weight, state["detector"][name]), name
    train(tmp_path, after, "--name", "run", "--resume", kind="detect")
    assert (run / "result.json").exists()
