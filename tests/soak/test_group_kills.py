"""Tests of the soak test of several processes: torchrun restarts a killed group, which ends like an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.programs import metrics, wait_until
from tests.soak import group_kills, kills
from tests.soak.comparison import differences


def test_a_killed_group_is_restarted_and_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(group_kills.PROGRAMS, "pqn", (*group_kills.PROGRAMS["pqn"], "--total-steps", "9600"))
    undisturbed = group_kills.start_group("pqn", 2, tmp_path / "undisturbed")
    process = group_kills.start_group("pqn", 2, tmp_path / "killed")
    run = tmp_path / "killed" / "runs" / kills.RUN
    wait_until(process, (run / "metrics.jsonl").exists)  # from here on, a resumed run has something to restore
    # A process that has just saved is killed, too, but not counted.
    assert any(group_kills.kill_once(process, run, "saving", 0, time.time()) for _ in range(10))
    outputs = [each.communicate(timeout=600) for each in (undisturbed, process)]
    assert [each.returncode for each in (undisturbed, process)] == [0, 0], outputs
    err = outputs[1][1]
    assert err.count("error: Another process of this run has ended") <= 2
    found = differences(tmp_path / "undisturbed" / "runs" / kills.RUN, run)
    assert [each for each in found if not any(part in each for part in group_kills.UNSEEDED)] == []
    assert not group_kills.kill_once(process, run, "first", 0), "it has ended"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_with_a_process_that_hangs_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """The other process ends after the time limit, and torchrun kills the stopped one half a minute later."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ZEROKARA_COLLECTIVE_TIMEOUT", "60")
    monkeypatch.setitem(group_kills.PROGRAMS, "pqn", (*group_kills.PROGRAMS["pqn"], "--total-steps", "9600"))
    undisturbed, process = (group_kills.start_group("pqn", 2, tmp_path / name) for name in ("undisturbed", "stopped"))
    run = tmp_path / "stopped" / "runs" / kills.RUN
    path = run / "metrics.jsonl"
    wait_until(process, lambda: path.exists() and any(row["step"] >= 960 for row in metrics(run)))  # two checkpoints
    group_kills.ranks(process)[rank].send_signal(signal.SIGSTOP)
    try:
        outputs = [each.communicate(timeout=600) for each in (undisturbed, process)]
    finally:
        if process.poll() is None:  # torchrun would go on restarting its processes
            for each in (psutil.Process(process.pid), *group_kills.ranks(process).values()):
                each.kill()
    assert [each.returncode for each in (undisturbed, process)] == [0, 0], outputs
    assert outputs[1][1].count("error: Another process of this run has ended, or did not answer within 60 s") == 1
    assert "resumed at step 0" not in outputs[1][1]
    found = differences(tmp_path / "undisturbed" / "runs" / kills.RUN, run)
    assert [each for each in found if not any(part in each for part in group_kills.UNSEEDED)] == []


def test_the_process_that_is_saving_is_found_by_its_file(tmp_path: Path) -> None:
    assert group_kills.saving_rank(tmp_path, 0.0) is None
    left = tmp_path / ".checkpoint-0.pt.tmp"
    left.touch()
    os.utime(left, (1_000, 1_000))
    (tmp_path / ".checkpoint-x.tmp").touch()
    (tmp_path / "checkpoint-2.pt").touch()
    killed_at = time.time() - 60
    assert group_kills.saving_rank(tmp_path, killed_at) is None, "a killed process has left this file"
    (tmp_path / ".checkpoint-1.pt.tmp").touch()
    assert group_kills.saving_rank(tmp_path, killed_at) == 1


def test_a_group_that_does_not_save_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_kills, "LONGEST_SECONDS", 0.05)
    process = SimpleNamespace(poll=lambda: None, pid=os.getpid())
    with pytest.raises(TimeoutError, match="no checkpoint was begun"):
        group_kills.kill_once(process, tmp_path, "saving", 0)  # type: ignore[arg-type]


def test_results_are_counted(tmp_path: Path) -> None:
    results = [
        group_kills.Result("pqn", 2, 0, ["all", "first"]),
        group_kills.Result("pqn", 2, 1, ["first"], "lost", ["a line"]),
        group_kills.Result("dqn", 2, 0, [], "hung"),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{json.dumps(vars(result))}\n" for result in results))
    summary = group_kills.summarize(group_kills.read_results(path))
    assert summary["by_target"] == {"all": 1, "first": 2}
    assert summary["by_program"]["pqn"] == {"kills": 3, "runs": 2, "lost": 1, "hung": 0, "different": 0}
    assert (summary["kills"], summary["lost"], summary["hung"], summary["different"]) == (3, 1, 1, 0)
