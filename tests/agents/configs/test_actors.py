"""Tests of the settings of actors: contradictions are refused in one sentence, and nothing is created."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from zerokara.agents import dqn
from zerokara.agents.configs.actors import replay_ratios
from zerokara.agents.configs.dqn import Config, read_config
from zerokara.core.config import UserError


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is installed."""
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))


CASES = [
    ("--actors 2 --min-replay-ratio 0.3 --max-replay-ratio 0.2", r"--min-replay-ratio 0.3 must not be above"),
    ("--actors 2 --min-replay-ratio 0.3", r"--max-replay-ratio, which is 0.25 \(by default"),
    ("--actors 64", r"weights that are 4,096 updates old at a replay ratio of 0.25.*--max-staleness"),
    ("--actors 2 --epsilon-end 0.2", "--epsilon-end has no effect without --actors 0"),
    ("--actors 2 --epsilon-decay-steps 7", "--epsilon-decay-steps has no effect without .* --actors 0"),
    ("--max-staleness 3", "--max-staleness has no effect without --actors above 0"),
    ("--ray-address auto", "--ray-address has no effect without --actors above 0"),
]


@pytest.mark.parametrize(("words", "message"), CASES, ids=[words for words, _ in CASES])
def test_contradictions_are_refused(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        dqn.main(["--env", "zerokara/Catch-v0", "--num-envs", "16", "--train-every-steps", "4", *words.split()])
    assert list(tmp_path.iterdir()) == []


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--actors and torchrun cannot be combined"):
        dqn.main(["--actors", "2"])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_ray_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--actors needs the package ray, .*: type pip install ray, or leave --actors"):
        dqn.main(["--actors", "2"])
    assert list(tmp_path.iterdir()) == []


def test_the_ratios_are_those_of_a_run_without_actors_by_default() -> None:
    assert replay_ratios(Config(actors=2, train_every_steps=16, gradient_steps=4)) == (0.25, 0.25)
    assert replay_ratios(Config(actors=2, max_replay_ratio=0.5)) == (0.5, 0.5)
    assert replay_ratios(Config(actors=2, min_replay_ratio=0.0)) == (0.0, 0.25)


def test_a_resumed_run_may_move_to_another_cluster_but_keeps_its_actors() -> None:
    assert {"ray_address", "actor_cpus", "actor_timeout"} <= Config.CHANGEABLE
    assert "actors" not in Config.CHANGEABLE


def test_sixteen_actors_are_allowed_by_default() -> None:
    assert read_config(["--actors", "16"]).total_envs == 256
