"""Policy: Q-values and epsilon-greedy actions from observations.

Shapes: N environments, A actions, C, H, W an observation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning.exploration import Exploration
from zerokara.agents.qlearning.network import QNetwork
from zerokara.core.compute import Compute
from zerokara.core.layers import resample_noise
from zerokara.envs.base import VectorEnv


def obs_dtype(env: VectorEnv) -> torch.dtype:
    """Return the type of observations: uint8 of images, float32 of vectors."""
    return torch.uint8 if env.obs_dtype is np.uint8 else torch.float32


class Policy:
    """Policy of a Q-network, for acting in environments.

    Args:
        network: Q-network on the device of `compute`.
        compute: device and precision.
        seed: seed of the noise in noisy layers.
    """

    def __init__(self, network: QNetwork, compute: Compute, seed: int = 0) -> None:
        self.network, self.compute = network, compute
        self.noise = torch.Generator(compute.torch_device).manual_seed(seed)
        self._values = compute.function(self._forward)
        self._converted = compute.converter()

    def _forward(self, obs_NCHW: Tensor) -> Tensor:
        with torch.no_grad(), self.compute.autocast():
            q_NA: Tensor = self.network(self.compute.images(obs_NCHW))
        return q_NA

    def values(self, obs_NCHW: np.ndarray, *, noisy: bool = False) -> Tensor:
        """Q-values (N, A) float32, on the device, of observations (N, C, H, W): uint8, or float32 of vectors.

        Args:
            noisy: resample and use the noise of noisy layers, as in training; False disables it, as in evaluation.
        """
        if self.network.has_train_mode:
            self.network.train(noisy)
            if self.network.has_custom_backbone:  # whose BatchNorm or dropout is for updates only
                self.network.backbone.eval()
            if noisy:
                resample_noise(self.network, self.noise)
        obs = torch.from_numpy(obs_NCHW).to(self.compute.torch_device, non_blocking=True)
        return self._values(self._converted(obs))

    def act(
        self, obs_NCHW: np.ndarray, epsilon: float | Tensor, exploration: Exploration, *, noisy: bool = False
    ) -> np.ndarray:
        """Select epsilon-greedy actions (N,) int64; epsilon may be one number for each environment, (N,)."""
        explore_N, random_N = exploration.sample(epsilon)
        if not isinstance(epsilon, Tensor) and epsilon >= 1:
            return random_N.numpy()
        greedy_N = self.compute.to_host(self.values(obs_NCHW, noisy=noisy).argmax(dim=1))
        return torch.where(explore_N, random_N, greedy_N).numpy()
