"""What a raw return is worth: scales on which scores of different games can be averaged.

Atari: random play is 0, a professional tester 1 (agents/benchmarking/atari_scores.py). The arcade games: random play
is 0, their scripted expert 1, both measured here over 100 whole games. Other environments have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from zerokara.agents.benchmarking.atari_scores import reference
from zerokara.envs import arcade

GAMES = 100


@dataclass(frozen=True)
class Scale:
    """The raw returns that count as 0 and as 1."""

    low: float
    high: float
    words: str

    def normalize(self, score: float) -> float:
        """Where a raw return lies between the two."""
        return (score - self.low) / (self.high - self.low)


@cache
def scale(env_id: str) -> Scale | None:
    """The scale of an environment; None where nobody and nothing was measured."""
    if (scores := reference(env_id)) is not None:
        return Scale(*scores, "random play 0, a human 1")
    if env_id in arcade.GAMES:
        return Scale(_play(env_id, expert=False), _play(env_id, expert=True), "random play 0, the scripted expert 1")
    return None


def _play(env_id: str, *, expert: bool) -> float:
    """Mean raw return of whole games, one in each environment."""
    env, generator = arcade.make(env_id, GAMES), np.random.default_rng(0)
    env.reset(seed=0)
    return_N, done_N = np.zeros(GAMES), np.zeros(GAMES, bool)
    while not done_N.all():
        step = env.step(env.expert() if expert else generator.integers(env.num_actions, size=GAMES))
        return_N += np.where(done_N, 0, step.reward)
        done_N |= step.terminal | step.truncated
    env.close()
    return float(return_N.mean())
