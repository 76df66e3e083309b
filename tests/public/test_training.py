"""Training from Python: classes and functions of one's own, callbacks, threads, notebooks, and mistakes."""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import zerokara
from tests.core.test_file_lock import in_thread
from tests.programs import run_interpreter, start
from tests.public.blink import Blink
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config, read_config
from zerokara.core import checkpoint
from zerokara.core import config as config_module
from zerokara.core.data import glyphs
from zerokara.core.media import write_png
from zerokara.training import command_line, python_message
from zerokara.vision import classify

TINY: dict[str, Any] = {
    "total_steps": 400,
    "num_envs": 4,
    "hidden_units": 16,
    "log_every_steps": 40,
    "eval_every_steps": 0,
    "eval_episodes": 2,
    "eval_max_steps": 20,
    "capture_video": False,
    "quiet": True,
    "device": "cpu",
    "precision": "float32",
    "compile": "off",
    "threads": 1,
}
TINY_DQN = {**TINY, "learning_starts": 100, "batch_size": 8, "train_every_steps": 16, "replay_capacity": 1000}

pytestmark = pytest.mark.usefixtures("blank_figures")


class Net(nn.Module):
    """Small network: one strided convolution."""

    def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 12, 12), nn.ReLU(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(Path("runs", name, "config.json").read_text())["config"]
    return config


def test_an_agent_with_an_environment_and_a_network_of_one_s_own() -> None:
    entries: list[tuple[int, dict[str, float]]] = []
    agent = zerokara.train_dqn(
        env=Blink, backbone=Net, name="a", env_kwargs={"level": 40}, callback=lambda *e: entries.append(e), **TINY_DQN
    )
    assert [step for step, metrics in entries if "train/epsilon" in metrics] == list(range(40, 401, 40))
    assert entries[-1][1]["train/updates"] > 0
    assert agent.step == 400
    assert isinstance(agent.policy.network.backbone.module, Net)
    frame, _ = Blink(40).reset()
    assert agent.act(frame) in (0, 1)
    assert agent.evaluate(2).lengths == (10, 10)
    # Both can be imported, so the run can be used without giving them again.
    assert (saved("a")["env"], saved("a")["backbone"]) == ("tests.public.blink:Blink", f"{__name__}:Net")
    again = zerokara.load_agent("runs/a", threads=1)
    np.testing.assert_array_equal(again.q_values(frame), agent.q_values())
    assert again.evaluate(2) == agent.evaluate(2)


def test_functions_that_cannot_be_imported_are_given_again() -> None:
    def make_env() -> gymnasium.Env[Any, Any]:
        return Blink(30)

    def make_net(channels: int, image_size: tuple[int, int]) -> nn.Module:
        return Net(channels, image_size)

    zerokara.train_dqn(env=make_env, backbone=make_net, name="a", **TINY_DQN)
    others: tuple[dict[str, Any], ...] = ({}, {"env": make_env})
    for given in others:
        with pytest.raises(
            zerokara.UserError, match=r"make_net was defined inside a function .* with the argument backbone="
        ):
            zerokara.load_agent("runs/a", threads=1, **given)
    agent = zerokara.load_agent("runs/a", backbone=make_net, threads=1)
    assert agent.act(np.zeros((12, 16, 3), np.uint8)) in (0, 1)
    with pytest.raises(zerokara.UserError, match=r"make_env was defined inside a function .* with the argument env="):
        agent.evaluate(1)
    assert zerokara.load_agent("runs/a", backbone=make_net, env=make_env, threads=1).evaluate(1).lengths == (10,)
    settings = {**TINY_DQN, "total_steps": 480, "name": "a", "resume": True}
    with pytest.raises(zerokara.UserError, match="was defined inside a function"):
        zerokara.train_dqn(**settings)
    assert zerokara.train_dqn(env=make_env, backbone=make_net, **settings).step == 480


def test_a_callback_stops_the_run_which_can_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []

    def stop_at_200(step: int, metrics: dict[str, float]) -> np.bool_:
        steps.append(step)
        return np.bool_(step < 200)

    settings = {**TINY, "rollout_steps": 10, "num_minibatches": 4}
    agent = zerokara.train_pqn(env=Blink, name="a", callback=stop_at_200, **{**settings, "quiet": False})
    assert agent.step == steps[-1] == 200
    out = capsys.readouterr().out
    assert "the callback: saving" in out
    assert "resume with: " in out
    assert zerokara.train_pqn(env=Blink, name="a", resume=True, callback=lambda *_: True, **settings).step == 400


def test_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**TINY, "num_envs": 1, "total_steps": 60}
    agent = zerokara.train_stream(env=Blink, backbone=Net, name="a", **settings)
    assert (agent.step, agent.updates) == (60, 60)
    assert zerokara.train_stream(env=Blink, name="a", resume=True, **{**settings, "total_steps": 80}).step == 80


def test_an_exception_of_a_callback_reaches_the_caller() -> None:
    def fail(step: int, metrics: dict[str, float]) -> None:
        raise ZeroDivisionError(step)

    with pytest.raises(ZeroDivisionError):
        zerokara.train_dqn(env=Blink, name="a", callback=fail, **TINY_DQN)
    assert zerokara.train_dqn(env=Blink, name="a", resume=True, **TINY_DQN).step == 400


def test_training_in_a_thread() -> None:
    agent = in_thread(lambda: zerokara.train_dqn(env=Blink, backbone=Net, name="a", **TINY_DQN))
    assert in_thread(lambda: agent.act(np.zeros((12, 16, 3), np.uint8))) in (0, 1)


def random_numbers() -> tuple[float, ...]:
    """Return a number of each of the global generators."""
    return torch.rand(1).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_the_caller_keeps_its_random_numbers() -> None:
    """Training seeds the generators of torch; those who draw hyperparameters between two runs must not notice it."""
    torch.manual_seed(3)
    expected = [torch.rand(1).item() for _ in range(3)]
    torch.manual_seed(3)
    drawn, others = [], []
    for name in "ab":
        numbers = random_numbers()
        drawn.append(numbers[0])
        others.append(numbers[1:])
        zerokara.train_dqn(env=Blink, name=name, **{**TINY_DQN, "total_steps": 40})
    assert [*drawn, random_numbers()[0]] == expected
    assert others[0] != others[1]
    before = checkpoint.rng_state()
    following = random_numbers()
    checkpoint.set_rng_state(before)
    zerokara.train_dqn(env=Blink, name="b", resume=True, **{**TINY_DQN, "total_steps": 80})
    assert random_numbers() == following  # those of the caller, not those of the checkpoint


def test_worker_processes_get_the_class_itself() -> None:
    class Local(Blink):
        pass

    assert zerokara.train_dqn(env=Local, name="a", **{**TINY_DQN, "env_workers": 1}).step == 400


NET = """
class Net(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 12, 12), nn.ReLU(), nn.Flatten())

    def forward(self, x):
        return self.layers(x)
"""

NOTEBOOK = f"""
import sys
sys.argv = ["ipykernel_launcher.py", "-f", "kernel-1.json"]
import gymnasium, zerokara
from torch import nn
{NET}
settings = {TINY_DQN!r}
"""


def test_a_notebook(tmp_path: Path) -> None:
    """A class of a notebook is found again where it is defined again; otherwise the message says what to give."""

    def run(code: str) -> str:
        process = start(tmp_path, "-c", code)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, ""), err
        return out

    train = "agent = zerokara.train_dqn(env='zerokara/Catch-v0', backbone=Net, name='a', **settings)"
    assert run(NOTEBOOK + train + "\nprint(agent.step)").splitlines()[-1] == "400"
    assert saved("a")["backbone"] == "__main__:Net"
    assert run(NOTEBOOK + "print(zerokara.load_agent('runs/a', threads=1).step)") == "400\n"
    other = "try:\n    zerokara.load_agent('runs/a')\nexcept zerokara.UserError as error:\n    print(error)"
    assert run(f"import zerokara\n{other}").startswith("Net was defined in a notebook or an interactive session and")


def images(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        pixels = np.random.default_rng(index).integers(256, size=(28, 28), dtype=np.uint8)
        write_png(folder / f"{index}.png", pixels)


def test_a_generator(tmp_path: Path) -> None:
    images(tmp_path / "pictures", 130)
    entries: list[int] = []
    generator = zerokara.train_dcgan(
        data="pictures", image_size=(28,), updates=4, eval_every_updates=4, log_every_updates=2, batch_size=4,
        eval_images=100, generator_width=0.05, discriminator_width=0.05, latent_dim=4, preview_images=4, quiet=True,
        device="cpu", precision="float32", threads=1, name="gan", callback=lambda step, metrics: entries.append(step),
    )  # fmt: skip
    assert generator.sample(2).shape == (2, 28, 28, 1)
    assert {2, 4} <= set(entries)
    np.testing.assert_array_equal(zerokara.load_generator("runs/gan", threads=1).sample(2), generator.sample(2))


def test_a_classifier_with_a_network_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(Net):
        pass

    monkeypatch.setattr(glyphs, "NUMBER", {"train": 120, "test": 40})
    entries: list[int] = []
    classifier = zerokara.train_classifier(
        data="glyphs", backbone=Local, validation_images=20, epochs=1, batch_size=20, test=False, tta_views=1,
        quiet=True, device="cpu", precision="float32", compile="off", threads=1, name="c", elastic_pixels=0,
        callback=lambda step, metrics: entries.append(step),
    )  # fmt: skip
    assert len(classifier.classes) == 10
    assert entries
    image = np.zeros((28, 28), np.uint8)
    again = zerokara.load_classifier("runs/c", backbone=Local, threads=1)
    assert again.predict(image) == classifier.predict(image)
    with pytest.raises(zerokara.UserError, match="Local was defined inside a function"):
        zerokara.load_classifier("runs/c")


def make_nothing() -> None:
    """Return no environment."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"totl_steps": 5}, r"^agents\.dqn has no setting totl_steps \(did you mean total_steps\?\); .*--help lists"),
        ({"total_timesteps": 5}, r"^total_timesteps is total_steps here\.$"),
        ({"total_steps": -5}, r"^total_steps cannot be -5: it must be a whole number, at least 1\.$"),
        ({"total_steps": 1e5}, r"^total_steps cannot be '100000.0': it must be a whole number"),
        ({"gamma": object()}, r"^gamma cannot be an object of object: give a number"),
        ({"env": "ALE/Pnog-v5"}, r"did you mean ALE/Pong-v5"),
        ({"env": Blink()}, r"^env cannot be an object of Blink: give a name, a class, or a function that creates one"),
        ({"env": Net}, r"Net cannot be created: TypeError"),
        ({"env": make_nothing}, r"make_nothing created None, expected a gymnasium\.Env"),
        ({"env": Blink, "backbone": "natur"}, r"^backbone cannot be 'natur': it must be one of nature, "),
        ({"env": Blink, "backbone": Blink}, r"Blink is the class of something else"),
        ({"env": Blink, "backbone": Net(4, (84, 84))}, r"is a network: a backbone is given as a class of"),
        ({"env": Blink, "munchausen": True, "double": True}, r"^munchausen=True and double=True cannot be combined"),
        ({"env": Blink, "num_envs": 4, "device": "cuba"}, r"^There is no device 'cuba'; choose device auto, cpu"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else " ".join(value),  # objects have an address
)
def test_mistakes_are_user_errors_and_create_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(zerokara.UserError, match=message) as error:
        zerokara.train_dqn(**{**TINY_DQN, **settings})
    assert "\n" not in str(error.value)
    assert not Path("runs").exists()


def test_a_name_that_is_taken() -> None:
    zerokara.train_dqn(env=Blink, name="a", **TINY_DQN)
    with pytest.raises(zerokara.UserError, match=r"resume it with resume=True, or choose another name\.$"):
        zerokara.train_dqn(env=Blink, name="a", **TINY_DQN)
    with pytest.raises(zerokara.UserError, match=r"with gamma=0\.99 and cannot be resumed with 0\.5: leave it out"):
        zerokara.train_dqn(env=Blink, name="a", resume=True, **{**TINY_DQN, "gamma": 0.5})


def test_words_of_a_command_line() -> None:
    settings = {"double": False, "dueling": True, "fire_reset": None, "learning_rate": 1e-5, "v_min": -2, "name": ""}
    words = ["--no-double", "--dueling", "--fire-reset=None", "--learning-rate=1e-05", "--v-min=-2", "--name="]
    assert command_line(settings) == words
    assert command_line({"obs_range": (-1, 1), "env_kwargs": {"size": 5, "mode": "a b"}}) == [
        *("--obs-range", "-1", "1"),
        *("--env-kwargs", "size=5", "mode='a b'"),
    ]
    config = read_config(command_line({"obs_range": (-1.0, 1.0), "env_kwargs": {"size": 5, "mode": "a b"}}))
    assert (config.obs_range, config.env_settings()["env_kwargs"]) == ((-1.0, 1.0), {"size": 5, "mode": "a b"})
    assert read_config(command_line({"stop_at_return": None, "fire_reset": None})).fire_reset is None
    assert isinstance(config, Config)


def test_messages_name_keyword_arguments() -> None:
    assert python_message("give --seed 3, --no-double or --resume.", dqn) == "give seed=3, double=False or resume=True."
    assert python_message("--help lists them all.", classify).endswith("vision.classify --help lists them all.")
    assert python_message("--total-steps cannot be -5", dqn) == "total_steps cannot be -5"


def test_importing_is_fast_and_loads_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, time\nbefore, start = set(sys.modules), time.process_time()\nimport zerokara\n"
        "seconds = time.process_time() - start\n"
        "print(seconds < 0.3, {'torch', 'numpy', 'gymnasium', 'cv2', 'PIL'} & set(sys.modules))\n"
        "print(sorted(set(zerokara.__all__) - set(dir(zerokara))), zerokara.UserError.__name__)\n"
        "print('torch' in sys.modules, hasattr(zerokara, 'load_agnet'))\n"
    )
    done = run_interpreter(tmp_path, "-c", code)
    assert (done.stderr, done.stdout) == ("", "True set()\n[] UserError\nFalse False\n")


def test_every_public_name_has_a_docstring() -> None:
    for name in zerokara.__all__:
        assert getattr(zerokara, name).__doc__
    assert sys.modules["zerokara"].__doc__


class Offset(Blink):
    """Environment whose actions are 10 and 11."""

    action_space = spaces.Discrete(2, start=10)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in (10, 11)
        return super().step(action - 10)


def test_actions_that_do_not_start_at_0_are_explained_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "_printed", set())
    agent = zerokara.train_dqn(env=Offset, name="a", **{**TINY_DQN, "total_steps": 200, "eval_every_steps": 200})
    frame, _ = Offset().reset()
    assert agent.evaluate(2).lengths == (10, 10)
    assert agent.act(np.zeros((3, 4, 84, 84), np.uint8)).shape == (3,)  # type: ignore[union-attr]  # of make_env
    assert capsys.readouterr().err == ""
    best = zerokara.load_agent("runs/a", threads=1)
    last = zerokara.load_agent("runs/a", which="last", threads=1)
    for loaded in (agent, best, last):
        assert loaded.first_action == 10
        assert loaded.act(frame) in (0, 1)
    message = "the action space starts at 10: give the environment agent.act(obs) + env.action_space.start."
    assert capsys.readouterr().err.count(message) == 1
    zerokara.train_dqn(env=Blink, name="b", **{**TINY_DQN, "total_steps": 40}).act(frame)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("train", [zerokara.train_dqn, zerokara.train_pqn])
def test_environments_are_closed_when_a_run_has_ended(train: Any) -> None:
    """An environment may hold a simulator, a window or a license. Garbage collection must not be needed."""
    created: list[Counted] = []

    class Counted(Blink):
        def __init__(self) -> None:
            super().__init__()
            self.is_open = True
            created.append(self)

        def close(self) -> None:
            self.is_open = False

    steps = {"rollout_steps": 10, "num_minibatches": 4} if train is zerokara.train_pqn else TINY_DQN
    settings = {**TINY, **steps, "eval_every_steps": 200, "env": Counted}
    gc.disable()
    try:
        train(name="a", **settings)
        assert not any(env.is_open for env in created)
        train(name="b", callback=lambda step, _: False, **settings)
        assert not any(env.is_open for env in created)
        with pytest.raises(zerokara.UserError, match="already holds a run"):
            train(name="a", **settings)
        assert not any(env.is_open for env in created)
    finally:
        gc.enable()


def test_worker_processes_end_with_the_run() -> None:
    before = {process.pid for process in psutil.Process().children()}
    gc.disable()
    try:
        zerokara.train_dqn(env=Blink, name="a", **{**TINY_DQN, "env_workers": 2, "eval_every_steps": 200})
        assert {process.pid for process in psutil.Process().children()} <= before
    finally:
        gc.enable()


def test_a_single_training_image_that_batch_norm_reduces_to_one_value_is_refused(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        images(tmp_path / "few" / name, 2)  # one of them is a test image, and one of the others a validation image
    with pytest.raises(zerokara.UserError, match=r"give a larger batch_size, more images, or fewer accumulation steps"):
        zerokara.train_classifier(
            data="few", backbone="resnet18", width_multiplier=0.125, validation_images=1, device="cpu", name="c"
        )
    assert not Path("runs").exists()
