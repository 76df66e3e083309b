"""Train a DCGAN: a generator, and a discriminator that classifies images as real or generated.

    python -m generative.dcgan --data mnist

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks".
Later methods are options (generative/gan/config.py): other losses, gradient penalties, spectral normalization,
augmentation, averaged weights, class labels. Without arguments it trains on digits that are drawn by the program.
docs/dcgan.md has results.

Each iteration does one step of the discriminator and one of the generator. The last checkpoint is saved, and also the
best one, by the Fréchet distance to held-out images.

Top to bottom: the loss and the penalties of the discriminator and its step, the loss of the generator and its step, an
update (generate images, step both networks), the training loop. The networks, their inputs, optimizers and schedules
are in generative/gan/learner.py; batches, logging and checkpoints in generative/gan/session.py; the evaluation in
generative/scoring/evaluation.py.

Shapes: B batch, b part of a batch (gradient accumulation), C channels, H, W pixels, Z latent dimension. Scores are
logits, float32; higher means more real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from zerokara.core.command_line import check_command_line
from zerokara.core.config import is_import_path, run_main
from zerokara.generative.gan.config import KIND, Config, read_config

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data_parallel import check_sync_batch_norm
from zerokara.core.distributed import Votes, World
from zerokara.core.progress import loading
from zerokara.core.run import LogCallback, Run
from zerokara.core.run_classes import keep_classes
from zerokara.core.time_limit import SecondsOf, length_in_time_limit
from zerokara.core.training_loop import start_updates
from zerokara.core.training_program import check_divisible, choose_compute, open_run
from zerokara.generative.gan.collapse_monitor import accuracies
from zerokara.generative.gan.custom_loss import find_loss
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import DISCRIMINATOR_METRICS, Learner, check_discriminator
from zerokara.generative.gan.sampler import weights_file
from zerokara.generative.gan.session import Session
from zerokara.generative.gan.time_limit import measure_updates
from zerokara.generative.scoring.evaluation import closing_message, evaluate, print_protocol
from zerokara.generative.scoring.evaluator import Evaluator

# Real images, generated images, labels (None without classes) and latent vectors of a part of a batch.
Part = tuple[Tensor, Tensor, Tensor | None, Tensor]


def discriminator_loss(loss: str, real_B: Tensor, fake_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Loss of the discriminator (scalar).

    Args:
        loss: name of the loss function, or import path of one's own.
        real_B: scores D(x) of real images x.
        fake_B: scores D(G(z)) of generated images.
        label_smoothing: with bce, the target of real images is 1 minus this value.
    """
    if loss == "bce":  # Goodfellow et al. 2014, equation 1: -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z))))
        value = F.softplus(-real_B).mean() + F.softplus(fake_B).mean()
        # Salimans et al. 2016, section 3.4: (1 - a) softplus(-D) + a softplus(D) = softplus(-D) + a D
        if label_smoothing:
            value = value + label_smoothing * real_B.mean()
        return value
    if loss == "least-squares":  # Mao et al. 2017, equation 9: targets 1 and 0
        return 0.5 * ((real_B - 1).square().mean() + fake_B.square().mean())
    if loss == "hinge":  # Lim and Ye 2017; Miyato et al. 2018, equation 16
        return F.relu(1 - real_B).mean() + F.relu(1 + fake_B).mean()
    if loss == "wasserstein":  # Arjovsky et al. 2017, without weight clipping: use it with gradient_penalty
        return fake_B.mean() - real_B.mean()
    if loss == "relativistic":  # Jolicoeur-Martineau 2019; R3GAN, Huang et al. 2024, equation 2
        return F.softplus(fake_B - real_B).mean()
    return find_loss(loss).discriminator(real_B, fake_B)


def squared_gradient_norm(score_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Mean squared norm of the gradient of the scores with respect to the images (scalar, differentiable).

    At real images it is the R1 penalty of Mescheder et al. 2018, equation 9, without the factor gamma / 2; at generated
    images it is R2. The images are those before augmentation and noise, as in R3GAN's code, except in runs that
    zerokara 0.1 started. Every score must depend on its own image alone, so the discriminator must not use BatchNorm.
    """
    (grad_BCHW,) = torch.autograd.grad(score_B.sum(), images_BCHW, create_graph=True)
    return grad_BCHW.float().square().sum((1, 2, 3)).mean()


def gradient_penalty(score_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """WGAN-GP penalty: mean of (|gradient| - 1)^2 (scalar), Gulrajani et al. 2017, equation 3."""
    (grad_BCHW,) = torch.autograd.grad(score_B.sum(), images_BCHW, create_graph=True)
    norm_B: Tensor = grad_BCHW.float().flatten(1).norm(dim=1)
    return (norm_B - 1).square().mean()


def interpolate(real_BCHW: Tensor, fake_BCHW: Tensor, fraction_B: Tensor) -> Tensor:
    """Interpolate between generated (fraction 0) and real (1) images, for `gradient_penalty`."""
    fraction_B111 = fraction_B.view(-1, 1, 1, 1).to(real_BCHW.dtype)
    return torch.lerp(fake_BCHW.detach().to(real_BCHW.dtype), real_BCHW, fraction_B111).requires_grad_()


def discriminator_forward(
    learner: Learner, real_BCHW: Tensor, fake_BCHW: Tensor, label_B: Tensor | None, penalize: bool = False
) -> tuple[Tensor, Tensor]:
    """Forward pass of the discriminator's step: its loss (scalar) and its metrics (5,), the `DISCRIMINATOR_METRICS`.

    Real and generated images pass through the discriminator in separate batches, each with its own BatchNorm
    statistics.
    """
    config, discriminator = learner.config, learner.discriminator
    if penalize:  # R1 and R2 are functions of the gradients at the images
        real_BCHW, fake_BCHW = real_BCHW.detach(), fake_BCHW.detach()
        real_BCHW.requires_grad_(config.r1 > 0)
        fake_BCHW.requires_grad_(config.r2 > 0)
    # Random augmentation and instance noise.
    real_input_BCHW, fake_input_BCHW = learner.discriminator_input(real_BCHW), learner.discriminator_input(fake_BCHW)
    if config.diffaugment_version == "0.1":  # a run that zerokara 0.1 started: penalties at the augmented images
        real_BCHW, fake_BCHW = real_input_BCHW, fake_input_BCHW
    with learner.compute.autocast():
        real_B, fake_B = discriminator(real_input_BCHW, label_B), discriminator(fake_input_BCHW, label_B)
    loss = discriminator_loss(config.loss, real_B, fake_B, config.label_smoothing)
    penalty = torch.zeros_like(loss)
    if penalize:
        if config.r1:
            penalty = penalty + config.r1 / 2 * squared_gradient_norm(real_B, real_BCHW)
        if config.r2:
            penalty = penalty + config.r2 / 2 * squared_gradient_norm(fake_B, fake_BCHW)
        if config.gradient_penalty:
            fraction_B = torch.rand(len(real_B), generator=learner.random, device=real_B.device)
            middle_BCHW = interpolate(real_input_BCHW.detach(), fake_input_BCHW, fraction_B)
            with learner.compute.autocast():
                middle_B = discriminator(middle_BCHW, label_B)
            penalty = penalty + config.gradient_penalty * gradient_penalty(middle_B, middle_BCHW)
        penalty = penalty * config.penalty_every_updates  # makes up for the updates without penalty
        loss = loss + penalty
    fractions = accuracies(config.loss, real_B, fake_B)
    return loss, torch.stack([*fractions, real_B.mean(), fake_B.mean(), penalty]).detach()


def discriminator_step(learner: Learner, parts: Sequence[Part]) -> None:
    """Do one optimizer step of the discriminator, which leaves no gradients on the generator."""
    # Lazy regularization (Karras et al. 2020, appendix B): most updates have no penalty. torch.compile does not support
    # the second derivative that a penalty needs, so with a penalty the forward pass is not compiled.
    penalize = learner.is_penalty_due()
    forward = discriminator_forward if penalize else learner.compiled_discriminator_forward
    learner.discriminator.requires_grad_(True)
    learner.discriminator_optimizer.zero_grad(set_to_none=True)
    # As with DistributedDataParallel, forward and backward pass go through `parallel`, which averages gradients over
    # the processes. With several parts it adds them up inside `no_sync`, and averages the sums with the last part.
    parallel = learner.parallel_discriminator
    for number, (real_bCHW, fake_bCHW, label_b, _) in enumerate(parts, 1):
        with parallel.no_sync(on=number < len(parts)):
            loss, metrics = parallel.forward(forward, learner, real_bCHW, fake_bCHW.detach(), label_b, penalize)
            parallel.backward(loss / len(parts))
        metrics = metrics / len(parts)
        learner.record(loss / len(parts), "d_loss")
        learner.record(metrics, *DISCRIMINATOR_METRICS)
        if learner.ada is not None:  # augments more if the discriminator classifies too many real images as real
            learner.ada.observe(metrics[0])  # d_accuracy_real
    learner.step_discriminator()


def generator_loss(loss: str, fake_B: Tensor, real_B: Tensor | None = None) -> Tensor:
    """Loss of the generator (scalar).

    Args:
        loss: name of the loss function, or import path of one's own.
        fake_B: scores D(G(z)) of generated images.
        real_B: scores D(x) of real images x, which the relativistic loss and one's own need.
    """
    if loss == "bce":  # non-saturating, Goodfellow et al. 2014, section 3: -log sigmoid(D(G(z)))
        return F.softplus(-fake_B).mean()
    if loss == "least-squares":  # Mao et al. 2017, equation 9: target 1
        return 0.5 * (fake_B - 1).square().mean()
    if loss in ("hinge", "wasserstein"):  # Miyato et al. 2018, equation 17; Arjovsky et al. 2017, algorithm 1
        return -fake_B.mean()
    if loss == "relativistic":  # Jolicoeur-Martineau 2019; R3GAN, Huang et al. 2024, equation 2
        assert real_B is not None
        return F.softplus(real_B - fake_B).mean()
    own = find_loss(loss)
    assert real_B is not None
    return own.generator(fake_B, real_B)


def generate(learner: Learner, z_bZ: Tensor, label_b: Tensor | None) -> Tensor:
    """Generate images (b, C, H, W) for an update: the forward pass of the network that the generator's step trains."""
    with learner.compute.autocast():
        images_bCHW: Tensor = learner.parallel_generator.forward(learner.generator, z_bZ, label_b)
    return images_bCHW


def generator_forward(learner: Learner, real_BCHW: Tensor, fake_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
    """Forward pass of the generator's step after `generate`: its loss (scalar), through the discriminator."""
    with learner.compute.autocast():
        fake_B = learner.discriminator(learner.discriminator_input(fake_BCHW), label_B)
        real_B = None
        if learner.config.loss == "relativistic" or is_import_path(learner.config.loss):
            with torch.no_grad():
                real_B = learner.discriminator(learner.discriminator_input(real_BCHW), label_B)
    return generator_loss(learner.config.loss, fake_B, real_B)


def generator_step(learner: Learner, parts: Sequence[Part]) -> None:
    """Do one optimizer step of the generator, which leaves no gradients on the discriminator."""
    learner.discriminator.requires_grad_(False)
    learner.generator_optimizer.zero_grad(set_to_none=True)
    parallel = learner.parallel_generator  # as in the discriminator's step
    for number, (real_bCHW, fake_bCHW, label_b, z_bZ) in enumerate(parts, 1):
        with parallel.no_sync(on=number < len(parts)):
            if len(parts) > 1:  # again, because all graphs would not fit in memory
                fake_bCHW = generate(learner, z_bZ, label_b)  # noqa: PLW2901
            # Without `parallel.forward`: only the generator gets gradients, and `generate` went through it.
            loss = learner.compiled_generator_forward(learner, real_bCHW, fake_bCHW, label_b)
            parallel.backward(loss / len(parts))
        learner.record(loss / len(parts), "g_loss")
    learner.step_generator()  # and update the moving average of its weights


def update(learner: Learner, pixels_BCHW: Tensor, label_B: Tensor) -> None:
    """Do one step of the discriminator and one of the generator, on the same generated images.

    The generated images have the labels of the real ones.

    Args:
        learner: both networks and their optimizers.
        pixels_BCHW: real images, uint8, on the device.
        label_B: their labels; unused by an unconditional GAN.
    """
    learner.apply_schedules()  # learning rates and instance noise
    number = learner.config.accumulation_steps
    reals = [learner.real_images(pixels_bCHW) for pixels_bCHW in pixels_BCHW.chunk(number)]
    labels: list[Tensor | None] = list(label_B.chunk(number)) if learner.classes else [None] * number
    latents = [learner.draw_latents(len(real_bCHW)) for real_bCHW in reals]
    # The generator's step uses these images and their graph again, unless gradients are accumulated over parts.
    with torch.set_grad_enabled(number == 1):
        fakes = [generate(learner, z_bZ, label_b) for z_bZ, label_b in zip(latents, labels, strict=True)]
    parts = list(zip(reals, fakes, labels, latents, strict=True))
    discriminator_step(learner, parts)
    generator_step(learner, parts)
    learner.count_update()
    if learner.ada is not None:
        learner.ada.finish_update(learner.updates)  # adjusts the probability of augmentation, every 4 updates


def make_learner(config: Config, shape: tuple[int, int, int], classes: int, compute: Compute, world: World) -> Learner:
    """Create both networks for images (C, H, W), with their optimizers.

    The learner compiles the forward passes of this file: `learner.compiled_discriminator_forward` is
    `discriminator_forward`, and `learner.compiled_generator_forward` is `generator_forward`.
    """
    return Learner(config, shape, classes, compute, world, discriminator_forward, generator_forward)


def train(
    config: Config, run: Run, data: Data, compute: Compute, world: World, make_evaluator: Callable[[], Evaluator]
) -> str:
    """Train from the current update to the end of the run. Returns the closing message.

    Raises:
        UserError: an unreadable checkpoint, or divergence (NaN or Inf).
    """
    learner = make_learner(config, data.train.shape, len(data.train.classes), compute, world)
    session = Session(run, data, learner)
    evaluator = make_evaluator()
    session.start()
    print_protocol(session, evaluator)
    with run.interruptible(on=False):  # a signal waits for the end of an update; it interrupts an evaluation
        stopping = start_updates(
            learner.updates,
            lambda: session.evaluation_pending,
            lambda: evaluate(session, evaluator),
            session.save,
            world,
            compute.torch_device,
        )
        votes = Votes(world, compute.torch_device)
        while learner.updates < config.updates and not stopping:
            pixels_BCHW, label_B = session.next_batch()
            update(learner, pixels_BCHW, label_B)
            run.record_position(learner.updates, config.updates)
            if session.is_due(config.log_every_updates):
                session.log_metrics()
            if session.is_due(config.video_every_updates) and world.is_main:
                session.save_video_frame()
            evaluates = session.is_due(config.eval_every_updates) or learner.updates == config.updates
            if evaluates:
                evaluate(session, evaluator)
                session.start_interval()
            saves = evaluates or session.is_due(config.checkpoint_every_updates)
            if saves:
                session.save()
            (stopping,) = votes(bool(run.stop_requested), now=saves)
        if stopping:
            run.print_stop()
            session.save()
    if not world.is_main:
        return ""
    session.finish()
    return closing_message(session, evaluator)


def probe_step(config: Config, data: Data, compute: Compute, batch_size: int) -> Callable[[], object]:
    """Return an update on the first images, which is timed to choose precision and memory layout."""
    learner = make_learner(config, data.train.shape, len(data.train.classes), compute, World())
    pixels, labels = (x[:batch_size].to(compute.torch_device) for x in (data.train.images, data.train.labels))
    return lambda: update(learner, pixels, labels)


def measure(
    config: Config, run: Run, data: Data, compute: Compute, world: World, make_evaluator: Callable[[], Evaluator]
) -> SecondsOf:
    """Measure how long updates and evaluations take, to choose the number of updates of a run that is limited in time.

    The state of the global random number generator is not changed.
    """
    with torch.random.fork_rng():
        learner = make_learner(config, data.train.shape, len(data.train.classes), compute, world)
        return measure_updates(learner, update, data, make_evaluator(), run)


def start(config: Config, callback: LogCallback | None = None) -> None:
    """Start or resume the run of a config: read the data, train, print the closing message."""
    began = time.perf_counter()
    world = World.from_env(config.device)
    check_divisible(config, world, "batch_size", parts=config.accumulation_steps)
    check_sync_batch_norm(config, world)
    with loading(config.quiet or not world.is_main) as progress:
        config, data = Data.load_with_defaults(config, progress)
    check_discriminator(config, data.train.shape, len(data.train.classes))
    with open_run(config, KIND, world) as run:
        run.callback = callback
        if config.conditional:
            keep_classes(run, data.train, resume=config.resume, model_file=weights_file("last"), key="class_names")
        timed = TrainStep(partial(probe_step, config, data), config.batch_size // world.size, config.accumulation_steps)
        total = 1 if config.minutes else config.updates
        compute = run.compute(lambda: choose_compute(config, world, timed, config.updates), total)
        make_evaluator = cache(partial(Evaluator, config, data, run))  # one, so that it extracts real features once
        if config.minutes:
            measured = partial(measure, config, run, data, compute, world, make_evaluator)
            config = replace(config, updates=length_in_time_limit(run, "update", config.minutes, began, measured))
        run.close(train(config, run, data, compute, world, make_evaluator))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    start(read_config(argv, __doc__ or ""))


if __name__ == "__main__":
    run_main(main)
