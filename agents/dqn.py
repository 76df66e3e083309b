"""DQN: train an agent from pixels with a deep Q-network.

    python -m agents.dqn --env ALE/Pong-v5

Mnih et al. 2015, "Human-level control through deep reinforcement learning". A convolutional network estimates the
Q-value of every action. An epsilon-greedy policy acts in parallel environments, and transitions are stored in a replay
buffer. Each update samples a batch and minimizes the Huber loss between Q(s, a) and the TD target, which bootstraps
from a target network that is a periodic copy or a moving average of the online network:

    target = r_1 + gamma r_2 + ... + gamma^(n-1) r_n + gamma^n max over a' of Q_target(s', a')

where s' is the observation after the n steps. A return ends earlier at a terminal, where it does not bootstrap, and at
a truncation, where it bootstraps from the last observation of the episode with the smaller power of gamma.

Extensions are options of the config (agents/configs/dqn.py): double Q-learning (van Hasselt et al. 2016), dueling
networks (Wang et al. 2016), prioritized replay (Schaul et al. 2016), n-step returns, C51, HL-Gauss, QR-DQN, IQN, noisy
networks, Munchausen DQN, DrQ and SPR; presets combine them as in their papers (docs/dqn.md has the results).

Top to bottom: the TD target and the loss, the parts of a run, one iteration of the loop (act, step, sample, update,
store), the updates that are due. Precision, compilation and CUDA graphs are in agents/qlearning/learner.py, the replay
buffer in agents/training/replay_buffer.py; logging, evaluation and checkpoints in agents/training/session.py, the start
of a run in agents/training/start.py; with --actors, other processes act (agents/actors).

Shapes: N environments, B batch, A actions, F features, X outputs per action (1 expected return, or atoms, or
quantiles), K returns (X; X * A for C51 with Munchausen DQN), T and S quantile fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from zerokara.agents.configs.dqn import KIND, Config, read_config
from zerokara.core.command_line import check_command_line
from zerokara.core.config import run_main

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.agents.actors import feed, ray_actors
from zerokara.agents.qlearning import heads, losses, schedules, spr
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.network import QNetwork, make_network
from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.agents.qlearning.replay import ALL, Batch, Rows
from zerokara.agents.training.replay_buffer import describe_fill, make_replay, min_transitions, random_batch, store
from zerokara.agents.training.session import Session
from zerokara.agents.training.start import Resources, spaced_process_seed, start_run
from zerokara.core.compute import Compute
from zerokara.core.run import LogCallback, Run


def dqn_loss(
    config: Config,
    compute: Compute,
    online: QNetwork,
    target: QNetwork,
    obs: Tensor,
    action_B: Tensor,
    reward_B: Tensor,
    discount_B: Tensor,
    next_obs: Tensor,
    weight_B: Tensor,
    tau_BT: Tensor | None = None,
    next_tau_BS: Tensor | None = None,
    *following: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and mean Q-value (scalars), and absolute TD error (B,), of a batch of n-step transitions.

    The loss of C51 takes the place of the TD error.

    Args:
        config: hyperparameters.
        compute: converts images.
        online: network that is trained.
        target: target network.
        obs: observations (B, C, H, W) uint8, or float32 of vectors, as `next_obs`.
        action_B: actions that were taken.
        reward_B: r_1 + gamma r_2 + ... + gamma^(k-1) r_k, where k = n, or less at a terminal, a truncation or the
            newest stored step.
        discount_B: gamma^k; 0 after a terminal.
        next_obs: observations (B, C, H, W) after the k steps.
        weight_B: importance-sampling weights (1 with uniform replay); 0 for the rare sample without a transition.
        tau_BT: quantile fractions of the online network (QR-DQN, IQN).
        next_tau_BS: quantile fractions of the target network (IQN).
        following: later observations and actions, for the auxiliary loss of SPR (`Replay.following`).
    """
    images, next_images = compute.images(obs), compute.images(next_obs)
    atom_X = target.head.atom_X if isinstance(target.head, heads.CategoricalHead) else None  # of C51
    with torch.no_grad():
        next_features_BF = target.features(next_images)
        next_z_BXA = target.outputs(next_features_BF, next_tau_BS)
        # Q-values select actions. With IQN they are means over evenly spaced fractions, not over the sampled ones of z.
        next_q_BA = target.head.values(next_z_BXA) if next_tau_BS is None else target.values(next_features_BF)

        probability_BK: Tensor | None = None  # of the next returns of C51
        if not config.munchausen:
            # The greedy next action, evaluated by the target network. Double Q-learning selects it with the online
            # network (van Hasselt et al. 2016, eq. 4), otherwise the target network selects it (Mnih et al. 2015).
            next_action_B = (online(next_images) if config.double else next_q_BA).argmax(dim=1)
            next_z_BX = heads.outputs_of_actions(next_z_BXA, next_action_B)
            if atom_X is None:  # expected return or quantiles
                next_return_BK = next_z_BX
            else:  # softmax over (B, X, 1): over (B, X) it rounds differently than in earlier releases
                next_return_BK = atom_X.expand_as(next_z_BX)
                probability_BK = next_z_BX[:, :, None].softmax(dim=1).squeeze(2)
        else:
            # Policy pi = softmax(q / tau) of the target network. The reward gets alpha * tau log pi(a|s), clipped; the
            # next value is the sum over a' of pi(a'|s') (q(s', a') - tau log pi(a'|s')) (Vieillard et al. 2020, eq. 1).
            temperature = config.munchausen_tau
            tau_log_pi_BA = temperature * F.log_softmax(target(images) / temperature, dim=1)
            tau_log_pi_B = tau_log_pi_BA.gather(1, action_B[:, None]).squeeze(1)
            reward_B = reward_B + config.munchausen_alpha * tau_log_pi_B.clamp(config.munchausen_clip, 0.0)
            next_tau_log_pi_B1A = temperature * F.log_softmax(next_q_BA / temperature, dim=1)[:, None]
            next_pi_B1A = (next_tau_log_pi_B1A / temperature).exp()
            if atom_X is None:
                next_return_BK = (next_pi_B1A * (next_z_BXA - next_tau_log_pi_B1A)).sum(dim=2)
            else:  # one distribution of the atoms of all actions
                next_return_BK = (atom_X[:, None] - next_tau_log_pi_B1A).flatten(1)
                probability_BK = (next_pi_B1A * next_z_BXA.softmax(dim=1)).flatten(1)

        target_BX = target_BK = reward_B[:, None] + discount_B[:, None] * next_return_BK  # TD target; C51: of each atom
        if atom_X is not None and probability_BK is not None:  # projected onto the atoms, or HL-Gauss, two-hot of mean
            to_target = losses.C51_TARGETS[config.target_distribution]
            target_BX = to_target(target_BK, probability_BK, atom_X, config.hl_gauss_sigma)

    features_BF = online.features(images)
    z_BXA = online.outputs(features_BF, tau_BT)
    z_BX = heads.outputs_of_actions(z_BXA, action_B)
    if atom_X is not None:
        # KL divergence or cross-entropy: the gradient is the same, but the loss is also the priority of the transition.
        loss_B = losses.CATEGORICAL_LOSSES[config.per_priority](z_BX, target_BX)
        td_error_B = loss_B.detach().clamp(min=0)  # a divergence of 0 can be rounded to less
    elif isinstance(online.head, heads.QuantileHead):
        assert tau_BT is not None
        loss_B = losses.quantile_huber_loss(z_BX, tau_BT, target_BX)
        td_error_B = (target_BX[:, None] - z_BX[:, :, None]).detach().abs().mean(dim=(1, 2))
    else:  # the gradient of the Huber loss is the TD error clipped to [-1, 1]
        # The loss is weighted below; huber_after_weight needs the weight to clip weight * error instead of the error.
        loss_B = losses.SCALAR_LOSSES[config.loss](z_BX, target_BX, weight_B).squeeze(1)
        td_error_B = (target_BX - z_BX).detach().abs().squeeze(1)
    if following:  # self-predictive representations: cosine loss of the features predicted for the next observations
        later_images, actions = compute.images(following[0]), following[1:]
        loss_B = loss_B + config.spr_weight * spr.spr_loss(online, target, features_BF, later_images, *actions)
    return (weight_B * loss_B).mean(), online.head.values(z_BXA).detach().mean(), td_error_B


def make_learner(config: Config, resources: Resources) -> Learner:
    """Create the online network, the target network and the optimizer."""
    env, compute, world = resources.env, resources.compute, resources.world
    return Learner(
        partial(make_network, config, env.obs_shape, env.num_actions),
        partial(dqn_loss, config, compute),
        compute,
        world,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        epsilon=config.optimizer_epsilon,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        target_tau=config.target_tau,
        seed=spaced_process_seed(config.seed, world) ^ 0x5EED,  # differs from the seeds of replay and policy
    )


def gradient_step(learner: Learner, batch: Batch, following: Sequence[Tensor] = ()) -> Tensor:
    """Do one gradient step on a batch. Returns the absolute TD errors (B,). Does not synchronize with the device."""
    learner.resample_noise()
    tau_BT, next_tau_BS = learner.sample_taus(len(batch.action))
    # The arguments of `dqn_loss` after the networks: the fields of a batch are `obs` to `weight_B`, in this order.
    return learner.step(*batch, tau_BT, next_tau_BS, *following)


class Training(Session):
    """State of a DQN run, one iteration of the training loop, and the updates."""

    config: Config
    learner: Learner

    def __init__(self, config: Config, run: Run, resources: Resources) -> None:
        super().__init__(config, run, resources, "agents.dqn")
        self.replay = make_replay(config, run, resources, self.seed, lambda: self.is_finished)
        torch.manual_seed(config.seed)
        self.learner = make_learner(config, resources)
        self.policy = Policy(self.learner.online, self.compute, self.seed)
        self.filling = True  # the replay buffer of a process has too few transitions to learn from
        self.exploration = Exploration(self.num_envs, self.env.num_actions, self.seed, config.ez_greedy_zeta)
        self.update = self.learner.graphed(
            self.sample_and_update, generators=(self.replay.generator,), tensors=self.replay.priority_tensors
        )
        self.register(learner=self.learner, replay=self.replay, exploration=self.exploration, noise=self.policy.noise)

    def end_episodes(self, rows: Rows = ALL) -> None:
        """See `Session.end_episodes`. The replay buffer does not connect the old episodes with the new ones."""
        super().end_episodes(rows)
        self.replay.end_episodes(rows)

    def sample_and_update(self) -> None:
        """Sample a batch, do a gradient step, update the priorities of the batch. On CUDA this becomes a graph."""
        batch = self.replay.sample(self.config.batch_size // self.world.size)
        # `following` and `update_priorities` are about the transitions of the last `sample`.
        following = self.replay.following(self.config.spr_steps) if self.config.spr_weight else ()
        self.replay.update_priorities(gradient_step(self.learner, batch, following))

    @property
    def epsilon(self) -> float:
        """Probability of a random action, by default linear from `epsilon_start` to `epsilon_end`: `schedules.epsilon`.

        With `epsilon_schedule` exponential, `epsilon_decay_steps` is the time constant. See also `Session.epsilon`.
        """
        return schedules.epsilon(self.config, self.step)

    def iterate(self) -> None:
        """Do one step in all environments, with the updates that are due while the environments run."""
        with self.timed("act"):
            # Noisy layers, if the network has any, explore in addition to epsilon.
            action_N = self.env.executed(self.policy.act(self.latest, self.epsilon, self.exploration, noisy=True))
        self.env.send(action_N)
        with self.timed("learn"):
            self.learn()
        with self.timed("emulate"):
            result = self.env.recv()
            # With the sign of the reward, and with a lost life as a terminal, if configured.
            store(self.config, self.replay, self.latest.frame, action_N, result)
            self.record(result)  # sets self.latest, adds config.num_envs (those of all processes) to self.step

    def learn(self, limit: int | None = None) -> None:
        """Do the updates that are due, at most `limit`."""
        config = self.config
        # `gradient_steps` per `train_every_steps` after `learning_starts`; none before `fill` transitions are stored.
        due = schedules.updates_due(config, self.step)
        if self.updates >= due:
            return
        fill = min_transitions(config) // self.world.size
        self.filling = self.filling and self.world.any(len(self.replay) < fill, self.compute.torch_device)
        if self.filling:
            # Too few transitions, such as after a resume without a saved buffer. What is due is dropped: the updates
            # count as done, so that they are not done later in addition.
            self.updates = due
            return
        self.replay.set_beta(schedules.per_beta(config, self.step))
        if config.final_learning_rate is not None:
            self.learner.set_learning_rate(schedules.learning_rate(config, self.step))
        end = due if limit is None else min(due, self.updates + limit)
        while self.updates < end:
            if schedules.is_annealed(config):
                self.replay.set_n_step_and_gamma(*schedules.n_step_and_gamma(config, self.updates))
            self.update()
            self.updates += 1
            # Every `target_update_steps` agent steps; an update counts as train_every_steps / gradient_steps of them.
            if schedules.is_target_update_due(config, self.updates):
                self.learner.update_target_network()
            if schedules.is_reset_due(config, self.updates):
                # Also copies the online network into the target network.
                self.learner.reset(config.seed * 1_000_003 + self.updates, config.reset_perturb_factor)


def train(config: Config, run: Run, resources: Resources) -> str:
    """Train from the current step to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, the replay buffer does not fit into memory or on disk, or training
            diverged (the weights contain NaN or Inf).
    """
    training = Training(config, run, resources)
    replay, world = training.replay, resources.world
    # Actors in other processes act instead of this one.
    actors = feed.ActorFeed(config, training, replay, training.learn, dqn_loss) if config.actors else None

    def metrics() -> dict[str, Any]:
        learning_rate = schedules.learning_rate(config, training.step)
        fill = len(replay) * world.size / config.replay_capacity
        return {"replay/fill": fill, "train/learning_rate": learning_rate, **(actors.metrics() if actors else {})}

    training.start(config.pretrained_backbone)  # restores the checkpoint of a resumed run
    training.print_settings(terminal_on_life_loss=config.terminal_on_life_loss)
    stored = world.gather(len(replay))
    if not training.is_finished:
        run.print(describe_fill(config, stored))
    # `iterations` logs, evaluates and saves between iterations; it ends after a signal, when the run has been saved.
    for _ in training.iterations(metrics, lambda: replay.needs_checkpoint):
        (actors or training).iterate()
    return training.closing_message()


def probe_step(config: Config, resources: Resources, batch_size: int) -> Callable[[], object]:
    """Return a gradient step on random data, which is timed to choose precision and compilation."""
    batch, following = random_batch(config, resources, batch_size)
    learner = make_learner(config, resources)
    return learner.graphed(lambda: gradient_step(learner, batch, following))


def start(config: Config, callback: LogCallback | None = None) -> None:
    """Start or resume the run of a config: open the run folder, choose the hardware settings, train."""
    start_run(
        config,
        KIND,
        train,
        probe_step,
        batch_size=config.batch_size,
        updates=schedules.updates_due(config, config.total_steps),
        divided=("num_envs", "batch_size"),
        connected=ray_actors.connected,
        callback=callback,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    start(read_config(argv, __doc__ or ""))


if __name__ == "__main__":
    run_main(main)
