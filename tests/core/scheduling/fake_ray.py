"""Imitation of the part of Ray that zerokara.core.scheduling.cluster uses: actors are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Base of Ray's exceptions."""


class Reference:
    """Result of a call."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.value: Any = None

    def set(self, value: Any) -> None:
        """Store the first result; later ones, of a call whose actor was killed, are dropped."""
        if not self.event.is_set():
            self.value = value
            self.event.set()


class Actor:
    """Handle of an actor, whose calls run in threads once `alive` is set."""

    def __init__(self, instance: Any, alive: threading.Event) -> None:
        self.instance, self.alive = instance, alive
        self.pending: list[Reference] = []
        self.death: RayError | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.instance, name)
        return SimpleNamespace(remote=lambda *args, **kwargs: self.call(lambda: method(*args, **kwargs)))

    def call(self, function: Callable[[], Any]) -> Reference:
        reference = Reference()
        self.pending.append(reference)
        if self.death is not None:
            reference.set(self.death)

        def run() -> None:
            self.alive.wait()
            reference.set(function())

        threading.Thread(target=run, daemon=True).start()
        return reference

    def die(self, reason: str) -> None:
        """End as when the node or the worker is lost."""
        self.death = RayError(f"The actor died unexpectedly.\n{reason}.")
        for reference in self.pending:
            reference.set(self.death)


class FakeRay:
    """The module ray.

    Args:
        nodes: resources of each node.
        start: called with the handle of each new actor; starts it by `alive.set()`. None: starts all.
    """

    def __init__(
        self, nodes: Sequence[dict[str, float]], start: Callable[[Actor], object] = lambda actor: actor.alive.set()
    ) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError)
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=strategies)
        self.resources, self.start = nodes, start
        self.actors: list[Actor] = []
        self.wanted: list[dict[str, Any]] = []  # resources of each actor
        self.killed: list[Actor] = []
        self.is_connected = False
        self.seen: Any = None  # what the nodes answer to `look_at`; None: what it returns

    def init(self, **keywords: Any) -> None:
        self.is_connected = True

    def shutdown(self) -> None:
        self.is_connected = False

    def nodes(self) -> list[dict[str, Any]]:
        alive = [
            {"Alive": True, "NodeID": str(i), "NodeManagerHostname": f"node{i}", "Resources": resources}
            for i, resources in enumerate(self.resources)
        ]
        return [*alive, {"Alive": False, "NodeID": "dead", "NodeManagerHostname": "dead", "Resources": {}}]

    def cluster_resources(self) -> dict[str, float]:
        return {key: sum(node.get(key, 0) for node in self.resources) for key in ("CPU", "GPU")}

    def remote(self, **resources: Any) -> Callable[[Any], Any]:
        def decorate(target: Any) -> Any:
            if isinstance(target, type):
                return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: self.make(target, resources)))
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *args: self.task(target, *args)))

        return decorate

    def task(self, function: Callable[..., Any], *args: Any) -> Reference:
        reference = Reference()
        reference.set(function(*args) if self.seen is None else self.seen)
        return reference

    def make(self, target: Any, resources: dict[str, Any]) -> Actor:
        actor = Actor(target(), threading.Event())
        self.actors.append(actor)
        self.wanted.append(resources)
        self.start(actor)
        return actor

    def wait(self, references: Sequence[Reference], timeout: float) -> tuple[list[Reference], list[Reference]]:
        ready = [reference for reference in references if reference.event.is_set()]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        assert reference.event.wait(60)
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)
        actor.die("It was killed by ray.kill")
