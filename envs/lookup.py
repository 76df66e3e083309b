"""Find an environment by name: a registered id, `package:Id-v0`, `my_env.py:MyEnv`, `package.module:MyEnv`, or a class.

    find("ALE/Pong-v5"), find("minigrid:MiniGrid-Empty-5x5-v0"), find("my_env.py:MyEnv"), find(MyEnv)

The arcade games of this package are found by their id, too; they are registered with Gymnasium.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zerokara.core.config import UserError
from zerokara.core.importing import load_module
from zerokara.core.named_object import NamedObject, missing_object

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

# In the type or the message of an exception of pyglet, SDL (pygame), GLFW or MuJoCo without a display.
NO_DISPLAY = r"display|video (device|system|mode)|x11|glfw|glew|opengl"

# Beginning of an id -> package on PyPI, and the module that registers it.
PACKAGES: dict[str, tuple[str, str]] = {
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
    "MinAtar/": ("minatar", "minatar"),
    "MiniWorld-": ("miniworld", "miniworld"),
    "Vizdoom": ("vizdoom", "vizdoom.gymnasium_wrapper"),
    "highway-": ("highway-env", "highway_env"),
    "SuperMarioBros": ("gym-super-mario-bros", "gym_super_mario_bros"),
    "procgen": ("procgen", "procgen"),
    "craftax": ("craftax", "craftax"),
}


def find(env: str | Callable[..., Any]) -> tuple[str, EnvSpec | Callable[..., Any]]:
    """Return the name of an environment for messages, and its spec in Gymnasium's registry or its class.

    Args:
        env: a registered id; `module:id`, where the module registers the id; `file.py:Class` or `module:Class` for a
            class (or a function that returns an environment) that is registered nowhere; or such a class, also as a
            `NamedObject`.

    Raises:
        UserError: the id is not registered, or the module, file or class does not exist or cannot be imported; or `env`
            is an environment itself.
    """
    import ale_py  # noqa: F401  (registers the Atari games)
    import gymnasium

    if isinstance(env, NamedObject):
        return str(env), env.target
    if not isinstance(env, str):
        if not callable(env):
            raise UserError(
                f"An environment cannot be {_describe(env)}: several copies are made, so give an id, a class, or a "
                f"function that creates one, as in lambda: MyEnv(size=5)."
            )
        return getattr(env, "__qualname__", type(env).__name__), env
    if (missing := missing_object(env, "env")) is not None:
        raise missing
    module_name, colon, name = env.rpartition(":")
    if not colon:
        if env not in gymnasium.registry:
            raise UserError(_unknown(env, list(gymnasium.registry)))
        return env, gymnasium.registry[env]
    try:
        module = load_module(module_name, env)
    except UserError as error:
        if advice := display_advice(error.__cause__):
            raise UserError(f"{str(error).rstrip('.')}.{advice}") from error
        raise
    if name in gymnasium.registry:
        return name, gymnasium.registry[name]
    target = getattr(module, name, None)
    if callable(target):
        return env, target
    similar = _similar_ids(name, list(gymnasium.registry))
    hint = f"; did you mean {' or '.join(similar)}?" if similar else "."
    raise UserError(
        f"{module_name} has no environment {name!r}: it neither registers this id with Gymnasium nor defines a class "
        f"of this name{hint}"
    )


def describe(error: BaseException) -> str:
    """Return type and message of an exception of an environment, with advice if the reason is a missing display."""
    advice = display_advice(error)
    text = f"{type(error).__name__}: {error}"
    return f"{text.rstrip('.')}.{advice}" if advice else text


def display_advice(error: BaseException | None) -> str:
    """Return a sentence if an exception was probably raised because there is no display, else an empty string."""
    if has_display() or not re.search(NO_DISPLAY, f"{type(error).__name__} {error}", re.IGNORECASE):
        return ""
    return (
        " This machine has no display: type xvfb-run -a before the command, or set the environment variable "
        "SDL_VIDEODRIVER=dummy (pygame), PYGLET_HEADLESS=1 (pyglet, miniworld) or MUJOCO_GL=egl (MuJoCo)."
    )


def has_display() -> bool:
    """Return True if windows can be opened, as far as environment variables tell."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _describe(env: object) -> str:
    return f"an object of {type(env).__name__}" if hasattr(env, "reset") else f"{env!r}"


def _unknown(id: str, known: list[str]) -> str:
    """Return the message for an id that is not registered."""
    for beginning, (package, module) in PACKAGES.items():
        if id.startswith(beginning) and module not in sys.modules:
            return f"{id} is registered by the package {package}: type pip install {package}, then --env {module}:{id}"
    similar = _similar_ids(id, known)
    if not similar:
        return (
            f"unknown environment {id!r}: give the id of a registered environment (ALE/Pong-v5, zerokara/Catch-v0), "
            f"package:id, or file.py:Class."
        )
    return f"unknown environment {id!r}: did you mean {' or '.join(similar)}?"


def _similar_ids(id: str, known: list[str]) -> list[str]:
    """Return up to three known ids similar to `id`, ignoring namespace, version and case: `pong` gives ALE/Pong-v5."""

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
    return [by_bare[name] for name in difflib.get_close_matches(bare, by_bare, n=3, cutoff=0.6)]
