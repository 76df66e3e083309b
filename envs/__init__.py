"""Vectorized environments: `make("ALE/Pong-v5", 8)`.

Every environment has the same interface: batches of uint8 pixels or of vectors, and explicit endings (envs/base.py).
Importing this package registers the arcade games with Gymnasium, so that `gymnasium.make("zerokara/Catch-v0")` works in
any program.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from zerokara.core.config import UserError
from zerokara.envs import arcade
from zerokara.envs.base import Step, VectorEnv, closed_on_error

__all__ = ["PROTOCOLS", "Step", "VectorEnv", "closed_on_error", "make"]

arcade.register()

# Mnih et al. 2015, extended data table 1 and Methods: up to 30 no-ops, the minimal action set. The paper limits
# evaluation episodes to 5 minutes; nearly all later comparisons use 30 minutes (108,000 frames).
_NATURE: Mapping[str, Any] = MappingProxyType(
    {
        "repeat_action_probability": 0.0,
        "noop_max": 30,
        "fire_reset": False,
        "fire_after_life_loss": False,
        "frame_skip": 4,
        "full_action_space": False,
        "max_episode_frames": 108_000,
    }
)
PROTOCOLS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "nature": _NATURE,
        # Kaiser et al. 2020, "Model-Based Reinforcement Learning for Atari": as above, with 100,000 training steps.
        "100k": _NATURE,
        # Machado et al. 2018, section 5: sticky actions instead of no-ops. The minimal action set and a frame skip of
        # 4, as in Dopamine and Gymnasium's v5 ids; the paper itself uses all 18 actions and a frame skip of 5.
        "machado": MappingProxyType(
            {
                "repeat_action_probability": 0.25,
                "noop_max": 0,
                "fire_reset": False,
                "fire_after_life_loss": False,
                "frame_skip": 4,
                "full_action_space": False,
                "max_episode_frames": 108_000,
            }
        ),
    }
)
"""Protocol name -> Atari settings. Other environments ignore the protocol: no frame skip, and their own time limit."""

# Settings of all environments, then the settings of Atari alone: name -> (type, minimum, maximum).
_RANGES: Mapping[str, tuple[type, float, float]] = {
    "frame_stack": (int, 1, 32),
    "size": (int, 16, 1024),
    "grayscale": (bool, False, True),
    "frame_skip": (int, 1, 1_000),
    "max_episode_frames": (int, 0, 10**9),
    "repeat_action_probability": (float, 0, 1),
    "noop_max": (int, 0, 10_000),
    "fire_reset": (bool, False, True),
    "fire_after_life_loss": (bool, False, True),
    "full_action_space": (bool, False, True),
    "reseed_every_steps": (int, 0, 10**9),
}
_ATARI_ONLY = (
    "repeat_action_probability",
    "noop_max",
    "fire_reset",
    "fire_after_life_loss",
    "full_action_space",
    "reseed_every_steps",
)
_IMAGE_DEFAULTS: Mapping[str, Any] = {"frame_stack": 4, "size": 84, "grayscale": True}
_RAM: Mapping[str, Any] = {"obs_type": "ram"}


def make(
    env: str | Callable[..., Any],
    num_envs: int,
    *,
    protocol: str = "nature",
    render: bool = False,
    num_threads: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    obs_type: str = "image",
    obs_key: str = "",
    obs_range: Sequence[float] | None = None,
    restart_on_error: bool = False,
    workers: int = 0,
    resumable: bool = True,
    **settings: Any,
) -> VectorEnv:
    """Create a vector environment with N copies of an environment.

    Args:
        env: an Atari game of ale-py (`ALE/Pong-v5`), an arcade game (`zerokara/Catch-v0`), any other id registered
            with Gymnasium, `module:id`, `file.py:Class`, `module:Class`, or a class (envs/lookup.py).
        num_envs: N.
        protocol: preset of Atari settings, a key of PROTOCOLS.
        render: enable `render()`; Atari is slower with it.
        num_threads: threads of the Atari emulators; 0: one per core.
        env_kwargs: arguments with which the environment is created; saved with the run.
        obs_type: "image", or "vector": the numbers of the observations (envs/vectors.py), of Atari games the RAM. Then
            `frame_stack` is 1 by default, and `size` and `grayscale` do not exist.
        obs_key: key of the image in observations that are a Dict; empty: the only image. Of the vector: all values.
        obs_range: values of black and white in the observations; None: as the observation space declares them. Of
            numbers: those that become 0 and 1.
        restart_on_error: an environment that raises an exception in a step starts a new episode; see
            `GymnasiumVectorEnv`.
        workers: worker processes among which Gymnasium environments are divided; 0: they run in this process.
        resumable: check that episodes can be repeated, as a resumed run does; False: the state is not saved, as when an
            agent is evaluated or shown. The check takes a second for an Atari game with `render`.
        settings: override the protocol (`repeat_action_probability`, `noop_max` in frames, `fire_reset`,
            `fire_after_life_loss`, `frame_skip`, `full_action_space`, `max_episode_frames`, where 0 means no limit and
            is not allowed for Atari; `reseed_every_steps`, see envs/atari.py) and the format of observations
            (`frame_stack` in frames, `size` in pixels, `grayscale`). None selects the default.

    The active settings are in `env.settings`. `max_episode_frames` is rounded down to a multiple of `frame_skip`.

    Raises:
        UserError: an unknown id, protocol or setting, a value out of range, or an environment that is not supported.
    """
    overrides = _validate_settings(settings)
    _validate("num_envs", num_envs, (int, 1, 100_000))
    _validate("num_threads", num_threads, (int, 0, 4_096))
    _validate("workers", workers, (int, 0, 4_096))
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if obs_type not in ("image", "vector"):
        raise UserError(f"unknown obs_type {obs_type!r}: expected image or vector.")
    defaults = _IMAGE_DEFAULTS if obs_type == "image" else {"frame_stack": 1, "obs_type": obs_type}
    for name in _IMAGE_DEFAULTS:
        if name in overrides and name not in defaults:
            raise UserError(f"{name} has no effect on observations that are vectors: remove it.")
    only_gymnasium = {
        "env_kwargs": dict(env_kwargs or {}),
        "obs_key": obs_key,
        "obs_range": None if obs_range is None else list(_validate_range(obs_range)),
    }
    given = {name: value for name, value in only_gymnasium.items() if value}
    if env in arcade.GAMES:
        _reject_gymnasium_settings(str(env), given)
        if obs_type == "vector":
            raise UserError(
                f"{env} has images as observations and no vector: choose a convolutional --backbone (obs_type image)."
            )
        return _make_arcade(str(env), num_envs, overrides)

    from zerokara.envs import atari, lookup
    from zerokara.envs.gymnasium import make_gymnasium_env

    behavior: dict[str, Any] = {"restart_on_error": restart_on_error, "workers": workers, "resumable": resumable}
    id, target = lookup.find(env)
    if callable(target) or not atari.is_atari(target):
        _reject_atari_settings(id, overrides)
        active = _round_time_limit(id, {**defaults, "frame_skip": 1, "max_episode_frames": 0, **overrides, **given})
        return make_gymnasium_env(env, num_envs, active, render=render, **behavior)
    if obs_type == "vector" and given.get("env_kwargs") == _RAM:
        del given["env_kwargs"]  # as in Gymnasium; the RAM is the vector of an Atari game anyway
    if given.get("env_kwargs") == _RAM:
        raise UserError(f"The RAM of {id} is a vector: add --backbone mlp (obs_type vector).")
    _reject_gymnasium_settings(id, given)
    active = {
        "protocol": protocol,
        **PROTOCOLS[protocol],
        **defaults,
        "reseed_every_steps": 0,
        **overrides,
    }
    if active["max_episode_frames"] == 0:
        raise UserError(f"max_episode_frames of {id} must be at least frame_skip, got 0: Atari needs a time limit.")
    active = _round_time_limit(id, active)
    if render or obs_type == "vector":
        return atari.make_single_atari(target, num_envs, active, render=render, **behavior)
    return atari.AtariVectorEnv(target, num_envs, active, num_threads=num_threads)


def _round_time_limit(id: str, active: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with `max_episode_frames` rounded down to a multiple of `frame_skip`.

    Otherwise the last step of a truncated episode would have fewer frames than all others.
    """
    frames, skip = active["max_episode_frames"], active["frame_skip"]
    if 0 < frames < skip:
        raise UserError(f"max_episode_frames of {id} must be at least frame_skip, which is {skip}, got {frames}.")
    return {**active, "max_episode_frames": frames - frames % skip}


def _validate_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check names, types and ranges of the settings. Returns those that are not None."""
    for name in settings:
        if name not in _RANGES:
            similar = difflib.get_close_matches(name, _RANGES, n=1, cutoff=0.5)
            raise UserError(
                f"unknown environment setting {name!r}"
                + (f"; did you mean {similar[0]}?" if similar else f": expected one of {', '.join(_RANGES)}.")
            )
    overrides = {name: value for name, value in settings.items() if value is not None}
    for name, value in overrides.items():
        _validate(name, value, _RANGES[name])
    return overrides


def _validate(name: str, value: object, bounds: tuple[type, float, float]) -> None:
    kind, low, high = bounds
    # bool is a subclass of int in Python, so isinstance would accept True as a number. An int is accepted as a float.
    valid_type = type(value) is kind or (kind is float and type(value) is int)
    if not valid_type:
        raise UserError(f"{name} must be {_KINDS[kind]}, got {value!r}.")
    assert isinstance(value, (int, float))
    if not low <= value <= high:  # written so that NaN fails, too
        raise UserError(f"{name} must be between {low} and {high}, got {value}.")


_KINDS = {int: "an integer", float: "a number", bool: "True or False"}


def _reject_atari_settings(id: str, overrides: Mapping[str, Any]) -> None:
    for name in _ATARI_ONLY:
        if name in overrides:
            raise UserError(f"{name} is a setting of Atari games only, and {id} is not one of them: remove it.")


def _reject_gymnasium_settings(id: str, given: Mapping[str, Any]) -> None:
    for name in given:
        raise UserError(f"{name} cannot be set for {id}, whose observations and arguments are fixed: remove it.")


def _validate_range(obs_range: Sequence[float]) -> Sequence[float]:
    if len(obs_range) != 2 or not math.isfinite(obs_range[1] - obs_range[0]) or obs_range[0] >= obs_range[1]:
        raise UserError(
            f"obs_range must be two increasing numbers, black and white, as in 0 255, got {list(obs_range)}."
        )
    return obs_range


def _make_arcade(id: str, num_envs: int, overrides: Mapping[str, Any]) -> VectorEnv:
    _reject_atari_settings(id, overrides)
    fixed = {"size": 84, "frame_skip": 1, "max_episode_frames": 0}  # 0: the game's own time limit
    for name, value in fixed.items():
        if overrides.get(name, value) != value:
            raise UserError(f"{name} of {id} is always {value} and cannot be {overrides[name]}: remove it.")
    return arcade.make(
        id, num_envs, frame_stack=overrides.get("frame_stack", 4), grayscale=overrides.get("grayscale", True)
    )
