"""Configuration of a GAN run, and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. One update is one optimizer step of
the discriminator and one of the generator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.choices import Background, Switch
from zerokara.core.command_line import given_fields
from zerokara.core.config import NamesOrPath, Range, UserError, is_import_path
from zerokara.core.run_config import configure, refuse_two_lengths, refuse_whitening
from zerokara.core.run_options import BatchNormOptions
from zerokara.generative.gan import names

KIND = "dcgan"  # kind of the runs of generative/dcgan.py
FRAMES = "frames:"  # start of --data for frames of an environment
MIN_EVAL_IMAGES = 100

Upsample = Literal["deconvolution", "resize"]
Norm = Literal["batch", "none"]
InputRange = Literal["unit", "signed"]
Version = Literal["published", "0.1"]
"""Of DiffAugment. published: as in the code of Zhao et al.; 0.1: as in zerokara 0.1, for the runs that it started."""

Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
Width = Annotated[float, Range(0.05, 16)]


@dataclass(frozen=True, kw_only=True)
class Config(BatchNormOptions):
    """Configuration of a generator and a discriminator that are trained together."""

    # Names of older releases, accepted on the command line and in saved configs.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "grey": "grayscale",
        "stack": "frame_stack",
        "show": "preview_images",
        "latent": "latent_dim",
        "spectral": "spectral_norm",
        "init_backbone": "pretrained_backbone",
        "accumulate": "accumulation_steps",
        "smoothing": "label_smoothing",
        "film_every_updates": "video_every_updates",
    }
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {"diffaugment": {"colour": "color"}}
    VALUES_BEFORE: ClassVar[Mapping[str, Any]] = {
        "background": "white",
        "discriminator_input": "unit",
        "diffaugment_version": "0.1",
        "augment_few_images": False,
    }
    CHOSEN_AT_START: ClassVar[Mapping[str, Any]] = {
        "image_size": (),
        "grayscale": None,
        "background": "auto",
        "held_out_images": 0,
    }
    CHANGEABLE: ClassVar = frozenset({"rollback", "updates", "video_every_updates"})
    ONCE: ClassVar = frozenset({"rollback"})
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    GROUPS: ClassVar = names.GROUPS
    COMMON: ClassVar = names.COMMON
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES

    preset: str = "fast"
    """Named set of defaults for all other options."""
    data: str = "glyphs"
    """glyphs, mnist, fashion-mnist, cifar10, cifar100, frames:<id>, a path. Training images: digits drawn by zerokara
    (glyphs), a data set, frames of an environment, or the path of a folder, a zip file or an LSUN database."""
    data_dir: str = ""
    """Folder of named data sets (none: $ZEROKARA_DATA or ~/.cache/zerokara). They are downloaded to it."""
    image_size: Annotated[tuple[int, ...], Range(28, 256)] = ()
    """Side of the images, or height and width, in pixels (none: no resizing). Pictures of your own are resized to 64
    pixels by default, or to 32 if most are smaller, unless all have one size of 28 to 64 pixels."""
    grayscale: bool | None = None
    """Convert images to grayscale (None: keep the data's channels). Frames of an environment are grayscale. Pictures of
    your own are if red, green and blue are equal in all of them."""
    background: Background = "auto"
    """Color behind transparent pixels (auto: contrasting). It is one for all pictures of a run: black if more of them
    are nearly white than nearly black, else white."""
    frames: Count = 20_000
    """With --data frames:<environment id>: number of frames to record."""
    frame_stack: Annotated[int, Range(1, 16)] = 1
    """With --data frames:<environment id>: frames per image. They are stacked as channels; DQN uses 4."""
    held_out_images: OptionalCount = 0
    """Number of images held out for evaluation (0: one twelfth, at most 5,000). The best checkpoint is selected by
    them. Of few pictures of your own at least 50 are held out, or a fifth."""
    conditional: bool = False
    """Class-conditional GAN: generator and discriminator receive the label."""
    updates: Count = 6_000
    """Number of updates to train for."""
    minutes: NotNegative = 0.0
    """Length of the run in minutes, instead of --updates (0: use --updates). A measurement at the start determines how
    many updates fit, with their evaluations. A resumed run keeps that number, unless it is given --updates."""
    rollback: bool = False
    """With --resume: resume from the best checkpoint instead of the last. The random numbers differ from there on."""

    # --- networks --------------------------------------------------------------------------------------------------
    latent_dim: Annotated[int, Range(1, 4096)] = 64
    """Dimension of the latent vector."""
    latent_distribution: Literal["normal", "uniform"] = "normal"
    """Distribution of each latent number: N(0, 1), or from -1 to 1."""
    generator: Literal["dcgan", "r3"] = "dcgan"
    """Architecture of the generator: DCGAN or R3GAN. r3 has residual blocks; use it with --backbone r3."""
    generator_width: Width = 1.0
    """Multiplier on the generator's channels. At 1 the finest feature map has 64 channels (dcgan) or 32 (r3)."""
    upsample: Upsample = "deconvolution"
    """Upsampling of the dcgan generator. deconvolution: transposed convolutions; resize: nearest-neighbor resizing and
    a convolution, which avoids checkerboard artifacts."""
    generator_norm: Norm = "batch"
    """Normalization in the dcgan generator. The r3 generator has none."""
    backbone: str = "dcgan"
    """Backbone of the discriminator (python -m core.backbones lists them)."""
    discriminator_width: Width = 1.0
    """Multiplier on the backbone's channels, if it has this option."""
    discriminator_norm: Norm = "batch"
    """Normalization in the dcgan backbone. Must be none with gradient penalties."""
    discriminator_input: InputRange = "unit"
    """Range of the discriminator's input: 0 to 1 (unit), or -1 to 1 (signed). Zero padding is black or gray."""
    spectral_norm: bool = False
    """Apply spectral normalization to the discriminator. All its layers are normalized (Miyato et al. 2018)."""
    pretrained_backbone: str = ""
    """Run, weights file or zoo network that initializes the backbone. The rest of the discriminator is initialized at
    random."""

    # --- training --------------------------------------------------------------------------------------------------
    batch_size: Count = 64
    """Number of real images, and of generated images, per update."""
    accumulation_steps: Count = 1
    """Number of parts of a batch whose gradients are accumulated. More parts need less memory."""
    loss: Annotated[str, NamesOrPath(("bce", "least-squares", "hinge", "wasserstein", "relativistic"))] = "bce"
    """Loss function of discriminator and generator. One of your own: file.py:Class (docs/backbones.md)."""
    r1: NotNegative = 0.0
    """Gamma of the R1 penalty, on gradients at real images (0: none). It is the squared norm of the discriminator's
    gradient."""
    r2: NotNegative = 0.0
    """Gamma of the R2 penalty, on gradients at generated images (0: none). It is the squared norm of the
    discriminator's gradient."""
    gradient_penalty: NotNegative = 0.0
    """Weight of the WGAN-GP penalty (0: none). It is (gradient norm - 1)^2 between real and generated images."""
    penalty_every_updates: Count = 1
    """Updates between penalties (lazy regularization). Their weight is multiplied by this number."""
    label_smoothing: Annotated[float, Range(0, 0.5)] = 0.0
    """One-sided label smoothing with --loss bce (0: none). The discriminator's target for real images is 1 minus this
    value."""
    instance_noise: NotNegative = 0.0
    """Standard deviation of the discriminator's input noise at the start. Pixels range from -1 to 1."""
    final_instance_noise: NotNegative = 0.0
    """Standard deviation of that noise at the end. It changes linearly during training. No noise if both are 0."""
    generator_learning_rate: Positive = 2e-4
    """Initial learning rate of the generator's Adam."""
    discriminator_learning_rate: Positive = 2e-4
    """Initial learning rate of the discriminator's Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate schedule of both optimizers. cosine: cosine decay to a hundredth."""
    beta1: Annotated[float, Range(0, 0.999)] = 0.5
    """Adam's decay rate of the first moment."""
    beta2: Annotated[float, Range(0, 0.99999)] = 0.99
    """Adam's decay rate of the second moment."""
    ema_half_life_updates: NotNegative = 200.0
    """Half-life of the averaged generator, in updates (0: no averaging). The averaged weights are used for sampling."""
    diffaugment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentation of the discriminator's input. As in Zhao et al. 2020."""
    diffaugment_version: Version = "published"
    """Version of --diffaugment: as published, or as in zerokara 0.1. In 0.1 the hole of cutout has one position too few
    on each axis if its side is even, halves are rounded to even numbers, and R1 and R2 are those of augmented
    images."""
    ada: tuple[Literal["blit", "geometry", "color"], ...] = ()
    """Adaptive augmentation of the discriminator's input. Each transformation has a probability that rises while the
    discriminator overfits, as in Karras et al. 2020. blit: flips, quarter turns and shifts."""
    ada_target: Fraction = 0.6
    """Target of ADA's heuristic E[sign(D(x))] (0: constant probability)."""
    ada_probability: Fraction = 0.0
    """Probability of ADA's transformations at the start."""
    ada_images: Count = 500_000
    """Real images in which ADA's probability can rise from 0 to 1."""
    flip: bool = False
    """Flip real images horizontally with probability 0.5."""
    augment_few_images: bool = True
    """Augment a small training set of your own. With fewer than 2,000 training images, and unless --diffaugment or
    --ada is given, --diffaugment color translation cutout is set. The presets paper and r3 turn it off."""

    # --- evaluation and logging ------------------------------------------------------------------------------------
    classifier: str = ""
    """Classifier that computes the features of the metrics (none: the zoo's). A run's folder, its model.safetensors or
    a network of the zoo. If the zoo has none for these data: a network with random weights."""
    eval_every_updates: OptionalCount = 500
    """Updates between evaluations (0: evaluate only at the end)."""
    eval_images: Annotated[int, Range(0, 100_000)] = 0
    """Number of generated images per evaluation (0: 1,000 to 5,000). The default is 20 for each held-out image, but at
    least 1,000 and at most 5,000."""
    log_every_updates: Count = 50
    """Updates between logged metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints."""
    video_every_updates: OptionalCount = 100
    """Updates between frames of the training video (0: no video). It shows the preview images."""
    preview_images: Annotated[int, Range(1, 400)] = 64
    """Number of preview images, generated from fixed latent vectors. They are logged at every evaluation and shown in
    the video."""

    # --- hardware --------------------------------------------------------------------------------------------------
    compile: Switch = "off"
    """Compile both loss functions with torch.compile. auto: compile if a measurement, which takes a while, finds it
    faster."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Half the paper's channels, larger learning rates (the generator's twice the discriminator's), averaged weights and
    # instance noise: digits are readable within minutes on two CPU cores. docs/LOG.md lists what else was tried.
    "fast": {
        "generator_width": 0.5,
        "discriminator_width": 0.5,
        "instance_noise": 0.3,
        "final_instance_noise": 0.3,
        "generator_learning_rate": 1e-3,
        "discriminator_learning_rate": 5e-4,
    },
    # Radford et al. 2016, section 4: 64x64, uniform latent vectors, images from -1 to 1, Adam 2e-4 with
    # beta1 .5, batches of 128.
    "paper": {
        "image_size": (64,),
        "latent_dim": 100,
        "latent_distribution": "uniform",
        "discriminator_input": "signed",
        "batch_size": 128,
        "beta2": 0.999,
        "ema_half_life_updates": 0.0,
        "augment_few_images": False,
        "updates": 20_000,
        "eval_every_updates": 1_000,
    },
    # Based on R3GAN (Huang et al. 2024): relativistic pairing loss, R1 and R2, residual blocks without normalization,
    # 64-dimensional latent vectors, no momentum. Smaller than the original to fit two CPU cores: narrower, half the
    # number of blocks, and penalties (which cost ten times a forward pass) at every fourth update.
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
        "augment_few_images": False,
    },
}


def read_config(argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read the config from the command line; with --resume, from the run's folder.

    Raises:
        UserError: as in `core.run_config.configure`; an unknown backbone or a loss of one's own that cannot be loaded;
            --minutes with --updates; --rollback without --resume; adaptive augmentation whose probability stays 0; too
            few --eval-images.
    """
    config = configure(
        Config,
        PRESETS,
        argv,
        description,
        kind=KIND,
        name_fields=("data", "preset", "seed"),
        adjust=_adjust,
    )
    if config.resume and config.minutes and "updates" in given_fields(Config, argv, config):
        config = replace(config, minutes=0.0)  # this number replaces the one that was measured
    if config.rollback and not config.resume:
        raise UserError("--rollback needs an existing run: add --resume and its --name.")
    if config.ada and not (config.ada_target or config.ada_probability):
        raise UserError(
            "--ada-target 0 keeps the probability of --ada constant, and it is 0: give an --ada-probability above 0."
        )
    if 0 < config.eval_images < MIN_EVAL_IMAGES:
        raise UserError(
            f"--eval-images must be at least {MIN_EVAL_IMAGES}, or 0 for a number that depends on the held-out images, "
            f"got {config.eval_images}."
        )
    # A mistake is reported before the data are read. The checks import PyTorch, so they are left out where possible.
    if config.backbone not in {Config.backbone, *(preset.get("backbone") for preset in PRESETS.values())}:
        from zerokara.core.backbones.registry import find_backbone

        find_backbone(config.backbone)
    if is_import_path(config.loss):
        from zerokara.generative.gan.custom_loss import find_loss

        find_loss(config.loss)
    return config


def _adjust(config: Config, given: Collection[str]) -> Config:
    """Keep an augmentation that the command line gives, also none (--diffaugment without words); else as `configure`.

    With --augment-few-images beside it nothing changes, so that the same command resumes the run.

    Raises:
        UserError: as `refuse_two_lengths` and `refuse_whitening`; no augmentation and --augment-few-images are given.
    """
    refuse_two_lengths(config, given, "updates")
    if "augment_few_images" not in given:
        if {"diffaugment", "ada"} & set(given):
            config = replace(config, augment_few_images=False)
    elif config.augment_few_images and "diffaugment" in given and not (config.diffaugment or config.ada):
        raise UserError(
            "--diffaugment without words asks for no augmentation, and --augment-few-images for one: leave out one of "
            "them."
        )
    return refuse_whitening(config, given)
