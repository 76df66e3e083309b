"""Images and videos logged during training: an episode, the stacked input frames, the filters of the first layer.

Shapes: K stacked frames, F channels of a frame, C = K * F, H, W pixels, A actions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zerokara import envs
from zerokara.agents.configs.common import Settings
from zerokara.agents.qlearning.network import QNetwork
from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.core.compute import Compute
from zerokara.core.config import Stopped, error_summary
from zerokara.core.layers import first_convolution
from zerokara.core.media import MAX_FRAMES, grid
from zerokara.core.run import Run


class EpisodeStep(NamedTuple):
    """One step of a rendered episode."""

    picture: np.ndarray  # (height, width, 3) uint8, rendered before the action
    obs: np.ndarray  # (C, H, W), input of the network
    q_A: np.ndarray  # (A,) float32
    action: int
    reward: float  # raw


def play_episode(
    policy: Policy, env: envs.VectorEnv, *, epsilon: float, max_steps: int, seed: int
) -> Iterator[EpisodeStep]:
    """Play one episode in an environment created with render=True, and yield its steps.

    Args:
        policy: policy that acts.
        env: one environment.
        epsilon: probability of a random action.
        max_steps: agent steps after which the episode is cut.
        seed: seed of environment and exploration.
    """
    exploration = Exploration(1, env.num_actions, seed)
    obs = env.reset(seed)
    policy.forget()
    for _ in range(max_steps):
        picture = env.render()
        q_A = policy.compute.to_host(policy.values(obs)[0]).numpy()
        explore_N, random_N = exploration.sample(epsilon)
        action = int(random_N) if explore_N else int(q_A.argmax())
        step = env.step(np.array([action]))
        yield EpisodeStep(picture, obs[0], q_A, action, float(step.reward[0]))
        if step.terminal[0] or step.truncated[0]:
            return
        obs = step.obs


def frames_per_second(env: envs.VectorEnv) -> float:
    """Agent steps per second of real time: Atari runs at 60 frames per second, divided by the frame skip."""
    return 60 / (env.settings.get("frame_skip") or 4)


def log_video(policy: Policy, config: Settings, run: Run, step: int) -> bool:
    """Record an episode as mp4 and in TensorBoard. A failure prints a warning and does not stop the run.

    Returns False if a signal interrupted the recording; there is then no video.
    """
    try:
        with (
            run.interruptible(),
            contextlib.closing(envs.make(config.env, 1, render=True, resumable=False, **config.env_settings())) as env,
        ):
            episode = play_episode(
                policy,
                env,
                epsilon=config.eval_epsilon,
                max_steps=MAX_FRAMES + 1,  # `Run.video` cuts a longer episode, and says so
                seed=config.seed + step % 1_000_003,
            )
            first = next(episode)  # if the environment cannot be rendered, no video is begun
            run.video("game", step, _pictures(first, episode, run, step), fps=frames_per_second(env))
    except Stopped:
        return False
    except Exception as error:  # noqa: BLE001
        run.warn(f"no video was recorded at step {step:,}: {error_summary(error)}")
    return True


def _pictures(first: EpisodeStep, rest: Iterator[EpisodeStep], run: Run, step: int) -> Iterator[np.ndarray]:
    """Yield the rendered images of an episode, up to an exception of the environment if there is one."""
    yield first.picture
    try:
        yield from (episode_step.picture for episode_step in rest)
    except Exception as error:  # noqa: BLE001
        run.warn(f"the video of step {step:,} ends early: {error_summary(error)}")


def log_images(network: QNetwork, obs_NCHW: np.ndarray, frame_channels: int, run: Run, step: int) -> None:
    """Log the stacked frames of the first environment, oldest at the left, and the filters of the first layer.

    Nothing is logged of vectors, and no filters if the first convolution of a network of one's own does not take the
    frames themselves.
    """
    if obs_NCHW.dtype != np.uint8:
        return
    stack = obs_NCHW[0].reshape(-1, frame_channels, *obs_NCHW.shape[2:])
    run.image("input_stack", step, grid(stack, columns=len(stack), scale=2))
    convolution = first_convolution(network)
    if convolution is None or convolution.weight.shape[1] != obs_NCHW.shape[1]:
        return
    filters = Compute.to_host(convolution.weight)  # (out, C, k, k)
    frames = filters.shape[1] // frame_channels
    tiles = filters.reshape(-1, frame_channels, *filters.shape[2:])
    run.image("first_layer", step, grid(tiles, columns=4 * frames, scale=4))
