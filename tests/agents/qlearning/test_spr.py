"""Test self-predictive representations: the loss by hand, what follows a transition, gradients, and settings."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.agents.fakes import CPU, SCRIPT, ScriptedEnvs
from tests.agents.fakes import make as make_replay
from tests.agents.qlearning.sampled import ACTIONS, BATCH, OBS, batches, config
from tests.agents.qlearning.sampled import make as make_learner
from tests.agents.qlearning.test_newer_methods import SHIFT, filled, offset
from tests.agents.resources import resources_of_shape
from tests.agents.small_runs import CATCH
from tests.agents.test_dqn_steps import run_iterations
from tests.programs import metrics
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config, read_config
from zerokara.agents.configs.reading import read_agent_config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.network import QNetwork, make_network
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.agents.qlearning.replay import Replay
from zerokara.agents.qlearning.spr import SelfPrediction, project, scale_to_unit, spr_loss
from zerokara.agents.training.replay_buffer import random_batch
from zerokara.agents.training.start import Resources
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World

SPR: dict[str, Any] = {"spr_weight": 2.0, "target_tau": 0.005, "target_update_steps": 1}


# The loss


def test_maps_are_scaled_by_their_own_minimum_and_maximum() -> None:
    z = torch.tensor([[1.0, 2.0, 5.0, 3.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    expected = torch.tensor([[0.0, 0.25, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    torch.testing.assert_close(scale_to_unit(z), expected, rtol=1e-4, atol=1e-5)


class Tiny(nn.Module):
    """Network whose features are the two pixels of its input; the projection multiplies them by 1 and 2."""

    value = None

    def __init__(self) -> None:
        super().__init__()
        self.advantage = nn.Sequential(nn.Linear(2, 2))
        self.spr = SelfPrediction((1, 1, 2), 2, 2)
        with torch.no_grad():
            self.advantage[0].get_parameter("weight").copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
            self.advantage[0].get_parameter("bias").zero_()
            for layer in (self.spr.conv1, self.spr.conv2, self.spr.predictor):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))
            self.spr.conv2.weight[0, 0, 1, 1] = 1
            self.spr.predictor.weight.copy_(torch.eye(2))
            # conv1: the pixel itself and, where action 1 was taken, 3 times the right neighbor.
            self.spr.conv1.weight[0, 0, 1, 1] = 1

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_loss_by_hand() -> None:
    """Two steps. The transition copies the map; after action 1 both pixels get 3 more, and are scaled again."""
    online: Any = Tiny()
    with torch.no_grad():
        online.spr.conv1.weight[0, 2, 1, 1] = 3  # the plane of action 1
    target: Any = copy.deepcopy(online)
    features_BF = torch.tensor([[0.0, 4.0], [4.0, 0.0]])  # scaled (0, 1) and (1, 0), which transitions do not change
    # Next observations of the first sample: (1, 0) and (0, 1), of the second: (0, 1) and outside of the episode.
    images = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 1.0], [9.0, 0.0]]).view(4, 1, 1, 2)
    action_BS, inside_BS = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    # Projections: (0, 2) against (1, 0): cosine 0, then against (0, 2): cosine 1; (1, 0) against (0, 2): cosine 0.
    loss_B = spr_loss(online, target, features_BF, images, action_BS, inside_BS)
    torch.testing.assert_close(loss_B, torch.tensor([1.0, 1.0]), rtol=1e-4, atol=1e-4)
    # A projection that is rotated by 60 degrees in the target: cosine .5 where it was 1.
    with torch.no_grad():
        half, root = 0.5, math.sqrt(0.75)
        online.spr.predictor.weight.copy_(torch.tensor([[half, root], [-root, half]]))
    # (0, 2) becomes (1.73, 1): cosine .866 with (1, 0), .5 with (0, 2). (1, 0) becomes (.5, -.866): -.866 with (0, 2).
    loss_B = spr_loss(online, target, features_BF, images, action_BS, inside_BS)
    torch.testing.assert_close(loss_B, torch.tensor([2 - root - half, 1 + root]), rtol=1e-4, atol=1e-4)


def test_transition_gets_the_action_as_planes() -> None:
    spr = SelfPrediction((2, 3, 3), 4, 5)
    z, action_B = torch.rand(3, 2, 3, 3), torch.tensor([0, 3, 1])
    planes = torch.zeros(3, 4, 3, 3)
    planes[torch.arange(3), action_B] = 1
    x = torch.cat([z, planes], dim=1)
    expected = torch.relu(spr.conv2(torch.relu(spr.conv1(x))))
    low, high = expected.flatten(1).min(1).values, expected.flatten(1).max(1).values
    expected = (expected - low.view(3, 1, 1, 1)) / (high - low + 1e-5).view(3, 1, 1, 1)
    torch.testing.assert_close(spr.transition(z, action_B), expected)
    bound = math.sqrt(6 / (9 * (6 + 2)))  # Xavier uniform
    assert float(spr.conv1.weight.detach().abs().max()) == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize("noisy", [False, True])
def test_projection_is_the_first_layer_of_both_streams_without_noise(noisy: bool) -> None:
    network = make_network(config(dueling=True, noisy=noisy, **SPR), OBS, ACTIONS).train()
    assert network.spr is not None
    z_BCHW = torch.rand(2, *network.spr.map_shape)
    assert network.value is not None
    expected = [
        z_BCHW.flatten(1) @ stream[0].get_parameter("weight").T + stream[0].get_parameter("bias")
        for stream in (network.value, network.advantage)
    ]
    torch.testing.assert_close(project(network, z_BCHW), torch.cat(expected, dim=1))
    assert make_network(config(dueling=True, noisy=noisy), OBS, ACTIONS).spr is None


def following(seed: int = 0, steps: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randint(256, (BATCH * steps, *OBS), generator=generator, dtype=torch.uint8)
    action_BS = torch.randint(ACTIONS, (BATCH, steps), generator=generator)
    return obs, action_BS, (torch.rand(BATCH, steps, generator=generator) > 0.3).float()


def test_the_loss_of_an_update_is_the_weighted_sum_and_priorities_are_td_errors() -> None:
    torch.manual_seed(0)
    c = config(**SPR)
    compute = Compute()
    learner = dqn.make_learner(c, resources_of_shape(OBS, ACTIONS, compute))
    batch, later = batches()(), following()
    plain, mean_q, td_error_B = dqn.dqn_loss(c, compute, learner.online, learner.target, *batch)
    both, mean_q_too, td_error_too_B = dqn.dqn_loss(
        c, compute, learner.online, learner.target, *batch, None, None, *later
    )
    own_B = spr_loss(
        learner.online, learner.target, learner.online.features(batch.obs / 255), later[0] / 255, *later[1:]
    )
    expected = plain + 2 * (batch.weight * own_B).mean()
    torch.testing.assert_close(both, expected)
    assert torch.equal(td_error_B, td_error_too_B)
    assert torch.equal(mean_q, mean_q_too)
    both.backward()
    for name, parameter in learner.online.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in learner.target.parameters())


def test_learning_lowers_the_prediction_loss() -> None:
    torch.manual_seed(0)
    c = config(learning_rate=3e-3, **SPR)
    learner = dqn.make_learner(c, resources_of_shape(OBS, ACTIONS))
    batch, later = batches()(), following()

    def own_loss() -> float:
        with torch.no_grad():
            features = learner.online.features(batch.obs / 255)
            return float(spr_loss(learner.online, learner.target, features, later[0] / 255, *later[1:]).mean())

    before = own_loss()
    for _ in range(30):
        dqn.gradient_step(learner, batch, later)
    assert own_loss() < 0.5 * before


# What follows a transition


@pytest.mark.parametrize("prioritized", [False, True])
def test_following_observations_equal_the_reference(prioritized: bool) -> None:
    """Compare with the recorded observations of scripted environments, with every kind of end and several laps."""
    envs = ScriptedEnvs(3)
    if prioritized:
        replay: Replay = PrioritizedReplay(
            3 * 23, 3, envs.obs_shape, envs.channels, n_step=1, gamma=0.9, seed=0, device=CPU, alpha=0.5
        )  # fmt: skip
    else:
        replay = make_replay(envs, 3 * 23, n_step=1)
    inside, outside = 0, 0
    for step in range(90):
        envs.step(replay, [script[step % len(script)] for script in SCRIPT])
        if step < 30 or step % 5:
            continue
        batch = replay.sample(16)
        obs, action_BS, inside_BS = replay.following(4)
        obs = obs.unflatten(0, (16, 4))
        for row, (env, slot) in enumerate(zip(*(x.tolist() for x in replay._sampled), strict=True)):
            if not batch.weight[row]:
                continue
            slots = envs.slots[env]
            np.testing.assert_array_equal(batch.obs[row].numpy(), slots[slot].obs)
            for k in range(4):
                now = slots[slot + k]
                here = now.action is not None and not now.ends and slot + k + 1 < len(slots)
                assert bool(inside_BS[row, k]) == here
                if not here:
                    assert not inside_BS[row, k:].any()
                    outside += 1
                    break
                assert int(action_BS[row, k]) == now.action
                np.testing.assert_array_equal(obs[row, k].numpy(), slots[slot + k + 1].obs)
                inside += 1
    assert inside > 200
    assert outside > 30


def test_following_observations_are_shifted_each_by_its_own() -> None:
    plain, shifted = filled(Replay, 0), filled(Replay, SHIFT)
    plain.sample(64)
    shifted.sample(64)
    shifted._sampled = plain._sampled
    (ours, action_BS, inside_BS), (theirs, *others) = shifted.following(2), plain.following(2)
    assert torch.equal(action_BS, others[0])
    assert torch.equal(inside_BS, others[1])
    offsets = [offset(ours[i], theirs[i]) for i in range(128)]
    assert len(set(offsets)) == (2 * SHIFT + 1) ** 2
    assert offsets[::2] != offsets[1::2]


# Runs and settings

TINY = (
    *CATCH,
    *("--preset", "data-efficient", "--spr-weight", "2", "--spr-steps", "2", "--total-steps", "160"),
    *("--learning-starts", "40", "--batch-size", "8", "--replay-capacity", "400", "--n-step", "3"),
    *("--train-every-steps", "8", "--eval-every-steps", "0", "--log-every-steps", "40", "--per-beta-steps", "120"),
    *("--checkpoint-every-steps", "40"),
)


def test_a_stopped_run_resumes_bitwise_identically(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    with contextlib.chdir(tmp_path / "whole"):
        dqn.main([*TINY, "--name", "spr"])
    with contextlib.chdir(tmp_path / "parts"):
        dqn.main([*TINY, "--name", "spr", "--total-steps", "80", "--no-delete-replay"])
        dqn.main(["--name", "spr", "--resume", "--total-steps", "160", "--quiet"])
    whole, parts = (checkpoint.load(tmp_path / name / "runs/spr/checkpoint-0.pt", "dqn") for name in ("whole", "parts"))
    assert whole["updates"] == parts["updates"] > 10
    for name, weight in whole["learner"]["network"].items():
        assert torch.equal(weight, parts["learner"]["network"][name]), name
    assert any(name.startswith("spr.") for name in whole["learner"]["network"])
    assert metrics(tmp_path / "whole/runs/spr")[-1]["train/loss"] > 0


def test_spr_sets_an_averaged_target_and_random_shifts() -> None:
    given = read_config(["--preset", "data-efficient", "--spr-weight", "2"])
    assert (given.target_tau, given.target_update_steps, given.random_shift, given.spr_steps) == (0.005, 1, 4, 5)
    own = read_config(["--spr-weight", "1", "--target-tau", "0.01", "--random-shift", "0", "--spr-steps", "3"])
    assert (own.target_tau, own.target_update_steps, own.random_shift, own.spr_steps) == (0.01, 1, 0, 3)
    plain = read_config(["--preset", "data-efficient"])
    assert (plain.spr_weight, plain.target_tau, plain.random_shift) == (0, 1, 0)


@pytest.mark.parametrize(("values", "expected"), [({"target_tau": 0.01}, (0.01, 4)), ({"random_shift": 2}, (0.005, 2))])
def test_spr_keeps_the_values_of_a_preset(values: dict[str, Any], expected: tuple[float, int]) -> None:
    presets = {"fast": {}, "own": {"spr_weight": 2.0, **values}}
    given = read_agent_config(Config, presets, ["--preset", "own"], "", "dqn")
    assert (given.target_tau, given.random_shift) == expected
    assert given.target_update_steps == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--spr-weight 2 --target-tau 1", "--spr-weight and --target-tau 1 cannot be combined"),
        ("--spr-weight 2 --env CartPole-v1 --backbone mlp", "--spr-weight and --backbone mlp cannot be combined"),
        ("--spr-weight 2 --backbone my.py:Net", "--spr-weight and --backbone my.py:Net cannot be combined"),
        ("--spr-weight 2 --actors 2", "--spr-weight and --actors cannot be combined"),
        ("--spr-steps 3", "--spr-steps has no effect without --spr-weight above 0"),
        ("--jumps 3", "--jumps is --spr-steps here"),
        ("--spr", "--spr is --spr-weight here"),
    ],
)
def test_settings_that_cannot_be_combined_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_config(words.split())


@pytest.mark.parametrize("changes", [{}, {"head": "c51"}, {"head": "iqn"}, {"backbone": "impala", "pool": "mean"}])
@pytest.mark.parametrize("compute", [{}, {"precision": "bfloat16"}, {"precision": "bfloat16", "compile": True}])
def test_heads_backbones_and_precisions(
    changes: dict[str, Any], compute: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last precision is that of compiled runs, with a copy of the network in 16 bits, without the compilation."""
    monkeypatch.setattr(Compute, "function", lambda compute, function: function)
    c: Config = config(**SPR, noisy=True, dueling=True, **changes)
    torch.manual_seed(0)
    learner = dqn.make_learner(c, resources_of_shape(OBS, ACTIONS, Compute(**compute)))
    assert isinstance(learner.online, QNetwork)
    assert torch.isfinite(dqn.gradient_step(learner, batches()(), following())).all()


def test_the_loss_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training uses the graph of the probe; a second one takes a minute. Here graphs are counted and run eagerly."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def function(_compute: Compute, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=backend) if function.__name__ == "_forward_eager" else function

    monkeypatch.setattr(Compute, "function", function)
    options = {**SPR, "spr_steps": 3, "random_shift": 2, "per_alpha": 0.5, "noisy": True, "batch_size": BATCH}
    training = run_iterations(tmp_path, monkeypatch, **options)
    alone = Resources(training.env, Compute(), World())
    dqn.gradient_step(training.learner, *random_batch(training.config, alone, BATCH))
    for _ in range(2):
        training.sample_and_update()
    assert len(graphs) == 1


def test_a_reset_perturbs_the_transition_model_and_reinitializes_the_predictor() -> None:
    learner = make_learner(batches(), **SPR)
    with torch.no_grad():
        for parameter in learner.network.parameters():
            parameter.add_(1.0)
    old = {name: parameter.detach().clone() for name, parameter in learner.network.named_parameters()}
    learner.reset(7, 0.25)
    torch.manual_seed(7)
    fresh = dict(make_network(learner.config, OBS, ACTIONS).named_parameters())
    now = dict(learner.network.named_parameters())
    perturbed = {name for name in now if torch.allclose(now[name], 0.75 * old[name] + 0.25 * fresh[name])}
    assert perturbed == {name for name in now if name.startswith(("backbone.", "spr.conv1.", "spr.conv2."))}
    assert "spr.predictor.weight" in now
    assert all(torch.equal(now[name], fresh[name]) for name in now.keys() - perturbed)


def test_command_of_the_page_has_the_values_of_the_published_code() -> None:
    """scripts/run.py of mila-iqia/spr: epsilon is 1 at step 0 and 0 from step 2,001 on."""
    page = (Path(__file__).parents[3] / "docs" / "family.md").read_text("utf-8")
    words = page.split("The command that comes nearest:")[1].split("```")[1].replace("\\\n", "").split()
    c = read_config(words[words.index("agents.dqn") + 1 :])
    assert (c.backbone, c.same_padding) == ("nature", False)
    assert (c.gradient_steps, c.train_every_steps, c.batch_size) == (2, 1, 32)
    assert (c.n_step, c.noisy_sigma_init, c.learning_starts, c.per_priority) == (10, 0.5, 2_000, "kl")
    assert (c.spr_weight, c.spr_steps, c.random_shift, c.target_tau) == (2, 5, 4, 0.005)
    assert c.backbone_gradient_scale == pytest.approx(2**-0.5, abs=1e-4)
    assert [schedules.epsilon(c, step) for step in (0, 2_001, 50_000)] == [1, 0, 0]
