"""Make a video of images that change continuously, by interpolating between latent vectors.

    python -m generative.interpolate runs/dcgan-mnist-fast-1
    python -m generative.interpolate digits --latents runs/outputs-digits/media/projection-best-0.json --strip 9

Several interpolations run side by side. Each passes through a few random latent vectors and returns to the first, so
that the video can be looped. Interpolation is spherical (White 2016, "Sampling Generative Networks", section 2.1),
because the midpoint of a straight line is shorter than the vectors that the generator was trained on. With a
class-conditional generator the class of each interpolation is constant.

With --latents there is one interpolation, through the latent vectors that generative.project found for pictures;
between pictures of two classes, the one-hot vector of the class is interpolated linearly. --strip 9 also writes an
image with a row of nine images for each interpolation, from the first latent vector to the last.

Shapes: N interpolations, P latent vectors in each, Z latent dimension, K classes, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from zerokara.core.command_line import Requirement, check_command_line, parse
from zerokara.core.config import Range, UserError, error_summary, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

MIN_SINE = 1e-6  # of the angle between two vectors; below it interpolation is linear, to avoid a division by zero
_RANDOM: Requirement = (lambda options: not options.latents, 'random latent vectors (--latents "")')


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.interpolate."""

    REQUIRES: ClassVar[Mapping[str, Requirement]] = {"number": _RANDOM, "points": _RANDOM, "label": _RANDOM}

    number: Annotated[int, Range(1, 400)] = 16
    """Number of interpolations side by side."""
    points: Annotated[int, Range(2, 1_000)] = 6
    """Latent vectors per interpolation."""
    steps: Annotated[int, Range(1, 1_000)] = 24
    """Frames from one latent vector to the next."""
    latents: str = ""
    """File of generative.project: interpolate between its latent vectors. Empty: random ones."""
    strip: Annotated[int, Range(0, 200)] = 0
    """Images per row of a PNG file beside the video (0: no file). It has a row for each interpolation."""
    fps: Annotated[float, Range(1, 120)] = 24.0
    """Frames per second."""
    label: int | None = None
    """Number of the class to generate, of a class-conditional generator. None: all classes in turn, one per
    interpolation."""
    out: str = ""
    """MP4 file to write. Empty: media/interpolation-<which>-<seed>.mp4 (<file>-walk.mp4 with --latents) in the run's
    folder."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.media import write_mp4, write_png
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.latent_file import load_latents
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


class Position(NamedTuple):
    """Position of a frame: the fraction `t` of the way from one latent vector to another, given by their indices."""

    start: int
    end: int
    t: float


def closed_path(points: int, steps: int) -> Iterator[Position]:
    """Yield the positions of points * steps frames, through all points and back to the first (not repeated)."""
    for index in range(points):
        for step in range(steps):
            yield Position(index, (index + 1) % points, step / steps)


def open_path(points: int, images: int) -> Iterator[Position]:
    """Yield evenly spaced positions from the first point to the last; the first one if there is one image."""
    for image in range(images):
        index, rest = divmod(image * (points - 1), max(1, images - 1))
        yield Position(index, min(index + 1, points - 1), rest / max(1, images - 1))


class Points(NamedTuple):
    """Latent vectors (P, N, Z) and labels (P, N) that are interpolated; None for an unconditional generator."""

    z_PNZ: Tensor
    label_PN: Tensor | None


def read_points(sampler: Sampler, options: Options) -> Points:
    """Return the random points of the options, or those of a file.

    Raises:
        UserError: a label that does not exist, or a file that cannot be used or has one latent vector.
    """
    if not options.latents:
        z_NZ = sampler.latents(options.number * options.points, options.seed)
        label_N = sampler.labels(options.number, options.label)
        label_PN = None if label_N is None else label_N.expand(options.points, -1)
        return Points(z_NZ.view(options.points, options.number, -1), label_PN)
    z_PZ, label_P = load_latents(Path(options.latents).expanduser(), sampler)
    if len(z_PZ) < 2:
        raise UserError(
            f"{options.latents} has one latent vector, and an interpolation needs two: project several pictures with "
            f"one command of {program_command('generative.project')}."
        )
    return Points(z_PZ[:, None], None if label_P is None else label_P[:, None])


def generate(sampler: Sampler, points: Points, position: Position) -> Tensor:
    """Generate the images (N, C, H, W) uint8 at a position."""
    start, end, t = position
    z_NZ = slerp(points.z_PNZ[start], points.z_PNZ[end], t)
    if points.label_PN is None or bool((points.label_PN[start] == points.label_PN[end]).all()):
        return sampler.generate(z_NZ, None if points.label_PN is None else points.label_PN[start])
    one_hot_PNK = F.one_hot(points.label_PN, len(sampler.class_names)).to(z_NZ.dtype)
    return sampler.generate(torch.cat([z_NZ, torch.lerp(one_hot_PNK[start], one_hot_PNK[end], t)], 1))


def frames(sampler: Sampler, points: Points, steps: int) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 of the video."""
    for position in closed_path(len(points.z_PNZ), steps):
        frame_HWC = image_grid(generate(sampler, points, position))
        yield frame_HWC if frame_HWC.shape[2] == 3 else frame_HWC.repeat(3, 2)


def strip(sampler: Sampler, points: Points, images: int) -> np.ndarray:
    """Return an image (H, W, C) uint8 with a row for each interpolation, from the first point to the last."""
    columns = [generate(sampler, points, position) for position in open_path(len(points.z_PNZ), images)]
    return image_grid(torch.stack(columns, 1).flatten(0, 1), images)


def check_strip(video: Path) -> None:
    """Check that the strip beside a video replaces no other file than the strip of an earlier video of this name.

    Raises:
        UserError: there is another file: without the video, or of generative.project, which has a JSON file beside it.
    """
    path = video.with_suffix(".png")
    if path.exists() and not (video.exists() and not video.with_suffix(".json").exists()):
        raise UserError(
            f"--strip writes {path}, which exists already and is not the strip of an earlier {video.name}: name "
            f"another file with --out."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Interpolate and write the video."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.interpolate"))
    points = read_points(sampler, options)
    name = (
        f"{Path(options.latents).stem}-walk.mp4"
        if options.latents
        else f"interpolation-{options.which}-{options.seed}.mp4"
    )
    path = finished.output_path(sampler, options.out, name)
    if options.strip:
        check_strip(path)
    total, progress = len(points.z_PNZ) * options.steps, Progress(silent=False)

    def frames_with_progress() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames(sampler, points, options.steps), 1):
            progress.show(index, total, {})
            yield frame

    try:
        write_mp4(path, frames_with_progress(), options.fps)
        if options.strip:
            write_png(path.with_suffix(".png"), strip(sampler, points, options.strip))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error_summary(error)}): name another file with --out.") from None
    finally:
        progress.close()
    also = f", {path.with_suffix('.png')}" if options.strip else ""
    print(
        f"{path}{also}: {total:,} frames, {total / options.fps:.0f} s, {points.z_PNZ.shape[1]} interpolations, "
        f"update {sampler.update:,}"
    )


if __name__ == "__main__":
    run_main(main)
