"""What a sweep may vary: fields of an agent's config, as a person types them.

    learning_rate=log:1e-5..1e-3    any number between the two, each power of ten as likely
    n_step=1..5                     any number between the two, whole where the field is; both ends belong to it
    head=q,c51                      one of these
    dueling=true,false              a switch
    max_grad_norm=1,10,none         several values in place of a range

Every value is read by the agent's own command line, so what that one refuses is refused here with the same sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, get_type_hints

from optuna import Trial

from zerokara.agents.configs import dqn, pqn
from zerokara.agents.configs.common import Settings
from zerokara.core.command_line import parse
from zerokara.core.config import UserError, flag, note, rename, suggest
from zerokara.core.programs import program_command

SYNTAX = "name=low..high, name=log:low..high or name=value,value"
# What trials are compared by. Presets differ in it; a search over presets holds it as it stands without one of them.
HELD = ("total_steps", "protocol", "eval_every_steps", "eval_episodes", "eval_epsilon", "eval_max_steps")
# And what belongs to the game that is played, or is set by the sweep itself: nothing of it can be searched.
NEVER = frozenset(
    {
        *HELD,
        *("env", "repeat_action_probability", "noop_max", "fire_reset", "max_episode_frames", "stop_at_return"),
        *("name", "seed", "resume", "quiet", "capture_video"),
    }
)


class Agent(NamedTuple):
    """An entry that learns, as far as a sweep has to know it."""

    module: str
    config_class: type[Settings]
    presets: Mapping[str, Mapping[str, Any]]
    read_config: Callable[[Sequence[str]], Any]  # also refuses what contradicts itself

    def parse(self, words: Sequence[str]) -> Any:
        """Read the config of a command line, without a check for settings that contradict each other."""
        return parse(self.config_class, self.presets, words, "", without_effect=True)


AGENTS: Mapping[str, Agent] = {
    "dqn": Agent("agents.dqn", dqn.Config, dqn.PRESETS, dqn.read_config),
    "pqn": Agent("agents.pqn", pqn.Config, pqn.PRESETS, pqn.read_config),
}


@dataclass(frozen=True)
class Dimension:
    """A field that is varied: between two numbers, or over values, kept as they were typed."""

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[str, ...] = ()
    meant: tuple[Any, ...] = ()  # what the agent reads the choices as
    switch: bool = False  # on or off
    old_name: str = ""  # as typed, where that is a name of an older version

    @property
    def key(self) -> str:
        """Name in the Optuna study: the name as typed, so that a study of an older version can be resumed."""
        return self.old_name or self.name

    def suggest(self, trial: Trial) -> None:
        """Let a trial choose a value, if it has not."""
        if self.choices:
            trial.suggest_categorical(self.key, self.choices)
        elif isinstance(self.low, int) and isinstance(self.high, int):
            trial.suggest_int(self.key, self.low, self.high, log=self.log)
        else:
            trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def flags(self, value: str | float) -> list[str]:
        """A value of it on the agent's command line; of a number, six digits, which is what the run is started with."""
        if isinstance(value, str):
            return _flags(self.name, value, self.switch)
        short = f"{value:.6g}"
        return [flag(self.name), short if self.low <= float(short) <= self.high else repr(value)]

    def find(self, value: Any) -> str | float | None:
        """Where a value of the config lies in it, as Optuna has it; None where it lies outside."""
        if self.choices:
            return next((word for word, meant in zip(self.choices, self.meant, strict=True) if meant == value), None)
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return value if inside else None


def read_space(searches: Sequence[str], agent: Agent, given: Sequence[str]) -> list[Dimension]:
    """The dimensions that a command line asks for, in its order.

    Args:
        given: words of the agent's command line that all trials share.

    Raises:
        UserError: what cannot be read, is no field, does not fit the field, may not vary, or comes twice.
    """
    if not searches:
        raise UserError(
            f"Nothing was given to search: name a field of the config with its values ({SYNTAX}), "
            f"as in {program_command('agents.sweep')} learning_rate=log:1e-5..1e-3 n_step=1..5."
        )
    space: list[Dimension] = []
    for search in searches:
        dimension = read_dimension(search, agent, given)
        if dimension.name in {other.name for other in space}:
            raise UserError(f"{dimension.name} is searched twice: give all its values in one place.")
        space.append(dimension)
    return space


def words_of(space: Sequence[Dimension], params: Mapping[str, Any], base: Any) -> list[str]:
    """A trial's part of the agent's command line.

    Args:
        params: a value for every dimension, as Optuna has it.
        base: the agent's config as it stands.
    """
    words = [word for dimension in space for word in dimension.flags(params[dimension.key])]
    if not any(dimension.name == "preset" for dimension in space):
        return words
    return [*words, *(word for name in HELD for word in (flag(name), str(getattr(base, name))))]


def in_words(space: Sequence[Dimension], params: Mapping[str, Any]) -> str:
    """A trial's settings for a line of text: "learning_rate 0.0003, head c51"."""
    return ", ".join(f"{dimension.name} {text}" for dimension, text in zip(space, texts(space, params), strict=True))


def texts(space: Sequence[Dimension], params: Mapping[str, Any]) -> list[str]:
    """A trial's values as they are typed."""
    values = [params[dimension.key] for dimension in space]
    return [v if isinstance(v, str) else d.flags(v)[1] for d, v in zip(space, values, strict=True)]


def read_dimension(search: str, agent: Agent, given: Sequence[str] = ()) -> Dimension:
    """One dimension, such as that of "n_step=1..5".

    Raises:
        UserError: as `read_space`.
    """
    left, equals, right = search.partition("=")
    key = left.strip().lstrip("-").replace("-", "_")
    if not equals or not key or not right:
        raise UserError(f"{search!r} cannot be searched: write {SYNTAX}.")
    name = rename(agent.config_class, key, {})
    if name != key:
        note(f"{key} is called {name} now.")
    known = [field.name for field in fields(agent.config_class)]
    if name not in known:
        near = suggest(name, known)
        raise UserError(
            f"{agent.module} has no field {name}{near}; {program_command(agent.module)} --help lists them all."
        )
    if name in NEVER:
        raise UserError(
            f"{name} cannot be searched, for trials must be equal in it to be compared: "
            f"give one value after the dashes, as in -- {flag(name)} <value>, or leave it out."
        )
    log, ends = right.startswith("log:"), right.removeprefix("log:")
    if ".." in ends:
        return replace(_read_range(search, name, ends, log, agent, given), old_name="" if key == name else key)
    if log:
        raise UserError(f"{search!r} cannot be searched: log: goes before a range, as in {name}=log:1e-5..1e-3.")
    return replace(_read_choices(search, name, right.split(","), agent, given), old_name="" if key == name else key)


def _read_range(search: str, name: str, ends: str, log: bool, agent: Agent, given: Sequence[str]) -> Dimension:
    words = re.split(r"\.\.(?!\.)", ends, maxsplit=1)
    low, high = (_meant(name, word, agent, given) for word in words)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise UserError(f"{name} is no number, so {search!r} is no range: list its values, as in {name}=value,value.")
    if not low < high:
        raise UserError(f"{search!r} is empty: the lower end comes first, as in {name}={words[1]}..{words[0]}.")
    if log and low <= 0:
        raise UserError(f"{search!r} has no logarithm at {words[0]}: begin above 0, or leave log: out.")
    return Dimension(name, low, high, log)


def _read_choices(search: str, name: str, values: Sequence[str], agent: Agent, given: Sequence[str]) -> Dimension:
    words = tuple(value.strip() for value in values)
    if not all(words):
        raise UserError(f"{search!r} has a value that is nothing: write name=value,value without gaps.")
    switch = get_type_hints(agent.config_class)[name] is bool
    meant = tuple(_meant(name, word, agent, given) for word in words)
    if len(words) == 1:
        fixed = " ".join(_flags(name, words[0], switch))
        raise UserError(
            f"{search!r} gives nothing to choose from: add values ({SYNTAX}), "
            f"or fix it for all trials after the dashes, as in -- {fixed}."
        )
    if any(meant.index(value) != index for index, value in enumerate(meant)):
        raise UserError(f"{search!r} has a value twice: give each once.")
    return Dimension(name, choices=words, meant=meant, switch=switch)


def _meant(name: str, word: str, agent: Agent, given: Sequence[str]) -> Any:
    """What the agent reads a word as.

    Raises:
        UserError: it does not fit the field.
    """
    switch = get_type_hints(agent.config_class)[name] is bool
    if switch and word.lower() not in ("true", "false"):
        raise UserError(f"{name} is a switch and cannot be {word!r}: write {name}=true,false.")
    return getattr(agent.parse([*given, *_flags(name, word, switch)]), name)


def _flags(name: str, word: str, switch: bool) -> list[str]:
    """A typed value as the agent's command line takes it."""
    if switch:
        return [flag(name) if word.lower() == "true" else "--no-" + flag(name)[2:]]
    return [flag(name), word.capitalize() if word.lower() in ("none", "true", "false") else word]
