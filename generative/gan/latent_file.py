"""Files of latent vectors: what generative.project finds for pictures, and generative.interpolate reads.

They are JSON, so that other programs can read them, too. Numbers are written such that float32 is exact.

Shapes: N pictures, Z latent dimension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, error_summary
from zerokara.core.programs import program_command
from zerokara.generative.gan.sampler import Sampler

FORMAT = "zerokara-latents-1"


@dataclass(frozen=True)
class ProjectedPicture:
    """A picture and the latent vector whose image is most similar to it.

    Attributes:
        file: of the picture.
        z_Z: latent vector (Z,) float32.
        label: number of the class; None for an unconditional generator.
        rmse: root of the mean squared difference of the pixels, from 0 to 255.
    """

    file: str
    z_Z: Tensor
    label: int | None
    rmse: float


def save_latents(path: Path, sampler: Sampler, pictures: Sequence[ProjectedPicture]) -> None:
    """Write latent vectors and the generator that they belong to, atomically.

    Raises:
        OSError: the file could not be written; no partial file remains.
    """
    content = {
        "format": FORMAT,
        "generator": sampler.name,
        **_belongs_to(sampler),
        "pictures": [
            {"file": picture.file, "label": picture.label, "rmse": picture.rmse, "latents": picture.z_Z.tolist()}
            for picture in pictures
        ],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def check_replaceable(path: Path) -> None:
    """Check that `save_latents` replaces no other file than its own.

    Raises:
        UserError: another file has this name.
    """
    if path.exists() and not _is_ours(_read(path)):
        raise UserError(
            f"{path} exists already and is not a file of latent vectors ({FORMAT}): name another file with --out."
        )


def load_latents(path: Path, sampler: Sampler) -> tuple[Tensor, Tensor | None]:
    """Read latent vectors (N, Z) and labels (N,), or None for an unconditional generator.

    Raises:
        UserError: no such file, another one than `save_latents` writes, or latent vectors of another generator.
    """
    again = f"write it again with {program_command('generative.project')}"
    try:
        content = _read(path)
    except OSError as error:
        raise UserError(
            f"--latents {path} cannot be read ({error_summary(error)}): give a file that "
            f"{program_command('generative.project')} has written."
        ) from None
    if not _is_ours(content):
        raise UserError(f"{path} is not a file of latent vectors ({FORMAT}): {again}.")
    if any(content.get(key) != value for key, value in _belongs_to(sampler).items()):
        raise UserError(
            f"{path} has latent vectors of {content.get('generator')} at update {content.get('update')}, not of "
            f"{sampler.name} at update {sampler.update}, whose images of them are others: give the generator for which "
            f"they were found, or {again}."
        )
    try:
        rows = [[float(value) for value in picture["latents"]] for picture in content["pictures"]]
        labels = [picture["label"] for picture in content["pictures"]]
        classes: Sequence[int | None] = range(len(sampler.class_names)) if sampler.class_names else (None,)
        valid = all(label in classes for label in labels) and all(
            len(row) == sampler.config.latent_dim and all(map(math.isfinite, row)) for row in rows
        )
    except (KeyError, TypeError, ValueError):
        rows, labels, valid = [], [], False
    if not rows or not valid:
        raise UserError(f"The latent vectors in {path} are damaged: {again}.")
    return torch.tensor(rows), torch.tensor(labels) if sampler.class_names else None


def _read(path: Path) -> Any:
    """Read a JSON file; None if it is none.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def _belongs_to(sampler: Sampler) -> dict[str, object]:
    """Return what identifies a generator: the run that trained it, and the update."""
    return {"update": sampler.update, "origin": list(sampler.origin[:1])}
