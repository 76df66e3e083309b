"""Test of what connects the parts of PQN: the lambda-returns of the rollouts, and the minibatches.

The real training loop runs in scripted environments whose observations encode environment, episode and step
(tests/agents/scripted.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agents.resources import resources
from tests.agents.scripted import SIZE, Origin, ScriptedEnv, ends_with, length_of, origin_of, reward_of
from tests.programs import metrics
from zerokara import envs
from zerokara.agents import pqn
from zerokara.agents.configs.pqn import Config
from zerokara.agents.qlearning.learner import Learner
from zerokara.core.run import Run

NUM_ENVS = 4
GAMMA = 0.9


# With an LSTM, values depend on all observations of the episode. They are recomputed with the weights of the end, which
# therefore must hardly change.
@pytest.mark.parametrize(("lstm_units", "rate"), [(0, 1e-3), (6, 1e-12)])
def test_pqn_trains_on_the_lambda_returns_of_its_rollouts(
    lstm_units: int, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recompute every target from the script, with the values of the network at the time of the rollout."""
    config = Config(
        num_envs=NUM_ENVS, frame_stack=2, image_size=SIZE, gamma=GAMMA, td_lambda=0.6, clip_rewards=False,
        rollout_steps=10, num_minibatches=4, update_epochs=2, total_steps=120, hidden_units=16, width_multiplier=0.25,
        terminal_on_life_loss=True, eval_every_steps=0, capture_video=False, device="cpu", threads=1, backbone="der",
        log_every_steps=40, learning_rate=rate, final_learning_rate=rate / 10, learning_rate_decay_steps=100,
        lstm_units=lstm_units,
    )  # fmt: skip
    env = ScriptedEnv(NUM_ENVS)
    monkeypatch.setattr(envs, "make", lambda *args, **options: env)
    rollouts: list[tuple[int, dict[Origin, tuple[float, int]]]] = []
    used: list[tuple[Origin, int, float]] = []
    unequal_states: list[bool] = []
    original_learn = pqn.Training.learn

    def value(training: pqn.Training, origin: Origin) -> float:
        training.policy.forget()
        steps = range(origin.step + 1) if lstm_units else [origin.step]
        return [float(training.policy.values(env.observe(origin._replace(step=i))[None]).amax()) for i in steps][-1]

    def state_before(training: pqn.Training, origin: Origin) -> Tensor:
        """State of the LSTM after the observations of the episode before this one."""
        state_2NU = torch.zeros(2, 1, lstm_units)
        for step in range(origin.step):
            obs = env.observe(origin._replace(step=step))[None]
            state_2NU = training.policy.values_and_state(obs, state_2NU)[1]
        return state_2NU[:, 0]

    def learn(training: pqn.Training) -> None:
        expected: dict[Origin, tuple[float, int]] = {}
        for i, last in enumerate(env.at):
            later: float | None = None  # return of the following step in the rollout
            origin = last
            for t in reversed(range(config.rollout_steps)):
                following = origin
                origin = previous(origin)
                now = reward_of(origin)
                if ends_with(origin) == "terminal" or origin.step == 1:
                    result = now
                elif ends_with(origin) == "truncated":
                    result = now + GAMMA * value(training, origin._replace(step=origin.step + 1))
                else:
                    bootstrap = value(training, following)
                    mixed = bootstrap if later is None else 0.4 * bootstrap + 0.6 * later
                    result = now + GAMMA * mixed
                later = result
                at = len(env.actions) - config.rollout_steps + t
                expected[origin] = (result, int(env.actions[at][i]))
        rollouts.append((len(used), expected))
        trainings.append(training)
        original_learn(training)

    def step(learner: Any, obs: Tensor, action_B: Tensor, target_B: Tensor, *memory: Tensor) -> Tensor:
        assert bool(memory) == bool(lstm_units)
        if memory:  # sequences of 10 steps, those of a step together
            first_TN, state_2NU = memory
            origins = [origin_of(row) for row in obs.numpy()]
            width = len(origins) // 10
            assert first_TN.shape == (10, width)
            for i, origin in enumerate(origins):
                assert origin.env == origins[i % width].env
                assert bool(first_TN.flatten()[i]) == (origin.step == 0 and i >= width)
            for i, origin in enumerate(origins[:width]):
                torch.testing.assert_close(state_2NU[:, i], state_before(trainings[-1], origin), rtol=1e-4, atol=1e-6)
                unequal_states.append(bool(state_2NU[:, i].any()))
        for row in zip(obs.numpy(), action_B.tolist(), target_B.tolist(), strict=True):
            origin = origin_of(row[0])
            np.testing.assert_array_equal(row[0], env.observe(origin))
            used.append((origin, row[1], row[2]))
        return original_step(learner, obs, action_B, target_B, *memory)

    trainings: list[pqn.Training] = []

    original_step = Learner.step
    monkeypatch.setattr(pqn.Training, "learn", learn)
    monkeypatch.setattr(Learner, "step", step)
    with Run(config, kind="pqn", name="run", resume=False, quiet=True, root=tmp_path) as run:
        closing = pqn.train(config, run, resources(config))
    assert closing.startswith("ALE/Pong-v5 at step 120: not evaluated yet, ")
    assert [row["train/learning_rate"] for row in metrics(tmp_path / "run")] == pytest.approx(
        [0.64 * rate, 0.28 * rate, 0.1 * rate]
    )
    assert len(rollouts) == 3
    assert not lstm_units or set(unequal_states) == {False, True}, "states go through the rollouts"
    assert {ends_with(origin) for _, expected in rollouts for origin in expected} == {"terminal", "truncated", ""}
    for begin, expected in rollouts:
        for epoch in range(2):
            rows = used[begin + epoch * 40 : begin + (epoch + 1) * 40]
            assert {origin for origin, _, _ in rows} == set(expected), "every step is used once per epoch"
            for origin, action, target in rows:
                assert action == expected[origin][1]
                assert target == pytest.approx(expected[origin][0], rel=1e-4, abs=1e-5)
    first_epochs = [[row[0] for row in used[begin : begin + 40]] for begin, _ in rollouts]
    assert first_epochs[0] != sorted(first_epochs[0]), "in random order"


def previous(origin: Origin) -> Origin:
    """Observation from which the step to `origin` started."""
    if origin.step:
        return origin._replace(step=origin.step - 1)
    before = origin._replace(episode=origin.episode - 1)
    return before._replace(step=length_of(before) - 1)
