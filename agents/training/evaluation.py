"""Evaluation on complete episodes with raw returns, the same number of episodes in every environment.

Counting the first episodes that end would overrepresent short ones. Therefore every environment contributes the same
number of episodes. An episode that does not end (in Breakout the ball can bounce forever) is cut after `max_steps`, and
its return so far counts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.core.config import Stopped
from zerokara.core.distributed import World
from zerokara.envs.base import VectorEnv

MAX_ENVS = 32  # more parallel environments hardly increase the speed
VIDEO_EPISODES = 5  # a video takes as much time as this many of the episodes that a process evaluates in parallel


@dataclass(frozen=True)
class Scores:
    """Raw returns and lengths of the evaluated episodes, in the order of the environments."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]  # agent steps
    cut: int = 0  # episodes that were cut after `max_steps`

    @property
    def mean(self) -> float:
        """Mean raw return."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; 0 for one episode."""
        number = len(self.returns)
        return float(np.std(self.returns, ddof=1) / number**0.5) if number > 1 else 0.0


def evaluation_metrics(scores: Scores, confirmation: Scores | None) -> dict[str, float]:
    """Return the metrics of an evaluation, and of a second one that was to confirm it, if there was one."""
    metrics = {"eval/return": scores.mean, "eval/length": float(np.mean(scores.lengths)), "eval/cut": scores.cut}
    if confirmation is not None:
        metrics |= {"eval/return_confirmed": confirmation.mean, "eval/cut_confirmed": confirmation.cut}
    return metrics


def parallel_episodes(episodes: int) -> int:
    """Return the number of environments for an evaluation: the largest divisor of `episodes` up to `MAX_ENVS`."""
    return max(n for n in range(1, MAX_ENVS + 1) if episodes % n == 0)


def divide_episodes(episodes: int, processes: int) -> list[int]:
    """Return the number of episodes that each process evaluates; the first one also has time for a video.

    The division is the same without a video, so that the option does not change results.
    """
    first = episodes if processes == 1 else max(0, (episodes + VIDEO_EPISODES) // processes - VIDEO_EPISODES)
    others = processes - 1
    return [first, *((episodes - first) // others + (i < (episodes - first) % others) for i in range(others))]


def evaluate_in_processes(
    world: World, episodes: int, evaluate_shard: Callable[[int], Scores], record: Callable[[], object]
) -> Scores:
    """Divide an evaluation among the processes. Returns the scores of all episodes in every process.

    Args:
        world: processes, all of which make this call.
        episodes: number of episodes of all processes.
        evaluate_shard: evaluates a number of episodes, which is above 0, in this process.
        record: records a video. The main process calls it after its episodes, before it waits for the others.

    Raises:
        Stopped: a signal interrupted the evaluation in one of the processes.
    """
    number = divide_episodes(episodes, world.size)[world.rank]
    own: Scores | None = None
    with contextlib.suppress(Stopped):
        own = evaluate_shard(number) if number else Scores((), ())
        if world.is_main:
            record()
    shards = [scores for scores in world.gather(own) if scores is not None]
    if len(shards) < world.size:
        raise Stopped
    returns = itertools.chain.from_iterable(scores.returns for scores in shards)
    lengths = itertools.chain.from_iterable(scores.lengths for scores in shards)
    return Scores(tuple(returns), tuple(lengths), sum(scores.cut for scores in shards))


def evaluate(
    policy: Policy,
    env: VectorEnv,
    *,
    episodes_per_env: int,
    epsilon: float,
    max_steps: int,
    seed: int,
) -> Scores:
    """Run complete episodes with an epsilon-greedy policy.

    Args:
        policy: policy to evaluate.
        env: environments, all of which are reset.
        episodes_per_env: number of episodes in each environment.
        epsilon: probability of a random action.
        max_steps: agent steps after which an episode is cut.
        seed: seed of environments and exploration; the same seed gives the same episodes.
    """
    exploration = Exploration(env.num_envs, env.num_actions, seed)
    obs = env.reset(seed)
    policy.forget()
    return_N = np.zeros(env.num_envs)
    length_N = np.zeros(env.num_envs, np.int64)
    episodes: list[list[tuple[float, int]]] = [[] for _ in range(env.num_envs)]
    skipping_N = np.zeros(env.num_envs, bool)  # after a cut, the rest of the episode is not counted
    cut = 0
    while waiting := [i for i, done in enumerate(episodes) if len(done) < episodes_per_env]:
        if skipping_N[waiting].all():
            # All environments with episodes left are past a cut. Reset, because such an episode may never end.
            seed += 1
            obs = env.reset(seed)
            policy.forget()
            return_N[:] = length_N[:] = skipping_N[:] = 0
        step = env.step(policy.act(obs, epsilon, exploration))
        obs = step.obs
        return_N += step.reward
        length_N += 1
        ended_N = step.terminal | step.truncated
        policy.forget(ended_N)
        for i in np.flatnonzero((ended_N | (length_N >= max_steps)) & ~skipping_N):
            if len(episodes[i]) < episodes_per_env:
                episodes[i].append((float(return_N[i]), int(length_N[i])))
                cut += not ended_N[i]
            skipping_N[i] = not ended_N[i]
        skipping_N &= ~ended_N
        return_N[ended_N] = 0
        length_N[ended_N] = 0
    finished = [episode for done in episodes for episode in done]
    return Scores(tuple(episode[0] for episode in finished), tuple(episode[1] for episode in finished), int(cut))
