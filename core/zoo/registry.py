"""Small trained networks that are part of the package, in float16, under 5 MB each: <kind>/<name>.safetensors.

    classifier, metadata = load("digits")
    path = find("pong", "agents")            # the zoo's agent; find("runs/pong", "agents") is a run folder

Names are those of a kind of network: there is a classifier and a generator called digits. The metadata of a file has
all that is needed to build the network, the command that trained it, and its metrics. `python -m core.zoo` lists the
networks; `python -m scripts.add_to_zoo` adds one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from zerokara.core.config import UserError, note, suggest
from zerokara.core.run_folder import existing_runs, format_existing

if TYPE_CHECKING:
    from zerokara.core.models.classifier import Classifier, ClassifierMetadata

Kind = Literal["classifiers", "agents", "generators"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # also the folders of their files

LITE0 = "lite0"  # name of the weights in the package of the extra `scores` (core/models/lite0.py)
FOLDER = Path(__file__).resolve().parent
MAX_BYTES = 5_000_000


@functools.cache
def files(kind: Kind = "classifiers") -> Mapping[str, Path]:
    """Return the paths of the model files of a kind of network by name."""
    return {path.stem: path for path in sorted((FOLDER / kind).glob("*.safetensors"))}


def load(name: str) -> tuple[Classifier, ClassifierMetadata]:
    """Load a classifier of the zoo, in evaluation mode, float32 on the CPU, and its metadata.

    Raises:
        UserError: the name is unknown.
    """
    from zerokara.core.models.classifier import ClassifierMetadata

    if name not in files():
        raise UserError(f"The zoo has no network {name!r}{suggest(name, files())}: choose one of {_known()}.")
    return ClassifierMetadata.load(files()[name])


def find(word: str, kind: Kind = "classifiers") -> Path:
    """Find a trained network, given a run folder, a file, or a name in the zoo.

    A plain name is one of the zoo, also if there is a folder or a run of that name; a note then says so.

    Raises:
        UserError: none of these exists.
    """
    path = Path(word).expanduser()
    if word in files(kind):
        _note_others(word, f"the name in the zoo ({kind})")
        return files(kind)[word]
    if path.exists():
        return path
    plain = path.name == word
    runs = {run.name: str(run) for run in existing_runs(Path("runs") if plain else path.parent)}
    known = {**({name: name for name in files(kind)} if plain else {}), **runs}
    hint = suggest(path.name, known, known.__getitem__)
    raise UserError(
        f"There is no {word}{hint}: give a run folder, a file *.safetensors, or a name in the zoo "
        f"({_known(kind)}){format_existing(list(runs.values()))}."
    )


def find_file(word: str) -> Path:
    """Find the model file of a trained classifier, given a run folder, a file, or a name in the zoo.

    Raises:
        UserError: none of these exists, or the run has not saved a model yet.
    """
    from zerokara.core.models.classifier import ClassifierMetadata

    return ClassifierMetadata.find(find(word))


def find_weights(word: str) -> Path:
    """Find the path of pretrained weights of a backbone.

    Args:
        word: run folder of any kind, file, name of a classifier in the zoo, or lite0: ImageNet weights of
            efficientnet_lite0 in the package of the extra scores.

    Raises:
        UserError: none of these exists, or the package is not installed.
    """
    if word == LITE0:
        from zerokara.core.models import lite0

        _note_others(word, "the weights of efficientnet_lite0")
        return lite0.find_weights(f"--pretrained-backbone {LITE0}")
    return find(word)


def lacks_metadata(path: Path) -> bool:
    """Return True if weights have no description of their network: those of agents, GANs and other programs."""
    from zerokara.core.models.classifier import ClassifierMetadata
    from zerokara.core.models.model_file import is_foreign

    if path.is_dir():
        return not (path / ClassifierMetadata.FILE).is_file()
    return path.suffix in (".pt", ".pth") or (path.suffix == ".safetensors" and is_foreign(path))


def is_classifier(word: str) -> bool:
    """Return True if a word names a classifier of zerokara, with its description; False for other weights, and "".

    Args:
        word: run folder, file, name of a classifier in the zoo, or lite0.
    """
    return word not in ("", LITE0) and not lacks_metadata(Path(word).expanduser())


def _note_others(word: str, meaning: str) -> None:
    """Print a note if there is a folder or a run of a name that means something else."""
    for other in (Path(".", word), Path("runs", word)):
        if other.exists():
            note(f"{word} is taken for {meaning}; for the folder here, type {_typed(other)}.")


def _typed(path: Path) -> str:
    """Return a relative path as it must be typed so that it is not a plain name."""
    return str(path) if len(path.parts) > 1 else f"./{path}"


def _known(kind: Kind = "classifiers") -> str:
    return ", ".join(files(kind)) or "it is empty"
