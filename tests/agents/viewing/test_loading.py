"""Tests of loading agents from run folders, and of the messages for folders without an agent."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.agent_file import BEST, AgentMetadata
from zerokara.agents.qlearning.network import make_network
from zerokara.agents.viewing.choices import Which
from zerokara.agents.viewing.loading import CHECKPOINT, evaluation_seed, load_agent
from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.core.report import run_folders


def rewrite(run: Path, **changes: Any) -> None:
    """Replace top-level entries of config.json."""
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def saved_config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run / "config.json").read_text())["config"]
    return config


def test_a_loaded_agent_has_the_weights_of_the_checkpoint(catch_run: Path) -> None:
    agent = load_agent(catch_run, which="last", threads=1)
    assert (agent.name, agent.step, agent.num_actions) == ("catch", 400, 3)
    state = checkpoint.load(catch_run / CHECKPOINT, "dqn")["learner"]["network"]
    assert isinstance(agent.config, Config)
    network = make_network(agent.config, (4, 84, 84), 3)
    network.load_state_dict(state)
    env = agent.make_env(2)
    obs = env.reset(0)
    with torch.no_grad():
        expected = network(torch.from_numpy(obs) / 255)
    np.testing.assert_allclose(agent.policy.values(obs).numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)


def other_best(run: Path) -> dict[str, torch.Tensor]:
    """Replace the weights of the best evaluation by others, of step 200, and return them."""
    metadata, weights = AgentMetadata.read(run / BEST)
    weights = {name: tensor + 1 for name, tensor in weights.items()}
    figures = {**metadata.figures, "eval/return": 3.25}
    dataclasses.replace(metadata, step=200, figures=figures).save(run / BEST, weights)
    return weights


def test_the_best_weights_are_loaded_unless_the_last_ones_are_asked_for(catch_run: Path) -> None:
    expected = other_best(catch_run)
    best, last = load_agent(catch_run, threads=1), load_agent(catch_run, which="last", threads=1)
    for name, tensor in best.policy.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert not torch.equal(tensor, last.policy.network.state_dict()[name]), name
    assert (best.step, best.selection, best.returns, best.num_actions) == (200, 3.25, (), 3)
    assert best.weights == "of the best evaluation, which had a mean raw return of 3.25"
    assert (last.step, last.selection, len(last.returns)) == (400, None, 4)
    assert last.weights == "of the last checkpoint"
    assert (best.name, best.output_folder) == ("catch", catch_run)


def test_without_an_evaluation_the_best_weights_are_the_last_ones(catch_run: Path) -> None:
    (catch_run / BEST).unlink()
    agent = load_agent(catch_run, threads=1)
    assert agent.weights == "of the last checkpoint (there was no evaluation yet)"
    assert (agent.step, agent.selection) == (400, None)


def test_loading_changes_no_file(catch_run: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in catch_run.iterdir()}
    load_agent(catch_run, threads=1)
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in catch_run.iterdir()} == before


def test_missing_run(catch_run: Path) -> None:
    with pytest.raises(UserError, match=r"no run in runs/catc .*did you mean catch"):
        load_agent(Path("runs/catc"))


def test_run_without_a_checkpoint(catch_run: Path) -> None:
    (catch_run / CHECKPOINT).unlink()
    with pytest.raises(UserError, match=r"runs/catch has no checkpoint yet"):
        load_agent(catch_run, which="last")


def test_damaged_checkpoint(catch_run: Path) -> None:
    content = bytearray((catch_run / CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    (catch_run / CHECKPOINT).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_agent(catch_run, which="last")


def test_run_of_another_kind(catch_run: Path) -> None:
    rewrite(catch_run, kind="dcgan")
    with pytest.raises(UserError, match="holds a run of dcgan, not of dqn or pqn or stream"):
        load_agent(catch_run)


def test_config_of_another_version(catch_run: Path) -> None:
    config = saved_config(catch_run)
    del config["gamma"]
    rewrite(catch_run, config={**config, "discount": 0.9})
    with pytest.raises(UserError, match=r"has a setting 'discount' that this version of zerokara does not know"):
        load_agent(catch_run)


@pytest.mark.parametrize(("which", "name"), [("best", BEST), ("last", CHECKPOINT)])
def test_weights_that_do_not_fit_the_config(catch_run: Path, which: Which, name: str) -> None:
    rewrite(catch_run, config={**saved_config(catch_run), "hidden_units": 17})
    with pytest.raises(UserError, match=rf"weights in runs/catch/{name} do not fit .*\(size mismatch for advantage"):
        load_agent(catch_run, which=which)


def test_checkpoint_without_weights(catch_run: Path) -> None:
    checkpoint.save(catch_run / CHECKPOINT, {"step": 3}, "dqn")
    with pytest.raises(UserError, match="do not fit the network"):
        load_agent(catch_run, which="last")


def test_environment_with_other_actions_than_in_training(catch_run: Path) -> None:
    rewrite(catch_run, config={**saved_config(catch_run), "env": "zerokara/Snake-v0"})
    with pytest.raises(UserError, match=r"zerokara/Snake-v0 has \d actions .* was trained with 3"):
        load_agent(catch_run, threads=1).make_env(1)


def test_missing_device(catch_run: Path) -> None:
    with pytest.raises(UserError, match="no device 'cuba'"):
        load_agent(catch_run, device="cuba")


def test_run_folders_of_a_command_line(catch_run: Path) -> None:
    assert run_folders(("runs/b", "runs/a", "runs/b/"), "x") == [Path("runs/b"), Path("runs/a")]
    with pytest.raises(UserError, match=r"as in python -m agents.play runs/catch\."):
        run_folders((), "python -m agents.play")


def test_evaluation_seeds_differ_and_fit_into_31_bits() -> None:
    seeds = [evaluation_seed(seed) for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(1_600_000_000 <= seed < 2**31 for seed in seeds)
