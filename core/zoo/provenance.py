"""Provenance of pretrained backbones, so that a classifier is not used to evaluate a network derived from itself.

    provenance.record(run, config.pretrained_backbone)                     # when a run loads a backbone
    origin = provenance.initial_provenance(run.extra, config.pretrained_backbone)  # when the run is evaluated

Weights are identified by hashes: one of the run that trained them, which does not change during training, and one of
every matrix in its files, which does not change when the files are copied or rounded to float16. The hashes of
everything that the weights were in turn initialized from are included.
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
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.weights import read_tensors
from zerokara.core.run import Run
from zerokara.core.zoo.registry import find_weights

DIGITS = 12  # hexadecimal digits of a hash
FLAGS = ("--pretrained-backbone", "--init-backbone")  # the second one was its name in zerokara 0.1


@dataclass(frozen=True)
class Provenance:
    """Identity and ancestors of weights.

    Attributes:
        source: folder or file, as the user gave it.
        own: hashes of the run and of its matrices.
        ancestors: hashes of all weights that these were initialized from, directly or indirectly.
        unknown: ancestors that cannot be found or read.
    """

    source: str
    own: frozenset[str] = frozenset()
    ancestors: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()

    @property
    def all(self) -> frozenset[str]:
        """Own hashes and those of the ancestors."""
        return self.own | self.ancestors

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for config.json."""
        return {
            "source": self.source,
            "own": " ".join(sorted(self.own)),
            "ancestors": " ".join(sorted(self.ancestors)),
            "unknown": list(self.unknown),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Create from the values of `to_dict`."""
        own, ancestors = (frozenset(values[name].split()) for name in ("own", "ancestors"))
        return cls(values["source"], own, ancestors, tuple(values["unknown"]))


def trace(path: Path) -> Provenance:
    """Determine the provenance of the weights in a run folder (all of its files of weights) or in a file.

    Raises:
        UserError: the path does not exist, or the file is damaged.
    """
    folder = path if path.is_dir() else path.parent
    content = _read_run(folder)
    if content is None:
        return _trace_file(path)
    own = {_run_hash(content)}
    for file in _files(folder, path):
        try:
            own.update(_matrix_hashes(read_tensors(file)))
        except UserError:
            if file == path:
                raise  # other files in the folder may be incomplete or may not contain weights
    settings = content["config"]  # of any kind of run, so an old name is not translated
    began = initial_provenance(
        content["extra"], str(settings.get("pretrained_backbone") or settings.get("init_backbone") or "")
    )
    if began is None:
        return Provenance(str(path), frozenset(own))
    return Provenance(str(path), frozenset(own), began.all, began.unknown)


def record(run: Run, pretrained_backbone: str) -> None:
    """Save the provenance of a run's pretrained backbone in its config.json. All processes must call this.

    Raises:
        UserError: see `trace`.
    """
    if pretrained_backbone:
        run.save_extra(eye=trace(find_weights(pretrained_backbone)).to_dict() if run.world.is_main else {})


def initial_provenance(extra: Mapping[str, Any], pretrained_backbone: str) -> Provenance | None:
    """Return the provenance of a run's pretrained backbone; None if the run did not use one.

    Args:
        extra: the entry `extra` of its config.json. Runs of older versions did not save the provenance; for these it is
            determined from `pretrained_backbone`.
        pretrained_backbone: the run's --pretrained-backbone; "" if there is none.
    """
    if "eye" in extra:
        return Provenance.from_dict(extra["eye"])
    if not pretrained_backbone:
        return None
    try:
        return trace(find_weights(pretrained_backbone))
    except (UserError, RecursionError):
        return Provenance(pretrained_backbone, unknown=(pretrained_backbone,))


def _read_run(folder: Path) -> dict[str, Any] | None:
    if not (folder / "config.json").is_file():
        return None
    try:
        return Run.read_config(folder)
    except UserError:
        return None  # written by another program


def _run_hash(content: Mapping[str, Any]) -> str:
    """Hash the entries of a run's config.json that never change, also if the folder is moved."""
    constants = [content.get(key) for key in ("kind", "created", "command", "machine")]
    return _digest(json.dumps(constants, sort_keys=True).encode())


def _files(folder: Path, path: Path) -> Iterator[Path]:
    """List the run's files of weights. Checkpoints of other ranks are left out, as they contain the same networks."""
    for file in sorted({*folder.glob("*.safetensors"), *folder.glob("*.pt"), *({path} if path.is_file() else ())}):
        if not file.name.startswith("checkpoint-") or file.name == "checkpoint-0.pt" or file == path:
            yield file


def _trace_file(path: Path) -> Provenance:
    """Determine the provenance of weights outside of a run folder: a copy, a network of the zoo, or a foreign file."""
    if path.is_dir():
        for name in ("model.safetensors", "checkpoint-0.pt"):
            if (path / name).is_file():
                return _trace_file(path / name)
    tensors = read_tensors(path)
    metadata = None
    with contextlib.suppress(UserError):  # ignore invalid metadata
        metadata = ClassifierMetadata.read_metadata(path)
    unknown: tuple[str, ...] = ()
    command = "" if metadata is None else metadata.command
    for name in FLAGS:
        command = command.replace(f"{name}=", f"{name} ")
    words = command.split()
    if flag := next((name for name in FLAGS if name in words), None):
        unknown = tuple(words[words.index(flag) + 1 :][:1])
    elif any(name.startswith("rng.") for name in tensors):  # a checkpoint that was copied out of its run folder
        unknown = (f"the run of the checkpoint {path}",)
    return Provenance(str(path), frozenset(_matrix_hashes(tensors)), unknown=unknown)


def _matrix_hashes(tensors: Mapping[str, Tensor]) -> Iterable[str]:
    """Hash each matrix or kernel, rounded to float16 as in the files of the zoo.

    Vectors and constant matrices are skipped, because two networks may share them at initialization (biases, gains).
    Optimizer states are skipped too.
    """
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or "optimizer" in name or not tensor.numel():
            continue
        half = Compute.to_host(tensor).half().contiguous()
        if half.min() < half.max():
            yield _digest(str(tuple(half.shape)).encode() + half.numpy().tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
