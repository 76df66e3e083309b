"""The fields of a DQN run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Steps are agent steps: one action in
one environment, four frames of an Atari game. Updates are gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from core.compute import Precision, Switch
from core.config import Range

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
    layer_norm: bool = False
    """Normalise the hidden layer."""

    # --- learning --------------------------------------------------------------------------------------------------
    double: bool = False
    """The online network chooses the action that the target network values."""
    n_step: Annotated[int, Range(1, 100)] = 5
    """Steps of the return before it bootstraps."""
    gamma: Fraction = 0.99
    """Discount of one agent step."""
    reward_clip: bool = True
    """Learn from the sign of a reward; scores are always reported raw."""
    life_loss_ends: bool = False
    """A lost life ends the learner's episode, never the game."""
    batch_size: Count = 64
    """Transitions in an update."""
    train_every_steps: Count = 4
    """Agent steps for each update."""
    warmup_steps: Annotated[int, Range(0)] = 5_000
    """Agent steps before the first update."""
    target_every_steps: Count = 2_000
    """Agent steps, not updates, after which the target network is renewed."""
    replay_capacity: Count = 200_000
    """Transitions in the replay, over all environments."""
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

    # --- evaluation ------------------------------------------------------------------------------------------------
    eval_every_steps: Annotated[int, Range(0)] = 200_000
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
    # Mnih et al. 2015, extended data table 1 and Methods. Frames there are agent steps here, but for the last two.
    "nature": {
        "steps": 50_000_000,
        "num_envs": 1,
        "protocol": "nature",
        "backbone": "nature",
        "hidden_units": 512,
        "dueling": False,
        "double": False,
        "n_step": 1,
        "life_loss_ends": True,
        "batch_size": 32,
        "train_every_steps": 4,
        "warmup_steps": 50_000,
        "target_every_steps": 10_000,
        "replay_capacity": 1_000_000,
        "optimizer": "rmsprop",
        "learning_rate": 2.5e-4,
        "optimizer_epsilon": 0.01,
        "max_grad_norm": None,
        "epsilon_end": 0.1,
        "epsilon_steps": 1_000_000,
        "eval_every_steps": 250_000,
        "eval_epsilon": 0.05,
        "eval_max_steps": 4_500,
    },
    # Dopamine's dqn.gin of today (Castro et al. 2018), after Machado et al. 2018 for the environment.
    "dopamine": {
        "steps": 50_000_000,
        "num_envs": 1,
        "protocol": "machado",
        "backbone": "nature",
        "hidden_units": 512,
        "dueling": False,
        "double": False,
        "n_step": 1,
        "batch_size": 32,
        "train_every_steps": 4,
        "warmup_steps": 20_000,
        "target_every_steps": 8_000,
        "replay_capacity": 1_000_000,
        "learning_rate": 6.25e-5,
        "optimizer_epsilon": 1.5e-4,
        "max_grad_norm": None,
        "epsilon_steps": 250_000,
        "eval_every_steps": 250_000,
        "eval_max_steps": 27_000,
    },
}
