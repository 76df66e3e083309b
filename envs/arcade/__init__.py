"""Small arcade games, one file per game in NumPy and one in C, for tests and for short first training runs."""

from __future__ import annotations

import difflib

from zerokara.core.config import UserError
from zerokara.envs.arcade.base import ArcadeEnv
from zerokara.envs.arcade.breaker import Breaker
from zerokara.envs.arcade.catch import Catch
from zerokara.envs.arcade.shooter import Shooter
from zerokara.envs.arcade.snake import Snake

GAMES: dict[str, type[ArcadeEnv]] = {
    "zerokara/Breaker-v0": Breaker,
    "zerokara/Catch-v0": Catch,
    "zerokara/Shooter-v0": Shooter,
    "zerokara/Snake-v0": Snake,
}


def make(id: str, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True, compile: bool = True) -> ArcadeEnv:
    """Create N copies of the game `id`, a key of GAMES.

    Args:
        id: name of the game.
        num_envs: N.
        frame_stack: frames per observation.
        grayscale: one channel per frame instead of three (RGB).
        compile: step the games in C if there is a C compiler, which changes nothing but the speed.

    Raises:
        UserError: unknown game; num_envs or frame_stack below 1.
    """
    if id not in GAMES:
        similar = difflib.get_close_matches(id, GAMES, n=1, cutoff=0.0)
        raise UserError(f"unknown arcade game {id!r}: expected one of {', '.join(GAMES)}; try --env {similar[0]}.")
    env = GAMES[id](num_envs, frame_stack=frame_stack, grayscale=grayscale)
    if compile:
        env.compile()
    return env


def register() -> None:
    """Register the games with Gymnasium as single environments: `gymnasium.make("zerokara/Catch-v0")`.

    Gymnasium's `make_vec` works, too, but `make` of this module is much faster.
    """
    import gymnasium  # imported here, because it is slow to import and the games alone do not need it

    for game_id, game in GAMES.items():
        if game_id not in gymnasium.registry:
            gymnasium.register(
                game_id,
                entry_point="zerokara.envs.arcade.gymnasium:ArcadeGymnasiumEnv",
                max_episode_steps=game.time_limit_steps,
                kwargs={"game_id": game_id},
            )
