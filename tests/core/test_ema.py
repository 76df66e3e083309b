"""Exponential moving average of weights: values by hand, warm-up of the half-life, BatchNorm statistics, state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.ema import Ema


class Scalar(nn.Module):
    """Module with one parameter and an integer buffer."""

    count: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))
        self.register_buffer("count", torch.tensor(0))


def test_updates_by_hand() -> None:
    module = Scalar(100.0)
    ema = Ema(module, half_life_steps=1)
    ema.steps = 1000  # the warm-up of the half-life is over
    module.value.data.fill_(0.0)
    module.count.fill_(7)
    ema.update(module)
    assert ema.module.value.item() == pytest.approx(50.0)
    module.value.data.fill_(10.0)
    ema.update(module)
    assert ema.module.value.item() == pytest.approx(30.0)
    assert ema.module.count.item() == 7, "integer buffers are copied"
    assert module.value.item() == 10.0


def test_half_life() -> None:
    module = Scalar(1.0)
    ema = Ema(module, half_life_steps=40)
    ema.steps = 100_000
    module.value.data.fill_(0.0)
    for _ in range(40):
        ema.update(module)
    assert ema.module.value.item() == pytest.approx(0.5, rel=1e-4)


def test_initial_weights_have_little_influence() -> None:
    module = Scalar(1000.0)
    ema = Ema(module, half_life_steps=1e6)
    for step in range(1, 201):
        module.value.data.fill_(float(step))
        ema.update(module)
        if step == 1:
            assert ema.module.value.item() == pytest.approx(1.0, abs=2e-3)
    # The half-life is now 10 steps, so the mean age is at most 10 / ln 2 = 14 steps.
    assert 180 < ema.module.value.item() < 190


def test_average_is_a_separate_module_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    ema = Ema(module, half_life_steps=5)
    assert module.training
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert next(ema.module.parameters()).data_ptr() != next(module.parameters()).data_ptr()
    with pytest.raises(ValueError, match="half-life"):
        Ema(module, half_life_steps=0)


def test_batch_norm_statistics_are_averaged() -> None:
    module = nn.BatchNorm1d(2)
    ema = Ema(module, half_life_steps=1)
    ema.steps = 1000
    module.running_mean.fill_(4.0)  # type: ignore[union-attr]
    module.running_var.fill_(3.0)  # type: ignore[union-attr]
    ema.update(module)
    torch.testing.assert_close(ema.module.running_mean, torch.full((2,), 2.0))
    torch.testing.assert_close(ema.module.running_var, torch.full((2,), 2.0))


def test_recalibration_uses_the_statistics_of_all_batches() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    ema = Ema(module, half_life_steps=5)
    batches = [torch.randn(4, 2, 5, 5) + 3, torch.randn(7, 2, 5, 5) * 4, torch.randn(1, 2, 5, 5) - 9]
    ema.recalibrate(batches)
    norm = ema.module[1]
    values = torch.cat([ema.module[0](x).transpose(0, 1).flatten(1) for x in batches], 1)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, values.mean(1))
    torch.testing.assert_close(norm.running_var, values.var(1))
    assert not any(layer.training for layer in ema.module.modules())
    before = norm.running_mean.clone()
    ema.module(batches[0])
    assert torch.equal(norm.running_mean, before), "statistics are updated only by recalibrate"
    x = torch.randn(2, 2, 5, 5)
    # In evaluation mode, an output does not depend on the other images of the batch.
    torch.testing.assert_close(ema.module(x)[:1], ema.module(x[:1]))


def test_recalibration_of_several_layers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5))
    ema = Ema(module, half_life_steps=5)
    x = torch.randn(400, 4) * 5 + 2
    ema.recalibrate([x])
    out = ema.module(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=5e-3, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(5), atol=5e-3, rtol=0)


def test_restart_and_round_trip() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def step(emas: list[Ema[nn.Sequential]]) -> None:
        for p in module.parameters():
            p.data += torch.randn_like(p)
        for ema in emas:
            ema.update(module)

    ema = Ema(module, half_life_steps=30)
    for _ in range(10):
        step([ema])
    other = Ema(copy.deepcopy(module), half_life_steps=30)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    for _ in range(10):
        step([ema, other])
    for key, tensor in ema.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[key]), key
    ema.restart(module)
    assert ema.steps == 0
    assert all(torch.equal(p, q) for p, q in zip(ema.module.parameters(), module.parameters(), strict=True))
