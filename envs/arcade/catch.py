"""Catch: catch falling balls, which move sideways and bounce off the walls, with the paddle.

An episode has five balls. A caught ball gives reward 1, a missed ball -1. The agent has to predict where the ball lands
and to assign credit over the 18 steps that a ball falls.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from zerokara.envs.arcade.base import SIZE, ArcadeEnv, bounce, box, fold, sprite

BALLS = 5
FALL = 4  # pixels per step
BALL = 8  # pixels across
LANDING_ROW = 72  # upper edge of the ball when it is caught or missed
PADDLE_ROW = 78
PADDLE_WIDTH = 16
PADDLE_SPEED = 5  # pixels per step
LEFT, STAY, RIGHT = range(3)

BALL_SHAPE = sprite(
    "..####..",
    ".######.",
    "########",
    "########",
    "########",
    "########",
    ".######.",
    "..####..",
)
PADDLE_SHAPE = box(4, PADDLE_WIDTH)


class Catch(ArcadeEnv):
    """Catch game (rules: see module docstring). Returns range from -5 to 5; every episode has 90 steps."""

    name = "Catch"
    action_names = ("LEFT", "STAY", "RIGHT")
    colors: ClassVar = {"ball": (255, 220, 80), "paddle": (80, 160, 255)}
    time_limit_steps = 200
    rules: ClassVar = {"balls": BALLS}
    state_names = ("ball_row", "ball_column", "drift", "paddle", "dropped")

    def __init__(self, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True) -> None:
        super().__init__(num_envs, frame_stack=frame_stack, grayscale=grayscale)
        self.ball_row = np.zeros(num_envs, np.int64)
        self.ball_column = np.zeros(num_envs, np.int64)  # left edge
        self.drift = np.zeros(num_envs, np.int64)  # pixels per step to the right
        self.paddle = np.zeros(num_envs, np.int64)  # left edge
        self.dropped = np.zeros(num_envs, np.int64)  # number of balls that have landed

    def _start(self, index_n: np.ndarray) -> None:
        self.paddle[index_n] = (SIZE - PADDLE_WIDTH) // 2
        self.dropped[index_n] = 0
        self._drop(index_n)

    def _drop(self, index_n: np.ndarray) -> None:
        self.ball_row[index_n] = 0
        self.ball_column[index_n] = self.streams.integers(index_n, 0, SIZE - BALL + 1)
        self.drift[index_n] = self.streams.integers(index_n, -2, 3)

    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.paddle = np.clip(self.paddle + (action_N - STAY) * PADDLE_SPEED, 0, SIZE - PADDLE_WIDTH)
        self.ball_row += FALL
        self.ball_column, self.drift = bounce(self.ball_column + self.drift, self.drift, SIZE - BALL)
        landed_N = self.ball_row >= LANDING_ROW
        caught_N = landed_N & (np.abs(self._miss(self.ball_column)) < (PADDLE_WIDTH + BALL) // 2)
        self.dropped += landed_N
        terminal_N = self.dropped >= BALLS
        # The last ball stays where it landed, so that the last observation shows it.
        self._drop(np.flatnonzero(landed_N & ~terminal_N))
        reward_N = caught_N.astype(np.float32) * 2 - landed_N.astype(np.float32)
        return reward_N, terminal_N, np.zeros(self.num_envs, bool)

    def _miss(self, ball_column: np.ndarray) -> np.ndarray:
        """Return the horizontal offset in pixels of a ball with this left edge from the paddle, center to center."""
        return ball_column + BALL // 2 - (self.paddle + PADDLE_WIDTH // 2)

    def _draw(self, index_n: np.ndarray) -> None:
        self._stamp(index_n, PADDLE_ROW, self.paddle[index_n], PADDLE_SHAPE, "paddle")
        self._stamp(index_n, self.ball_row[index_n], self.ball_column[index_n], BALL_SHAPE, "ball")

    def expert(self) -> np.ndarray:
        """Move to where the ball will land. Catches every ball."""
        steps_N = (LANDING_ROW - self.ball_row) // FALL
        miss_N = self._miss(fold(self.ball_column + steps_N * self.drift, SIZE - BALL))
        return np.where(miss_N > PADDLE_SPEED // 2, RIGHT, np.where(miss_N < -(PADDLE_SPEED // 2), LEFT, STAY))
