"""Small pixel games of our own, each one file: what tests and the first minute run on."""

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


def make(id: str, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True) -> ArcadeEnv:
    """N copies of the game with this id, which is a key of GAMES.

    Raises:
        UserError: no such game; num_envs or stack below 1.
    """
    if id not in GAMES:
        near = difflib.get_close_matches(id, GAMES, n=1, cutoff=0.0)
        raise UserError(f"there is no arcade game {id!r}: the games are {', '.join(GAMES)}; try --env {near[0]}.")
    return GAMES[id](num_envs, frame_stack=frame_stack, grayscale=grayscale)


def register() -> None:
    """Make the games known to Gymnasium, as single environments: `gymnasium.make("zerokara/Catch-v0")`.

    Gymnasium's own `make_vec` makes vectors of them; the fast ones are `make`'s.
    """
    import gymnasium  # only here: whoever wants nothing but the games should not wait for it

    for game_id in GAMES:
        if game_id not in gymnasium.registry:
            gymnasium.register(
                game_id, entry_point="zerokara.envs.arcade.gymnasium:ArcadeGymnasiumEnv", kwargs={"game_id": game_id}
            )
