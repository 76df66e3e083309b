"""Tables and figures of a binary network: layers, the straight-through estimator, filters.

Shapes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zerokara.core.layers import BinaryConv2d, sign
from zerokara.core.report import new_figure
from zerokara.vision.binarization.network import BinaryNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_FILTERS = 16
CLIPPED = 0.95  # latent weights beyond +-0.95 are counted as clipped


def network_table(network: BinaryNetwork) -> str:
    """Return a text with a line for each layer and each use of the straight-through estimator."""
    lines = ["pixels, normalized to mean 0 and standard deviation 1"]
    for name, layer in network.binary_layers().items():
        outputs, inputs = layer.weight.shape[:2]
        kernel = "x".join(map(str, layer.weight.shape[2:]))
        if layer.binary_input:
            lines.append("    sign: straight-through estimator, gradients pass where |x| <= 1")
        weights = layer.weight.numel()
        label = f"{name}: {inputs} -> {outputs}{f', {kernel}' if kernel else ''}"
        lines.append(f"{label}; {weights:,} weights in {-(-weights // 8):,} bytes (signs of latent weights); BatchNorm")
    return "\n".join([*lines, "logits"])


def sign_inputs(network: BinaryNetwork, x_NCHW: Tensor) -> dict[str, Tensor]:
    """Return the inputs of each layer's sign function for these images: flat, float32, by the name of the layer."""
    values: dict[str, Tensor] = {}
    hooks = []
    for name, layer in network.binary_layers().items():
        if layer.binary_input:

            def record(_: torch.nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                values[name] = inputs[0].detach().float().flatten()

            hooks.append(layer.register_forward_pre_hook(record))
    training = network.training
    with torch.no_grad():
        network.eval()(x_NCHW)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return values


def draw_straight_through(network: BinaryNetwork, x_NCHW: Tensor) -> Figure:
    """Plot sign and its straight-through gradient, and the distributions of activations and latent weights."""
    figure, (forward, backward, activations, weights) = new_figure(4, width=3.6, height=3.6)
    x = torch.linspace(-2, 2, 801, requires_grad=True)
    y = sign(x)
    y.sum().backward()
    assert x.grad is not None
    x_values = x.detach().numpy()
    forward.plot(x_values, np.where(x_values >= 0, np.nan, -1), color="tab:blue", linewidth=2, label="sign, +1 at 0")
    forward.plot(x_values, np.where(x_values >= 0, 1, np.nan), color="tab:blue", linewidth=2)
    forward.plot(x_values, x_values.clip(-1, 1), ":", color="0.4", label="hard tanh")
    forward.set(title="forward: ±1", xlabel="x", ylim=(-1.4, 1.6))
    backward.plot(x_values, np.zeros_like(x_values), color="tab:blue", linewidth=2, label="gradient of sign: 0")
    backward.plot(x_values, x.grad.numpy(), color="tab:red", linewidth=2, label="gradient of hard tanh: used")
    backward.set(title="backward: gradient", xlabel="x", ylim=(-0.4, 1.6))

    inputs = sign_inputs(network, x_NCHW)
    bins = np.linspace(-4, 4, 81).tolist()
    for number, (name, values) in enumerate(inputs.items()):
        blocked = float((values.abs() > 1).float().mean())
        shown = values[values.abs() < 4].numpy(force=True)
        activations.hist(
            shown, bins, density=True, histtype="step", color=f"C{number}", label=f"into {name}: {blocked:.0%} blocked"
        )
    activations.axvspan(-1, 1, color="tab:red", alpha=0.1, linewidth=0)
    activations.set(title="inputs of sign", xlabel="activation; red: gradient passes")
    bound = max(float(layer.weight.detach().abs().max()) for layer in network.binary_layers().values())
    for number, (name, layer) in enumerate(network.binary_layers().items()):
        latent = layer.weight.detach().float().flatten()
        clipped = float((latent.abs() > CLIPPED).float().mean())
        weights.hist(
            latent.numpy(force=True),
            np.linspace(-bound, bound, 61).tolist(),
            density=True,
            histtype="step",
            color=f"C{number}",
            label=f"{name}: {clipped:.1%} beyond ±{CLIPPED}",
        )
    weights.set(title="latent weights, clipped to [-1, 1]", xlabel="latent weight; its sign is used")
    for axes in (forward, backward, activations, weights):
        low, high = axes.get_ylim()
        axes.set_yticks([-1, 0, 1] if axes in (forward, backward) else [])
        axes.set_ylim(low, low + (high - low) * 1.35)  # room for the legend
        axes.legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def draw_filters(network: BinaryNetwork) -> Figure:
    """Plot filters of the first layer: latent weights above, their signs below."""
    from matplotlib.figure import Figure

    layer = next(iter(network.binary_layers().values()))
    latent = layer.weight.detach().float()
    number = min(NUM_FILTERS, len(latent))
    if not isinstance(layer, BinaryConv2d):  # a fully connected unit is a filter of the size of the image
        height, width = network.image_size
        latent = latent.view(len(latent), -1, height, width)
    # The filters with the largest latent weights.
    largest = latent.flatten(1).abs().mean(1).topk(number).indices
    picked = latent[largest].mean(1).numpy(force=True)  # mean over channels
    signs = sign(latent[largest]).mean(1).numpy(force=True)
    columns = min(8, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(1.15 * columns, 2.3 * rows + 0.5), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index in range(number):
        row, column = divmod(index, columns)
        bound = float(np.abs(picked[index]).max()) or 1.0
        grid[2 * row][column].imshow(picked[index], cmap="RdBu_r", vmin=-bound, vmax=bound)
        grid[2 * row + 1][column].imshow(signs[index], cmap="gray", vmin=-1, vmax=1)
    figure.suptitle(
        f"{number} filters of the first layer: latent weights (red +, blue -) and, below, their signs, which are used",
        fontsize=9,
    )
    return figure
