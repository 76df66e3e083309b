"""What learns: generator and discriminator with their optimisers, and one update of both.

An update is one step of the discriminator and one of the generator on the same painted images:
real and painted images go through the discriminator apart, each with BatchNorm statistics of their own; the generator's
step leaves no gradients on the discriminator, and does not paint a second time unless the batch comes in parts.

Shapes: B batch, b a part of it, Z numbers of a latent, C channels, H, W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zerokara.core import schedules
from zerokara.core.backbones.registry import option_names
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag
from zerokara.core.distributed import World
from zerokara.core.divergence import is_finite, read_means
from zerokara.core.ema import Ema
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.diffaugment import augment
from zerokara.generative.gan.losses import LOSSES, between, gradient_penalty, smoothed, squared_slope
from zerokara.generative.gan.networks import Discriminator, FromLatents, Generator, R3Generator

NORM_EVERY_UPDATES = 10  # gradient norms are looked at this often: they read every weight
SUMS = ("d_loss", "g_loss", "d_accuracy_real", "d_accuracy_fake", "d_score_real", "d_score_fake", "penalty")


class Learner:
    """Generator, discriminator, and what it takes to improve them."""

    def __init__(
        self, config: Config, shape: tuple[int, int, int], classes: int, compute: Compute, world: World
    ) -> None:
        """Networks with fresh weights for images (C, H, W).

        Raises:
            UserError: a backbone that does not exist or fit, penalties that BatchNorm makes meaningless, smoothing of
                another loss than bce.
        """
        self.config, self.compute, self.world, self.shape = config, compute, world, shape
        self.classes = classes if config.conditional else 0
        torch.manual_seed(config.seed)
        self.generator = compute.module(make_generator(config, shape, self.classes))
        self.discriminator = compute.module(make_discriminator(config, shape, self.classes))
        check_penalties(config, self.discriminator)
        if config.smoothing and config.loss != "bce":
            raise UserError(
                f"--smoothing moves the aim of --loss bce from 1, and --loss {config.loss} has no such aim: "
                f"leave one of the two out."
            )
        world.broadcast(self.generator)
        world.broadcast(self.discriminator)
        betas = (config.beta1, config.beta2)
        fused = compute.torch_device.type != "mps"
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.generator_learning_rate, betas=betas, fused=fused
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.discriminator_learning_rate, betas=betas, fused=fused
        )
        half_life = config.ema_half_life_updates
        self.ema = Ema(self.generator, half_life) if half_life else None
        self.random = torch.Generator(compute.torch_device).manual_seed(config.seed * 1_000_003 + world.rank)
        self.loss = LOSSES[config.loss]
        self.updates = 0
        self._discriminator_loss = compute.function(self._judge)
        # Deviation of the noise on images: a tensor, so that compiled code need not know its number.
        self._noise = torch.zeros((), device=compute.torch_device)
        self._generator_loss = compute.function(self._please)
        # Sums since `read_metrics`; they stay on the device.
        self._sums = torch.zeros(len(SUMS) + 1, device=compute.torch_device)
        self._norms = torch.zeros(3, device=compute.torch_device)

    def update(self, pixels_BCHW: Tensor, label_B: Tensor) -> None:
        """One step of the discriminator, one of the generator, from real images uint8 on the device."""
        config = self.config
        self._follow_schedules()
        # A second derivative does not survive compilation.
        judge = self._judge_and_penalise if self.is_penalty_due() else self._discriminator_loss
        parts = config.accumulate
        reals = [self.real_images(part) for part in pixels_BCHW.chunk(parts)]
        labels: list[Tensor | None] = list(label_B.chunk(parts)) if self.classes else [None] * parts
        latents = [self.draw_latents(len(real)) for real in reals]
        with torch.set_grad_enabled(parts == 1), self.compute.autocast():
            fakes = [self.generator(z, label) for z, label in zip(latents, labels, strict=True)]

        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        for real, fake, label in zip(reals, fakes, labels, strict=True):
            loss, seen = judge(real, fake.detach(), label)
            (loss / parts).backward()
            self._sums[0] += loss.detach() / parts
            self._sums[2:-1] += seen / parts
        self._step(self.discriminator, self.discriminator_optimizer, 1)

        self.discriminator.requires_grad_(False)
        self.generator_optimizer.zero_grad(set_to_none=True)
        for real, fake, label, z in zip(reals, fakes, labels, latents, strict=True):
            if parts > 1:
                with self.compute.autocast():
                    fake = self.generator(z, label)  # noqa: PLW2901  (the graph of all parts would not fit)
            loss = self._generator_loss(real, fake, label)
            (loss / parts).backward()
            self._sums[1] += loss.detach() / parts
        self._step(self.generator, self.generator_optimizer, 0)
        if self.ema is not None:
            self.ema.update(self.generator)
        self._sums[-1] += 1
        self.updates += 1

    def real_images(self, pixels_bCHW: Tensor) -> Tensor:
        """Pixels uint8 as images from -1 to 1 in the chosen type and layout, mirrored at random where that is asked."""
        if self.config.flip:
            coin_b = torch.rand(len(pixels_bCHW), generator=self.random, device=pixels_bCHW.device) < 0.5
            pixels_bCHW = torch.where(coin_b.view(-1, 1, 1, 1), pixels_bCHW.flip(3), pixels_bCHW)
        return self.compute.layout(pixels_bCHW.float() * (2 / 255) - 1)

    def draw_latents(self, number: int) -> Tensor:
        """Latents (number, Z) from the run's own random numbers."""
        shape, device = (number, self.config.latent), self.compute.torch_device
        return draw_latents(self.config, shape, self.random, device)

    def is_penalty_due(self) -> bool:
        """Whether this update is one of those with a penalty (Karras et al. 2020, appendix B, lazy regularisation)."""
        config = self.config
        return bool(config.r1 or config.r2 or config.gradient_penalty) and (
            self.updates % config.penalty_every_updates == 0
        )

    def seen(self, x_BCHW: Tensor) -> Tensor:
        """Images as the discriminator sees them: augmented, and under noise (Sønderby et al. 2017, section 3.5)."""
        x_BCHW = augment(x_BCHW, self.config.diffaugment, self.random)
        if not (self.config.instance_noise or self.config.final_instance_noise):
            return x_BCHW
        noise = torch.randn(x_BCHW.shape, generator=self.random, device=x_BCHW.device)
        return x_BCHW + (self._noise * noise).to(x_BCHW.dtype)

    def _judge(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The discriminator's loss, and what is watched: accuracies, mean scores and the penalty (5,)."""
        real, fake = self.seen(real), self.seen(fake)
        loss, real_B, fake_B = self._scored(real, fake, label)
        return loss, self._watched(real_B, fake_B, torch.zeros_like(loss))

    def _judge_and_penalise(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `_judge`, with penalties on the discriminator's slope."""
        config = self.config
        real, fake = self.seen(real), self.seen(fake)
        real.requires_grad_(config.r1 > 0)
        fake.requires_grad_(config.r2 > 0)
        loss, real_B, fake_B = self._scored(real, fake, label)
        penalty = torch.zeros_like(loss)
        if config.r1:
            penalty = penalty + config.r1 / 2 * squared_slope(real_B, real)
        if config.r2:
            penalty = penalty + config.r2 / 2 * squared_slope(fake_B, fake)
        if config.gradient_penalty:
            share_B = torch.rand(len(real), generator=self.random, device=real.device)
            middle = between(real, fake, share_B)
            with self.compute.autocast():
                middle_B = self.discriminator(middle, label)
            penalty = penalty + config.gradient_penalty * gradient_penalty(middle_B, middle)
        penalty = penalty * config.penalty_every_updates
        return loss + penalty, self._watched(real_B, fake_B, penalty)

    def _scored(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The discriminator's loss without penalties, and its scores (B,) of both."""
        with self.compute.autocast():
            real_B, fake_B = self.discriminator(real, label), self.discriminator(fake, label)
        loss = self.loss.discriminator(real_B, fake_B)
        if self.config.smoothing:
            loss = loss + smoothed(real_B, self.config.smoothing)
        return loss, real_B, fake_B

    def _watched(self, real_B: Tensor, fake_B: Tensor, penalty: Tensor) -> Tensor:
        means = real_B.mean(), fake_B.mean()
        return torch.stack([*self.loss.right(real_B, fake_B), *means, penalty]).detach()

    def _please(self, real: Tensor, fake: Tensor, label: Tensor | None) -> Tensor:
        """The generator's loss."""
        with self.compute.autocast():
            fake_B = self.discriminator(self.seen(fake), label)
            real_B = fake_B
            if self.loss.uses_real_in_generator:
                with torch.no_grad():
                    real_B = self.discriminator(self.seen(real), label)
        return self.loss.generator(real_B, fake_B)

    def _step(self, module: nn.Module, optimizer: torch.optim.Optimizer, place: int) -> None:
        self.world.mean_gradients(module.parameters())
        if self.updates % NORM_EVERY_UPDATES == 0:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self._norms[place] += nn.utils.get_total_norm(gradients)
            self._norms[2] += 0.5  # both networks count one
        optimizer.step()

    def _follow_schedules(self) -> None:
        """Learning rates and noise, as functions of the update."""
        config = self.config
        first, last = config.instance_noise, config.final_instance_noise
        self._noise.fill_(schedules.linear(self.updates, first, last, 0, config.updates))
        factor = 1.0
        if config.schedule == "cosine":
            factor = schedules.cosine(self.updates, 1.0, 0.01, 0, config.updates)
        rates = (config.generator_learning_rate, config.discriminator_learning_rate)
        for optimizer, rate in zip((self.generator_optimizer, self.discriminator_optimizer), rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def snapshot(self) -> FromLatents:
        """The generator that paints: the averaged one where there is an average, with BatchNorm statistics that fit.

        A copy in evaluation mode, a function of the weights alone: it draws no random number of the run's.
        """
        copy = Ema(self.generator if self.ema is None else self.ema.module, 1.0)
        with torch.no_grad(), self.compute.autocast():
            copy.recalibrate(fitting_latents(self.config, self.classes, self.compute))
        return copy.module

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""
        return {
            **read_means(self._sums, [f"train/{name}" for name in SUMS]),
            **read_means(self._norms, ("train/g_grad_norm", "train/d_grad_norm")),
        }

    def is_finite(self) -> bool:
        """Whether every weight is a number, the averaged ones too. Waits for the device."""
        averaged = [] if self.ema is None else [self.ema.module]
        return is_finite(self.generator, self.discriminator, *averaged)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "random": self.random.get_state(),
            "sums": self._sums,
            "norms": self._norms,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.random.set_state(state["random"])
        self._sums.copy_(state["sums"])
        self._norms.copy_(state["norms"])
        self.updates = state["updates"]


def make_generator(config: Config, shape: tuple[int, int, int], classes: int) -> FromLatents:
    """The generator that a config asks for, for images (C, H, W).

    Raises:
        UserError: an option of the one generator with the other.
    """
    if config.generator == "r3":
        for name, plain in (("upsample", "deconvolution"), ("generator_norm", "batch")):
            if getattr(config, name) != plain:
                raise UserError(f"{flag(name)} belongs to --generator dcgan, and r3 has its own way: leave it out.")
        return R3Generator(config.latent, shape[0], shape[1:], width=config.generator_width, classes=classes)
    return Generator(
        config.latent,
        shape[0],
        shape[1:],
        width=config.generator_width,
        classes=classes,
        upsample=config.upsample,
        norm=config.generator_norm,
    )


def make_discriminator(config: Config, shape: tuple[int, int, int], classes: int) -> Discriminator:
    """The discriminator that a config asks for, for images (C, H, W).

    Raises:
        UserError: a backbone that does not exist, or has no such option.
    """
    known = option_names(config.backbone)
    options: dict[str, Any] = {}
    if config.discriminator_width != 1.0 or "width" in known:
        options["width"] = config.discriminator_width
    if config.discriminator_norm != "batch":
        options["norm"] = config.discriminator_norm
    return Discriminator(config.backbone, shape[0], shape[1:], classes=classes, spectral=config.spectral, **options)


def check_penalties(config: Config, discriminator: Discriminator) -> None:
    """Refuse penalties on slopes where BatchNorm makes a score depend on the whole batch.

    Raises:
        UserError: it does.
    """
    for name in ("r1", "r2", "gradient_penalty"):
        if getattr(config, name) and discriminator.mixes_images():
            raise UserError(
                f"--{name.replace('_', '-')} looks at the slope of each image's own score, and BatchNorm in the "
                f"discriminator mixes the images: add --discriminator-norm none, or a --backbone without BatchNorm."
            )


def draw_latents(config: Config, shape: tuple[int, int], random: torch.Generator, device: torch.device) -> Tensor:
    """Latents of this shape, from N(0, 1) or uniform from -1 to 1."""
    if config.latent_distribution == "uniform":
        return torch.rand(shape, generator=random, device=device) * 2 - 1
    return torch.randn(shape, generator=random, device=device)


def fitting_latents(
    config: Config, classes: int, compute: Compute, batches: int = 16, batch: int = 128
) -> list[Tensor]:
    """The same latents always, labels joined, on which a generator's BatchNorm statistics are measured."""
    random = torch.Generator().manual_seed(20_151_119)  # the day the paper appeared
    joined = []
    for _ in range(batches):
        z_BZ = draw_latents(config, (batch, config.latent), random, torch.device("cpu"))
        if classes:
            label_B = torch.randint(classes, (batch,), generator=random)
            z_BZ = torch.cat([z_BZ, nn.functional.one_hot(label_B, classes).float()], 1)
        joined.append(z_BZ.to(compute.torch_device))
    return joined
