"""Test of updates from a CUDA graph, with a simulated graph on the CPU: a capture changes no state."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.agents.qlearning.sampled import ACTIONS, OBS, batches, config
from tests.agents.resources import resources_of_shape
from zerokara.agents import dqn, pqn
from zerokara.agents.configs import pqn as pqn_config
from zerokara.agents.qlearning.learner import Learner
from zerokara.core.compute import Compute
from zerokara.core.distributed import World


class Captures:
    """`Compute` of a simulated GPU. As on a real one, a capture runs the function three times before."""

    def __init__(self, compute: Compute) -> None:
        self.compute, self.torch_device = compute, SimpleNamespace(type="cuda")
        self.generators: list[tuple[torch.Generator, ...]] = []
        self.replays = 0

    def graph(self, function: Callable[[], object], generators: tuple[torch.Generator, ...]) -> Callable[[], object]:
        self.generators.append(generators)
        for _ in range(3):
            function()

        def replay() -> None:
            self.replays += 1
            function()

        return replay

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compute, name)


class Sampling:
    """A learner, and an update that draws random numbers and changes a tensor."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.generator, self.total = learner, torch.Generator().manual_seed(3), torch.zeros(())

    def update(self) -> None:
        """Do one update on a batch drawn from the generator."""
        batch = batches(int(torch.randint(1_000, (), generator=self.generator)))()
        self.total += batch.reward.sum()
        if self.learner.has_target:
            dqn.gradient_step(self.learner, batch)
        else:
            self.learner.step(batch.obs, batch.action, batch.reward)

    def state(self) -> list[Tensor]:
        """Everything that an update changes."""
        learner = self.learner
        modules = [learner.network, learner.online, *([learner.target] if learner.has_target else [])]
        optimizer = [value for values in learner.optimizer.state_dict()["state"].values() for value in values.values()]
        generators = [self.generator, *([learner.generator] if learner.generator is not None else [])]
        return [
            *(tensor for module in modules for tensor in module.state_dict().values()),
            *(torch.as_tensor(value) for value in optimizer),
            *(generator.get_state() for generator in generators),
            *(self.total, learner._sums),
        ]


def sampling(**changes: Any) -> Sampling:
    torch.manual_seed(1)
    compute = Compute()
    if changes.pop("pqn", False):
        settings = pqn_config.Config(backbone="nips", width_multiplier=0.25, hidden_units=8)
        return Sampling(pqn.make_learner(settings, resources_of_shape(OBS, ACTIONS, compute)))
    return Sampling(dqn.make_learner(config(**changes), resources_of_shape(OBS, ACTIONS, compute)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "rmsprop"}, {"noisy": True}, {"head": "iqn"}, {"pqn": True}, {"weight_decay": 0.1}],
    ids=["adam", "rmsprop", "noisy", "iqn", "pqn", "adamw"],
)
def test_updates_from_a_graph_equal_eager_updates(changes: dict[str, Any]) -> None:
    eager, graphed = sampling(**changes), sampling(**changes)
    captures = Captures(graphed.learner.compute)
    graphed.learner.compute = captures  # type: ignore[assignment]
    update = graphed.learner.graphed(graphed.update, (graphed.generator,), (graphed.total,))
    for number in range(1, 5):
        eager.update()
        update()
        for ours, expected in zip(graphed.state(), eager.state(), strict=True):
            assert torch.equal(ours, expected), f"after update {number}"
    assert captures.replays == 3, "the first update runs eagerly, the others from the graph"
    is_random = "noisy" in changes or "head" in changes
    own = (graphed.learner.generator,) if is_random else ()
    assert captures.generators == [(graphed.generator, *own)], "captured once"


@pytest.mark.parametrize("size", [1, 2])
def test_updates_run_eagerly_without_a_gpu_or_with_several_processes(size: int) -> None:
    it = sampling()
    if size > 1:
        it.learner.compute, it.learner.world = Captures(it.learner.compute), World(size=size)  # type: ignore[assignment]
    assert it.learner.graphed(it.update) == it.update
