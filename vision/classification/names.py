"""Names around the options of vision.classify: names in other libraries, groups of --help, conditions.

The config refers to these tables; core/command_line.py and core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement
from zerokara.core.run_options import DATA_DIR

# ---- names in PyTorch's MNIST and ImageNet examples, torchvision's references and timm

_PRETRAINED = "is --weights here for a file of torchvision, and --pretrained-backbone for a run or a zoo network."
_SCHEDULE = "is not an option here: choose --schedule constant, linear or cosine, with --warmup-epochs."
_EMA = "is --ema-half-life-updates here, a half-life in updates: a decay of 0.999 per update is 693."
_EVALUATE = "is not an option here: vision.predict and vision.misread evaluate a finished run."
_ERASE = "is not an option here: --cutout places a gray square on every image."
_AUTO = "is not an option here: the augmentations are the options from --rotation-degrees to --cutmix."

FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    **names.DATA_NAMES,
    "manual_seed": "seed",
    "random_seed": "seed",
    "a": "backbone",
    "arch": "backbone",
    "architecture": "backbone",
    "model": "backbone",
    "model_name": "backbone",
    "net": "backbone",
    "network": "backbone",
    "pretrained": _PRETRAINED,
    "finetune": _PRETRAINED,
    "initial_checkpoint": _PRETRAINED,
    "imagesize": "image_size",
    "img_size": "image_size",
    "input_size": "image_size",
    "resize": "image_size",
    "train_crop_size": "image_size",
    "val_resize_size": "image_size",
    "val_crop_size": "image_size",
    "num_classes": "is not an option here: the classes are those of the data.",
    "val_split": "is --validation-images here, a number of images.",
    "validation_split": "is --validation-images here, a number of images.",
    "val_size": "validation_images",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "niter": "epochs",
    "dry_run": "is not an option here: --epochs 1 --train-images 1000 makes a short run.",
    "b": "batch_size",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "train_batch_size": "batch_size",
    "test_batch_size": "eval_batch_size",
    "val_batch_size": "eval_batch_size",
    "validation_batch_size": "eval_batch_size",
    "accum_iter": "accumulation_steps",
    "grad_accum_steps": "accumulation_steps",
    "gradient_accumulation_steps": "accumulation_steps",
    "opt": "optimizer",
    "optim": "optimizer",
    "lr": "learning_rate",
    "base_lr": "learning_rate",
    "init_lr": "learning_rate",
    "nesterov": "is not an option here: --optimizer sgd always has Nesterov momentum.",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "sched": "schedule",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_warmup_epochs": "warmup_epochs",
    "warmup": "warmup_epochs",
    "gamma": _SCHEDULE,
    "lr_gamma": _SCHEDULE,
    "step_size": _SCHEDULE,
    "lr_step_size": _SCHEDULE,
    "milestones": _SCHEDULE,
    "decay_rate": _SCHEDULE,
    "decay_epochs": _SCHEDULE,
    "min_lr": _SCHEDULE,
    "lr_min": _SCHEDULE,
    "smoothing": "label_smoothing",
    "label_smooth": "label_smoothing",
    "clip_grad": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "ema": _EMA,
    "model_ema": _EMA,
    "ema_decay": _EMA,
    "model_ema_decay": _EMA,
    "drop": "dropout",
    "drop_rate": "dropout",
    "patience": "patience_epochs",
    "early_stopping": "patience_epochs",
    "degrees": "rotation_degrees",
    "rotation": "rotation_degrees",
    "translate": "shift",
    "shear": "shear_degrees",
    "padding": "crop_pixels",
    "random_crop": "crop_pixels",
    "hflip": "flip",
    "horizontal_flip": "flip",
    "color_jitter": "is --brightness and --contrast here.",
    "reprob": _ERASE,
    "random_erase": _ERASE,
    "random_erasing": _ERASE,
    "aa": _AUTO,
    "auto_augment": _AUTO,
    "randaugment": _AUTO,
    "ra_magnitude": _AUTO,
    "mixup_alpha": "mixup",
    "cutmix_alpha": "cutmix",
    "tta": "tta_views",
    "e": _EVALUATE,
    "evaluate": _EVALUATE,
    "test_only": _EVALUATE,
    "print_freq": "log_every_updates",
    "log_interval": "log_every_updates",
    "save_freq": "checkpoint_every_updates",
    "checkpoint_interval": "checkpoint_every_updates",
    "torchcompile": "is --compile on here.",
}

# ---- groups of the help text

COMMON = (
    "data",
    "preset",
    "name",
    "seed",
    "epochs",
    "backbone",
    "pretrained_backbone",
    "batch_size",
    "learning_rate",
    "resume",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("data", "data_dir", "image_size", "grayscale", "background", "train_images", "validation_images"),
    "network": (
        "backbone",
        "width_multiplier",
        "stem",
        "head",
        "dropout",
        "output_dropout",
        "whitening_bias_epochs",
        "pretrained_backbone",
        "weights",
        "published_normalization",
        "published_mean",
        "published_std",
    ),
    "optimization": (
        "epochs",
        "minutes",
        "batch_size",
        "accumulation_steps",
        "optimizer",
        "learning_rate",
        "output_learning_rate",
        "bias_learning_rate",
        "schedule",
        "warmup_epochs",
        "momentum",
        "sgd_momentum",
        "weight_decay",
        "label_smoothing",
        "max_grad_norm",
        "ema_half_life_updates",
    ),
    "augmentation": (
        "rotation_degrees",
        "shift",
        "scale",
        "shear_degrees",
        "elastic_pixels",
        "crop_pixels",
        "crop_padding",
        "flip",
        "brightness",
        "contrast",
        "cutout",
        "mixup",
        "cutmix",
    ),
    "evaluation": ("select", "patience_epochs", "test", "tta_views", "eval_batch_size"),
    "logging": ("log_every_updates", "checkpoint_every_updates", "quiet", "track"),
    "run": ("preset", "name", "seed", "resume"),
    "hardware": ("device", "precision", "compile", "threads", "gradient_compression", "sync_batch_norm"),
}

PRESET_SUMMARIES: Mapping[str, str] = {
    "fast": "the book's CNN with augmentation, minutes on a CPU; for cifar10 and cifar100: as airbench",
    "book": "the book's CNN with the book's settings: Adam, 20 epochs, no augmentation",
    "best": "lowest error of a single network on digits: twice the width, strong augmentation",
    "photos": "ResNet-20 for small photographs (He et al. 2016), with a shorter schedule",
    "airbench": "small photographs: airbench94 with Muon (Jordan 2024), for two cores with 16-bit units",
}

# ---- settings that have no effect without another one

WITHOUT_HIDDEN_LAYER = ("dcgan", "r3")  # backbones whose own head is one linear layer without dropout

_BESIDE_MUON: Requirement = (lambda config: config.optimizer == "muon_sgd", "--optimizer muon_sgd")

REQUIRES: Mapping[str, Requirement] = {
    "data_dir": DATA_DIR,
    "momentum": (lambda config: config.optimizer in ("sgd", "muon", "muon_sgd"), "--optimizer sgd, muon or muon_sgd"),
    "output_learning_rate": _BESIDE_MUON,
    "bias_learning_rate": _BESIDE_MUON,
    "sgd_momentum": _BESIDE_MUON,
    "whitening_bias_epochs": (lambda config: config.backbone == "airbench", "--backbone airbench"),
    "crop_padding": (lambda config: config.crop_pixels > 0, "--crop-pixels above 0"),
    "dropout": (
        lambda config: config.head == "pooled" or config.backbone not in WITHOUT_HIDDEN_LAYER,
        "--head pooled",
    ),
}
