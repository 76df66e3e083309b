"""Tests of benchmarks/pqn_processes.py: the runs, their settings, the table, and what is not repeated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pqn_processes
from zerokara.agents.configs.pqn import read_config
from zerokara.core.config import UserError


def test_runs_differ_in_processes_seed_and_average_only() -> None:
    runs = pqn_processes.plan(["Catch"], [1, 2, 4], [7, 8])
    assert list(runs)[:5] == [
        "Catch 1 minibatch 7",
        "Catch 2 minibatch 7",
        "Catch 2 rollout 7",
        "Catch 2 rollout-scaled 7",
        "Catch 4 minibatch 7",
    ]
    assert len(runs) == 14
    assert list(pqn_processes.plan(["Catch"], [1, 2], [7], ["rollout"])) == ["Catch 1 minibatch 7", "Catch 2 rollout 7"]
    config = read_config(pqn_processes.arguments_of("Snake", "rollout", 8, 60_000, 32))
    assert (config.env, config.seed, config.average_every, config.threads) == ("zerokara/Snake-v0", 8, "rollout", 1)
    assert (config.total_steps, config.epsilon_decay_steps, config.learning_rate_decay_steps) == (
        60_000,
        30_000,
        54_000,
    )
    assert config.eval_every_steps == 20_000
    scaled = read_config(pqn_processes.arguments_of("Snake", "rollout-scaled", 8, 60_000, 32))
    assert scaled == dataclasses.replace(config, scale_learning_rate=True)
    assert not config.scale_learning_rate
    assert read_config(pqn_processes.arguments_of("Breakout", "rollout", 8, 60_000, 32)).env == "ALE/Breakout-v5"
    with pytest.raises(UserError, match="no game 'Chess'"):
        pqn_processes.arguments_of("Chess", "rollout", 8, 60_000, 32)
    # Four processes have eight environments each, and minibatches of eight steps.
    assert config.num_envs == 32
    assert config.num_envs % 4 == config.rollout_steps * config.num_envs // 4 % config.num_minibatches == 0


def test_results_are_averaged_over_seeds_and_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def measure(game: str, processes: int, every: str, seed: int, steps: int, num_envs: int) -> dict[str, Any]:
        calls.append((game, processes, every, seed, steps, num_envs))
        value = seed + (every == "rollout") / 2
        return {"returns": {str(step): value + step / 60 for step in (20, 40, 60)}, "updates": 5}

    monkeypatch.setattr(pqn_processes, "measure", measure)
    words = ["--processes", "1", "2", "--seeds", "3", "1", "--steps", "60", "--results", str(tmp_path / "r.json")]
    words += ["--num-envs", "16", "--average-every", "minibatch", "rollout"]
    pqn_processes.main(words)
    assert len(calls) == 6
    assert ("Catch", 2, "rollout", 1, 60, 16) in calls
    expected = [
        "| Catch | 1 | - | 2 | 2.67 (1.67, 3.67) | 3.00 (2.00, 4.00) |",
        "| Catch | 2 | minibatch | 2 | 2.67 (1.67, 3.67) | 3.00 (2.00, 4.00) |",
        "| Catch | 2 | rollout | 2 | 3.17 (2.17, 4.17) | 3.50 (2.50, 4.50) |",
    ]
    assert capsys.readouterr().out.splitlines()[2:] == expected
    pqn_processes.main(words)
    pqn_processes.main(["--table", "--results", str(tmp_path / "r.json")])
    assert len(calls) == 6
    assert capsys.readouterr().out.splitlines()[-3:] == expected
    assert json.loads((tmp_path / "r.json").read_text())["runs"]["Catch 1 minibatch 3"]["updates"] == 5
    for change in (["--steps", "120"], ["--num-envs", "8"]):
        with pytest.raises(UserError, match="has runs with other settings"):
            pqn_processes.main([*words, *change])
    assert len(calls) == 6
