"""Make a video of images that change continuously, by interpolating between latent vectors.

    python -m generative.interpolate runs/dcgan-mnist-fast-1

Several interpolations run side by side. Each passes through a few random latent vectors and returns to the first, so
that the video can be looped. Interpolation is spherical (White 2016, "Sampling Generative Networks", section 2.1),
because the midpoint of a straight line is shorter than the vectors that the generator was trained on. With a
class-conditional generator the class of each interpolation is constant.

Shapes: N interpolations, P latent vectors in each, Z latent dimension, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Range, UserError, error_summary, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

MIN_SINE = 1e-6  # of the angle between two vectors; below it interpolation is linear, to avoid a division by zero


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.interpolate."""

    number: Annotated[int, Range(1, 400)] = 16
    """Number of interpolations side by side."""
    points: Annotated[int, Range(2, 1_000)] = 6
    """Latent vectors per interpolation."""
    steps: Annotated[int, Range(1, 1_000)] = 24
    """Frames from one latent vector to the next."""
    fps: Annotated[float, Range(1, 120)] = 24.0
    """Frames per second."""
    label: int | None = None
    """Number of the class to generate, of a class-conditional generator. None: all classes in turn, one per
    interpolation."""
    out: str = ""
    """MP4 file to write. Empty: media/interpolation-<which>-<seed>.mp4 in the run's folder."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor

from zerokara.core.media import write_mp4
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import image_grid
from zerokara.generative.gan.sampler import Sampler


def slerp(from_NZ: Tensor, to_NZ: Tensor, t: float) -> Tensor:
    """Interpolate spherically between rows. Direction and length change at a constant rate.

        sin((1 - t) w) / sin(w) a/|a| + sin(t w) / sin(w) b/|b|, scaled to the length (1 - t) |a| + t |b|,

    where w is the angle between a and b. The result is `from_NZ` at t = 0 and `to_NZ` at t = 1. Parallel and opposite
    rows are interpolated linearly.
    """
    a, b = from_NZ.double(), to_NZ.double()
    a_length, b_length = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a_direction, b_direction = a / a_length.clamp(min=1e-12), b / b_length.clamp(min=1e-12)
    # From the tangent of half the angle, which is accurate for small angles, unlike the arc cosine.
    difference = (a_direction - b_direction).norm(dim=1, keepdim=True)
    total = (a_direction + b_direction).norm(dim=1, keepdim=True)
    angle = 2 * torch.atan2(difference, total)
    sine = angle.sin()
    direction = (((1 - t) * angle).sin() * a_direction + (t * angle).sin() * b_direction) / sine.clamp(min=1e-12)
    length = (1 - t) * a_length + t * b_length
    linear = (1 - t) * a + t * b
    return torch.where(sine < MIN_SINE, linear, direction * length).to(from_NZ.dtype)


def closed_path(points_PNZ: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the latent vectors (N, Z) of P * steps frames, through all points and back to the first (not repeated)."""
    for index in range(len(points_PNZ)):
        next_NZ = points_PNZ[(index + 1) % len(points_PNZ)]
        for step in range(steps):
            yield slerp(points_PNZ[index], next_NZ, step / steps)


def frames(sampler: Sampler, options: Options) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 of the video."""
    z_NZ = sampler.latents(options.number * options.points, options.seed)
    points_PNZ = z_NZ.view(options.points, options.number, -1)
    label_N = sampler.labels(options.number, options.label)
    for z_NZ in closed_path(points_PNZ, options.steps):
        frame_HWC = image_grid(sampler.generate(z_NZ, label_N))
        yield frame_HWC if frame_HWC.shape[2] == 3 else frame_HWC.repeat(3, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Interpolate and write the video."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.interpolate"))
    path = finished.output_path(sampler, options.out, f"interpolation-{options.which}-{options.seed}.mp4")
    total, progress = options.points * options.steps, Progress(silent=False)

    def frames_with_progress() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames(sampler, options), 1):
            progress.show(index, total, {})
            yield frame

    try:
        write_mp4(path, frames_with_progress(), options.fps)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error_summary(error)}): name another file with --out.") from None
    finally:
        progress.close()
    print(
        f"{path}: {total:,} frames, {total / options.fps:.0f} s, {options.number} interpolations, "
        f"update {sampler.update:,}"
    )


if __name__ == "__main__":
    run_main(main)
