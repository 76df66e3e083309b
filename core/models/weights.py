"""Load pretrained weights into modules by name and shape, and report on every key.

print(load_pretrained_backbone(backbone, Path("runs/classify-mnist")))   # or a file of zerokara or torchvision

The folder may be a run of any program. The backbone may have any prefix in the file ("backbone.",
"learner.network.backbone.", "discriminator.trunk."): the prefix with the most matching weights is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.backbones.base import Backbone
from zerokara.core.config import UserError, error_summary

_COUNTER = "num_batches_tracked"  # absent in files from before 2018, and not used here
# If several copies match equally well, averaged weights are preferred, and the target network comes last.
_PREFERRED, _LAST = ("ema", "average"), ("target",)


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights. `str` gives a one-line summary.

    Attributes:
        source: path of the weights.
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


def load_pretrained_backbone(backbone: Backbone, path: Path) -> LoadReport:
    """Load the weights of a backbone from a run folder or a file of weights.

    Args:
        backbone: weights are replaced in place where name and shape match.
        path: a run folder (model.safetensors, else checkpoint-0.pt), or a file: *.safetensors, *.pt, *.pth.

    Raises:
        UserError: the file is missing or damaged, or none of its weights fits.
    """
    if path.is_dir():
        files = [path / "model.safetensors", path / "checkpoint-0.pt"]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise UserError(
                f"{path} contains neither model.safetensors nor checkpoint-0.pt: give the folder of a run that was "
                f"saved, or a file of weights."
            )
        path = found
    tensors = read_tensors(path)
    names = {backbone.published_name(name): name for name in backbone.state_dict()}
    return load_into(backbone, _select_backbone(tensors, backbone, names), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file by their dotted names, on the CPU. No code in the file is executed.

    Args:
        path: *.safetensors, a checkpoint of zerokara, or a state dict written by torch.save.

    Raises:
        UserError: the file is missing or damaged, or contains no named tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: give a file of weights (*.safetensors, *.pth, *.pt).")
    again = "copy or download it again"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # noqa: BLE001  (safetensors raises several types on damaged files)
            raise UserError(f"{path} cannot be read as safetensors ({error_summary(error)}): {again}.") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (torch raises many types on invalid bytes)
        raise UserError(
            f"{path} is damaged or contains objects other than weights ({error_summary(error)}): {again}."
        ) from None
    if isinstance(content, dict) and content.get("format") == checkpoint.FORMAT:
        content = checkpoint.load(path, str(content.get("kind")))  # verifies the checksum
    tensors = dict(_flat(content))
    if not tensors:
        raise UserError(f"{path} contains no named tensors: give a file of weights (*.safetensors, *.pth, *.pt).")
    # Other programs wrap the state dict in another dict, or add DataParallel's prefix.
    for prefix in ("state_dict.", "model_state_dict.", "model.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> LoadReport:
    """Copy tensors into a module where name and shape match.

    Raises:
        UserError: no tensor matches.
    """
    state = module.state_dict()
    shared = [name for name in state if name in tensors]
    fits = [name for name in shared if state[name].shape == tensors[name].shape]
    report = LoadReport(
        source=str(source),
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
    with torch.no_grad():
        for name in fits:
            state[name].copy_(tensors[name])
    return report


def _select_backbone(
    tensors: Mapping[str, Tensor], backbone: Backbone, published: Mapping[str, str]
) -> dict[str, Tensor]:
    """Select the tensors under the prefix with the most matching weights, keyed by the backbone's names."""
    state = backbone.state_dict()
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
        return dict(tensors)

    def rank(prefix: str) -> tuple[int, int]:
        words = prefix.split(".")
        return matches[prefix], any(w in _PREFERRED for w in words) - any(w in _LAST for w in words)

    best = max(matches, key=rank)
    above = f"{best}." if best else ""
    inside = {name.removeprefix(above): tensor for name, tensor in tensors.items() if name.startswith(above)}
    return {ours.get(name, name): tensor for name, tensor in inside.items()}


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
