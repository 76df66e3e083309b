"""Tests of the rules of the arcade games against situations computed by hand, and of their shared functions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from zerokara.envs import arcade
from zerokara.envs.arcade import breaker, catch, shooter, snake
from zerokara.envs.arcade.base import SIZE, ArcadeEnv, Streams, bounce, fold, sprite

ENV_0 = np.arange(1)  # index of the only environment


def make_single(game_id: str, **settings: Any) -> Any:
    """Create and reset one game. The tests modify its state."""
    env = arcade.make(game_id, 1, **settings)
    env.reset(0)
    return env


def step_single(env: ArcadeEnv, action: int) -> tuple[float, bool, bool]:
    """Step one game. Returns reward, terminal, life_lost."""
    step = env.step(np.array([action]))
    return float(step.reward[0]), bool(step.terminal[0]), bool(step.life_lost[0])


# Shared functions.


def test_streams_are_splitmix64() -> None:
    """Compare with the reference implementation's outputs from state 1234567. `integers` uses the upper half."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    streams = Streams(2)
    streams.state_N[:] = [1234567, 99]
    drawn = [int(streams.integers(ENV_0, 0, 2**31)[0]) for _ in reference]
    assert drawn == [value >> 33 for value in reference]
    assert streams.state_N[1] == 99  # the other stream is unchanged


@given(st.integers(0, 2**63 - 1), st.integers(-5, 5), st.integers(1, 60))
def test_draws_stay_in_their_range(seed: int, low: int, width: int) -> None:
    streams = Streams(50)
    streams.seed(seed)
    sample_n = streams.integers(np.arange(50), low, low + width)
    assert ((sample_n >= low) & (sample_n < low + width)).all()


def test_draws_are_uniform_within_and_across_streams() -> None:
    """Check chi-squared over 7 values (6 degrees of freedom) against its 99.9% quantile, 22.5 (fixed seed)."""
    streams = Streams(1000)
    streams.seed(0)
    drawn = np.array([streams.integers(np.arange(1000), 0, 7) for _ in range(70)])
    for counts in (np.bincount(drawn.ravel()), np.bincount(drawn[0]), np.bincount(drawn[:, ::100].ravel())):
        expected = counts.sum() / 7
        assert ((counts - expected) ** 2 / expected).sum() < 22.5


@given(st.integers(0, 76), st.integers(-3, 3), st.integers(0, 200))
def test_fold_is_many_bounces(position: int, velocity: int, steps: int) -> None:
    here, speed = np.array([position]), np.array([velocity])
    for _ in range(steps):
        here, speed = bounce(here + speed, speed, 76)
    assert here[0] == fold(np.array([position + steps * velocity]), 76)[0]


def test_sprite_is_read_line_by_line() -> None:
    assert sprite(".#", "#.").tolist() == [1, SIZE]


# Catch.


def test_catch_ball_falls_drifts_and_bounces() -> None:
    env = make_single("zerokara/Catch-v0")
    env.ball_row[:], env.ball_column[:], env.drift[:] = 0, 3, -2
    positions = []
    for _ in range(3):
        assert step_single(env, catch.STAY) == (0.0, False, False)
        positions.append((env.ball_row[0], env.ball_column[0], env.drift[0]))
    assert positions == [(4, 1, -2), (8, 1, 2), (12, 3, 2)]  # 1 - 2 = -1, mirrored to 1


@pytest.mark.parametrize(("ball_column", "reward"), [(22, -1), (23, 1), (34, 1), (45, 1), (46, -1)], ids=str)
def test_catch_needs_the_ball_to_touch_the_paddle(ball_column: int, reward: int) -> None:
    """The paddle covers columns 30 to 45, the ball 8 columns: they overlap if the ball starts in columns 23 to 45."""
    env = make_single("zerokara/Catch-v0")
    env.paddle[:], env.ball_row[:], env.ball_column[:], env.drift[:] = 30, 68, ball_column, 0
    assert step_single(env, catch.STAY) == (reward, False, False)
    assert env.ball_row[0] == 0  # the next ball


def test_catch_ends_with_the_fifth_ball_after_90_steps() -> None:
    env = make_single("zerokara/Catch-v0")
    rewards = []
    for step in range(1, 91):
        reward, terminal, _ = step_single(env, int(env.expert()[0]))
        rewards.append(reward)
        assert terminal == (step == 90)
    assert [index + 1 for index, reward in enumerate(rewards) if reward] == [18, 36, 54, 72, 90]
    assert env.dropped[0] == 0


def test_catch_paddle_stops_at_the_walls() -> None:
    env = make_single("zerokara/Catch-v0")
    assert env.paddle[0] == 34
    for action, position in ((catch.LEFT, 0), (catch.RIGHT, SIZE - catch.PADDLE_WIDTH)):
        for _ in range(17):
            step_single(env, action)
        assert env.paddle[0] == position


def test_catch_picture() -> None:
    env = make_single("zerokara/Catch-v0", frame_stack=1)
    env.ball_row[:], env.ball_column[:], env.drift[:] = 0, 10, 1
    frame_HW = env.step(np.array([catch.STAY])).obs[0, 0]
    rows, columns = np.nonzero(frame_HW[:70])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 11, 11, 18)
    rows, columns = np.nonzero(frame_HW[70:])
    assert (rows.min() + 70, rows.max() + 70, columns.min(), columns.max()) == (78, 81, 34, 49)


# Breaker.


def put_ball(env: Any, row: int, column: int, rise: int, drift: int) -> None:
    env.ball_row[:], env.ball_column[:], env.rise[:], env.drift[:] = row, column, rise, drift


def test_breaker_brick_breaks_and_turns_the_ball() -> None:
    env = make_single("zerokara/Breaker-v0")
    put_ball(env, 40, 34, -4, 1)  # next leading edge: row 36, in the lowest bricks (32 to 37); middle column 37
    assert step_single(env, breaker.STAY) == (1.0, False, False)
    assert env.bricks.sum() == 27
    assert not env.bricks[0, 3, 37 // 12]
    assert (env.ball_row[0], env.ball_column[0], env.rise[0], env.drift[0]) == (40, 35, 4, 1)


def test_breaker_ball_flies_through_the_gap_and_breaks_the_brick_above() -> None:
    env = make_single("zerokara/Breaker-v0")
    env.bricks[0, 3, 3] = False
    put_ball(env, 40, 40, -4, 0)
    # Leading edge in rows 36, 32 and 28; the last one is in row 2 of the wall.
    assert [step_single(env, breaker.STAY)[0] for _ in range(3)] == [0.0, 0.0, 1.0]
    assert not env.bricks[0, 2, 3]


def test_breaker_ball_falling_from_above_breaks_with_its_lower_edge() -> None:
    env = make_single("zerokara/Breaker-v0")
    put_ball(env, 6, 40, 4, 0)  # lower edge 9, then 13, then 17: in the top row (14 to 19)
    assert [step_single(env, breaker.STAY)[0] for _ in range(2)] == [0.0, 1.0]
    assert not env.bricks[0, 0, 42 // 12]
    assert env.rise[0] == -4


def test_breaker_ball_bounces_off_ceiling_and_walls() -> None:
    env = make_single("zerokara/Breaker-v0")
    put_ball(env, 2, 1, -4, -3)
    step_single(env, breaker.STAY)
    assert (env.ball_row[0], env.ball_column[0], env.rise[0], env.drift[0]) == (2, 2, 4, 3)


@pytest.mark.parametrize(
    ("offset", "drift"),
    [(-3, -3), (0, -3), (1, -2), (4, -2), (5, -1), (8, -1), (9, 1), (12, 1), (13, 2), (15, 2), (17, 3), (19, 3)],
)
def test_breaker_paddle_steers(offset: int, drift: int) -> None:
    """23 contact positions in 6 zones: (offset + 3) * 6 // 23."""
    env = make_single("zerokara/Breaker-v0")
    env.paddle[:] = 30
    put_ball(env, 70, 30 + offset, 4, 0)
    assert step_single(env, breaker.STAY) == (0.0, False, False)
    assert (env.ball_row[0], env.rise[0], env.drift[0]) == (74, -4, drift)


@pytest.mark.parametrize("offset", [-4, 20])
def test_breaker_miss_costs_a_life_and_serves(offset: int) -> None:
    env = make_single("zerokara/Breaker-v0")
    env.bricks[0, 0, 0] = False
    env.paddle[:] = 20
    put_ball(env, 70, 20 + offset, 4, 0)
    assert step_single(env, breaker.STAY) == (0.0, False, True)
    assert (env.lives[0], env.ball_row[0], env.paddle[0], env.bricks.sum()) == (2, breaker.SERVE_ROW, 32, 27)


def test_breaker_ends_with_the_last_life_or_the_last_brick() -> None:
    env = make_single("zerokara/Breaker-v0")
    env.lives[:], env.paddle[:] = 1, 0
    put_ball(env, 70, 60, 4, 0)
    assert step_single(env, breaker.STAY) == (0.0, True, False)
    assert (env.lives[0], env.bricks.sum()) == (3, 28)
    env.bricks[:] = False
    env.bricks[0, 3, 3] = True
    put_ball(env, 40, 40, -4, 0)
    assert step_single(env, breaker.STAY) == (1.0, True, False)
    assert env.bricks.all()


def test_breaker_every_serve_can_be_reached() -> None:
    """Check that the expert hits every serve, from any column in any direction."""
    serves = [(column, drift) for column in range(20, 61) for drift in breaker.SERVE_DRIFTS]
    env: Any = arcade.make("zerokara/Breaker-v0", len(serves), frame_stack=1)
    env.reset(0)
    env.ball_column[:], env.drift[:] = np.array(serves).T
    for _ in range(60):
        assert not env.step(env.expert()).life_lost.any()


def test_breaker_picture_of_the_wall() -> None:
    env = make_single("zerokara/Breaker-v0", frame_stack=1, grayscale=False)
    env.bricks[0, 1, 2] = False
    put_ball(env, 50, 50, 4, 0)
    frame_FHW = env.step(np.array([breaker.STAY])).obs[0]
    assert frame_FHW[:, 14, 0].tolist() == list(env.colors["row0"])
    assert frame_FHW[:, 18, 10].tolist() == list(env.colors["row0"])
    assert frame_FHW[:, 36, 82].tolist() == list(env.colors["row3"])
    for row, column in ((19, 0), (14, 11), (22, 24), (22, 34), (38, 0)):  # gaps, the missing brick, below the wall
        assert frame_FHW[:, row, column].tolist() == [0, 0, 0]
    assert frame_FHW[:, 54, 50].tolist() == [255, 255, 255]


# Snake.


def put_snake(env: Any, cells: list[tuple[int, int]], food: tuple[int, int], heading: int) -> None:
    """Put the snake on these cells, head first."""
    env.body[:] = 0
    for age, cell in enumerate(cells):
        env.body[0][cell] = len(cells) - age
    env.head[:], env.length[:], env.food[:], env.heading[:] = cells[0], len(cells), food, heading


def test_snake_moves_and_its_tail_follows() -> None:
    env = make_single("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (0, 0), snake.RIGHT)
    assert step_single(env, snake.UP) == (0.0, False, False)
    expected = np.zeros((6, 6), int)
    expected[2, 3], expected[3, 3], expected[3, 2] = 3, 2, 1
    assert np.array_equal(env.body[0], expected)
    assert env.head[0].tolist() == [2, 3]


def test_snake_eats_and_grows_and_new_food_appears() -> None:
    env = make_single("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (3, 4), snake.RIGHT)
    assert step_single(env, snake.RIGHT) == (1.0, False, False)
    assert env.length[0] == 4
    assert env.body[0, 3].tolist() == [0, 1, 2, 3, 4, 0]
    assert env.body[0][tuple(env.food[0])] == 0


def test_snake_wins_at_its_full_length() -> None:
    env = make_single("zerokara/Snake-v0")
    body = [(3, column) for column in range(4, -1, -1)] + [(2, 0), (2, 1)]
    assert len(body) == snake.FULL_LENGTH - 1
    put_snake(env, body, (3, 5), snake.RIGHT)
    assert step_single(env, snake.RIGHT) == (1.0, True, False)
    assert env.length[0] == (env.body > 0).sum() == snake.START_LENGTH


def test_snake_in_a_circle_is_truncated() -> None:
    env = make_single("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (5, 5), snake.RIGHT)
    for step in range(1, 201):
        end = env.step(np.array([[snake.UP, snake.LEFT, snake.DOWN, snake.RIGHT][step % 4]]))
        assert (end.terminal[0], end.truncated[0]) == (False, step == 200)


def test_snake_does_not_turn_back_on_itself() -> None:
    env = make_single("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (0, 0), snake.RIGHT)
    assert step_single(env, snake.LEFT) == (0.0, False, False)
    assert env.head[0].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("head", "heading"), [((0, 3), snake.UP), ((5, 3), snake.DOWN), ((3, 0), snake.LEFT), ((3, 5), snake.RIGHT)]
)
def test_snake_dies_at_each_wall(head: tuple[int, int], heading: int) -> None:
    env = make_single("zerokara/Snake-v0")
    put_snake(env, [head], (4, 4), heading)
    assert step_single(env, heading) == (-1.0, True, False)
    assert env.length[0] == snake.START_LENGTH


def test_snake_dies_at_its_body_but_may_follow_its_tail() -> None:
    env = make_single("zerokara/Snake-v0")
    ring = [(2, 2), (2, 3), (3, 3), (3, 2)]  # the tail is directly below the head
    put_snake(env, ring, (0, 0), snake.LEFT)
    assert step_single(env, snake.DOWN) == (0.0, False, False)
    put_snake(env, [*ring, (4, 2)], (0, 0), snake.LEFT)
    assert step_single(env, snake.DOWN) == (-1.0, True, False)


def test_snake_food_falls_on_every_free_cell_and_no_other() -> None:
    env: Any = arcade.make("zerokara/Snake-v0", 3000, frame_stack=1)
    env.reset(0)
    env.body[:] = 0
    env.body[:, 2:] = 1
    env.body[:, 0, 0] = 1
    env._feed(np.arange(3000))
    counts = np.zeros((6, 6), int)
    np.add.at(counts, (env.food[:, 0], env.food[:, 1]), 1)
    assert counts[0, 0] == counts[2:].sum() == 0
    assert counts[:2].ravel()[1:].min() > 210  # 3000 / 11 = 273, standard deviation 16


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=120))
def test_snake_body_is_connected(seed: int, actions: list[int]) -> None:
    """Check for any actions that the body is a chain of adjacent cells and that the food is on a free cell."""
    env: Any = arcade.make("zerokara/Snake-v0", 1, frame_stack=1)
    env.reset(seed)
    for action in actions:
        env.step(np.array([action]))
        ages = env.body[0]
        top = ages.max()
        assert tuple(env.head[0]) == tuple(np.argwhere(ages == top)[0])
        cells = [np.argwhere(ages == age) for age in range(top, 0, -1)]
        assert all(len(cell) <= 1 for cell in cells)
        chain = [cell[0] for cell in cells if len(cell)]
        assert all(np.abs(a - b).sum() == 1 for a, b in itertools.pairwise(chain))
        assert ages[tuple(env.food[0])] == 0


# Shooter.


def put_rock(env: Any, row: int, column: int) -> None:
    """Put one rock in the first slot and remove all others."""
    env.rock_there[:] = False
    env.rock_there[0, 0], env.rock_row[0, 0], env.rock_column[0, 0] = True, row, column


def test_shooter_shot_flies_and_breaks_the_rock() -> None:
    env = make_single("zerokara/Shooter-v0")
    put_rock(env, 36, 35)  # center 42, like the ship
    assert step_single(env, shooter.FIRE) == (0.0, False, False)
    assert (env.shot_there[0], env.shot_row[0], env.shot_column[0]) == (True, 70, 40)
    # The rock's lower edge is at 52, then 54 and 56, the shot's upper edge at 62, then 54: step 2.
    assert [step_single(env, shooter.STAY)[0] for _ in range(2)] == [0.0, 1.0]
    assert not env.shot_there[0]
    assert not env.rock_there[0].any()


@pytest.mark.parametrize(("column", "hit"), [(26, False), (27, True), (43, True), (44, False)])
def test_shooter_shot_must_touch(column: int, hit: bool) -> None:
    """The shot covers columns 40 to 43, the rock 14 columns: they overlap if the rock starts in columns 27 to 43."""
    env = make_single("zerokara/Shooter-v0")
    put_rock(env, 40, column)
    rewards = [step_single(env, action)[0] for action in (shooter.FIRE, *[shooter.STAY] * 4)]
    assert sum(rewards) == hit


@given(st.integers(0, 22))
def test_shooter_no_rock_passes_through_a_shot(height: int) -> None:
    env = make_single("zerokara/Shooter-v0", frame_stack=1)
    put_rock(env, 2 * height, 35)
    assert sum(step_single(env, action)[0] for action in (shooter.FIRE, *[shooter.STAY] * 8)) == 1.0


def test_shooter_one_shot_at_a_time_and_a_miss_leaves_after_nine_steps() -> None:
    env = make_single("zerokara/Shooter-v0")
    env.rock_there[:] = False
    step_single(env, shooter.FIRE)
    step_single(env, shooter.LEFT)
    rows = []
    for _ in range(7):
        step_single(env, shooter.FIRE)  # no effect
        assert env.shot_column[0] == 40
        rows.append(env.shot_row[0])
    assert rows == [54, 46, 38, 30, 22, 14, 6]
    step_single(env, shooter.FIRE)  # the first shot has left, so this one starts at the current position of the ship
    assert (env.shot_row[0], env.shot_column[0]) == (70, 36)


def test_shooter_rock_on_the_ground_costs_a_life() -> None:
    env = make_single("zerokara/Shooter-v0")
    for lives, ending in ((2, (-1.0, False, True)), (1, (-1.0, False, True)), (3, (-1.0, True, False))):
        put_rock(env, shooter.GROUND_ROW - 4, 0)
        assert step_single(env, shooter.STAY) == (0.0, False, False)
        assert step_single(env, shooter.STAY) == ending
        assert env.lives[0] == lives  # 3 again after the ending


@pytest.mark.parametrize(("rock_row", "hit"), [(38, False), (39, True), (57, True), (58, False)])
def test_shooter_shot_and_rock_share_a_line_of_pixels(rock_row: int, hit: bool) -> None:
    """The shot moves to rows 54 to 59; the rock moves down by two rows and is 14 rows high."""
    env = make_single("zerokara/Shooter-v0")
    put_rock(env, rock_row, 35)
    env.shot_there[:], env.shot_row[:], env.shot_column[:] = True, 62, 40
    assert step_single(env, shooter.STAY)[0] == hit


def test_shooter_of_two_rocks_the_lower_one_breaks() -> None:
    env = make_single("zerokara/Shooter-v0")
    put_rock(env, 44, 35)
    env.rock_there[0, 1], env.rock_row[0, 1], env.rock_column[0, 1] = True, 48, 35
    env.shot_there[:], env.shot_row[:], env.shot_column[:] = True, 62, 40
    assert step_single(env, shooter.STAY)[0] == 1.0
    assert env.rock_there[0].tolist() == [True, False, False]


def test_shooter_throws_a_rock_every_fifteen_steps() -> None:
    env = make_single("zerokara/Shooter-v0")
    env.lives[:] = 100
    thrown = []
    for step in range(1, 76):
        before = env.rock_there.copy()
        step_single(env, shooter.STAY)
        new = env.rock_there & (~before | (env.rock_row == 0))
        if new.any():
            thrown.append((step, int(new[0].argmax())))
    assert thrown == [(15, 1), (30, 2), (45, 0), (60, 1), (75, 2)]
