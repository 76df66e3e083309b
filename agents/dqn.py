"""DQN: learn to play from pixels.

    python -m agents.dqn --env ALE/Pong-v5

Mnih et al. 2015, "Human-level control through deep reinforcement learning", with double Q-learning (van Hasselt et al.
2016), dueling networks (Wang et al. 2016) and n-step returns, each a field of the config (agents/configs/dqn.py). The
preset `fast`, the default, takes Pong from -21 to 18 on a laptop; docs/dqn.md has the figures.

One turn of the loop: act, let the emulators work, learn meanwhile, receive, remember.

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
    in_words,
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
    """Everything that a checkpoint holds, and the turns of the loop over it."""

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
        """One vector step: act, emulate while learning, remember."""
        started = time.perf_counter()
        action_N = self.policy.act(self.obs, self.epsilon, self.exploration, noisy=True)
        acted = time.perf_counter()
        self.env.send(action_N)
        self._learn()
        learnt = time.perf_counter()
        step = self.env.recv()
        reward_N = np.sign(step.reward) if self.config.clip_rewards else step.reward
        life_lost_N = step.life_lost if self.config.terminal_on_life_loss else None
        self.replay.add(self.obs, action_N, reward_N, step.terminal, step.truncated, step.last_obs, life_lost_N)
        self.obs = step.obs
        self.step += self.config.num_envs
        self.count(step)
        for part, seconds in (
            ("act", acted - started),
            ("learn", learnt - acted),
            ("emulate", time.perf_counter() - learnt),
        ):
            self.seconds[part] += seconds

    def _learn(self) -> None:
        """The updates that are due: `gradient_steps` for every `train_every_steps` since the warm-up."""
        config = self.config
        due = max(0, self.step - config.learning_starts) // config.train_every_steps * config.gradient_steps
        if len(self.replay) < min(config.learning_starts, config.replay_capacity) // self.world.size:
            self.updates = due  # a replay that was not kept fills up again first
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
        """Tensors and plain values."""
        return {
            **super().state_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "exploration": self.exploration.state_dict(),
            "noise": self.policy.noise.get_state(),
            "rng": checkpoint.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.exploration.load_state_dict(state["exploration"])
        self.policy.noise.set_state(state["noise"])
        checkpoint.set_rng_state(state["rng"])


def train(config: Config, run: Run, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, a replay that does not fit, weights that are no numbers any more.
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
        run.print(f"preset {config.preset} departs from its paper: {deviation}")
    run.print(f"{config.env}: {in_words(training.env.settings)}, terminal_on_life_loss {config.terminal_on_life_loss}")
    run.print(f"replay: {len(training.replay):,} of {config.replay_capacity:,} transitions")

    def due(every_steps: int) -> bool:
        return every_steps > 0 and training.step // every_steps != (training.step - config.num_envs) // every_steps

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
            more = {
                "replay/fill": len(training.replay) / config.replay_capacity,
                "train/learning_rate": schedules.learning_rate(config, training.step),
            }
            log_metrics(training, run, interval, **more)
            interval = LogInterval(training)
        if due(config.eval_every_steps) or is_early_evaluation_due(training):
            reached = world.is_main and evaluate_and_log(training, run)
            interval = LogInterval(training)
        if due(config.checkpoint_every_steps) or training.replay.needs_checkpoint:
            save(training, run, latest)
        stopping = world.any(reached or bool(run.stop_requested), compute.torch_device)
    if run.stop_requested:
        run.print(f"{run.stop_requested}: saving")
    save(training, run, latest)
    known = {"eval_return": training.last_score, "train_return": training.mean_return}
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in known.items() if value is not None})
    return closing_message(training, reached, "agents.dqn")


def choose_compute(config: Config, world: World) -> Compute:
    """Measure updates on made-up data of the right shape."""
    channels = config.frame_stack * (1 if config.grayscale else 3)
    shape = (channels, config.image_size, config.image_size)
    batch = config.batch_size // world.size

    def train_step(candidate: Compute) -> Any:
        pixels = torch.randint(256, (2, batch, *shape), dtype=torch.uint8).to(candidate.torch_device)
        ones = torch.ones(batch, device=candidate.torch_device)
        made_up = Batch(pixels[0], ones.long(), ones, ones, pixels[1], ones)
        return Learner(config, shape, 6, candidate, World(), lambda: made_up).update

    return probe(config, world, train_step, compile=config.compile)


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, run, compute, loop, closing line."""
    config = read_config(argv, __doc__ or "")
    world = World.from_env(config.device)
    for field in ("num_envs", "batch_size"):
        if getattr(config, field) % world.size:
            raise UserError(
                f"{flag(field)} {getattr(config, field)} cannot be shared by {world.size} processes evenly."
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
