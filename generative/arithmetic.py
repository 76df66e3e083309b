"""Arithmetic: the mean of some images' latents, minus that of others, plus that of others again, painted.

    python -m generative.sample runs/<name> --number 100                          # look: which images show what
    python -m generative.arithmetic runs/<name> --mean 3 17 40 --minus 5 8 21 --plus 9 44 60

Radford et al. 2016, section 6.3.2 and figure 7: smiling woman - neutral woman + neutral man = smiling man. Numbers
count the images of `generative.sample` with the same seed from 0, along the rows. The picture shows each mean and the
result, and after them the result with noise from -.25 to .25 on every number of its latent, as in the paper.

Shapes: N images, Z numbers of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerokara.core.config import UserError, parse, run_main
from zerokara.core.media import write_png
from zerokara.core.programs import program_command
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import picture

NOISE = 0.25
AROUND = 8  # images with noise
MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class Options(finished.Options):
    """Which images."""

    mean: tuple[int, ...] = ()
    """Images whose mean is begun with."""
    minus: tuple[int, ...] = ()
    """Images whose mean is taken away."""
    plus: tuple[int, ...] = ()
    """Images whose mean is added."""
    label: int | None = None
    """Class to paint, by its number; None: 0 where there are classes."""
    out: str = ""
    """The picture, a .png; empty: media/arithmetic-<which>-<seed>.png in the run's folder."""


def combine(z_NZ: Tensor, terms: Sequence[tuple[float, Sequence[int]]], normal: bool) -> Tensor:
    """The sum (Z,) of signed means of latents.

    Args:
        z_NZ: latents that `terms` count.
        terms: sign and rows of each mean; one without rows counts for nothing.
        normal: latents are N(0, 1); then the sum is scaled to that deviation, which means of several have lost.
    """
    used = [(sign, list(rows)) for sign, rows in terms if rows]
    total_Z = torch.stack([sign * z_NZ[rows].mean(0) for sign, rows in used]).sum(0)
    return total_Z / math.sqrt(sum(1 / len(rows) for _, rows in used)) if normal else total_Z


def main(argv: Sequence[str] | None = None) -> None:
    """Combine, paint, and say where it is."""
    options = parse(Options, {}, argv, __doc__ or "")
    terms = [(1.0, options.mean), (-1.0, options.minus), (1.0, options.plus)]
    numbers = [number for _, rows in terms for number in rows]
    if not options.mean:
        raise UserError("--mean names no images: give some of generative.sample by number, as in --mean 3 17 40.")
    if min(numbers) < 0 or max(numbers) >= MOST:
        raise UserError(f"Images are counted from 0 to {MOST - 1:,}, got {min(numbers)} to {max(numbers)}.")
    sampler = finished.load_sampler(options, program_command("generative.arithmetic"))
    where = finished.output_path(options, options.out, f"arithmetic-{options.which}-{options.seed}.png")
    z_NZ = sampler.latents(max(numbers) + 1, options.seed)
    normal = sampler.config.latent_distribution == "normal"
    result_Z = combine(z_NZ, terms, normal)
    means = [combine(z_NZ, [(1.0, rows)], normal) for _, rows in terms if rows]
    noise = torch.rand(AROUND, len(result_Z), generator=torch.Generator().manual_seed(options.seed)) * 2 - 1
    shown_NZ = torch.cat([torch.stack([*means, result_Z]), result_Z + NOISE * noise])
    label = options.label if options.label is not None or not sampler.class_names else 0
    images = sampler.paint(shown_NZ, sampler.labels(len(shown_NZ), label))
    write_png(where, picture(images, len(means) + 1))
    print(
        f"{where}: {' '.join(name for name in ('mean', 'minus', 'plus') if getattr(options, name))}, the result, "
        f"and {AROUND} with noise"
    )


if __name__ == "__main__":
    run_main(main)
