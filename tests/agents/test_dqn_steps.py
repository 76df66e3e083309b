"""Tests of one iteration of DQN: rewards and terminals in the replay buffer, and the logged returns.

The environments are those of tests/agents/scripted.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.resources import resources, resources_of_shape
from tests.agents.scripted import SIZE, Origin, ScriptedEnv, ends_with, reward_of
from zerokara import envs
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.replay import Batch
from zerokara.agents.training import start
from zerokara.agents.training.start import Resources
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.envs.stacks import Stacks

GAMMA = 0.9
NUM_ENVS = 3
STEPS = 16  # of each environment: three or four episodes


def script(env: int) -> list[Origin]:
    """Observations of an environment from which its steps start, and the one after the last step."""
    origins = [Origin(env, 0, 0)]
    for _ in range(STEPS):
        last = origins[-1]
        origins.append(Origin(env, last.episode + 1, 0) if ends_with(last) else last._replace(step=last.step + 1))
    return origins


def run_iterations(
    folder: Path, monkeypatch: pytest.MonkeyPatch, iterations: int = STEPS, **changes: Any
) -> dqn.Training:
    """Run iterations of the training loop in the scripted environments, with one-step returns and without updates."""
    monkeypatch.setattr(envs, "make", lambda env, num_envs, **options: ScriptedEnv(num_envs, frame_stack=1))
    config = Config(
        num_envs=NUM_ENVS, frame_stack=1, image_size=SIZE, n_step=1, gamma=GAMMA, hidden_units=8, width_multiplier=0.25,
        save_replay=False, replay_capacity=1_000, learning_starts=1_000, **changes,
    )  # fmt: skip
    with Run(config, kind="dqn", name="scripted", resume=False, quiet=True, root=folder) as run:
        training = dqn.Training(config, run, resources(config))
    training.obs = training.env.reset(0)
    for _ in range(iterations):
        training.iterate()
    return training


def stored_transitions(training: dqn.Training, env: int) -> tuple[list[float], list[float]]:
    """Return rewards and discounts of all transitions of an environment except the last, as sampled by the learner."""
    origins = script(env)[: STEPS - 1]
    # The last observation of a truncated episode takes a slot too.
    slots = [t + sum(ends_with(origin) == "truncated" for origin in origins[:t]) for t in range(len(origins))]
    batch = training.replay.gather(torch.full((len(slots),), env), torch.tensor(slots))
    assert batch.weight.tolist() == [1.0] * len(slots), "a transition is missing"
    return batch.reward.tolist(), batch.discount.tolist()


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "raw"])
def test_rewards_are_clipped_only_in_the_replay_buffer(
    clip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, clip_rewards=clip)
    for env in range(NUM_ENVS):
        rewards = [reward_of(origin) for origin in script(env)[: STEPS - 1]]
        assert min(rewards) < 0 < max(rewards)
        assert stored_transitions(training, env)[0] == pytest.approx(np.sign(rewards) if clip else rewards)
    returns, lengths = ended_episodes()
    assert list(training.returns) == pytest.approx(returns)
    assert list(training.lengths) == lengths


@pytest.mark.parametrize("ends", [True, False], ids=["terminal_on_life_loss", "no_terminal"])
def test_a_lost_life_ends_the_return_but_not_the_episode(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, terminal_on_life_loss=ends)
    for env in range(NUM_ENVS):
        terminal = [
            ends_with(origin) == "terminal" or (ends and origin.step == 1) for origin in script(env)[: STEPS - 1]
        ]
        assert stored_transitions(training, env)[1] == pytest.approx([0.0 if end else GAMMA for end in terminal])
    returns, _ = ended_episodes()
    assert training.episodes == len(returns)
    assert list(training.returns) == pytest.approx(returns)
    assert training.running_length_N.tolist() == [script(env)[-1].step for env in range(NUM_ENVS)]


@pytest.mark.parametrize("game_id", ["zerokara/Catch-v0", "zerokara/Snake-v0"])
def test_stacks_are_made_only_when_the_network_acts(
    game_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Act at random for 60 steps, then with the network, and compare the sampled observations with the real ones."""
    made: list[int] = []
    make_stack = Stacks.make

    def record_step(stacks: Stacks) -> np.ndarray:
        made.append(training.step)
        return make_stack(stacks)

    config = Config(
        env=game_id, num_envs=NUM_ENVS, frame_stack=3, n_step=1, backbone="der", hidden_units=8, width_multiplier=0.25,
        save_replay=False, replay_capacity=1_000, learning_starts=1_000, epsilon_start=1.0, epsilon_end=1.0,
    )  # fmt: skip
    with Run(config, kind="dqn", name="frames", resume=False, quiet=True, root=tmp_path) as run:
        training = dqn.Training(config, run, resources(config))
    training.obs = training.env.reset(1)
    monkeypatch.setattr(Stacks, "make", record_step)
    for _ in range(60):
        training.iterate()
    assert not made, "no episode was truncated"
    training.config = dataclasses.replace(config, epsilon_start=0.0, epsilon_end=0.0)
    for _ in range(2):
        training.iterate()
    assert made == [60 * NUM_ENVS, 61 * NUM_ENVS]

    env = envs.make(game_id, NUM_ENVS, frame_stack=3)
    real = [env.reset(1)]
    stored = training.replay._host["action"].reshape(NUM_ENVS, -1)
    real += [env.step(stored[:, t].astype(np.int64)).obs for t in range(61)]
    for i in range(NUM_ENVS):
        batch = training.replay.gather(torch.full((61,), i), torch.arange(61))
        for t in range(61):
            np.testing.assert_array_equal(batch.obs[t], real[t][i])
            if batch.discount[t] > 0:
                np.testing.assert_array_equal(batch.next_obs[t], real[t + 1][i])


def test_the_probe_has_a_batch_of_separate_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code compiled for a tensor that is passed twice is of no use in training, which would compile again."""
    batches: list[Batch] = []
    monkeypatch.setattr(dqn, "gradient_step", lambda learner, batch, following: batches.append(batch))
    config = Config(frame_stack=1, image_size=SIZE, hidden_units=8, width_multiplier=0.25)
    dqn.probe_step(config, Resources(ScriptedEnv(NUM_ENVS, frame_stack=1), Compute(), World()), 32)()
    (batch,) = batches
    assert len({tensor.data_ptr() for tensor in batch}) == len(batch)


def ended_episodes() -> tuple[list[float], list[int]]:
    """Raw returns and lengths of the episodes that end within STEPS steps, in the order in which they end."""
    returns, lengths = [], []
    for starts in zip(*(script(env)[:-1] for env in range(NUM_ENVS)), strict=True):
        for origin in starts:
            if ends_with(origin):
                steps = [origin._replace(step=step) for step in range(origin.step + 1)]
                returns.append(sum(map(reward_of, steps)))
                lengths.append(len(steps))
    return returns, lengths


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

    def gather(self, value: Any) -> list[Any]:
        return [value] * 2

    def broadcast_value(self, value: Any) -> Any:
        return value


def test_two_processes_divide_the_environments_the_buffer_and_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "make", lambda *_, **__: ScriptedEnv(2, frame_stack=1))
    config = Config(
        num_envs=4, frame_stack=1, image_size=SIZE, n_step=1, hidden_units=8, width_multiplier=0.25, seed=5,
        replay_capacity=1_001, learning_starts=100, batch_size=32, checkpoint_every_steps=100, ez_greedy_zeta=2.0,
    )  # fmt: skip
    world = OneOfTwo(rank=1, size=2)
    with Run(config, kind="dqn", name="two", resume=False, quiet=True, root=tmp_path, world=world) as run:
        training = dqn.Training(config, run, resources(config, world))
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
    monkeypatch.setattr(dqn, "gradient_step", lambda learner, batch, following: sizes.append(len(batch.action)))
    monkeypatch.setattr(training.replay, "update_priorities", lambda error_B: None)
    training.sample_and_update()
    assert sizes == [16]
    updates: list[int] = []
    training.update = lambda: updates.append(training.updates)
    training.replay, training.step = Filled(49), 100 + config.train_every_steps  # type: ignore[assignment]
    training.learn()
    assert not updates
    # An update needs the gradients of all processes, so this one waits while the buffer of the other is not filled.
    with monkeypatch.context() as patch:
        patch.setattr(OneOfTwo, "any", lambda self, flag, device: True)
        training.replay, training.step = Filled(50), 100 + 2 * config.train_every_steps  # type: ignore[assignment]
        training.learn()
    assert not updates
    training.step = 100 + 3 * config.train_every_steps
    training.learn()
    assert len(updates) == config.gradient_steps, "50 of 100 steps are in this process"
    assert training.updates == 3 * config.gradient_steps
    monkeypatch.setattr(OneOfTwo, "any", None)  # all buffers are filled, and stay so: the processes need not ask again
    training.step = 100 + 4 * config.train_every_steps
    training.learn()
    assert len(updates) == 2 * config.gradient_steps


def test_checkpoints_hold_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = run_iterations(tmp_path, monkeypatch, 1)
    assert {"learner", "replay", "exploration", "noise"} <= set(training.state_dict())


def test_the_network_follows_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(77)  # earlier random numbers do not matter
    training = run_iterations(tmp_path, monkeypatch, 0, seed=3)
    torch.manual_seed(3)
    expected = dqn.make_learner(training.config, resources_of_shape((1, SIZE, SIZE), 4)).network
    for ours, theirs in zip(training.learner.network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_program_trains_with_the_config_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[Any, ...]] = []

    def train(*arguments: Any) -> str:
        trained.append(arguments)
        return "closing message"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dqn, "train", train)
    monkeypatch.setattr(start, "choose_compute", lambda *_: Compute(threads=1, reason="chosen"))
    dqn.main(["--env", "zerokara/Catch-v0", "--num-envs", "2", "--gamma", "0.5", "--name", "n"])
    ((config, run, used),) = trained
    assert (config.env, config.gamma) == ("zerokara/Catch-v0", 0.5)
    assert run.folder == Path("runs/n")
    assert (used.compute, used.world) == (Compute(threads=1, reason="chosen"), World())
    assert (used.env.id, used.env.num_envs) == ("zerokara/Catch-v0", 2)
    assert capsys.readouterr().out.splitlines()[-1] == "closing message"
    for field in ("num_envs", "batch_size"):
        monkeypatch.setattr(World, "from_env", lambda device: World(size=3))
        words = {"num_envs": "3", "batch_size": "3", field: "4"}
        with pytest.raises(UserError, match="cannot be divided evenly among 3 processes"):
            dqn.main(["--num-envs", words["num_envs"], "--batch-size", words["batch_size"], "--name", "m"])
