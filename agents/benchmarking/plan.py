"""Plan of a benchmark: its runs and their configs, their progress, memory, devices and threads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zerokara import envs
from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.common import HARDWARE_FIELDS, OUTPUT_FIELDS, ProtocolName, Settings
from zerokara.agents.configs.defaults import Changes, format_changes, preset_values
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.agents.qlearning.replay import bytes_needed
from zerokara.agents.viewing.loading import CHECKPOINT
from zerokara.core import checkpoint
from zerokara.core.command_line import format_arguments, named_fields
from zerokara.core.config import UserError, flag, from_dict, suggest, to_dict
from zerokara.core.run import Run
from zerokara.core.run_folder import MAX_LISTED
from zerokara.core.scheduling.job import Job

# Config fields that may differ between an existing run and the plan.
MAY_DIFFER = OUTPUT_FIELDS | HARDWARE_FIELDS
# Config fields that the benchmark sets by options of its own, by today's and older names.
SET_BY_BENCHMARK = frozenset(
    {"env", "preset", "seed", "name", "protocol", "resume", "total_steps", "steps", "threads", "device"}
)
PROCESS_BYTES = 1_300_000_000  # resident memory of a run without its replay: torch, compiled code, 30 emulators
DEVICE_BYTES = 2_000_000_000  # the same on a GPU: context, network, batches

State = Literal["new", "started", "finished"]
ReadConfig = Callable[[Sequence[str]], Settings]
# Name in --presets -> kind of the run, config class, reader of its command line, name of the preset in that program.
PRESETS: Mapping[str, tuple[str, type[Settings], ReadConfig, str]] = {
    **{name: ("dqn", dqn.Config, dqn.read_config, name) for name in dqn.PRESETS},
    **{f"pqn-{name}": ("pqn", pqn.Config, pqn.read_config, name) for name in pqn.PRESETS},
    **{f"stream-{name}": ("stream", stream.Config, stream.read_config, name) for name in stream.PRESETS},
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a benchmark."""

    env: str
    preset: str  # a key of PRESETS
    seed: int
    kind: str  # "dqn": trained by agents.dqn
    config: Settings
    arguments: tuple[str, ...]  # command line that gives `config`

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """Run folder: runs/<name>."""
        return Path("runs") / self.name


def plan_runs(
    env_ids: Sequence[str],
    presets: Sequence[str],
    seeds: Sequence[int],
    *,
    name: str,
    protocol: ProtocolName,
    steps: int | None,
    evaluations: int,
    settings: Sequence[str],
    threads: int,
    devices: Sequence[str],
    keep_replays: bool = False,
) -> list[PlannedRun]:
    """List all runs without starting any. The seed varies slowest, so that every combination has a first run early.

    Args:
        steps: agent steps of each run; None: those of the protocol or the presets.
        evaluations: evenly spaced evaluations of a run, if the protocol scores by evaluation.
        settings: config fields as "field=value"; they take precedence over preset and protocol.
        devices: assigned to the runs in turn.
        keep_replays: keep the replay buffers of finished runs.

    Raises:
        UserError: an environment or preset is unknown, a setting is invalid, or the runs have different lengths.
    """
    for preset in presets:
        if preset not in PRESETS:
            raise UserError(
                f"There is no preset {preset!r}{suggest(preset, PRESETS)}: give --presets some of {', '.join(PRESETS)}."
            )
    user_fields = setting_fields(settings)
    common: dict[str, Any] = {"protocol": protocol, "threads": threads, "capture_video": False}
    common |= {} if steps is None else {"total_steps": steps}
    configs = {
        (env, preset): _config(preset, {**common, "env": env}, user_fields, evaluations, keep_replays)
        for env in dict.fromkeys(env_ids)
        for preset in presets
    }
    runs: list[PlannedRun] = []
    for seed in dict.fromkeys(seeds):
        for env in dict.fromkeys(env_ids):
            for preset in dict.fromkeys(presets):
                config, fields = configs[env, preset]
                own: dict[str, Any] = {"env": env, "seed": seed, "device": devices[len(runs) % len(devices)]}
                own |= {"name": f"{name}-{re.sub(r'[^A-Za-z0-9.]+', '-', env)}-{preset}-{seed}"}
                kind, config_class, _, _ = PRESETS[preset]
                arguments = format_arguments(config_class, {**fields, **own})
                runs.append(PlannedRun(env, preset, seed, kind, replace(config, **own), tuple(arguments)))
    lengths = {f"{run.preset} on {run.env}": run.config.total_steps for run in runs}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{preset} {length:,}" for preset, length in lengths.items())
        raise UserError(f"Runs of different lengths cannot be compared ({each} steps): set one with --total-steps.")
    for run in {run.env: run for run in runs}.values():
        envs.make(run.env, 1, **run.config.env_settings()).close()
    return runs


def _config(
    preset: str, common: Mapping[str, Any], user_fields: Mapping[str, Any], evaluations: int, keep_replays: bool
) -> tuple[Settings, dict[str, Any]]:
    """Return the config shared by all runs of a preset in an environment, and the fields from which it is made."""
    _, config_class, read_config, preset_name = PRESETS[preset]
    fields: dict[str, Any] = {"preset": preset_name, **common, **user_fields}
    if keep_replays and hasattr(config_class, "delete_replay"):
        fields["delete_replay"] = False
    config = read_config(format_arguments(config_class, fields))
    if config.eval_every_steps and "eval_every_steps" not in user_fields:
        fields["eval_every_steps"] = max(1, config.total_steps // evaluations)
        config = replace(config, eval_every_steps=fields["eval_every_steps"])
    return config, fields


def setting_fields(settings: Sequence[str]) -> dict[str, str]:
    """Parse --settings. Returns field -> value as text."""
    parsed = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        field = field.lstrip("-").replace("-", "_")
        if not equals or not field:
            raise UserError(
                f"--settings cannot be {setting!r}: it must be field=value, for example width_multiplier=0.25."
            )
        if field in SET_BY_BENCHMARK:
            raise UserError(f"--settings cannot be {setting!r}: the benchmark itself sets {field}; see --help.")
        parsed[field] = value
    return parsed


def protocol_deviations(config: Settings, protocol: ProtocolName) -> list[str]:
    """Describe how a config deviates from a protocol; its scores are then not comparable with published ones."""
    # The interval between evaluations does not change the final score.
    overrides = {key: v for key, v in PROTOCOLS[protocol].overrides.items() if key != "eval_every_steps"}
    rules: dict[str, Any] = {**envs.PROTOCOLS[protocol], **overrides}
    return [
        f"{field} is {value}, but {rule} in protocol {protocol}"
        for field, rule in rules.items()
        if (value := getattr(config, field)) is not None and value != rule
    ]


def deviations_by_preset(runs: Sequence[PlannedRun], protocol: ProtocolName) -> list[str]:
    """Describe how the presets of runs deviate from a protocol; the presets are named where not all of them do."""
    configs = {run.preset: run.config for run in runs}
    presets: dict[str, list[str]] = {}
    for preset, config in configs.items():
        for text in protocol_deviations(config, protocol):
            presets.setdefault(text, []).append(preset)
    return [
        text if len(names) == len(configs) else f"{text} (preset {', '.join(names)})" for text, names in presets.items()
    ]


def run_state(run: PlannedRun) -> State:
    """Return the state of a run: "new" (no folder), "started" or "finished".

    Raises:
        UserError: the folder holds a run of another kind, or with another config.
    """
    if not (run.folder / "config.json").exists():
        return "new"
    total_steps, _ = version_changes(run).get("total_steps", (run.config.total_steps, None))
    try:
        state = checkpoint.load(run.folder / CHECKPOINT, run.kind)
        at_end = state["step"] >= total_steps and not state["owes_evaluation"]
        finished = at_end or state.get("goal_reached", False)  # checkpoints of older releases do not have it
    except (UserError, KeyError):  # no checkpoint yet, or a damaged one, which the run reports when it resumes
        return "started"
    return "finished" if finished else "started"


def version_changes(run: PlannedRun) -> Changes:
    """Return the settings that another version of zerokara gave to a run and that are no options of the benchmark.

    Presets, defaults, and what is reduced for a short run may change between two versions.

    Raises:
        UserError: the folder holds a run of another kind, or one that was started with another config.
    """
    path = run.folder / "config.json"
    if not path.exists():
        return {}
    content = Run.read_config(run.folder, run.kind)
    saved = to_dict(from_dict(type(run.config), content["config"], str(path)))
    given, given_then = named_fields(type(run.config), run.arguments, {}), fields_given_then(run, content)
    changes: dict[str, tuple[Any, Any]] = {}
    for field, value in to_dict(run.config).items():
        if field in MAY_DIFFER or saved.get(field) == value:
            continue
        # Runs of the first versions are recognized by the values of the preset, which games and lengths did not change.
        by_default = field not in given and (
            (given_then is not None and field not in given_then)
            or saved.get(field) == preset_values(run.config).get(field)
        )
        if not by_default and not (field == "eval_every_steps" and evaluates_as_often(run.config, saved)):
            raise UserError(
                f"{run.folder} was started with {flag(field)} {saved.get(field)}, but this benchmark needs {value}: "
                f"choose another --name, or remove the run first: rm -r {run.folder}."
            )
        changes[field] = saved.get(field), value
    return changes


def fields_given_then(run: PlannedRun, content: Mapping[str, Any]) -> set[str] | None:
    """Return the fields that the command line of an existing run set; None if the training program did not start it.

    Args:
        content: config.json of the run.
    """
    command = str(content.get("command", ""))
    if not re.match(rf"(python -m (zerokara\.)?agents\.|zerokara ){run.kind} ", command):
        return None
    try:
        words = shlex.split(command)
    except ValueError:  # a damaged file
        return None
    return named_fields(type(run.config), words, content["config"])


def evaluates_as_often(config: Settings, saved: Mapping[str, Any]) -> bool:
    """Return True if a run of another length has as many evaluations, of which the interval is a consequence."""
    if not (config.eval_every_steps and saved["eval_every_steps"]) or config.total_steps == saved["total_steps"]:
        return False
    ours, theirs = config.total_steps // config.eval_every_steps, saved["total_steps"] // saved["eval_every_steps"]
    return bool(ours == theirs)


def describe_version_changes(runs: Sequence[PlannedRun]) -> list[str]:
    """Describe the settings that other versions gave to runs, a line for all runs with the same ones.

    Raises:
        UserError: as `version_changes`.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if changes := version_changes(run):
            names.setdefault((run.preset, format_changes(changes)), []).append(run.name)
    return [
        f"{', '.join(of_runs) if len(of_runs) <= MAX_LISTED else f'{len(of_runs)} runs'}: started by another version "
        f"of zerokara, which gave preset {preset} {changes}"
        for (preset, changes), of_runs in names.items()
    ]


def make_job(run: PlannedRun, log: Path) -> Job:
    """Return the process that starts a run, or resumes it: with the settings of its first start, but --keep-replays."""
    kept = {name: getattr(run.config, name) for name in ("delete_replay",) if hasattr(run.config, name)}
    module = ("-m", f"zerokara.agents.{run.kind}")
    resumed = ("--name", run.name, "--resume", *format_arguments(type(run.config), kept))
    return Job(
        run.name,
        (*module, *run.arguments),
        log,
        memory_needed(run.config),
        run_folder=run.folder,
        resume_arguments=(*module, *resumed),
    )


def memory_needed(config: Settings) -> dict[str, int]:
    """Return the bytes that a run needs, in "main" memory and on its GPU: replay buffer and process."""
    frame = (config.frame_channels, config.image_size, config.image_size)
    dtype: type[np.generic] = np.uint8
    if config.obs_type == "vector":  # only the environment knows how many numbers there are
        with closing(envs.make(config.env, 1, resumable=False, **config.env_settings())) as env:
            frame, dtype = (env.frame_channels, *env.obs_shape[1:]), env.obs_dtype
    if isinstance(config, dqn.Config):
        margin = config.checkpoint_every_steps + 4 * config.num_envs
        replay_bytes = bytes_needed(config.replay_capacity, margin, frame, dtype)
    elif isinstance(config, pqn.Config):
        replay_bytes = bytes_needed(config.rollout_steps * config.num_envs * config.frame_stack, 0, frame, dtype)
    else:  # nothing is stored
        replay_bytes = 0
    if config.device.startswith("cuda"):
        return {"main": PROCESS_BYTES, config.device: replay_bytes + DEVICE_BYTES}
    return {"main": replay_bytes + PROCESS_BYTES}
