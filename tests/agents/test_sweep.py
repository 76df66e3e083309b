"""Sweeps: trials and their values by hand, pruning, stopping and going on, failures, sentences, one of real runs."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from zerokara.agents import sweep
from zerokara.agents.sweeping import config as sweep_config
from zerokara.agents.sweeping.config import read_command_line
from zerokara.agents.sweeping.search_space import AGENTS
from zerokara.agents.sweeping.trial import DIVERGED, Child, read_evaluations, worth
from zerokara.core.config import UserError, to_dict
from zerokara.core.divergence import divergence_error

REPO = Path(__file__).parents[2]
RATES = "learning_rate=0.0005,0.001,0.002"  # the first is the one that stands
REAL = (
    *(
        "--env",
        "zerokara/Catch-v0",
        "--num-envs",
        "8",
        "--total-steps",
        "800",
        "--learning-starts",
        "200",
        "--batch-size",
        "16",
    ),
    *("--train-every-steps", "16", "--replay-capacity", "1000", "--width-multiplier", "0.25", "--hidden-units", "32"),
    *("--eval-every-steps", "400", "--eval-episodes", "4", "--eval-max-steps", "60", "--log-every-steps", "400"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)
SHORT = ("--", "--total-steps", "1000", "--eval-every-steps", "100")


@pytest.fixture(autouse=True)
def _fake_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An agent that learns at once, in a folder of its own."""
    fake = {**AGENTS, "dqn": AGENTS["dqn"]._replace(module="tests.agents.fake_agent")}
    monkeypatch.setattr(sweep, "AGENTS", fake)
    monkeypatch.setattr(sweep_config, "AGENTS", fake)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)


def trials(name: str = "s") -> list[optuna.trial.FrozenTrial]:
    """What the study says when nobody has it open."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///runs/{name}/study.db").get_trials()


def run(*words: str) -> list[optuna.trial.FrozenTrial]:
    sweep.main(["--name", "s", *words])
    return trials()


def test_curves_and_what_they_are_worth_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 96, "train/loss": 1.0},
        {"step": 104, "eval/return": 2.0},
        {"step": 104, "train/loss": 1.0},
        {"step": 200, "eval/return": 4},
        {"step": 304, "eval/return": None},
        {"step": 408, "eval/return": 6.0},
    ]
    curve = read_evaluations(rows, 100)
    assert curve == {1: 2.0, 2: 4.0, 4: 6.0}
    assert worth(curve, "last") == 6
    assert worth(curve, "area") == pytest.approx((2 + 4 + 2 * 6) / 4)  # what is missing counts as what follows it
    assert worth({1: 2.0}, "area") == 2


def test_the_best_settings_are_found_and_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(RATES, "--trials", "8", "--pruner", "none", *SHORT)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 8
    assert found[0].params == {"learning_rate": "0.0005"}  # the settings as they stand come first
    assert [t.value for t in found] == pytest.approx([1000 * float(t.params["learning_rate"]) + 1 for t in found])
    assert len(list(Path("runs/s/runs").iterdir())) == 3  # nothing is measured twice
    assert not list(Path("runs/s/runs").glob("*/replay-0"))
    out = capsys.readouterr().out
    assert "value of a trial: mean raw return, its last evaluation; an evaluation is 30 games of ALE/Pong-v5" in out
    command = "python -m tests.agents.fake_agent --total-steps 1000 --eval-every-steps 100 --learning-rate 0.002"
    assert f":\n{command}\n" in out
    closing = out.strip().splitlines()[-1]
    assert "is best with 3, on the seeds that it was chosen by (1)" in closing
    assert f"for seed in 2 3 4; do {command} --seed $seed --name s-best-$seed; done" in closing
    with Path("runs/s/trials.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == sorted((t.value or 0 for t in found), reverse=True)
    assert all(Path(f"runs/s/{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("history", "importance"))


def test_a_trial_is_the_mean_of_its_seeds() -> None:
    (found,) = run("learning_rate=0.0005,1", "--trials", "1", "--seeds", "3", "--objective", "area", *SHORT)
    areas = [550 * 0.0005 + seed for seed in (1, 2, 3)]
    assert found.user_attrs["worths"] == pytest.approx(areas)
    assert found.value == pytest.approx(sum(areas) / 3)
    assert sorted(path.name for path in Path("runs/s/runs").iterdir()) == ["0-seed-1", "0-seed-2", "0-seed-3"]
    # Along the way: what the seeds that are through were worth, and the one that plays so far.
    assert list(found.intermediate_values) == list(range(100, 3001, 100))
    assert found.intermediate_values[1100] == pytest.approx((areas[0] + 100 * 0.0005 + 2) / 2)


def test_a_trial_that_falls_behind_is_stopped_and_saves() -> None:
    """The second one would play for ever."""
    words = ("--trials", "6", "--unpruned-trials", "1", "--unpruned-share", "0")
    found = run("learning_rate=0.1,0.0013", *words, *SHORT, "--learning-rate", "0.1")
    pruned = next(trial for trial in found if trial.params["learning_rate"] == "0.0013")
    assert pruned.state == TrialState.PRUNED
    assert pruned.intermediate_values == {100: pytest.approx(100 * 0.0013 + 1)}
    folder = Path(f"runs/s/runs/{pruned.number}-seed-1")
    assert (folder / "saved").exists()
    assert not (folder / "replay-0").exists()


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_look_at_the_curve(pruner: str) -> None:
    words = ("--trials", "9", "--unpruned-trials", "1", "--unpruned-share", "0.3", "--pruner", pruner)
    found = run("learning_rate=0.001..0.1", *words, *SHORT, "--learning-rate", "0.05")
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    best = max(found, key=lambda trial: trial.params["learning_rate"])
    assert pruned
    assert best.state == TrialState.COMPLETE
    if pruner == "median":
        assert min(trial.last_step or 0 for trial in pruned) == 300


def test_a_sweep_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("learning_rate=log:1e-5..1e-3", "--trials", "3", "--pruner", "none")
    monkeypatch.setenv("FAKE_STOPS_SWEEP", "1")
    (stopped,) = run(*words, *SHORT)
    assert stopped.state == TrialState.RUNNING
    assert Path("runs/s/runs/0-seed-1/saved").exists()
    out = capsys.readouterr().out
    assert "0 of 3 trials are through; go on with: " in out
    assert "learning_rate=log:1e-5..1e-3 --trials 3 --pruner none -- --total-steps 1000" in out
    monkeypatch.delenv("FAKE_STOPS_SWEEP")
    found = run(*words, *SHORT)
    assert Path("runs/s/runs/0-seed-1/resumed").exists()
    assert len(Path("runs/s/runs/0-seed-1/metrics.jsonl").read_text().splitlines()) == 10
    sweep.main(["--name", "whole", *words, *SHORT])
    assert [(t.state, t.params, t.values) for t in found] == [(t.state, t.params, t.values) for t in trials("whole")]


def test_more_trials_go_on_where_the_last_ones_ended() -> None:
    few = run("learning_rate=log:1e-5..1e-3", "--trials", "2", "--pruner", "none", *SHORT)
    more = run("learning_rate=log:1e-5..1e-3", "--trials", "5", "--jobs", "3", "--pruner", "none", *SHORT)
    assert [trial.params for trial in more[:2]] == [trial.params for trial in few]
    assert [trial.state for trial in more] == [TrialState.COMPLETE] * 5
    assert len({trial.params["learning_rate"] for trial in more}) == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("n_step=1..3", *SHORT), "runs/s began with the search for n_step=1..2 and cannot go on with n_step=1..3"),
        (("n_step=1..2", "--seeds", "2", *SHORT), "runs/s began with --seeds 1 and cannot go on with 2"),
        (("n_step=1..2", *SHORT, "--gamma", "0.9"), "began with the agent's command line --total-steps 1000"),
    ],
)
def test_another_command_does_not_go_on(words: tuple[str, ...], sentence: str) -> None:
    config, given, _, _ = read_command_line(["--name", "s", "n_step=1..2", *SHORT], "")
    folder = Path("runs/s")
    folder.mkdir(parents=True)
    content = {"kind": "sweep", "config": to_dict(config), "extra": {"given": given}}
    (folder / "config.json").write_text(json.dumps(content))
    sweep_config.check_it_goes_on(config, given, folder)
    with pytest.raises(UserError, match=sentence):
        sweep.main(["--name", "s", *words])


def test_settings_that_contradict_each_other_are_told_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("munchausen=true,false", "double=true,false", "--trials", "12", "--pruner", "none", *SHORT)
    refused = [trial for trial in found if trial.params == {"munchausen": "true", "double": "true"}]
    assert refused
    assert {trial.state for trial in refused} == {TrialState.PRUNED}
    assert {trial.state for trial in found if trial not in refused} == {TrialState.COMPLETE}
    assert (
        "cannot be, with munchausen true, double true: --munchausen and --double cannot be" in capsys.readouterr().out
    )


def test_a_run_that_diverges_is_a_result_and_one_that_crashes_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("width=1,13", "--trials", "2", "--search-seed", "3", *SHORT)
    assert [(trial.state, trial.user_attrs.get("why")) for trial in found] == [
        (TrialState.COMPLETE, None),
        (TrialState.PRUNED, "diverged"),
    ]
    with pytest.raises(UserError, match=r"3 runs failed one after the other; .* exit code 2 .*: error: a crash; mend"):
        sweep.main(["--name", "crash", "n_step=1..99", *SHORT, "--batch-size", "13"])
    assert [trial.state for trial in trials("crash")] == [TrialState.FAIL] * 3


def test_divergence_is_recognized_by_the_message_of_the_agents() -> None:
    assert DIVERGED in str(divergence_error("step 1", Path("runs/s")))


def test_a_run_that_an_older_process_still_writes_is_waited_for(tmp_path: Path) -> None:
    words = ["--total-steps", "10", "--eval-every-steps", "10", "--learning-rate", "1", "--seed", "1"]
    child = Child(tmp_path, "tests.agents.fake_agent", "run", words)
    child.folder.mkdir(parents=True)
    with (child.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert child.is_in_use()
        assert child.poll() is None
        assert not child.log.exists()
    deadline = time.monotonic() + 60
    while (code := child.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert code == 0, child.last_words()
    assert child.curve(10) == {1: 11.0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Nothing was given to search"),
        (("n_step=1..2", "--env", "ALE/Pong-v5"), "--env is a flag of the agent: put it behind two dashes"),
        (("n_step=1..2", "--no-dueling"), "--dueling is a flag of the agent: .* -- --no-dueling"),
        (("n_step=1..2", "--trials", "0"), "--trials cannot be 0: it must be a whole number, at least 1"),
        (("n_step=1..2", "--", "--name", "x"), "--name cannot stand after the dashes"),
        (("n_step=1..2", "--", "--stop-at-return", "18"), "--stop-at-return cannot be given in a sweep"),
        (("n_step=1..2", "--", "--total-steps", "100"), "have no evaluation, and nothing could be compared"),
        (("n_step=1..2", "--", "--gama", "1"), r"There is no flag --gama \(did you mean --gamma\?\)"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_command_line(words, "")
    assert not Path("runs").exists()


def test_settings_of_pqn_are_searched_on_its_own_command_line() -> None:
    words = [
        "td_lambda=0..1",
        "num_minibatches=16,32",
        "--agent",
        "pqn",
        "--",
        "--env",
        "zerokara/Catch-v0",
        "--seed",
        "7",
    ]
    config, given, base, space = read_command_line(words, "")
    assert (config.name, given, base.seed, base.td_lambda) == ("sweep-pqn-Catch-v0", words[5:], 7, 0.65)
    assert [dimension.find(getattr(base, dimension.name)) for dimension in space] == [0.65, "32"]
    with pytest.raises(UserError, match=r"agents\.pqn has no field n_step"):
        read_command_line(["n_step=1..2", "--agent", "pqn"], "")


def test_a_damaged_study_is_said(tmp_path: Path) -> None:
    run("n_step=1..9", "--trials", "1", *SHORT)
    Path("runs/s/study.db").write_bytes(b"no database at all, but long enough to be read as one" * 40)
    with pytest.raises(UserError, match=r"runs/s/study\.db cannot be read or written"):
        run("n_step=1..9", "--trials", "2", *SHORT)


def test_a_sweep_of_real_runs(tmp_path: Path) -> None:
    """As a person types it, warnings being errors; typed again, it has nothing left to do."""
    words = ["learning_rate=log:1e-4..1e-2", "--name", "catch", "--trials", "2", "--jobs", "2", "--", *REAL]
    done = program(*words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "catch"
    saved: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert (saved["kind"], saved["extra"]["given"]) == ("sweep", list(REAL))
    values = []
    for number in (0, 1):
        metrics = (folder / "runs" / f"{number}-seed-1" / "metrics.jsonl").read_text().splitlines()
        values.append([row["eval/return"] for row in map(json.loads, metrics) if "eval/return" in row][-1])
        assert not list((folder / "runs" / f"{number}-seed-1").glob("replay-*"))
    assert [trial.value for trial in trials("catch")] == values
    assert "confirm it on fresh ones: for seed in 2 3 4; do python -m agents.dqn --env zerokara/Catch-v0" in done.stdout
    again = program(*words)
    assert again.returncode == 0, again.stderr
    assert "begins" not in again.stdout
    assert again.stdout.strip().splitlines()[-1] == done.stdout.strip().splitlines()[-1]
    mistaken = program("learning_rate=fast", "--", *REAL)
    assert mistaken.returncode == 2
    assert mistaken.stderr.startswith("error: --learning-rate cannot be 'fast': it must be a number, above 0")
    assert len(mistaken.stderr.splitlines()) == 1


def program(*words: str) -> subprocess.CompletedProcess[str]:
    """The real program, in the working folder."""
    return subprocess.run(
        [sys.executable, "-m", "agents.sweep", *words],
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
