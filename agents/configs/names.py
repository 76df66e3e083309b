"""Names around the settings of agents: old names, names in other libraries, groups of `--help`, conditions.

The config classes refer to these tables; core/config.py, core/command_line.py and core/help_text.py explain their form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerokara.core.command_line import Requirement
from zerokara.core.foreign_names import FOREIGN_NAMES as COMMON_NAMES
from zerokara.core.foreign_names import IN_MEMORY, RENAMED_ENV_SETTINGS, TENSORBOARD

# ---- names of zerokara 0.1

RENAMED: Mapping[str, Any] = {
    **RENAMED_ENV_SETTINGS,
    "steps": "total_steps",
    "epsilon_steps": "epsilon_decay_steps",
    "epsilon_zeta": "ez_greedy_zeta",
    "learning_rate_end": "final_learning_rate",
    "learning_rate_steps": "learning_rate_decay_steps",
    "video": "capture_video",
    "width": "width_multiplier",
    "reward_clip": "clip_rewards",
    "life_loss_ends": "terminal_on_life_loss",
}


def _quantiles(settings: Mapping[str, Any]) -> str:
    """Today's name of `quantiles`, which the heads qr and iqn shared."""
    return "num_quantiles" if settings.get("head") == "qr" else "num_tau_samples"


RENAMED_DQN: Mapping[str, Any] = {
    "warmup_steps": "learning_starts",
    "target_every_steps": "target_update_steps",
    "updates_at_once": "gradient_steps",
    "epsilon_until_steps": "epsilon_off_after_steps",
    "noisy_sigma": "noisy_sigma_init",
    "atoms": "num_atoms",
    "atom_limit": "v_max",
    "quantiles": _quantiles,
    "target_quantiles": "num_target_tau_samples",
    "policy_quantiles": "num_policy_tau_samples",
    "cosines": "cosine_embedding_dim",
    "munchausen_scale": "munchausen_alpha",
    "munchausen_temperature": "munchausen_tau",
    "munchausen_floor": "munchausen_clip",
    "priority_exponent": "per_alpha",
    "priority_weight_start": "per_beta_start",
    "priority_weight_end": "per_beta_end",
    "priority_weight_steps": "per_beta_steps",
    "reset_eye_share": "reset_perturb_factor",
    "anneal_updates": "n_step_gamma_anneal_updates",
    "stream_gradient": "backbone_gradient_scale",
    "init_backbone": "pretrained_backbone",
    "keep_replay": "save_replay",
}

RENAMED_PQN: Mapping[str, Any] = {"trace": "td_lambda", "epochs": "update_epochs", "minibatches": "num_minibatches"}

# ---- names in Stable-Baselines3, CleanRL and Dopamine

FOREIGN_NAMES: Mapping[str, str] = {
    **{name: answer for name, answer in COMMON_NAMES.items() if answer != IN_MEMORY},
    "total_timesteps": "total_steps",
    "num_timesteps": "total_steps",
    "n_timesteps": "total_steps",
    "num_iterations": "is not an option here: give the length of the run with --total-steps.",
    "env_id": "env",
    "environment": "env",
    "game": "env",
    "game_name": "env",
    "n_envs": "num_envs",
    "num_environments": "num_envs",
    "exp_name": "name",
    "run_name": "name",
    "lr": "learning_rate",
    "adam_eps": "optimizer_epsilon",
    "discount": "gamma",
    "anneal_lr": "is not an option here: give the last learning rate with --final-learning-rate.",
    "exploration_fraction": "is --epsilon-decay-steps here, in agent steps and not as a fraction of the run.",
    "exploration_initial_eps": "epsilon_start",
    "exploration_final_eps": "epsilon_end",
    "start_e": "epsilon_start",
    "end_e": "epsilon_end",
    "epsilon_train": "epsilon_end",
    "epsilon_eval": "eval_epsilon",
    "epsilon_decay_period": "epsilon_decay_steps",
    "sticky_actions": "repeat_action_probability",
    "use_fire_reset": "fire_reset",
    "eval_freq": "eval_every_steps",
    "n_eval_episodes": "eval_episodes",
    "log_interval": "log_every_steps",
    "save_freq": "checkpoint_every_steps",
    "torch_deterministic": "is not an option here: the same seed gives the same numbers on a CPU anyway.",
    "tensorboard_log": TENSORBOARD,
    "policy": "is not an option here: choose the network with --backbone and, for DQN, --head.",
}

FOREIGN_NAMES_DQN: Mapping[str, str] = {
    "buffer_size": "replay_capacity",
    "replay_size": "replay_capacity",
    "memory_size": "replay_capacity",
    "replay_buffer_size": "replay_capacity",
    "min_replay_history": "learning_starts",
    "target_update_interval": "target_update_steps",
    "target_network_frequency": "target_update_steps",
    "target_update_period": "target_update_steps",
    "train_freq": "train_every_steps",
    "train_frequency": "train_every_steps",
    "update_period": "train_every_steps",
    "update_horizon": "n_step",
    "n_steps": "n_step",
    "tau": "target_tau",
    "critic_tau": "target_tau",
    "target_update_tau": "target_tau",
    "image_pad": "random_shift",
    "spr": "is --spr-weight here, the factor on the sum over the steps (2 in its paper).",
    "model_spr_weight": "is --spr-weight here, the factor on the sum over the steps (2 in its paper).",
    "jumps": "spr_steps",
    "data_augmentation": "is --random-shift here, in pixels (4 in DrQ).",
    "prioritized_replay": "is --per-alpha here (0.5 to 0.6; 0 samples uniformly).",
    "prioritized_replay_alpha": "per_alpha",
    "prioritized_replay_beta": "per_beta_start",
    "n_atoms": "num_atoms",
    "n_quantiles": "num_quantiles",
    "num_actors": "actors",
    "num_workers": "actors",
    "double_dqn": "double",
    "loss_type": "loss",
    "uniform_sample_probability": "per_uniform_fraction",
    "optimize_memory_usage": "is not an option here: the replay buffer never stores a frame twice.",
}

FOREIGN_NAMES_PQN: Mapping[str, str] = {
    "num_steps": "rollout_steps",
    "n_steps": "rollout_steps",
    "n_epochs": "update_epochs",
    "q_lambda": "td_lambda",
    "gae_lambda": "td_lambda",
    "lstm": "is --lstm-units here, the number of units (128 in CleanRL).",
    "recurrent": "is --lstm-units here, the number of units (128 in CleanRL).",
    "lstm_hidden_size": "lstm_units",
    "buffer_size": "is not an option here: PQN has no replay buffer; --rollout-steps and --num-envs size a rollout.",
    "target_network_frequency": "is not an option here: PQN has no target network.",
}

# ---- groups of the help text

COMMON_DQN = (
    "env",
    "preset",
    "name",
    "seed",
    "total_steps",
    "num_envs",
    "learning_rate",
    "batch_size",
    "eval_every_steps",
    "resume",
)
COMMON_PQN = (
    "env",
    "preset",
    "name",
    "seed",
    "total_steps",
    "num_envs",
    "rollout_steps",
    "learning_rate",
    "eval_every_steps",
    "resume",
)

_ENVIRONMENT = (
    "env",
    "num_envs",
    "protocol",
    "repeat_action_probability",
    "noop_max",
    "fire_reset",
    "fire_after_life_loss",
    "frame_skip",
    "full_action_space",
    "max_episode_frames",
    "frame_stack",
    "image_size",
    "grayscale",
    "env_kwargs",
    "obs_type",
    "obs_key",
    "obs_range",
    "env_workers",
    "env_errors",
    "clip_rewards",
    "terminal_on_life_loss",
)
_EVALUATION = (
    "eval_every_steps",
    "eval_episodes",
    "eval_epsilon",
    "eval_max_steps",
    "capture_video",
    "stop_at_return",
)
_RUN = (
    "preset",
    "name",
    "seed",
    "total_steps",
    "resume",
    "quiet",
    "track",
    "log_every_steps",
    "checkpoint_every_steps",
)
_HARDWARE = ("device", "precision", "compile", "threads")

GROUPS_DQN: Mapping[str, tuple[str, ...]] = {
    "environment": _ENVIRONMENT,
    "network": (
        "backbone",
        "pretrained_backbone",
        "width_multiplier",
        "hidden_units",
        "dueling",
        "backbone_gradient_scale",
        "layer_norm",
        "weight_init",
        "noisy",
        "noisy_sigma_init",
        "spectral_norm",
        "pool",
        "pool_size",
        "same_padding",
        "head",
        "num_atoms",
        "v_min",
        "v_max",
        "target_distribution",
        "hl_gauss_sigma",
        "num_quantiles",
        "num_tau_samples",
        "num_target_tau_samples",
        "num_policy_tau_samples",
        "cosine_embedding_dim",
        "cosine_embedding_first",
    ),
    "algorithm": (
        "double",
        "loss",
        "n_step",
        "gamma",
        "n_step_start",
        "gamma_start",
        "n_step_gamma_anneal_updates",
        "munchausen",
        "munchausen_alpha",
        "munchausen_tau",
        "munchausen_clip",
        "batch_size",
        "learning_starts",
        "train_every_steps",
        "gradient_steps",
        "target_update_steps",
        "target_tau",
        "random_shift",
        "spr_weight",
        "spr_steps",
        "reset_every_updates",
        "reset_perturb_factor",
        "reset_until_updates",
        "optimizer",
        "learning_rate",
        "final_learning_rate",
        "learning_rate_decay_steps",
        "weight_decay",
        "optimizer_epsilon",
        "max_grad_norm",
    ),
    "exploration": (
        "epsilon_start",
        "epsilon_end",
        "epsilon_decay_steps",
        "epsilon_decay_begins",
        "epsilon_schedule",
        "epsilon_off_after_steps",
        "ez_greedy_zeta",
    ),
    "actors": (
        "actors",
        "actor_steps",
        "actor_epsilon",
        "actor_epsilon_alpha",
        "actor_cpus",
        "actor_timeout",
        "max_replay_ratio",
        "min_replay_ratio",
        "max_staleness",
        "ray_address",
    ),
    "replay": (
        "replay_capacity",
        "save_replay",
        "delete_replay",
        "per_alpha",
        "per_beta_start",
        "per_beta_end",
        "per_beta_steps",
        "per_beta_begins",
        "per_priority",
        "per_uniform_fraction",
    ),
    "evaluation": _EVALUATION,
    "run": _RUN,
    "hardware": _HARDWARE,
}

GROUPS_PQN: Mapping[str, tuple[str, ...]] = {
    "environment": _ENVIRONMENT,
    "network": ("backbone", "width_multiplier", "hidden_units", "layer_norm", "lstm_units"),
    "algorithm": (
        "rollout_steps",
        "update_epochs",
        "num_minibatches",
        "gamma",
        "td_lambda",
        "learning_rate",
        "final_learning_rate",
        "learning_rate_decay_steps",
        "scale_learning_rate",
        "weight_decay",
        "max_grad_norm",
    ),
    "exploration": ("epsilon_start", "epsilon_end", "epsilon_decay_steps", "ez_greedy_zeta"),
    "evaluation": _EVALUATION,
    "run": _RUN,
    "hardware": _HARDWARE,
}

PRESET_SUMMARIES_DQN: Mapping[str, str] = {
    "fast": "reaches a return of 18 on Pong soonest; tuned here, see docs/dqn.md",
    "nature": "DQN (Mnih et al. 2015)",
    "dopamine": "DQN as in Dopamine (Castro et al. 2018)",
    "double": "Double DQN (van Hasselt et al. 2016)",
    "dueling": "dueling networks (Wang et al. 2016)",
    "prioritized": "prioritized experience replay (Schaul et al. 2016)",
    "c51": "categorical DQN (Bellemare et al. 2017)",
    "qr": "QR-DQN (Dabney et al. 2018)",
    "iqn": "implicit quantile networks (Dabney et al. 2018)",
    "rainbow": "Rainbow (Hessel et al. 2018)",
    "munchausen": "Munchausen DQN (Vieillard et al. 2020)",
    "btr": "Beyond the Rainbow (Clark et al. 2025)",
    "data-efficient": "data-efficient Rainbow, 100,000 steps (van Hasselt et al. 2019)",
}

PRESET_SUMMARIES_PQN: Mapping[str, str] = {
    "paper": "PQN for 40,000,000 frames (Gallici et al. 2024)",
    "paper-200m": "PQN for 200,000,000 frames (Gallici et al. 2024)",
    "lstm": "PQN with an LSTM and one frame, 40,000,000 frames (CleanRL)",
}

# ---- settings that have no effect without another one

_C51: Requirement = (lambda config: config.head == "c51", "--head c51")
_QR: Requirement = (lambda config: config.head == "qr", "--head qr")
_IQN: Requirement = (lambda config: config.head == "iqn", "--head iqn")
_PER: Requirement = (lambda config: config.per_alpha > 0, "--per-alpha above 0")
_MUNCHAUSEN: Requirement = (lambda config: config.munchausen, "--munchausen")
_DECAY: Requirement = (
    lambda config: config.epsilon_start != config.epsilon_end,
    "an --epsilon-start that differs from --epsilon-end",
)
_RESETS: Requirement = (lambda config: config.reset_every_updates > 0, "--reset-every-updates above 0")
_ACTORS: Requirement = (lambda config: config.actors > 0, "--actors above 0")
_NO_ACTORS: Requirement = (lambda config: not config.actors, "--actors 0 (actors have --actor-epsilon)")
_DECAY_DQN: Requirement = (lambda config: not config.actors and _DECAY[0](config), f"{_DECAY[1]}, and --actors 0")

REQUIRES: Mapping[str, Requirement] = {
    "learning_rate_decay_steps": (lambda config: config.final_learning_rate is not None, "--final-learning-rate"),
    "image_size": (lambda config: config.obs_type == "image", "--obs-type image"),
    "grayscale": (lambda config: config.obs_type == "image", "--obs-type image"),
    "epsilon_decay_steps": _DECAY,
}

REQUIRES_DQN: Mapping[str, Requirement] = {
    "num_atoms": _C51,
    "v_min": _C51,
    "v_max": _C51,
    "target_distribution": _C51,
    "hl_gauss_sigma": (
        lambda config: config.head == "c51" and config.target_distribution == "hl_gauss",
        "--head c51 and --target-distribution hl_gauss",
    ),
    "num_quantiles": _QR,
    "num_tau_samples": _IQN,
    "num_target_tau_samples": _IQN,
    "num_policy_tau_samples": _IQN,
    "cosine_embedding_dim": _IQN,
    "cosine_embedding_first": _IQN,
    "loss": (
        lambda config: config.head == "q" and (config.per_alpha > 0 or config.loss != "huber_after_weight"),
        "--head q and, for huber_after_weight, --per-alpha above 0",
    ),
    "pool_size": (lambda config: config.pool == "max", "--pool max"),
    "weight_decay": (lambda config: config.optimizer == "adam", "--optimizer adam"),
    "random_shift": (lambda config: config.obs_type == "image", "--obs-type image"),
    "spr_steps": (lambda config: config.spr_weight > 0, "--spr-weight above 0"),
    "weight_init": (lambda config: not config.noisy or config.weight_init == "xavier", "--no-noisy"),
    "epsilon_start": _NO_ACTORS,
    "epsilon_end": _NO_ACTORS,
    "epsilon_off_after_steps": _NO_ACTORS,
    "epsilon_decay_steps": _DECAY_DQN,
    "epsilon_decay_begins": _DECAY_DQN,
    "epsilon_schedule": _DECAY_DQN,
    "noisy_sigma_init": (lambda config: config.noisy, "--noisy"),
    "per_beta_start": _PER,
    "per_beta_end": _PER,
    "per_beta_steps": _PER,
    "per_beta_begins": _PER,
    "per_uniform_fraction": _PER,
    "per_priority": (
        lambda config: config.per_alpha > 0 and config.head == "c51",
        "--per-alpha above 0 and --head c51",
    ),
    "munchausen_alpha": _MUNCHAUSEN,
    "munchausen_tau": _MUNCHAUSEN,
    "munchausen_clip": _MUNCHAUSEN,
    "n_step_gamma_anneal_updates": (
        lambda config: config.n_step_start is not None or config.gamma_start is not None,
        "--n-step-start or --gamma-start",
    ),
    "reset_perturb_factor": _RESETS,
    "reset_until_updates": _RESETS,
    "actor_steps": _ACTORS,
    "actor_epsilon": _ACTORS,
    "actor_epsilon_alpha": _ACTORS,
    "actor_cpus": _ACTORS,
    "actor_timeout": _ACTORS,
    "max_replay_ratio": _ACTORS,
    "min_replay_ratio": _ACTORS,
    "max_staleness": _ACTORS,
    "ray_address": _ACTORS,
}
