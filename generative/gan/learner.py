"""Generator and discriminator with their optimizers: creation, compilation, inputs, optimizer steps, state.

The losses and the two steps are in generative/dcgan.py, which gives the learner its forward passes.

Shapes: B batch, b part of a batch, Z latent dimension, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zerokara.core import checkpoint, optim, schedules
from zerokara.core.backbones.registry import option_names
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag
from zerokara.core.data_parallel import DataParallel, synchronize_batch_norm
from zerokara.core.distributed import World
from zerokara.core.divergence import has_finite_weights, pop_means
from zerokara.core.eager_optim import Adam
from zerokara.core.ema import Ema
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.zoo.registry import find_weights
from zerokara.generative.gan.ada import AdaptiveAugmentation
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.diffaugment import augment
from zerokara.generative.gan.networks import Discriminator, Generator, LatentGenerator, R3Generator

NORM_EVERY_UPDATES = 10  # updates between measurements of the gradient norms, which read every weight
DISCRIMINATOR_METRICS = ("d_accuracy_real", "d_accuracy_fake", "d_score_real", "d_score_fake", "penalty")
SUMS = ("d_loss", "g_loss", *DISCRIMINATOR_METRICS)  # in the order of checkpoints


class Learner:
    """Generator, discriminator, their optimizers and the averaged generator."""

    def __init__(
        self,
        config: Config,
        shape: tuple[int, int, int],
        classes: int,
        compute: Compute,
        world: World,
        discriminator_forward: Callable[..., tuple[Tensor, Tensor]],
        generator_forward: Callable[..., Tensor],
    ) -> None:
        """Create networks with random weights for images (C, H, W).

        Args:
            config: options of networks and training.
            shape: shape of an image.
            classes: number of classes of the data; unused by an unconditional GAN.
            compute: device, precision, and compilation of the two forward passes.
            world: processes that train together.
            discriminator_forward: returns the loss of the discriminator's step and its metrics.
            generator_forward: returns the loss of the generator's step.

        Raises:
            UserError: unknown backbone, gradient penalties together with BatchNorm, or label smoothing with a loss
                other than bce.
        """
        self.config, self.compute, self.world, self.shape = config, compute, world, shape
        self.classes = classes if config.conditional else 0
        torch.manual_seed(config.seed)
        generator = make_generator(config, shape, self.classes)
        discriminator = make_discriminator(config, shape, self.classes)
        check_penalties(config, discriminator)
        if config.sync_batch_norm:
            generator = synchronize_batch_norm(generator, world)
            discriminator = synchronize_batch_norm(discriminator, world)
        self.generator, self.discriminator = compute.module(generator), compute.module(discriminator)
        if config.label_smoothing and config.loss != "bce":
            raise UserError(
                f"--label-smoothing changes the target of --loss bce, and --loss {config.loss} has no such target: "
                f"remove one of the two options."
            )
        world.broadcast(self.generator)
        world.broadcast(self.discriminator)
        betas = (config.beta1, config.beta2)
        fused = compute.torch_device.type != "mps"
        self.generator_optimizer = Adam(
            self.generator.parameters(), lr=config.generator_learning_rate, betas=betas, fused=fused
        )
        self.discriminator_optimizer = Adam(
            self.discriminator.parameters(), lr=config.discriminator_learning_rate, betas=betas, fused=fused
        )
        half_life = config.ema_half_life_updates
        self.ema = Ema(self.generator, half_life) if half_life else None
        self.random = torch.Generator(compute.torch_device).manual_seed(world.process_seed(config.seed))
        self.ada = AdaptiveAugmentation(config, world, compute.torch_device) if config.ada else None
        self.compiled_discriminator_forward = compute.function(discriminator_forward)
        self.compiled_generator_forward = compute.function(generator_forward)
        # Their gradients are averaged over the processes.
        compression = config.gradient_compression
        self.parallel_generator = DataParallel(world, self.generator, compression, config.updates)
        self.parallel_discriminator = DataParallel(world, self.discriminator, compression, config.updates)
        self.updates = 0
        # Standard deviation of the instance noise: a tensor, so that a change does not cause recompilation.
        self._noise = torch.zeros((), device=compute.torch_device)
        # Sums since the last `read_metrics`. They stay on the device.
        self._sums = torch.zeros(len(SUMS) + 1, device=compute.torch_device)
        self._norms = torch.zeros(3, device=compute.torch_device)

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
        if self.ada is not None:
            x_BCHW = self.ada.augment(x_BCHW, self.random)
        x_BCHW = augment(x_BCHW, self.config.diffaugment, self.random, self.config.diffaugment_version)
        if not (self.config.instance_noise or self.config.final_instance_noise):
            return x_BCHW
        noise = torch.randn(x_BCHW.shape, generator=self.random, device=x_BCHW.device)
        return x_BCHW + (self._noise * noise).to(x_BCHW.dtype)

    def record(self, values: Tensor, *names: str) -> None:
        """Add values (a scalar, or one for each name) to metrics of this update, which are consecutive in `SUMS`."""
        first = SUMS.index(names[0])
        assert SUMS[first : first + len(names)] == names
        self._sums[first : first + len(names)] += values.detach()

    def step_discriminator(self) -> None:
        """Do the optimizer step of the discriminator with the gradients of all processes."""
        self._step(self.discriminator, self.discriminator_optimizer, 1)

    def step_generator(self) -> None:
        """Do the optimizer step of the generator with the gradients of all processes, and average its weights."""
        self._step(self.generator, self.generator_optimizer, 0)
        if self.ema is not None:
            self.ema.update(self.generator)

    def count_update(self) -> None:
        """Count an update of both networks."""
        self._sums[-1] += 1
        self.updates += 1

    def _step(self, module: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Measure the norm of the gradients every few updates, and do the optimizer's step."""
        if self.updates % NORM_EVERY_UPDATES == 0:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self._norms[index] += nn.utils.get_total_norm(gradients)
            self._norms[2] += 0.5  # half for each network: a count of the measurements
        optimizer.step()

    def apply_schedules(self) -> None:
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
        """Return the means of the metrics since the last call over updates and processes, as tensors on the device."""
        sums = self.world.mean(self._sums)
        self._sums.zero_()
        return {
            **pop_means(sums, [f"train/{name}" for name in SUMS]),
            **pop_means(self._norms, ("train/g_grad_norm", "train/d_grad_norm")),
            **({} if self.ada is None else self.ada.metrics()),
        }

    def has_finite_weights(self) -> bool:
        """Return True if all weights, the averaged ones included, are finite. Synchronizes with the device."""
        averaged = [] if self.ema is None else [self.ema.module]
        return has_finite_weights(self.generator, self.discriminator, *averaged)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, as tensors and plain values."""
        state = {
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
        if self.ada is not None:
            state["ada"] = self.ada.state_dict()
        for name, parallel in self._parallel().items():
            if communication := parallel.state_dict():
                state[name] = communication
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        optim.load_optimizer_state(self.generator_optimizer, state["generator_optimizer"])
        optim.load_optimizer_state(self.discriminator_optimizer, state["discriminator_optimizer"])
        checkpoint.restore_generator(self.random, state["random"])
        self._sums.copy_(state["sums"])
        self._norms.copy_(state["norms"])
        self.updates = state["updates"]
        if self.ada is not None:
            self.ada.load_state_dict(state["ada"])
        for name, parallel in self._parallel().items():
            parallel.load_state_dict(state.get(name, {}))

    def _parallel(self) -> dict[str, DataParallel]:
        """Return the passes of both networks by their names in checkpoints."""
        return {"parallel_generator": self.parallel_generator, "parallel_discriminator": self.parallel_discriminator}


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
        config.backbone,
        shape[0],
        shape[1:],
        classes=classes,
        input_range=config.discriminator_input,
        spectral_norm=config.spectral_norm,
        **options,
    )


def check_discriminator(config: Config, shape: tuple[int, int, int], classes: int) -> None:
    """Create the discriminator of a config and drop it, so that a mistake is reported before a run folder is created.

    Raises:
        UserError: it cannot be created, or not with the gradient penalties of the config; or the pretrained backbone of
            a new run is missing or damaged, has NaN or Inf, or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        discriminator = make_discriminator(config, shape, classes if config.conditional else 0)
    check_penalties(config, discriminator)
    if config.pretrained_backbone and not config.resume:
        load_pretrained_backbone(discriminator.backbone, find_weights(config.pretrained_backbone))


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
