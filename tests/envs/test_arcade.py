"""Arcade games: rules against hand-computed situations, endings, determinism, saved state, experts, Gymnasium."""

from __future__ import annotations

import io
import itertools
import warnings
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.config import UserError
from envs import arcade
from envs.arcade import GAMES, breaker, catch, shooter, snake
from envs.arcade.base import SIZE, ArcadeEnv, Streams, bounce, fold, sprite
from envs.base import Step, VectorEnv

IDS = sorted(GAMES)
# Mean returns of 100 games: what the scripted expert reaches at least, and what random play stays below.
# Measured: experts 19.8, 5.0, 19.9, 6.0 and random play 1.7, -2.3, -0.6, -0.8; the margins are three standard errors.
EXPERT_AT_LEAST = {
    "zerokara/Breaker-v0": 18.9,
    "zerokara/Catch-v0": 5.0,
    "zerokara/Shooter-v0": 19.7,
    "zerokara/Snake-v0": 4.9,
}
RANDOM_AT_MOST = {
    "zerokara/Breaker-v0": 2.2,
    "zerokara/Catch-v0": -1.5,
    "zerokara/Shooter-v0": 0.0,
    "zerokara/Snake-v0": -0.5,
}
EVERY = np.arange(1)  # the only environment of a game of one


def random_actions(env: VectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Actions (steps, N)."""
    return np.random.default_rng(seed).integers(env.num_actions, size=(steps, env.num_envs))


def step_arrays(steps: list[Step]) -> list[np.ndarray]:
    return [array for step in steps for array in step]


def alone(game_id: str, **settings: Any) -> Any:
    """One game, started: its state is poked at by the tests of the rules."""
    env = arcade.make(game_id, 1, **settings)
    env.reset(0)
    return env


def act(env: ArcadeEnv, action: int) -> tuple[float, bool, bool]:
    """Reward, terminal, life lost of one step of one game."""
    step = env.step(np.array([action]))
    return float(step.reward[0]), bool(step.terminal[0]), bool(step.life_lost[0])


# What holds for every game.


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize(("stack", "grey", "channels"), [(1, True, 1), (4, True, 4), (1, False, 3), (4, False, 12)])
def test_shapes_and_types(game_id: str, stack: int, grey: bool, channels: int) -> None:
    env = arcade.make(game_id, 3, stack=stack, grey=grey)
    obs = env.reset(0)
    assert (env.id, env.num_envs, env.num_actions) == (game_id, 3, len(env.action_names))
    assert 2 <= env.num_actions <= 5
    assert env.obs_shape == (channels, 84, 84)
    assert env.frame_channels == channels // stack
    assert (env.settings["stack"], env.settings["grey"]) == (stack, grey)
    step = env.step(np.zeros(3, np.int64))
    for picture in (obs, step.obs, step.last_obs):
        assert picture.shape == (3, channels, 84, 84)
        assert picture.dtype == np.uint8
    assert step.reward.shape == (3,)
    assert step.reward.dtype == np.float32
    for flag in (step.terminal, step.truncated, step.life_lost):
        assert flag.shape == (3,)
        assert flag.dtype == np.bool_


@pytest.mark.parametrize("game_id", IDS)
def test_same_seed_same_pixels_other_seed_other_pixels(game_id: str) -> None:
    one, same, other = (arcade.make(game_id, 8) for _ in range(3))
    assert np.array_equal(one.reset(7), same.reset(7))
    other.reset(8)
    differs = False
    for action_N in random_actions(one, 250):
        mine, yours, theirs = one.step(action_N), same.step(action_N), other.step(action_N)
        assert all(np.array_equal(a, b) for a, b in zip(mine, yours, strict=True))
        differs |= not np.array_equal(mine.obs, theirs.obs)
    assert differs


@pytest.mark.parametrize("game_id", IDS)
def test_reset_forgets_what_was_before(game_id: str) -> None:
    used, fresh = arcade.make(game_id, 4), arcade.make(game_id, 4)
    used.reset(1)
    for action_N in random_actions(used, 60):
        used.step(action_N)
    assert np.array_equal(used.reset(2), fresh.reset(2))
    for action_N in random_actions(used, 60, seed=1):
        assert all(np.array_equal(a, b) for a, b in zip(used.step(action_N), fresh.step(action_N), strict=True))


@pytest.mark.parametrize("game_id", IDS)
def test_a_game_does_not_depend_on_its_neighbours(game_id: str) -> None:
    """The first two of eight play as if they were two, whatever the other six do."""
    many, two = arcade.make(game_id, 8), arcade.make(game_id, 2)
    assert np.array_equal(many.reset(3)[:2], two.reset(3))
    for action_N in random_actions(many, 300):
        a, b = many.step(action_N), two.step(action_N[:2])
        assert np.array_equal(a.obs[:2], b.obs)
        assert np.array_equal(a.reward[:2], b.reward)


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("grey", [True, False])
def test_saved_state_goes_on_bit_for_bit(game_id: str, grey: bool) -> None:
    env = arcade.make(game_id, 6, grey=grey)
    env.reset(5)
    actions = random_actions(env, 300)
    for action_N in actions[:36]:
        env.step(action_N)
    obs = env.step(actions[36]).obs
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = step_arrays([env.step(action_N) for action_N in actions[37:]])

    file.seek(0)
    other = arcade.make(game_id, 6, grey=grey)
    assert np.array_equal(other.load_state_dict(torch.load(file, weights_only=True)), obs)
    got = step_arrays([other.step(action_N) for action_N in actions[37:]])
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("game_id", IDS)
def test_a_state_is_a_copy(game_id: str) -> None:
    env = arcade.make(game_id, 2)
    env.reset(0)
    state = env.state_dict()
    before = {name: tensor.clone() for name, tensor in state["game"].items()}
    for action_N in random_actions(env, 30):
        env.step(action_N)
    assert all(torch.equal(state["game"][name], before[name]) for name in before)
    env.load_state_dict(state)
    for action_N in random_actions(env, 30):
        env.step(action_N)
    assert all(torch.equal(state["game"][name], before[name]) for name in before)


def test_a_foreign_state_is_refused() -> None:
    env = alone("zerokara/Catch-v0")
    with pytest.raises(ValueError, match="Snake"):
        env.load_state_dict(alone("zerokara/Snake-v0").state_dict())
    with pytest.raises(ValueError, match=r"\(1, 1, 84, 84\)"):
        env.load_state_dict(alone("zerokara/Catch-v0", stack=1).state_dict())


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("expert", [True, False])
def test_endings(game_id: str, expert: bool) -> None:
    """Terminal and truncated exclude each other, obs starts anew with zeros before, last_obs shows what really was.

    What really was is known from a second environment that is saved before each step and cannot reset itself.
    """
    env, shadow = arcade.make(game_id, 5), arcade.make(game_id, 5)
    obs = env.reset(11)
    length_N, seen = np.zeros(5, int), {"terminal": 0, "truncated": 0}
    for random_N in random_actions(env, 450):
        action_N = env.expert() if expert else random_N
        shadow.load_state_dict(env.state_dict())
        shadow._advance(action_N)
        shadow._redraw(np.arange(5))
        step = env.step(action_N)
        length_N += 1
        assert not (step.terminal & step.truncated).any()
        assert not (step.terminal & step.life_lost).any()
        ended_N = step.terminal | step.truncated
        assert np.array_equal(step.last_obs[:, :3], obs[:, 1:])
        assert np.array_equal(step.last_obs[:, 3:], shadow.canvas)
        assert np.array_equal(step.obs[~ended_N], step.last_obs[~ended_N])
        assert not step.obs[ended_N, :3].any()
        assert step.obs[ended_N, 3:].any(axis=(1, 2, 3)).all()
        assert (step.obs[ended_N, 3] != step.last_obs[ended_N, 3]).any(axis=(1, 2)).all()
        assert np.array_equal(length_N[step.truncated], np.full(step.truncated.sum(), env.time_limit_steps))
        assert (length_N <= env.time_limit_steps).all()
        seen["terminal"] += step.terminal.sum()
        seen["truncated"] += step.truncated.sum()
        length_N[ended_N] = 0
        obs = step.obs
    if not expert or game_id in ("zerokara/Catch-v0", "zerokara/Snake-v0"):
        assert seen["terminal"] > 0
    else:
        assert seen["truncated"] > 0


@pytest.mark.parametrize("game_id", IDS)
def test_an_ending_at_the_time_limit_is_terminal_where_the_game_ends_it(
    game_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = arcade.make(game_id, 2)
    env.reset(0)
    original = env._advance

    def ends_the_first(action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward_N, _, life_lost_N = original(action_N)
        return reward_N, np.array([True, False]), life_lost_N

    monkeypatch.setattr(env, "_advance", ends_the_first)
    env.age[:] = env.time_limit_steps - 1
    step = env.step(np.ones(2, np.int64))
    assert (step.terminal.tolist(), step.truncated.tolist()) == ([True, False], [False, True])
    assert env.age.tolist() == [0, 0]


@pytest.mark.parametrize("game_id", IDS)
def test_stack_holds_the_last_frames(game_id: str) -> None:
    """Zeros before the start, and each stack is the frames of the same game with stack 1."""
    stacked, single = arcade.make(game_id, 3), arcade.make(game_id, 3, stack=1)
    obs, frame = stacked.reset(2), single.reset(2)
    assert not obs[:, :3].any()
    frames = [np.zeros_like(frame)] * 3 + [frame]
    assert np.array_equal(obs, np.concatenate(frames, axis=1))
    for action_N in random_actions(stacked, 7):
        step, frame_step = stacked.step(action_N), single.step(action_N)
        frames = [*frames[1:], frame_step.last_obs]
        if (step.terminal | step.truncated).any():
            break
        assert np.array_equal(step.obs, np.concatenate(frames, axis=1))


@pytest.mark.parametrize("game_id", IDS)
def test_grey_is_the_luminance_of_rgb(game_id: str) -> None:
    grey, rgb = arcade.make(game_id, 2, stack=1), arcade.make(game_id, 2, stack=1, grey=False)
    grey.reset(4)
    rgb_NFHW = rgb.reset(4)
    for action_N in random_actions(grey, 40):
        grey_NHW, rgb_NFHW = grey.step(action_N).obs[:, 0], rgb.step(action_N).obs
        for one_HW, one_FHW in zip(grey_NHW, rgb_NFHW, strict=True):
            converted = cv2.cvtColor(np.ascontiguousarray(one_FHW.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
            assert np.abs(converted.astype(int) - one_HW).max() <= 1  # their rounding differs
        assert np.array_equal(grey.render(), rgb.render())
    picture = grey.render()
    assert picture.shape == (336, 336, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[::4, ::4], rgb_NFHW[0].transpose(1, 2, 0))


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize(
    "actions", [[0, 5], [-1, 0], [0], [[0, 0]]], ids=["too large", "negative", "too few", "wrong shape"]
)
def test_bad_actions_are_refused(game_id: str, actions: list[Any]) -> None:
    env = arcade.make(game_id, 2)
    env.reset(0)
    with pytest.raises(ValueError, match="actions"):
        env.step(np.array(actions))
    with pytest.raises(ValueError, match="float64"):
        env.step(np.zeros(2))
    env.step(np.zeros(2, np.int64))  # and the game goes on


def test_send_and_receive_keep_their_order() -> None:
    env = arcade.make("zerokara/Catch-v0", 2)
    actions = np.zeros(2, np.int64)
    with pytest.raises(RuntimeError, match="reset"):
        env.send(actions)
    env.reset(0)
    with pytest.raises(RuntimeError, match="send"):
        env.recv()
    env.send(actions)
    with pytest.raises(RuntimeError, match="twice"):
        env.send(actions)
    with pytest.raises(RuntimeError, match="between"):
        env.state_dict()
    env.recv()
    env.state_dict()


def test_an_action_array_may_be_used_again_after_send() -> None:
    env, other = arcade.make("zerokara/Catch-v0", 2), arcade.make("zerokara/Catch-v0", 2)
    env.reset(0)
    other.reset(0)
    actions = np.zeros(2, np.int64)
    env.send(actions)
    actions[:] = 2
    assert np.array_equal(env.recv().obs, other.step(np.zeros(2, np.int64)).obs)


@pytest.mark.parametrize("game_id", IDS)
def test_steps_are_the_callers_to_keep(game_id: str) -> None:
    env = arcade.make(game_id, 4)
    env.reset(0)
    kept = [env.step(action_N) for action_N in random_actions(env, 30)]
    copies = [array.copy() for array in step_arrays(kept)]
    for action_N in random_actions(env, 30, seed=1):
        env.step(action_N)
    assert all(np.array_equal(a, b) for a, b in zip(step_arrays(kept), copies, strict=True))


def play(game_id: str, games: int, expert: bool) -> np.ndarray:
    """Returns (games,) of the first game of each environment."""
    env = arcade.make(game_id, games, stack=1)
    env.reset(2024)
    return_N, over_N = np.zeros(games), np.zeros(games, bool)
    rng = np.random.default_rng(0)
    for _ in range(env.time_limit_steps):
        step = env.step(env.expert() if expert else rng.integers(env.num_actions, size=games))
        return_N += step.reward * ~over_N
        over_N |= step.terminal | step.truncated
    assert over_N.all()
    return return_N


@pytest.mark.parametrize("game_id", IDS)
def test_experts_and_random_players(game_id: str) -> None:
    assert play(game_id, 100, expert=True).mean() >= EXPERT_AT_LEAST[game_id]
    assert play(game_id, 100, expert=False).mean() <= RANDOM_AT_MOST[game_id]


def test_unknown_games_and_counts_are_refused() -> None:
    with pytest.raises(UserError, match=r"zerokara/Snake-v0\.$"):
        arcade.make("zerokara/Snke-v0", 1)
    with pytest.raises(UserError, match="at least 1, got 0"):
        arcade.make("zerokara/Snake-v0", 0)
    with pytest.raises(UserError, match="stacked frames"):
        arcade.make("zerokara/Snake-v0", 1, stack=0)


def test_colours_of_equal_luminance_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):

        class Muddled(ArcadeEnv):
            name = "Muddled"
            colours = {"sea": (0, 0, 200), "sky": (0, 0, 200)}  # noqa: RUF012  (as a game's author would write it)


# The parts.


def test_streams_are_splitmix64() -> None:
    """The reference implementation's first outputs from state 1234567, of which `integers` takes the upper half."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    streams = Streams(2)
    streams.state_N[:] = [1234567, 99]
    drawn = [int(streams.integers(EVERY, 0, 2**31)[0]) for _ in reference]
    assert drawn == [value >> 33 for value in reference]
    assert streams.state_N[1] == 99  # the other stream was left alone


@given(st.integers(0, 2**63 - 1), st.integers(-5, 5), st.integers(1, 60))
def test_draws_stay_in_their_range(seed: int, low: int, width: int) -> None:
    streams = Streams(50)
    streams.seed(seed)
    drawn_n = streams.integers(np.arange(50), low, low + width)
    assert ((drawn_n >= low) & (drawn_n < low + width)).all()


def test_draws_are_even_within_and_across_streams() -> None:
    """Chi-squared over 7 values with 6 degrees of freedom stays under its 99.9% point, 22.5 (fixed seed)."""
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
    env = alone("zerokara/Catch-v0")
    env.ball_row[:], env.ball_column[:], env.drift[:] = 0, 3, -2
    places = []
    for _ in range(3):
        assert act(env, catch.STAY) == (0.0, False, False)
        places.append((env.ball_row[0], env.ball_column[0], env.drift[0]))
    assert places == [(4, 1, -2), (8, 1, 2), (12, 3, 2)]  # 1 - 2 = -1, mirrored to 1


@pytest.mark.parametrize(("ball_column", "reward"), [(22, -1), (23, 1), (34, 1), (45, 1), (46, -1)], ids=str)
def test_catch_needs_the_ball_to_touch_the_paddle(ball_column: int, reward: int) -> None:
    """The paddle covers columns 30 to 45, the ball 8 columns: they share one or more from 23 to 45."""
    env = alone("zerokara/Catch-v0")
    env.paddle[:], env.ball_row[:], env.ball_column[:], env.drift[:] = 30, 68, ball_column, 0
    assert act(env, catch.STAY) == (reward, False, False)
    assert env.ball_row[0] == 0  # the next ball


def test_catch_ends_with_the_fifth_ball_after_90_steps() -> None:
    env = alone("zerokara/Catch-v0")
    rewards = []
    for step in range(1, 91):
        reward, terminal, _ = act(env, int(env.expert()[0]))
        rewards.append(reward)
        assert terminal == (step == 90)
    assert [index + 1 for index, reward in enumerate(rewards) if reward] == [18, 36, 54, 72, 90]
    assert env.dropped[0] == 0


def test_catch_paddle_stops_at_the_walls() -> None:
    env = alone("zerokara/Catch-v0")
    assert env.paddle[0] == 34
    for action, at in ((catch.LEFT, 0), (catch.RIGHT, SIZE - catch.PADDLE_WIDTH)):
        for _ in range(17):
            act(env, action)
        assert env.paddle[0] == at


def test_catch_picture() -> None:
    env = alone("zerokara/Catch-v0", stack=1)
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
    env = alone("zerokara/Breaker-v0")
    put_ball(env, 40, 34, -4, 1)  # its next leading edge is row 36, in the lowest bricks (32 to 37); middle column 37
    assert act(env, breaker.STAY) == (1.0, False, False)
    assert env.bricks.sum() == 27
    assert not env.bricks[0, 3, 37 // 12]
    assert (env.ball_row[0], env.ball_column[0], env.rise[0], env.drift[0]) == (40, 35, 4, 1)


def test_breaker_ball_flies_through_the_gap_and_breaks_the_brick_above() -> None:
    env = alone("zerokara/Breaker-v0")
    env.bricks[0, 3, 3] = False
    put_ball(env, 40, 40, -4, 0)
    assert [act(env, breaker.STAY)[0] for _ in range(3)] == [0.0, 0.0, 1.0]  # rows 36, 32, then 28: row 2 of the wall
    assert not env.bricks[0, 2, 3]


def test_breaker_ball_falling_from_above_breaks_with_its_lower_edge() -> None:
    env = alone("zerokara/Breaker-v0")
    put_ball(env, 6, 40, 4, 0)  # lower edge 9, then 13, then 17: in the top row (14 to 19)
    assert [act(env, breaker.STAY)[0] for _ in range(2)] == [0.0, 1.0]
    assert not env.bricks[0, 0, 42 // 12]
    assert env.rise[0] == -4


def test_breaker_ball_bounces_off_ceiling_and_walls() -> None:
    env = alone("zerokara/Breaker-v0")
    put_ball(env, 2, 1, -4, -3)
    act(env, breaker.STAY)
    assert (env.ball_row[0], env.ball_column[0], env.rise[0], env.drift[0]) == (2, 2, 4, 3)


@pytest.mark.parametrize(
    ("offset", "drift"),
    [(-3, -3), (0, -3), (1, -2), (4, -2), (5, -1), (8, -1), (9, 1), (12, 1), (13, 2), (15, 2), (17, 3), (19, 3)],
)
def test_breaker_paddle_steers(offset: int, drift: int) -> None:
    """23 places of contact in 6 zones: (offset + 3) * 6 // 23."""
    env = alone("zerokara/Breaker-v0")
    env.paddle[:] = 30
    put_ball(env, 70, 30 + offset, 4, 0)
    assert act(env, breaker.STAY) == (0.0, False, False)
    assert (env.ball_row[0], env.rise[0], env.drift[0]) == (74, -4, drift)


@pytest.mark.parametrize("offset", [-4, 20])
def test_breaker_miss_costs_a_life_and_serves(offset: int) -> None:
    env = alone("zerokara/Breaker-v0")
    env.bricks[0, 0, 0] = False
    env.paddle[:] = 20
    put_ball(env, 70, 20 + offset, 4, 0)
    assert act(env, breaker.STAY) == (0.0, False, True)
    assert (env.lives[0], env.ball_row[0], env.paddle[0], env.bricks.sum()) == (2, breaker.SERVE_ROW, 32, 27)


def test_breaker_ends_with_the_last_life_or_the_last_brick() -> None:
    env = alone("zerokara/Breaker-v0")
    env.lives[:], env.paddle[:] = 1, 0
    put_ball(env, 70, 60, 4, 0)
    assert act(env, breaker.STAY) == (0.0, True, False)
    assert (env.lives[0], env.bricks.sum()) == (3, 28)
    env.bricks[:] = False
    env.bricks[0, 3, 3] = True
    put_ball(env, 40, 40, -4, 0)
    assert act(env, breaker.STAY) == (1.0, True, False)
    assert env.bricks.all()


def test_breaker_every_serve_can_be_reached() -> None:
    """The expert loses no ball that it is served, from any column in any direction."""
    serves = [(column, drift) for column in range(20, 61) for drift in breaker.SERVE_DRIFTS]
    env: Any = arcade.make("zerokara/Breaker-v0", len(serves), stack=1)
    env.reset(0)
    env.ball_column[:], env.drift[:] = np.array(serves).T
    for _ in range(60):
        assert not env.step(env.expert()).life_lost.any()


def test_breaker_picture_of_the_wall() -> None:
    env = alone("zerokara/Breaker-v0", stack=1, grey=False)
    env.bricks[0, 1, 2] = False
    put_ball(env, 50, 50, 4, 0)
    frame_FHW = env.step(np.array([breaker.STAY])).obs[0]
    assert frame_FHW[:, 14, 0].tolist() == list(env.colours["row0"])
    assert frame_FHW[:, 18, 10].tolist() == list(env.colours["row0"])
    assert frame_FHW[:, 36, 82].tolist() == list(env.colours["row3"])
    for row, column in ((19, 0), (14, 11), (22, 24), (22, 34), (38, 0)):  # gaps, the missing brick, below the wall
        assert frame_FHW[:, row, column].tolist() == [0, 0, 0]
    assert frame_FHW[:, 54, 50].tolist() == [255, 255, 255]


# Snake.


def put_snake(env: Any, cells: list[tuple[int, int]], food: tuple[int, int], heading: int) -> None:
    """Lay the snake on these cells, head first."""
    env.body[:] = 0
    for age, cell in enumerate(cells):
        env.body[0][cell] = len(cells) - age
    env.head[:], env.length[:], env.food[:], env.heading[:] = cells[0], len(cells), food, heading


def test_snake_moves_and_its_tail_follows() -> None:
    env = alone("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (0, 0), snake.RIGHT)
    assert act(env, snake.UP) == (0.0, False, False)
    expected = np.zeros((6, 6), int)
    expected[2, 3], expected[3, 3], expected[3, 2] = 3, 2, 1
    assert np.array_equal(env.body[0], expected)
    assert env.head[0].tolist() == [2, 3]


def test_snake_eats_grows_and_is_fed_again() -> None:
    env = alone("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (3, 4), snake.RIGHT)
    assert act(env, snake.RIGHT) == (1.0, False, False)
    assert env.length[0] == 4
    assert env.body[0, 3].tolist() == [0, 1, 2, 3, 4, 0]
    assert env.body[0][tuple(env.food[0])] == 0


def test_snake_wins_at_its_full_length() -> None:
    env = alone("zerokara/Snake-v0")
    almost = [(3, column) for column in range(4, -1, -1)] + [(2, 0), (2, 1)]
    assert len(almost) == snake.FULL_LENGTH - 1
    put_snake(env, almost, (3, 5), snake.RIGHT)
    assert act(env, snake.RIGHT) == (1.0, True, False)
    assert env.length[0] == (env.body > 0).sum() == snake.START_LENGTH


def test_snake_that_goes_round_and_round_is_cut_off() -> None:
    env = alone("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (5, 5), snake.RIGHT)
    for step in range(1, 201):
        end = env.step(np.array([[snake.UP, snake.LEFT, snake.DOWN, snake.RIGHT][step % 4]]))
        assert (end.terminal[0], end.truncated[0]) == (False, step == 200)


def test_snake_does_not_turn_back_on_itself() -> None:
    env = alone("zerokara/Snake-v0")
    put_snake(env, [(3, 3), (3, 2), (3, 1)], (0, 0), snake.RIGHT)
    assert act(env, snake.LEFT) == (0.0, False, False)
    assert env.head[0].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("head", "heading"), [((0, 3), snake.UP), ((5, 3), snake.DOWN), ((3, 0), snake.LEFT), ((3, 5), snake.RIGHT)]
)
def test_snake_dies_at_each_wall(head: tuple[int, int], heading: int) -> None:
    env = alone("zerokara/Snake-v0")
    put_snake(env, [head], (4, 4), heading)
    assert act(env, heading) == (-1.0, True, False)
    assert env.length[0] == snake.START_LENGTH


def test_snake_dies_of_itself_but_may_follow_its_tail() -> None:
    env = alone("zerokara/Snake-v0")
    ring = [(2, 2), (2, 3), (3, 3), (3, 2)]  # the tail lies right below the head
    put_snake(env, ring, (0, 0), snake.LEFT)
    assert act(env, snake.DOWN) == (0.0, False, False)
    put_snake(env, [*ring, (4, 2)], (0, 0), snake.LEFT)
    assert act(env, snake.DOWN) == (-1.0, True, False)


def test_snake_food_falls_on_every_free_cell_and_no_other() -> None:
    env: Any = arcade.make("zerokara/Snake-v0", 3000, stack=1)
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
def test_snake_stays_whole(seed: int, actions: list[int]) -> None:
    """Whatever is done, the body is one chain of neighbours from head to tail, and the food lies beside it."""
    env: Any = arcade.make("zerokara/Snake-v0", 1, stack=1)
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
    """This rock alone, in the first slot."""
    env.rock_there[:] = False
    env.rock_there[0, 0], env.rock_row[0, 0], env.rock_column[0, 0] = True, row, column


def test_shooter_shot_flies_and_breaks_the_rock() -> None:
    env = alone("zerokara/Shooter-v0")
    put_rock(env, 36, 35)  # centre 42, the ship's too
    assert act(env, shooter.FIRE) == (0.0, False, False)
    assert (env.shot_there[0], env.shot_row[0], env.shot_column[0]) == (True, 70, 40)
    # The rock's lower edge is at 52, then 54 and 56, the shot's upper edge at 62, then 54: step 2.
    assert [act(env, shooter.STAY)[0] for _ in range(2)] == [0.0, 1.0]
    assert not env.shot_there[0]
    assert not env.rock_there[0].any()


@pytest.mark.parametrize(("column", "hit"), [(26, False), (27, True), (43, True), (44, False)])
def test_shooter_shot_must_touch(column: int, hit: bool) -> None:
    """The shot covers columns 40 to 43, the rock 14: they share one or more from 27 to 43."""
    env = alone("zerokara/Shooter-v0")
    put_rock(env, 40, column)
    rewards = [act(env, action)[0] for action in (shooter.FIRE, *[shooter.STAY] * 4)]
    assert sum(rewards) == hit


@given(st.integers(0, 22))
def test_shooter_no_rock_slips_past_a_shot(height: int) -> None:
    env = alone("zerokara/Shooter-v0", stack=1)
    put_rock(env, 2 * height, 35)
    assert sum(act(env, action)[0] for action in (shooter.FIRE, *[shooter.STAY] * 8)) == 1.0


def test_shooter_one_shot_at_a_time_and_a_wild_one_is_gone_after_nine_steps() -> None:
    env = alone("zerokara/Shooter-v0")
    env.rock_there[:] = False
    act(env, shooter.FIRE)
    act(env, shooter.LEFT)
    rows = []
    for _ in range(7):
        act(env, shooter.FIRE)  # in vain
        assert env.shot_column[0] == 40
        rows.append(env.shot_row[0])
    assert rows == [54, 46, 38, 30, 22, 14, 6]
    act(env, shooter.FIRE)  # the first one leaves, so that this one starts, from where the ship now is
    assert (env.shot_row[0], env.shot_column[0]) == (70, 36)


def test_shooter_rock_that_comes_down_costs_a_life() -> None:
    env = alone("zerokara/Shooter-v0")
    for lives, ending in ((2, (-1.0, False, True)), (1, (-1.0, False, True)), (3, (-1.0, True, False))):
        put_rock(env, shooter.GROUND_ROW - 4, 0)
        assert act(env, shooter.STAY) == (0.0, False, False)
        assert act(env, shooter.STAY) == ending
        assert env.lives[0] == lives  # 3 again after the ending


@pytest.mark.parametrize(("rock_row", "hit"), [(38, False), (39, True), (57, True), (58, False)])
def test_shooter_shot_and_rock_share_a_line_of_pixels(rock_row: int, hit: bool) -> None:
    """The shot comes to lines 54 to 59; the rock comes two lines further, and is 14 high."""
    env = alone("zerokara/Shooter-v0")
    put_rock(env, rock_row, 35)
    env.shot_there[:], env.shot_row[:], env.shot_column[:] = True, 62, 40
    assert act(env, shooter.STAY)[0] == hit


def test_shooter_of_two_rocks_the_lower_one_breaks() -> None:
    env = alone("zerokara/Shooter-v0")
    put_rock(env, 44, 35)
    env.rock_there[0, 1], env.rock_row[0, 1], env.rock_column[0, 1] = True, 48, 35
    env.shot_there[:], env.shot_row[:], env.shot_column[:] = True, 62, 40
    assert act(env, shooter.STAY)[0] == 1.0
    assert env.rock_there[0].tolist() == [True, False, False]


def test_shooter_throws_a_rock_every_fifteen_steps() -> None:
    env = alone("zerokara/Shooter-v0")
    env.lives[:] = 100
    thrown = []
    for step in range(1, 76):
        before = env.rock_there.copy()
        act(env, shooter.STAY)
        new = env.rock_there & (~before | (env.rock_row == 0))
        if new.any():
            thrown.append((step, int(new[0].argmax())))
    assert thrown == [(15, 1), (30, 2), (45, 0), (60, 1), (75, 2)]


# Gymnasium.


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    arcade.register()
    arcade.register()  # a second time is no harm: Gymnasium would warn of an override


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("grey", [True, False])
def test_gymnasium_check_env(game_id: str, grey: bool) -> None:
    env = gymnasium.make(game_id, grey=grey, render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    assert [str(warning.message) for warning in caught] == []
    assert env.observation_space.shape == (84, 84, 1 if grey else 3)
    env.close()


@pytest.mark.parametrize("game_id", IDS)
def test_gymnasium_game_is_the_vector_game(game_id: str) -> None:
    """Same pixels and rewards up to and with the end, where the picture is the last one, not the next game's first."""
    env = gymnasium.make(game_id, render_mode="rgb_array")
    obs, info = env.reset(seed=9)
    game = arcade.make(game_id, 1, stack=1)
    seed = int(gymnasium.utils.seeding.np_random(9)[0].integers(2**63))
    assert np.array_equal(obs.transpose(2, 0, 1), game.reset(seed)[0])
    assert info == {"life_lost": False}
    ended = False
    for action_N in random_actions(game, 400):
        step = game.step(action_N)
        obs, reward, terminated, truncated, info = env.step(int(action_N[0]))
        assert np.array_equal(obs.transpose(2, 0, 1), step.last_obs[0])
        assert (reward, terminated, truncated) == (step.reward[0], step.terminal[0], step.truncated[0])
        assert info["life_lost"] == step.life_lost[0]
        picture: Any = env.render()
        assert np.array_equal(picture, game.picture(step.last_obs[0]))
        ended = terminated or truncated
        if ended:
            break
    assert ended
    env.close()


def test_gymnasium_seeds_and_goes_on() -> None:
    one, two = gymnasium.make("zerokara/Snake-v0"), gymnasium.make("zerokara/Snake-v0")
    firsts = []
    for env in (one, two):
        frames = [env.reset(seed=1)[0], env.reset()[0], env.reset()[0]]
        firsts.append(np.stack(frames))
        assert env.render_mode is None
        assert env.unwrapped.render() is None
    assert np.array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0][0], firsts[0][1])


def test_gymnasium_vectors_are_made_of_it() -> None:
    env = gymnasium.make_vec("zerokara/Shooter-v0", num_envs=3, vectorization_mode="sync")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 84, 84, 1)
    env.close()


def test_gymnasium_unknown_render_mode_is_refused() -> None:
    from envs.arcade.gymnasium import ArcadeGymnasiumEnv

    with pytest.raises(UserError, match="rgb_array"):
        ArcadeGymnasiumEnv("zerokara/Catch-v0", render_mode="human")
