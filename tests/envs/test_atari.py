"""Tests of Atari against Gymnasium's preprocessing, frame stacking and episode statistics; and of exact resume."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv as AleVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, RecordEpisodeStatistics

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.atari import AtariVectorEnv, is_atari, rom_path

EXACT: dict[str, Any] = {"repeat_action_probability": 0.0, "noop_max": 0, "fire_reset": False}


def reference(id: str, *, grayscale: bool = True) -> gymnasium.Env[Any, Any]:
    """Create one game with Gymnasium's wrappers. A reset without a seed keeps the console's memory."""
    env = gymnasium.make(id, frameskip=1, repeat_action_probability=0.0, max_num_frames_per_episode=None)
    wrapped = AtariPreprocessing(env, noop_max=0, frame_skip=4, grayscale_obs=grayscale)
    return FrameStackObservation(RecordEpisodeStatistics(wrapped), 4, padding_type="zero")


def channels(obs: Any) -> np.ndarray:
    """Convert a frame stack of Gymnasium, (4, 84, 84) or (4, 84, 84, 3), to (C, 84, 84)."""
    frame_stack = np.asarray(obs)
    return (
        frame_stack if frame_stack.ndim == 3 else frame_stack.transpose(0, 3, 1, 2).reshape(-1, *frame_stack.shape[1:3])
    )


def is_same(a_step: envs.Step, b_step: envs.Step) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(a_step, b_step, strict=True))


@pytest.mark.parametrize(
    ("id", "grayscale", "steps"),
    [("ALE/Breakout-v5", True, 450), ("ALE/Pong-v5", True, 150), ("ALE/Seaquest-v5", False, 80)],
)
def test_pixels_endings_and_scores_match_gymnasium(id: str, grayscale: bool, steps: int) -> None:
    num_envs = 2
    env = envs.make(id, num_envs, grayscale=grayscale, **EXACT)
    references = [reference(id, grayscale=grayscale) for _ in range(num_envs)]
    obs = env.reset(3)
    for i, reference_env in enumerate(references):
        assert np.array_equal(obs[i], channels(reference_env.reset(seed=i)[0]))
    rng = np.random.default_rng(0)
    lives_N = np.array([reference_env.unwrapped.ale.lives() for reference_env in references])  # type: ignore[attr-defined]
    return_N, length_N = np.zeros(num_envs), np.zeros(num_envs, int)
    games = deaths = 0
    for _ in range(steps):
        action_N = rng.integers(0, env.num_actions, num_envs)
        step = env.step(action_N)
        return_N += step.reward
        length_N += 1
        for i, reference_env in enumerate(references):
            reference_obs, reward, terminated, truncated, info = reference_env.step(action_N[i])
            assert (step.reward[i], step.terminal[i], step.truncated[i]) == (reward, terminated, truncated)
            assert np.array_equal(step.last_obs[i], channels(reference_obs))
            assert step.life_lost[i] == (info["lives"] < lives_N[i] and not terminated)
            deaths += int(step.life_lost[i])
            if terminated:
                assert (return_N[i], length_N[i]) == (info["episode"]["r"], info["episode"]["l"])
                return_N[i] = length_N[i] = 0
                games += 1
                reference_obs, info = reference_env.reset()
            assert np.array_equal(step.obs[i], channels(reference_obs))
            lives_N[i] = info["lives"]
        assert np.array_equal(step.frame, step.obs[:, -env.frame_channels :])
        assert not step.frame.flags.writeable
    if id == "ALE/Breakout-v5":
        assert games >= 2
        assert deaths >= 8
    env.close()


def test_time_limit_truncates_and_the_next_action_is_executed() -> None:
    env = envs.make("ALE/Breakout-v5", 1, max_episode_frames=43, **EXACT)
    assert env.settings["max_episode_frames"] == 40  # whole steps of 4 frames
    reference_env = reference("ALE/Breakout-v5")
    env.reset(0)
    reference_env.reset(seed=0)
    actions = np.random.default_rng(1).integers(0, 4, 35)
    for t, action in enumerate(actions, start=1):
        step = env.step(np.array([action]))
        reference_obs = channels(reference_env.step(action)[0])
        assert step.truncated[0] == (t % 10 == 0)
        assert not step.terminal[0]
        assert np.array_equal(step.last_obs[0], reference_obs)
        if t % 10 == 0:
            reference_obs = channels(reference_env.reset()[0])
            assert not step.obs[0, :3].any()  # zeros before the start of the episode
        assert np.array_equal(step.obs[0], reference_obs)


def test_reseeded_episode_equals_that_of_a_new_emulator() -> None:
    # Seeds are computed here explicitly, because saved checkpoints depend on their values.
    def seeds(run: int, number: int) -> np.ndarray:
        return np.array(
            [np.random.SeedSequence([run, i, number]).generate_state(1)[0] >> 1 for i in range(2)], np.int64
        )

    env = envs.make("ALE/Breakout-v5", 2, protocol="machado", noop_max=5, max_episode_frames=40, reseed_every_steps=1)
    ale = AleVectorEnv(
        "breakout", 2, noop_max=6, repeat_action_probability=0.25, use_fire_reset=False, reward_clipping=False
    )
    obs = env.reset(7)
    rng = np.random.default_rng(2)
    for episode in range(3):
        assert np.array_equal(obs, ale.reset(seed=seeds(7, episode))[0])
        for t in range(10):
            action_N = rng.integers(0, 4, 2)
            step = env.step(action_N)
            assert np.array_equal(step.last_obs, ale.step(action_N)[0])
            assert (step.truncated == (t == 9)).all()
            obs = step.obs


@pytest.mark.parametrize(
    ("grayscale", "reseed_every_steps"),
    [(True, 150), (False, 10_000)],
    ids=["reseeded", "several episodes since the seed"],
)
def test_saved_state_resumes_exactly(grayscale: bool, reseed_every_steps: int) -> None:
    def make() -> envs.VectorEnv:
        return envs.make(
            "ALE/Breakout-v5",
            3,
            protocol="machado",
            noop_max=30,
            max_episode_frames=800,
            reseed_every_steps=reseed_every_steps,
            grayscale=grayscale,
        )

    action_TN = np.random.default_rng(0).integers(0, 4, (420, 3))
    env = make()
    env.reset(11)
    saved = io.BytesIO()
    steps = []
    for t, action_N in enumerate(action_TN):
        if t == 250:
            torch.save(env.state_dict(), saved)
        steps.append(env.step(action_N))
    for part in (steps[:250], steps[250:]):
        assert any((step.terminal | step.truncated).any() for step in part)
    assert any(step.terminal.any() for step in steps)
    assert any(step.truncated.any() for step in steps)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert len(set(state["length"].tolist())) == (3 if reseed_every_steps == 150 else 1)
    other = make()
    other.reset(5)  # earlier steps must have no effect
    other.step(action_TN[0])
    assert np.array_equal(other.load_state_dict(state), steps[249].obs)
    again = other.state_dict()
    assert all(
        torch.equal(torch.as_tensor(again[key]), torch.as_tensor(state[key])) for key in ("length", "crc", "seed")
    )
    for action_N, step in zip(action_TN[250:], steps[250:], strict=True):
        assert is_same(other.step(action_N), step)


def test_seed_determines_the_episode() -> None:
    action_TN = np.random.default_rng(0).integers(0, 6, (40, 2))
    env = envs.make("ALE/Pong-v5", 2, protocol="machado")

    def play(seed: int) -> list[np.ndarray]:
        return [env.reset(seed), *(env.step(action_N).obs for action_N in action_TN)]

    first, again, other = play(1), play(1), play(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_number_of_no_ops_ranges_from_0_to_noop_max() -> None:
    for fire_reset, frames in ((False, {0, 1, 2}), (True, {1, 2})):  # FIRE counts as one of the no-ops
        env = envs.make("ALE/Breakout-v5", 7, noop_max=2, fire_reset=fire_reset)
        assert isinstance(env, AtariVectorEnv)
        env.reset(0)
        no_reset = {"reset_mask": np.zeros(7, bool)}
        assert set(env._env.reset(options=no_reset)[1]["episode_frame_number"].tolist()) == frames
        env.close()


def test_states_of_other_environments_are_rejected() -> None:
    env = envs.make("ALE/Pong-v5", 1, **EXACT)
    env.reset(0)
    env.step(np.array([0]))
    state = env.state_dict()
    with pytest.raises(UserError, match="num_envs 1"):
        envs.make("ALE/Pong-v5", 2, **EXACT).load_state_dict(state)
    with pytest.raises(UserError, match="settings"):
        envs.make("ALE/Pong-v5", 1, **{**EXACT, "repeat_action_probability": 0.25}).load_state_dict(state)
    with pytest.raises(UserError, match="id 'ALE/Pong-v5'"):
        envs.make("ALE/Breakout-v5", 1, **EXACT).load_state_dict(state)
    with pytest.raises(UserError, match="does not reproduce the observation"):
        env.load_state_dict({**state, "crc": state["crc"] ^ 1})


def test_calls_in_the_wrong_order_and_invalid_actions_are_rejected() -> None:
    env = envs.make("ALE/Pong-v5", 2, **EXACT)
    with pytest.raises(RuntimeError, match="reset"):
        env.send(np.array([0, 0]))
    with pytest.raises(RuntimeError, match="reset"):
        env.state_dict()
    env.reset(0)
    with pytest.raises(RuntimeError, match="send"):
        env.recv()
    for wrong in ([0, 6], [-1, 0], [0]):
        with pytest.raises(ValueError, match="actions"):
            env.step(np.array(wrong))
    with pytest.raises(ValueError, match="int64"):
        env.step(np.array([0.0, 1.0]))
    env.send(np.array([0, 5]))
    with pytest.raises(RuntimeError, match="recv"):
        env.send(np.array([0, 5]))
    with pytest.raises(RuntimeError, match="recv"):
        env.state_dict()
    assert env.recv().obs.shape == (2, 4, 84, 84)
    env.send(np.array([0, 5]))
    assert env.reset(0).shape == (2, 4, 84, 84)  # also while a step is pending
    env.send(np.array([0, 5]))
    env.close()


def test_returned_arrays_are_not_modified_later() -> None:
    env = envs.make("ALE/Breakout-v5", 2, max_episode_frames=20, **EXACT)
    steps = [envs.Step(env.reset(0), *(np.zeros(2),) * 4, np.zeros(2))]
    copies = [envs.Step(*(array.copy() for array in steps[0]))]
    for t in range(12):
        steps.append(env.step(np.array([t % 4, 1])))
        copies.append(envs.Step(*(array.copy() for array in steps[-1])))
    assert all(is_same(a, b) for a, b in zip(steps, copies, strict=True))
    assert steps[1].reward.dtype == np.float32
    assert all(a.dtype == bool for a in (steps[1].terminal, steps[1].truncated, steps[1].life_lost))
    assert all(step.obs.flags.c_contiguous and step.obs.flags.writeable for step in steps)


@pytest.mark.parametrize(
    ("id", "grayscale", "fire_reset"), [("ALE/Pong-v5", True, False), ("ALE/Breakout-v5", False, True)]
)
def test_rendered_environment_has_the_same_observations(id: str, grayscale: bool, fire_reset: bool) -> None:
    settings = {**EXACT, "grayscale": grayscale, "fire_reset": fire_reset, "max_episode_frames": 300}
    fast, rendered = envs.make(id, 1, **settings), envs.make(id, 1, render=True, **settings)
    assert fast.obs_shape == rendered.obs_shape
    assert fast.action_names == rendered.action_names
    assert {**fast.settings} == {**rendered.settings, "reseed_every_steps": fast.settings["reseed_every_steps"]}
    assert np.array_equal(fast.reset(0), rendered.reset(0))
    rng = np.random.default_rng(0)
    images = []
    for t in range(75):
        action_N = rng.integers(0, fast.num_actions, 1)
        step, rendered_step = fast.step(action_N), rendered.step(action_N)
        assert np.array_equal(step.last_obs, rendered_step.last_obs)
        assert all(np.array_equal(a, b) for a, b in zip([*step][1:5], [*rendered_step][1:5], strict=True))
        assert step.truncated[0] == (t == 74)
        images.append(rendered.render())
        assert images[-1].shape == (210, 160, 3)
        assert images[-1].dtype == np.uint8
    assert len({image.tobytes() for image in images}) > 30
    with pytest.raises(UserError, match="render=True"):
        fast.render()


def test_rendered_environment_resumes_exactly() -> None:
    def make() -> envs.VectorEnv:
        return envs.make("ALE/Breakout-v5", 2, render=True, protocol="machado", noop_max=10)

    env, other = make(), make()
    obs = env.reset(1)
    action_TN = np.random.default_rng(0).integers(0, 4, (60, 2))
    for action_N in action_TN[:40]:
        obs = env.step(action_N).obs
    assert np.array_equal(other.load_state_dict(env.state_dict()), obs)
    assert all(is_same(env.step(action_N), other.step(action_N)) for action_N in action_TN[40:])


def test_every_ale_game_has_its_rom() -> None:
    ids = [spec for id, spec in gymnasium.registry.items() if id.startswith("ALE/") and id.endswith("-v5")]
    assert len(ids) > 100
    for spec in ids:
        assert is_atari(spec), spec.id
        assert rom_path(spec).is_file(), spec.id
    assert not is_atari(gymnasium.registry["PongNoFrameskip-v4"])


def test_all_18_actions() -> None:
    env = envs.make("ALE/Pong-v5", 1, full_action_space=True)
    assert env.num_actions == 18
    assert env.action_names == tuple(name for name in ale_py.Action.__members__ if name in env.action_names)
    assert envs.make("ALE/Pong-v5", 1).action_names == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    env.reset(0)
    assert env.step(np.array([17])).obs.shape == (1, 4, 84, 84)


def test_other_sizes_and_stacks() -> None:
    env = envs.make("ALE/Pong-v5", 1, size=64, frame_stack=2, grayscale=False, frame_skip=2, **EXACT)
    assert (env.obs_shape, env.frame_channels) == ((6, 64, 64), 3)
    assert env.reset(0).shape == (1, 6, 64, 64)
    assert env.step(np.array([2])).last_obs.shape == (1, 6, 64, 64)


@pytest.mark.parametrize("render", [False, True])
def test_missing_rom_is_an_error(
    render: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"ROM of ALE/Pong-v5 .* reinstall ale-py"):
        envs.make("ALE/Pong-v5", 1, render=render)
    monkeypatch.setattr(roms, "get_rom_path", lambda game: None)
    with pytest.raises(UserError, match=r"no ROM .* pong.bin"):
        envs.make("ALE/Pong-v5", 1, render=render)
    capsys.readouterr()  # discard what ale-py prints
