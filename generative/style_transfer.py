"""Style transfer: combine the content of one image with the style of another.

    python -m generative.style_transfer content.jpg style.jpg
    python -m generative.style_transfer content.jpg style.jpg --backbone vgg16 --weights vgg16-397923af.pth

Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks": L-BFGS optimizes the pixels until their
features in a loss network match the content image (relu4_2) and their Gram matrices match the style image (relu1_1 to
relu5_1). The image is optimized at a small size first, then at twice the size. By default the loss network is a narrow
VGG that ships with zerokara; others are weights of torchvision (--weights), a run (--pretrained-backbone) or another
network of the zoo (--loss-network). The result is runs/<name>/result.png, with a video of the optimization.
docs/style.md has examples.

Shapes: C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zerokara.core.command_line import check_command_line
from zerokara.core.config import UserError, error_summary, run_main, to_dict
from zerokara.core.programs import program_command
from zerokara.core.stopwatch import Stopwatch
from zerokara.generative.style.config import KIND, Config, read_config

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data.image_files import resize
from zerokara.core.distributed import World
from zerokara.core.media import write_png
from zerokara.core.models.normalization import decide_normalization
from zerokara.core.run import Run
from zerokara.core.training_program import choose_compute, open_run
from zerokara.generative.gan.pictures import VIDEO_FPS, video_frames
from zerokara.generative.style.critic import Losses, PerceptualLoss, Weights
from zerokara.generative.style.images import (
    ImagePair,
    activation_bytes,
    check_memory,
    fingerprint,
    to_image,
    to_pixels,
)
from zerokara.generative.style.lbfgs import Lbfgs
from zerokara.generative.style.losses import luminance, match_luminance, with_luminance
from zerokara.generative.style.perceptual import LossNetwork, loss_network_of, save_loss_network

FIRST_STEP, MAX_STEP = 0.01, 0.1  # root mean square of a step over the pixels
MAX_LOSS_RATIO = 3.0  # to the lowest loss at this size; above it the step is rejected and the best image is restored
VIDEO_SIDE = 720  # pixels, at most


class StyleTransfer:
    """State of the optimization, which checkpoints hold, and its iterations."""

    def __init__(self, config: Config, images: ImagePair, loss_network: LossNetwork, compute: Compute) -> None:
        self.config, self.images, self.compute = config, images, compute
        self.loss_network = loss_network.on(compute)
        self.iteration = 0
        self.best: Tensor
        self.rejected_steps = 0
        self.clock = Stopwatch()
        self.optimizer = Lbfgs(config.history, FIRST_STEP, MAX_STEP)
        self.start_scale(0)

    @property
    def scale_index(self) -> int:
        """Index of the current size."""
        return min(self.iteration * len(self.images.sizes) // self.config.iterations, len(self.images.sizes) - 1)

    def start_scale(self, scale_index: int) -> None:
        """Start the optimization at a size: set the initial pixels and compute the targets of both images."""
        config, images, device = self.config, self.images, self.compute.torch_device
        self._scale_index, size = scale_index, images.sizes[scale_index]
        self.color_image: Tensor = to_pixels(resize(images.content, size)).to(device)
        style = to_pixels(resize(images.style, images.style_size(scale_index, config.style_scale))).to(device)
        content = self.color_image
        if config.keep_color:
            content = luminance(content)
            style = match_luminance(luminance(style), content)
        weights = Weights(content=config.content_weight, style=config.style_weight, variation=config.variation_weight)
        self.loss_network.balance([content, style])
        self.criterion = PerceptualLoss(self.loss_network, weights, style)
        self.content = self.criterion.content_features(content)
        if scale_index > 0 and self.iteration > 0:
            self.pixels = F.interpolate(self.best, size=size, mode="bicubic", align_corners=False)
        elif config.start == "noise":
            random = torch.Generator().manual_seed(config.seed)
            self.pixels = torch.rand(content.shape, generator=random).to(device)
        else:
            self.pixels = content.clone()
        self.best, self.best_loss = self.pixels, float("inf")
        self.optimizer.reset()

    def step(self) -> Losses:
        """Do one iteration: compute the loss and do an L-BFGS step.

        Raises:
            UserError: the first loss of a size is NaN or Inf.
        """
        if self.scale_index != self._scale_index:
            self.start_scale(self.scale_index)
        losses, gradient = self._loss_and_gradient()
        loss = float(losses.total)
        if loss < self.best_loss:
            self.best, self.best_loss = self.pixels, loss
        elif not loss <= MAX_LOSS_RATIO * self.best_loss:  # also true for NaN
            if self.best_loss == float("inf"):
                raise UserError(
                    "The first loss is NaN or Inf: the weights of the loss network may be damaged, or the "
                    "precision too low; try --precision float32."
                )
            self.rejected_steps += 1
            self.pixels = self.best
            self.optimizer.reset()
            losses, gradient = self._loss_and_gradient()
        moved = self.optimizer.step(self.pixels.flatten(), gradient.flatten())
        self.pixels = moved.view_as(self.pixels)
        self.iteration += 1
        return losses

    def _loss_and_gradient(self) -> tuple[Losses, Tensor]:
        """Compute the loss, and its gradient times the number of pixels (comparable across sizes)."""
        pixels = self.pixels.detach().requires_grad_(True)
        losses = self.criterion.losses(pixels, self.content)
        (gradient,) = torch.autograd.grad(losses.total * pixels.numel(), pixels)
        return losses.detach(), gradient

    def image(self, *, best: bool) -> np.ndarray:
        """Return the image (H, W, 3) uint8 with the lowest loss at this size, or the current one."""
        pixels = self.best if best else self.pixels
        return to_image(with_luminance(self.color_image, pixels) if self.config.keep_color else pixels)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, as tensors and plain values."""
        return {
            "place": self._scale_index,
            "iteration": self.iteration,
            "pixels": self.pixels,
            "best": self.best,
            "lowest": self.best_loss,
            "leaps": self.rejected_steps,
            "optimizer": self.optimizer.state_dict(),
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.start_scale(state["place"])
        device = self.compute.torch_device
        self.pixels, self.best = state["pixels"].to(device), state["best"].to(device)
        self.iteration, self.best_loss, self.rejected_steps = state["iteration"], state["lowest"], state["leaps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.to(device)
        self.clock.hours = state["hours"]


def optimize(config: Config, run: Run, images: ImagePair, loss_network: LossNetwork, compute: Compute) -> str:
    """Optimize from the current iteration to the end of the run. Returns the closing message.

    Raises:
        UserError: an unreadable checkpoint, or a loss of NaN or Inf.
    """
    transfer = StyleTransfer(config, images, loss_network, compute)
    if run.restore(run.checkpoint_path, transfer.load_state_dict):
        for frame in (run.folder / "film").glob("*.png"):
            if int(frame.stem) > transfer.iteration:
                frame.unlink()  # the iteration will be repeated
    else:
        run.image("content", 0, resize(images.content, images.sizes[-1]))
        run.image("style", 0, resize(images.style, images.style_size(-1, config.style_scale)))

    def due(every: int) -> bool:
        return every > 0 and transfer.iteration % every == 0

    with run.interruptible(on=False):  # a signal waits for the end of an iteration
        while transfer.iteration < config.iterations and not run.stop_requested:
            losses = transfer.step()
            if due(config.log_every_iterations):
                timing = {"train/leaps": transfer.rejected_steps, "speed/hours": transfer.clock()}
                run.log(transfer.iteration, {**losses.scalars("train"), **timing})
                run.flush()
            height, width = images.sizes[transfer.scale_index]
            fields = {"loss": losses.total, "style": losses.style, "content": losses.content, "at": f"{width}x{height}"}
            run.progress(transfer.iteration, config.iterations, fields)
            if due(config.video_every_iterations):
                video_frame = resize(transfer.image(best=False), video_size(images.sizes[-1]))
                write_png(run.path("film", f"{transfer.iteration:06}.png"), video_frame)
            if due(config.image_every_iterations):
                run.image("picture", transfer.iteration, transfer.image(best=False))
            if due(config.checkpoint_every_iterations):
                run.save(run.checkpoint_path, transfer.state_dict())
        run.save(run.checkpoint_path, transfer.state_dict())
    if transfer.iteration < config.iterations:
        run.stopped = True
        return (
            f"{run.stop_requested}: saved at iteration {transfer.iteration:,} of {config.iterations:,}; resume with: "
            f"{run.resume_command(program_command('generative.style_transfer'))}"
        )
    return finish(transfer, run)


def video_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of the video of an image (H, W)."""
    scale = min(1.0, VIDEO_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def finish(transfer: StyleTransfer, run: Run) -> str:
    """Write the result and the video. Returns the closing message."""
    config, result = transfer.config, transfer.image(best=True)
    paths = [run.path("result.png")] + [Path(config.out).expanduser()] * bool(config.out)
    for path in paths:
        try:
            write_png(path, result)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error_summary(error)}). The result is in the checkpoint: fix the problem "
                f"and type the same command with --name {config.name} --resume."
            ) from None
    run.image("result", transfer.iteration, result)
    frames = sorted((run.folder / "film").glob("*.png"))
    if len(frames) > 1:
        run.video("film", transfer.iteration, video_frames(frames), VIDEO_FPS)
    run.log(transfer.iteration, {"final/loss": transfer.best_loss})
    run.hparams(to_dict(config), ["final/loss"])
    height, width = result.shape[:2]
    return (
        f"{paths[-1]}: {width}x{height} after {transfer.iteration:,} iterations in {format_hours(transfer.clock.hours)}"
    )


def format_hours(hours: float) -> str:
    """Format hours as "12 s" or "3.4 min"."""
    return f"{hours * 3600:.0f} s" if hours < 1 / 30 else f"{hours * 60:.1f} min"


def probe_step(config: Config, images: ImagePair, compute: Compute) -> Callable[[], object]:
    """Return an iteration at the smallest size, which is timed to choose device and precision."""
    return StyleTransfer(config, images, loss_network_of(config), compute).step


def check_fit(config: Config, images: ImagePair, loss_network: LossNetwork) -> str:
    """Check that the largest size fits into memory. Returns a message about it.

    Raises:
        UserError: it does not fit.
    """
    height, width = images.sizes[-1]
    channels = 1 if config.keep_color else 3
    needed = {
        f"activations of {loss_network.backbone.name}": activation_bytes(loss_network, (1, channels, height, width)),
        f"{config.history} L-BFGS steps": Lbfgs.bytes_needed(config.history, channels * height * width),
    }
    shape = images.style_size(-1, config.style_scale)
    needed["the style image"] = max(
        0, activation_bytes(loss_network, (1, channels, *shape)) // 2 - sum(needed.values())
    )
    needed = {name: value for name, value in needed.items() if value}
    return check_memory(needed, config.device, (height, width), "use a smaller --size, such as --size {side}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read config and images, check memory, optimize, print the closing message."""
    config = read_config(argv, __doc__ or "")
    config = decide_normalization(config, channels=3)
    if World.from_env(config.device).size > 1:
        raise UserError("Style transfer runs in one process: start it without torchrun.")
    if config.out and (Path(config.out).suffix.lower() != ".png" or not Path(config.out).expanduser().parent.is_dir()):
        raise UserError(f"--out must name a file that ends in .png in an existing folder, got {config.out!r}.")
    images = ImagePair.read(config)
    loss_network = loss_network_of(config)
    memory = check_fit(config, images, loss_network)
    fingerprints = {"content": fingerprint(images.content), "style": fingerprint(images.style)}
    with open_run(config, KIND, extra={"pictures": fingerprints}) as run:
        if run.extra["pictures"] != fingerprints:
            raise UserError(
                f"{' or '.join(config.pictures)} is not the image that {run.folder} was started with: restore the old "
                f"one, or start a new run with another --name."
            )
        images.save(run)
        save_loss_network(run, config, loss_network)
        run.print(f"loss network: {loss_network.description}")
        run.print(memory)
        timed = TrainStep(lambda compute, _: probe_step(config, images, compute), 1)
        compute = run.compute(lambda: choose_compute(config, World(), timed, config.iterations), config.iterations)
        run.close(optimize(config, run, images, loss_network, compute))


if __name__ == "__main__":
    run_main(main)
