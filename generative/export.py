"""Export: a trained generator for programs that are not ours, checked by running it.

    python -m generative.export runs/dcgan-mnist-fast-1
    python -m generative.export runs/dcgan-mnist-fast-1 --which last --out deployed --no-onnx

Two files: <name>.safetensors, weights with the card that says what they are, and <name>.onnx, which takes `latents`
(N, Z) float32 and, of a class-conditional generator, `labels` (N,) int64, for any N, and gives `pixels` (N, C, H, W)
from 0 to 1. Both are run on the same latents as the original, all together and one alone, before they are put in place.

ONNX needs three packages more: pip install onnx onnxscript onnxruntime.

Shapes: N images, Z numbers of a latent, K classes, C channels, H, W pixels.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, error_summary, parse, run_main
from zerokara.core.models import onnx_file
from zerokara.core.programs import program_command
from zerokara.generative.gan import finished
from zerokara.generative.gan.networks import LatentGenerator
from zerokara.generative.gan.sampler import Sampler

CHECKED = 64  # images
MAX_DIFFERENCE = 1e-4  # of a pixel from 0 to 1; a shade of 255 is 4e-3

Paint = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Options(finished.Options):
    """What to export, and where to."""

    out: str = ""
    """Folder of the files; empty: export/ in the run's folder."""
    onnx: bool = True
    """Write ONNX too."""


class Deployed(nn.Module):
    """From latents (N, Z) and labels (N,) to pixels (N, C, H, W) from 0 to 1."""

    def __init__(self, generator: LatentGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pixels (N, C, H, W)."""
        if labels is not None:  # as one-hot rows by comparison, which every runtime has
            known_K = torch.arange(self.generator.classes, device=labels.device)
            latents = torch.cat([latents, (labels[:, None] == known_K).to(latents.dtype)], 1)
        pixels: Tensor = (self.generator(latents) + 1) / 2
        return pixels


def as_function(sampler: Sampler) -> Paint:
    """Its generator as a function from tensors to pixels."""
    deployed = Deployed(sampler.generator).eval()

    @torch.no_grad()
    def paint(*inputs: Tensor) -> np.ndarray:
        return np.asarray(deployed(*inputs).numpy())

    return paint


def difference(found: Paint, expected: Paint, inputs: Sequence[Tensor]) -> float:
    """The largest difference of a pixel, over all inputs together and the first one alone.

    Raises:
        UserError: it is more than rounding.
    """
    worst = 0.0
    for part in (inputs, [tensor[:1] for tensor in inputs]):
        gap = np.abs(found(*part) - expected(*part)).max()
        worst = float(np.maximum(worst, gap))  # which lets NaN through, and max does not
    if not worst <= MAX_DIFFERENCE:
        raise UserError(
            f"A pixel of the exported generator differs by {worst:.2g} from the original's, and {MAX_DIFFERENCE:g} is "
            f"allowed: nothing was written; please report it with the run's config.json."
        )
    return worst


def main(argv: Sequence[str] | None = None) -> None:
    """Write, check, put in place."""
    options = parse(Options, {}, argv, __doc__ or "")
    if options.onnx:
        onnx_file.check_packages()
    sampler = finished.load_sampler(replace(options, device="cpu"), program_command("generative.export"))
    example = {"latents": sampler.latents(CHECKED, options.seed)}
    label_N = sampler.labels(CHECKED)
    if label_N is not None:
        example["labels"] = label_N
    inputs, original = list(example.values()), as_function(sampler)
    folder = Path(options.run)
    out, name = Path(options.out) if options.out else folder / "export", folder.resolve().name
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / f"{name}.safetensors"
        sampler.save(weights)
        written = [(weights, difference(as_function(Sampler.read(weights, threads=options.threads)), original, inputs))]
        if options.onnx:
            path = Path(scratch) / f"{name}.onnx"
            metadata = {"classes": json.dumps(sampler.class_names), "update": str(sampler.update)}
            onnx_file.write(Deployed(sampler.generator).eval(), example, "pixels", path, metadata)
            written.append((path, difference(onnx_file.load(path), original, inputs)))
        try:
            out.mkdir(parents=True, exist_ok=True)
            for path, worst in written:
                place = out / path.name
                with path.open("rb") as content:
                    write_atomically(place, lambda file, content=content: shutil.copyfileobj(content, file))  # type: ignore[misc]
                size = place.stat().st_size / 1e3
                print(f"{place}: {size:,.0f} kB, largest difference of a pixel {worst:.1e} in {CHECKED} images")
        except OSError as error:
            raise UserError(
                f"{out} cannot be written ({error_summary(error)}): name another folder with --out."
            ) from None


if __name__ == "__main__":
    run_main(main)
