"""Small trained networks that are part of the package: <name>.safetensors, in float16, under 5 MB.

    classifier, metadata = load("digits")

The metadata of a file has the classes, the input normalization, the command that trained the network, and its metrics.
`python -m core.zoo` lists the networks; `python -m scripts.add_to_zoo` adds one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from zerokara.core.config import UserError, suggest
from zerokara.core.models.classifier import Classifier, ClassifierMetadata

FOLDER = Path(__file__).resolve().parent
MAX_BYTES = 5_000_000


@functools.cache
def files() -> Mapping[str, Path]:
    """Return the paths of the model files by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def load(name: str) -> tuple[Classifier, ClassifierMetadata]:
    """Load a network of the zoo, in evaluation mode, float32 on the CPU, and its metadata.

    Raises:
        UserError: the name is unknown.
    """
    if name not in files():
        raise UserError(f"The zoo has no network {name!r}{suggest(name, files())}: choose one of {_known()}.")
    return ClassifierMetadata.load(files()[name])


def find_file(word: str) -> Path:
    """Find the model file of a trained classifier, given a run folder, a file, or a name in the zoo.

    Raises:
        UserError: none of these exists, or the run has not saved a model yet.
    """
    path = Path(word).expanduser()
    if path.exists():
        return ClassifierMetadata.find(path)
    if word in files():
        return files()[word]
    raise UserError(
        f"There is no {word}{suggest(word, files())}: give a run folder, a file *.safetensors, or a name in the zoo "
        f"({_known()})."
    )


def find_weights(word: str) -> Path:
    """Find the path of pretrained weights, given a run folder of any kind, a file, or a name in the zoo.

    Raises:
        UserError: none of these exists.
    """
    path = Path(word).expanduser()
    return path if path.exists() else find_file(word)


def lacks_metadata(path: Path) -> bool:
    """Return True if these weights of a run have no description of their network (agents, GANs, .pt files)."""
    return (path.is_dir() and not (path / ClassifierMetadata.FILE).is_file()) or path.suffix in (".pt", ".pth")


def _known() -> str:
    return ", ".join(files()) or "it is empty"
