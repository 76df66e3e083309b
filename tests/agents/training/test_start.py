"""Tests of the start of a training program: what is checked, measured, trained and closed, and with what."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.agents.scripted import ScriptedEnv
from zerokara import envs
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training import start
from zerokara.agents.training.start import Resources, start_run
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.config import UserError
from zerokara.core.distributed import World

CHOSEN, MEASURED = Compute(threads=1, reason="chosen"), Compute(threads=2, reason="measured")


class FakeRun:
    """Run without a folder, with a record of the calls."""

    callback: object = None

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def compute(self, choose: Callable[[], Compute], total: int) -> Compute:
        self.calls.append(("total", total))
        return choose()

    def close(self, line: str) -> None:
        self.calls.append(("closing message", line))


class Env(ScriptedEnv):
    """Environments that record when they are closed."""

    def __init__(self, num_envs: int, calls: list[Any]) -> None:
        super().__init__(num_envs)
        self.calls = calls
        calls.append(("environments", num_envs))

    def close(self) -> None:
        self.calls.append("environments closed")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a record of what is done; there are two processes, of which this is the first."""
    calls: list[Any] = []

    @contextlib.contextmanager
    def open_run(config: Config, kind: str, world: World) -> Iterator[FakeRun]:
        calls.append(("open", kind, world.size))
        yield FakeRun(calls)
        calls.append("run closed")

    def choose_compute(config: Config, world: World, timed: TrainStep, updates: int) -> Compute:
        calls.append(("choose", config.threads, world.size, updates, timed.batch_size, timed.multiple_of))
        timed.make(MEASURED, 16)()
        return CHOSEN

    monkeypatch.setattr(World, "from_env", lambda device: World(size=2))
    monkeypatch.setattr(envs, "make", lambda env, num_envs, **settings: Env(num_envs, calls))
    monkeypatch.setattr(start, "open_run", open_run)
    monkeypatch.setattr(start, "choose_compute", choose_compute)
    return calls


def probe_step(config: Config, resources: Resources, batch_size: int) -> Callable[[], object]:
    """Record what is measured in the environments' record of calls."""
    assert isinstance(resources.env, Env)
    of = config.num_envs, batch_size, resources.env.num_envs, resources.world.size, resources.compute.reason
    return lambda: resources.env.calls.append(("measured", *of))  # type: ignore[attr-defined]


def train(config: Config, run: Any, resources: Resources) -> str:
    """Record what is trained."""
    of = config.num_envs, resources.env.num_envs, resources.world.size, resources.compute.reason
    run.calls.append(("trained", *of, run.callback))
    return "done"


def test_a_program_measures_one_process_and_trains_all_of_them(calls: list[Any]) -> None:
    config = Config(num_envs=6, total_steps=90, image_size=36)

    @contextlib.contextmanager
    def connected(config: Config) -> Iterator[Config]:
        calls.append("connected")
        yield dataclasses.replace(config, threads=5)
        calls.append("disconnected")

    def callback(step: int, metrics: dict[str, float]) -> None: ...

    start_run(
        config, "dqn", train, probe_step,
        batch_size=64, multiple_of=4, updates=7, connected=connected, callback=callback,
    )  # fmt: skip
    assert calls == [
        ("environments", 3),
        "connected",
        ("open", "dqn", 2),
        ("total", 90),
        ("choose", 5, 2, 7, 32, 4),
        ("measured", 6, 16, 3, 1, "measured"),
        ("trained", 6, 3, 2, "chosen", callback),
        ("closing message", "done"),
        "run closed",
        "disconnected",
        "environments closed",
    ]


def test_settings_that_do_not_fit_the_processes_are_refused_before_anything_is_created(calls: list[Any]) -> None:
    def check(config: Config, processes: int) -> None:
        calls.append(("checked", processes))
        raise UserError("no")

    config = Config(num_envs=5, batch_size=64)
    with pytest.raises(UserError, match="--num-envs 5 cannot be divided evenly among 2 processes"):
        start_run(config, "dqn", train, probe_step, batch_size=64, updates=7, check=check)
    assert calls == []
    with pytest.raises(UserError, match="no"):
        start_run(
            config,
            "dqn",
            train,
            probe_step,
            batch_size=64,
            updates=7,
            divided=(),
            check=check,
        )
    assert calls == [("checked", 2)]


def test_the_environments_are_closed_if_the_run_cannot_be_opened(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_run(config: Config, kind: str, world: World) -> contextlib.AbstractContextManager[FakeRun]:
        raise UserError("there is such a run")

    monkeypatch.setattr(start, "open_run", open_run)
    with pytest.raises(UserError, match="there is such a run"):
        start_run(Config(num_envs=6, image_size=36), "dqn", train, probe_step, batch_size=64, updates=7)
    assert calls == [("environments", 3), "environments closed"]
