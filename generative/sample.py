"""Generate images with a trained generator, as one image grid or as a folder of files.

    python -m generative.sample digits                                   # a generator that ships with zerokara
    python -m generative.sample runs/dcgan-mnist-fast-1
    python -m generative.sample runs/dcgan-mnist-fast-1 --number 10000 --folder generated
    python -m generative.sample runs/dcgan-mnist-fast-1 --label 3        # of a run with --conditional

An image depends only on its latent vector and label, not on other images of its batch. Images are numbered from 0,
row by row; generative/arithmetic.py takes these numbers.

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


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.sample."""

    REQUIRES: ClassVar[Mapping[str, Requirement]] = {"columns": _GRID, "out": _GRID}

    number: Annotated[int, Range(1, 10**6)] = 64
    """Number of images."""
    label: int | None = None
    """Number of the class to generate, of a class-conditional generator. None: all classes in turn."""
    columns: Annotated[int, Range(0, 200)] = 0
    """Images per row of the grid. 0: a square grid."""
    out: str = ""
    """PNG file of the image grid. Empty: media/samples-<which>-<seed>.png in the run's folder, or in
    runs/outputs-<name> for the zoo."""
    folder: str = ""
    """Folder for one file per image (000000.png, ...) instead of an image grid. Empty: write a grid."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

from torch import Tensor

from zerokara.core.media import write_png
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import displayable, image_grid
from zerokara.generative.gan.sampler import Sampler


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
    z_NZ, label_N = sampler.latents(options.number, options.seed), sampler.labels(options.number, options.label)
    if options.folder:
        path = Path(options.folder)
        write_folder(sampler, z_NZ, label_N, path)
    else:
        path = finished.output_path(sampler, options.out, f"samples-{options.which}-{options.seed}.png")
        write_png(path, image_grid(sampler.generate(z_NZ, label_N), options.columns or None))
    print(f"{path}: {options.number:,} images, update {sampler.update:,}")


if __name__ == "__main__":
    run_main(main)
