"""Tests of runs with presets and extensions: Rainbow resumes bitwise identically, and every head learns Catch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.agents.small_runs import CATCH
from tests.programs import metrics
from zerokara.agents import dqn
from zerokara.agents.viewing.loading import load_agent
from zerokara.core import checkpoint

RAINBOW = (
    *CATCH,
    *("--preset", "rainbow", "--total-steps", "480", "--learning-starts", "80", "--batch-size", "8"),
    *("--train-every-steps", "16", "--replay-capacity", "600", "--target-update-steps", "64"),
    *("--log-every-steps", "80", "--checkpoint-every-steps", "100", "--eval-every-steps", "240"),
    *("--eval-episodes", "2", "--eval-max-steps", "10", "--n-step-start", "6", "--gamma-start", "0.9"),
    *("--n-step-gamma-anneal-updates", "8", "--reset-every-updates", "10", "--per-beta-steps", "480"),
    *("--target-tau", "0.1", "--weight-decay", "0.1", "--random-shift", "2"),
)


def test_rainbow_resumes_bitwise_identically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume a run with all parts that have state: priorities, noise, annealing, resets, an averaged target network."""
    monkeypatch.chdir(tmp_path)
    dqn.main([*RAINBOW, "--name", "whole"])
    dqn.main([*RAINBOW, "--name", "halves", "--total-steps", "240", "--no-delete-replay"])
    dqn.main(["--name", "halves", "--resume", "--total-steps", "480", "--quiet"])
    assert metrics(tmp_path / "runs" / "whole") == metrics(tmp_path / "runs" / "halves")
    whole, halves = (checkpoint.load(tmp_path / "runs" / n / "checkpoint-0.pt", "dqn") for n in ("whole", "halves"))
    assert whole["updates"] > 20, "the run must include two resets"
    for part in ("network", "target"):
        for name, weight in whole["learner"][part].items():
            assert torch.equal(weight, halves["learner"][part][name])
    for ours, theirs in zip(whole["replay"]["priorities"], halves["replay"]["priorities"], strict=True):
        assert torch.equal(ours, theirs)
    assert whole["replay"]["priorities"][0].unique().numel() > 3, "priorities must have changed"

    agent = load_agent(Path("runs/whole"), threads=1)
    assert agent.num_actions == 3
    env = agent.make_env(2)
    obs = env.reset(1)
    values = agent.policy.values(obs)
    np.testing.assert_array_equal(values.numpy(), agent.policy.values(obs).numpy())
    assert values.shape == (2, 3)


# The settings of the preset `fast` for Catch, with a smaller final learning rate, because the goal is to miss at most
# one ball in 40, and with more than twice the steps that the slowest of ten runs took.
LEARNS_CATCH = (
    *("--env", "zerokara/Catch-v0", "--total-steps", "200000", "--eval-every-steps", "20000"),
    *("--final-learning-rate", "1e-5", "--learning-rate-decay-steps", "80000"),
    *("--stop-at-return", "4.75", "--no-capture-video"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--head", "c51"),
        ("--head", "qr", "--num-quantiles", "32"),
        ("--head", "iqn", "--num-tau-samples", "8", "--num-target-tau-samples", "8", "--num-policy-tau-samples", "8"),
        ("--munchausen",),
        ("--per-alpha", "0.6"),
        ("--head", "c51", "--noisy", "--noisy-sigma-init", "0.1", "--double", "--per-alpha", "0.5"),
    ],
    ids=("c51", "qr", "iqn", "munchausen", "prioritized", "rainbow"),
)
def test_learns_catch(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dqn.main([*LEARNS_CATCH, *words, "--name", "catch"])
    # Five balls, one point each; the mean of 30 episodes reached the goal, and 30 further episodes confirm it.
    assert max(line.get("eval/return_confirmed", 0.0) for line in metrics(tmp_path / "runs" / "catch")) >= 0.95 * 5
