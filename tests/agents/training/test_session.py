"""Tests of a session: when it logs, evaluates and saves, how a run ends, and what a checkpoint holds.

The session has no network. It runs in the scripted environments of tests/agents/scripted.py.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.scripted import Origin, origin_of
from tests.agents.training.recorded import NUM_ENVS, Learner, Make, scores
from tests.programs import metrics
from zerokara import envs
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training import session
from zerokara.agents.training.evaluation import Scores
from zerokara.agents.training.session import Session
from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.core.distributed import World


def origins(of: Session) -> list[Origin]:
    return [origin_of(of.obs[i]) for i in range(NUM_ENVS)]


def test_each_process_has_its_environments_and_seed(make: Make) -> None:
    first = make(seed=3)
    assert (first.session.num_envs, first.session.seed) == (4, 3_000_009)
    assert first.made == [("ALE/Pong-v5", 4, first.session.config.env_settings())]
    second = make(resume=True, seed=3, world=World(rank=1, size=2))
    assert (second.session.num_envs, second.session.seed) == (2, 3_000_009 + 10_007)
    assert second.made[0][1] == 2
    assert len(second.session.running_return_N) == len(second.session.running_length_N) == 2


def test_a_new_run_resets_its_environments_with_its_seed(make: Make) -> None:
    recorded = make(seed=900_000)
    recorded.session.start()
    assert recorded.seeds == [(900_000 * 1_000_003) % 2**31]
    assert origins(recorded.session) == [Origin(i, 0, 0) for i in range(NUM_ENVS)]
    assert recorded.run.extra["environment"] == {"frame_skip": 4}
    assert recorded.session.learner.calls == []  # type: ignore[union-attr]


def test_a_new_run_loads_a_pretrained_backbone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, loaded = make(), list[tuple[Any, ...]]()
    learner = recorded.session.learner = Learner()  # type: ignore[assignment]
    monkeypatch.setattr("zerokara.core.zoo.registry.find_weights", lambda name: f"file of {name}")
    monkeypatch.setattr(session, "load_pretrained_backbone", lambda *arguments: loaded.append(arguments))
    monkeypatch.setattr("zerokara.core.zoo.provenance.record", lambda *arguments: loaded.append(arguments))
    recorded.session.start("zoo")
    assert loaded == [(learner.network.backbone, "file of zoo"), (recorded.run, "zoo")]
    assert learner.calls == ["update_copies"]


def test_it_logs_evaluates_and_saves_when_due(make: Make, tmp_path: Path) -> None:
    recorded = make(eval_every_steps=48)
    recorded.scores = [scores(2.0, cut=1), scores(3.0)]
    recorded.train(lambda: {"more": recorded.session.step}, lambda: recorded.session.step == 8)
    assert recorded.saves == [0, 8, 32, 64, 80], "at the start, when needed, when due, at the end"
    assert [evaluation["step"] for evaluation in recorded.evaluations] == [48, 80], "when due, and at the end"
    assert recorded.images[:2] == [(Origin(0, 0, 0), 0), (Origin(0, 2, 4), 48)]
    assert [step for _, step in recorded.images] == [0, 48, 80]
    assert recorded.videos == []
    rows = metrics(tmp_path / "run")
    logged = [row for row in rows if "more" in row]
    assert [row["step"] for row in logged] == [row["more"] for row in logged] == [20, 40, 60, 80]
    assert logged[0]["train/epsilon"] == 0.25
    assert [row["train/updates"] for row in logged] == [5, 10, 15, 20]
    # Episodes of 5, 3, 7 steps in even environments, of 4, 6, 2 in odd ones.
    assert [row["train/games"] for row in logged] == [4, 8, 12, 16]
    assert logged[0]["train/length"] == np.mean([4, 4, 5, 5])
    assert logged[1]["train/length"] == np.mean([4, 4, 5, 5, 3, 3, 6, 6])
    assert logged[-1]["train/return"] == pytest.approx(np.mean(recorded.session.returns))
    assert logged[-1]["train/loss"] == 0.5
    evaluated, last = [row for row in rows if "eval/return" in row]
    assert evaluated == {"step": 48, "eval/return": 2.0, "eval/length": 30.0, "eval/cut": 1}
    assert last == {"step": 80, "eval/return": 3.0, "eval/length": 30.0, "eval/cut": 0}
    assert recorded.session.last_score == 3.0
    assert not recorded.session.evaluation_pending
    assert recorded.session.closing_message().startswith(
        "ALE/Pong-v5 at step 80: evaluation 3.00 (best: 3.00 at step 80), last 16 training episodes "
    )
    assert recorded.session.closing_message().endswith("; watch it with: python -m agents.play runs/run")


def test_metrics_before_the_first_update_and_episode(make: Make, tmp_path: Path) -> None:
    recorded = make(total_steps=8, log_every_steps=8)
    recorded.train(each=lambda: setattr(recorded.session, "updates", 0))
    assert not recorded.session.returns
    (row,) = metrics(tmp_path / "run")
    assert row == {"step": 8, "train/epsilon": 0.25, "train/games": 0, "train/updates": 0}


def test_videos_are_recorded_if_configured(make: Make) -> None:
    recorded = make(eval_every_steps=40, capture_video=True)
    recorded.scores = [scores(2.0)]
    recorded.train()
    assert recorded.videos == [40, 80]


def test_returns_are_those_of_the_last_100_episodes(make: Make) -> None:
    recorded = make()
    walk = recorded.session
    ends = np.array([False, True, False, True])
    for k in range(130):
        reward_N = np.array([1, k, 2, 0.5], np.float32)
        walk.record(envs.Step(np.zeros(0), reward_N, ends & (k % 2 == 0), ends & (k % 2 == 1), ends, np.zeros(0)))
    assert walk.episodes == 260
    assert list(walk.returns) == [value for k in range(80, 130) for value in (k, 0.5)]
    assert list(walk.lengths) == [1] * 100
    assert np.mean(walk.returns) == pytest.approx((np.mean(range(80, 130)) + 0.5) / 2)
    assert walk.running_return_N.tolist() == [130, 0, 260, 0]
    assert walk.running_length_N.tolist() == [130, 0, 130, 0]
    assert walk.step == 130 * NUM_ENVS


def test_unfinished_episodes_are_forgotten_when_the_environments_start_new_ones(make: Make) -> None:
    recorded = make(total_steps=8)
    recorded.train()
    assert (recorded.session.running_return_N > 0).any()
    recorded.session.end_episodes()
    assert recorded.session.running_return_N.tolist() == recorded.session.running_length_N.tolist() == [0] * NUM_ENVS
    assert recorded.session.episodes == 0


def test_evaluations_have_their_own_seeds_and_reuse_their_environments(make: Make) -> None:
    recorded = make(seed=7, eval_epsilon=0.03, eval_max_steps=99)
    recorded.scores = [scores(0.0)]
    for step, repetition in ((40, 0), (40, 1), (1_000_043, 0)):
        recorded.session.step = step
        recorded.session.evaluate(repetition)
    assert [call.pop("seed") for call in recorded.evaluations] == [
        500_000_000 + 7 * 1_009 + 40,
        500_000_000 + 7 * 1_009 + 7_919 + 40,
        500_000_000 + 7 * 1_009 + 40,
    ]
    settings = recorded.session.config.env_settings() | {"resumable": False}
    assert recorded.made[1:] == [("ALE/Pong-v5", 3, settings)]
    call = recorded.evaluations[0]
    assert (call["episodes_per_env"], call["epsilon"], call["max_steps"]) == (1, 0.03, 99)
    assert call["env"] is recorded.evaluations[2]["env"] is not recorded.session.env


@pytest.mark.parametrize(
    ("goal", "first", "last", "since", "due"),
    [
        (10.0, [-10.0] * 20, [8.0] * 10, 40_000, True),
        (10.0, [-10.0] * 20, [7.9] * 10, 40_000, False),
        (10.0, [-10.0] * 20, [8.0] * 10, 39_999, False),
        (10.0, [-10.0] * 20, [100.0] * 80 + [7.9] * 10, 40_000, False),
        (10.0, [-10.0] * 20, [-100.0] * 80 + [8.0] * 10, 40_000, True),
        (10.0, [-10.0] * 9 + [0.0] * 11, [8.6] * 10, 40_000, True),
        (10.0, [-10.0] * 9 + [0.0] * 11, [8.5] * 10, 40_000, False),
        (-10.0, [-20.0] * 20, [-11.0] * 10, 40_000, True),
        (-10.0, [-20.0] * 20, [-11.1] * 10, 40_000, False),
        (10.0, [12.0] * 20, [10.0] * 10, 40_000, True),
        (10.0, [12.0] * 20, [9.9] * 10, 40_000, False),
        (10.0, [12.0] * 19, [], 40_000, False),
        (None, [9.5] * 20, [9.5] * 10, 40_000, False),
    ],
)
def test_an_early_evaluation_is_due_near_the_goal(
    make: Make, goal: float | None, first: list[float], last: list[float], since: int, due: bool
) -> None:
    recorded = make(stop_at_return=goal)
    recorded.session.returns.extend([*first, *last])
    for episode_return in (*first, *last):
        recorded.session.goal.record([episode_return])
    recorded.session.last_evaluation_step = 1_000
    recorded.session.step = 1_000 + since
    assert recorded.session.is_early_evaluation_due() is due


def test_an_early_evaluation_is_done_between_iterations(make: Make) -> None:
    recorded = make(stop_at_return=10.0, num_envs=4, total_steps=1_000_000)
    recorded.scores = [scores(10.0)]

    def jump() -> None:
        recorded.session.returns.extend([10.0] * 20)
        recorded.session.goal.record([10.0] * 20)
        recorded.session.lengths.extend([1] * 20)
        recorded.session.step += 20_000

    recorded.train(each=jump)
    assert [evaluation["step"] for evaluation in recorded.evaluations] == [40_008, 40_008]


@pytest.mark.parametrize(
    ("means", "evaluated_at", "confirmed"),
    [
        ([4.9, 5.0, 5.0], [20, 40, 40], [None, 5.0]),
        ([5.0, 4.9, 4.0], [20, 20, 40, 60, 80], [4.9, None, None, None]),
        ([4.0], [20, 40, 60, 80], [None] * 4),
    ],
)
def test_a_run_ends_when_a_second_evaluation_confirms_the_goal(
    make: Make, tmp_path: Path, means: list[float], evaluated_at: list[int], confirmed: list[float | None]
) -> None:
    recorded = make(stop_at_return=5.0, eval_every_steps=20, total_steps=80)
    recorded.scores = [scores(mean, cut=i) for i, mean in enumerate(means)]
    recorded.train()
    assert [evaluation["step"] for evaluation in recorded.evaluations] == evaluated_at
    seeds = [evaluation["seed"] - evaluation["step"] for evaluation in recorded.evaluations]
    again = [i > 0 and evaluated_at[i] == evaluated_at[i - 1] for i in range(len(evaluated_at))]
    assert seeds == [500_001_009 + 7_919 * second for second in again], "the second evaluation has another seed"
    rows = [row for row in metrics(tmp_path / "run") if "eval/return" in row]
    assert [row.get("eval/return_confirmed") for row in rows] == confirmed
    assert ["eval/cut_confirmed" in row for row in rows] == [value is not None for value in confirmed]
    assert recorded.session.goal_reached == (confirmed[-1] is not None)
    assert recorded.session.step == evaluated_at[-1]
    assert recorded.saves[-1] == evaluated_at[-1]
    assert "watch it with" in recorded.session.closing_message()


def test_a_negative_goal_is_compared_as_it_is(make: Make) -> None:
    recorded = make(stop_at_return=-5.0, eval_every_steps=20)
    recorded.scores = [scores(-5.0), scores(-5.5), scores(-6.0)]
    recorded.train()
    assert len(recorded.evaluations) == 5, "the second one did not confirm the first"


def test_a_goal_of_0_is_confirmed_by_a_return_of_0(make: Make) -> None:
    recorded = make(stop_at_return=0.0, eval_every_steps=20)
    recorded.scores = [scores(0.0)]
    recorded.train()
    assert [evaluation["step"] for evaluation in recorded.evaluations] == [20, 20]


def test_a_signal_ends_the_run_after_the_iteration(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, printed = make(), list[str]()
    monkeypatch.setattr(recorded.run, "print", printed.append)

    def stop() -> None:
        recorded.run.stop_requested = "SIGTERM" if recorded.session.step == 24 else None

    recorded.train(each=stop)
    assert recorded.session.step == 24
    assert recorded.saves == [0, 24]
    assert printed == ["SIGTERM: saving"]
    assert recorded.session.closing_message().endswith(
        "not evaluated yet, last 4 training episodes 3.52; resume with: python -m agents.dqn --name run --resume"
    )


def test_an_interrupted_evaluation_is_not_logged_and_repeated_by_the_resumed_run(make: Make, tmp_path: Path) -> None:
    recorded = make(eval_every_steps=40)
    recorded.scores = [scores(2.0)]

    def stop() -> None:
        recorded.run.stop_requested = "SIGTERM" if recorded.session.step == 40 else None

    recorded.train(each=stop)
    assert recorded.session.evaluation_pending
    assert (recorded.session.last_score, recorded.session.last_evaluation_step) == (None, 0)
    again = make(resume=True, eval_every_steps=40)
    again.scores = [scores(2.0), scores(4.0)]
    again.train()
    assert [evaluation["step"] for evaluation in again.evaluations] == [40, 80]
    assert not again.session.evaluation_pending
    assert [row["step"] for row in metrics(tmp_path / "run") if "eval/return" in row] == [40, 80]
    assert (again.session.last_score, again.session.last_evaluation_step) == (4.0, 80)


def test_a_signal_interrupts_an_evaluation_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = make(total_steps=40, eval_every_steps=40)
    after: list[str] = []

    def evaluate(*args: Any, **options: Any) -> Scores:
        signal.raise_signal(signal.SIGTERM)
        after.append("the rest of the evaluation")
        return scores(2.0)

    monkeypatch.setattr(session, "evaluate", evaluate)
    with recorded.run.signals():
        recorded.train()
    assert (after, recorded.session.step, recorded.session.last_score) == ([], 40, None)
    assert recorded.session.evaluation_pending
    assert recorded.run.stopped, "after the last step, but the evaluation is missing"
    assert recorded.session.closing_message().endswith("resume with: python -m agents.dqn --name run --resume")
    again = make(resume=True, total_steps=40, eval_every_steps=40)
    again.scores = [scores(2.0)]
    monkeypatch.setattr(session, "evaluate", lambda *args, **options: again.scores[0])
    again.train()
    assert (again.session.last_score, again.run.stopped) == (2.0, False)


def test_a_pending_evaluation_that_reaches_the_goal_ends_the_resumed_run(make: Make) -> None:
    recorded = make(stop_at_return=2.0)
    recorded.session.start()
    recorded.session.evaluation_pending = True
    recorded.session.save()
    again = make(resume=True, stop_at_return=2.0)
    again.scores = [scores(2.0)]
    again.train()
    assert again.session.step == 0
    assert len(again.evaluations) == 2


def test_a_resumed_run_continues_from_its_checkpoint(make: Make, tmp_path: Path) -> None:
    recorded = make(total_steps=52, eval_every_steps=20)
    recorded.scores = [scores(1.5)]
    recorded.train()
    first = recorded.session
    expected = torch.rand(3, generator=first.generator)
    numbers = torch.rand(3), np.random.rand(3)  # noqa: NPY002  (of the global generators)

    state = checkpoint.load(tmp_path / "run" / "checkpoint-0.pt", "dqn")
    assert (state["num_actions"], state["hours"] > 0) == (4, True)
    again = make(resume=True, total_steps=80, eval_every_steps=0)
    second = again.session
    second.start()
    assert again.seeds == []
    assert second.resumed
    assert origins(second) == origins(first)
    assert torch.equal(torch.rand(3, generator=second.generator), expected)
    assert torch.equal(torch.rand(3), numbers[0])
    assert np.array_equal(np.random.rand(3), numbers[1])  # noqa: NPY002
    assert second.counter.value == 13
    for name in ("step", "updates", "episodes", "last_score", "last_evaluation_step", "evaluation_pending"):
        assert getattr(second, name) == getattr(first, name), name
    assert (second.best.score, second.best.step) == (first.best.score, first.best.step) == (1.5, 20)
    assert (second.step, second.updates, second.episodes) == (52, 13, 10)
    assert (list(second.returns), list(second.lengths)) == (list(first.returns), list(first.lengths))
    assert second.goal.first_returns == first.goal.first_returns == list(first.returns), "10 episodes, fewer than 20"
    assert second.running_return_N.tolist() == first.running_return_N.tolist() != [0] * 4
    assert second.running_length_N.tolist() == first.running_length_N.tolist() != [0] * 4
    assert second.running_length_N.dtype == first.running_length_N.dtype
    assert second.clock() >= state["hours"]
    second.obs = first.obs
    for _ in second.iterations():
        second.iterate()
    assert again.saves == [64, 80], "no checkpoint at the start of a resumed run"
    assert again.images == []


def test_the_first_returns_of_a_run_are_kept(make: Make) -> None:
    recorded = make(total_steps=400)
    recorded.train()
    state = recorded.session.state_dict()
    assert len(state["returns"]) == 90
    assert recorded.session.goal.first_returns == state["returns"][:20] == state["first_returns"]
    older = {name: value for name, value in state.items() if name != "first_returns"}
    for saved, expected in ((state, state["returns"][:20]), ({**older, "returns": [3.0] * 100}, [3.0] * 20)):
        session = make(resume=True).session
        session.load_state_dict(saved)
        session.goal.record([99.0])
        assert session.goal.first_returns == expected


@pytest.mark.parametrize("has_own", [True, False])
def test_states_of_other_processes(make: Make, has_own: bool) -> None:
    """The environments start new episodes with new seeds; what all processes share is restored."""
    recorded = make(total_steps=52, eval_every_steps=20)
    recorded.scores = [scores(1.5)]
    recorded.train()
    state = recorded.session.state_dict()
    own = {**state, "games": 3, "returns": [1.0], "lengths": [5]}
    again = make(resume=True, seed=3, world=World(rank=1, size=2))
    session = again.session
    torch.manual_seed(77)
    changed = session.load_processes({0: state, 1: own} if has_own else {0: state})
    assert torch.equal(torch.get_rng_state(), state["rng"]["torch"])
    assert changed == "the environments start new episodes, and random numbers are drawn anew"
    assert (session.step, session.updates, session.last_score) == (52, 13, 1.5)
    assert (session.episodes, list(session.returns)) == ((3, [1.0]) if has_own else (0, []))
    assert again.seeds == [(3 * 1_000_003 + 10_007 + 15_485_863 * 52) % 2**31]
    assert [origin_of(session.obs[i]) for i in range(2)] == [Origin(i, 0, 0) for i in range(2)]
    assert session.running_return_N.tolist() == session.running_length_N.tolist() == [0, 0]
    expected = torch.Generator().manual_seed(5 + 15_485_863 * 52)
    assert torch.equal(session.generator.get_state(), expected.get_state())
    assert session.counter.value == 13 * (1 + has_own) + 1_000 + 52


@pytest.mark.parametrize(("size", "episodes"), [(1, 10 + 3 + 4), (2, 10 + 4), (3, 10)])
def test_the_first_process_counts_the_episodes_of_processes_that_there_are_no_longer(
    make: Make, size: int, episodes: int
) -> None:
    recorded = make(total_steps=52)
    recorded.train()
    state = recorded.session.state_dict()
    session = make(resume=True, num_envs=12, world=World(rank=0, size=size)).session
    session.load_processes({0: state, 1: {**state, "games": 3}, 2: {**state, "games": 4}})
    assert session.episodes == episodes
    assert list(session.returns) == state["returns"]


def test_non_finite_weights_are_not_saved(make: Make) -> None:
    recorded = make()
    recorded.session.start()
    recorded.session.save()
    with torch.no_grad():
        next(recorded.session.learner.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"diverged at step 0: .*NaN or Inf"):
        recorded.session.save()
    assert recorded.saves == [0]


def last_value(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return values[-1] if values else None


def test_final_scores_are_recorded_with_the_hyperparameters(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for every_steps, expected in ((0, {"train/return"}), (40, {"train/return", "eval/return"})):
        recorded, written = make(eval_every_steps=every_steps, resume=every_steps > 0), list[str]()
        recorded.scores = [scores(2.0)]
        monkeypatch.setattr(recorded.run, "hparams", lambda config, names, written=written: written.extend(names))
        if every_steps:
            recorded.session.run.checkpoints.resume = False
        recorded.train()
        assert set(written) == expected
        rows = metrics(tmp_path / "run")
        assert last_value(rows, "train/return") == pytest.approx(np.mean(recorded.session.returns))
        assert last_value(rows, "eval/return") == (2.0 if every_steps else None)


def test_settings_of_environment_and_preset_are_printed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, printed = make(), list[str]()
    monkeypatch.setattr(recorded.run, "print", printed.append)
    monkeypatch.setattr(Config, "deviations", ["fewer frames"])
    recorded.session.print_settings(lives=3)
    assert printed == ["preset fast differs from its paper: fewer frames", "ALE/Pong-v5: frame_skip 4, lives 3"]


def test_checkpoints_hold_plain_values(make: Make) -> None:
    recorded = make()
    recorded.train()
    state = recorded.session.state_dict()
    plain = {name: state[name] for name in ("step", "updates", "games", "returns", "lengths", "running_return")}
    assert json.loads(json.dumps(plain)) == plain
