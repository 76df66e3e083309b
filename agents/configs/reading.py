"""Reading of an agent's config from the command line, shared by DQN and PQN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from zerokara.agents.configs.common import Settings
from zerokara.agents.configs.protocols import OVERRIDES
from zerokara.core.run_config import configure

ConfigT = TypeVar("ConfigT", bound=Settings)

# Fields that may differ when a run is resumed.
CHANGEABLE = {
    "resume",
    "quiet",
    "total_steps",
    "stop_at_return",
    "eval_episodes",
    "capture_video",
    "env_errors",
    "env_workers",
}


def read_agent_config(
    config_class: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    description: str,
    kind: str,
) -> ConfigT:
    """Read the config from the command line; with --resume, from the run folder.

    The default name of a run is like pqn-Pong-v5-paper-1: kind, environment, preset, seed.

    Raises:
        UserError: as in `core.run_config.configure`.
    """
    config = configure(
        config_class,
        presets,
        argv,
        description,
        kind=kind,
        name_fields=("env", "preset", "seed"),
        changeable=CHANGEABLE,
        layers={"protocol": OVERRIDES},
    )
    config.env_settings()  # a mistake in --env-kwargs is reported before anything is created
    return config
