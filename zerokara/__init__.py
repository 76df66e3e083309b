"""zerokara: one deep CNN that learns to see, generate and play from raw pixels.

    import zerokara

    agent = zerokara.load_agent("runs/dqn-Pong-v5-fast-1")
    action = agent.act(frame)

The public interface for Python is what `__all__` lists; docs/python.md describes it. This is also the import name of
everything in the project: `zerokara.core`, `zerokara.envs`, `zerokara.agents`, `zerokara.generative` and
`zerokara.vision`. Importing it loads neither PyTorch nor a program; they are loaded when a name is used.

In an installed wheel these packages lie inside this folder. In a checkout they lie beside it, at the top of the
repository, so the repository is added to the package's search path.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "agents" / "__init__.py").is_file():
    __path__.append(str(_ROOT))

if TYPE_CHECKING:
    from zerokara.agents.viewing.loading import Agent, load_agent
    from zerokara.core.config import UserError
    from zerokara.generative.gan.sampler import Sampler as Generator
    from zerokara.predictors import (
        Captioner,
        Classifier,
        Detector,
        Segmenter,
        load_captioner,
        load_classifier,
        load_detector,
        load_generator,
        load_segmenter,
    )
    from zerokara.training import train_classifier, train_dcgan, train_dqn, train_pqn, train_stream

__all__ = [
    "Agent",
    "Captioner",
    "Classifier",
    "Detector",
    "Generator",
    "Segmenter",
    "UserError",
    "load_agent",
    "load_captioner",
    "load_classifier",
    "load_detector",
    "load_generator",
    "load_segmenter",
    "train_classifier",
    "train_dcgan",
    "train_dqn",
    "train_pqn",
    "train_stream",
]

# Module and name in it; zerokara.predictors and zerokara.training for what is not here.
_ELSEWHERE = {
    "Agent": ("zerokara.agents.viewing.loading", "Agent"),
    "load_agent": ("zerokara.agents.viewing.loading", "load_agent"),
    "Generator": ("zerokara.generative.gan.sampler", "Sampler"),
    "UserError": ("zerokara.core.config", "UserError"),
}


def __getattr__(name: str) -> Any:
    """Load a name of the public interface."""
    if name not in __all__:
        raise AttributeError(f"module 'zerokara' has no attribute {name!r}")
    own = "zerokara.training" if name.startswith("train_") else "zerokara.predictors"
    module, attribute = _ELSEWHERE.get(name, (own, name))
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Return the names of the public interface and of the module."""
    return sorted({*globals(), *__all__})
