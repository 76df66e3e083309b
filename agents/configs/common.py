"""The fields that the configs of all agents have: the game, evaluation, what is kept, the machine.

Steps are agent steps: one action in one environment, four frames of an Atari game.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from zerokara.core.compute import Precision, Switch
from zerokara.core.config import Range

ProtocolName = Literal["nature", "machado", "100k"]
Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int | None, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an agent's run is, whatever it learns with."""

    preset: str
    """Named set of defaults for all that follows."""
    env: str = "ALE/Pong-v5"
    """Environment: ALE/<Game>-v5, zerokara/<Game>-v0, or any Gymnasium id with pixels or a picture to render."""
    name: str = ""
    """Folder under runs/; empty: made of environment, preset and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    total_steps: Count = 1_000_000
    """Length of the run, in agent steps over all environments."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the environment -------------------------------------------------------------------------------------------
    num_envs: Count = 16
    """Environments stepped together."""
    protocol: ProtocolName = "nature"
    """Atari settings that the next fields leave open: nature and 100k (no-op starts) or machado (sticky actions);
    where it is typed, also how the run is scored (agents/configs/protocols.py)."""
    repeat_action_probability: Annotated[float | None, Range(0, 1)] = None
    """Probability that the emulator repeats the previous action; None: the protocol's."""
    noop_max: OptionalCount = None
    """At most so many actions of doing nothing begin an episode; None: the protocol's."""
    fire_reset: bool | None = None
    """Press fire at the start of games that wait for it; None: the protocol's."""
    frame_skip: Annotated[int | None, Range(1)] = None
    """Frames for which an action is held; None: the protocol's."""
    full_action_space: bool | None = None
    """All 18 actions of the console in place of the game's own; None: the protocol's."""
    max_episode_frames: Annotated[int | None, Range(1)] = None
    """Frames after which an episode is truncated; None: the protocol's."""
    frame_stack: Annotated[int, Range(1, 16)] = 4
    """Frames that make an observation."""
    image_size: Annotated[int, Range(16, 512)] = 84
    """Height and width of a frame, in pixels."""
    grayscale: bool = True
    """Grey frames; with --no-grayscale, RGB."""

    # --- exploration -----------------------------------------------------------------------------------------------
    ez_greedy_zeta: Annotated[float | None, Range(1, low_open=True)] = None
    """Hold a random action for n steps, n^-zeta likely: 2 in the paper of temporally extended epsilon-greedy; None: for
    one step."""

    # --- the step size ---------------------------------------------------------------------------------------------
    learning_rate: Positive = 5e-4
    """Step size of the optimiser, at first."""
    final_learning_rate: Annotated[float | None, Range(0, low_open=True)] = None
    """Step size after a linear decline; None: --learning-rate throughout."""
    learning_rate_decay_steps: Count = 500_000
    """Agent steps over which it declines."""

    # --- evaluation ------------------------------------------------------------------------------------------------
    eval_every_steps: Annotated[int, Range(0)] = 200_000
    """Agent steps between evaluations; 0: none."""
    eval_episodes: Count = 30
    """Whole games of an evaluation, one per environment, so that short games do not count more often."""
    eval_epsilon: Fraction = 0.001
    """Probability of a random action in evaluation."""
    eval_max_steps: Count = 4_500
    """Agent steps after which a game under evaluation is cut and counts as it stands: five minutes of Atari, as in the
    2015 paper."""
    capture_video: bool = True
    """Film a game at each evaluation."""
    stop_at_return: float | None = None
    """End the run when an evaluation reaches this mean raw return and fresh games confirm it; None: never."""

    # --- keeping ---------------------------------------------------------------------------------------------------
    log_every_steps: Count = 2_000
    """Agent steps between lines of metrics."""
    checkpoint_every_steps: Count = 10_000
    """Agent steps between checkpoints; as many slots more does the replay take, so that none overwrites the last."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto: what a short measurement finds fastest."""
    compile: Switch = "auto"
    """Compile the update; auto: where a short measurement finds that it pays."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""

    def with_protocol(self, protocol: ProtocolName) -> Self:
        """The same with the games as a protocol has them: of Atari, for other games have no protocol but their own.

        The set of actions stays what the network was made for.
        """
        if not self.env.startswith("ALE/"):
            return self
        own: dict[str, Any] = dict.fromkeys(
            ("repeat_action_probability", "noop_max", "fire_reset", "frame_skip", "max_episode_frames")
        )
        return replace(self, protocol=protocol, **own)

    def env_settings(self) -> dict[str, Any]:
        """What `envs.make` takes beside id and number: the protocol and everything that departs from it."""
        settings = {
            "repeat_action_probability": self.repeat_action_probability,
            "noop_max": self.noop_max,
            "fire_reset": self.fire_reset,
            "frame_skip": self.frame_skip,
            "full_action_space": self.full_action_space,
            "max_episode_frames": self.max_episode_frames,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return {
            "protocol": self.protocol,
            "frame_stack": self.frame_stack,
            "size": self.image_size,
            "grayscale": self.grayscale,
            **given,
        }
