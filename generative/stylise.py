"""Apply the style of a run of generative.fast_style to images.

    python -m generative.stylise runs/<name> photo.jpg folder/of/images --out stylized

Images may have any size that fits into memory. Each is written to the folder --out as <its name>.png. A weights file
of PyTorch's example fast_neural_style can be given instead of a run.

Shapes: C channels, H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from zerokara.core.choices import Precision
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, error_summary, run_main
from zerokara.core.programs import program_command

# Memory per output pixel: about four feature maps of 32 channels in float32.
BYTES_PER_PIXEL = 4 * 32 * 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of generative.stylise."""

    # Names of older releases, accepted on the command line.
    RENAMED: ClassVar[Mapping[str, str]] = {"keep_colour": "keep_color"}

    inputs: Annotated[tuple[str, ...], Positional("runs/<name> image")] = ()
    """Folder of the run (or its model.safetensors), followed by images or folders of images."""
    size: Annotated[int, Range(0)] = 0
    """Longer side of the results in pixels. 0: that of each image."""
    keep_color: bool = False
    """Transfer luminance only, and keep the colors of each image."""
    out: str = "painted"
    """Folder of the results. It is created if it does not exist."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "float32"
    """Precision of the network. auto: the fastest in a short measurement on the first image."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads. 0: all cores."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np

from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data.image_files import list_image_files, resize
from zerokara.core.media import write_png
from zerokara.core.report import OutputNames
from zerokara.generative.style import network as network_file
from zerokara.generative.style.images import check_memory, read_image, sizes, to_image, to_pixels
from zerokara.generative.style.losses import luminance, with_luminance
from zerokara.generative.style.network import StyleNetwork


def image_files(inputs: Sequence[str]) -> list[Path]:
    """Return the given images, and the images in given folders.

    Raises:
        UserError: no images.
    """
    if not inputs:
        raise UserError(
            "No image was named: type the run and then images, as in "
            f"{program_command('generative.stylise')} runs/<name> photo.jpg."
        )
    return list(dict.fromkeys(list_image_files(inputs)))


def stylize_image(network: StyleNetwork, compute: Compute, image_HWC: np.ndarray, *, keep_color: bool) -> np.ndarray:
    """Stylize an image (H, W, 3) uint8."""
    pixels = to_pixels(image_HWC).to(compute.torch_device)
    result = network_file.stylize(network, compute, pixels)
    return to_image(with_luminance(pixels, luminance(result)) if keep_color else result)


def read_resized(path: Path, options: Options) -> np.ndarray:
    """Read an image and resize it to --size.

    Raises:
        UserError: it cannot be read, or does not fit into memory.
    """
    image = read_image(path)
    size = sizes(image.shape[0], image.shape[1], options.size, 1)[0]
    check_memory({path.name: BYTES_PER_PIXEL * size[0] * size[1]}, options.device, size, "give --size {side}")
    return resize(image, size)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: load the network, stylize the images, print a line for each.

    Raises:
        UserError: no such run or image, or unreadable images (after the readable ones were processed).
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.inputs:
        raise UserError(
            "No run was named: type its folder and then images, as in "
            f"{program_command('generative.stylise')} runs/<name> photo.jpg."
        )
    network, metadata = network_file.load(options.inputs[0])
    files = image_files(options.inputs[1:])
    folder = Path(options.out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out cannot be {options.out!r} ({error_summary(error)}): name a folder.") from None
    compute = _compute(options, network, files)
    network = compute.frozen(compute.module(network))
    names, errors = OutputNames(folder, files), []
    for path in files:
        try:
            image = read_resized(path, options)
        except UserError as error:
            errors.append(str(error))
            continue
        start = time.perf_counter()
        result = stylize_image(network, compute, image, keep_color=options.keep_color)
        seconds = time.perf_counter() - start
        target = folder / f"{names.choose(path.stem, '.png')}.png"
        try:
            write_png(target, result)
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error_summary(error)}): give another --out.") from None
        print(f"{target}: {result.shape[1]}x{result.shape[0]} in the style of {metadata.style}, {seconds:.2f} s")
    if errors:
        raise UserError("\n       ".join(errors))


def _compute(options: Options, network: StyleNetwork, files: Sequence[Path]) -> Compute:
    """Choose device and precision."""

    def stylize_first(candidate: Compute, _: int) -> Callable[[], object]:
        copy = StyleNetwork(network.width)
        copy.load_state_dict(network.state_dict())
        copy = candidate.frozen(candidate.module(copy.eval()))
        image = read_resized(files[0], options)
        return lambda: stylize_image(copy, candidate, image, keep_color=False)

    return Compute.choose(
        device=options.device,
        precision=options.precision,
        compile="off",
        threads=options.threads,
        train_step=TrainStep(stylize_first, 1) if options.precision == "auto" else None,
    )


if __name__ == "__main__":
    run_main(main)
