"""Frame of a training program: choice of the hardware, division among processes, run folder with signals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.programs import run_processes
from zerokara.core import training_program
from zerokara.core.choices import Precision, Switch
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.config import Stopped, UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.run_options import RunOptions
from zerokara.core.tracking import Tracking
from zerokara.core.training_program import check_batch_norm, check_divisible, choose_compute, images_per_pass, open_run


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    name: str = "a"
    quiet: bool = True
    device: str = "cpu"
    precision: Precision = "bfloat16"
    threads: int = 3
    batch_size: int = 12
    num_envs: int = 5


@dataclass(frozen=True, kw_only=True)
class CompiledConfig(Config):
    compile: Switch = "auto"
    minutes: float = 3.0


@pytest.mark.parametrize(("config", "compile"), [(Config(), "off"), (CompiledConfig(), "auto")])
def test_options_come_from_the_config(config: Config, compile: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def choose(**options: Any) -> Compute:
        received.update(options)
        return Compute(threads=2)

    monkeypatch.setattr(Compute, "choose", choose)

    step = TrainStep(lambda candidate, batch_size: lambda: candidate, 6)
    world = World(size=6, machine_size=2)  # on three machines
    assert choose_compute(config, world, step, 70) == Compute(threads=2)
    assert received == {
        "device": "cpu",
        "precision": "bfloat16",
        "compile": compile,
        "threads": 3,
        "train_step": step,
        "local_world_size": 2,
        "updates": 70,
        "minutes": getattr(config, "minutes", 0.0),
    }


def test_random_state_is_not_changed() -> None:
    samples: list[torch.Tensor] = []

    def probe_step(candidate: Compute, batch_size: int) -> Callable[[], object]:
        return lambda: samples.append(torch.rand(5))

    config = Config(precision="auto", threads=torch.get_num_threads())
    torch.manual_seed(4)
    compute = choose_compute(config, World(), TrainStep(probe_step, 4))
    after = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(after, torch.rand(3))
    assert len(samples) > 1
    assert compute.precision in ("float32", "bfloat16")


def test_settings_must_be_multiples_of_processes_and_accumulation_steps() -> None:
    check_divisible(Config(), World(size=2), "batch_size", parts=3)
    check_divisible(Config(), World(), "batch_size", "num_envs")
    with pytest.raises(
        UserError,
        match=r"--batch-size 12 cannot be divided evenly among 2 processes x --accumulation-steps 4: .* multiple of 8",
    ):
        check_divisible(Config(), World(size=2), "batch_size", parts=4)
    with pytest.raises(UserError, match=r"--num-envs 5 cannot be divided evenly among 2 processes: .* multiple of 2"):
        check_divisible(Config(), World(size=2), "batch_size", "num_envs")


def test_signals_ask_an_open_run_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    with open_run(Config(), "kind", extra={"style": "x"}) as run, run.interruptible(on=False):
        signal.raise_signal(signal.SIGTERM)
        assert run.stop_requested == "SIGTERM"
        assert run.checkpoint_path == Path("runs/a/checkpoint-0.pt")
    assert signal.getsignal(signal.SIGTERM) is handler
    saved = json.loads(Path("runs/a/config.json").read_text("utf-8"))
    assert (saved["kind"], saved["extra"]) == ("kind", {"style": "x"})


def test_a_signal_outside_of_the_training_loop_stops_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["agents/dqn.py"])

    def measure() -> Compute:
        signal.raise_signal(signal.SIGTERM)
        return pytest.fail("the measurement was not interrupted")

    with pytest.raises(Stopped), open_run(Config(), "kind") as run:
        run.compute(measure, 5)
    assert capsys.readouterr().out.splitlines()[-1].startswith("SIGTERM: stopped; resume with: ")
    with open_run(Config(resume=True), "kind") as run:
        assert run.compute(lambda: Compute(threads=1), 5) == Compute(threads=1)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_has_saved_because_of_a_signal_ends_with_stopped_and_its_own_closing_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, interrupted: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    waited: list[World] = []
    monkeypatch.setattr(World, "barrier", lambda world: waited.append(world))  # noqa: PLW0108  (a method)

    def train() -> None:
        with open_run(Config(), "kind") as run:
            with run.interruptible(on=False):
                signal.raise_signal(signal.SIGINT)
            run.print_stop()
            run.close("at step 5")
            if interrupted:
                raise Stopped

    with pytest.raises(Stopped):
        train()
    assert capsys.readouterr().out.splitlines()[-1] == "at step 5"
    assert waited == [World()], "torchrun kills the other processes when one has ended with an exit code"


def test_a_run_has_the_settings_of_the_config_and_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Opened(Exception):
        """Raised instead of opening the run."""

    def record(*arguments: Any, **options: Any) -> Run:
        opened.append((arguments, options))
        raise Opened

    monkeypatch.setattr(training_program, "Run", record)
    for config in (Config(name="n", resume=True, quiet=False), Config(name="m", resume=False, quiet=True)):
        with pytest.raises(Opened), open_run(config, "kind", World(size=3), {"style": "x"}):
            pass
        settings = {"kind": "kind", "name": config.name, "resume": config.resume, "quiet": config.quiet}
        assert opened.pop() == ((config,), {**settings, "extra": {"style": "x"}, "world": World(size=3)})


def test_a_run_is_created_trained_and_closed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    closed: list[World] = []
    monkeypatch.setattr(World, "close", lambda world: closed.append(world))  # noqa: PLW0108  (a method)
    chosen = Compute(precision="bfloat16", threads=3, reason="chosen")
    with open_run(Config(quiet=False), "kind") as run:
        assert run.compute(lambda: chosen, 5) == chosen
        assert closed == []
        run.close("closing message")
    printed = capsys.readouterr().out.splitlines()
    assert "compute: chosen" in printed
    assert printed[-1] == "closing message"
    assert closed == [World()]
    with pytest.raises(UserError, match="already holds a run"), open_run(Config(), "kind"):
        pass
    with open_run(Config(resume=True), "kind") as run:  # the folder is unlocked
        kept = run.compute(lambda: pytest.fail("a resumed run keeps its hardware settings"), 5)
        run.close("closing message")
    assert kept == chosen
    assert capsys.readouterr().out == "closing message\n"


def test_batch_norm_needs_more_than_one_value_per_channel() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    check_batch_norm(network, (1, 4, 4), 1)  # 2x2 values of one image
    check_batch_norm(network, (1, 3, 3), 2)
    check_batch_norm(network[:1], (1, 3, 3), 1)
    with pytest.raises(UserError, match="one value per channel, which has no variance: give a larger --batch-size"):
        check_batch_norm(network, (1, 3, 3), 1)
    with pytest.raises(RuntimeError):
        check_batch_norm(network, (1, 2, 2), 1)
    with pytest.raises(UserError, match="more processes than training images"):
        check_batch_norm(network, (1, 4, 4), 0)


@pytest.mark.parametrize(
    ("batch_size", "images", "processes", "parts", "expected"),
    [
        (8, 100, 1, 1, 8),
        (8, 100, 2, 2, 2),
        (8, 1, 1, 1, 1),  # all images are one batch
        (8, 3, 2, 1, 1),  # a process has images 0 and 2, the other one image 1
        (8, 1, 2, 1, 0),
        (12, 10, 1, 4, 1),  # 3 + 3 + 3 + 1
        (12, 5, 1, 4, 1),  # 2 + 2 + 1
        (12, 9, 1, 4, 3),
    ],
)
def test_smallest_number_of_images_in_a_forward_pass(
    batch_size: int, images: int, processes: int, parts: int, expected: int
) -> None:
    assert images_per_pass(batch_size, images, World(size=processes), parts) == expected
    shards = [torch.arange(min(batch_size, images))[rank::processes] for rank in range(processes)]
    assert min(len(part) for shard in shards for part in shard.chunk(parts)) == expected


def test_a_run_that_a_signal_interrupts_is_tracked_as_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[str] = []
    monkeypatch.setattr(Tracking, "close", lambda self, status: statuses.append(status))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped), open_run(Config(), "dqn"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert statuses == ["KILLED"]


RESUMES = """
import json, os, sys
from dataclasses import dataclass
from zerokara.core.config import run_main
from zerokara.core.distributed import World
from zerokara.core.run_options import RunOptions
from zerokara.core.training_program import open_run

@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    name: str = "a"

def main():
    rank = int(os.environ["RANK"])
    own = {name: values[rank] for name, values in json.loads(sys.argv[2]).items()} if len(sys.argv) > 2 else {}
    config = Config(resume=str(rank) in sys.argv[1], **own)
    with open_run(config, "kind", World.from_env("cpu")) as run:
        run.close()

run_main(main)
"""


@pytest.mark.parametrize(("resuming", "other"), [("0", "1"), ("1", "0")])
def test_processes_with_and_without_resume_are_refused(tmp_path: Path, resuming: str, other: str) -> None:
    message = (
        f"error: Some processes resume this run (such as process {resuming}) and others start a new one (such as "
        f"process {other}): give --resume on every machine, or on none. If torchrun has restarted the processes of "
        f"some machines only, give it on every machine.\n"
    )
    assert run_processes(tmp_path, 2, "-c", RESUMES, resuming, status=2) == ("", message)
    assert not list(tmp_path.iterdir())
    run_processes(tmp_path, 2, "-c", RESUMES, "")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_processes(tmp_path, 2, "-c", RESUMES, resuming, status=2) == ("", message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    run_processes(tmp_path, 2, "-c", RESUMES, "01")


@pytest.mark.parametrize(
    ("own", "flag", "values"),
    [
        ({"seed": [1, 2], "name": ["a-1", "a-2"]}, "--seed", "1 in process 0 and 2 in process 1"),
        ({"name": ["a", "b"]}, "--name", "a in process 0 and b in process 1"),
        ({"precision": ["auto", "float32"]}, "--precision", "auto in process 0 and float32 in process 1"),
    ],
)
def test_processes_with_different_options_are_refused(
    tmp_path: Path, own: dict[str, Any], flag: str, values: str
) -> None:
    error = (
        f"error: The processes of this run have different options: {flag} is {values}. Type the same command on every "
        f"machine.\n"
    )
    assert run_processes(tmp_path, 2, "-c", RESUMES, "", json.dumps(own), status=2) == ("", error)
    assert not list(tmp_path.iterdir())


def test_options_that_depend_on_the_machine_may_differ(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, "-c", RESUMES, "", json.dumps({"threads": [1, 2], "quiet": [False, True]}))
    run_processes(tmp_path, 2, "-c", RESUMES, "01", json.dumps({"precision": ["auto", "float32"]}))
