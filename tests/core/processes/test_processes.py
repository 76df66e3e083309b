"""Test core.processes: the choice with imitated measurements, what a trial records, and real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.agents.small_runs import CATCH
from tests.generative.recorded_gan import write_coded
from tests.programs import start, wait_until
from zerokara.agents import dqn, pqn
from zerokara.agents.configs import dqn as dqn_config
from zerokara.agents.configs import pqn as pqn_config
from zerokara.core import checkpoint, speed_trial
from zerokara.core.config import UserError, format_count
from zerokara.core.processes import __main__ as processes
from zerokara.core.processes import measuring
from zerokara.core.processes.measuring import Measured, Position, Speed
from zerokara.core.run import Run
from zerokara.generative import dcgan
from zerokara.vision import classify
from zerokara.vision.classification import config as classify_config

CLASSIFY = (
    *("--data", "glyphs", "--train-images", "200", "--validation-images", "10", "--batch-size", "50", "--no-test"),
    *("--width-multiplier", "0.25", "--device", "cpu", "--precision", "float32", "--compile", "off"),
)
DCGAN = (
    *("--data", "./coded", "--held-out-images", "12", "--generator-width", "0.05", "--discriminator-width", "0.05"),
    *("--latent-dim", "4", "--batch-size", "16", "--eval-images", "100", "--preview-images", "9"),
    *("--video-every-updates", "0", "--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (speed_trial.FOLDER, speed_trial.CHOICE):
        monkeypatch.delenv(name, raising=False)


def speeds(*per_s: float, run_seconds: float = 1e6) -> list[Speed]:
    return [Speed(2**index, rate, run_seconds, 10.0) for index, rate in enumerate(per_s)]


def test_numbers_to_measure_are_powers_of_two_and_all_cores() -> None:
    assert [measuring.candidates(limit) for limit in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
    assert measuring.candidates(6) == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("results", "run_seconds", "measured", "notes"),
    [
        ({1: 10.0, 2: 15.0, 4: 25.0, 8: 26.0}, 1e6, [1, 2, 4, 8], []),
        ({1: 10.0, 2: 15.0, 4: 14.0, 8: 99.0}, 1e6, [1, 2, 4], []),
        ({1: 10.0, 2: 9.0, 4: 99.0}, 1e6, [1, 2], []),
        ({1: 10.0, 2: "refused", 4: 12.0}, 1e6, [1, 4], ["2 processes: refused"]),
        ({1: 10.0, 2: 15.0}, 200.0, [1, 2], []),
        ({1: 10.0, 2: 15.0}, 199.0, [1], ["more were not measured, because the run takes only about 199 s"]),
    ],
)
def test_more_processes_are_measured_while_they_are_faster_and_the_run_is_long(
    results: Mapping[int, float | str], run_seconds: float, measured: list[int], notes: list[str]
) -> None:
    def measure_one(number: int) -> Measured:
        result = results[number]
        return result if isinstance(result, str) else Speed(number, result, run_seconds, 10.0)

    found, said = measuring.compare(list(results), measure_one)
    assert ([speed.processes for speed in found], said) == (measured, notes)


@pytest.mark.parametrize(
    ("rates", "number"),
    [((), 1), ((10.0,), 1), ((10.0, 10.4), 1), ((10.0, 10.6), 2), ((10.0, 10.4, 10.6), 4), ((10.0, 15.0, 14.0), 2)],
)
def test_more_processes_must_be_faster_by_a_twentieth(rates: tuple[float, ...], number: int) -> None:
    assert measuring.fastest(speeds(*rates)) == number


def test_speed_by_hand(tmp_path: Path) -> None:
    path = tmp_path / speed_trial.POSITIONS
    assert measuring.read_positions(tmp_path) == []
    path.write_text("100.0 10 1000\n101.0 20 1000\n102.5 60 1000\n103.0 7")
    positions = measuring.read_positions(tmp_path)
    assert positions == [Position(100.0, 10, 1000), Position(101.0, 20, 1000), Position(102.5, 60, 1000)]
    # 50 positions in 2.5 seconds; 1,000 of them take 50 seconds.
    assert measuring.speed(2, positions, 9.0) == Speed(2, 20.0, 50.0, 9.0)
    assert measuring.is_enough(positions, 2.5)
    assert not measuring.is_enough(positions, 2.6)
    assert not measuring.is_enough(positions[:2], 0.5), "two intervals at least"


def test_several_processes_are_started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measuring.command("agents.pqn", ["--seed", "3"], 1) == ["-m", "zerokara.agents.pqn", "--seed", "3"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "zerokara.agents.pqn"]
    assert measuring.command("agents.pqn", [], 4) == launch
    monkeypatch.setattr(measuring, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert measuring.environment(4)["OMP_NUM_THREADS"] == "2"
    assert measuring.environment(16)["OMP_NUM_THREADS"] == "1"


def test_a_process_for_each_gpu_or_group_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)
    gpus = ["cuda:0", "cuda:1", "cuda:2"]
    for auto, found in ((["auto"], [8, 4, 1, 8, 1, 1]), (gpus, [3, 3, 3, 8, 1, 1])):
        devices = {"auto": auto}
        monkeypatch.setattr(processes, "available_devices", lambda name, devices=devices: devices.get(name, [name]))
        cases = [("auto", 0), ("auto", 2), ("auto", 16), ("cpu", 0), ("cuda:1", 0), ("mps", 0)]
        assert [processes.most_processes(*case) for case in cases] == found
    assert processes.most_processes("cuda", 0) == 3


def test_a_trial_of_dqn_updates_within_seconds() -> None:
    config = dqn_config.read_config([*CATCH, "--total-steps", "1000000", "--learning-starts", "50000"])
    trial = dqn_config.read_config([*CATCH, "--total-steps", "1000000", *processes.trial_arguments(config)])
    assert (trial.learning_starts, trial.replay_capacity, trial.save_replay) == (1_000, 20_000, False)
    assert processes.trial_arguments(pqn_config.read_config(CATCH)) == ["--quiet"]


class Started(Exception):
    """The program was replaced by a training program."""


Call = tuple[list[str], dict[str, str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Return a list of the command lines and environments that replace this process; with two cores."""
    calls: list[Call] = []

    def execve(path: str, words: list[str], variables: dict[str, str]) -> None:
        assert (path, words[0]) == (sys.executable, sys.executable)
        calls.append((words[1:], variables))
        raise Started

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(processes, "usable_cores", lambda: 2)
    return calls


def imitate(monkeypatch: pytest.MonkeyPatch, rates: Mapping[int, float]) -> list[tuple[str, Sequence[str], int, float]]:
    """Imitate measurements; return a list of what was measured."""
    calls: list[tuple[str, Sequence[str], int, float]] = []

    def measure(module: str, arguments: Sequence[str], number: int, *, seconds: float) -> Speed:
        calls.append((module, arguments, number, seconds))
        return Speed(number, rates[number], 1e6, 10.0)

    monkeypatch.setattr(processes, "measure", measure)
    return calls


def test_the_faster_number_is_started_printed_and_saved(
    started: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = imitate(monkeypatch, {1: 10.0, 2: 17.25})
    words = [*CLASSIFY, "--name", "digits"]
    with pytest.raises(Started):
        processes.main(["vision.classify", "--seconds", "2", "--", *words])
    assert calls == [("vision.classify", [*words, "--quiet"], number, 2.0) for number in (1, 2)]
    ((command, variables),) = started
    assert command == measuring.command("vision.classify", words, 2)
    assert json.loads(variables[speed_trial.CHOICE]) == {
        "number": 2,
        "cores": 2,
        "unit": "updates/s",
        "speeds": {"1": 10.0, "2": 17.25},
        "notes": [],
    }
    out = capsys.readouterr().out
    line = "processes: 2 processes; measured: 1 process 10 updates/s; 2 processes 17.25 updates/s\n"
    assert out == f"measuring the speed of 1, 2 processes, 2 s each\n{line}"
    assert not Path("runs").exists()
    imitate(monkeypatch, {1: 10.0, 2: 9.0})
    with pytest.raises(Started):
        processes.main(["agents.pqn", "--", *CATCH])
    assert started[1][0] == ["-m", "zerokara.agents.pqn", *CATCH]
    assert "1 process 10 agent steps/s; 2 processes 9 agent steps/s" in capsys.readouterr().out


def test_a_given_number_is_not_measured(
    started: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)
    with pytest.raises(Started):
        processes.main(["classify", "--processes", "3", "--", *CLASSIFY])
    ((command, variables),) = started
    assert command == measuring.command("vision.classify", CLASSIFY, 3)
    assert json.loads(variables[speed_trial.CHOICE]) == {"number": 3, "cores": 8}  # for --resume
    assert capsys.readouterr().out == "processes: 3 processes, as --processes says\n"


def test_one_core_needs_no_measurement(
    started: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = imitate(monkeypatch, {})
    monkeypatch.setattr(processes, "usable_cores", lambda: 1)
    with pytest.raises(Started):
        processes.main(["vision.classify", "--", *CLASSIFY])
    assert calls == []
    assert started[0][0] == measuring.command("vision.classify", CLASSIFY, 1)
    assert capsys.readouterr().out.startswith("processes: 1 process; measured: nothing, because there is one core")


def test_a_resumed_run_keeps_its_number(
    started: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice of the environment is saved in config.json by the run that it starts."""
    monkeypatch.setenv(speed_trial.CHOICE, json.dumps({"number": 2, "cores": 2}))
    with Run(classify_config.read_config(CLASSIFY), kind="classify", name="a", resume=False, quiet=True):
        pass
    assert json.loads(Path("runs/a/config.json").read_text())["extra"]["processes"] == {"number": 2, "cores": 2}
    monkeypatch.delenv(speed_trial.CHOICE)
    with Run(classify_config.read_config(CLASSIFY), kind="classify", name="b", resume=False, quiet=True):
        pass
    assert "processes" not in json.loads(Path("runs/b/config.json").read_text())["extra"]
    resumed = ["--name", "a", "--resume"]
    capsys.readouterr()
    for cores, end in ((2, ""), (8, ", chosen for 2 cores; there are 8 now")):
        monkeypatch.setattr(processes, "usable_cores", lambda cores=cores: cores)
        with pytest.raises(Started):
            processes.main(["vision.classify", "--", *resumed])
        assert started[-1][0] == measuring.command("vision.classify", resumed, 2)
        assert capsys.readouterr().out == f"processes: 2 processes, as at the start of the run{end}\n"
    with pytest.raises(Started):
        processes.main(["vision.classify", "--processes", "1", "--", *resumed])
    assert started[-1][0] == measuring.command("vision.classify", resumed, 1)
    with pytest.raises(UserError, match="runs/b was started without this program: give its number of processes by --p"):
        processes.main(["vision.classify", "--", "--name", "b", "--resume"])
    with pytest.raises(UserError, match=r"runs/a already holds a run: resume it with --resume, or choose another --na"):
        processes.main(["vision.classify", "--", *CLASSIFY, "--name", "a"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"No program was given: give one of agents\.dqn"),
        (("agents.stream",), r"no training program 'agents\.stream' for it"),
        (("vision.clasify",), r"no training program 'vision\.clasify' for it \(did you mean vision\.classify\?\)"),
        (("classify", "--name", "a"), "--name is an option of the training program: give it after the two hyphens"),
        (("classify", "--nproc-per-node", "2"), "--nproc-per-node is --processes here"),
        (("classify", "--processes", "-1"), "--processes cannot be -1"),
        (("classify", "--", "--learning-rat", "3"), "There is no flag --learning-rat"),
        (
            ("pqn", "--", *CATCH, "--average-every", "rollout"),
            "changes what is learned, not only the speed: give it by",
        ),
    ],
)
def test_error_messages(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        processes.main(words)
    assert list(tmp_path.iterdir()) == []


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="type it without torchrun"):
        processes.main(["vision.classify"])


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    ("program", "words", "positions"),
    [
        (classify, (*CLASSIFY, "--epochs", "2"), [(n, 8) for n in range(1, 9)]),
        (dcgan, (*DCGAN, "--updates", "3"), [(1, 3), (2, 3), (3, 3)]),
        (
            pqn,
            (
                *CATCH,
                "--total-steps",
                "40",
                "--rollout-steps",
                "5",
                "--num-minibatches",
                "2",
                "--eval-every-steps",
                "0",
            ),
            [(20, 40), (40, 40)],
        ),
        (
            dqn,  # steps without updates do not count
            (
                *(*CATCH, "--total-steps", "32", "--learning-starts", "16", "--train-every-steps", "4"),
                *("--batch-size", "4", "--eval-every-steps", "0", "--no-save-replay"),
            ),
            [(24, 32), (28, 32), (32, 32)],
        ),
    ],
    ids=["classify", "dcgan", "pqn", "dqn"],
)
def test_a_trial_records_each_iteration_and_leaves_the_runs_alone(
    program: Any,
    words: tuple[str, ...],
    positions: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("coded").mkdir()
    write_coded(Path("coded"))
    trial = tmp_path / "trial"
    trial.mkdir()
    monkeypatch.setenv(speed_trial.FOLDER, str(trial))
    program.main([*words, "--quiet", "--name", "run"])
    found = measuring.read_positions(trial)
    assert [(position.done, position.total) for position in found] == positions
    assert [position.time for position in found] == sorted(position.time for position in found)
    assert (trial / "run" / "config.json").exists()
    assert not Path("runs").exists()


def test_a_trial_that_is_refused_says_why() -> None:
    words = [*CLASSIFY, "--batch-size", "51", "--threads", "1"]
    reason = measuring.measure("vision.classify", words, 2, seconds=0.1)
    assert reason == "--batch-size 51 cannot be divided evenly among 2 processes: give a multiple of 2."


@pytest.mark.slow
def test_real_processes(tmp_path: Path) -> None:
    """Two numbers are measured, and the chosen one trains to the end; another one resumes."""
    words = (*CLASSIFY, "--epochs", "100000", "--name", "digits")
    process = start(tmp_path, "-m", "core.processes", "vision.classify", "--seconds", "1", "--", *words)
    run = tmp_path / "runs" / "digits"
    wait_until(process, (run / "checkpoint-0.pt").exists, seconds=200)
    saved = json.loads((run / "config.json").read_text())["extra"]["processes"]
    assert set(saved["speeds"]) == {"1", "2"}
    assert min(saved["speeds"].values()) > 0
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert f"processes: {format_count(saved['number'], 'process')}; measured: 1 process" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    before = checkpoint.load(run / "checkpoint-0.pt", "classify")["updates"]
    number = 3 - saved["number"]
    resume = ("--processes", str(number), "--", "--name", "digits", "--resume")
    process = start(tmp_path, "-m", "core.processes", "vision.classify", *resume)
    wait_until(process, lambda: checkpoint.load(run / "checkpoint-0.pt", "classify")["updates"] > before, seconds=200)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    updates = {checkpoint.load(run / f"checkpoint-{rank}.pt", "classify")["updates"] for rank in range(number)}
    assert len(updates) == 1
    assert updates.pop() > before
