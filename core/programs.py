"""The programs of zerokara, and how a person types them.

A program is started in one of three ways, and every command that it prints is written in the same way:

    python -m agents.dqn               # in a checkout
    python -m zerokara.agents.dqn      # anywhere
    zerokara dqn                       # anywhere, by the console command of an installed zerokara
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType

PROGRAMS: Mapping[str, str] = MappingProxyType(
    {
        "agents.dqn": "train a DQN agent",
        "agents.pqn": "train an agent with parallel Q-learning (PQN)",
        "agents.stream": "train an agent with streaming Q(lambda)",
        "agents.evaluate": "score trained agents over whole episodes",
        "agents.play": "show a trained agent in a window or a video",
        "agents.export": "write a trained agent as safetensors and ONNX files",
        "agents.plot": "plot learning curves over runs and seeds",
        "agents.benchmark": "train and score many games, presets and seeds",
        "agents.sweep": "search hyperparameters",
        "generative.dcgan": "train a GAN",
        "generative.sample": "generate images with a trained generator",
        "generative.project": "find the latent vectors of your own pictures",
        "generative.interpolate": "a video between latent vectors",
        "generative.arithmetic": "add and subtract latent vectors",
        "generative.neighbours": "compare generated images with their nearest training images",
        "generative.metrics": "score a trained generator",
        "generative.representation": "compare backbones as feature extractors with few labels",
        "generative.export": "write a trained generator as an ONNX file",
        "generative.style_transfer": "render one image in the style of another",
        "generative.fast_style": "train a network that applies one style",
        "generative.stylise": "apply a trained style network to images",
        "vision.classify": "train an image classifier",
        "vision.predict": "classify images of your own",
        "vision.export": "write a trained classifier as safetensors and ONNX files",
        "vision.misread": "show which images a classifier gets wrong",
        "vision.features": "show what the layers of a classifier respond to",
        "vision.layer_times": "time each layer of a network",
        "vision.precision": "compare float32, 16-bit and 8-bit inference",
        "vision.devices": "compare the training speed of devices and settings",
        "vision.depth": "experiment: error against depth and filter size",
        "vision.augmentation": "experiment: error against augmentation and training set size",
        "vision.binary": "train a network with binary weights and activations",
        "vision.segment": "train a semantic segmentation network",
        "vision.segment_predict": "segment images and videos of your own",
        "vision.detect": "train an object detector (R-CNN, Fast R-CNN)",
        "vision.detect_predict": "detect objects in images of your own",
        "vision.detect_compare": "compare two trained detectors",
        "vision.caption": "train an image captioner",
        "vision.caption_predict": "caption images of your own",
        "vision.caption_splits": "summarize captioning runs over several data splits",
        "core.processes": "train with the fastest number of processes, which is measured",
        "core.seeds": "train with several seeds, on this machine or a cluster",
        "core.backbones": "list the backbones with their cost",
        "core.zoo": "list the trained networks that ship with zerokara",
    }
)
"""Module below zerokara -> description in the imperative."""

by_console_command = False  # set by `zerokara.__main__`: commands are then printed as `zerokara dqn`


def short_names() -> dict[str, str]:
    """Return the short name of each program: "dqn", or "vision.export" if another program ends in the same word."""
    words = Counter(module.split(".")[-1] for module in PROGRAMS)
    return {module: module if words[leaf := module.split(".")[-1]] > 1 else leaf for module in PROGRAMS}


def program_command(module: str) -> str:
    """Return the command that starts the program `module` ("agents.play"), in the form that started this one."""
    started = _main_module()
    if by_console_command or (not started and not _in_checkout()):
        return f"zerokara {short_names()[module]}"
    return f"python -m {'zerokara.' if started.startswith('zerokara.') else ''}{module}"


def program() -> str:
    """Return the command that started the running program, without its options: "python -m agents.dqn"."""
    started = _main_module()
    if started.removeprefix("zerokara.") in PROGRAMS:
        return program_command(started.removeprefix("zerokara."))
    return f"python -m {started}" if started else f"python {Path(sys.argv[0]).name}"


def command() -> str:
    """Return the command line of the running program: "python -m agents.dqn --seed 3"."""
    return f"{program()} {shlex.join(sys.argv[1:])}".strip()


def is_restarted() -> bool:
    """Return True if `torchrun --max-restarts` has started this process again after a failure on this machine."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def restarts_processes() -> bool:
    """Return True if torchrun starts the processes again after a failure (--max-restarts)."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") not in ("", "0")


def restarting_since() -> datetime | None:
    """Return when torchrun was started, if it restarts processes; None otherwise.

    On several machines, the torchrun of each counts only the failures of its own processes, so that the number of a
    restart does not tell whether the group has been restarted.
    """
    if not restarts_processes():
        return None
    import psutil

    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time(), UTC)


def import_path() -> dict[str, str]:
    """Return environment variables with which a child process can import zerokara; none if it is installed."""
    try:
        distribution("zerokara")
    except PackageNotFoundError:
        checkout = str(Path(__file__).resolve().parents[1])
        return {"PYTHONPATH": os.pathsep.join(filter(None, (checkout, os.environ.get("PYTHONPATH"))))}
    return {}


def _main_module() -> str:
    """Name of the module that `python -m` runs; empty where a script or a notebook runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else ""


def _in_checkout() -> bool:
    """Return True if this file is in a checkout, where core/ is at the top, and not in an installed package."""
    return (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file()
