"""Interpolate: walks from image to image through the generator's latents, as a film.

    python -m generative.interpolate runs/dcgan-mnist-fast-1

Several walks side by side, each past a few latents and back to the first, so that the film can be looped. Between two
latents the way is spherical (White 2016, "Sampling Generative Networks", section 2.1): the middle of a straight line
is shorter than anything the generator was trained on. A class-conditional generator keeps a walk's class.

Shapes: N walks, P latents of a walk, Z numbers of a latent, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from zerokara.core.config import Range, UserError, error_summary, parse, run_main
from zerokara.core.media import write_mp4
from zerokara.core.programs import program_command
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import picture
from zerokara.generative.gan.sampler import Sampler

NEARLY_PARALLEL = 1e-6  # radians, or as far from opposite; there a straight line is as good, and divides by nothing


@dataclass(frozen=True, kw_only=True)
class Options(finished.Options):
    """Which walks."""

    number: Annotated[int, Range(1, 400)] = 16
    """Walks side by side."""
    points: Annotated[int, Range(2, 1_000)] = 6
    """Latents that a walk passes."""
    steps: Annotated[int, Range(1, 1_000)] = 24
    """Frames from one latent to the next."""
    fps: Annotated[float, Range(1, 120)] = 24.0
    """Frames in a second."""
    label: int | None = None
    """Class to paint, by its number; None: all classes in turn, one for each walk."""
    out: str = ""
    """The film, an .mp4; empty: media/interpolation-<which>-<seed>.mp4 in the run's folder."""


def slerp(from_NZ: Tensor, to_NZ: Tensor, share: float) -> Tensor:
    """Spherical interpolation of rows: the direction turns evenly, and the length changes evenly.

        sin((1 - t) w) / sin(w) a/|a| + sin(t w) / sin(w) b/|b|,   w the angle between, at length (1 - t) |a| + t |b|

    It begins at `from_NZ` for a share of 0 and ends at `to_NZ` for 1. Rows that point the same way, or exactly
    opposite ways, are joined by a straight line.
    """
    a, b = from_NZ.double(), to_NZ.double()
    a_length, b_length = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a_way, b_way = a / a_length.clamp(min=1e-12), b / b_length.clamp(min=1e-12)
    # The angle from its half's tangent: exact where an arc cosine is not.
    angle = 2 * torch.atan2((a_way - b_way).norm(dim=1, keepdim=True), (a_way + b_way).norm(dim=1, keepdim=True))
    sine = angle.sin()
    way = (((1 - share) * angle).sin() * a_way + (share * angle).sin() * b_way) / sine.clamp(min=1e-12)
    length = (1 - share) * a_length + share * b_length
    straight = (1 - share) * a + share * b
    return torch.where(sine < NEARLY_PARALLEL, straight, way * length).to(from_NZ.dtype)


def walk(points_PNZ: Tensor, steps: int) -> Iterator[Tensor]:
    """Latents (N, Z) of P * steps frames past all points and back to the first, which does not come twice."""
    for place in range(len(points_PNZ)):
        after_NZ = points_PNZ[(place + 1) % len(points_PNZ)]
        for step in range(steps):
            yield slerp(points_PNZ[place], after_NZ, step / steps)


def frames(sampler: Sampler, options: Options) -> Iterator[np.ndarray]:
    """The film (H, W, 3) uint8, a frame at a time."""
    z_NZ = sampler.latents(options.number * options.points, options.seed)
    points_PNZ = z_NZ.view(options.points, options.number, -1)
    label_N = sampler.labels(options.number, options.label)
    for z_NZ in walk(points_PNZ, options.steps):
        frame_HWC = picture(sampler.paint(z_NZ, label_N))
        yield frame_HWC if frame_HWC.shape[2] == 3 else frame_HWC.repeat(3, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Walk, film it, and say where it is."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.interpolate"))
    where = finished.output_path(options, options.out, f"interpolation-{options.which}-{options.seed}.mp4")
    total, progress = options.points * options.steps, Progress(silent=False)

    def watched() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames(sampler, options), 1):
            progress.show(index, total, {})
            yield frame

    try:
        write_mp4(where, watched(), options.fps)
    except OSError as error:
        raise UserError(f"{where} cannot be written ({error_summary(error)}): name another file with --out.") from None
    finally:
        progress.close()
    print(f"{where}: {total:,} frames, {total / options.fps:.0f} s, {options.number} walks, update {sampler.update:,}")


if __name__ == "__main__":
    run_main(main)
