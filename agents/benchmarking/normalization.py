"""Score normalization, so that scores of different games can be averaged.

Atari: random play is 0, a professional human tester 1 (agents/benchmarking/atari_scores.py). Arcade games of zerokara:
random play is 0, the scripted expert 1; both are measured here over 100 complete episodes. Other environments have no
reference scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from zerokara.agents.benchmarking.atari_scores import reference_scores
from zerokara.envs import arcade

EPISODES = 100


@dataclass(frozen=True)
class Scale:
    """Raw returns that are normalized to 0 and to 1."""

    low: float
    high: float
    words: str  # description; the name is a key in results.json

    def normalize(self, score: float) -> float:
        """Normalize a raw return."""
        return (score - self.low) / (self.high - self.low)


@cache
def score_scale(env_id: str) -> Scale | None:
    """Return the scale of an environment; None if it has no reference scores."""
    if (scores := reference_scores(env_id)) is not None:
        return Scale(*scores, "random play 0, human 1")
    if env_id in arcade.GAMES:
        low, high = _mean_return(env_id, expert=False), _mean_return(env_id, expert=True)
        return Scale(low, high, "random play 0, scripted expert 1")
    return None


def _mean_return(env_id: str, *, expert: bool) -> float:
    """Measure the mean raw return of EPISODES complete episodes, one in each environment."""
    env, generator = arcade.make(env_id, EPISODES), np.random.default_rng(0)
    env.reset(seed=0)
    return_N, done_N = np.zeros(EPISODES), np.zeros(EPISODES, bool)
    while not done_N.all():
        step = env.step(env.expert() if expert else generator.integers(env.num_actions, size=EPISODES))
        return_N += np.where(done_N, 0, step.reward)
        done_N |= step.terminal | step.truncated
    env.close()
    return float(return_N.mean())
