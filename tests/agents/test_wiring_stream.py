"""Test of what connects the parts of streaming Q(lambda).

The training loop runs in a scripted environment, and an independent implementation in NumPy, with its own backward
pass and with statistics over all values, computes the same weights and traces from the script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.agents.scripted import SIZE, Origin, ScriptedEnv, ends_with, frame
from zerokara import envs
from zerokara.agents.configs.stream import Config
from zerokara.agents.stream import Training
from zerokara.agents.training.start import Resources
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.run import Run

INPUTS, ACTIONS, STEPS = 5, 3, 200
GAMMA, LAMBDA, KAPPA = 0.9, 0.7, 2.0


class Row(NamedTuple):
    """A step of the script."""

    obs: np.ndarray  # (INPUTS,) before the step
    last_obs: np.ndarray  # after it
    reward: float
    terminal: bool
    truncated: bool
    life_lost: bool


def make_script() -> list[Row]:
    """Script in which episodes end in both ways, lives are lost, and some rewards are 0."""
    rng = np.random.default_rng(3)
    scale, offset = np.array([1, 20, 0.05, 3, 1]), np.array([0, 100, -2, 0, 5])
    drawn = (rng.normal(size=(STEPS, 2, INPUTS)) * scale + offset).astype(np.float32)
    rows: list[Row] = []
    for t in range(STEPS):
        terminal, truncated = t % 23 == 22, t % 31 == 30 and t % 23 != 22
        ended = bool(rows) and (rows[-1].terminal or rows[-1].truncated)
        obs = drawn[t, 0] if not rows or ended else rows[-1].last_obs
        rows.append(Row(obs, drawn[t, 1], float(rng.normal() * (t % 3 > 0)), terminal, truncated, t % 17 == 5))
    return rows


class ScriptedVectors(envs.VectorEnv):
    """One environment with the vectors of a script."""

    id, num_actions, action_names, num_envs = "Script", ACTIONS, ("A", "B", "C"), 1
    obs_shape, frame_channels, obs_dtype = (INPUTS, 1, 1), INPUTS, np.float32

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.settings, self.actions = rows, {}, list[int]()

    def reset(self, seed: int) -> np.ndarray:
        return self.rows[0].obs.reshape(1, INPUTS, 1, 1)

    def _send(self, action_N: np.ndarray) -> None:
        self.actions.append(int(action_N[0]))

    def recv(self) -> envs.Step:
        row, following = (self.rows[(len(self.actions) + i) % len(self.rows)] for i in (-1, 0))
        reward = np.array([row.reward], np.float32)
        terminal, truncated, life_lost = (np.array([end]) for end in (row.terminal, row.truncated, row.life_lost))
        obs, last_obs = (vector.reshape(1, INPUTS, 1, 1) for vector in (following.obs, row.last_obs))
        return envs.Step(obs, reward, terminal, truncated, life_lost, last_obs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        raise NotImplementedError


class Reference:
    """Streaming Q(lambda) in NumPy, in float64."""

    def __init__(self, weights: list[np.ndarray], slopes: tuple[float, ...], trace_reset: str) -> None:
        self.weights = [weight.astype(np.float64) for weight in weights]  # matrix, bias, matrix, bias, ...
        self.traces = [np.zeros_like(weight) for weight in self.weights]
        self.slopes, self.trace_reset = slopes, trace_reset  # of the activations for negative inputs
        self.seen: list[np.ndarray] = []  # all observations
        self.sums: list[float] = []  # discounted sums of rewards
        self.resets = 0

    def normalize(self, obs: np.ndarray) -> np.ndarray:
        seen = np.array(self.seen, np.float64)
        variance = seen.var(axis=0, ddof=1) if len(seen) > 1 else np.ones(INPUTS)
        normalized: np.ndarray = (obs - seen.mean(axis=0)) / np.sqrt(variance + 1e-8)
        return normalized

    def forward(self, obs: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
        """Q-values, and of each layer: input, normalized output, standard deviation."""
        x = self.normalize(obs)
        cache: list[tuple[np.ndarray, ...]] = []
        for slope, matrix, bias in zip(self.slopes, self.weights[:-2:2], self.weights[1:-2:2], strict=True):
            y = matrix @ x + bias
            deviation = np.sqrt(y.var() + 1e-5)
            normalized = (y - y.mean()) / deviation
            cache.append((x, normalized, deviation))
            x = np.where(normalized > 0, normalized, slope * normalized)
        cache.append((x,))
        return self.weights[-2] @ x + self.weights[-1], cache

    def gradient(self, action: int, cache: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        """Gradient of a Q-value with respect to all weights."""
        one_hot = np.eye(ACTIONS)[action]
        gradients = [one_hot, np.outer(one_hot, cache[-1][0])]  # from the last to the first
        g = self.weights[-2].T @ one_hot
        for layer in reversed(range(len(self.slopes))):
            x, normalized, deviation = cache[layer]
            g = np.where(normalized > 0, g, self.slopes[layer] * g)
            g = (g - g.mean() - normalized * (g * normalized).mean()) / deviation
            gradients += [g, np.outer(g, x)]
            g = self.weights[2 * layer].T @ g
        return gradients[::-1]

    def step(self, row: Row, action: int) -> None:
        q, cache = self.forward(row.obs)
        greedy = action == q.argmax()
        if not greedy and self.trace_reset == "before":
            self.traces = [0 * trace for trace in self.traces]
            self.resets += 1
        gradients = self.gradient(action, cache)
        self.traces = [GAMMA * LAMBDA * z + g for z, g in zip(self.traces, gradients, strict=True)]

        terminal = row.terminal or row.life_lost
        before = self.sums[-1] if self.sums and not (terminal or row.truncated) else 0.0
        self.sums.append(GAMMA * before + float(np.float32(row.reward)))
        deviation = np.sqrt((np.var(self.sums, ddof=1) if len(self.sums) > 1 else 1.0) + 1e-8)
        self.seen.append(row.last_obs)
        following = 0.0 if terminal else self.forward(row.last_obs)[0].max()
        delta = np.float32(row.reward) / deviation + GAMMA * following - q[action]
        norm = sum(np.abs(z).sum() for z in self.traces)
        bound = KAPPA * max(1.0, abs(delta)) * norm
        alpha = 1.0 if bound <= 1 else 1 / bound
        self.weights = [w + alpha * delta * z for w, z in zip(self.weights, self.traces, strict=True)]
        if terminal or row.truncated or (not greedy and self.trace_reset == "after"):
            self.traces = [0 * trace for trace in self.traces]
            self.resets += 1


def make_training(tmp_path: Path, env: envs.VectorEnv, **changes: Any) -> Training:
    options: dict[str, Any] = {
        "env": "my.py:Env", "gamma": GAMMA, "td_lambda": LAMBDA, "kappa": KAPPA, "total_steps": 1000, "hidden_units": 6,
        "epsilon_start": 0.4, "epsilon_end": 0.4, "eval_every_steps": 0, "capture_video": False, "seed": 5,
    }  # fmt: skip
    config = Config(**{**options, **changes})
    with Run(config, kind="stream", name="run", resume=False, quiet=True, root=tmp_path) as run:
        training = Training(config, run, Resources(env, Compute(), World()))
    training.obs = env.reset(0)
    training.observe(training.obs)
    return training


@pytest.mark.parametrize("trace_reset", ["after", "before"])
def test_two_hundred_steps_equal_an_implementation_in_numpy(tmp_path: Path, trace_reset: str) -> None:
    script = make_script()
    env = ScriptedVectors(script)
    vectors: dict[str, Any] = {"backbone": "mlp", "obs_type": "vector", "frame_stack": 1, "width_multiplier": 0.1}
    training = make_training(tmp_path, env, trace_reset=trace_reset, init_sparsity=0.3, **vectors)
    parameters = list(training.learner.network.parameters())
    assert [p.dim() for p in parameters] == [2, 1] * 4
    reference = Reference([p.detach().numpy() for p in parameters], (0.0, 0.0, 0.01), trace_reset)
    reference.seen.append(script[0].obs)
    for t, row in enumerate(script):
        training.iterate()
        reference.step(row, env.actions[t])
        if t + 1 < STEPS and (row.terminal or row.truncated):
            reference.seen.append(script[t + 1].obs)
        for ours, expected in zip(parameters, reference.weights, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-2, atol=2e-4, err_msg=str(t))
    traces = torch.cat([torch.from_numpy(trace).flatten() for trace in reference.traces])
    torch.testing.assert_close(training.learner.trace_P, traces.float(), rtol=1e-2, atol=1e-3)
    assert 40 < reference.resets < 160, "traces must last for several steps, and be reset"
    assert len(set(env.actions)) == ACTIONS
    assert training.step == training.updates == STEPS


def test_every_frame_is_counted_once_in_the_statistics(tmp_path: Path) -> None:
    """The frames of the script: all of an episode with the one after its last step, then those of the next one."""
    env = ScriptedEnv(1)
    training = make_training(tmp_path, env, frame_stack=2, image_size=SIZE, backbone="nips", width_multiplier=0.25)
    frames, origin = [frame(Origin(0, 0, 0))], Origin(0, 0, 0)
    for _ in range(12):
        training.iterate()
        frames.append(frame(origin._replace(step=origin.step + 1)))
        ended = ends_with(origin)
        origin = Origin(0, origin.episode + 1, 0) if ended else origin._replace(step=origin.step + 1)
        if ended:
            frames.append(frame(origin))
    assert len(frames) > 14
    assert training.frames.count == len(frames)
    np.testing.assert_allclose(training.frames.mean, np.mean(frames, axis=0), rtol=1e-9)
    np.testing.assert_allclose(training.frames.variance, np.var(frames, axis=0, ddof=1), rtol=1e-6, atol=1e-6)
    network = training.learner.network
    torch.testing.assert_close(
        network.state_dict()["normalization.mean"] * 255, torch.tensor(training.frames.mean).float()
    )


@pytest.mark.parametrize(
    ("options", "terminal", "reward"),
    [({}, True, 0.25), ({"terminal_on_life_loss": False, "clip_rewards": True}, False, 1.0)],
)
def test_a_lost_life_and_raw_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], terminal: bool, reward: float
) -> None:
    row = Row(np.ones(INPUTS, np.float32), np.zeros(INPUTS, np.float32), 0.25, False, False, True)
    vectors: dict[str, Any] = {"backbone": "mlp", "obs_type": "vector", "frame_stack": 1, "width_multiplier": 0.1}
    training = make_training(tmp_path, ScriptedVectors([row]), scale_rewards=False, **vectors, **options)
    errors: list[tuple[float, bool]] = []

    def td_error(reward: float, value: float, next_value: float, *, gamma: float, terminal: bool) -> float:
        errors.append((reward, terminal))
        return 0.0

    monkeypatch.setattr("zerokara.agents.stream.td_error", td_error)
    training.iterate()
    assert errors == [(reward, terminal)]
    assert bool(training.learner.trace_P.any()) is not terminal, "the traces end with the life"


def test_new_episodes_of_a_resumed_run_have_no_traces(tmp_path: Path) -> None:
    env = ScriptedEnv(1)
    training = make_training(tmp_path, env, frame_stack=2, image_size=SIZE, backbone="nips", width_multiplier=0.25)
    training.iterate()
    training.learner.trace_P.fill_(1.0)
    count = training.frames.count
    training.end_episodes()
    assert not training.learner.trace_P.any()
    assert (training.rewards.trace, training.frames.count) == (0.0, count + 1)
