"""Table of a network's layers, with output shapes, parameters, multiply-adds and receptive fields.

print(summary(classifier, (1, 1, 28, 28)))
"""

from __future__ import annotations

import copy
import io
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zerokara.core.backbones.cost import Counter, UnknownCostError, layer_costs

MAX_ROWS = 24  # maximum number of layers with a row each; deeper networks get a row per block
_WIDTH = 110


def summary(module: nn.Module, shape: Sequence[int]) -> str:
    """Format a table of all layers that have weights or pool, with their sums.

    Of a network of one's own that does not run on the meta device, it has only the number of parameters.

    Args:
        module: network that takes images of `shape`; it is not changed.
        shape: (B, C, H, W); multiply-adds are counted for one image.
    """
    shape = (1, *shape[1:])
    try:
        layers = [layer for layer in layer_costs(module, shape) if layer.parameters or "Pool" in layer.kind]
    except UnknownCostError as error:
        return f"{sum(p.numel() for p in module.parameters()):,} parameters. {error}"
    shapes = _out_shapes(module, shape, {name for layer in layers for name in (layer.name, _block(layer.name))})
    blocks = {layer.name: [layer] for layer in layers}
    if len(layers) > MAX_ROWS:
        blocks = {}
        for name, inside in groupby(layers, key=lambda layer: _block(layer.name)):
            block = list(inside)
            # A list of layers, as in VGG, is never called as a whole, so its layers get a row each.
            blocks |= {name: block} if name in shapes else {layer.name: [layer] for layer in block}
    table = Table(box=box.SIMPLE, pad_edge=False, show_footer=True)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    inactive = parameters - sum(layer.parameters for layer in layers)
    table.add_column("layer", footer="sum" if not inactive else "sum, including layers used only in training")
    table.add_column("kind")
    table.add_column("output", justify="right")
    table.add_column("parameters", justify="right", footer=f"{parameters:,}")
    multiply_adds = short(sum(layer.multiply_adds for layer in layers))
    table.add_column("multiply-adds", justify="right", footer=multiply_adds)
    table.add_column("receptive field", justify="right")
    for name, block in blocks.items():
        table.add_row(
            name,
            block[0].kind if len(block) == 1 else f"{len(block)} layers",
            "x".join(map(str, shapes[name][1:])),
            f"{sum(layer.parameters for layer in block):,}",
            short(sum(layer.multiply_adds for layer in block)),
            str(max(layer.receptive_field for layer in block)),
        )
    page = io.StringIO()
    Console(file=page, width=_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().strip("\n").splitlines())


def short(number: int) -> str:
    """Format a number with an SI prefix: 1,814,073,344 becomes 1.81 G."""
    for factor, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return str(number)


def _block(name: str) -> str:
    """Return the block of a layer: backbone.layer1 for backbone.layer1.0.conv1."""
    return ".".join(name.split(".")[:2])


def _out_shapes(module: nn.Module, shape: Sequence[int], names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return the output shapes of the named modules that are called in a forward pass on the meta device."""
    network = copy.deepcopy(module).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:

        def record_shape(layer: nn.Module, inputs: Any, out: Tensor, name: str = name) -> None:
            shapes[name] = tuple(out.shape)

        network.get_submodule(name).register_forward_hook(record_shape)
    with torch.no_grad(), Counter(max(shape[2:])):
        network(torch.empty(tuple(shape), device="meta"))
    return shapes
