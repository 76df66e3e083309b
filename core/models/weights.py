"""Load pretrained weights into modules by name and shape, and report on every key.

print(load_pretrained_backbone(backbone, Path("runs/classify-mnist")))   # or a file of zerokara or torchvision

The folder may be a run of any program. The backbone may have any prefix in the file ("backbone.",
"learner.network.backbone.", "discriminator.trunk."): the prefix with the most matching weights is used.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.backbones.base import Backbone
from zerokara.core.config import UserError, error_summary
from zerokara.core.divergence import check_finite_file
from zerokara.core.file_start import describe_file

_SCALAR: Any = cast(Any, np.float64(0)).__reduce__()[0]  # the function that recreates a number of NumPy
SETTINGS: list[Any] = [
    argparse.Namespace,
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *(_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),
]
"""Types of settings and results that training programs save beside the weights, and that run no code when loaded."""
AGAIN = "copy or download it again"
_COUNTER = "num_batches_tracked"  # absent in files from before 2018, and not used here
# If several copies match equally well, averaged weights are preferred, and the target network comes last.
_PREFERRED, _LAST = ("ema", "average"), ("target",)


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights. `str` gives a one-line summary.

    Attributes:
        source: path of the weights, and which of several copies in the file was used.
        loaded: names of the module's tensors that were loaded.
        missing: names of the module's tensors that the source lacks; they keep their initial values.
        unexpected: names in the source that the module lacks; they are not used.
        wrong_shape: (name, shape in the module, shape in the source); they keep their initial values.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __str__(self) -> str:
        """Summarize what was loaded and what was not."""
        total = len(self.loaded) + len(self.missing) + len(self.wrong_shape)
        parts = [f"{len(self.loaded)} of {total} tensors from {self.source}"]
        if self.wrong_shape:
            names = [f"{name} {_shape(there)} instead of {_shape(here)}" for name, here, there in self.wrong_shape]
            parts.append(f"not loaded because of another shape in the file: {_some(names)}")
        counters = [name for name in self.missing if name.endswith(_COUNTER)]
        missing = [name for name in self.missing if not name.endswith(_COUNTER)]
        if missing:
            parts.append(f"not loaded because missing in the file: {_some(missing)}")
        if counters:
            parts.append(f"missing in the file but not used: {len(counters)} BatchNorm batch counters")
        if self.unexpected:
            parts.append(f"in the file but not used: {_some(self.unexpected)}")
        return "; ".join(parts)


def weights_file(path: Path) -> Path:
    """Return the file of weights of a run folder: model.safetensors, else checkpoint-0.pt; a file is returned as it is.

    Raises:
        UserError: the folder has neither.
    """
    if not path.is_dir():
        return path
    files = [path / "model.safetensors", path / "checkpoint-0.pt"]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"{path} contains neither model.safetensors nor checkpoint-0.pt: give the folder of a run that was "
            f"saved, or a file of weights."
        )
    return found


def load_pretrained_backbone(backbone: Backbone, path: Path) -> LoadReport:
    """Load the weights of a backbone from a run folder or a file of weights.

    Args:
        backbone: weights are replaced in place where name and shape match.
        path: a run folder (model.safetensors, else checkpoint-0.pt), or a file: *.safetensors, *.pt, *.pth.

    Raises:
        UserError: the file is missing or damaged, none of its weights fits, or one that does is NaN or Inf.
    """
    path = weights_file(path)
    tensors = read_tensors(path)
    return load_copy(backbone, tensors, {backbone.published_name(name): name for name in backbone.state_dict()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file by their dotted names, on the CPU. No code in the file is executed.

    Args:
        path: *.safetensors, a checkpoint of zerokara, or a state dict written by torch.save.

    Raises:
        UserError: the file is missing or damaged, or contains no named tensors.
    """
    _check_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # noqa: BLE001  (safetensors raises several types on damaged files)
            raise UserError(f"{path} cannot be read as safetensors ({error_summary(error)}): {AGAIN}.") from None
    content = _load(path)
    if isinstance(content, dict) and content.get("format") == checkpoint.FORMAT:
        content = checkpoint.load(path, str(content.get("kind")))  # verifies the checksum
    tensors = dict(_flat(content))
    if not tensors:
        raise UserError(f"{path} contains no named tensors: give a file of weights (*.safetensors, *.pth, *.pt).")
    # Other programs wrap the state dict in another dict, or add the prefixes of DataParallel and torch.compile.
    prefixes = ("state_dict.", "model_state_dict.", "model.", "module.", "_orig_mod.")
    while prefix := next((each for each in prefixes if all(name.startswith(each) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def is_checkpoint(path: Path) -> bool:
    """Return True for a checkpoint of zerokara.

    Raises:
        UserError: the file is missing or damaged, or contains objects other than weights.
    """
    _check_file(path)
    content = _load(path)
    return isinstance(content, dict) and content.get("format") == checkpoint.FORMAT


def _check_file(path: Path) -> None:
    """Check that a file exists, and does not begin like one without weights.

    Raises:
        UserError: it does not exist, or is a web page or a pointer of Git LFS.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: give a file of weights (*.safetensors, *.pth, *.pt).")
    if kind := describe_file(path):
        raise UserError(f"{path} cannot be read as weights ({kind}): {AGAIN}.")


def _load(path: Path) -> Any:
    """Load a file of torch.save, with nothing but tensors, plain values, and records of settings.

    Raises:
        UserError: the file is damaged, or contains something else.
    """
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which contains a program and not only weights: save the weights with "
            f"torch.save(torch.jit.load(file).state_dict(), other_file), and give that file."
        )
    try:
        with torch.serialization.safe_globals(SETTINGS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (torch raises many types on invalid bytes)
        if found := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
            raise UserError(
                f"{path} contains an object of {found[1]}, not only weights, and objects may run code: save the "
                f"weights with torch.save(network.state_dict(), file), and give that file."
            ) from None
        # torch's own message recommends to run the code in the file.
        internal = ("weights_only", "miniz", "PytorchStreamReader", "INTERNAL ASSERT", "Invalid argument")
        reason = "invalid bytes" if any(word in str(error) for word in internal) else error_summary(error)
        raise UserError(f"{path} is damaged or contains objects other than weights ({reason}): {AGAIN}.") from None


def _is_torchscript(path: Path) -> bool:
    """Return True for an archive of torch.jit.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # noqa: BLE001  (zipfile raises many types; torch.load reports what is wrong)
        return False


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path, which: str = "") -> LoadReport:
    """Copy tensors into a module where name and shape match.

    Args:
        module: weights are replaced in place.
        tensors: by name.
        source: their file, for messages.
        which: which of several copies in the file they are, for the report.

    Raises:
        UserError: no tensor matches, or one that does has NaN or Inf.
    """
    state = module.state_dict()
    shared = [name for name in state if name in tensors]
    fits = [name for name in shared if state[name].shape == tensors[name].shape]
    report = LoadReport(
        source=f"{source}{which}",
        loaded=tuple(fits),
        missing=tuple(name for name in state if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in state),
        wrong_shape=tuple(
            (name, tuple(state[name].shape), tuple(tensors[name].shape))
            for name in shared
            if state[name].shape != tensors[name].shape
        ),
    )
    if not any(state[name].is_floating_point() for name in fits):
        first = next(iter(tensors), "nothing")
        raise UserError(
            f"Nothing in {source} fits this network (the network's tensors have names like {next(iter(state))}, the "
            f"file's like {first}): give weights of the same backbone, channels and width."
        )
    check_finite_file({name: tensors[name] for name in fits}, source)
    with torch.no_grad():
        for name in fits:
            state[name].copy_(tensors[name])
    return report


def load_copy(
    module: nn.Module, tensors: Mapping[str, Tensor], published: Mapping[str, str], source: Path
) -> LoadReport:
    """Copy the tensors under the prefix with the most matching weights into a module.

    Args:
        module: weights are replaced in place.
        tensors: by name, under any prefix; of several copies that match equally well, averaged weights are preferred.
        published: names of published files -> names of the module.
        source: their file, for messages.

    Raises:
        UserError: no tensor matches, or one that does has NaN or Inf.
    """
    state = module.state_dict()
    ours = {**published, **{name: name for name in state}}
    matches: dict[str, int] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        for start in range(len(parts)):
            own = ours.get(".".join(parts[start:]))
            if own is not None and state[own].shape == tensor.shape:
                prefix = ".".join(parts[:start])
                matches[prefix] = matches.get(prefix, 0) + 1
    if not matches:
        return load_into(module, tensors, source)

    def rank(prefix: str) -> tuple[int, int]:
        words = re.split("[._]", prefix)
        return matches[prefix], any(w in _PREFERRED for w in words) - any(w in _LAST for w in words)

    best = max(matches, key=rank)
    above = f"{best}." if best else ""
    inside = {name.removeprefix(above): tensor for name, tensor in tensors.items() if name.startswith(above)}
    others = [prefix for prefix in matches if matches[prefix] == matches[best] and prefix != best]
    which = f" ({best or 'the outermost'}, and not {_some(others)})" if others else ""
    return load_into(module, {ours.get(name, name): tensor for name, tensor in inside.items()}, source, which)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _some(names: tuple[str, ...] | list[str]) -> str:
    """Format the first four names and the number of the others."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
