"""PQN: train an agent from pixels with parallel Q-learning, without replay buffer and target network.

    python -m agents.pqn --env ALE/Pong-v5

Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning". Many environments are stepped with the same
network for a rollout of `rollout_steps`. From the rollout, lambda-returns are computed, and the network is trained on
them for a few epochs of minibatches:

    R_t = r_t + gamma ((1 - lambda) max over a of Q(s_t+1, a) + lambda R_t+1)
    loss = (R - Q(s, a))^2 / 2

Then the rollout is discarded. LayerNorm before every ReLU stabilizes the training.

One iteration of the loop: collect a rollout, compute the returns, update the network.

Shapes: T steps of a rollout, N environments, B minibatch, A actions, C, H, W an observation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from zerokara.agents.configs.pqn import KIND, read_config

# OpenMP threads spin while they wait for work. After each forward pass this would take a core from the emulators, so
# the spin count is limited. OpenMP reads the variable when PyTorch is imported.
SPIN = ("GOMP_SPINCOUNT", "10000")
if __name__ == "__main__":
    os.environ.setdefault(*SPIN)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.agents.configs.pqn import DEVIATIONS, Config
from zerokara.agents.qlearning import schedules as agent_schedules
from zerokara.agents.qlearning.exploration import Exploration
from zerokara.agents.qlearning.learner import METRICS
from zerokara.agents.qlearning.losses import lambda_returns
from zerokara.agents.qlearning.network import QNetwork, make_pqn_network
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.training.pictures import log_images
from zerokara.agents.training.session import (
    LogInterval,
    Session,
    closing_message,
    evaluate_and_log,
    format_settings,
    is_early_evaluation_due,
    log_metrics,
    restore_or_reset,
    save,
    show_progress,
)
from zerokara.core import checkpoint, schedules
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag, run_main, to_dict
from zerokara.core.distributed import World
from zerokara.core.divergence import is_finite, read_means
from zerokara.core.optim import clip_and_step, make_adam, refresh_copies, set_learning_rate
from zerokara.core.probe import probe
from zerokara.core.run import Run

RADAM_EPSILON = 1e-8


class PQNLearner:
    """Q-network with its optimizer and the update on minibatches."""

    def __init__(self, config: Config, network: QNetwork, compute: Compute, world: World) -> None:
        self.config, self.network, self.compute, self.world = config, network, compute, world
        # Copy in lower precision for forward and backward passes, where `compute` uses one; otherwise the same network.
        self.working = compute.working_copy(network) if world.size == 1 else network
        self.optimizer = make_adam(
            network,
            self.working,
            compute,
            lr=config.learning_rate,
            eps=RADAM_EPSILON,
            max_grad_norm=config.max_grad_norm,
            rectified=True,
        )
        self._loss = compute.function(self._forward)
        # Sums since the last `read_metrics`: loss, mean Q, gradient norm, number of updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    def update(self, obs_BCHW: Tensor, action_B: Tensor, target_B: Tensor) -> None:
        """Do one gradient step on half the mean squared error to the targets (equation 4)."""
        loss, mean_q = self._loss(obs_BCHW, action_B, target_B)
        self.working.zero_grad(set_to_none=True)
        loss.backward()
        self.world.mean_gradients(self.working.parameters())
        norm = clip_and_step(self.optimizer, self.config.max_grad_norm)
        self._sums += torch.stack([loss.detach(), mean_q, norm, torch.ones_like(mean_q)])

    def _forward(self, obs_BCHW: Tensor, action_B: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute loss and mean Q (scalars). This function is compiled."""
        with self.compute.autocast():
            q_BA = self.working(self.compute.images(obs_BCHW))
        q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
        return 0.5 * F.mse_loss(q_B, target_B), q_BA.detach().mean()

    def read_metrics(self) -> dict[str, Tensor]:
        """Means of the training metrics since the last call, as tensors on the device."""
        return read_means(self._sums, METRICS)

    def is_finite(self) -> bool:
        """Return True if all weights are finite. Synchronizes with the device."""
        return is_finite(self.network)

    def state_dict(self) -> dict[str, Any]:
        """State of network, optimizer and metrics."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        refresh_copies(self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.copy_(state["sums"])


class Training(Session):
    """State of a PQN run (everything in a checkpoint), and one iteration of the training loop."""

    config: Config
    learner: PQNLearner

    def __init__(self, config: Config, compute: Compute, world: World) -> None:
        seed = config.seed * 1_000_003 + world.rank * 10_007
        super().__init__(config, config.num_envs // world.size, seed)
        self.compute, self.world = compute, world
        torch.manual_seed(config.seed)
        network = compute.module(make_pqn_network(config, self.env.obs_shape, self.env.num_actions))
        world.broadcast(network)
        self.learner = PQNLearner(config, network, compute, world)
        self.policy = Policy(self.learner.working, compute)
        self.exploration = Exploration(self.num_envs, self.env.num_actions, seed, config.ez_greedy_zeta)
        self.shuffle = torch.Generator(compute.torch_device).manual_seed(seed)
        shape, device = (config.rollout_steps, self.num_envs), compute.torch_device
        # Rollout buffers, allocated once and overwritten by each rollout.
        self.obs_TN = torch.zeros((*shape, *self.env.obs_shape), dtype=torch.uint8, device=device)
        self.action_TN = torch.zeros(shape, dtype=torch.int64, device=device)
        self.reward_TN, self.terminal_TN, self.truncated_TN, self.next_value_TN = (
            torch.zeros(shape, device=device) for _ in range(4)
        )

    @property
    def epsilon(self) -> float:
        """Probability of a random action at this step."""
        config = self.config
        return schedules.linear(self.step, config.epsilon_start, config.epsilon_end, 0, config.epsilon_decay_steps)

    def iterate(self) -> None:
        """Collect a rollout and update the network on it."""
        epsilon = self.epsilon
        for t in range(self.config.rollout_steps):
            self._step(t, epsilon)
        value_N = self.policy.values(self.obs).amax(dim=1)
        self._set_next_value(self.config.rollout_steps - 1, value_N)
        start = time.perf_counter()
        self._learn()
        self.seconds["learn"] += time.perf_counter() - start

    def _step(self, t: int, epsilon: float) -> None:
        """Do step t of the rollout in all environments."""
        start = time.perf_counter()
        q_NA = self.policy.values(self.obs)
        if t:
            self._set_next_value(t - 1, q_NA.amax(dim=1))
        explore_N, random_N = self.exploration.sample(epsilon)
        action_N = torch.where(explore_N, random_N, self.compute.to_host(q_NA.argmax(dim=1)))
        acted = time.perf_counter()
        self.env.send(action_N.numpy())
        self.obs_TN[t].copy_(torch.from_numpy(self.obs))
        self.action_TN[t].copy_(action_N)
        step = self.env.recv()
        reward_N = np.sign(step.reward) if self.config.clip_rewards else step.reward
        terminal_N = step.terminal | step.life_lost if self.config.terminal_on_life_loss else step.terminal
        self.reward_TN[t].copy_(torch.from_numpy(reward_N))
        self.terminal_TN[t].copy_(torch.from_numpy(terminal_N))
        self.truncated_TN[t].copy_(torch.from_numpy(step.truncated))
        if step.truncated.any():  # bootstrap from the last observation, not from the first of the next episode
            self.next_value_TN[t].copy_(self.policy.values(step.last_obs).amax(dim=1))
        self.obs = step.obs
        self.step += self.config.num_envs
        self.record_episodes(step)
        self.seconds["act"] += acted - start
        self.seconds["emulate"] += time.perf_counter() - acted

    def _set_next_value(self, t: int, value_N: Tensor) -> None:
        """Store the values of the observations after step t. Values of truncated episodes are already stored."""
        self.next_value_TN[t] = torch.where(self.truncated_TN[t] > 0, self.next_value_TN[t], value_N)

    def _learn(self) -> None:
        """Compute the returns of the rollout, then train for `update_epochs` on shuffled minibatches (algorithm 1)."""
        config = self.config
        target_TN = lambda_returns(
            self.reward_TN,
            self.terminal_TN,
            self.next_value_TN,
            self.truncated_TN,
            gamma=config.gamma,
            td_lambda=config.td_lambda,
        )
        if config.final_learning_rate is not None:
            set_learning_rate(self.learner.optimizer, agent_schedules.learning_rate(config, self.step))
        obs, action, target = self.obs_TN.flatten(0, 1), self.action_TN.flatten(), target_TN.flatten()
        for _ in range(config.update_epochs):
            order = torch.randperm(len(target), generator=self.shuffle, device=target.device)
            for index_B in order.chunk(config.num_minibatches):
                self.learner.update(obs[index_B], action[index_B], target[index_B])
                self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as tensors and plain values. The rollout is not needed between iterations."""
        return {
            **super().state_dict(),
            "learner": self.learner.state_dict(),
            "exploration": self.exploration.state_dict(),
            "shuffle": self.shuffle.get_state(),
            "rng": checkpoint.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
        self.exploration.load_state_dict(state["exploration"])
        self.shuffle.set_state(state["shuffle"])
        checkpoint.set_rng_state(state["rng"])


def train(config: Config, run: Run, compute: Compute, world: World) -> str:
    """Train from the current step to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged (the weights contain NaN or Inf).
    """
    training = Training(config, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    resumed = restore_or_reset(training, run, latest)
    for deviation in DEVIATIONS:
        run.print(f"preset {config.preset} differs from its paper: {deviation}")
    run.print(f"{config.env}: {format_settings(training.env.settings)}")
    iteration_steps = config.rollout_steps * config.num_envs

    def due(every_steps: int) -> bool:
        return every_steps > 0 and training.step // every_steps != (training.step - iteration_steps) // every_steps

    show_progress(training, run)
    if not resumed:
        log_images(training.policy.network, training.obs, training.env.frame_channels, run, training.step)
        save(training, run, latest)
    goal_reached = world.is_main and training.evaluation_pending and evaluate_and_log(training, run)
    stopping = world.any(goal_reached or bool(run.stop_requested), compute.torch_device)
    interval = LogInterval(training)
    while training.step < config.total_steps and not stopping:
        training.iterate()
        if due(config.log_every_steps):
            rate = agent_schedules.learning_rate(config, training.step)
            log_metrics(training, run, interval, **{"train/learning_rate": rate})
            interval = LogInterval(training)
        if due(config.eval_every_steps) or is_early_evaluation_due(training):
            goal_reached = world.is_main and evaluate_and_log(training, run)
            interval = LogInterval(training)
        if due(config.checkpoint_every_steps):
            save(training, run, latest)
        stopping = world.any(goal_reached or bool(run.stop_requested), compute.torch_device)
    if run.stop_requested:
        run.print(f"{run.stop_requested}: saving")
    save(training, run, latest)
    known = {"eval_return": training.last_score, "train_return": training.mean_return}
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in known.items() if value is not None})
    return closing_message(training, goal_reached, "agents.pqn")


def choose_compute(config: Config, world: World) -> Compute:
    """Choose precision and compilation by timing updates on random data of the right shape."""
    channels = config.frame_stack * (1 if config.grayscale else 3)
    shape = (channels, config.image_size, config.image_size)
    batch = config.rollout_steps * config.num_envs // config.num_minibatches // world.size

    def train_step(candidate: Compute) -> Any:
        device = candidate.torch_device
        network = candidate.module(make_pqn_network(config, shape, 6))
        learner = PQNLearner(config, network, candidate, World())
        pixels = torch.randint(256, (batch, *shape), dtype=torch.uint8).to(device)
        zeros = torch.zeros(batch, device=device)
        return lambda: learner.update(pixels, zeros.long(), zeros)

    return probe(config, world, train_step, compile=config.compile)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read the config, open the run folder, choose the hardware settings, train."""
    config = read_config(argv, __doc__ or "")
    world = World.from_env(config.device)
    if config.num_envs % world.size:
        raise UserError(
            f"{flag('num_envs')} {config.num_envs} cannot be divided evenly among {world.size} processes: choose a "
            f"multiple of {world.size}."
        )
    with (
        Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        compute = run.compute(lambda: choose_compute(config, world), config.total_steps)
        run.close(train(config, run, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
