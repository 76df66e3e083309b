"""Presets with published hyperparameters, as overrides of the fields in agents/configs/dqn.py, and their deviations.

Papers count frames; here all counts are agent steps of four frames. Values that a paper does not give are taken from
the published code of its authors. docs/presets.md lists each value beside the file and line of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Mnih et al. 2015, extended data table 1 and Methods. The published code sums the gradients of a batch of 32, this code
# averages them, so the epsilon of 0.01 under the square root of RMSProp is 0.01 / 32^2 here.
_NATURE: Mapping[str, Any] = {
    "total_steps": 50_000_000,
    "num_envs": 1,
    "protocol": "nature",
    "backbone": "nature",
    "hidden_units": 512,
    "weight_init": "torch",
    "dueling": False,
    "double": False,
    "n_step": 1,
    "terminal_on_life_loss": True,
    "batch_size": 32,
    "train_every_steps": 4,
    "learning_starts": 50_000,
    "target_update_steps": 10_000,
    "replay_capacity": 1_000_000,
    "optimizer": "rmsprop",
    "learning_rate": 2.5e-4,
    "optimizer_epsilon": 0.01 / 32**2,
    "max_grad_norm": None,
    "epsilon_end": 0.1,
    "epsilon_decay_begins": "learning_starts",
    "epsilon_decay_steps": 1_000_000,
    "eval_every_steps": 250_000,
    "eval_epsilon": 0.05,
    "eval_max_steps": 4_500,
}
# Current DQN of Dopamine (Castro et al. 2018): its JAX agent with dqn.gin, environment settings of Machado et al. 2018.
_DOPAMINE: Mapping[str, Any] = {
    **_NATURE,
    "protocol": "machado",
    "same_padding": True,
    "weight_init": "xavier",
    "loss": "mse",
    "terminal_on_life_loss": False,
    "learning_starts": 20_000,
    "target_update_steps": 8_000,
    "optimizer": "adam",
    "learning_rate": 6.25e-5,
    "optimizer_epsilon": 1.5e-4,
    "epsilon_end": 0.01,
    "epsilon_decay_steps": 250_000,
    "eval_epsilon": 0.001,
    "eval_max_steps": 27_000,
}
# Van Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning", the tuned version of the appendix.
_DOUBLE: Mapping[str, Any] = {
    **_NATURE,
    "double": True,
    "target_update_steps": 30_000,
    "epsilon_end": 0.01,
    "eval_epsilon": 0.001,
    "eval_max_steps": 27_000,
}
# Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning", section 5.
_C51: Mapping[str, Any] = {
    **_NATURE,
    "head": "c51",
    "num_atoms": 51,
    "v_max": 10.0,
    "optimizer": "adam",
    "learning_rate": 2.5e-4,
    "optimizer_epsilon": 0.01 / 32,
    "epsilon_end": 0.01,
    "eval_epsilon": 0.001,
    "eval_max_steps": 27_000,
}
# Hessel et al. 2018, "Rainbow: Combining Improvements in Deep Reinforcement Learning", table 1.
_RAINBOW: Mapping[str, Any] = {
    **_C51,
    "double": True,
    "dueling": True,
    "noisy": True,
    "noisy_sigma_init": 0.5,
    "n_step": 3,
    "learning_starts": 20_000,
    "target_update_steps": 8_000,
    "learning_rate": 6.25e-5,
    "optimizer_epsilon": 1.5e-4,
    "max_grad_norm": 10.0,
    "per_alpha": 0.5,
    "per_beta_start": 0.4,
    "per_beta_end": 1.0,
    "per_beta_begins": "learning_starts",
    "per_beta_steps": 50_000_000 - 20_000,
    "per_priority": "cross_entropy",
    "epsilon_start": 0.0,
    "epsilon_end": 0.0,
    "epsilon_decay_steps": 1,
}

PAPER_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "nature": _NATURE,
    "dopamine": _DOPAMINE,
    "double": _DOUBLE,
    # Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", section 4.2.
    "dueling": {
        **_DOUBLE,
        "dueling": True,
        "backbone_gradient_scale": 0.5**0.5,
        "learning_rate": 6.25e-5,
        "max_grad_norm": 10.0,
    },
    # Schaul et al. 2016, "Prioritized Experience Replay", proportional variant: appendix B.2.3 and table 3.
    "prioritized": {
        **_DOUBLE,
        "learning_rate": 2.5e-4 / 4,
        "optimizer_epsilon": 0.01 / 32**2 / 4**2,
        "loss": "huber_after_weight",
        "per_alpha": 0.6,
        "per_beta_start": 0.4,
        "per_beta_end": 1.0,
        "per_beta_begins": "learning_starts",
        "per_beta_steps": 50_000_000 - 50_000,
        "per_uniform_fraction": 1e-3,
    },
    "c51": _C51,
    # Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", section 5.2: QR-DQN-1.
    "qr": {**_C51, "head": "qr", "num_quantiles": 200, "learning_rate": 5e-5},
    # Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning", section 4.
    "iqn": {
        **_C51,
        "head": "iqn",
        "num_tau_samples": 64,
        "num_target_tau_samples": 64,
        "num_policy_tau_samples": 32,
        "cosine_embedding_dim": 64,
        "cosine_embedding_first": 1,
        "learning_starts": 20_000,
        "learning_rate": 5e-5,
    },
    "rainbow": _RAINBOW,
    # Vieillard et al. 2020, "Munchausen Reinforcement Learning", M-DQN: appendix B. The published code is a subclass
    # of Dopamine's TensorFlow agent, whose loss is Huber.
    "munchausen": {
        **_DOPAMINE,
        "loss": "huber",
        "munchausen": True,
        "munchausen_alpha": 0.9,
        "munchausen_tau": 0.03,
        "munchausen_clip": -1.0,
        "learning_rate": 5e-5,
        "optimizer_epsilon": 0.01 / 32,
    },
    # Clark et al. 2025, "Beyond the Rainbow: High Performance Deep Reinforcement Learning on a Desktop PC", appendix.
    # Of the versions of the authors' code, this is VIPTankz/BeyondTheRainbowICML at 0e08f8b, with Adam instead of AdamW
    # and an epsilon that decays over 2,000,000 steps.
    "btr": {
        **_DOPAMINE,
        "num_envs": 64,
        "noop_max": 30,
        "backbone": "impala",
        "same_padding": False,
        "weight_init": "torch",
        "loss": "huber",
        "width_multiplier": 2.0,
        "spectral_norm": True,
        "pool_size": 6,
        "dueling": True,
        "noisy": True,
        "noisy_sigma_init": 0.5,
        "head": "iqn",
        "num_tau_samples": 8,
        "num_target_tau_samples": 8,
        "num_policy_tau_samples": 8,
        "cosine_embedding_dim": 64,
        "munchausen": True,
        "munchausen_alpha": 0.9,
        "munchausen_tau": 0.03,
        "munchausen_clip": -1.0,
        "n_step": 3,
        "gamma": 0.997,
        "batch_size": 256,
        "train_every_steps": 64,
        "learning_starts": 200_000,
        "target_update_steps": 500 * 64,
        "replay_capacity": 1_048_576,
        "per_alpha": 0.2,
        "per_beta_start": 0.4,
        "per_beta_end": 1.0,
        "per_beta_begins": "learning_starts",
        "per_beta_steps": 50_000_000 - 200_000,
        "learning_rate": 1e-4,
        "optimizer_epsilon": 0.005 / 256,
        "max_grad_norm": 10.0,
        "epsilon_schedule": "exponential",
        "epsilon_decay_begins": "start",
        "epsilon_decay_steps": 2_000_000,
        "epsilon_off_after_steps": 25_000_000,
        "eval_epsilon": 0.01,
    },
    # Van Hasselt et al. 2019, "When to use parametric models in reinforcement learning?", appendix: the 100k protocol.
    "data-efficient": {
        **_RAINBOW,
        "total_steps": 100_000,
        "backbone": "der",
        "hidden_units": 256,
        "noisy_sigma_init": 0.1,
        "n_step": 20,
        "train_every_steps": 1,
        "learning_starts": 1_600,
        "target_update_steps": 2_000,
        "replay_capacity": 100_000,
        "learning_rate": 1e-4,
        "per_beta_steps": 100_000 - 1_600,
        "eval_every_steps": 10_000,
    },
}

_SCORES = "scores average 30 complete episodes, one in each environment, so that short episodes are not overrepresented"
_STARTS = "evaluation starts with no-ops, because the human starts of the paper were never published"
_BIAS = "every action has its own bias in the last layer, as in all other presets; the paper shares one bias"
_GRADIENTS = "gradients are averaged over the batch instead of summed, and the epsilon of RMSProp is scaled to match"
_FRACTIONS = "actions are selected with evenly spaced instead of sampled quantile fractions: same mean, no variance"
_DUEL = "the online network uses the same noise to select the next action and to predict, which saves a forward pass"
_FRAMES = "ale-py scales frames by area averaging instead of linearly"
_NOOPS = "ale-py draws 0 to 30 no-ops instead of 1 to 30"
_NOOPS_29 = "ale-py draws 0 to 30 no-ops instead of 0 to 29"
_CLIPPING = "gradients are not clipped, as in the paper; DQN Zoo clips them to norm 10"
_STRATA = "batches are stratified over the top level of the sum tree only, which works alike for all buffer sizes"
_TRUNCATION = "a truncated episode bootstraps from its last observation; Kaixhin's code stores it as terminal"
_SIGMA = "noise in biases starts at sigma / sqrt(inputs), as in DQN Zoo; Kaixhin's code divides by sqrt(outputs)"

DEVIATIONS: Mapping[str, tuple[str, ...]] = {
    "nature": (
        _SCORES,
        _FRAMES,
        _NOOPS,
        _GRADIENTS,
        "the target network is copied every 10,000 steps, as in the published code; the paper's table counts updates",
        "the first convolution has no padding, as in the paper; the published code pads it by 1",
    ),
    "dopamine": (_SCORES,),
    "double": (_SCORES, _STARTS, _FRAMES, _NOOPS, _BIAS, _GRADIENTS),
    "dueling": (_SCORES, _STARTS, _FRAMES, _NOOPS, _BIAS, _GRADIENTS),
    "prioritized": (
        _SCORES,
        _STARTS,
        _FRAMES,
        _NOOPS,
        _BIAS,
        _GRADIENTS,
        _STRATA,
        "the clipping after the weight and the 0.1% of uniform samples are those of DQN Zoo, not of the paper",
    ),
    "c51": (_SCORES, _FRAMES, _NOOPS, _CLIPPING),
    "qr": (_SCORES, _FRAMES, _NOOPS, _CLIPPING, "there are 200 quantiles, as in the paper; DQN Zoo has 201"),
    "iqn": (
        _SCORES,
        _FRAMES,
        _NOOPS,
        _FRACTIONS,
        "cosines begin with i = 1, and learning after 20,000 steps, as in DQN Zoo; the equation of the paper has i = 0",
    ),
    "rainbow": (
        _SCORES,
        _FRAMES,
        _NOOPS,
        _DUEL,
        _SIGMA,
        _STRATA,
        _TRUNCATION,
        "gradients are clipped to norm 10, as in later code of the authors; the table of the paper does not mention it",
        "priorities are the cross-entropy, as in DQN Zoo and Kaixhin's code; paper and rlpyt: KL (--per-priority kl)",
        "no samples are drawn uniformly, as in the paper; DQN Zoo draws 0.1% (--per-uniform-fraction 0.001)",
    ),
    "munchausen": (
        _SCORES,
        "epsilon of Adam is added after the bias correction; TensorFlow adds it before: 31.6 times as much at first",
    ),
    "btr": (
        _SCORES,
        _NOOPS,
        _FRACTIONS,
        "log-probabilities are the target network's, as in the M-DQN paper; the published code uses the online network",
        "a truncated episode bootstraps from its last observation; the published code stores it as terminal",
        _STRATA,
        "a batch is sampled from all 64 environments; the published code samples it from the buffer of one of them",
        "an update draws noise for both networks; in the published code the online one keeps that of the last action",
        "priorities are means over both quantile axes; the published code sums over one, which multiplies them by 8",
        "weights are not decayed and a lost life is not terminal, as in the later version of the published code",
        "a step is always four frames; the published code ends it at the frame in which a life is lost",
    ),
    "data-efficient": (
        _SCORES,
        _FRAMES,
        _NOOPS_29,
        _DUEL,
        _SIGMA,
        _STRATA,
        _TRUNCATION,
        "convolutions are padded: otherwise they ignore the last 9 rows and columns, where Pong has the agent's paddle",
        "priorities are the cross-entropy, as in Kaixhin's code; Rainbow's paper and rlpyt: KL (--per-priority kl)",
    ),
}
