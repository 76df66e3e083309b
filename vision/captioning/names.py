"""Names around the settings of vision.caption: old names, names in other libraries, groups of `--help`, conditions.

The config class refers to these tables; core/config.py, core/command_line.py and core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping

from zerokara.core import foreign_names as names
from zerokara.core.command_line import Requirement

# ---- names in older versions

RENAMED: Mapping[str, str] = {
    "width": "width_multiplier",
    "split": "split_seed",
    "init_backbone": "pretrained_backbone",
    "learn_eye": "finetune_backbone",
    "eye_learning_rate": "backbone_learning_rate",
    "at_least": "min_word_count",
    "longest": "max_length",
    "beams": "beam_size",
    "length_power": "length_penalty",
    "embedding": "embedding_dim",
    "hidden": "hidden_units",
}

# ---- names in the captioning code of neuraltalk2, ruotianluo, sgrvinod and yunjey, in Hugging Face and Lightning

_ONE_LAYER = "is not an option here: the LSTM has one layer, as in the paper."
_SCHEDULE = "is not an option here: after one epoch of warm-up, the learning rate has a cosine decay to 0."
_AUGMENTED = "is not an option here: images are augmented if the backbone is trained, and used as they are if not."

FOREIGN_NAMES: Mapping[str, str] = {
    **names.FOREIGN_NAMES,
    **names.DATA_NAMES,
    "arch": "backbone",
    "model": "is --backbone here; the decoder is always an LSTM.",
    "model_name": "is --backbone here; the decoder is always an LSTM.",
    "caption_model": "is not an option here: the decoder is always an LSTM.",
    "encoder": "backbone",
    "encoder_name": "backbone",
    "cnn_model": "backbone",
    "cnn_weight": "weights",
    "pretrained": "is --pretrained-backbone here (a run folder, a file or a name of the zoo), or --weights (a file of "
    "torchvision).",
    "encoder_weights": "pretrained_backbone",
    "fine_tune_encoder": "finetune_backbone",
    "finetune_encoder": "finetune_backbone",
    "finetune_cnn": "finetune_backbone",
    "freeze_encoder": "is --no-finetune-backbone here.",
    "freeze_backbone": "is --no-finetune-backbone here.",
    "encoder_lr": "backbone_learning_rate",
    "cnn_learning_rate": "backbone_learning_rate",
    "decoder_lr": "learning_rate",
    "data_folder": "data",
    "image_dir": "data",
    "input_json": "data",
    "caption_path": "is not an option here: the file of captions is found in the folder of --data.",
    "captions_file": "is not an option here: the file of captions is found in the folder of --data.",
    "vocab_path": "is not an option here: the vocabulary is built from the training captions, with --min-word-count.",
    "vocab_size": "is not an option here: the vocabulary is built from the training captions, with --min-word-count.",
    "val_images_use": "validation_images",
    "img_size": "image_size",
    "crop_size": "image_size",
    "min_word_freq": "min_word_count",
    "word_count_threshold": "min_word_count",
    "vocab_threshold": "min_word_count",
    "freq_threshold": "min_word_count",
    "threshold": "min_word_count",
    "max_len": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "max_target_length": "max_length",
    "max_new_tokens": "max_length",
    "emb_dim": "embedding_dim",
    "embed_dim": "embedding_dim",
    "embed_size": "embedding_dim",
    "input_encoding_size": "embedding_dim",
    "decoder_dim": "hidden_units",
    "hidden_dim": "hidden_units",
    "hidden_size": "hidden_units",
    "rnn_size": "hidden_units",
    "num_layers": _ONE_LAYER,
    "attention_dim": "is not an option here: the decoder has no attention.",
    "dropout_rate": "dropout",
    "drop_prob_lm": "dropout",
    "num_beams": "beam_size",
    "beam_width": "beam_size",
    "beam": "beam_size",
    "b": "batch_size",
    "batch": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "is --batch-size here, over all processes.",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "lr": "learning_rate",
    "base_lr": "learning_rate",
    "wd": "weight_decay",
    "optim": "is not an option here: the optimizer is AdamW.",
    "optimizer": "is not an option here: the optimizer is AdamW.",
    "lr_scheduler": _SCHEDULE,
    "scheduler": _SCHEDULE,
    "warmup_steps": _SCHEDULE,
    "flip": _AUGMENTED,
    "augment": _AUGMENTED,
    "clip_grad": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "print_freq": "log_every_updates",
    "log_step": "log_every_updates",
    "log_interval": "log_every_updates",
    "save_step": "checkpoint_every_updates",
    "save_freq": "checkpoint_every_updates",
    "start_from": names.RESUME,
    "resume_from": names.RESUME,
    "model_path": names.FOLDER,
    "checkpoint_path": names.FOLDER,
    "amp": "is --precision bfloat16 here.",
    "fp16": "is --precision bfloat16 here.",
}

# ---- groups of the help text

COMMON = (
    "data",
    "preset",
    "name",
    "backbone",
    "pretrained_backbone",
    "image_size",
    "epochs",
    "batch_size",
    "learning_rate",
    "split_seed",
    "resume",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "data",
        "data_dir",
        "image_size",
        "background",
        "named_splits",
        "split_seed",
        "validation_images",
        "test_images",
    ),
    "backbone": (
        "backbone",
        "width_multiplier",
        "stem",
        "pretrained_backbone",
        "weights",
        "published_normalization",
        "published_mean",
        "published_std",
        "finetune_backbone",
    ),
    "decoder": ("min_word_count", "embedding_dim", "hidden_units", "dropout"),
    "beam search": ("beam_size", "max_length", "length_penalty"),
    "training": (
        "epochs",
        "batch_size",
        "learning_rate",
        "backbone_learning_rate",
        "weight_decay",
        "max_grad_norm",
        "select",
    ),
    "run": ("preset", "name", "seed", "resume", "quiet", "track", "log_every_updates", "checkpoint_every_updates"),
    "hardware": ("device", "precision", "threads", "gradient_compression", "sync_batch_norm"),
}

PRESET_SUMMARIES: Mapping[str, str] = {
    "fast": "images of 128 pixels and a beam of 5, for two CPU cores",
    "paper": "vocabulary and beam search of Show and Tell (Vinyals et al. 2015)",
}

# ---- settings that have no effect without another one

REQUIRES: Mapping[str, Requirement] = {
    "backbone_learning_rate": (lambda config: config.trains_backbone, "--finetune-backbone"),
}
