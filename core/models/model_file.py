"""Trained classifiers as files: safetensors with a card that says what is inside and how to feed it.

classifier, card = load(Path("runs/classify-mnist/model.safetensors"))
logits_BK = classifier(card.normalise(pixels_BCHW))

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.models.classifier import Classifier, make_classifier

FORMAT = "zerokara-classifier-1"
MetadataT = TypeVar("MetadataT")
NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ClassifierMetadata:
    """What a file of weights is: enough to build its network, and to feed it."""

    backbone: str
    head: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W)
    mean: tuple[float, ...]  # of each channel, in pixels of 0 to 1
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone: width and the like
    dropout: float | None = None
    data: str = ""  # what it learnt from, in words
    command: str = ""  # what made it
    figures: Mapping[str, float] = field(default_factory=dict)  # what was measured of it

    def build(self) -> Classifier:
        """The network without its weights."""
        return make_classifier(
            self.backbone,
            self.channels,
            self.image_size,
            len(self.classes),
            head="pooled" if self.head == "pooled" else "paper",
            dropout=self.dropout,
            **self.options,
        )

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """Images scaled to [0, 1] as the network expects them: mean 0 and deviation 1 over its training set."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images_BCHW.dtype, device=images_BCHW.device).view(shape)
        std = torch.tensor(self.std, dtype=images_BCHW.dtype, device=images_BCHW.device).view(shape)
        return (images_BCHW - mean) / std


def save(path: Path, weights: Mapping[str, Tensor], metadata: ClassifierMetadata, *, half: bool = False) -> None:
    """Write weights and card as one whole file.

    Args:
        weights: the state dict of the network that `card.build` gives.
        half: keep numbers as float16, half the size; `load` gives float32 again.

    Raises:
        UserError: the disk is full or refuses; the old file is as it was.
    """
    write(path, weights, dataclasses.asdict(metadata), FORMAT, half=half)


def load(path: Path) -> tuple[Classifier, ClassifierMetadata]:
    """The network of a file, in evaluation mode, float32 on the CPU, and its card.

    Raises:
        UserError: no such file, a damaged one, one that we did not write, or from another version.
    """
    fields, weights = read(path, FORMAT, "classifier")
    metadata = parse_metadata(ClassifierMetadata, fields, path)
    return fill(metadata.build(), weights, path), metadata


def write(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any], file_format: str, *, half: bool = False
) -> None:
    """`save` for a card of any kind, as plain values, whose files have a format of their own."""
    tensors = {
        name: Compute.to_host(tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in weights.items()
    }
    content = to_bytes(tensors, {"format": file_format, "card": json.dumps(metadata)})
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error_summary(error)}), and what was there before is untouched: see to that, and "
            f"go on with a run by --resume."
        ) from error


def read(path: Path, file_format: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of the card and the weights that `write` left, as they are in the file.

    Args:
        what: the kind of network, for messages.

    Raises:
        UserError: as `load`.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: give a run's folder, or a file that zerokara wrote (*.safetensors).")
    header, weights = contents(path)
    if header.get("format") != file_format:
        raise UserError(
            f"{path} is not a {what} of this version of zerokara: its format is {header.get('format')!r}, "
            f"{file_format!r} was expected; published weights are read with --weights."
        )
    return _fields(header, path), weights


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any safetensors file, on the CPU.

    Raises:
        UserError: it is damaged, or none.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}): it is damaged, so copy or make it again."
        ) from None


def _fields(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(header["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_nonsense(path, error)) from None


def parse_metadata(kind: type[MetadataT], fields: Mapping[str, Any], path: Path) -> MetadataT:
    """The card of these fields; what JSON made a list of is a tuple again.

    Raises:
        UserError: they are not those of such a card.
    """
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (TypeError, ValueError) as error:
        raise UserError(_nonsense(path, error)) from None


def fill(network: NetworkT, weights: Mapping[str, Tensor], path: Path) -> NetworkT:
    """The network with these weights as float32, in evaluation mode.

    Raises:
        UserError: they are another network's.
    """
    try:
        network.load_state_dict(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        )
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise UserError(f"The weights in {path} do not fit the network on its card ({what}): make it again.") from None
    return network.eval()


def _nonsense(path: Path, error: Exception) -> str:
    return f"The card of {path} makes no sense ({error_summary(error)}): it is damaged, so copy or make it again."


def read_metadata(path: Path) -> ClassifierMetadata | None:
    """The card of a classifier's file, or of the run that keeps one; None where there are weights of another kind.

    Raises:
        UserError: a card that makes no sense.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # whoever reads the weights will say so
    return parse_metadata(ClassifierMetadata, _fields(header, path), path) if header.get("format") == FORMAT else None


def fingerprint(path: Path) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256, which scores quote."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
