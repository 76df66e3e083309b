"""Tests of runs with actors of Ray, in processes; skipped where Ray is not installed.

`python -m pip install 'ray>=2.60,<3'`, then `python -m pytest tests/agents/actors/test_ray_actors.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.agents.small_runs import CATCH
from zerokara.agents.configs.dqn import Config, read_config
from zerokara.core import checkpoint

REPO = Path(__file__).parents[3]
RUN = (
    *("-m", "agents.dqn", *CATCH, "--name", "catch", "--actors", "2", "--learning-starts", "200"),
    *("--batch-size", "8", "--train-every-steps", "16", "--replay-capacity", "4000", "--log-every-steps", "64"),
    *("--checkpoint-every-steps", "400", "--eval-every-steps", "0"),
)
SECONDS = 600.0  # that anything may take, on a busy machine
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # with nice 15 they hardly run on a busy machine
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}  # of a cluster, which has token authentication


def environment() -> dict[str, str]:
    """Environment of processes with Ray; warnings of its own are not errors."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *filter(None, sys.path)])}


@contextlib.contextmanager
def started(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a folder; in the end neither it nor a process that it started is left."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


def wait(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait until the condition holds and return its value; fail if the process has ended before."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it takes too long"
        if process is not None and process.poll() is not None:
            pytest.fail(f"the program has ended: {process.communicate()}")
        time.sleep(0.05)
    return value


def rows(folder: Path) -> list[dict[str, Any]]:
    """Complete lines of metrics.jsonl so far; the last one may be being written."""
    path = folder / "runs" / "catch" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def actor_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes of the actors that a program has started on this machine."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline() and child.cmdline()[0].startswith("ray::Actor"):
                found.append(child)
    return found


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a program; return its output."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def ray() -> Any:
    return pytest.importorskip("ray")


@pytest.mark.slow
def test_a_killed_actor_is_replaced(ray: Any, tmp_path: Path) -> None:
    with started(tmp_path, *RUN, "--total-steps", "20000") as process:
        wait(lambda: any(row.get("actors/active") == 2 for row in rows(tmp_path)), process)
        first = wait(lambda: len(found := actor_processes(process)) == 2 and found, process)
        first[0].send_signal(signal.SIGKILL)
        wait(lambda: any(row.get("actors/replaced") for row in rows(tmp_path)), process)
        replaced_at = len(rows(tmp_path))
        wait(lambda: any(row.get("actors/active") == 2 for row in rows(tmp_path)[replaced_at:]), process)
        assert {p.pid for p in actor_processes(process)} != {p.pid for p in first}
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 75, err
    assert "has ended and is replaced, number 1" in err + out
    assert "resume with" in out + err


@pytest.mark.slow
def test_a_stopped_actor_is_replaced(ray: Any, tmp_path: Path) -> None:
    with started(tmp_path, *RUN, "--total-steps", "1000000", "--actor-timeout", "90") as process:
        wait(lambda: any(row.get("actors/active") == 2 for row in rows(tmp_path)), process)
        stopped = wait(lambda: len(found := actor_processes(process)) == 2 and found, process)[0]
        stopped.send_signal(signal.SIGSTOP)
        wait(lambda: any(row.get("actors/replaced") for row in rows(tmp_path)), process)
        replaced_at = len(rows(tmp_path))
        wait(lambda: any(row.get("actors/active") == 2 for row in rows(tmp_path)[replaced_at:]), process)
        assert not stopped.is_running(), "Ray kills it"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 75, err
    assert "hangs and is replaced, number 1 (it sent nothing for 90 s, --actor-timeout)" in err + out
    assert "number 2" not in err + out


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_resumes(ray: Any, tmp_path: Path) -> None:
    saved = tmp_path / "runs" / "catch" / "checkpoint-0.pt"

    def step() -> int:
        return int(checkpoint.load(saved, "dqn")["step"]) if saved.exists() else 0

    with started(tmp_path, *RUN, "--total-steps", "1000000") as process:
        wait(lambda: step() >= 800, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        wait(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    before = step()
    with started(tmp_path, *RUN, "--resume", "--total-steps", str(before + 1_200)) as process:
        out = finish(process)
    state = checkpoint.load(saved, "dqn")
    assert state["step"] >= before + 1_200
    assert state["updates"] == (state["step"] - 200) // 16
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(steps)
    assert "resumed" not in out or "new episodes" in out


@pytest.mark.slow
def test_actors_wait_for_a_machine_that_joins_the_cluster(ray: Any, tmp_path: Path) -> None:
    command = (*RUN, "--total-steps", "1000000", "--ray-address", "auto")
    with cluster() as join, started(tmp_path, *command, **TOKEN) as process:
        wait(lambda: len(rows(tmp_path)) > 4, process)
        assert {row.get("actors/active") for row in rows(tmp_path)} == {1}
        join(1)
        wait(lambda: rows(tmp_path)[-1].get("actors/active") == 2, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 75, (out, err)


@pytest.mark.slow
def test_actors_of_a_machine_that_dies_are_replaced_on_another_one(ray: Any, tmp_path: Path) -> None:
    command = (*RUN, "--actors", "3", "--log-every-steps", "640", "--ray-address", "auto")

    def active() -> Any:
        return rows(tmp_path)[-1].get("actors/active") if rows(tmp_path) else 0

    with cluster() as join:
        lost = join(2)
        with started(tmp_path, *command, "--total-steps", "1000000", **TOKEN) as process:
            wait(lambda: active() == 3, process)
            lost.kill()
            wait(lambda: rows(tmp_path)[-1].get("actors/replaced") == 2, process)
            wait(lambda: active() == 1, process)
            alone = rows(tmp_path)[-1]["step"]
            wait(lambda: rows(tmp_path)[-1]["step"] > alone + 640, process)
            join(2)
            wait(lambda: active() == 3, process)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 75, err
            assert (err + out).count("has ended and is replaced") == 2
        steps = int(checkpoint.load(tmp_path / "runs" / "catch" / "checkpoint-0.pt", "dqn")["step"]) + 1_200
        with started(tmp_path, *command, "--resume", "--total-steps", str(steps), **TOKEN) as process:
            finish(process)
    state = checkpoint.load(tmp_path / "runs" / "catch" / "checkpoint-0.pt", "dqn")
    assert state["step"] >= steps
    assert state["updates"] == (state["step"] - 200) // 16
    assert rows(tmp_path)[-1]["actors/replaced"] == 2, "none was replaced but for the machine"


class Node:
    """Ray on one machine, which is a group of processes here. They inherit an environment variable of their own."""

    def __init__(self, cpus: int, *arguments: str) -> None:
        self.mark = {"ZEROKARA_TEST_NODE": str(time.monotonic_ns())}
        words = ["start", *arguments, "--num-cpus", str(cpus), "--object-store-memory", "100000000"]
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words]
        variables = environment() | {**RAY, **TOKEN, **self.mark}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            self.kill()
        assert done.returncode == 0, done.stderr

    def kill(self) -> None:
        """Kill its processes, those of actors too."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.mark.items() <= process.environ().items():
                    process.kill()


@contextlib.contextmanager
def cluster() -> Iterator[Callable[[int], Node]]:
    """Start a Ray cluster of one node with one CPU; yields a function that lets a node with some CPUs join."""
    with contextlib.ExitStack() as nodes:

        def join(cpus: int, *arguments: str) -> Node:
            node = Node(cpus, *(arguments or ("--address", "127.0.0.1:6399")))
            nodes.callback(node.kill)
            return node

        join(1, "--head", "--port", "6399", "--include-dashboard", "false")
        yield join


BROKEN = """
import gymnasium
import numpy as np


class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros((84, 84, 3), np.uint8), {}

    def step(self, action):
        self.steps += 1
        if self.steps > 100:
            raise ValueError("the joystick is broken")
        return np.zeros((84, 84, 3), np.uint8), 1.0, False, False, {}
"""


@pytest.mark.slow
def test_an_exception_of_an_environment_ends_the_run_with_a_sentence(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "my_env.py").write_text(BROKEN)
    with started(tmp_path, *RUN, "--env", "my_env.py:Broken", "--total-steps", "100000") as process:
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, err
    assert "the joystick is broken" in err
    assert "Traceback" not in err


def test_an_address_without_a_cluster_is_refused_and_nothing_is_created(ray: Any, tmp_path: Path) -> None:
    with started(tmp_path, *RUN, "--ray-address", "127.0.0.1:1") as process:
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, err
    assert "Ray could not connect to --ray-address 127.0.0.1:1 (" in err
    assert "ray start --head" in err
    assert len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_the_settings_are_read(ray: Any) -> None:
    config = read_config(["--actors", "16", "--ray-address", "auto"])
    assert isinstance(config, Config)
    assert (config.actors, config.total_envs, config.ray_address) == (16, 256, "auto")
