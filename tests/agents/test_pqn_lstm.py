"""Test PQN with an LSTM: the network against torch's LSTM, an update, a run that resumes, agents, and a memory task.

What is stored and trained on is tested in test_wiring_pqn.py, with and without an LSTM.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.agents.resources import resources_of_shape
from tests.agents.scripted import LENGTHS, ScriptedEnv
from tests.agents.small_runs import CATCH
from tests.programs import metrics
from zerokara import envs
from zerokara.agents import evaluate, export, play, pqn
from zerokara.agents.configs.pqn import Config, check_minibatches, read_config
from zerokara.agents.qlearning.network import RecurrentNetwork, make_pqn_network
from zerokara.agents.qlearning.policy import Exploration, RecurrentPolicy
from zerokara.agents.training.evaluation import evaluate as evaluate_policy
from zerokara.agents.training.start import Resources
from zerokara.agents.viewing.loading import load_agent
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run

TINY = (
    *CATCH,
    *("--lstm-units", "6", "--rollout-steps", "10", "--num-minibatches", "2", "--total-steps", "400"),
    *("--epsilon-decay-steps", "200", "--log-every-steps", "80", "--checkpoint-every-steps", "120"),
    *("--eval-every-steps", "200", "--eval-episodes", "2", "--eval-max-steps", "20"),
)
UNITS, ACTIONS, T, N = 5, 3, 7, 2
OBS = (1, 40, 40)
FIRST_TN = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 0], [1, 0], [0, 0], [0, 1]]).float()


def make_network(seed: int = 0, **changes: Any) -> RecurrentNetwork:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"lstm_units": UNITS, "width_multiplier": 0.25, "hidden_units": 8, "backbone": "der"}
    network = make_pqn_network(Config(**(options | changes)), OBS, ACTIONS)
    assert isinstance(network, RecurrentNetwork)
    return network


def images(seed: int = 0) -> Tensor:
    return torch.rand((T * N, *OBS), generator=torch.Generator().manual_seed(seed))


def by_hand(network: RecurrentNetwork, x: Tensor, state_2NU: Tensor) -> Tensor:
    """Q-values (T, N, A): torch's LSTM over each part of an episode, with zeros where an episode starts."""
    lstm = nn.LSTM(8, UNITS)
    lstm.load_state_dict({f"{name}_l0": value for name, value in network.lstm.state_dict().items()})
    hidden, norm, activation, out = network.advantage
    inputs_TNF = activation(norm(hidden(network.backbone(x).flatten(1)))).view(T, N, -1)
    q_TNA = torch.zeros(T, N, ACTIONS)
    for i in range(N):
        starts = [0, *(t for t in range(1, T) if FIRST_TN[t, i]), T]
        for begin, end in itertools.pairwise(starts):
            state = state_2NU[:, None, i : i + 1] * (begin == 0 and not FIRST_TN[0, i])
            h_T1U, _ = lstm(inputs_TNF[begin:end, i : i + 1], (state[0], state[1]))
            q_TNA[begin:end, i] = out(h_T1U)[:, 0]
    return q_TNA


def test_sequences_equal_torchs_lstm_between_the_starts_of_episodes() -> None:
    network, x = make_network(), images()
    state_2NU = torch.randn(2, N, UNITS)
    expected = by_hand(network, x, state_2NU)
    torch.testing.assert_close(network.unroll(x, FIRST_TN, state_2NU), expected.flatten(0, 1))
    without_ends = network.unroll(x, torch.zeros_like(FIRST_TN), state_2NU)
    assert not torch.allclose(without_ends, expected.flatten(0, 1))


def test_steps_one_by_one_equal_the_sequence_and_the_first_starts_from_zero() -> None:
    network, x = make_network(), images(1)
    state_2NU = torch.zeros(2, N, UNITS)
    q_TNA = network.unroll(x, FIRST_TN, state_2NU).view(T, N, ACTIONS)
    for t, x_NCHW in enumerate(x.view(T, N, *OBS)):
        q_NA, state_2NU = network.values_and_state(x_NCHW, state_2NU * (1 - FIRST_TN[t])[:, None])
        torch.testing.assert_close(q_NA, q_TNA[t])
    torch.testing.assert_close(network(x[:N]), q_TNA[0])


def test_initialization() -> None:
    network = make_network(lstm_units=64, hidden_units=64)
    for name in ("weight_ih", "weight_hh"):  # (4 U, U): orthonormal columns
        weight = network.lstm.get_parameter(name).detach()
        torch.testing.assert_close(weight.T @ weight, torch.eye(64), rtol=1e-4, atol=1e-4)
    for bias in (network.lstm.bias_ih, network.lstm.bias_hh, network.advantage[-1].bias):
        assert not cast(Tensor, bias).any()
    assert float(network.advantage[-1].get_parameter("weight").detach().std()) == pytest.approx(1 / 8, rel=0.2)


def test_one_update_equals_an_explicit_computation() -> None:
    """Half the squared error through written-out gates, clipped, one step of RAdam, for all weights."""
    config = Config(
        lstm_units=UNITS, width_multiplier=0.25, hidden_units=8, backbone="der", learning_rate=0.1, max_grad_norm=0.5
    )
    torch.manual_seed(0)
    learner = pqn.make_learner(config, resources_of_shape(OBS, ACTIONS))
    twin = make_network()
    twin.load_state_dict(learner.network.state_dict())
    start = [p.detach().clone() for p in twin.parameters()]
    optimizer = torch.optim.RAdam(twin.parameters(), lr=0.1)
    obs = torch.randint(256, (T * N, *OBS), dtype=torch.uint8)
    action_B, target_B, state_2NU = torch.arange(T * N) % ACTIONS, torch.randn(T * N), torch.randn(2, N, UNITS)
    for _ in range(2):
        learner.step(obs, action_B, target_B, FIRST_TN, state_2NU)
        optimizer.zero_grad()
        q_B = by_gates(twin, obs / 255, state_2NU)[torch.arange(T * N), action_B]
        (0.5 * (q_B - target_B) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
    for ours, theirs, before in zip(learner.network.parameters(), twin.parameters(), start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        assert not torch.equal(theirs, before)


def by_gates(network: RecurrentNetwork, x: Tensor, state_2NU: Tensor) -> Tensor:
    """Q-values (T * N, A) by the equations of the LSTM."""
    hidden, norm, activation, out = network.advantage
    inputs_TNF = activation(norm(hidden(network.backbone(x).flatten(1)))).view(T, N, -1)
    weights, (h, c), q = network.lstm, state_2NU, []
    for inputs_NF, first_N in zip(inputs_TNF, FIRST_TN, strict=True):
        h, c = (value * (1 - first_N)[:, None] for value in (h, c))
        gates = inputs_NF @ weights.weight_ih.T + weights.bias_ih + h @ weights.weight_hh.T + weights.bias_hh
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        q.append(out(h))
    return torch.cat(q)


# The policy: which observations it remembers


def test_a_policy_remembers_each_row_until_it_forgets() -> None:
    network = make_network()
    policy = RecurrentPolicy(network, Compute())
    obs = np.random.default_rng(0).integers(0, 256, (3, N, *OBS), np.uint8)
    x = torch.from_numpy(obs).float() / 255
    policy.values(obs[0])
    policy.forget(np.array([False, True]))
    second = policy.values(obs[1])
    first_TN = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    expected = network.unroll(x[:2].flatten(0, 1), first_TN, torch.zeros(2, N, UNITS))
    torch.testing.assert_close(second, expected[N:].detach())
    state_2NU = policy.memory.state_2NU.clone()
    policy.values_and_state(obs[2], torch.zeros(2, N, UNITS))
    assert torch.equal(policy.memory.state_2NU, state_2NU), "values_and_state leaves the memory of values as it is"
    policy.forget()
    torch.testing.assert_close(policy.values(obs[2]), network(x[2]).detach())
    torch.testing.assert_close(policy.values(obs[2, :1]), network(x[2, :1]).detach())  # another number of rows


class Counting:
    """Policy that counts the observations of each row since the last start of an episode."""

    def __init__(self, num_envs: int) -> None:
        self.seen_N, self.longest = np.zeros(num_envs, int), 0

    def forget(self, rows: Any = slice(None)) -> None:
        self.seen_N[rows] = 0

    def act(self, obs: np.ndarray, epsilon: float, exploration: Exploration) -> np.ndarray:
        self.seen_N += 1
        self.longest = max(self.longest, int(self.seen_N.max()))
        return np.zeros(len(obs), np.int64)


def test_an_evaluation_forgets_where_episodes_start() -> None:
    counting: Any = Counting(2)
    counting.seen_N += 100
    scores = evaluate_policy(counting, ScriptedEnv(2), episodes_per_env=3, epsilon=0, max_steps=99, seed=0)
    assert counting.longest == max(max(lengths) for lengths in LENGTHS)
    assert sorted(scores.lengths) == sorted((*LENGTHS[0], *LENGTHS[1]))


# Runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder with runs/lstm, created by the program in one uninterrupted run."""
    root = tmp_path_factory.mktemp("lstm")
    with contextlib.chdir(root):
        pqn.main([*TINY, "--name", "lstm"])
    return root


def test_a_stopped_run_resumes_bitwise_identically(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pqn.main([*TINY, "--name", "lstm", "--total-steps", "200"])  # an evaluation before the end of the episodes
    state = checkpoint.load(Path("runs/lstm/checkpoint-0.pt"), "pqn")["memory"]["lstm"]
    assert state.shape == (2, 4, 6)
    assert state.any()
    pqn.main(["--name", "lstm", "--resume", "--total-steps", "400", "--quiet"])
    assert metrics(tmp_path / "runs" / "lstm") == metrics(finished / "runs" / "lstm")
    ours, theirs = (checkpoint.load(root / "runs/lstm/checkpoint-0.pt", "pqn") for root in (tmp_path, finished))
    for name, weight in ours["learner"]["network"].items():
        assert torch.equal(weight, theirs["learner"]["network"][name])


def test_agents_with_an_lstm_are_evaluated_and_played_and_remember(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    agent = load_agent(Path("runs/lstm"), which="last", threads=1)
    assert agent.config.frame_stack == 1, "the LSTM takes the place of stacked frames"
    obs = np.random.default_rng(0).integers(0, 256, (2, *agent.obs_shape), np.uint8)
    first = agent.q_values(obs[0])
    second = agent.q_values(obs[1])
    agent.reset()
    assert not np.allclose(agent.q_values(obs[1]), second)
    agent.reset()
    np.testing.assert_allclose(agent.q_values(obs[0]), first, rtol=1e-5)
    np.testing.assert_allclose(agent.q_values(obs[1]), second, rtol=1e-5)
    words = ["--which", "last", "--device", "cpu"]
    evaluate.main(["runs/lstm", *words, "--episodes", "2", "--max-steps", "20", "--json"])
    play.main(["runs/lstm", *words, "--max-steps", "4"])
    assert Path("runs/lstm/media/play-400.mp4").exists()
    with pytest.raises(UserError, match="--attention needs an agent without an LSTM"):
        play.main(["runs/lstm", *words, "--attention"])


def test_the_model_file_is_exported_and_onnx_is_refused(finished: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        with pytest.raises(UserError, match=r"has an LSTM, .* pass --no-onnx"):
            export.main([str(finished / "runs/lstm"), "--out", "deployed"])
        assert not Path("deployed").exists()
        export.main([str(finished / "runs/lstm"), "--out", "deployed", "--no-onnx", "--observations", "8"])
        (path,) = Path("deployed").iterdir()
        assert isinstance(load_agent(path).policy, RecurrentPolicy)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-minibatches", "8"], "--num-envs 4 environments cannot be divided evenly into --num-minibatches 8"),
        (["--lstm"], "--lstm is --lstm-units here, the number of units"),
    ],
)
def test_mistakes_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config([*TINY, *words])


@pytest.mark.parametrize(
    ("words", "processes", "message"),
    [
        (
            [],
            4,
            "With --lstm-units .* 4 environments, 1 in each of 4 processes, cannot be divided evenly into --num-mini",
        ),
        (
            ["--lstm-units", "0", "--num-minibatches", "8"],
            2,
            "A rollout of --rollout-steps 10 in --num-envs 4 environments, 2 in each of 2 processes, cannot",
        ),
    ],
)
def test_the_rollout_of_each_process_must_have_all_minibatches(
    words: list[str], processes: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_config([*TINY, *words])
    monkeypatch.setattr(World, "from_env", lambda device: World(size=processes))
    with pytest.raises(UserError, match=message):
        pqn.start(config)
    assert list(tmp_path.iterdir()) == []


def test_divided_environments_are_accepted() -> None:
    check_minibatches(read_config(TINY), 2)  # 2 environments in each process, a minibatch of each


def test_the_loop_of_the_lstm_is_excluded_from_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation unrolls the loop, which takes minutes; nothing is compiled here."""
    loop = RecurrentNetwork._recurrence
    monkeypatch.setattr(RecurrentNetwork, "_recurrence", loop)  # restores it
    disabled: list[object] = []

    def disable(function: object) -> object:
        disabled.append(function)
        return function

    monkeypatch.setattr(torch.compiler, "disable", disable)
    monkeypatch.setattr(Compute, "function", lambda compute, function: function)
    monkeypatch.setattr(Compute, "converter", lambda compute: lambda x: x)  # compiled on processors with AVX2 only

    def make(lstm_units: int, *, compiled: bool) -> None:
        config = Config(lstm_units=lstm_units, width_multiplier=0.25, hidden_units=8)
        pqn.make_learner(config, resources_of_shape(OBS, ACTIONS, Compute(compile=compiled)))

    make(0, compiled=True)
    make(UNITS, compiled=False)
    assert disabled == []
    make(UNITS, compiled=True)
    assert disabled == [loop]


def test_preset_of_cleanrl_has_one_frame_and_frames_can_be_stacked() -> None:
    config = read_config(["--preset", "lstm"])
    assert (config.lstm_units, config.frame_stack, config.num_envs, config.rollout_steps) == (128, 1, 8, 128)
    assert read_config(["--lstm-units", "8", "--frame-stack", "2"]).frame_stack == 2
    assert read_config([]).frame_stack == 4
    assert read_config([]).lstm_units == 0


# A task that needs memory

DELAY = 4  # steps between the cue and the answer


class CueEnv(envs.VectorEnv):
    """Episodes of DELAY + 1 steps: a cue of -1 or 1 at the first one; the answer at the last one decides the reward."""

    id, num_actions, action_names, frame_channels = "Cue", 2, ("LEFT", "RIGHT"), 3
    obs_dtype = np.float32

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.obs_shape, self.settings = num_envs, (3, 1, 1), {}
        self.random = np.random.default_rng(0)

    def _observe(self) -> np.ndarray:
        obs = np.zeros((self.num_envs, 3, 1, 1), np.float32)
        obs[:, 0, 0, 0] = np.where(self.time == 0, self.cue_N, 0)
        obs[:, 1] = self.time == DELAY
        obs[:, 2] = self.time == 0
        return obs

    def reset(self, seed: int) -> np.ndarray:
        self.time, self.cue_N = 0, self.random.choice((-1.0, 1.0), self.num_envs)
        return self._observe()

    def _send(self, action_N: np.ndarray) -> None:
        self.action_N = np.array(action_N)

    def recv(self) -> envs.Step:
        last = self.time == DELAY
        correct_N = (self.action_N == 1) == (self.cue_N == 1)
        reward_N = np.where(correct_N, 1.0, -1.0).astype(np.float32) * last
        self.time += 1
        obs = self.reset(0) if last else self._observe()
        no_N = np.zeros(self.num_envs, bool)
        return envs.Step(obs, reward_N, np.full(self.num_envs, last), no_N, no_N, obs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        return self.reset(0)


def mean_return(lstm_units: int, root: Path) -> float:
    """Mean return of the last 100 training episodes of PQN; 1 if every answer is right, 0 if they are guessed."""
    config = Config(
        lstm_units=lstm_units, obs_type="vector", backbone="mlp", frame_stack=1, num_envs=16, rollout_steps=20,
        num_minibatches=2, update_epochs=2, hidden_units=16, learning_rate=1e-2, epsilon_start=1.0, epsilon_end=0.0,
        epsilon_decay_steps=6_000, total_steps=9_600, eval_every_steps=0, capture_video=False, device="cpu",
        threads=1, td_lambda=0.9, gamma=0.9, log_every_steps=20_000, checkpoint_every_steps=20_000,
    )  # fmt: skip
    with Run(config, kind="pqn", name=f"cue-{lstm_units}", resume=False, quiet=True, root=root) as run:
        training = pqn.Training(config, run, Resources(CueEnv(16), Compute(), World()))
        training.obs = training.env.reset(0)
        while training.step < config.total_steps:
            training.iterate()
    return float(np.mean(training.returns))


def test_only_the_agent_with_an_lstm_answers_what_it_saw_before(tmp_path: Path) -> None:
    assert mean_return(16, tmp_path) >= 0.95
    assert abs(mean_return(0, tmp_path)) <= 0.4
