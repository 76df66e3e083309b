"""Test core.seeds: command line, results by hand, and real runs that are stopped, resumed and only read again."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from tests.programs import Process, start, wait_until
from zerokara.core import compute, programs
from zerokara.core.config import EXIT_STOPPED, Stopped, UserError, to_saved
from zerokara.core.importing import load_module
from zerokara.core.metrics import json_line
from zerokara.core.seeds import __main__ as seeds
from zerokara.core.seeds import results as results_of_runs

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = (
    *("--data", "glyphs", "--train-images", "200", "--validation-images", "10", "--batch-size", "50", "--no-test"),
    *("--width-multiplier", "0.25", "--device", "cpu", "--precision", "float32", "--compile", "off"),
)
PROGRAM = ("vision.classify", "--name", "s", "--seeds", "1", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def program(*words: str) -> Process:
    return start(Path.cwd(), "-m", "core.seeds", *words)


def test_every_program_of_the_table_reads_a_command_line() -> None:
    for module in seeds.TRAINING_PROGRAMS:
        assert module in programs.PROGRAMS
        training = load_module(f"zerokara.{module}", module)
        config = training.read_config(["--seed", "7", "--name", "a", "--threads", "1", "--device", "cpu"])
        assert (config.seed, config.name, config.resume, config.threads) == (7, "a", False, 1)


def test_command_line_has_three_parts() -> None:
    options, module, arguments = seeds.read_command_line([*PROGRAM, "--", *TINY], "")
    assert (module, options.seeds, arguments) == ("vision.classify", (1, 2), list(TINY))
    assert seeds.read_command_line(["dcgan"], "")[1:] == ("generative.dcgan", [])
    runs = seeds.plan_runs(options, module, arguments, ["cpu"])
    assert [(run.name, run.seed, run.config.train_images) for run in runs] == [("s-1", 1, 200), ("s-2", 2, 200)]
    assert [run.config.device for run in runs] == ["cpu", "cpu"]
    job = seeds.make_job(runs[0], module, Path("log"))
    assert job.arguments[:2] == ("-m", "zerokara.vision.classify")
    assert job.resume_arguments == ("-m", "zerokara.vision.classify", "--name", "s-1", "--resume")


@pytest.mark.parametrize(
    ("arguments", "jobs", "devices"),
    [
        ((), 2, ("cuda:0", "cuda:1", "cuda:0")),
        (("--device", "auto"), 2, ("cuda:0", "cuda:1", "cuda:0")),
        (("--device", "cpu"), 3, ("cpu", "cpu", "cpu")),
        (("--device=cuda:1",), 1, ("cuda:1", "cuda:1", "cuda:1")),
    ],
)
def test_jobs_are_limited_by_gpus_only_if_the_runs_use_them(
    arguments: tuple[str, ...], jobs: int, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with eight cores and two GPUs."""
    gpus = ["cuda:0", "cuda:1"]
    monkeypatch.setattr(seeds, "usable_cores", lambda: 8)
    monkeypatch.setattr(seeds, "available_devices", lambda device: gpus if device == "auto" else [device])
    monkeypatch.setattr(compute, "find_device", lambda name: name)
    planned: list[tuple[seeds.Options, list[str]]] = []

    def run_all(runs: Sequence[seeds.SeedRun], options: seeds.Options, *more: object) -> NoReturn:
        planned.append((options, [run.config.device for run in runs]))
        raise Stopped

    monkeypatch.setattr(seeds, "run_all", run_all)
    with pytest.raises(Stopped):
        seeds.main(["vision.classify", "--seeds", "1", "2", "3", "--", "--data", "glyphs", *arguments])
    ((options, used),) = planned
    assert (options.jobs, tuple(used)) == (jobs, devices)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"No program was given: give one of agents\.dqn"),
        (("vision.clasify",), r"no training program 'vision\.clasify' for it \(did you mean vision\.classify\?\)"),
        (("vision.predict",), r"no training program 'vision\.predict'"),
        (("classify", "--seeds"), "--seeds needs at least one value"),
        (("classify", "--", "--seed", "3"), "--seed cannot be given after --"),
        (("classify", "--", "--learning-rat", "3"), "There is no flag --learning-rat"),
        (("classify", "--ray-cpus", "2"), "--ray-cpus has no effect without --ray-address auto"),
        (("classify", "--name", "a/b"), "--name cannot be 'a/b'"),
    ],
)
def test_error_messages(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        seeds.main(words)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_another_command_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    (folder / "seeds.json").write_text(
        json.dumps({"program": "vision.classify", "arguments": ["--epochs", "2"], "runs": ["s-1"]})
    )
    with pytest.raises(UserError, match=r"started with vision\.classify -- --epochs 2 and .* -- --epochs 3: use"):
        seeds.main([*PROGRAM, "--", "--epochs", "3"])
    with pytest.raises(UserError, match=r"cannot resume with generative\.dcgan --: use the same command"):
        seeds.main(["dcgan", "--name", "s"])
    for name in ("s-1", "s-2"):  # this program has started the first one only
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.json").touch()
    with pytest.raises(UserError, match=r"runs/s-2 already holds a run that was started otherwise"):
        seeds.main([*PROGRAM, "--", "--epochs", "2"])
    (folder / "seeds.json").write_text("[]")
    with pytest.raises(UserError, match=r"runs/s/seeds\.json was not written by this program"):
        seeds.main([*PROGRAM, "--", "--epochs", "3"])
    (folder / "seeds.json").unlink()
    with pytest.raises(UserError, match=r"runs/s-1 already holds a run that was started otherwise"):
        seeds.main([*PROGRAM, "--", "--epochs", "2"])
    (folder / "config.json").touch()
    with pytest.raises(UserError, match=r"runs/s is the folder of a run"):
        seeds.main([*PROGRAM, "--", "--epochs", "2"])


def test_a_damaged_file_of_the_command_is_restored_as_the_message_says(tmp_path: Path) -> None:
    options, module, arguments = seeds.read_command_line([*PROGRAM, "--", *TINY], "")
    runs = seeds.plan_runs(options, module, arguments, ["cpu"])
    arguments += ['it\'s "quoted"', "back\\slash"]
    folder = Path("runs/s")
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "s-7.log").touch()
    for name in ("s-1", "s-7"):
        Path("runs", name).mkdir()
        Path("runs", name, "config.json").touch()
    for content in ("", "[]", '{"program": '):
        (folder / "seeds.json").write_text(content)
        with pytest.raises(UserError, match=r"started with this same command, restore the file with: ") as error:
            seeds.check_same_command(folder, module, arguments, runs)
        typed = re.search(r"with: (printf .*); otherwise choose another --name\.$", str(error.value))
        assert typed is not None
        subprocess.run(["sh", "-c", typed[1]], check=True)
        seeds.check_same_command(folder, module, arguments, runs)
        assert json.loads((folder / "seeds.json").read_text())["runs"] == ["s-1", "s-2", "s-7"]
    (folder / "seeds.json").write_text("[]")
    long = [*arguments, *("--augment-file", "x" * 600)]
    with pytest.raises(UserError, match=r"seeds\.json was not written by this program.*: choose another --name\.$"):
        seeds.check_same_command(folder, module, long, runs)


def test_settings_of_different_versions_are_named(tmp_path: Path) -> None:
    options, module, arguments = seeds.read_command_line([*PROGRAM, "--", *TINY], "")
    runs = seeds.plan_runs(options, module, arguments, ["cpu", "auto"])

    def save(run: seeds.SeedRun, **changes: object) -> None:
        content = {"kind": "classify", "config": to_saved(run.config) | changes, "extra": {}}
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.json").write_text(json.dumps(content))

    for run in runs:
        save(run)
    assert seeds.differing_settings(runs) == []
    save(runs[1], learning_rate=0.125, epochs=7)
    rate, epochs = runs[0].config.learning_rate, runs[0].config.epochs
    assert seeds.differing_settings(runs) == [
        f"--epochs {epochs} in s-1, 7 in s-2",
        f"--learning-rate {rate} in s-1, 0.125 in s-2",
    ]
    assert seeds.differing_settings([]) == []
    (runs[0].folder / "config.json").write_text('{"kind": ')
    (line,) = seeds.differing_settings(runs)
    assert line.startswith("those of s-1 are unknown: runs/s-1/config.json is damaged or cannot be read (")


def test_a_damaged_config_does_not_prevent_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        run = Path("runs", f"s-{seed}")
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json_line(1, {"final/validation_error": seed / 10}))
        (run / "config.json").write_text("{" if seed == 2 else "[]")
        seeds.mark_finished(run.name, Path("runs/s"), "done")
    command = seeds.command_content("vision.classify", TINY, ("s-1", "s-2"))
    Path("runs/s/seeds.json").write_text(json.dumps(command))
    seeds.main([*PROGRAM, "--", *TINY])
    results = json.loads(Path("runs/s/results.json").read_text())
    assert results["summary"]["final/validation_error"]["mean"] == pytest.approx(0.15)
    assert [line.partition(":")[0] for line in results["differences"]] == [
        "those of s-1 are unknown",
        "those of s-2 are unknown",
    ]
    assert "2 of 2 runs are finished" in capsys.readouterr().out


def test_a_run_with_damaged_metrics_is_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        run = Path("runs", f"s-{seed}")
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json_line(1, {"final/validation_error": seed / 10}))
        (run / "config.json").write_text("{}")
        seeds.mark_finished(run.name, Path("runs/s"), "done")
    Path("runs/s-2/metrics.jsonl").write_text('{"step": \n')
    command = seeds.command_content("vision.classify", TINY, ("s-1", "s-2", "s-3"))
    Path("runs/s/seeds.json").write_text(json.dumps(command))
    with pytest.raises(SystemExit, match="1"):
        seeds.main(["vision.classify", "--name", "s", "--seeds", "1", "2", "3", "--", *TINY])
    results = json.loads(Path("runs/s/results.json").read_text())
    assert results["seeds"] == [1, 3]
    numbers = results["summary"]["final/validation_error"]
    assert (numbers["runs"], numbers["mean"]) == (2, pytest.approx(0.2))
    reason = "runs/s-2/metrics.jsonl is damaged in line 1: delete that line, or give another run."
    assert results["unreadable"] == {"s-2": reason}
    out = capsys.readouterr().out
    assert f"s-2 is left out of the results: {reason}\n" in out
    assert out.endswith("3 of 3 runs are finished, 1 of them left out: runs/s/results.json\n")


def test_results_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in {
        "a": [(1, {"eval/fid": 9.0}), (2, {"eval/fid": 4.0, "train/loss": 1.0})],
        "b": [(1, {"eval/fid": 8.0}), (2, {"eval/fid": 6.0})],
        "c": [(1, {"eval/fid": 8.0}), (2, {"final/error": 0.5, "speed/x_seconds": 1.0})],
        "d": [(1, {"train/loss": 8.0})],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json_line(step, row) for step, row in rows))
    results = {name: results_of_runs.read_results(tmp_path / name) for name in "abcd"}
    assert results == {"a": {"eval/fid": 4.0}, "b": {"eval/fid": 6.0}, "c": {"final/error": 0.5}, "d": {}}
    summary = results_of_runs.summarize({name: results[name] for name in "ab"})
    assert summary == {"eval/fid": {"runs": 2, "mean": 5.0, "deviation": pytest.approx(2**0.5)}}
    results_of_runs.print_table(summary, {name: results[name] for name in "ab"})
    assert capsys.readouterr().out.split()[-5:] == ["eval/fid", "5", "1.41", "4", "6"]
    assert results_of_runs.summarize({"a": results["a"]})["eval/fid"]["deviation"] is None
    (tmp_path / "b" / "metrics.jsonl").write_text(
        json_line(1, {"eval/fid": 8.0}) + json_line(2, {"eval/fid": math.nan})
    )
    assert math.isnan(results_of_runs.read_results(tmp_path / "b")["eval/fid"]), "not that of an earlier evaluation"
    assert results_of_runs.summarize(results) == results_of_runs.summarize({}) == {}


def test_runs_are_stopped_resumed_and_read_again(tmp_path: Path) -> None:
    """Ctrl-C lets both runs save; the same command resumes them; repeated once more, it only reads them."""
    runs = [tmp_path / "runs" / f"s-{seed}" for seed in (1, 2)]
    words = (*PROGRAM, "--jobs", "2", "--", *TINY, "--epochs", "20")
    process = program(*words)
    wait_until(process, lambda: all((run / "metrics.jsonl").exists() for run in runs), seconds=200)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (EXIT_STOPPED, "")
    assert out.strip().splitlines()[-1] == "SIGINT: 0 of 2 runs are finished; repeat the same command to resume"
    process = program(*words)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    results = json.loads((tmp_path / "runs" / "s" / "results.json").read_text())
    assert (results["program"], results["seeds"]) == ("vision.classify", [1, 2])
    errors = [json.loads((run / "result.json").read_text())["figures"]["validation_error"] for run in runs]
    assert [results["runs"][run.name]["final/validation_error"] for run in runs] == errors
    assert results["summary"]["final/validation_error"]["mean"] == pytest.approx(sum(errors) / 2)
    assert "--resume" not in results["command"]
    logs = [(tmp_path / "runs" / "s" / "logs" / f"{run.name}.log") for run in runs]
    assert ["saving" in log.read_text() for log in logs] == [True, True]
    before = [log.stat().st_size for log in logs]
    process = program(*words)
    again, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert [log.stat().st_size for log in logs] == before, "finished runs are not started again"
    assert again.splitlines()[-1] == out.splitlines()[-1] == "2 of 2 runs are finished: runs/s/results.json"


def test_a_failed_run_is_named_and_the_other_is_in_the_results(tmp_path: Path) -> None:
    blocked = tmp_path / "runs" / "s-1"
    blocked.mkdir(parents=True)
    (blocked / "something").touch()
    process = program(*PROGRAM, "--", *TINY, "--epochs", "1")
    out, err = process.communicate()
    assert process.returncode == 1
    assert "warning: s-1 failed, the other runs continue: runs/s-1 already holds a run" in err
    assert json.loads((tmp_path / "runs" / "s" / "results.json").read_text())["seeds"] == [2]
    assert out.strip().splitlines()[-1] == "1 of 2 runs are finished: runs/s/results.json"
