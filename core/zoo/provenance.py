"""Provenance of pretrained backbones, so that a classifier is not used to evaluate a network derived from itself.

    provenance.record(run, config.pretrained_backbone)                     # when a run loads a backbone
    origin = provenance.initial_provenance(run.extra, config.pretrained_backbone)  # when the run is evaluated

The provenance of weights is a list of marks: first their own one, then those of everything that they were initialized
from, directly or indirectly. Weights have the mark of the run that trained them (`core.models.model_file.run_mark`). It
is found in the run folder, and in the metadata of the run's model files, which copied and rounded files have as well.
Files without it, of older releases and other programs, have a hash of the command in their metadata or of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerokara.core.config import UserError
from zerokara.core.models.model_file import MODEL_FILE, UNKNOWN, fingerprint, mark, read_raw_metadata, run_mark
from zerokara.core.models.weights import read_tensors
from zerokara.core.run import Run
from zerokara.core.zoo.registry import find_weights


def trace(path: Path) -> list[str]:
    """Determine the provenance of the weights in a run folder or in a file.

    Raises:
        UserError: the path does not exist, or a file outside of a run folder is damaged.
    """
    folder = path if path.is_dir() else path.parent
    try:
        content = Run.read_config(folder)
    except UserError:  # no run, or one of another program
        files = (path, folder / MODEL_FILE, folder / "checkpoint-0.pt")
        return _trace_file(next((file for file in files if file.is_file()), path))
    settings = content["config"]  # of any kind of run, so an old name is not translated
    backbone = str(settings.get("pretrained_backbone") or settings.get("init_backbone") or "")
    model = read_raw_metadata(folder / MODEL_FILE)  # copies of a model file of an older release have only its command
    copies = [] if model.get("origin") or not model.get("command") else [mark(model["command"])]
    return [run_mark(content), *initial_provenance(content["extra"], backbone), *copies]


def record(run: Run, pretrained_backbone: str) -> None:
    """Save the provenance of a run's pretrained backbone in its config.json. All processes must call this.

    Raises:
        UserError: see `trace`.
    """
    if pretrained_backbone:
        run.save_extra(origin=trace(find_weights(pretrained_backbone)) if run.world.is_main else [])


def initial_provenance(extra: Mapping[str, Any], pretrained_backbone: str) -> list[str]:
    """Return the provenance of a run's pretrained backbone; [] if the run did not use one.

    Args:
        extra: the entry `extra` of its config.json. For runs of older releases, which saved no provenance or hashes of
            matrices as "eye", it is determined from the path of the backbone.
        pretrained_backbone: the run's --pretrained-backbone; "" if there is none.
    """
    if "origin" in extra:
        return list(extra["origin"])
    older = extra.get("eye", {"source": pretrained_backbone, "own": "", "ancestors": "", "unknown": []})
    marks = [*f"{older['own']} {older['ancestors']}".split(), *(UNKNOWN + path for path in older["unknown"])]
    try:
        return marks + (trace(find_weights(older["source"])) if older["source"] else [])
    except (UserError, RecursionError):
        return marks or [UNKNOWN + older["source"]]


def unknown_ancestors(provenance: list[str]) -> list[str]:
    """Return the paths of ancestors that could not be found or read."""
    return [entry.removeprefix(UNKNOWN) for entry in provenance if entry.startswith(UNKNOWN)]


def _trace_file(path: Path) -> list[str]:
    """Determine the provenance of weights outside of a run folder: a copy, a network of the zoo, or a foreign file."""
    metadata = read_raw_metadata(path)
    if metadata.get("origin"):
        return list(metadata["origin"])
    tensors, command = read_tensors(path), str(metadata.get("command", ""))
    own = mark(command) if command else fingerprint(path)
    if backbone := re.search(r"--(?:pretrained|init)-backbone[ =](\S+)", command):  # older releases: --init-backbone
        return [own, UNKNOWN + backbone[1]]
    if any(name.startswith("rng.") for name in tensors):  # a checkpoint that was copied out of its run folder
        return [own, f"{UNKNOWN}the run of the checkpoint {path}"]
    return [own]
