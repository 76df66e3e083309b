"""Names around the settings of vision.segment: old names, names in other libraries, groups of `--help`.

The config class refers to these tables; core/config.py, core/command_line.py and core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement

# ---- names in older versions

RENAMED: Mapping[str, str] = {
    "grey": "grayscale",
    "width": "width_multiplier",
    "init_backbone": "pretrained_backbone",
    "accumulate": "accumulation_steps",
    "colour": "color_jitter",
    "unlabelled": "unlabeled",
}

# ---- names in torchvision's references, timm, segmentation_models_pytorch, MMSegmentation, Ultralytics and Lightning

_ITERATIONS = "is --epochs here, in passes over the training images."
_CLASSES = "is not an option here: the number of classes follows from classes.txt beside the data or from --classes."
_TEST_ONLY = "is not an option here: a run ends with the test set; segment images with vision.segment_predict."

FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    **names.DATA_NAMES,
    "arch": "is --network and --backbone here, as in --network fcn8s --backbone resnet18.",
    "model": "is --network and --backbone here, as in --network fcn8s --backbone resnet18.",
    "encoder": "backbone",
    "encoder_name": "backbone",
    "encoder_weights": "pretrained_backbone",
    "pretrained": "is --pretrained-backbone here (a run folder, a file or a name of the zoo), or --weights (a file of "
    "torchvision).",
    "weights_backbone": "pretrained_backbone",
    "initial_checkpoint": "pretrained_backbone",
    "load_from": "pretrained_backbone",
    "img_dir": "data",
    "ann_dir": "masks",
    "mask_dir": "masks",
    "num_classes": _CLASSES,
    "nc": _CLASSES,
    "class_names": "classes",
    "ignore_index": "unlabeled",
    "ignore_label": "unlabeled",
    "img_size": "image_size",
    "imgsz": "image_size",
    "input_size": "image_size",
    "base_size": "image_size",
    "resize": "image_size",
    "b": "batch_size",
    "batch": "batch_size",
    "train_batch_size": "batch_size",
    "samples_per_gpu": "is --batch-size here, over all processes.",
    "val_batch_size": "eval_batch_size",
    "accumulate_grad_batches": "accumulation_steps",
    "gradient_accumulation_steps": "accumulation_steps",
    "grad_accum_steps": "accumulation_steps",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_iters": _ITERATIONS,
    "iterations": _ITERATIONS,
    "lr": "learning_rate",
    "lr0": "learning_rate",
    "base_lr": "learning_rate",
    "opt": "optimizer",
    "wd": "weight_decay",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "sched": "schedule",
    "cos_lr": "is --schedule cosine here.",
    "lr_warmup_epochs": "warmup_epochs",
    "warmup_iters": "is --warmup-epochs here, in passes over the training images.",
    "nesterov": "is not an option here: SGD always uses Nesterov momentum.",
    "clip_grad": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "model_ema": "is --ema-half-life-updates here; 0 disables it.",
    "model_ema_decay": "is --ema-half-life-updates here: the half-life in updates instead of the decay per update.",
    "ema_decay": "is --ema-half-life-updates here: the half-life in updates instead of the decay per update.",
    "class_weights": "is --balance here: 1 uses median frequency weights, 0 equal weights.",
    "loss_type": "is not an option here: the loss is the cross-entropy over labeled pixels, weighted with --balance.",
    "aux_loss": "is not an option here: the networks have no auxiliary head.",
    "out_stride": "is the number in the name of --network here: fcn8s uses feature maps down to stride 8.",
    "output_stride": "is the number in the name of --network here: fcn8s uses feature maps down to stride 8.",
    "hflip": "flip",
    "fliplr": "flip",
    "degrees": "rotation_degrees",
    "tta": "is --tta-views 2 here.",
    "augment": "is not an option here: every augmentation has an option of its own (--help lists them).",
    "val_interval": "validate_every_epochs",
    "eval_interval": "validate_every_epochs",
    "print_freq": "log_every_updates",
    "log_interval": "log_every_updates",
    "save_freq": "checkpoint_every_updates",
    "checkpoint_interval": "checkpoint_every_updates",
    "val": "is not an option here: validation images select the weights; --validate-every-epochs sets how often.",
    "test_only": _TEST_ONLY,
    "evaluate": _TEST_ONLY,
    "resume_from": names.RESUME,
    "work_dir": names.FOLDER,
    "checkname": "name",
    "amp": "is --precision bfloat16 here.",
    "fp16": "is --precision bfloat16 here.",
    "half": "is --precision bfloat16 here.",
    "gpu_ids": "is --device cuda:<n> here.",
    "accelerator": "device",
    "use_deterministic_algorithms": "is not an option here: the same seed gives the same numbers on a CPU anyway.",
}

# ---- groups of the help text

COMMON = (
    "data",
    "preset",
    "name",
    "network",
    "backbone",
    "pretrained_backbone",
    "image_size",
    "epochs",
    "batch_size",
    "learning_rate",
    "resume",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "data",
        "masks",
        "data_dir",
        "classes",
        "unlabeled",
        "mask_values",
        "image_size",
        "grayscale",
        "background",
        "train_images",
    ),
    "network": (
        "network",
        "backbone",
        "width_multiplier",
        "stem",
        "hidden_units",
        "dropout",
        "decoder_channels",
        "pretrained_backbone",
        "weights",
        "published_normalization",
        "published_mean",
        "published_std",
    ),
    "training": (
        "epochs",
        "batch_size",
        "accumulation_steps",
        "optimizer",
        "learning_rate",
        "momentum",
        "weight_decay",
        "schedule",
        "warmup_epochs",
        "balance",
        "max_grad_norm",
        "ema_half_life_updates",
    ),
    "augmentation": (
        "scale_low",
        "scale_high",
        "crop_size",
        "rotation_degrees",
        "flip",
        "brightness",
        "contrast",
        "color_jitter",
    ),
    "evaluation": ("validate_every_epochs", "eval_batch_size", "tta_views", "select", "test"),
    "run": ("preset", "name", "seed", "resume", "quiet", "track", "log_every_updates", "checkpoint_every_updates"),
    "hardware": ("device", "precision", "compile", "threads", "gradient_compression", "sync_batch_norm"),
}

PRESET_SUMMARIES: Mapping[str, str] = {
    "fast": "FCN on a narrow ResNet-18, for two CPU cores and images of 240x180 pixels",
    "segnet-slim": "SegNet on a narrow VGG-13, for two CPU cores and images of 240x180 pixels",
    "fcn32s": "FCN-32s (Shelhamer et al. 2015)",
    "fcn16s": "FCN-16s (Shelhamer et al. 2015)",
    "fcn8s": "FCN-8s (Shelhamer et al. 2015)",
    "segnet": "SegNet (Badrinarayanan et al. 2017)",
}

# ---- settings that have no effect without another one


def _has_option(name: str) -> Requirement:
    """Return the requirement that the backbone has an option."""

    def has_it(config: Any) -> bool:
        from zerokara.core.backbones.registry import option_names  # imports PyTorch

        return name in option_names(config.backbone)

    return has_it, "a --backbone that has this option, such as resnet18"


REQUIRES: Mapping[str, Requirement] = {"width_multiplier": _has_option("width"), "stem": _has_option("stem")}
