"""Sets of Atari games by name, and the prediction of the median of 57 games from the scores of five or ten.

atari-5, atari-10: Aitchison, Sweetser and Hutter 2023, "Atari-5: Distilling the Arcade Learning Environment down to
Five Games" (arXiv 2210.02019). The coefficients and the relative errors are those that its code computes
(maitchison/Atari-5, 118cad5, atari5.py) and its authors use (maitchison/PPO, d3e3228, tools/plot_util.py, SUBSETS):

    log10(1 + median) = sum over games of c_game log10(1 + max(0, score)),    scores and median in percent of human play

The regression has no intercept. It was fitted to published algorithms with a median above 40% (44 of them have scores
of all games of atari-5, 42 of atari-10).

atari-26: the games of Atari 100k (Kaiser et al. 2020). atari-57: all games with reference scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zerokara.agents.benchmarking.atari_scores import SCORES
from zerokara.core.config import UserError, suggest


@dataclass(frozen=True)
class Regression:
    """Regression of the median human-normalized score of 57 games on the scores of a few."""

    coefficients: Mapping[str, float]  # game -> c_game
    error: float  # mean absolute error of the logarithm in 10-fold cross-validation, as a fraction of the median

    def predict(self, scores: Mapping[str, float]) -> float:
        """Predict the median from human-normalized scores (0: random play, 1: human) of all games; same scale."""
        percent = 100 * np.array([max(0.0, scores[game]) for game in self.coefficients])
        log_median = np.array(list(self.coefficients.values())) @ np.log10(1 + percent)
        return float((10**log_median - 1) / 100)


FITTED_ABOVE = 0.4  # the regressions were fitted to algorithms with a larger median; below, they extrapolate

REGRESSIONS: Mapping[str, Regression] = {
    "atari-5": Regression(
        {
            "BattleZone": 0.3819751237831753,
            "DoubleDunk": 0.0679099488887574,
            "NameThisGame": 0.310804148620847,
            "Phoenix": 0.12412619402774641,
            "Qbert": 0.08048518286466755,
        },
        0.104,
    ),
    "atari-10": Regression(
        {
            "Amidar": 0.08246357439570691,
            "Bowling": 0.0559032813915904,
            "Frostbite": 0.06912572845204429,
            "KungFuMaster": 0.09861731598935165,
            "Riverraid": 0.048594292965417056,
            "BattleZone": 0.18882008828001498,
            "DoubleDunk": 0.08519154019954558,
            "NameThisGame": 0.12869695652405946,
            "Phoenix": 0.16432707026384483,
            "Qbert": 0.05922863791062832,
        },
        0.072,
    ),
}

ATARI_26 = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand"),
    *("CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull"),
    *("KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown"),
)

SETS: Mapping[str, tuple[str, ...]] = {
    **{name: tuple(regression.coefficients) for name, regression in REGRESSIONS.items()},
    "atari-26": ATARI_26,
    "atari-57": tuple(SCORES),
}


def env_id(game: str) -> str:
    """Return the environment of an Atari game."""
    return f"ALE/{game}-v5"


def environments(words: Sequence[str]) -> tuple[str, ...]:
    """Return the environments of games and of sets of games, each once: "atari-5" or "Pong".

    Raises:
        UserError: a word is neither a set nor one of the 57 games.
    """
    games: list[str] = []
    by_lower = {game.lower(): game for game in SCORES}
    for word in words:
        if word in SETS:
            games += SETS[word]
        elif word.lower() in by_lower:
            games.append(by_lower[word.lower()])
        else:
            raise UserError(
                f"--games cannot be {word!r}{suggest(word, [*SETS, *SCORES])}: it must be {', '.join(SETS)}, or one of "
                f"the 57 games, such as Pong; give other environments with --envs."
            )
    return tuple(env_id(game) for game in dict.fromkeys(games))
