"""Names around the options of vision.depth, vision.augmentation and vision.features.

Names in other libraries, groups of --help, and conditions. The options refer to these tables; core/command_line.py and
core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement
from zerokara.core.run_options import DATA_DIR

_RECIPE = "is not an option here: all runs have the settings of a recipe in vision/studies/grid.py."
_FINISHED_RUN = "is the first word on the command line here: the folder of a run of vision.classify."

FOREIGN_NAMES_GRID: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    **names.UNTRACKED_NAMES,
    **names.DATA_NAMES,
    **names.ONE_PROCESS_NAMES,
    "seed": "seeds",
    **dict.fromkeys(("manualseed", "manual_seed", "random_seed"), "seeds"),
    "num_seeds": "is --seeds here, which takes the seeds themselves, as in --seeds 1 2 3.",
    "val_size": "validation_images",
    "lr": _RECIPE,
    "learning_rate": _RECIPE,
    "wd": _RECIPE,
    "weight_decay": _RECIPE,
    "momentum": _RECIPE,
    "opt": _RECIPE,
    "optimizer": _RECIPE,
    "b": _RECIPE,
    "bs": _RECIPE,
    "batchsize": _RECIPE,
    "batch_size": _RECIPE,
}

FOREIGN_NAMES_DEPTH: Mapping[str, str] = {
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "depth": "depths",
    "layers": "depths",
    "train_size": "train_images",
    "arch": "is not an option here: --part and --depths choose the networks.",
    "model": "is not an option here: --part and --depths choose the networks.",
    "backbone": "is not an option here: --part and --depths choose the networks.",
}

FOREIGN_NAMES_AUGMENTATION: Mapping[str, str] = {
    "arch": "backbone",
    "model": "backbone",
    "steps": "updates",
    "iterations": "updates",
    "epochs": "is not an option here: all networks make the same number of --updates.",
    "train_images": "sizes",
    "train_sizes": "sizes",
}

FOREIGN_NAMES_FEATURES: Mapping[str, str] = {
    "run": _FINISHED_RUN,
    "model": _FINISHED_RUN,
    "checkpoint": _FINISHED_RUN,
    "weights": _FINISHED_RUN,
    "cuda": names.DEVICE,
    "gpu": names.DEVICE,
    "output": "out",
    "output_dir": "out",
    "num_images": "images",
    "num_channels": "channels",
    "num_patches": "patches",
    "target_layer": "cam_depth",
    "layer": "cam_depth",
    "patch_size": "square",
    "window": "square",
    "stride": "step",
    "num_threads": "threads",
}

# ---- groups of the help text

_DATA = ("data", "data_dir", "validation_images")
_RUN = ("name", "seeds", "resume", "quiet")
_HARDWARE = ("device", "precision", "threads")

COMMON_DEPTH = ("data", "part", "depths", "seeds", "epochs", "pictures", "name", "resume")
COMMON_AUGMENTATION = ("data", "sizes", "seeds", "updates", "backbone", "pictures", "name", "resume")
COMMON_FEATURES = ("runs", "show", "depths", "channels", "patches", "out")

GROUPS_DEPTH: Mapping[str, tuple[str, ...]] = {
    "data": (*_DATA, "train_images", "pictures"),
    "networks": ("part", "depths"),
    "training": ("epochs",),
    "evaluation": ("test",),
    "run": _RUN,
    "hardware": _HARDWARE,
}
GROUPS_AUGMENTATION: Mapping[str, tuple[str, ...]] = {
    "data": (*_DATA, "sizes", "pictures"),
    "network": ("backbone",),
    "training": ("updates",),
    "evaluation": ("test",),
    "run": _RUN,
    "hardware": _HARDWARE,
}
GROUPS_FEATURES: Mapping[str, tuple[str, ...]] = {
    "data": ("runs", "split", "images", "show"),
    "top activations": ("depths", "channels", "patches"),
    "Grad-CAM and occlusion": ("cam_depth", "square", "step"),
    "output": ("out",),
    "hardware": ("device", "threads"),
}

# ---- settings that have no effect without another one

REQUIRES: Mapping[str, Requirement] = {"data_dir": DATA_DIR}
REQUIRES_DEPTH: Mapping[str, Requirement] = {
    "depths": (lambda options: options.part != "filters", "--part layers or both"),
}
