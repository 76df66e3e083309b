"""Sampler: a trained generator that generates images, from a run in progress or from a run's folder.

    sampler = Sampler.load(Path("runs/dcgan-mnist-fast-1"))
    images = sampler.generate(sampler.latents(64, seed=0), sampler.labels(64))   # (64, C, H, W) uint8

The generator is always in evaluation mode, so that an image depends on its latent vector and label alone.

Shapes: N images, Z latent dimension, C channels, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict, to_dict
from zerokara.core.models import model_file
from zerokara.core.run import Run
from zerokara.generative.gan.config import KIND, Config
from zerokara.generative.gan.learner import draw_latents, make_generator
from zerokara.generative.gan.networks import LatentGenerator

FORMAT = "zerokara-generator-1"
WHICH = ("best", "last")
BEST = "best.pt"  # checkpoint with the best score on held-out images


def weights_file(which: str) -> str:
    """Return the name of the weights file in a run's folder, for "best" or "last"."""
    return f"generator-{which}.safetensors"


@dataclass(frozen=True)
class Sampler:
    """A generator in evaluation mode and its metadata."""

    generator: LatentGenerator
    config: Config
    shape: tuple[int, int, int]  # (C, H, W)
    class_names: tuple[str, ...]  # empty for an unconditional generator
    compute: Compute
    update: int
    scores: dict[str, float] = field(default_factory=dict)

    def latents(self, number: int, seed: int) -> Tensor:
        """Draw latent vectors (number, Z). The first ones of a seed do not depend on `number`."""
        random, device = torch.Generator().manual_seed(seed), torch.device("cpu")
        rows = [draw_latents(self.config, (1, self.config.latent_dim), random, device) for _ in range(number)]
        return torch.cat(rows)

    def labels(self, number: int, label: int | None = None) -> Tensor | None:
        """Return labels (number,): all classes in turn, or `label` only. None for an unconditional generator.

        Raises:
            UserError: a label that does not exist.
        """
        classes = len(self.class_names)
        if not classes:
            if label is not None:
                raise UserError("This generator was trained without classes: remove --label.")
            return None
        if label is None:
            return torch.arange(number) % classes
        if not 0 <= label < classes:
            raise UserError(f"--label must be from 0 to {classes - 1} ({', '.join(self.class_names)}), got {label}.")
        return torch.full((number,), label)

    @torch.no_grad()
    def generate(self, z_NZ: Tensor, label_N: Tensor | None = None, batch_size: int = 100) -> Tensor:
        """Generate images (N, C, H, W) uint8 on the CPU."""
        device = self.compute.torch_device
        labels: list[Tensor | None] = (
            [None] * len(z_NZ) if label_N is None else list(label_N.to(device).split(batch_size))
        )
        images = []
        with self.compute.autocast():
            for z, label in zip(z_NZ.to(device).split(batch_size), labels, strict=False):
                x = self.generator(z, label).float()
                images.append(self.compute.to_host(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)))
        return torch.cat(images).contiguous()

    def save(self, path: Path) -> None:
        """Write weights and metadata to one file, atomically.

        Raises:
            UserError: it could not be written; an existing file is unchanged.
        """
        fields = {
            "config": to_dict(self.config),
            "shape": self.shape,
            "class_names": self.class_names,
            "update": self.update,
            "scores": self.scores,
        }
        model_file.write(path, self.generator.state_dict(), fields, FORMAT)

    @classmethod
    def load(cls, folder: Path, which: str = "best", *, device: str = "cpu", threads: int = 0) -> Sampler:
        """Load the generator of a run's folder, in float32.

        Args:
            folder: runs/<name>.
            which: "best" or "last".
            device: auto, cpu, cuda, cuda:<n> or mps.
            threads: number of CPU threads, 0 for all cores.

        Raises:
            UserError: no such run or device, no weights yet, or damaged weights.
        """
        Run.read_config(folder, KIND)
        path = folder / weights_file(which)
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name} yet: wait for its first evaluation.")
        return cls.read(path, device=device, threads=threads)

    @classmethod
    def read(cls, path: Path, *, device: str = "cpu", threads: int = 0) -> Sampler:
        """Load the generator of a file that `save` wrote, in float32.

        Raises:
            UserError: no such file or device, or a damaged file.
        """
        metadata, weights = model_file.read(path, FORMAT, "generator", "generative.dcgan")
        try:
            config = from_dict(Config, metadata["config"], str(path))
            shape, names = tuple(metadata["shape"]), tuple(metadata["class_names"])
            generator = make_generator(config, shape, len(names))
            generator.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"The weights in {path} do not match its metadata ({error}): create it again.") from None
        compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
        generator = compute.module(generator.eval().requires_grad_(False))
        return cls(generator, config, shape, names, compute, metadata["update"], metadata["scores"])
