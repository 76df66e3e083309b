"""An agent read back from a run's folder, ready to play. Nothing is locked or changed: the run may still be training.

agent = load_agent(Path("runs/dqn-Pong-v5-fast-1"))
env = agent.make_env(1, render=True)
q_NA = agent.policy.values(env.reset(seed=0))
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerokara import envs
from zerokara.agents.configs import dqn, pqn
from zerokara.agents.configs.common import ProtocolName, Settings
from zerokara.agents.qlearning.network import QNetwork, make_network, make_pqn_network
from zerokara.agents.qlearning.policy import Policy
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict
from zerokara.core.run import Run

# By what their entries call their runs: the config that is in config.json, and the network that it describes.
KINDS: dict[str, tuple[type[Settings], Callable[[Any, tuple[int, int, int], int], QNetwork]]] = {
    "dqn": (dqn.Config, make_network),
    "pqn": (pqn.Config, make_pqn_network),
}
CHECKPOINT = "checkpoint-0.pt"  # the main process's


@dataclass(frozen=True)
class Agent:
    """A trained network, and what is known of its run."""

    folder: Path
    config: Settings
    policy: Policy
    step: int  # agent steps that it had learnt for
    num_actions: int
    returns: tuple[float, ...] = ()  # raw, of its last whole games in training, 100 at most

    @property
    def name(self) -> str:
        """The run's."""
        return self.folder.resolve().name

    def make_env(self, num_envs: int, *, render: bool = False, protocol: ProtocolName | None = None) -> envs.VectorEnv:
        """The game that it was trained on, with the same settings or, of Atari, those of a protocol.

        Raises:
            UserError: the game cannot be made here, or has other actions or observations than in training.
        """
        config = self.config if protocol is None else self.config.with_protocol(protocol)
        env = envs.make(config.env, num_envs, render=render, **config.env_settings())
        expected = _obs_shape(self.config)
        if env.num_actions != self.num_actions or env.obs_shape != expected:
            env.close()
            raise UserError(
                f"{self.config.env} has {env.num_actions} actions and observations of {env.obs_shape} here, but "
                f"{self.folder} learnt with {self.num_actions} and {expected}: install the versions in its config.json."
            )
        return env


def load_agent(folder: Path, *, device: str = "cpu", threads: int = 0) -> Agent:
    """The agent of a run's last checkpoint, in float32.

    Args:
        folder: runs/<name>.
        device: auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads, 0 for all cores.

    Raises:
        UserError: no such run, or one of another kind or version; no checkpoint, or a damaged one; no such device.
    """
    content = Run.read_config(folder)
    kind = content["kind"]
    if kind not in KINDS:
        raise UserError(f"{folder} holds a run of {kind}, not of {' or '.join(KINDS)}: give the folder of an agent.")
    config_class, make = KINDS[kind]
    config = from_dict(config_class, content["config"], str(folder / "config.json"))
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(
            f"{folder} has no checkpoint yet: wait until training has written {CHECKPOINT}, which it does at its start."
        )
    state = checkpoint.load(path, kind)
    compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
    try:
        num_actions, step, returns = state["num_actions"], state["step"], tuple(state["returns"])
        network = make(config, _obs_shape(config), num_actions)
        network.load_state_dict(state["learner"]["network"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"The weights in {path} do not fit the network in {folder / 'config.json'} ({_brief(error)}): "
            f"both files must come from one run and from this version of zerokara."
        ) from None
    return Agent(folder, config, Policy(compute.module(network).eval(), compute), step, num_actions, returns)


def game_seed(seed: int) -> int:
    """The environment's seed for what a command line calls seed 0, 1, ...: far from those of training."""
    return 1_600_000_000 + zlib.crc32(seed.to_bytes(8, "little")) % 400_000_000


def _obs_shape(config: Settings) -> tuple[int, int, int]:
    """(C, H, W)."""
    return (config.frame_stack * (1 if config.grayscale else 3), config.image_size, config.image_size)


def _brief(error: Exception) -> str:
    """The first line that says something: PyTorch's begins with the class's name and a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__).rstrip(".")
