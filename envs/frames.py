"""Frames of any environment as an image set: what a painter or a classifier sees of a game.

images = record("ALE/Pong-v5", 10_000, seed=1)             # (N, 1, 84, 84) uint8
stacks = record("zerokara/Catch-v0", 10_000, seed=1, frame_stack=4)  # as an agent sees it

Shapes: N images, C = stack * colours, H, W pixels.
"""

from __future__ import annotations

import numpy as np

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.core.data.types import Progress

STEPS_BETWEEN = 3  # neighbours in time show nearly the same


def record(
    id: str,
    number: int,
    *,
    seed: int,
    frame_stack: int = 1,
    size: int = 84,
    grayscale: bool = True,
    num_envs: int = 16,
    progress: Progress | None = None,
) -> np.ndarray:
    """Observations (number, C, H, W) uint8 of games that are played at random.

    Args:
        id: as `envs.make` takes it.
        number: N.
        seed: the same seed gives the same images.
        stack: frames in an observation, oldest first.
        size: height and width, in pixels.
        grey: one colour, else three.
        num_envs: games played side by side.
        progress: told how many images there are.

    Raises:
        UserError: no such environment, or settings that it does not have.
    """
    if number < 1:
        raise UserError(f"The number of frames must be at least 1, got {number}.")
    env = envs.make(id, num_envs, frame_stack=frame_stack, size=size, grayscale=grayscale)
    try:
        rng = np.random.default_rng(seed)
        obs = env.reset(seed)
        images = np.empty((number, *obs.shape[1:]), np.uint8)
        done = 0
        while done < number:
            for _ in range(1 + int(rng.integers(2 * STEPS_BETWEEN))):
                obs = env.step(rng.integers(env.num_actions, size=num_envs)).obs
            taken = min(num_envs, number - done)
            images[done : done + taken] = obs[:taken]
            done += taken
            if progress is not None:
                progress(f"playing {id} at random", done, number)
    finally:
        env.close()
    return images
