"""Data sets of observations, recorded from any environment under a random policy.

images = record("ALE/Pong-v5", 10_000, seed=1)                       # (N, 1, 84, 84) uint8
stacks = record("zerokara/Catch-v0", 10_000, seed=1, frame_stack=4)  # (N, 4, 84, 84), observations of an agent

Shapes: N images, C = frame_stack * (1 grayscale, 3 RGB), H, W pixels.
"""

from __future__ import annotations

import numpy as np

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.core.data.types import Progress

STEPS_BETWEEN = 3  # average number of steps between two images, because successive frames are nearly equal


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
    """Record observations (number, C, H, W) uint8 of a uniformly random policy.

    Args:
        id: id of the environment, see `envs.make`.
        number: N.
        seed: the same seed gives the same images.
        frame_stack: frames per observation, oldest first.
        size: height and width in pixels.
        grayscale: one channel per frame instead of three (RGB).
        num_envs: environments stepped in parallel.
        progress: called with a message, the number of images recorded so far, and `number`.

    Raises:
        UserError: an unknown environment, or settings that it does not support.
    """
    if number < 1:
        raise UserError(f"the number of frames must be at least 1, got {number}.")
    env = envs.make(id, num_envs, frame_stack=frame_stack, size=size, grayscale=grayscale, resumable=False)
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
                progress(f"frames of {id} recorded with random actions", done, number)
    finally:
        env.close()
    return images
