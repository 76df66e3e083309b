"""Tests of the learner in two processes that average gradients: 16-bit copies of float32 weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import run_processes

PROGRAM = """
import dataclasses, sys
import torch
from tests.agents.resources import resources_of_shape
from zerokara.agents import dqn, pqn
from zerokara.core.compute import Compute
from zerokara.core.distributed import World

kind, optimizer = sys.argv[1:]
Compute.function = lambda compute, function: function  # settings of compiled runs, without the compilation
world = World.from_env("cpu")
compute = Compute(precision="bfloat16", compile=True)
resources = dataclasses.replace(resources_of_shape((2, 36, 36), 4, compute), world=world)
program = {"dqn": dqn, "pqn": pqn}[kind]
options = {"optimizer": optimizer} if kind == "dqn" else {}
config = program.Config(width_multiplier=0.25, hidden_units=32, max_grad_norm=0.01, learning_rate=1e-3, **options)
torch.manual_seed(world.rank)
learner = program.make_learner(config, resources)
random = torch.Generator().manual_seed(world.rank)

def batch():
    observations = [torch.randint(256, (8, 2, 36, 36), dtype=torch.uint8, generator=random) for _ in range(2)]
    action, reward = torch.randint(4, (8,), generator=random), torch.randn(8, generator=random)
    if kind == "pqn":
        return observations[0], action, reward
    return observations[0], action, reward, torch.full((8,), 0.9), observations[1], torch.ones(8), None, None

for number in range(4):
    learner.step(*batch())
    masters, copies = list(learner.network.parameters()), list(learner.online.parameters())
    assert {master.dtype for master in masters} == {torch.float32}
    for name, master in learner.network.named_parameters():
        assert all(torch.equal(master, other) for other in world.gather(master.detach())), name
    assert copies[0].dtype == (torch.float32 if optimizer == "rmsprop" else torch.bfloat16)
    for master, copy in zip(masters, copies, strict=True):
        assert copy is master or copy.dtype == torch.bfloat16  # gains of LayerNorm have no copies
        assert torch.equal(copy, master.to(copy.dtype)), "the copies follow the weights"
    if number == 0 and optimizer != "rmsprop":  # the means of this update's gradients are those of float32
        own = [world.gather(copy.grad.float()) for copy in copies]
        assert not torch.equal(*own[0]), "the processes have different batches"
        means = [(first + second) / 2 for first, second in own]
        norm = torch.stack([mean.square().sum() for mean in means]).sum().sqrt()
        for master, mean in zip(masters, means, strict=True):
            assert torch.equal(master.grad, mean)
            clipped = mean * min(1.0, 0.01 / float(norm))
            first_moment = learner.optimizer.state[master]["exp_avg"]
            torch.testing.assert_close(first_moment, 0.1 * clipped, rtol=1e-4, atol=1e-12)
        assert any(not torch.equal(mean, mean.bfloat16().float()) for mean in means)
world.barrier()
world.close()
"""


@pytest.mark.parametrize(("kind", "optimizer"), [("dqn", "adam"), ("dqn", "rmsprop"), ("pqn", "radam")])
def test_16_bit_copies_follow_weights_that_are_updated_with_float32_means(
    tmp_path: Path, kind: str, optimizer: str
) -> None:
    assert run_processes(tmp_path, 2, "-c", PROGRAM, kind, optimizer) == ("", "")
