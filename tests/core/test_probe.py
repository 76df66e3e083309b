"""Probe of the hardware: the options come from the config, and the random state of the run is not changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from zerokara.core.compute import Compute, Precision, Switch
from zerokara.core.distributed import World
from zerokara.core.probe import probe


@dataclass(frozen=True)
class Config:
    """Hardware fields of all configs."""

    device: str = "cpu"
    precision: Precision = "bfloat16"
    threads: int = 3


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_options_come_from_the_config(compile: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def choose(**options: Any) -> Compute:
        received.update(options)
        return Compute(threads=2)

    monkeypatch.setattr(Compute, "choose", choose)

    def train_step(candidate: Compute) -> Callable[[], object]:
        return lambda: candidate

    assert probe(Config(), World(size=2), train_step, compile=compile) == Compute(threads=2)
    assert received == {
        "device": "cpu",
        "precision": "bfloat16",
        "compile": compile,
        "threads": 3,
        "train_step": train_step,
        "local_world_size": 2,
    }


def test_random_state_is_not_changed() -> None:
    samples: list[torch.Tensor] = []

    def train_step(candidate: Compute) -> Callable[[], object]:
        return lambda: samples.append(torch.rand(5))

    threads = torch.get_num_threads()
    torch.manual_seed(4)
    compute = probe(Config(precision="float32", threads=threads), World(), train_step, compile="off")
    after = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(after, torch.rand(3))
    assert len(samples) > 1
    assert compute.precision == "float32"
