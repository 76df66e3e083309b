"""Agents that observe vectors: settings, what is stored and trained on, whole runs, and networks of one's own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.agents.small_runs import CATCH
from zerokara.agents import dqn, evaluate, play, pqn, stream
from zerokara.agents.configs.dqn import read_config
from zerokara.agents.qlearning.replay import Replay, bytes_needed
from zerokara.agents.viewing.loading import load_agent
from zerokara.core.compute import Compute
from zerokara.core.config import UserError

SOURCE = """
import gymnasium
import numpy as np
from gymnasium import spaces
from torch import nn

class Target(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-2000, 2000, (4,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def observe(self):
        return np.array([self.position, self.target, 1000.0 + self.steps, -0.25])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps, self.target = 0, 0, self.np_random.integers(-3, 4)
        return self.observe(), {}

    def step(self, action):
        self.position, self.steps = self.position + int(action) - 1, self.steps + 1
        return self.observe(), float(-abs(self.position - self.target)), False, self.steps == 10, {}

    def render(self):
        return np.full((16, 16, 3), 10 * self.steps, np.uint8)

class Net(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        assert image_size == (1, 1)
        self.linear = nn.Linear(channels, 7)

    def forward(self, x):
        return self.linear(x).relu()
"""
COMMON = [word for word in CATCH if word not in ("--env", "zerokara/Catch-v0", "--precision", "float32")]
WORDS = [*COMMON, "--env", "my_env.py:Target", "--name", "numbers", "--log-every-steps", "40", "--eval-episodes", "2"]
DQN = [
    *(*WORDS, "--total-steps", "400", "--learning-starts", "100", "--batch-size", "8", "--train-every-steps", "16"),
    *("--replay-capacity", "1000", "--eval-every-steps", "200"),
]
PQN = [
    *(*WORDS, "--total-steps", "256", "--rollout-steps", "8", "--num-minibatches", "2", "--log-every-steps", "64"),
    *("--eval-every-steps", "128"),
]
STREAM = [
    *(*WORDS, "--num-envs", "1", "--total-steps", "100", "--eval-every-steps", "50", "--hidden-units", "8"),
]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write my_env.py into the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_env.py").write_text(SOURCE)


def settings(*words: str) -> tuple[str, str, int, str]:
    config = read_config([*words])
    return config.backbone, config.obs_type, config.frame_stack, config.precision


def test_mlp_and_vector_select_each_other() -> None:
    vector = ("mlp", "vector", 1, "float32")
    assert settings("--backbone", "mlp") == settings("--obs-type", "vector") == vector
    assert settings("--backbone", "mlp", "--frame-stack", "3", "--precision", "auto") == ("mlp", "vector", 3, "auto")
    own = ("my_env.py:Net", "vector", 1, "float32")
    assert settings("--obs-type", "vector", "--backbone", "my_env.py:Net") == own
    assert settings() == ("der", "image", 4, "auto")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--obs-type vector --backbone nature", "--backbone nature has convolutions, and the observations are vectors"),
        ("--backbone mlp --obs-type image", "--backbone mlp is for vectors"),
        ("--backbone mlp --image-size 64", "--image-size has no effect without --obs-type image"),
        ("--backbone mlp --no-grayscale", "--grayscale has no effect without --obs-type image"),
    ],
)
def test_other_combinations_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_config(words.split())
    assert "\n" not in str(error.value)


def test_the_program_refuses_before_anything_is_created() -> None:
    with pytest.raises(UserError, match="has images as observations and no vector"):
        dqn.main(["--env", "zerokara/Catch-v0", "--backbone", "mlp"])
    assert not Path("runs").exists()


@pytest.mark.parametrize("device_copy", [False, True])
def test_the_replay_buffer_stores_the_numbers(tmp_path: Path, device_copy: bool) -> None:
    device = torch.device("cpu")
    folder = tmp_path / "replay" if device_copy else None
    replay = Replay(60, 2, (6, 1, 1), 3, dtype=np.float32, n_step=2, gamma=0.5, seed=0, device=device, folder=folder)
    obs = [np.random.default_rng(t).normal(size=(2, 6, 1, 1)).astype(np.float32) * 1000 for t in range(6)]
    for t in range(1, 6):
        obs[t][:, :3] = obs[t - 1][:, 3:]  # two stacked vectors
    no = np.zeros(2, bool)
    for t in range(5):
        replay.add(obs[t], np.array([t, 0]), np.ones(2, np.float32), no, no, obs[t + 1])
    batch = replay.gather(torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert batch.obs.dtype == torch.float32
    assert torch.equal(batch.obs, torch.from_numpy(np.stack([obs[1][0], obs[2][1]])))
    assert torch.equal(batch.next_obs, torch.from_numpy(np.stack([obs[3][0], obs[4][1]])))
    assert replay.bytes == bytes_needed(60, 0, (3, 1, 1), np.float32) == 60 * (12 + 9)


def test_numbers_are_not_scaled_as_pixels_are() -> None:
    x = torch.tensor([[1000.0, -2.5, 0.25, 3.0]])[:, :, None, None]
    assert torch.equal(Compute().images(x), x)
    assert torch.equal(Compute(compile=True, channels_last=True).images(x), x), "four numbers are not four bytes"


@pytest.mark.parametrize(("program", "words"), [(dqn, DQN), (pqn, PQN), (stream, STREAM)])
@pytest.mark.parametrize("backbone", ["mlp", "my_env.py:Net"])
def test_a_whole_run(program: ModuleType, words: list[str], backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    if backbone != "mlp":
        words = [word for word in words if word not in ("--width-multiplier", "0.25")]
    program.main([*words, "--obs-type", "vector", "--backbone", backbone])
    run = Path("runs/numbers")
    agent = load_agent(run, threads=1)
    assert (agent.obs_shape, agent.num_actions) == ((4, 1, 1), 3)
    env = agent.make_env(2)
    assert isinstance(env.settings["observation"], str)
    first = agent.policy.network.backbone.state_dict()
    inputs = first["linears.0.weight" if backbone == "mlp" else "module.linear.weight"].shape[1]
    assert inputs == 4
    q_NA = agent.policy.values(env.reset(0))
    assert torch.isfinite(q_NA).all()
    total = int(words[words.index("--total-steps") + 1])
    program.main(["--name", "numbers", "--resume", "--quiet", "--total-steps", str(total + 64)])
    evaluate.main([str(run), "--episodes", "2", "--device", "cpu", "--threads", "1"])
    play.main([str(run), "--max-steps", "3", "--device", "cpu", "--threads", "1"])
    assert list(run.glob("media/play-*.mp4"))
    with pytest.raises(UserError, match="--attention blurs parts of an image"):
        play.main([str(run), "--attention", "--device", "cpu", "--threads", "1"])


def test_a_resumed_run_gives_the_same_numbers() -> None:
    vector = ["--backbone", "mlp", "--checkpoint-every-steps", "200", "--no-delete-replay"]
    lengths = ["--epsilon-decay-steps", "200", "--learning-rate-decay-steps", "400", "--target-update-steps", "40"]
    dqn.main([*DQN, *vector, *lengths, "--name", "whole"])
    dqn.main([*DQN, *vector, *lengths, "--name", "parts", "--total-steps", "200"])
    dqn.main(["--name", "parts", "--resume", "--quiet", "--total-steps", "400"])
    names = ("whole", "parts")
    whole, parts = (load_agent(Path("runs") / name, which="last", threads=1).policy.network for name in names)
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.state_dict().items())


def test_an_episode_is_filmed_by_rendering() -> None:
    dqn.main([*(word for word in DQN if word != "--no-capture-video"), "--backbone", "mlp"])
    assert list(Path("runs/numbers/media").glob("*.mp4"))


def test_the_ram_of_an_atari_game() -> None:
    """With the two-word form of Gymnasium."""
    words = [word for word in DQN if word not in ("--env", "my_env.py:Target")]
    dqn.main(
        [*words, "--env", "ALE/Pong-v5", "--env-kwargs", "obs_type=ram", "--backbone", "mlp", "--eval-max-steps", "5"]
    )
    agent = load_agent(Path("runs/numbers"), threads=1)
    assert agent.obs_shape == (128, 1, 1)
