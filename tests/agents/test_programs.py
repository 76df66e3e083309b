"""Start of the training programs of agents: division among processes before a run is opened."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from zerokara.agents import dqn, pqn
from zerokara.agents.actors import ray_actors
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
