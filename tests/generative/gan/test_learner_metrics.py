"""Tests of what the learner of a GAN measures, and of the check of its discriminator before a run is created."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.generative.gan.test_learner import SHAPE, learner
from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.generative.gan import learner as learner_module
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.learner import check_discriminator


def set_gradients(network: nn.Module, value: float) -> float:
    """Set all gradients to a value; return their norm."""
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return float(value * sum(parameter.numel() for parameter in network.parameters()) ** 0.5)


def test_gradient_norms_are_means_over_every_tenth_update() -> None:
    it = learner()
    norms: list[tuple[float, float]] = []
    for update in range(20):
        norms.append((set_gradients(it.generator, 1.0 + update), set_gradients(it.discriminator, 2.0 + update)))
        it.step_discriminator()
        it.step_generator()
        it.count_update()
    metrics = it.read_metrics()
    assert metrics["train/g_grad_norm"].item() == pytest.approx((norms[0][0] + norms[10][0]) / 2, rel=1e-5)
    assert metrics["train/d_grad_norm"].item() == pytest.approx((norms[0][1] + norms[10][1]) / 2, rel=1e-5)
    expected = set_gradients(it.generator, 5.0)
    it.step_discriminator()
    it.step_generator()
    assert it.read_metrics()["train/g_grad_norm"].item() == pytest.approx(expected), "the sums begin again"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), []),
        (("--resume",), []),
        (("--pretrained-backbone", "some"), [("Dcgan", Path("some"))]),
        (("--pretrained-backbone", "some", "--resume"), []),
    ],
)
def test_a_pretrained_backbone_is_read_before_a_new_run_is_created(
    words: tuple[str, ...], expected: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, Path]] = []
    monkeypatch.setattr(learner_module, "find_weights", Path)
    monkeypatch.setattr(
        learner_module,
        "load_pretrained_backbone",
        lambda backbone, path: loaded.append((type(backbone).__name__, path)),
    )
    state = torch.get_rng_state()
    check_discriminator(parse(Config, PRESETS, list(words), ""), SHAPE, 3)
    assert loaded == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_a_discriminator_that_mixes_images_is_refused_with_gradient_penalties() -> None:
    config = parse(Config, PRESETS, ["--r1", "1"], "")
    with pytest.raises(UserError, match="--r1 needs a discriminator whose scores depend on one image each"):
        check_discriminator(config, SHAPE, 3)
