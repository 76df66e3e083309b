"""Evaluations that several processes share, and the closing line of their run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.agents.training.recorded import NUM_ENVS, Make, scores
from zerokara.agents.training import session
from zerokara.agents.training.evaluation import Scores, divide_episodes
from zerokara.core.config import Stopped
from zerokara.core.distributed import World


class OneOfTwo(World):
    """Process of two, of which the other one has the same values and flags."""

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        return flag

    def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
        return list(values)

    def broadcast_value(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        pass


@pytest.mark.parametrize(("rank", "share"), [(0, 2), (1, 7)])
def test_processes_divide_an_evaluation_and_the_first_one_logs_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, rank: int, share: int
) -> None:
    recorded = make(eval_every_steps=40, eval_episodes=9, num_envs=2 * NUM_ENVS, world=OneOfTwo(rank=rank, size=2))
    monkeypatch.setattr(recorded.run, "save", lambda path, state: None)
    recorded.scores = [Scores((3.0,) * share, (7,) * share, cut=1)]
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(recorded.run, "log", lambda step, scalars: logged.append(dict(scalars)))
    recorded.train()
    assert [number for _, number, _ in recorded.made] == [NUM_ENVS, share]
    assert len(recorded.evaluations) == 2
    assert recorded.evaluations[0]["seed"] == 500_000_000 + recorded.session.config.seed * 1_009 + 40 + rank * 10_007
    evaluations = [row for row in logged if "eval/return" in row]
    assert [row["eval/cut"] for row in evaluations] == [2, 2] * (rank == 0)
    assert (recorded.session.last_score, recorded.session.best.score) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("episodes", "processes", "expected"),
    [
        (30, 1, [30]),
        (1, 1, [1]),
        (30, 2, [12, 18]),
        (30, 3, [6, 12, 12]),
        (32, 3, [7, 13, 12]),
        (4, 2, [0, 4]),
        (2, 4, [0, 1, 1, 0]),
    ],
)
def test_the_first_process_has_time_for_a_video(episodes: int, processes: int, expected: list[int]) -> None:
    assert divide_episodes(episodes, processes) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_video_is_recorded_before_the_first_process_waits_for_the_others(make: Make, rank: int) -> None:
    calls: list[str] = []

    class Waiting(OneOfTwo):
        def gather(self, value: Any) -> list[Any]:
            calls.append("wait")
            return [value, value]

    recorded = make(eval_episodes=9, num_envs=2 * NUM_ENVS, world=Waiting(rank=rank, size=2))
    recorded.scores = [scores(2.0)]
    recorded.session.evaluate(record=lambda: calls.append(f"video after {len(recorded.evaluations)} evaluation"))
    assert calls == [*["video after 1 evaluation"] * (rank == 0), "wait"]


def test_an_evaluation_that_a_signal_interrupts_in_one_process_is_repeated_by_all(make: Make) -> None:
    class OtherStopped(OneOfTwo):
        def gather(self, value: Any) -> list[Any]:
            return [value, None]

    recorded = make(eval_every_steps=40, eval_episodes=9, num_envs=2 * NUM_ENVS, world=OtherStopped(rank=0, size=2))
    recorded.scores = [scores(1.0)]
    with pytest.raises(Stopped):
        recorded.session.evaluate()
    assert recorded.session.evaluate_and_log() is False
    assert recorded.session.evaluation_pending
    assert recorded.session.last_score is None


def test_the_closing_line_has_the_returns_of_all_processes(make: Make) -> None:
    class Other(OneOfTwo):
        def gather(self, value: Any) -> list[Any]:
            return [value, [1.0, 3.0]]

    recorded = make(num_envs=2 * NUM_ENVS, world=Other(rank=0, size=2))
    recorded.session.returns.append(5.0)
    assert ", last 3 training episodes 3.00" in recorded.session.closing_message()


@pytest.mark.parametrize("restarted", [True, False])
def test_a_restart_by_torchrun_does_not_train_beyond_the_goal(
    make: Make, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    """--resume does: the user wants more."""
    recorded = make(stop_at_return=2.0, eval_every_steps=20)
    recorded.scores = [scores(3.0)]
    recorded.train()
    assert recorded.session.step == 20
    monkeypatch.setattr(session, "is_restarted", lambda: restarted)
    again = make(resume=True, stop_at_return=2.0, eval_every_steps=20)
    again.scores = [scores(1.0)]
    again.train()
    assert again.session.step == (20 if restarted else 80)
