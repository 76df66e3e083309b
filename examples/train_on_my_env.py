"""Train an agent on an environment of your own, with a network of your own. Nothing is registered.

python examples/train_on_my_env.py          # a few minutes; runs/my-env
python examples/train_on_my_env.py 300      # a first try
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor, nn

import zerokara


class Corridor(gymnasium.Env[np.ndarray, int]):
    """A bright square must be moved to the right end of a corridor. Actions: left, right."""

    observation_space = spaces.Box(0, 255, (48, 48, 3), np.uint8)
    action_space = spaces.Discrete(2)  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = int(self.np_random.integers(4))
        self.steps = 0
        return self.draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = int(np.clip(self.position + (1 if action == 1 else -1), 0, 7))
        self.steps += 1
        arrived = self.position == 7
        return self.draw(), float(arrived), arrived, self.steps >= 30, {}

    def draw(self) -> np.ndarray:
        image = np.zeros((48, 48, 3), np.uint8)
        image[20:26, 6 * self.position : 6 * self.position + 6] = 255
        return image


class MyNet(nn.Module):
    """Network from images (B, C, H, W) to features (B, F)."""

    def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 16, 4, 2), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


def show(step: int, metrics: dict[str, float]) -> bool:
    """Print the return of the training episodes. The run stops when it is high enough."""
    if "train/return" in metrics:
        print(f"step {step:,}: return {metrics['train/return']:.2f}")
    return metrics.get("train/return", 0.0) < 0.99


def main() -> None:
    """Train, and evaluate the agent."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    agent = zerokara.train_dqn(
        env=Corridor,
        backbone=MyNet,
        name="my-env",
        total_steps=steps,
        learning_starts=steps // 10,
        epsilon_decay_steps=steps // 2,
        replay_capacity=steps,
        log_every_steps=max(1, steps // 10),
        eval_every_steps=0,
        capture_video=False,
        quiet=True,
        callback=show,
    )
    print(f"mean return of 10 episodes: {agent.evaluate(10).mean:.2f}")


if __name__ == "__main__":
    main()
