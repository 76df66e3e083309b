"""Tests of actors that hang: they have orders, do not end, and send nothing. The clock is that of the test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.agents.actors.fed import Fed, Warnings
from zerokara.agents.actors import feed
from zerokara.core.config import UserError

pytestmark = pytest.mark.usefixtures("local_actors")


class Clock:
    """Clock of the learner, which only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(feed, "time", SimpleNamespace(monotonic=lambda: self.now))

    def pass_by(self, fed: Fed, seconds: int, step: int = 50) -> None:
        """Let time pass, with iterations of the learner in between."""
        for _ in range(seconds // step):
            self.now += step
            fed.iterate(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def started(folder: Path, **changes: Any) -> Fed:
    """Run in which both actors have sent chunks, and have orders."""
    fed = Fed(folder, learning_starts=10_000, **changes)
    fed.until(120)
    fed.training.run.warn = Warnings()  # type: ignore[method-assign]
    return fed


def warnings(fed: Fed) -> list[str]:
    assert isinstance(fed.training.run.warn, Warnings)
    return [text for text in fed.training.run.warn.texts if not text.startswith("no actor has sent steps")]


def hang(fed: Fed, *actors: int) -> None:
    """Let actors send nothing more: neither what has been ordered nor what will be."""
    fed.actors.silent.update(actors)
    kept = [waiting for waiting in fed.actors.waiting if waiting[0].actor not in actors]
    fed.actors.waiting.clear()
    fed.actors.waiting.extend(kept)


def test_an_actor_that_hangs_is_replaced_counted_and_its_episodes_end(tmp_path: Path, clock: Clock) -> None:
    fed = started(tmp_path)
    clock.pass_by(fed, 1_000)  # in which both send chunks
    hang(fed, 1)
    clock.pass_by(fed, 500)
    assert (fed.feed.replaced, warnings(fed)) == (0, [])
    assert fed.training.running_length_N[3:].any()
    clock.pass_by(fed, 150)
    assert warnings(fed) == [
        "actor 1 hangs and is replaced, number 1 (it sent nothing for 600 s, --actor-timeout)",
    ]
    assert fed.feed.metrics()["actors/replaced"] == 1
    assert (fed.training.running_length_N[3:] == 0).all()
    assert [len(seeds) for seeds in fed.actors.seeds] == [1, 2]
    fed.actors.silent.clear()
    chunks = len(fed.actors.chunks)
    fed.until(fed.training.step + 120)
    assert {actor for actor, _ in fed.actors.chunks[chunks:]} == {0, 1}, "the new actor has orders"
    clock.pass_by(fed, 1_000)
    assert fed.feed.replaced == 1


def test_a_pause_of_the_learner_counts_as_a_minute(tmp_path: Path, clock: Clock) -> None:
    fed = started(tmp_path)
    hang(fed, 0, 1)
    for expected in [0] * 10 + [2]:  # evaluations of an hour
        clock.now += 3_600
        fed.iterate(1)
        assert fed.feed.replaced == expected


def test_actors_that_wait_for_the_learner_do_not_hang(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(tmp_path, actor_steps=2)
    fed.until(120)
    monkeypatch.setattr(fed.feed, "_learn", lambda limit: None)
    fed.iterate(60)  # what had been ordered has arrived
    orders = len(fed.actors.orders)
    clock.pass_by(fed, 2_000)
    assert (len(fed.actors.orders), fed.feed.replaced) == (orders, 0)
    monkeypatch.undo()


def test_a_chunk_that_waits_for_its_turn_has_arrived(tmp_path: Path, clock: Clock) -> None:
    """The first orders are 0, 0, 1, 1: the chunk of actor 1 is taken after more than its time limit."""
    fed = Fed(tmp_path, learning_starts=10_000, actor_timeout=60.0)
    clock.pass_by(fed, 500)
    assert [actor for actor, _ in fed.actors.chunks[:4]] == [0, 0, 1, 1]
    assert fed.feed.replaced == 0


def test_an_actor_hangs_whose_chunk_is_older_than_those_that_arrive(tmp_path: Path, clock: Clock) -> None:
    fed = started(tmp_path, actor_timeout=60.0)
    hang(fed, 1)
    chunks = len(fed.actors.chunks)
    clock.pass_by(fed, 150)
    assert len(fed.actors.chunks) == chunks + 3, "the other actor sends one in each iteration"
    assert fed.feed.replaced == 1


def test_on_a_cluster_an_actor_may_wait_for_a_place_until_its_first_chunk(tmp_path: Path, clock: Clock) -> None:
    fed = Fed(tmp_path, learning_starts=10_000, ray_address="auto")
    fed.iterate(1)
    assert {actor for actor, _ in fed.actors.chunks} == {0}
    hang(fed, 0, 1)
    clock.pass_by(fed, 5_000)
    assert [len(seeds) for seeds in fed.actors.seeds] == [2, 1], "the actor in place of the first one waits, too"


def test_on_one_machine_an_actor_that_never_starts_hangs_and_ends_the_run(tmp_path: Path, clock: Clock) -> None:
    fed = Fed(tmp_path, learning_starts=10_000)
    fed.iterate(1)
    fed.training.run.warn = Warnings()  # type: ignore[method-assign]
    hang(fed, 1)
    with pytest.raises(UserError, match=r"Actor 1 failed 3 times without sending steps \(it sent nothing for 600 s"):
        clock.pass_by(fed, 2_000)
    assert fed.feed.replaced == 2


def test_without_a_time_limit_no_actor_is_replaced(tmp_path: Path, clock: Clock) -> None:
    fed = started(tmp_path, actor_timeout=0.0)
    hang(fed, 0, 1)
    clock.pass_by(fed, 50_000)
    assert fed.feed.replaced == 0


def test_one_pause_of_the_learner_does_not_make_actors_late(tmp_path: Path, clock: Clock) -> None:
    """After an evaluation, chunks that are ready may not have arrived on the learner's machine yet."""
    fed = started(tmp_path, actor_timeout=45.0)
    hang(fed, 0, 1)
    clock.now += 1_000
    fed.iterate(1)
    assert warnings(fed) == []
    clock.pass_by(fed, 100)
    assert len(warnings(fed)) == 2
