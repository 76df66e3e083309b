"""What a binarised network looks like: its layers, where the straight-through estimator stands, its filters.

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

FILTERS = 16
EDGE = 0.95  # latent weights beyond are where clipping holds them


def network_table(network: BinaryNetwork) -> str:
    """A line for each layer of binary weights, and where the straight-through estimator stands among them."""
    lines = ["pixels, of mean 0 and deviation 1"]
    for name, layer in network.binary_layers().items():
        outputs, inputs = layer.weight.shape[:2]
        kernel = "x".join(map(str, layer.weight.shape[2:]))
        if layer.binary_input:
            lines.append("    sign: gradients pass straight through where |x| <= 1, and nowhere else")
        weights = layer.weight.numel()
        what = f"{name}: {inputs} -> {outputs}{f', {kernel}' if kernel else ''}"
        lines.append(f"{what}; {weights:,} weights in {-(-weights // 8):,} bytes, signs of latent ones; BatchNorm")
    return "\n".join([*lines, "logits"])


def inputs_of_signs(network: BinaryNetwork, x_NCHW: Tensor) -> dict[str, Tensor]:
    """What reaches each layer's sign when the network sees these images: flat, float32, by the layer's name."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in network.binary_layers().items():
        if layer.binary_input:

            def keep(_: torch.nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = inputs[0].detach().float().flatten()

            hooks.append(layer.register_forward_pre_hook(keep))
    training = network.training
    with torch.no_grad():
        network.eval()(x_NCHW)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return found


def draw_straight_through(network: BinaryNetwork, x_NCHW: Tensor) -> Figure:
    """Sign forwards, its stand-in backwards, and which activations and latent weights of this network it lets learn."""
    figure, (forward, backward, activations, weights) = new_figure(4, width=3.6, height=3.6)
    x = torch.linspace(-2, 2, 801, requires_grad=True)
    y = sign(x)
    y.sum().backward()
    assert x.grad is not None
    places = x.detach().numpy()
    forward.plot(places, np.where(places >= 0, np.nan, -1), color="tab:blue", linewidth=2, label="sign, +1 at 0")
    forward.plot(places, np.where(places >= 0, 1, np.nan), color="tab:blue", linewidth=2)
    forward.plot(places, places.clip(-1, 1), ":", color="0.4", label="hard tanh")
    forward.set(title="forwards: ±1", xlabel="x", ylim=(-1.4, 1.6))
    backward.plot(places, np.zeros_like(places), color="tab:blue", linewidth=2, label="of sign: nothing learns")
    backward.plot(places, x.grad.numpy(), color="tab:red", linewidth=2, label="of hard tanh: straight through")
    backward.set(title="backwards: the gradient", xlabel="x", ylim=(-0.4, 1.6))

    found = inputs_of_signs(network, x_NCHW)
    bins = np.linspace(-4, 4, 81).tolist()
    for number, (name, values) in enumerate(found.items()):
        blocked = float((values.abs() > 1).float().mean())
        kept = values[values.abs() < 4].numpy(force=True)
        activations.hist(
            kept, bins, density=True, histtype="step", color=f"C{number}", label=f"into {name}: {blocked:.0%} blocked"
        )
    activations.axvspan(-1, 1, color="tab:red", alpha=0.1, linewidth=0)
    activations.set(title="what is binarised", xlabel="activation; red: gradients pass")
    bound = max(float(layer.weight.detach().abs().max()) for layer in network.binary_layers().values())
    for number, (name, layer) in enumerate(network.binary_layers().items()):
        latent = layer.weight.detach().float().flatten()
        at_edge = float((latent.abs() > EDGE).float().mean())
        weights.hist(
            latent.numpy(force=True),
            np.linspace(-bound, bound, 61).tolist(),
            density=True,
            histtype="step",
            color=f"C{number}",
            label=f"{name}: {at_edge:.1%} beyond ±{EDGE}",
        )
    weights.set(title="latent weights, clipped", xlabel="latent weight; its sign is used")
    for axes in (forward, backward, activations, weights):
        low, high = axes.get_ylim()
        axes.set_yticks([-1, 0, 1] if axes in (forward, backward) else [])
        axes.set_ylim(low, low + (high - low) * 1.35)  # room for the legend
        axes.legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def draw_filters(network: BinaryNetwork) -> Figure:
    """Filters of the first layer, whose inputs are pixels: latent weights above, their signs below."""
    from matplotlib.figure import Figure

    layer = next(iter(network.binary_layers().values()))
    latent = layer.weight.detach().float()
    number = min(FILTERS, len(latent))
    if not isinstance(layer, BinaryConv2d):  # a unit that sees the whole image is a filter as large as that
        height, width = network.image_size
        latent = latent.view(len(latent), -1, height, width)
    # Those that were turned most decidedly show most.
    best = latent.flatten(1).abs().mean(1).topk(number).indices
    picked = latent[best].mean(1).numpy(force=True)  # over colours
    signs = sign(latent[best]).mean(1).numpy(force=True)
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
        f"{number} filters of the first layer: latent weights (red +, blue -) and, below, the signs that are used",
        fontsize=9,
    )
    return figure
