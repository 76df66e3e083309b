"""What a turn of DQN puts into the replay, beside what it reports: rewards clipped or raw, endings by a lost life."""

from __future__ import annotations

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
SIDE = 36  # the smallest round size of which the DER eye leaves anything


class Moment(NamedTuple):
    """What one step of the scripted game gives."""

    reward: float = 0.0
    life_lost: bool = False
    terminal: bool = False


# Gains and losses larger than 1, a life lost in mid-game with a reward of its own, and another reward behind it.
GAME = (Moment(7), Moment(), Moment(-3, life_lost=True), Moment(7), Moment(-3), Moment(terminal=True))
RETURN = 8.0  # raw, of a whole game


class Scripted(envs.VectorEnv):
    """Environments that play GAME over and over whatever one does; the second is two steps ahead of the first."""

    id, num_envs, num_actions, action_names, frame_channels = "Scripted", 2, 2, ("NOOP", "FIRE"), 1
    obs_shape = (1, SIDE, SIDE)
    settings: dict[str, Any] = {}  # noqa: RUF012  (as the base class has it)

    def __init__(self) -> None:
        self.at = np.array([0, 2])  # (N,) the step of the game that comes next

    def see(self) -> np.ndarray:
        return np.broadcast_to(self.at.astype(np.uint8)[:, None, None, None], (2, *self.obs_shape)).copy()

    def reset(self, seed: int) -> np.ndarray:
        return self.see()

    def _send(self, action_N: np.ndarray) -> None: ...

    def recv(self) -> envs.Step:
        reward, life_lost, terminal = (np.array(column) for column in zip(*(GAME[i] for i in self.at), strict=True))
        last_obs = self.see()
        self.at = (self.at + 1) % len(GAME)
        nobody = np.zeros(2, bool)
        return envs.Step(self.see(), reward.astype(np.float32), terminal, nobody, life_lost, last_obs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        return self.see()


def played(folder: Path, monkeypatch: pytest.MonkeyPatch, turns: int, **changes: Any) -> dqn.Training:
    """So many turns of the training loop's own, in the scripted game, with one-step returns and no update."""
    monkeypatch.setattr(envs, "make", lambda *_, **__: Scripted())
    config = Config(
        num_envs=2, frame_stack=1, image_size=SIDE, n_step=1, gamma=GAMMA, hidden_units=8, width_multiplier=0.25,
        save_replay=False, replay_capacity=1_000, learning_starts=1_000, **changes,
    )  # fmt: skip
    with Run(config, kind="dqn", name="scripted", resume=False, quiet=True, root=folder) as run:
        training = dqn.Training(config, run, Compute(), World())
    training.obs = training.env.reset(0)
    for _ in range(turns):
        training.iterate()
    return training


def remembered(training: dqn.Training, env: int, steps: int) -> tuple[list[float], list[float]]:
    """Rewards and discounts of the first transitions of an environment, as the learner draws them."""
    batch = training.replay.gather(torch.full((steps,), env), torch.arange(steps))
    assert batch.weight.tolist() == [1.0] * steps, "a transition is missing"
    return batch.reward.tolist(), batch.discount.tolist()


@pytest.mark.parametrize(
    ("clip", "learnt"), [(True, [1, 0, -1, 1, -1, 0]), (False, [7, 0, -3, 7, -3, 0])], ids=["clipped", "raw"]
)
def test_rewards_are_clipped_only_in_the_replay_buffer(
    clip: bool, learnt: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = played(tmp_path, monkeypatch, 2 * len(GAME), clip_rewards=clip)
    assert remembered(training, 0, len(GAME))[0] == learnt
    assert remembered(training, 1, len(GAME))[0] == learnt[2:] + learnt[:2]
    # The second environment began at the third step of a game, so its first return lacks the 7 of the first one.
    assert list(training.returns) == [RETURN - 7, RETURN, RETURN, RETURN]
    assert list(training.lengths) == [len(GAME) - 2, len(GAME), len(GAME), len(GAME)]


@pytest.mark.parametrize("ends", [True, False], ids=["terminal_on_life_loss", "goes_on"])
def test_a_lost_life_ends_the_return_but_not_the_episode(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = played(tmp_path, monkeypatch, 2 * len(GAME), terminal_on_life_loss=ends)
    at_life_lost = 0.0 if ends else GAMMA
    discounts = [GAMMA, GAMMA, at_life_lost, GAMMA, GAMMA, 0.0]
    assert remembered(training, 0, len(GAME))[1] == pytest.approx(discounts)
    assert remembered(training, 1, len(GAME))[1] == pytest.approx(discounts[2:] + discounts[:2])
    assert (training.episodes, list(training.returns)) == (4, [RETURN - 7, RETURN, RETURN, RETURN])
    assert training.running_length_N.tolist() == [0, 2]
