"""Model file of an agent: the weights of its Q-network, with config and environment as metadata.

    metadata = AgentMetadata(algorithm="dqn", config=to_saved(config), num_actions=3, step=400)
    metadata.save(Path("runs/pong") / BEST, network.state_dict())
    network, metadata = AgentMetadata.load(Path("runs/pong"))

A training run keeps the weights of its best evaluation in such a file, the zoo has agents in it, and agents are
exported to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.common import Settings
from zerokara.agents.qlearning.network import QNetwork, make_network, make_pqn_network, make_stream_network
from zerokara.core.backbones.registry import BackboneName
from zerokara.core.config import UserError, from_dict
from zerokara.core.models.model_file import Metadata, run_origin
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.run import Run
from zerokara.core.zoo.registry import find_weights

BEST = "agent-best.safetensors"
# Kind of run in config.json -> class of its config, function that makes its network.
ALGORITHMS: dict[str, tuple[type[Settings], Callable[[Any, tuple[int, int, int], int], QNetwork]]] = {
    "dqn": (dqn.Config, make_network),
    "pqn": (pqn.Config, make_pqn_network),
    "stream": (stream.Config, make_stream_network),
}


@dataclass(frozen=True, kw_only=True)
class AgentMetadata(Metadata[QNetwork]):
    """Metadata of an agent's model file."""

    FORMAT = "zerokara-agent-1"
    NETWORK = "Q-network"
    PROGRAM = "agents.dqn, agents.pqn or agents.stream"
    FILE = BEST

    algorithm: str  # key of ALGORITHMS
    config: Mapping[str, Any]  # of the run, as in its config.json
    num_actions: int
    obs_shape: tuple[int, int, int] | None = None  # (C, H, W); None: the shape of images of the config
    step: int  # agent steps of training
    environment: Mapping[str, Any] = field(default_factory=dict)  # settings of the training environments

    @classmethod
    def of_run(
        cls,
        folder: Path,
        *,
        num_actions: int,
        obs_shape: tuple[int, int, int] | None,
        step: int,
        figures: Mapping[str, float] | None = None,
    ) -> Self:
        """Return the metadata of a network that a run has trained; what is not an argument is in its config.json.

        Raises:
            UserError: the config.json is missing or damaged.
            ValueError: the run is not one of an agent.
        """
        content = Run.read_config(folder)
        return cls(
            algorithm=content["kind"],
            config=content["config"],
            num_actions=num_actions,
            obs_shape=obs_shape,
            step=step,
            environment=content["extra"].get("environment", {}),
            data=content["config"].get("env", ""),
            command=content.get("command", ""),
            figures=figures or {},
            origin=tuple(run_origin(folder)),
        )

    def __post_init__(self) -> None:
        """Check the algorithm.

        Raises:
            ValueError: it is unknown.
        """
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"the algorithm {self.algorithm!r} is not one of {', '.join(ALGORITHMS)}")

    def settings(self) -> Settings:
        """Return the config of the run.

        Raises:
            UserError: it was written by a newer version, or is invalid.
        """
        return from_dict(ALGORITHMS[self.algorithm][0], self.config, "the agent's file")

    @property
    def backbone_name(self) -> BackboneName:
        """Name of the backbone."""
        config: Any = self.settings()
        backbone: BackboneName = config.backbone
        return backbone

    def build(self) -> QNetwork:
        """Create the network with randomly initialized weights.

        Raises:
            UserError: see `settings`.
        """
        return make_agent_network(self.algorithm, self.settings(), self.num_actions, self.obs_shape)


def make_agent_network(
    algorithm: str, config: Settings, num_actions: int, obs_shape: tuple[int, int, int] | None = None
) -> QNetwork:
    """Create the Q-network of a run of any algorithm, with randomly initialized weights.

    Args:
        algorithm: key of ALGORITHMS.
        config: of the run.
        num_actions: A.
        obs_shape: (C, H, W) of the observations; None: that of images.
    """
    return ALGORITHMS[algorithm][1](config, obs_shape or config.obs_shape, num_actions)


def check_network(config: Settings, obs_shape: tuple[int, int, int], num_actions: int) -> None:
    """Create the Q-network of a run and drop it, so that a mistake is reported before a run folder is created.

    Raises:
        UserError: it cannot be created, for example because the images are too small for the backbone; or the
            pretrained backbone of a new run is missing or damaged, has NaN or Inf, or does not fit.
    """
    pretrained_backbone = "" if config.resume else getattr(config, "pretrained_backbone", "")
    for config_class, make in ALGORITHMS.values():
        if isinstance(config, config_class):
            with torch.random.fork_rng(devices=[]):
                network = make(config, obs_shape, num_actions)
            if pretrained_backbone:
                load_pretrained_backbone(network.backbone, find_weights(pretrained_backbone))


def check_algorithm(kind: str, source: object) -> None:
    """Check that a run is one of an agent.

    Args:
        kind: "kind" in config.json.
        source: run folder, for the message.

    Raises:
        UserError: it is of another kind.
    """
    if kind not in ALGORITHMS:
        raise UserError(
            f"{source} holds a run of {kind}, not of {' or '.join(ALGORITHMS)}: give the folder of an agent."
        )
