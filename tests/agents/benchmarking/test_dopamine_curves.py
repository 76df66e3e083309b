"""Test reading Dopamine's published curves, matching them with games, and error messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zerokara.agents.benchmarking.dopamine_curves import game_name, read_file, read_files
from zerokara.core.config import UserError


def write(path: Path, values: dict[str, list[list[float]]]) -> Path:
    """Write values (agent -> iterations -> runs) in the format of Dopamine."""
    rows = [
        {"Iteration": i, "Value": value, "Agent": agent}
        for agent, iterations in values.items()
        for i, runs in enumerate(iterations)
        for value in runs
    ]
    path.write_text(json.dumps(rows))
    return path


def test_means_and_ranges_by_hand(tmp_path: Path) -> None:
    dqn, c51 = read_file(write(tmp_path / "dopamine_pong.json", {"DQN": [[-20, -18], [-10, 0]], "C51": [[1], [2]]}))
    assert (dqn.agent, dqn.runs, c51.agent, c51.runs) == ("DQN", 2, "C51", 1)
    assert dqn.frames.tolist() == [1_000_000, 2_000_000]
    assert (dqn.mean.tolist(), dqn.low.tolist(), dqn.high.tolist()) == ([-19, -5], [-20, -10], [-18, 0])
    assert dqn.at(1_500_000) == -12.0
    assert dqn.at(999_999) is None
    assert dqn.at(2_000_001) is None


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("ALE/Pong-v5", "pong"),
        ("ALE/SpaceInvaders-v5", "spaceinvaders"),
        ("dopamine_space_invaders.json", "spaceinvaders"),
        ("spaceinvaders.json", "spaceinvaders"),
        ("dopamine_up-n-down.json", "up-n-down"),
    ],
)
def test_name_of_the_game_in_ids_and_file_names(name: str, game: str) -> None:
    assert game_name(name) == game


def test_files_are_matched_with_environments(tmp_path: Path) -> None:
    path = write(tmp_path / "dopamine_pong.json", {"DQN": [[1.0]]})
    assert list(read_files([path], ["zerokara/Catch-v0", "ALE/Pong-v5"])) == ["ALE/Pong-v5"]
    with pytest.raises(UserError, match=r"does not match a game of --envs \(breakout\)"):
        read_files([path], ["ALE/Breakout-v5"])
    with pytest.raises(UserError, match=r"does not match a game of --envs \(no Atari game\)"):
        read_files([path], ["zerokara/Catch-v0"])


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", '{"a": 1}', '[{"Iteration": 0, "Value": "x", "Agent": "a"}]'])
def test_file_of_another_format_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pong.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"--dopamine .*pong\.json (cannot be read|has no rows)"):
        read_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_file(tmp_path / "none.json")


def test_published_files_can_be_read(data_dir: Path) -> None:
    curves = {curve.agent: curve for curve in read_file(data_dir / "atari" / "dopamine_pong.json")}
    assert {"DQN", "C51", "Rainbow", "IQN"} <= set(curves)
    assert curves["Rainbow"].runs == 5
    assert len(curves["Rainbow"].frames) == 199
    assert np.all(curves["Rainbow"].low <= curves["Rainbow"].mean)
    assert curves["Rainbow"].mean[-1] == pytest.approx(20.18, abs=0.01)  # 20.59, 20.07, 20.14, 20.30, 19.80


def test_values_are_means_over_training_episodes(data_dir: Path) -> None:
    """Check by the denominators of the values that an iteration covers 250,000 training steps.

    An iteration trains for 250,000 steps and evaluates for 125,000. A lost episode of Pong takes about 860 steps, so
    the training steps hold about 290 episodes, which is the largest denominator.
    """
    from fractions import Fraction

    rows = json.loads((data_dir / "atari" / "dopamine_pong.json").read_text())
    first = [row["Value"] for row in rows if row["Iteration"] <= 2]
    episodes = [Fraction(value).limit_denominator(400).denominator for value in first]
    assert 250_000 / 870 < max(episodes) < 250_000 / 800
