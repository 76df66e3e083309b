"""Tests of what a run with actors logs, saves and restores; the actors are in the process of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agents.actors.fed import Fed, make_feed, train
from tests.agents.actors.local_actors import SETTINGS, LocalActors
from tests.agents.resources import resources
from tests.programs import metrics
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.replay import LAST
from zerokara.core.run import Run

pytestmark = pytest.mark.usefixtures("local_actors")


def test_a_run_logs_the_pace_of_both_sides(tmp_path: Path) -> None:
    closing = train(tmp_path)
    assert closing.startswith("ALE/Pong-v5 at step 600: ")
    rows = metrics(tmp_path / "run")
    assert [row["actors/active"] for row in rows] == [2] * 10
    assert rows[-1]["actors/replaced"] == rows[-1]["actors/stale_steps"] == 0
    late = rows[3:-1]
    assert np.mean([row["actors/replay_ratio"] for row in late]) == pytest.approx(1 / 6, rel=0.2)
    assert all(0 <= row["actors/staleness"] <= row["actors/max_staleness"] <= 40 for row in late)
    assert rows[-1]["train/epsilon"] == pytest.approx(schedules.epsilon(Config(**SETTINGS), 0))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    for name in ("actor_transitions_per_s", "learner_transitions_per_s", "blocked_share", "learn_share", "store_share"):
        assert f"speed/{name}" in text


def test_the_metrics_are_those_since_the_last_call(tmp_path: Path) -> None:
    fed = Fed(tmp_path)
    fed.until(180)
    first = fed.feed.metrics()
    fed.training.start_interval()  # as after a log entry, or an evaluation
    second = fed.feed.metrics()
    assert (first["actors/active"], second["actors/active"]) == (2, 0)
    assert {"actors/staleness", "actors/max_staleness", "actors/replay_ratio"} <= set(first) - set(second)
    assert second["speed/actor_transitions_per_s"] == second["speed/learner_transitions_per_s"] == 0


def test_exceptions_and_warnings_of_the_environments_reach_the_run(tmp_path: Path) -> None:
    fed = Fed(tmp_path)
    fed.iterate(1)
    receive = fed.actors.receive

    def with_errors(timeout: float) -> Any:
        arrived: Any = receive(timeout)
        return arrived and (arrived[0], arrived[1]._replace(errors=3, warnings=["an exception"]))

    fed.actors.receive = with_errors  # type: ignore[method-assign]
    fed.iterate(1)
    assert fed.training.env.errors == 3
    assert fed.training.env.warnings == ["an exception"]


def test_the_counts_are_restored_also_from_checkpoints_of_other_processes(tmp_path: Path) -> None:
    fed = Fed(tmp_path)
    fed.feed.load_processes({0: {"replaced": 3, "stale_steps": 40}}, 0, 100)
    assert fed.feed.state_dict() == {"replaced": 3, "stale_steps": 40}


def test_a_resumed_run_continues_its_counts_and_begins_new_episodes(tmp_path: Path) -> None:
    train(tmp_path, total_steps=300, delete_replay=False)
    first = LocalActors.made
    config = Config(**(SETTINGS | {"name": "run", "total_steps": 600}))
    with Run(config, kind="dqn", name="run", resume=True, quiet=True, root=tmp_path) as run:
        training = dqn.Training(config, run, resources(config))
        actors = make_feed(config, training)
        actors.replaced = 7
        training.start()
        assert actors.replaced == 0
        assert (training.step, len(training.replay) > 250) == (300, True)
        assert (training.running_length_N == 0).all()
        newest = np.arange(6) * training.replay.slots + training.replay.head - 1
        flag = training.replay._host["flag"][newest]
        assert (flag & (LAST | 2)).all(), "the unfinished episodes are truncated"
        while training.step < 600:
            actors.iterate()
        assert training.updates == (600 - 120) // 6
        assert {seed for made in LocalActors.made.seeds for seed in made}.isdisjoint(
            seed for made in first.seeds for seed in made
        )


def test_a_checkpoint_is_saved_before_chunks_overwrite_what_the_last_one_needs(tmp_path: Path) -> None:
    config = Config(**(SETTINGS | {"replay_capacity": 240, "checkpoint_every_steps": 60, "learning_starts": 10_000}))
    saves: list[np.ndarray] = []
    with Run(config, kind="dqn", name="run", resume=False, quiet=True, root=tmp_path) as run:
        training = dqn.Training(config, run, resources(config))
        actors = make_feed(config, training)
        training.obs = training.env.reset(0)
        replay = training.replay
        for _ in range(120):
            if replay.needs_checkpoint:
                replay.state_dict()
                saves.append(replay.head.copy())
            actors.iterate()
            last = saves[-1] if saves else np.zeros(6, np.int64)
            assert (replay.head - last <= replay.slots - replay.window).all()
    assert len(saves) > 1
