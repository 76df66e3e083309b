"""Load an agent from a run folder, a model file or the zoo. None is locked or changed: the run may still be training.

agent = load_agent("pong")  # of the zoo; load_agent("runs/dqn-Pong-v5-fast-1") is that of a run
env = agent.make_env(1, render=True)
q_NA = agent.policy.values(env.reset(seed=0))
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zerokara import envs
from zerokara.agents.configs.common import ProtocolName, Settings
from zerokara.agents.qlearning.agent_file import (
    ALGORITHMS,
    BEST,
    AgentMetadata,
    check_algorithm,
    make_agent_network,
)
from zerokara.agents.qlearning.network import QNetwork
from zerokara.agents.qlearning.policy import Policy
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict
from zerokara.core.report import source_name, source_outputs
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo

CHECKPOINT = "checkpoint-0.pt"  # of the main process
Which = Literal["best", "last"]


@dataclass(frozen=True)
class Agent:
    """Trained network and its run."""

    source: Path  # run folder or model file
    config: Settings
    policy: Policy
    step: int  # agent steps of training
    num_actions: int
    obs_shape: tuple[int, int, int]  # (C, H, W)
    returns: tuple[float, ...] = ()  # raw returns of the last up to 100 training episodes before the last checkpoint
    selection: float | None = None  # mean raw return of the evaluation that selected the weights
    updates: int | None = None  # gradient steps of training; None: unknown
    weights: str = "of the file"  # description of the weights

    @property
    def name(self) -> str:
        """Name of the run, or of the model file without its extension."""
        return source_name(self.source)

    @property
    def output_folder(self) -> Path:
        """Folder for videos and results: the run folder, or runs/outputs-<name> for a model file."""
        return source_outputs(self.source)

    def make_env(self, num_envs: int, *, render: bool = False, protocol: ProtocolName | None = None) -> envs.VectorEnv:
        """Make the environment of the training, with the same settings or, for Atari, those of a protocol.

        Raises:
            UserError: it cannot be made on this machine, or its actions or observations differ from the training.
        """
        config = self.config if protocol is None else self.config.with_protocol(protocol)
        env = envs.make(config.env, num_envs, render=render, **config.env_settings())
        if env.num_actions != self.num_actions or env.obs_shape != self.obs_shape:
            env.close()
            raise UserError(
                f"{self.config.env} has {env.num_actions} actions and observations of {env.obs_shape} here, but "
                f"{self.source} was trained with {self.num_actions} and {self.obs_shape}: "
                "install the versions with which it was trained."
            )
        return env


def find_agent(word: str) -> Path:
    """Find a trained agent, given a run folder, a model file, or a name in the zoo.

    Raises:
        UserError: none of these exists.
    """
    return zoo.find(word, "agents")


def load_agent(path: Path | str, *, which: Which = "best", device: str = "cpu", threads: int = 0) -> Agent:
    """Load the agent of a run, of a model file or of the zoo, in float32.

    Args:
        path: runs/<name>, or a file *.safetensors; of type str, also a name in the zoo.
        which: of a run: "best" for the weights of its best evaluation (of the last checkpoint, if there was no
            evaluation yet), "last" for those of its last checkpoint.
        device: auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads; 0: one per core.

    Raises:
        UserError: there is no run or file, it is of another kind or version, it has no checkpoint or a damaged one, or
            the device does not exist.
    """
    path = find_agent(path) if isinstance(path, str) else path
    if path.suffix == ".safetensors" and path.is_file():
        if which == "last":
            raise UserError(f"--which last selects weights of a run folder, and {path.name} is one file: remove it.")
        loaded = _read_file(path)
    elif which == "best" and (path / BEST).is_file():
        loaded = _read_best(path)
    else:
        loaded = _read_last(path, "" if which == "last" else " (there was no evaluation yet)")
    network, config, details = loaded
    compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
    policy = Policy(compute.module(network).eval(), compute)
    return Agent(path, config, policy, **details)


Loaded = tuple[QNetwork, Settings, dict[str, Any]]  # network, config, other fields of `Agent`


def _read_file(path: Path) -> Loaded:
    """Read a model file."""
    network, metadata = AgentMetadata.load(path)
    return network, metadata.settings(), _details(metadata, metadata.settings())


def _read_best(folder: Path) -> Loaded:
    """Read the weights of the best evaluation of a run."""
    kind, config = _read_config(folder)
    metadata, weights = AgentMetadata.read(folder / BEST)
    network = make_agent_network(kind, config, metadata.num_actions, metadata.obs_shape)
    try:
        AgentMetadata.fill(network, weights)
    except RuntimeError as error:
        raise _misfit(folder / BEST, error) from None
    details = _details(metadata, config)
    score = f"{details['selection']:.2f}"
    return network, config, details | {"weights": f"of the best evaluation, which had a mean raw return of {score}"}


def _details(metadata: AgentMetadata, config: Settings) -> dict[str, Any]:
    figures = metadata.figures
    return {
        "step": metadata.step,
        "num_actions": metadata.num_actions,
        "obs_shape": metadata.obs_shape or config.obs_shape,
        "selection": figures.get("eval/return"),
        "updates": figures.get("train/updates"),
    }


def _read_last(folder: Path, why: str) -> Loaded:
    """Read the last checkpoint of a run."""
    kind, config = _read_config(folder)
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{folder} has no checkpoint yet: wait until training has written {CHECKPOINT}, at its start.")
    state = checkpoint.load(path, kind)
    try:
        details = {
            "step": state["step"],
            "num_actions": state["num_actions"],
            # Older checkpoints have no shape, since all observations were images.
            "obs_shape": tuple(state.get("obs_shape", config.obs_shape)),
            "returns": tuple(state["returns"]),
            "updates": state["updates"],
            "weights": f"of the last checkpoint{why}",
        }
        network = make_agent_network(kind, config, state["num_actions"], details["obs_shape"])
        network.load_state_dict(state["learner"]["network"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise _misfit(path, error) from None
    return network, config, details


def _read_config(folder: Path) -> tuple[str, Settings]:
    """Read algorithm and config of a run."""
    content = Run.read_config(folder)
    kind = content["kind"]
    check_algorithm(kind, folder)
    return kind, from_dict(ALGORITHMS[kind][0], content["config"], str(folder / "config.json"))


def _misfit(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The weights in {path} do not fit the network in {path.with_name('config.json')} ({_brief(error)}): "
        f"both files must belong to the same run and be written by this version of zerokara."
    )


def evaluation_seed(seed: int) -> int:
    """Return the seed of the environment for --seed 0, 1, ... of evaluate and play; training uses smaller seeds."""
    return 1_600_000_000 + zlib.crc32(seed.to_bytes(8, "little")) % 400_000_000


def _brief(error: Exception) -> str:
    """Return the first line of a message that does not end with a colon; PyTorch's begin with a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__).rstrip(".")
