"""Running mean and variance, from which observations are normalized and rewards are scaled.

Elsayed et al. 2024, "Streaming Deep Reinforcement Learning Finally Works", algorithms 4 to 6.

Shapes: B batch, K stacked frames, F channels of a frame, C = K * F, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EPSILON = 1e-8  # added to the variance


class RunningStatistics:
    """Mean and sample variance of all values so far, by Welford's recursion in float64.

    The variance of a single value is 1.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0
        self.mean, self._squares = np.zeros(shape), np.zeros(shape)  # sum of squared deviations from the mean

    def update(self, value: np.ndarray | float) -> None:
        """Add a value, which has the shape of the mean."""
        self.count += 1
        deviation = value - self.mean
        self.mean = self.mean + deviation / self.count
        self._squares += deviation * (value - self.mean)

    @property
    def variance(self) -> np.ndarray:
        """Sample variance of each element."""
        return self._squares / (self.count - 1) if self.count > 1 else np.ones_like(self._squares)

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and plain values."""
        return {"count": self.count, "mean": torch.tensor(self.mean), "squares": torch.tensor(self._squares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.count, self.mean, self._squares = state["count"], state["mean"].numpy(), state["squares"].numpy()

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Restore the statistics of one of the processes."""
        self.load_state_dict(states.get(rank, states[0]))


class RewardScaler(RunningStatistics):
    """Scale of rewards: the running standard deviation of a discounted sum of past rewards (algorithm 5).

    u = gamma u + r within an episode; in its last step u = r. A scaled reward is r / sqrt(variance of u + epsilon).

    Args:
        gamma: discount factor per agent step.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma, self.trace = gamma, 0.0

    def scale(self, reward: float, ended: bool) -> float:
        """Add a reward to the statistics, and return it scaled.

        Args:
            reward: of this step.
            ended: the episode ended in this step.
        """
        self.trace = self.trace * self.gamma * (not ended) + reward
        self.update(self.trace)
        return float(reward / np.sqrt(self.variance + EPSILON))

    def state_dict(self) -> dict[str, Any]:
        """See `RunningStatistics.state_dict`."""
        return {**super().state_dict(), "trace": self.trace}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `RunningStatistics.load_state_dict`."""
        super().load_state_dict(state)
        self.trace = state["trace"]


class InputNormalization(nn.Module):
    """Normalization of the frames of an observation by the statistics of a frame, which are buffers of a network.

    Frames before the start of an episode, which are zeros, become zeros, as a frame that equals the mean does.
    They are recognized by their zeros, so an all-black frame within an episode becomes zeros, too. The published code
    normalizes it.

    Args:
        frame_shape: (F, H, W).
        padded: observations have several frames, so that there are frames before the start of an episode.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, frame_shape: tuple[int, int, int], padded: bool) -> None:
        super().__init__()
        self.padded = padded
        self.register_buffer("mean", torch.zeros(frame_shape))
        self.register_buffer("scale", torch.ones(frame_shape))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalize observations; images have values from 0 to 1."""
        x_BKFHW = x_BCHW.unflatten(1, (-1, len(self.mean)))
        y_BKFHW = (x_BKFHW - self.mean) * self.scale
        if self.padded:
            is_frame_BK = x_BKFHW.flatten(2).abs().amax(dim=2) > 0
            y_BKFHW = y_BKFHW * is_frame_BK[:, :, None, None, None]
        y_BCHW: Tensor = y_BKFHW.flatten(1, 2)
        return y_BCHW

    @torch.no_grad()
    def set_statistics(self, statistics: RunningStatistics, unit: float) -> None:
        """Set the buffers.

        Elements that have not varied so far become zeros: a frame would be off their mean by rounding errors only,
        which the division by almost 0 would enlarge.

        Args:
            statistics: of frames (F, H, W).
            unit: value that is 1 in the input of the network: 255 for pixels.
        """
        variance = statistics.variance
        scale = np.where(variance > 0, unit / np.sqrt(variance + EPSILON), 0.0)
        self.mean.copy_(torch.from_numpy(statistics.mean / unit))
        self.scale.copy_(torch.from_numpy(scale))
