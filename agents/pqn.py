"""PQN: learn to play from pixels by parallel Q-learning, without replay and without a target network.

    python -m agents.pqn --env ALE/Pong-v5

Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning". Many environments play some steps with one
network; lambda returns are made of what they saw; the network learns from these in a few passes of minibatches;
everything is thrown away. What keeps it stable is LayerNorm before every ReLU.

One turn of the loop: play `rollout_steps` in every environment, work out the returns, learn.

Shapes: T steps of a rollout, N environments, B minibatch, A actions, C, H, W an observation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from zerokara.agents.configs.pqn import KIND, read_config

# OpenMP's threads wait busily for their next piece of work, and after each look at the network that takes a core from
# the emulators: so long, and no longer. Read when PyTorch is imported.
SPIN = ("GOMP_SPINCOUNT", "10000")
if __name__ == "__main__":
    os.environ.setdefault(*SPIN)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.agents.configs.pqn import DEVIATIONS, Config
from zerokara.agents.qlearning import schedules as annealing
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
    in_words,
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
    """Updates the network from minibatches with targets."""

    def __init__(self, config: Config, network: QNetwork, compute: Compute, world: World) -> None:
        self.config, self.network, self.compute, self.world = config, network, compute, world
        # What passes run through, while `network` keeps the weights: mostly the same.
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
        # Sums over updates since `read_metrics`: loss, mean Q, gradient norm, updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    def update(self, obs_BCHW: Tensor, action_B: Tensor, target_B: Tensor) -> None:
        """One gradient step: half the squared error to the targets (equation 4)."""
        loss, mean_q = self._loss(obs_BCHW, action_B, target_B)
        self.working.zero_grad(set_to_none=True)
        loss.backward()
        self.world.mean_gradients(self.working.parameters())
        norm = clip_and_step(self.optimizer, self.config.max_grad_norm)
        self._sums += torch.stack([loss.detach(), mean_q, norm, torch.ones_like(mean_q)])

    def _forward(self, obs_BCHW: Tensor, action_B: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and mean Q (scalars): the part of an update that is compiled."""
        with self.compute.autocast():
            q_BA = self.working(self.compute.images(obs_BCHW))
        q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
        return 0.5 * F.mse_loss(q_B, target_B), q_BA.detach().mean()

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""
        return read_means(self._sums, METRICS)

    def is_finite(self) -> bool:
        """Whether every weight is a number. Waits for the device."""
        return is_finite(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, and the sums that the next line of metrics is made of."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        refresh_copies(self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.copy_(state["sums"])


class Training(Session):
    """Everything that a checkpoint holds, and the turns of the loop over it."""

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
        # What the steps of a rollout gave: made once, written over by the next one.
        self.obs_TN = torch.zeros((*shape, *self.env.obs_shape), dtype=torch.uint8, device=device)
        self.action_TN = torch.zeros(shape, dtype=torch.int64, device=device)
        self.reward_TN, self.terminal_TN, self.truncated_TN, self.next_value_TN = (
            torch.zeros(shape, device=device) for _ in range(4)
        )

    @property
    def epsilon(self) -> float:
        """Probability of a random action in this rollout."""
        config = self.config
        return schedules.linear(self.step, config.epsilon_start, config.epsilon_end, 0, config.epsilon_decay_steps)

    def iterate(self) -> None:
        """Play a rollout with one network, and learn from it."""
        epsilon = self.epsilon
        for t in range(self.config.rollout_steps):
            self._step(t, epsilon)
        value_N = self.policy.values(self.obs).amax(dim=1)
        self._set_next_value(self.config.rollout_steps - 1, value_N)
        started = time.perf_counter()
        self._learn()
        self.seconds["learn"] += time.perf_counter() - started

    def _step(self, t: int, epsilon: float) -> None:
        """One vector step of the rollout."""
        started = time.perf_counter()
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
        if step.truncated.any():  # it bootstraps from what the game showed last, not from the next one's start
            self.next_value_TN[t].copy_(self.policy.values(step.last_obs).amax(dim=1))
        self.obs = step.obs
        self.step += self.config.num_envs
        self.count(step)
        self.seconds["act"] += acted - started
        self.seconds["emulate"] += time.perf_counter() - acted

    def _set_next_value(self, t: int, value_N: Tensor) -> None:
        """Note what the observations behind step t are worth, but where the episode was cut there."""
        self.next_value_TN[t] = torch.where(self.truncated_TN[t] > 0, self.next_value_TN[t], value_N)

    def _learn(self) -> None:
        """Returns of the rollout, then `epochs` passes over it in shuffled minibatches (algorithm 1)."""
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
            set_learning_rate(self.learner.optimizer, annealing.learning_rate(config, self.step))
        obs, action, target = self.obs_TN.flatten(0, 1), self.action_TN.flatten(), target_TN.flatten()
        for _ in range(config.update_epochs):
            order = torch.randperm(len(target), generator=self.shuffle, device=target.device)
            for index_B in order.chunk(config.num_minibatches):
                self.learner.update(obs[index_B], action[index_B], target[index_B])
                self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; between two turns a rollout is nothing that is needed."""
        return {
            **super().state_dict(),
            "learner": self.learner.state_dict(),
            "exploration": self.exploration.state_dict(),
            "shuffle": self.shuffle.get_state(),
            "rng": checkpoint.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
        self.exploration.load_state_dict(state["exploration"])
        self.shuffle.set_state(state["shuffle"])
        checkpoint.set_rng_state(state["rng"])


def train(config: Config, run: Run, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    resumed = restore_or_reset(training, run, latest)
    for deviation in DEVIATIONS:
        run.print(f"preset {config.preset} departs from its paper: {deviation}")
    run.print(f"{config.env}: {in_words(training.env.settings)}")
    turn_steps = config.rollout_steps * config.num_envs

    def due(every_steps: int) -> bool:
        return every_steps > 0 and training.step // every_steps != (training.step - turn_steps) // every_steps

    show_progress(training, run)
    if not resumed:
        log_images(training.policy.network, training.obs, training.env.frame_channels, run, training.step)
        save(training, run, latest)
    reached = world.is_main and training.evaluation_pending and evaluate_and_log(training, run)
    stopping = world.any(reached or bool(run.stop_requested), compute.torch_device)
    interval = LogInterval(training)
    while training.step < config.total_steps and not stopping:
        training.iterate()
        if due(config.log_every_steps):
            rate = annealing.learning_rate(config, training.step)
            log_metrics(training, run, interval, **{"train/learning_rate": rate})
            interval = LogInterval(training)
        if due(config.eval_every_steps) or is_early_evaluation_due(training):
            reached = world.is_main and evaluate_and_log(training, run)
            interval = LogInterval(training)
        if due(config.checkpoint_every_steps):
            save(training, run, latest)
        stopping = world.any(reached or bool(run.stop_requested), compute.torch_device)
    if run.stop_requested:
        run.print(f"{run.stop_requested}: saving")
    save(training, run, latest)
    known = {"eval_return": training.last_score, "train_return": training.mean_return}
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in known.items() if value is not None})
    return closing_message(training, reached, "agents.pqn")


def choose_compute(config: Config, world: World) -> Compute:
    """Measure updates on made-up data of the right shape."""
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
    """The program: config, run, compute, loop, closing line."""
    config = read_config(argv, __doc__ or "")
    world = World.from_env(config.device)
    if config.num_envs % world.size:
        raise UserError(f"{flag('num_envs')} {config.num_envs} cannot be shared by {world.size} processes evenly.")
    with (
        Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        compute = run.compute(lambda: choose_compute(config, world), config.total_steps)
        run.close(train(config, run, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
