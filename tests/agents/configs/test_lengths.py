"""Tests of the lengths of short runs, and of the settings of the arcade games."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.arcade import ARCADE
from zerokara.agents.configs.common import Settings
from zerokara.agents.configs.defaults import default_values
from zerokara.agents.configs.lengths import DIVISORS, describe_lengths
from zerokara.core.config import UserError, to_dict
from zerokara.envs.arcade import GAMES


def values(config: Settings, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def lengths(config: Settings) -> dict[str, Any]:
    return values(config, [name for name in DIVISORS if hasattr(config, name)])


@pytest.mark.parametrize("preset", dqn.PRESETS)
def test_presets_of_dqn_fit_their_own_number_of_steps(preset: str) -> None:
    config = dqn.read_config(["--preset", preset])
    assert lengths(config) == lengths(dqn.Config(**{**dqn.PRESETS[preset], "preset": preset}))
    assert describe_lengths(config, default_values(config)) == ""
    assert lengths(dqn.read_config(["--preset", preset, "--total-steps", "100000000"])) == lengths(config)


@pytest.mark.parametrize("preset", pqn.PRESETS)
def test_presets_of_pqn_fit_their_own_number_of_steps(preset: str) -> None:
    config = pqn.read_config(["--preset", preset])
    assert lengths(config) == lengths(pqn.Config(**{**pqn.PRESETS[preset], "preset": preset}))
    assert describe_lengths(config, default_values(config)) == ""


@pytest.mark.parametrize("preset", stream.PRESETS)
def test_presets_of_streaming_fit_their_own_number_of_steps(preset: str) -> None:
    config = stream.read_config(["--preset", preset])
    assert lengths(config) == lengths(stream.Config(**{**stream.PRESETS[preset], "preset": preset}))
    assert describe_lengths(config, default_values(config)) == ""


@pytest.mark.parametrize("game", GAMES)
def test_arcade_games_have_settings_of_their_own(game: str) -> None:
    config = dqn.read_config(["--env", game])
    assert values(config, list(ARCADE[game])) == ARCADE[game]
    assert describe_lengths(config, default_values(config)) == ""
    assert config.eval_every_steps <= config.total_steps // 5
    given = dqn.read_config(["--env", game, "--n-step", "7", "--num-envs", "16", "--total-steps", "1000000"])
    assert (given.n_step, given.num_envs, given.total_steps) == (7, 16, 1_000_000)
    assert given.learning_starts == ARCADE[game]["learning_starts"]
    paper = dqn.read_config(["--env", game, "--preset", "rainbow"])
    assert to_dict(paper) == to_dict(dqn.read_config(["--preset", "rainbow"])) | {"env": game, "name": paper.name}


def test_lengths_of_a_short_run() -> None:
    config = dqn.read_config(["--total-steps", "3000"])
    assert lengths(config) == {
        "learning_starts": 300,
        "epsilon_decay_steps": 1_500,
        "epsilon_off_after_steps": None,
        "learning_rate_decay_steps": 3_000,
        "target_update_steps": 150,
        "per_beta_steps": 1_000_000,  # without prioritized replay it has no effect
        "replay_capacity": 3_000,
        "eval_every_steps": 10_000,  # only the evaluation at the end
        "log_every_steps": 150,
        "checkpoint_every_steps": 600,
    }
    assert describe_lengths(config, default_values(config)) == (
        "--learning-rate-decay-steps 3,000 instead of 500,000, --eval-every-steps 10,000 instead of 200,000, "
        "--log-every-steps 150 instead of 2,000, --checkpoint-every-steps 600 instead of 10,000, "
        "--learning-starts 300 instead of 5,000, --target-update-steps 150 instead of 2,000, "
        "--replay-capacity 3,000 instead of 200,000, --epsilon-decay-steps 1,500 instead of 50,000"
    )
    assert dqn.read_config(["--total-steps", "100000"]).eval_every_steps == 20_000
    nature = dqn.read_config(["--preset", "prioritized", "--total-steps", "100000"])
    assert (nature.learning_starts, nature.epsilon_decay_steps, nature.per_beta_steps) == (10_000, 50_000, 90_000)
    parallel = pqn.read_config(["--total-steps", "100000"])
    assert values(parallel, ["epsilon_decay_steps", "eval_every_steps", "log_every_steps"]) == {
        "epsilon_decay_steps": 50_000,
        "eval_every_steps": 20_000,
        "log_every_steps": 5_000,
    }


def test_given_lengths_are_kept() -> None:
    given = {"learning_starts": 5_000, "replay_capacity": 200_000, "eval_every_steps": 0, "log_every_steps": 2_000}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    config = dqn.read_config(["--total-steps", "3000", *words])
    assert values(config, list(given)) == given
    assert config.epsilon_decay_steps == 1_500
    assert "--learning-starts" not in describe_lengths(config, default_values(config))
    protocol = dqn.read_config(["--protocol", "100k"])
    assert (protocol.total_steps, protocol.eval_every_steps, protocol.learning_rate_decay_steps) == (100_000,) * 3


@pytest.mark.parametrize(
    "words", [[], ["--preset", "rainbow"], ["--env", next(iter(GAMES))], ["--total-steps", "3000"]]
)
def test_an_averaged_target_network_follows_every_update(words: Sequence[str]) -> None:
    assert dqn.read_config([*words, "--target-tau", "0.005"]).target_update_steps == 1
    given = dqn.read_config([*words, "--target-tau", "0.005", "--target-update-steps", "40"])
    assert given.target_update_steps == 40
    copied = dqn.read_config([*words, "--target-tau", "1"])
    assert copied.target_update_steps == dqn.read_config(words).target_update_steps > 1


def test_the_replay_buffer_of_a_very_short_run_has_room_for_its_returns() -> None:
    config = dqn.read_config(["--total-steps", "64", "--num-envs", "8", "--n-step", "3", "--n-step-start", "5"])
    assert config.replay_capacity == 8 * (4 + 5 + 1)


def test_settings_of_a_game_that_contradict_a_flag_are_named() -> None:
    with pytest.raises(UserError, match="--munchausen and --double cannot be combined"):
        dqn.read_config(["--env", "zerokara/Snake-v0", "--munchausen"])
    assert dqn.read_config(["--env", "zerokara/Snake-v0", "--munchausen", "--no-double"]).munchausen


def test_beta_reaches_its_end_in_a_short_run() -> None:
    config = dqn.read_config(["--env", "ALE/Pong-v5", "--preset", "rainbow", "--total-steps", "100000"])
    assert config.learning_starts + config.per_beta_steps == 100_000


def test_what_a_preset_sets_for_its_backbone_does_not_apply_to_another_one() -> None:
    config = dqn.read_config(["--env", "ALE/Pong-v5", "--preset", "dopamine", "--backbone", "impala"])
    assert not config.same_padding
    assert dqn.read_config(["--env", "ALE/Pong-v5", "--preset", "dopamine"]).same_padding
    with pytest.raises(UserError, match="--same-padding is an option of the backbones"):
        dqn.read_config(["--env", "ALE/Pong-v5", "--same-padding", "--backbone", "impala"])
