"""Tests of the presets against numbers of the published code: network, initialization, schedules and losses.

docs/presets.md names the file and line of each reference.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn, tensor

from tests.agents.qlearning.test_targets_and_losses import TableNetwork, loss_of, q_network
from zerokara.agents.configs import pqn, stream
from zerokara.agents.configs.dqn import PRESETS, Config, read_config, refuse_contradictions
from zerokara.agents.configs.pqn import PRESETS as PQN_PRESETS
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.heads import CategoricalHead
from zerokara.agents.qlearning.network import QNetwork, make_network, make_pqn_network
from zerokara.core.backbones.nature import Der, Nature
from zerokara.core.config import UserError
from zerokara.core.schedules import exponential_approach

OBS = (4, 84, 84)
UNIFORM = ("nature", "double", "dueling", "prioritized", "c51", "qr", "iqn")  # torch7, DQN Zoo
XAVIER = ("dopamine", "munchausen")


def config_of(preset: str, **changes: Any) -> Config:
    return Config(**{**PRESETS[preset], "preset": preset, **changes})


def network_of(preset: str, actions: int = 6) -> QNetwork:
    torch.manual_seed(0)
    return make_network(config_of(preset), OBS, actions)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---- network


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("dopamine", 4_046_502),
        ("munchausen", 4_046_502),
        ("btr", 5_266_606),
    ],
)
def test_number_of_parameters_at_6_actions(preset: str, parameters: int) -> None:
    assert count(network_of(preset)) == parameters


def conv(inputs: int, outputs: int, side: int) -> int:
    """Weights and biases of a convolution with square filters."""
    return (inputs * side**2 + 1) * outputs


def dense(inputs: int, outputs: int) -> int:
    """Weights and biases of a linear layer."""
    return (inputs + 1) * outputs


# The papers: three convolutions of 8x8, 4x4 and 3x3 without padding, which map 84x84 to 7x7; two of 5x5 map it to 4x4.
NATURE_CONVS = conv(4, 32, 8) + conv(32, 64, 4) + conv(64, 64, 3)
HIDDEN = dense(7 * 7 * 64, 512)


def test_number_of_parameters_by_the_shapes_of_the_papers() -> None:
    """6 actions. A noisy layer has mean and scale of every weight and bias."""
    q = NATURE_CONVS + HIDDEN + dense(512, 6)
    cosines = dense(64, 7 * 7 * 64)
    data_efficient_head = 2 * dense(4 * 4 * 64, 256) + dense(256, 6 * 51) + dense(256, 51)
    expected = {
        "nature": q,
        "double": q,
        "prioritized": q,
        "dueling": NATURE_CONVS + 2 * HIDDEN + dense(512, 6) + dense(512, 1),
        "c51": NATURE_CONVS + HIDDEN + dense(512, 6 * 51),
        "qr": NATURE_CONVS + HIDDEN + dense(512, 6 * 200),
        "iqn": q + cosines,
        "rainbow": NATURE_CONVS + 2 * (2 * HIDDEN + dense(512, 6 * 51) + dense(512, 51)),
        "data-efficient": conv(4, 32, 5) + conv(32, 64, 5) + 2 * data_efficient_head,
    }
    assert expected == {
        "nature": 1_687_206,
        "double": 1_687_206,
        "prioritized": 1_687_206,
        "dueling": 3_293_863,
        "c51": 1_841_106,
        "qr": 2_299_728,
        "iqn": 1_891_046,
        "rainbow": 6_868_842,
        "data-efficient": 1_287_594,
    }
    assert {preset: count(network_of(preset)) for preset in expected} == expected


def test_number_of_parameters_of_pqn() -> None:
    assert count(make_pqn_network(pqn.Config(), OBS, 6)) == 1_688_550


def test_number_of_parameters_of_pqn_with_an_lstm() -> None:
    """6 actions, one frame. CleanRL normalizes a layer as a whole, with weights for each pixel; here by channel."""
    lstm = 4 * 128 * (512 + 128) + 2 * 4 * 128  # input and recurrent weights, two biases, of four gates
    others = conv(1, 32, 8) + conv(32, 64, 4) + conv(64, 64, 3) + HIDDEN + 2 * 512 + lstm + dense(128, 6)
    per_pixel, per_channel = (2 * (32 * a + 64 * b + 64 * c) for a, b, c in ((20**2, 9**2, 7**2), (1, 1, 1)))
    assert others + per_pixel == 2_050_726
    config = pqn.Config(**{**PQN_PRESETS["lstm"], "preset": "lstm"})
    assert count(make_pqn_network(config, (1, 84, 84), 6)) == others + per_channel == 2_008_806


def test_maps_of_dopamine() -> None:
    backbone = network_of("dopamine").backbone
    assert backbone.stage_shapes == [(32, 21, 21), (64, 11, 11), (64, 11, 11)]
    assert backbone.features == 7_744
    assert network_of("nature").backbone.features == 3_136
    with torch.no_grad():
        assert [tuple(x.shape[1:]) for x in backbone.stages(torch.rand(1, *OBS))] == backbone.stage_shapes


def test_same_padding_begins_where_tensorflow_begins() -> None:
    """Each output counts the pixels under its kernel. The second layer pads 21x21 by 1 before and 2 after it."""
    backbone = Nature(4, 84, same_padding=True)
    with torch.no_grad():
        for conv in backbone.convs:
            nn.init.zeros_(conv.get_parameter("weight"))
            nn.init.ones_(conv.get_parameter("bias"))
        second = backbone.convs[1]
        second.get_parameter("weight")[0, 0] = 1
        nn.init.zeros_(second.get_parameter("bias"))
        counts = backbone.stages(torch.zeros(1, *OBS))[1][0, 0]
    rows = tensor([3.0, *[4.0] * 9, 2.0])  # rows 0 to 2, 1 to 4, ..., 19 and 20
    assert torch.equal(counts, rows[:, None] * rows)


def test_same_padding_of_rectangles_and_of_other_networks() -> None:
    assert Nature(4, (84, 60), same_padding=True).out_size == (11, 8)
    assert Der(4, 84, same_padding=True).out_size == (4, 4)
    with pytest.raises(UserError, match="--same-padding is an option of the backbones nature, nips and der"):
        refuse_contradictions(config_of("dopamine", backbone="impala"))


# ---- schedules


def first_update(config: Config) -> int:
    """Return the step of the first update."""
    return next(step for step in range(config.learning_starts, 10**7) if schedules.updates_due(config, step))


@pytest.mark.parametrize("preset", [*UNIFORM, *XAVIER])
def test_epsilon_is_1_until_the_first_update(preset: str) -> None:
    config = config_of(preset)
    step = first_update(config)
    assert step == config.learning_starts + config.train_every_steps
    assert schedules.epsilon(config, config.learning_starts) == 1
    assert schedules.epsilon(config, step) > 0.9999
    halfway = schedules.epsilon(config, config.learning_starts + config.epsilon_decay_steps // 2)
    assert halfway == pytest.approx((1 + config.epsilon_end) / 2)
    assert schedules.epsilon(config, config.learning_starts + config.epsilon_decay_steps) == config.epsilon_end
    # Old runs, and other presets, decay from step 0.
    assert schedules.epsilon(Config(epsilon_decay_steps=100, learning_starts=50), 50) == pytest.approx(0.505)


def test_epsilon_of_btr_is_exponential() -> None:
    """Each step multiplies the distance to .01 by 1 - 1 / 2,000,000; it is 0 after half of the run."""
    config = config_of("btr")
    for step in (0, 64, 200_000, 2_000_000, 24_999_999):
        assert schedules.epsilon(config, step) == pytest.approx(0.01 + 0.99 * (1 - 1 / 2e6) ** step, rel=1e-5)
    assert schedules.epsilon(config, 2_000_000) == pytest.approx(0.374, abs=1e-3)
    assert schedules.epsilon(config, 25_000_000) == 0
    begun = config_of("btr", epsilon_decay_begins="learning_starts")
    assert schedules.epsilon(begun, 200_000) == 1


def test_exponential_approach() -> None:
    values = [exponential_approach(step, 3.0, 1.0, 10, 5) for step in (0, 10, 15, 20)]
    assert values == pytest.approx([3, 3, 1 + 2 / math.e, 1 + 2 / math.e**2])
    with pytest.raises(ValueError, match="time_constant must be positive"):
        exponential_approach(1, 1.0, 0.0, 0, 0)


def test_schedules_of_pqn_at_the_first_updates() -> None:
    """purejaxql: epsilon is 1 in the first rollout, and falls with each one of 4,096 steps over a tenth of the run."""
    config = pqn.Config(**PQN_PRESETS["paper"])
    rollout = config.num_envs * config.rollout_steps
    assert rollout == 4_096
    assert schedules.linear_epsilon(config, 0) == 1
    assert schedules.linear_epsilon(config, rollout) == pytest.approx(1 - 0.999 / 244.14, abs=1e-7)
    assert schedules.linear_epsilon(config, 1_000_000) == 0.001
    assert [schedules.learning_rate(config, step) for step in (0, rollout, 10_000_000)] == [2.5e-4] * 3
    longer = pqn.Config(**{**PQN_PRESETS["paper-200m"], "preset": "paper-200m"})
    assert schedules.linear_epsilon(longer, rollout) == pytest.approx(1 - 0.999 / 1_220.7, abs=1e-7)


def test_schedules_of_pqn_with_an_lstm_at_the_first_update() -> None:
    """CleanRL has the whole learning rate in the first rollout of 1,024 steps; here it is that of the step."""
    config = pqn.Config(**{**PQN_PRESETS["lstm"], "preset": "lstm"})
    assert config.num_envs * config.rollout_steps == 1_024
    assert schedules.learning_rate(config, 1_024) == pytest.approx(2.5e-4 * (1 - 1.024e-4), rel=1e-7)
    assert schedules.learning_rate(config, 10_000_000) == 1e-8
    assert schedules.linear_epsilon(config, 1_024) == pytest.approx(1 - 0.99 * 1.024e-3)


def test_schedules_of_streaming_at_the_first_update() -> None:
    """stream_q_atari.py: epsilon from 1 to .01 over a twentieth of the run; the learning rate is 1 throughout."""
    config = stream.Config(**stream.PRESETS["paper"])
    assert schedules.linear_epsilon(config, 0) == 1
    assert schedules.linear_epsilon(config, 1) == pytest.approx(1 - 0.99 / 500_000, abs=1e-9)
    assert schedules.linear_epsilon(config, 250_000) == pytest.approx(0.505)
    assert schedules.linear_epsilon(config, 500_000) == 0.01
    assert [schedules.learning_rate(config, step) for step in (1, 10_000_000)] == [1, 1]


@pytest.mark.parametrize("preset", ["prioritized", "rainbow", "btr", "data-efficient"])
def test_beta_increases_from_the_first_update_to_the_last(preset: str) -> None:
    config = config_of(preset)
    beta = [schedules.per_beta(config, step) for step in (0, config.learning_starts, config.total_steps)]
    assert beta == pytest.approx([0.4, 0.4, 1])
    middle = (config.learning_starts + config.total_steps) // 2
    assert schedules.per_beta(config, middle) == pytest.approx(0.7)
    assert schedules.per_beta(Config(per_beta_steps=100, learning_starts=50), 50) == pytest.approx(0.7)


def test_iqn_learns_from_20000_steps_on_with_cosines_from_1() -> None:
    config = config_of("iqn")
    assert config.learning_starts == 20_000
    frequency_C = network_of("iqn").head.get_buffer("frequency_C")
    torch.testing.assert_close(frequency_C, math.pi * torch.arange(1.0, 65.0))
    torch.testing.assert_close(network_of("btr").head.get_buffer("frequency_C"), math.pi * torch.arange(64.0))


# ---- losses and priorities

ERRORS = tensor([0.5, -3.0, 8.0, -0.25])
WEIGHT_B = tensor([1.0, 0.5, 0.1, 0.0])


def gradient(preset: str) -> list[float]:
    """Gradient of the loss of a preset by the Q-values of four terminals with the TD errors `ERRORS`."""
    q_BA = torch.zeros(4, 1, requires_grad=True)
    network = q_network(q_BA, torch.zeros(4, 1))
    settings: dict[str, Any] = {**PRESETS[preset], "preset": preset}
    loss, _, td_error_B = loss_of(
        network, network, action=[0] * 4, reward_B=ERRORS, discount_B=torch.zeros(4), weight_B=WEIGHT_B, **settings
    )
    torch.testing.assert_close(td_error_B, ERRORS.abs())
    loss.backward()
    assert q_BA.grad is not None
    return [-4 * float(value) for value in q_BA.grad.flatten()]  # of a batch of 4


def test_gradients_of_the_losses_by_hand() -> None:
    # Clipped TD error, times the weight.
    assert gradient("double") == pytest.approx([0.5, -0.5, 0.1, 0])
    # Dopamine: twice the TD error, which is not clipped.
    assert gradient("dopamine") == pytest.approx([2 * 0.5, 2 * -3 * 0.5, 2 * 8 * 0.1, 0])
    # DQN Zoo: weight * TD error, clipped: .5, -1.5, .8, 0.
    assert gradient("prioritized") == pytest.approx([0.5, -1, 0.8, 0])


def test_weighted_loss_clipped_after_the_weight_by_hand() -> None:
    network = q_network(torch.zeros(3, 1), torch.zeros(3, 1))
    loss, _, _ = loss_of(
        network, network, action=[0] * 3, reward_B=tensor([0.5, -3.0, 2.0]), discount_B=torch.zeros(3),
        weight_B=tensor([1.0, 0.5, 0.0]), loss="huber_after_weight",
    )  # fmt: skip
    # .5 * .25; the threshold of the second error is 2, and .5 (2 * 3 - 2) = 2; the last has weight 0.
    assert loss.item() == pytest.approx((0.125 + 2.0) / 3)


def test_priorities_of_c51_by_hand() -> None:
    """Cross-entropy and divergence of a target of one half each; they differ by its entropy, log 2."""
    far = -1e9
    next_BXA = tensor([[[0.0], [far], [far]]]).expand(2, -1, -1)
    z_BXA = tensor([[[0.0], [0.0], [far]], [[math.log(3)], [0.0], [far]]])
    head = CategoricalHead(3, -1.0, 1.0)
    network = TableNetwork(z_BXA, next_BXA, head)
    rows: dict[str, Any] = {"action": [0, 0], "reward_B": tensor([0.5, 0.5]), "discount_B": torch.ones(2)}
    divergence = [0.0, 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)]
    crossed = [math.log(2), -0.5 * math.log(0.75) - 0.5 * math.log(0.25)]
    for name, expected in (("kl", divergence), ("cross_entropy", crossed)):
        loss, _, priority_B = loss_of(network, network, head="c51", per_priority=name, **rows)
        assert priority_B.tolist() == pytest.approx(expected, abs=1e-6)
        assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    # The ranking is the same here, but the largest is unlike the smallest by another factor.
    assert crossed[1] / crossed[0] == pytest.approx(1.2075, abs=1e-4)


def test_presets_rank_as_the_published_code() -> None:
    assert {name for name in PRESETS if config_of(name).per_priority == "cross_entropy"} == {
        "rainbow",
        "data-efficient",
    }
    assert {name for name in PRESETS if config_of(name).per_uniform_fraction} == {"prioritized"}


# ---- environment


@pytest.mark.parametrize("preset", PQN_PRESETS)
def test_pqn_presses_fire_in_atari_games_only(preset: str) -> None:
    config = pqn.read_config(["--preset", preset])
    assert (config.fire_reset, config.fire_after_life_loss) == (True, True)
    other = pqn.read_config(["--preset", preset, "--no-fire-reset", "--no-fire-after-life-loss"])
    assert (other.fire_reset, other.fire_after_life_loss) == (False, False)
    catch = pqn.read_config(["--preset", preset, "--env", "zerokara/Catch-v0"])
    assert (catch.fire_reset, catch.fire_after_life_loss) == (None, None)
    given = pqn.read_config(["--preset", preset, "--env", "zerokara/Catch-v0", "--fire-reset"])
    assert given.fire_reset, "envs.make refuses it with a message"
    named = pqn.read_config(["--preset", preset, "--env", "ale_py:ALE/Breakout-v5"])
    assert named.fire_after_life_loss


def test_btr_has_no_ops_beside_sticky_actions() -> None:
    config = config_of("btr")
    assert (config.protocol, config.noop_max) == ("machado", 30)
    assert config.with_protocol("machado").noop_max == 30


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--loss", "mse", "--head", "qr"], "--head q"),
        (["--loss", "huber_after_weight"], "--per-alpha above 0"),
        (["--per-priority", "cross_entropy", "--per-alpha", "0.5"], "--head c51"),
        (["--per-uniform-fraction", "0.1"], "--per-alpha above 0"),
        (["--weight-init", "torch", "--noisy"], "--no-noisy"),
        (["--epsilon-schedule", "exponential", "--epsilon-start", "0.01"], "--epsilon-start"),
    ],
)
def test_options_without_effect_are_refused(words: list[str], needed: str) -> None:
    with pytest.raises(UserError, match="has no effect without") as error:
        read_config(words)
    assert needed in str(error.value)
