"""Tests of the supervised training step, with a linear regression whose gradients are computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.recorded import Unconnected
from zerokara.core.compute import Compute
from zerokara.core.data_parallel import DataParallel
from zerokara.core.distributed import World
from zerokara.core.ema import Ema
from zerokara.vision.classification.config import Config
from zerokara.vision.training.supervised import SupervisedTraining

X_N = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, -2.0, 0.25, 1.5])
Y_N = torch.tensor([2.0, 1.0, 0.0, -1.0, 4.0, 2.0, 1.0, 0.5])


@dataclass(frozen=True)
class Data:
    train: Sequence[int] = range(8)


class Regression(SupervisedTraining[nn.Sequential]):
    """Least squares. Its accuracy is the fraction of the images with a positive target."""

    def __init__(self, **changes: Any) -> None:
        options: dict[str, Any] = {
            "batch_size": 4,
            "optimizer": "sgd",
            "momentum": 0.5,
            "weight_decay": 0.25,
            "learning_rate": 0.1,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "ema_half_life_updates": 0,
            "max_grad_norm": None,
        }
        config = Config(**(options | changes))
        build = lambda: nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))  # noqa: E731
        super().__init__(config, Data(), Compute(), World(), build)

    def losses(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        error = self.parallel.forward(mean_squared_error, self.network, index_b)
        return error, (Y_N[index_b] > 0).float().mean()

    def format_metric(self, metric: float) -> str:
        return f"{metric}"


def mean_squared_error(network: nn.Module, index_B: Tensor) -> Tensor:
    error_B = network(X_N[index_B][:, None])[:, 0] - Y_N[index_B]
    mean: Tensor = error_B.square().mean()
    return mean


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


BATCHES = [torch.tensor(index) for index in ([0, 1, 2, 3], [4, 5, 6, 7], [7, 0, 3, 4])]


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_updates_equal_those_of_pytorch(accumulation_steps: int) -> None:
    """Momentum, weight decay of matrices, and a new gradient in each update; three parts of four images are two."""
    training = Regression(accumulation_steps=accumulation_steps)
    twin = copy.deepcopy(training.network)
    matrices = [p for p in twin.parameters() if p.ndim == 2]
    vectors = [p for p in twin.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.25}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5, nesterov=True)
    losses, norms = [], []
    for number, index_B in enumerate(BATCHES):
        training.update(index_B)
        optimizer.zero_grad()
        loss = mean_squared_error(twin, index_B)
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]).norm()))
        optimizer.step()
        assert training.updates == number + 1
        for ours, theirs in zip(weights(training.network), weights(twin), strict=True):
            torch.testing.assert_close(ours, theirs)
    metrics = {name: float(value) for name, value in training.read_metrics().items()}
    assert metrics["train/loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert metrics["train/grad_norm"] == pytest.approx(sum(norms) / 3, rel=1e-5)
    assert metrics["train/accuracy"] == pytest.approx((2 + 4 + 3) / 12)


def test_parts_of_different_sizes_are_weighted() -> None:
    one, parts = Regression(), Regression(accumulation_steps=2)
    index_B = torch.tensor([0, 1, 2])  # parts of two and one images
    for training in (one, parts):
        training.update(index_B)
    for ours, theirs in zip(weights(parts.network), weights(one.network), strict=True):
        torch.testing.assert_close(ours, theirs)
    expected = one.read_metrics()
    for name, value in parts.read_metrics().items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizer_of_the_config_is_used(optimizer: str) -> None:
    training = Regression(optimizer=optimizer)
    assert type(training.optimizer).__name__.lower() == optimizer
    assert {group["weight_decay"] for group in training.optimizer.param_groups} == {0.25, 0.0}
    training.update(BATCHES[0])


class WithOutputs(Regression):
    def output_weights(self) -> Sequence[Tensor]:
        return [self.network.get_parameter("0.weight")]


def test_muon_leaves_the_output_layers_to_adamw() -> None:
    for training, output in ((Regression(optimizer="muon"), 1), (WithOutputs(optimizer="muon"), 0)):
        (muon,) = [group["params"] for group in training.optimizer.param_groups if group.get("muon")]
        assert [p is training.network[1 - output].weight for p in muon] == [True]


def test_gradients_are_clipped_only_if_configured() -> None:
    plain = {"momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}
    for limit, clipped in ((0.01, True), (1e6, False), (None, False)):
        training = Regression(**plain, max_grad_norm=limit)
        before = weights(training.network)
        training.update(BATCHES[0])
        moved = torch.cat([(a - b).flatten() for a, b in zip(weights(training.network), before, strict=True)]).norm()
        norm = float(training.read_metrics()["train/grad_norm"])
        assert norm > 0.1, "the norm before clipping"
        assert float(moved) == pytest.approx(0.01 if clipped else norm, rel=1e-3)


def test_weights_are_averaged_after_each_update() -> None:
    training = Regression(ema_half_life_updates=4)
    expected = Ema(training.network, half_life_steps=4)
    for index_B in BATCHES:
        training.update(index_B)
        expected.update(training.network)
    assert training.ema is not None
    for ours, theirs in zip(weights(training.ema.module), weights(expected.module), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert Regression().ema is None


def test_the_learning_rate_follows_the_schedule() -> None:
    """Two updates per epoch: a warmup of three updates, then constant or a cosine over the other five."""
    for schedule, last in (("constant", [0.1, 0.1]), ("cosine", [0.0095492, 0.0])):
        training = Regression(schedule=schedule, warmup_epochs=1.5, epochs=4)
        rates = []
        for training.updates in range(8):
            rates.append(training.learning_rate)
        assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
        assert rates[-2:] == pytest.approx(last, abs=1e-6)
    training = Regression(warmup_epochs=1.5)
    training.update(BATCHES[0])
    assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx([0.1 / 3] * 2)


def test_a_process_trains_on_its_shard_with_the_averaged_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = DataParallel.backward

    def averaging_backward(parallel: DataParallel, loss: Tensor) -> None:
        backward(parallel, loss)
        for parameter in parallel.network.parameters():
            assert parameter.grad is not None
            parameter.grad *= 2

    monkeypatch.setattr(DataParallel, "_connect", lambda _: Unconnected())
    monkeypatch.setattr(DataParallel, "backward", averaging_backward)
    training, twin = Regression(momentum=0.0), Regression(momentum=0.0)
    training.world = World(rank=1, size=4)
    before = weights(training.network)
    training.update(torch.arange(8))
    loss = mean_squared_error(twin.network, torch.tensor([1, 5]))
    gradients = torch.autograd.grad(loss, list(twin.network.parameters()))
    for after, old, gradient in zip(weights(training.network), before, gradients, strict=True):
        decay = 0.25 * old * (old.ndim == 2)
        torch.testing.assert_close(after, old - 0.1 * (2 * gradient + decay))


def test_tensors_of_an_update_are_on_the_device_of_the_run() -> None:
    """A tensor created without a device would be on the default device, here one without data."""
    training = Regression(ema_half_life_updates=4, accumulation_steps=2, max_grad_norm=1.0)
    with torch.device("meta"):
        training.update(BATCHES[0])
    assert float(training.read_metrics()["train/loss"]) > 0
