"""Tests of the videos of a session: results are saved before, and an interrupted recording is repeated."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agents.training.recorded import Make, scores
from tests.programs import metrics
from zerokara.agents.training import session
from zerokara.agents.training.evaluation import Scores
from zerokara.core.distributed import World


def test_a_video_that_was_interrupted_is_recorded_by_the_resumed_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded = make(total_steps=40, eval_every_steps=40, capture_video=True)
    recorded.scores = [scores(2.0)]

    def log_video(*args: Any) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return False

    monkeypatch.setattr(session, "log_video", log_video)
    with recorded.run.signals():
        recorded.train()
    assert (recorded.session.video_pending, recorded.session.evaluation_pending) == (True, False)
    assert recorded.run.stopped, "after the last step, but the video is missing"
    again = make(resume=True, total_steps=40, eval_every_steps=40, capture_video=True)
    again.train()
    assert (again.videos, again.evaluations, again.run.stopped) == ([40], [], False)
    assert [row["step"] for row in metrics(tmp_path / "run") if "eval/return" in row] == [40]


@pytest.mark.parametrize("goal", [None, 2.0])
def test_the_results_of_an_evaluation_are_saved_before_its_video_is_recorded(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goal: float | None
) -> None:
    """The process is killed while it records: the resumed run has the results, and records only the video."""
    limits = {"total_steps": 40, "eval_every_steps": 20, "checkpoint_every_steps": 40, "stop_at_return": goal}
    recorded = make(**limits, capture_video=True)
    recorded.scores, kept = [scores(2.0)], list[float]()
    monkeypatch.setattr(
        recorded.session.best, "update", lambda weights, figures, **_: kept.append(recorded.session.step)
    )

    def log_video(*args: Any) -> bool:
        assert kept == [20]
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "log_video", log_video)
    with pytest.raises(KeyboardInterrupt):
        recorded.train()
    assert [row["eval/return"] for row in metrics(tmp_path / "run") if "eval/return" in row] == [2.0]
    again = make(resume=True, **limits, capture_video=True)
    again.scores = [scores(3.0)]
    again.train()
    assert (again.videos[0], again.session.is_finished) == (20, True)
    ends_at = [] if goal else [40]
    assert [evaluation["step"] for evaluation in again.evaluations] == ends_at, "the goal was reached before"
    assert [row["step"] for row in metrics(tmp_path / "run") if "eval/return" in row] == [20, *ends_at]


def test_a_run_that_is_resumed_without_videos_does_not_record_the_one_that_is_missing(make: Make) -> None:
    recorded = make(total_steps=40)
    recorded.session.start()
    recorded.session.video_pending = True
    recorded.session.save()
    again = make(resume=True, total_steps=40, capture_video=False)
    again.train()
    assert (again.videos, again.session.is_finished) == ([], True)


def test_of_several_processes_the_first_one_records_while_the_others_evaluate(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = make(world=World(rank=0, size=2), capture_video=True)
    recorded.session.obs = recorded.session.env.reset(0)

    def evaluate_in_processes(world: World, episodes: int, evaluate: Any, record: Callable[[], object]) -> Scores:
        record()
        return scores(2.0)

    monkeypatch.setattr(session, "evaluate_in_processes", evaluate_in_processes)
    recorded.session.evaluate_and_log()
    assert (recorded.videos, recorded.saves, recorded.session.video_pending) == ([0], [], False)
