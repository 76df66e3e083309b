"""Stylise: one's own pictures in the style that a run of generative.fast_style has learnt.

    python -m generative.stylise runs/<name> photo.jpg folder/of/pictures --out painted

Pictures may have any size, up to what fits memory, which is said before it is taken. Each becomes <its name>.png in the
folder --out. A file of weights that PyTorch's example fast_neural_style made does in the place of a run.

Shapes: C channels, H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from zerokara.core.compute import Compute, Precision
from zerokara.core.config import Positional, Range, UserError, error_summary, parse, run_main
from zerokara.core.data.pictures import SUFFIXES
from zerokara.core.media import write_png
from zerokara.core.programs import program_command
from zerokara.generative.style import network as stylist
from zerokara.generative.style.losses import luminance, with_luminance
from zerokara.generative.style.network import StyleNetwork
from zerokara.generative.style.pictures import check_memory, read_picture, resized, sizes, to_picture, to_pixels

# Bytes for a pixel of the result: the finest maps are of 32 channels, and some four of them live at once.
BYTES_PER_PIXEL = 4 * 32 * 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Whose style, and which pictures get it."""

    words: Annotated[tuple[str, ...], Positional("runs/<name> picture")] = ()
    """The run (or its model.safetensors), then pictures or folders of them."""
    size: Annotated[int, Range(0)] = 0
    """Longer side of the results in pixels; 0: as each picture has it."""
    keep_color: bool = False
    """Only brightness is painted, and each picture's colours are kept."""
    out: str = "painted"
    """Folder for the results; it is made."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "float32"
    """Arithmetic of the network; auto: what a short measurement on the first picture finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def picture_files(words: Sequence[str]) -> list[Path]:
    """The pictures that are named, and those in folders that are named.

    Raises:
        UserError: none at all, or two that would be written to one file.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        found += sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not found:
        raise UserError(
            "No picture was named: type the run and then pictures, as in "
            f"{program_command('generative.stylise')} runs/<name> photo.jpg."
        )
    stems = [path.stem for path in found]
    if twice := next((path for path in found if stems.count(path.stem) > 1), None):
        raise UserError(f"Two pictures are called {twice.stem}, and both would become {twice.stem}.png: rename one.")
    return found


def painted(network: StyleNetwork, compute: Compute, picture_HWC: np.ndarray, *, keep_color: bool) -> np.ndarray:
    """A picture (H, W, 3) uint8 in the network's style."""
    pixels = to_pixels(picture_HWC).to(compute.torch_device)
    result = stylist.paint(network, compute, pixels)
    return to_picture(with_luminance(pixels, luminance(result)) if keep_color else result)


def fitted(path: Path, options: Options) -> np.ndarray:
    """The picture of a file at the size that is asked for.

    Raises:
        UserError: it cannot be read, or does not fit memory.
    """
    picture = read_picture(path)
    size = sizes(picture.shape[0], picture.shape[1], options.size, 1)[0]
    check_memory({path.name: BYTES_PER_PIXEL * size[0] * size[1]}, options.device, size, "give --size {side}")
    return resized(picture, size)


def main(argv: Sequence[str] | None = None) -> None:
    """The program: the network, pictures, a line for each.

    Raises:
        UserError: no such run or picture, or broken ones; what could be read is painted first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No run was named: type its folder and then pictures, as in "
            f"{program_command('generative.stylise')} runs/<name> photo.jpg."
        )
    network, metadata = stylist.load(options.words[0])
    files = picture_files(options.words[1:])
    folder = Path(options.out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out cannot be {options.out!r} ({error_summary(error)}): name a folder.") from None
    compute = _compute(options, network, files)
    network = compute.frozen(compute.module(network))
    complaints = []
    for path in files:
        try:
            picture = fitted(path, options)
        except UserError as error:
            complaints.append(str(error))
            continue
        start = time.perf_counter()
        result = painted(network, compute, picture, keep_color=options.keep_color)
        seconds = time.perf_counter() - start
        where = folder / f"{path.stem}.png"
        try:
            write_png(where, result)
        except OSError as error:
            raise UserError(f"{where} cannot be written ({error_summary(error)}): give another --out.") from None
        print(f"{where}: {result.shape[1]}x{result.shape[0]} in the style of {metadata.style}, {seconds:.2f} s")
    if complaints:
        raise UserError("\n       ".join(complaints))


def _compute(options: Options, network: StyleNetwork, files: Sequence[Path]) -> Compute:
    def train_step(candidate: Compute) -> Callable[[], object]:
        copy = StyleNetwork(network.width)
        copy.load_state_dict(network.state_dict())
        copy = candidate.frozen(candidate.module(copy.eval()))
        picture = fitted(files[0], options)
        return lambda: painted(copy, candidate, picture, keep_color=False)

    return Compute.choose(
        device=options.device,
        precision=options.precision,
        compile="off",
        threads=options.threads,
        train_step=train_step if options.precision == "auto" else None,
    )


if __name__ == "__main__":
    run_main(main)
