"""Tests of the best agent of a run: the file with its weights, after a resume as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.agents.training.recorded import Make, Recorded
from zerokara.agents.qlearning.agent_file import BEST, AgentMetadata
from zerokara.agents.training.evaluation import Scores
from zerokara.core import checkpoint
from zerokara.core.config import UserError


def scores(*means: float) -> list[Scores]:
    return [Scores((mean,), (10,)) for mean in means]


def content(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and weights of a safetensors file; the order of the entries of its header is random."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def fill(recorded: Recorded, value: float) -> None:
    """Set the weights of the network."""
    with torch.no_grad():
        for weight in recorded.session.learner.network.parameters():
            weight.fill_(value)


def train(recorded: Recorded) -> None:
    """Run the loop; the weights of the network are the step."""
    recorded.train(each=lambda: fill(recorded, recorded.session.step))


@pytest.mark.parametrize(
    ("means", "step", "score"),
    [((1.0, 3.0, 2.0, 2.5), 40, 3.0), ((-3.0, -2.0, -1.0, -1.0), 60, -1.0), ((0.0, 0.0, 0.0, 0.0), 20, 0.0)],
)
def test_the_weights_of_the_best_evaluation_are_kept(
    make: Make, tmp_path: Path, means: tuple[float, ...], step: int, score: float
) -> None:
    recorded = make(eval_every_steps=20)
    recorded.scores = scores(*means)
    train(recorded)
    metadata, weights = AgentMetadata.read(tmp_path / "run" / BEST)
    assert weights["backbone.weight"].item() == step
    assert (metadata.step, metadata.num_actions, metadata.algorithm) == (step, 4, "dqn")
    assert metadata.figures["eval/return"] == score
    assert metadata.figures["train/updates"] == step // 4
    assert metadata.config["env"] == metadata.data == "ALE/Pong-v5"
    assert metadata.environment == {"frame_skip": 4}
    last = f"evaluation {means[-1]:.2f} (best: {score:.2f} at step {step}), "
    assert last in recorded.session.closing_message()


def test_a_new_run_has_no_best_agent(make: Make) -> None:
    assert make().session.best.state_dict() == {"score": None, "step": 0}


def test_a_killed_run_evaluates_again_and_writes_the_same_file(make: Make, tmp_path: Path) -> None:
    """The checkpoint of step 32 has the best score up to there: the one of step 20, not the one of step 40."""
    recorded = make(eval_every_steps=20, total_steps=64)
    recorded.scores = scores(2.0, 3.0, 1.0)
    path, states = tmp_path / "run" / "checkpoint-0.pt", dict[int, bytes]()
    files = dict[int, bytes]()

    def watch() -> None:
        fill(recorded, recorded.session.step)
        states[recorded.session.step - 4] = path.read_bytes()
        if (path.parent / BEST).exists():
            files[recorded.session.step - 4] = (path.parent / BEST).read_bytes()

    recorded.train(each=watch)
    assert content(files[20]) != content(files[40]) == content((path.parent / BEST).read_bytes())

    path.write_bytes(states[32])
    again = make(resume=True, eval_every_steps=20, total_steps=64)
    again.scores = scores(3.0, 1.0)
    again.session.start()
    assert (again.session.best.score, again.session.best.step) == (2.0, 20)
    again = make(resume=True, eval_every_steps=20, total_steps=64)
    again.scores = scores(3.0, 1.0)
    train(again)
    assert content((path.parent / BEST).read_bytes()) == content(files[40])
    assert (again.session.best.score, again.session.best.step) == (3.0, 40)


def test_a_run_of_version_0_1_begins_without_a_best_score(make: Make, tmp_path: Path) -> None:
    recorded = make(total_steps=40, eval_every_steps=20)
    recorded.scores = scores(2.0)
    train(recorded)
    path = tmp_path / "run" / "checkpoint-0.pt"
    state = checkpoint.load(path, "dqn")
    del state["best"]
    checkpoint.save(path, state, "dqn")
    again = make(resume=True, total_steps=80, eval_every_steps=20)
    again.scores = scores(1.0)
    train(again)
    assert (again.session.best.score, again.session.best.step) == (1.0, 60)


def test_weights_that_are_not_finite_are_not_kept(make: Make, tmp_path: Path) -> None:
    recorded = make(eval_every_steps=20)
    recorded.scores = scores(5.0)
    with pytest.raises(UserError, match="diverged at step 20"):
        recorded.train(each=lambda: fill(recorded, float("nan")))
    assert not (tmp_path / "run" / BEST).exists()
