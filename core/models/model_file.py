"""Model files: weights in safetensors format, with the architecture and the preprocessing as metadata.

classifier, metadata = load(Path("runs/classify-mnist/model.safetensors"))
logits_BK = classifier(metadata.normalize(pixels_BCHW))

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
    """Metadata of a classifier's model file: architecture, classes and input normalization."""

    backbone: str
    head: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W)
    mean: tuple[float, ...]  # of each channel; pixels are 0 to 1
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone: width, stem, ...
    dropout: float | None = None
    data: str = ""  # description of the training data
    command: str = ""  # command line that trained the network
    figures: Mapping[str, float] = field(default_factory=dict)  # metrics, such as test accuracy

    def build(self) -> Classifier:
        """Create the network with randomly initialized weights."""
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
        """Normalize images in [0, 1] to mean 0 and standard deviation 1 over the training set, per channel."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images_BCHW.dtype, device=images_BCHW.device).view(shape)
        std = torch.tensor(self.std, dtype=images_BCHW.dtype, device=images_BCHW.device).view(shape)
        return (images_BCHW - mean) / std


def save(path: Path, weights: Mapping[str, Tensor], metadata: ClassifierMetadata, *, half: bool = False) -> None:
    """Write weights and metadata to a file, atomically.

    Args:
        path: of the file.
        weights: state dict of the network that `metadata.build` creates.
        metadata: of the network.
        half: store float16, which halves the size; `load` returns float32.

    Raises:
        UserError: the file cannot be written (disk full, permissions); an existing file is unchanged.
    """
    write(path, weights, dataclasses.asdict(metadata), FORMAT, half=half)


def load(path: Path) -> tuple[Classifier, ClassifierMetadata]:
    """Load a classifier, in evaluation mode, float32 on the CPU, and its metadata.

    Raises:
        UserError: the file is missing or damaged, was not written by zerokara, or has another version of the format.
    """
    fields, weights = read(path, FORMAT, "classifier")
    metadata = parse_metadata(ClassifierMetadata, fields, path)
    return fill(metadata.build(), weights, path), metadata


def write(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any], file_format: str, *, half: bool = False
) -> None:
    """Write weights and metadata of any kind of network; see `save`.

    Args:
        path: of the file.
        weights: state dict.
        metadata: plain values.
        file_format: identifier of the kind and version, which `read` checks.
        half: store float16.

    Raises:
        UserError: see `save`.
    """
    tensors = {
        name: Compute.to_host(tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in weights.items()
    }
    content = to_bytes(tensors, {"format": file_format, "card": json.dumps(metadata)})
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error_summary(error)}); an existing file is unchanged. Solve the problem, "
            f"then continue the run with --resume."
        ) from error


def read(path: Path, file_format: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and the weights of a file written by `write`.

    Args:
        path: of the file.
        file_format: expected identifier of the kind and version.
        what: kind of network, for messages.

    Raises:
        UserError: see `load`.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: give a run folder, or a file written by zerokara (*.safetensors).")
    header, weights = contents(path)
    if header.get("format") != file_format:
        raise UserError(
            f"{path} is not a {what} of this version of zerokara: its format is {header.get('format')!r}, "
            f"{file_format!r} was expected; published weights are read with --weights."
        )
    return _fields(header, path), weights


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of any safetensors file, on the CPU.

    Raises:
        UserError: the file is damaged or not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}): the file is damaged; copy it again or create it again."
        ) from None


def _fields(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(header["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_invalid_metadata_message(path, error)) from None


def parse_metadata(kind: type[MetadataT], fields: Mapping[str, Any], path: Path) -> MetadataT:
    """Create a metadata object from JSON fields; lists become tuples.

    Args:
        kind: dataclass of the metadata.
        fields: values by field name.
        path: of the file, for messages.

    Raises:
        UserError: the fields do not fit the dataclass.
    """
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (TypeError, ValueError) as error:
        raise UserError(_invalid_metadata_message(path, error)) from None


def fill(network: NetworkT, weights: Mapping[str, Tensor], path: Path) -> NetworkT:
    """Load weights into a network as float32, and switch it to evaluation mode.

    Raises:
        UserError: the weights do not fit the network.
    """
    try:
        network.load_state_dict(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        )
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"The weights in {path} do not fit the network of its metadata ({what}): create the file again."
        ) from None
    return network.eval()


def _invalid_metadata_message(path: Path, error: Exception) -> str:
    return (
        f"The metadata of {path} is invalid ({error_summary(error)}): the file is damaged; copy it again or create it "
        f"again."
    )


def read_metadata(path: Path) -> ClassifierMetadata | None:
    """Read the metadata of a classifier's model file, or of the model in a run folder; None for any other file.

    Raises:
        UserError: the metadata is invalid.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # reading the weights raises the error
    return parse_metadata(ClassifierMetadata, _fields(header, path), path) if header.get("format") == FORMAT else None


def fingerprint(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256, which is stored with scores."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
