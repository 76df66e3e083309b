"""Shooter: rocks fall; move under them and shoot them before they reach the ground.

A rock shot is worth 1. A rock that comes down costs 1 and one of three lives. A new rock appears every 15 steps, and
there is one shot in the air at a time: a wild one costs the time that it takes to leave the picture.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from zerokara.envs.arcade.base import SIZE, ArcadeEnv, box, sprite

LIVES = 3
ROCK = 14  # pixels across
FALL = 2  # pixels a step
ROCK_EVERY = 15  # steps
SLOTS = 3  # rocks that may be in the air together
GROUND_ROW = 62  # a rock's upper edge when it has come down
SHIP_ROW = 76
SHIP_WIDTH = 12
SHIP_SPEED = 4  # pixels a step
SHOT_HEIGHT, SHOT_WIDTH = 6, 4
SHOT_SPEED = 8  # pixels a step
MUZZLE_ROW = SHIP_ROW - SHOT_HEIGHT
REACH = (ROCK + SHOT_WIDTH) // 2  # centres nearer than this, along the row, meet
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
LIFE_SHAPE = box(3, 6)

# A rock's slot must be free again when its turn comes round.
assert SLOTS * ROCK_EVERY > GROUND_ROW // FALL


class Shooter(ArcadeEnv):
    """See the module."""

    name = "Shooter"
    action_names = ("LEFT", "STAY", "RIGHT", "FIRE")
    colours: ClassVar = {
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
        self._throw(index_n, np.zeros(len(index_n), np.int64))

    def _throw(self, index_n: np.ndarray, slot_n: np.ndarray) -> None:
        """A new rock appears at the top."""
        self.rock_row[index_n, slot_n] = 0
        self.rock_column[index_n, slot_n] = self.streams.integers(index_n, 0, SIZE - ROCK + 1)
        self.rock_there[index_n, slot_n] = True

    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.ship = np.clip(self.ship + STEPS[action_N], 0, SIZE - SHIP_WIDTH)

        # The shot flies before a new one may start, and the new one shows at the muzzle first.
        self.shot_row -= SHOT_SPEED * self.shot_there
        self.rock_row += FALL * self.rock_there
        met_NS = self.rock_there & self.shot_there[:, None] & (np.abs(self._aside(self.shot_column)) < REACH)
        # Shot and rock close by 10 pixels a step, less than their heights together: none passes through.
        met_NS &= (self.shot_row[:, None] < self.rock_row + ROCK) & (
            self.rock_row < self.shot_row[:, None] + SHOT_HEIGHT
        )
        # Of two rocks met at once the lower one breaks.
        lowest_N = np.where(met_NS, self.rock_row, -1).argmax(axis=1)
        hit_N = met_NS.any(axis=1)
        self.rock_there[self._all, lowest_N] &= ~hit_N
        self.shot_there &= ~hit_N & (self.shot_row >= 0)
        fired_N = (action_N == FIRE) & ~self.shot_there
        self.shot_row = np.where(fired_N, MUZZLE_ROW, self.shot_row)
        self.shot_column = np.where(fired_N, self.ship + (SHIP_WIDTH - SHOT_WIDTH) // 2, self.shot_column)
        self.shot_there |= fired_N

        # Rocks are thrown at different times, so one at the most comes down in a step.
        down_NS = self.rock_there & (self.rock_row >= GROUND_ROW)
        lost_N = down_NS.any(axis=1)
        self.lives -= lost_N
        terminal_N = self.lives == 0
        self.rock_there &= ~down_NS | terminal_N[:, None]  # the last one stays, for the last picture

        turn_N, rest_N = np.divmod(self.age + 1, ROCK_EVERY)
        due_n = np.flatnonzero((rest_N == 0) & ~terminal_N)
        self._throw(due_n, turn_N[due_n] % SLOTS)
        return hit_N.astype(np.float32) - lost_N.astype(np.float32), terminal_N, lost_N & ~terminal_N

    def _aside(self, shot_column_N: np.ndarray) -> np.ndarray:
        """How far each rock's centre is to the right of a shot's with this left edge, pixels, (N, SLOTS)."""
        aside_NS: np.ndarray = self.rock_column + ROCK // 2 - (shot_column_N + SHOT_WIDTH // 2)[:, None]
        return aside_NS

    def _draw(self, index_n: np.ndarray) -> None:
        for life in range(LIVES):
            self._stamp(index_n[self.lives[index_n] > life], 2, 2 + 9 * life, LIFE_SHAPE, "life")
        self._stamp(index_n, SHIP_ROW, self.ship[index_n], SHIP_SHAPE, "ship")
        which_r, slot_r = np.nonzero(self.rock_there[index_n])
        rocks_r = index_n[which_r]
        row_r, column_r = self.rock_row[rocks_r, slot_r], self.rock_column[rocks_r, slot_r]
        self._stamp(rocks_r, row_r, column_r, ROCK_SHAPE, "rock")
        shots_n = index_n[self.shot_there[index_n]]
        self._stamp(shots_n, self.shot_row[shots_n], self.shot_column[shots_n], SHOT_SHAPE, "shot")

    def expert(self) -> np.ndarray:
        """Go under the lowest rock that the shot in the air will not hit, and fire."""
        doomed_NS = self.shot_there[:, None] & (np.abs(self._aside(self.shot_column)) < REACH)
        target_N = np.where(self.rock_there & ~doomed_NS, self.rock_row, -1).argmax(axis=1)
        any_N = (self.rock_there & ~doomed_NS).any(axis=1)
        aside_N = self._aside(self.ship + (SHIP_WIDTH - SHOT_WIDTH) // 2)[self._all, target_N]
        near_N = np.abs(aside_N) <= SHIP_SPEED
        move_N = np.where(near_N, np.where(self.shot_there, STAY, FIRE), np.where(aside_N > 0, RIGHT, LEFT))
        return np.where(any_N, move_N, STAY)
