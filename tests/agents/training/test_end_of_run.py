"""Tests of the end of a run: its last evaluation, the deletion of its replay buffer, and what it prints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.agents.conftest import TINY_CATCH
from tests.agents.training.recorded import Make, scores
from zerokara.agents import dqn
from zerokara.core import checkpoint


def test_a_finished_run_ends_with_an_evaluation_and_a_video(make: Make) -> None:
    recorded = make(eval_every_steps=200_000, capture_video=True)
    recorded.scores = [scores(2.0)]
    recorded.train()
    assert [evaluation["step"] for evaluation in recorded.evaluations] == recorded.videos == [80]
    assert recorded.saves[-1] == 80
    state = checkpoint.load(recorded.run.folder / "checkpoint-0.pt", "dqn")
    assert (state["last_score"], state["evaluated_at"]) == (2.0, 80), "saved after the evaluation"

    again = make(resume=True, eval_every_steps=200_000)
    again.train()
    assert again.evaluations == [], "a finished run is not evaluated again"
    assert "watch it with" in again.session.closing_message()


def test_an_interrupted_last_evaluation_is_repeated(make: Make) -> None:
    recorded = make(eval_every_steps=200_000)

    def stop() -> None:
        recorded.run.stop_requested = "SIGTERM" if recorded.session.step == 80 else None

    recorded.train(each=stop)
    assert "resume with" in recorded.session.closing_message()
    again = make(resume=True, eval_every_steps=200_000)
    again.scores = [scores(2.0)]
    again.train()
    assert [evaluation["step"] for evaluation in again.evaluations] == [80]
    assert "watch it with" in again.session.closing_message()


@pytest.mark.parametrize(
    ("settings", "stopped_at", "kept"),
    [
        ({}, None, False),
        ({"eval_every_steps": 40}, None, False),
        ({"eval_every_steps": 40, "stop_at_return": 2.0}, None, False),
        ({"delete_replay": False}, None, True),
        ({}, 40, True),
        ({"eval_every_steps": 200_000}, 80, True),
    ],
)
def test_the_replay_buffer_of_a_finished_run_is_deleted(
    make: Make, settings: dict[str, Any], stopped_at: int | None, kept: bool
) -> None:
    recorded = make(**settings)
    recorded.scores = [scores(2.0)]
    folders = [recorded.run.folder / f"replay-{rank}" for rank in (0, 1)]
    for folder in folders:
        folder.mkdir()
        (folder / "frame.bin").write_bytes(b"frames")

    def stop() -> None:
        recorded.run.stop_requested = "SIGTERM" if recorded.session.step == stopped_at else None

    recorded.train(each=stop)
    assert [folder.exists() for folder in folders] == [kept, kept]


def test_a_replay_buffer_that_cannot_be_deleted_is_warned_about(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, warned = make(), list[str]()
    (recorded.run.folder / "replay-0").mkdir()
    monkeypatch.setattr(recorded.run, "warn", warned.append)
    monkeypatch.setattr("shutil.rmtree", Mock(side_effect=PermissionError(13, "Permission denied")))
    recorded.train()
    assert warned == [f"{recorded.run.folder / 'replay-0'} could not be deleted: Permission denied"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
@pytest.mark.parametrize("more", [(), ("--per-alpha", "0.5")])
def test_no_file_of_the_replay_buffer_is_open_when_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    mapped: list[list[str]] = []
    original = shutil.rmtree

    def rmtree(path: Path, *args: Any, **options: Any) -> None:
        if "replay-" in str(path):
            mapped.append([line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line])
        original(path, *args, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    dqn.main((*TINY_CATCH, *more))
    assert mapped == [[]]


def test_an_untrained_network_is_named(make: Make) -> None:
    recorded = make()
    recorded.train(each=lambda: setattr(recorded.session, "updates", 0))
    assert ", the network is untrained: there was no update; " in recorded.session.closing_message()


def test_lengths_that_were_reduced_are_printed_by_a_new_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = list[str]()
    for resume in (False, True):
        recorded = make(resume=resume, learning_starts=8)
        monkeypatch.setattr(recorded.run, "print", printed.append)
        recorded.session.start()
        recorded.session.save()
        recorded.session.print_settings()
    assert printed == [
        "lengths that fit 80 steps: --learning-starts 8 instead of 5,000",
        "ALE/Pong-v5: frame_skip 4",
        "ALE/Pong-v5: frame_skip 4",
    ]


def test_a_finished_run_misses_no_replay_buffer_and_one_that_goes_on_does(
    catch_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not list(catch_run.glob("replay-*"))
    dqn.main(["--name", "catch", "--resume", "--total-steps", "440", "--no-delete-replay"])
    printed = capsys.readouterr().out
    assert "is missing or too short; the buffer is empty" in printed
    assert "replay buffer: 0 of 1,000 transitions; there are no updates before it has 100" in printed
    dqn.main(["--name", "catch", "--resume", "--total-steps", "480"])
    printed = capsys.readouterr().out
    assert "replay buffer: 40 of 1,000 transitions; there are no updates before it has 100" in printed
    dqn.main(["--name", "catch", "--resume"])
    printed = capsys.readouterr().out
    assert "watch it with" in printed
    assert "missing" not in printed
    assert "replay buffer: " not in printed
