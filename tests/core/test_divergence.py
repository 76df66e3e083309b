"""Means of training metrics by hand, and detection of divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.divergence import divergence_error, has_finite_weights, pop_means


def test_means_cover_the_updates_since_the_last_read() -> None:
    sums = torch.tensor([6.0, -3.0, 4.0])  # sums of two metrics, and four updates
    means = pop_means(sums, ("train/loss", "train/q"))
    assert list(means) == ["train/loss", "train/q"]
    assert [float(mean) for mean in means.values()] == [1.5, -0.75]
    assert sums.tolist() == [0, 0, 0], "reset in place, because a captured CUDA graph adds to this tensor"
    sums += torch.tensor([1.0, 1.0, 1.0])
    assert means["train/loss"].item() == 1.5, "the means are not views of the sums"
    sums.zero_()
    assert [value.item() for value in pop_means(sums, ("a", "b")).values()] == [0, 0], "no NaN before the first update"


def test_number_of_names_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        pop_means(torch.zeros(4), ("train/loss", "train/q"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_non_finite_weight_is_detected(value: float) -> None:
    one, other = nn.Linear(2, 3), nn.Linear(3, 1)
    assert has_finite_weights(one, other)
    bias: Tensor = other.bias.data
    bias[0] = value
    assert has_finite_weights(one)
    assert not has_finite_weights(one, other)


def test_error_message() -> None:
    message = str(divergence_error("update 1,234", Path("runs/a")))
    assert message.startswith("Training diverged at update 1,234: the weights contain NaN or Inf")
    assert "the last good checkpoint is in runs/a; start a new run with a lower --learning-rate." in message
