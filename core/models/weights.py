"""Weights from files into modules: what fits by name and shape is loaded, and every key is accounted for.

print(load_pretrained_backbone(eye, Path("runs/classify-mnist")))   # or a file: ours, or one that torchvision published

A folder may be the run of any entry. In its files the trunk may lie anywhere ("backbone.", "learner.network.backbone.",
"discriminator.trunk."): it is found where most of its weights fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.backbones.base import Backbone
from zerokara.core.config import UserError, error_summary

_COUNTER = "num_batches_tracked"  # files from before 2018 lack it, and nothing here depends on it
# Where several copies fit equally, the averaged weights, and last the target network, which lags behind.
_PREFERRED, _LAST = ("ema", "average"), ("target",)


@dataclass(frozen=True)
class LoadReport:
    """What became of every weight; as a text, a sentence.

    Attributes:
        source: where they came from.
        loaded: names of the module whose weights were replaced.
        missing: names of the module that the source lacks; they stay fresh.
        unexpected: names in the source that the module lacks; they are not used.
        wrong_shape: names, with the module's shape and the source's; they stay fresh.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __str__(self) -> str:
        """What was loaded and what not."""
        total = len(self.loaded) + len(self.missing) + len(self.wrong_shape)
        parts = [f"{len(self.loaded)} of {total} tensors from {self.source}"]
        if self.wrong_shape:
            names = [f"{name} {_shape(there)} instead of {_shape(here)}" for name, here, there in self.wrong_shape]
            parts.append(f"of another shape there, so fresh here: {_some(names)}")
        counters = [name for name in self.missing if name.endswith(_COUNTER)]
        missing = [name for name in self.missing if not name.endswith(_COUNTER)]
        if missing:
            parts.append(f"not there, so fresh here: {_some(missing)}")
        if counters:
            parts.append(f"{len(counters)} counters of batches, which old files lack")
        if self.unexpected:
            parts.append(f"there but not used: {_some(self.unexpected)}")
        return "; ".join(parts)


def load_pretrained_backbone(backbone: Backbone, path: Path) -> LoadReport:
    """Start a trunk from a run's folder or a file of weights.

    Args:
        backbone: its weights are replaced in place where name and shape fit.
        path: a run's folder (its model.safetensors, else its checkpoint-0.pt), or a file: *.safetensors, *.pt, *.pth.

    Raises:
        UserError: nothing there, a damaged file, or nothing that fits.
    """
    if path.is_dir():
        files = [path / "model.safetensors", path / "checkpoint-0.pt"]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise UserError(
                f"{path} holds neither model.safetensors nor checkpoint-0.pt: give the folder of a run that was saved, "
                f"or a file of weights."
            )
        path = found
    tensors = read_tensors(path)
    names = {backbone.published_name(name): name for name in backbone.state_dict()}
    return load_into(backbone, _trunk_in(tensors, backbone, names), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its dotted name, on the CPU; nothing in the file is run.

    Args:
        path: *.safetensors, a checkpoint of ours, or what torch.save wrote of a state dict.

    Raises:
        UserError: no such file, a damaged one, or one without named tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: give a file of weights (*.safetensors, *.pth, *.pt).")
    again = "copy or download it again"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({error_summary(error)}): {again}.") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (torch raises many types on bytes that make no sense)
        raise UserError(f"{path} is damaged or holds more than weights ({error_summary(error)}): {again}.") from None
    if isinstance(content, dict) and content.get("format") == checkpoint.FORMAT:
        content = checkpoint.load(path, str(content.get("kind")))  # checks every byte
    tensors = dict(_flat(content))
    if not tensors:
        raise UserError(f"{path} holds no named tensors: give a file of weights (*.safetensors, *.pth, *.pt).")
    # Others wrap a state dict in one more dict, or in DataParallel's prefix.
    for prefix in ("state_dict.", "model_state_dict.", "model.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> LoadReport:
    """Copy tensors into a module where name and shape fit.

    Raises:
        UserError: nothing fits.
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
            f"Nothing in {source} fits this network (it has {next(iter(state))} and the like, the file {first}): "
            f"give weights of the same backbone, channels and width."
        )
    with torch.no_grad():
        for name in fits:
            state[name].copy_(tensors[name])
    return report


def _trunk_in(tensors: Mapping[str, Tensor], backbone: Backbone, published: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors that lie where most of the trunk's weights are found, by the trunk's names."""
    state = backbone.state_dict()
    ours = {**published, **{name: name for name in state}}
    places: dict[str, int] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        for start in range(len(parts)):
            own = ours.get(".".join(parts[start:]))
            if own is not None and state[own].shape == tensor.shape:
                prefix = ".".join(parts[:start])
                places[prefix] = places.get(prefix, 0) + 1
    if not places:
        return dict(tensors)

    def rank(prefix: str) -> tuple[int, int]:
        words = prefix.split(".")
        return places[prefix], any(w in _PREFERRED for w in words) - any(w in _LAST for w in words)

    best = max(places, key=rank)
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
    """The first few, and how many more."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
