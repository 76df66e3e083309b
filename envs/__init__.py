"""Everything that can be played, through one door: `make("ALE/Pong-v5", 8)`.

Whatever is made gives the same: batches of uint8 pixels and explicit endings (envs/base.py). Importing this package
registers the arcade games with Gymnasium, so that `gymnasium.make("zerokara/Catch-v0")` works in any program.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from zerokara.core.config import UserError
from zerokara.envs import arcade
from zerokara.envs.base import Step, VectorEnv

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

__all__ = ["PROTOCOLS", "Step", "VectorEnv", "make"]

arcade.register()

# Mnih et al. 2015, extended data table 1 and Methods: up to 30 no-ops, the game's own actions. Games of 5 minutes
# there, but 30 minutes (108,000 frames) in nearly everything that was compared with it since.
_NATURE: Mapping[str, Any] = MappingProxyType(
    {
        "repeat_action_probability": 0.0,
        "noop_max": 30,
        "fire_reset": False,
        "frame_skip": 4,
        "full_action_space": False,
        "max_episode_frames": 108_000,
    }
)
PROTOCOLS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "nature": _NATURE,
        # Kaiser et al. 2020, "Model-Based Reinforcement Learning for Atari": as above, and 100,000 steps of training.
        "100k": _NATURE,
        # Machado et al. 2018, section 5: sticky actions in place of no-ops. The game's own actions and 4 frames, as
        # Dopamine and Gymnasium's v5 ids have it; the paper itself has all 18 actions and 5 frames.
        "machado": MappingProxyType(
            {
                "repeat_action_probability": 0.25,
                "noop_max": 0,
                "fire_reset": False,
                "frame_skip": 4,
                "full_action_space": False,
                "max_episode_frames": 108_000,
            }
        ),
    }
)
"""Name -> Atari settings. Another environment keeps its own rules: each frame is a step, and its own time limit."""

# Settings of any environment, then those that only Atari has: name -> (type, lowest, highest).
_RANGES: Mapping[str, tuple[type, float, float]] = {
    "frame_stack": (int, 1, 32),
    "size": (int, 16, 1024),
    "grayscale": (bool, False, True),
    "frame_skip": (int, 1, 1_000),
    "max_episode_frames": (int, 0, 10**9),
    "repeat_action_probability": (float, 0, 1),
    "noop_max": (int, 0, 10_000),
    "fire_reset": (bool, False, True),
    "full_action_space": (bool, False, True),
    "reseed_every_steps": (int, 0, 10**9),
}
_ATARI_ONLY = ("repeat_action_probability", "noop_max", "fire_reset", "full_action_space", "reseed_every_steps")
_LOOK: Mapping[str, Any] = {"frame_stack": 4, "size": 84, "grayscale": True}


def make(
    id: str,
    num_envs: int,
    *,
    protocol: str = "nature",
    render: bool = False,
    num_threads: int = 0,
    **settings: Any,
) -> VectorEnv:
    """N copies of the environment with this id.

    Args:
        id: `ALE/Pong-v5` and every other game of ale-py, `zerokara/Catch-v0` and the other arcade games, or any id that
            Gymnasium knows (`module:id` imports a module that registers it).
        num_envs: N.
        protocol: of Atari games, a key of PROTOCOLS.
        render: whether `render()` is wanted; Atari is slower with it.
        num_threads: threads of Atari's emulators; 0: one for each core.
        settings: override the protocol (`repeat_action_probability`, `noop_max` frames, `fire_reset`, `frame_skip`,
            `full_action_space`, `max_episode_frames`, 0 for no limit but in Atari; `reseed_every_steps`, see
            envs/atari.py) and the look of observations (`frame_stack` frames, `size` pixels, `grayscale`). None stands
            for the default.

    What is in force stands in `env.settings`. Frames of the time limit are rounded down to whole steps.

    Raises:
        UserError: an unknown id, protocol or setting, a value out of range, or an environment that cannot be used here.
    """
    given = _checked(settings)
    _check("num_envs", num_envs, (int, 1, 100_000))
    _check("num_threads", num_threads, (int, 0, 4_096))
    if protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if id in arcade.GAMES:
        return _make_arcade(id, num_envs, given)

    spec = _spec(id)
    from zerokara.envs import atari
    from zerokara.envs.gymnasium import gymnasium_env

    if not atari.is_atari(spec):
        _refuse_atari_settings(id, given)
        in_force = _in_whole_steps(id, {**_LOOK, "frame_skip": 1, "max_episode_frames": 0, **given})
        return gymnasium_env(spec.id, num_envs, in_force, render=render)
    in_force = {"protocol": protocol, **PROTOCOLS[protocol], **_LOOK, "reseed_every_steps": 0, **given}
    if in_force["max_episode_frames"] == 0:
        raise UserError(f"max_episode_frames of {id} must be at least frame_skip, got 0: ALE has a limit always.")
    in_force = _in_whole_steps(id, in_force)
    if render:
        return atari.rendered_atari(spec, num_envs, in_force)
    return atari.AtariVectorEnv(spec, num_envs, in_force, num_threads=num_threads)


def _in_whole_steps(id: str, in_force: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a time limit of whole steps: a step that a limit cut in the middle would look like no other."""
    frames, skip = in_force["max_episode_frames"], in_force["frame_skip"]
    if 0 < frames < skip:
        raise UserError(f"max_episode_frames of {id} must be at least frame_skip, which is {skip}, got {frames}.")
    return {**in_force, "max_episode_frames": frames - frames % skip}


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, without those that are None."""
    for name in settings:
        if name not in _RANGES:
            near = difflib.get_close_matches(name, _RANGES, n=1, cutoff=0.5)
            raise UserError(
                f"there is no environment setting {name!r}"
                + (f"; did you mean {near[0]}?" if near else f": expected one of {', '.join(_RANGES)}.")
            )
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        _check(name, value, _RANGES[name])
    return given


def _check(name: str, value: object, bounds: tuple[type, float, float]) -> None:
    kind, low, high = bounds
    # A bool is an int to Python, and an int may stand for a float, but not to a reader.
    right = type(value) is kind or (kind is float and type(value) is int)
    if not right:
        raise UserError(f"{name} must be {_KINDS[kind]}, got {value!r}.")
    assert isinstance(value, (int, float))
    if not low <= value <= high:  # also where it is not a number
        raise UserError(f"{name} must be from {low} to {high}, got {value}.")


_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}


def _refuse_atari_settings(id: str, given: Mapping[str, Any]) -> None:
    for name in _ATARI_ONLY:
        if name in given:
            raise UserError(f"{name} is a setting of Atari games, and {id} is none: leave it out.")


def _make_arcade(id: str, num_envs: int, given: Mapping[str, Any]) -> VectorEnv:
    _refuse_atari_settings(id, given)
    fixed = {"size": 84, "frame_skip": 1, "max_episode_frames": 0}  # 0: the game's own limit
    for name, value in fixed.items():
        if given.get(name, value) != value:
            raise UserError(f"{name} of {id} is {value} and cannot be {given[name]}: leave it out.")
    return arcade.make(id, num_envs, frame_stack=given.get("frame_stack", 4), grayscale=given.get("grayscale", True))


def _spec(id: str) -> EnvSpec:
    """The entry of Gymnasium's registry.

    Raises:
        UserError: there is none, or the module in `module:id` cannot be imported.
    """
    import ale_py  # noqa: F401  (registers its games)
    import gymnasium

    module, colon, name = id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"{module} in {id!r} cannot be imported ({error}): install it with pip.") from error
    if name not in gymnasium.registry:
        near = _nearest(name, list(gymnasium.registry))
        raise UserError(f"there is no environment {name!r}: did you mean {' or '.join(near)}?")
    return gymnasium.registry[name]


def _nearest(id: str, known: list[str]) -> list[str]:
    """Up to three known ids like this one. `pong` finds ALE/Pong-v5: namespace, version and case count for less."""

    def parts(name: str) -> tuple[str, str, int]:
        namespace, _, rest = name.rpartition("/")
        bare, _, version = rest.partition("-v")
        return namespace, bare.lower(), int(version) if version.isdecimal() else -1

    def rank(name: str) -> tuple[int, int]:
        namespace, _, version = parts(name)
        return ["zerokara", "ALE", "", namespace].index(namespace), -version

    by_bare: dict[str, str] = {}
    for name in sorted(known, key=rank):
        by_bare.setdefault(parts(name)[1], name)
    bare = parts(id)[1]
    if bare in by_bare:
        return [by_bare[bare]]
    alike = [by_bare[name] for name in difflib.get_close_matches(bare, by_bare, n=3, cutoff=0.6)]
    return alike or ["zerokara/Catch-v0", "ALE/Pong-v5"]
