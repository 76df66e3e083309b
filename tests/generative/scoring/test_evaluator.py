"""Tests of the evaluator: images, latent vectors and labels of an evaluation, spread, accuracy, several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.recorded import Shard
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.generative.gan.config import KIND, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import draw_latents
from zerokara.generative.scoring import evaluator as evaluator_module
from zerokara.generative.scoring.distances import spread
from zerokara.generative.scoring.evaluator import EVAL_SEED, Evaluator
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, FeatureSet

NAMES = ("a", "b", "c")
CONFIG = Config(latent_dim=2, eval_images=20, name="run", device="cpu")


class Extractor:
    """Features are the first two pixels; the probability of a class is 1 for the value of the first pixel modulo 3."""

    protocol = ""

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self.metadata = None if classes is None else SimpleNamespace(classes=classes)
        self.images: list[Tensor] = []
        self.compared: list[tuple[Tensor, Tensor]] = []

    def extract(self, images_NCHW: Tensor) -> FeatureSet:
        self.images.append(images_NCHW)
        flat = images_NCHW.flatten(1)
        return FeatureSet(flat[:, :2], torch.nn.functional.one_hot(flat[:, 0].long() % 3, 3).double())

    def comparisons(self, real: FeatureSet, fake: FeatureSet) -> list[Callable[[], dict[str, float]]]:
        def compare() -> dict[str, float]:
            self.compared.append((real.features_NF, fake.features_NF))
            return {"fcd": float(len(self.compared))}

        return [compare]


class FakeSampler:
    """Sampler whose image i has the value 5 i in its first pixel, and which records what it gets."""

    config, class_names = CONFIG, NAMES

    def __init__(self, conditional: bool) -> None:
        self.conditional = conditional
        self.got: list[tuple[Tensor, Tensor | None]] = []

    def labels(self, number: int) -> Tensor | None:
        return torch.arange(number) % 3 if self.conditional else None

    def generate(self, z_NZ: Tensor, label_N: Tensor | None) -> Tensor:
        first = sum(len(z) for z, _ in self.got)
        self.got.append((z_NZ, label_N))
        images_NCHW = torch.zeros(len(z_NZ), 1, 2, 2, dtype=torch.uint8)
        images_NCHW[:, 0, 0, 0] = torch.arange(first, first + len(z_NZ)) * 5
        return images_NCHW


@pytest.fixture
def data() -> Data:
    """Images with random pixels: 30 for training and 25 held out."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (55, 1, 2, 2), dtype=torch.uint8, generator=random)
    labels = torch.arange(55) % 3
    return Data(
        ImageSet(pixels[:30], labels[:30], NAMES, "train"), ImageSet(pixels[30:], labels[30:], NAMES, "test"), ()
    )


def make(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...] | None = NAMES, rank: int = 0
) -> tuple[Evaluator, Extractor, list[str]]:
    """Return an evaluator, its extractor of features, and a record of what is printed."""
    extractor, printed = Extractor(classes), list[str]()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FeatureExtractor, "of_run", lambda *_: extractor)
    monkeypatch.setattr(evaluator_module, "SPREAD_IMAGES", 7)
    with Run(CONFIG, kind=KIND, name="run", resume=False, quiet=True, world=World()) as run:
        run.world = Shard(rank=rank, size=2) if rank else World()
        monkeypatch.setattr(run, "print", printed.append)
        return Evaluator(CONFIG, data, run), extractor, printed


def test_real_images_are_the_first_held_out_ones_and_the_floor_is_of_random_training_images(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, extractor, printed = make(data, tmp_path, monkeypatch)
    assert extractor.images == [], "training does not wait for them"
    assert evaluator.num_held_out == 20
    assert evaluator.floor == evaluator.floor == {"fcd": 1.0}
    assert printed == ["floor (training images in place of generated ones): fcd 1"]
    real, training = extractor.images
    assert torch.equal(real, data.held_out.images[:20])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(EVAL_SEED))[:20]
    assert torch.equal(training, data.train.images[order])
    ((first, second),) = extractor.compared
    assert torch.equal(first, real.flatten(1)[:, :2].double())
    assert torch.equal(second, training.flatten(1)[:, :2].double())


@pytest.mark.parametrize(
    ("classes", "conditional", "accuracy"),
    [(NAMES, True, 7 / 20), (("a", "b", "d"), True, None), (None, True, None), (NAMES, False, None)],
    ids=["same classes", "other classes", "no classifier", "unconditional"],
)
def test_scores_of_generated_images(
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    classes: tuple[str, ...] | None,
    conditional: bool,
    accuracy: float | None,
) -> None:
    """Image i is of class 5 i % 3 = 2 i % 3 and has the label i % 3: they are equal for multiples of 3."""
    evaluator, extractor, _ = make(data, tmp_path, monkeypatch, classes)
    sampler: Any = FakeSampler(conditional)
    scores = evaluator.scores(sampler, 20)
    held_out, images = extractor.images
    assert torch.equal(held_out, data.held_out.images[:20])
    assert scores.pop("spread") == spread(images[:7]) / spread(data.held_out.images[:7])
    assert scores.pop("accuracy", None) == accuracy
    assert scores == {"fcd": 1.0}
    ((real, generated),) = extractor.compared
    assert torch.equal(real, evaluator.real.features_NF)
    assert torch.equal(generated[:, 0], torch.arange(20).double() * 5)
    ((z_NZ, label_N),) = sampler.got
    random = torch.Generator().manual_seed(EVAL_SEED)
    assert torch.equal(z_NZ, draw_latents(CONFIG, (20, 2), random, torch.device("cpu")))
    assert label_N is None if not conditional else torch.equal(label_N, torch.arange(20) % 3)


def test_the_processes_divide_the_metrics(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, extractor, _ = make(data, tmp_path, monkeypatch, rank=1)
    sampler: Any = FakeSampler(conditional=True)
    scores = []
    for shard in (slice(0, 1), slice(1, 2)):  # the only function of the extractor, and that of the images themselves
        monkeypatch.setattr(Shard, "shard", lambda _, number, shard=shard: shard if number == 2 else slice(0, number))
        scores.append(evaluator.scores(sampler, 20))
        assert len(extractor.compared) == 1
    assert [sorted(part) for part in scores] == [["fcd"], ["accuracy", "spread"]]


@pytest.mark.parametrize(
    ("asked", "held_out", "generated"),
    [(0, 22, 1_000), (0, 50, 1_000), (0, 60, 1_200), (0, 250, 5_000), (0, 5_000, 5_000), (300, 22, 300)],
)
def test_the_number_of_generated_images_depends_on_that_of_the_held_out_ones(
    asked: int, held_out: int, generated: int, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureExtractor, "of_run", lambda *_: Extractor(None))
    images = ImageSet(torch.zeros(held_out, 1, 2, 2, dtype=torch.uint8), torch.zeros(held_out).long(), ("a",), "zeros")
    run: Any = None
    evaluator = Evaluator(replace(CONFIG, eval_images=asked), Data(data.train, images, ()), run)
    assert (evaluator.num_generated, evaluator.num_held_out) == (generated, held_out)


def test_the_protocol_warns_of_few_held_out_images(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, extractor, _ = make(data, tmp_path, monkeypatch)
    extractor.protocol = "features"
    first, number, bias = evaluator.protocol()
    assert (first, number) == ("features", "20 generated images against 20 held-out images")
    assert bias.startswith("the Fréchet distance to only 20 images is biased upward")
    monkeypatch.setattr(evaluator_module, "FEW_HELD_OUT", 20)
    assert len(list(evaluator.protocol())) == 2
