"""Sample: what a trained generator paints, as one picture or as a folder of images.

    python -m generative.sample runs/dcgan-mnist-fast-1
    python -m generative.sample runs/dcgan-mnist-fast-1 --number 10000 --folder painted
    python -m generative.sample runs/dcgan-mnist-fast-1 --label 3        # of a run with --conditional

An image depends on its latent and its label alone, not on what is painted with it. In the picture images are counted
from 0, along the rows; generative/arithmetic.py takes these numbers.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from zerokara.core.config import Range, UserError, error_summary, parse, run_main
from zerokara.core.media import write_png
from zerokara.core.programs import program_command
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.pictures import picture, shown
from zerokara.generative.gan.sampler import Sampler

MAX_IN_A_GRID = 2_500
CHUNK = 500  # images that are in memory at once on their way into a folder


@dataclass(frozen=True, kw_only=True)
class Options(finished.Options):
    """What to paint, and where to."""

    number: Annotated[int, Range(1, 10**6)] = 64
    """Images to paint."""
    label: int | None = None
    """Class to paint, by its number; None: all classes in turn."""
    columns: Annotated[int, Range(0, 200)] = 0
    """Images in a row of the picture; 0: as many as there are rows."""
    out: str = ""
    """The picture, a .png; empty: media/samples-<which>-<seed>.png in the run's folder."""
    folder: str = ""
    """Folder for an image each, 000000.png and so on, in the place of one picture; empty: a picture."""


def write_folder(sampler: Sampler, z_NZ: Tensor, label_N: Tensor | None, folder: Path) -> None:
    """Paint into a folder, an image at a time.

    Raises:
        UserError: it is a file, holds pictures already, or cannot be written.
    """
    if folder.is_file() or any(folder.glob("*.png")):
        what = "is a file" if folder.is_file() else "holds pictures already"
        raise UserError(f"--folder {folder} {what}: give an empty or a new folder.")
    progress = Progress(silent=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(z_NZ), CHUNK):
            rows = slice(start, start + CHUNK)
            images_NCHW = shown(sampler.paint(z_NZ[rows], None if label_N is None else label_N[rows]))
            for index, image_CHW in enumerate(images_NCHW, start):
                write_png(folder / f"{index:06}.png", image_CHW.numpy())
            progress.show(min(start + CHUNK, len(z_NZ)), len(z_NZ), {})
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error_summary(error)}): name another folder.") from None
    finally:
        progress.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Paint, and say where it is."""
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.folder and options.number > MAX_IN_A_GRID:
        raise UserError(
            f"--number {options.number} is too many for one picture, which holds {MAX_IN_A_GRID:,}: "
            f"add --folder painted for a file each."
        )
    sampler = finished.load_sampler(options, program_command("generative.sample"))
    z_NZ, label_N = sampler.latents(options.number, options.seed), sampler.labels(options.number, options.label)
    if options.folder:
        where = Path(options.folder)
        write_folder(sampler, z_NZ, label_N, where)
    else:
        where = finished.output_path(options, options.out, f"samples-{options.which}-{options.seed}.png")
        write_png(where, picture(sampler.paint(z_NZ, label_N), options.columns or None))
    print(f"{where}: {options.number:,} images, update {sampler.update:,}")


if __name__ == "__main__":
    run_main(main)
