"""The fields of a PQN run, its presets, and its network.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one action in
one environment, four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import nn

from agents.network import QNetwork
from agents.settings import Count, Fraction, Positive, Settings
from core.config import Range


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Parallel Q-learning from pixels."""

    preset: str = "paper"
    """Named set of defaults for all that follows."""
    steps: Count = 10_000_000
    """Length of the run, in agent steps over all environments."""
    num_envs: Count = 128
    """Environments stepped together."""

    # --- the network -----------------------------------------------------------------------------------------------
    backbone: Literal["nature", "nips", "der"] = "nature"
    """The eye, by its name in core.backbones."""
    width: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the backbone's channels."""
    hidden_units: Count = 512
    """Units of the head's hidden layer."""
    layer_norm: bool = True
    """Normalise every layer before its ReLU."""

    # --- learning --------------------------------------------------------------------------------------------------
    rollout_steps: Count = 32
    """Steps that every environment plays before the network learns from them."""
    epochs: Count = 2
    """Passes over them."""
    minibatches: Count = 32
    """Updates in each pass."""
    gamma: Fraction = 0.99
    """Discount of one agent step."""
    trace: Fraction = 0.65
    """Lambda of the returns: 0 bootstraps after one step, 1 after the last of the rollout."""
    reward_clip: bool = True
    """Learn from the sign of a reward; scores are always reported raw."""
    life_loss_ends: bool = True
    """A lost life ends the learner's episode, never the game."""
    learning_rate: Positive = 2.5e-4
    """Step size of RAdam, at first."""
    max_grad_norm: Positive = 10.0
    """Norm to which gradients are clipped."""

    # --- exploration -----------------------------------------------------------------------------------------------
    epsilon_start: Fraction = 1.0
    """Probability of a random action at the start."""
    epsilon_end: Fraction = 0.001
    """Probability of a random action after the decline."""
    epsilon_steps: Count = 1_000_000
    """Agent steps over which it declines, linearly."""

    # --- evaluation and keeping ------------------------------------------------------------------------------------
    eval_epsilon: Fraction = 0.0
    """Probability of a random action in evaluation."""
    eval_every_steps: Annotated[int, Range(0)] = 500_000
    """Agent steps between evaluations; 0: none."""
    log_every_steps: Count = 8_192
    """Agent steps between lines of metrics."""
    checkpoint_every_steps: Count = 100_000
    """Agent steps between checkpoints."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Gallici et al. 2024, as published for Atari: 40,000,000 frames.
    "paper": {},
    # The same for the paper's 200,000,000 frames; epsilon declines over a tenth, as it does there.
    "paper-200m": {"steps": 50_000_000, "epsilon_steps": 5_000_000},
}

DEPARTURES = (
    "scores are means of 30 whole games, one in each environment, so that short games do not count more often",
    "a truncated episode bootstraps from its last observation, where the published code takes it for a terminal",
)


def make_network(config: Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """The Q-network that a config describes, its weights drawn as in the published code (He et al. 2015)."""
    network = QNetwork(
        obs_shape,
        num_actions,
        backbone=config.backbone,
        width=config.width,
        hidden_units=config.hidden_units,
        dueling=False,
        layer_norm=config.layer_norm,
        backbone_options={"layer_norm": config.layer_norm},
    )
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    out = network.advantage[-1].get_parameter("weight")
    nn.init.normal_(out, std=config.hidden_units**-0.5)
    return network
