"""Actors as actors of Ray: on this machine, or on a Ray cluster.

    with connected(config):                        # Ray is started here, or the cluster of --ray-address joined
        actors = RayActors(config, compute, loss, seeds)

Ray places an actor where `actor_cpus` CPUs are free. Actors without a place wait for one: when a node joins the
cluster, they are placed there, and their first chunks arrive. Ray is imported only here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from zerokara.agents.actors.actor import Actor, Chunk, Loss, Lost
from zerokara.agents.configs.dqn import Config
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.machine import usable_cores
from zerokara.core.scheduling.cluster import check_that_it_answers

MIN_OBJECT_STORE = 1 << 28  # bytes


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Config]:
    """Start Ray on this machine or connect to the cluster of the config, and disconnect after the block.

    Gives the config for choosing the hardware settings of the learner (`leave_cores`). Without actors, nothing is done.
    If the program that calls has connected to Ray, this connection is used.

    Raises:
        UserError: Ray cannot be started, or there is no cluster at this address.
    """
    if not config.actors:
        yield config
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield leave_cores(config)
        return
    if config.ray_address:
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # one attempt of 40 s; by default there are 20
    else:  # Ray gives its workers nice 15, with which they hardly act on a machine that does anything else
        os.environ.setdefault("RAY_worker_niceness", "0")
    options: dict[str, Any] = {"address": config.ray_address} if config.ray_address else _local_options(config)
    try:
        check_that_it_answers(config.ray_address)
        with _signal_handlers():
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        where = f"connect to --ray-address {config.ray_address}" if config.ray_address else "start on this machine"
        remedy = "start the cluster with ray start --head" if config.ray_address else "see the logs in /tmp/ray"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # before it there may be a traceback
        raise UserError(f"Ray could not {where} ({reason}): {remedy}, or leave --actors out.") from error
    try:
        yield leave_cores(config)
    finally:
        ray.shutdown()


def _local_options(config: Config) -> dict[str, Any]:
    """Options with which Ray starts on this machine: a CPU for each actor, however many there are."""
    frame = config.image_size**2 * config.frame_channels
    chunks = 4 * config.total_envs * config.actor_steps * frame
    return {
        "address": "local",
        "num_cpus": math.ceil(config.actors * config.actor_cpus),
        "include_dashboard": False,
        "object_store_memory": MIN_OBJECT_STORE + chunks,
    }


@contextlib.contextmanager
def _signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_cores(config: Config) -> Config:
    """Return the config with threads for the cores that the actors on this machine leave, if it does not set them.

    Actors and learner wait for each other, and the learner stores in one thread: they share one of the cores.
    """
    if not config.actors or config.ray_address or config.threads:
        return config
    actor_cores = math.ceil(config.actors * config.actor_cpus)
    return dataclasses.replace(config, threads=max(1, usable_cores() - actor_cores + 1))


class RayActors:
    """Actors of a config. Ray must have been started.

    Args:
        config: config of the run.
        compute: hardware settings of the learner.
        loss: `dqn_loss`.
        seeds: of the actors.
    """

    def __init__(self, config: Config, compute: Compute, loss: Loss, seeds: list[int]) -> None:
        import ray

        self._ray: Any = ray
        self._config, self._arguments = config, (config, compute, loss)
        # Actors that have ended are replaced by the learner, which must also end their episodes.
        self._class = ray.remote(num_cpus=config.actor_cpus, max_restarts=0)(Actor)
        self._handles: list[Any] = [self._class.remote(i, *self._arguments, seed) for i, seed in enumerate(seeds)]
        # References to the ordered chunks of each actor. Only the oldest is waited for: they must be stored in order.
        self._orders: list[deque[tuple[int, Any]]] = [deque() for _ in seeds]
        self._number = 0  # of the last order
        self._weights: Any = None

    def publish(self, weights: np.ndarray) -> None:
        """See `feed.Actors`. The weights are put into the object store, from which each machine copies them once."""
        self._weights = self._ray.put(weights)

    def order(self, actor: int, version: int, n_step: int, gamma: float) -> None:
        """See `feed.Actors`."""
        chunk = self._handles[actor].collect.remote(self._weights, version, n_step, gamma)
        self._number += 1
        self._orders[actor].append((self._number, chunk))

    def receive(self, timeout: float) -> tuple[int, Chunk | Lost] | None:
        """See `feed.Actors`. Of several chunks that have arrived, the one that was ordered first is returned."""
        ray = self._ray
        oldest = sorted((*orders[0], actor) for actor, orders in enumerate(self._orders) if orders)
        if not oldest:
            return None
        actor_of = {chunk: actor for _, chunk, actor in oldest}
        ready, _ = ray.wait(list(actor_of), num_returns=1, timeout=timeout)
        if not ready:
            return None
        actor = actor_of[ready[0]]
        self._orders[actor].popleft()
        try:
            return actor, ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            # If it has ended in its constructor, the last line is the exception.
            return actor, Lost(lines[-1 if getattr(error, "actor_init_failed", False) else 0].strip())

    def replace(self, actor: int, seed: int) -> None:
        """See `feed.Actors`."""
        self._orders[actor].clear()
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._handles[actor])
        self._handles[actor] = self._class.remote(actor, *self._arguments, seed)

    def describe(self) -> str:
        """See `feed.Actors`."""
        ray, config = self._ray, self._config
        if not config.ray_address:
            return f"{config.actors} on this machine"
        total, free = (resources().get("CPU", 0) for resources in (ray.cluster_resources, ray.available_resources))
        nodes = sum(node["Alive"] for node in ray.nodes())
        cpus = f"{config.actor_cpus:g} CPU{'' if config.actor_cpus == 1 else 's'}"
        return (
            f"{config.actors} with {cpus} each, on a cluster of {nodes} machines with {total:g} "
            f"CPUs, {free:g} of them free; actors without a place wait for one"
        )
