"""Dopamine's published learning curves, where a person gives the files: they are not part of the package.

Castro et al. 2018, "Dopamine: A Research Framework for Deep Reinforcement Learning"; baselines/atari/data/<game>.json
of google/dopamine: rows {"Iteration", "Value", "Agent"}, five runs an agent. An iteration is a million frames of
training with sticky actions, its value the mean raw return of the training games that ended in it (the numbers of games
that the values' fractions betray are those of 250,000 steps). So they stand beside scores by Machado's protocol alone.
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

FRAMES = 1_000_000  # of an iteration
PROTOCOL: ProtocolName = "machado"


@dataclass(frozen=True)
class Published:
    """The curves of one agent in one game."""

    agent: str
    frames: np.ndarray  # (I,) at the iterations' ends
    mean: np.ndarray  # (I,) over runs
    low: np.ndarray  # (I,) the lowest of the runs
    high: np.ndarray  # (I,)
    runs: int

    def at(self, frames: float) -> float | None:
        """The mean after so many frames; None before the first iteration's end and after the last one's."""
        if not self.frames[0] <= frames <= self.frames[-1]:
            return None
        return float(np.interp(frames, self.frames, self.mean))


def game_of(name: str) -> str:
    """A game's name as files and environments both spell it: ALE/SpaceInvaders-v5 and dopamine_space_invaders."""
    bare = name.rpartition("/")[2].removesuffix(".json").removeprefix("dopamine_").rpartition("-v")
    return (bare[0] or bare[2]).replace("_", "").lower()


def read(path: Path) -> list[Published]:
    """The agents of a file, in its order.

    Raises:
        UserError: there is no such file, or it is none of Dopamine's.
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
    return [_published(agent, by_iteration) for agent, by_iteration in values.items()]


def _published(agent: str, by_iteration: dict[int, list[float]]) -> Published:
    iterations = sorted(by_iteration)
    mean, low, high = (
        np.array([function(by_iteration[i]) for i in iterations], float) for function in (np.mean, np.min, np.max)
    )
    frames = (np.array(iterations, float) + 1) * FRAMES
    return Published(agent, frames, mean, low, high, max(map(len, by_iteration.values())))


def beside(paths: Sequence[Path], env_ids: Sequence[str]) -> dict[str, list[Published]]:
    """The curves of each environment that has some.

    Raises:
        UserError: a file that cannot be read, or of a game that is not among ours.
    """
    games = {game_of(env): env for env in env_ids if env.startswith("ALE/")}
    found: dict[str, list[Published]] = {}
    for path in paths:
        if game_of(path.name) not in games:
            raise UserError(
                f"--dopamine {path} is named after none of the games ({', '.join(games) or 'there is no Atari game'}): "
                f"give the file of one, named like dopamine_pong.json."
            )
        found[games[game_of(path.name)]] = read(path)
    return found
