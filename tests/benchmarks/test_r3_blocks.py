"""Tests of benchmarks/r3_blocks.py: the parts are the whole networks, the second derivative, sums by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import r3_blocks
from zerokara.core.backbones.r3 import Block
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.learner import make_discriminator, make_generator
from zerokara.generative.gan.networks import R3Generator

CONFIG = Config(**{**PRESETS["r3"], "generator_width": 0.25, "discriminator_width": 0.25, "latent_dim": 6})


def randomize(network: nn.Module) -> None:
    """Give all layers random weights: the last one of a block is initialized to zero."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)


def compose(parts: list[r3_blocks.Part], x: torch.Tensor) -> torch.Tensor:
    for part in parts:
        x = part.run(x)
    return x


def test_the_parts_are_the_whole_networks() -> None:
    generator = make_generator(CONFIG, (3, 28, 40), 0)
    discriminator = make_discriminator(CONFIG, (3, 28, 40), 0)
    assert isinstance(generator, R3Generator)
    for network, parts, x in (
        (generator, r3_blocks.generator_parts(generator), torch.randn(2, 6)),
        (discriminator, r3_blocks.discriminator_parts(discriminator), torch.rand(2, 3, 28, 40) * 2 - 1),
    ):
        randomize(network)
        torch.testing.assert_close(compose(parts, x), network(x))
        used = {id(parameter) for part in parts for parameter in part.parameters}
        assert used == {id(parameter) for parameter in network.parameters()}
    names = [part.name for part in r3_blocks.discriminator_parts(discriminator)]
    assert names[:4] == ["images", "block 28x40, 8 channels", "to 14x20", "block 14x20, 16 channels"]
    assert names[-1] == "score"


def test_the_second_derivative_against_finite_differences() -> None:
    block = Block(8, 1).double()
    randomize(block)
    part = r3_blocks.Part("block", block, list(block.parameters()))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)

    def squared_norm() -> float:
        (g,) = torch.autograd.grad(block(x), x, v)
        return float(g.square().sum())

    gradients = r3_blocks.penalty_gradients(part, block(x), x, v)
    assert len(gradients) == len(part.parameters) + 2
    for tensor, gradient in zip((*part.parameters, x, v), gradients, strict=True):
        if gradient is None:
            continue
        index = int(gradient.abs().argmax())
        values = []
        for change in (1e-5, -1e-5):
            with torch.no_grad():
                tensor.view(-1)[index] += change
            values.append(squared_norm())
            with torch.no_grad():
                tensor.view(-1)[index] -= change
        assert float(gradient.flatten()[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-4)
    assert sum(gradient is not None for gradient in gradients) >= 4, "weights of three layers, and v"


def test_sums_and_the_time_of_an_update(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With 1, 2 and 10 seconds for each part, the sums are those numbers times the parts."""
    clocks = []

    def seconds(
        work: Mapping[tuple[str, int], Callable[[], object]], rounds: int, clock: Callable[[], float]
    ) -> dict[tuple[str, int], list[float]]:
        clocks.append((clock.__name__, rounds))
        for run in [*work.values(), *work.values()]:  # several rounds, as in `median_seconds`
            run()
        return {key: [{"forward": 1.0, "backward": 2.0, "penalty": 10.0}[key[0]]] for key in work}

    monkeypatch.setattr(r3_blocks, "median_seconds", seconds)
    words = ["--image-sizes", "32", "--widths", "0.25", "--batch-size", "2", "--device", "cpu", "--threads", "1"]
    r3_blocks.main([*words, "--rounds", "3", "--cpu-time", "--precision", "bfloat16", "--channels-last"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["what"] == "milliseconds of CPU time"
    assert clocks == [("process_time", 3)] * 2
    (network,) = result["networks"]
    generator, discriminator = network["generator"], network["discriminator"]
    assert [row["part"] for row in generator] == [
        *("latents", "block 4x4, 64 channels", "to 8x8", "block 8x8, 32 channels", "to 16x16"),
        *("block 16x16, 16 channels", "to 32x32", "block 32x32, 8 channels", "images", "sum"),
    ]
    assert generator[-1] == {"part": "sum", "forward_ms": 9_000, "backward_ms": 18_000}
    assert discriminator[-1] == {"part": "sum", "forward_ms": 9_000, "backward_ms": 18_000, "penalty_ms": 90_000}
    assert network["update_ms"] == 27_000 + 4 * 9_000 + 3 * 18_000
    assert network["penalties_ms"] == 180_000
