"""Names around the settings of vision.binary: old names, names in other libraries, groups of `--help`, conditions.

The config class refers to these tables; core/config.py, core/command_line.py and core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement
from zerokara.core.run_options import DATA_DIR

# ---- names in older versions

RENAMED: Mapping[str, str] = {
    "units": "hidden_units",
    "layers": "num_hidden_layers",
    "width": "width_multiplier",
}

# ---- names in the PyTorch code of binarized networks, in Larq, Brevitas, timm and Lightning

_ADAM = "is not an option here: the optimizer is Adam."
_SCHEDULE = "is not an option here: the learning rate has a cosine decay to 0."
_LATENT = "is not an option here: latent weights are clipped to [-1, 1] instead."
_ONE_BIT = "is not an option here: all weights have one bit, and so have the inputs of all layers except the first."

FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    **names.DATA_NAMES,
    "arch": "network",
    "model": "network",
    "model_name": "network",
    "root": "data_dir",
    "datadir": "data_dir",
    "img_size": "image_size",
    "imgsz": "image_size",
    "input_size": "image_size",
    "val_size": "validation_images",
    "num_classes": "is not an option here: the number of classes follows from the data.",
    "num_units": "hidden_units",
    "hidden": "hidden_units",
    "hidden_dim": "hidden_units",
    "hidden_size": "hidden_units",
    "num_layers": "num_hidden_layers",
    "n_hidden_layers": "num_hidden_layers",
    "infl_ratio": "is --hidden-units here for the mlp, and --width-multiplier for the cnn.",
    "criterion": "loss",
    "b": "batch_size",
    "batch": "batch_size",
    "train_batch_size": "batch_size",
    "val_batch_size": "eval_batch_size",
    "test_batch_size": "eval_batch_size",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "lr": "learning_rate",
    "lr_start": "learning_rate",
    "base_lr": "learning_rate",
    "wd": _LATENT,
    "weight_decay": _LATENT,
    "opt": _ADAM,
    "optim": _ADAM,
    "optimizer": _ADAM,
    "momentum": _ADAM,
    "lr_scheduler": _SCHEDULE,
    "scheduler": _SCHEDULE,
    "schedule": _SCHEDULE,
    "sched": _SCHEDULE,
    "w_bits": _ONE_BIT,
    "a_bits": _ONE_BIT,
    "weight_bit_width": _ONE_BIT,
    "act_bit_width": _ONE_BIT,
    "degrees": "rotation_degrees",
    "rotation": "rotation_degrees",
    "translate": "shift",
    "shear": "shear_degrees",
    "crop_padding": "crop_pixels",
    "hflip": "flip",
    "fliplr": "flip",
    "augment": "is not an option here: every augmentation has an option of its own (--help lists them).",
    "print_freq": "log_every_updates",
    "log_interval": "log_every_updates",
    "save_freq": "checkpoint_every_updates",
    "evaluate": "is not an option here: a run ends with the test set, unless --no-test is given.",
    "resume_from": names.RESUME,
    "results_dir": names.FOLDER,
    "save": "name",
    "amp": "is --precision bfloat16 here.",
    "fp16": "is --precision bfloat16 here.",
}

# ---- groups of the help text

COMMON = (
    "data",
    "preset",
    "name",
    "seed",
    "network",
    "hidden_units",
    "epochs",
    "batch_size",
    "learning_rate",
    "test",
    "resume",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("data", "data_dir", "image_size", "validation_images", "train_images"),
    "network": ("network", "hidden_units", "num_hidden_layers", "width_multiplier"),
    "training": ("epochs", "loss", "batch_size", "learning_rate"),
    "augmentation": ("rotation_degrees", "shift", "scale", "shear_degrees", "crop_pixels", "flip"),
    "evaluation": ("test", "eval_batch_size"),
    "run": ("preset", "name", "seed", "resume", "quiet", "track", "log_every_updates", "checkpoint_every_updates"),
    "hardware": ("device", "precision", "threads", "gradient_compression", "sync_batch_norm"),
}

PRESET_SUMMARIES: Mapping[str, str] = {
    "mlp": "multilayer perceptron, for digits",
    "cnn": "the paper's convolutional network with half the channels, for photographs",
}

# ---- settings that have no effect without another one

REQUIRES: Mapping[str, Requirement] = {
    "data_dir": DATA_DIR,
    "num_hidden_layers": (lambda config: config.network == "mlp", "--network mlp"),
    "width_multiplier": (lambda config: config.network == "cnn", "--network cnn"),
}
