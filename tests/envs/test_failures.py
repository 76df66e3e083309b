"""Environments that exit, need a display that is missing, or whose processes get signals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.gymnasium import GymnasiumVectorEnv
from zerokara.envs.lookup import describe
from zerokara.envs.pools import WorkerPool

ADVICE = r"This machine has no display: type xvfb-run -a before the command, or set .*SDL_VIDEODRIVER=dummy"
SOURCE = """
import gymnasium
import numpy as np

class Fragile(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (12, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(5_000)

    def __init__(self, where=""):
        self.where = where
        self.fail("__init__")

    def fail(self, where):
        if self.where == where:
            raise SystemExit("no license")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.fail("reset")
        return np.zeros((12, 16, 3), np.uint8), {}

    def step(self, action):
        self.fail("step")
        return np.zeros((12, 16, 3), np.uint8), float(action), False, False, {}

    def close(self):
        self.fail("close")
"""


@pytest.fixture(autouse=True)
def _no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fragile.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("__init__", "Fragile cannot be created: SystemExit: no license"),
        ("reset", "Fragile cannot be reset with seed .*: SystemExit: no license"),
        ("step", "Fragile raised SystemExit: no license; this happened at step 1 .* with action 4999"),
    ],
)
def test_an_environment_that_exits_is_an_error_of_one_sentence(file: Path, where: str, message: str) -> None:
    def play() -> None:
        env = envs.make(f"{file}:Fragile", 1, env_kwargs={"where": where})
        env.reset(0)
        env.step(np.array([4999]))

    with pytest.raises(UserError, match=message):
        play()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_may_exit_when_it_is_closed(file: Path, workers: int) -> None:
    env = envs.make(f"{file}:Fragile", 2, env_kwargs={"where": "close"}, workers=workers)
    env.reset(0)
    assert env.step(np.array([0, 4999])).reward.tolist() == [0, 4999]
    env.close()


@pytest.mark.parametrize(
    "line", ["class NoSuchDisplayException(Exception): ...\nraise NoSuchDisplayException('None')", "exit('no display')"]
)
def test_a_module_that_needs_a_display_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    name = f"needs_display_{len(line)}"
    (tmp_path / f"{name}.py").write_text(f"from sys import exit\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for env in (f"{name}:World-v0", f"{tmp_path / name}.py:World"):
        with pytest.raises(UserError, match=rf"cannot be imported: \w+: .*\. {ADVICE}"):
            envs.make(env, 1)


def test_advice_about_displays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe(ValueError("5")) == "ValueError: 5"
    missing = RuntimeError("No available video device")
    assert describe(missing).startswith("RuntimeError: No available video device. This machine has no display")
    monkeypatch.setenv("DISPLAY", ":0")
    assert describe(missing) == "RuntimeError: No available video device"


def test_worker_processes_leave_signals_to_the_main_process(file: Path) -> None:
    env = envs.make(f"{file}:Fragile", 2, workers=2)
    assert isinstance(env, GymnasiumVectorEnv)
    assert isinstance(env._pool, WorkerPool)
    env.reset(0)
    for process in env._pool._processes:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, number)
    time.sleep(0.1)
    assert env.step(np.array([1, 2])).reward.tolist() == [1, 2]
    env.close()
