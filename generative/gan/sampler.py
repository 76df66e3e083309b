"""Sampler: a trained generator that generates images, from a run in progress, a run's folder, a file or the zoo.

    sampler = Sampler.load("digits")  # of the zoo; Sampler.load("runs/dcgan-mnist-fast-1") is that of a run
    images = sampler.generate(sampler.latents(64, seed=0), sampler.labels(64))   # (64, C, H, W) uint8

The generator is always in evaluation mode, so that an image depends on its latent vector and label alone.

Shapes: N images, Z latent dimension, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict, suggest, to_dict
from zerokara.core.models.model_file import Metadata
from zerokara.core.report import FromSource
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo
from zerokara.generative.gan.config import KIND, Config
from zerokara.generative.gan.learner import draw_latents, make_generator
from zerokara.generative.gan.networks import LatentGenerator

BEST = "best.pt"  # checkpoint with the best score on held-out images


def weights_file(which: str) -> str:
    """Return the name of the weights file in a run's folder, for "best" or "last"."""
    return f"generator-{which}.safetensors"


def find_generator(word: str) -> Path:
    """Find a trained generator, given a run folder, a file, or a name in the zoo.

    Raises:
        UserError: none of these exists.
    """
    return zoo.find(word, "generators")


@dataclass(frozen=True, kw_only=True)
class GeneratorMetadata(Metadata[LatentGenerator]):
    """Metadata of a generator's file."""

    FORMAT = "zerokara-generator-1"
    NETWORK = "generator"
    PROGRAM = "generative.dcgan"
    FILE = weights_file("best")

    config: Mapping[str, Any]  # of the run
    shape: tuple[int, int, int]  # (C, H, W)
    class_names: tuple[str, ...]  # empty for an unconditional generator
    update: int
    scores: Mapping[str, float] = field(default_factory=dict)  # of the run's evaluation, against held-out images

    def settings(self) -> Config:
        """Return the config of the run.

        Raises:
            UserError: it was written by a newer version, or is invalid.
        """
        return from_dict(Config, self.config, "the generator's file")

    def build(self) -> LatentGenerator:
        """Create the network with randomly initialized weights.

        Raises:
            UserError: see `settings`.
        """
        return make_generator(self.settings(), self.shape, len(self.class_names))


@dataclass(frozen=True)
class Sampler(FromSource):
    """A generator in evaluation mode and its metadata."""

    generator: LatentGenerator
    config: Config
    shape: tuple[int, int, int]  # (C, H, W)
    class_names: tuple[str, ...]  # empty for an unconditional generator
    compute: Compute
    update: int
    scores: dict[str, float] = field(default_factory=dict)
    source: Path = Path()  # run folder or file that it was loaded from
    origin: tuple[str, ...] = ()  # provenance of its weights (core/zoo/provenance.py), if it was loaded

    def latents(self, number: int, seed: int, psi: float = 1.0) -> Tensor:
        """Draw latent vectors (number, Z), multiplied by `psi`. The first ones of a seed do not depend on `number`."""
        random, device = torch.Generator().manual_seed(seed), torch.device("cpu")
        rows = [draw_latents(self.config, (1, self.config.latent_dim), random, device) for _ in range(number)]
        return torch.cat(rows) * psi

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

    def sample(
        self,
        number: int,
        *,
        labels: int | str | Sequence[int | str] | None = None,
        seed: int = 0,
        psi: float = 1.0,
    ) -> np.ndarray:
        """Generate images (number, H, W, C) uint8.

        Args:
            number: N.
            labels: number or name of a class, or N of them, of a class-conditional generator; None: all classes in
                turn.
            seed: of the latent vectors. The first images of a seed do not depend on `number`.
            psi: truncation, a factor on the latent vectors above 0 and at most 1: smaller values give less diverse
                images.

        Raises:
            UserError: a label that does not exist, another number of labels, or a psi outside of its range.
        """
        if not 0 < psi <= 1:
            raise UserError(f"psi must be above 0 and at most 1, got {psi}.")
        label_N = self.labels(number) if labels is None else self._find_labels(number, labels)
        images_NCHW = self.generate(self.latents(number, seed, psi), label_N)
        return np.ascontiguousarray(images_NCHW.permute(0, 2, 3, 1).numpy())

    def _find_labels(self, number: int, labels: int | str | Sequence[int | str]) -> Tensor:
        """Return the numbers (N,) of classes that are given by number or name."""
        if not self.class_names:
            raise UserError("This generator was trained without classes: remove labels.")
        given: list[int | str] = [labels] * number if isinstance(labels, int | str) else list(labels)
        if len(given) != number:
            raise UserError(f"{number} images need {number} labels, got {len(given)}: give one label, or one for each.")
        known = {name: index for index, name in enumerate(self.class_names)}
        found = [known.get(label, -1) if isinstance(label, str) else int(label) for label in given]
        for label, index in zip(given, found, strict=True):
            if not 0 <= index < len(known):
                raise UserError(
                    f"There is no class {label!r}{suggest(str(label), known)}: give a number from 0 to "
                    f"{len(known) - 1}, or a name from {', '.join(known)}."
                )
        return torch.tensor(found)

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

    def metadata(self) -> GeneratorMetadata:
        """Return the metadata for a file."""
        return GeneratorMetadata(
            config=to_dict(self.config),
            shape=self.shape,
            class_names=self.class_names,
            update=self.update,
            scores=self.scores,
            origin=self.origin,
        )

    def save(self, path: Path) -> None:
        """Write weights and metadata to one file, atomically.

        Raises:
            UserError: it could not be written; an existing file is unchanged.
        """
        self.metadata().save(path, self.generator.state_dict())

    @classmethod
    def load(cls, source: Path | str, which: str = "best", *, device: str = "cpu", threads: int = 0) -> Sampler:
        """Load the generator of a run's folder, a file or the zoo, in float32.

        Args:
            source: runs/<name>, or a file *.safetensors; of type str, also a name in the zoo.
            which: "best" or "last", of a run.
            device: auto, cpu, cuda, cuda:<n> or mps.
            threads: number of CPU threads, 0 for all cores.

        Raises:
            UserError: no such run, name or device, no weights yet, or damaged weights.
        """
        source = find_generator(source) if isinstance(source, str) else source
        if source.is_file():
            return cls.read(source, device=device, threads=threads)
        Run.read_config(source, KIND)
        path = source / weights_file(which)
        if not path.is_file():
            raise UserError(f"{source} has no {path.name} yet: wait for its first evaluation.")
        return replace(cls.read(path, device=device, threads=threads), source=source)

    @classmethod
    def read(cls, path: Path, *, device: str = "cpu", threads: int = 0) -> Sampler:
        """Load the generator of a file that `save` wrote, in float32.

        Raises:
            UserError: no such file or device, or a damaged file.
        """
        generator, metadata = GeneratorMetadata.load(path)
        compute = Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
        return cls(
            generator=compute.module(generator.requires_grad_(False)),
            config=metadata.settings(),
            shape=metadata.shape,
            class_names=metadata.class_names,
            compute=compute,
            update=metadata.update,
            scores=dict(metadata.scores),
            source=path,
            origin=metadata.origin,
        )
