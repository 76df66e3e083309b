"""Tests of the model file of an agent: the same Q-values after a round trip, and messages for invalid files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from zerokara.agents.qlearning.agent_file import AgentMetadata
from zerokara.agents.viewing.loading import CHECKPOINT, load_agent
from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.core.models import model_file


def write_file(run: Path, path: Path, *, half: bool = False) -> None:
    """Write the last checkpoint of a run as a model file."""
    content = json.loads((run / "config.json").read_text())
    state = checkpoint.load(run / CHECKPOINT, content["kind"])
    metadata = AgentMetadata(
        algorithm=content["kind"],
        config=content["config"],
        num_actions=state["num_actions"],
        step=state["step"],
        environment=content["extra"]["environment"],
        figures={"eval/return": 1.5},
    )
    metadata.save(path, state["learner"]["network"], half=half)


@pytest.mark.parametrize("half", [False, True])
def test_an_agent_of_a_model_file_has_the_q_values_of_its_run(catch_run: Path, tmp_path: Path, half: bool) -> None:
    path = tmp_path / "elsewhere" / "my-agent.safetensors"
    path.parent.mkdir()
    write_file(catch_run, path, half=half)
    agent, of_run = load_agent(path, threads=1), load_agent(catch_run, which="last", threads=1)
    assert (agent.name, agent.step, agent.num_actions, agent.config) == ("my-agent", 400, 3, of_run.config)
    obs = agent.make_env(2).reset(0)
    expected, values = of_run.policy.values(obs).numpy(), agent.policy.values(obs).numpy()
    if half:
        np.testing.assert_allclose(values, expected, atol=2e-3 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(values, expected)
    assert agent.output_folder == Path("runs/outputs-my-agent")
    assert of_run.output_folder == catch_run


def test_a_file_of_another_network_is_refused(catch_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    model_file.write(path, {"w": torch.zeros(1)}, {}, "zerokara-classifier-1")
    with pytest.raises(UserError, match=r"x.safetensors is not a Q-network of this version"):
        load_agent(path)


def test_a_file_of_an_unknown_algorithm_is_refused(catch_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(catch_run, path)
    metadata, weights = AgentMetadata.read(path)
    fields = {"algorithm": "ppo", "config": metadata.config, "num_actions": 3, "step": 1}
    model_file.write(path, weights, fields, AgentMetadata.FORMAT)
    with pytest.raises(UserError, match=r"algorithm 'ppo' is not one of dqn, pqn, stream"):
        load_agent(path)
