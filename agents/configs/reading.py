"""Reading of an agent's config from the command line, shared by all agents."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from zerokara.agents.configs.common import ATARI_FIELDS, PADDED_BACKBONES, Settings
from zerokara.agents.configs.lengths import fit_lengths
from zerokara.agents.configs.protocols import OVERRIDES
from zerokara.core.config import UserError, is_import_path
from zerokara.core.run_config import configure

ConfigT = TypeVar("ConfigT", bound=Settings)

# Defaults of observations that are vectors; --backbone mlp and --obs-type vector select each other.
_VECTOR = {"obs_type": "vector", "backbone": "mlp", "frame_stack": 1, "precision": "float32"}
LAYERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "protocol": OVERRIDES,
    "backbone": {"mlp": _VECTOR},
    "obs_type": {"vector": _VECTOR},
}


def read_agent_config(
    config_class: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    description: str,
    kind: str,
    games: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> ConfigT:
    """Read the config from the command line; with --resume, from the run folder.

    The default name of a run is like pqn-Pong-v5-paper-1: kind, environment, preset, seed. Lengths are reduced where
    the run is too short for them (agents/configs/lengths.py).

    Args:
        config_class: class of the config.
        presets: values by preset name.
        argv: words after the program's name; None: those of the process.
        description: what the program does.
        kind: kind of the run.
        games: environment -> values that take the place of those of the default preset.

    Raises:
        UserError: as in `core.run_config.configure`; a backbone that does not fit the type of the observations.
    """
    default_preset = getattr(config_class, "preset", "")

    def adjust(config: ConfigT, given: Collection[str]) -> ConfigT:
        own = games.get(config.env, {}) if config.preset == default_preset else {}
        if not config.is_atari:  # what a preset sets for Atari games has no effect on other environments
            own = {**dict.fromkeys(ATARI_FIELDS), **own}
        if getattr(config, "same_padding", False) and getattr(config, "backbone", "") not in PADDED_BACKBONES:
            own = {**own, "same_padding": False}  # what a preset sets for its own backbone
        if getattr(config, "spr_weight", 0):
            values = {"target_tau": 0.005, "random_shift": 4}  # of a preset of one's own they stay
            own = {**own, **{k: v for k, v in values.items() if getattr(config, k) == getattr(config_class, k)}}
        averages = getattr(config, "target_tau", 1) < 1 or (own.get("target_tau", 1) < 1 and "target_tau" not in given)
        if averages:  # an average follows every update, as in the papers that use it
            own = {**own, "target_update_steps": 1}
        if getattr(config, "lstm_units", 0):  # which takes the place of the earlier frames
            own = {**own, "frame_stack": 1}
        config = replace(config, **{name: value for name, value in own.items() if name not in given})
        return fit_lengths(config, given)

    config = configure(
        config_class,
        presets,
        argv,
        description,
        kind=kind,
        name_fields=("env", "preset", "seed"),
        layers=LAYERS,
        adjust=adjust,
    )
    check_backbone(config)
    config.env_settings()  # a mistake in --env-kwargs is reported before anything is created
    return config


def check_backbone(config: Any) -> None:
    """Check that the backbone is for observations of the type of the config.

    Raises:
        UserError: it is not.
    """
    if config.obs_type == "vector" and config.backbone != "mlp" and not is_import_path(config.backbone):
        raise UserError(
            f"--backbone {config.backbone} has convolutions, and the observations are vectors: use --backbone mlp or a "
            f"network of your own, or leave --obs-type vector out."
        )
    if config.obs_type == "image" and config.backbone == "mlp":
        raise UserError(
            "--backbone mlp is for vectors: leave --obs-type image out, or choose a convolutional backbone."
        )
