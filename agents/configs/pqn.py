"""Config fields and presets of PQN.

The same object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one
action in one environment, which is four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from zerokara.agents.configs import names
from zerokara.agents.configs.common import Count, Fraction, Positive, Settings
from zerokara.agents.configs.reading import read_agent_config
from zerokara.core.command_line import Requirement
from zerokara.core.config import NamesOrPath, Range, UserError


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Parallel Q-learning from pixels."""

    RENAMED: ClassVar = names.RENAMED_PQN
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_PQN
    GROUPS: ClassVar = names.GROUPS_PQN
    COMMON: ClassVar = names.COMMON_PQN
    REQUIRES: ClassVar[Mapping[str, Requirement]] = {
        "scale_learning_rate": (lambda config: config.average_every == "rollout", "--average-every rollout"),
    }
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES_PQN
    VALUES_BEFORE: ClassVar[Mapping[str, Any]] = {"scale_learning_rate": False}

    preset: str = "paper"
    """Named set of defaults for the other options."""
    total_steps: Count = 10_000_000
    """Total agent steps of the run, summed over all environments."""
    num_envs: Count = 128
    """Number of parallel environments."""

    # --- network ---------------------------------------------------------------------------------------------------
    backbone: Annotated[str, NamesOrPath(("nature", "nips", "der", "hadamax", "mlp"))] = "nature"
    """Backbone, by its name in core.backbones. One of your own is file.py:Class (docs/backbones.md); mlp is for
    vectors (see --obs-type)."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the number of channels of the backbone."""
    hidden_units: Count = 512
    """Units of the hidden layer in the head."""
    layer_norm: bool = True
    """Apply LayerNorm before every ReLU."""
    lstm_units: Annotated[int, Range(0, 4096)] = 0
    """Units of an LSTM after the hidden layer. It remembers what the agent has seen, so that --frame-stack is 1 by
    default, and minibatches hold whole rollouts of some environments. 0: no LSTM."""

    # --- algorithm -------------------------------------------------------------------------------------------------
    rollout_steps: Count = 32
    """Steps in each environment per rollout."""
    update_epochs: Count = 2
    """Epochs over each rollout."""
    num_minibatches: Count = 32
    """Minibatches per epoch, one update each."""
    gamma: Fraction = 0.99
    """Discount factor per agent step."""
    td_lambda: Fraction = 0.65
    """Lambda of the lambda-returns: 0 gives one-step returns, 1 gives returns up to the end of the rollout."""
    clip_rewards: bool = True
    """Train on the sign of the reward; logged returns are always raw."""
    terminal_on_life_loss: bool = True
    """Treat the loss of a life as terminal in the return; the environment is not reset."""
    learning_rate: Positive = 2.5e-4
    """Initial learning rate of RAdam."""
    weight_decay: Annotated[float, Range(0)] = 0.0
    """Decoupled weight decay of matrices and filters, not of biases and gains, as in AdamW; 0: none."""
    max_grad_norm: Positive = 10.0
    """Maximum norm for gradient clipping."""
    average_every: Literal["minibatch", "rollout"] = "minibatch"
    """With torchrun, processes average gradients in each minibatch, or weights after each rollout (local SGD)."""
    scale_learning_rate: bool = True
    """Multiply the learning rates by the square root of the number of processes (--average-every rollout), whose
    minibatches are smaller by this number."""

    # --- exploration -----------------------------------------------------------------------------------------------
    epsilon_start: Fraction = 1.0
    """Initial probability of a random action."""
    epsilon_end: Fraction = 0.001
    """Final probability of a random action."""
    epsilon_decay_steps: Count = 1_000_000
    """Agent steps over which epsilon decays linearly from --epsilon-start to --epsilon-end."""

    # --- evaluation, logging and checkpoints -----------------------------------------------------------------------
    eval_epsilon: Fraction = 0.0
    """Probability of a random action during evaluation."""
    eval_every_steps: Annotated[int, Range(0)] = 500_000
    """Agent steps between evaluations; 0: no evaluation."""
    log_every_steps: Count = 8_192
    """Agent steps between two log entries."""
    checkpoint_every_steps: Count = 100_000
    """Agent steps between checkpoints."""

    @property
    def deviations(self) -> Sequence[str]:
        """Differences from the code that the preset follows."""
        return LSTM_DEVIATIONS if self.preset == "lstm" else DEVIATIONS


# The published code uses EnvPool, which presses FIRE at resets and after lost lives unless it is told otherwise.
_FIRE: Mapping[str, Any] = {"fire_reset": True, "fire_after_life_loss": True}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Gallici et al. 2024, as published for Atari: 40,000,000 frames.
    "paper": _FIRE,
    # The same for the paper's 200,000,000 frames; epsilon decays over the first tenth, as in the paper.
    "paper-200m": {**_FIRE, "total_steps": 50_000_000, "epsilon_decay_steps": 5_000_000},
    # CleanRL, cleanrl/pqn_atari_envpool_lstm.py.
    "lstm": {
        **_FIRE,
        "lstm_units": 128,
        "frame_stack": 1,
        "num_envs": 8,
        "rollout_steps": 128,
        "update_epochs": 4,
        "num_minibatches": 4,
        "max_grad_norm": 0.25,  # .5 there, of a loss without the factor 1/2
        "final_learning_rate": 1e-8,  # 0 there
        "learning_rate_decay_steps": 10_000_000,
        "epsilon_end": 0.01,
    },
}

DEVIATIONS = (
    "scores average 30 complete episodes, one in each environment, so that short episodes are not overrepresented",
    "a truncated episode bootstraps from its last observation; the published code treats it as terminal",
    "a reset is FIRE, then no-ops, and after a lost life FIRE lasts a step; EnvPool has no-ops, then a frame of FIRE",
    "ale-py draws 0 to 29 no-ops, 0 twice as often, without FIRE 0 to 30; EnvPool 0 to 29, without FIRE 1 to 30",
    "frame stacks begin with zeros; EnvPool fills them with the first frame",
    "LayerNorm of the hidden layer has an epsilon of 1e-5, the default of PyTorch; flax has 1e-6",
)
LSTM_DEVIATIONS = (
    *DEVIATIONS[:4],
    "a lost life ends the return, but the LSTM remembers; CleanRL resets its state, as at the end of an episode",
    "convolutions and hidden layer are initialized as by He, outputs by 1/sqrt(128); CleanRL: orthogonal, by sqrt(2)",
    "convolutions are normalized over channels, with an epsilon of 1e-6; CleanRL: over the whole layer, with 1e-5",
    "epsilon of the exploration is constant during a rollout; CleanRL decreases it after each step",
    "the learning rate ends at 1e-8 instead of 0, and it decreases from the first rollout on instead of the second",
)


KIND = "pqn"
STEPS_TO_AVERAGE_WEIGHTS = 512  # of a process and rollout; with 128 and 256, PQN learned less (docs/distributed.md)


def read_config(argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read the config from the command line; with --resume, from the run folder.

    Raises:
        UserError: as in `core.run_config.configure`; the rollout, or with an LSTM the environments, cannot be divided
            into minibatches of equal size; with --resume, a flag contradicts the config of the run.
    """
    config = read_agent_config(Config, PRESETS, argv, description, KIND)
    check_minibatches(config)
    return config


def averaging_warning(config: Config, processes: int) -> str | None:
    """Return what the user should know about --average-every rollout with this number of processes, if anything."""
    steps = config.rollout_steps * config.num_envs // processes
    if config.average_every == "minibatch" or (processes > 1 and steps >= STEPS_TO_AVERAGE_WEIGHTS):
        return None
    if processes == 1:
        return "--average-every rollout has no effect, because there is one process."
    return (
        f"With --average-every rollout, each process trains on {steps} steps before the weights are averaged. With "
        f"fewer than {STEPS_TO_AVERAGE_WEIGHTS}, PQN learned less than with --average-every minibatch: use more "
        f"--num-envs or --rollout-steps, or fewer processes."
    )


def check_minibatches(config: Config, processes: int = 1) -> None:
    """Check that the rollout of each process can be divided into minibatches of equal size.

    Args:
        config: settings of the run, whose environments can be divided evenly among the processes.
        processes: each divides the rollout of its own environments into `num_minibatches`.

    Raises:
        UserError: it cannot; with an LSTM, its environments cannot.
    """
    own = config.num_envs // processes
    envs = f"--num-envs {config.num_envs} environments" + f", {own} in each of {processes} processes," * (processes > 1)
    refusal = f"cannot be divided evenly into --num-minibatches {config.num_minibatches}: change one of them."
    if config.rollout_steps * own % config.num_minibatches:
        raise UserError(f"A rollout of --rollout-steps {config.rollout_steps} in {envs} {refusal}")
    if config.lstm_units and own % config.num_minibatches:
        raise UserError(f"With --lstm-units a minibatch holds whole rollouts, and {envs} {refusal}")
