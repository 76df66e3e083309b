"""Tests of agents with the pretrained backbone of a discriminator, and of the benchmark that measures its effect."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import shared_backbone
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import PRESETS, Config
from zerokara.agents.qlearning.network import make_network
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.config import UserError

NARROW = ("--env", "zerokara/Catch-v0", "--backbone", "dcgan", "--width-multiplier", "0.1")
CPU = ("--device", "cpu", "--precision", "float32", "--threads", "1", "--quiet")
LESS: dict[str, tuple[str, ...]] = {
    "generative.dcgan": (
        "--generator-width",
        "0.1",
        "--held-out-images",
        "20",
        "--eval-images",
        "100",
        "--batch-size",
        "8",
    ),
    "agents.dqn": (
        *(
            "--num-envs",
            "4",
            "--batch-size",
            "8",
            "--hidden-units",
            "16",
            "--learning-starts",
            "40",
            "--compile",
            "off",
        ),
        *("--replay-capacity", "500", "--eval-max-steps", "30", "--checkpoint-every-steps", "40"),
    ),
}


def in_this_process(module: str, name: str, words: Sequence[str]) -> Path:
    """Replacement of `run` that trains a smaller run in this process."""
    folder = Path("runs") / name
    if not (folder / "config.json").exists():
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(module).main(["--name", name, *words, *LESS[module], *CPU])
    return folder


def test_benchmark_of_the_shared_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared_backbone, "run", in_this_process)
    monkeypatch.setattr(shared_backbone, "WIDTH", "0.1")
    words = ["--seeds", "3", "--frames", "160", "--updates", "2", "--total-steps", "80", "--eval-every-steps", "40"]
    shared_backbone.main([*words, "--games", "2", "--aim", "-5"])
    found = json.loads(capsys.readouterr().out)
    (one,) = found["seeds"]
    for side in ("shared", "fresh"):
        assert [step for step, _ in one[side]["evaluations"]] == [40, 80]
        assert one[side]["steps_to_aim"] == 40  # -5, five missed balls, is the lowest return
    gain = one["shared"]["mean_over_training"] - one["fresh"]["mean_over_training"]
    assert found["gain_of_mean_over_training"]["each"] == [round(gain, 3)]
    again = [*NARROW, "--total-steps", "32", "--seed", "3"]
    start = ["--pretrained-backbone", "runs/eye-Catch-v0-3"]
    dqn.main(["--name", "untrained", *again, *LESS["agents.dqn"], "--eval-every-steps", "0", *CPU, *start])
    pretrained = checkpoint.load(Path("runs/eye-Catch-v0-3/checkpoint-0.pt"), "dcgan")["learner"]["discriminator"]
    learner = checkpoint.load(Path("runs/untrained/checkpoint-0.pt"), "dqn")["learner"]
    names = [name for name in pretrained if name.startswith("backbone.")]
    assert len(names) == 8  # weights and biases of four layers
    for name in names:
        assert torch.equal(learner["network"][name], pretrained[name]), "the agent has not been updated yet"
        assert torch.equal(learner["target"][name], pretrained[name])


def test_a_backbone_of_another_width_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"backbone.convs.0.weight": torch.zeros(5, 4, 4, 4)}, "eye.pt")
    words = [*NARROW, "--pretrained-backbone", "eye.pt"]
    with pytest.raises(UserError, match=r"Nothing in eye\.pt fits"):
        dqn.main([*words, *LESS["agents.dqn"], *CPU])


def test_dcgan_backbone_has_no_batch_norm_and_features_of_normal_scale() -> None:
    config = parse(Config, PRESETS, ["--backbone", "dcgan", "--width-multiplier", "0.25"], "")
    network = make_network(config, (4, 84, 84), 3)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    features_BF = network.features(torch.rand(8, 4, 84, 84))
    assert 0.05 < float(features_BF.detach().std()) < 5, "weights of 0.02 without BatchNorm would leave a thousandth"
