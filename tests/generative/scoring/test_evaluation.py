"""Tests of the evaluation of a GAN during training: what is logged, kept, warned of and printed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.programs import metrics
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Stopped
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.generative.dcgan import make_learner
from zerokara.generative.gan import learner as learner_module
from zerokara.generative.gan.config import KIND, PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.sampler import BEST, Sampler, weights_file
from zerokara.generative.gan.session import Session
from zerokara.generative.scoring import evaluation
from zerokara.generative.scoring.evaluation import closing_message, evaluate, print_protocol

WORDS = (
    *("--generator-width", "0.05", "--discriminator-width", "0.05", "--latent-dim", "4", "--batch-size", "4"),
    *("--preview-images", "4", "--eval-images", "177", "--updates", "40", "--name", "run", "--device", "cpu"),
)
FOLDER = Path("runs/run")


class Scripted:
    """Evaluator that returns the scores of a script in order, or raises its exceptions."""

    def __init__(self, *script: dict[str, float] | Stopped) -> None:
        self.script = iter(script)
        self.extractor = SimpleNamespace(name="fcd", bias_warning="")
        self.floor = {"rarest_class": 0.3}
        self.num_held_out, self.num_generated = 6, 177
        self.numbers: list[int] = []

    def protocol(self) -> Iterator[str]:
        yield from ("features: of a script", "177 generated images against 6 held-out images")

    def scores(self, sampler: Sampler, number: int) -> dict[str, float]:
        self.numbers.append(number)
        result = next(self.script)
        if isinstance(result, Stopped):
            raise result
        return dict(result)


def scores(fcd: float, spread: float = 0.9, rarest_class: float = 0.3) -> dict[str, float]:
    return {"fcd": fcd, "spread": spread, "rarest_class": rarest_class}


class Opened:
    """Session with a record of what is printed and warned of."""

    def __init__(self, run: Run, data: Data, session: Session, patch: pytest.MonkeyPatch) -> None:
        self.session, self.data = session, data
        self.printed: list[str] = []
        self.warnings: list[str] = []
        patch.setattr(run, "print", self.printed.append)
        patch.setattr(run, "warn", self.warnings.append)

    def evaluate(self, evaluator: Any, *updates: int) -> None:
        for update in updates:
            self.session.learner.updates = update
            evaluate(self.session, evaluator)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Return the session of an open run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "draw_curves", lambda _path: None)
    latents = learner_module.recalibration_latents
    monkeypatch.setattr(  # fewer of them, which takes less time
        learner_module,
        "recalibration_latents",
        lambda config, classes, compute: latents(config, classes, compute, batches=1, batch=2),
    )
    images = ImageSet(torch.zeros(14, 1, 28, 28, dtype=torch.uint8), torch.arange(14) % 3, ("a", "b", "c"), "zeros")
    config = parse(Config, PRESETS, [*WORDS], "")
    learner = make_learner(config, images.shape, 3, Compute(device="cpu", threads=1), World())
    with Run(config, kind=KIND, name="run", resume=False, quiet=True, world=World()) as run:
        data = Data(images, images, ("14 images were left out",))
        yield Opened(run, data, Session(run, data, learner), monkeypatch)


def test_the_weights_of_the_best_evaluation_are_kept(opened: Opened) -> None:
    """A score that is not finite or not lower is never the best; the last weights are written each time."""
    evaluator = Scripted(scores(math.nan), scores(5.0), scores(4.0), scores(4.0), scores(6.0), scores(math.nan))
    bests = []
    for update in (10, 20, 30, 40, 50, 60):
        opened.evaluate(evaluator, update)
        bests.append(opened.session.best)
        assert Sampler.read(FOLDER / weights_file("last"), threads=1).update == update
    second, third = {"update": 20, "score": 5.0}, {"update": 30, "score": 4.0}
    assert bests == [None, second, third, third, third, third]
    best = Sampler.read(FOLDER / weights_file("best"), threads=1)
    assert (best.update, best.scores) == (30, scores(4.0))
    assert checkpoint.load(FOLDER / BEST, KIND)["best"] == third
    assert evaluator.numbers == [177] * 6


def test_scores_are_logged_and_printed(opened: Opened) -> None:
    opened.evaluate(Scripted(scores(5.0), scores(4.0)), 10, 20)
    logged = [entry for entry in metrics(FOLDER) if "eval/fcd" in entry]
    assert logged == [
        {"step": update, "eval/fcd": fcd, "eval/spread": 0.9, "eval/rarest_class": 0.3}
        for update, fcd in ((10, 5.0), (20, 4.0))
    ]
    assert opened.printed == [
        f"update {update}: fcd {fcd}, spread 0.9, rarest_class 0.3" for update, fcd in ((10, 5), (20, 4))
    ]
    assert opened.session.scores == scores(4.0)
    assert opened.warnings == []


def test_collapse_and_missing_classes_are_warned_of(opened: Opened) -> None:
    opened.evaluate(Scripted(scores(5.0), scores(4.0, 0.1, 0.0), scores(4.0, 0.9, 0.0), scores(9.0)), 10, 20, 30, 40)
    collapse, missing, worse = opened.warnings
    assert collapse.startswith("update 20: mode collapse: the mean distance between samples is 10% of")
    assert missing.startswith("update 30: a class is missing: the classifier assigns 0.00% of samples")
    assert worse.startswith("update 40: mode collapse: the score is 9, the best was 4.")


def test_an_interrupted_evaluation_is_pending_and_changes_nothing(opened: Opened) -> None:
    opened.evaluate(Scripted(scores(5.0), Stopped(), scores(3.0)), 10, 20)
    assert opened.session.evaluation_pending
    assert opened.session.scores == scores(5.0)
    assert opened.session.best == {"update": 10, "score": 5.0}
    assert len(opened.printed) == 1
    opened.evaluate(Scripted(scores(3.0)), 20)
    assert not opened.session.evaluation_pending


def test_processes_other_than_the_main_one_write_nothing(opened: Opened) -> None:
    opened.session.world = World(rank=1, size=2)
    opened.evaluate(Scripted({}), 10)
    assert not opened.session.evaluation_pending
    assert opened.session.scores == {}
    assert opened.printed == []
    assert not (FOLDER / weights_file("last")).exists()


@pytest.mark.parametrize("bias", ["", "its score may be biased"])
def test_the_protocol_has_the_images_and_every_warning(opened: Opened, bias: str) -> None:
    evaluator: Any = Scripted()
    evaluator.extractor.bias_warning = bias
    print_protocol(opened.session, evaluator)
    assert opened.printed == [
        "14 images were left out",
        "zeros: 14 training images, 14 held-out images",
        "features: of a script",
        "177 generated images against 6 held-out images",
    ]
    few = opened.data.few_images_warning(opened.session.config)
    assert opened.warnings == [warning for warning in (bias, few) if warning]


def test_the_closing_message_has_the_last_and_the_best_score(opened: Opened) -> None:
    evaluator: Any = Scripted(scores(5.0), scores(8.0))
    opened.session.learner.updates = 40
    assert ": not evaluated yet; generate images with: " in closing_message(opened.session, evaluator)
    opened.evaluate(evaluator, 20, 30)
    message = closing_message(opened.session, evaluator)
    assert " at update 30: FCD 8, best 5 (update 20), against 6 held-out images; resume with: " in message
    opened.session.learner.updates = 40
    assert closing_message(opened.session, evaluator).endswith(" generative.sample runs/run")
