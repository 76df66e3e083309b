"""Evaluation: whole games, raw scores, a fixed number for each environment.

Counting the first games that end would favour short ones; so every environment plays the same number, and those that
are done wait. A game that does not end (Breakout's can bounce for ever) is cut after `max_steps` and counts as it
stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zerokara.agents.qlearning.exploration import Exploration
from zerokara.agents.qlearning.policy import Policy
from zerokara.envs.base import VectorEnv


@dataclass(frozen=True)
class Scores:
    """Raw returns and lengths of whole games, in the order of the environments."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]  # agent steps
    cut: int = 0  # games that had not ended after `max_steps` and count as they stood

    @property
    def mean(self) -> float:
        """Mean raw return."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; 0 for one game."""
        number = len(self.returns)
        return float(np.std(self.returns, ddof=1) / number**0.5) if number > 1 else 0.0


class Stopped(Exception):
    """An evaluation was asked to stop before its games were over."""


def evaluate(
    policy: Policy,
    env: VectorEnv,
    *,
    episodes_per_env: int,
    epsilon: float,
    max_steps: int,
    seed: int,
    stop: Callable[[], object] = lambda: False,
) -> Scores:
    """Play `games_per_env` whole games in each environment of `env`, epsilon-greedy.

    Args:
        epsilon: probability of a random action.
        max_steps: agent steps after which a game is cut.
        seed: of games and exploration; the same seed gives the same games.
        stop: asked before every step.

    Raises:
        Stopped: `stop` said so.
    """
    exploration = Exploration(env.num_envs, env.num_actions, seed)
    obs = env.reset(seed)
    return_N = np.zeros(env.num_envs)
    length_N = np.zeros(env.num_envs, np.int64)
    episodes: list[list[tuple[float, int]]] = [[] for _ in range(env.num_envs)]
    skipping_N = np.zeros(env.num_envs, bool)  # a game that was cut plays on, unseen, until it ends
    cut = 0
    while waiting := [i for i, done in enumerate(episodes) if len(done) < episodes_per_env]:
        if stop():
            raise Stopped
        if skipping_N[waiting].all():
            # Nobody who has games to play is in one: start afresh, for a game that was cut may never end.
            seed += 1
            obs = env.reset(seed)
            return_N[:] = length_N[:] = skipping_N[:] = 0
        step = env.step(policy.act(obs, epsilon, exploration))
        obs = step.obs
        return_N += step.reward
        length_N += 1
        ended_N = step.terminal | step.truncated
        for i in np.flatnonzero((ended_N | (length_N >= max_steps)) & ~skipping_N):
            if len(episodes[i]) < episodes_per_env:
                episodes[i].append((float(return_N[i]), int(length_N[i])))
                cut += not ended_N[i]
            skipping_N[i] = not ended_N[i]
        skipping_N &= ~ended_N
        return_N[ended_N] = 0
        length_N[ended_N] = 0
    played = [game for done in episodes for game in done]
    return Scores(tuple(game[0] for game in played), tuple(game[1] for game in played), int(cut))
