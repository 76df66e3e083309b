"""Test agents.benchmark on the command line: run, resume, report; results and tables by hand."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.programs import Process, error_message, last_checkpoint, start, wait_until
from zerokara.agents import benchmark
from zerokara.agents.benchmarking import normalization
from zerokara.agents.benchmarking.dopamine_curves import PublishedCurve
from zerokara.agents.benchmarking.normalization import Scale, score_scale
from zerokara.agents.benchmarking.plan import PlannedRun
from zerokara.agents.benchmarking.report import Record, Results, Section, comparable_environments, sections
from zerokara.agents.configs import arcade, dqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.viewing.curves import Curve
from zerokara.core.command_line import parse
from zerokara.core.config import EXIT_STOPPED, UserError

CATCH = "zerokara/Catch-v0"
TINY = (
    *(
        "--envs",
        CATCH,
        "--total-steps",
        "320",
        "--evaluations",
        "2",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--name",
        "tiny",
    ),
    *("--settings", "num_envs=4", "width_multiplier=0.25", "hidden_units=16", "log_every_steps=40", "eval_episodes=2"),
    *("checkpoint_every_steps=80", "learning_starts=100", "batch_size=8", "train_every_steps=16"),
    *("replay_capacity=1000", "precision=float32", "compile=off"),
)


def program(folder: Path, *words: str) -> Process:
    """Start the program in a folder of its own."""
    return start(folder, "-m", "agents.benchmark", *words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a working folder in which a preset was trained with two seeds, and the output."""
    folder = tmp_path_factory.mktemp("benchmark")
    process = program(folder, *TINY, "--seeds", "1", "2")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return folder, out


def test_output_files(finished: tuple[Path, str]) -> None:
    folder, out = finished
    results = json.loads((folder / "runs" / "tiny" / "results.json").read_text())
    assert [(run["preset"], run["seed"]) for run in results["runs"]] == [("fast", 1), ("fast", 2)]
    protocol = results["protocol"]
    assert (protocol["name"], protocol["epsilon"], protocol["games"], protocol["steps"]) == ("nature", 0.05, 2, 320)
    assert (protocol["seeds"], protocol["evaluations"]) == ([1, 2], 2)
    assert results["versions"]["torch"]
    assert "git_commit" in results
    assert "eval_episodes is 2, but 30 in protocol nature" in results["remarks"]

    lines = (folder / "runs" / "tiny-zerokara-Catch-v0-fast-2" / "metrics.jsonl").read_text().splitlines()
    points = [(row["step"], row["eval/return"]) for row in map(json.loads, lines) if "eval/return" in row]
    assert [step for step, _ in points] == [160, 320]
    run = results["runs"][1]
    assert (run["final"], run["frames"]) == (points[1][1], 320)
    assert run["area"] == pytest.approx((points[0][1] + points[1][1]) / 2)
    low, high = results["scales"][CATCH]["low"], results["scales"][CATCH]["high"]
    assert run["normalised"] == pytest.approx((run["final"] - low) / (high - low))

    fast = results["environments"][CATCH]["fast"]
    finals = [run["final"] for run in results["runs"]]
    assert fast["final"]["value"] == pytest.approx(np.mean(finals))
    assert (fast["final"]["low"], fast["final"]["high"]) == (min(finals), max(finals))  # percentiles of two runs
    aggregates = results["across_environments"]["presets"]["fast"]["final"]
    assert aggregates["mean"]["value"] == pytest.approx(fast["final_normalised"]["value"])

    markdown = (folder / "runs" / "tiny" / "table.md").read_text()
    for heading in ("Scores", "Across environments"):
        assert f"## {heading}\n" in markdown
        assert f"\n{heading}\n" in out
    assert "| interquartile mean |" in markdown
    assert "Mnih et al. 2015" in markdown
    for name in ("frames", "hours"):
        with Image.open(folder / "runs" / "tiny" / f"curves-{name}.png") as figure:
            colors = {tuple(color) for color in np.asarray(figure.convert("RGB")).reshape(-1, 3).tolist()}
        assert (31, 119, 180) in colors  # first color of matplotlib
    assert not list((folder / "runs").glob("*/replay-*")), "replay buffers of finished runs are deleted"


def copied(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the working folder and change to it. Returns its folder of runs."""
    shutil.copytree(finished[0], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work" / "runs"


def test_same_command_starts_no_runs_if_all_are_finished(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = copied(finished, tmp_path, monkeypatch)
    before = json.loads((runs / "tiny" / "results.json").read_text())
    shutil.rmtree(runs / "tiny")
    benchmark.main([*TINY, "--seeds", "1", "2"])
    after = json.loads((runs / "tiny" / "results.json").read_text())
    assert not (runs / "tiny" / "logs").exists()
    for part in ("runs", "environments", "across_environments", "probability_of_improvement", "protocol"):
        assert after[part] == before[part]


def test_finished_runs_of_another_version_of_a_preset_are_tabulated(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = copied(finished, tmp_path, monkeypatch)
    monkeypatch.setitem(dqn.PRESETS, "fast", {**dqn.PRESETS["fast"], "loss": "mse", "final_learning_rate": None})
    monkeypatch.setitem(arcade.ARCADE, CATCH, {"gamma": 0.9})
    before = json.loads((runs / "tiny" / "results.json").read_text())
    for words in (["--report"], []):
        benchmark.main([*TINY, "--seeds", "1", "2", *words])
        results = json.loads((runs / "tiny" / "results.json").read_text())
        assert results["environments"] == before["environments"]
        names = "tiny-zerokara-Catch-v0-fast-1, tiny-zerokara-Catch-v0-fast-2"
        (line,) = (text for text in results["remarks"] if "another version" in text)
        assert line.startswith(f"{names}: started by another version of zerokara, which gave preset fast ")
        assert "--loss huber instead of mse" in line
        assert "--gamma 0.99 instead of 0.9" in line
        printed = capsys.readouterr()
        assert line in printed.out
        assert (f"note: {line}. Finished runs are tabulated as they are" in printed.err) == (not words)
    with pytest.raises(UserError, match="was started with --loss huber, but this benchmark needs mse"):
        benchmark.main([*TINY, "--seeds", "1", "--settings", *TINY[TINY.index("--settings") + 1 :], "loss=mse"])


def test_results_are_kept_as_files_and_not_repeated(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = copied(finished, tmp_path, monkeypatch)
    words = [*TINY, "--seeds", "1", "2", "--results", "kept", "--page", "docs/evidence.md"]
    scores = [run["final"] for run in json.loads((runs / "tiny" / "results.json").read_text())["runs"]]
    benchmark.main(words)
    files = sorted(Path("kept").iterdir())
    assert [json.loads(path.read_text())["score"] for path in files] == scores
    assert "| zerokara/Catch-v0 | fast " in Path("docs/evidence.md").read_text()
    assert capsys.readouterr().out == "docs/evidence.md: 2 results; of 2 runs of this command 0 are missing\n"
    shutil.rmtree(runs)  # as on another machine
    content = files[0].read_bytes()
    benchmark.main(words)
    assert not runs.exists()
    assert files[0].read_bytes() == content
    files[0].unlink()
    benchmark.main([*words, "--report"])
    assert "1 result; of 2 runs of this command 1 are missing" in capsys.readouterr().out


def test_results_of_another_version_of_a_preset_are_kept_apart(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of older values are saved as such; the new ones need folders of their own."""
    runs = copied(finished, tmp_path, monkeypatch)
    monkeypatch.setitem(arcade.ARCADE, CATCH, {"gamma": 0.9})
    words = [*TINY, "--seeds", "1", "--results", "kept"]
    with pytest.raises(UserError, match=r"which gave preset fast .*--gamma 0.99 instead of 0.9.*choose another --name"):
        benchmark.main(words)
    (path,) = Path("kept").glob("*.json")
    content = json.loads(path.read_text())
    assert (content["config"]["gamma"], content["seed"]) == (0.99, 1)
    shutil.rmtree(runs / "tiny-zerokara-Catch-v0-fast-1")
    monkeypatch.setattr(benchmark, "run_all", lambda missing, *rest: ({run.name: "" for run in missing}, None))
    with pytest.raises(SystemExit):  # the run is not skipped
        benchmark.main(words)


def test_each_result_is_written_when_its_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = program(tmp_path, *TINY, "--seeds", "1", "--results", "kept")
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    (path,) = tmp_path.glob("kept/*.json")
    assert json.loads(path.read_text())["evaluations"][-1][0] == 320
    assert re.search(r"-320-[0-9a-f]{8}-1\.json$", path.name)
    assert "1 run: 1 method(s), 0 of 57 Atari games" in (tmp_path / "kept" / "evidence.md").read_text()


def test_failed_run_is_named_and_the_others_are_tabulated(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = copied(finished, tmp_path, monkeypatch)
    damaged = runs / "tiny-zerokara-Catch-v0-fast-2"
    (damaged / "checkpoint-0.pt").write_bytes(b"no checkpoint")
    process = program(Path.cwd(), *TINY, "--seeds", "1", "2")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert f"warning: {damaged.name} failed, the other runs continue" in err
    assert "checkpoint-0.pt is damaged" in err
    results = json.loads((runs / "tiny" / "results.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [1]
    assert any(f"1 of 2 runs are missing: {damaged.name}" in remark for remark in results["remarks"])
    assert results["environments"][CATCH]["fast"]["final"]["low"] is None


def step_of(run: Path) -> int:
    """Return the step of the last checkpoint; -1 if there is none."""
    return int(last_checkpoint(run, "dqn").get("step", -1))


def test_ctrl_c_lets_runs_save_and_the_same_command_resumes(tmp_path: Path) -> None:
    words = [*TINY[:2], "--total-steps", "2400", *TINY[4:], "--seeds", "1"]
    run = tmp_path / "runs" / "tiny-zerokara-Catch-v0-fast-1"
    process = program(tmp_path, *words)
    wait_until(process, lambda: step_of(run) >= 80, seconds=200)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    at = step_of(run)
    assert (process.returncode, err) == (EXIT_STOPPED, "")
    assert out.strip().splitlines()[-1] == "SIGINT: 0 of 1 runs are finished; repeat the same command to resume"
    assert 80 <= at < 2400, "stopped too late"
    assert (run / "replay-0").exists(), "the replay buffer is needed to resume"
    process = program(tmp_path, *words)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert step_of(run) == 2400
    log = (tmp_path / "runs" / "tiny" / "logs" / f"{run.name}.log").read_text()
    assert "SIGTERM: saving" in log


def test_error_prints_one_line_and_exits_with_code_2(tmp_path: Path) -> None:
    err = error_message(tmp_path, "-m", "agents.benchmark", *TINY, "--presets", "fst")
    assert err.startswith("error: There is no preset 'fst' (did you mean fast?)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--envs"], "--envs"),
        (["--seeds", "-1"], "--seeds"),
        (["--protocol", "mine"], "--protocol cannot be 'mine'"),
        (["--name", "a/b"], "--name cannot be"),
        (["--device", "toaster"], "no device 'toaster'"),
        (["--report"], "No run can be scored"),
        (["--dopamine", "dopamine_pong.json"], "no Atari game"),
        (["--games", "atari-5"], "Give --envs or --games"),
        (["--games", "atari-5", "--envs", "ALE/Pong-v5"], "Give --envs or --games"),  # the default, but given
        (["--report", "--results", "typo", "--page", "copy.md"], "There is no result in --results typo"),
        (["--page", "page.md"], "--page has no effect without --results"),
    ],
)
def test_error_messages(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        benchmark.main([*TINY, *words])
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_run_is_refused(catch_run: Path) -> None:
    with pytest.raises(UserError, match="is the folder of a run"):
        benchmark.main([*TINY, "--name", "catch"])


def record(env: str, preset: str, seed: int, final: float, *, frames: float = 2e6) -> Record:
    curve = Curve(preset, {}, np.array([0.0, frames]), np.array([0.0, final]))
    return Record(env, preset, seed, final, final / 2, frames, 0.5, {"frames": curve, "hours": curve}, {"extra": {}})


PONG = [record("ALE/Pong-v5", "a", seed, score) for seed, score in ((1, 14.6), (2, -20.7))]  # normalized: 1 and 0
BOWLING = [record("ALE/Bowling-v5", "a", seed, 23.1 + 137.6 * fraction) for seed, fraction in ((1, 0.5), (2, 2.0))]


def test_aggregates_by_hand() -> None:
    aggregates = Results.of([*PONG, *BOWLING], {}).aggregates["a"]["final"]
    assert aggregates["mean"].value == pytest.approx((0.5 + 1.25) / 2)
    assert aggregates["median"].value == pytest.approx((0.5 + 1.25) / 2)
    assert aggregates["interquartile mean"].value == pytest.approx((0.5 + 1) / 2)
    assert aggregates["optimality gap"].value == pytest.approx((0 + 1 + 0.5 + 0) / 4)
    # The resampled mean of each game has three values with probabilities 1/4, 1/2, 1/4; both are lowest with 1/16.
    assert [aggregates["mean"].low, aggregates["mean"].high] == pytest.approx([0.25, 1.5])


def test_only_environments_with_a_scale_and_all_presets_are_aggregated() -> None:
    other = [record("ALE/Pong-v5", "b", 1, 0.0), record("CartPole-v1", "a", 1, 9.0), record("CartPole-v1", "b", 1, 8.0)]
    results = Results.of([*PONG, *BOWLING, *other], {})
    assert comparable_environments(results.groups) == ["ALE/Pong-v5"]
    assert results.environments["CartPole-v1"]["a"]["final"].value == 9.0
    assert "final_normalised" not in results.environments["CartPole-v1"]["a"]
    assert results.improvements["a"]["b"].value == pytest.approx(0.5)  # one of two runs of a beats b
    only = Results.of([record("CartPole-v1", "a", 1, 9.0)], {})
    assert not only.aggregates
    assert not only.improvements
    assert [section.heading for section in sections(only)] == ["Scores"]


def test_tables_compare_presets() -> None:
    tables = sections(Results.of([*PONG, record("ALE/Pong-v5", "b", 1, 0.0), record("ALE/Pong-v5", "b", 2, 0.0)], {}))
    assert [table.heading for table in tables] == ["Scores", "Across environments", "Probability of improvement"]
    assert [row[:2] for row in tables[1].rows] == [
        ["a, final", "0.5 [0, 1]"],
        ["a, area under curve", "0.543 [0.293, 0.793]"],  # curves start at 0: mean heights 7.3 and -10.35
        ["b, final", "0.586 [0.586, 0.586]"],
        ["b, area under curve", "0.586 [0.586, 0.586]"],
    ]
    # One of the two runs of a is better than those of b; in a quarter of the resamples both are, in a quarter neither.
    assert tables[2].rows == [["a", "-", "0.5 [0, 1]"], ["b", "0.5 [0, 1]", "-"]]


def test_published_scores_are_in_the_table() -> None:
    frames = np.array([1e6, 2e6, 3e6])
    curve = PublishedCurve("IQN", frames, np.array([-20.7, 14.6, 14.6]), frames * 0, frames * 0, runs=5)
    rows = sections(Results.of(PONG, {"ALE/Pong-v5": [curve]}))[0].rows
    assert rows[1] == ["ALE/Pong-v5 IQN (Dopamine)", "5", "14.6", "-", "1", "-", "-"]
    short = [record("ALE/Pong-v5", "a", 1, 0.0, frames=5e5)]
    assert len(sections(Results.of(short, {"ALE/Pong-v5": [curve]}))[0].rows) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "machado"], "begin after 1,000,000 frames"),
        (
            ["--protocol", "nature", "--settings", "eval_epsilon=0.05", "eval_max_steps=4500"],
            "not shown because protocol nature has no sticky actions",
        ),
        (
            ["--protocol", "machado", "--settings", "repeat_action_probability=0"],
            "not shown because repeat_action_probability is 0.0, but 0.25 in protocol machado",
        ),
    ],
)
def test_dopamine_curves_are_shown_only_with_their_protocol(words: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "dopamine_pong.json"
    path.write_text(json.dumps([{"Iteration": 0, "Value": 1.0, "Agent": "DQN"}]))
    options = parse(benchmark.Options, {}, [*words, "--dopamine", str(path)], "")
    given: dict[str, Any] = {
        name: float(value) for name, _, value in (setting.partition("=") for setting in options.settings)
    }
    config = Config(protocol=options.protocol, **given)
    run = PlannedRun("ALE/Pong-v5", "fast", 1, "dqn", config, ())
    curves, (note,) = benchmark.read_dopamine(options, [run])
    assert message in note
    assert bool(curves) == ("begin" in note)


def test_table_as_markdown() -> None:
    text = Section("Scores", ["what", "how much"], [["a|b", "1 [0, 2]"]], "A note.").markdown()
    assert text == "## Scores\n\n| what | how much |\n| --- | ---: |\n| a\\|b | 1 [0, 2] |\n\nA note."


def test_scales_of_environments() -> None:
    catch = score_scale(CATCH)
    assert catch is not None
    assert catch.high == 5.0  # the expert catches all five balls
    assert -5 <= catch.low < 0
    assert catch.normalize(catch.low) == 0
    assert score_scale("CartPole-v1") is None
    assert score_scale("ALE/Pong-v5") == Scale(-20.7, 14.6, "random play 0, human 1")
    assert normalization._mean_return(CATCH, expert=False) == catch.low
