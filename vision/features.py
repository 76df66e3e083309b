"""Visualize the features of a trained classifier: filters, top activations, Grad-CAM and occlusion.

    python -m vision.features runs/classify-mnist-deep_cnn-fast-1

Three figures and features.json, which has their data as numbers, are written to the run folder:

- features-filters.png: the filters of the first convolution before and after training. The initial filters are
  reproduced from the seed of the run.
- features-patches.png: for some channels of some feature maps, the image patches with the largest activations. Each
  patch is the receptive field of the activation.
- features-where.png: for some images, Grad-CAM (Selvaraju et al. 2017) of the predicted class, and the probability of
  that class while a gray square hides a part of the image (Zeiler and Fergus 2014).

Feature maps (outputs of ReLU layers) are numbered by depth: 1 is the first one.

Shapes: N images, C channels, H, W pixels, M patches of a channel, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.vision.studies import names

OUTSIDE_COLOR = (0.23, 0.29, 0.42)  # of pixels outside of the image, or of the receptive field
MAX_FILTERS = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.features."""

    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_FEATURES
    GROUPS: ClassVar = names.GROUPS_FEATURES
    COMMON: ClassVar = names.COMMON_FEATURES

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Run folder."""
    split: Literal["validation", "test"] = "validation"
    """Images to use: the validation images, or the test set."""
    images: Annotated[int, Range(0)] = 5000
    """Number of images to search for top activations (0: all). The first ones are used."""
    depths: Annotated[int, Range(1, 12)] = 6
    """Number of feature maps to show, evenly spaced from the first to the last."""
    channels: Annotated[int, Range(1, 20)] = 4
    """Number of channels to show for each feature map. Evenly spaced over those that are active for any image."""
    patches: Annotated[int, Range(1, 30)] = 8
    """Number of patches to show for each channel."""
    show: Annotated[tuple[int, ...], Range(0)] = ()
    """Images for Grad-CAM and occlusion (none: the first of each class). Indices in the data set. At most 10 if none
    are given."""
    cam_depth: Annotated[int | None, Range(1)] = None
    """Number of the feature map for Grad-CAM, from 1 (None: the last)."""
    square: Annotated[int | None, Range(1)] = None
    """Side of the gray square, in pixels (None: a quarter of the image)."""
    step: Annotated[int | None, Range(1)] = None
    """Pixels between positions of the square (None: 28 by 28 positions). That number is approximate."""
    out: str = ""
    """Output folder (none: the run folder)."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads (0: one per core)."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.layers import first_filters
from zerokara.core.report import output_folder, table_console, write_figure, write_json
from zerokara.vision.studies.explain import (
    TopActivations,
    compute_grad_cam,
    crop_receptive_field,
    occlusion,
    top_activations,
)
from zerokara.vision.studies.finished_run import Trained, load_trained, single_run_folder
from zerokara.vision.studies.receptive_fields import FeatureMap, evenly_spaced, feature_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# ---- filters


def draw_filters(before: Tensor, after: Tensor) -> Figure:
    """Plot filters (N, C, H, W) before and after training. Each filter is scaled by its largest weight; gray is 0."""
    from matplotlib.figure import Figure

    number = min(len(after), MAX_FILTERS)
    columns = 8 if number > 4 else number
    rows = -(-number // columns)
    figure = Figure(figsize=(9.6, 0.4 + 0.6 * rows), layout="constrained")
    panels = figure.subfigures(1, 2, squeeze=False, wspace=0.04)
    for panel, title, filters in zip(panels.flat, ("before training", "after training"), (before, after), strict=True):
        panel.suptitle(title, fontsize=11)
        for index, axes in enumerate(panel.subplots(rows, columns, squeeze=False).flat):
            axes.set_axis_off()
            if index < number:
                show(axes, filter_image(filters[index]))
    return figure


def filter_image(filter_CHW: Tensor) -> np.ndarray:
    """Return a filter as an RGB image (H, W, 3) from 0 to 1. If it does not have 3 channels, their mean in gray."""
    weights = filter_CHW if len(filter_CHW) == 3 else filter_CHW.mean(0, keepdim=True).expand(3, -1, -1)
    largest = weights.abs().max().clamp(min=1e-12)
    return (0.5 + 0.5 * weights / largest).permute(1, 2, 0).numpy()


# ---- patches


def choose_channels(top: TopActivations, max_channels: int) -> list[int]:
    """Return at most `max_channels` evenly spaced channels among those with a positive activation for any image."""
    active = torch.nonzero(top.value_CM[:, 0] > 0).flatten().tolist()
    if len(active) <= max_channels:
        return [int(channel) for channel in active]
    return [int(active[index * len(active) // max_channels]) for index in range(max_channels)]


def patch_image(image_CHW: Tensor, feature_map: FeatureMap, row: int, column: int) -> np.ndarray:
    """Return the receptive field of a position as an RGB image (a, b, 3) from 0 to 1.

    Pixels that are not in the receptive field are dimmed. Pixels outside of the image are blue.
    """
    pixels, in_field = crop_receptive_field(image_CHW.float() / 255, feature_map, row, column)
    inside, _ = crop_receptive_field(torch.ones_like(image_CHW, dtype=torch.float32), feature_map, row, column)
    blue = torch.tensor(OUTSIDE_COLOR).view(3, 1, 1)
    colors = pixels.expand(3, -1, -1) * inside[:1] + blue * (1 - inside[:1])
    return torch.where(in_field, colors, 0.35 * colors + 0.65 * blue).permute(1, 2, 0).numpy()


def draw_patches(
    images: ImageSet, activations: Sequence[TopActivations], channels: Sequence[Sequence[int]], max_patches: int
) -> Figure:
    """Plot a panel for each feature map with a row for each channel, patches in decreasing order of activation."""
    from matplotlib.figure import Figure

    across = 2 if len(activations) > 1 else 1
    down = -(-len(activations) // across)
    rows = max(1, *map(len, channels))
    figure = Figure(figsize=(across * (0.58 * max_patches + 0.5), down * (0.58 * rows + 0.5)), layout="constrained")
    panels = figure.subfigures(down, across, squeeze=False, wspace=0.03, hspace=0.02).flat
    for number, (panel, top, selected) in enumerate(zip(panels, activations, channels, strict=False), start=1):
        field = f"{top.feature_map.rows.size}x{top.feature_map.columns.size}"
        panel.suptitle(f"{number}: after {top.feature_map.name}, receptive field {field}", fontsize=9)
        grid = panel.subplots(rows, max_patches, squeeze=False).flat
        for axes, (row, patch) in zip(grid, np.ndindex(rows, max_patches), strict=True):
            axes.set_axis_off()
            if row >= len(selected) or patch >= top.value_CM.shape[1]:
                continue
            index = selected[row], patch
            if top.value_CM[index] > 0:
                image = images.images[int(top.image_CM[index])]
                show(axes, patch_image(image, top.feature_map, int(top.row_CM[index]), int(top.column_CM[index])))
    return figure


# ---- Grad-CAM and occlusion


@dataclass(frozen=True)
class Explanation:
    """Prediction for an image, with Grad-CAM and occlusion of the predicted class."""

    image: int
    label: int
    prediction: int
    confidence: float
    cam_HW: Tensor
    occlusion_hw: Tensor
    """Probability of the predicted class while the square is at this position."""


def explain(
    trained: Trained, images: ImageSet, indices: Sequence[int], options: Options, cam_map: int
) -> list[Explanation]:
    """Compute Grad-CAM (in feature map `cam_map`) and occlusion of the predicted class for the selected images."""
    network, compute = trained.classifier, trained.compute
    side = max(images.shape[1:])
    square, step = options.square or max(1, side // 4), options.step or max(1, round(side / 28))
    x = trained.metadata.normalize_uint8(images.images[list(indices)].to(compute.torch_device))
    with torch.no_grad():
        probability = network(x).softmax(1)
    confidence, prediction = probability.max(1)
    cams = compute.to_host(compute_grad_cam(network, x, prediction, cam_map))
    explanations = []
    for row, index in enumerate(indices):
        predicted = int(prediction[row])
        occluded = occlusion(lambda batch, k=predicted: network(batch).softmax(1)[:, k], x[row], square, step)  # type: ignore[misc]
        label, probability_hw = int(images.labels[index]), compute.to_host(occluded)
        explanations.append(Explanation(index, label, predicted, float(confidence[row]), cams[row], probability_hw))
    return explanations


def first_of_each_class(images: ImageSet, max_classes: int = 10) -> list[int]:
    """Return the index of the first image of each class that has images."""
    labels = images.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))[:max_classes]]


def draw_explanations(images: ImageSet, explanations: Sequence[Explanation], classes: Sequence[str]) -> Figure:
    """Plot three rows: the images, Grad-CAM as an overlay, and the probability under occlusion."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.05 * len(explanations) + 1.3, 3.9), layout="constrained")
    axes_RC = figure.subplots(3, len(explanations), squeeze=False)
    for column, explanation in enumerate(explanations):
        picture = images.images[explanation.image].permute(1, 2, 0).float().numpy() / 255
        grayscale = picture.mean(2, keepdims=True)
        show(axes_RC[0, column], np.broadcast_to(picture, (*picture.shape[:2], 3)))
        heat = explanation.cam_HW / explanation.cam_HW.max().clamp(min=1e-12)
        colors = colormaps["inferno"](heat.numpy())[..., :3]
        show(axes_RC[1, column], 0.35 * grayscale + 0.65 * colors)
        height, width = images.shape[1:]
        shown = axes_RC[2, column].imshow(
            explanation.occlusion_hw.numpy(), cmap="viridis", vmin=0, vmax=1, extent=(0, width, height, 0)
        )
        title = classes[explanation.prediction]
        if explanation.prediction != explanation.label:
            title += f" (label {classes[explanation.label]})"
        axes_RC[0, column].set_title(f"{title}\n{explanation.confidence:.1%}", fontsize=8)
        if column == len(explanations) - 1:
            bar = figure.colorbar(shown, ax=list(axes_RC[2]), fraction=0.02, pad=0.005)
            bar.ax.tick_params(labelsize=7)
    for row, title in enumerate(("image", "Grad-CAM", "probability\nif occluded")):
        axes_RC[row, 0].set_ylabel(title, fontsize=8)
    for axes in axes_RC.flat:
        axes.set(xticks=[], yticks=[])
    return figure


def show(axes: Axes, picture_HWC: np.ndarray) -> None:
    """Plot an image with values from 0 to 1, without interpolation."""
    axes.imshow(picture_HWC, interpolation="nearest", vmin=0, vmax=1)


# ---- program


def feature_map_table(maps: Sequence[FeatureMap]) -> Table:
    """Return a table with a row for each feature map."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("depth", "after layer", "channels", "size", "receptive field", "stride"):
        table.add_column(column, justify="left" if column == "after layer" else "right")
    for number, feature_map in enumerate(maps, start=1):
        channels, height, width = feature_map.shape
        field = f"{feature_map.rows.size}x{feature_map.columns.size}"
        table.add_row(
            str(number), feature_map.name, str(channels), f"{height}x{width}", field, str(feature_map.rows.jump)
        )
    return table


def to_json(activations: Sequence[TopActivations], channels: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return the patches as JSON values."""
    return [
        {
            "behind": top.feature_map.name,
            "sees": [top.feature_map.rows.size, top.feature_map.columns.size],
            "channels": {
                str(channel): [
                    {"image": image, "row": row, "column": column, "activation": value}
                    for image, row, column, value in zip(
                        top.image_CM[channel].tolist(),
                        top.row_CM[channel].tolist(),
                        top.column_CM[channel].tolist(),
                        top.value_CM[channel].tolist(),
                        strict=True,
                    )
                ]
                for channel in selected
            },
        }
        for top, selected in zip(activations, channels, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: write the figures and features.json, print a table of the feature maps and the paths."""
    options = parse(Options, {}, argv, __doc__ or "")
    run_folder = single_run_folder(options.runs, program_command("vision.features"))
    trained = load_trained(run_folder, device=options.device, threads=options.threads)
    images = trained.images(options.split)
    maps = feature_maps(trained.classifier, images.shape)
    if options.cam_depth is not None and options.cam_depth > len(maps):
        raise UserError(f"--cam-depth {options.cam_depth} does not exist: {trained.name} has {len(maps)} feature maps.")
    if beyond := [index for index in options.show if index >= len(images)]:
        raise UserError(
            f"--show {beyond[0]} does not exist: there are {len(images):,} {options.split} images, counted from 0."
        )
    folder = output_folder(options.out, trained.folder)

    before, after = (
        Compute.to_host(first_filters(network)) for network in (trained.initial_network(), trained.classifier)
    )
    written = [write_figure(folder / "features-filters.png", draw_filters(before, after))]

    searched = images.take(slice(0, options.images or None))
    selected = evenly_spaced(len(maps), options.depths)
    activations = top_activations(
        trained.classifier, trained.metadata, trained.compute, searched, maps, selected, options.patches
    )
    channels = [choose_channels(top, options.channels) for top in activations]
    figure = draw_patches(searched, activations, channels, options.patches)
    written.append(write_figure(folder / "features-patches.png", figure))

    indices = list(options.show) or first_of_each_class(images)
    cam_map = (options.cam_depth or len(maps)) - 1
    explanations = explain(trained, images, indices, options, cam_map)
    figure = draw_explanations(images, explanations, trained.metadata.classes)
    written.append(write_figure(folder / "features-where.png", figure))
    content = {
        "run": trained.name,
        "split": options.split,
        "searched": len(searched),
        "largest_change_of_a_filter": float((after - before).abs().max()),
        "patches": to_json(activations, channels),
        "looks": [
            {
                "image": explanation.image,
                "label": trained.metadata.classes[explanation.label],
                "guess": trained.metadata.classes[explanation.prediction],
                "confidence": explanation.confidence,
                "least_left": float(explanation.occlusion_hw.min()),
            }
            for explanation in explanations
        ],
    }
    written.append(write_json(folder / "features.json", content))
    table_console().print(feature_map_table([maps[index] for index in selected]))
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
