"""The fields of a sweep, and how its command line is read: what is searched, its own flags, the agent's."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from zerokara.agents.configs.common import Count, Fraction
from zerokara.agents.sweeping.search_space import AGENTS, Dimension, read_space
from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError, flag, to_dict
from zerokara.core.run import Run

KIND = "sweep"
CHANGEABLE = {"trials", "jobs", "keep_replays", "quiet"}  # when a sweep goes on


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is searched, and how."""

    search: Annotated[tuple[str, ...], Positional("field=values")] = ()
    """What varies: name=low..high, name=log:low..high, or name=value,value."""
    agent: Literal["dqn", "pqn"] = "dqn"
    """The entry that learns."""
    name: str = ""
    """Folder under runs/; empty: made of agent and environment."""
    trials: Count = 20
    """Settings to try, pruned ones and those that contradict themselves included."""
    jobs: Annotated[int, Range(1, 256)] = 1
    """Trials at once; they share the machine's cores evenly, unless the agent's --threads says otherwise."""
    seeds: Annotated[int, Range(1, 100)] = 1
    """Runs of each trial, with as many seeds from the agent's --seed on; its value is their mean."""
    objective: Literal["last", "area"] = "last"
    """Value of a run: its last evaluation, or the area under its evaluations divided by their number."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Stop a trial whose best value so far is below the median of others there, or by Hyperband's brackets."""
    unpruned_trials: Annotated[int, Range(0)] = 5
    """median: trials that must be complete before one is pruned."""
    unpruned_share: Fraction = 0.25
    """median: share of a trial's first run during which it is not pruned."""
    search_seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of what is drawn, not of the runs."""
    keep_replays: bool = False
    """Keep the memory of runs that have ended, by far their largest part."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""


def read_command_line(argv: Sequence[str] | None, description: str) -> tuple[Config, list[str], Any, list[Dimension]]:
    """The sweep's config, the agent's words that all trials share, the config that they describe, what is searched.

    Raises:
        UserError: whatever a person can get wrong; a sweep of this name that was begun with something else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    own, given = words[:cut], words[cut + 1 :]
    names = {flag(field.name) for field in fields(Config)}
    agents_names = {flag(field.name) for agent in AGENTS.values() for field in fields(agent.config_class)}
    for word in own:
        if (name := word.split("=")[0].replace("--no-", "--", 1)) in agents_names - names:
            raise UserError(f"{name} is a flag of the agent: put it behind two dashes, as in ... -- {word}.")
    config = parse(Config, {}, own, description)
    agent = AGENTS[config.agent]
    for word in given:
        if word.split("=")[0] in ("--name", "--resume"):
            raise UserError(f"{word} cannot stand after the dashes: a sweep names its runs itself, and resumes them.")
    base = agent.read_config(given)
    if base.stop_at_return is not None:
        raise UserError(
            "--stop-at-return cannot be given in a sweep, for it compares runs of one length: leave it out."
        )
    if not 0 < base.eval_every_steps <= base.total_steps:
        raise UserError(
            f"Runs of {base.total_steps:,} steps with --eval-every-steps {base.eval_every_steps:,} have no evaluation, "
            f"and nothing could be compared: give it something from 1 to {base.total_steps}, for example a tenth of it."
        )
    space = read_space(config.search, agent, given)
    config = replace(config, name=config.name or f"sweep-{config.agent}-{base.env.split('/')[-1]}")
    return config, given, base, space


def check_it_goes_on(config: Config, given: Sequence[str], folder: Path) -> None:
    """Whether the sweep in a folder was begun with the same command.

    Raises:
        UserError: it was not, or the folder holds something else.
    """
    content = Run.read_config(folder, KIND)
    began = {**content["config"], "given": content["extra"].get("given")}
    labels = {"search": "the search for", "given": "the agent's command line"}
    for name, value in {**to_dict(config), "given": list(given)}.items():
        if name not in CHANGEABLE and began.get(name) != value:
            raise UserError(
                f"{folder} began with {labels.get(name, flag(name))} {_typed(began.get(name))} and cannot go on with "
                f"{_typed(value)}: type the command that is in its config.json, or choose another --name."
            )


def _typed(value: Any) -> str:
    """A value as on a command line."""
    return (shlex.join(map(str, value)) or "nothing") if isinstance(value, list) else str(value)


def objective_in_words(config: Config, base: Any) -> str:
    """What a trial's value is."""
    which = {"last": "its last evaluation", "area": "the area under its evaluations, divided by their number"}
    over = "" if config.seeds == 1 else f", mean over {config.seeds} seeds from {base.seed} on"
    return (
        f"value of a trial: mean raw return, {which[config.objective]}{over}; an evaluation is {base.eval_episodes} "
        f"games of {base.env} at epsilon {base.eval_epsilon}, every {base.eval_every_steps:,} of {base.total_steps:,} "
        "steps"
    )
