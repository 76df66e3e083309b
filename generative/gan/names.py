"""Names around the options of generative.dcgan: names in other libraries, groups of --help, conditions.

The config refers to these tables; core/command_line.py and core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement
from zerokara.core.run_options import DATA_DIR

# ---- names in the DCGAN tutorial and example of PyTorch, StudioGAN, StyleGAN and PyTorch-GAN

_DATA = "is --data here: the name of a data set, or the path of a folder, a zip file or an LSUN database."
_EPOCHS = "is --updates here, in updates and not in epochs."
_BOTH_RATES = "is --generator-learning-rate and --discriminator-learning-rate here."
_G_WIDTH = "is --generator-width here, a multiplier: 1 is 64 channels in the finest feature map."
_D_WIDTH = "is --discriminator-width here, a multiplier on the channels of the backbone."
_EMA = "is --ema-half-life-updates here, a half-life in updates: a decay of 0.999 per update is 693."
_RATIO = "is not an option here: every update is one step of each network; change the learning rates instead."

FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    "cfg": "is not an option here: choose a named set of options with --preset.",
    "config": "is not an option here: choose a named set of options with --preset.",
    "dataset": _DATA,
    "dataset_name": _DATA,
    "data_name": _DATA,
    "data_path": _DATA,
    "dataroot": "is --data here for a folder of images, and --data-dir for the folder of named data sets.",
    "data_root": "is --data here for a folder of images, and --data-dir for the folder of named data sets.",
    "imagesize": "image_size",
    "img_size": "image_size",
    "resize": "image_size",
    "resolution": "image_size",
    "size": "image_size",
    "nc": "is not an option here: the number of channels is that of the data; see --grayscale.",
    "channels": "is not an option here: the number of channels is that of the data; see --grayscale.",
    "num_classes": "is not an option here: the classes are those of the data; add --conditional to use them.",
    "n_classes": "is not an option here: the classes are those of the data; add --conditional to use them.",
    "cond": "conditional",
    "class_cond": "conditional",
    "nz": "latent_dim",
    "z_dim": "latent_dim",
    "zdim": "latent_dim",
    "noise_dim": "latent_dim",
    "latent_size": "latent_dim",
    "ngf": _G_WIDTH,
    "g_conv_dim": _G_WIDTH,
    "g_ch": _G_WIDTH,
    "ndf": _D_WIDTH,
    "d_conv_dim": _D_WIDTH,
    "d_ch": _D_WIDTH,
    "model": "is --generator and, for the discriminator, --backbone here.",
    "arch": "is --generator and, for the discriminator, --backbone here.",
    "netg": names.RESUME,
    "netd": names.RESUME,
    "niter": _EPOCHS,
    "epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "n_epochs": _EPOCHS,
    "steps": "updates",
    "total_steps": "updates",
    "iterations": "updates",
    "num_iterations": "updates",
    "dry_run": "is not an option here: --updates 1 makes the shortest run.",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "b": "batch_size",
    "lr": _BOTH_RATES,
    "learning_rate": _BOTH_RATES,
    "lr_g": "generator_learning_rate",
    "g_lr": "generator_learning_rate",
    "glr": "generator_learning_rate",
    "lr_d": "discriminator_learning_rate",
    "d_lr": "discriminator_learning_rate",
    "dlr": "discriminator_learning_rate",
    "b1": "beta1",
    "b2": "beta2",
    "betas": "is --beta1 and --beta2 here.",
    "wd": "is not an option here: the weights have no decay.",
    "weight_decay": "is not an option here: the weights have no decay.",
    "adv_loss": "loss",
    "gan_mode": "loss",
    "lambda_gp": "gradient_penalty",
    "gp_weight": "gradient_penalty",
    "gp_lambda": "gradient_penalty",
    "gamma": "r1",
    "r1_gamma": "r1",
    "r1_lambda": "r1",
    "d_reg_every": "penalty_every_updates",
    "n_critic": _RATIO,
    "diters": _RATIO,
    "d_updates_per_step": _RATIO,
    "clip_value": "is not an option here: use --gradient-penalty with --loss wasserstein instead of weight clipping.",
    "label_smooth": "label_smoothing",
    "ema": _EMA,
    "ema_decay": _EMA,
    "apply_g_ema": _EMA,
    "diffaug": "diffaugment",
    "diff_aug": "diffaugment",
    "apply_diffaug": "diffaugment",
    "augpipe": "is --ada here: blit, geometry and color are StyleGAN's b, g and c.",
    "aug": "is --ada here for adaptive augmentation, with --ada-target 0 for a fixed probability.",
    "target": "ada_target",
    "ada_kimg": "is --ada-images here, in images and not in thousands.",
    "p": "ada_probability",
    "sn": "spectral_norm",
    "random_flip": "flip",
    "xflip": "flip",
    "mirror": "flip",
    "eval_freq": "eval_every_updates",
    "eval_every": "eval_every_updates",
    "num_eval_images": "eval_images",
    "log_interval": "log_every_updates",
    "print_freq": "log_every_updates",
    "print_every": "log_every_updates",
    "save_freq": "checkpoint_every_updates",
    "save_every": "checkpoint_every_updates",
    "checkpoint_interval": "checkpoint_every_updates",
    "sample_interval": "is --eval-every-updates here for logged images, and --video-every-updates for the video.",
    "n_samples": "preview_images",
    "num_samples": "preview_images",
}

# ---- groups of the help text

COMMON = (
    "data",
    "image_size",
    "conditional",
    "preset",
    "name",
    "seed",
    "updates",
    "batch_size",
    "loss",
    "resume",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "data",
        "data_dir",
        "image_size",
        "grayscale",
        "background",
        "conditional",
        "held_out_images",
        "frames",
        "frame_stack",
    ),
    "generator": (
        "latent_dim",
        "latent_distribution",
        "generator",
        "generator_width",
        "generator_norm",
        "upsample",
    ),
    "discriminator": (
        "backbone",
        "discriminator_width",
        "discriminator_norm",
        "discriminator_input",
        "spectral_norm",
        "pretrained_backbone",
    ),
    "loss": (
        "loss",
        "label_smoothing",
        "r1",
        "r2",
        "gradient_penalty",
        "penalty_every_updates",
    ),
    "optimization": (
        "updates",
        "minutes",
        "batch_size",
        "accumulation_steps",
        "generator_learning_rate",
        "discriminator_learning_rate",
        "schedule",
        "beta1",
        "beta2",
        "ema_half_life_updates",
    ),
    "augmentation": (
        "flip",
        "augment_few_images",
        "diffaugment",
        "diffaugment_version",
        "ada",
        "ada_target",
        "ada_probability",
        "ada_images",
        "instance_noise",
        "final_instance_noise",
    ),
    "evaluation": ("eval_every_updates", "eval_images", "classifier"),
    "logging": (
        "log_every_updates",
        "checkpoint_every_updates",
        "video_every_updates",
        "preview_images",
        "quiet",
        "track",
    ),
    "run": ("preset", "name", "seed", "resume", "rollback"),
    "hardware": ("device", "precision", "compile", "threads", "gradient_compression", "sync_batch_norm"),
}

PRESET_SUMMARIES: Mapping[str, str] = {
    "fast": "narrow networks and instance noise, for minutes on a CPU; tuned here, see docs/dcgan.md",
    "paper": "DCGAN at 64x64 (Radford et al. 2016)",
    "r3": "smaller R3GAN: relativistic loss, R1 and R2, no normalization (Huang et al. 2024)",
}

# ---- settings that have no effect without another one


def _has_norm(config: Any) -> bool:
    """Return True if the backbone has the option norm."""
    from zerokara.core.backbones.registry import option_names  # imports PyTorch

    return "norm" in option_names(config.backbone)


_FRAMES: Requirement = (lambda config: config.data.startswith("frames:"), "--data frames:<environment id>")
_ADA: Requirement = (lambda config: bool(config.ada), "--ada")
_DCGAN: Requirement = (lambda config: config.generator == "dcgan", "--generator dcgan")

REQUIRES: Mapping[str, Requirement] = {
    "data_dir": DATA_DIR,
    "frames": _FRAMES,
    "frame_stack": _FRAMES,
    "upsample": _DCGAN,
    "generator_norm": _DCGAN,
    "discriminator_norm": (
        _has_norm,
        "a --backbone with the option norm, such as dcgan",
    ),
    "diffaugment_version": (lambda config: bool(config.diffaugment), "--diffaugment"),
    "ada_target": _ADA,
    "ada_probability": _ADA,
    "ada_images": _ADA,
    "label_smoothing": (lambda config: config.loss == "bce", "--loss bce"),
    "penalty_every_updates": (
        lambda config: config.r1 > 0 or config.r2 > 0 or config.gradient_penalty > 0,
        "--r1, --r2 or --gradient-penalty above 0",
    ),
}
