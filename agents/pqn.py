"""PQN: train an agent from pixels with parallel Q-learning, without replay buffer and target network.

    python -m agents.pqn --env ALE/Pong-v5

Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning". Many environments are stepped with the same
network for a rollout of `rollout_steps`. From the rollout, lambda-returns are computed, and the network is trained on
them for a few epochs of minibatches:

    R_t = r_t + gamma ((1 - lambda) max over a of Q(s_t+1, a) + lambda R_t+1)
    loss = (R - Q(s, a))^2 / 2

Then the rollout is discarded. LayerNorm before every ReLU stabilizes the training.

With --lstm-units the network has an LSTM. Its state goes through the rollout and into the next one, and is zero where
an episode starts. A minibatch then holds the whole rollouts of some environments; in an update the LSTM starts from the
state that it had at the beginning of the rollout, and its gradient goes back to there.

Top to bottom: the lambda-returns and the loss, one iteration of the loop (collect a rollout, compute the returns,
update the network on minibatches). Precision and compilation are in agents/qlearning/learner.py; logging, evaluation
and checkpoints in agents/training/session.py, the start of a run in agents/training/start.py.

Shapes: T steps of a rollout, N environments, B minibatch, A actions, C, H, W an observation, U units of an LSTM, whose
state has 2 parts, outputs and cells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from zerokara.agents.configs.pqn import KIND, Config, averaging_warning, check_minibatches, read_config
from zerokara.core.command_line import check_command_line
from zerokara.core.config import run_main

# OpenMP threads wait for work in a loop that keeps the core busy (they spin). After each forward pass this would take a
# core from the emulators, so the spin count is limited. OpenMP reads the variable when PyTorch is imported.
SPIN = ("GOMP_SPINCOUNT", "10000")

if __name__ == "__main__":
    os.environ.setdefault(*SPIN)
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.network import (
    QNetwork,
    RecurrentNetwork,
    exclude_recurrence_from_compilation,
    make_pqn_network,
)
from zerokara.agents.qlearning.policy import Exploration, Memory, make_policy, obs_dtype
from zerokara.agents.qlearning.replay import ALL, Rows
from zerokara.agents.training.session import Session
from zerokara.agents.training.start import Resources, start_run
from zerokara.core.compute import Compute
from zerokara.core.run import LogCallback, Run

RADAM_EPSILON = 1e-8


def lambda_returns(
    reward_TN: Tensor,
    terminal_TN: Tensor,
    next_value_TN: Tensor,
    truncated_TN: Tensor,
    *,
    gamma: float,
    td_lambda: float,
) -> Tensor:
    """Lambda-returns (T, N) of a rollout of T steps in N environments (Gallici et al. 2024, algorithm 1).

    R_t = r_t + gamma ((1 - lambda) V_t+1 + lambda R_t+1) within an episode;
    R_t = r_t at a terminal;
    R_t = r_t + gamma V_t+1 at a truncation and at the last step of the rollout.

    Args:
        reward_TN: rewards.
        terminal_TN: 1 if the episode terminated at the step.
        next_value_TN: V_t+1, the maximum Q-value of the observation after the step; at a truncation that of the last
            observation of the episode; not used at a terminal.
        truncated_TN: 1 if the episode was truncated at the step.
        gamma: discount factor of one step.
        td_lambda: 0 gives one-step returns, 1 gives returns up to the end of the rollout.
    """
    last = len(reward_TN) - 1
    discount_TN = gamma * (1 - terminal_TN)
    lambda_TN = td_lambda * (1 - truncated_TN)
    lambda_TN[last] = 0
    # The recursion R_t = one_step_t + weight_t R_t+1, from the last step to the first.
    one_step_TN = reward_TN + discount_TN * (1 - lambda_TN) * next_value_TN
    weight_TN = discount_TN * lambda_TN
    returns = [one_step_TN[last]]
    for t in range(last - 1, -1, -1):
        returns.append(one_step_TN[t] + weight_TN[t] * returns[-1])
    return torch.stack(returns[::-1])


def pqn_loss(
    compute: Compute,
    network: QNetwork,
    obs_BCHW: Tensor,
    action_B: Tensor,
    target_B: Tensor,
    first_TN: Tensor | None = None,
    state_2NU: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Half the mean squared error to the returns (Gallici et al. 2024, equation 4) and mean Q-value (scalars).

    The third value is the absolute TD error (B,), which PQN does not use.

    Args:
        compute: converts images.
        network: network that is trained.
        obs_BCHW: observations; with an LSTM, B = T * N, those of a step together.
        action_B: actions that were taken.
        target_B: lambda-returns.
        first_TN: with an LSTM: 1 if the observation is the first one of an episode.
        state_2NU: with an LSTM: its state at the beginning of the rollout.
    """
    images = compute.images(obs_BCHW)
    if isinstance(network, RecurrentNetwork) and first_TN is not None and state_2NU is not None:
        q_BA = network.unroll(images, first_TN, state_2NU)
    else:
        q_BA = network(images)
    q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
    return 0.5 * F.mse_loss(q_B, target_B), q_BA.detach().mean(), (target_B - q_B).detach().abs()


def make_learner(config: Config, resources: Resources) -> Learner:
    """Create the network and the optimizer."""
    env, compute = resources.env, resources.compute
    if config.lstm_units and compute.compile:
        exclude_recurrence_from_compilation()
    return Learner(
        partial(make_pqn_network, config, env.obs_shape, env.num_actions),
        partial(pqn_loss, compute),
        compute,
        resources.world,
        optimizer="radam",
        learning_rate=schedules.learning_rate(config, 0, resources.world.size),
        epsilon=RADAM_EPSILON,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        average_gradients=config.average_every == "minibatch",
    )


class Training(Session):
    """State of a PQN run, one iteration of the training loop, and the updates."""

    config: Config
    learner: Learner

    def __init__(self, config: Config, run: Run, resources: Resources) -> None:
        super().__init__(config, run, resources, "agents.pqn")
        compute = self.compute
        torch.manual_seed(config.seed)
        self.learner = make_learner(config, resources)
        self.policy = make_policy(self.learner.online, compute)
        self.memory = Memory(self.num_envs, config.lstm_units, compute)
        self.exploration = Exploration(self.num_envs, self.env.num_actions, self.seed, config.ez_greedy_zeta)
        self.shuffle = torch.Generator(compute.torch_device).manual_seed(self.seed)
        shape, device = (config.rollout_steps, self.num_envs), compute.torch_device
        # Rollout buffers, allocated once and overwritten by each rollout. Checkpoints are written between rollouts, so
        # they do not hold them.
        self.obs_TN = torch.zeros((*shape, *self.env.obs_shape), dtype=obs_dtype(self.env), device=device)
        self.action_TN = torch.zeros(shape, dtype=torch.int64, device=device)
        self.reward_TN, self.terminal_TN, self.truncated_TN, self.last_value_TN, self.ended_TN = (
            torch.zeros(shape, device=device) for _ in range(5)
        )
        self.initial_state_2NU = self.memory.state_2NU
        self.value_TN = torch.zeros((config.rollout_steps + 1, self.num_envs), device=device)  # T + 1 observations
        self.register(learner=self.learner, exploration=self.exploration, shuffle=self.shuffle)
        if config.lstm_units:
            self.register(memory=self.memory)

    def end_episodes(self, rows: Rows = ALL) -> None:
        """See `Session.end_episodes`. The LSTM forgets the old episodes."""
        super().end_episodes(rows)
        self.memory.forget(rows)

    @property
    def epsilon(self) -> float:
        """Probability of a random action, linear in `epsilon_decay_steps`. See also `Session.epsilon`."""
        return schedules.linear_epsilon(self.config, self.step)

    def iterate(self) -> None:
        """Collect a rollout and update the network on it."""
        epsilon, self.initial_state_2NU = self.epsilon, self.memory.state_2NU
        for t in range(self.config.rollout_steps):
            self.collect_step(t, epsilon)
        self.value_TN[-1] = self.policy.values_and_state(self.obs, self.memory.state_2NU)[0].amax(dim=1)
        with self.timed("learn"):
            self.learn()

    def collect_step(self, t: int, epsilon: float) -> None:
        """Do step t of the rollout in all environments: act, and write the result into the rollout buffers."""
        with self.timed("act"):
            q_NA, self.memory.state_2NU = self.policy.values_and_state(self.obs, self.memory.state_2NU)
            self.value_TN[t] = q_NA.amax(dim=1)
            action_N = self.env.executed(self.policy.epsilon_greedy(q_NA, epsilon, self.exploration))
        with self.timed("emulate"):
            self.env.send(action_N)
            self.obs_TN[t].copy_(torch.from_numpy(self.obs))
            self.action_TN[t].copy_(torch.from_numpy(action_N))
            result = self.env.recv()
            reward_N = np.sign(result.reward) if self.config.clip_rewards else result.reward
            terminal_N = (result.terminal | result.life_lost) if self.config.terminal_on_life_loss else result.terminal
            self.reward_TN[t].copy_(torch.from_numpy(reward_N))
            self.terminal_TN[t].copy_(torch.from_numpy(terminal_N))
            self.truncated_TN[t].copy_(torch.from_numpy(result.truncated))
            if result.truncated.any():  # bootstrap from the last observation, not from the first of the next episode
                last_q_NA, _ = self.policy.values_and_state(result.last_obs, self.memory.state_2NU)
                self.last_value_TN[t] = last_q_NA.amax(dim=1)
            ended_N = result.terminal | result.truncated
            self.ended_TN[t].copy_(torch.from_numpy(ended_N))
            self.memory.forget(ended_N)
            self.record(result)  # sets self.latest, adds config.num_envs (those of all processes) to self.step

    def next_values(self) -> Tensor:
        """Return the value (T, N) of the observation after each step, before a reset if the episode was truncated."""
        return torch.where(self.truncated_TN > 0, self.last_value_TN, self.value_TN[1:])

    def learn(self) -> None:
        """Compute the returns of the rollout, then train for `update_epochs` on shuffled minibatches (algorithm 1)."""
        config = self.config
        return_TN = lambda_returns(
            self.reward_TN,
            self.terminal_TN,
            self.next_values(),
            self.truncated_TN,
            gamma=config.gamma,
            td_lambda=config.td_lambda,
        )
        self.learner.set_learning_rate(schedules.learning_rate(config, self.step, self.world.size))
        for _ in range(config.update_epochs):
            minibatches = self.sequences(return_TN) if config.lstm_units else self.minibatches(return_TN)
            for minibatch in minibatches:
                self.learner.step(*minibatch)
                self.updates += 1
        if config.average_every == "rollout":  # local SGD: the processes communicate once per rollout
            self.learner.average_weights()

    def minibatches(self, return_TN: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield observations, actions and returns of the steps of the rollout in random order, each step once."""
        obs, action, target = self.obs_TN.flatten(0, 1), self.action_TN.flatten(), return_TN.flatten()
        order = torch.randperm(len(target), generator=self.shuffle, device=target.device)
        for index_B in order.chunk(self.config.num_minibatches):
            yield obs[index_B], action[index_B], target[index_B]

    def sequences(self, return_TN: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the same for whole rollouts of environments in random order, and starts of episodes and states."""
        # 1 where an episode starts, after a step that ended one. The first row is 0: where an episode starts there,
        # `initial_state_2NU` is zero already.
        first_TN = F.pad(self.ended_TN[:-1], (0, 0, 1, 0))
        order = torch.randperm(self.num_envs, generator=self.shuffle, device=return_TN.device)
        for index in order.chunk(self.config.num_minibatches):
            steps = (tensor_TN[:, index].flatten(0, 1) for tensor_TN in (self.obs_TN, self.action_TN, return_TN))
            yield *steps, first_TN[:, index], self.initial_state_2NU[:, index]


def train(config: Config, run: Run, resources: Resources) -> str:
    """Train from the current step to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged (the weights contain NaN or Inf).
    """
    training = Training(config, run, resources)
    training.start()  # restores the checkpoint of a resumed run
    training.print_settings()
    processes = training.world.size
    if warning := averaging_warning(config, processes):
        run.warn(warning)
    # `iterations` logs, evaluates and saves between iterations; it ends after a signal, when the run has been saved.
    rate = partial(schedules.learning_rate, config, processes=processes)
    for _ in training.iterations(lambda: {"train/learning_rate": rate(training.step)}):
        training.iterate()
    return training.closing_message()


def probe_step(config: Config, resources: Resources, batch_size: int) -> Callable[[], object]:
    """Return a gradient step on random data, which is timed to choose precision and compilation."""
    env, device = resources.env, resources.compute.torch_device
    obs = torch.randint(256, (batch_size, *env.obs_shape), dtype=obs_dtype(env)).to(device)
    zeros = torch.zeros(batch_size, device=device)
    learner = make_learner(config, resources)
    first_TN = zeros.unflatten(0, (config.rollout_steps, -1)) if config.lstm_units else None
    state = () if first_TN is None else (first_TN, zeros.new_zeros(2, first_TN.shape[1], config.lstm_units))
    return lambda: learner.step(obs, zeros.long(), zeros, *state)


def start(config: Config, callback: LogCallback | None = None) -> None:
    """Start or resume the run of a config: open the run folder, choose the hardware settings, train."""
    rollouts = config.total_steps // (config.rollout_steps * config.num_envs)
    start_run(
        config,
        KIND,
        train,
        probe_step,
        batch_size=config.rollout_steps * config.num_envs // config.num_minibatches,
        multiple_of=config.rollout_steps if config.lstm_units else 1,
        updates=rollouts * config.update_epochs * config.num_minibatches,
        check=check_minibatches,
        callback=callback,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    start(read_config(argv, __doc__ or ""))


if __name__ == "__main__":
    run_main(main)
