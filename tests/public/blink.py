"""Environment whose worker processes need not import PyTorch, in a file that imports little."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Blink(gymnasium.Env[Any, Any]):
    """Environment whose image is bright or dark; the reward is the action. An episode has ten steps."""

    observation_space = spaces.Box(0, 255, (12, 16, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, level: int = 10) -> None:
        self.level, self.age = level, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.full((12, 16, 3), self.level, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        return np.full((12, 16, 3), self.level + self.age, np.uint8), float(action), self.age == 10, False, {}
