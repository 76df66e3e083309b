"""Published learning curves of Dopamine, read from files that the user provides (they are not part of zerokara).

Castro et al. 2018, "Dopamine: A Research Framework for Deep Reinforcement Learning"; baselines/atari/data/<game>.json
of google/dopamine. A file holds rows {"Iteration", "Value", "Agent"} of five runs for each agent. An iteration is one
million frames of training with sticky actions. Its value is the mean raw return of the training episodes that ended in
it: the denominators of the values match the number of episodes in 250,000 training steps. The curves are therefore
comparable only with scores of the protocol machado.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zerokara.agents.configs.common import ProtocolName
from zerokara.core.config import UserError, error_summary

FRAMES_PER_ITERATION = 1_000_000
PROTOCOL: ProtocolName = "machado"


@dataclass(frozen=True)
class PublishedCurve:
    """Learning curve of one agent in one game; I iterations."""

    agent: str
    frames: np.ndarray  # (I,) frames at the end of each iteration
    mean: np.ndarray  # (I,) mean over runs
    low: np.ndarray  # (I,) minimum over runs
    high: np.ndarray  # (I,) maximum over runs
    runs: int

    def at(self, frames: float) -> float | None:
        """Interpolate the mean linearly; None before the end of the first or after the end of the last iteration."""
        if not self.frames[0] <= frames <= self.frames[-1]:
            return None
        return float(np.interp(frames, self.frames, self.mean))


def game_name(name: str) -> str:
    """Return the game in a common spelling: ALE/SpaceInvaders-v5 and dopamine_space_invaders.json -> spaceinvaders."""
    bare = name.rpartition("/")[2].removesuffix(".json").removeprefix("dopamine_").rpartition("-v")
    return (bare[0] or bare[2]).replace("_", "").lower()


def read_file(path: Path) -> list[PublishedCurve]:
    """Read the curves of a file, in the order of the file.

    Raises:
        UserError: the file cannot be read, or has another format.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--dopamine {path} cannot be read ({error_summary(error)}): give Dopamine's <game>.json."
        ) from None
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        for row in rows:
            values[str(row["Agent"])][int(row["Iteration"])].append(float(row["Value"]))
    except (TypeError, KeyError, ValueError):
        values.clear()
    if not values:
        raise UserError(f"--dopamine {path} has no rows of Iteration, Value and Agent: give Dopamine's <game>.json.")
    return [_curve(agent, by_iteration) for agent, by_iteration in values.items()]


def _curve(agent: str, by_iteration: dict[int, list[float]]) -> PublishedCurve:
    iterations = sorted(by_iteration)
    mean, low, high = (
        np.array([function(by_iteration[i]) for i in iterations], float) for function in (np.mean, np.min, np.max)
    )
    frames = (np.array(iterations, float) + 1) * FRAMES_PER_ITERATION
    return PublishedCurve(agent, frames, mean, low, high, max(map(len, by_iteration.values())))


def read_files(paths: Sequence[Path], env_ids: Sequence[str]) -> dict[str, list[PublishedCurve]]:
    """Read published curves. Returns environment -> curves; environments without a file are absent.

    Raises:
        UserError: a file cannot be read, or belongs to a game that is not in `env_ids`.
    """
    games = {game_name(env): env for env in env_ids if env.startswith("ALE/")}
    curves: dict[str, list[PublishedCurve]] = {}
    for path in paths:
        if game_name(path.name) not in games:
            raise UserError(
                f"--dopamine {path} does not match a game of --envs ({', '.join(games) or 'no Atari game'}): "
                f"give the file of one of these games, with a name like dopamine_pong.json."
            )
        curves[games[game_name(path.name)]] = read_file(path)
    return curves
