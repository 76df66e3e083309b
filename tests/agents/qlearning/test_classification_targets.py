"""Two-hot and HL-Gauss targets of the categorical head (Farebrother et al. 2024), against numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from tests.agents.qlearning.test_family import bandit, learner
from tests.agents.qlearning.test_targets_and_losses import TableNetwork, loss_of
from zerokara.agents.configs.dqn import read_config
from zerokara.agents.qlearning.heads import CategoricalHead
from zerokara.agents.qlearning.losses import C51_TARGETS, hl_gauss, two_hot
from zerokara.agents.qlearning.policy import Policy
from zerokara.core.config import UserError

SUPPORT_X = tensor([-1.0, 0.0, 1.0])


def test_two_hot_by_hand() -> None:
    value_B = tensor([0.25, -1.0, -0.4, 1.0, 7.0, -7.0])
    expected_BX = tensor([[0, 0.75, 0.25], [1, 0, 0], [0.4, 0.6, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]])
    torch.testing.assert_close(two_hot(value_B, SUPPORT_X), expected_BX)


def test_hl_gauss_by_hand() -> None:
    """With sigma half a bin, the edges of the bins are at -3, -1, 1 and 3 deviations around 0, or -4, -2, 0, 2."""
    probability_BX = hl_gauss(tensor([0.0, 0.5]), SUPPORT_X, 0.5)
    # The distribution function is .0013499, .1586553, .8413447, .9986501 at -3, -1, 1, 3.
    total = 0.9986501 - 0.0013499
    sides, middle = (0.1586553 - 0.0013499) / total, (0.8413447 - 0.1586553) / total
    # It is .0000317, .0227501, .5, .9772499 at -4, -2, 0, 2.
    total = 0.9772499 - 0.0000317
    expected_BX = tensor(
        [[sides, middle, sides], [(0.0227501 - 0.0000317) / total, (0.5 - 0.0227501) / total, 0.4772499 / total]]
    )
    torch.testing.assert_close(probability_BX, expected_BX, rtol=1e-5, atol=1e-6)


def test_hl_gauss_equals_the_published_listing_inside_of_the_range() -> None:
    """Appendix A of the paper, with bins from the first edge to the last, in float64."""
    support_X = torch.linspace(-10, 10, 51)
    width, sigma = 20 / 50, 0.75 * 20 / 50
    edges = np.linspace(-10 - width / 2, 10 + width / 2, 52)
    value_B = torch.linspace(-9.9, 9.9, 23)
    for value, ours_X in zip(value_B.tolist(), hl_gauss(value_B, support_X, 0.75), strict=True):
        cdf = np.array([math.erf((edge - value) / (math.sqrt(2) * sigma)) for edge in edges])
        expected_X = np.diff(cdf) / (cdf[-1] - cdf[0])
        np.testing.assert_allclose(ours_X.numpy(), expected_X, rtol=1e-3, atol=1e-6)
    inner_B = torch.linspace(-8, 8, 9)
    torch.testing.assert_close((hl_gauss(inner_B, support_X, 0.75) * support_X).sum(1), inner_B, rtol=0, atol=1e-4)


def test_values_outside_of_the_range_are_clipped_and_finite() -> None:
    far_BX, end_BX = (hl_gauss(tensor(values), SUPPORT_X, 0.75) for values in ([100.0, -100.0], [1.0, -1.0]))
    assert torch.equal(far_BX, end_BX)
    torch.testing.assert_close(far_BX.sum(1), torch.ones(2))


def loss_with(name: str, **settings: Any) -> Tensor:
    """Loss of uniform predictions of three atoms; the next distribution has .5 at -1, .5 at 1, mean 0."""
    far = -1e9
    network = TableNetwork(torch.zeros(1, 3, 1), tensor([[[0.0], [far], [0.0]]]), CategoricalHead(3, -1.0, 1.0))
    return loss_of(
        network, network, action=[0], reward_B=tensor([0.25]), discount_B=torch.ones(1), head="c51",
        target_distribution=name, per_priority="cross_entropy", **settings,
    )[2]  # fmt: skip


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return a dict that gets the last target distribution by name."""
    seen: dict[str, Tensor] = {}
    for name, function in C51_TARGETS.items():

        def record(*arguments: Any, name: str = name, function: Any = function) -> Tensor:
            seen[name] = function(*arguments)
            return seen[name]

        monkeypatch.setitem(C51_TARGETS, name, record)
    return seen


def test_targets_are_distributions_around_the_mean_of_the_next_distribution(targets: dict[str, Tensor]) -> None:
    for name in C51_TARGETS:
        # Of a uniform prediction, the cross-entropy of any target is log 3.
        assert loss_with(name, hl_gauss_sigma=0.5).item() == pytest.approx(math.log(3))
    # The shifted atoms are -.75 and 1.25, which is clipped to 1.
    torch.testing.assert_close(targets["c51"], tensor([[0.375, 0.125, 0.5]]))
    torch.testing.assert_close(targets["two_hot"], tensor([[0.0, 0.75, 0.25]]))
    torch.testing.assert_close(targets["hl_gauss"], hl_gauss(tensor([0.25]), SUPPORT_X, 0.5))


def test_the_mean_with_munchausen_is_the_soft_value(targets: dict[str, Tensor]) -> None:
    """Two actions of values 1 and 1 + .5 log 3 at temperature .5: probabilities 1/4 and 3/4, as for the scalar head."""
    q = [1.0, 1 + 0.5 * math.log(3)]
    head = CategoricalHead(41, -2.0, 2.0)
    logits = torch.stack([two_hot(tensor([value]), head.atom_X)[0].clamp(min=1e-20).log() for value in q], dim=1)[None]
    network = TableNetwork(logits, logits, head)
    loss_of(
        network, network, action=[0], reward_B=tensor([0.2]), discount_B=tensor([0.9]), head="c51",
        target_distribution="two_hot", munchausen=True, munchausen_alpha=0.9, munchausen_tau=0.5,
        munchausen_clip=-10.0,
    )  # fmt: skip
    soft_value = 0.5 * math.log(math.exp(2) + 3 * math.exp(2))
    expected = 0.2 + 0.9 * 0.5 * math.log(0.25) + 0.9 * soft_value
    assert float((targets["two_hot"] * head.atom_X).sum()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["two_hot", "hl_gauss"])
def test_a_bandit_is_learned(name: str) -> None:
    learned = learner(
        bandit(), head="c51", target_distribution=name, learning_rate=1e-2, width_multiplier=0.5, hidden_units=32
    )
    for i in range(250):
        learned.update()
        if i % 25 == 0:
            learned.update_target_network()
    q_NA = Policy(learned.network, learned.compute).values(
        np.stack([np.full((1, 20, 20), v, np.uint8) for v in (0, 200)])
    )
    assert q_NA.argmax(dim=1).tolist() == [2, 1]
    assert q_NA.max(dim=1).values.tolist() == pytest.approx([4 / 3, 4 / 3], abs=0.35)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--target-distribution hl_gauss", "--target-distribution has no effect without --head c51"),
        ("--head c51 --hl-gauss-sigma 0.5", "--hl-gauss-sigma has no effect without .*--target-distribution hl_gauss"),
        ("--head c51 --target-distribution hl_gauss --hl-gauss-sigma 0", "--hl-gauss-sigma cannot be 0.0"),
    ],
)
def test_settings_without_effect_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_config(words.split())


def test_sigma_can_be_chosen() -> None:
    config = read_config(["--head", "c51", "--target-distribution", "hl_gauss", "--hl-gauss-sigma", "1.5"])
    assert (config.target_distribution, config.hl_gauss_sigma) == ("hl_gauss", 1.5)
