"""Training in Python: the programs that train, with their options as keyword arguments.

    agent = train_dqn(env=MyEnv, backbone=MyNet, total_steps=100_000, callback=on_log)

A run has its folder runs/<name> as on the command line, and its signals, checkpoints and messages are the same.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zerokara.agents.viewing.loading import Agent, load_agent
from zerokara.core import checkpoint
from zerokara.core.config import Stopped, UserError, disk_full_message, field_types, flag, is_switch, negated_flag
from zerokara.core.named_object import NamedObject
from zerokara.core.programs import program_command
from zerokara.core.run import LogCallback

if TYPE_CHECKING:
    from zerokara.generative.gan.sampler import Sampler
    from zerokara.predictors import Classifier

OWN_CLASSES = ("env", "backbone")  # settings that may be classes or functions


def train_dqn(*, callback: LogCallback | None = None, **settings: Any) -> Agent:
    """Train a DQN agent and return it, as `python -m agents.dqn`.

    Args:
        callback: called with the step and a dict of metrics at each log entry; if it returns False, the run is saved
            and stopped, and can be resumed.
        settings: fields of the config (`python -m agents.dqn --help-all`). `env` is an id, an import path, a class, or
            a function that creates a gymnasium.Env. `backbone` is a name, an import path, a class of torch.nn.Module,
            or a function that creates one, called with the channels and the (height, width) of the images.

    Raises:
        UserError: a setting is unknown or invalid, the environment or the network cannot be used, or training diverged.
    """
    from zerokara.agents import dqn

    return _train_agent(dqn, settings, callback)


def train_pqn(*, callback: LogCallback | None = None, **settings: Any) -> Agent:
    """Train an agent with parallel Q-learning and return it, as `python -m agents.pqn`; see `train_dqn`."""
    from zerokara.agents import pqn

    return _train_agent(pqn, settings, callback)


def train_stream(*, callback: LogCallback | None = None, **settings: Any) -> Agent:
    """Train an agent with streaming Q(lambda) and return it, as `python -m agents.stream`; see `train_dqn`."""
    from zerokara.agents import stream

    return _train_agent(stream, settings, callback)


def train_dcgan(*, callback: LogCallback | None = None, **settings: Any) -> Sampler:
    """Train a GAN and return its best generator, as `python -m generative.dcgan`; see `train_dqn`.

    The data are those of the setting `data`: a name, or a folder or file of images.
    """
    from zerokara.generative import dcgan
    from zerokara.predictors import load_generator

    with _own_random_numbers(settings):
        config = _train(dcgan, settings, callback)
        return load_generator(Path("runs") / config.name, device=config.device, threads=config.threads)


def train_classifier(*, callback: LogCallback | None = None, **settings: Any) -> Classifier:
    """Train an image classifier and return it, as `python -m vision.classify`; see `train_dqn`.

    The data are those of the setting `data`: a name, or a folder or file of images.
    """
    from zerokara.predictors import load_classifier
    from zerokara.vision import classify

    with _own_random_numbers(settings):
        config = _train(classify, settings, callback)
        own = config.backbone.target if isinstance(config.backbone, NamedObject) else None
        return load_classifier(Path("runs") / config.name, backbone=own, device=config.device, threads=config.threads)


def _train_agent(program: ModuleType, settings: Mapping[str, Any], callback: LogCallback | None) -> Agent:
    with _own_random_numbers(settings):
        config = _train(program, settings, callback)
        own = {name: getattr(config, name) for name in OWN_CLASSES if isinstance(getattr(config, name), NamedObject)}
        return load_agent(Path("runs") / config.name, device=config.device, threads=config.threads, **own)


@contextlib.contextmanager
def _own_random_numbers(settings: Mapping[str, Any]) -> Iterator[None]:
    """Restore the random generators of the caller, so that its numbers do not repeat after each run of the same seed.

    A run seeds the generators of torch, and a resumed one also sets those of Python and NumPy.
    """
    before = checkpoint.rng_state()
    try:
        yield
    finally:
        changed = before if settings.get("resume") else {"torch": before["torch"], "cuda": before["cuda"]}
        checkpoint.set_rng_state({**checkpoint.rng_state(), **changed})


def _train(program: ModuleType, settings: Mapping[str, Any], callback: LogCallback | None) -> Any:
    """Run a training program. Returns its config.

    Args:
        program: module with `Config`, `read_config` and `start`.
        settings: fields of the config.
        callback: see `train_dqn`.
    """
    try:
        given = {name: settings[name] for name in OWN_CLASSES if name in settings}
        own = {name: _named(name, value) for name, value in given.items() if not isinstance(value, str)}
        config = replace(program.read_config(command_line({**settings, **own})), **own)
        with contextlib.suppress(Stopped):  # by a signal or by the callback; the run is saved
            program.start(config, callback)
        gc.collect()  # the parts of a run refer to each other, and its replay buffer must not stay until the next one
    except UserError as error:
        raise UserError(python_message(str(error), program)) from error.__cause__
    except OSError as error:
        if (message := disk_full_message(error)) is None:
            raise
        raise UserError(message) from error
    return config


def _named(name: str, value: Any) -> NamedObject:
    """Return a class or function with its import path.

    Raises:
        UserError: it is something else.
    """
    if not callable(value):
        raise UserError(
            f"{flag(name)} cannot be an object of {type(value).__name__}: give a name, a class, or a function that "
            f"creates one, because a run needs several of them."
        )
    return NamedObject.of(value)


def command_line(settings: Mapping[str, Any]) -> list[str]:
    """Return the words of the command line that sets the fields of a config.

    Raises:
        UserError: a value cannot be written on a command line.
    """
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else negated_flag(name))
        elif isinstance(value, Mapping):  # env_kwargs
            words += [flag(name), *(f"{key}={part!r}" for key, part in value.items())]
        elif isinstance(value, tuple | list):
            words += [flag(name), *map(str, value)]
        elif value is None or isinstance(value, str | int | float | Path):
            words.append(f"{flag(name)}={value}")
        else:
            raise UserError(
                f"{flag(name)} cannot be an object of {type(value).__name__}: give a number, a text, True, False, None "
                f"or a list of them."
            )
    return words


def python_message(message: str, program: ModuleType) -> str:
    """Return a message of a program with keyword arguments instead of flags: seed=3 for `--seed 3`."""
    name = program.__name__.removeprefix("zerokara.")
    switches = {field for field, annotation in field_types(program.Config).items() if is_switch(annotation)}
    message = message.replace("--help lists", f"{program_command(name)} --help lists")
    message = message.replace("There is no flag --", f"{name} has no setting --").replace("leave the flag", "leave it")

    def keyword(match: re.Match[str]) -> str:
        negated, field, value = match[1], match[2].replace("-", "_"), match[3]
        if field in ("help", "help_all"):
            return match[0]
        if field in switches:
            return f"{field}={not negated}" + (f" {value}" if value else "")
        return field + (f"={value}" if value else "")

    return re.sub(r"--(no-)?([a-z][a-z0-9-]*)(?: (-?\d[\w.]*))?", keyword, message)
