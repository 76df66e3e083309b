"""Tests of --minutes: the number of updates is measured once, includes the evaluations, and is kept on resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generative.finished_run import FEW, TINY
from tests.programs import metrics, run_processes
from zerokara.core import checkpoint
from zerokara.core import time_limit as core_time_limit
from zerokara.core.compute import Compute
from zerokara.core.data import glyphs
from zerokara.generative import dcgan
from zerokara.generative.gan import time_limit
from zerokara.generative.gan.config import KIND, read_config
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.gan.time_limit import seconds_of
from zerokara.generative.scoring.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("blank_figures")

WORDS = TINY[2:]  # without --updates


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.setattr(dcgan, "choose_compute", lambda *_: Compute(threads=1))


@pytest.mark.parametrize(
    ("updates", "every", "seconds"),
    [
        (1, 500, 0.5 + 20 + 2),
        (500, 500, 250 + 20 + 2),
        (501, 500, 250.5 + 30 + 2),
        (1_000, 500, 500 + 30 + 2),
        (1_000, 0, 500 + 20 + 2),
    ],
)
def test_seconds_of_a_run_with_its_evaluations(updates: int, every: int, seconds: float) -> None:
    assert seconds_of(updates, 0.5, 10.0, every) == seconds


def test_updates_and_an_evaluation_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates take 2 s, features of real images 3 s and an evaluation 30 s: the measurement takes 55 s of 10.5 minutes.

    The start takes 6 s.
    """
    now, updates = [0.0], [0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    original, scores, printed, state = dcgan.update, Evaluator.scores, list[str](), torch.get_rng_state()
    extract = Evaluator._extract

    def slow_update(*args: Any) -> None:
        now[0] += 2.0
        updates[0] += 1
        original(*args)

    def slow_scores(*args: Any) -> dict[str, float]:
        now[0] += 30.0
        return scores(*args)

    def slow_extract(*args: Any) -> Any:
        now[0] += 3.0
        return extract(*args)

    def train(config: Any, run: Any, *_: Any) -> str:
        assert run.extra["updates"] == config.updates
        assert torch.equal(torch.get_rng_state(), state)
        printed.append(str(config.updates))
        return "the end"

    def slow_choice(*_: Any) -> Compute:
        now[0] += 6.0
        return Compute(threads=1)

    monkeypatch.setattr(dcgan, "choose_compute", slow_choice)
    monkeypatch.setattr(dcgan, "update", slow_update)
    monkeypatch.setattr(Evaluator, "scores", slow_scores)
    monkeypatch.setattr(Evaluator, "_extract", slow_extract)
    monkeypatch.setattr(dcgan, "train", train)
    dcgan.main([*WORDS, "--name", "a", "--minutes", "10.5", "--eval-every-updates", "100"])
    assert updates == [3 + 8], "more would take longer than 15 s"
    # 598.5 s without the margin of 5%, 31 s for each of 3 evaluations and the floor, and 2 s at the end.
    assert printed == [str(int((598.5 - 6 - 55 - 4 * 31 - 2) / 2))]


@pytest.fixture
def five_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let five updates fit into 100 minutes, after a measurement of a few real updates."""
    for name in ("WARMUP_UPDATES", "MIN_UPDATES"):
        monkeypatch.setattr(core_time_limit, name, 1)
    monkeypatch.setattr(core_time_limit, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(time_limit, "seconds_of", lambda updates, *_: 1_000.0 * updates)


@pytest.mark.usefixtures("five_updates")
def test_a_run_equals_the_run_with_that_number_of_updates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after a resume on a machine of another speed. The schedule and the noise depend on the number."""
    schedules = ("--schedule", "cosine", "--final-instance-noise", "0", "--log-every-updates", "1")
    words = [*WORDS, *schedules, "--eval-every-updates", "2"]
    update, extract, extracted = dcgan.update, Evaluator._extract, list[int]()

    def counted_extract(self: Evaluator, images_NCHW: torch.Tensor) -> Any:
        extracted.append(len(images_NCHW))
        return extract(self, images_NCHW)

    def interrupted_update(learner: Any, *args: Any) -> None:
        if learner.updates == 3:
            raise KeyboardInterrupt
        update(learner, *args)

    with monkeypatch.context() as patch:
        patch.setattr(dcgan, "update", interrupted_update)
        patch.setattr(Evaluator, "_extract", counted_extract)
        with pytest.raises(KeyboardInterrupt):
            dcgan.main([*words, "--name", "limited", "--minutes", "100"])
    assert len(extracted) == 2, "held-out images, for the measurement and the training, and those of the floor"
    monkeypatch.setattr(time_limit, "seconds_of", lambda updates, *_: 1.0 * updates)
    dcgan.main(["--name", "limited", "--resume", "--minutes", "100"])
    assert "--minutes 100: 5 updates" in capsys.readouterr().out
    sampler = Sampler.load("runs/limited", "last", threads=1)
    assert (sampler.update, sampler.config.updates) == (5, 5)
    dcgan.main([*words, "--name", "updates", "--updates", "5"])
    assert metrics(Path("runs/limited")) == metrics(Path("runs/updates"))


@pytest.mark.usefixtures("five_updates")
def test_a_number_of_updates_that_is_given_on_resume_replaces_the_measured_one() -> None:
    dcgan.main([*WORDS, "--name", "limited", "--minutes", "100"])
    dcgan.main(["--name", "limited", "--resume", "--updates", "7", "--quiet"])
    assert Sampler.load("runs/limited", "last", threads=1).update == 7
    assert read_config(["--name", "limited", "--resume", "--updates", "6000"]).minutes == 0, "also the default"
    assert read_config(["--name", "limited", "--resume"]).minutes == 100


PROGRAM = """
import os
from zerokara.core import time_limit as core_time_limit
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.core.data import glyphs
from zerokara.generative import dcgan
from zerokara.generative.gan import time_limit
glyphs.NUMBER = {"train": 240, "test": 40}
dcgan.choose_compute = lambda *_: Compute(device="cpu", threads=1)
core_time_limit.WARMUP_UPDATES, core_time_limit.MIN_UPDATES, core_time_limit.MEASURE_SECONDS = 1, 2, 0.0
slower = {"0": 1_000.0, "1": 10.0}[os.environ["RANK"]]
time_limit.seconds_of = lambda updates, *_: slower * updates
run_main(dcgan.main)
"""


def test_two_processes_do_the_number_of_the_main_process(tmp_path: Path) -> None:
    words = [*WORDS, "--held-out-images", "40", "--name", "run", "--no-quiet"]
    out, _ = run_processes(tmp_path, 2, "-c", PROGRAM, *words, "--minutes", "100")
    assert "--minutes 100: 5 updates" in out
    for rank in range(2):
        state = checkpoint.load(tmp_path / "runs" / "run" / f"checkpoint-{rank}.pt", KIND)
        assert state["learner"]["updates"] == 5
