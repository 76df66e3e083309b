"""Config fields and presets of DQN.

The same object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one
action in one environment, which is four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from zerokara.agents.configs import names
from zerokara.agents.configs.actors import check_actors
from zerokara.agents.configs.arcade import ARCADE
from zerokara.agents.configs.common import PADDED_BACKBONES, Count, Fraction, OptionalCount, Positive, Settings
from zerokara.agents.configs.presets import DEVIATIONS, PAPER_PRESETS
from zerokara.agents.configs.reading import read_agent_config
from zerokara.core.config import NamesOrPath, Range, UserError, flag, is_import_path


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Deep Q-learning from pixels."""

    RENAMED: ClassVar = names.RENAMED_DQN
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_DQN
    REQUIRES: ClassVar = names.REQUIRES_DQN
    GROUPS: ClassVar = names.GROUPS_DQN
    COMMON: ClassVar = names.COMMON_DQN
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES_DQN

    preset: str = "fast"
    """Named set of defaults for the other options."""

    # --- network ---------------------------------------------------------------------------------------------------
    backbone: Annotated[str, NamesOrPath(("nature", "nips", "der", "impala", "hadamax", "dcgan", "mlp"))] = "der"
    """Backbone, by its name in core.backbones. One of your own is file.py:Class (docs/backbones.md); mlp is for
    vectors (see --obs-type), dcgan is used without normalization layers."""
    pretrained_backbone: str = ""
    """Run folder or weights file from which the backbone is initialized; empty: random initialization."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the number of channels of the backbone."""
    hidden_units: Count = 256
    """Units of the hidden layer in the head; of each stream with --dueling."""
    dueling: bool = True
    """Use a dueling network: separate streams for state value and advantages."""
    backbone_gradient_scale: Fraction = 1.0
    """Factor on the gradient from the head into the backbone."""
    layer_norm: bool = False
    """Apply LayerNorm to the hidden layer."""
    weight_init: Literal["he", "torch", "xavier"] = "he"
    """Initial weights: he, torch (DeepMind's code) or xavier (Dopamine). he: He normal in the hidden layer, outputs
    near 0. torch: weights and biases uniform within 1 / sqrt(inputs). xavier: Xavier uniform, also in convolutions,
    biases 0. Noisy layers are always initialized as in their paper."""
    noisy: bool = False
    """Use noisy linear layers. Noise is resampled for every action and every update, and disabled in evaluation."""
    noisy_sigma_init: Positive = 0.5
    """Initial noise scale sigma_0 of noisy layers; a layer with p inputs starts with sigma_0 / sqrt(p)."""
    spectral_norm: bool = False
    """Apply spectral normalization to the residual convolutions (backbone impala)."""
    pool: Literal["max", "mean"] = "max"
    """Pooling of the last feature map (backbone impala): max, to --pool-size, or mean, to one pixel (Impoola)."""
    pool_size: Annotated[int, Range(0, 64)] = 0
    """Height and width to which the last feature map is max-pooled (backbone impala); 0: no pooling."""
    same_padding: bool = False
    """SAME padding of TensorFlow and Flax (backbones nature, nips, der), as in Dopamine's networks."""

    # --- head ------------------------------------------------------------------------------------------------------
    head: Literal["q", "c51", "qr", "iqn"] = "q"
    """Output per action: q (expected return), c51 (categorical distribution), qr (fixed quantiles) or iqn (implicit
    quantiles)."""
    num_atoms: Annotated[int, Range(2, 1001)] = 51
    """c51: number of atoms."""
    v_max: float = 10.0
    """c51: return of the last atom."""
    v_min: float | None = None
    """c51: return of the first atom; None: the negative of --v-max."""
    target_distribution: Literal["c51", "two_hot", "hl_gauss"] = "c51"
    """c51: distribution to learn. c51 projects that of the target network; two_hot and hl_gauss stand for its mean: the
    two atoms next to it, or a Gaussian around it."""
    hl_gauss_sigma: Positive = 0.75
    """c51, hl_gauss: standard deviation of the Gaussian, in distances of two atoms."""
    num_quantiles: Annotated[int, Range(1, 1000)] = 64
    """qr: number of quantiles."""
    num_tau_samples: Annotated[int, Range(1, 1000)] = 64
    """iqn: quantile fractions sampled for the online network (N in the paper)."""
    num_target_tau_samples: Annotated[int, Range(1, 1000)] = 64
    """iqn: quantile fractions sampled for the target network (N' in the paper)."""
    num_policy_tau_samples: Annotated[int, Range(1, 1000)] = 32
    """iqn: evenly spaced quantile fractions over which Q-values are averaged to select actions (K in the paper)."""
    cosine_embedding_dim: Count = 64
    """iqn: dimension of the cosine embedding of a quantile fraction."""
    cosine_embedding_first: Annotated[int, Range(0, 1)] = 0
    """iqn: first i in cos(pi i tau), 0 (paper) or 1 (DQN Zoo, Dopamine)."""

    # --- algorithm -------------------------------------------------------------------------------------------------
    double: bool = False
    """Double Q-learning: the online network selects the next action, the target network evaluates it."""
    loss: Literal["huber", "huber_after_weight", "mse"] = "huber"
    """Loss of head q. huber_after_weight clips the TD error times the weight of prioritized replay, as DQN Zoo does;
    huber clips the TD error alone. mse is the squared error without the factor 1/2, as in Dopamine."""
    n_step: Annotated[int, Range(1, 100)] = 10
    """Number of steps of the n-step return before bootstrapping."""
    gamma: Fraction = 0.99
    """Discount factor per agent step."""
    n_step_start: Annotated[int | None, Range(1, 100)] = None
    """Value of n at the start and after each reset, annealed to --n-step; None: constant --n-step."""
    gamma_start: Annotated[float | None, Range(0, 1)] = None
    """Discount factor at the start and after each reset, annealed to --gamma; None: constant --gamma."""
    n_step_gamma_anneal_updates: Count = 10_000
    """Updates over which n and the discount factor are annealed to --n-step and --gamma."""
    munchausen: bool = False
    """Munchausen DQN: add the scaled log-probability of the action to the reward and use a soft target policy."""
    munchausen_alpha: Fraction = 0.9
    """Munchausen: factor on the log-probability (alpha in the paper)."""
    munchausen_tau: Positive = 0.03
    """Munchausen: temperature of the softmax policy (tau in the paper)."""
    munchausen_clip: Annotated[float, Range(high=0)] = -1.0
    """Munchausen: lower bound of tau * log-probability (l_0 in the paper)."""
    clip_rewards: bool = True
    """Train on the sign of the reward; logged returns are always raw."""
    terminal_on_life_loss: bool = False
    """Treat the loss of a life as terminal in the return; the environment is not reset."""
    batch_size: Count = 64
    """Transitions per update."""
    train_every_steps: Count = 4
    """Agent steps between updates."""
    gradient_steps: Count = 1
    """Updates every --train-every-steps; with --train-every-steps 1 this is the replay ratio."""
    learning_starts: Annotated[int, Range(0)] = 5_000
    """Agent steps before the first update."""
    target_update_steps: Count = 2_000
    """Agent steps (not updates) between two updates of the target network from the online network; by default 1 if
    --target-tau is below 1."""
    target_tau: Annotated[float, Range(0, 1, low_open=True)] = 1.0
    """Weight of the online network in an update of the target network: 1 copies it, a smaller value averages (Polyak
    averaging), such as 0.005."""
    random_shift: Annotated[int, Range(0, 32)] = 0
    """Maximum shift of the images of a batch in pixels, at random and with repeated edges (DrQ, 4 in its paper); 0: no
    shift."""
    spr_weight: Annotated[float, Range(0)] = 0.0
    """Factor on the loss of self-predictive representations (SPR, 2 in its paper), of which the target network is the
    target encoder: by default --target-tau 0.005 and --random-shift 4 then. 0: no such loss."""
    spr_steps: Annotated[int, Range(1, 50)] = 5
    """Observations ahead that SPR predicts (K in its paper)."""
    replay_capacity: Count = 200_000
    """Capacity of the replay buffer in transitions, summed over all environments."""
    per_alpha: Fraction = 0.0
    """Prioritized replay: exponent of the priorities; 0: uniform sampling."""
    per_beta_start: Fraction = 0.4
    """Prioritized replay: initial exponent of the importance-sampling weights."""
    per_beta_end: Fraction = 1.0
    """Prioritized replay: final exponent of the importance-sampling weights."""
    per_beta_steps: Count = 1_000_000
    """Prioritized replay: agent steps over which beta changes linearly from --per-beta-start to --per-beta-end."""
    per_beta_begins: Literal["start", "learning_starts"] = "start"
    """Prioritized replay: step at which beta begins to change. start is step 0; learning_starts is --learning-starts,
    as in DQN Zoo."""
    per_priority: Literal["kl", "cross_entropy"] = "kl"
    """Prioritized replay with c51: priority of a transition. kl is the KL divergence, as in Rainbow's paper, rlpyt and
    the code of SPR; cross_entropy is the loss itself, as in DQN Zoo, Dopamine and Kaixhin's code. They differ by the
    entropy of the target, and the gradient of the loss is the same."""
    per_uniform_fraction: Fraction = 0.0
    """Prioritized replay: fraction of samples drawn uniformly; 0.001 in DQN Zoo."""
    reset_every_updates: Annotated[int, Range(0)] = 0
    """Updates between resets, which reinitialize the head and perturb the backbone and the transition model of SPR
    (shrink and perturb); 0: never."""
    reset_perturb_factor: Fraction = 0.5
    """Weight of newly initialized parameters when a reset interpolates: 0 keeps the old ones, 1 replaces them."""
    reset_until_updates: OptionalCount = None
    """Updates after which there are no more resets; None: resets until the end."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimizer: adam, or the centered RMSProp of the 2015 paper."""
    optimizer_epsilon: Positive = 1e-5
    """Epsilon of the optimizer: added to the square root in Adam, under the square root in RMSProp."""
    weight_decay: Annotated[float, Range(0)] = 0.0
    """Decoupled weight decay (AdamW) of matrices and filters, not of biases and gains; 0: none."""
    max_grad_norm: Annotated[float | None, Range(0, low_open=True)] = 10.0
    """Maximum norm for gradient clipping; None: no clipping."""

    # --- exploration -----------------------------------------------------------------------------------------------
    epsilon_start: Fraction = 1.0
    """Initial probability of a random action."""
    epsilon_end: Fraction = 0.01
    """Final probability of a random action."""
    epsilon_decay_steps: Count = 50_000
    """Agent steps over which epsilon decays from --epsilon-start to --epsilon-end; see --epsilon-schedule."""
    epsilon_decay_begins: Literal["start", "learning_starts"] = "start"
    """Step at which epsilon begins to decay. start is step 0; learning_starts is --learning-starts, as in DeepMind's
    code and Dopamine."""
    epsilon_schedule: Literal["linear", "exponential"] = "linear"
    """Decay of epsilon. With exponential, --epsilon-decay-steps is the time constant: the distance to --epsilon-end is
    divided by e in each of these periods."""
    epsilon_off_after_steps: OptionalCount = None
    """Agent steps after which epsilon is 0; None: epsilon stays at --epsilon-end."""

    # --- actors ----------------------------------------------------------------------------------------------------
    actors: Annotated[int, Range(0, 10_000)] = 0
    """Actor processes (Ray) that fill the replay buffer; 0: this process acts. Each has --num-envs environments."""
    actor_steps: Count = 8
    """Steps of each of its environments that an actor sends at once."""
    actor_epsilon: Fraction = 0.4
    """Largest epsilon of the actors' environments. As in Ape-X, environment i of the N of all actors has this to the
    power of 1 + i / (N - 1) * --actor-epsilon-alpha."""
    actor_epsilon_alpha: Annotated[float, Range(0)] = 7.0
    """Range of these epsilons: the smallest is --actor-epsilon ^ (1 + this)."""
    actor_cpus: Positive = 1.0
    """CPUs that Ray reserves for an actor."""
    actor_timeout: Annotated[float, Range(0)] = 600.0
    """Seconds for a chunk of steps, at the beginning also for the actor's start, after which an actor counts as hanging
    and is replaced; 0: never."""
    max_replay_ratio: Annotated[float | None, Range(0, low_open=True)] = None
    """Maximum number of updates per agent step, at which the learner waits; None: --gradient-steps divided by
    --train-every-steps."""
    min_replay_ratio: Annotated[float | None, Range(0)] = None
    """Minimum number of updates per agent step, below which the actors wait; None: as --max-replay-ratio. With 0 they
    never wait."""
    max_staleness: Count = 2_000
    """Updates after which an actor's weights are too old. Its steps are then not learned from."""
    ray_address: str = ""
    """Ray cluster: auto or host:port; empty: Ray is started on this machine."""

    # --- checkpoints -----------------------------------------------------------------------------------------------
    save_replay: bool = True
    """Store the replay buffer in files of the run folder, so that a killed run resumes with it; otherwise it is in
    memory only and lost when the process ends."""
    delete_replay: bool = True
    """Delete these files when the run has finished. If it is resumed for more steps, the buffer is filled again."""

    @property
    def deviations(self) -> Sequence[str]:
        """Differences between the preset and its paper or its published code."""
        return DEVIATIONS.get(self.preset, ())

    @property
    def total_envs(self) -> int:
        """Environments of all processes or actors."""
        return self.num_envs * max(1, self.actors)

    @property
    def value_range(self) -> tuple[float, float]:
        """Returns (v_min, v_max) of the first and the last atom of C51."""
        return (-self.v_max if self.v_min is None else self.v_min, self.v_max)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Tuned for the shortest wall-clock time to solve Pong; docs/LOG.md lists what was tried.
    "fast": {"final_learning_rate": 1e-4},
    **PAPER_PRESETS,
}


def refuse_contradictions(config: Config) -> None:
    """Check for settings that cannot be combined.

    Raises:
        UserError: two settings contradict each other; the message names both.
    """
    v_min, v_max = config.value_range
    if v_min >= v_max:
        raise UserError(
            f"--v-max {v_max:g} must be above --v-min, which is {v_min:g} (by default the negative of --v-max)."
        )
    if config.munchausen and config.double:
        raise UserError(
            "--munchausen and --double cannot be combined: double Q-learning selects a single next action, while the "
            "Munchausen target averages over all actions with a soft policy; leave one of the two out."
        )
    if config.final_learning_rate is not None and config.optimizer == "rmsprop":
        raise UserError(
            "--final-learning-rate and --optimizer rmsprop cannot be combined: the RMSProp of the 2015 paper has a "
            "constant learning rate; leave one of the two out."
        )
    if config.same_padding and config.backbone not in PADDED_BACKBONES:
        raise UserError(
            f"--same-padding is an option of the backbones nature, nips and der, not of --backbone {config.backbone}: "
            f"choose one of them, or leave --same-padding out."
        )
    for name, given in (
        ("spectral_norm", config.spectral_norm),
        ("pool", config.pool != "max"),
        ("pool_size", config.pool_size > 0),
    ):
        if given and config.backbone != "impala":
            raise UserError(
                f"{flag(name)} is an option of --backbone impala, not of --backbone {config.backbone}: pass --backbone "
                f"impala, or leave {flag(name)} out."
            )
    if config.spr_weight:
        check_self_prediction(config)
    if config.actors:
        check_actors(config)


def check_self_prediction(config: Config) -> None:
    """Check the settings of a run with SPR.

    Raises:
        UserError: a setting cannot be combined with it.
    """
    for refused, given, instead in (
        (config.target_tau == 1, "--target-tau 1", "its target encoder is an average: give a value below 1"),
        (is_import_path(config.backbone), f"--backbone {config.backbone}", "it needs a feature map: choose a name"),
        (config.backbone == "mlp", "--backbone mlp", "it needs a feature map: choose a convolutional backbone"),
        (config.actors > 0, "--actors", "actors send no sequences: leave one of the two out"),
    ):
        if refused:
            raise UserError(f"--spr-weight and {given} cannot be combined, because {instead}.")


KIND = "dqn"


def read_config(argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read the config from the command line; with --resume, from the run folder.

    Raises:
        UserError: as in `core.run_config.configure`; two settings contradict each other; with --resume, a flag
            contradicts the config of the run.
    """
    config = read_agent_config(Config, PRESETS, argv, description, KIND, ARCADE)
    refuse_contradictions(config)
    return config
