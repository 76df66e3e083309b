"""The fields of a DQN run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one action in
one environment, four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zerokara.agents.configs.common import Count, Fraction, OptionalCount, Positive, Settings
from zerokara.agents.configs.presets import PAPER_PRESETS
from zerokara.agents.configs.protocols import OVERRIDES
from zerokara.core.config import Range, UserError, flag
from zerokara.core.run_config import configure


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Deep Q-learning from pixels."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""

    # --- the network -----------------------------------------------------------------------------------------------
    backbone: Literal["nature", "nips", "der", "impala", "dcgan"] = "der"
    """The eye, by its name in core.backbones; dcgan without normalisation."""
    pretrained_backbone: str = ""
    """Start the eye from a run's folder or a file of weights."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the backbone's channels."""
    hidden_units: Count = 256
    """Units of the head's hidden layer, in each stream if dueling."""
    dueling: bool = True
    """Separate streams for the state's value and the actions' advantages."""
    backbone_gradient_scale: Fraction = 1.0
    """Factor on the gradient that flows from the head into the eye."""
    layer_norm: bool = False
    """Normalise the hidden layer."""
    noisy: bool = False
    """Linear layers with learnt noise, drawn anew for every act and every update, none in evaluation."""
    noisy_sigma_init: Positive = 0.5
    """Size of the noise at first, before it is divided by the root of a layer's inputs."""
    spectral_norm: bool = False
    """Divide the weights of residual convolutions by their largest singular value (backbone impala)."""
    pool_size: Annotated[int, Range(0, 64)] = 0
    """Height and width to which the eye's last map is max-pooled (backbone impala); 0: as it is."""

    # --- what is learnt of an action -------------------------------------------------------------------------------
    head: Literal["q", "c51", "qr", "iqn"] = "q"
    """Expected return, 51 atoms of its distribution, quantiles of it, or any quantile that is asked for."""
    num_atoms: Annotated[int, Range(2, 1001)] = 51
    """c51: atoms of the distribution."""
    v_max: float = 10.0
    """c51: return of the last atom."""
    v_min: float | None = None
    """c51: return of the first atom; None: the negative of --v-max."""
    num_quantiles: Annotated[int, Range(1, 1000)] = 64
    """qr: quantiles of the return."""
    num_tau_samples: Annotated[int, Range(1, 1000)] = 64
    """iqn: fractions drawn for the prediction."""
    num_target_tau_samples: Annotated[int, Range(1, 1000)] = 64
    """iqn: fractions drawn for the target."""
    num_policy_tau_samples: Annotated[int, Range(1, 1000)] = 32
    """iqn: evenly spaced fractions whose mean is an action's value."""
    cosine_embedding_dim: Count = 64
    """iqn: numbers that embed a fraction."""

    # --- learning --------------------------------------------------------------------------------------------------
    double: bool = False
    """The online network chooses the action that the target network values."""
    n_step: Annotated[int, Range(1, 100)] = 10
    """Steps of the return before it bootstraps."""
    gamma: Fraction = 0.99
    """Discount of one agent step."""
    n_step_start: Annotated[int | None, Range(1, 100)] = None
    """Steps of the return at first, and after a reset; from there to --n-step. None: --n-step at once."""
    gamma_start: Annotated[float | None, Range(0, 1)] = None
    """Discount at first, and after a reset; from there to --gamma. None: --gamma at once."""
    n_step_gamma_anneal_updates: Count = 10_000
    """Updates from these starts to --n-step and --gamma."""
    munchausen: bool = False
    """Add the policy's own log-probability of the action to the reward; the target follows a soft policy."""
    munchausen_alpha: Fraction = 0.9
    """Factor on the log-probability that is added."""
    munchausen_tau: Positive = 0.03
    """Temperature of the soft policy."""
    munchausen_clip: Annotated[float, Range(high=0)] = -1.0
    """Least temperature * log-probability that is added."""
    clip_rewards: bool = True
    """Learn from the sign of a reward; scores are always reported raw."""
    terminal_on_life_loss: bool = False
    """A lost life ends the learner's episode, never the game."""
    batch_size: Count = 64
    """Transitions in an update."""
    train_every_steps: Count = 4
    """Agent steps for each update."""
    gradient_steps: Count = 1
    """Updates each time: with --train-every-steps 1, the replay ratio."""
    learning_starts: Annotated[int, Range(0)] = 5_000
    """Agent steps before the first update."""
    target_update_steps: Count = 2_000
    """Agent steps, not updates, after which the target network is renewed."""
    replay_capacity: Count = 200_000
    """Transitions in the replay, over all environments."""
    per_alpha: Fraction = 0.0
    """Draw transitions by this power of their last error; 0: all alike."""
    per_beta_start: Fraction = 0.4
    """Exponent of the weights that make up for it, at first."""
    per_beta_end: Fraction = 1.0
    """The same at the end of its rise."""
    per_beta_steps: Count = 1_000_000
    """Agent steps over which it rises, linearly."""
    reset_every_updates: Annotated[int, Range(0)] = 0
    """Updates after which heads are made anew and the eye is shaken; 0: never."""
    reset_perturb_factor: Fraction = 0.5
    """How far a reset moves the eye towards fresh weights."""
    reset_until_updates: OptionalCount = None
    """Updates after which nothing is reset any more; None: to the end."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam, or the centred RMSProp of the 2015 paper."""
    optimizer_epsilon: Positive = 1e-5
    """What the optimiser adds where it divides: to Adam's root, under RMSProp's."""
    max_grad_norm: Annotated[float | None, Range(0, low_open=True)] = 10.0
    """Norm to which gradients are clipped; None: not clipped."""

    # --- exploration -----------------------------------------------------------------------------------------------
    epsilon_start: Fraction = 1.0
    """Probability of a random action at the start."""
    epsilon_end: Fraction = 0.01
    """Probability of a random action after the decline."""
    epsilon_decay_steps: Count = 50_000
    """Agent steps over which it declines, linearly."""
    epsilon_off_after_steps: OptionalCount = None
    """Agent steps after which no action is random any more; None: never."""

    # --- keeping ---------------------------------------------------------------------------------------------------
    save_replay: bool = True
    """Keep the replay in files, so that a killed run resumes with it; otherwise it is lost with the process."""

    @property
    def value_range(self) -> tuple[float, float]:
        """Returns of the first and the last atom of C51."""
        return (-self.v_max if self.v_min is None else self.v_min, self.v_max)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Tuned here to learn Pong soonest by the clock; docs/LOG.md has what was tried.
    "fast": {"final_learning_rate": 1e-4},
    **PAPER_PRESETS,
}


def refuse_contradictions(config: Config) -> None:
    """Every part goes with every other one, but for those that mean nothing together.

    Raises:
        UserError: naming two of them.
    """
    v_min, v_max = config.value_range
    if v_min >= v_max:
        raise UserError(
            f"--v-max {v_max:g} must be above --v-min, which is {v_min:g} (by default the negative of --v-max)."
        )
    if config.munchausen and config.double:
        raise UserError(
            "--munchausen and --double cannot go together: double learning chooses the one action that the target "
            "values, and Munchausen's target follows a soft policy over all of them; leave one of the two out."
        )
    if config.final_learning_rate is not None and config.optimizer == "rmsprop":
        raise UserError(
            "--final-learning-rate and --optimizer rmsprop cannot go together: the paper's optimiser keeps its step "
            "size; leave one of the two out."
        )
    for name, given in (("spectral_norm", config.spectral_norm), ("pool_size", config.pool_size > 0)):
        if given and config.backbone != "impala":
            raise UserError(
                f"{flag(name)} belongs to the residual network, and --backbone {config.backbone} has no such blocks: "
                f"pass --backbone impala, or leave it out."
            )


KIND = "dqn"


# What may differ when a run goes on; everything else would make it another run.
CHANGEABLE = {"resume", "quiet", "total_steps", "stop_at_return", "eval_episodes", "capture_video"}


def read_config(argv: Sequence[str] | None = None, description: str = "") -> Config:
    """The config of the command line; with --resume, the run's own, which the command line must not contradict.

    Raises:
        UserError: as `core.run_config.configure`; settings that contradict each other.
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
    refuse_contradictions(config)
    return config


def default_name(config: Config) -> str:
    """dqn-Pong-v5-fast-1 for ALE/Pong-v5, preset fast, seed 1."""
    return f"{KIND}-{config.env.split('/')[-1]}-{config.preset}-{config.seed}"
