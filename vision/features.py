"""Features: what the layers of a trained classifier look for, and where it looks.

    python -m vision.features runs/classify-mnist-deep_cnn-fast-1

Leaves three pictures in the run's folder, and features.json with what they show in numbers:

- features-filters.png: the filters of the first convolution before and after learning. Before are those of the run's
  own seed, drawn again.
- features-patches.png: for each depth some channels, and the image patches that excite each most, cut out exactly as
  large as the channel sees.
- features-where.png: for some images, Grad-CAM (Selvaraju et al. 2017) of the class that the network names, and
  the probability that is left of it when a grey square hides a part (Zeiler and Fergus 2014).

Shapes: N images, C channels, H, W pixels, M patches of a channel, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.data import ImageSet
from zerokara.core.programs import program_command
from zerokara.core.report import output_folder, write_figure, write_json
from zerokara.vision.studies.explain import Excited, cut_out, grad_cam_of, most_exciting, occlusion
from zerokara.vision.studies.finished_run import Trained, load_trained, one_run
from zerokara.vision.studies.receptive_fields import Depth, depths_of, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_SEEN = (0.23, 0.29, 0.42)  # what stands outside of the image, or of the receptive field
MOST_FILTERS = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at, and where to leave it."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Folder of the run."""
    split: Literal["validation", "test"] = "validation"
    """Images to look at: those held out of the training set, or the test set."""
    images: Annotated[int, Range(0)] = 5000
    """Search so many images for exciting patches, the first ones; 0: all."""
    depths: Annotated[int, Range(1, 12)] = 6
    """Show so many depths, evenly spread from the first to the last."""
    channels: Annotated[int, Range(1, 20)] = 4
    """Show so many channels of each depth, evenly spread over those that are ever excited."""
    patches: Annotated[int, Range(1, 30)] = 8
    """Show so many patches of each channel."""
    show: Annotated[tuple[int, ...], Range(0)] = ()
    """Images for Grad-CAM and occlusion, by their place in the split; empty: the first one of each class, up to 10."""
    cam_depth: Annotated[int | None, Range(1)] = None
    """Depth whose map Grad-CAM weighs, counted from 1; None: the last."""
    square: Annotated[int | None, Range(1)] = None
    """Side of the grey square, in pixels; None: a quarter of the image's."""
    step: Annotated[int | None, Range(1)] = None
    """Pixels between places of the square; None: so many that there are about 28 by 28."""
    out: str = ""
    """Folder for the files; empty: the run's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


# ---- filters


def first_filters(network: nn.Module) -> Tensor:
    """Weights (N, C, H, W) of the first convolution, on the CPU."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return Compute.to_host(first.weight)


def draw_filters(before: Tensor, after: Tensor) -> Figure:
    """Two panels of filters (N, C, H, W), each against its own largest weight: grey is 0."""
    from matplotlib.figure import Figure

    number = min(len(after), MOST_FILTERS)
    columns = 8 if number > 4 else number
    rows = -(-number // columns)
    figure = Figure(figsize=(9.6, 0.4 + 0.6 * rows), layout="constrained")
    panels = figure.subfigures(1, 2, squeeze=False, wspace=0.04)
    for panel, title, filters in zip(panels.flat, ("before learning", "after learning"), (before, after), strict=True):
        panel.suptitle(title, fontsize=11)
        for index, axes in enumerate(panel.subplots(rows, columns, squeeze=False).flat):
            axes.set_axis_off()
            if index < number:
                show(axes, filter_picture(filters[index]))
    return figure


def filter_picture(filter_CHW: Tensor) -> np.ndarray:
    """A filter as a picture (H, W, 3) of numbers from 0 to 1; of other than 3 channels the mean is drawn, in grey."""
    weights = filter_CHW if len(filter_CHW) == 3 else filter_CHW.mean(0, keepdim=True).expand(3, -1, -1)
    largest = weights.abs().max().clamp(min=1e-12)
    return (0.5 + 0.5 * weights / largest).permute(1, 2, 0).numpy()


# ---- patches


def choose_channels(excited: Excited, most: int) -> list[int]:
    """At most so many of the channels that any image excites, evenly spread."""
    alive = torch.nonzero(excited.value_CM[:, 0] > 0).flatten().tolist()
    if len(alive) <= most:
        return [int(channel) for channel in alive]
    return [int(alive[index * len(alive) // most]) for index in range(most)]


def patch_picture(image_CHW: Tensor, depth: Depth, row: int, column: int) -> np.ndarray:
    """What a position sees (a, b, 3), from 0 to 1; what it does not see is dimmed, or blue outside of the image."""
    pixels, seen = cut_out(image_CHW.float() / 255, depth, row, column)
    inside, _ = cut_out(torch.ones_like(image_CHW, dtype=torch.float32), depth, row, column)
    blue = torch.tensor(NOT_SEEN).view(3, 1, 1)
    colours = pixels.expand(3, -1, -1) * inside[:1] + blue * (1 - inside[:1])
    return torch.where(seen, colours, 0.35 * colours + 0.65 * blue).permute(1, 2, 0).numpy()


def draw_patches(images: ImageSet, excited: Sequence[Excited], channels: Sequence[Sequence[int]], most: int) -> Figure:
    """A row for each channel, the most exciting patch first; depths lie side by side in two columns."""
    from matplotlib.figure import Figure

    across = 2 if len(excited) > 1 else 1
    down = -(-len(excited) // across)
    rows = max(1, *map(len, channels))
    figure = Figure(figsize=(across * (0.58 * most + 0.5), down * (0.58 * rows + 0.5)), layout="constrained")
    panels = figure.subfigures(down, across, squeeze=False, wspace=0.03, hspace=0.02).flat
    for number, (panel, found, chosen) in enumerate(zip(panels, excited, channels, strict=False), start=1):
        height, width = found.depth.rows.size, found.depth.columns.size
        panel.suptitle(f"depth {number}, behind {found.depth.name}: sees {height}x{width}", fontsize=9)
        for axes, place in zip(panel.subplots(rows, most, squeeze=False).flat, np.ndindex(rows, most), strict=True):
            axes.set_axis_off()
            if place[0] >= len(chosen) or place[1] >= found.value_CM.shape[1]:
                continue
            at = chosen[place[0]], place[1]
            if found.value_CM[at] > 0:
                image = images.images[int(found.image_CM[at])]
                show(axes, patch_picture(image, found.depth, int(found.row_CM[at]), int(found.column_CM[at])))
    return figure


# ---- where it looks


@dataclass(frozen=True)
class Look:
    """One image, and where the network looks."""

    place: int
    label: int
    guess: int
    confidence: float
    cam_HW: Tensor
    left_hw: Tensor
    """Probability of the guess that is left when a square at this place hides a part."""


def look_at(trained: Trained, images: ImageSet, places: Sequence[int], options: Options, cam_place: int) -> list[Look]:
    """Grad-CAM and occlusion of the class that the network names, for each chosen image."""
    network, compute = trained.classifier, trained.compute
    side = max(images.shape[1:])
    square, step = options.square or max(1, side // 4), options.step or max(1, round(side / 28))
    x = trained.metadata.normalize(images.images[list(places)].to(compute.torch_device).float() * (1 / 255))
    with torch.no_grad():
        probability = network(x).softmax(1)
    confidence, guess = probability.max(1)
    cams = compute.to_host(grad_cam_of(network, x, guess, cam_place))
    looks = []
    for index, place in enumerate(places):
        named = int(guess[index])
        left = occlusion(lambda batch, named=named: network(batch).softmax(1)[:, named], x[index], square, step)  # type: ignore[misc]
        looks.append(
            Look(place, int(images.labels[place]), named, float(confidence[index]), cams[index], compute.to_host(left))
        )
    return looks


def first_of_each_class(images: ImageSet, most: int = 10) -> list[int]:
    """The place of the first image of each class that has any."""
    labels = images.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))[:most]]


def draw_looks(images: ImageSet, looks: Sequence[Look], classes: Sequence[str]) -> Figure:
    """Three rows: the images, Grad-CAM laid over them, and what is left of the probability."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.05 * len(looks) + 1.3, 3.9), layout="constrained")
    axes_RC = figure.subplots(3, len(looks), squeeze=False)
    for column, look in enumerate(looks):
        picture = images.images[look.place].permute(1, 2, 0).float().numpy() / 255
        grayscale = picture.mean(2, keepdims=True)
        show(axes_RC[0, column], np.broadcast_to(picture, (*picture.shape[:2], 3)))
        heat = look.cam_HW / look.cam_HW.max().clamp(min=1e-12)
        colours = colormaps["inferno"](heat.numpy())[..., :3]
        show(axes_RC[1, column], 0.35 * grayscale + 0.65 * colours)
        height, width = images.shape[1:]
        shown = axes_RC[2, column].imshow(
            look.left_hw.numpy(), cmap="viridis", vmin=0, vmax=1, extent=(0, width, height, 0)
        )
        named = classes[look.guess] if look.guess == look.label else f"{classes[look.guess]} (is {classes[look.label]})"
        axes_RC[0, column].set_title(f"{named}\n{look.confidence:.1%}", fontsize=8)
        if column == len(looks) - 1:
            bar = figure.colorbar(shown, ax=list(axes_RC[2]), fraction=0.02, pad=0.005)
            bar.ax.tick_params(labelsize=7)
    for row, title in enumerate(("image", "Grad-CAM", "probability left\nwhere hidden")):
        axes_RC[row, 0].set_ylabel(title, fontsize=8)
    for axes in axes_RC.flat:
        axes.set(xticks=[], yticks=[])
    return figure


def show(axes: Axes, picture_HWC: np.ndarray) -> None:
    """A picture of numbers from 0 to 1, its pixels as squares."""
    axes.imshow(picture_HWC, interpolation="nearest", vmin=0, vmax=1)


# ---- the program


def depth_table(depths: Sequence[Depth]) -> Table:
    """A row for each depth."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("depth", "behind", "channels", "map", "sees", "of stride"):
        table.add_column(column, justify="left" if column == "behind" else "right")
    for number, depth in enumerate(depths, start=1):
        channels, height, width = depth.shape
        sees = f"{depth.rows.size}x{depth.columns.size}"
        table.add_row(str(number), depth.name, str(channels), f"{height}x{width}", sees, str(depth.rows.jump))
    return table


def to_plain(excited: Sequence[Excited], channels: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The patches as plain values."""
    return [
        {
            "behind": found.depth.name,
            "sees": [found.depth.rows.size, found.depth.columns.size],
            "channels": {
                str(channel): [
                    {"image": image, "row": row, "column": column, "activation": value}
                    for image, row, column, value in zip(
                        found.image_CM[channel].tolist(),
                        found.row_CM[channel].tolist(),
                        found.column_CM[channel].tolist(),
                        found.value_CM[channel].tolist(),
                        strict=True,
                    )
                ]
                for channel in chosen
            },
        }
        for found, chosen in zip(excited, channels, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Filters, patches, where it looks; a table of the depths, and where the files are."""
    options = parse(Options, {}, argv, __doc__ or "")
    trained = load_trained(
        one_run(options.runs, program_command("vision.features")), device=options.device, threads=options.threads
    )
    images = trained.images(options.split)
    depths = depths_of(trained.classifier, images.shape)
    if options.cam_depth is not None and options.cam_depth > len(depths):
        raise UserError(f"--cam-depth {options.cam_depth} does not exist: {trained.name} has {len(depths)} depths.")
    if beyond := [place for place in options.show if place >= len(images)]:
        raise UserError(f"--show {beyond[0]} does not exist: there are {len(images):,} {options.split} images, from 0.")
    folder = output_folder(options.out, trained.folder)

    before, after = first_filters(trained.at_start()), first_filters(trained.classifier)
    written = [write_figure(folder / "features-filters.png", draw_filters(before, after))]

    searched = images.take(slice(0, options.images or None))
    chosen = spread(depths, options.depths)
    excited = most_exciting(
        trained.classifier, trained.metadata, trained.compute, searched, depths, chosen, options.patches
    )
    channels = [choose_channels(found, options.channels) for found in excited]
    figure = draw_patches(searched, excited, channels, options.patches)
    written.append(write_figure(folder / "features-patches.png", figure))

    places = list(options.show) or first_of_each_class(images)
    cam_place = (options.cam_depth or len(depths)) - 1
    looks = look_at(trained, images, places, options, cam_place)
    written.append(write_figure(folder / "features-where.png", draw_looks(images, looks, trained.metadata.classes)))
    content = {
        "run": trained.name,
        "split": options.split,
        "searched": len(searched),
        "largest_change_of_a_filter": float((after - before).abs().max()),
        "patches": to_plain(excited, channels),
        "looks": [
            {
                "image": look.place,
                "label": trained.metadata.classes[look.label],
                "guess": trained.metadata.classes[look.guess],
                "confidence": look.confidence,
                "least_left": float(look.left_hw.min()),
            }
            for look in looks
        ],
    }
    written.append(write_json(folder / "features.json", content))
    Console().print(depth_table([depths[place] for place in chosen]))
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
