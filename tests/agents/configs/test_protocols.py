"""Tests of the evaluation protocols, which training, evaluation and benchmarks share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from zerokara import envs
from zerokara.agents import evaluate
from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.common import ProtocolName, Settings
from zerokara.agents.configs.protocols import OVERRIDES, PROTOCOLS
from zerokara.agents.qlearning.agent_file import AgentMetadata
from zerokara.agents.qlearning.network import make_pqn_network
from zerokara.core.config import UserError, to_saved

BREAKOUT = "ALE/Breakout-v5"


def test_every_protocol_has_environment_settings_and_a_score() -> None:
    assert set(PROTOCOLS) == set(envs.PROTOCOLS) == set(get_args(ProtocolName))


def test_protocols_match_the_papers() -> None:
    nature = dqn.read_config(["--protocol", "nature"])
    assert (nature.eval_epsilon, nature.eval_max_steps, nature.eval_episodes) == (0.05, 4_500, 30)
    assert envs.PROTOCOLS["nature"]["noop_max"] == 30
    machado = dqn.read_config(["--protocol", "machado"])
    assert machado.eval_every_steps == 0
    assert (envs.PROTOCOLS["machado"]["repeat_action_probability"], envs.PROTOCOLS["machado"]["noop_max"]) == (0.25, 0)
    assert PROTOCOLS["machado"].metric == "train/return"
    short = dqn.read_config(["--protocol", "100k", "--preset", "rainbow"])
    assert (short.total_steps, short.eval_episodes, short.eval_epsilon, short.eval_max_steps) == (
        100_000,
        100,
        0.001,
        27_000,
    )
    assert envs.PROTOCOLS["100k"] == envs.PROTOCOLS["nature"]


@pytest.mark.parametrize("preset", ["fast", "nature", "double", "btr", "data-efficient"])
@pytest.mark.parametrize("protocol", list(OVERRIDES))
def test_a_protocol_flag_overrides_the_evaluation_settings_of_all_presets(preset: str, protocol: str) -> None:
    config = dqn.read_config(["--preset", preset, "--protocol", protocol])
    assert config.protocol == protocol
    assert {field: getattr(config, field) for field in OVERRIDES[protocol]} == dict(OVERRIDES[protocol])


def test_without_protocol_flag_the_preset_applies_and_other_flags_take_precedence() -> None:
    assert dqn.read_config(["--preset", "double"]).eval_epsilon == 0.001
    assert dqn.read_config([]).eval_epsilon == 0.001
    words = ["--eval-epsilon", "0.2", "--preset", "double", "--protocol=nature"]
    assert dqn.read_config(words).eval_epsilon == 0.2
    assert pqn.read_config(["--protocol", "nature"]).eval_epsilon == 0.05
    assert pqn.read_config([]).eval_epsilon == 0


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UserError, match=r"--protocol cannot be 'natural': it must be one of nature, machado, 100k"):
        dqn.read_config(["--protocol", "natural"])


def test_a_resumed_run_keeps_its_protocol(catch_run: Path) -> None:
    content = json.loads((catch_run / "config.json").read_text())
    content["config"] |= {"protocol": "nature", "eval_epsilon": 0.3}  # as if given as a flag, overriding the protocol
    (catch_run / "config.json").write_text(json.dumps(content))
    assert dqn.read_config(["--name", "catch", "--resume", "--protocol", "nature"]).eval_epsilon == 0.3
    with pytest.raises(UserError, match="was started with --protocol nature"):
        dqn.read_config(["--name", "catch", "--resume", "--protocol", "machado"])


def test_another_protocol_keeps_the_observation_and_action_spaces() -> None:
    words = ["--protocol", "machado", "--repeat-action-probability", "0.5", "--max-episode-frames", "400"]
    words += ["--full-action-space", "True", "--frame-stack", "2"]
    settings = dqn.read_config(words).with_protocol("nature").env_settings()
    assert settings == {
        "protocol": "nature",
        "frame_stack": 2,
        "size": 84,
        "grayscale": True,
        "full_action_space": True,
    }
    catch = dqn.read_config(["--env", "zerokara/Catch-v0"])
    assert catch.with_protocol("machado") == catch


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (pqn.read_config(["--env", BREAKOUT]), {"fire_reset": True, "fire_after_life_loss": True}),
        (stream.read_config(["--env", BREAKOUT]), {"fire_reset": True}),
        (dqn.read_config(["--env", BREAKOUT, "--preset", "btr"]), {"noop_max": 30}),
        (dqn.read_config(["--env", BREAKOUT, "--preset", "rainbow"]), {}),
    ],
    ids=["pqn", "stream", "btr", "rainbow"],
)
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_another_protocol_keeps_what_a_preset_sets_for_the_start_of_an_episode(
    config: Settings, own: dict[str, object], protocol: ProtocolName
) -> None:
    """As training with --protocol does."""
    settings = config.with_protocol(protocol).env_settings()
    kept = {key: settings[key] for key in ("noop_max", "fire_reset", "fire_after_life_loss") if key in settings}
    assert (settings["protocol"], kept) == (protocol, own)


def test_evaluation_with_a_protocol_presses_fire_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = pqn.read_config(["--env", BREAKOUT, "--width-multiplier", "0.25", "--hidden-units", "8"])
    network = make_pqn_network(config, config.obs_shape, 4)
    AgentMetadata(algorithm="pqn", config=to_saved(config), num_actions=4, step=7).save(
        tmp_path / "paddle.safetensors", network.state_dict()
    )
    words = ("paddle.safetensors", "--episodes", "2", "--max-steps", "3", "--device", "cpu", "--threads", "1")
    evaluate.main([*words, "--protocol", "machado"])
    (path,) = Path("runs/outputs-paddle").glob("*.json")
    settings = json.loads(path.read_text())["protocol"]["settings"]
    assert (settings["fire_reset"], settings["fire_after_life_loss"]) == (True, True)
    assert (settings["noop_max"], settings["repeat_action_probability"]) == (0, 0.25)
    line = "set by the run, unlike the protocol: "
    assert f"{line}fire_reset True, fire_after_life_loss True\n" in capsys.readouterr().out
    evaluate.main(words)
    assert line not in capsys.readouterr().out


def test_evaluation_with_a_protocol(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = (str(catch_run), "--which", "last", "--protocol", "nature", "--device", "cpu", "--threads", "1")
    evaluate.main(last)
    shown = capsys.readouterr().out
    result = json.loads((catch_run / "evaluation-400.json").read_text())
    assert (result["games"], result["protocol"]["epsilon"], result["protocol"]["max_steps"]) == (30, 0.05, 4_500)
    assert result["protocol"]["name"] == "nature"
    assert 0 < result["training"]["games"] <= 100
    assert f"training: mean raw return {result['training']['mean']:.2f} over the last" in shown
    assert "protocol nature: Mnih et al. 2015" in shown
    flags = ["--episodes", "2", "--epsilon", "0.5", "--max-steps", "5"]
    evaluate.main([*last, *flags])
    result = json.loads((catch_run / "evaluation-400-2.json").read_text())
    assert (result["games"], result["protocol"]["epsilon"], result["protocol"]["max_steps"]) == (2, 0.5, 5)
