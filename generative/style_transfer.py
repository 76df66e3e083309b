"""Style transfer: what is in one picture, painted as another one is.

    python -m generative.style_transfer content.jpg style.jpg
    python -m generative.style_transfer content.jpg style.jpg --backbone vgg16 --weights vgg16-397923af.pth

Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks": the pixels themselves are optimised, by
L-BFGS, until an eye finds in them the content of the one picture (relu4_2) and the style of the other (the Gram
matrices of relu1_1 to relu5_1). First small, then at twice the size, so that strokes are laid out before they are
drawn. Unasked a slim VGG of ours is the eye; torchvision's weights, a run (--pretrained-backbone) or another network of
the zoo (--eye) can be. The result is runs/<name>/result.png, with a film of its making. docs/style.md has pictures.

Shapes: C channels, H, W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary, run_main, to_dict
from zerokara.core.distributed import World
from zerokara.core.media import write_png
from zerokara.core.probe import probe
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.run_config import configure
from zerokara.core.stopwatch import Stopwatch
from zerokara.generative.gan.pictures import VIDEO_FPS, film
from zerokara.generative.style.config import PRESETS, Config, Pictures
from zerokara.generative.style.critic import Critic, Losses, Weights
from zerokara.generative.style.lbfgs import Lbfgs
from zerokara.generative.style.losses import luminance, matched, with_luminance
from zerokara.generative.style.perceptual import Eye, make_eye
from zerokara.generative.style.pictures import check_memory, fingerprint, kept_bytes, resized, to_picture, to_pixels

KIND = "style_transfer"
CHANGEABLE = {"resume", "quiet", "out", "threads"}
FIRST_STEP, LONGEST_STEP = 0.01, 0.1  # root mean square over the pixels
WORSE = 3.0  # times the lowest loss at this size: then a leap went wrong, and the best picture is taken up again
VIDEO_SIDE = 720  # pixels: a film need not be larger


class StyleTransfer:
    """Everything that a checkpoint holds, and the steps over it."""

    def __init__(self, config: Config, pictures: Pictures, eye: Eye, compute: Compute) -> None:
        self.config, self.pictures, self.eye, self.compute = config, pictures, eye.on(compute), compute
        self.iteration = 0
        self.best: Tensor
        self.leaps = 0  # steps that went wrong
        self.clock = Stopwatch()
        self.optimizer = Lbfgs(config.history, FIRST_STEP, LONGEST_STEP)
        self.enter(0)

    @property
    def place(self) -> int:
        """Which of the sizes is being painted."""
        return min(self.iteration * len(self.pictures.sizes) // self.config.iterations, len(self.pictures.sizes) - 1)

    def enter(self, place: int) -> None:
        """Take up the size at `place`: its pixels, and what the eye sees in both pictures at that size."""
        config, pictures, device = self.config, self.pictures, self.compute.torch_device
        self._place, size = place, pictures.sizes[place]
        self.colors: Tensor = to_pixels(resized(pictures.content, size)).to(device)
        style = to_pixels(resized(pictures.style, pictures.style_size(place, config.style_scale))).to(device)
        content = self.colors
        if config.keep_color:
            content = luminance(content)
            style = matched(luminance(style), content)
        weights = Weights(content=config.content_weight, style=config.style_weight, variation=config.variation_weight)
        self.eye.balance([content, style])
        self.critic = Critic(self.eye, weights, style)
        self.content = self.critic.content_of(content)
        if place > 0 and self.iteration > 0:
            self.pixels = F.interpolate(self.best, size=size, mode="bicubic", align_corners=False)
        elif config.start == "noise":
            random = torch.Generator().manual_seed(config.seed)
            self.pixels = torch.rand(content.shape, generator=random).to(device)
        else:
            self.pixels = content.clone()
        self.best, self.lowest = self.pixels, float("inf")
        self.optimizer.forget()

    def step(self) -> Losses:
        """One iteration: the loss of the pixels as they are, and a step away from there.

        Raises:
            UserError: the loss is no number from the beginning.
        """
        if self.place != self._place:
            self.enter(self.place)
        losses, gradient = self._slope()
        loss = float(losses.total)
        if loss < self.lowest:
            self.best, self.lowest = self.pixels, loss
        elif not loss <= WORSE * self.lowest:  # no number is not below either
            if self.lowest == float("inf"):
                raise UserError(
                    "The loss is no number at the first look: the eye's weights may be damaged, or --precision float32 "
                    "may help."
                )
            self.leaps += 1
            self.pixels = self.best
            self.optimizer.forget()
            losses, gradient = self._slope()
        moved = self.optimizer.step(self.pixels.flatten(), gradient.flatten())
        self.pixels = moved.view_as(self.pixels)
        self.iteration += 1
        return losses

    def _slope(self) -> tuple[Losses, Tensor]:
        """The loss of the pixels, and its gradient over the number of pixels, which is of the same order everywhere."""
        pixels = self.pixels.detach().requires_grad_(True)
        losses = self.critic.judge(pixels, self.content)
        (gradient,) = torch.autograd.grad(losses.total * pixels.numel(), pixels)
        return losses.detach(), gradient

    def picture(self, *, best: bool) -> np.ndarray:
        """The picture (H, W, 3) uint8 of the lowest loss at this size, or as it stands."""
        pixels = self.best if best else self.pixels
        return to_picture(with_luminance(self.colors, pixels) if self.config.keep_color else pixels)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "place": self._place,
            "iteration": self.iteration,
            "pixels": self.pixels,
            "best": self.best,
            "lowest": self.lowest,
            "leaps": self.leaps,
            "optimizer": self.optimizer.state_dict(),
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.enter(state["place"])
        device = self.compute.torch_device
        self.pixels, self.best = state["pixels"].to(device), state["best"].to(device)
        self.iteration, self.lowest, self.leaps = state["iteration"], state["lowest"], state["leaps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.to(device)
        self.clock.hours = state["hours"]


def paint(config: Config, run: Run, pictures: Pictures, eye: Eye, compute: Compute) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, a loss that is no number.
    """
    painting = StyleTransfer(config, pictures, eye, compute)
    latest = run.path("checkpoint-0.pt")
    if run.restore(latest, painting.load_state_dict):
        for picture in (run.folder / "film").glob("*.png"):
            if int(picture.stem) > painting.iteration:
                picture.unlink()  # it will be painted again
    else:
        run.image("content", 0, resized(pictures.content, pictures.sizes[-1]))
        run.image("style", 0, resized(pictures.style, pictures.style_size(-1, config.style_scale)))

    def due(every: int) -> bool:
        return every > 0 and painting.iteration % every == 0

    while painting.iteration < config.iterations and not run.stop_requested:
        losses = painting.step()
        if due(config.log_every_iterations):
            told = {"train/leaps": painting.leaps, "speed/hours": painting.clock()}
            run.log(painting.iteration, {**losses.scalars("train"), **told})
            run.flush()
        height, width = pictures.sizes[painting.place]
        fields = {"loss": losses.total, "style": losses.style, "content": losses.content, "at": f"{width}x{height}"}
        run.progress(painting.iteration, config.iterations, fields)
        if due(config.video_every_iterations):
            frame = resized(painting.picture(best=False), video_size(pictures.sizes[-1]))
            write_png(run.path("film", f"{painting.iteration:06}.png"), frame)
        if due(config.image_every_iterations):
            run.image("picture", painting.iteration, painting.picture(best=False))
        if due(config.checkpoint_every_iterations):
            run.save(latest, painting.state_dict())
    run.save(latest, painting.state_dict())
    if painting.iteration < config.iterations:
        return (
            f"{run.stop_requested}: saved at iteration {painting.iteration:,} of {config.iterations:,}; go on with: "
            f"{program_command('generative.style_transfer')} --name {config.name} --resume"
        )
    return finish(painting, run)


def video_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the film of a picture (H, W)."""
    share = min(1.0, VIDEO_SIDE / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def finish(painting: StyleTransfer, run: Run) -> str:
    """Write the result and the film. The closing sentence."""
    config, result = painting.config, painting.picture(best=True)
    places = [run.path("result.png")] + [Path(config.out).expanduser()] * bool(config.out)
    for place in places:
        try:
            write_png(place, result)
        except OSError as error:
            raise UserError(
                f"{place} cannot be written ({error_summary(error)}); the painting is in the checkpoint: see to that, and "
                f"type the same command with --name {config.name} --resume."
            ) from None
    run.image("result", painting.iteration, result)
    frames = sorted((run.folder / "film").glob("*.png"))
    if len(frames) > 1:
        run.video("film", painting.iteration, film(frames), VIDEO_FPS)
    run.hparams(to_dict(config), {"hparam/loss": painting.lowest})
    height, width = result.shape[:2]
    return (
        f"{places[-1]}: {width}x{height} after {painting.iteration:,} iterations in {clock_words(painting.clock.hours)}"
    )


def clock_words(hours: float) -> str:
    """Hours as "12 s" or "3.4 min"."""
    return f"{hours * 3600:.0f} s" if hours < 1 / 30 else f"{hours * 60:.1f} min"


def choose_compute(config: Config, pictures: Pictures) -> Compute:
    """Measure iterations at the smallest size."""

    def train_step(candidate: Compute) -> Callable[[], object]:
        return StyleTransfer(config, pictures, make_eye(config, config.seed), candidate).step

    return probe(config, World(), train_step, compile="off")


def check_fit(config: Config, pictures: Pictures, eye: Eye) -> str:
    """What memory the largest size takes, in words.

    Raises:
        UserError: more than there is.
    """
    height, width = pictures.sizes[-1]
    channels = 1 if config.keep_color else 3
    needed = {
        f"what {eye.backbone.name} sees": kept_bytes(eye, (1, channels, height, width)),
        f"{config.history} remembered steps": Lbfgs.bytes_needed(config.history, channels * height * width),
    }
    shape = pictures.style_size(-1, config.style_scale)
    needed["the style picture"] = max(0, kept_bytes(eye, (1, channels, *shape)) // 2 - sum(needed.values()))
    needed = {name: value for name, value in needed.items() if value}
    return check_memory(needed, config.device, (height, width), "paint it smaller with --size {side}")


def default_name(config: Config) -> str:
    """style-tubingen-wave-1 for tubingen.jpg wave.jpg, seed 1."""
    stems = [re.sub(r"[^\w.+=-]+", "_", Path(word).stem) for word in config.pictures]
    return "-".join(["style", *stems, str(config.seed)])


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, pictures, eye, memory, run, compute, iterations, closing line."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    if World.from_env(config.device).size > 1:
        raise UserError("One picture is painted by one process: start it without torchrun.")
    if config.out and (Path(config.out).suffix.lower() != ".png" or not Path(config.out).expanduser().parent.is_dir()):
        raise UserError(f"--out names a file that ends in .png in a folder that is there, got {config.out!r}.")
    pictures = Pictures.read(config)
    eye = make_eye(config, config.seed)
    memory = check_fit(config, pictures, eye)
    prints = {"content": fingerprint(pictures.content), "style": fingerprint(pictures.style)}
    with Run(
        config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, extra={"pictures": prints}
    ) as run:
        if run.extra["pictures"] != prints:
            raise UserError(
                f"{' or '.join(config.pictures)} is another picture than when {run.folder} began: put the old one "
                f"back, or start afresh with another --name."
            )
        run.print(f"eye: {eye.words}")
        run.print(memory)
        compute = run.compute(lambda: choose_compute(config, pictures), config.iterations)
        with run.signals():
            run.close(paint(config, run, pictures, eye, compute))


if __name__ == "__main__":
    run_main(main)
