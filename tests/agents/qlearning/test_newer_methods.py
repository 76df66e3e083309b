"""Averaged target network, weight decay, random shifts and agents with the Hadamax encoder, by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.agents.qlearning.sampled import SampledLearner, batches, make
from zerokara.agents.configs import dqn, pqn
from zerokara.agents.configs.dqn import read_config
from zerokara.agents.qlearning.network import make_network, make_pqn_network
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.agents.qlearning.replay import Batch, Replay
from zerokara.core import optim
from zerokara.core.compute import Compute
from zerokara.core.config import UserError

CPU = torch.device("cpu")
METHODS: dict[str, Any] = {"target_tau": 0.25, "weight_decay": 0.1}


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# Averaged target network


def test_the_target_network_moves_by_tau_and_its_buffers_are_copied() -> None:
    learner = make(batches(), target_tau=0.25, noisy=True)
    for network, value in ((learner.network, 8.0), (learner.target, 4.0)):
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.fill_(value)
    for average in learner._average:
        average.fill_(4.0)
    learner.update_target_network()
    assert all(p.eq(5.0).all() for p in learner.target.parameters())  # .75 * 4 + .25 * 8
    assert all(b.eq(8.0).all() for b in learner.target.buffers())
    learner.update_target_network()
    assert all(p.eq(5.75).all() for p in learner.target.parameters())  # .75 * 5 + .25 * 8
    assert all(p.eq(8.0).all() for p in learner.network.parameters()), "the online network does not change"
    assert list(learner.target.buffers()), "there were buffers"


def test_small_steps_are_not_lost_in_16_bits() -> None:
    """A step of .001 * (2 - 1) is smaller than half of the distance of bfloat16 numbers at 1, .0078."""
    learner = make(batches(), target_tau=0.001, compute=Compute(precision="bfloat16"))
    assert {p.dtype for p in learner.target.backbone.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for tensor in (*learner.network.parameters(), *learner._average):
            tensor.fill_(1.0)
        learner.copy_to_target_network()
        for parameter in learner.network.parameters():
            parameter.fill_(2.0)
    for _ in range(1_000):
        learner.update_target_network()
    for parameter in learner.target.parameters():
        assert float(parameter.flatten()[0]) == pytest.approx(2 - 0.999**1_000, abs=0.005)


def test_a_reset_copies_into_the_target_network_and_its_average() -> None:
    learner = make(batches(), target_tau=0.25)
    learner.update()
    learner.reset(1, 0.5)
    for network_p, target_p, average in zip(
        learner.network.parameters(), learner.target.parameters(), learner._average, strict=True
    ):
        assert torch.equal(network_p, target_p)
        assert torch.equal(network_p, average)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_restored_learner_continues_bitwise_identically(precision: str, tmp_path: Path) -> None:
    sample = batches(1)
    first, second = (make(sample, seed=seed, compute=Compute(precision=precision), **METHODS) for seed in (0, 7))

    def train(learner: SampledLearner) -> list[Tensor]:
        learner.sample = batches(2)
        for _ in range(3):
            learner.update()
            learner.update_target_network()
        return [*parameters(learner.network), *parameters(learner.target), *copy.deepcopy(learner._average)]

    train(first)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for ours, theirs in zip(train(first), train(second), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_has_no_average_without_tau() -> None:
    assert "target_average" not in make(batches()).state_dict()
    assert len(make(batches()).optimizer.param_groups) == 1


# Weight decay


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
def test_weight_decay_by_hand(rectified: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient, a step multiplies matrices by 1 - .5 * .2 and does not change biases."""
    monkeypatch.setattr(Compute, "function", lambda compute, function: function)
    net = torch.nn.Linear(3, 2)
    weight, bias = parameters(net)
    optimizer = optim.make_adam(
        net, net, Compute(compile=compiled), lr=0.5, eps=1e-8, max_grad_norm=1.0, rectified=rectified, weight_decay=0.2
    )
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optim.clip_and_step(optimizer, 1.0)
    torch.testing.assert_close(net.weight.detach(), 0.9 * weight)
    assert torch.equal(net.bias, bias)
    optim.set_learning_rate(optimizer, 0.25)
    optim.clip_and_step(optimizer, 1.0)
    torch.testing.assert_close(net.weight.detach(), 0.95 * 0.9 * weight)


def test_updates_with_weight_decay_are_those_of_pytorch() -> None:
    learner = make(batches(3), weight_decay=0.1, max_grad_norm=None)
    network = copy.deepcopy(learner.network)
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, eps=1e-4)
    for _ in range(3):
        learner.update()
        for p, q in zip(network.parameters(), learner.network.parameters(), strict=True):
            assert q.grad is not None
            p.grad = q.grad.clone()
        theirs.step()
    for p, q in zip(network.parameters(), learner.network.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


# Random shifts

SIZE, SHIFT = 6, 2


def filled(kind: type[Replay], random_shift: int) -> Replay:
    """Return a buffer with 40 steps of two environments, whose frames have random pixels."""
    options: dict[str, Any] = {"alpha": 0.5} if kind is PrioritizedReplay else {}
    options |= {"n_step": 1, "gamma": 0.9, "seed": 5, "device": CPU, "random_shift": random_shift}
    replay = kind(80, 2, (3, SIZE, SIZE), 1, **options)
    rng = np.random.default_rng(0)
    nothing, zeros = np.zeros(2, bool), np.zeros(2, np.float32)
    for step in range(40):
        obs = rng.integers(0, 256, (2, 3, SIZE, SIZE), np.uint8)
        replay.add(obs, np.full(2, step), zeros, nothing, nothing, obs)
    return replay


def offset(shifted: Tensor, image: Tensor) -> tuple[int, int]:
    """Return the shift (down, right) of all frames of a stack, with repeated edges; it is the only one that fits."""
    padded = np.pad(image.numpy(), ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), mode="edge")
    fitting = [
        (SHIFT - y, SHIFT - x)
        for y in range(2 * SHIFT + 1)
        for x in range(2 * SHIFT + 1)
        if np.array_equal(padded[:, y : y + SIZE, x : x + SIZE], shifted.numpy())
    ]
    (only,) = fitting
    return only


@pytest.mark.parametrize("kind", [Replay, PrioritizedReplay])
def test_each_observation_of_a_batch_has_a_random_shift_of_its_own(kind: type[Replay]) -> None:
    plain, shifted = filled(kind, 0).sample(200), filled(kind, SHIFT).sample(200)
    for name in ("action", "reward", "discount", "weight"):
        assert torch.equal(getattr(plain, name), getattr(shifted, name)), "the same transitions"
    assert shifted.obs.dtype is torch.uint8
    assert shifted.obs.shape == plain.obs.shape
    rows = range(200)
    obs = [offset(shifted.obs[i], plain.obs[i]) for i in rows]
    next_obs = [offset(shifted.next_obs[i], plain.next_obs[i]) for i in rows]
    everything = {(y, x) for y in range(-SHIFT, SHIFT + 1) for x in range(-SHIFT, SHIFT + 1)}
    assert set(obs) == set(next_obs) == everything
    assert obs != next_obs, "observations and next observations are shifted independently"


def test_shifts_continue_with_the_state_of_the_buffer() -> None:
    first, second = (filled(Replay, SHIFT) for _ in range(2))
    first.sample(8)
    second.generator.set_state(first.generator.get_state())
    batches_ = first.sample(8), second.sample(8)
    for ours, theirs in zip(*batches_, strict=True):
        assert torch.equal(ours, theirs)
    assert isinstance(batches_[0], Batch)


# Hadamax encoder


def test_parameters_of_the_published_agent_at_6_actions() -> None:
    """Convolutions and normalizations of both branches, hidden layer, its normalization, outputs."""
    number = sum(p.numel() for p in make_pqn_network(pqn.Config(backbone="hadamax"), (4, 84, 84), 6).parameters())
    blocks = 2 * (8_224 + 64) + 2 * (32_832 + 128) + 2 * (36_928 + 128)
    assert number == blocks + (7_744 * 512 + 512) + 1_024 + (512 * 6 + 6) == 4_126_150


def test_agents_keep_xavier_initialization_and_have_gelu() -> None:
    torch.manual_seed(0)
    networks = (
        make_pqn_network(pqn.Config(backbone="hadamax"), (4, 84, 84), 6),
        make_network(dqn.Config(backbone="hadamax", layer_norm=True), (4, 84, 84), 6),
    )
    for network in networks:
        for conv in (module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)):
            area = conv.kernel_size[0] ** 2
            expected = math.sqrt(2 / (area * (conv.in_channels + conv.out_channels)))
            assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.05)
            assert not conv.get_parameter("bias").any()
        assert [type(layer).__name__ for layer in network.advantage] == ["Linear", "LayerNorm", "GELU", "Linear"]
        assert network.advantage[2].approximate == "tanh"


def test_pqn_without_normalization_has_none() -> None:
    network = make_pqn_network(pqn.Config(backbone="hadamax", layer_norm=False), (4, 84, 84), 6)
    assert not [module for module in network.modules() if isinstance(module, nn.LayerNorm)]


# Settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset nature --weight-decay 0.1", "--weight-decay has no effect without --optimizer adam"),
        ("--env CartPole-v1 --backbone mlp --random-shift 4", "--random-shift has no effect without --obs-type image"),
        ("--target-tau 0", "--target-tau cannot be 0.0: it must be a number, above 0 and at most 1"),
        ("--tau 0.1", "--tau is --target-tau here"),
        ("--data-augmentation", "--data-augmentation is --random-shift here"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_config(words.split())
