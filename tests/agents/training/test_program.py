"""Tests of the start of a training program: processes, run folder, hardware settings, closing message."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from zerokara.agents.configs.dqn import Config
from zerokara.agents.training.program import run_program
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Program:
    """Program that trains for no time, with a record of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.run: Run | None = None
        self.compute: Compute | None = None

    def choose_compute(self, config: Config, world: World) -> Compute:
        assert (config.name, world) == ("n", World())
        self.calls.append("choose_compute")
        return Compute(threads=1, reason="chosen")

    def train(self, config: Config, run: Run, compute: Compute, world: World) -> str:
        assert (config.name, world) == ("n", World())
        self.calls.append("train")
        self.run, self.compute = run, compute
        return "closing message"

    def start(self, config: Config, *divided: str) -> None:
        """Run the program."""
        run_program(config, kind="dqn", divided=divided, choose_compute=self.choose_compute, train=self.train)


def test_a_run_is_created_trained_and_closed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[World] = []
    monkeypatch.setattr(World, "close", lambda world: closed.append(world))  # noqa: PLW0108  (a method)
    program = Program()
    program.start(Config(name="n", device="cpu"), "num_envs")
    assert program.calls == ["choose_compute", "train"]
    assert program.compute == Compute(threads=1, reason="chosen")
    assert program.run is not None
    assert (program.run.folder, Run.read_config(Path("runs/n"), "dqn")["config"]["name"]) == (Path("runs/n"), "n")
    printed = capsys.readouterr().out.splitlines()
    assert "compute: chosen" in printed
    assert printed[-1] == "closing message"
    assert closed == [World()]

    with pytest.raises(UserError, match="already holds a run"):
        program.start(Config(name="n"))
    program.start(Config(name="n", resume=True, quiet=True))
    assert program.calls == ["choose_compute", "train", "train"], "a resumed run keeps its hardware settings"
    assert capsys.readouterr().out == "closing message\n"


def test_a_signal_is_passed_to_the_run() -> None:
    class Interrupted(Program):
        def train(self, config: Config, run: Run, compute: Compute, world: World) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            self.calls.append(str(run.stop_requested))
            return ""

    program = Interrupted()
    program.start(Config(name="n"))
    assert program.calls == ["choose_compute", "SIGTERM"]


def test_settings_are_divided_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def from_env(device: str = "auto") -> World:
        devices.append(device)
        return World(size=3)

    monkeypatch.setattr(World, "from_env", from_env)
    program = Program()
    message = "--batch-size 32 cannot be divided evenly among 3 processes: choose a multiple of 3."
    with pytest.raises(UserError, match=message):
        program.start(Config(name="n", num_envs=6, batch_size=32, device="cpu"), "num_envs", "batch_size")
    assert (program.calls, devices, Path("runs").exists()) == ([], ["cpu"], False)

    opened: list[Any] = []

    class Opened(Exception):
        """Raised instead of opening the run."""

    def open_run(*arguments: Any, **options: Any) -> Run:
        opened.append(options)
        raise Opened

    monkeypatch.setattr("zerokara.agents.training.program.Run", open_run)
    with pytest.raises(Opened):
        program.start(Config(name="n", num_envs=6, batch_size=33), "num_envs", "batch_size")
    assert opened == [{"kind": "dqn", "name": "n", "resume": False, "quiet": False, "world": World(size=3)}]
