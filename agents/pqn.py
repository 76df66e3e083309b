"""PQN: train an agent from pixels with parallel Q-learning, without replay buffer and target network.

    python -m agents.pqn --env ALE/Pong-v5

Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning". Many environments are stepped with the same
network for a rollout of `rollout_steps`. From the rollout, lambda-returns are computed, and the network is trained on
them for a few epochs of minibatches:

    R_t = r_t + gamma ((1 - lambda) max over a of Q(s_t+1, a) + lambda R_t+1)
    loss = (R - Q(s, a))^2 / 2

Then the rollout is discarded. LayerNorm before every ReLU stabilizes the training.

Top to bottom: the lambda-returns and the loss, one iteration of the loop (collect a rollout, compute the returns,
update the network on minibatches). Precision and compilation are in agents/qlearning/learner.py; logging, evaluation
and checkpoints in agents/training/session.py.

Shapes: T steps of a rollout, N environments, B minibatch, A actions, C, H, W an observation.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial

from zerokara.agents.configs.pqn import DEVIATIONS, KIND, Config, read_config
from zerokara.core.command_line import check_command_line
from zerokara.core.config import run_main
from zerokara.core.schedules import linear

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
from zerokara.agents.qlearning.exploration import Exploration
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.network import QNetwork, make_pqn_network
from zerokara.agents.qlearning.policy import Policy, obs_dtype
from zerokara.agents.training.session import Session, make_env
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.run import LogCallback, Run
from zerokara.core.training_program import check_divisible, choose_compute, open_run
from zerokara.envs import VectorEnv

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
    compute: Compute, network: QNetwork, obs_BCHW: Tensor, action_B: Tensor, target_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Half the mean squared error to the returns (Gallici et al. 2024, equation 4) and mean Q-value (scalars).

    The third value is the absolute TD error (B,), which PQN does not use.
    """
    q_BA = network(compute.images(obs_BCHW))
    q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
    return 0.5 * F.mse_loss(q_B, target_B), q_BA.detach().mean(), (target_B - q_B).detach().abs()


def make_learner(
    config: Config, obs_shape: tuple[int, int, int], num_actions: int, compute: Compute, world: World
) -> Learner:
    """Create the network and the optimizer."""
    return Learner(
        partial(make_pqn_network, config, obs_shape, num_actions),
        partial(pqn_loss, compute),
        compute,
        world,
        optimizer="radam",
        learning_rate=config.learning_rate,
        epsilon=RADAM_EPSILON,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        average_gradients=config.average_every == "minibatch",
    )


class Training(Session):
    """State of a PQN run, one iteration of the training loop, and the updates."""

    config: Config
    learner: Learner

    def __init__(self, config: Config, run: Run, compute: Compute, world: World, env: VectorEnv | None = None) -> None:
        super().__init__(config, run, compute, world, "agents.pqn", env)
        torch.manual_seed(config.seed)
        self.learner = make_learner(config, self.env.obs_shape, self.env.num_actions, compute, world)
        self.policy = Policy(self.learner.online, compute)
        self.exploration = Exploration(self.num_envs, self.env.num_actions, self.seed, config.ez_greedy_zeta)
        self.shuffle = torch.Generator(compute.torch_device).manual_seed(self.seed)
        shape, device = (config.rollout_steps, self.num_envs), compute.torch_device
        # Rollout buffers, allocated once and overwritten by each rollout. Checkpoints are written between rollouts, so
        # they do not hold them.
        self.obs_TN = torch.zeros((*shape, *self.env.obs_shape), dtype=obs_dtype(self.env), device=device)
        self.action_TN = torch.zeros(shape, dtype=torch.int64, device=device)
        self.reward_TN, self.terminal_TN, self.truncated_TN, self.last_value_TN = (
            torch.zeros(shape, device=device) for _ in range(4)
        )
        self.value_TN = torch.zeros((config.rollout_steps + 1, self.num_envs), device=device)  # T + 1 observations
        self.register(learner=self.learner, exploration=self.exploration, shuffle=self.shuffle)

    @property
    def epsilon(self) -> float:
        """Probability that a random action is taken (with ez-greedy exploration: started) at this step."""
        config = self.config
        return linear(self.step, config.epsilon_start, config.epsilon_end, 0, config.epsilon_decay_steps)

    def iterate(self) -> None:
        """Collect a rollout and update the network on it."""
        epsilon = self.epsilon
        for t in range(self.config.rollout_steps):
            self._step(t, epsilon)
        self.value_TN[-1] = self.policy.values(self.obs).amax(dim=1)
        with self.timed("learn"):
            self.learn()

    def _step(self, t: int, epsilon: float) -> None:
        """Do step t of the rollout in all environments."""
        with self.timed("act"):
            q_NA = self.policy.values(self.obs)
            self.value_TN[t] = q_NA.amax(dim=1)
            explore_N, random_N = self.exploration.sample(epsilon)
            selected_N = torch.where(explore_N, random_N, self.compute.to_host(q_NA.argmax(dim=1)))
            action_N = self.env.executed(selected_N.numpy())
        with self.timed("emulate"):
            self.env.send(action_N)
            self.obs_TN[t].copy_(torch.from_numpy(self.obs))
            self.action_TN[t].copy_(torch.from_numpy(action_N))
            result = self.env.recv()
            reward_N = np.sign(result.reward) if self.config.clip_rewards else result.reward
            terminal_N = result.terminal | result.life_lost if self.config.terminal_on_life_loss else result.terminal
            self.reward_TN[t].copy_(torch.from_numpy(reward_N))
            self.terminal_TN[t].copy_(torch.from_numpy(terminal_N))
            self.truncated_TN[t].copy_(torch.from_numpy(result.truncated))
            if result.truncated.any():  # bootstrap from the last observation, not from the first of the next episode
                self.last_value_TN[t] = self.policy.values(result.last_obs).amax(dim=1)
            self.record(result)  # sets self.obs, adds config.num_envs (those of all processes) to self.step

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
        if config.final_learning_rate is not None:
            self.learner.set_learning_rate(schedules.learning_rate(config, self.step))
        obs, action, target = self.obs_TN.flatten(0, 1), self.action_TN.flatten(), return_TN.flatten()
        for _ in range(config.update_epochs):
            order = torch.randperm(len(target), generator=self.shuffle, device=target.device)
            for index_B in order.chunk(config.num_minibatches):
                self.learner.step(obs[index_B], action[index_B], target[index_B])
                self.updates += 1
        if config.average_every == "rollout":  # local SGD: the processes communicate once per rollout
            self.learner.average_weights()


def train(config: Config, run: Run, compute: Compute, world: World, env: VectorEnv | None = None) -> str:
    """Train from the current step to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged (the weights contain NaN or Inf).
    """
    training = Training(config, run, compute, world, env)
    training.start()  # restores the checkpoint of a resumed run
    training.print_settings(DEVIATIONS)
    if config.average_every == "rollout" and world.size == 1:
        run.warn("--average-every rollout has no effect, because there is one process.")
    # `iterations` logs, evaluates and saves between iterations; it ends after a signal, when the run has been saved.
    for _ in training.iterations(lambda: {"train/learning_rate": schedules.learning_rate(config, training.step)}):
        training.iterate()
    return training.closing_message()


def probe_step(config: Config, env: VectorEnv, world: World, compute: Compute) -> Callable[[], object]:
    """Return a gradient step on random data, which is timed to choose precision and compilation."""
    batch_size = config.rollout_steps * config.num_envs // config.num_minibatches // world.size
    obs = torch.randint(256, (batch_size, *env.obs_shape), dtype=obs_dtype(env)).to(compute.torch_device)
    zeros = torch.zeros(batch_size, device=compute.torch_device)
    learner = make_learner(config, env.obs_shape, env.num_actions, compute, World())
    return lambda: learner.step(obs, zeros.long(), zeros)


def start(config: Config, callback: LogCallback | None = None) -> None:
    """Start or resume the run of a config: open the run folder, choose the hardware settings, train."""
    world = World.from_env(config.device)
    check_divisible(config, world, "num_envs")
    with contextlib.closing(make_env(config, world)) as env, open_run(config, KIND, world) as run:
        run.callback = callback
        timed = partial(probe_step, config, env, world)
        rollouts = config.total_steps // (config.rollout_steps * config.num_envs)
        updates = rollouts * config.update_epochs * config.num_minibatches
        compute = run.compute(lambda: choose_compute(config, world, timed, updates), config.total_steps)
        run.close(train(config, run, compute, world, env))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    start(read_config(argv, __doc__ or ""))


if __name__ == "__main__":
    run_main(main)
