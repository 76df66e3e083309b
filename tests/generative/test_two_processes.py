"""Tests that two processes compute what one does with all images of a GAN: gradients to 1e-6, and evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import run_processes

PROGRAM = """
import sys, torch
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.generative.dcgan import make_learner, update
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.learner import Learner

world, random = World.from_env("cpu"), torch.Generator().manual_seed(9)
pixels = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8, generator=random)
labels = torch.arange(8) % 3
latents = torch.randn(8, 8, generator=random)
small = ["--generator-width", "0.125", "--discriminator-width", "0.125", "--latent-dim", "8", "--batch-size", "8"]
plain = ["--instance-noise", "0", "--final-instance-noise", "0", "--generator-norm", "none"]
config = parse(Config, PRESETS, [*small, *plain, "--discriminator-norm", "none", *sys.argv[1:]], "")

def gradients(world):
    learner = make_learner(config, (1, 28, 28), 3, Compute(), world)
    own, drawn = slice(world.rank, None, world.size), []
    def draw_latents(number):
        drawn.append(number)
        return latents[own][sum(drawn) - number : sum(drawn)]
    learner.draw_latents = draw_latents
    learner.discriminator_optimizer.step = lambda: None  # otherwise rounding would change the gradient of the generator
    update(learner, pixels[own], labels[own])
    networks = {"d": learner.discriminator, "g": learner.generator}
    metrics = {name: float(value) for name, value in learner.read_metrics().items()}
    return {f"{n} {name}": p.grad for n, net in networks.items() for name, p in net.named_parameters()}, metrics

(ours, our_metrics), (theirs, their_metrics) = gradients(world), gradients(World())
for name, gradient in theirs.items():
    assert gradient.any(), name
    assert (ours[name] - gradient).abs().max() <= 1e-6 * max(1, float(gradient.abs().max())), name
for name, value in their_metrics.items():
    if "accuracy" in name and "relativistic" in sys.argv:
        continue  # compared with the mean score of the images of a process
    assert abs(our_metrics[name] - value) <= 1e-5 * max(1, abs(value)), (name, our_metrics[name], value)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("--conditional",),
        ("--accumulation-steps", "2"),
        ("--loss", "relativistic", "--r1", "1", "--r2", "1", "--accumulation-steps", "2"),
    ],
    ids=["conditional", "accumulation", "penalties"],
)
def test_the_gradients_of_two_processes_are_those_of_all_images(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run_processes(tmp_path, 2, "-c", PROGRAM, *words) == ("", "")


EVALUATION = """
import contextlib, torch
from types import SimpleNamespace
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.generative.dcgan import make_learner
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring import evaluator
from zerokara.generative.scoring.evaluator import Evaluator

evaluator.SPREAD_IMAGES = 60
world, random = World.from_env("cpu"), torch.Generator().manual_seed(9)
pixels = torch.randint(256, (150, 1, 28, 28), dtype=torch.uint8, generator=random)
images = ImageSet(pixels, torch.arange(150) % 3, ("a", "b", "c"), "noise")
config = Config(generator_width=0.125, discriminator_width=0.125, latent_dim=8, eval_images=101, data="noise")
generator = make_learner(config, (1, 28, 28), 3, Compute(), World()).snapshot()
sampler = Sampler(generator, config, (1, 28, 28), (), Compute(), 0)

def evaluate(world):
    printed = []
    run = SimpleNamespace(
        world=world, extra={}, interruptible=lambda on=True: contextlib.nullcontext(), print=printed.append
    )
    evaluator = Evaluator(config, Data(images, images.take(slice(0, 77)), ()), run)
    compared, computed, comparisons = [], [], evaluator.extractor.comparisons

    def recorded(real, fake):
        compared.append((real, fake))
        return [lambda f=f: computed.append(f) or f() for f in comparisons(real, fake)]

    evaluator.extractor.comparisons = recorded
    result = evaluator.scores(sampler, 101), evaluator.floor, evaluator.real.features_NF
    assert evaluator.floor is result[1]
    assert len(printed) == 1
    assert len(computed) == 8 // world.size, "each process computes its part"
    del evaluator.extractor.comparisons
    for metrics, features in zip(result, compared):
        expected = evaluator.extractor.compare(*features)
        assert list(metrics.items())[: len(expected)] == list(expected.items()), "bit for bit, in the same order"
    return result

(scores, floor, real), (expected, expected_floor, expected_real) = evaluate(world), evaluate(World())
torch.testing.assert_close(real, expected_real, rtol=1e-5, atol=1e-6)
assert expected_floor and expected
for ours, theirs in ((floor, expected_floor), (scores, expected)):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert abs(value - theirs[name]) <= 1e-4 * max(abs(theirs[name]), 0.01), (name, value, theirs[name])
"""


def test_the_metrics_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    assert run_processes(tmp_path, 2, "-c", EVALUATION) == ("", "")
