"""Load an agent from a run folder, a model file or the zoo. None is locked or changed: the run may still be training.

agent = load_agent("pong")                  # of the zoo; load_agent("runs/dqn-Pong-v5-fast-1") is that of a run
action = agent.act(frame)                   # of a Gymnasium environment; agent.reset() at the start of an episode
scores = agent.evaluate(episodes=30)
env = agent.make_env(1, render=True)        # as in training, for programs of zerokara
q_NA = agent.policy.values(env.reset(seed=0))

Shapes: N observations, A actions, C, H, W the network's input, K stacked frames.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

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
from zerokara.agents.qlearning.policy import Policy, make_policy
from zerokara.agents.training.evaluation import Scores, evaluate, parallel_episodes
from zerokara.agents.viewing.acting import Actor
from zerokara.agents.viewing.choices import Which
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict, to_saved
from zerokara.core.importing import locate
from zerokara.core.named_object import NamedObject
from zerokara.core.report import FromSource
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo
from zerokara.envs.observations import ImageFormat
from zerokara.envs.vectors import VectorFormat

CHECKPOINT = "checkpoint-0.pt"  # of the main process


@dataclass(frozen=True)
class Agent(FromSource):
    """Trained network and its run."""

    source: Path  # run folder or model file
    config: Settings
    policy: Policy
    step: int  # agent steps of training
    num_actions: int
    obs_shape: tuple[int, int, int]  # (C, H, W)
    metadata: AgentMetadata  # of the model file, or for one
    returns: tuple[float, ...] = ()  # raw returns of the last up to 100 training episodes before the last checkpoint
    selection: float | None = None  # mean raw return of the evaluation that selected the weights
    updates: int | None = None  # gradient steps of training; None: unknown
    first_action: int = 0  # number of action 0 in the action space of the environment
    weights: str = "of the file"  # description of the weights

    def make_env(self, num_envs: int, *, render: bool = False, protocol: ProtocolName | None = None) -> envs.VectorEnv:
        """Make the environment of the training, with the same settings or, for Atari, those of a protocol.

        A protocol keeps what the run sets for the start of an episode (`Settings.with_protocol`).

        Raises:
            UserError: it cannot be made on this machine, or its actions or observations differ from the training.
        """
        config = self.config if protocol is None else self.config.with_protocol(protocol)
        env = envs.make(config.env, num_envs, render=render, resumable=False, **config.env_settings())
        with envs.closed_on_error(env):
            if env.num_actions != self.num_actions or env.obs_shape != self.obs_shape:
                raise UserError(
                    f"{self.config.env} has {env.num_actions} actions and observations of {env.obs_shape} here, but "
                    f"{self.source} was trained with {self.num_actions} and {self.obs_shape}: "
                    "install the versions with which it was trained."
                )
        return env

    # ---- acting

    def reset(self) -> None:
        """Start an episode: the next frame that `act` or `q_values` gets is its first one.

        An agent with an LSTM forgets what it has seen. It remembers each row of a batch, as long as their number is the
        same.
        """
        self._actor.frames.reset()
        self.policy.forget()

    def act(self, obs: Any, *, epsilon: float = 0.0, stacked: bool | None = None) -> int | np.ndarray:
        """Select the action with the highest Q-value.

        Args:
            obs: the next frame of an environment, as its `reset` or `step` returned it (also a Dict with an image),
                which is converted and stacked as in training. Or stacked observations with the size of the network's
                input: one, or a batch; channels first or last; integers from 0 to 255. Of an agent that was trained on
                vectors: a vector as the environment returned it, or a batch of them.
            epsilon: probability of a random action.
            stacked: True: `obs` is stacked, False: it is a frame; None: it follows from the shape.

        Returns:
            The number of the action, from 0; of a batch, an array (N,).

        Raises:
            UserError: an observation of another shape, type or range.
        """
        return self._actor.act(obs, epsilon, stacked)

    def q_values(self, obs: Any = None, *, stacked: bool | None = None) -> np.ndarray:
        """Return the Q-values (A,) of an observation or (N, A) of a batch, float32.

        Args:
            obs: as in `act`; a frame is the next one of the episode. None: the observation that `act` or `q_values` got
                last.
            stacked: as in `act`.

        Raises:
            UserError: as in `act`; or there was no observation yet.
        """
        q_NA, is_batch = self._actor.values(obs, stacked)
        return q_NA if is_batch else np.asarray(q_NA[0])

    @functools.cached_property
    def _actor(self) -> Actor:
        def declared() -> ImageFormat | VectorFormat | None:
            with contextlib.closing(self.make_env(1)) as env:
                return getattr(env, "image", None)

        return Actor(self.policy, self.config, self.obs_shape, declared, self.first_action)

    def evaluate(self, episodes: int = 30, *, epsilon: float | None = None, seed: int = 0) -> Scores:
        """Play complete episodes in the environment of the training and return their raw returns and lengths.

        Args:
            episodes: number of episodes.
            epsilon: probability of a random action; None: that of the evaluations in training.
            seed: other numbers give other episodes; none of them are those of the training.

        Raises:
            UserError: the environment cannot be made; `episodes` is below 1.
        """
        if episodes < 1:
            raise UserError(f"episodes must be at least 1, got {episodes}.")
        num_envs = parallel_episodes(episodes)
        with contextlib.closing(self.make_env(num_envs)) as env:
            return evaluate(
                self.policy,
                env,
                episodes_per_env=episodes // num_envs,
                epsilon=self.config.eval_epsilon if epsilon is None else epsilon,
                max_steps=self.config.eval_max_steps,
                seed=evaluation_seed(seed),
            )


def find_agent(word: str) -> Path:
    """Find a trained agent, given a run folder, a model file, or a name in the zoo.

    Raises:
        UserError: none of these exists.
    """
    return zoo.find(word, "agents")


def load_agent(
    path: Path | str,
    *,
    which: Which = "best",
    device: str = "cpu",
    threads: int = 0,
    backbone: str | Callable[..., Any] | None = None,
    env: str | Callable[..., Any] | None = None,
) -> Agent:
    """Load the agent of a run, of a model file or of the zoo, in float32.

    Args:
        path: runs/<name>, or a file *.safetensors; of type str, also a name in the zoo.
        which: of a run: "best" for the weights of its best evaluation (of the last checkpoint, if there was no
            evaluation yet), "last" for those of its last checkpoint.
        device: auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads; 0: one per core.
        backbone: class, function or import path of a network of one's own that was trained; None: as it was saved.
        env: class, function, id or import path of the environment; None: as it was saved.

    Raises:
        UserError: there is no run or file, it is of another kind or version, it has no checkpoint or a damaged one, the
            device does not exist, or a network of one's own cannot be imported.
    """
    path = find_agent(path) if isinstance(path, str) else path.expanduser()
    own = {name: _named(value) for name, value in (("backbone", backbone), ("env", env)) if value is not None}
    if path.suffix == ".safetensors" and path.is_file():
        if which == "last":
            raise UserError(f"--which last selects weights of a run folder, and {path.name} is one file: remove it.")
        loaded = _read_file(path, own)
    elif which == "best" and (path / BEST).is_file():
        loaded = _read_best(path, own)
    else:
        loaded = _read_last(path, own, "" if which == "last" else " (there was no evaluation yet)")
    network, config, details = loaded
    compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
    policy = make_policy(compute.module(network).eval(), compute)
    return Agent(path, config, policy, **details)


Loaded = tuple[QNetwork, Settings, dict[str, Any]]  # network, config, other fields of `Agent`


def _named(value: str | Callable[..., Any]) -> str:
    return value if isinstance(value, str) else NamedObject.of(value)


def _read_file(path: Path, own: dict[str, str]) -> Loaded:
    """Read a model file. `own` are values of the config that replace those of the file."""
    metadata, weights = AgentMetadata.read(path)
    metadata = replace(metadata, config={**_located(metadata.config, path.parent), **own})
    config = metadata.settings()
    return metadata.make(weights, path), config, _details(metadata, config)


def _read_best(folder: Path, own: dict[str, str]) -> Loaded:
    """Read the weights of the best evaluation of a run. Its config.json is used, which may have changed since then."""
    kind, config = _read_config(folder, own)
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
    return {
        "metadata": metadata,
        "step": metadata.step,
        "num_actions": metadata.num_actions,
        "obs_shape": metadata.obs_shape or config.obs_shape,
        "selection": metadata.figures.get("eval/return"),
        "updates": metadata.figures.get("train/updates"),
        "first_action": metadata.environment.get("first_action", 0),
    }


def _read_last(folder: Path, own: dict[str, str], why: str) -> Loaded:
    """Read the last checkpoint of a run."""
    kind, config = _read_config(folder, own)
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
            "first_action": Run.read_config(folder)["extra"].get("environment", {}).get("first_action", 0),
            "weights": f"of the last checkpoint{why}",
        }
        described = {name: details[name] for name in ("num_actions", "obs_shape", "step")}
        details["metadata"] = replace(AgentMetadata.of_run(folder, **described), config=to_saved(config))
        network = make_agent_network(kind, config, state["num_actions"], details["obs_shape"])
        network.load_state_dict(state["learner"]["network"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise _misfit(path, error) from None
    return network, config, details


def _read_config(folder: Path, own: dict[str, str]) -> tuple[str, Settings]:
    """Read algorithm and config of a run, with the values of `own` instead of the saved ones."""
    content = Run.read_config(folder)
    kind = content["kind"]
    check_algorithm(kind, folder)
    return kind, from_dict(
        ALGORITHMS[kind][0], {**_located(content["config"], folder), **own}, str(folder / "config.json")
    )


def _located(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a saved config with an environment and a network of one's own that are found from any working folder."""
    paths = {name: config[name] for name in ("env", "backbone") if isinstance(config.get(name), str)}
    return {**config, **{name: locate(path, folder) for name, path in paths.items()}}


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
