"""Test sweeps: values of trials by hand, pruning, stop and resume, failures, error messages, real runs."""

from __future__ import annotations

import csv
import fcntl
import json
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.programs import start
from zerokara.agents import sweep
from zerokara.agents.configs import dqn
from zerokara.agents.sweeping import config as sweep_config
from zerokara.agents.sweeping.config import read_command_line
from zerokara.agents.sweeping.search_space import AGENTS
from zerokara.agents.sweeping.trial import DIVERGED, TrialProcess, curve_value, read_evaluations
from zerokara.core.config import Stopped, UserError, to_dict
from zerokara.core.divergence import divergence_error
from zerokara.core.file_lock import is_locked
from zerokara.core.scheduling.job import Exit
from zerokara.core.scheduling.local import LocalProcess

RATES = "learning_rate=0.0005,0.001,0.002"  # the first is the default
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
    """Replace the agent by a fake one that trains in no time, in a folder of its own."""
    fake = {**AGENTS, "dqn": AGENTS["dqn"]._replace(module="tests.agents.fake_agent")}
    monkeypatch.setattr(sweep, "AGENTS", fake)
    monkeypatch.setattr(sweep_config, "AGENTS", fake)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)


def trials(name: str = "s") -> list[optuna.trial.FrozenTrial]:
    """Read the trials from the saved study."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///runs/{name}/study.db").get_trials()


def run(*words: str) -> list[optuna.trial.FrozenTrial]:
    """Run a sweep. Returns its trials."""
    sweep.main(["--name", "s", *words])
    return trials()


def test_curves_and_their_values_by_hand() -> None:
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
    assert curve_value(curve, "last") == 6
    assert curve_value(curve, "area") == pytest.approx((2 + 4 + 2 * 6) / 4)  # the missing third one as the fourth
    assert curve_value({1: 2.0}, "area") == 2


def test_best_settings_are_found_and_printed_as_commands(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(RATES, "--trials", "8", "--pruner", "none", *SHORT)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 8
    assert found[0].params == {"learning_rate": "0.0005"}  # the first trial has the default
    assert [t.value for t in found] == pytest.approx([1000 * float(t.params["learning_rate"]) + 1 for t in found])
    assert len(list(Path("runs/s/runs").iterdir())) == 3  # no settings are run twice
    assert not list(Path("runs/s/runs").glob("*/replay-0"))
    out = capsys.readouterr().out
    assert "value of a trial: mean raw return, its last evaluation; an evaluation is 30 episodes of ALE/Pong-v5" in out
    command = "python -m tests.agents.fake_agent --total-steps 1000 --eval-every-steps 100 --learning-rate 0.002"
    assert f":\n{command}\n" in out
    closing = out.strip().splitlines()[-1]
    assert "is best with 3. This value is biased upwards, because the trial was selected by it (seeds 1)" in closing
    assert f"for seed in 2 3 4; do {command} --seed $seed --name s-best-$seed; done" in closing
    with Path("runs/s/trials.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == sorted((t.value or 0 for t in found), reverse=True)
    assert all(Path(f"runs/s/{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("history", "importance"))


def test_replay_buffers_are_kept_if_asked_for() -> None:
    run(RATES, "--trials", "1", "--keep-replays", *SHORT)
    (folder,) = Path("runs/s/runs").iterdir()
    assert (folder / "replay-0").exists()
    assert "--no-delete-replay" in json.loads((folder / "config.json").read_text())


def test_value_of_a_trial_is_the_mean_over_seeds() -> None:
    (found,) = run("learning_rate=0.0005,1", "--trials", "1", "--seeds", "3", "--objective", "area", *SHORT)
    areas = [550 * 0.0005 + seed for seed in (1, 2, 3)]
    assert found.user_attrs["worths"] == pytest.approx(areas)
    assert found.value == pytest.approx(sum(areas) / 3)
    assert sorted(path.name for path in Path("runs/s/runs").iterdir()) == ["0-seed-1", "0-seed-2", "0-seed-3"]
    # Intermediate values: mean of the finished seeds and of the running one so far.
    assert list(found.intermediate_values) == list(range(100, 3001, 100))
    assert found.intermediate_values[1100] == pytest.approx((areas[0] + 100 * 0.0005 + 2) / 2)


def test_pruned_trial_is_stopped_and_saves() -> None:
    """The run at learning rate .0013 sleeps until it is stopped."""
    words = ("--trials", "6", "--pruner-startup-trials", "1", "--pruner-warmup-fraction", "0")
    found = run("learning_rate=0.1,0.0013", *words, *SHORT, "--learning-rate", "0.1")
    pruned = next(trial for trial in found if trial.params["learning_rate"] == "0.0013")
    assert pruned.state == TrialState.PRUNED
    assert pruned.intermediate_values == {100: pytest.approx(100 * 0.0013 + 1)}
    folder = Path(f"runs/s/runs/{pruned.number}-seed-1")
    assert (folder / "saved").exists()
    assert not (folder / "replay-0").exists()


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_use_the_learning_curve(pruner: str) -> None:
    words = ("--trials", "9", "--pruner-startup-trials", "1", "--pruner-warmup-fraction", "0.3", "--pruner", pruner)
    found = run("learning_rate=0.001..0.1", *words, *SHORT, "--learning-rate", "0.05")
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    best = max(found, key=lambda trial: trial.params["learning_rate"])
    assert pruned
    assert best.state == TrialState.COMPLETE
    if pruner == "median":
        assert min(trial.last_step or 0 for trial in pruned) == 300


def test_stopped_sweep_resumes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("learning_rate=log:1e-5..1e-3", "--trials", "3", "--pruner", "none")
    monkeypatch.setenv("FAKE_STOPS_SWEEP", "1")
    with pytest.raises(Stopped):
        run(*words, *SHORT)
    (stopped,) = trials()
    assert stopped.state == TrialState.RUNNING
    assert Path("runs/s/runs/0-seed-1/saved").exists()
    out = capsys.readouterr().out
    assert "0 of 3 trials are finished; resume with: " in out
    assert "learning_rate=log:1e-5..1e-3 --trials 3 --pruner none -- --total-steps 1000" in out
    monkeypatch.delenv("FAKE_STOPS_SWEEP")
    found = run(*words, *SHORT)
    assert Path("runs/s/runs/0-seed-1/resumed").exists()
    assert len(Path("runs/s/runs/0-seed-1/metrics.jsonl").read_text().splitlines()) == 10
    sweep.main(["--name", "whole", *words, *SHORT])
    assert [(t.state, t.params, t.values) for t in found] == [(t.state, t.params, t.values) for t in trials("whole")]


def test_a_run_that_is_stopped_from_outside_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_IS_STOPPED", "1")
    (trial,) = run("n_step=3,5", "--trials", "1", *SHORT)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == pytest.approx(1.25)
    assert Path("runs/s/runs/0-seed-1/resumed").exists()
    assert "trial 0 was stopped from outside and resumes" in capsys.readouterr().out


def test_finished_sweep_continues_with_more_trials() -> None:
    few = run("learning_rate=log:1e-5..1e-3", "--trials", "2", "--pruner", "none", *SHORT)
    more = run("learning_rate=log:1e-5..1e-3", "--trials", "5", "--jobs", "3", "--pruner", "none", *SHORT)
    assert [trial.params for trial in more[:2]] == [trial.params for trial in few]
    assert [trial.state for trial in more] == [TrialState.COMPLETE] * 5
    assert len({trial.params["learning_rate"] for trial in more}) == 5


def test_new_trials_keep_the_settings_of_earlier_ones_when_a_preset_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("learning_rate=0.0005,0.001,0.002", "--sampler-seed", "3", "--pruner", "none")
    run(*words, "--trials", "1", *SHORT)
    assert "which new trials keep" not in capsys.readouterr().out
    monkeypatch.setitem(dqn.PRESETS, "fast", {**dqn.PRESETS["fast"], "gamma": 0.5, "eval_episodes": 7})
    found = run(*words, "--trials", "3", *SHORT)
    out = capsys.readouterr().out
    assert "which new trials keep: --eval-episodes 30 instead of 7, --gamma 0.99 instead of 0.5\n" in out
    assert "an evaluation is 30 episodes" in out
    new = [trial for trial in found[1:] if Path(f"runs/s/runs/{trial.number}-seed-1").exists()]
    assert new
    for trial in new:
        given = json.loads(Path(f"runs/s/runs/{trial.number}-seed-1/config.json").read_text())
        assert given[given.index("--gamma") + 1] == "0.99"
        assert given[given.index("--eval-episodes") + 1] == "30"
    assert "--gamma 0.99" in out.strip().splitlines()[-1], "the command with which the best settings are confirmed"
    assert "which new trials keep" in (run(*words, "--trials", "3", *SHORT) and capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("n_step=1..3", *SHORT),
            "was started with the search space n_step=1..2 and cannot resume with n_step=1..3",
        ),
        (("n_step=1..2", "--seeds", "2", *SHORT), "runs/s was started with --seeds 1 and cannot resume with 2"),
        (("n_step=1..2", *SHORT, "--gamma", "0.9"), "was started with the agent's command line --total-steps 1000"),
    ],
)
def test_another_command_does_not_resume(words: tuple[str, ...], message: str) -> None:
    config, agent_arguments, _, _ = read_command_line(["--name", "s", "n_step=1..2", *SHORT], "")
    folder = Path("runs/s")
    folder.mkdir(parents=True)
    content = {"kind": "sweep", "config": to_dict(config), "extra": {"given": agent_arguments}}
    (folder / "config.json").write_text(json.dumps(content))
    sweep_config.check_same_command(config, agent_arguments, folder)
    with pytest.raises(UserError, match=message):
        sweep.main(["--name", "s", *words])


def test_sweep_of_an_older_version_resumes_with_its_command(tmp_path: Path) -> None:
    """Translate the old names in the saved config and on the command line."""
    old = ["--name", "s", "n_step=1..2", "--unpruned-trials", "3", "--unpruned-share", "0.5", "--search-seed", "7"]
    config, agent_arguments, _, _ = read_command_line([*old, *SHORT], "")
    assert (config.pruner_startup_trials, config.pruner_warmup_fraction, config.sampler_seed) == (3, 0.5, 7)
    names = {new: old_name for old_name, new in sweep_config.Config.RENAMED.items()}
    saved = {names.get(name, name): value for name, value in to_dict(config).items()}
    assert {"unpruned_trials", "unpruned_share", "search_seed"} <= saved.keys()
    content = {"kind": "sweep", "config": saved, "extra": {"given": agent_arguments}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    sweep_config.check_same_command(config, agent_arguments, tmp_path)


def test_incompatible_settings_are_printed_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("munchausen=true,false", "double=true,false", "--trials", "12", "--pruner", "none", *SHORT)
    refused = [trial for trial in found if trial.params == {"munchausen": "true", "double": "true"}]
    assert refused
    assert {trial.state for trial in refused} == {TrialState.PRUNED}
    assert {trial.state for trial in found if trial not in refused} == {TrialState.COMPLETE}
    reason = "settings are refused (munchausen true, double true): --munchausen and --double cannot be"
    assert reason in capsys.readouterr().out


def test_divergence_counts_as_pruned_and_crashes_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("width=1,13", "--trials", "2", "--sampler-seed", "3", *SHORT)
    assert [(trial.state, trial.user_attrs.get("why")) for trial in found] == [
        (TrialState.COMPLETE, None),
        (TrialState.PRUNED, "diverged"),
    ]
    with pytest.raises(UserError, match=r"3 runs failed one after the other; .* exit code 2 .*: error: a crash; fix"):
        sweep.main(["--name", "crash", "n_step=1..99", *SHORT, "--batch-size", "13"])
    assert [trial.state for trial in trials("crash")] == [TrialState.FAIL] * 3


def test_the_reason_why_a_run_was_not_started_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster gives a run up that it has lost several times. There is no log then."""

    class LostJob(LocalProcess):
        def poll(self) -> Exit | None:
            return Exit(1, "lost by the cluster 10 times, at last because: no node")

    monkeypatch.setattr(sweep, "launcher", lambda cluster: LostJob)
    with pytest.raises(UserError, match=r"exit code 1 \(runs/s/logs/2-seed-1\.log\): lost by the cluster 10 times, at"):
        run("n_step=1..99", *SHORT)


def test_divergence_is_recognized_by_the_message_of_the_agents() -> None:
    assert DIVERGED in str(divergence_error("step 1", Path("runs/s")))


def test_run_locked_by_another_process_is_waited_for(tmp_path: Path) -> None:
    words = ["--total-steps", "10", "--eval-every-steps", "10", "--learning-rate", "1", "--seed", "1"]
    process = TrialProcess(tmp_path, "tests.agents.fake_agent", "run", words)
    process.folder.mkdir(parents=True)
    with (process.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked(process.folder / "lock")
        assert process.poll() is None
        assert not process.log.exists()
    deadline = time.monotonic() + 60
    while (end := process.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert end == Exit(0, "")
    assert process.curve(10) == {1: 11.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "There is nothing to search"),
        (("n_step=1..2", "--env", "ALE/Pong-v5"), "--env is an option of the agent: put it after --, as in"),
        (("n_step=1..2", "--no-dueling"), "--dueling is an option of the agent: .* -- --no-dueling"),
        (("n_step=1..2", "--trials", "0"), "--trials cannot be 0: it must be a whole number, at least 1"),
        (("n_step=1..2", "--", "--name", "x"), "--name cannot be given after --"),
        (("n_step=1..2", "--", "--stop-at-return", "18"), "--stop-at-return cannot be used in a sweep"),
        (("n_step=1..2", "--", "--total-steps", "100"), "have no evaluation to compare"),
        (("n_step=1..2", "--", "--gama", "1"), r"There is no flag --gama \(did you mean --gamma\?\)"),
    ],
)
def test_error_messages(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_command_line(words, "")
    assert not Path("runs").exists()


def test_search_of_pqn() -> None:
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
    config, agent_arguments, base, space = read_command_line(words, "")
    assert (config.name, agent_arguments, base.seed, base.td_lambda) == ("sweep-pqn-Catch-v0", words[5:], 7, 0.65)
    assert [dimension.sampled_value(getattr(base, dimension.name)) for dimension in space] == [0.65, "32"]
    with pytest.raises(UserError, match=r"agents\.pqn has no field n_step"):
        read_command_line(["n_step=1..2", "--agent", "pqn"], "")


def test_damaged_study_is_reported(tmp_path: Path) -> None:
    run("n_step=1..9", "--trials", "1", *SHORT)
    Path("runs/s/study.db").write_bytes(b"no database at all, but long enough to be read as one" * 40)
    with pytest.raises(UserError, match=r"runs/s/study\.db cannot be read or written"):
        run("n_step=1..9", "--trials", "2", *SHORT)


def test_sweep_of_real_runs(tmp_path: Path) -> None:
    """Run the program with warnings as errors; a repeated command has nothing left to do."""
    words = ["learning_rate=log:1e-4..1e-2", "--name", "catch", "--trials", "2", "--jobs", "2", "--", *REAL]
    code, out, err = program(*words)
    assert code == 0, err
    folder = tmp_path / "runs" / "catch"
    saved: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert (saved["kind"], saved["extra"]["given"]) == ("sweep", list(REAL))
    values = []
    for number in (0, 1):
        metrics = (folder / "runs" / f"{number}-seed-1" / "metrics.jsonl").read_text().splitlines()
        values.append([row["eval/return"] for row in map(json.loads, metrics) if "eval/return" in row][-1])
        assert not list((folder / "runs" / f"{number}-seed-1").glob("replay-*"))
    assert [trial.value for trial in trials("catch")] == values
    command = "for seed in 2 3 4; do python -m agents.dqn --env zerokara/Catch-v0"
    assert f"confirm the settings on new seeds: {command}" in out
    code, again, err = program(*words)
    assert code == 0, err
    assert " starts: " not in again
    assert again.strip().splitlines()[-1] == out.strip().splitlines()[-1]
    code, _, err = program("learning_rate=fast", "--", *REAL)
    assert code == 2
    assert err.startswith("error: --learning-rate cannot be 'fast': it must be a number, above 0")
    assert len(err.splitlines()) == 1


def program(*words: str) -> tuple[int | None, str, str]:
    """Run the program in the working folder; return its exit status, stdout and stderr."""
    process = start(Path.cwd(), "-m", "agents.sweep", *words)
    out, err = process.communicate()
    return process.returncode, out, err
