"""Tests of all arcade games: endings, determinism, saved state, experts, Gymnasium registration."""

from __future__ import annotations

import io
import warnings
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from zerokara.core.config import UserError
from zerokara.envs import arcade
from zerokara.envs.arcade import GAMES
from zerokara.envs.arcade.base import ArcadeEnv
from zerokara.envs.base import Step, VectorEnv

IDS = sorted(GAMES)
# Bounds of the mean return of 100 episodes: minimum of the scripted expert, maximum of a random policy.
# Measured: experts 19.8, 5.0, 19.9, 5.0 and random policy 1.7, -2.3, -0.6, -0.8; the margins are three standard errors.
MIN_EXPERT_RETURN = {
    "zerokara/Breaker-v0": 18.9,
    "zerokara/Catch-v0": 5.0,
    "zerokara/Shooter-v0": 19.7,
    "zerokara/Snake-v0": 4.9,
}
MAX_RANDOM_RETURN = {
    "zerokara/Breaker-v0": 2.2,
    "zerokara/Catch-v0": -1.5,
    "zerokara/Shooter-v0": 0.0,
    "zerokara/Snake-v0": -0.5,
}


def random_actions(env: VectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Sample actions (steps, N)."""
    return np.random.default_rng(seed).integers(env.num_actions, size=(steps, env.num_envs))


def step_arrays(steps: list[Step]) -> list[np.ndarray]:
    return [array for step in steps for array in step]


# All games.


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize(
    ("frame_stack", "grayscale", "channels"), [(1, True, 1), (4, True, 4), (1, False, 3), (4, False, 12)]
)
def test_shapes_and_types(game_id: str, frame_stack: int, grayscale: bool, channels: int) -> None:
    env = arcade.make(game_id, 3, frame_stack=frame_stack, grayscale=grayscale)
    obs = env.reset(0)
    assert (env.id, env.num_envs, env.num_actions) == (game_id, 3, len(env.action_names))
    assert 2 <= env.num_actions <= 5
    assert env.obs_shape == (channels, 84, 84)
    assert env.frame_channels == channels // frame_stack
    assert (env.settings["frame_stack"], env.settings["grayscale"]) == (frame_stack, grayscale)
    step = env.step(np.zeros(3, np.int64))
    for image in (obs, step.obs, step.last_obs):
        assert image.shape == (3, channels, 84, 84)
        assert image.dtype == np.uint8
    assert step.reward.shape == (3,)
    assert step.reward.dtype == np.float32
    for flag in (step.terminal, step.truncated, step.life_lost):
        assert flag.shape == (3,)
        assert flag.dtype == np.bool_


@pytest.mark.parametrize("game_id", IDS)
def test_seed_determines_the_pixels(game_id: str) -> None:
    one, same, other = (arcade.make(game_id, 8) for _ in range(3))
    assert np.array_equal(one.reset(7), same.reset(7))
    other.reset(8)
    differs = False
    for action_N in random_actions(one, 250):
        step, same_step, other_step = one.step(action_N), same.step(action_N), other.step(action_N)
        assert all(np.array_equal(a, b) for a, b in zip(step, same_step, strict=True))
        differs |= not np.array_equal(step.obs, other_step.obs)
    assert differs


@pytest.mark.parametrize("game_id", IDS)
def test_reset_does_not_depend_on_earlier_steps(game_id: str) -> None:
    used, fresh = arcade.make(game_id, 4), arcade.make(game_id, 4)
    used.reset(1)
    for action_N in random_actions(used, 60):
        used.step(action_N)
    assert np.array_equal(used.reset(2), fresh.reset(2))
    for action_N in random_actions(used, 60, seed=1):
        assert all(np.array_equal(a, b) for a, b in zip(used.step(action_N), fresh.step(action_N), strict=True))


@pytest.mark.parametrize("game_id", IDS)
def test_games_do_not_depend_on_each_other(game_id: str) -> None:
    """Check that the first two of eight environments equal a batch of two, for any actions of the other six."""
    many, two = arcade.make(game_id, 8), arcade.make(game_id, 2)
    assert np.array_equal(many.reset(3)[:2], two.reset(3))
    for action_N in random_actions(many, 300):
        a, b = many.step(action_N), two.step(action_N[:2])
        assert np.array_equal(a.obs[:2], b.obs)
        assert np.array_equal(a.reward[:2], b.reward)


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("grayscale", [True, False])
def test_saved_state_resumes_exactly(game_id: str, grayscale: bool) -> None:
    env = arcade.make(game_id, 6, grayscale=grayscale)
    env.reset(5)
    actions = random_actions(env, 300)
    for action_N in actions[:36]:
        env.step(action_N)
    obs = env.step(actions[36]).obs
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = step_arrays([env.step(action_N) for action_N in actions[37:]])

    file.seek(0)
    other = arcade.make(game_id, 6, grayscale=grayscale)
    assert np.array_equal(other.load_state_dict(torch.load(file, weights_only=True)), obs)
    got = step_arrays([other.step(action_N) for action_N in actions[37:]])
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("game_id", IDS)
def test_state_is_a_copy(game_id: str) -> None:
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


def test_states_of_other_games_are_rejected() -> None:
    env, snake, shallow = (
        arcade.make("zerokara/Catch-v0", 1),
        arcade.make("zerokara/Snake-v0", 1),
        arcade.make("zerokara/Catch-v0", 1, frame_stack=1),
    )
    for game in (env, snake, shallow):
        game.reset(0)
    with pytest.raises(ValueError, match="Snake"):
        env.load_state_dict(snake.state_dict())
    with pytest.raises(ValueError, match=r"\(1, 1, 84, 84\)"):
        env.load_state_dict(shallow.state_dict())


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("expert", [True, False])
@pytest.mark.parametrize("compile", [True, False])
def test_endings(game_id: str, expert: bool, compile: bool) -> None:
    """Check that terminal and truncated exclude each other, that obs is reset, and that last_obs is the true last one.

    The true last observation comes from a second environment that is restored before each step and does not reset.
    """
    env, shadow = arcade.make(game_id, 5, compile=compile), arcade.make(game_id, 5, compile=False)
    obs = env.reset(11)
    length_N, endings = np.zeros(5, int), {"terminal": 0, "truncated": 0}
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
        endings["terminal"] += step.terminal.sum()
        endings["truncated"] += step.truncated.sum()
        length_N[ended_N] = 0
        obs = step.obs
    if not expert or game_id in ("zerokara/Catch-v0", "zerokara/Snake-v0"):
        assert endings["terminal"] > 0
    else:
        assert endings["truncated"] > 0


@pytest.mark.parametrize("game_id", IDS)
def test_terminal_has_precedence_at_the_time_limit(game_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = arcade.make(game_id, 2, compile=False)
    env.reset(0)
    original = env._advance

    def first_is_terminal(action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward_N, _, life_lost_N = original(action_N)
        return reward_N, np.array([True, False]), life_lost_N

    monkeypatch.setattr(env, "_advance", first_is_terminal)
    env.age[:] = env.time_limit_steps - 1
    step = env.step(np.ones(2, np.int64))
    assert (step.terminal.tolist(), step.truncated.tolist()) == ([True, False], [False, True])
    assert env.age.tolist() == [0, 0]


@pytest.mark.parametrize("game_id", IDS)
def test_stack_holds_the_last_frames(game_id: str) -> None:
    """Check zeros before the start, and each stack against the frames of the same game with frame_stack 1."""
    stacked, single = arcade.make(game_id, 3), arcade.make(game_id, 3, frame_stack=1)
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
def test_grayscale_is_the_luminance_of_rgb(game_id: str) -> None:
    grayscale, rgb = arcade.make(game_id, 2, frame_stack=1), arcade.make(game_id, 2, frame_stack=1, grayscale=False)
    grayscale.reset(4)
    rgb_NFHW = rgb.reset(4)
    for action_N in random_actions(grayscale, 40):
        gray_NHW, rgb_NFHW = grayscale.step(action_N).obs[:, 0], rgb.step(action_N).obs
        for one_HW, one_FHW in zip(gray_NHW, rgb_NFHW, strict=True):
            converted = cv2.cvtColor(np.ascontiguousarray(one_FHW.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
            assert np.abs(converted.astype(int) - one_HW).max() <= 1  # their rounding differs
        assert np.array_equal(grayscale.render(), rgb.render())
    image = grayscale.render()
    assert image.shape == (336, 336, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image[::4, ::4], rgb_NFHW[0].transpose(1, 2, 0))


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize(
    "actions", [[0, 5], [-1, 0], [0], [[0, 0]]], ids=["too large", "negative", "too few", "wrong shape"]
)
def test_invalid_actions_are_rejected(game_id: str, actions: list[Any]) -> None:
    env = arcade.make(game_id, 2)
    env.reset(0)
    with pytest.raises(ValueError, match="actions"):
        env.step(np.array(actions))
    with pytest.raises(ValueError, match="float64"):
        env.step(np.zeros(2))
    env.step(np.zeros(2, np.int64))  # a valid action still works


def test_send_and_recv_must_alternate() -> None:
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


def test_action_array_may_be_modified_after_send() -> None:
    env, other = arcade.make("zerokara/Catch-v0", 2), arcade.make("zerokara/Catch-v0", 2)
    env.reset(0)
    other.reset(0)
    actions = np.zeros(2, np.int64)
    env.send(actions)
    actions[:] = 2
    assert np.array_equal(env.recv().obs, other.step(np.zeros(2, np.int64)).obs)


@pytest.mark.parametrize("game_id", IDS)
def test_returned_arrays_are_not_modified_later(game_id: str) -> None:
    env = arcade.make(game_id, 4)
    env.reset(0)
    steps = [env.step(action_N) for action_N in random_actions(env, 30)]
    copies = [array.copy() for array in step_arrays(steps)]
    for action_N in random_actions(env, 30, seed=1):
        env.step(action_N)
    assert all(np.array_equal(a, b) for a, b in zip(step_arrays(steps), copies, strict=True))


def play(game_id: str, num_envs: int, expert: bool) -> np.ndarray:
    """Compute the returns (num_envs,) of the first episode of each environment."""
    env = arcade.make(game_id, num_envs, frame_stack=1)
    env.reset(2024)
    return_N, done_N = np.zeros(num_envs), np.zeros(num_envs, bool)
    rng = np.random.default_rng(0)
    for _ in range(env.time_limit_steps):
        step = env.step(env.expert() if expert else rng.integers(env.num_actions, size=num_envs))
        return_N += step.reward * ~done_N
        done_N |= step.terminal | step.truncated
        if done_N.all():
            break
    assert done_N.all()
    return return_N


@pytest.mark.parametrize("game_id", IDS)
def test_returns_of_experts_and_random_policies(game_id: str) -> None:
    assert play(game_id, 100, expert=True).mean() >= MIN_EXPERT_RETURN[game_id]
    assert play(game_id, 100, expert=False).mean() <= MAX_RANDOM_RETURN[game_id]


def test_unknown_games_and_counts_are_rejected() -> None:
    with pytest.raises(UserError, match=r"zerokara/Snake-v0\.$"):
        arcade.make("zerokara/Snke-v0", 1)
    with pytest.raises(UserError, match="at least 1, got 0"):
        arcade.make("zerokara/Snake-v0", 0)
    with pytest.raises(UserError, match="stacked frames"):
        arcade.make("zerokara/Snake-v0", 1, frame_stack=0)


def test_colors_of_equal_luminance_are_rejected() -> None:
    with pytest.raises(ValueError, match="distinct"):

        class SameColors(ArcadeEnv):
            name = "SameColors"
            colors = {"sea": (0, 0, 200), "sky": (0, 0, 200)}  # noqa: RUF012  (as in a subclass)


# Gymnasium.


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    arcade.register()
    arcade.register()  # a second call must not trigger Gymnasium's override warning


@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("grayscale", [True, False])
def test_gymnasium_check_env(game_id: str, grayscale: bool) -> None:
    env = gymnasium.make(game_id, grayscale=grayscale, render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    assert [str(warning.message) for warning in caught] == []
    assert env.observation_space.shape == (84, 84, 1 if grayscale else 3)
    env.close()


@pytest.mark.parametrize("game_id", IDS)
def test_gymnasium_env_matches_the_vector_env(game_id: str) -> None:
    """Compare pixels and rewards up to the last step, which shows the last frame, not the first of the next episode."""
    env = gymnasium.make(game_id, render_mode="rgb_array")
    obs, info = env.reset(seed=9)
    game = arcade.make(game_id, 1, frame_stack=1)
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
        image: Any = env.render()
        assert np.array_equal(image, game.render_frame(step.last_obs[0]))
        ended = terminated or truncated
        if ended:
            break
    assert ended
    env.close()


def test_gymnasium_reset_with_and_without_seed() -> None:
    one, two = gymnasium.make("zerokara/Snake-v0"), gymnasium.make("zerokara/Snake-v0")
    firsts = []
    for env in (one, two):
        frames = [env.reset(seed=1)[0], env.reset()[0], env.reset()[0]]
        firsts.append(np.stack(frames))
        assert env.render_mode is None
        assert env.unwrapped.render() is None
    assert np.array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0][0], firsts[0][1])


def test_gymnasium_make_vec() -> None:
    env = gymnasium.make_vec("zerokara/Shooter-v0", num_envs=3, vectorization_mode="sync")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 84, 84, 1)
    env.close()


def test_gymnasium_unknown_render_mode_is_rejected() -> None:
    from zerokara.envs.arcade.gymnasium import ArcadeGymnasiumEnv

    with pytest.raises(UserError, match="rgb_array"):
        ArcadeGymnasiumEnv("zerokara/Catch-v0", render_mode="human")


@pytest.mark.parametrize("game_id", IDS)
def test_the_registered_time_limit_is_that_of_the_game(game_id: str) -> None:
    env = gymnasium.make(game_id)
    assert env.spec is not None
    assert env.spec.max_episode_steps == arcade.make(game_id, 1).settings["max_episode_steps"]
    assert gymnasium.spec(game_id).max_episode_steps == env.spec.max_episode_steps
