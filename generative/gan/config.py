"""The fields of a painter's run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. An update is one step of the
discriminator and one of the generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zerokara.core.compute import Precision, Switch
from zerokara.core.config import Range
from zerokara.generative.gan.networks import Norm, Upsample

Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
Width = Annotated[float, Range(0.05, 16)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A generator that learns to paint from a discriminator."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    data: str = "glyphs"
    """Images: glyphs (drawn here), mnist, fashion-mnist, cifar10, cifar100, frames:<environment id>, or the path of a
    folder, zip or LSUN database."""
    data_dir: str = ""
    """Where named data lie or are downloaded to; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[tuple[int, ...], Range(28, 256)] = ()
    """Side, or height and width, to which images are brought, in pixels; empty: as they are."""
    grayscale: bool | None = None
    """Grey images; without either flag they stay as they are, but for an environment's frames, which are grey."""
    frames: Count = 20_000
    """Frames to record where the data are an environment's."""
    frame_stack: Annotated[int, Range(1, 16)] = 1
    """Frames that make an image where the data are an environment's; an agent sees 4."""
    held_out_images: OptionalCount = 0
    """Images held out of the training set, on which the best moment is chosen; 0: a twelfth, at most 5,000."""
    conditional: bool = False
    """Paint by class: generator and discriminator are told the label."""
    name: str = ""
    """Folder under runs/; empty: made of data, preset and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    updates: Count = 6_000
    """Length of the run."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    rollback: bool = False
    """With --resume: go on from the best checkpoint, with other random numbers from there."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the networks ----------------------------------------------------------------------------------------------
    latent: Annotated[int, Range(1, 4096)] = 64
    """Numbers from which an image is painted."""
    latent_distribution: Literal["normal", "uniform"] = "normal"
    """Where they are drawn from: N(0, 1), or uniformly from -1 to 1."""
    generator: Literal["dcgan", "r3"] = "dcgan"
    """The paper's generator, or the residual one that goes with the trunk r3."""
    generator_width: Width = 1.0
    """Factor on the generator's channels: at 1 its finest map has 64, that of r3 32."""
    upsample: Upsample = "deconvolution"
    """How the generator dcgan doubles its maps; resize leaves no checkerboards."""
    generator_norm: Norm = "batch"
    """Normalisation in the generator dcgan; r3 has none."""
    backbone: str = "dcgan"
    """The discriminator's trunk, by its name in core.backbones."""
    discriminator_width: Width = 1.0
    """Factor on the trunk's channels, where it has that option."""
    discriminator_norm: Norm = "batch"
    """Normalisation in the trunk dcgan; none where gradients are penalised."""
    spectral: bool = False
    """Spectral normalisation of the discriminator."""
    pretrained_backbone: str = ""
    """Start the discriminator's trunk from a run's folder or a file of weights."""

    # --- learning --------------------------------------------------------------------------------------------------
    batch_size: Count = 64
    """Real images, and painted ones, in an update."""
    accumulate: Count = 1
    """Parts in which a batch goes through the networks, for less memory."""
    loss: Literal["bce", "least-squares", "hinge", "wasserstein", "relativistic"] = "bce"
    """What the two minimise."""
    r1: NotNegative = 0.0
    """Gamma of the penalty on the discriminator's slope at real images."""
    r2: NotNegative = 0.0
    """Gamma of the penalty on the discriminator's slope at painted images."""
    gradient_penalty: NotNegative = 0.0
    """Weight of the penalty on slopes other than 1 between real and painted images."""
    penalty_every_updates: Count = 1
    """Updates between penalties, which then count so many times more."""
    smoothing: Annotated[float, Range(0, 0.5)] = 0.0
    """One-sided label smoothing: with --loss bce the discriminator's aim for real images is 1 less this."""
    instance_noise: NotNegative = 0.0
    """Deviation of the noise on everything that the discriminator sees at the start, in units of half the range of a
    pixel."""
    final_instance_noise: NotNegative = 0.0
    """Its deviation at the end; on the way it changes linearly. There is no noise where both are 0."""
    generator_learning_rate: Positive = 2e-4
    """Step size of the generator's Adam at the start."""
    discriminator_learning_rate: Positive = 2e-4
    """Step size of the discriminator's Adam at the start."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How both step sizes go on: as they are, or down to a hundredth."""
    beta1: Annotated[float, Range(0, 0.999)] = 0.5
    """Adam's decay of the mean gradient."""
    beta2: Annotated[float, Range(0, 0.99999)] = 0.99
    """Adam's decay of the squared gradient."""
    ema_half_life_updates: NotNegative = 200.0
    """Half-life of the averaged generator, which is then the one that paints; 0: none."""
    diffaugment: tuple[Literal["colour", "translation", "cutout"], ...] = ()
    """Differentiable augmentation of everything that the discriminator sees."""
    flip: bool = False
    """Mirror every other real image, left to right."""

    # --- evaluation and keeping ------------------------------------------------------------------------------------
    classifier: str = ""
    """Who scores: the folder of a classifier's run or its model.safetensors; empty: the one that ships for these data,
    else a random network."""
    eval_every_updates: OptionalCount = 500
    """Updates between evaluations; 0: only at the end."""
    eval_images: Annotated[int, Range(100, 100_000)] = 5_000
    """Painted images in an evaluation."""
    log_every_updates: Count = 50
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints."""
    film_every_updates: OptionalCount = 100
    """Updates between frames of the film that the latents below make; 0: no film."""
    show: Annotated[int, Range(1, 400)] = 64
    """Latents that are painted at every evaluation and make the film."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the networks; auto: what a short measurement finds fastest."""
    compile: Switch = "off"
    """Compile both losses; auto: where a short measurement finds that it pays, which takes its time."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Half the paper's channels, larger steps, for the generator twice as large ones, averaged weights, and noise before
    # the discriminator's eye, so that digits can be read within minutes on two CPU cores; docs/LOG.md has what else was
    # tried.
    "fast": {
        "generator_width": 0.5,
        "discriminator_width": 0.5,
        "instance_noise": 0.3,
        "final_instance_noise": 0.3,
        "generator_learning_rate": 1e-3,
        "discriminator_learning_rate": 5e-4,
    },
    # Radford et al. 2016, section 4: 64x64, uniform latents, Adam 2e-4 with beta1 .5, batches of 128.
    "paper": {
        "image_size": (64,),
        "latent": 100,
        "latent_distribution": "uniform",
        "batch_size": 128,
        "beta2": 0.999,
        "ema_half_life_updates": 0.0,
        "updates": 20_000,
        "eval_every_updates": 1_000,
    },
    # After R3GAN (Huang et al. 2024): relativistic pairs, R1 and R2, residual blocks without normalisation, latents of
    # 64, no momentum; narrower, with half as many blocks, and with penalties, which cost ten times a pass, at every
    # fourth update, for this size of machine.
    "r3": {
        "generator": "r3",
        "generator_width": 0.5,
        "backbone": "r3",
        "discriminator_width": 0.5,
        "loss": "relativistic",
        "r1": 1.0,
        "r2": 1.0,
        "penalty_every_updates": 4,
        "beta1": 0.0,
        "schedule": "cosine",
        "ema_half_life_updates": 500.0,
    },
}
