"""A generator that is ready to paint: of a run that is under way, or read back from its folder.

painter = Painter.load(Path("runs/dcgan-mnist-fast-1"))
images = painter.paint(painter.latents(64, seed=0), painter.labels(64))   # (64, C, H, W) uint8

It paints in evaluation mode always, so that an image depends on its latent and label alone.

Shapes: N images, Z numbers of a latent, C channels, H, W pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict, to_dict
from zerokara.core.run import Run
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.learner import draw_latents, make_generator
from zerokara.generative.gan.networks import FromLatents

FORMAT = "zerokara-generator-1"
KIND = "dcgan"  # what generative/dcgan.py calls its runs
WHICH = ("best", "last")
BEST = "best.pt"  # the checkpoint of a run's best moment


def weights_file(which: str) -> str:
    """Name of the file of weights in a run's folder: of its best moment or its last."""
    return f"generator-{which}.safetensors"


@dataclass(frozen=True)
class Painter:
    """A generator in evaluation mode, and what is known of it."""

    generator: FromLatents
    config: Config
    shape: tuple[int, int, int]  # (C, H, W)
    class_names: tuple[str, ...]  # of a class-conditional generator, else empty
    compute: Compute
    update: int
    scores: dict[str, float] = field(default_factory=dict)

    def latents(self, number: int, seed: int) -> Tensor:
        """Latents (number, Z); the first ones of a seed do not depend on how many there are."""
        random = torch.Generator().manual_seed(seed)
        rows = [draw_latents(self.config, (1, self.config.latent), random, torch.device("cpu")) for _ in range(number)]
        return torch.cat(rows)

    def labels(self, number: int, label: int | None = None) -> Tensor | None:
        """Labels (number,): all classes in turn, or one; None for a generator without classes.

        Raises:
            UserError: a class that there is not.
        """
        classes = len(self.class_names)
        if not classes:
            if label is not None:
                raise UserError("This generator was trained without classes: leave --label out.")
            return None
        if label is None:
            return torch.arange(number) % classes
        if not 0 <= label < classes:
            raise UserError(f"--label must be from 0 to {classes - 1} ({', '.join(self.class_names)}), got {label}.")
        return torch.full((number,), label)

    @torch.no_grad()
    def paint(self, z_NZ: Tensor, label_N: Tensor | None = None, batch_size: int = 100) -> Tensor:
        """Images (N, C, H, W) uint8 on the CPU."""
        device = self.compute.torch_device
        labels: list[Tensor | None] = (
            [None] * len(z_NZ) if label_N is None else list(label_N.to(device).split(batch_size))
        )
        painted = []
        with self.compute.autocast():
            for z, label in zip(z_NZ.to(device).split(batch_size), labels, strict=False):
                x = self.generator(z, label).float()
                painted.append(self.compute.to_host(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)))
        return torch.cat(painted).contiguous()

    def save(self, path: Path) -> None:
        """Write weights and what is known of them, as one whole file.

        Raises:
            OSError: it could not be written; what was there stays.
        """
        weights = {name: Compute.to_host(tensor).contiguous() for name, tensor in self.generator.state_dict().items()}
        metadata = {
            "config": to_dict(self.config),
            "shape": self.shape,
            "class_names": self.class_names,
            "update": self.update,
            "scores": self.scores,
        }
        content = to_bytes(weights, {"format": FORMAT, "card": json.dumps(metadata)})
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    def load(cls, folder: Path, which: str = "best", *, device: str = "cpu", threads: int = 0) -> Painter:
        """The painter of a run's folder, in float32.

        Args:
            folder: runs/<name>.
            which: "best" or "last".
            device: auto, cpu, cuda, cuda:<n> or mps.
            threads: CPU threads, 0 for all cores.

        Raises:
            UserError: no such run, no weights yet, or damaged ones; no such device.
        """
        Run.read_config(folder, KIND)
        path = folder / weights_file(which)
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name} yet: wait for its first evaluation.")
        return cls.read(path, device=device, threads=threads)

    @classmethod
    def read(cls, path: Path, *, device: str = "cpu", threads: int = 0) -> Painter:
        """The painter of a file that `save` wrote, in float32.

        Raises:
            UserError: no such file, or a damaged one; no such device.
        """
        weights, metadata = _read(path)
        try:
            config = from_dict(Config, metadata["config"], str(path))
            shape, names = tuple(metadata["shape"]), tuple(metadata["class_names"])
            generator = make_generator(config, shape, len(names))
            generator.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"The weights in {path} do not fit what its card says ({error}): make it again.") from None
        compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
        generator = compute.module(generator.eval().requires_grad_(False))
        return cls(generator, config, shape, names, compute, metadata["update"], metadata["scores"])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): make it again.") from None
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is no generator of this version of zerokara: give the folder of a run of dcgan.")
    return weights, json.loads(header["card"])
