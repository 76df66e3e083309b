"""Start of the training programs of agents: division among processes before a run is opened."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zerokara.agents import dqn, pqn, stream
from zerokara.agents.actors import ray_actors
from zerokara.agents.configs import pqn as pqn_config
from zerokara.agents.configs import stream as stream_config
from zerokara.agents.configs.common import Settings
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training import start
from zerokara.core.config import UserError
from zerokara.core.distributed import World


@pytest.mark.parametrize(
    ("program", "kind", "refused", "accepted"),
    [
        (
            dqn,
            "dqn",
            {"--batch-size 32": "--num-envs 6 --batch-size 32", "--num-envs 8": "--num-envs 8 --batch-size 33"},
            "--num-envs 6 --batch-size 33",
        ),
        (pqn, "pqn", {"--num-envs 8": "--num-envs 8"}, "--num-envs 6"),
    ],
    ids=["dqn", "pqn"],
)
def test_settings_are_divided_among_the_processes_before_a_run_is_opened(
    program: ModuleType,
    kind: str,
    refused: dict[str, str],
    accepted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[str] = []
    opened: list[tuple[str, World]] = []

    def from_env(device: str) -> World:
        devices.append(device)
        return World(size=3)

    class Opened(Exception):
        """Raised instead of opening the run."""

    def open_run(config: Settings, kind: str, world: World) -> None:
        opened.append((kind, world))
        raise Opened

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(World, "from_env", from_env)
    monkeypatch.setattr(start, "open_run", open_run)
    for option, words in refused.items():
        with pytest.raises(UserError, match=f"{option} cannot be divided evenly among 3 processes: .* multiple of 3"):
            program.main([*words.split(), "--device", "cpu"])
    assert (devices, opened, list(tmp_path.iterdir())) == (["cpu"] * len(refused), [], [])
    with pytest.raises(Opened):
        program.main([*accepted.split(), "--env", "zerokara/Catch-v0"])
    assert opened == [(kind, World(size=3))]


def test_dqn_connects_to_ray_before_a_run_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(config: Config) -> None:
        assert config.actors == 3
        raise UserError("Ray could not start")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_actors, "connected", connected)
    with pytest.raises(UserError, match="Ray could not start"):
        dqn.start(Config(env="zerokara/Catch-v0", actors=3))
    assert list(tmp_path.iterdir()) == []


ROLLOUTS: dict[str, Any] = {"num_envs": 6, "rollout_steps": 8, "num_minibatches": 3, "update_epochs": 2}
OF_ROLLOUTS = {"check": pqn_config.check_minibatches, "batch_size": 16, "updates": 4 * 2 * 3}


@pytest.mark.parametrize(
    ("program", "kind", "config", "expected"),
    [
        (
            dqn,
            "dqn",
            Config(num_envs=2, learning_starts=40, train_every_steps=4, batch_size=24, total_steps=200),
            {"batch_size": 24, "updates": 40, "divided": ("num_envs", "batch_size"), "connected": ray_actors.connected},
        ),
        (pqn, "pqn", pqn_config.Config(total_steps=200, **ROLLOUTS), {"multiple_of": 1, **OF_ROLLOUTS}),
        (pqn, "pqn", pqn_config.Config(total_steps=200, lstm_units=8, **ROLLOUTS), {"multiple_of": 8, **OF_ROLLOUTS}),
        (
            stream,
            "stream",
            stream_config.Config(total_steps=200),
            {"batch_size": 1, "updates": 200, "divided": (), "check": stream_config.check_processes},
        ),
    ],
    ids=["dqn", "pqn", "pqn with an LSTM", "stream"],
)
def test_batch_size_and_number_of_updates_of_a_program(
    program: Any, kind: str, config: Settings, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start_run` chooses the hardware settings by the time of such batches, within a part of so many updates."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(program, "start_run", lambda *arguments, **options: seen.append((*arguments, options)))

    def callback(step: int, metrics: dict[str, float]) -> None: ...

    program.start(config, callback)
    assert seen == [(config, kind, program.train, program.probe_step, {**expected, "callback": callback})]
