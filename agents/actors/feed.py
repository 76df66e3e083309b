"""Learner's side of a DQN run with actors: asks actors for steps, stores them, and keeps the two at the same pace.

    actors = ActorFeed(config, training, training.replay, training.learn, dqn_loss)
    for _ in training.iterations(actors.metrics):
        actors.iterate()                           # in place of training.iterate()

Horgan et al. 2018, "Distributed Prioritized Experience Replay" (Ape-X). Every actor always has one or two orders, each
for a chunk of steps with the newest weights, and the learner takes the chunks in the order in which they arrive, so
that it never waits for a particular actor. Two ratios bound how far one side gets ahead of the other:

* The learner does at most `max_replay_ratio` updates per agent step; then it waits for the next chunk of any actor.
* The actors get no orders while there were fewer than `min_replay_ratio` updates per agent step.

The weights of a chunk are as old as the updates since its order. In a chunk that is older than `max_staleness`, only
the frames are stored, which later stacks need: no transition starts there.

Each environment of each actor has a ring buffer of its own, those of one actor side by side. An actor that ends is
replaced by a new one with other seeds, which continues its ring buffers with new episodes. So is an actor that hangs:
it has an order, and does not send its chunk in `actor_timeout` seconds. Actors without orders wait for the learner, and
on a cluster an actor may wait for a place until its first chunk arrives, so these do not count.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from zerokara.agents.actors.actor import Chunk, Loss, Lost, pack_weights
from zerokara.agents.actors.ray_actors import RayActors
from zerokara.agents.configs.actors import replay_ratios
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.agents.qlearning.replay import Replay
from zerokara.agents.training.replay_buffer import store
from zerokara.agents.training.session import Session
from zerokara.core.checkpoint import later_seed
from zerokara.core.config import UserError

UPDATES_AT_ONCE = 4  # between two looks at what the actors have sent
MAX_WAIT = 0.2  # seconds between two looks at signals while there is nothing to learn from
MAX_ORDERS = 2  # of an actor: it works on one while the chunk of the other is on its way
WEIGHTS_PER_BOUND = 100  # new weights are given when the last ones are older than this part of max_staleness
MAX_FAILURES = 3  # of an actor, without a chunk in between
SILENCE = 60.0  # seconds without a chunk after which a warning is printed
LONGEST_ITERATION = 60.0  # seconds; a longer pause of the learner, which evaluates or was stopped, counts as this


class Actors(Protocol):
    """Actors in other processes."""

    def order(self, actor: int, version: int, n_step: int, gamma: float) -> None:
        """Ask an actor for a chunk, see `Actor.collect`."""

    def receive(self, timeout: float) -> tuple[int, Chunk | Lost] | None:
        """Return an actor and its oldest chunk; None if none has arrived in this time (seconds).

        Of the chunks that have arrived, it is the one that was ordered first.

        Raises:
            UserError: raised in an actor.
        """

    def publish(self, weights: np.ndarray) -> None:
        """Give these weights to the orders from now on."""

    def replace(self, actor: int, seed: int) -> None:
        """End an actor if it has not ended, forget its orders, and start another one in its place."""

    def describe(self) -> str:
        """Describe where the actors run, and what they wait for."""


class ActorFeed:
    """Actors of a run, and what the learner does with them in one iteration.

    Args:
        config: config of the run.
        training: state of the run.
        replay: its replay buffer.
        learn: does the updates that are due, at most the given number.
        loss: `dqn_loss`.
    """

    def __init__(
        self, config: Config, training: Session, replay: Replay, learn: Callable[[int], object], loss: Loss
    ) -> None:
        self.config, self.training, self.replay = config, training, replay
        self._learn, self._loss = learn, loss
        self._actors: Actors | None = None  # started by the first iteration
        self._min_ratio, maximum = replay_ratios(config)
        self._round = config.total_envs * config.actor_steps  # steps of a chunk of every actor
        # Besides the orders, a round of chunks may be stored that the learner has not learned from yet.
        self._max_orders = MAX_ORDERS if (MAX_ORDERS + 2) * self._round * maximum <= config.max_staleness else 1
        self._orders: list[deque[int]] = [deque() for _ in range(config.actors)]  # numbers of the orders of an actor
        self._last_order = 0  # its number
        self._failures = [0] * config.actors
        self._version = -1  # updates of the published weights
        self._silent_since = self._iterated_at = time.monotonic()
        self._clock = 0.0  # seconds of the iterations, each at most `LONGEST_ITERATION`
        self._busy_since = [0.0] * config.actors  # clock at the beginning of the oldest order
        self._placed = set[int]()  # actors that have sent a chunk
        self.replaced = self.stale_steps = 0  # since the start of the run
        self._staleness: list[int] = []  # of the chunks since the last `metrics`
        self._active: set[int] = set()  # actors that sent them
        # Games with much exploration say little of the agent. Environments in the order of the ring buffers.
        epsilon_N = schedules.actor_epsilons(config).ravel()
        training.counted_N = epsilon_N <= np.median(epsilon_N)
        training.seconds = dict.fromkeys(("learn", "store", "blocked"), 0.0)
        training.register(actors=self)

    def iterate(self) -> None:
        """Give orders, store a chunk if one has arrived, and do some of the updates that are due.

        Raises:
            UserError: an environment of an actor failed, or an actor could not be started several times.
        """
        training, config = self.training, self.config
        actors = self._actors = self._actors or self._start()
        is_blocked = training.updates >= schedules.updates_due(config, training.step)
        if is_blocked or training.updates >= self._updates_wanted(training.step - self._round):
            self._give_orders(actors)
        with training.timed("blocked" if is_blocked else "store"):
            arrived = actors.receive(MAX_WAIT if is_blocked else 0.0)
        now = time.monotonic()
        # After a pause a chunk that is ready may not be here yet, so that one pause alone does not make an actor late.
        self._clock += min(now - self._iterated_at, LONGEST_ITERATION, config.actor_timeout / 2 or math.inf)
        self._iterated_at = now
        self._replace_hanging(actors, math.inf if arrived is None else self._orders[arrived[0]][0])
        if arrived is not None:
            self._silent_since = now
            with training.timed("store"):
                self._take(actors, *arrived)
        elif is_blocked and now - self._silent_since > SILENCE:
            self._silent_since = now
            training.run.warn(f"no actor has sent steps for {SILENCE:.0f} s: {actors.describe()}")
        limit = UPDATES_AT_ONCE
        if training.step >= config.total_steps:  # no iteration follows
            limit = max(0, self._updates_wanted(training.step) - training.updates)
        with training.timed("learn"):
            self._learn(limit)

    def _start(self) -> Actors:
        """Start the actors."""
        training, config = self.training, self.config
        seeds = [self._seed(actor) for actor in range(config.actors)]
        actors: Actors = RayActors(config, training.compute, self._loss, seeds)
        training.run.print(f"actors: {actors.describe()}")
        if training.resumed:
            training.run.print("the actors start new episodes: a run with actors is not resumed bit for bit")
        training.start_interval()
        return actors

    def _seed(self, actor: int) -> int:
        """Seed of an actor that starts now: another one after a resume and in place of an actor that has ended."""
        return later_seed(self.training.seed, self.training.step) + 10_007 * (actor + 1) + 1_009 * self.replaced

    def _updates_wanted(self, step: int) -> int:
        """Updates without which the actors wait at an agent step."""
        return int(max(0, step - self.config.learning_starts) * self._min_ratio)

    def _give_orders(self, actors: Actors) -> None:
        """Give every actor its orders for chunks, with weights that are not older than a part of `max_staleness`."""
        training, config = self.training, self.config
        for actor in range(config.actors):
            while len(self._orders[actor]) < self._max_orders:
                age = training.updates - self._version
                if self._version < 0 or age * WEIGHTS_PER_BOUND > config.max_staleness:
                    actors.publish(pack_weights(training.learner.network, training.compute))
                    self._version = training.updates
                actors.order(actor, self._version, *schedules.n_step_and_gamma(config, training.updates))
                if not self._orders[actor]:
                    self._busy_since[actor] = self._clock
                self._last_order += 1
                self._orders[actor].append(self._last_order)

    def _take(self, actors: Actors, actor: int, arrived: Chunk | Lost) -> None:
        """Store a chunk, or replace an actor that has ended."""
        if isinstance(arrived, Lost):
            self._replace(actors, actor, "has ended", arrived.reason)
            return
        self._orders[actor].popleft()
        self._busy_since[actor] = self._clock
        self._failures[actor] = 0
        self._active.add(actor)
        self._placed.add(actor)
        self._store_chunk(arrived, self._rows(actor))

    def _rows(self, actor: int) -> np.ndarray:
        """Ring buffers of an actor."""
        return np.arange(self.config.num_envs) + actor * self.config.num_envs

    def _replace_hanging(self, actors: Actors, arrived: float) -> None:
        """Replace the actors that hang.

        Args:
            actors: actors.
            arrived: number of the order whose chunk has arrived. Chunks of older orders have not; it is not known of
                later ones. Infinity: no chunk has arrived.
        """
        config = self.config
        for actor, orders in enumerate(self._orders):
            is_late = config.actor_timeout > 0 and self._clock - self._busy_since[actor] > config.actor_timeout
            may_wait_for_a_place = config.ray_address and actor not in self._placed
            if is_late and orders and orders[0] < arrived and not may_wait_for_a_place:
                reason = f"it sent nothing for {config.actor_timeout:g} s, --actor-timeout"
                self._replace(actors, actor, "hangs", reason)

    def _replace(self, actors: Actors, actor: int, what: str, reason: str) -> None:
        """Replace an actor that has ended or hangs.

        Raises:
            UserError: it has happened several times without a chunk in between.
        """
        training = self.training
        self._failures[actor] += 1
        if self._failures[actor] >= MAX_FAILURES:
            raise UserError(
                f"Actor {actor} failed {MAX_FAILURES} times without sending steps ({reason}): see the logs of Ray, "
                f"and type the same command with --resume."
            )
        self.replaced += 1
        training.run.warn(f"actor {actor} {what} and is replaced, number {self.replaced} ({reason})")
        training.end_episodes(self._rows(actor))
        self._orders[actor].clear()
        self._placed.discard(actor)
        actors.replace(actor, self._seed(actor))

    def _store_chunk(self, chunk: Chunk, rows: np.ndarray) -> None:
        """Store the steps of a chunk in the ring buffers `rows`, with the priorities of their transitions."""
        training, replay = self.training, self.replay
        staleness = training.updates - chunk.version
        usable = staleness <= self.config.max_staleness
        self._staleness.append(staleness)
        self.stale_steps += 0 if usable else chunk.reward.size
        first_slot = replay.head[rows]
        for frame, action_N, step in chunk.steps():
            store(self.config, replay, frame, action_N, step, rows=rows, usable=usable)
            training.record(step, rows)
        if len(chunk.env):
            assert isinstance(replay, PrioritizedReplay)
            replay.set_priorities(rows[chunk.env], first_slot[chunk.env] + chunk.slot, chunk.td_error)
        training.env.errors += chunk.errors
        training.env.warnings.extend(chunk.warnings)

    def metrics(self) -> dict[str, Any]:
        """Metrics since the last call (docs/distributed.md); speeds since the last log entry or evaluation."""
        training = self.training
        steps, updates = training.interval, training.update_interval
        result: dict[str, Any] = {
            "actors/active": len(self._active),
            "actors/replaced": self.replaced,
            "actors/stale_steps": self.stale_steps,
            "speed/actor_transitions_per_s": steps.per_second(training.step),
            "speed/learner_transitions_per_s": updates.per_second(training.updates) * self.config.batch_size,
        }
        if training.step > steps.count:
            result["actors/replay_ratio"] = (training.updates - updates.count) / (training.step - steps.count)
        if self._staleness:
            result |= {
                "actors/staleness": float(np.mean(self._staleness)),
                "actors/max_staleness": max(self._staleness),
            }
        self._staleness.clear()
        self._active.clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: counts of the whole run."""
        return {"replaced": self.replaced, "stale_steps": self.stale_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned. The episodes end, because the actors start new ones."""
        self.replaced, self.stale_steps = state["replaced"], state["stale_steps"]
        self.training.end_episodes()

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Restore the counts; see `agents.training.parts.Stateful`."""
        self.load_state_dict(states[0])
