"""Losses of one's own: equal to a built-in one with the same formula, and a sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.generative.finished_run import make_run
from zerokara.core.config import UserError
from zerokara.generative.dcgan import discriminator_loss, generator_loss
from zerokara.generative.gan.custom_loss import find_loss
from zerokara.generative.gan.sampler import Sampler

SOURCE = """
import torch.nn.functional as F

class Relativistic:
    def discriminator(self, real, fake):
        return F.softplus(fake - real).mean()

    def generator(self, fake, real):
        return F.softplus(real - fake).mean()

class NoGenerator:
    def discriminator(self, real, fake):
        return fake.mean()

class Vector(Relativistic):
    def generator(self, fake, real):
        return fake

class Constant(Relativistic):
    def generator(self, fake, real):
        return fake.detach().mean()

class Fails(Relativistic):
    def discriminator(self, real, fake):
        return real @ fake.T @ 1

class Arguments(Relativistic):
    def __init__(self, weight):
        pass
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write my_loss.py into the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_loss.py").write_text(SOURCE)
    find_loss.cache_clear()


def test_scores_are_passed_by_their_meaning() -> None:
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    path = "my_loss.py:Relativistic"
    assert torch.equal(discriminator_loss(path, real, fake), discriminator_loss("relativistic", real, fake))
    assert torch.equal(generator_loss(path, fake, real), generator_loss("relativistic", fake, real))


def test_a_run_has_the_weights_of_one_with_the_same_formula(tmp_path: Path) -> None:
    own = make_run(tmp_path, "own", "--loss", "my_loss.py:Relativistic")
    built_in = make_run(tmp_path, "built-in", "--loss", "relativistic")
    samplers = [Sampler.load(folder, which="last", device="cpu", threads=1) for folder in (own, built_in)]
    states = [sampler.generator.state_dict() for sampler in samplers]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "NoGenerator",
            r"my_loss\.py:NoGenerator has no method generator: a loss of your own is a class with the meth",
        ),
        ("Vector", r"Vector\.generator returned a tensor of shape \(2,\) for tensors \(2,\) of float32, \(2,\)"),
        ("Constant", r"Constant\.generator returned a tensor of shape \(\) .* it must return a scalar that depends"),
        ("Fails", r"Fails\.discriminator failed on tensors \(2,\) of float32, \(2,\) of float32 \("),
        ("Arguments", r"my_loss\.py:Arguments cannot be created \(TypeError: .*\): its class is called without argu"),
    ],
)
def test_mistakes_get_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        find_loss(f"my_loss.py:{name}")
    assert "\n" not in str(error.value)
