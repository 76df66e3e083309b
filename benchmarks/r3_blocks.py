"""Measure the time of each part of the networks of `r3` (generator and discriminator of R3GAN). Prints JSON.

    python -m benchmarks.r3_blocks
    python -m benchmarks.r3_blocks --image-sizes 32 --widths 0.5 0.25 --precision bfloat16 --channels-last
    python -m benchmarks.r3_blocks --threads 1 --cpu-time        # where other programs run

A part is a residual block, or what is between two blocks: a resizing and a 1x1 convolution. Each part gets the input
that it had in a forward pass of the whole network. Times are medians in milliseconds, for a batch:

    forward   the forward pass
    backward  gradients with respect to the input and the weights, without the forward pass
    penalty   what R1 or R2 adds: the gradient with respect to the input, and the gradients of its squared norm. Only of
              the discriminator, since R1 and R2 are functions of its input

`update_ms` is the time of an update without penalty, from the sums over the parts: the generator's forward and backward
pass, and of the discriminator four forward passes and three backward passes (real and generated images in its own step;
in the generator's step generated images, and a forward pass of the real ones for the relativistic loss). `penalties_ms`
is the time of R1 and R2 together, which --penalty-every-updates divides. Optimizers and reading of data are not in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.result import print_result
from zerokara.core.backbones.r3 import R3, Block, resize_bilinear
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.learner import make_discriminator, make_generator
from zerokara.generative.gan.networks import Discriminator, R3Generator
from zerokara.vision.studies.timing import median, median_seconds


@dataclass(frozen=True)
class Part:
    """Part of a network, from a tensor to a tensor, with the parameters that it uses."""

    name: str
    run: Callable[[Tensor], Tensor]
    parameters: Sequence[nn.Parameter]


def discriminator_parts(discriminator: Discriminator) -> list[Part]:
    """Divide a discriminator with the backbone r3 into its parts, from images (B, C, H, W) to scores (B,)."""
    backbone = discriminator.backbone
    assert isinstance(backbone, R3)
    parts = [
        Part("images", lambda x: backbone.extract(discriminator.scale(x)), list(backbone.extract.parameters())),
        _block(backbone.blocks[0], backbone.sizes[0]),
    ]
    for block, widen, size in zip(backbone.blocks[1:], backbone.widen, backbone.sizes[1:], strict=True):

        def halve(x: Tensor, widen: nn.Module = widen, size: tuple[int, int] = size) -> Tensor:
            y: Tensor = widen(resize_bilinear(x, size))
            return y

        parts += [Part(f"to {_format_size(size)}", halve, list(widen.parameters())), _block(block, size)]

    def score(x_BCHW: Tensor) -> Tensor:
        score_B: Tensor = discriminator.head(x_BCHW.permute(0, 2, 3, 1).flatten(1)).squeeze(1).float()
        return score_B

    return [*parts, Part("score", score, list(discriminator.head.parameters()))]


def generator_parts(generator: R3Generator) -> list[Part]:
    """Divide a generator into its parts, from latent vectors (B, Z) to images (B, C, H, W)."""
    parts = [
        Part(
            "latents",
            lambda z_BZ: generator.basis * generator.project(z_BZ)[:, :, None, None],
            [generator.basis, *generator.project.parameters()],
        ),
        _block(generator.blocks[0], generator.sizes[0]),
    ]
    for block, narrow, size in zip(generator.blocks[1:], generator.narrow, generator.sizes[1:], strict=True):

        def double(x: Tensor, narrow: nn.Module = narrow, size: tuple[int, int] = size) -> Tensor:
            return resize_bilinear(narrow(x), size)

        parts += [Part(f"to {_format_size(size)}", double, list(narrow.parameters())), _block(block, size)]
    return [*parts, Part("images", lambda x: generator.paint(x).tanh(), list(generator.paint.parameters()))]


def _block(block: nn.Module, size: tuple[int, int]) -> Part:
    assert isinstance(block, Block)
    return Part(f"block {_format_size(size)}, {block.reduce.out_channels} channels", block, list(block.parameters()))


def _format_size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def penalty_gradients(part: Part, y: Tensor, x: Tensor, grad_of_y: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of |g|^2, where g is the gradient at x that follows from that at y.

    Args:
        part: from x to y.
        y: output of the part, with its graph.
        x: input of the part, which requires gradients.
        grad_of_y: gradient at y; it requires gradients.

    Returns:
        The gradients with respect to the part's parameters, x and grad_of_y; None for one that |g|^2 does not depend
        on. In the whole network the last two go on to the other parts.
    """
    (g,) = torch.autograd.grad(y, x, grad_of_y, create_graph=True)
    inputs = [*part.parameters, x, grad_of_y]
    # The graph from x to y is that of every measurement.
    return torch.autograd.grad(g.float().square().sum(), inputs, retain_graph=True, allow_unused=True)


def time_parts(
    parts: Sequence[Part], x: Tensor, compute: Compute, rounds: int, clock: Callable[[], float], *, penalty: bool
) -> list[dict[str, Any]]:
    """Time all parts of a network, each on the input that it has in a forward pass.

    Args:
        parts: of the network.
        x: input of the first part.
        compute: precision of the forward pass.
        rounds: number of measurements.
        clock: returns seconds.
        penalty: also time the second derivative.

    Returns:
        For each part its name and its median milliseconds, and a last row with their sums.
    """
    work: dict[tuple[str, int], Callable[[], object]] = {}
    for index, part in enumerate(parts):
        x = x.detach().requires_grad_()

        def forward(part: Part = part, x: Tensor = x) -> Tensor:
            with torch.enable_grad(), compute.autocast():
                return part.run(x)

        y = forward()
        v = torch.randn_like(y).requires_grad_()

        def backward(part: Part = part, x: Tensor = x, y: Tensor = y, v: Tensor = v) -> object:
            return torch.autograd.grad(y, [x, *part.parameters], v.detach(), retain_graph=True)

        def penalize(part: Part = part, x: Tensor = x, y: Tensor = y, v: Tensor = v) -> object:
            with torch.enable_grad():
                return penalty_gradients(part, y, x, v)

        work |= {("forward", index): forward, ("backward", index): backward}
        if penalty:
            work["penalty", index] = penalize
        x = y
    seconds = median_seconds(work, rounds, clock=clock)
    rows: list[dict[str, Any]] = [{"part": part.name} for part in parts]
    total: dict[str, Any] = {"part": "sum"}
    for (name, index), times in seconds.items():
        rows[index][f"{name}_ms"] = milliseconds = 1000 * median(times)
        total[f"{name}_ms"] = total.get(f"{name}_ms", 0.0) + milliseconds
    return [*rows, total]


def measure(arguments: argparse.Namespace, compute: Compute, image_size: int, width: float) -> dict[str, Any]:
    """Time both networks of the preset r3 for color images of a size, with this width."""
    changes = {"preset": "r3", "generator_width": width, "discriminator_width": width}
    config = Config(**{**PRESETS["r3"], **changes})
    shape = (3, image_size, image_size)
    torch.manual_seed(0)
    generator = compute.module(make_generator(config, shape, 0))
    discriminator = compute.module(make_discriminator(config, shape, 0))
    assert isinstance(generator, R3Generator)
    device, number = compute.torch_device, arguments.batch_size
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    z_BZ = torch.randn(number, config.latent_dim, device=device)
    images_BCHW = compute.layout(torch.rand(number, *shape, device=device) * 2 - 1)
    of_g = time_parts(generator_parts(generator), z_BZ, compute, arguments.rounds, clock, penalty=False)
    of_d = time_parts(discriminator_parts(discriminator), images_BCHW, compute, arguments.rounds, clock, penalty=True)
    g, d = of_g[-1], of_d[-1]
    return {
        "image_size": image_size,
        "width": width,
        "generator": of_g,
        "discriminator": of_d,
        "update_ms": g["forward_ms"] + g["backward_ms"] + 4 * d["forward_ms"] + 3 * d["backward_ms"],
        "penalties_ms": 2 * d["penalty_ms"],
    }


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, time the networks of each size and width, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[32, 64], help="sides in pixels")
    parser.add_argument(
        "--widths", type=float, nargs="+", default=[0.5], help="of both networks; default: the preset's"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each part; medians are reported")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels-last", action="store_true", help="memory format of images and convolutions")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of all threads in place of wall-clock time")
    arguments = parser.parse_args(argv)
    compute = Compute.choose(
        device=arguments.device,
        precision=arguments.precision,
        compile="off",
        threads=arguments.threads,
        train_step=None,
    )
    compute = dataclasses.replace(compute, channels_last=arguments.channels_last)
    result = {
        "what": f"milliseconds of {'CPU' if arguments.cpu_time else 'wall-clock'} time",
        "arguments": vars(arguments),
        "networks": [
            measure(arguments, compute, size, width) for size in arguments.image_sizes for width in arguments.widths
        ],
    }
    print_result(result)


if __name__ == "__main__":
    run_main(main)
