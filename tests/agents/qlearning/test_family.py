"""Tests of the DQN extensions with a small network: heads, noise, Munchausen, spectral norm, resets, presets."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.agents.qlearning.sampled import SampledLearner
from zerokara.agents.configs.dqn import PRESETS, Config, refuse_contradictions
from zerokara.agents.configs.presets import DEVIATIONS, PAPER_PRESETS
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.heads import CategoricalHead, ImplicitQuantileHead, QuantileHead
from zerokara.agents.qlearning.network import make_network
from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.agents.qlearning.replay import Batch
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.divergence import has_finite_weights

OBS = (1, 20, 20)
ACTIONS = 3
SMALL: dict[str, Any] = {
    "backbone": "nips",
    "width_multiplier": 0.25,
    "hidden_units": 16,
    "batch_size": 16,
    "num_quantiles": 5,
    "num_tau_samples": 5,
    "num_target_tau_samples": 4,
    "num_policy_tau_samples": 6,
    "cosine_embedding_dim": 8,
    "num_atoms": 11,
    "v_max": 2.0,
    "learning_rate": 3e-3,
    "image_size": 20,
}
RESIDUAL: dict[str, Any] = {"backbone": "impala", "spectral_norm": True, "pool_size": 2}
HEADS = ("q", "c51", "qr", "iqn")


def config(**changes: Any) -> Config:
    return Config(**(SMALL | changes))


def bandit(seed: int = 0) -> Callable[[], Batch]:
    """Bandit with two images and three actions: action 1 is best for bright images, action 2 for dark images."""
    generator = torch.Generator().manual_seed(seed)

    def sample() -> Batch:
        bright_B = torch.randint(2, (16,), generator=generator)
        obs = (bright_B * 200).to(torch.uint8)[:, None, None, None].expand(-1, *OBS).contiguous()
        action_B = torch.randint(ACTIONS, (16,), generator=generator)
        reward_B = (action_B == torch.where(bright_B > 0, 1, 2)).float()
        # Half of the transitions lead to a dark image, with a discount of .5.
        discount_B = 0.5 * torch.randint(2, (16,), generator=generator)
        return Batch(obs, action_B, reward_B, discount_B, torch.zeros_like(obs), torch.ones(16))

    return sample


def learner(sample: Callable[[], Batch] | None = None, *, seed: int = 0, **changes: Any) -> SampledLearner:
    torch.manual_seed(seed)
    return SampledLearner(config(**changes), OBS, ACTIONS, Compute(), sample or bandit())


def states(learned: SampledLearner) -> list[Tensor]:
    return [t.clone() for module in (learned.network, learned.target) for t in module.state_dict().values()]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# Heads


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_shapes_and_values_of_every_head(head: str, dueling: bool) -> None:
    net = make_network(config(head=head, dueling=dueling), OBS, ACTIONS)
    x = torch.rand(7, *OBS)
    features = net.features(x)
    z_BXA = net.outputs(features)
    numbers = {"q": 1, "c51": 11, "qr": 5, "iqn": 6}[head]
    assert z_BXA.shape == (7, numbers, ACTIONS)
    q_BA = net(x)
    assert q_BA.shape == (7, ACTIONS)
    if head == "c51":
        assert isinstance(net.head, CategoricalHead)
        atoms = torch.linspace(-2, 2, 11)
        expected = torch.stack([(z_BXA[:, :, a].softmax(dim=1) * atoms).sum(dim=1) for a in range(ACTIONS)], dim=1)
    else:
        expected = z_BXA.mean(dim=1)
    torch.testing.assert_close(q_BA, expected)
    if dueling:  # for each of the X outputs, the mean advantage is subtracted
        advantage = net.advantage(net.head.embed(features, None)).view(7, -1, ACTIONS)
        torch.testing.assert_close(z_BXA - z_BXA.mean(dim=2, keepdim=True), advantage - advantage.mean(2, keepdim=True))


def test_quantiles_of_a_single_action_are_averaged() -> None:
    z_BXA = torch.tensor([[[1.0], [2.0], [6.0]], [[0.0], [3.0], [0.0]]])
    torch.testing.assert_close(QuantileHead(3).values(z_BXA), torch.tensor([[3.0], [1.0]]))


def test_fixed_quantile_fractions_are_midpoints() -> None:
    torch.testing.assert_close(QuantileHead(4).tau_1X, torch.tensor([[0.125, 0.375, 0.625, 0.875]]))


def test_cosine_embedding_by_hand() -> None:
    """Dabney et al. 2018, equation 4: relu(sum over i of cos(pi i tau) w_ij + b_j), i from 0, times the features."""
    head = ImplicitQuantileHead(2, 3, 3, 4, cosine_embedding_dim=3)
    tau_BT, features_BF = torch.tensor([[0.25, 1.0]]), torch.tensor([[2.0, -3.0]])
    rows = head.embed(features_BF, tau_BT)
    for row, tau in zip(rows, (0.25, 1.0), strict=True):
        cosines = torch.tensor([1.0, np.cos(np.pi * tau), np.cos(2 * np.pi * tau)], dtype=torch.float32)
        expected = torch.relu(head.embedding.weight @ cosines + head.embedding.bias) * features_BF[0]
        torch.testing.assert_close(row, expected)
    online, target = head.sample_taus(5, torch.Generator().manual_seed(0))
    assert online is not None
    assert target is not None
    assert online.shape == (5, 3)
    assert online.min() >= 0
    assert online.max() < 1
    assert not torch.equal(online, target)


@pytest.mark.parametrize("munchausen", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_a_bandit(head: str, munchausen: bool) -> None:
    learned = learner(head=head, munchausen=munchausen, learning_rate=1e-2, width_multiplier=0.5, hidden_units=32)
    for i in range(250):
        learned.update()
        if i % 25 == 0:
            learned.update_target_network()
    assert has_finite_weights(learned.network)
    player = Policy(learned.network, learned.compute)
    pictures = np.stack([np.zeros(OBS, np.uint8), np.full(OBS, 200, np.uint8)])
    q_NA = player.values(pictures)
    assert q_NA.argmax(dim=1).tolist() == [2, 1]
    if not munchausen:
        # Value of the best action: v = 1 + .25 v on average, so v = 4/3, the same for both images.
        assert q_NA.max(dim=1).values.tolist() == pytest.approx([4 / 3, 4 / 3], abs=0.35)
        assert q_NA.min(dim=1).values.tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.35)


@pytest.mark.parametrize(
    ("head", "dueling", "noisy", "double", "munchausen", "residual"),
    [c for c in itertools.product(("c51", "iqn"), *[(True, False)] * 5) if not (c[3] and c[4]) and c[1] != c[5]]
    + [("q", True, True, True, False, True), ("qr", False, True, False, True, True)],
)
def test_extensions_can_be_combined(
    head: str, dueling: bool, noisy: bool, double: bool, munchausen: bool, residual: bool
) -> None:
    """Run two updates, and the second one again from the state in between, with bitwise identical results."""
    options = {"head": head, "dueling": dueling, "noisy": noisy, "double": double, "munchausen": munchausen}
    options |= RESIDUAL if residual else {}
    refuse_contradictions(config(**options))
    source = bandit()
    sampled = [source() for _ in range(2)]
    first, second = (learner(iter(sampled).__next__, seed=seed, **options) for seed in (1, 2))
    first.update()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.sample = iter(sampled[1:]).__next__
    first.update()
    second.update()
    assert equal(states(first), states(second))
    assert has_finite_weights(first.network)


# Noise


def test_noise_is_resampled_for_every_action_and_update_and_disabled_in_evaluation() -> None:
    learned = learner(noisy=True)
    player = Policy(learned.network, learned.compute, seed=3)
    obs = np.random.default_rng(0).integers(0, 256, (4, *OBS), np.uint8)
    still = player.values(obs).clone()
    noisy = [player.values(obs, noisy=True).clone() for _ in range(3)]
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[1], noisy[2])
    assert torch.equal(player.values(obs), still), "no noise in evaluation, also after noisy actions"
    again = Policy(learned.network, learned.compute, seed=3)
    assert torch.equal(again.values(obs, noisy=True), noisy[0]), "the noise is seeded"

    def noise() -> list[Tensor]:
        buffers = [*learned.network.named_buffers(), *learned.target.named_buffers()]
        return [b.clone() for name, b in buffers if "noise" in name]

    seen = []
    for _ in range(2):
        player.values(obs)  # acting leaves the network in eval mode; the update must set train mode
        learned.update()
        seen.append(noise())
    assert all(not torch.equal(a, b) for a, b in zip(*seen, strict=True)), "resampled for every update"
    half = len(seen[0]) // 2
    assert all(not torch.equal(a, b) for a, b in zip(seen[0][:half], seen[0][half:], strict=True)), (
        "different in each network"
    )
    sigma = learned.network.advantage[0].weight_sigma
    assert isinstance(sigma, Tensor)
    assert sigma.std() > 0, "sigma was trained, so noise was enabled in the update"


def test_acting_samples_noise_only_from_the_generator_of_the_policy() -> None:
    learned = learner(noisy=True)
    player = Policy(learned.network, learned.compute, seed=3)
    obs, exploration = np.zeros((4, *OBS), np.uint8), Exploration(4, learned.network.num_actions, 1)
    others = (torch.get_rng_state(), learned.generator.get_state())
    before = player.noise.get_state()
    player.act(obs, 0.1, exploration)
    assert torch.equal(player.noise.get_state(), before), "no noise is sampled in evaluation"
    player.act(obs, 0.1, exploration, noisy=True)
    assert not torch.equal(player.noise.get_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(others, (torch.get_rng_state(), learned.generator.get_state()), strict=True)
    )


# Munchausen, spectral norm, gradient scale of the backbone


def test_munchausen_log_probability_is_that_of_the_target_network() -> None:
    """Only output biases. At temperature 1 the policy of the target network is (1/2, 1/4, 1/4)."""
    learned = learner(munchausen=True, munchausen_tau=1.0, munchausen_clip=-10.0, dueling=False)
    for net, bias in ((learned.network, [5.0, 0.0, 0.0]), (learned.target, [np.log(2), 0.0, 0.0])):
        out = net.advantage[-1]
        assert isinstance(out, nn.Linear)
        with torch.no_grad():
            out.weight.zero_()
            out.bias.copy_(torch.tensor(bias))
    obs, one = torch.zeros(1, *OBS, dtype=torch.uint8), torch.ones(1)
    loss, _, td_error_B = learned.loss(obs, torch.tensor([1]), one, 0.5 * one, obs, one)
    # 1 + .9 log(1/4) + .5 log(2 + 1 + 1), and Q(s, 1) = 0.
    expected = 1 + 0.9 * np.log(0.25) + 0.5 * np.log(4)
    assert td_error_B.item() == pytest.approx(abs(expected), rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * expected**2, rel=1e-4)


def test_spectral_norm_of_residual_weights_is_1() -> None:
    learned = learner(**RESIDUAL)
    for _ in range(30):
        learned.update()
    for _ in range(20):  # each pass in training is one power iteration
        learned.network(torch.zeros(1, *OBS))
    learned.network.eval()
    normalized = [module for module in learned.network.modules() if "parametrizations" in dict(module.named_children())]
    assert len(normalized) == 12, "two convolutions in two blocks of three sections"
    for module in normalized:
        weight = module.weight
        assert isinstance(weight, Tensor)
        assert torch.linalg.svdvals(weight.detach().flatten(1))[0].item() == pytest.approx(1, abs=0.1)
    assert learned.network.backbone.out_size == (2, 2)


def test_backbone_gradient_is_scaled() -> None:
    gradients = []
    for factor in (1.0, 0.5):
        torch.manual_seed(0)
        net = make_network(config(backbone_gradient_scale=factor, dueling=True), OBS, ACTIONS)
        torch.manual_seed(1)
        q_BA = net(torch.rand(4, *OBS))
        q_BA.square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    num_backbone = len(list(make_network(config(), OBS, ACTIONS).backbone.parameters()))
    for i, (full, half) in enumerate(zip(*gradients, strict=True)):
        torch.testing.assert_close(half, full * (0.5 if i < num_backbone else 1.0))


# Resets


def test_a_reset_reinitializes_the_head_and_perturbs_the_backbone() -> None:
    learned = learner(head="iqn", reset_perturb_factor=0.25)
    for _ in range(5):
        learned.update()
    old = {name: p.detach().clone() for name, p in learned.network.named_parameters()}
    before = torch.get_rng_state()
    learned.reset(7, learned.config.reset_perturb_factor)
    assert torch.equal(torch.get_rng_state(), before), "the global random state does not change"
    torch.manual_seed(7)
    fresh = dict(make_network(learned.config, OBS, ACTIONS).named_parameters())
    for name, now in learned.network.named_parameters():
        if name.startswith("backbone."):
            torch.testing.assert_close(now, 0.75 * old[name] + 0.25 * fresh[name])
        else:
            assert torch.equal(now, fresh[name]), name
    assert equal(list(learned.network.parameters()), list(learned.target.parameters()))
    moments = [t for tensors in learned.optimizer.state_dict()["state"].values() for t in tensors.values()]
    assert moments
    assert all(moment.eq(0).all() for moment in moments)
    learned.update()
    assert has_finite_weights(learned.network)


# Presets and contradictory settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--munchausen", "--double"], "--munchausen and --double"),
        (["--preset", "btr", "--double"], "--munchausen and --double"),
        (["--preset", "nature", "--final-learning-rate", "1e-5"], "--final-learning-rate and --optimizer rmsprop"),
        (["--spectral-norm"], "--spectral-norm is an option of --backbone impala"),
        (["--preset", "rainbow", "--pool-size", "6"], "--backbone nature"),
        (["--pool", "mean"], "--pool is an option of --backbone impala, not of --backbone der"),
    ],
)
def test_contradictory_settings_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_contradictions(parse(Config, PRESETS, words, ""))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_paper_preset_lists_its_deviations() -> None:
    assert set(DEVIATIONS) == set(PAPER_PRESETS)
    assert set(PAPER_PRESETS) == {
        *["nature", "dopamine", "double", "dueling", "prioritized", "c51", "qr", "iqn", "rainbow", "munchausen", "btr"],
        "data-efficient",
    }
    assert all(not text.endswith(".") and "\n" not in text for texts in DEVIATIONS.values() for text in texts)


def test_presets_match_the_papers() -> None:
    presets = {name: parse(Config, PRESETS, ["--preset", name], "") for name in PAPER_PRESETS}
    for preset in presets.values():
        refuse_contradictions(preset)
    rainbow, btr, der = presets["rainbow"], presets["btr"], presets["data-efficient"]
    assert (rainbow.num_atoms, rainbow.v_max, rainbow.n_step, rainbow.noisy_sigma_init) == (51, 10, 3, 0.5)
    assert (rainbow.double, rainbow.dueling, rainbow.noisy, rainbow.head) == (True, True, True, "c51")
    assert (rainbow.learning_rate, rainbow.optimizer_epsilon, rainbow.learning_starts) == (6.25e-5, 1.5e-4, 20_000)
    assert (rainbow.per_alpha, rainbow.epsilon_start, rainbow.target_update_steps) == (0.5, 0, 8_000)
    assert (btr.head, btr.num_tau_samples, btr.cosine_embedding_dim, btr.munchausen, btr.double) == (
        "iqn",
        8,
        64,
        True,
        False,
    )
    assert (btr.backbone, btr.width_multiplier, btr.pool_size, btr.spectral_norm, btr.hidden_units) == (
        "impala",
        2,
        6,
        True,
        512,
    )
    assert (btr.gamma, btr.n_step, btr.batch_size, btr.num_envs, btr.train_every_steps) == (0.997, 3, 256, 64, 64)
    assert (btr.per_alpha, btr.learning_rate, btr.optimizer_epsilon) == (0.2, 1e-4, 0.005 / 256)
    assert sum(schedules.is_target_update_due(btr, u) for u in range(1, 5001)) == 10, "every 500 updates"
    assert (der.total_steps, der.n_step, der.train_every_steps, der.learning_starts, der.noisy_sigma_init) == (
        100_000,
        20,
        1,
        1600,
        0.1,
    )
    assert (presets["qr"].head, presets["qr"].num_quantiles, presets["qr"].learning_rate) == ("qr", 200, 5e-5)
    iqn, c51, per = presets["iqn"], presets["c51"], presets["prioritized"]
    assert (iqn.num_tau_samples, iqn.num_target_tau_samples, iqn.num_policy_tau_samples) == (64, 64, 32)
    assert (c51.learning_rate, c51.optimizer_epsilon, c51.epsilon_end, c51.optimizer) == (
        2.5e-4,
        0.01 / 32,
        0.01,
        "adam",
    )
    assert (per.per_alpha, per.per_beta_start, per.learning_rate, per.double) == (
        0.6,
        0.4,
        6.25e-5,
        True,
    )
    assert (presets["double"].target_update_steps, presets["dueling"].max_grad_norm) == (30_000, 10)
    munchausen = presets["munchausen"]
    assert (munchausen.munchausen_alpha, munchausen.munchausen_tau, munchausen.munchausen_clip) == (
        0.9,
        0.03,
        -1,
    )
    assert (munchausen.protocol, munchausen.n_step, munchausen.double) == ("machado", 1, False)


def test_defaults_are_plain_q_learning() -> None:
    plain = Config()
    assert (plain.head, plain.noisy, plain.munchausen, plain.per_alpha) == ("q", False, False, 0)
    net = make_network(plain, (4, 84, 84), 6)
    assert not net.has_train_mode
    assert list(net.buffers()) == []


def test_every_preset_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every preset at reduced size: command line, some updates, evaluation."""
    from zerokara.agents import dqn

    monkeypatch.chdir(tmp_path)
    small = (
        *(
            "--env",
            "zerokara/Catch-v0",
            "--num-envs",
            "4",
            "--total-steps",
            "160",
            "--learning-starts",
            "80",
            "--batch-size",
            "4",
        ),
        *("--train-every-steps", "16", "--replay-capacity", "400", "--width-multiplier", "0.25", "--hidden-units", "8"),
        *("--log-every-steps", "80", "--eval-every-steps", "160", "--eval-episodes", "1"),
        *("--eval-max-steps", "5", "--no-capture-video", "--quiet", "--device", "cpu", "--precision", "float32"),
        *("--compile", "off", "--threads", "1", "--no-save-replay"),
    )
    for name in PAPER_PRESETS:
        dqn.main([*small, "--preset", name, "--name", name])
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert any("train/loss" in line for line in lines), name
