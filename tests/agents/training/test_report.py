"""Tests of what a run prints about its settings, the differences from the paper, and stored transitions."""

from __future__ import annotations

import pytest

from tests.agents.training.recorded import SETTINGS, Make
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training.replay_buffer import describe_fill
from zerokara.agents.training.report import settings_lines


def test_a_resumed_run_prints_the_differences_from_the_paper_that_it_began_with(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(deviations: list[str], resume: bool) -> list[str]:
        recorded, printed = make(resume=resume), list[str]()
        monkeypatch.setattr(recorded.run, "print", printed.append)
        recorded.session.start()
        monkeypatch.setattr(Config, "deviations", deviations)
        recorded.session.print_settings()
        recorded.session.save()
        return [line for line in printed if "paper" in line]

    assert lines(["fewer frames"], resume=False) == ["preset fast differs from its paper: fewer frames"]
    assert lines(["other frames"], resume=True) == ["preset fast differs from its paper: fewer frames"]


def test_a_run_of_an_older_version_prints_todays_differences_only_if_it_has_todays_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lines(saved: list[str] | None, deviations: tuple[str, ...] = ("fewer frames",), **changes: float) -> list[str]:
        monkeypatch.setattr(Config, "deviations", deviations)
        *first, _ = settings_lines(Config(**(SETTINGS | changes)), {}, saved, new=False)
        return first

    assert lines(None, final_learning_rate=1e-4) == ["preset fast differs from its paper: fewer frames"]
    (line,) = lines(None)
    assert line == (
        "the run has other settings than preset fast of this version (--final-learning-rate None instead of 0.0001), "
        "and the version that started it did not save how they differ from the paper"
    )
    assert lines([]) == lines(None, ()) == []


def test_a_replay_buffer_that_has_to_be_filled_before_updates_is_named() -> None:
    config = Config(learning_starts=100, replay_capacity=1_000)
    assert describe_fill(config, [100]) == "replay buffer: 100 of 1,000 transitions"
    assert describe_fill(config, [99]) == (
        "replay buffer: 99 of 1,000 transitions; there are no updates before it has 100"
    )
    several = Config(learning_starts=1_000, replay_capacity=1_000, actors=4, num_envs=2)
    assert describe_fill(several, [3]).endswith("before it has 250"), "perhaps only one of the actors has a place"


def test_each_process_needs_its_part_of_the_replay_buffer_before_updates() -> None:
    config = Config(learning_starts=100, replay_capacity=1_000)
    assert describe_fill(config, [50, 50]) == "replay buffer: 100 of 1,000 transitions"
    assert describe_fill(config, [80, 49]) == (
        "replay buffer: 129 of 1,000 transitions; there are no updates before each of the 2 processes has 50"
    )
