"""Names and groups of the detection config: old names, names in other libraries, order of the help text."""

from __future__ import annotations

from collections.abc import Mapping

from zerokara.core import foreign_names as names

RENAMED: Mapping[str, str] = {
    "width": "width_multiplier",
    "init_backbone": "pretrained_backbone",
    "search_colours": "search_color_spaces",
    "foreground": "foreground_fraction",
    "units": "hidden_units",
}
"""Old name of a field -> new name. Old names are accepted in saved configs and on the command line."""

# ---- names in torchvision, Detectron2 and Ultralytics

_NO_EPOCHS = "is not an option here: give the length of the run with --updates."

FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    **names.DATA_NAMES,
    "lr": "learning_rate",
    "lr0": "learning_rate",
    "base_lr": "learning_rate",
    "lrf": "is not an option here: the learning rate decays to 0 along a cosine.",
    "wd": "weight_decay",
    "opt": "optimizer",
    "batch": "images_per_update",
    "batch_size": "images_per_update",
    "ims_per_batch": "images_per_update",
    "batch_size_per_image": "is --regions-per-update here, over all images of an update.",
    "positive_fraction": "foreground_fraction",
    "epochs": _NO_EPOCHS,
    "max_iter": "updates",
    "iterations": "updates",
    "warmup_epochs": "is --warmup-updates here, in updates.",
    "lr_warmup_epochs": "is --warmup-updates here, in updates.",
    "warmup_iters": "warmup_updates",
    "clip_grad_norm": "max_grad_norm",
    "imgsz": "image_side",
    "img_size": "image_side",
    "image_size": "image_side",
    "max_size": "image_side",
    "dataset_path": "data",
    "model": "is --method here (fast-rcnn or rcnn); --backbone chooses the network.",
    "arch": "backbone",
    "weights": "pretrained_backbone",
    "weights_backbone": "pretrained_backbone",
    "pretrained": "pretrained_backbone",
    "conf": "is an option of vision.detect_predict: --confidence.",
    "conf_thres": "is an option of vision.detect_predict: --confidence.",
    "score_thresh": "is an option of vision.detect_predict: --confidence.",
    "iou": "nms_iou",
    "iou_thres": "nms_iou",
    "nms_thresh": "nms_iou",
    "max_det": "detections",
    "box_detections_per_img": "detections",
    "detections_per_image": "detections",
    "fliplr": "is --flip horizontal here.",
    "flipud": "is --flip both here.",
    "print_freq": "log_every_updates",
    "val_period": "validate_every_updates",
    "eval_period": "validate_every_updates",
    "save_period": "checkpoint_every_updates",
    "checkpoint_period": "checkpoint_every_updates",
    "exist_ok": "is not an option here: --resume continues a run, another --name starts a new one.",
    "project": "is not an option here: runs are written to runs/; --name names the folder.",
    "workers": "is --threads here.",
    "num_workers": "is --threads here.",
    "amp": "is --precision here.",
    "half": "is --precision bfloat16 here.",
}
"""Name in another library -> the field, or the rest of a sentence about it."""

# ---- groups of the help text

COMMON = (
    "data",
    "method",
    "preset",
    "name",
    "seed",
    "updates",
    "image_side",
    "pretrained_backbone",
    "images_per_update",
    "learning_rate",
    "resume",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "data",
        "data_dir",
        "image_side",
        "background",
        "named_splits",
        "split_seed",
        "flip",
        "brightness",
        "contrast",
    ),
    "proposals": ("proposals", "search_color_spaces", "search_scales", "proposal_cache"),
    "network": (
        "method",
        "backbone",
        "width_multiplier",
        "stem",
        "pretrained_backbone",
        "published_normalization",
        "published_mean",
        "published_std",
        "freeze_batch_norm",
        "stride",
        "bins",
        "hidden_units",
        "dropout",
        "crop_side",
    ),
    "training": (
        "updates",
        "images_per_update",
        "regions_per_update",
        "foreground_fraction",
        "foreground_iou",
        "background_iou",
        "box_loss",
        "optimizer",
        "learning_rate",
        "momentum",
        "weight_decay",
        "warmup_updates",
        "max_grad_norm",
    ),
    "SVMs and box regression (rcnn)": ("svm_c", "svm_background_iou", "svm_rounds", "svm_proposals", "ridge"),
    "evaluation": ("test", "nms_iou", "detections", "validate_every_updates"),
    "run": ("preset", "name", "seed", "resume", "quiet", "track", "log_every_updates", "checkpoint_every_updates"),
    "hardware": ("device", "precision", "threads", "gradient_compression", "sync_batch_norm"),
}
"""Title of a group -> its fields, in the order of the help text."""

PRESET_SUMMARIES: Mapping[str, str] = {
    "fast": "best mAP in half an hour on two CPU cores; the default",
    "cells": "flips both ways, for images without an upright direction, such as cells, leaves or aerial photographs",
    "paper": "settings of Fast R-CNN (Girshick 2015, section 2.3)",
}
