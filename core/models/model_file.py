"""Model files: weights in safetensors format, with the architecture and the preprocessing as metadata.

    classifier, metadata = ClassifierMetadata.load(Path("runs/classify-mnist"))
    logits_BK = classifier(metadata.normalize(pixels_BCHW))
    metadata.save(Path("copy.safetensors"), classifier.state_dict())

Each kind of network has a subclass of `Metadata`, whose fields are all that is needed to build the network.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from zerokara.core.backbones.base import on_meta_device
from zerokara.core.backbones.registry import BackboneName, is_custom
from zerokara.core.checkpoint import write_content
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, describe_type, error_summary, field_types, fits
from zerokara.core.divergence import check_finite_file
from zerokara.core.importing import locate
from zerokara.core.media import to_uint8
from zerokara.core.run import Run

MODEL_FILE = "model.safetensors"
MAX_GROWTH = 100  # numbers of a network for each number in its file; binary weights are packed 32 to a number
UNKNOWN = "?"  # first character of ancestors in a provenance that could not be found, before their path
NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Metadata(ABC, Generic[NetworkT]):
    """Base class of the metadata of a model file. The field names are keys of the file, so they do not change.

    A field that a file of an older release lacks gets its default.
    """

    FORMAT: ClassVar[str]  # identifier of the kind of network and of the version of its files
    NETWORK: ClassVar[str]  # kind of network, for messages
    PROGRAM: ClassVar[str]  # program that trains it
    FILE: ClassVar[str] = MODEL_FILE  # name of the file in a run folder

    data: str = ""  # description of the training data
    command: str = ""  # command line that trained the network
    figures: Mapping[str, float] = field(default_factory=dict)  # metrics, such as test accuracy
    protocol: Mapping[str, Any] = field(default_factory=dict)  # conditions under which `figures` were measured
    origin: tuple[str, ...] = ()  # provenance of the weights, see `run_origin`

    @abstractmethod
    def build(self) -> NetworkT:
        """Create the network with randomly initialized weights."""

    @property
    def backbone_name(self) -> BackboneName:
        """Name of the backbone, see core/backbones/registry.py; "" if there is none."""
        return getattr(self, "backbone", "")

    @staticmethod
    def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a file into the network, as float32.

        Raises:
            RuntimeError: they do not fit.
        """
        network.load_state_dict({name: x.float() if x.is_floating_point() else x for name, x in weights.items()})

    def save(self, path: Path, weights: Mapping[str, Tensor], *, half: bool = False) -> None:
        """Write weights and metadata to a file, atomically.

        A file in a run folder gets the run as the origin of its weights, unless the metadata name an origin.

        Args:
            path: of the file.
            weights: as `fill` loads them: by default the state dict of the network that `build` creates.
            half: store float16, which halves the size; `load` returns float32.

        Raises:
            UserError: the file cannot be written (disk full, permissions); an existing file is unchanged.
        """
        if half:
            weights = {name: x.half() if x.is_floating_point() else x for name, x in weights.items()}
        fields = dataclasses.asdict(self)
        # A figure that could not be measured (NaN) is left out, because JSON has no NaN.
        fields["figures"] = {name: value for name, value in self.figures.items() if math.isfinite(value)}
        fields["origin"] = fields["origin"] or run_origin(path.parent)
        write(path, weights, fields, self.FORMAT)

    @classmethod
    def load(cls, path: Path) -> tuple[NetworkT, Self]:
        """Load a network, in evaluation mode, float32 on the CPU, and its metadata, from a run folder or a model file.

        Raises:
            UserError: the file is missing or damaged, has NaN or Inf among its weights, contains another kind of
                network, or has another version of the format.
        """
        metadata, weights = cls.read(path)
        return metadata.make(weights, path), metadata

    def make(self, weights: Mapping[str, Tensor], path: Path) -> NetworkT:
        """Create the network with the weights of a file, in evaluation mode, float32 on the CPU.

        Raises:
            UserError: the metadata or the weights do not fit.
        """
        network = build(self, weights, path)
        try:
            self.fill(network, weights)
        except RuntimeError as error:
            what = " ".join(str(error).split())
            raise UserError(
                f"The weights in {path} do not fit the network of its metadata ({what}): create the file again."
            ) from None
        return network.eval()

    @classmethod
    def read(cls, path: Path) -> tuple[Self, dict[str, Tensor]]:
        """Read the metadata and the weights of a run folder or a model file.

        Raises:
            UserError: see `load`.
        """
        path = cls.find(path)
        fields, weights = read(path, cls.FORMAT, cls.NETWORK, cls.PROGRAM)
        return cls._parse(fields, path), weights

    @classmethod
    def read_metadata(cls, path: Path) -> Self | None:
        """Read only the metadata of a run folder or a model file; None if there are none of this kind of network.

        Raises:
            UserError: the metadata is invalid.
        """
        path = path / cls.FILE if path.is_dir() else path
        header = read_header(path)
        return cls._parse(_fields(header, path), path) if header.get("format") == cls.FORMAT else None

    @classmethod
    def find(cls, path: Path) -> Path:
        """Return the model file of a run folder, or the file itself.

        Raises:
            UserError: the folder contains no model file.
        """
        if not path.is_dir():
            return path
        if not (path / cls.FILE).is_file():
            raise UserError(
                f"{path} has no {cls.FILE} yet: give the folder of a run of {cls.PROGRAM} that has saved its weights."
            )
        return path / cls.FILE

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Create from the fields in the file, where tuples are lists.

        Raises:
            TypeError, ValueError: the fields do not fit the class.
        """
        return cls(**lists_to_tuples(fields))

    def check(self) -> None:
        """Check the types of all fields, which may be anything in a damaged file.

        Raises:
            ValueError: a field has another type.
        """
        for name, hint in field_types(type(self)).items():
            if not fits(value := getattr(self, name), hint):
                raise ValueError(f"its {name} is {value!r:.60}, and not {describe_type(hint)}")

    @classmethod
    def _parse(cls, fields: Mapping[str, Any], path: Path) -> Self:
        if isinstance(backbone := fields.get("backbone"), str):  # perhaps a network of one's own
            fields = {**fields, "backbone": locate(backbone, path.parent)}
        try:
            metadata = cls.from_fields(fields)
            metadata.check()
            return metadata
        except (TypeError, ValueError) as error:
            raise UserError(_invalid_metadata_message(path, error)) from None


@dataclass(frozen=True, kw_only=True)
class NormalizedMetadata(Metadata[NetworkT]):
    """Base class of the metadata of a network with normalized inputs."""

    mean: tuple[float, ...]  # of each channel over the training set; pixels are 0 to 1
    std: tuple[float, ...]

    def check(self) -> None:
        """Check the types of all fields, and that mean and standard deviation are those of channels."""
        super().check()
        sound = len(self.mean) == len(self.std) > 0 and all(map(math.isfinite, (*self.mean, *self.std)))
        if not sound or min(self.std) <= 0 or len(self.mean) not in (1, getattr(self, "channels", len(self.mean))):
            raise ValueError(
                f"its mean {self.mean!r:.60} and std {self.std!r:.60} are not finite numbers, one for each channel, "
                f"the std greater than 0"
            )

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """Normalize images in [0, 1] to mean 0 and standard deviation 1 over the training set, per channel."""
        mean, std = (
            torch.tensor(values, dtype=images_BCHW.dtype, device=images_BCHW.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images_BCHW - mean) / std

    def normalize_uint8(self, images_BCHW: Tensor) -> Tensor:
        """Convert uint8 images to float32 and normalize them."""
        return self.normalize(images_BCHW.float() * (1 / 255))

    def to_uint8(self, x_BCHW: Tensor) -> Tensor:
        """Convert normalized images on the CPU back to uint8; values outside of the range are clipped."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return to_uint8(x_BCHW.float() * std + mean)


def build(metadata: Metadata[NetworkT], weights: Mapping[str, Tensor], path: Path) -> NetworkT:
    """Create the network that the metadata of a file describe.

    It is created without memory first, because damaged metadata may describe one that does not fit into memory. A
    backbone of one's own always takes memory, so such a network is created only once.

    Args:
        metadata: of the file.
        weights: of the file.
        path: of the file, for messages.

    Raises:
        UserError: the metadata are invalid, or describe a much larger network than the weights.
    """
    try:
        if is_custom(metadata.backbone_name):
            return metadata.build()
        with on_meta_device():
            size = sum(tensor.numel() for tensor in metadata.build().state_dict().values())
        if size > MAX_GROWTH * (1 + sum(tensor.numel() for tensor in weights.values())):
            raise UserError(
                f"The weights in {path} do not fit the network of its metadata, which has {size:,} numbers: create the "
                f"file again."
            )
        return metadata.build()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (values of any type reach the constructors of layers)
        raise UserError(_invalid_metadata_message(path, error)) from None


def lists_to_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with each list as a tuple: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def write(path: Path, weights: Mapping[str, Tensor], fields: Mapping[str, Any], file_format: str) -> None:
    """Write weights and metadata of any kind of network to a file, atomically.

    Args:
        path: of the file.
        weights: tensors by name.
        fields: metadata as plain values.
        file_format: identifier of the kind and version, which `read` checks.

    Raises:
        UserError: see `Metadata.save`.
    """
    tensors = {name: Compute.to_host(tensor).contiguous() for name, tensor in weights.items()}
    content = _with_sorted_metadata(to_bytes(tensors, {"format": file_format, "card": json.dumps(fields)}))
    write_content(path, content)


def _with_sorted_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, whose order is random, so that the same weights give the same file."""
    start = 8 + int.from_bytes(content[:8], "little")  # 8 bytes with the length of the header, header, tensors
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


def read(path: Path, file_format: str, network: str, program: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and the weights of a file written by `write`.

    Args:
        path: of the file.
        file_format: expected identifier of the kind and version.
        network: kind of network, for messages.
        program: program that trains it, for messages.

    Raises:
        UserError: see `Metadata.load`.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: give the folder of a run of {program}, or a file that it wrote.")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # noqa: BLE001  (safetensors raises several types on damaged files)
        raise UserError(
            f"{path} cannot be read as safetensors ({error_summary(error)}): the file is damaged; copy it again or "
            f"create it again."
        ) from None
    if header.get("format") != file_format:
        raise UserError(
            f"{path} is not a {network} of this version of zerokara: its format is {header.get('format')!r:.60}, "
            f"{file_format!r} was expected; give the folder of a run of {program}, or a file that it wrote. Published "
            f"weights are read by the programs that train, with --weights or --pretrained-backbone."
        )
    check_finite_file(weights, path)
    return _fields(header, path), weights


def read_header(path: Path) -> dict[str, str]:
    """Read the header of a safetensors file; {} if it has none or is another or a damaged file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}  # reading the weights raises the error


def is_foreign(path: Path) -> bool:
    """Return True for a safetensors file of another program; False for one of zerokara and for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            return not (file.metadata() or {}).get("format", "").startswith("zerokara-")
    except (SafetensorError, OSError):
        return False  # reading the weights raises the error


def read_raw_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a model file of any kind of network; {} for other files and invalid metadata."""
    try:
        return dict(json.loads(read_header(path).get("card", "{}")))
    except (TypeError, ValueError, RecursionError):
        return {}


def _fields(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Parse the metadata in the header of a file; their key is "card"."""
    try:
        content = json.loads(header.get("card", "null"))
        if not isinstance(content, dict):
            raise TypeError("it is not a mapping of names to values")
        return content
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(_invalid_metadata_message(path, error)) from None


def _invalid_metadata_message(path: Path, error: Exception) -> str:
    return (
        f"The metadata of {path} is invalid ({error_summary(error)}): the file is damaged; copy it again or create it "
        f"again."
    )


def fingerprint(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256, which is stored with scores."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def run_origin(folder: Path) -> list[str]:
    """Return the provenance of the weights that a run trains, for the metadata of its files; [] without a run.

    It is a list of marks, see core/zoo/provenance.py.
    """
    try:
        content = Run.read_config(folder)
    except UserError:
        return []
    backbone = content["config"].get("pretrained_backbone")
    return [run_mark(content), *content["extra"].get("origin", [UNKNOWN + backbone] if backbone else [])]


def run_mark(content: Mapping[str, Any]) -> str:
    """Return the mark of a run: a hash of the entries of its config.json that never change, also if it is moved."""
    return mark(json.dumps([content.get(key) for key in ("kind", "created", "command", "machine")], sort_keys=True))


def mark(text: str) -> str:
    """Return a hash of 12 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
