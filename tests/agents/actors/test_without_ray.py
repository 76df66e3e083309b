"""Tests of agents/actors/ray_actors.py with a stand-in for Ray: its start, the order of chunks, lost actors."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.agents.actors.local_actors import SETTINGS
from zerokara.agents.actors import ray_actors
from zerokara.agents.actors.actor import Lost
from zerokara.agents.actors.ray_actors import RayActors, connected, leave_cores
from zerokara.agents.configs.dqn import Config
from zerokara.core.compute import Compute
from zerokara.core.config import UserError


class RayError(Exception):
    """Error of Ray."""


class RayTaskError(RayError):
    """Exception that a method of an actor raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ActorDied(RayError):
    """Actor that has ended."""

    actor_init_failed = False


class FakeRay(ModuleType):
    """Stand-in for the module ray. References are names, and `results` has what has arrived."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.options: dict[str, Any] | None = None
        self.running = False
        self.results: dict[str, Any] = {}
        self.waited: list[tuple[list[str], float]] = []
        self.made: list[tuple[Any, ...]] = []
        self.killed: list[Any] = []
        self.remote_options: dict[str, Any] = {}
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        self.options, self.running = options, True

    def shutdown(self) -> None:
        self.running = False

    def put(self, value: Any) -> Any:
        return ("put", value.tolist())

    def kill(self, handle: Any) -> None:
        self.killed.append(handle)
        raise RayError("it has ended already")

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert num_returns == 1
        self.waited.append((references, timeout))
        return [name for name in references if name in self.results][:1], []

    def get(self, reference: str) -> Any:
        result = self.results.pop(reference)
        if isinstance(result, Exception):
            raise result
        return result

    def remote(self, **options: Any) -> Callable[[type[Any]], Any]:
        self.remote_options = options

        def make(*arguments: Any) -> Any:
            self.made.append(arguments)
            number = len(self.made)
            names = iter(f"{number}-{letter}" for letter in "abcdefgh")

            def collect(*order: Any) -> str:
                self.orders.append(order)
                return next(names)

            return SimpleNamespace(number=number, collect=SimpleNamespace(remote=collect))

        self.orders: list[tuple[Any, ...]] = []
        return lambda cls: SimpleNamespace(remote=make)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness", "RAY_gcs_server_port_wait_time_s"):
        monkeypatch.setenv(name, "")  # so that what the test sets is removed
        monkeypatch.delenv(name)
    return fake


def nothing(*arguments: Any) -> Any:
    return None


def config(**changes: Any) -> Config:
    return Config(**(SETTINGS | {"threads": 0} | changes))


def test_ray_is_started_on_this_machine_with_a_place_for_every_actor(ray: FakeRay) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with connected(config(actors=5, actor_cpus=0.5)):
        assert ray.running
        assert ray.options is not None
        assert (ray.options["address"], ray.options["num_cpus"]) == ("local", 3)
        assert signal.getsignal(signal.SIGTERM) is handler, "Ray sets a handler of its own"
    assert not ray.running


def test_a_cluster_is_joined_at_its_address(ray: FakeRay) -> None:
    with connected(config(ray_address="auto")):
        assert ray.options is not None
        assert ray.options["address"] == "auto"
        assert "num_cpus" not in ray.options


def test_without_actors_nothing_is_started_and_an_existing_connection_is_kept(ray: FakeRay) -> None:
    with connected(config(actors=0)):
        assert not ray.running
    ray.running = True
    with connected(config()):
        assert ray.options is None
    assert ray.running


@pytest.mark.parametrize("running", [False, True])
def test_the_hardware_settings_of_the_learner_are_chosen_for_the_cores_that_actors_leave(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    monkeypatch.setattr(ray_actors, "usable_cores", lambda: 8)
    ray.running = running
    for actors, threads in ((0, 0), (3, 6)):
        of_run = config(actors=actors)
        with connected(of_run) as hardware:
            assert hardware == dataclasses.replace(of_run, threads=threads)


def test_a_failure_to_connect_is_one_sentence(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("Traceback\n  File ...\nno cluster here\n")

    monkeypatch.setattr(ray, "init", fail)
    message = r"^Ray could not connect to --ray-address auto \(no cluster here\): start .* ray start --head, or leave"
    for changes, expected in (
        ({"ray_address": "auto"}, message),
        ({}, r"^Ray could not start on this machine \(no cluster here\)"),
        ({"ray_address": "127.0.0.1:1"}, r"--ray-address 127.0.0.1:1 \(.*refused"),
    ):
        with pytest.raises(UserError, match=expected), connected(config(**changes)):
            pass


def test_the_learner_has_the_cores_that_the_actors_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors, "usable_cores", lambda: 8)
    assert leave_cores(config(actors=1)).threads == 8
    assert leave_cores(config(actors=2)).threads == 7
    assert leave_cores(config(actors=3, actor_cpus=0.5)).threads == 7
    assert leave_cores(config(actors=8)).threads == 1
    assert leave_cores(config(actors=16)).threads == 1
    assert leave_cores(config(actors=2, threads=3)).threads == 3
    assert leave_cores(config(actors=0)).threads == 0
    assert leave_cores(config(ray_address="auto")).threads == 0


def make(ray: FakeRay) -> RayActors:
    actors = RayActors(config(actor_cpus=2.0), Compute(), nothing, [5, 6])
    actors.publish(np.zeros(2, np.int16))
    return actors


def test_chunks_are_taken_in_the_order_of_the_orders_and_of_an_actor_one_after_another(ray: FakeRay) -> None:
    actors = make(ray)
    assert ray.remote_options == {"num_cpus": 2.0, "max_restarts": 0}
    assert [(made[0], made[-1]) for made in ray.made] == [(0, 5), (1, 6)]
    assert actors.receive(0.0) is None
    assert ray.waited == [], "there are no orders"
    for actor in (1, 0, 1):
        actors.order(actor, 7, 3, 0.9)
    assert ray.orders[0] == (("put", [0, 0]), 7, 3, 0.9)
    assert actors.receive(0.5) is None
    ray.results = {"2-b": "second of actor 1"}
    assert actors.receive(0.0) is None, "the first one of this actor has not arrived"
    ray.results |= {"1-a": "first of actor 0", "2-a": "first of actor 1"}
    received: list[Any] = [actors.receive(0.0) for _ in range(4)]
    assert received == [(1, "first of actor 1"), (0, "first of actor 0"), (1, "second of actor 1"), None]
    assert ray.waited[0] == (["2-a", "1-a"], 0.5)
    assert ray.waited[3] == (["1-a", "2-b"], 0.0)


def test_an_actor_that_has_ended_is_reported_and_replaced(ray: FakeRay) -> None:
    actors = make(ray)
    for actor in (0, 0, 1):
        actors.order(actor, 0, 3, 0.9)
    ray.results = {"1-a": ActorDied("The actor died.\n\tpid: 3\n"), "2-a": "a chunk"}
    assert actors.receive(0.0) == (0, Lost("The actor died."))
    chunk: Any = actors.receive(0.0)
    assert chunk == (1, "a chunk")
    actors.replace(0, 99)
    ray.results = {"1-b": "a chunk of the actor that has ended"}
    assert actors.receive(0.0) is None, "its other orders are forgotten"
    assert [handle.number for handle in ray.killed] == [1]
    assert (ray.made[-1][0], ray.made[-1][-1]) == (0, 99)
    actors.order(0, 0, 3, 0.9)
    failed = ActorDied("The actor died because of an error in its constructor,\nTraceback\nUserError: no such game")
    failed.actor_init_failed = True
    ray.results = {"3-a": failed}
    assert actors.receive(0.0) == (0, Lost("UserError: no such game"))


def test_an_error_of_the_user_is_raised_and_a_bug_too(ray: FakeRay) -> None:
    actors = make(ray)
    actors.order(0, 0, 3, 0.9)
    actors.order(0, 0, 3, 0.9)
    ray.results = {"1-a": RayTaskError(UserError("the environment failed.")), "1-b": RayTaskError(ValueError("a bug"))}
    with pytest.raises(UserError, match="the environment failed"):
        actors.receive(0.0)
    with pytest.raises(RayTaskError, match="a bug"):
        actors.receive(0.0)


def test_it_is_described_where_the_actors_run(ray: FakeRay) -> None:
    assert make(ray).describe() == "2 on this machine"
    ray.cluster_resources = lambda: {"CPU": 8.0}  # type: ignore[attr-defined]
    ray.available_resources = lambda: {"CPU": 2.0}  # type: ignore[attr-defined]
    ray.nodes = lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}]  # type: ignore[attr-defined]
    actors = RayActors(config(ray_address="auto"), Compute(), nothing, [1, 2])
    assert actors.describe() == (
        "2 with 1 CPU each, on a cluster of 2 machines with 8 CPUs, 2 of them free; actors without a place wait for one"
    )
