"""The fields of a PQN run, its presets, and its network.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one action in
one environment, four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zerokara.agents.configs.common import Count, Fraction, Positive, Settings
from zerokara.agents.configs.protocols import OVERRIDES
from zerokara.core.config import Range, UserError
from zerokara.core.run_config import configure


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Parallel Q-learning from pixels."""

    preset: str = "paper"
    """Named set of defaults for all that follows."""
    total_steps: Count = 10_000_000
    """Length of the run, in agent steps over all environments."""
    num_envs: Count = 128
    """Environments stepped together."""

    # --- the network -----------------------------------------------------------------------------------------------
    backbone: Literal["nature", "nips", "der"] = "nature"
    """The eye, by its name in core.backbones."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the backbone's channels."""
    hidden_units: Count = 512
    """Units of the head's hidden layer."""
    layer_norm: bool = True
    """Normalise every layer before its ReLU."""

    # --- learning --------------------------------------------------------------------------------------------------
    rollout_steps: Count = 32
    """Steps that every environment plays before the network learns from them."""
    update_epochs: Count = 2
    """Passes over them."""
    num_minibatches: Count = 32
    """Updates in each pass."""
    gamma: Fraction = 0.99
    """Discount of one agent step."""
    td_lambda: Fraction = 0.65
    """Lambda of the returns: 0 bootstraps after one step, 1 after the last of the rollout."""
    clip_rewards: bool = True
    """Learn from the sign of a reward; scores are always reported raw."""
    terminal_on_life_loss: bool = True
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
    epsilon_decay_steps: Count = 1_000_000
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
    "paper-200m": {"total_steps": 50_000_000, "epsilon_decay_steps": 5_000_000},
}

DEVIATIONS = (
    "scores are means of 30 whole games, one in each environment, so that short games do not count more often",
    "a truncated episode bootstraps from its last observation, where the published code takes it for a terminal",
)


KIND = "pqn"


# What may differ when a run goes on; everything else would make it another run.
CHANGEABLE = {"resume", "quiet", "total_steps", "stop_at_return", "eval_episodes", "capture_video"}


def read_config(argv: Sequence[str] | None = None, description: str = "") -> Config:
    """The config of the command line; with --resume, the run's own, which the command line must not contradict.

    Raises:
        UserError: as `core.run_config.configure`; minibatches that a rollout does not divide into.
    """
    config = configure(
        Config,
        PRESETS,
        argv,
        description,
        kind=KIND,
        default_name=default_name,
        changeable=CHANGEABLE,
        layers={"protocol": OVERRIDES},
    )
    if config.rollout_steps * config.num_envs % config.num_minibatches:
        raise UserError(
            f"--rollout-steps {config.rollout_steps} in --num-envs {config.num_envs} environments cannot be divided "
            f"into --num-minibatches {config.num_minibatches} evenly: change one of them."
        )
    return config


def default_name(config: Config) -> str:
    """pqn-Pong-v5-paper-1 for ALE/Pong-v5, preset paper, seed 1."""
    return f"{KIND}-{config.env.split('/')[-1]}-{config.preset}-{config.seed}"
