"""Config fields that all agents share: environment, evaluation, logging, checkpoints, hardware.

Steps are agent steps: one action in one environment, which is four frames of an Atari game.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from zerokara.agents.configs import names
from zerokara.core.choices import Switch
from zerokara.core.config import Range, UserError
from zerokara.core.run_options import RunOptions
from zerokara.core.tracking import OMITTED

# Fields that do not change learning: of the run folder and the output, then of the hardware.
OUTPUT_FIELDS = frozenset({*OMITTED, "capture_video", "delete_replay"})
HARDWARE_FIELDS = frozenset(
    {"device", "threads", "compile", "env_workers", "actor_cpus", "actor_timeout", "ray_address"}
)
PADDED_BACKBONES = ("nature", "nips", "der")  # they have the option --same-padding
# Settings that only Atari games have; None is the value of the protocol.
ATARI_FIELDS = ("repeat_action_probability", "noop_max", "fire_reset", "fire_after_life_loss", "full_action_space")

ProtocolName = Literal["nature", "machado", "100k"]
Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int | None, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Settings(RunOptions):
    """Settings of a training run that do not depend on the algorithm."""

    RENAMED: ClassVar = names.RENAMED
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    CHANGEABLE: ClassVar = frozenset(
        {
            "total_steps",
            "stop_at_return",
            "eval_episodes",
            "capture_video",
            "delete_replay",
            "env_errors",
            "env_workers",
            "actor_cpus",
            "actor_timeout",
            "ray_address",
        }
    )

    preset: str
    """Named set of defaults for the other options."""
    env: str = "ALE/Pong-v5"
    """Environment: ALE/<Game>-v5, zerokara/<Game>-v0, a Gymnasium id, module:id, module:Class or file.py:Class. It has
    images as observations or renders them, or has vectors (--backbone mlp)."""
    total_steps: Count = 1_000_000
    """Total agent steps of the run, summed over all environments."""

    # --- environment -----------------------------------------------------------------------------------------------
    num_envs: Count = 16
    """Number of parallel environments."""
    protocol: ProtocolName = "nature"
    """Default Atari settings: nature and 100k (no-op starts) or machado (sticky actions). If given on the command line,
    also sets how the run is evaluated (agents/configs/protocols.py)."""
    repeat_action_probability: Annotated[float | None, Range(0, 1)] = None
    """Probability that the emulator repeats the previous action (sticky actions); None: value of the protocol."""
    noop_max: OptionalCount = None
    """Maximum number of no-op actions at the start of an episode; None: value of the protocol."""
    fire_reset: bool | None = None
    """Press FIRE after a reset in games that require it to start; None: value of the protocol."""
    fire_after_life_loss: bool | None = None
    """Press FIRE after a lost life, too; None: value of the protocol. In the first step after it, the action is FIRE
    whatever the agent selects, in games that have this action."""
    frame_skip: Annotated[int | None, Range(1)] = None
    """Frames for which each action is repeated; None: value of the protocol."""
    full_action_space: bool | None = None
    """Use all 18 Atari actions instead of the game's minimal set; None: value of the protocol."""
    max_episode_frames: Annotated[int | None, Range(1)] = None
    """Frames after which an episode is truncated; None: value of the protocol."""
    frame_stack: Annotated[int, Range(1, 16)] = 4
    """Number of stacked frames in an observation."""
    image_size: Annotated[int, Range(16, 512)] = 84
    """Height and width of a frame, in pixels."""
    grayscale: bool = True
    """Convert frames to grayscale; with --no-grayscale, frames are RGB."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of a Gymnasium environment as name=value, such as continuous=False; values are Python literals or
    texts."""
    obs_type: Literal["image", "vector"] = "image"
    """Observations: images, or the numbers of the environment as a vector. With --backbone mlp it is vector, and with
    vector the defaults are --backbone mlp, --frame-stack 1 and --precision float32; of Atari games it is the RAM."""
    obs_key: str = ""
    """Key of the observation in a Dict; empty: the only image, or all numbers as one vector."""
    obs_range: tuple[float, ...] = ()
    """Values of black and white in the observations, such as 0 255; empty: as the environment declares them. Of
    vectors: numbers that are scaled to 0 and 1."""
    env_workers: Annotated[int, Range(0)] = 0
    """Worker processes among which Gymnasium environments are divided, for environments that are slow in Python; 0:
    they run in the process that trains."""
    env_errors: Literal["stop", "restart"] = "stop"
    """If a Gymnasium environment raises an exception in a step: stop the run, or truncate the episode and restart the
    environment. With restart, a resumed run also starts new episodes where the old ones cannot be repeated. An
    exception at the start of an episode stops the run."""

    # --- exploration -----------------------------------------------------------------------------------------------
    ez_greedy_zeta: Annotated[float | None, Range(1, low_open=True)] = None
    """Exponent of ez-greedy exploration: a random action is repeated for n steps with probability proportional to
    n^-zeta (the paper uses 2); None: plain epsilon-greedy."""

    # --- learning rate ---------------------------------------------------------------------------------------------
    learning_rate: Positive = 5e-4
    """Initial learning rate of the optimizer."""
    final_learning_rate: Annotated[float | None, Range(0, low_open=True)] = None
    """Learning rate after linear decay; None: constant --learning-rate."""
    learning_rate_decay_steps: Count = 500_000
    """Agent steps over which the learning rate decays to --final-learning-rate."""

    # --- evaluation ------------------------------------------------------------------------------------------------
    eval_every_steps: Annotated[int, Range(0)] = 200_000
    """Agent steps between evaluations; 0: no evaluation."""
    eval_episodes: Count = 30
    """Complete episodes per evaluation, one in each environment, so that short episodes are not overrepresented."""
    eval_epsilon: Fraction = 0.001
    """Probability of a random action during evaluation."""
    eval_max_steps: Count = 4_500
    """Agent steps after which an evaluation episode is cut; its return so far counts. The default is five minutes of
    Atari, as in the 2015 paper."""
    capture_video: bool = True
    """Record a video of one episode at each evaluation."""
    stop_at_return: float | None = None
    """Stop training when an evaluation reaches this mean raw return and a second one confirms it; None: never. When the
    last training episodes are near it, evaluations come every 40,000 steps."""

    # --- logging and checkpoints -----------------------------------------------------------------------------------
    log_every_steps: Count = 2_000
    """Agent steps between two log entries."""
    checkpoint_every_steps: Count = 10_000
    """Agent steps between checkpoints. The replay buffer allocates this many additional slots, so that new transitions
    do not overwrite those that the last checkpoint needs."""

    # --- hardware --------------------------------------------------------------------------------------------------
    compile: Switch = "auto"
    """Compile the update with torch.compile; auto: if a short benchmark at the start shows that it is faster."""

    @property
    def is_atari(self) -> bool:
        """True if the environment is a game of ALE, which alone has the settings `ATARI_FIELDS`."""
        return self.env.split(":")[-1].startswith("ALE/")

    @property
    def deviations(self) -> Sequence[str]:
        """Differences between the preset and its paper or its published code."""
        return ()

    @property
    def total_envs(self) -> int:
        """Environments of all processes."""
        return self.num_envs

    @property
    def frame_channels(self) -> int:
        """Channels of one frame."""
        return 1 if self.grayscale else 3

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an observation, if it is an image."""
        return (self.frame_stack * self.frame_channels, self.image_size, self.image_size)

    def with_protocol(self, protocol: ProtocolName) -> Self:
        """Return a copy with the environment settings of a protocol.

        Environments other than Atari have no protocols, so their config is returned unchanged. The action space is
        kept, since the network has one output for each action. What the run itself sets for the start of an episode and
        for lost lives (`noop_max`, `fire_reset`, `fire_after_life_loss`) is kept, too, as in a training with
        --protocol: an agent for which FIRE was pressed has not learned to press it.
        """
        if not self.is_atari:
            return self
        own: dict[str, Any] = dict.fromkeys(("repeat_action_probability", "frame_skip", "max_episode_frames"))
        return replace(self, protocol=protocol, **own)

    def env_settings(self) -> dict[str, Any]:
        """Keyword arguments of `envs.make`: the protocol, and all settings that override it."""
        settings: dict[str, Any] = {
            "repeat_action_probability": self.repeat_action_probability,
            "noop_max": self.noop_max,
            "fire_reset": self.fire_reset,
            "fire_after_life_loss": self.fire_after_life_loss,
            "frame_skip": self.frame_skip,
            "full_action_space": self.full_action_space,
            "max_episode_frames": self.max_episode_frames,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        images = {"size": self.image_size, "grayscale": self.grayscale}
        given |= images if self.obs_type == "image" else {"obs_type": self.obs_type}
        if self.env_kwargs:
            given["env_kwargs"] = parse_env_kwargs(self.env_kwargs)
        if self.obs_key:
            given["obs_key"] = self.obs_key
        if self.obs_range:
            given["obs_range"] = self.obs_range
        if self.env_workers:
            given["workers"] = self.env_workers
        if self.env_errors == "restart":
            given["restart_on_error"] = True
        return {
            "protocol": self.protocol,
            "frame_stack": self.frame_stack,
            **given,
        }


def parse_env_kwargs(words: Sequence[str]) -> dict[str, Any]:
    """Parse arguments of an environment: ("size=5", "continuous=False") gives {"size": 5, "continuous": False}.

    Raises:
        UserError: a word is not name=value.
    """
    kwargs: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise UserError(f"--env-kwargs cannot be {word!r}: write name=value, as in continuous=False.")
        try:
            kwargs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[name] = value
    return kwargs
