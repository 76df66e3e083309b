"""Test the files of finished runs and the page that is made of them, with statistics computed by hand."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agents.benchmarking.test_plan import planned
from zerokara.agents.benchmarking.atari_sets import SETS
from zerokara.agents.benchmarking.evidence import (
    BEGIN,
    END,
    Result,
    ResultsFolder,
    method_values,
    read_result,
    sections,
    summary,
    write_page,
)
from zerokara.agents.benchmarking.plan import PlannedRun
from zerokara.agents.benchmarking.report import Record
from zerokara.agents.configs import arcade, dqn
from zerokara.agents.viewing.curves import Curve
from zerokara.core.config import UserError, to_saved
from zerokara.core.report import write_json

PONG = Result(
    env="ALE/Pong-v5",
    preset="fast",
    settings=(),
    protocol="nature",
    total_steps=1_000_000,
    seed=1,
    score=14.6,
    area=0.0,
    evaluations=((400_000.0, -20.7), (4_000_000.0, 14.6)),
    hours=0.5,
    processor="Intel Xeon, AMX",
    threads=1,
    precision="bfloat16",
    at_once=2,
    load=2.4,
    git_commit="0123456789abcdef",
    versions={"torch": "2.0"},
    created="2026-11-30",
)
BOWLING = replace(PONG, env="ALE/Bowling-v5", score=23.1 + 137.6 / 2)  # human-normalized: .5
# Normalized: Pong 1 and 0, Bowling .5 and 2.
FOUR = [PONG, replace(PONG, seed=2, score=-20.7), BOWLING, replace(BOWLING, seed=2, score=23.1 + 2 * 137.6)]


def rows(results: list[Result], table: int) -> list[list[str]]:
    return [list(row) for row in sections(results)[table].rows]


def test_aggregates_by_hand() -> None:
    (row,) = rows(FOUR, 0)
    # median and mean of .5 and 1.25, interquartile mean of 0 .5 1 2, gaps 1 .5 0 0. The mean of two resampled runs of a
    # game has three values with probabilities 1/4, 1/2, 1/4, so both games are lowest with 1/16.
    assert row[:3] == ["fast 1,000,000 (settings unknown)", "2", "4"]
    assert row[4] == "0.875 [0.25, 1.5]"
    assert [cell.split()[0] for cell in row[3:7]] == ["0.875", "0.875", "0.75", "0.375"]
    assert row[7:] == ["-", "-", "2.0"]
    games = rows(FOUR, 1)
    assert games[0][:3] == ["ALE/Pong-v5", "fast 1,000,000 (settings unknown)", "1, 2"]
    assert games[0][3:] == ["-3.05 [-20.7, 14.6]", "14.6, -20.7", "0.5 [0, 1]"]


def test_median_of_57_is_predicted_from_all_five_games_only() -> None:
    percent = {"BattleZone": (2360.0, 37187.5), "DoubleDunk": (-18.6, -16.4), "NameThisGame": (2292.3, 8049.0)}
    percent |= {"Phoenix": (761.4, 7242.6), "Qbert": (163.9, 13455.0)}
    five = [
        replace(PONG, env=f"ALE/{game}-v5", score=random + 0.99 * (human - random))
        for game, (random, human) in percent.items()
    ]
    assert [result.env for result in five] == [f"ALE/{game}-v5" for game in SETS["atari-5"]]
    (row,) = rows(five, 0)
    assert row[7:9] == ["0.842 (error 0.088)", "-"]  # 100^.9653006 = 85.23
    assert rows(five[1:], 0)[0][7] == "-"
    low = [replace(result, score=percent[game][0]) for game, result in zip(percent, five, strict=True)]
    assert rows(low, 0)[0][7] == "0*"


def test_methods_and_protocols_are_not_mixed() -> None:
    others = [
        replace(PONG, total_steps=10),
        replace(PONG, settings=("n_step=1",)),
        replace(PONG, protocol="machado"),
        replace(PONG, preset="pqn-paper"),
    ]
    assert [row[0] for row in rows([PONG, *others], 0)] == [
        "fast 1,000,000 (machado, settings unknown)",
        "fast 1,000,000 (settings unknown)",
        "fast 10 (settings unknown)",
        "fast n_step=1 1,000,000 (settings unknown)",
        "pqn-paper 1,000,000 (settings unknown)",
    ]
    assert len({result.file_name for result in [PONG, others[0], others[1], others[3]]}) == 4
    assert others[1].file_name == "Pong-v5-fast-n_step-1-1000000-1.json"


@pytest.mark.parametrize("env", ["CartPole-v1", "zerokara/Catch-v0"])  # the scale of Catch is that of an expert
def test_only_atari_games_are_aggregated(env: str) -> None:
    (row,) = rows([replace(PONG, env=env)], 0)
    assert row[1:7] == ["0", "1", "-", "-", "-", "-"]
    (row,) = rows([*FOUR, replace(PONG, env=env)], 0)
    assert row[1:4] == ["2", "5", "0.875 [0.25, 1.5]"]


def test_summary_counts_games_and_seeds() -> None:
    assert summary([]) == "There is no result yet."
    text = summary([*FOUR, replace(PONG, seed=3)])
    assert text.startswith(
        "5 runs: 1 method(s), 2 of 57 Atari games. 1 of 2 pairs of game and method have fewer than 3"
    )
    assert "30 episodes at epsilon .05" in text


def record_of(run: PlannedRun) -> Record:
    curve = Curve("", {}, np.array([100.0, 400.0]), np.array([-3.0, 4.0]))
    content = {
        "config": to_saved(run.config),
        "extra": {"compute": {"device": "cpu", "precision": "bfloat16", "threads": 3}},
        "machine": {"cpu": "A(R) B", "processor": "A B, AVX2", "gpus": ["G", "H"]},
        "git_commit": "abc",
        "versions": {"torch": "2"},
        "created": "2026-11-30T05:00:00+00:00",
    }
    return Record(run.env, run.preset, run.seed, 4.0, 0.5, 400.0, 0.25, {"frames": curve, "hours": curve}, content)


def test_file_of_a_run_is_written_and_read(tmp_path: Path) -> None:
    runs = planned(seeds=(1, 2), settings=("precision=float32", "n-step=2"))
    folder = ResultsFolder(tmp_path / "kept", ("precision=float32", "n-step=2"), "nature", 2)
    assert folder.missing(runs) == runs
    path = folder.save(runs[0], record_of(runs[0]))
    assert re.fullmatch(r"Catch-v0-fast-n_step-2-400-[0-9a-f]{8}-1\.json", path.name)
    assert folder.missing(runs) == runs[1:]
    (result,) = folder.read()
    assert result.settings == ("n_step=2",)
    assert (result.score, result.area, result.hours, result.at_once, result.precision) == (4, 0.5, 0.25, 2, "bfloat16")
    assert (result.evaluations, result.created) == (((100, -3), (400, 4)), "2026-11-30")
    assert (result.processor, result.threads) == ("A B, AVX2", 3), "those of the run, not of this machine"
    assert path.stat().st_size < 4_000


@pytest.mark.parametrize(
    ("compute", "machine", "expected"),
    [
        ({"device": "cpu", "threads": 2}, {"cpu": "A(R) B", "gpus": []}, ("A(R) B", 2)),  # an older run
        ({"device": "cuda:1", "threads": 1}, {"cpu": "A", "processor": "A, AVX2", "gpus": ["G", "H"]}, ("H", 1)),
        ({"device": "cuda", "threads": 1}, {"cpu": "A", "gpus": ["G", "H"]}, ("G", 1)),
        ({"device": "cuda"}, {}, ("unknown", 0)),
        ({}, {}, ("unknown", 0)),
    ],
)
def test_hardware_is_that_of_the_run(
    compute: dict[str, Any], machine: dict[str, Any], expected: tuple[str, int], tmp_path: Path
) -> None:
    (run,) = planned()
    content = {**record_of(run).content, "extra": {"compute": compute}, "machine": machine}
    folder = ResultsFolder(tmp_path, (), "nature", 1)
    folder.save(run, replace(record_of(run), content=content))
    (result,) = folder.read()
    assert (result.processor, result.threads) == expected
    if not compute:
        assert rows([result], 2)[0][3].startswith("unknown, unknown threads, ")


def test_another_protocol_is_another_result(tmp_path: Path) -> None:
    (run,) = planned()
    ResultsFolder(tmp_path, (), "machado", 1).save(run, record_of(run))
    assert ResultsFolder(tmp_path, (), "nature", 1).missing([run]) == [run]


def test_values_that_count() -> None:
    """Evaluation intervals, names, seeds, hardware and options without effect do not count, all others do."""
    (run,) = planned()
    values = method_values(run.config)
    without_effect: list[dict[str, Any]] = [
        {"eval_every_steps": 7, "checkpoint_every_steps": 7, "log_every_steps": 7, "name": "other", "seed": 9},
        {"device": "cuda", "threads": 3, "compile": "on", "precision": "bfloat16", "capture_video": True},
        {"v_max": 3.0, "noisy_sigma_init": 0.1},  # of c51 and noisy layers, which are off
    ]
    with_effect: list[dict[str, Any]] = [{"n_step": 7}, {"learning_rate": 0.07}, {"eval_episodes": 7}, {"head": "c51"}]
    for changes in without_effect:
        assert method_values(replace(run.config, **changes)) == values
    for changes in with_effect:
        assert method_values(replace(run.config, **changes)) != values
    assert method_values(planned(seeds=(2,))[0].config) == values


def test_results_of_another_version_of_a_preset_are_separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset changes after a run: the run is missing again, and the tables do not average the two."""
    folder, runs = ResultsFolder(tmp_path, (), "nature", 1), planned()
    first = folder.save(runs[0], record_of(runs[0]))
    assert folder.missing(runs) == []
    monkeypatch.setitem(arcade.ARCADE, runs[0].env, {**arcade.ARCADE[runs[0].env], "n_step": 7, "eval_every_steps": 9})
    changed = planned()
    assert folder.missing(changed) == changed
    assert folder.missing(runs) == []
    second = folder.save(changed[0], record_of(changed[0]))
    assert first != second
    results = folder.read()
    saved = [json.loads(path.read_text())["config"] for path in (first, second)]
    assert saved == [method_values(runs[0].config), method_values(changed[0].config)]
    assert saved[1]["n_step"] == 7
    for table in (0, 1):
        assert {row[table] for row in rows(results, table)} == {
            f"fast 400 (settings {result.settings_hash})" for result in results
        }
        assert len(rows(results, table)) == 2


def test_a_run_that_another_version_started_is_saved_with_its_own_values(tmp_path: Path) -> None:
    (run,) = planned()
    then = replace(run, config=replace(run.config, learning_rate=9.0))
    folder = ResultsFolder(tmp_path, (), "nature", 1)
    folder.save(run, record_of(then))
    assert folder.missing([run]) == [run]
    assert folder.missing([then]) == []


def test_file_of_an_older_version_is_of_unknown_values(tmp_path: Path) -> None:
    (run,) = planned()
    folder = ResultsFolder(tmp_path, (), "nature", 1)
    path = folder.save(run, record_of(run))
    content = json.loads(path.read_text())
    del content["config"]
    write_json(path, content)
    assert folder.missing([run]) == [run]
    (result,) = folder.read()
    assert (result.config, result.file_name) == (None, "Catch-v0-fast-400-1.json")
    assert rows([result], 0)[0][0] == "fast 400 (settings unknown)"


def test_values_of_a_file_follow_new_fields_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that was added since has its default, a renamed one its new name: the result stays the same one."""
    (run,) = planned()
    folder = ResultsFolder(tmp_path, (), "nature", 1)
    path = folder.save(run, record_of(run))
    content = json.loads(path.read_text())
    del content["config"]["double"]  # as if it had been added
    content["config"]["gammas"] = content["config"].pop("gamma")
    write_json(path, content)
    monkeypatch.setattr(dqn.Config, "RENAMED", {**dqn.Config.RENAMED, "gammas": "gamma"})
    assert folder.missing([run]) == []


@pytest.mark.parametrize("changes", [{"option_of_another_version": 3}, {"head": "no_longer"}, {"n_step": 0}])
def test_values_that_this_version_does_not_have_stay_as_they_are(changes: dict[str, Any], tmp_path: Path) -> None:
    """Such a file is another result, and does not stop the benchmark."""
    (run,) = planned()
    folder = ResultsFolder(tmp_path, (), "nature", 1)
    path = folder.save(run, record_of(run))
    content = json.loads(path.read_text())
    content["config"] |= changes
    write_json(path, content)
    (result,) = folder.read()
    assert result.config == content["config"]
    assert folder.missing([run]) == [run]


def test_evaluations_count_where_they_decide_when_the_run_ends() -> None:
    (run,) = planned()
    often, rarely = (replace(run.config, stop_at_return=4.0, eval_every_steps=steps) for steps in (7, 9))
    assert method_values(often) != method_values(rarely)
    assert method_values(often)["eval_every_steps"] == 7
    assert "eval_every_steps" not in method_values(run.config)


@pytest.mark.parametrize("change", ["not json", "[1]", {"score": "high"}, {"new": 1}, {"config": []}])
def test_damaged_file_is_named(change: str | dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / PONG.file_name
    path.write_text(change if isinstance(change, str) else json.dumps({**asdict(PONG), **change}))
    with pytest.raises(UserError, match=r"Pong-v5-fast-1000000-1\.json"):
        read_result(path)


def test_page_is_replaced_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "evidence.md"
    write_page(page, [])
    assert page.read_text() == f"# Evidence\n\n{BEGIN}\n\nThere is no result yet.\n\n{END}\n"
    page.write_text(f"# Title\n\nText.\n\n{BEGIN}\nprevious tables\n{END}\n\nEnd.\n")
    write_page(page, FOUR)
    text = page.read_text()
    assert text.startswith(f"# Title\n\nText.\n\n{BEGIN}\n\n4 runs: ")
    assert text.endswith(f"{END}\n\nEnd.\n")
    assert "previous" not in text
    for line in ("## Methods", "## Games", "## Runs", "| Intel Xeon, AMX, 1 thread, bfloat16 | 2 at once, load 2.4 |"):
        assert line in text
    write_page(page, FOUR)
    assert page.read_text() == text
    page.write_text(text + BEGIN)
    with pytest.raises(UserError, match="once each"):
        write_page(page, FOUR)


def test_results_are_read_in_order(tmp_path: Path) -> None:
    for result in FOUR:
        write_json(tmp_path / result.file_name, asdict(result))
    read = ResultsFolder(tmp_path, (), "nature", 1).read()
    assert [(result.env, result.seed) for result in read] == [
        ("ALE/Bowling-v5", 1),
        ("ALE/Bowling-v5", 2),
        ("ALE/Pong-v5", 1),
        ("ALE/Pong-v5", 2),
    ]
    assert read[2] == PONG


def test_the_page_is_made_of_the_committed_files(tmp_path: Path) -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = tmp_path / "evidence.md"
    page.write_bytes((docs / "evidence.md").read_bytes())
    results = ResultsFolder(docs / "results" / "agents", (), "nature", 1).read()
    assert results
    write_page(page, results)
    assert page.read_text("utf-8") == (docs / "evidence.md").read_text("utf-8"), "write it with the command on the page"
