"""DQN: train an agent from pixels with a deep Q-network.

    python -m agents.dqn --env ALE/Pong-v5

Mnih et al. 2015, "Human-level control through deep reinforcement learning". A convolutional network estimates the
Q-value of every action. An epsilon-greedy policy acts in parallel environments, and transitions are stored in a replay
buffer. Each update samples a batch and minimizes the Huber loss between Q(s, a) and the TD target, which bootstraps
from a target network that is a periodic copy of the online network:

    target = r_1 + gamma r_2 + ... + gamma^(n-1) r_n + gamma^n max over a' of Q_target(s', a')

Extensions are options of the config (agents/configs/dqn.py): double Q-learning (van Hasselt et al. 2016), dueling
networks (Wang et al. 2016), prioritized replay (Schaul et al. 2016), n-step returns, C51, QR-DQN, IQN, noisy networks
and Munchausen DQN; presets combine them as in their papers. On a laptop, the default preset `fast` raises the return
on Pong from -21 to 18; docs/dqn.md has the results.

One iteration of the loop: select actions, send them to the environments, update the network while the environments run,
receive the results, store the transitions.

Shapes: N environments, C, H, W an observation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from zerokara.agents.configs.dqn import KIND, Config, read_config
from zerokara.agents.configs.presets import DEVIATIONS
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.exploration import Exploration
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.agents.qlearning.replay import Batch, Replay
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
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag, run_main, to_dict
from zerokara.core.distributed import World
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.optim import set_learning_rate
from zerokara.core.probe import probe
from zerokara.core.run import Run
from zerokara.core.zoo import provenance
from zerokara.core.zoo import registry as zoo


class Training(Session):
    """State of a DQN run (everything in a checkpoint), and one iteration of the training loop."""

    config: Config
    learner: Learner

    def __init__(self, config: Config, run: Run, compute: Compute, world: World) -> None:
        seed = config.seed * 1_000_003 + world.rank * 10_007
        super().__init__(config, config.num_envs // world.size, seed)
        self.compute, self.world = compute, world
        make_replay: Callable[..., Replay] = (
            partial(PrioritizedReplay, alpha=config.per_alpha) if config.per_alpha else Replay
        )
        self.replay = make_replay(
            -(-config.replay_capacity // world.size),
            self.num_envs,
            self.env.obs_shape,
            self.env.frame_channels,
            n_step=schedules.max_n_step(config),
            gamma=config.gamma,
            seed=self.seed,
            device=compute.torch_device,
            folder=run.folder / f"replay-{world.rank}" if config.save_replay else None,
            checkpoint_margin=config.checkpoint_every_steps // world.size + 4 * self.num_envs,
            function=compute.function,
            print_line=run.print,
        )
        torch.manual_seed(config.seed)
        self.learner = Learner(
            config,
            self.env.obs_shape,
            self.env.num_actions,
            compute,
            world,
            lambda: self.replay.sample(config.batch_size // world.size),
            (self.replay.generator,),
            *(
                (self.replay.update_priorities, self.replay.priority_tensors)
                if isinstance(self.replay, PrioritizedReplay)
                else ()
            ),
        )
        self.policy = Policy(self.learner.working, compute, self.seed)
        self.exploration = Exploration(self.num_envs, self.env.num_actions, self.seed, config.ez_greedy_zeta)

    @property
    def epsilon(self) -> float:
        """Probability of a random action at this step."""
        return schedules.epsilon(self.config, self.step)

    def iterate(self) -> None:
        """Do one step in all environments, with the updates that are due while the environments run."""
        start = time.perf_counter()
        action_N = self.policy.act(self.obs, self.epsilon, self.exploration, noisy=True)
        acted = time.perf_counter()
        self.env.send(action_N)
        self._learn()
        updated = time.perf_counter()
        step = self.env.recv()
        reward_N = np.sign(step.reward) if self.config.clip_rewards else step.reward
        life_lost_N = step.life_lost if self.config.terminal_on_life_loss else None
        self.replay.add(self.obs, action_N, reward_N, step.terminal, step.truncated, step.last_obs, life_lost_N)
        self.obs = step.obs
        self.step += self.config.num_envs
        self.record_episodes(step)
        for part, seconds in (
            ("act", acted - start),
            ("learn", updated - acted),
            ("emulate", time.perf_counter() - updated),
        ):
            self.seconds[part] += seconds

    def _learn(self) -> None:
        """Do the updates that are due: `gradient_steps` per `train_every_steps` since `learning_starts`."""
        config = self.config
        due = max(0, self.step - config.learning_starts) // config.train_every_steps * config.gradient_steps
        if len(self.replay) < min(config.learning_starts, config.replay_capacity) // self.world.size:
            self.updates = due  # refill a replay buffer that was not saved before updating again
        if isinstance(self.replay, PrioritizedReplay):
            self.replay.beta.fill_(schedules.per_beta(config, self.step))
        if config.final_learning_rate is not None and self.updates < due:
            set_learning_rate(self.learner.optimizer, schedules.learning_rate(config, self.step))
        while self.updates < due:
            if schedules.is_annealed(config):
                self.replay.set_n_step_and_gamma(*schedules.n_step_and_gamma(config, self.updates))
            self.learner.update()
            self.updates += 1
            if schedules.is_target_update_due(config, self.updates):
                self.learner.update_target_network()
            if schedules.is_reset_due(config, self.updates):
                self.learner.reset(config.seed * 1_000_003 + self.updates)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as tensors and plain values."""
        return {
            **super().state_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "exploration": self.exploration.state_dict(),
            "noise": self.policy.noise.get_state(),
            "rng": checkpoint.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.exploration.load_state_dict(state["exploration"])
        self.policy.noise.set_state(state["noise"])
        checkpoint.set_rng_state(state["rng"])


def train(config: Config, run: Run, compute: Compute, world: World) -> str:
    """Train from the current step to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, the replay buffer does not fit into memory or on disk, or training
            diverged (the weights contain NaN or Inf).
    """
    training = Training(config, run, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    resumed = restore_or_reset(training, run, latest)
    if config.pretrained_backbone and not resumed:
        run.print(
            str(
                load_pretrained_backbone(
                    training.learner.network.backbone, zoo.weights_source(config.pretrained_backbone)
                )
            )
        )
        provenance.record(run, config.pretrained_backbone)
        training.learner.refresh()
        training.learner.update_target_network()
    for deviation in DEVIATIONS.get(config.preset, ()):
        run.print(f"preset {config.preset} differs from its paper: {deviation}")
    settings = {**training.env.settings, "terminal_on_life_loss": config.terminal_on_life_loss}
    run.print(f"{config.env}: {format_settings(settings)}")
    run.print(f"replay buffer: {len(training.replay):,} of {config.replay_capacity:,} transitions")

    def due(every_steps: int) -> bool:
        return every_steps > 0 and training.step // every_steps != (training.step - config.num_envs) // every_steps

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
            more = {
                "replay/fill": len(training.replay) / config.replay_capacity,
                "train/learning_rate": schedules.learning_rate(config, training.step),
            }
            log_metrics(training, run, interval, **more)
            interval = LogInterval(training)
        if due(config.eval_every_steps) or is_early_evaluation_due(training):
            goal_reached = world.is_main and evaluate_and_log(training, run)
            interval = LogInterval(training)
        if due(config.checkpoint_every_steps) or training.replay.needs_checkpoint:
            save(training, run, latest)
        stopping = world.any(goal_reached or bool(run.stop_requested), compute.torch_device)
    if run.stop_requested:
        run.print(f"{run.stop_requested}: saving")
    save(training, run, latest)
    known = {"eval_return": training.last_score, "train_return": training.mean_return}
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in known.items() if value is not None})
    return closing_message(training, goal_reached, "agents.dqn")


def choose_compute(config: Config, world: World) -> Compute:
    """Choose precision and compilation by timing updates on random data of the right shape."""
    channels = config.frame_stack * (1 if config.grayscale else 3)
    shape = (channels, config.image_size, config.image_size)
    batch = config.batch_size // world.size

    def train_step(candidate: Compute) -> Any:
        pixels = torch.randint(256, (2, batch, *shape), dtype=torch.uint8).to(candidate.torch_device)
        ones = torch.ones(batch, device=candidate.torch_device)
        random_batch = Batch(pixels[0], ones.long(), ones, ones, pixels[1], ones)
        return Learner(config, shape, 6, candidate, World(), lambda: random_batch).update

    return probe(config, world, train_step, compile=config.compile)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read the config, open the run folder, choose the hardware settings, train."""
    config = read_config(argv, __doc__ or "")
    world = World.from_env(config.device)
    for field in ("num_envs", "batch_size"):
        if getattr(config, field) % world.size:
            raise UserError(
                f"{flag(field)} {getattr(config, field)} cannot be divided evenly among {world.size} processes: choose "
                f"a multiple of {world.size}."
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
