"""Tests of what connects the parts of DQN: what is stored, sampled, acted on, annealed and evaluated.

The real training loop runs in scripted environments whose observations encode environment, episode and step
(tests/agents/scripted.py). The parts themselves have tests of their own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agents.resources import resources
from tests.agents.scripted import SIZE, Origin, ScriptedEnv, ends_with, length_of, origin_of, reward_of
from tests.programs import metrics
from zerokara import envs
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.qlearning.prioritized_replay import PRIORITY_EPSILON, PrioritizedReplay
from zerokara.agents.qlearning.replay import Batch, Replay
from zerokara.agents.training import evaluation, session
from zerokara.agents.training.session import Session
from zerokara.core.run import Run

NUM_ENVS = 4
GAMMA = 0.9


class Action(NamedTuple):
    """One call of the policy during training or evaluation."""

    origins: list[Origin]
    epsilon: float
    noisy: bool
    action_N: np.ndarray
    q_NA: Tensor


class Update(NamedTuple):
    """One gradient step: the batch, the TD errors, and the state at that moment."""

    step: int
    batch: Batch
    td_error_B: Tensor
    online: dict[str, Tensor]  # weights before the update
    target: dict[str, Tensor]
    beta: float
    learning_rate: float


class Recording:
    """Training run with a record of everything that passes between its parts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "run", **changes: Any) -> None:
        self.actions: list[Action] = []
        self.evaluation_actions: list[Action] = []
        self.updates: list[Update] = []
        self.saves: list[int] = []
        self.evaluating = False
        self.config = Config(**(SETTINGS | changes))
        made: list[ScriptedEnv] = []

        def make_env(env: str, num_envs: int, **options: Any) -> ScriptedEnv:
            made.append(ScriptedEnv(num_envs))
            return made[-1]

        def init(training: dqn.Training, *args: Any) -> None:
            original_init(training, *args)
            self.training = training

        def act(
            policy: Policy, given: np.ndarray | envs.Step, epsilon: float, exploration: Any, *, noisy: bool = False
        ) -> np.ndarray:
            action_N = original_act(policy, given, epsilon, exploration, noisy=noisy)
            obs = given.obs if isinstance(given, envs.Step) else given
            values: list[Tensor] = []
            policy_noise = policy.noise.get_state()
            if epsilon < 1:  # repeat the forward pass with the noise that the action used
                values.append(policy._values(torch.from_numpy(obs)).clone())
            assert torch.equal(policy.noise.get_state(), policy_noise)
            q_NA = values[0] if values else torch.zeros(0)
            record = Action([origin_of(o) for o in obs], epsilon, noisy, action_N, q_NA)
            (self.evaluation_actions if self.evaluating else self.actions).append(record)
            return action_N

        def gradient_step(learner: Any, batch: Batch, following: Any) -> Tensor:
            online, target = (copy.deepcopy(net.state_dict()) for net in (learner.network, learner.target))
            kept = Batch(*(tensor.clone() for tensor in batch))
            td_error_B: Tensor = original_step(learner, batch, following)
            beta = float(getattr(self.training.replay, "beta", 0.0))
            rate = learner.optimizer.param_groups[0]["lr"]
            self.updates.append(Update(self.training.step, kept, td_error_B.clone(), online, target, beta, float(rate)))
            return td_error_B

        def save(training: Session) -> None:
            self.saves.append(training.step)
            original_save(training)

        def evaluate(*args: Any, **options: Any) -> Any:
            self.evaluating = True
            try:
                return original_evaluate(*args, **options)
            finally:
                self.evaluating = False

        original_init, original_act, original_step = dqn.Training.__init__, Policy.act, dqn.gradient_step
        original_save, original_evaluate = Session.save, evaluation.evaluate
        with monkeypatch.context() as patch:
            patch.setattr(envs, "make", make_env)
            patch.setattr(dqn.Training, "__init__", init)
            patch.setattr(Policy, "act", act)
            patch.setattr(dqn, "gradient_step", gradient_step)
            patch.setattr(Session, "save", save)
            patch.setattr(session, "evaluate", evaluate)
            with Run(self.config, kind="dqn", name=name, resume=False, quiet=True, root=folder) as run:
                self.closing = dqn.train(self.config, run, resources(self.config))
        self.env, self.evaluation_env = made[0], made[1] if len(made) > 1 else None

    def action_at(self, origin: Origin) -> int:
        """Action that was sent to the environment in its step that starts at an observation."""
        return int(self.env.actions[time_of(origin)][origin.env])


def time_of(origin: Origin) -> int:
    """Number of steps in the environment before an observation."""
    return origin.step + sum(length_of(Origin(origin.env, episode, 0)) for episode in range(origin.episode))


SETTINGS: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "frame_stack": 2,
    "image_size": SIZE,
    "gamma": GAMMA,
    "n_step": 3,
    "clip_rewards": False,
    "total_steps": 240,
    "learning_starts": 60,
    "train_every_steps": 8,
    "batch_size": 16,
    "replay_capacity": 120,
    "target_update_steps": 48,
    "hidden_units": 8,
    "width_multiplier": 0.25,
    "epsilon_start": 1.0,
    "epsilon_end": 0.1,
    "epsilon_decay_steps": 100,
    "eval_every_steps": 0,
    "checkpoint_every_steps": 80,
    "log_every_steps": 40,
    "capture_video": False,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Recording of a run with uniform replay and 3-step returns."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Recording(tmp_path_factory.mktemp("wiring"), monkeypatch)


def expected_row(
    origin: Origin, n_step: int, stored_steps: int, *, clip: bool, life: bool
) -> tuple[float, float, Origin | None]:
    """n-step reward, discount, and the observation from which the return bootstraps (None after a terminal).

    Args:
        origin: observation of the transition.
        n_step: maximum number of steps.
        stored_steps: steps in the replay buffer; a return bootstraps from the newest observation at the latest.
        clip: rewards are clipped to their sign.
        life: a lost life is a terminal.
    """
    total = 0.0
    for k in range(n_step):
        here = origin._replace(step=origin.step + k)
        if time_of(here) == stored_steps - 1 and not ends_with(here) and not (life and here.step == 1):
            return total, GAMMA**k, here
        total += GAMMA**k * (float(np.sign(reward_of(here))) if clip else reward_of(here))
        if ends_with(here) == "terminal" or (life and here.step == 1):
            return total, 0.0, None
        if ends_with(here) == "truncated":
            return total, GAMMA ** (k + 1), here._replace(step=here.step + 1)
    return total, GAMMA**n_step, origin._replace(step=origin.step + n_step)


def check_batches(recording: Recording, *, clip: bool = False, life: bool = False) -> set[str]:
    """Compare every row of every batch with the script. Returns the kinds of transitions that occurred."""
    kinds = set()
    for update in recording.updates:
        batch = update.batch
        for i in np.flatnonzero(batch.weight.numpy()):
            obs = batch.obs[i].numpy()
            origin = origin_of(obs)
            np.testing.assert_array_equal(obs, recording.env.observe(origin))
            stored_steps = update.step // NUM_ENVS
            reward, discount, bootstrap = expected_row(
                origin, recording.config.n_step, stored_steps, clip=clip, life=life
            )
            assert batch.reward[i].item() == pytest.approx(reward, rel=1e-5)
            assert batch.discount[i].item() == pytest.approx(discount)
            assert batch.action[i].item() == recording.action_at(origin)
            if bootstrap is not None:
                np.testing.assert_array_equal(batch.next_obs[i].numpy(), recording.env.observe(bootstrap))
            cut = bootstrap is not None and bootstrap.step == length_of(origin) and origin.episode % 2
            kinds.add("terminal" if bootstrap is None else "truncated" if cut else "continued")
    return kinds


def test_sampled_transitions_are_those_of_the_environments(recording: Recording) -> None:
    assert check_batches(recording) == {"terminal", "truncated", "continued"}
    sampled = {origin_of(obs) for update in recording.updates for obs in update.batch.obs}
    assert {origin.env for origin in sampled} == set(range(NUM_ENVS))
    assert len(sampled) > 140
    # The capacity of 120 transitions is 30 slots for each environment, 0 to 29 before the newest one. The oldest slot
    # is only used in stacks, and of the others at least two hold the last observation of a truncated episode.
    ages = {
        update.step // NUM_ENVS - 1 - time_of(origin_of(obs))
        for update in recording.updates
        for obs in update.batch.obs
    }
    assert (min(ages), max(ages)) == (0, 29 - 1 - 2)


@pytest.mark.parametrize(("clip", "life"), [(True, False), (False, True)])
def test_rewards_are_clipped_and_lost_lives_end_returns_if_configured(
    clip: bool, life: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(tmp_path, monkeypatch, clip_rewards=clip, terminal_on_life_loss=life)
    assert "terminal" in check_batches(recording, clip=clip, life=life)


def test_actions_follow_from_the_current_observations(recording: Recording) -> None:
    at = [Origin(i, 0, 0) for i in range(NUM_ENVS)]
    assert len(recording.actions) == len(recording.env.actions) == 240 // NUM_ENVS
    greedy = 0
    for t, (action, sent_N) in enumerate(zip(recording.actions, recording.env.actions, strict=True)):
        assert action.origins == at
        assert action.epsilon == pytest.approx(max(0.1, 1 - 0.9 * t * NUM_ENVS / 100))
        np.testing.assert_array_equal(action.action_N, sent_N)
        if action.epsilon < 1:
            greedy += int((action.q_NA.argmax(dim=1).numpy() == sent_N).sum())
        at = [Origin(o.env, o.episode + 1, 0) if ends_with(o) else o._replace(step=o.step + 1) for o in at]
    late = [
        (action.q_NA.argmax(dim=1).numpy() == action.action_N).mean()
        for action in recording.actions
        if action.epsilon < 0.11
    ]
    assert np.mean(late) > 0.8, "with epsilon .1 most actions are greedy"
    assert greedy < NUM_ENVS * len(recording.actions), "some are random"


def test_updates_start_and_repeat_as_configured(recording: Recording) -> None:
    """One update for every 8 steps after step 60; the step counts those before the iteration."""
    steps = [update.step for update in recording.updates]
    assert steps == list(range(60 + 8, 240, 8))
    assert recording.training.updates == len(steps)


def test_the_target_network_is_a_copy_from_the_last_target_update(recording: Recording) -> None:
    """It is copied after the updates 6, 12, ...: every 48 agent steps, with an update every 8."""
    updates = recording.updates
    for i, update in enumerate(updates):
        source = i // 6 * 6
        for name, weight in update.target.items():
            assert torch.equal(weight, updates[source].online[name]), f"update {i}: {name}"
    first, last = updates[0].online, updates[-1].online
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_another_seed_samples_other_transitions(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, other = (Recording(tmp_path, monkeypatch, f"seed{seed}", seed=seed) for seed in (1, 2))

    def sampled(of: Recording) -> list[Origin]:
        return [origin_of(obs) for obs in of.updates[0].batch.obs]

    assert sampled(same) == sampled(recording)
    assert sampled(other) != sampled(recording)


def test_checkpoints_are_saved_when_due_and_not_before(recording: Recording) -> None:
    """The spare slots of the replay buffer suffice for all steps between two checkpoints."""
    assert recording.saves == [0, 80, 160, 240, 240]


def test_metrics_of_the_replay_buffer_and_the_closing_message(recording: Recording) -> None:
    rows = metrics(recording.training.run.folder)
    assert [row["step"] for row in rows] == [40, 80, 120, 160, 200, 240]
    # Ten steps in each of four environments, and the last observation of one truncated episode in each.
    assert rows[0]["replay/fill"] == pytest.approx((40 + 4) / 120)
    assert rows[-1]["replay/fill"] == 1
    assert [row["train/learning_rate"] for row in rows] == pytest.approx([recording.config.learning_rate] * 6)
    assert recording.closing.startswith("ALE/Pong-v5 at step 240: not evaluated yet, ")


def test_learning_rate_decays_with_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "learning_rate_decay_steps": 200}
    recording = Recording(tmp_path, monkeypatch, **settings)
    for update in recording.updates:
        assert update.learning_rate == pytest.approx(max(1e-4, 1e-3 - 9e-4 * update.step / 200))


def test_prioritized_replay_anneals_beta_and_receives_the_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Tensor] = []
    original = PrioritizedReplay.update_priorities

    def update_priorities(replay: PrioritizedReplay, td_error_B: Tensor) -> None:
        received.append(td_error_B.clone())
        row_B = replay._sampled_row_B
        original(replay, td_error_B)
        for row, error in zip(row_B.tolist(), td_error_B.tolist(), strict=True):
            if row_B.tolist().count(row) == 1 and float(replay.tree.get(row_B[row_B == row])) > 0:
                expected = (error + PRIORITY_EPSILON) ** replay.alpha
                assert float(replay.tree.get(row_B[row_B == row])) == pytest.approx(expected, rel=1e-5)

    monkeypatch.setattr(PrioritizedReplay, "update_priorities", update_priorities)
    recording = Recording(
        tmp_path, monkeypatch, per_alpha=0.6, per_beta_start=0.4, per_beta_end=1.0, per_beta_steps=200
    )
    assert check_batches(recording) == {"terminal", "truncated", "continued"}
    for update, error_B in zip(recording.updates, received, strict=True):
        assert update.beta == pytest.approx(min(1.0, 0.4 + 0.6 * update.step / 200))
        assert torch.equal(update.td_error_B, error_B)
    spread = [update.batch.weight.unique().numel() for update in recording.updates]
    assert np.mean(spread) > 4, "importance-sampling weights differ"


def test_noisy_layers_act_with_new_noise_in_training_and_without_noise_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(
        tmp_path, monkeypatch, noisy=True, epsilon_start=0.0, epsilon_end=0.0, learning_starts=10_000,
        eval_every_steps=120, eval_episodes=2, eval_epsilon=0.0,
    )  # fmt: skip
    assert all(action.noisy for action in recording.actions)
    assert not any(action.noisy for action in recording.evaluation_actions)

    # No update is done, so that only the noise can change the Q-values of the same observation.
    def values_at(actions: list[Action], origin: Origin) -> list[Tensor]:
        return [a.q_NA[a.origins.index(origin)] for a in actions if origin in a.origins]

    policy = recording.training.policy
    training_q = recording.actions[0].q_NA
    repeated = policy.values(np.stack([recording.env.observe(o) for o in recording.actions[0].origins]))
    assert not torch.allclose(training_q, repeated, atol=1e-5), "actions in training use noise"
    first, second = values_at(recording.evaluation_actions, Origin(0, 0, 0))
    assert torch.equal(first, second), "no noise in evaluation"
    torch.testing.assert_close(first, repeated[0])


def test_evaluation_uses_its_own_epsilon_and_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(
        tmp_path, monkeypatch, eval_every_steps=120, eval_episodes=3, eval_epsilon=0.03, learning_starts=1_000
    )
    assert {action.epsilon for action in recording.evaluation_actions} == {0.03}
    assert {action.epsilon for action in recording.actions} != {0.03}
    assert recording.evaluation_env is not None
    assert recording.evaluation_env.num_envs == 3
    returns = [sum(reward_of(Origin(env, 0, step)) for step in range(length_of(Origin(env, 0, 0)))) for env in range(3)]
    assert recording.training.last_score == pytest.approx(np.mean(returns))
    assert recording.training.last_evaluation_step == 240


def test_n_step_and_gamma_are_annealed_between_resets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, float]] = []
    original = Replay.set_n_step_and_gamma

    def record(replay: Replay, n_step: int, gamma: float) -> None:
        set_to.append((n_step, gamma))
        original(replay, n_step, gamma)

    monkeypatch.setattr(Replay, "set_n_step_and_gamma", record)
    resets: list[int] = []
    monkeypatch.setattr(Learner, "reset", lambda learner, seed, factor: resets.append(seed))
    recording = Recording(
        tmp_path, monkeypatch, n_step=1, n_step_start=4, gamma=0.95, gamma_start=0.5, n_step_gamma_anneal_updates=6,
        reset_every_updates=10,
    )  # fmt: skip
    expected = [schedules.n_step_and_gamma(recording.config, i) for i in range(len(recording.updates))]
    assert set_to == expected
    assert set_to[0] == (4, 0.5)
    assert set_to[9] == pytest.approx((1, 0.95))
    assert set_to[10] == (4, 0.5), "annealed again after the reset"
    assert resets == [1_000_003 + 10, 1_000_003 + 20]
