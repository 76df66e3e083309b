"""Tests of one iteration of DQN: rewards and terminals in the replay buffer, and the logged returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from zerokara import envs
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.run import Run

GAMMA = 0.9
SIDE = 36  # small image size that the DER backbone accepts


class ScriptedStep(NamedTuple):
    """Result of one step in the scripted environment."""

    reward: float = 0.0
    life_lost: bool = False
    terminal: bool = False


# Rewards larger than 1 and smaller than -1, a lost life with a reward within the episode, and rewards after it.
EPISODE = (
    ScriptedStep(7),
    ScriptedStep(),
    ScriptedStep(-3, life_lost=True),
    ScriptedStep(7),
    ScriptedStep(-3),
    ScriptedStep(terminal=True),
)
RETURN = 8.0  # raw, of a complete episode


class Scripted(envs.VectorEnv):
    """Two environments that repeat EPISODE independent of the actions; the second is two steps ahead of the first."""

    id, num_envs, num_actions, action_names, frame_channels = "Scripted", 2, 2, ("NOOP", "FIRE"), 1
    obs_shape = (1, SIDE, SIDE)
    settings: dict[str, Any] = {}  # noqa: RUF012  (as the base class has it)

    def __init__(self) -> None:
        self.at = np.array([0, 2])  # (N,) index of the next step in EPISODE

    def observe(self) -> np.ndarray:
        return np.broadcast_to(self.at.astype(np.uint8)[:, None, None, None], (2, *self.obs_shape)).copy()

    def reset(self, seed: int) -> np.ndarray:
        return self.observe()

    def _send(self, action_N: np.ndarray) -> None: ...

    def recv(self) -> envs.Step:
        reward, life_lost, terminal = (np.array(column) for column in zip(*(EPISODE[i] for i in self.at), strict=True))
        last_obs = self.observe()
        self.at = (self.at + 1) % len(EPISODE)
        none_N = np.zeros(2, bool)
        return envs.Step(self.observe(), reward.astype(np.float32), terminal, none_N, life_lost, last_obs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        return self.observe()


def run_iterations(folder: Path, monkeypatch: pytest.MonkeyPatch, iterations: int, **changes: Any) -> dqn.Training:
    """Run iterations of the training loop in the scripted environments, with one-step returns and without updates."""
    monkeypatch.setattr(envs, "make", lambda *_, **__: Scripted())
    config = Config(
        num_envs=2, frame_stack=1, image_size=SIDE, n_step=1, gamma=GAMMA, hidden_units=8, width_multiplier=0.25,
        save_replay=False, replay_capacity=1_000, learning_starts=1_000, **changes,
    )  # fmt: skip
    with Run(config, kind="dqn", name="scripted", resume=False, quiet=True, root=folder) as run:
        training = dqn.Training(config, run, Compute(), World())
    training.obs = training.env.reset(0)
    for _ in range(iterations):
        training.iterate()
    return training


def stored_transitions(training: dqn.Training, env: int, steps: int) -> tuple[list[float], list[float]]:
    """Return rewards and discounts of the first transitions of an environment, as sampled by the learner."""
    batch = training.replay.gather(torch.full((steps,), env), torch.arange(steps))
    assert batch.weight.tolist() == [1.0] * steps, "a transition is missing"
    return batch.reward.tolist(), batch.discount.tolist()


@pytest.mark.parametrize(
    ("clip", "stored"), [(True, [1, 0, -1, 1, -1, 0]), (False, [7, 0, -3, 7, -3, 0])], ids=["clipped", "raw"]
)
def test_rewards_are_clipped_only_in_the_replay_buffer(
    clip: bool, stored: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, 2 * len(EPISODE), clip_rewards=clip)
    assert stored_transitions(training, 0, len(EPISODE))[0] == stored
    assert stored_transitions(training, 1, len(EPISODE))[0] == stored[2:] + stored[:2]
    # The second environment started at the third step of an episode, so its first return lacks the reward of 7.
    assert list(training.returns) == [RETURN - 7, RETURN, RETURN, RETURN]
    assert list(training.lengths) == [len(EPISODE) - 2, len(EPISODE), len(EPISODE), len(EPISODE)]


@pytest.mark.parametrize("ends", [True, False], ids=["terminal_on_life_loss", "no_terminal"])
def test_a_lost_life_ends_the_return_but_not_the_episode(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, 2 * len(EPISODE), terminal_on_life_loss=ends)
    at_life_lost = 0.0 if ends else GAMMA
    discounts = [GAMMA, GAMMA, at_life_lost, GAMMA, GAMMA, 0.0]
    assert stored_transitions(training, 0, len(EPISODE))[1] == pytest.approx(discounts)
    assert stored_transitions(training, 1, len(EPISODE))[1] == pytest.approx(discounts[2:] + discounts[:2])
    assert (training.episodes, list(training.returns)) == (4, [RETURN - 7, RETURN, RETURN, RETURN])
    assert training.running_length_N.tolist() == [0, 2]


class Filled:
    """Replay buffer of which only the number of transitions matters."""

    def __init__(self, transitions: int) -> None:
        self.transitions, self.betas = transitions, list[float]()

    def __len__(self) -> int:
        return self.transitions

    def set_beta(self, beta: float) -> None:
        self.betas.append(beta)


@pytest.mark.parametrize(
    ("step", "stored", "capacity", "gradient_steps", "updates"),
    [
        (99, 99, 500, 1, 0),
        (100, 100, 500, 1, 0),
        (107, 107, 500, 1, 0),
        (108, 108, 500, 1, 1),
        (124, 124, 500, 1, 3),
        (124, 124, 500, 5, 15),
        (124, 99, 500, 1, 0),
        (124, 100, 500, 1, 3),
        (124, 60, 60, 1, 3),
        (124, 59, 60, 1, 0),
    ],
)
def test_updates_are_due_when_enough_steps_are_stored(
    step: int, stored: int, capacity: int, gradient_steps: int, updates: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Learning starts after 100 steps or when the buffer is full; then updates are done every 8 steps.

    Without enough transitions, as after a resume without a saved buffer, the updates that are due are skipped.
    """
    training = run_iterations(tmp_path, monkeypatch, 0)
    training.config = dataclasses.replace(
        training.config, learning_starts=100, replay_capacity=capacity, train_every_steps=8,
        gradient_steps=gradient_steps,
    )  # fmt: skip
    done: list[int] = []
    filled = Filled(stored)
    training.replay, training.update = filled, lambda: done.append(training.updates)  # type: ignore[assignment]
    training.step = step
    training.learn()
    assert done == list(range(updates))
    assert training.updates == max(0, step - 100) // 8 * gradient_steps
    assert len(filled.betas) == (updates > 0)
    training.learn()
    assert len(done) == updates, "they are done once"


class OneOfTwo(World):
    """World of two processes without communication."""

    def broadcast(self, module: torch.nn.Module) -> None: ...

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        return flag


def test_two_processes_divide_the_environments_the_buffer_and_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "make", lambda *_, **__: Scripted())
    config = Config(
        num_envs=4, frame_stack=1, image_size=SIDE, n_step=1, hidden_units=8, width_multiplier=0.25, seed=5,
        replay_capacity=1_001, learning_starts=100, batch_size=32, checkpoint_every_steps=100, ez_greedy_zeta=2.0,
    )  # fmt: skip
    with Run(config, kind="dqn", name="two", resume=False, quiet=True, root=tmp_path) as run:
        training = dqn.Training(config, run, Compute(), OneOfTwo(rank=1, size=2))
    seed = 5 * 1_000_003 + 10_007
    assert (training.num_envs, training.replay.num_envs) == (2, 2)
    assert training.replay.window == 251, "half of 1,001 transitions, rounded up, for each of two environments"
    assert training.replay.slots - training.replay.window == (50 + 4 * 2) // 2
    assert training.replay.folder == tmp_path / "two" / "replay-1"
    assert training.replay.generator.initial_seed() == seed
    assert training.policy.noise.initial_seed() == seed
    assert training.exploration.generator.initial_seed() == seed
    assert training.exploration._cumulative is not None
    assert training.learner.generator is not None
    assert training.learner.generator.initial_seed() == seed ^ 0x5EED
    sizes: list[int] = []
    monkeypatch.setattr(dqn, "gradient_step", lambda learner, batch: sizes.append(len(batch.action)))
    monkeypatch.setattr(training.replay, "update_priorities", lambda error_B: None)
    training._update()
    assert sizes == [16]
    updates: list[int] = []
    training.update = lambda: updates.append(training.updates)
    training.replay, training.step = Filled(50), 100 + config.train_every_steps  # type: ignore[assignment]
    training.learn()
    assert len(updates) == config.gradient_steps, "50 of 100 steps are in this process"
    training.replay, training.step = Filled(49), 100 + 2 * config.train_every_steps  # type: ignore[assignment]
    training.learn()
    assert len(updates) == config.gradient_steps


def test_checkpoints_hold_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = run_iterations(tmp_path, monkeypatch, 1)
    assert {"learner", "replay", "exploration", "noise"} <= set(training.state_dict())


def test_the_network_follows_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(77)  # earlier random numbers do not matter
    training = run_iterations(tmp_path, monkeypatch, 0, seed=3)
    torch.manual_seed(3)
    expected = dqn.make_learner(training.config, (1, SIDE, SIDE), 2, Compute(), World()).network
    for ours, theirs in zip(training.learner.network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_program_trains_with_the_config_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(dqn, "run_program", lambda config, **options: started.append((config, options)))
    dqn.main(["--env", "zerokara/Catch-v0", "--gamma", "0.5"])
    ((config, options),) = started
    assert (config.env, config.gamma) == ("zerokara/Catch-v0", 0.5)
    assert options == {
        "kind": "dqn",
        "divided": ("num_envs", "batch_size"),
        "choose_compute": dqn.choose_compute,
        "train": dqn.train,
    }
