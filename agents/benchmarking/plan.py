"""Which runs a benchmark consists of, what each must look like, how far it is, and how many run at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import psutil
import torch

from zerokara import envs
from zerokara.agents.benchmarking.processes import Job
from zerokara.agents.configs import dqn, pqn
from zerokara.agents.configs.common import ProtocolName, Settings
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.agents.qlearning.replay import bytes_needed
from zerokara.agents.viewing.loading import CHECKPOINT
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag, from_dict, rename, suggest, to_dict
from zerokara.core.run import Run

# What may differ between the run that is there and the one that is planned: nothing that bears on how it learns.
FREE = frozenset({"name", "resume", "quiet", "device", "threads"})
PROCESS_BYTES = 1_300_000_000  # a run's resident memory beside its replay: torch, compiled code, 30 emulators
DEVICE_BYTES = 2_000_000_000  # the same on a GPU: context, network, batches

# Name on the command line -> the entry, its config, how it reads a command line, and its own name of the preset.
State = Literal["new", "begun", "finished"]
ReadConfig = Callable[[Sequence[str]], Settings]
PRESETS: Mapping[str, tuple[str, type[Settings], ReadConfig, str]] = {
    **{name: ("dqn", dqn.Config, dqn.read_config, name) for name in dqn.PRESETS},
    **{f"pqn-{name}": ("pqn", pqn.Config, pqn.read_config, name) for name in pqn.PRESETS},
}


@dataclass(frozen=True)
class Planned:
    """One run."""

    env: str
    preset: str  # a key of PRESETS
    seed: int
    kind: str  # "dqn": the entry is agents.dqn
    config: Settings
    words: tuple[str, ...]  # of its command line

    @property
    def name(self) -> str:
        """The run's."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """runs/<name>."""
        return Path("runs") / self.name


def plan(
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
) -> list[Planned]:
    """All runs, seeds last, so that every game and preset has a run early. Nothing is started or made.

    Args:
        settings: "field=value" of the runs' configs, over preset and protocol.
        evaluations: of a run, evenly spaced, where the protocol scores by evaluation.
        devices: taken in turn.

    Raises:
        UserError: an unknown environment or preset, a setting that does not fit, runs of different lengths.
    """
    for preset in presets:
        if preset not in PRESETS:
            raise UserError(
                f"There is no preset {preset!r}{suggest(preset, PRESETS)}: give --presets some of {', '.join(PRESETS)}."
            )
    given = _settings(settings)
    alike: dict[str, Any] = {"protocol": protocol, "threads": threads, "capture_video": False}
    alike |= {} if steps is None else {"total_steps": steps}
    of_preset = {preset: _of_preset(preset, alike, given, evaluations) for preset in presets}
    runs: list[Planned] = []
    for seed in dict.fromkeys(seeds):
        for env in dict.fromkeys(env_ids):
            for preset, (config, fields) in of_preset.items():
                own: dict[str, Any] = {"env": env, "seed": seed, "device": devices[len(runs) % len(devices)]}
                own |= {"name": f"{name}-{re.sub(r'[^A-Za-z0-9.]+', '-', env)}-{preset}-{seed}"}
                kind, config_class, _, _ = PRESETS[preset]
                line = words(config_class, {**fields, **own})
                runs.append(Planned(env, preset, seed, kind, replace(config, **own), tuple(line)))
    lengths = {run.preset: run.config.total_steps for run in runs}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{preset} {length:,}" for preset, length in lengths.items())
        raise UserError(f"Runs of different lengths cannot be compared ({each} steps): give one by --total-steps.")
    for run in {run.env: run for run in runs}.values():
        envs.make(run.env, 1, **run.config.env_settings()).close()
    return runs


def _of_preset(
    preset: str, alike: Mapping[str, Any], given: Mapping[str, Any], evaluations: int
) -> tuple[Settings, dict[str, Any]]:
    """The config that all runs of a preset have, but for what is their own, and the fields that make it."""
    _, config_class, read_config, own = PRESETS[preset]
    fields: dict[str, Any] = {"preset": own, **alike, **given}
    config = read_config(words(config_class, fields))
    if config.eval_every_steps and "eval_every_steps" not in given:
        fields["eval_every_steps"] = max(1, config.total_steps // evaluations)
        config = replace(config, eval_every_steps=fields["eval_every_steps"])
    return config, fields


def _settings(settings: Sequence[str]) -> dict[str, str]:
    """Values by field, as typed."""
    given = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        field = field.lstrip("-").replace("-", "_")
        if not equals or not field:
            raise UserError(f"--settings cannot be {setting!r}: it must be field=value, such as width=0.25.")
        if field in {
            "env",
            "preset",
            "seed",
            "name",
            "protocol",
            "resume",
            "total_steps",
            "steps",
            "threads",
            "device",
        }:
            raise UserError(f"--settings cannot be {setting!r}: the benchmark sets {field} itself; see --help.")
        given[field] = value
    return given


def departures(config: Settings, protocol: ProtocolName) -> list[str]:
    """Where runs depart from their protocol, in words: then their scores cannot stand beside those of others."""
    # How often is looked does not change what is seen in the end.
    overrides = {key: v for key, v in PROTOCOLS[protocol].overrides.items() if key != "eval_every_steps"}
    rules: dict[str, Any] = {**envs.PROTOCOLS[protocol], **overrides}
    return [
        f"{field} is {value}, and {rule} in protocol {protocol}"
        for field, rule in rules.items()
        if (value := getattr(config, field)) is not None and value != rule
    ]


def words(config_class: type[Settings], fields: Mapping[str, Any]) -> list[str]:
    """A command line that sets these fields. Of a switch, unlike a field that may be None, the flag says the value."""
    hints = get_type_hints(config_class)
    line: list[str] = []
    for typed, value in fields.items():
        field, text = rename(config_class, typed, fields), str(value)
        truth = text.capitalize() if text.lower() in {"true", "false"} else None
        if truth and hints.get(field) is bool:
            line.append(flag(field) if truth == "True" else "--no-" + flag(field)[2:])
        else:
            line += [flag(field), truth or text]
    return line


def state(run: Planned) -> State:
    """How far a run is.

    Raises:
        UserError: its folder holds another run, or one with another config.
    """
    if not (run.folder / "config.json").exists():
        return "new"
    path = run.folder / "config.json"
    saved = to_dict(from_dict(type(run.config), Run.read_config(run.folder, run.kind)["config"], str(path)))
    for field, value in to_dict(run.config).items():
        if field not in FREE and saved.get(field) != value:
            raise UserError(
                f"{run.folder} was made with {flag(field)} {saved.get(field)}, and this benchmark asks for {value}: "
                f"give another --name, or remove the run first: rm -r {run.folder}."
            )
    try:
        step = checkpoint.load(run.folder / CHECKPOINT, run.kind)["step"]
    except (UserError, KeyError):  # there is none yet, or it is damaged, which the run itself will say
        return "begun"
    return "finished" if step >= run.config.total_steps else "begun"


def job(run: Planned, begun: bool, log: Path) -> Job:
    """The process that begins this run, or goes on with it as it began."""
    line = ("--name", run.name, "--resume") if begun else run.words
    return Job(run.name, (sys.executable, "-m", f"zerokara.agents.{run.kind}", *line), log, needs(run.config))


def needs(config: Settings) -> dict[str, int]:
    """Bytes that a run takes, of "main" memory and of its GPU: what its replay announces, and the process."""
    frame = (1 if config.grayscale else 3, config.image_size, config.image_size)
    if isinstance(config, dqn.Config):
        kept = bytes_needed(config.replay_capacity, config.checkpoint_every_steps + 4 * config.num_envs, frame)
    else:
        assert isinstance(config, pqn.Config)
        kept = bytes_needed(config.rollout_steps * config.num_envs * config.frame_stack, 0, frame)
    if config.device.startswith("cuda"):
        return {"main": PROCESS_BYTES, config.device: kept + DEVICE_BYTES}
    return {"main": kept + PROCESS_BYTES}


def devices(asked: str) -> list[str]:
    """The devices that runs take in turn: every GPU where there are some and none was named.

    Raises:
        UserError: there is no such device.
    """
    found = Compute.choose(device=asked, precision="float32", compile="off", threads=1, train_step=None).device
    if asked != "auto" or not found.startswith("cuda"):
        return [asked]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def room(used: Sequence[str]) -> dict[str, int]:
    """Bytes that are free now, of "main" memory and of those devices that are GPUs."""
    free = {name: torch.cuda.mem_get_info(name)[0] for name in used if name.startswith("cuda")}
    return {"main": psutil.virtual_memory().available, **free}


def share(cores: int, runs: int, jobs: int, threads: int) -> tuple[int, int]:
    """Processes at once, and the threads of each: (0) as many runs as there are cores, then the cores shared evenly.

    One thread each, where there are runs enough, wastes none of them on waiting for the others.
    """
    jobs = min(runs, jobs or max(1, cores // max(1, threads)))
    return jobs, threads or max(1, cores // jobs)
