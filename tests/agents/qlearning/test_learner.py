"""Tests of the learner: one update against an explicit computation, and bitwise identical resuming."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.agents.qlearning.sampled import ACTIONS, BATCH, OBS, SampledLearner, batches, config, make
from zerokara.agents import dqn
from zerokara.agents.dqn import dqn_loss
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.replay import Batch
from zerokara.core.compute import Compute
from zerokara.core.divergence import has_finite_weights


def weights(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in module.state_dict().values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_an_update_changes_only_the_online_network(optimizer: str, double: bool) -> None:
    learner = make(batches(), optimizer=optimizer, double=double)
    online, target = weights(learner.network), weights(learner.target)
    assert same(online, target), "equal at the start"
    for _ in range(3):
        learner.update()
    assert same(weights(learner.target), target)
    moved = weights(learner.network)
    assert all(not torch.equal(a, b) for a, b in zip(online, moved, strict=True)), "every weight changes"
    assert all(p.grad is None for p in learner.target.parameters())
    learner.update_target_network()
    assert same(weights(learner.target), moved)
    assert same(weights(learner.network), moved)
    learner.update()
    assert same(weights(learner.target), moved), "a copy, not the same tensors"


@pytest.mark.parametrize("has_target", [True, False])
def test_weights_that_other_code_has_changed_are_copied_into_the_target_network(has_target: bool) -> None:
    learner = make(batches()).learner
    learner.has_target = has_target
    with torch.no_grad():
        for weight in learner.network.parameters():
            weight.add_(1)
    learner.update_copies()
    assert same(weights(learner.target), weights(learner.network)) == has_target


@pytest.mark.parametrize("double", [True, False])
def test_one_update_equals_an_explicit_computation(double: bool) -> None:
    batch = batches(3)()
    learner = make(lambda: batch, double=double, max_grad_norm=0.05, learning_rate=0.1)
    for _ in range(2):  # so that online and target networks differ
        learner.update()
    online, target = copy.deepcopy(learner.network), copy.deepcopy(learner.target)
    optimizer = torch.optim.Adam(online.parameters(), lr=0.1, eps=1e-4)
    optimizer.load_state_dict(copy.deepcopy(learner.optimizer.state_dict()))
    learner.read_metrics()
    learner.update()

    obs, next_obs = batch.obs.float() / 255, batch.next_obs.float() / 255
    with torch.no_grad():
        values, chooser = target(next_obs), (online if double else target)(next_obs)
    loss = torch.zeros(())
    q_BA = online(obs)
    for i in range(BATCH):
        best = max(range(ACTIONS), key=lambda a: float(chooser[i, a]))
        goal = batch.reward[i] + batch.discount[i] * values[i, best]
        error = (q_BA[i, batch.action[i]] - goal).abs()
        loss = loss + batch.weight[i] * (0.5 * error**2 if error < 1 else error - 0.5) / BATCH
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad for p in online.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
    assert norm > 0.05, "the gradient must be large enough to be clipped"
    torch._foreach_mul_(gradients, 0.05 / norm.item())
    optimizer.step()

    metrics = learner.read_metrics()
    torch.testing.assert_close(metrics["train/loss"], loss.detach())
    torch.testing.assert_close(metrics["train/q"], q_BA.detach().mean())
    torch.testing.assert_close(metrics["train/grad_norm"], norm, rtol=1e-3, atol=0)
    for got, expected in zip(learner.network.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)


def test_double_q_learning_selects_with_the_online_network() -> None:
    """Only output biases: the online network prefers action 1, the target network action 2."""
    learner = make(batches(), dueling=False)
    for net, bias in ((learner.network, [0.0, 5.0, 1.0]), (learner.target, [2.0, 3.0, 9.0])):
        out = net.advantage[-1]
        assert isinstance(out, nn.Linear)
        with torch.no_grad():
            out.weight.zero_()
            out.bias.copy_(torch.tensor(bias))
    obs = torch.zeros(1, *OBS, dtype=torch.uint8)
    one = torch.ones(1)
    step = (obs, torch.tensor([0]), one, 0.5 * one, obs, one)
    # Q(s, 0) = 0; double: 1 + .5 * 3 = 2.5, Huber 2; single: 1 + .5 * 9 = 5.5, Huber 5.
    loss, mean_q, _ = learner.loss(*step)
    assert loss.item() == pytest.approx(2.0)
    assert mean_q.item() == pytest.approx(2.0)
    single = config(dueling=False, double=False)
    assert dqn_loss(single, Compute(), learner.network, learner.target, *step)[0].item() == pytest.approx(5.0)


def test_no_gradient_flows_through_the_bootstrap_value() -> None:
    """The gradient is that of a loss with a constant target, although the online network selected the action."""
    batch = batches(1)()
    learner = make(lambda: batch)
    loss, _, _ = learner.loss(*batch)
    loss.backward()
    got = [p.grad.clone() for p in learner.network.parameters() if p.grad is not None]
    learner.network.zero_grad()
    with torch.no_grad():
        next_q_BA = learner.network(batch.next_obs / 255)
        goal_B = batch.reward + batch.discount * next_q_BA.max(dim=1).values  # the networks are still the same
    q_B = learner.network(batch.obs / 255)[torch.arange(BATCH), batch.action]
    (batch.weight * nn.functional.smooth_l1_loss(q_B, goal_B, reduction="none")).mean().backward()
    expected = [p.grad for p in learner.network.parameters() if p.grad is not None]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def record_calls(learner: Learner, given: list[tuple[Tensor | None, ...]]) -> None:
    """Record the tensors with which the learner calls the loss."""
    forward = learner._forward

    def recorded(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        given.append(tensors)
        return forward(*tensors)

    learner._forward = recorded


def test_on_avx2_the_loss_gets_floats_and_the_same_weights_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled functions are simulated; compare `Compute.converter`."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    sides = []
    for capability, images in (("AVX2", torch.float32), ("AVX512", torch.uint8)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        learner = make(batches(), compute=Compute(channels_last=True, compile=True)).learner
        given: list[tuple[Tensor | None, ...]] = []
        record_calls(learner, given)
        for _ in range(2):
            dqn.gradient_step(learner, batches()())
        dtypes = [tuple(x.dtype for x in (tensors[0], tensors[4]) if x is not None) for tensors in given]
        assert dtypes == [(images, images)] * 2
        sides.append(weights(learner.network))
    assert same(*sides)


def test_metrics_are_means_since_the_last_read() -> None:
    learner = make(batches(5))
    losses, values = [], []
    forward = learner.loss

    def spy(*batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, mean_q, td_error_B = forward(*batch)
        losses.append(loss.item())
        values.append(mean_q.item())
        return loss, mean_q, td_error_B

    learner.learner._forward = spy  # type: ignore[assignment]
    for _ in range(3):
        learner.update()
    learner.read_metrics()
    for _ in range(4):
        learner.update()
    metrics = learner.read_metrics()
    assert metrics["train/loss"].item() == pytest.approx(np.mean(losses[3:]), rel=1e-5)
    assert metrics["train/q"].item() == pytest.approx(np.mean(values[3:]), rel=1e-5)
    assert metrics["train/grad_norm"].item() > 0
    kept = {name: value.item() for name, value in metrics.items()}
    learner.update()
    assert {name: value.item() for name, value in metrics.items()} == kept, "metrics that were read do not change later"
    assert all(value.isfinite() for value in make(batches()).read_metrics().values()), "finite before the first update"


def test_a_transition_of_weight_0_has_no_effect() -> None:
    """The last row of every batch has weight 0, so its content does not change the update."""
    batch = batches(2)()
    reward_B, obs = batch.reward.clone(), batch.obs.clone()
    reward_B[-1] = 1e6
    obs[-1] = 255 - obs[-1]
    learners = [make(lambda: batch), make(lambda: batch._replace(reward=reward_B, obs=obs))]
    for learner in learners:
        learner.update()
    for a, b in zip(learners[0].network.parameters(), learners[1].network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_same_seed_gives_bitwise_identical_weights(optimizer: str) -> None:
    learners = [make(batches(1), seed=seed, optimizer=optimizer) for seed in (4, 4, 5)]
    for learner in learners:
        for i in range(8):
            learner.update()
            if i == 3:
                learner.update_target_network()
    assert same(weights(learners[0].network), weights(learners[1].network))
    assert not same(weights(learners[0].network), weights(learners[2].network))
    metrics = [learner.read_metrics() for learner in learners[:2]]
    assert {k: v.item() for k, v in metrics[0].items()} == {k: v.item() for k, v in metrics[1].items()}


def test_first_adam_step_equals_the_learning_rate() -> None:
    moved = []
    for rate in (1e-3, 1e-4):
        learner = make(batches(1), learning_rate=1e-2, optimizer_epsilon=1e-12)
        before = weights(learner.network)
        learner.set_learning_rate(rate)
        learner.update()
        moved.append(max(float((a - b).abs().max()) for a, b in zip(weights(learner.network), before, strict=True)))
    assert moved == pytest.approx([1e-3, 1e-4], rel=1e-2)  # independent of the gradient


@pytest.mark.parametrize("compute", [Compute(), Compute(precision="bfloat16", channels_last=True)])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_restored_learner_continues_bitwise_identically(optimizer: str, compute: Compute, tmp_path: Path) -> None:
    sample = batches(1)
    first = make(sample, optimizer=optimizer, compute=compute)
    for _ in range(4):
        first.update()
    first.update_target_network()
    first.update()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    sampled = [sample() for _ in range(5)]

    def continue_training(learner: SampledLearner) -> tuple[list[Tensor], dict[str, float]]:
        stream = iter(sampled)
        learner.sample = lambda: next(stream)
        for i in range(5):
            learner.update()
            if i == 2:
                learner.update_target_network()
        metrics = {name: value.item() for name, value in learner.read_metrics().items()}
        return weights(learner.network) + weights(learner.target), metrics

    expected, expected_metrics = continue_training(first)
    second = make(sample, seed=77, optimizer=optimizer, compute=compute)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    got, metrics = continue_training(second)
    assert same(got, expected)
    assert metrics == expected_metrics, "the metric sums are part of the state"


def test_non_finite_weights_are_detected() -> None:
    learner = make(batches())
    learner.update()
    assert has_finite_weights(learner.network)
    for poison in (float("nan"), float("inf")):
        poisoned = make(batches())
        with torch.no_grad():
            list(poisoned.network.parameters())[2].view(-1)[3] = poison
        assert not has_finite_weights(poisoned.network)
    exploded = make(lambda: batches()()._replace(reward=torch.full((BATCH,), float("nan"))))
    exploded.update()
    assert not has_finite_weights(exploded.network)


def test_max_grad_norm_none_disables_clipping() -> None:
    huge, tiny = (make(batches(), max_grad_norm=limit, optimizer="rmsprop") for limit in (None, 1e-6))
    free = make(batches(), max_grad_norm=1e9, optimizer="rmsprop")
    for learner in (huge, tiny, free):
        learner.update()
    assert same(weights(huge.network), weights(free.network))
    assert not same(weights(huge.network), weights(tiny.network))


def test_bfloat16_loss_is_close_to_float32() -> None:
    losses = []
    for compute in (Compute(), Compute(precision="bfloat16", channels_last=True)):
        batch = batches(4)()
        loss, mean_q, _ = make(lambda batch=batch: batch, compute=compute).loss(*batch)  # type: ignore[misc]
        losses.append([loss.item(), mean_q.item()])
    assert losses[1] == pytest.approx(losses[0], rel=0.03, abs=0.01)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("changes", [{}, {"noisy": True}, {"weight_decay": 0.1, "target_tau": 0.5}])
def test_16_bit_working_copy_resumes_from_a_checkpoint_and_follows_a_reset(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Settings of compiled runs on a CPU, without the compilation, which does not matter here."""
    monkeypatch.setattr(Compute, "function", lambda compute, function: function)
    compute = Compute(precision="bfloat16", compile=True)
    learner, other = (make(batches(6), compute=compute, **changes) for _ in range(2))
    assert {p.dtype for p in learner.online.parameters()} == {torch.bfloat16}
    for _ in range(3):
        learner.update()
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.sample = batches(7)
        for _ in range(2):
            each.update()
    assert same(weights(learner.network), weights(other.network))
    assert same(weights(learner.online), weights(other.online))
    assert {p.dtype for p in learner.network.parameters()} == {torch.float32}
    learner.reset(1, learner.config.reset_perturb_factor)
    for kept, used in zip(learner.network.parameters(), learner.online.parameters(), strict=True):
        assert torch.equal(kept.to(used.dtype), used)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_update_equals_the_eager_update() -> None:
    learners = [make(batches(6), compute=Compute(compile=compile)) for compile in (False, True)]
    for learner in learners:
        for _ in range(3):
            learner.update()
    for a, b in zip(learners[0].network.parameters(), learners[1].network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_captured_update_equals_the_eager_update(optimizer: str) -> None:
    compute = Compute(device="cuda")
    batch = Batch(*(tensor.to("cuda") for tensor in batches(6)()))
    graph = make(lambda: batch, compute=compute, optimizer=optimizer)
    eager = make(lambda: batch, compute=compute, optimizer=optimizer)
    for _ in range(5):
        graph.update()
        eager.eager_update()
    for a, b in zip(graph.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    got, expected = graph.read_metrics(), eager.read_metrics()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4)
