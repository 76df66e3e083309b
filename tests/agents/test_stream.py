"""Tests of streaming Q(lambda): TD error, step size, network, whole runs, bitwise identical resuming."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.agents.small_runs import CATCH
from tests.programs import metrics
from zerokara.agents import evaluate, play, stream
from zerokara.agents.configs.stream import FOREIGN_NAMES, PRESETS, Config, read_config
from zerokara.agents.qlearning.network import make_stream_network
from zerokara.agents.qlearning.traces import TraceLearner
from zerokara.agents.stream import obgd_step_size, td_error
from zerokara.agents.viewing.loading import load_agent
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, class_mapping, field_types, flag
from zerokara.core.distributed import World
from zerokara.core.layers import SampleNorm, sparse_init_

TINY = (
    *(*CATCH, "--num-envs", "1", "--total-steps", "300", "--epsilon-decay-steps", "100", "--log-every-steps", "40"),
    *("--checkpoint-every-steps", "70", "--eval-every-steps", "150", "--eval-episodes", "2", "--eval-max-steps", "20"),
)


# ---- TD error and step size


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [(False, 1 + 0.9 * 3 - 2), (True, 1 - 2)],
)
def test_td_error(terminal: bool, expected: float) -> None:
    assert td_error(1.0, 2.0, 3.0, gamma=0.9, terminal=terminal) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("error", "trace_norm", "learning_rate", "kappa", "expected"),
    [
        (0.5, 0.1, 1.0, 2.0, 1.0),  # 1 * 2 * 1 * 0.1 is below 1: no bound
        (3.0, 4.0, 1.0, 2.0, 1 / 24),
        (-3.0, 4.0, 1.0, 2.0, 1 / 24),
        (0.5, 4.0, 1.0, 2.0, 1 / 8),  # errors below 1 count as 1
        (-2.0, 5.0, 0.5, 2.0, 1 / 20),  # the bound does not depend on the learning rate
        (-2.0, 5.0, 0.5, 3.0, 1 / 30),
        (9.0, 0.0, 0.5, 3.0, 0.5),  # no traces
    ],
)
def test_step_size(error: float, trace_norm: float, learning_rate: float, kappa: float, expected: float) -> None:
    step_size = obgd_step_size(error, trace_norm, learning_rate=learning_rate, kappa=kappa)
    assert step_size == pytest.approx(expected)


# ---- network


def test_network_of_the_published_code() -> None:
    """Three convolutions and two linear layers; every layer but the last has LayerNorm over the sample, leaky ReLU."""
    torch.manual_seed(0)
    network = make_stream_network(Config(normalize_observations=False), (4, 84, 84), 6)
    assert sum(p.numel() for p in network.parameters()) == 8_224 + 32_832 + 36_928 + 65_792 + 1_542
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 5
    assert sum(isinstance(module, SampleNorm) for module in network.modules()) == 4
    x = obs = torch.rand(2, 4, 84, 84)
    for layer, stride in zip(layers[:3], (5, 3, 2), strict=True):
        x = F.conv2d(x, layer.weight, layer.bias, stride)
        x = F.leaky_relu(torch.stack([F.layer_norm(sample, sample.shape) for sample in x]), 0.01)
    x = x.flatten(1) @ layers[3].weight.T
    x = F.leaky_relu((x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt(), 0.01)
    torch.testing.assert_close(network(obs), x @ layers[4].weight.T)
    assert not any(layer.bias.any() for layer in layers if layer.bias is not None)


def test_a_single_image_gives_the_values_and_gradients_of_a_batch() -> None:
    """A single image is computed by matrix products, a batch by convolutions."""
    torch.manual_seed(0)
    network = make_stream_network(Config(normalize_observations=False, init_sparsity=0.5), (4, 84, 84), 6)
    obs = torch.rand(2, 4, 84, 84)
    singles = torch.cat([network(image[None]) for image in obs])
    with torch.no_grad():
        torch.testing.assert_close(network(obs[:1]), singles[:1].detach(), rtol=1e-4, atol=1e-5)
    batch = network(obs)
    torch.testing.assert_close(singles, batch, rtol=1e-4, atol=1e-5)
    weights = list(network.parameters())
    gradients = [torch.autograd.grad(q_BA[:, 2].sum(), weights) for q_BA in (singles, batch)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_initial_weights_are_sparse() -> None:
    torch.manual_seed(0)
    weight = sparse_init_(torch.full((50, 4, 5, 5), 9.0), 0.9)
    rows = weight.flatten(1)
    assert (rows == 0).sum(dim=1).tolist() == [90] * 50
    assert rows.abs().max() <= 0.1, "1 / sqrt(100)"
    assert rows[rows != 0].std() == pytest.approx(0.1 / 3**0.5, rel=0.1)
    assert (rows != 0).any(dim=0).float().mean() > 0.9, "other inputs in each row"
    assert sparse_init_(torch.ones(3, 7), 0.5).count_nonzero(dim=1).tolist() == [3] * 3, "zeros are rounded up"
    assert sparse_init_(torch.ones(3, 4), 0.9).count_nonzero(dim=1).tolist() == [1] * 3, "one is left"


def test_weights_and_traces_are_vectors() -> None:
    config = Config(width_multiplier=0.25, hidden_units=8)
    learner = TraceLearner(make_stream_network(config, (4, 84, 84), 3), Compute(channels_last=True))
    parameters = list(learner.network.parameters())
    learner.weight_P.copy_(torch.arange(len(learner.weight_P)) / 1000)
    assert torch.equal(torch.cat([p.detach().flatten() for p in parameters]), learner.weight_P)
    obs = np.random.default_rng(0).integers(0, 256, (1, 4, 84, 84), np.uint8)
    learner.values(obs)[0, 2].backward()
    gradient = learner.trace_P.clone()
    assert gradient.any()
    learner.trace_P.mul_(0.5)
    learner.values(obs)[0, 2].backward()
    torch.testing.assert_close(learner.trace_P, 1.5 * gradient, rtol=1e-4, atol=1e-6)


# ---- programs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder with runs/stream, created by the program in one uninterrupted run."""
    root = tmp_path_factory.mktemp("stream")
    with contextlib.chdir(root):
        stream.main([*TINY, "--name", "stream"])
    return root


def test_metrics(finished: Path) -> None:
    rows = [row for row in metrics(finished / "runs" / "stream") if "train/epsilon" in row]
    assert [row["train/updates"] for row in rows] == list(range(40, 300, 40)), "one update per step"
    assert all(0 < row["train/step_size"] <= 1 for row in rows)
    assert all(row["train/loss"] > 0 and row["train/td_error"] > 0 and row["train/trace_norm"] > 0 for row in rows)


def test_a_stopped_run_resumes_bitwise_identically(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stream.main([*TINY, "--name", "stream", "--total-steps", "150"])  # where an evaluation is due in any case
    stream.main(["--name", "stream", "--resume", "--total-steps", "300", "--quiet"])
    assert metrics(tmp_path / "runs" / "stream") == metrics(finished / "runs" / "stream")
    ours, theirs = (
        checkpoint.load(root / "runs" / "stream" / "checkpoint-0.pt", "stream") for root in (tmp_path, finished)
    )
    assert ours["step"] == theirs["step"] == 300
    assert torch.equal(ours["learner"]["trace"], theirs["learner"]["trace"])
    assert torch.equal(ours["frames"]["mean"], theirs["frames"]["mean"])
    assert ours["frames"]["count"] == theirs["frames"]["count"] > 300, "of training, not of evaluations"
    for name, weight in ours["learner"]["network"].items():
        assert torch.equal(weight, theirs["learner"]["network"][name]), name


def test_evaluate_and_play_read_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    agent = load_agent(Path("runs/stream"), which="last", threads=1)
    assert (agent.step, agent.num_actions, agent.config.eval_epsilon) == (300, 3, 0.01)
    saved = checkpoint.load(Path("runs/stream/checkpoint-0.pt"), "stream")
    mean = saved["frames"]["mean"].float() / 255
    torch.testing.assert_close(agent.policy.network.state_dict()["normalization.mean"], mean)
    evaluate.main(["runs/stream", "--which", "last", "--episodes", "2", "--max-steps", "20", "--device", "cpu"])
    assert Path("runs/stream/evaluation-300.json").exists()
    play.main(["runs/stream", "--max-steps", "3", "--device", "cpu", "--threads", "1"])
    assert list(Path("runs/stream/media").glob("play-*.mp4"))


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(World, "from_env", lambda device: World(size=2))
    with pytest.raises(UserError, match="one environment in one process, and there are 2 processes"):
        stream.main([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num-envs 4", "--num-envs cannot be 4: it must be a whole number, at least 1 and at most 1"),
        ("--buffer-size 5", "has no replay buffer"),
        ("--batch-size 5", "every update uses one step"),
    ],
)
def test_a_mistake_is_reported_in_one_line(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_config(words.split())
    assert "\n" not in str(error.value)


def test_the_default_is_the_published_configuration() -> None:
    config = read_config([])
    assert config.fire_reset is True
    assert config.fire_after_life_loss is None
    assert (config.gamma, config.td_lambda, config.kappa, config.learning_rate) == (0.99, 0.8, 2.0, 1.0)
    assert (config.epsilon_start, config.epsilon_end, config.epsilon_decay_steps) == (1.0, 0.01, 500_000)
    assert (config.total_steps, config.init_sparsity, config.terminal_on_life_loss) == (10_000_000, 0.9, True)
    assert (config.device, config.threads, config.compile, config.precision) == ("cpu", 1, "off", "float32")
    vector = read_config(["--env", "CartPole-v1", "--backbone", "mlp"])
    assert (vector.obs_type, vector.frame_stack, vector.fire_reset) == ("vector", 1, None)


def test_help_lists_every_option_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    grouped = [name for names in class_mapping(Config, "GROUPS").values() for name in names]
    assert sorted(grouped) == sorted(field_types(Config))
    assert set(Config.COMMON) <= set(grouped)
    assert list(Config.PRESET_SUMMARIES) == list(PRESETS)
    foreign = {answer for answer in FOREIGN_NAMES.values() if not answer.startswith("is not an option here: ")}
    assert foreign <= set(grouped)
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        read_config(["--help"])
    lines = capsys.readouterr().out.splitlines()
    own = [flag(name) for name in Config.__annotations__ if name not in ("FOREIGN_NAMES", "GROUPS", "COMMON", "preset")]
    labels = {line.split()[0].replace("[no-]", ""): line for line in lines if line.strip()}
    cut = [line for label, line in labels.items() if label in own and "..." in line]
    assert cut == []


# ---- learning


CORRIDOR = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Corridor(gymnasium.Env):
    observation_space = spaces.Box(-1000, 1000, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal, self.steps = 0, int(self.np_random.integers(2)) * 2 - 1, 0
        return np.array([self.position, 100.0 * self.goal]), {}

    def step(self, action):
        self.position += 2 * int(action) - 1
        self.steps += 1
        won = self.position == 3 * self.goal
        obs = np.array([self.position, 100.0 * self.goal])
        return obs, float(won), won or self.position == -3 * self.goal, self.steps == 30, {}
"""


def test_learns_to_reach_a_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two ends of a corridor gives a reward; three steps in the same direction lead there."""
    monkeypatch.chdir(tmp_path)
    Path("corridor.py").write_text(CORRIDOR)
    words: list[Any] = ["--env", "corridor.py:Corridor", "--backbone", "mlp", "--width-multiplier", "0.25"]
    words += ["--hidden-units", "16", "--total-steps", "1500", "--no-capture-video", "--eval-episodes", "20"]
    stream.main([*words, "--name", "corridor", "--quiet"])
    assert metrics(tmp_path / "runs" / "corridor")[-1]["eval/return"] >= 0.9
