"""Generator and discriminator with their optimizers, and one update of both.

An update is one step of the discriminator and one of the generator on the same generated images. Real and generated
images pass through the discriminator in separate batches, each with its own BatchNorm statistics. The generator's step
leaves no gradients on the discriminator, and reuses the generated images unless gradients are accumulated.

Shapes: B batch, b part of a batch, Z latent dimension, C channels, H, W pixels.
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
from zerokara.generative.gan.losses import (
    LOSSES,
    gradient_penalty,
    interpolate,
    label_smoothing_term,
    squared_gradient_norm,
)
from zerokara.generative.gan.networks import Discriminator, Generator, LatentGenerator, R3Generator

NORM_EVERY_UPDATES = 10  # updates between measurements of the gradient norms, which read every weight
SUMS = ("d_loss", "g_loss", "d_accuracy_real", "d_accuracy_fake", "d_score_real", "d_score_fake", "penalty")


class Learner:
    """Generator, discriminator, their optimizers and the averaged generator."""

    def __init__(
        self, config: Config, shape: tuple[int, int, int], classes: int, compute: Compute, world: World
    ) -> None:
        """Create networks with random weights for images (C, H, W).

        Raises:
            UserError: unknown backbone, gradient penalties together with BatchNorm, or label smoothing with a loss
                other than bce.
        """
        self.config, self.compute, self.world, self.shape = config, compute, world, shape
        self.classes = classes if config.conditional else 0
        torch.manual_seed(config.seed)
        self.generator = compute.module(make_generator(config, shape, self.classes))
        self.discriminator = compute.module(make_discriminator(config, shape, self.classes))
        check_penalties(config, self.discriminator)
        if config.label_smoothing and config.loss != "bce":
            raise UserError(
                f"--label-smoothing changes the target of --loss bce, and --loss {config.loss} has no such target: "
                f"remove one of the two options."
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
        self._compiled_discriminator_loss = compute.function(self._discriminator_loss)
        # Standard deviation of the instance noise: a tensor, so that a change does not cause recompilation.
        self._noise = torch.zeros((), device=compute.torch_device)
        self._compiled_generator_loss = compute.function(self._generator_loss)
        # Sums since the last `read_metrics`. They stay on the device.
        self._sums = torch.zeros(len(SUMS) + 1, device=compute.torch_device)
        self._norms = torch.zeros(3, device=compute.torch_device)

    def update(self, pixels_BCHW: Tensor, label_B: Tensor) -> None:
        """Do one step of the discriminator and one of the generator.

        Args:
            pixels_BCHW: real images, uint8, on the device.
            label_B: their labels; unused by an unconditional GAN.
        """
        config = self.config
        self._apply_schedules()
        # torch.compile does not support the second derivative that penalties need.
        discriminator_loss = (
            self._penalized_discriminator_loss if self.is_penalty_due() else self._compiled_discriminator_loss
        )
        parts = config.accumulation_steps
        reals = [self.real_images(part) for part in pixels_BCHW.chunk(parts)]
        labels: list[Tensor | None] = list(label_B.chunk(parts)) if self.classes else [None] * parts
        latents = [self.draw_latents(len(real)) for real in reals]
        with torch.set_grad_enabled(parts == 1), self.compute.autocast():
            fakes = [self.generator(z, label) for z, label in zip(latents, labels, strict=True)]

        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        for real, fake, label in zip(reals, fakes, labels, strict=True):
            loss, metrics = discriminator_loss(real, fake.detach(), label)
            (loss / parts).backward()
            self._sums[0] += loss.detach() / parts
            self._sums[2:-1] += metrics / parts
        self._step(self.discriminator, self.discriminator_optimizer, 1)

        self.discriminator.requires_grad_(False)
        self.generator_optimizer.zero_grad(set_to_none=True)
        for real, fake, label, z in zip(reals, fakes, labels, latents, strict=True):
            if parts > 1:
                with self.compute.autocast():
                    fake = self.generator(z, label)  # noqa: PLW2901  (again: all graphs at once would take too much memory)
            loss = self._compiled_generator_loss(real, fake, label)
            (loss / parts).backward()
            self._sums[1] += loss.detach() / parts
        self._step(self.generator, self.generator_optimizer, 0)
        if self.ema is not None:
            self.ema.update(self.generator)
        self._sums[-1] += 1
        self.updates += 1

    def real_images(self, pixels_bCHW: Tensor) -> Tensor:
        """Scale uint8 pixels to -1 to 1, in the memory layout of `compute`, with random flips if configured."""
        if self.config.flip:
            flip_b = torch.rand(len(pixels_bCHW), generator=self.random, device=pixels_bCHW.device) < 0.5
            pixels_bCHW = torch.where(flip_b.view(-1, 1, 1, 1), pixels_bCHW.flip(3), pixels_bCHW)
        return self.compute.layout(pixels_bCHW.float() * (2 / 255) - 1)

    def draw_latents(self, number: int) -> Tensor:
        """Draw latent vectors (number, Z) from the run's random number generator."""
        shape, device = (number, self.config.latent_dim), self.compute.torch_device
        return draw_latents(self.config, shape, self.random, device)

    def is_penalty_due(self) -> bool:
        """Return True if this update has a penalty (lazy regularization, Karras et al. 2020, appendix B)."""
        config = self.config
        return bool(config.r1 or config.r2 or config.gradient_penalty) and (
            self.updates % config.penalty_every_updates == 0
        )

    def discriminator_input(self, x_BCHW: Tensor) -> Tensor:
        """Augment images and add instance noise to them (Sønderby et al. 2017, section 3.5)."""
        x_BCHW = augment(x_BCHW, self.config.diffaugment, self.random)
        if not (self.config.instance_noise or self.config.final_instance_noise):
            return x_BCHW
        noise = torch.randn(x_BCHW.shape, generator=self.random, device=x_BCHW.device)
        return x_BCHW + (self._noise * noise).to(x_BCHW.dtype)

    def _discriminator_loss(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the discriminator's loss, and its metrics (5,): accuracies, mean scores and the penalty (zero)."""
        real, fake = self.discriminator_input(real), self.discriminator_input(fake)
        loss, real_B, fake_B = self._score(real, fake, label)
        return loss, self._loss_metrics(real_B, fake_B, torch.zeros_like(loss))

    def _penalized_discriminator_loss(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the discriminator's loss with gradient penalties, and its metrics (5,)."""
        config = self.config
        real, fake = self.discriminator_input(real), self.discriminator_input(fake)
        real.requires_grad_(config.r1 > 0)
        fake.requires_grad_(config.r2 > 0)
        loss, real_B, fake_B = self._score(real, fake, label)
        penalty = torch.zeros_like(loss)
        if config.r1:
            penalty = penalty + config.r1 / 2 * squared_gradient_norm(real_B, real)
        if config.r2:
            penalty = penalty + config.r2 / 2 * squared_gradient_norm(fake_B, fake)
        if config.gradient_penalty:
            fraction_B = torch.rand(len(real), generator=self.random, device=real.device)
            middle = interpolate(real, fake, fraction_B)
            with self.compute.autocast():
                middle_B = self.discriminator(middle, label)
            penalty = penalty + config.gradient_penalty * gradient_penalty(middle_B, middle)
        penalty = penalty * config.penalty_every_updates
        return loss + penalty, self._loss_metrics(real_B, fake_B, penalty)

    def _score(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the discriminator's loss without penalties, and its scores (B,) of real and fake images."""
        with self.compute.autocast():
            real_B, fake_B = self.discriminator(real, label), self.discriminator(fake, label)
        loss = self.loss.discriminator(real_B, fake_B)
        if self.config.label_smoothing:
            loss = loss + label_smoothing_term(real_B, self.config.label_smoothing)
        return loss, real_B, fake_B

    def _loss_metrics(self, real_B: Tensor, fake_B: Tensor, penalty: Tensor) -> Tensor:
        """Stack accuracies, mean scores and the penalty (5,), as in `SUMS`."""
        means = real_B.mean(), fake_B.mean()
        return torch.stack([*self.loss.accuracies(real_B, fake_B), *means, penalty]).detach()

    def _generator_loss(self, real: Tensor, fake: Tensor, label: Tensor | None) -> Tensor:
        """Compute the generator's loss."""
        with self.compute.autocast():
            fake_B = self.discriminator(self.discriminator_input(fake), label)
            real_B = fake_B
            if self.loss.uses_real_in_generator:
                with torch.no_grad():
                    real_B = self.discriminator(self.discriminator_input(real), label)
        return self.loss.generator(real_B, fake_B)

    def _step(self, module: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Average gradients over processes, measure their norm every few updates, and do the optimizer's step."""
        self.world.mean_gradients(module.parameters())
        if self.updates % NORM_EVERY_UPDATES == 0:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self._norms[index] += nn.utils.get_total_norm(gradients)
            self._norms[2] += 0.5  # half for each network: a count of the measurements
        optimizer.step()

    def _apply_schedules(self) -> None:
        """Set the learning rates and the instance noise of the current update."""
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

    def snapshot(self) -> LatentGenerator:
        """Copy the generator for sampling: the averaged one if there is one, with recalibrated BatchNorm statistics.

        The copy is in evaluation mode and a function of the weights alone; the run's random numbers are not used.
        """
        copy = Ema(self.generator if self.ema is None else self.ema.module, 1.0)
        with torch.no_grad(), self.compute.autocast():
            copy.recalibrate(recalibration_latents(self.config, self.classes, self.compute))
        return copy.module

    def read_metrics(self) -> dict[str, Tensor]:
        """Return the means of the metrics since the last call, as tensors on the device."""
        return {
            **read_means(self._sums, [f"train/{name}" for name in SUMS]),
            **read_means(self._norms, ("train/g_grad_norm", "train/d_grad_norm")),
        }

    def is_finite(self) -> bool:
        """Return True if all weights, the averaged ones included, are finite. Synchronizes with the device."""
        averaged = [] if self.ema is None else [self.ema.module]
        return is_finite(self.generator, self.discriminator, *averaged)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, as tensors and plain values."""
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
        """Restore `state_dict`."""
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


def make_generator(config: Config, shape: tuple[int, int, int], classes: int) -> LatentGenerator:
    """Create the generator of a config for images (C, H, W).

    Raises:
        UserError: an option of the dcgan generator with --generator r3.
    """
    if config.generator == "r3":
        for name, default in (("upsample", "deconvolution"), ("generator_norm", "batch")):
            if getattr(config, name) != default:
                raise UserError(
                    f"{flag(name)} is an option of --generator dcgan, and this is --generator r3: remove it."
                )
        return R3Generator(config.latent_dim, shape[0], shape[1:], width=config.generator_width, classes=classes)
    return Generator(
        config.latent_dim,
        shape[0],
        shape[1:],
        width=config.generator_width,
        classes=classes,
        upsample=config.upsample,
        norm=config.generator_norm,
    )


def make_discriminator(config: Config, shape: tuple[int, int, int], classes: int) -> Discriminator:
    """Create the discriminator of a config for images (C, H, W).

    Raises:
        UserError: unknown backbone, or one without the option that was set.
    """
    supported = option_names(config.backbone)
    options: dict[str, Any] = {}
    if config.discriminator_width != 1.0 or "width" in supported:
        options["width"] = config.discriminator_width
    if config.discriminator_norm != "batch":
        options["norm"] = config.discriminator_norm
    return Discriminator(
        config.backbone, shape[0], shape[1:], classes=classes, spectral_norm=config.spectral_norm, **options
    )


def check_penalties(config: Config, discriminator: Discriminator) -> None:
    """Check that gradient penalties are not combined with BatchNorm, which makes a score depend on the whole batch.

    Raises:
        UserError: they are.
    """
    for name in ("r1", "r2", "gradient_penalty"):
        if getattr(config, name) and discriminator.mixes_images():
            raise UserError(
                f"{flag(name)} needs a discriminator whose scores depend on one image each, and BatchNorm mixes the "
                f"images of a batch: add --discriminator-norm none, or choose a --backbone without BatchNorm."
            )


def draw_latents(config: Config, shape: tuple[int, int], random: torch.Generator, device: torch.device) -> Tensor:
    """Draw latent vectors of this shape, from N(0, 1) or uniformly from -1 to 1."""
    if config.latent_distribution == "uniform":
        return torch.rand(shape, generator=random, device=device) * 2 - 1
    return torch.randn(shape, generator=random, device=device)


def recalibration_latents(
    config: Config, classes: int, compute: Compute, batches: int = 16, batch: int = 128
) -> list[Tensor]:
    """Return fixed latent vectors, with one-hot labels, on which a generator's BatchNorm statistics are measured."""
    random = torch.Generator().manual_seed(20_151_119)  # a fixed seed: the date of the paper
    batches_BZ = []
    for _ in range(batches):
        z_BZ = draw_latents(config, (batch, config.latent_dim), random, torch.device("cpu"))
        if classes:
            label_B = torch.randint(classes, (batch,), generator=random)
            z_BZ = torch.cat([z_BZ, nn.functional.one_hot(label_B, classes).float()], 1)
        batches_BZ.append(z_BZ.to(compute.torch_device))
    return batches_BZ
