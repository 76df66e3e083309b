"""Export a trained generator to safetensors and ONNX, for use in other programs.

    python -m generative.export runs/dcgan-mnist-fast-1
    python -m generative.export runs/dcgan-mnist-fast-1 --which last --out deployed --no-onnx

Writes <name>.safetensors, weights with metadata, and <name>.onnx. The ONNX model takes `latents` (N, Z) float32 and, if
class-conditional, `labels` (N,) int64, for any N, and returns `pixels` (N, C, H, W) from 0 to 1. Before the files are
put in place, their outputs are compared with the original's, for a batch and for a single latent vector.

ONNX needs three more packages: pip install onnx onnxscript onnxruntime.

Shapes: N images, Z latent dimension, K classes, C channels, H, W pixels.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

CHECKED_IMAGES = 64
MAX_DIFFERENCE = 1e-4  # of a pixel from 0 to 1; one level of 8 bits is 4e-3


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.export."""

    out: str = ""
    """Folder to write to. Empty: export/ in the run's folder."""
    onnx: bool = True
    """Also write an ONNX file."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core.models import onnx_file
from zerokara.core.models.exporting import Function, compare, put_in_place
from zerokara.generative.gan import finished
from zerokara.generative.gan.networks import LatentGenerator
from zerokara.generative.gan.sampler import Sampler


class ExportedGenerator(nn.Module):
    """Generator from latent vectors (N, Z) and labels (N,) to pixels (N, C, H, W) from 0 to 1."""

    def __init__(self, generator: LatentGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Generate pixels (N, C, H, W)."""
        if labels is not None:  # one-hot by comparison, an operation that every ONNX runtime supports
            class_K = torch.arange(self.generator.classes, device=labels.device)
            latents = torch.cat([latents, (labels[:, None] == class_K).to(latents.dtype)], 1)
        pixels: Tensor = (self.generator(latents) + 1) / 2
        return pixels


def as_function(sampler: Sampler) -> Function:
    """Return the sampler's generator as a function from tensors to pixels."""
    network = ExportedGenerator(sampler.generator).eval()

    @torch.no_grad()
    def generate(*inputs: Tensor) -> np.ndarray:
        return np.asarray(network(*inputs).numpy())

    return generate


def main(argv: Sequence[str] | None = None) -> None:
    """Export the generator, check the files, and put them in place."""
    options = parse(Options, {}, argv, __doc__ or "")
    if options.onnx:
        onnx_file.check_packages()
    sampler = finished.load_sampler(replace(options, device="cpu"), program_command("generative.export"))
    example = {"latents": sampler.latents(CHECKED_IMAGES, options.seed)}
    label_N = sampler.labels(CHECKED_IMAGES)
    if label_N is not None:
        example["labels"] = label_N
    inputs, original = list(example.values()), as_function(sampler)
    out, name = Path(options.out) if options.out else sampler.output_folder / "export", sampler.name
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / f"{name}.safetensors"
        sampler.save(weights)
        exported = Sampler.read(weights, threads=options.threads)
        written = [(weights, compare(as_function(exported), original, inputs, MAX_DIFFERENCE, "pixel"))]
        if options.onnx:
            path = Path(scratch) / f"{name}.onnx"
            metadata = {"classes": json.dumps(sampler.class_names), "update": str(sampler.update)}
            metadata["latent_distribution"] = sampler.config.latent_distribution
            onnx_file.write(ExportedGenerator(sampler.generator).eval(), example, "pixels", path, metadata)
            written.append((path, compare(onnx_file.load(path), original, inputs, MAX_DIFFERENCE, "pixel")))
        for path, (largest, _) in written:
            target = out / path.name
            put_in_place(path, target)
            size = target.stat().st_size / 1e3
            print(f"{target}: {size:,.0f} kB, largest difference of a pixel {largest:.1e} in {CHECKED_IMAGES} images")


if __name__ == "__main__":
    run_main(main)
