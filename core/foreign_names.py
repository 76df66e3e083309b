"""Names of settings in other libraries and in zerokara 0.1, which training programs answer with ours.

Format (see core/command_line.py): name in the other library -> field, or text that completes the message. Every
training program adds the names of its own field.
"""

from __future__ import annotations

from collections.abc import Mapping

TENSORBOARD = "is not an option here: every run is logged for TensorBoard (tensorboard --logdir runs)."
WANDB = "is not an option here: choose --track wandb; the environment variable WANDB_PROJECT names the project."
PRECISION = "is not an option here: choose --precision float32 or --precision bfloat16."
DEVICE = "is not an option here: choose --device cpu, --device cuda or --device mps."
PROCESSES = "is not an option here: start the program with torchrun, which runs one process per GPU."
ONE_PROCESS = "is not an option here: the program runs in one process, on one --device."
RESUME = "is not an option here: resume a run with --name and --resume."
FOLDER = "is not an option here: a run is written to runs/<name>, and --name chooses the name."
IN_MEMORY = "is not an option here: all images are read into memory when the run starts."

RENAMED_ENV_SETTINGS: Mapping[str, str] = {
    "sticky": "repeat_action_probability",
    "full_action_set": "full_action_space",
    "stack": "frame_stack",
    "grey": "grayscale",
}
"""Settings of environments in zerokara 0.1, whose configs and checkpoints have the old names -> new name."""

FOREIGN_NAMES: Mapping[str, str] = {
    "manualseed": "seed",
    "manual_seed": "seed",
    "random_seed": "seed",
    "exp_name": "name",
    "experiment": "name",
    "run_name": "name",
    "outf": FOLDER,
    "outdir": FOLDER,
    "out_dir": FOLDER,
    "output_dir": FOLDER,
    "save_dir": FOLDER,
    "checkpoint_dir": FOLDER,
    "output": FOLDER,
    "save_model": "is not an option here: every run saves its weights in its folder.",
    "start_epoch": RESUME,
    "checkpoint": RESUME,
    "ckpt": RESUME,
    "cuda": DEVICE,
    "gpu": DEVICE,
    "mps": DEVICE,
    "accel": DEVICE,
    "ngpu": PROCESSES,
    "gpus": PROCESSES,
    "num_gpus": PROCESSES,
    "world_size": PROCESSES,
    "dist_url": PROCESSES,
    "local_rank": PROCESSES,
    "multiprocessing_distributed": PROCESSES,
    "amp": PRECISION,
    "fp16": PRECISION,
    "bf16": PRECISION,
    "mixed_precision": PRECISION,
    "num_threads": "threads",
    "workers": IN_MEMORY,
    "num_workers": IN_MEMORY,
    "j": IN_MEMORY,
    "wandb": WANDB,
    "log_wandb": WANDB,
    "wandb_project": WANDB,
    "wandb_project_name": WANDB,
    "mlflow": "is not an option here: choose --track mlflow.",
    "tensorboard": TENSORBOARD,
    "log_dir": TENSORBOARD,
    "logdir": TENSORBOARD,
    "verbose": "is not an option here: --quiet prints warnings and the closing message only.",
}

# Answers of a program that runs in one process, in place of those that name torchrun.
ONE_PROCESS_NAMES: Mapping[str, str] = {
    name: ONE_PROCESS for name, answer in FOREIGN_NAMES.items() if answer == PROCESSES
}

# Answers of an experiment, whose runs cannot be tracked, in place of those that name --track.
UNTRACKED_NAMES: Mapping[str, str] = {
    "track": TENSORBOARD,
    **{name: TENSORBOARD for name, answer in FOREIGN_NAMES.items() if "--track" in answer},
}

DATA_NAMES: Mapping[str, str] = {
    "dataset": "data",
    "dataset_name": "data",
    "dataroot": "data",
    "data_path": "data",
    "data_root": "data",
}
