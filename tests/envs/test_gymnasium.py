"""Tests of Gymnasium environments: image formats, explicit endings, exact resume, and unsupported environments."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvCreator
from gymnasium.wrappers import FrameStackObservation, ResizeObservation

from zerokara import envs
from zerokara.core.config import UserError

IMAGES: dict[str, spaces.Box] = {
    "flat": spaces.Box(0, 255, (30, 40), np.uint8),
    "grayscale": spaces.Box(0, 255, (30, 40, 1), np.uint8),
    "rgb": spaces.Box(0, 255, (30, 40, 3), np.uint8),
    "unit": spaces.Box(0, 1, (30, 40, 3), np.float32),
}


class Toy(gymnasium.Env[Any, Any]):
    """Environment with random images whose reward is the action. `script`: step of an episode (from 1) -> event."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium's form)

    def __init__(
        self,
        kind: str = "rgb",
        script: dict[int, str] | None = None,
        render_mode: str | None = None,
        actions: spaces.Space[Any] | None = None,
        error: Exception | None = None,
    ) -> None:
        self.observation_space = IMAGES.get(kind) or spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = actions or spaces.Discrete(3)
        self.kind, self.script, self.render_mode, self.error = kind, script or {9: "end"}, render_mode, error
        if error and "make" in self.script.values():
            raise error

    def _observe(self) -> Any:
        self.image = self.np_random.integers(0, 256, (30, 40, 3), np.uint8)
        if self.kind == "vector":
            return np.zeros(4, np.float32)
        if self.kind == "unit":
            return (self.image / 255).astype(np.float32)
        return {"flat": self.image[:, :, 0], "grayscale": self.image[:, :, :1]}.get(self.kind, self.image)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.lives = 0, 3
        return self._observe(), {"lives": self.lives}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        event = self.script.get(self.steps, "")
        if self.error and event == "raise":
            raise self.error
        self.lives -= event == "die"
        terminated, truncated = event in ("end", "both"), event in ("cut", "both")
        return self._observe(), float(action), terminated, truncated, {"lives": self.lives}

    def render(self) -> Any:
        if self.error and "render" in self.script.values():
            raise self.error
        return None if self.kind == "vector" and "blank" in self.script.values() else self.image


class Steering(Toy):
    """Environment with continuous actions, or discrete ones with continuous=False."""

    def __init__(self, continuous: bool = True) -> None:
        super().__init__(actions=spaces.Box(-1, 1, (2,), np.float32) if continuous else spaces.Discrete(5))


class NoImages(Toy):
    """Environment without image observations and without rgb_array rendering."""

    metadata: dict[str, Any] = {"render_modes": ["human"]}  # noqa: RUF012  (Gymnasium's form)

    def __init__(self) -> None:
        super().__init__("vector")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for kind in (Toy, Steering, NoImages):
        # Gymnasium calls a class with the registered keywords, like a function.
        gymnasium.register(f"{kind.__name__}-v0", entry_point=cast(EnvCreator, kind))
    yield
    for name in ("Toy", "Steering", "NoImages"):
        del gymnasium.registry[f"{name}-v0"]


def toy(num_envs: int = 1, *, limit: int | None = None, render: bool = False, **kwargs: Any) -> envs.VectorEnv:
    """Create the toy environment with envs.make. Its own keywords go through the registry, `settings` to envs.make."""
    settings = kwargs.pop("settings", {})
    gymnasium.registry["Toy-v0"].kwargs = kwargs
    gymnasium.registry["Toy-v0"].max_episode_steps = limit
    return envs.make("Toy-v0", num_envs, render=render, **settings)


@pytest.mark.parametrize("kind", ["flat", "grayscale", "rgb", "unit", "vector"])
@pytest.mark.parametrize("grayscale", [True, False])
def test_image_formats_are_converted_to_frames(kind: str, grayscale: bool) -> None:
    env = toy(2, kind=kind, settings={"grayscale": grayscale, "size": 20, "frame_stack": 3})
    assert (env.obs_shape, env.frame_channels) == ((3, 20, 20) if grayscale else (9, 20, 20), 1 if grayscale else 3)
    assert env.settings["pixels"] == ("render()" if kind == "vector" else "observation")
    obs = env.reset(4)
    assert obs.shape == (2, *env.obs_shape)
    assert obs.dtype == np.uint8
    assert not obs[:, : -env.frame_channels].any()  # zeros before the start
    for i in range(2):
        seed = np.random.SeedSequence([4, i, 0]).generate_state(1)[0] >> 1
        image = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
        if kind in ("flat", "grayscale"):
            image = np.repeat(image[:, :, :1], 3, axis=2)
        color = cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        single = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (20, 20), interpolation=cv2.INTER_AREA)
        assert np.array_equal(obs[i, -env.frame_channels :], single[None] if grayscale else color)


def test_stacks_and_endings_match_gymnasium() -> None:
    env = toy(2, script={7: "end"}, limit=11, settings={"grayscale": False, "size": 24})
    seeds = [[int(np.random.SeedSequence([0, i, k]).generate_state(1)[0] >> 1) for k in range(9)] for i in range(2)]
    references = [
        FrameStackObservation(ResizeObservation(Toy("rgb", {7: "end"}), (24, 24)), 4, padding_type="zero")
        for _ in range(2)
    ]
    for i, obs in enumerate(env.reset(0)):
        reference_obs = np.asarray(references[i].reset(seed=seeds[i].pop(0))[0])
        assert np.array_equal(obs, reference_obs.transpose(0, 3, 1, 2).reshape(12, 24, 24))
    rng = np.random.default_rng(0)
    for _ in range(30):
        action_N = rng.integers(0, 3, 2)
        step = env.step(action_N)
        for i, reference_env in enumerate(references):
            frames, reward, terminated, truncated, _ = reference_env.step(action_N[i])
            assert np.array_equal(step.last_obs[i], np.asarray(frames).transpose(0, 3, 1, 2).reshape(12, 24, 24))
            assert (step.reward[i], step.terminal[i], step.truncated[i]) == (reward, terminated, truncated)
            if terminated:
                frames = reference_env.reset(seed=seeds[i].pop(0))[0]
            assert np.array_equal(step.obs[i], np.asarray(frames).transpose(0, 3, 1, 2).reshape(12, 24, 24))
        assert np.array_equal(step.frame, step.obs[:, -3:])
        step.obs[...] = step.last_obs[...] = 255  # the caller may modify them
    assert all(len(left) == 9 - 1 - 30 // 7 for left in seeds)


def test_endings_are_distinguished() -> None:
    def outcome(limit: int | None = None, settings: dict[str, Any] | None = None, **script: str) -> list[str]:
        env = toy(script={int(key[1:]): what for key, what in script.items()}, limit=limit, settings=settings or {})
        env.reset(0)
        endings = []
        for _ in range(5):
            step = env.step(np.array([1]))
            happened = [n for n in ("terminal", "truncated", "life_lost") if getattr(step, n)[0]]
            assert (step.obs is step.last_obs) == (not {"terminal", "truncated"} & set(happened))
            endings.append("+".join(happened))
        return endings

    assert outcome(_3="end") == ["", "", "terminal", "", ""]
    assert outcome(_3="cut") == ["", "", "truncated", "", ""]
    assert outcome(_3="both") == ["", "", "terminal", "", ""]  # terminal has precedence over truncated
    assert outcome(_2="die", _4="die") == ["", "life_lost", "", "life_lost", ""]
    assert outcome(limit=2, _9="end") == ["", "truncated", "", "truncated", ""]
    assert outcome(settings={"max_episode_frames": 2}, _9="end") == ["", "truncated", "", "truncated", ""]
    assert outcome(settings={"max_episode_frames": 2}, _2="end") == ["", "terminal", "", "terminal", ""]
    assert outcome(settings={"max_episode_frames": 2}, _2="die") == ["", "truncated", "", "truncated", ""]


def test_frame_skip_repeats_the_action_until_the_end() -> None:
    env = toy(script={8: "end"}, settings={"frame_skip": 3, "max_episode_frames": 100})
    assert (env.settings["frame_skip"], env.settings["max_episode_frames"]) == (3, 99)
    env.reset(0)
    steps = [env.step(np.array([2])) for _ in range(3)]
    assert [step.reward[0] for step in steps] == [6, 6, 4]
    assert [bool(step.terminal[0]) for step in steps] == [False, False, True]


def test_actions_that_do_not_start_at_0() -> None:
    env = toy(actions=spaces.Discrete(3, start=-1))
    assert (env.num_actions, env.action_names) == (3, ("-1", "0", "1"))
    env.reset(0)
    assert [env.step(np.array([a])).reward[0] for a in range(3)] == [-1, 0, 1]
    with pytest.raises(ValueError, match="between 0 and 2"):
        env.step(np.array([3]))


WORKER_SOURCE = (
    Path(__file__).read_text("utf-8").split("@pytest.fixture")[0]
    + """

class Quitting(Toy):
    def step(self, action):
        if self.steps == 18:
            import os
            os._exit(3)
        return super().step(action)
"""
)


def test_worker_processes_give_the_same_steps_and_states(tmp_path: Path) -> None:
    """The file is imported by the workers, which know nothing of this process."""
    (tmp_path / "toy_env.py").write_text(WORKER_SOURCE)
    kwargs = {"script": {2: "die", 5: "raise", 7: "end"}, "error": None}

    def make(workers: int) -> envs.VectorEnv:
        return envs.make(f"{tmp_path}/toy_env.py:Toy", 3, workers=workers, env_kwargs=kwargs)

    serial, parallel, resumed = make(0), make(2), make(3)
    assert np.array_equal(serial.reset(4), parallel.reset(4))
    rng = np.random.default_rng(0)
    for step in range(20):
        action_N = rng.integers(0, 3, 3)
        pair = serial.step(action_N), parallel.step(action_N)
        assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))
        if step % 9 == 5:
            assert np.array_equal(resumed.load_state_dict(parallel.state_dict()), pair[0].obs)
    for env in (serial, parallel):
        env.send(np.array([0, 1, 2]))  # a reset discards the step that was started
        env.reset(4)
    pair = serial.step(np.array([1, 1, 1])), parallel.step(np.array([1, 1, 1]))
    assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))
    for env in (serial, parallel, resumed):
        env.close()


def test_an_error_in_a_worker_process_is_that_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "toy_env.py").write_text(WORKER_SOURCE)
    with pytest.raises(UserError, match=r"Toy cannot be created: TypeError"):
        envs.make(f"{tmp_path}/toy_env.py:Toy", 2, workers=2, env_kwargs={"kinds": 3})
    env = envs.make(f"{tmp_path}/toy_env.py:Quitting", 2, workers=2, env_kwargs={"script": {30: "end"}})
    env.reset(0)
    for _ in range(18):
        env.step(np.array([0, 0]))
    with pytest.raises(UserError, match=r"worker process of the environments ended with exit code 3.*--env-workers 0"):
        env.step(np.array([0, 0]))
    env.close()


@pytest.mark.parametrize("kind", ["rgb", "vector"])
def test_saved_state_resumes_exactly(kind: str) -> None:
    def make() -> envs.VectorEnv:
        return toy(3, kind=kind, script={2: "die", 7: "end"}, limit=6 if kind == "vector" else None)

    env, other = make(), make()
    obs = env.reset(2)
    rng = np.random.default_rng(0)
    for steps in (0, 1, 3, 9):  # fewer and more steps than stacked frames, and later episodes
        for _ in range(steps):
            obs = env.step(rng.integers(0, 3, 3)).obs
        file = io.BytesIO()
        torch.save(env.state_dict(), file)
        file.seek(0)
        other.reset(77)
        other.step(np.array([0, 0, 0]))
        assert np.array_equal(other.load_state_dict(torch.load(file, weights_only=True)), obs)
        for _ in range(10):
            action_N = rng.integers(0, 3, 3)
            step, other_step = env.step(action_N), other.step(action_N)
            assert all(np.array_equal(a, b) for a, b in zip(step, other_step, strict=True))
            obs = step.obs


def test_render() -> None:
    env = toy(2, kind="flat", render=True)
    env.reset(0)
    assert env.render().shape == (30, 40, 3)
    assert len(np.unique(env.render()[0, 0])) == 3  # RGB, although the observation is grayscale
    drawn = toy(2, kind="vector", render=True)
    drawn.reset(0)
    before = drawn.render()
    drawn.step(np.array([0, 0]))
    assert not np.array_equal(before, drawn.render())
    with pytest.raises(UserError, match="render=True"):
        toy().render()


def test_calls_in_the_wrong_order_are_rejected() -> None:
    env = toy()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0]))
    env.reset(0)
    with pytest.raises(RuntimeError, match="send"):
        env.recv()
    env.send(np.array([0]))
    for call in (lambda: env.send(np.array([0])), env.state_dict):
        with pytest.raises(RuntimeError, match="recv"):
            call()
    with pytest.raises(UserError, match="at least 0"):
        env.reset(-1)


def test_unsupported_environments_are_errors() -> None:
    with pytest.raises(UserError, match=r"Toy-v0 has the action space Box.*discrete"):
        toy(actions=spaces.Box(-1, 1, (2,), np.float32))
    with pytest.raises(UserError, match=r"not images .* rgb_array"):
        envs.make("NoImages-v0", 1)
    with pytest.raises(UserError, match=r"renders a NoneType, expected an array \(H, W, 3\)"):
        toy(kind="vector", script={1: "blank"})
    missing = gymnasium.error.DependencyNotInstalled("Box2D, `pip install swig` followed by `pip install gymnasium[x]`")
    for script, what in (({1: "make"}, "created"), ({1: "render"}, "render")):
        with pytest.raises(UserError, match=rf"{what} because .* pip install swig && pip install gymnasium\[x\]$"):
            toy(kind="vector", script=script, error=missing)
    with pytest.raises(UserError, match=r"package mujoco is not installed"):
        toy(script={1: "make"}, error=ModuleNotFoundError("No module named 'mujoco'", name="mujoco"))
    with pytest.raises(UserError, match=r"cannot be created: KeyError: 'oops'"):
        toy(script={1: "make"}, error=KeyError("oops"))


def test_discrete_actions_are_requested_if_supported() -> None:
    env = envs.make("Steering-v0", 1)
    assert env.num_actions == 5
    assert env.settings["continuous"] is False


def test_exception_of_an_environment_names_it() -> None:
    env = toy(2, script={3: "raise", 9: "end"}, error=ZeroDivisionError("test"))
    env.reset(0)
    for _ in range(2):
        env.step(np.array([0, 1]))
    with pytest.raises(UserError, match=r"Toy-v0 raised ZeroDivisionError: test.* step 3 .* environment 0") as e:
        env.step(np.array([0, 1]))
    assert repr(e.value.__cause__) == "ZeroDivisionError('test')"
    env.close()


def test_a_reward_that_is_nan_is_an_error_of_the_environment() -> None:
    class Nan(Toy):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, _, *rest = super().step(action)
            return obs, float("nan") if self.steps == 3 else 0.0, *rest

    env = envs.make(Nan, 2)
    env.reset(0)
    for _ in range(2):
        env.step(np.array([0, 1]))
    with pytest.raises(UserError, match=r"reward of nan at step 3 .* environment 0 with action 0.* environment itself"):
        env.step(np.array([0, 1]))


def test_an_observation_of_another_shape_is_an_error_of_the_environment() -> None:
    class Growing(Toy):
        def _observe(self) -> Any:
            image = super()._observe()
            return image if self.steps < 20 else image[:5]

    env = envs.make(Growing, 1, env_kwargs={"script": {30: "end"}})
    env.reset(0)
    for _ in range(19):
        env.step(np.array([0]))
    with pytest.raises(UserError, match=r"shape \(5, 40, 3\) .* at step 20 of an episode"):
        env.step(np.array([0]))


def test_an_episode_that_raised_is_truncated_and_replaced_if_asked_for() -> None:
    env = toy(2, script={3: "raise", 9: "end"}, error=ZeroDivisionError("test"), settings={"restart_on_error": True})
    first = env.reset(0)
    steps = [env.step(np.array([1, 1])) for _ in range(3)]
    assert [step.truncated.tolist() for step in steps] == [[False, False], [False, False], [True, True]]
    assert (env.errors, steps[2].reward.tolist()) == (2, [0.0, 0.0])
    assert np.array_equal(steps[2].last_obs[:, -1], steps[1].obs[:, -1]), "the last frame that there was"
    assert not np.array_equal(steps[2].obs[:, -1], first[:, -1])
    assert not steps[2].obs[:, :-1].any(), "a new episode"
    assert "ZeroDivisionError: test" in env.warnings[0]
    assert "truncated" in env.warnings[0]
    for _ in range(6):
        env.step(np.array([1, 1]))
    assert (env.errors, len(env.warnings)) == (6, 3)
    assert env.warnings[2].endswith("Further exceptions are only counted.")


class Unseeded(Toy):
    """Environment whose images do not depend on the seed."""

    random = np.random.default_rng(0)

    def _observe(self) -> Any:
        self.image = self.random.integers(0, 256, (30, 40, 3), np.uint8)
        return self.image


def test_an_environment_that_is_not_reproducible_is_reported_and_resumes_with_new_episodes() -> None:
    env, other = envs.make(Unseeded, 2), envs.make(Unseeded, 2)
    assert "does not repeat an episode" in env.warnings[0]
    env.reset(0)
    env.step(np.array([0, 1]))
    other.warnings.clear()
    obs = other.load_state_dict(env.state_dict())
    assert other.episodes_restarted
    assert not obs[:, :-1].any(), "the first frames of new episodes"
    assert "new episodes were started" in other.warnings[0]
    assert not other.step(np.array([0, 1])).terminal.any()
    reproducible = toy(2)
    assert reproducible.warnings == []


def test_other_observations_than_at_the_checkpoint_can_be_accepted() -> None:
    env = toy(1, script={5: "end"})
    env.reset(0)
    for _ in range(3):
        env.step(np.array([0]))
    state = {**env.state_dict(), "crc": 0}
    strict, lenient = toy(1, script={5: "end"}), toy(1, script={5: "end"}, settings={"restart_on_error": True})
    with pytest.raises(UserError, match="does not reproduce the observation"):
        strict.load_state_dict(state)
    assert not strict.episodes_restarted
    lenient.load_state_dict(state)
    assert lenient.episodes_restarted


def test_a_dict_with_an_image_is_used_instead_of_a_rendered_image() -> None:
    class Grid(Toy):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(render_mode=render_mode)
            self.observation_space = spaces.Dict(image=IMAGES["rgb"], direction=spaces.Discrete(4))

        def _observe(self) -> Any:
            return {"image": super()._observe(), "direction": 0}

    env = envs.make(Grid, 1)
    assert env.settings["pixels"] == "observation['image']"
    assert env.reset(0).any()
