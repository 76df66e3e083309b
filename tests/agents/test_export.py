"""Tests of agents.export: files are compared with the original network before they are put in place."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.markers import needs_onnx
from zerokara.agents import export
from zerokara.agents.configs import dqn as dqn_config
from zerokara.agents.configs import pqn as pqn_config
from zerokara.agents.configs import stream as stream_config
from zerokara.agents.qlearning.agent_file import BEST, AgentMetadata
from zerokara.agents.qlearning.network import QNetwork
from zerokara.agents.viewing.loading import evaluation_seed, load_agent
from zerokara.core.config import UserError, to_saved

NARROW = {"env": "zerokara/Catch-v0", "width_multiplier": 0.25, "hidden_units": 8}
FEW = ("--observations", "24")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_agent(algorithm: str = "dqn", **changes: Any) -> Path:
    """Write the model file of an agent with random weights."""
    config_class = {"dqn": dqn_config.Config, "pqn": pqn_config.Config, "stream": stream_config.Config}[algorithm]
    obs_shape = changes.pop("obs_shape", None)
    config = config_class(**{**NARROW, **changes})
    metadata = AgentMetadata(
        algorithm=algorithm, config=to_saved(config), num_actions=3, obs_shape=obs_shape, step=7, environment={"a": 1}
    )
    torch.manual_seed(0)
    network = metadata.build()
    for parameter in network.parameters():  # Q-values that differ between actions
        torch.nn.init.normal_(parameter, std=0.1)
    path = Path("agent.safetensors")
    metadata.save(path, network.state_dict())
    return path


VARIANTS: list[dict[str, Any]] = [
    {},
    {"dueling": False, "backbone": "nature", "layer_norm": True},
    {"head": "c51"},
    {"head": "qr", "num_quantiles": 5},
    {"head": "iqn", "num_policy_tau_samples": 4},
    {"noisy": True},
    {"backbone": "impala", "spectral_norm": True, "pool_size": 3},
    {"backbone": "impala", "pool": "mean"},
    {"backbone": "hadamax"},
    {"algorithm": "pqn"},
    {"algorithm": "stream"},
]


@needs_onnx
@pytest.mark.usefixtures("onnx_operators")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: " ".join(map(str, variant.values())) or "default")
def test_both_files_give_the_same_q_values_for_any_number(
    variant: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    path = save_agent(**variant)
    export.main([str(path), *FEW, "--out", "deployed"])
    printed = capsys.readouterr().out
    assert printed.count("24 of 24 actions are the same") == 2
    exported = Path("deployed/agent.onnx")
    onnx.checker.check_model(onnx.load(exported))
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["actions"]) == list(load_agent(path).make_env(1).action_names)
    assert json.loads(texts["environment"]) == {"id": "zerokara/Catch-v0", "a": 1}
    original, again = load_agent(path, threads=1), load_agent(Path("deployed/agent.safetensors"), threads=1)
    assert (again.step, again.config) == (7, original.config)
    for batch in (1, 3, 50):
        obs = torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8).numpy()
        expected = original.policy.values(obs).numpy()
        np.testing.assert_array_equal(again.policy.values(obs).numpy(), expected)
        actual = session.run(None, {"observations": obs})[0]
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_weights_and_metadata_are_of_one_reading(catch_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that still trains may save a better agent between the two."""
    metadata, weights = AgentMetadata.read(catch_run)

    def record_later(*args: Any) -> torch.Tensor:
        better = {name: tensor + 1 for name, tensor in weights.items()}
        replace(metadata, step=metadata.step + 1).save(catch_run / BEST, better)
        return record(*args)

    record = export.record_observations
    monkeypatch.setattr(export, "record_observations", record_later)
    export.main([str(catch_run), *FEW, "--no-onnx", "--out", "exported"])
    exported, exported_weights = AgentMetadata.read(Path("exported/catch.safetensors"))
    assert exported.step == metadata.step
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported_weights.items())


@needs_onnx
@pytest.mark.usefixtures("onnx_operators")
def test_one_file_of_a_run_with_the_action_of_an_observation(
    catch_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main([str(catch_run), *FEW, "--which", "last", "--out", "catch.onnx"])
    assert sorted(path.name for path in Path().iterdir()) == ["catch.onnx", "runs"]
    first, second = capsys.readouterr().out.splitlines()
    agent = load_agent(catch_run, which="last", threads=1)
    env = agent.make_env(8)
    action = int(agent.policy.values(env.reset(evaluation_seed(0)))[0].argmax())
    assert first == (
        f"runs/catch: zerokara/Catch-v0, weights of the last checkpoint, at step 400; checked on 24 observations; "
        f"for the first one the action is {action} ({env.action_names[action]})"
    )
    assert second.startswith("catch.onnx: ")
    export.main([str(catch_run), *FEW, "--which", "last"])
    assert sorted(path.name for path in (catch_run / "export").iterdir()) == ["catch.onnx", "catch.safetensors"]
    metadata = AgentMetadata.read_metadata(catch_run / "export" / "catch.safetensors")
    assert metadata is not None
    assert (metadata.step, metadata.data, metadata.obs_shape) == (400, "zerokara/Catch-v0", (4, 84, 84))
    assert metadata.environment["max_episode_steps"] == 200
    assert len(metadata.origin) == 1
    export.main([str(catch_run), *FEW, "--no-onnx", "--out", "best"])
    best = load_agent(catch_run, threads=1)
    exported = load_agent(Path("best/catch.safetensors"), threads=1)
    assert (exported.step, exported.selection) == (best.step, best.selection)
    assert exported.selection is not None
    states = [each.policy.network.state_dict() for each in (best, exported)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@needs_onnx
@pytest.mark.usefixtures("onnx_operators")
def test_an_agent_that_observes_vectors() -> None:
    import onnxruntime

    Path("my_env.py").write_text(
        "import gymnasium\nimport numpy as np\n\n"
        "class Random(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-9, 9, (5,), np.float32)\n"
        "    action_space = gymnasium.spaces.Discrete(3)\n\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        return self.step(0)[0], {}\n\n"
        "    def step(self, action):\n"
        "        return self.np_random.uniform(-9, 9, 5).astype(np.float32), 0.0, False, False, {}\n"
    )
    path = save_agent(env="my_env.py:Random", backbone="mlp", obs_type="vector", frame_stack=2, obs_shape=(10, 1, 1))
    export.main([str(path), *FEW, "--out", "numbers.onnx"])
    session = onnxruntime.InferenceSession("numbers.onnx", providers=["CPUExecutionProvider"])
    obs = np.random.default_rng(0).normal(size=(3, 10, 1, 1)).astype(np.float32)
    expected = load_agent(path, threads=1).policy.values(obs).numpy()
    np.testing.assert_allclose(session.run(None, {"observations": obs})[0], expected, atol=1e-5)


def test_float16_file_is_half_as_large(capsys: pytest.CaptureFixture[str]) -> None:
    path = save_agent()
    export.main([str(path), *FEW, "--no-onnx", "--half", "--out", "half"])
    assert Path("half/agent.safetensors").stat().st_size < 0.6 * path.stat().st_size
    export.main([str(path), *FEW, "--half", "--out", "one.safetensors"])
    weights = [AgentMetadata.read(Path(name))[1] for name in ("one.safetensors", "half/agent.safetensors")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_file_with_other_q_values_is_not_put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    path, load = save_agent(), AgentMetadata.load

    def load_damaged(file: Path) -> tuple[QNetwork, AgentMetadata]:
        network, metadata = load(file)
        if file != path:  # the written file, not the original
            next(network.parameters()).data.fill_(1.0)
        return network, metadata

    monkeypatch.setattr(AgentMetadata, "load", load_damaged)
    with pytest.raises(UserError, match=r"A Q-value of the exported network differs by .*: nothing was written"):
        export.main([str(path), *FEW, "--no-onnx", "--out", "deployed"])
    assert not Path("deployed").exists()


def test_mistakes_get_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_agent()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    for words, message in (
        ([], r"No run was named: give its folder, as in .*agents\.export runs/<name>"),
        ([str(path), "--out", "x"], "onnxscript, which is not installed: pip install onnx onnxscript onnxruntime"),
        ([str(path), "--no-onnx", "--out", "a.onnx"], "--out a.onnx is an ONNX file, and --no-onnx leaves it out"),
        ([str(path), "--no-onnx", "--out", "."], "agent.safetensors is the file to be exported"),
    ):
        with pytest.raises(UserError, match=message) as error:
            export.main(words)
        assert "\n" not in str(error.value)
    assert sorted(file.name for file in Path().iterdir()) == ["agent.safetensors"]


@pytest.mark.parametrize(("size", "height", "width"), [(3, 11, 11), (6, 11, 7), (1, 4, 5), (4, 4, 4)])
def test_max_pooling_by_slices(size: int, height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width)
    assert torch.equal(export.SlicedMaxPool(size)(x), torch.nn.functional.adaptive_max_pool2d(x, size))


@needs_onnx
@pytest.mark.usefixtures("onnx_operators")
def test_a_network_that_cannot_be_exported_gets_a_sentence() -> None:
    Path("my_net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, channels, image_size):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.ones(1))\n\n"
        "    def forward(self, x):\n"
        "        return nn.functional.adaptive_max_pool2d(x * self.weight, 5)\n"
    )
    path = save_agent(backbone="my_net.py:Net", width_multiplier=1.0)
    with pytest.raises(UserError, match=r"exporter does not support this network \(.*\): leave the file out with --no"):
        export.main([str(path), *FEW, "--out", "deployed"])
    assert not Path("deployed").exists()
    export.main([str(path), *FEW, "--out", "deployed", "--no-onnx"])
    assert Path("deployed/agent.safetensors").exists()
