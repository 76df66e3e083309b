"""Agents with a network of one's own: training, resume, evaluation, play, and a file that is missing or changed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.agents.small_runs import CATCH
from zerokara.agents import dqn, evaluate, play, pqn, stream
from zerokara.agents.configs.pqn import Config as PqnConfig
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.network import QNetwork, make_pqn_network
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.viewing.loading import load_agent
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World

SOURCE = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x):
        return self.layers(x).flatten(1)
"""
# Without --width-multiplier, which the network does not have.
SMALL = [word for word in CATCH if word not in ("--width-multiplier", "0.25")]
DQN = (
    *(*SMALL, "--backbone", "my_net.py:MyNet", "--name", "own", "--total-steps", "400", "--learning-starts", "100"),
    *("--batch-size", "8", "--train-every-steps", "16", "--replay-capacity", "1000", "--log-every-steps", "40"),
    *("--eval-every-steps", "200", "--eval-episodes", "2", "--checkpoint-every-steps", "200"),
    *("--epsilon-decay-steps", "200", "--learning-rate-decay-steps", "400", "--target-update-steps", "40"),
)
PQN = (
    *(*SMALL, "--backbone", "my_net.py:MyNet", "--name", "own", "--total-steps", "256", "--rollout-steps", "8"),
    *("--num-minibatches", "2", "--log-every-steps", "64", "--eval-every-steps", "128", "--eval-episodes", "2"),
)
STREAM = (
    *(*SMALL, "--num-envs", "1", "--backbone", "my_net.py:MyNet", "--name", "own", "--total-steps", "60"),
    *("--log-every-steps", "20", "--eval-every-steps", "30", "--eval-episodes", "2"),
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return my_net.py in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_net.py"
    path.write_text(SOURCE)
    return path


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("speed")} for line in lines]


@pytest.mark.parametrize(("program", "words"), [(dqn, DQN), (pqn, PQN), (stream, STREAM)])
def test_a_run_can_be_resumed_evaluated_and_played_while_the_file_is_there(
    program: ModuleType, words: tuple[str, ...], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main(words)
    run = Path("runs/own")
    assert json.loads((run / "config.json").read_text())["config"]["backbone"] == "my_net.py:MyNet"
    agent = load_agent(run, threads=1)
    backbone = agent.policy.network.backbone
    batches = backbone.state_dict()["module.layers.1.num_batches_tracked"]
    assert (batches > 0) == (program is not stream), "updates are made in training mode, except from one observation"
    assert not backbone.training
    total = words[words.index("--total-steps") + 1]
    program.main(["--name", "own", "--resume", "--quiet", "--total-steps", str(int(total) + 64)])
    evaluate.main([str(run), "--episodes", "2", "--device", "cpu", "--threads", "1"])
    play.main([str(run), "--max-steps", "3", "--device", "cpu", "--threads", "1"])
    assert list(run.glob("media/play-*.mp4"))

    moved = file.rename("other.py")
    for start in (
        lambda: program.main(["--name", "own", "--resume", "--quiet"]),
        lambda: load_agent(run, threads=1),
        lambda: play.main([str(run), "--device", "cpu"]),
    ):
        with pytest.raises(UserError, match=r"There is no file my_net\.py in .*, which 'my_net\.py:MyNet' names"):
            start()
    moved.rename("my_net.py")
    file.write_text(SOURCE.replace("channels, 4", "channels, 6").replace("Norm2d(4)", "Norm2d(6)"))
    with pytest.raises(UserError, match="do not fit the network"):
        load_agent(run, threads=1)


def test_a_resumed_run_gives_the_same_numbers(file: Path) -> None:
    """Among them those of BatchNorm and dropout."""
    dqn.main([*DQN, "--name", "whole"])
    dqn.main([*DQN, "--name", "parts", "--total-steps", "200", "--no-delete-replay"])
    dqn.main(["--name", "parts", "--resume", "--quiet", "--total-steps", "400"])
    whole = [line for line in metrics(Path("runs/whole")) if "train/loss" in line]
    parts = [line for line in metrics(Path("runs/parts")) if "train/loss" in line]
    assert whole == parts
    weights = [
        load_agent(Path("runs") / name, which="last", threads=1).policy.network.state_dict()
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def make_network(channels: int, image_size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2, 2), nn.BatchNorm2d(2))


def test_batch_norm_is_updated_by_updates_of_the_online_network_only() -> None:
    def make() -> QNetwork:
        return QNetwork((1, 4, 4), 2, backbone=make_network, width=1.0, hidden_units=3, dueling=False, layer_norm=False)

    learner = Learner(
        make,
        lambda online, target, x: (online(x).sum() + target(x).sum(), x.mean(), x.mean((1, 2, 3))),
        Compute(),
        World(),
        optimizer="adam",
        learning_rate=0.1,
        epsilon=1e-8,
        max_grad_norm=None,
        target_tau=1.0,
    )

    def batches() -> list[int]:
        states = [network.backbone.state_dict() for network in (learner.online, learner.target)]
        return [int(state["module.1.num_batches_tracked"]) for state in states]

    learner.step(torch.rand(5, 1, 4, 4))
    assert batches() == [1, 0]
    obs = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8).numpy()
    policy = Policy(learner.online, Compute())
    alone = torch.cat([policy.values(obs[i : i + 1], noisy=True) for i in range(3)])
    torch.testing.assert_close(policy.values(obs, noisy=True), alone, msg="actions do not depend on other environments")
    assert batches() == [1, 0]
    learner.step(torch.rand(5, 1, 4, 4))
    assert batches() == [2, 0]
    learner.update_target_network()
    assert batches() == [2, 2]


def test_pqn_keeps_the_initialization_of_a_network_of_ones_own(file: Path) -> None:
    config = PqnConfig(backbone="my_net.py:MyNet", hidden_units=4)
    torch.manual_seed(2)
    network = make_pqn_network(config, (4, 84, 84), 3)
    torch.manual_seed(2)
    expected = nn.Conv2d(4, 4, 8, 8)
    weight = network.backbone.get_submodule("module.layers.0").get_parameter("weight")
    assert torch.equal(weight, expected.weight)
    assert network.backbone.get_submodule("module.layers.0").get_parameter("bias").abs().max() > 0
