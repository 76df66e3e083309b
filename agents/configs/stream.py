"""Config fields and presets of streaming Q(lambda).

The same object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one
action, which is four frames of an Atari game. Every step is one update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from zerokara.agents.configs import names
from zerokara.agents.configs.common import Count, Fraction, Positive, Settings
from zerokara.agents.configs.reading import read_agent_config
from zerokara.core.choices import Precision, Switch
from zerokara.core.config import NamesOrPath, Range, UserError

FOREIGN_NAMES: Mapping[str, str] = {
    "lamda": "td_lambda",
    "kappa_value": "kappa",
    "epsilon_target": "epsilon_end",
    "hidden_size": "hidden_units",
    "sparsity": "init_sparsity",
    "batch_size": "is not an option here: every update uses one step.",
    "buffer_size": "is not an option here: streaming Q(lambda) has no replay buffer.",
    "target_network_frequency": "is not an option here: streaming Q(lambda) has no target network.",
}
COMMON = (
    "env",
    "preset",
    "name",
    "seed",
    "total_steps",
    "td_lambda",
    "learning_rate",
    "epsilon_decay_steps",
    "eval_every_steps",
    "resume",
)
GROUPS: Mapping[str, tuple[str, ...]] = {
    **names.GROUPS_PQN,
    "environment": (*names.GROUPS_PQN["environment"], "normalize_observations", "scale_rewards"),
    "network": ("backbone", "width_multiplier", "hidden_units", "layer_norm", "init_sparsity"),
    "algorithm": (
        "gamma",
        "td_lambda",
        "trace_reset",
        "kappa",
        "learning_rate",
        "final_learning_rate",
        "learning_rate_decay_steps",
    ),
}
PRESET_SUMMARIES: Mapping[str, str] = {
    "paper": "Stream Q(lambda) for 40,000,000 frames (Elsayed et al. 2024)",
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Streaming Q(lambda) from pixels."""

    FOREIGN_NAMES: ClassVar = FOREIGN_NAMES
    GROUPS: ClassVar = GROUPS
    COMMON: ClassVar = COMMON
    PRESET_SUMMARIES: ClassVar = PRESET_SUMMARIES

    preset: str = "paper"
    """Named set of defaults for the other options."""
    total_steps: Count = 10_000_000
    """Total agent steps of the run."""
    num_envs: Annotated[int, Range(1, 1)] = 1
    """Number of environments: always 1."""
    normalize_observations: bool = True
    """Normalize every element of a frame by its running mean and variance."""
    scale_rewards: bool = True
    """Divide rewards by the running deviation of their discounted sum."""

    # --- network ---------------------------------------------------------------------------------------------------
    backbone: Annotated[str, NamesOrPath(("stream", "nature", "nips", "der", "mlp"))] = "stream"
    """Backbone, by its name in core.backbones. One of your own is file.py:Class (docs/backbones.md); mlp is for
    vectors (see --obs-type)."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the number of channels of the backbone."""
    hidden_units: Count = 256
    """Units of the hidden layer in the head."""
    layer_norm: bool = True
    """Apply LayerNorm without weights before every activation."""
    init_sparsity: Fraction = 0.9
    """Fraction of the weights of each unit that are initially 0."""

    # --- algorithm -------------------------------------------------------------------------------------------------
    gamma: Fraction = 0.99
    """Discount factor per agent step."""
    td_lambda: Fraction = 0.8
    """Lambda of the eligibility traces, which decay by gamma * lambda."""
    trace_reset: Literal["after", "before"] = "after"
    """Reset the traces after or before the update of a non-greedy action. The published code has after, Watkins's
    Q(lambda) and the paper's pseudocode have before."""
    kappa: Positive = 2.0
    """Factor in the bound on an update. Above 1, the TD error should not change its sign."""
    clip_rewards: bool = False
    """Train on the sign of the reward; logged returns are always raw."""
    terminal_on_life_loss: bool = True
    """Treat the loss of a life as terminal; the environment is not reset."""
    learning_rate: Positive = 1.0
    """Initial learning rate of ObGD, before the bound on an update."""

    # --- exploration -----------------------------------------------------------------------------------------------
    epsilon_start: Fraction = 1.0
    """Initial probability of a random action."""
    epsilon_end: Fraction = 0.01
    """Final probability of a random action."""
    epsilon_decay_steps: Count = 500_000
    """Agent steps over which epsilon decays linearly to --epsilon-end."""

    # --- evaluation, logging and checkpoints -----------------------------------------------------------------------
    eval_epsilon: Fraction = 0.01
    """Probability of a random action during evaluation."""
    eval_every_steps: Annotated[int, Range(0)] = 500_000
    """Agent steps between evaluations; 0: no evaluation."""
    log_every_steps: Count = 10_000
    """Agent steps between two log entries."""
    checkpoint_every_steps: Count = 50_000
    """Agent steps between checkpoints."""

    # --- hardware --------------------------------------------------------------------------------------------------
    device: str = "cpu"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "float32"
    """Precision of the networks' arithmetic. auto: the fastest in a short measurement at the start."""
    compile: Switch = "off"
    """Compile the passes of the network; auto: if a short measurement shows that it is faster."""
    threads: Annotated[int, Range(0)] = 1
    """Number of CPU threads (0: one per core)."""

    @property
    def deviations(self) -> Sequence[str]:
        """Differences from the published code."""
        return DEVIATIONS


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Elsayed et al. 2024, the published code for Atari, which presses FIRE at resets, but not after lost lives.
    "paper": {"fire_reset": True},
}

DEVIATIONS = (
    "scores average 30 complete episodes, one in each environment, so that short episodes are not overrepresented",
    "the frames of a stack are normalized by the statistics of this step, each frame of the published code by its own",
    "frame stacks begin with zeros, also after normalization; the published code fills them with the first frame",
    "all-black frames become zeros, as those before the start of an episode; the published code normalizes them",
    "a truncated episode bootstraps and ends the traces; the published code does one or the other, by environment",
    "a reset is FIRE, then no-ops; the published code has no-ops, then FIRE and the third action",
    "ale-py draws 0 to 29 no-ops, 0 twice as often, and without FIRE 0 to 30; the published code draws 1 to 30",
)

KIND = "stream"


def read_config(argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read the config from the command line; with --resume, from the run folder.

    Raises:
        UserError: as in `core.run_config.configure`; with --resume, a flag contradicts the config of the run.
    """
    return read_agent_config(Config, PRESETS, argv, description, KIND)


def check_processes(config: Config, processes: int) -> None:
    """Check that there is one process.

    Args:
        config: not used; the checks of other programs use theirs.
        processes: number of processes.

    Raises:
        UserError: there are several.
    """
    if processes > 1:
        raise UserError(
            f"agents.stream learns from one environment in one process, and there are {processes} processes: start it "
            f"without torchrun."
        )
