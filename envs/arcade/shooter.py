"""Shooter: shoot falling rocks before they reach the ground.

A destroyed rock gives reward 1. A rock that reaches the ground gives reward -1 and costs one of three lives. A new rock
appears every 15 steps. Only one shot can be in the air at a time, so a shot that misses blocks the next one until it
leaves the screen.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from zerokara.envs.arcade.base import SIZE, ArcadeEnv, box, sprite

LIVES = 3
ROCK = 14  # pixels across
FALL = 2  # pixels per step
ROCK_EVERY = 15  # steps
SLOTS = 3  # maximum number of rocks in the air
GROUND_ROW = 62  # upper edge of a rock that has reached the ground
SHIP_ROW = 76
SHIP_WIDTH = 12
SHIP_SPEED = 4  # pixels per step
SHOT_HEIGHT, SHOT_WIDTH = 6, 4
SHOT_SPEED = 8  # pixels per step
MUZZLE_ROW = SHIP_ROW - SHOT_HEIGHT
REACH = (ROCK + SHOT_WIDTH) // 2  # a shot hits a rock if their centers are horizontally closer than this, pixels
LEFT, STAY, RIGHT, FIRE = range(4)
STEPS = np.array([-SHIP_SPEED, 0, SHIP_SPEED, 0])  # action -> pixels to the right

ROCK_SHAPE = sprite(
    "....######....",
    "..##########..",
    ".############.",
    ".############.",
    "##############",
    "##############",
    "##############",
    "##############",
    "##############",
    "##############",
    ".############.",
    ".############.",
    "..##########..",
    "....######....",
)
SHIP_SHAPE = sprite(
    "....####....",
    "....####....",
    "....####....",
    "############",
    "############",
    "############",
    "############",
    "############",
)
SHOT_SHAPE = box(SHOT_HEIGHT, SHOT_WIDTH)
LIFE_ROW = 2
LIFE_COLUMNS = np.array([2, 11, 20])
LIFE_SHAPE = box(3, 6)

# Slots are used in rotation, so a rock must be gone before its slot is used again.
assert SLOTS * ROCK_EVERY > GROUND_ROW // FALL


class Shooter(ArcadeEnv):
    """Shooter game (rules: see module docstring)."""

    name = "Shooter"
    action_names = ("LEFT", "STAY", "RIGHT", "FIRE")
    colors: ClassVar = {
        "rock": (210, 130, 70),
        "ship": (90, 200, 255),
        "shot": (255, 255, 255),
        "life": (90, 90, 110),
    }
    time_limit_steps = 300
    rules: ClassVar = {"lives": LIVES}
    state_names = ("rock_row", "rock_column", "rock_there", "ship", "shot_row", "shot_column", "shot_there", "lives")

    def __init__(self, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True) -> None:
        super().__init__(num_envs, frame_stack=frame_stack, grayscale=grayscale)
        self.rock_row = np.zeros((num_envs, SLOTS), np.int64)
        self.rock_column = np.zeros((num_envs, SLOTS), np.int64)  # left edge
        self.rock_there = np.zeros((num_envs, SLOTS), bool)
        self.ship = np.zeros(num_envs, np.int64)  # left edge
        self.shot_row = np.zeros(num_envs, np.int64)
        self.shot_column = np.zeros(num_envs, np.int64)  # left edge
        self.shot_there = np.zeros(num_envs, bool)
        self.lives = np.zeros(num_envs, np.int64)

    def _start(self, index_n: np.ndarray) -> None:
        self.rock_there[index_n] = False
        self.ship[index_n] = (SIZE - SHIP_WIDTH) // 2
        self.shot_there[index_n] = False
        self.lives[index_n] = LIVES
        self._spawn_rock(index_n, np.zeros(len(index_n), np.int64))

    def _spawn_rock(self, index_n: np.ndarray, slot_n: np.ndarray) -> None:
        """Put a new rock at the top, at a random column."""
        self.rock_row[index_n, slot_n] = 0
        self.rock_column[index_n, slot_n] = self.streams.integers(index_n, 0, SIZE - ROCK + 1)
        self.rock_there[index_n, slot_n] = True

    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.ship = np.clip(self.ship + STEPS[action_N], 0, SIZE - SHIP_WIDTH)

        # The shot moves before a new one may be fired. A new shot is first drawn at the muzzle.
        self.shot_row -= SHOT_SPEED * self.shot_there
        self.rock_row += FALL * self.rock_there
        met_NS = self.rock_there & self.shot_there[:, None] & (np.abs(self._offset(self.shot_column)) < REACH)
        # Shot and rock approach by 10 pixels per step, less than the sum of their heights, so none passes through.
        met_NS &= (self.shot_row[:, None] < self.rock_row + ROCK) & (
            self.rock_row < self.shot_row[:, None] + SHOT_HEIGHT
        )
        # If the shot touches two rocks, it destroys the lower one.
        lowest_N = np.where(met_NS, self.rock_row, -1).argmax(axis=1)
        hit_N = met_NS.any(axis=1)
        self.rock_there[self._all, lowest_N] &= ~hit_N
        self.shot_there &= ~hit_N & (self.shot_row >= 0)
        fired_N = (action_N == FIRE) & ~self.shot_there
        self.shot_row = np.where(fired_N, MUZZLE_ROW, self.shot_row)
        self.shot_column = np.where(fired_N, self.ship + (SHIP_WIDTH - SHOT_WIDTH) // 2, self.shot_column)
        self.shot_there |= fired_N

        # Rocks appear at different steps, so at most one reaches the ground per step.
        down_NS = self.rock_there & (self.rock_row >= GROUND_ROW)
        lost_N = down_NS.any(axis=1)
        self.lives -= lost_N
        terminal_N = self.lives == 0
        self.rock_there &= ~down_NS | terminal_N[:, None]  # the last rock stays in the last observation

        rock_number_N, remainder_N = np.divmod(self.age + 1, ROCK_EVERY)
        spawn_n = np.flatnonzero((remainder_N == 0) & ~terminal_N)
        self._spawn_rock(spawn_n, rock_number_N[spawn_n] % SLOTS)
        return hit_N.astype(np.float32) - lost_N.astype(np.float32), terminal_N, lost_N & ~terminal_N

    def _offset(self, shot_column_N: np.ndarray) -> np.ndarray:
        """Return the horizontal offset in pixels of each rock from a shot with this left edge, centers, (N, SLOTS)."""
        offset_NS: np.ndarray = self.rock_column + ROCK // 2 - (shot_column_N + SHOT_WIDTH // 2)[:, None]
        return offset_NS

    def _draw(self, index_n: np.ndarray) -> None:
        for life in range(LIVES):
            self._stamp(index_n[self.lives[index_n] > life], LIFE_ROW, LIFE_COLUMNS[life], LIFE_SHAPE, "life")
        self._stamp(index_n, SHIP_ROW, self.ship[index_n], SHIP_SHAPE, "ship")
        which_r, slot_r = np.nonzero(self.rock_there[index_n])
        rocks_r = index_n[which_r]
        row_r, column_r = self.rock_row[rocks_r, slot_r], self.rock_column[rocks_r, slot_r]
        self._stamp(rocks_r, row_r, column_r, ROCK_SHAPE, "rock")
        shots_n = index_n[self.shot_there[index_n]]
        self._stamp(shots_n, self.shot_row[shots_n], self.shot_column[shots_n], SHOT_SHAPE, "shot")

    def expert(self) -> np.ndarray:
        """Move below the lowest rock that the current shot will not hit, and fire."""
        doomed_NS = self.shot_there[:, None] & (np.abs(self._offset(self.shot_column)) < REACH)
        target_N = np.where(self.rock_there & ~doomed_NS, self.rock_row, -1).argmax(axis=1)
        any_N = (self.rock_there & ~doomed_NS).any(axis=1)
        offset_N = self._offset(self.ship + (SHIP_WIDTH - SHOT_WIDTH) // 2)[self._all, target_N]
        near_N = np.abs(offset_N) <= SHIP_SPEED
        move_N = np.where(near_N, np.where(self.shot_there, STAY, FIRE), np.where(offset_N > 0, RIGHT, LEFT))
        return np.where(any_N, move_N, STAY)
