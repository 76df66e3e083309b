"""Tests of PQN: rollouts, updates, bitwise identical resuming, and evaluation of its runs."""

from __future__ import annotations

import contextlib
import copy
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.agents.resources import resources, resources_of_shape
from tests.agents.scripted import SIZE, Origin, ScriptedEnv, ends_with, reward_of
from tests.agents.small_runs import CATCH
from tests.programs import metrics
from zerokara import envs
from zerokara.agents import evaluate, pqn
from zerokara.agents.configs.pqn import Config
from zerokara.agents.pqn import Training, make_learner
from zerokara.agents.qlearning.network import make_pqn_network
from zerokara.agents.qlearning.policy import Exploration
from zerokara.agents.viewing.loading import load_agent
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.run import Run

TINY = (
    *CATCH,
    *("--rollout-steps", "10", "--num-minibatches", "2", "--total-steps", "400", "--epsilon-decay-steps", "200"),
    *("--log-every-steps", "80", "--checkpoint-every-steps", "120", "--eval-every-steps", "200"),
    *("--eval-episodes", "2", "--eval-max-steps", "20"),
)

SCRIPTED: dict[str, Any] = {"frame_stack": 2, "image_size": SIZE, "backbone": "der"}  # settings for `ScriptedEnv`


def config(**changes: Any) -> Config:
    options: dict[str, Any] = {"env": "zerokara/Catch-v0", "num_envs": 3, "rollout_steps": 5, "num_minibatches": 5}
    options |= {"width_multiplier": 0.25, "hidden_units": 16, "seed": 3}
    return Config(**(options | changes))


@pytest.fixture
def make_training(tmp_path: Path) -> Callable[..., Training]:
    """Return a function that creates the state of a run, given changes of the config."""

    def make(**changes: Any) -> Training:
        name = f"run{len(list(tmp_path.iterdir()))}"
        with Run(config(**changes), kind="pqn", name=name, resume=False, quiet=True, root=tmp_path) as run:
            return Training(config(**changes), run, resources(config(**changes)))

    return make


def test_layer_norm_before_every_relu() -> None:
    net = make_pqn_network(config(), (4, 84, 84), 3)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 4, "three convolutions and the hidden layer"
    maps = net.backbone.stages(torch.rand(2, 4, 84, 84))
    conv, norm = net.backbone.get_submodule("convs.0"), norms[0]
    x = torch.rand(2, 4, 84, 84)
    raw = conv(x)
    mean, variance = raw.mean(dim=1, keepdim=True), raw.var(dim=1, keepdim=True, unbiased=False)
    expected = torch.relu((raw - mean) / (variance + norm.eps).sqrt())  # over the channels of each pixel
    torch.testing.assert_close(net.backbone.stages(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert len(maps) == 3
    assert not any(
        isinstance(m, nn.LayerNorm) for m in make_pqn_network(config(layer_norm=False), (4, 84, 84), 3).modules()
    )


def test_one_update_equals_an_explicit_computation() -> None:
    """Half the squared error, gradient clipping by norm, one step of RAdam."""
    torch.manual_seed(0)
    c = config(max_grad_norm=0.5, learning_rate=0.1)
    updater = make_learner(c, resources_of_shape((4, 84, 84), 3))
    net = updater.network
    twin = make_pqn_network(c, (4, 84, 84), 3)
    twin.load_state_dict(net.state_dict())
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.RAdam(twin.parameters(), lr=0.1)
    obs = torch.randint(256, (6, 4, 84, 84), dtype=torch.uint8)
    action_B, target_B = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([3.0, -2.0, 0.5, 0, 0, 1])
    for _ in range(2):
        updater.step(obs, action_B, target_B)
        optimizer.zero_grad()
        q_BA = twin(obs / 255)
        loss = (0.5 * (q_BA[torch.arange(6), action_B] - target_B) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    read = updater.read_metrics()
    assert read["train/loss"] > 0
    assert read["train/grad_norm"] > 0.5, "the norm before clipping"
    assert any((p - old).abs().max() > 1e-4 for p, old in zip(net.parameters(), start, strict=True))


def test_16_bit_working_copy_resumes_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of compiled runs on a CPU, without the compilation, which does not matter here."""
    monkeypatch.setattr(Compute, "function", lambda compute, function: function)
    compute, c = Compute(precision="bfloat16", compile=True), config()
    torch.manual_seed(0)
    one, two = (make_learner(c, resources_of_shape((4, 84, 84), 3, compute)) for _ in range(2))
    obs = torch.randint(256, (6, 4, 84, 84), dtype=torch.uint8)
    batch = obs, torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([3.0, -2.0, 0.5, 0, 0, 1])
    for _ in range(3):
        one.step(*batch)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for updater in (one, two):
        updater.step(*batch)
    for weight, working_weight, other_weight in zip(
        *(net.parameters() for net in (one.network, one.online, two.network)), strict=True
    ):
        assert torch.equal(weight, other_weight)
        assert torch.equal(weight.to(working_weight.dtype), working_weight)
    assert torch.bfloat16 in {p.dtype for p in one.online.parameters()}


def test_a_rollout_stores_the_next_value_of_each_step(
    make_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = ScriptedEnv(3)
    monkeypatch.setattr(envs, "make", lambda *args, **options: env)
    training = make_training(rollout_steps=10, **SCRIPTED)
    training.obs = env.reset(0)
    next_values: list[torch.Tensor] = []
    training.learn = lambda: next_values.append(training.next_values())  # type: ignore[method-assign]
    training.iterate()

    def values(origins: list[Origin]) -> torch.Tensor:
        return training.policy.values(np.stack([env.observe(origin) for origin in origins])).amax(dim=1)

    before = [Origin(i, 0, 0) for i in range(3)]
    terminal, truncated = [], []
    for t in range(10):
        last = [origin._replace(step=origin.step + 1) for origin in before]
        after = [Origin(o.env, o.episode + 1, 0) if ends_with(o) else o._replace(step=o.step + 1) for o in before]
        # The last observation of a truncated episode, not the first of the next one.
        cut = torch.tensor([ends_with(origin) == "truncated" for origin in before])
        expected, of_last = values(after), values(last)
        assert (expected != of_last)[cut].all(), "the observations must have different values"
        torch.testing.assert_close(next_values[0][t], torch.where(cut, of_last, expected))
        np.testing.assert_array_equal(training.obs_TN[t].numpy(), [env.observe(origin) for origin in before])
        assert training.reward_TN[t].tolist() == [np.sign(reward_of(origin)) for origin in before]
        terminal += [[t, o.env] for o in before if ends_with(o) == "terminal" or o.step == 1]  # a lost life
        truncated += [[t, o.env] for o in before if ends_with(o) == "truncated"]
        before = after
    assert training.terminal_TN.nonzero().tolist() == terminal
    assert training.truncated_TN.nonzero().tolist() == truncated
    assert len(truncated) == 3
    assert training.step == 30


def test_every_step_is_used_once_per_epoch(
    make_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_training(update_epochs=2)
    training.obs = training.env.reset(1)
    training.action_TN = torch.arange(15).view(5, 3)
    seen: list[int] = []
    monkeypatch.setattr(training.learner, "step", lambda obs, action_B, target_B: seen.extend(action_B.tolist()))
    shuffle = torch.Generator().manual_seed(training.seed)
    training.learn()
    assert seen == [int(i) for _ in range(2) for i in torch.randperm(15, generator=shuffle)]
    assert sorted(seen[:15]) == sorted(seen[15:]) == list(range(15))
    assert seen[:15] != seen[15:], "in a different order"
    assert training.updates == 10


def test_learning_rate_decay(make_training: Callable[..., Training]) -> None:
    for end, expected in ((None, [1e-3, 1e-3, 1e-3]), (1e-4, [1e-3, 5.5e-4, 1e-4])):
        training = make_training(learning_rate=1e-3, final_learning_rate=end, learning_rate_decay_steps=100)
        training.obs = training.env.reset(1)
        rates = []
        for training.step in (0, 50, 300):
            training.learner.set_learning_rate(9.0)  # as in the checkpoint of another number of processes
            training.learn()
            rates += [group["lr"] for group in training.learner.optimizer.param_groups]
        assert rates == pytest.approx(expected)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder with runs/pqn, created by the program in one uninterrupted run."""
    root = tmp_path_factory.mktemp("pqn")
    with contextlib.chdir(root):
        pqn.main([*TINY, "--name", "pqn"])
    return root


def test_a_stopped_run_resumes_bitwise_identically(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pqn.main([*TINY, "--name", "pqn", "--total-steps", "200"])  # where an evaluation is due in any case
    pqn.main(["--name", "pqn", "--resume", "--total-steps", "400", "--quiet"])
    assert metrics(tmp_path / "runs" / "pqn") == metrics(finished / "runs" / "pqn")
    ours, theirs = (checkpoint.load(root / "runs" / "pqn" / "checkpoint-0.pt", "pqn") for root in (tmp_path, finished))
    assert ours["step"] == theirs["step"] == 400
    for name, weight in ours["learner"]["network"].items():
        assert torch.equal(weight, theirs["learner"]["network"][name])


def test_evaluate_reads_pqn_runs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    agent = load_agent(Path("runs/pqn"), which="last", threads=1)
    assert (agent.step, agent.num_actions, agent.config.eval_epsilon) == (400, 3, 0)
    words = ["--which", "last", "--episodes", "2", "--max-steps", "20", "--json", "--device", "cpu"]
    evaluate.main(["runs/pqn", *words])
    assert (Path("runs/pqn") / "evaluation-400.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--num-minibatches", "7"], "--num-minibatches 7"), (["--replay-capacity", "5"], "--replay-capacity")],
)
def test_a_mistake_is_reported_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        pqn.main([*TINY, *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_only_the_program_sets_the_openmp_spin_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing PQN must not set the spin count, which reduces the speed of DQN by a tenth."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that monkeypatch restores it
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr("sys.argv", ["agents.pqn", "--help"])
    runpy.run_path(pqn.__file__, run_name="imported")
    assert "GOMP_SPINCOUNT" not in os.environ
    with pytest.raises(SystemExit):
        runpy.run_path(pqn.__file__, run_name="__main__")
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


def test_the_program_sets_the_openmp_spin_count_before_pytorch_is_imported(tmp_path: Path) -> None:
    """OpenMP reads the variable once, when PyTorch is imported."""
    code = (
        "import os, runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print('spin count', os.environ.get('GOMP_SPINCOUNT'), flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('agents.pqn', run_name='__main__')\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "spin count 10000"


@pytest.mark.slow
def test_learns_catch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        *("--env", "zerokara/Catch-v0", "--num-envs", "32", "--num-minibatches", "8", "--backbone", "der"),
        # A ball falls for 18 steps, so that its reward is late: with a lambda of .65, one run did not learn in 400,000
        # steps, and with a final epsilon of .001, too, the return still moved between 3.8 and 5 after 300,000.
        *("--td-lambda", "0.9", "--epsilon-decay-steps", "150000", "--epsilon-end", "0.03"),
        # With other settings and a constant learning rate, the return moved between 0 and 4.6.
        *("--total-steps", "400000", "--final-learning-rate", "1e-6", "--learning-rate-decay-steps", "320000"),
        *("--eval-every-steps", "40000", "--stop-at-return", "4.75", "--no-capture-video"),
    ]
    pqn.main([*words, "--name", "catch"])
    # Five balls, one point each; the mean of 30 episodes reached the goal, and 30 further episodes confirm it.
    assert max(line.get("eval/return_confirmed", 0.0) for line in metrics(tmp_path / "runs" / "catch")) >= 0.95 * 5


def test_a_lost_life_is_no_terminal_and_rewards_are_raw_if_configured(
    make_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = ScriptedEnv(3)
    monkeypatch.setattr(envs, "make", lambda *args, **options: env)
    training = make_training(terminal_on_life_loss=False, clip_rewards=False, **SCRIPTED)
    training.obs = env.reset(0)
    training.learn = lambda: None  # type: ignore[method-assign]
    training.iterate()
    assert training.terminal_TN.nonzero().tolist() == [[3, 1], [4, 0], [4, 2]], "lives are lost in step 1"
    for t in range(4):  # no episode has ended before
        assert training.reward_TN[t].tolist() == [reward_of(Origin(i, 0, t)) for i in range(3)]
    assert training.reward_TN.min() < -1
    assert training.reward_TN.max() > 1


def test_parts_follow_from_the_seed(make_training: Callable[..., Training]) -> None:
    torch.manual_seed(77)  # earlier random numbers do not matter
    training = make_training(seed=4, ez_greedy_zeta=2.0)
    assert training.exploration.generator.initial_seed() == 4 * 1_000_003
    assert training.shuffle.initial_seed() == 4 * 1_000_003
    assert (training.exploration.num_actions, len(training.exploration.action_N)) == (3, 3)
    assert training.exploration._cumulative is not None
    training.obs = training.env.reset(1)
    assert {"learner", "exploration", "shuffle"} <= set(training.state_dict())
    assert training.learner.optimizer.param_groups[0]["eps"] == 1e-8
    assert not training.learner.has_target
    assert training.obs_TN.dtype == torch.uint8, "four times the memory otherwise"
    torch.manual_seed(4)
    expected = make_pqn_network(training.config, training.env.obs_shape, 3)
    for ours, theirs in zip(training.learner.network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_epsilon_decays_linearly(make_training: Callable[..., Training]) -> None:
    training = make_training(epsilon_start=0.9, epsilon_end=0.1, epsilon_decay_steps=100)
    values = []
    for training.step in (0, 50, 100, 300):
        values.append(training.epsilon)
    assert values == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_epsilon_1_acts_at_random_and_epsilon_0_greedily(
    make_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = ScriptedEnv(3)
    monkeypatch.setattr(envs, "make", lambda *args, **options: env)
    training = make_training(**SCRIPTED)
    training.obs = env.reset(0)
    q_NA = training.policy.values(training.obs).clone()
    training.collect_step(0, 0.0)
    assert training.action_TN[0].tolist() == q_NA.argmax(dim=1).tolist()
    twin = Exploration(3, env.num_actions, seed=0)
    twin.load_state_dict(training.exploration.state_dict())
    random_N = twin.sample(1.0)[1]
    training.collect_step(1, 1.0)
    assert torch.equal(training.action_TN[1], random_N)


def test_minibatches_are_equal_parts_of_the_rollout(
    make_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_training(num_minibatches=3)
    sizes: list[int] = []
    monkeypatch.setattr(training.learner, "step", lambda obs, action_B, target_B: sizes.append(len(action_B)))
    training.learn()
    assert sizes == [5] * 3 * training.config.update_epochs
