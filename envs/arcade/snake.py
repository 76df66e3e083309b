"""Snake: eat food without running into the walls or into the snake's own body.

Food gives reward 1, death -1. The snake grows by one cell with each food. The episode ends when it reaches its full
length.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from zerokara.envs.arcade.base import SIZE, ArcadeEnv

CELLS = 6  # along each side of the board
CELL = SIZE // CELLS  # pixels
START_LENGTH = 3
FULL_LENGTH = 8
UP, RIGHT, DOWN, LEFT = range(4)
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # direction -> rows down, columns right


class Snake(ArcadeEnv):
    """Snake game (rules: see module docstring). Returns range from -1 to 5.

    An action opposite to the current direction is ignored.
    """

    name = "Snake"
    action_names = ("UP", "RIGHT", "DOWN", "LEFT")
    colors: ClassVar = {"head": (255, 255, 255), "body": (40, 120, 60), "food": (250, 170, 60)}
    time_limit_steps = 200
    rules: ClassVar = {"full_length_cells": FULL_LENGTH}
    state_names = ("body", "head", "heading", "length", "food")

    def __init__(self, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True) -> None:
        super().__init__(num_envs, frame_stack=frame_stack, grayscale=grayscale)
        # Steps until a cell becomes free: the snake's length at the head, 1 at the tail, 0 on free cells.
        self.body = np.zeros((num_envs, CELLS, CELLS), np.int64)
        self.head = np.zeros((num_envs, 2), np.int64)  # row, column
        self.heading = np.zeros(num_envs, np.int64)  # index into MOVES
        self.length = np.zeros(num_envs, np.int64)
        self.food = np.zeros((num_envs, 2), np.int64)  # row, column

    def _start(self, index_n: np.ndarray) -> None:
        row_n = self.streams.integers(index_n, 0, CELLS)
        self.body[index_n] = 0
        for age in range(START_LENGTH):
            self.body[index_n, row_n, START_LENGTH - 1 - age] = START_LENGTH - age
        self.head[index_n, 0] = row_n
        self.head[index_n, 1] = START_LENGTH - 1
        self.heading[index_n] = RIGHT
        self.length[index_n] = START_LENGTH
        self._feed(index_n)

    def _feed(self, index_n: np.ndarray) -> None:
        """Put food on a free cell, chosen uniformly at random."""
        free_nC = self.body[index_n].reshape(len(index_n), CELLS * CELLS) == 0
        choice_n = self.streams.integers(index_n, 0, free_nC.sum(axis=1))
        cell_n = np.argmax(free_nC.cumsum(axis=1) == choice_n[:, None] + 1, axis=1)
        self.food[index_n, 0], self.food[index_n, 1] = np.divmod(cell_n, CELLS)

    def _ahead(self, direction_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the next cell in direction_N: row, column (both clipped to the board), and True if it is off board."""
        cell = self.head + MOVES[direction_N]
        off_N = ((cell < 0) | (cell >= CELLS)).any(axis=1)
        row_N, column_N = np.clip(cell, 0, CELLS - 1).T
        return row_N, column_N, off_N

    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.heading = np.where((action_N + 2) % 4 == self.heading, self.heading, action_N)
        row_N, column_N, off_N = self._ahead(self.heading)
        eaten_N = ~off_N & (row_N == self.food[:, 0]) & (column_N == self.food[:, 1])
        self.length += eaten_N
        # The tail moves first, so the head may enter the cell that the tail leaves.
        self.body -= (self.body > 0) & ~eaten_N[:, None, None]
        dead_N = off_N | (self.body[self._all, row_N, column_N] > 0)
        alive_n = np.flatnonzero(~dead_N)
        # The head of a dead snake stays in its cell in the last observation.
        self.head[alive_n, 0] = row_N[alive_n]
        self.head[alive_n, 1] = column_N[alive_n]
        self.body[alive_n, row_N[alive_n], column_N[alive_n]] = self.length[alive_n]
        self._feed(np.flatnonzero(eaten_N))
        terminal_N = dead_N | (self.length >= FULL_LENGTH)
        return eaten_N.astype(np.float32) - dead_N.astype(np.float32), terminal_N, np.zeros(self.num_envs, bool)

    def _draw(self, index_n: np.ndarray) -> None:
        color_index_nRC = (self.body[index_n] > 0) * self.color_index["body"]
        each_n = np.arange(len(index_n))
        color_index_nRC[each_n, self.food[index_n, 0], self.food[index_n, 1]] = self.color_index["food"]
        color_index_nRC[each_n, self.head[index_n, 0], self.head[index_n, 1]] = self.color_index["head"]
        self._tile(index_n, 0, color_index_nRC, CELL, CELL)

    def expert(self) -> np.ndarray:
        """Choose the step that leads nearest to the food among those that are safe for this step and the next."""
        cost_N4 = np.zeros((self.num_envs, 4), np.int64)
        body = np.pad(self.body, ((0, 0), (1, 1), (1, 1)), constant_values=FULL_LENGTH)
        for direction in range(4):
            row_N, column_N, off_N = self._ahead(np.full(self.num_envs, direction))
            blocked_N = off_N | (self.body[self._all, row_N, column_N] > 1)
            distance_N = np.abs(row_N - self.food[:, 0]) + np.abs(column_N - self.food[:, 1])
            # Number of free exits one step later. The cell of the current head is occupied by then.
            exits_N = np.zeros(self.num_envs, np.int64)
            for down, right in MOVES:
                exits_N += body[self._all, row_N + 1 + down, column_N + 1 + right] <= 2
            back_N = (self.heading + 2) % 4 == direction
            cost_N4[:, direction] = distance_N + 100 * (exits_N == 0) + 1000 * (blocked_N | back_N)
        action_N: np.ndarray = cost_N4.argmin(axis=1)
        return action_N
