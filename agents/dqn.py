"""DQN: learn to play from pixels.

    python -m agents.dqn --env ALE/Pong-v5

Mnih et al. 2015, "Human-level control through deep reinforcement learning", with double Q-learning (van Hasselt et al.
2016), dueling networks (Wang et al. 2016) and n-step returns, each a field of the config (agents/config.py). The preset
`fast`, the default, takes Pong from -21 to 18 on a laptop; docs/dqn.md has the figures.

One turn of the loop: act, let the emulators work, learn meanwhile, receive, remember.

Shapes: N environments, C, H, W an observation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import envs
from agents.config import PRESETS, Config
from agents.evaluation import Scores, evaluate
from agents.learner import Learner, Policy
from agents.pictures import log_film, log_pictures
from agents.replay import Batch, Replay
from core import checkpoint, schedules
from core.compute import Compute
from core.config import UserError, entry, flag, to_dict
from core.configure import configure
from core.distributed import World
from core.run import Run

KIND = "dqn"
# What may differ when a run goes on; everything else would make it another run.
CHANGEABLE = {"resume", "quiet", "steps", "stop_at_return", "eval_episodes", "video"}


class Training:
    """Everything that a checkpoint holds, and the turns of the loop over it."""

    def __init__(self, config: Config, run: Run, compute: Compute, world: World) -> None:
        self.config, self.compute, self.world = config, compute, world
        self.num_envs = config.num_envs // world.size
        self.seed = config.seed * 1_000_003 + world.rank * 10_007  # of this process
        self.env = envs.make(config.env, self.num_envs, **config.env_settings())
        self.replay = Replay(
            -(-config.replay_capacity // world.size),
            self.num_envs,
            self.env.obs_shape,
            self.env.frame_channels,
            n_step=config.n_step,
            gamma=config.gamma,
            seed=self.seed,
            device=compute.torch_device,
            folder=run.folder / f"replay-{world.rank}" if config.keep_replay else None,
            slack=config.checkpoint_every_steps // world.size + 4 * self.num_envs,
            function=compute.function,
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
        )
        self.policy = Policy(self.learner.network, compute)
        self.explore = torch.Generator().manual_seed(self.seed)

        self.step = 0  # agent steps of all processes together
        self.updates = 0
        self.games = 0
        self.running_return_N = np.zeros(self.num_envs)
        self.running_length_N = np.zeros(self.num_envs, np.int64)
        self.returns: deque[float] = deque(maxlen=100)  # raw, of the last whole games
        self.lengths: deque[int] = deque(maxlen=100)
        self.last_score: float | None = None  # mean raw return of the last evaluation
        self.best_score: float | None = None
        self.evaluated_at = 0
        self.seconds = dict.fromkeys(("act", "emulate", "learn"), 0.0)
        self.hours = 0.0  # of all processes that wrote this run, evaluations included
        self._clock = time.perf_counter()
        self.obs = np.empty(0)
        self._eval_env: envs.VectorEnv | None = None  # making it takes seconds, so it is kept

    def turn(self) -> None:
        """One vector step: act, emulate while learning, remember."""
        started = time.perf_counter()
        action_N = self.policy.act(self.obs, self.epsilon, self.explore)
        acted = time.perf_counter()
        self.env.send(action_N)
        self._learn()
        learnt = time.perf_counter()
        step = self.env.recv()
        reward_N = np.sign(step.reward) if self.config.reward_clip else step.reward
        life_lost_N = step.life_lost if self.config.life_loss_ends else None
        self.replay.add(self.obs, action_N, reward_N, step.terminal, step.truncated, step.last_obs, life_lost_N)
        self.obs = step.obs
        self.step += self.config.num_envs
        self._count(step)
        for part, seconds in (
            ("act", acted - started),
            ("learn", learnt - acted),
            ("emulate", time.perf_counter() - learnt),
        ):
            self.seconds[part] += seconds

    @property
    def epsilon(self) -> float:
        """Probability of a random action at this step."""
        config = self.config
        return float(schedules.linear(self.step, config.epsilon_start, config.epsilon_end, 0, config.epsilon_steps))

    def _learn(self) -> None:
        """The updates that are due: one for every `train_every_steps` since the warm-up."""
        config = self.config
        due = max(0, self.step - config.warmup_steps) // config.train_every_steps
        if len(self.replay) < min(config.warmup_steps, config.replay_capacity) // self.world.size:
            self.updates = due  # a replay that was not kept fills up again first
        while self.updates < due:
            self.learner.update()
            self.updates += 1
            if self.updates * config.train_every_steps % config.target_every_steps < config.train_every_steps:
                self.learner.renew_target()

    def clock(self) -> float:
        """Hours that this run has taken so far, without interruptions."""
        now = time.perf_counter()
        self.hours += (now - self._clock) / 3600
        self._clock = now
        return self.hours

    def _count(self, step: envs.Step) -> None:
        """Keep raw returns and lengths of whole games."""
        self.running_return_N += step.reward
        self.running_length_N += 1
        for i in np.flatnonzero(step.terminal | step.truncated):
            self.returns.append(float(self.running_return_N[i]))
            self.lengths.append(int(self.running_length_N[i]))
            self.games += 1
            self.running_return_N[i] = self.running_length_N[i] = 0

    def play(self, config: Config, fresh: int = 0) -> Scores:
        """Evaluate on games that training never sees; `fresh` chooses other ones."""
        if self._eval_env is None:
            self._eval_env = envs.make(config.env, config.eval_episodes, **config.env_settings())
        seed = 500_000_000 + config.seed * 1_009 + fresh * 7_919 + self.step % 1_000_003
        return evaluate(
            self.policy,
            self._eval_env,
            games_per_env=1,
            epsilon=config.eval_epsilon,
            max_steps=config.eval_max_steps,
            seed=seed,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "env": self.env.state_dict(),
            "explore": self.explore.get_state(),
            "rng": checkpoint.rng_state(),
            "step": self.step,
            "updates": self.updates,
            "games": self.games,
            "running_return": self.running_return_N.tolist(),
            "running_length": self.running_length_N.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "last_score": self.last_score,
            "best_score": self.best_score,
            "evaluated_at": self.evaluated_at,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.obs = self.env.load_state_dict(state["env"])
        self.explore.set_state(state["explore"])
        checkpoint.set_rng_state(state["rng"])
        self.step, self.updates, self.games = state["step"], state["updates"], state["games"]
        self.running_return_N = np.array(state["running_return"])
        self.running_length_N = np.array(state["running_length"], np.int64)
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])
        self.last_score, self.best_score = state["last_score"], state["best_score"]
        self.evaluated_at, self.hours = state["evaluated_at"], state["hours"]


def train(config: Config, run: Run, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, a replay that does not fit, weights that are no numbers any more.
    """
    training = Training(config, run, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    going_on = config.resume and latest.exists()
    if going_on:
        state = checkpoint.load(latest, KIND)
        training.load_state_dict(state)
        run.resume_from(state["run"])
    else:  # a fresh run, or one that was killed before its first checkpoint
        run.resume_from({"metrics_bytes": 0, "last_step": -1})
        training.obs = training.env.reset(training.seed % 2**31)
        run.remember(environment=dict(training.env.settings))
    run.say(f"{config.env}: {in_words(training.env.settings)}")
    run.say(f"replay: {len(training.replay):,} of {config.replay_capacity:,} transitions, {training.replay.place()}")

    def save() -> None:
        if not training.learner.is_finite():
            raise UserError(
                f"The loss is no number any more at step {training.step:,}: the weights have left the range of floats; "
                f"the last good checkpoint stays in {run.folder}; start again with a lower --learning-rate."
            )
        checkpoint.save(latest, {**training.state_dict(), "run": run.state_dict()}, KIND)

    def due(every_steps: int) -> bool:
        return every_steps > 0 and training.step // every_steps != (training.step - config.num_envs) // every_steps

    show_progress(training, run)
    if not going_on:
        log_pictures(training.learner.network, training.obs, training.env.frame_channels, run, training.step)
        save()
    window = Window(training)
    reached = stopping = False
    while training.step < config.steps and not stopping:
        training.turn()
        if due(config.log_every_steps):
            log_metrics(training, run, window)
            window = Window(training)
        if due(config.eval_every_steps) or looks_good(training):
            reached = world.is_main and evaluate_and_show(training, run)
            window = Window(training)
        if due(config.checkpoint_every_steps) or training.replay.crowded:
            save()
        stopping = world.any(reached or bool(run.stop_requested), compute.torch_device)
    if run.stop_requested:
        run.say(f"{run.stop_requested}: saving")
    save()
    if training.last_score is not None:
        run.hparams(to_dict(config), {"hparam/eval_return": training.last_score})
    return closing_line(training, reached)


class Window:
    """What the clock and the counters said when the stretch began that a line of metrics is about."""

    def __init__(self, training: Training) -> None:
        self.step, self.began, self.seconds = training.step, time.perf_counter(), dict(training.seconds)


def looks_good(training: Training) -> bool:
    """Whether training games promise `stop_at_return`, so that an evaluation before its time is worth its price."""
    config, recent = training.config, list(training.returns)[-20:]
    if config.stop_at_return is None or len(recent) < 20 or training.step - training.evaluated_at < 20_000:
        return False
    return float(np.mean(recent)) >= config.stop_at_return - 0.5


def evaluate_and_show(training: Training, run: Run) -> bool:
    """Evaluate, film, and say so. Whether the aim is reached: by this evaluation, and by fresh games to confirm it."""
    config = training.config
    scores = training.play(config)
    training.last_score, training.evaluated_at = scores.mean, training.step
    training.best_score = max(scores.mean, training.best_score if training.best_score is not None else -np.inf)
    length = float(np.mean(scores.lengths))
    run.log(training.step, {"eval/return": scores.mean, "eval/length": length, "speed/hours": training.clock()})
    run.say(
        f"step {training.step:,}: {in_words(scores)} over {len(scores.returns)} games at epsilon {config.eval_epsilon}"
    )
    log_pictures(training.learner.network, training.obs, training.env.frame_channels, run, training.step)
    reached = config.stop_at_return is not None and scores.mean >= config.stop_at_return
    if reached:
        fresh = training.play(config, fresh=1)
        run.log(training.step, {"eval/return_confirmed": fresh.mean})
        run.say(f"step {training.step:,}: {in_words(fresh)} over {len(fresh.returns)} fresh games to confirm it")
        reached = fresh.mean >= (config.stop_at_return or 0)
    if config.video:
        log_film(training.policy, config, run, training.step)
    return reached


def log_metrics(training: Training, run: Run, window: Window) -> None:
    """One line of metrics. Values that are still on the device stay there until the next flush."""
    elapsed = time.perf_counter() - window.began
    scalars: dict[str, Any] = {
        "train/epsilon": training.epsilon,
        "train/games": training.games,
        "train/updates": training.updates,
        "replay/fill": len(training.replay) / training.config.replay_capacity,
        "speed/hours": training.clock(),
        "speed/steps_per_s": (training.step - window.step) / elapsed,
        **{f"speed/{part}_share": (s - window.seconds[part]) / elapsed for part, s in training.seconds.items()},
    }
    if training.returns:
        scalars["train/return"] = float(np.mean(training.returns))
        scalars["train/length"] = float(np.mean(training.lengths))
    if training.updates:
        scalars |= training.learner.read_metrics()
    run.log(training.step, scalars)
    run.flush()
    show_progress(training, run, scalars)


def show_progress(training: Training, run: Run, scalars: dict[str, Any] | None = None) -> None:
    """The progress bar, or a plain line where there is no terminal."""
    scalars = scalars or {}
    fields: dict[str, Any] = {
        "frames": training.step * (training.env.settings.get("frame_skip") or 1),
        "games": training.games,
        "return": scalars.get("train/return", float("nan")),
        "epsilon": training.epsilon,
        "loss": scalars.get("train/loss", float("nan")),
        "steps/s": scalars.get("speed/steps_per_s", float("nan")),
    }
    run.progress(training.step, training.config.steps, fields)


def in_words(values: Mapping[str, Any] | Scores) -> str:
    """Settings or scores for a line of text."""
    if isinstance(values, Scores):
        cut = f", {values.cut} cut for length" if values.cut else ""
        return f"mean raw return {values.mean:.2f} (standard error {values.standard_error:.2f}{cut})"
    return ", ".join(f"{key} {value}" for key, value in values.items())


def closing_line(training: Training, reached: bool) -> str:
    """What was reached, and the command that goes on from there."""
    config = training.config
    score = f"evaluation {training.last_score:.2f}" if training.last_score is not None else "not evaluated yet"
    if training.returns:
        score += f", last {len(training.returns)} games {np.mean(training.returns):.2f}"
    if reached or training.step >= config.steps:
        going_on = f"watch it with: python -m agents.play runs/{config.name}"
    else:
        going_on = f"go on with: python -m agents.dqn --name {config.name} --resume"
    return f"{config.env} at step {training.step:,}: {score}; {going_on}"


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The config of the command line; with --resume, the run's own, which the command line must not contradict.

    Raises:
        UserError: as `core.configure.configure`.
    """
    return configure(Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE)


def default_name(config: Config) -> str:
    """dqn-Pong-v5-fast-1 for ALE/Pong-v5, preset fast, seed 1."""
    return f"{KIND}-{config.env.split('/')[-1]}-{config.preset}-{config.seed}"


def choose_compute(config: Config, world: World) -> Compute:
    """Measure updates on made-up data of the right shape, in a corner of the random numbers of their own."""
    channels = config.stack * (1 if config.grey else 3)
    shape = (channels, config.image_size, config.image_size)
    batch = config.batch_size // world.size

    def train_step(candidate: Compute) -> Any:
        pixels = torch.randint(256, (2, batch, *shape), dtype=torch.uint8).to(candidate.torch_device)
        ones = torch.ones(batch, device=candidate.torch_device)
        made_up = Batch(pixels[0], ones.long(), ones, ones, pixels[1], ones)
        return Learner(config, shape, 6, candidate, World(), lambda: made_up).update

    with torch.random.fork_rng():
        return Compute.choose(
            device=config.device,
            precision=config.precision,
            compile=config.compile,
            threads=config.threads,
            train_step=train_step,
            local_world_size=world.size,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, run, compute, loop, closing line."""
    config = read_config(argv)
    world = World.from_env(config.device)
    for field in ("num_envs", "batch_size"):
        if getattr(config, field) % world.size:
            raise UserError(
                f"{flag(field)} {getattr(config, field)} cannot be shared by {world.size} processes evenly."
            )
    with Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run:
        if "compute" not in run.extra:
            run.progress(0, config.steps, {"measuring": "what is fastest here"})
            run.remember(compute=choose_compute(config, world).to_dict() if world.is_main else {})
        compute = Compute(**run.extra["compute"])
        compute.apply()
        run.say(f"compute: {compute.reason}")
        with run.signals():
            run.close(train(config, run, compute, world))
    world.close()


if __name__ == "__main__":
    entry(main)
