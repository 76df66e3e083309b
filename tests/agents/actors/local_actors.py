"""Actors in the process of the test instead of Ray, with scripted environments (tests/agents/scripted.py)."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from tests.agents.scripted import SIZE, Origin, ScriptedEnv
from zerokara.agents.actors.actor import Actor, Chunk, Loss, Lost
from zerokara.agents.configs.dqn import Config
from zerokara.core.compute import Compute

GAMMA = 0.9
SETTINGS: dict[str, Any] = {
    "actors": 2,
    "num_envs": 3,
    "actor_steps": 5,
    "frame_stack": 2,
    "image_size": SIZE,
    "gamma": GAMMA,
    "n_step": 3,
    "clip_rewards": False,
    "total_steps": 600,
    "learning_starts": 120,
    "train_every_steps": 6,
    "batch_size": 16,
    "replay_capacity": 1_200,
    "target_update_steps": 48,
    "hidden_units": 8,
    "width_multiplier": 0.25,
    "eval_every_steps": 0,
    "checkpoint_every_steps": 200,
    "log_every_steps": 60,
    "capture_video": False,
    "device": "cpu",
    "threads": 1,
}


class ActorEnv(ScriptedEnv):
    """Environments of one actor, numbered over all actors. Those of a replaced actor begin with a later episode."""

    def __init__(self, actor: int, num_envs: int, first_episode: int = 0, frame_stack: int = 2) -> None:
        super().__init__(num_envs, frame_stack)
        self.begins = [Origin(actor * num_envs + i, first_episode, 0) for i in range(num_envs)]

    def reset(self, seed: int) -> np.ndarray:
        self.at = self.begins
        return np.stack([self.observe(origin) for origin in self.at])


class Order(NamedTuple):
    """Order of a chunk."""

    actor: int
    version: int
    n_step: int
    gamma: float


class LocalActors:
    """Actors that make a chunk when it is received, in the order of the orders.

    `silent` actors never send anything; the next chunk of an actor in `dying` is lost, together with the actor.
    """

    made: LocalActors  # the last instance
    first_episodes: int = 0

    def __init__(self, config: Config, compute: Compute, loss: Loss, seeds: list[int]) -> None:
        LocalActors.made = self
        self.config, self._arguments = config, (config, compute, loss)
        self.seeds = [[seed] for seed in seeds]
        self.envs = [[ActorEnv(i, config.num_envs)] for i in range(len(seeds))]
        self.actors = [Actor(i, *self._arguments, seed, self.envs[i][0]) for i, seed in enumerate(seeds)]
        self.waiting: deque[tuple[Order, np.ndarray]] = deque()
        self.orders: list[Order] = []
        self.timeouts: list[float] = []
        self.chunks: list[tuple[int, Chunk]] = []
        self.silent: set[int] = set()
        self.dying: set[int] = set()
        self.weights = np.zeros(0, np.int16)

    def publish(self, weights: np.ndarray) -> None:
        self.weights = weights

    def order(self, actor: int, version: int, n_step: int, gamma: float) -> None:
        self.orders.append(Order(actor, version, n_step, gamma))
        if actor not in self.silent:
            self.waiting.append((self.orders[-1], self.weights))

    def receive(self, timeout: float) -> tuple[int, Chunk | Lost] | None:
        self.timeouts.append(timeout)
        if not self.waiting:
            return None
        order, weights = self.waiting.popleft()
        if order.actor in self.dying:
            return order.actor, Lost("killed by the test")
        chunk = self.actors[order.actor].collect(weights, order.version, order.n_step, order.gamma)
        self.chunks.append((order.actor, chunk))
        return order.actor, chunk

    def replace(self, actor: int, seed: int) -> None:
        self.dying.discard(actor)
        self.waiting = deque(waiting for waiting in self.waiting if waiting[0].actor != actor)
        self.seeds[actor].append(seed)
        self.envs[actor].append(ActorEnv(actor, self.config.num_envs, first_episode=20 * len(self.envs[actor])))
        self.actors[actor] = Actor(actor, *self._arguments, seed, self.envs[actor][-1])

    def describe(self) -> str:
        return "in the process of the test"
