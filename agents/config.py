"""The fields of a DQN run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one action in
one environment, four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from agents.presets import FAMILY
from core.compute import Precision, Switch
from core.config import Range, UserError, flag

Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int | None, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Deep Q-learning from pixels."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    env: str = "ALE/Pong-v5"
    """Environment: ALE/<Game>-v5, zerokara/<Game>-v0, or any Gymnasium id with pixels or a picture to render."""
    name: str = ""
    """Folder under runs/; empty: made of environment, preset and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    steps: Count = 1_000_000
    """Length of the run, in agent steps over all environments."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the environment -------------------------------------------------------------------------------------------
    num_envs: Count = 16
    """Environments stepped together."""
    protocol: Literal["nature", "machado"] = "nature"
    """Atari settings that the next fields leave open: nature (no-op starts) or machado (sticky actions)."""
    sticky: Annotated[float | None, Range(0, 1)] = None
    """Probability that the emulator repeats the previous action; None: the protocol's."""
    noop_max: OptionalCount = None
    """At most so many actions of doing nothing begin an episode; None: the protocol's."""
    fire_reset: bool | None = None
    """Press fire at the start of games that wait for it; None: the protocol's."""
    frame_skip: Annotated[int | None, Range(1)] = None
    """Frames for which an action is held; None: the protocol's."""
    full_action_set: bool | None = None
    """All 18 actions of the console in place of the game's own; None: the protocol's."""
    max_episode_frames: Annotated[int | None, Range(1)] = None
    """Frames after which an episode is truncated; None: the protocol's."""
    stack: Annotated[int, Range(1, 16)] = 4
    """Frames that make an observation."""
    image_size: Annotated[int, Range(16, 512)] = 84
    """Height and width of a frame, in pixels."""
    grey: bool = True
    """Grey frames; with --no-grey, RGB."""

    # --- the network -----------------------------------------------------------------------------------------------
    backbone: Literal["nature", "nips", "der", "impala"] = "der"
    """The eye, by its name in core.backbones."""
    width: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the backbone's channels."""
    hidden_units: Count = 256
    """Units of the head's hidden layer, in each stream if dueling."""
    dueling: bool = True
    """Separate streams for the state's value and the actions' advantages."""
    stream_gradient: Fraction = 1.0
    """Factor on the gradient that flows from the head into the eye."""
    layer_norm: bool = False
    """Normalise the hidden layer."""
    noisy: bool = False
    """Linear layers with learnt noise, drawn anew for every act and every update, none in evaluation."""
    noisy_sigma: Positive = 0.5
    """Size of the noise at first, before it is divided by the root of a layer's inputs."""
    spectral_norm: bool = False
    """Divide the weights of residual convolutions by their largest singular value (backbone impala)."""
    pool_size: Annotated[int, Range(0, 64)] = 0
    """Height and width to which the eye's last map is max-pooled (backbone impala); 0: as it is."""

    # --- what is learnt of an action -------------------------------------------------------------------------------
    head: Literal["q", "c51", "qr", "iqn"] = "q"
    """Expected return, 51 atoms of its distribution, quantiles of it, or any quantile that is asked for."""
    atoms: Annotated[int, Range(2, 1001)] = 51
    """c51: atoms of the distribution."""
    atom_limit: Positive = 10.0
    """c51: the atoms lie between this return and its negative."""
    quantiles: Annotated[int, Range(1, 1000)] = 64
    """qr: quantiles; iqn: fractions drawn for the prediction."""
    target_quantiles: Annotated[int, Range(1, 1000)] = 64
    """iqn: fractions drawn for the target."""
    policy_quantiles: Annotated[int, Range(1, 1000)] = 32
    """iqn: evenly spaced fractions whose mean is an action's value."""
    cosines: Count = 64
    """iqn: numbers that embed a fraction."""

    # --- learning --------------------------------------------------------------------------------------------------
    double: bool = False
    """The online network chooses the action that the target network values."""
    n_step: Annotated[int, Range(1, 100)] = 5
    """Steps of the return before it bootstraps."""
    gamma: Fraction = 0.99
    """Discount of one agent step."""
    n_step_start: Annotated[int | None, Range(1, 100)] = None
    """Steps of the return at first, and after a reset; from there to --n-step. None: --n-step at once."""
    gamma_start: Annotated[float | None, Range(0, 1)] = None
    """Discount at first, and after a reset; from there to --gamma. None: --gamma at once."""
    anneal_updates: Count = 10_000
    """Updates from these starts to --n-step and --gamma."""
    munchausen: bool = False
    """Add the policy's own log-probability of the action to the reward; the target follows a soft policy."""
    munchausen_scale: Fraction = 0.9
    """Factor on the log-probability that is added."""
    munchausen_temperature: Positive = 0.03
    """Temperature of the soft policy."""
    munchausen_floor: Annotated[float, Range(high=0)] = -1.0
    """Least temperature * log-probability that is added."""
    reward_clip: bool = True
    """Learn from the sign of a reward; scores are always reported raw."""
    life_loss_ends: bool = False
    """A lost life ends the learner's episode, never the game."""
    batch_size: Count = 128
    """Transitions in an update."""
    train_every_steps: Count = 8
    """Agent steps for each update."""
    updates_at_once: Count = 1
    """Updates each time: with --train-every-steps 1, the replay ratio."""
    warmup_steps: Annotated[int, Range(0)] = 5_000
    """Agent steps before the first update."""
    target_every_steps: Count = 2_000
    """Agent steps, not updates, after which the target network is renewed."""
    replay_capacity: Count = 200_000
    """Transitions in the replay, over all environments."""
    priority_exponent: Fraction = 0.0
    """Draw transitions by this power of their last error; 0: all alike."""
    priority_weight_start: Fraction = 0.4
    """Exponent of the weights that make up for it, at first."""
    priority_weight_end: Fraction = 1.0
    """The same at the end of its rise."""
    priority_weight_steps: Count = 1_000_000
    """Agent steps over which it rises, linearly."""
    reset_every_updates: Annotated[int, Range(0)] = 0
    """Updates after which heads are made anew and the eye is shaken; 0: never."""
    reset_eye_share: Fraction = 0.5
    """How far a reset moves the eye towards fresh weights."""
    reset_until_updates: OptionalCount = None
    """Updates after which nothing is reset any more; None: to the end."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam, or the centred RMSProp of the 2015 paper."""
    learning_rate: Positive = 2.5e-4
    """Step size of the optimiser."""
    optimizer_epsilon: Positive = 1e-5
    """What the optimiser adds where it divides: to Adam's root, under RMSProp's."""
    max_grad_norm: Annotated[float | None, Range(0, low_open=True)] = 10.0
    """Norm to which gradients are clipped; None: not clipped."""

    # --- exploration -----------------------------------------------------------------------------------------------
    epsilon_start: Fraction = 1.0
    """Probability of a random action at the start."""
    epsilon_end: Fraction = 0.01
    """Probability of a random action after the decline."""
    epsilon_steps: Count = 50_000
    """Agent steps over which it declines, linearly."""
    epsilon_until_steps: OptionalCount = None
    """Agent steps after which no action is random any more; None: never."""

    # --- evaluation ------------------------------------------------------------------------------------------------
    eval_every_steps: Annotated[int, Range(0)] = 100_000
    """Agent steps between evaluations; 0: none."""
    eval_episodes: Count = 30
    """Whole games of an evaluation, one per environment, so that short games do not count more often."""
    eval_epsilon: Fraction = 0.001
    """Probability of a random action in evaluation."""
    eval_max_steps: Count = 10_000
    """Agent steps after which a game under evaluation is cut and counts as it stands."""
    video: bool = True
    """Film a game at each evaluation."""
    stop_at_return: float | None = None
    """End the run when an evaluation reaches this mean raw return and fresh games confirm it; None: never."""

    # --- keeping ---------------------------------------------------------------------------------------------------
    log_every_steps: Count = 2_000
    """Agent steps between lines of metrics."""
    checkpoint_every_steps: Count = 10_000
    """Agent steps between checkpoints; as many slots more does the replay take, so that none overwrites the last."""
    keep_replay: bool = True
    """Keep the replay in files, so that a killed run resumes with it; otherwise it is lost with the process."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto: what a short measurement finds fastest."""
    compile: Switch = "auto"
    """Compile the update; auto: where a short measurement finds that it pays."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""

    def env_settings(self) -> dict[str, Any]:
        """What `envs.make` takes beside id and number: the protocol and everything that departs from it."""
        settings = {
            "sticky": self.sticky,
            "noop_max": self.noop_max,
            "fire_reset": self.fire_reset,
            "frame_skip": self.frame_skip,
            "full_action_set": self.full_action_set,
            "max_episode_frames": self.max_episode_frames,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return {"protocol": self.protocol, "stack": self.stack, "size": self.image_size, "grey": self.grey, **given}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Tuned here to learn Pong soonest by the clock; docs/LOG.md has what was tried.
    "fast": {},
    **FAMILY,
}


def refuse_contradictions(config: Config) -> None:
    """Every part goes with every other one, but for those that mean nothing together.

    Raises:
        UserError: naming two of them.
    """
    if config.munchausen and config.double:
        raise UserError(
            "--munchausen and --double cannot go together: double learning chooses the one action that the target "
            "values, and Munchausen's target follows a soft policy over all of them; leave one of the two out."
        )
    for name, given in (("spectral_norm", config.spectral_norm), ("pool_size", config.pool_size > 0)):
        if given and config.backbone != "impala":
            raise UserError(
                f"{flag(name)} belongs to the residual network, and --backbone {config.backbone} has no such blocks: "
                f"pass --backbone impala, or leave it out."
            )
