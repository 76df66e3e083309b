"""Evaluations that several processes share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from tests.agents.training.recorded import NUM_ENVS, Make, scores
from zerokara.agents.training import session
from zerokara.agents.training.evaluation import Scores
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


@pytest.mark.parametrize(("rank", "share"), [(0, 2), (1, 1)])
def test_processes_divide_an_evaluation_and_the_first_one_logs_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, rank: int, share: int
) -> None:
    recorded = make(eval_every_steps=40, eval_episodes=3, num_envs=2 * NUM_ENVS, world=OneOfTwo(rank=rank, size=2))
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


def test_an_evaluation_that_a_signal_interrupts_in_one_process_is_repeated_by_all(make: Make) -> None:
    class OtherStopped(OneOfTwo):
        def gather(self, value: Any) -> list[Any]:
            return [value, None]

    recorded = make(eval_every_steps=40, eval_episodes=2, num_envs=2 * NUM_ENVS, world=OtherStopped(rank=0, size=2))
    recorded.scores = [scores(1.0)]
    with pytest.raises(Stopped):
        recorded.session.evaluate()
    assert recorded.session.evaluate_and_log() is False
    assert recorded.session.evaluation_pending
    assert recorded.session.last_score is None


@pytest.mark.parametrize("restarted", [True, False])
def test_a_restart_by_torchrun_does_not_train_beyond_the_goal(
    make: Make, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    """--resume does: the user wants more."""
    recorded = make(stop_at_return=2.0, eval_every_steps=20)
    recorded.scores = [scores(3.0)]
    recorded.train()
    assert recorded.session.step == 20
    monkeypatch.setattr(session, "restarted_since", lambda: datetime.now(UTC) if restarted else None)
    again = make(resume=True, stop_at_return=2.0, eval_every_steps=20)
    again.scores = [scores(1.0)]
    again.train()
    assert again.session.step == (20 if restarted else 80)
