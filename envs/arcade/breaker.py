"""Breaker: hit the ball with the paddle and break all bricks of the wall.

Each brick gives reward 1. The point of contact with the paddle determines the direction of the ball. The player has
three lives (balls). An episode ends when the last life is lost or the last brick is broken; it is truncated at the time
limit.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from zerokara.envs.arcade.base import SIZE, ArcadeEnv, bounce, box, fold

LIVES = 3
BALL = 4  # pixels across
BALL_SPEED = 4  # pixels per step, up or down
SERVE_ROW = 42
BRICK_ROWS, BRICK_COLUMNS = 4, 7
BRICK_HEIGHT, BRICK_WIDTH = 6, 12
WALL_TOP = 14
WALL_BOTTOM = WALL_TOP + BRICK_ROWS * BRICK_HEIGHT
PADDLE_ROW = 78
PADDLE_WIDTH = 20
PADDLE_SPEED = 4  # pixels per step
REBOUND_ROW = PADDLE_ROW - BALL  # upper edge of the ball when it touches the paddle
# Horizontal speed (pixels per step to the right) after hitting the paddle, from its left end to its right end. Never 0,
# so that no ball moves up and down in one column for ever.
REBOUND_DRIFTS = np.array([-3, -2, -1, 1, 2, 3])
SERVE_DRIFTS = np.array([-2, -1, 1, 2])
CONTACTS = PADDLE_WIDTH + BALL - 1  # number of ball columns that touch the paddle
LEFT, STAY, RIGHT = range(3)

BALL_SHAPE = box(BALL, BALL)
PADDLE_SHAPE = box(4, PADDLE_WIDTH)
LIFE_ROW = 2
LIFE_COLUMNS = np.array([2, 11, 20])
LIFE_SHAPE = box(4, 6)
# Contact points of the expert, in pixels from the left end of the paddle, used in rotation: the ball reaches all bricks
EXPERT_CONTACTS = np.array([1, 18, 6, 13])


class Breaker(ArcadeEnv):
    """Breaker game (rules: see module docstring). Returns range from 0 to 28."""

    name = "Breaker"
    action_names = ("LEFT", "STAY", "RIGHT")
    colors: ClassVar = {
        "row0": (230, 60, 60),
        "row1": (240, 140, 40),
        "row2": (90, 200, 90),
        "row3": (110, 190, 250),
        "paddle": (200, 200, 210),
        "ball": (255, 255, 255),
        "life": (255, 210, 230),
    }
    time_limit_steps = 400
    rules: ClassVar = {"lives": LIVES}
    state_names = ("ball_row", "ball_column", "rise", "drift", "paddle", "bricks", "lives")

    def __init__(self, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True) -> None:
        super().__init__(num_envs, frame_stack=frame_stack, grayscale=grayscale)
        self.ball_row = np.zeros(num_envs, np.int64)
        self.ball_column = np.zeros(num_envs, np.int64)  # left edge
        self.rise = np.zeros(num_envs, np.int64)  # pixels per step downwards: +-BALL_SPEED
        self.drift = np.zeros(num_envs, np.int64)  # pixels per step to the right
        self.paddle = np.zeros(num_envs, np.int64)  # left edge
        self.bricks = np.zeros((num_envs, BRICK_ROWS, BRICK_COLUMNS), bool)
        self.lives = np.zeros(num_envs, np.int64)

    def _start(self, index_n: np.ndarray) -> None:
        self.bricks[index_n] = True
        self.lives[index_n] = LIVES
        self._serve(index_n)

    def _serve(self, index_n: np.ndarray) -> None:
        # Ball and paddle start near the center, so that every served ball can be reached.
        self.paddle[index_n] = (SIZE - PADDLE_WIDTH) // 2
        self.ball_row[index_n] = SERVE_ROW
        self.ball_column[index_n] = self.streams.integers(index_n, 20, SIZE - BALL - 20 + 1)
        self.rise[index_n] = BALL_SPEED
        self.drift[index_n] = SERVE_DRIFTS[self.streams.integers(index_n, 0, len(SERVE_DRIFTS))]

    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.paddle = np.clip(self.paddle + (action_N - STAY) * PADDLE_SPEED, 0, SIZE - PADDLE_WIDTH)
        row_N, self.rise = bounce(self.ball_row + self.rise, self.rise, SIZE)
        self.ball_column, self.drift = bounce(self.ball_column + self.drift, self.drift, SIZE - BALL)

        # The middle of the ball's leading edge breaks a brick. The ball then keeps its row and reverses.
        lead_N = np.where(self.rise < 0, row_N, row_N + BALL - 1)
        brick_row_N = (lead_N - WALL_TOP) // BRICK_HEIGHT
        brick_column_N = (self.ball_column + BALL // 2) // BRICK_WIDTH
        in_wall_N = (brick_row_N >= 0) & (brick_row_N < BRICK_ROWS)
        broken_N = in_wall_N & self.bricks[self._all, np.where(in_wall_N, brick_row_N, 0), brick_column_N]
        broken_n = np.flatnonzero(broken_N)
        self.bricks[broken_n, brick_row_N[broken_n], brick_column_N[broken_n]] = False
        self.ball_row = np.where(broken_N, self.ball_row, row_N)
        self.rise = np.where(broken_N, -self.rise, self.rise)

        down_N = self.ball_row >= REBOUND_ROW
        contact_N = self.ball_column - self.paddle + BALL - 1
        hit_N = down_N & (contact_N >= 0) & (contact_N < CONTACTS)
        zone_N = np.clip(contact_N, 0, CONTACTS - 1) * len(REBOUND_DRIFTS) // CONTACTS
        self.ball_row = np.minimum(self.ball_row, REBOUND_ROW)
        self.rise = np.where(hit_N, -BALL_SPEED, self.rise)
        self.drift = np.where(hit_N, REBOUND_DRIFTS[zone_N], self.drift)

        lost_N = down_N & ~hit_N
        self.lives -= lost_N
        terminal_N = (self.lives == 0) | ~self.bricks.any(axis=(1, 2))
        life_lost_N = lost_N & ~terminal_N
        self._serve(np.flatnonzero(life_lost_N))
        return broken_N.astype(np.float32), terminal_N, life_lost_N

    def _draw(self, index_n: np.ndarray) -> None:
        # The first colors belong to the rows of the wall.
        color_index_nRC = self.bricks[index_n] * np.arange(1, 1 + BRICK_ROWS)[:, None]
        self._tile(index_n, WALL_TOP, color_index_nRC, BRICK_HEIGHT, BRICK_WIDTH)
        for life in range(LIVES):
            self._stamp(index_n[self.lives[index_n] > life], LIFE_ROW, LIFE_COLUMNS[life], LIFE_SHAPE, "life")
        self._stamp(index_n, PADDLE_ROW, self.paddle[index_n], PADDLE_SHAPE, "paddle")
        self._stamp(index_n, self.ball_row[index_n], self.ball_column[index_n], BALL_SHAPE, "ball")

    def expert(self) -> np.ndarray:
        """Hit every ball, at rotating contact points of the paddle, without aiming at particular bricks."""
        steps_N = -((self.ball_row - REBOUND_ROW) // BALL_SPEED)
        landing_N = fold(self.ball_column + steps_N * self.drift, SIZE - BALL)
        # The landing point of a rising ball is unknown, because it depends on the brick it hits: stay below the ball.
        goal_N = np.where(self.rise > 0, landing_N, self.ball_column)
        contact_index_N = self.bricks.sum(axis=(1, 2)) % len(EXPERT_CONTACTS)
        distance_N = goal_N - (self.paddle + EXPERT_CONTACTS[contact_index_N] - BALL // 2)
        return np.where(distance_N > PADDLE_SPEED // 2, RIGHT, np.where(distance_N < -(PADDLE_SPEED // 2), LEFT, STAY))
