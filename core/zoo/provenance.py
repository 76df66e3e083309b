"""Where an eye comes from, so that a classifier never judges what began from itself.

    provenance.record(run, config.pretrained_backbone)                  # when a run takes an eye
    eye = lineage.begun_with(run.extra, config.pretrained_backbone)    # when somebody judges the run

An eye is known by marks: one of the run that trained it, which stays while its weights move, and one of every matrix in
its files, which stays when they are copied or rounded. The marks of all that it began from in its turn come along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.models import model_file
from zerokara.core.models.weights import read_tensors
from zerokara.core.run import Run
from zerokara.core.zoo.registry import weights_source

DIGITS = 12  # hexadecimal ones of a mark
FLAG = "--pretrained-backbone"


@dataclass(frozen=True)
class Provenance:
    """What weights are, and what they come from.

    Attributes:
        source: the folder or file, as it was named.
        own: marks of the run and of its matrices.
        ancestors: marks of everything that it began from, near or far.
        unknown: what it began from that is not there to be looked at.
    """

    source: str
    own: frozenset[str] = frozenset()
    ancestors: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()

    @property
    def all(self) -> frozenset[str]:
        """Its own marks and its ancestors'."""
        return self.own | self.ancestors

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return {
            "source": self.source,
            "own": " ".join(sorted(self.own)),
            "ancestors": " ".join(sorted(self.ancestors)),
            "unknown": list(self.unknown),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """What `to_dict` gave."""
        own, ancestors = (frozenset(values[name].split()) for name in ("own", "ancestors"))
        return cls(values["source"], own, ancestors, tuple(values["unknown"]))


def trace(path: Path) -> Provenance:
    """The lineage of the weights in a run's folder (all that it keeps, of any moment) or in a file.

    Raises:
        UserError: nothing there, or a damaged file.
    """
    folder = path if path.is_dir() else path.parent
    content = _run_in(folder)
    if content is None:
        return _of_file(path)
    own = {_mark_of_run(content)}
    for file in _files(folder, path):
        try:
            own.update(_marks(read_tensors(file)))
        except UserError:
            if file == path:
                raise  # others in the folder may be half written, or no weights at all
    began = begun_with(content["extra"], str(content["config"].get("pretrained_backbone") or ""))
    if began is None:
        return Provenance(str(path), frozenset(own))
    return Provenance(str(path), frozenset(own), began.all, began.unknown)


def record(run: Run, pretrained_backbone: str) -> None:
    """Put the lineage of the eye that a run begins with into its config.json. Every process must call it.

    Raises:
        UserError: as `trace`.
    """
    if pretrained_backbone:
        run.save_extra(eye=trace(weights_source(pretrained_backbone)).to_dict() if run.world.is_main else {})


def begun_with(extra: Mapping[str, Any], pretrained_backbone: str) -> Provenance | None:
    """The lineage of the eye that a run began from; None where it began afresh.

    Args:
        extra: of its config.json: what it remembers. A run from before runs remembered is looked up where it points to.
        init_backbone: what its --pretrained-backbone says.
    """
    if "eye" in extra:
        return Provenance.from_dict(extra["eye"])
    if not pretrained_backbone:
        return None
    try:
        return trace(weights_source(pretrained_backbone))
    except (UserError, RecursionError):
        return Provenance(pretrained_backbone, unknown=(pretrained_backbone,))


def _run_in(folder: Path) -> dict[str, Any] | None:
    if not (folder / "config.json").is_file():
        return None
    try:
        return Run.read_config(folder)
    except UserError:
        return None  # of some other program


def _mark_of_run(content: Mapping[str, Any]) -> str:
    """Of what never changes in a run's config.json, wherever the folder is moved."""
    told = [content.get(key) for key in ("kind", "created", "command", "machine")]
    return _digest(json.dumps(told, sort_keys=True).encode())


def _files(folder: Path, path: Path) -> Iterator[Path]:
    """The run's files of weights; those of other ranks hold the same networks."""
    for file in sorted({*folder.glob("*.safetensors"), *folder.glob("*.pt"), *({path} if path.is_file() else ())}):
        if not file.name.startswith("checkpoint-") or file.name == "checkpoint-0.pt" or file == path:
            yield file


def _of_file(path: Path) -> Provenance:
    """Of weights that lie in no run's folder: a copy, the zoo's, or somebody else's."""
    if path.is_dir():
        for name in ("model.safetensors", "checkpoint-0.pt"):
            if (path / name).is_file():
                return _of_file(path / name)
    tensors = read_tensors(path)
    metadata = None
    with contextlib.suppress(UserError):  # a card that makes no sense says nothing
        metadata = model_file.read_metadata(path)
    unknown: tuple[str, ...] = ()
    words = metadata.command.replace(f"{FLAG}=", f"{FLAG} ").split() if metadata is not None else []
    if FLAG in words:
        unknown = tuple(words[words.index(FLAG) + 1 :][:1])
    elif any(name.startswith("rng.") for name in tensors):  # a checkpoint of ours, taken out of its folder
        unknown = (f"the run that {path} is a checkpoint of",)
    return Provenance(str(path), frozenset(_marks(tensors)), unknown=unknown)


def _marks(tensors: Mapping[str, Tensor]) -> Iterable[str]:
    """One of each matrix or kernel, rounded to float16 as the zoo does it.

    Not of vectors, since biases and gains may be alike because they are fresh, nor of matrices of one number for the
    same reason, nor of what an optimiser keeps.
    """
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or "optimizer" in name or not tensor.numel():
            continue
        half = Compute.to_host(tensor).half().contiguous()
        if half.min() < half.max():
            yield _digest(str(tuple(half.shape)).encode() + half.numpy().tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
