"""Latent vector arithmetic: add and subtract the mean latent vectors of images.

    python -m generative.sample runs/<name> --number 100                          # see what the images show
    python -m generative.arithmetic runs/<name> --mean 3 17 40 --minus 5 8 21 --plus 9 44 60

Radford et al. 2016, section 6.3.2 and figure 7: smiling woman - neutral woman + neutral man = smiling man. Images are
numbered from 0, row by row, as in the grid of `generative.sample` with the same seed. The output shows an image of each
mean and of the result, followed by results with uniform noise from -.25 to .25 added to the latent vector, as in the
paper.

Shapes: N images, Z latent dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import UserError, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

NOISE = 0.25
NOISY_IMAGES = 8
MAX_IMAGES = 100_000


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.arithmetic."""

    mean: tuple[int, ...] = ()
    """Numbers of the images whose mean is the first term."""
    minus: tuple[int, ...] = ()
    """Numbers of the images whose mean is subtracted."""
    plus: tuple[int, ...] = ()
    """Numbers of the images whose mean is added."""
    label: int | None = None
    """Number of the class to generate, of a class-conditional generator. None: class 0."""
    out: str = ""
    """PNG file to write. Empty: media/arithmetic-<which>-<seed>.png in the run's folder."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from torch import Tensor

from zerokara.core.media import write_png
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import image_grid


def combine(z_NZ: Tensor, terms: Sequence[tuple[float, Sequence[int]]], normal: bool) -> Tensor:
    """Sum signed means of latent vectors (Z,).

    Args:
        z_NZ: latent vectors that `terms` refer to.
        terms: sign and row numbers of each mean; terms without rows are ignored.
        normal: True if latent vectors are N(0, 1). Then the sum is scaled to unit variance, which means do not have.
    """
    used = [(sign, list(rows)) for sign, rows in terms if rows]
    total_Z = torch.stack([sign * z_NZ[rows].mean(0) for sign, rows in used]).sum(0)
    return total_Z / math.sqrt(sum(1 / len(rows) for _, rows in used)) if normal else total_Z


def main(argv: Sequence[str] | None = None) -> None:
    """Combine latent vectors and write the generated images."""
    options = parse(Options, {}, argv, __doc__ or "")
    terms = [(1.0, options.mean), (-1.0, options.minus), (1.0, options.plus)]
    numbers = [number for _, rows in terms for number in rows]
    if not options.mean:
        raise UserError("--mean names no images: give numbers of images of generative.sample, as in --mean 3 17 40.")
    if min(numbers) < 0 or max(numbers) >= MAX_IMAGES:
        raise UserError(f"Images are numbered from 0 to {MAX_IMAGES - 1:,}, got {min(numbers)} to {max(numbers)}.")
    sampler = finished.load_sampler(options, program_command("generative.arithmetic"))
    path = finished.output_path(sampler, options.out, f"arithmetic-{options.which}-{options.seed}.png")
    z_NZ = sampler.latents(max(numbers) + 1, options.seed)
    normal = sampler.config.latent_distribution == "normal"
    result_Z = combine(z_NZ, terms, normal)
    means = [combine(z_NZ, [(1.0, rows)], normal) for _, rows in terms if rows]
    noise = torch.rand(NOISY_IMAGES, len(result_Z), generator=torch.Generator().manual_seed(options.seed)) * 2 - 1
    all_NZ = torch.cat([torch.stack([*means, result_Z]), result_Z + NOISE * noise])
    label = options.label if options.label is not None or not sampler.class_names else 0
    images = sampler.generate(all_NZ, sampler.labels(len(all_NZ), label))
    write_png(path, image_grid(images, len(means) + 1))
    print(
        f"{path}: {' '.join(name for name in ('mean', 'minus', 'plus') if getattr(options, name))}, the result, "
        f"and {NOISY_IMAGES} with noise"
    )


if __name__ == "__main__":
    run_main(main)
