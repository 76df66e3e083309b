"""Search space of a sweep: fields of an agent's config and their values, as typed on the command line.

    learning_rate=log:1e-5..1e-3    range, sampled uniformly in the logarithm
    n_step=1..5                     range including both ends; integers if the field is an integer
    head=q,c51                      list of values
    dueling=true,false              a bool
    max_grad_norm=1,10,none         list of values instead of a range

Every value is parsed by the command line of the agent, so an invalid value gives the error message of the agent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.common import OUTPUT_FIELDS, Settings
from zerokara.core.command_line import parse
from zerokara.core.config import UserError, flag, negated_flag, note, rename, suggest
from zerokara.core.programs import program_command

if TYPE_CHECKING:
    from optuna import Trial

SYNTAX = "name=low..high, name=log:low..high or name=value,value"
# Fields that must be equal in all trials, so that their values are comparable. Presets differ in them; a search over
# presets fixes them to their values without a searched preset.
FIXED = ("total_steps", "protocol", "eval_every_steps", "eval_episodes", "eval_epsilon", "eval_max_steps")
# Fields that cannot be searched: also those of the environment, and those that the sweep itself sets.
NOT_SEARCHABLE = frozenset(
    {
        *FIXED,
        *("env", "repeat_action_probability", "noop_max", "fire_reset", "fire_after_life_loss"),
        *("max_episode_frames", "stop_at_return"),
        *("seed", *OUTPUT_FIELDS),
    }
)


class AgentProgram(NamedTuple):
    """A program that trains agents, and its command line."""

    module: str
    config_class: type[Settings]
    presets: Mapping[str, Mapping[str, Any]]
    read_config: Callable[[Sequence[str]], Any]  # refuses incompatible settings

    def parse(self, arguments: Sequence[str]) -> Any:
        """Read the config of a command line, without the check for incompatible settings."""
        return parse(self.config_class, self.presets, arguments, "", without_effect=True)


AGENTS: Mapping[str, AgentProgram] = {
    "dqn": AgentProgram("agents.dqn", dqn.Config, dqn.PRESETS, dqn.read_config),
    "pqn": AgentProgram("agents.pqn", pqn.Config, pqn.PRESETS, pqn.read_config),
    "stream": AgentProgram("agents.stream", stream.Config, stream.PRESETS, stream.read_config),
}


@dataclass(frozen=True)
class Dimension:
    """A field of the config that is searched: a range of numbers or a list of values.

    Values of a list are kept as text, because Optuna saves them in the study.
    """

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[str, ...] = ()  # as typed
    parsed: tuple[Any, ...] = ()  # the choices as values of the field
    is_bool: bool = False
    old_name: str = ""  # name as typed, if it is that of an older version

    @property
    def key(self) -> str:
        """Name in the Optuna study: the name as typed, so that a study of an older version can be resumed."""
        return self.old_name or self.name

    def suggest(self, trial: Trial) -> None:
        """Let a trial sample a value, unless it already has one."""
        if self.choices:
            trial.suggest_categorical(self.key, self.choices)
        elif isinstance(self.low, int) and isinstance(self.high, int):
            trial.suggest_int(self.key, self.low, self.high, log=self.log)
        else:
            trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def arguments(self, value: str | float) -> list[str]:
        """Format a sampled value for the agent's command line; a number is rounded to six digits within the range."""
        if isinstance(value, str):
            return _arguments(self.name, value, self.is_bool)
        short = f"{value:.6g}"
        return [flag(self.name), short if self.low <= float(short) <= self.high else repr(value)]

    def sampled_value(self, value: Any) -> str | float | None:
        """Convert a value of the config to the value that Optuna would sample; None if it is outside of the space."""
        if self.choices:
            return next((text for text, v in zip(self.choices, self.parsed, strict=True) if v == value), None)
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return value if inside else None


def read_space(searches: Sequence[str], agent: AgentProgram, agent_arguments: Sequence[str]) -> list[Dimension]:
    """Read the search space.

    Args:
        searches: one text for each dimension: "n_step=1..5".
        agent_arguments: command line of the agent that all trials share.

    Raises:
        UserError: nothing is searched, a field is searched twice, or a dimension is invalid.
    """
    if not searches:
        raise UserError(
            f"There is nothing to search: give fields of the config with their values ({SYNTAX}), "
            f"for example {program_command('agents.sweep')} learning_rate=log:1e-5..1e-3 n_step=1..5."
        )
    space: list[Dimension] = []
    for search in searches:
        dimension = read_dimension(search, agent, agent_arguments)
        if dimension.name in {other.name for other in space}:
            raise UserError(f"{dimension.name} is searched twice: give all its values in one place.")
        space.append(dimension)
    return space


def trial_arguments(space: Sequence[Dimension], params: Mapping[str, Any], base: Any) -> list[str]:
    """Format the settings of a trial for the agent's command line.

    Args:
        params: sampled value of each dimension, by its name in the study.
        base: config of the agent without the searched values.
    """
    arguments = [word for dimension in space for word in dimension.arguments(params[dimension.key])]
    if not any(dimension.name == "preset" for dimension in space):
        return arguments
    return [*arguments, *(word for name in FIXED for word in (flag(name), str(getattr(base, name))))]


def format_params(space: Sequence[Dimension], params: Mapping[str, Any]) -> str:
    """Format the settings of a trial for messages: "learning_rate 0.0003, head c51"."""
    values = format_values(space, params)
    return ", ".join(f"{dimension.name} {text}" for dimension, text in zip(space, values, strict=True))


def format_values(space: Sequence[Dimension], params: Mapping[str, Any]) -> list[str]:
    """Format the values of a trial as on the command line."""
    values = [params[dimension.key] for dimension in space]
    return [v if isinstance(v, str) else d.arguments(v)[1] for d, v in zip(space, values, strict=True)]


def read_dimension(search: str, agent: AgentProgram, agent_arguments: Sequence[str] = ()) -> Dimension:
    """Read one dimension, for example "n_step=1..5".

    Raises:
        UserError: the text has another form, the field is unknown or cannot be searched, or a value is invalid.
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
    if name in NOT_SEARCHABLE:
        raise UserError(
            f"{name} cannot be searched, because trials with different values are not comparable: "
            f"set it for all trials after --, as in -- {flag(name)} <value>, or omit it."
        )
    log, values = right.startswith("log:"), right.removeprefix("log:")
    if ".." in values:
        dimension = _read_range(search, name, values, log, agent, agent_arguments)
    elif log:
        raise UserError(f"{search!r} cannot be searched: log: needs a range, as in {name}=log:1e-5..1e-3.")
    else:
        dimension = _read_choices(search, name, values.split(","), agent, agent_arguments)
    return replace(dimension, old_name="" if key == name else key)


def _read_range(
    search: str, name: str, values: str, log: bool, agent: AgentProgram, agent_arguments: Sequence[str]
) -> Dimension:
    words = re.split(r"\.\.(?!\.)", values, maxsplit=1)
    low, high = (_parse_value(name, word, agent, agent_arguments) for word in words)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise UserError(f"{name} is not a number, so {search!r} is not a range: list values, as in {name}=value,value.")
    if not low < high:
        raise UserError(f"{search!r} is empty: give the lower end first, as in {name}={words[1]}..{words[0]}.")
    if log and low <= 0:
        raise UserError(f"{search!r}: there is no logarithm of {words[0]}: start the range above 0, or omit log:.")
    return Dimension(name, low, high, log)


def _read_choices(
    search: str, name: str, values: Sequence[str], agent: AgentProgram, agent_arguments: Sequence[str]
) -> Dimension:
    words = tuple(value.strip() for value in values)
    if not all(words):
        raise UserError(f"{search!r} contains an empty value: write name=value,value without gaps.")
    is_bool = get_type_hints(agent.config_class)[name] is bool
    parsed = tuple(_parse_value(name, word, agent, agent_arguments) for word in words)
    if len(words) == 1:
        fixed = " ".join(_arguments(name, words[0], is_bool))
        raise UserError(
            f"{search!r} has only one value: add values ({SYNTAX}), or set it for all trials after --, "
            f"as in -- {fixed}."
        )
    if any(parsed.index(value) != index for index, value in enumerate(parsed)):
        raise UserError(f"{search!r} contains a value twice: give each value once.")
    return Dimension(name, choices=words, parsed=parsed, is_bool=is_bool)


def _parse_value(name: str, word: str, agent: AgentProgram, agent_arguments: Sequence[str]) -> Any:
    """Parse a value by the command line of the agent.

    Raises:
        UserError: the value does not fit the field.
    """
    is_bool = get_type_hints(agent.config_class)[name] is bool
    if is_bool and word.lower() not in ("true", "false"):
        raise UserError(f"{name} is a switch and cannot be {word!r}: write {name}=true,false.")
    return getattr(agent.parse([*agent_arguments, *_arguments(name, word, is_bool)]), name)


def _arguments(name: str, word: str, is_bool: bool) -> list[str]:
    """Format a typed value for the agent's command line."""
    if is_bool:
        return [flag(name) if word.lower() == "true" else negated_flag(name)]
    return [flag(name), word.capitalize() if word.lower() in ("none", "true", "false") else word]
