"""Generate images with a trained generator, as one image grid or as a folder of files.

    python -m generative.sample digits                                   # a generator that ships with zerokara
    python -m generative.sample runs/dcgan-mnist-fast-1
    python -m generative.sample runs/dcgan-mnist-fast-1 --number 10000 --folder generated
    python -m generative.sample conditional-digits --label 3             # of a generator with classes
    python -m generative.sample conditional-digits --per-class 12        # a contact sheet with a row for each class
    python -m generative.sample digits --psi 0.7                         # less diverse images

An image depends only on its latent vector and label, not on other images of its batch. Images are numbered from 0,
row by row, except those of a contact sheet (--per-class), where the column is the number; generative/arithmetic.py
takes these numbers.

Truncation (--psi) multiplies each latent vector by psi. This is the formula of StyleGAN (Karras et al. 2019, appendix
B), mean + psi (z - mean), applied to the latent vector itself, whose mean is 0. It is not the truncation of BigGAN,
which draws numbers beyond a threshold anew.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from zerokara.core.command_line import Requirement, check_command_line, parse
from zerokara.core.config import Range, UserError, error_summary, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

MAX_IN_GRID = 2_500  # images
CHUNK = 500  # images in memory at once, with --folder
_GRID: Requirement = (lambda options: not options.folder, 'an image grid (--folder "")')
_NO_SHEET: Requirement = (lambda options: not options.per_class, "a plain set of images (--per-class 0)")
_PLAIN_GRID: Requirement = (
    lambda options: not options.folder and not options.per_class,
    'a plain image grid (--folder "", --per-class 0)',
)


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.sample."""

    REQUIRES: ClassVar[Mapping[str, Requirement]] = {
        "number": _NO_SHEET,
        "label": _NO_SHEET,
        "columns": _PLAIN_GRID,
        "out": _GRID,
        "per_class": _GRID,
    }

    number: Annotated[int, Range(1, 10**6)] = 64
    """Number of images."""
    label: int | None = None
    """Number of the class to generate, of a class-conditional generator. None: all classes in turn."""
    per_class: Annotated[int, Range(0, 200)] = 0
    """Images per class of a contact sheet: a row for each class, a column for each latent vector (0: no sheet)."""
    psi: Annotated[float, Range(0, 1, low_open=True)] = 1.0
    """Truncation: factor on the latent vectors. Smaller values give less diverse images."""
    columns: Annotated[int, Range(0, 200)] = 0
    """Images per row of the grid. 0: a square grid."""
    out: str = ""
    """PNG file of the image grid. Empty: media/samples-<which>-<seed>.png (classes-... of a contact sheet) in the
    run's folder, or in runs/outputs-<name> for the zoo."""
    folder: str = ""
    """Folder for one file per image (000000.png, ...) instead of an image grid. Empty: write a grid."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from torch import Tensor

from zerokara.core.media import write_png
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import displayable, image_grid
from zerokara.generative.gan.sampler import Sampler


def latents_and_labels(sampler: Sampler, options: Options) -> tuple[Tensor, Tensor | None]:
    """Return the latent vectors (N, Z) and the labels (N,), None for an unconditional generator.

    Raises:
        UserError: a label that does not exist, a contact sheet of an unconditional generator, or one that is too large.
    """
    if not options.per_class:
        z_NZ = sampler.latents(options.number, options.seed, options.psi)
        return z_NZ, sampler.labels(options.number, options.label)
    classes = len(sampler.class_names)
    if not classes:
        raise UserError("This generator was trained without classes: remove --per-class.")
    if classes * options.per_class > MAX_IN_GRID:
        raise UserError(
            f"--per-class {options.per_class} of {classes} classes is {classes * options.per_class:,} images, and an "
            f"image grid has at most {MAX_IN_GRID:,}: give --per-class {MAX_IN_GRID // classes}."
        )
    z_NZ = sampler.latents(options.per_class, options.seed, options.psi)
    return z_NZ.repeat(classes, 1), torch.arange(classes).repeat_interleave(options.per_class)


def write_folder(sampler: Sampler, z_NZ: Tensor, label_N: Tensor | None, folder: Path) -> None:
    """Generate images and write each to a file of a folder.

    Raises:
        UserError: the folder is a file, contains PNG files already, or cannot be written.
    """
    if folder.is_file() or any(folder.glob("*.png")):
        reason = "is a file" if folder.is_file() else "contains PNG files already"
        raise UserError(f"--folder {folder} {reason}: name an empty or a new folder.")
    progress = Progress(silent=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(z_NZ), CHUNK):
            rows = slice(start, start + CHUNK)
            images_NCHW = displayable(sampler.generate(z_NZ[rows], None if label_N is None else label_N[rows]))
            for index, image_CHW in enumerate(images_NCHW, start):
                write_png(folder / f"{index:06}.png", image_CHW.numpy())
            progress.show(min(start + CHUNK, len(z_NZ)), len(z_NZ), {})
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error_summary(error)}): name another folder.") from None
    finally:
        progress.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Generate images and write them."""
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.folder and options.number > MAX_IN_GRID:
        raise UserError(
            f"--number must be at most {MAX_IN_GRID:,} for an image grid, got {options.number}: "
            f"add --folder generated to write one file per image."
        )
    sampler = finished.load_sampler(options, program_command("generative.sample"))
    z_NZ, label_N = latents_and_labels(sampler, options)
    if options.folder:
        path = Path(options.folder)
        write_folder(sampler, z_NZ, label_N, path)
    else:
        kind = "classes" if options.per_class else "samples"
        path = finished.output_path(sampler, options.out, f"{kind}-{options.which}-{options.seed}.png")
        write_png(path, image_grid(sampler.generate(z_NZ, label_N), options.per_class or options.columns or None))
    rows = f", one row each for {', '.join(sampler.class_names)}" if options.per_class else ""
    print(f"{path}: {len(z_NZ):,} images, update {sampler.update:,}{rows}")


if __name__ == "__main__":
    run_main(main)
