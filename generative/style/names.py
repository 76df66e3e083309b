"""Names around the options of style transfer: names in other libraries, groups of --help, conditions.

The configs of generative.style_transfer and generative.fast_style refer to these tables; core/command_line.py and
core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement
from zerokara.core.zoo.registry import is_classifier

# ---- names in neural-style, in PyTorch's style transfer tutorial and in its fast_neural_style example

_TWO_IMAGES = "is not an option here: both images come first on the command line, as in content.jpg style.jpg."
_LOSS_NETWORK = "is --backbone with --weights here, or --loss-network for a network of the zoo."
_APPLY = "is not an option here: generative.stylise applies a trained network to images."

_FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    "model": _LOSS_NETWORK,
    "arch": _LOSS_NETWORK,
    "vgg": _LOSS_NETWORK,
    "model_file": "weights",
    "vgg_weights": "weights",
    "tv_weight": "variation_weight",
    "total_variation_weight": "variation_weight",
    "tv": "variation_weight",
    "pool": "pooling",
}

FOREIGN_NAMES_TRANSFER: Mapping[str, str] = {
    **_FOREIGN_NAMES,
    **names.ONE_PROCESS_NAMES,
    "content": _TWO_IMAGES,
    "content_image": _TWO_IMAGES,
    "content_img": _TWO_IMAGES,
    "style": _TWO_IMAGES,
    "style_image": _TWO_IMAGES,
    "style_img": _TWO_IMAGES,
    "output": "out",
    "output_image": "out",
    "output_path": "out",
    "imagesize": "size",
    "image_size": "size",
    "img_size": "size",
    "imsize": "size",
    "max_size": "size",
    "niter": "iterations",
    "num_iterations": "iterations",
    "num_steps": "iterations",
    "steps": "iterations",
    "max_iter": "iterations",
    "updates": "iterations",
    "epochs": "iterations",
    "init": "start",
    "init_image": "start",
    "init_method": "start",
    "original_colors": "keep_color",
    "preserve_color": "keep_color",
    "preserve_colors": "keep_color",
    "lr": "is not an option here: L-BFGS chooses the length of its steps.",
    "learning_rate": "is not an option here: L-BFGS chooses the length of its steps.",
    "optimizer": "is not an option here: the pixels are optimized by L-BFGS.",
    "lbfgs_num_correction": "history",
    "print_iter": "log_every_iterations",
    "log_interval": "log_every_iterations",
    "print_freq": "log_every_iterations",
    "save_iter": "image_every_iterations",
    "save_freq": "image_every_iterations",
}

FOREIGN_NAMES_FAST: Mapping[str, str] = {
    **_FOREIGN_NAMES,
    "style_image": "style",
    "style_img": "style",
    "dataset": "data",
    "dataroot": "data",
    "data_path": "data",
    "train_data": "data",
    "imagesize": "image_size",
    "img_size": "image_size",
    "crop_size": "image_size",
    "style_scale": "style_size",
    "content": _APPLY,
    "content_image": _APPLY,
    "content_scale": _APPLY,
    "output_image": _APPLY,
    "niter": "is --updates here, in updates and not in epochs.",
    "epochs": "is --updates here, in updates and not in epochs.",
    "num_epochs": "is --updates here, in updates and not in epochs.",
    "steps": "updates",
    "iterations": "updates",
    "num_iterations": "updates",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "b": "batch_size",
    "lr": "learning_rate",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "save_model_dir": names.FOLDER,
    "checkpoint_model_dir": names.FOLDER,
    "log_interval": "log_every_updates",
    "print_freq": "log_every_updates",
    "checkpoint_interval": "checkpoint_every_updates",
    "save_freq": "checkpoint_every_updates",
    "eval_freq": "image_every_updates",
}

# ---- groups of the help text

_LOSS_NETWORK_FIELDS = (
    "loss_network",
    "backbone",
    "weights",
    "pretrained_backbone",
    "published_normalization",
    "published_mean",
    "published_std",
    "width_multiplier",
    "pooling",
    "content_layers",
    "style_layers",
)
_HARDWARE = ("device", "precision", "threads")

COMMON_TRANSFER = (
    "pictures",
    "preset",
    "name",
    "out",
    "size",
    "iterations",
    "style_weight",
    "keep_color",
    "start",
    "resume",
)
COMMON_FAST = (
    "style",
    "data",
    "preset",
    "name",
    "seed",
    "updates",
    "image_size",
    "batch_size",
    "style_weight",
    "resume",
)

GROUPS_TRANSFER: Mapping[str, tuple[str, ...]] = {
    "images": ("pictures", "out", "size", "style_scale", "start", "keep_color"),
    "loss": ("content_weight", "style_weight", "variation_weight"),
    "loss network": _LOSS_NETWORK_FIELDS,
    "optimization": ("iterations", "scales", "history"),
    "logging": (
        "log_every_iterations",
        "image_every_iterations",
        "video_every_iterations",
        "checkpoint_every_iterations",
        "quiet",
        "track",
    ),
    "run": ("preset", "name", "seed", "resume"),
    "hardware": _HARDWARE,
}

GROUPS_FAST: Mapping[str, tuple[str, ...]] = {
    "data": ("style", "style_size", "data", "data_dir", "image_size", "held_out_images"),
    "network": ("style_network_width",),
    "loss": ("content_weight", "style_weight", "variation_weight"),
    "loss network": _LOSS_NETWORK_FIELDS,
    "optimization": ("updates", "batch_size", "learning_rate", "schedule"),
    "logging": ("log_every_updates", "image_every_updates", "checkpoint_every_updates", "quiet", "track"),
    "run": ("preset", "name", "seed", "resume"),
    "hardware": (*_HARDWARE, "gradient_compression"),
}

PRESET_SUMMARIES_TRANSFER: Mapping[str, str] = {
    "fast": "starts from the content image, two sizes; tuned here, see docs/style.md",
    "paper": "starts from noise, with VGG-19 if its --weights are given (Gatys et al. 2016)",
}
PRESET_SUMMARIES_FAST: Mapping[str, str] = {
    "fast": "2,000 updates; tuned here, see docs/style.md",
    "paper": "layers and weights of the paper, 40,000 updates (Johnson et al. 2016)",
}

# ---- settings that have no effect without another one


def uses_backbone(config: Any) -> bool:
    """Return True if the loss network is built from --backbone and --width-multiplier.

    Other weights are stored together with a description of their network.
    """
    if config.weights or config.loss_network == "random":
        return True
    return bool(config.pretrained_backbone) and not is_classifier(config.pretrained_backbone)


def _can_pool(config: Any) -> bool:
    """Return True if the loss network is a VGG, or if only its weights tell."""
    from zerokara.core.backbones.registry import find_backbone  # imports PyTorch
    from zerokara.core.backbones.vgg import VGG

    return not uses_backbone(config) or issubclass(find_backbone(config.backbone), VGG)


_BACKBONE: Requirement = (
    uses_backbone,
    "--weights, --loss-network random, or a --pretrained-backbone without a model.safetensors",
)
_CONTENT: Requirement = (lambda config: config.content_weight > 0, "--content-weight above 0")
_STYLE: Requirement = (lambda config: config.style_weight > 0, "--style-weight above 0")

REQUIRES: Mapping[str, Requirement] = {
    "backbone": _BACKBONE,
    "width_multiplier": _BACKBONE,
    "pooling": (
        _can_pool,
        "a VGG as --backbone",
    ),
    "content_layers": _CONTENT,
    "style_layers": _STYLE,
}
REQUIRES_TRANSFER: Mapping[str, Requirement] = {**REQUIRES, "style_scale": _STYLE}
REQUIRES_FAST: Mapping[str, Requirement] = {**REQUIRES, "style_size": _STYLE}
