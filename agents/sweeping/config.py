"""Config of a sweep, and its command line: search space, options of the sweep, options of the agent."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from zerokara.agents.configs.common import Count, Fraction
from zerokara.agents.sweeping.search_space import AGENTS, Dimension, read_space
from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError, flag, from_dict, to_dict
from zerokara.core.run_folder import read_config
from zerokara.core.scheduling.cluster import CLUSTER_FIELDS, ClusterOptions

KIND = "sweep"
MAY_CHANGE = frozenset({"trials", "jobs", "keep_replays", "quiet", *CLUSTER_FIELDS})  # when a sweep resumes


@dataclass(frozen=True, kw_only=True)
class Config(ClusterOptions):
    """Options of a sweep."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "unpruned_trials": "pruner_startup_trials",
        "unpruned_share": "pruner_warmup_fraction",
        "search_seed": "sampler_seed",
    }
    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "algo": "agent",
        "n_trials": "trials",
        "num_trials": "trials",
        "n_jobs": "jobs",
        "workers": "jobs",
        "num_seeds": "seeds",
        "study_name": "name",
        "exp_name": "name",
        "n_startup_trials": "pruner_startup_trials",
        "n_warmup_steps": "is --pruner-warmup-fraction here, a fraction of the first run of a trial.",
        "sampler": "is not an option here: the sampler is TPE; --sampler-seed sets its seed.",
        "resume": "is not an option here: repeat the same command to resume.",
    }
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "search": ("search", "agent", "trials", "seeds", "objective", "sampler_seed"),
        "pruning": ("pruner", "pruner_startup_trials", "pruner_warmup_fraction"),
        "run": ("name", "jobs", "storage", "keep_replays", "quiet"),
        "cluster": CLUSTER_FIELDS,
    }
    COMMON: ClassVar[tuple[str, ...]] = ("search", "agent", "name", "trials", "jobs", "seeds", "objective", "pruner")

    search: Annotated[tuple[str, ...], Positional("field=values")] = ()
    """Search space: name=low..high, name=log:low..high or name=value,value for each field of the agent's config."""
    agent: Literal["dqn", "pqn", "stream"] = "dqn"
    """Program that trains: agents.dqn, agents.pqn or agents.stream."""
    name: str = ""
    """Name of the folder under runs/; empty: composed of agent and environment."""
    trials: Count = 20
    """Number of trials. Pruned trials and trials with incompatible settings count."""
    jobs: Annotated[int, Range(1, 256)] = 1
    """Trials at the same time. They share the cores evenly, unless --threads is set for the agent. With --storage: of
    each driver."""
    seeds: Annotated[int, Range(1, 100)] = 1
    """Runs of each trial. They have consecutive seeds from the agent's --seed; the value of a trial is their mean."""
    objective: Literal["last", "area"] = "last"
    """Value of a run. last: its last evaluation; area: the area under its evaluations, divided by their number."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Pruner of Optuna. median stops a trial whose best value so far is below the median of the complete trials at the
    same step; hyperband: see docs/sweep.md; none prunes no trials."""
    pruner_startup_trials: Annotated[int, Range(0)] = 5
    """median: complete trials before the first pruning."""
    pruner_warmup_fraction: Fraction = 0.25
    """median: fraction of a run without pruning. It applies to the first run of each trial."""
    sampler_seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of the sampler, not of the runs. The sampler draws the settings of the trials."""
    storage: str = ""
    """Study for several drivers: journal, file or URL (none: study.db). journal is a file in the folder of the sweep. A
    file of one's own ends in .journal or .log. A URL is that of a database, such as postgresql://user@host/database."""
    keep_replays: bool = False
    """Keep the replay buffers of finished runs. They are by far the largest part of the folders."""
    quiet: bool = False
    """Print only warnings and the closing message."""


def read_command_line(argv: Sequence[str] | None, description: str) -> tuple[Config, list[str], Any, list[Dimension]]:
    """Read the command line of a sweep; argv None: sys.argv.

    Returns:
        The config of the sweep, the agent's arguments that all trials share, the agent's config that these give, and
        the search space.

    Raises:
        UserError: an option or the search space is invalid.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    own, agent_arguments = words[:split], words[split + 1 :]
    names = {flag(field.name) for field in fields(Config)}
    agent_flags = {flag(field.name) for agent in AGENTS.values() for field in fields(agent.config_class)}
    for word in own:
        if (name := word.split("=")[0].replace("--no-", "--", 1)) in agent_flags - names - {"--resume"}:
            raise UserError(f"{name} is an option of the agent: put it after --, as in ... -- {word}.")
    config = parse(Config, {}, own, description)
    agent = AGENTS[config.agent]
    for word in agent_arguments:
        if word.split("=")[0] in ("--name", "--resume"):
            raise UserError(f"{word} cannot be given after --: the sweep itself names and resumes its runs.")
    base = agent.read_config(agent_arguments)
    if base.stop_at_return is not None:
        raise UserError(
            "--stop-at-return cannot be used in a sweep, which compares runs of the same length: omit the option."
        )
    if not 0 < base.eval_every_steps <= base.total_steps:
        raise UserError(
            f"Runs of {base.total_steps:,} steps with --eval-every-steps {base.eval_every_steps:,} have no evaluation "
            f"to compare: set it to a value from 1 to {base.total_steps}, for example a tenth of it."
        )
    space = read_space(config.search, agent, agent_arguments)
    config = replace(config, name=config.name or f"sweep-{config.agent}-{base.env.split('/')[-1]}")
    return config, agent_arguments, base, space


def check_same_command(config: Config, agent_arguments: Sequence[str], folder: Path) -> None:
    """Check that the sweep in a folder was started with the same command, apart from the fields in MAY_CHANGE.

    Raises:
        UserError: it was started with another one, or the folder holds something else.
    """
    content = read_config(folder, KIND)
    saved = to_dict(from_dict(Config, content["config"], str(folder / "config.json")))
    started = {**saved, "given": content["extra"].get("given")}
    labels = {"search": "the search space", "given": "the agent's command line"}
    for name, value in {**to_dict(config), "given": list(agent_arguments)}.items():
        if name not in MAY_CHANGE and started.get(name) != value:
            raise UserError(
                f"{folder} was started with {labels.get(name, flag(name))} {_format_value(started.get(name))} and "
                f"cannot resume with {_format_value(value)}: use the command in its config.json, or choose another "
                f"--name."
            )


def _format_value(value: Any) -> str:
    """Format a value as on a command line."""
    return (shlex.join(map(str, value)) or "nothing") if isinstance(value, list) else str(value)


def describe_objective(config: Config, base: Any) -> str:
    """Describe the value of a trial.

    Args:
        base: config of the agent.
    """
    values = {"last": "its last evaluation", "area": "the area under its evaluations, divided by their number"}
    mean = "" if config.seeds == 1 else f", mean over {config.seeds} seeds from {base.seed} on"
    return (
        f"value of a trial: mean raw return, {values[config.objective]}{mean}; an evaluation is {base.eval_episodes} "
        f"episodes of {base.env} at epsilon {base.eval_epsilon}, every {base.eval_every_steps:,} of "
        f"{base.total_steps:,} steps"
    )
