"""Bookkeeping that all agents share: environments, returns, logging, evaluation, checkpoints, the end of a run.

A training program is a subclass of `Session`: it creates the parts of its algorithm, `register`s those that belong to a
checkpoint, and defines one iteration of its loop. `iterations` does the rest between two iterations:

    training.start()                       # from the last checkpoint, or from the beginning
    for _ in training.iterations():        # logs, evaluates and saves when due; ends after the last step
        training.iterate()                 # act, step, store, update
    run.close(training.closing_message())

Shapes: N environments.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from zerokara import envs
from zerokara.agents.configs.common import Settings
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.qlearning.replay import ALL, Rows
from zerokara.agents.qlearning.replay_deletion import delete_replays
from zerokara.agents.qlearning.traces import TraceLearner
from zerokara.agents.training.best_agent import BestAgent
from zerokara.agents.training.evaluation import Scores, evaluate, evaluate_in_processes, evaluation_metrics
from zerokara.agents.training.goal import Goal
from zerokara.agents.training.parts import Part, close_files, load_parts, load_parts_of_processes, part_states
from zerokara.agents.training.pictures import log_images, log_video
from zerokara.agents.training.report import bar_fields, closing_line, format_progress, format_scores, print_settings
from zerokara.agents.training.start import ITERATIONS_PER_VOTE, Resources, spaced_process_seed
from zerokara.agents.training.totals import Totals, gather_returns, gather_totals, print_warnings
from zerokara.core import checkpoint
from zerokara.core.config import Stopped, to_dict
from zerokara.core.distributed import Votes
from zerokara.core.divergence import check_finite
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.programs import is_restarted, program_command
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval, Stopwatch
from zerokara.core.zoo import provenance, registry


class Session(ABC):
    """Algorithm-independent part of a training run in one process.

    Args:
        config: config of the run; its environments are divided among the processes.
        run: run folder.
        resources: environments of this process, hardware settings, and processes that train together.
        program: name of the training program, such as "agents.dqn".
    """

    config: Settings
    learner: Learner | TraceLearner
    policy: Policy

    def __init__(self, config: Settings, run: Run, resources: Resources, program: str) -> None:
        self.config, self.run, self.program = config, run, program
        self.env, self.compute, self.world = resources.env, resources.compute, resources.world
        self.num_envs = config.total_envs // self.world.size
        self.seed = spaced_process_seed(config.seed, self.world)
        self.step = self.last_evaluation_step = 0  # agent steps, summed over all processes
        self.updates = self.episodes = 0
        self.running_return_N = np.zeros(self.num_envs)
        self.running_length_N = np.zeros(self.num_envs, np.int64)
        self.counted_N = np.ones(self.num_envs, bool)  # environments whose episodes enter `returns` and `lengths`
        self.returns, self.lengths = deque[float](maxlen=100), deque[int](maxlen=100)  # raw, of the last episodes
        self.last_score: float | None = None  # mean raw return of the last evaluation
        self.best, self.goal = BestAgent(run), Goal(config.stop_at_return)
        self.evaluation_pending = self.video_pending = False  # True after an interrupted one; repeated after resuming
        self.clock = Stopwatch()  # total time of the run over all restarts, including evaluations
        self.seconds = dict.fromkeys(("act", "emulate", "learn"), 0.0)  # since the start of the log interval
        self.interval, self.update_interval = LogInterval(0), LogInterval(0)
        self.resumed = self.goal_reached = False  # goal_reached: `stop_at_return` was reached
        self._parts: dict[str, Part] = {}
        self._eval_env: envs.VectorEnv | None = None  # reused, because creating it takes seconds
        self._at_end = contextlib.ExitStack()  # closes it

    def register(self, **parts: Part) -> None:
        """Add parts of the algorithm to the checkpoints, under their names."""
        self._parts |= parts

    @property
    @abstractmethod
    def epsilon(self) -> float:
        """Probability of a random action at this step.

        With ez-greedy exploration, the probability that a random action starts, which is then repeated for some steps.
        """

    # ---- one iteration

    @property
    def obs(self) -> np.ndarray:
        """Current observations (N, C, H, W): those of `latest`, which are stacked when they are first asked for."""
        return self.latest.obs

    @obs.setter
    def obs(self, obs: np.ndarray) -> None:
        self.latest = envs.Step.first(obs, self.env.frame_channels)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time inside the block to `part` of an iteration: "act", "learn" or "emulate"."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def record(self, step: envs.Step, rows: Rows = ALL) -> None:
        """Make the observations of a step current, and record raw returns and lengths of episodes that ended."""
        self.print_warnings()
        self.latest = step
        self.step += self.config.num_envs
        self.running_return_N[rows] += step.reward
        self.running_length_N[rows] += 1
        ended = np.arange(self.num_envs)[rows][step.terminal | step.truncated]
        counted = ended[self.counted_N[ended]]
        self.goal.record(self.running_return_N[counted].tolist())
        self.returns.extend(self.running_return_N[counted].tolist())
        self.lengths.extend(self.running_length_N[counted].tolist())
        self.episodes += len(ended)
        self.running_return_N[ended] = self.running_length_N[ended] = 0

    def end_episodes(self, rows: Rows = ALL) -> None:
        """Forget the unfinished episodes, because the environments of a resumed run have started new ones."""
        self.running_return_N[rows] = self.running_length_N[rows] = 0

    # ---- between iterations

    def start(self, pretrained_backbone: str = "") -> None:
        """Restore the last checkpoint, or reset the environments if there is none.

        Args:
            pretrained_backbone: run folder, weights file or name of a network of the zoo, from which the backbone of a
                new run is initialized; empty: random initialization.

        Raises:
            UserError: the checkpoint or the weights cannot be read.
        """
        self.print_warnings()
        self.resumed = self.run.restore(self.run.checkpoint_path, self.load_state_dict, self.load_processes)
        self.print_warnings()
        if self.resumed:
            results = self.last_score, self.last_evaluation_step, self.best.state_dict()
            # In older releases, only the first process evaluated.
            self.last_score, self.last_evaluation_step, best = self.world.broadcast_value(results)
            self.best.load_state_dict(best)
            return
        self.obs = self.env.reset(self.seed % 2**31)
        self.run.save_extra(environment=self.env.saved_settings())
        if pretrained_backbone:
            weights = registry.find_weights(pretrained_backbone)
            self.run.print(str(load_pretrained_backbone(self.learner.network.backbone, weights)))
            provenance.record(self.run, pretrained_backbone)
            if not isinstance(self.learner, TraceLearner):  # which has no copies of the weights
                self.learner.update_copies()

    def print_warnings(self) -> None:
        """Print the messages of the environments of the main process; those of others wait for the next log entry."""
        while self.world.is_main and self.env.warnings:
            self.run.warn(self.env.warnings.pop(0))

    def print_settings(self, **more: Any) -> None:
        """Print differences from paper and preset, and the settings of the environment with those of `more`."""
        print_settings(self.run, self.config, {**self.env.settings, **more}, new=not self.resumed)

    def iterations(
        self,
        more_metrics: Callable[[], Mapping[str, Any]] = dict,
        checkpoint_needed: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Yield before each iteration of the training loop, and log, evaluate and save between iterations.

        Ends after `total_steps`, where a last evaluation is done, when `stop_at_return` is reached, or after a signal;
        then the run is saved. The replay buffer of a finished run is deleted (`delete_replay`).

        Args:
            more_metrics: returns metrics of the algorithm for a log entry.
            checkpoint_needed: returns True if a checkpoint must be saved before it is due.

        Raises:
            UserError: training diverged (the weights contain NaN or Inf), or the disk is full.
        """
        config, run, world, device = self.config, self.run, self.world, self.compute.torch_device
        with run.interruptible(on=False), self._at_end:
            self.show_progress()
            if not self.resumed:
                log_images(self.policy.network, self.obs, self.env.frame_channels, run, self.step)
                self.save()
            if world.broadcast_value(self.evaluation_pending):
                self.goal_reached = self.evaluate_and_log()
            if world.is_main and self.video_pending:
                self.video_pending = not log_video(self.policy, config, run, self.step)
            self.start_interval()

            def due(every_steps: int) -> bool:
                return every_steps > 0 and self.step // every_steps != before // every_steps

            self.goal_reached = world.any(self.goal_reached, device)
            stop: float = world.any(self.goal_reached or bool(run.stop_requested), device)
            votes = Votes(world, device, most_calls=ITERATIONS_PER_VOTE)
            while self.step < config.total_steps and not stop:
                before = self.step
                yield
                if self.updates:
                    run.record_position(self.step, config.total_steps)
                if due(config.log_every_steps):
                    self.log_metrics(more_metrics())
                    self.start_interval()
                if evaluates := due(config.eval_every_steps) or self.is_early_evaluation_due():
                    self.goal_reached = self.evaluate_and_log()
                    self.start_interval()
                stops = self.goal_reached or bool(run.stop_requested)
                stop, save = votes(stops, checkpoint_needed(), now=evaluates)
                # The processes save together, so that they have checkpoints of the same steps.
                if due(config.checkpoint_every_steps) or save:
                    self.save()
            complete = self.step >= config.total_steps
            if world.broadcast_value(complete and not (self.is_finished or run.stop_requested)):
                self.goal_reached = self.evaluate_and_log()
            if not world.broadcast_value(self.is_finished):
                run.print_stop()
            print_warnings(world, self.env.warnings, run.warn)
            self.save()
            world.barrier()  # a process that is killed before it has saved needs its replay buffer again
            if world.is_main and self.is_finished and getattr(config, "delete_replay", False):
                close_files(self._parts)
                delete_replays(run.folder, run.warn)
            logged = {"eval/return": self.last_score is not None, "train/return": gather_returns(world, self.returns)}
            run.hparams(to_dict(config), [name for name, is_known in logged.items() if is_known])

    @property
    def is_finished(self) -> bool:
        """True if the run has reached its goal or its last step, with evaluation and, in the main process, video."""
        evaluated = not self.config.eval_every_steps or self.last_evaluation_step == self.step
        at_end = self.goal_reached or (self.step >= self.config.total_steps and evaluated)
        return at_end and not (self.evaluation_pending or self.video_pending)

    # ---- evaluation

    def is_early_evaluation_due(self) -> bool:
        """Return True if the training returns of a process are near `stop_at_return`. Every process must call this."""
        every = self.config.num_envs * (1 if self.world.size == 1 else ITERATIONS_PER_VOTE)  # steps between comparisons
        may_be = self.goal.allows(self.step - self.last_evaluation_step) and self.step % every < self.config.num_envs
        return may_be and self.world.any(self.goal.is_near(list(self.returns)), self.compute.torch_device)

    def evaluate(self, repetition: int = 0, record: Callable[[], object] = lambda: None) -> Scores:
        """Evaluate the policy in separate environments with other seeds than in training. All processes take part.

        Args:
            repetition: another number gives other seeds.
            record: records a video in the main process, while the others evaluate.

        Raises:
            Stopped: a signal interrupted the evaluation.
        """
        config, world = self.config, self.world
        seed = 500_000_000 + config.seed * 1_009 + repetition * 7_919 + self.step % 1_000_003 + world.rank * 10_007

        def evaluate_shard(episodes: int) -> Scores:
            if self._eval_env is None:
                self._eval_env = envs.make(config.env, episodes, resumable=False, **config.env_settings())
                self._at_end.callback(self._eval_env.close)
            env, epsilon, max_steps = self._eval_env, config.eval_epsilon, config.eval_max_steps
            with self.run.interruptible():
                return evaluate(self.policy, env, episodes_per_env=1, epsilon=epsilon, max_steps=max_steps, seed=seed)

        return evaluate_in_processes(world, config.eval_episodes, evaluate_shard, record)

    def evaluate_and_log(self) -> bool:
        """Evaluate, keep the weights if they are the best so far, log the results, and record a video.

        Return True if `stop_at_return` is reached in this evaluation and in a second one that confirms it. A signal
        interrupts an evaluation; it is then discarded, and repeated after resuming. A single process saves the results
        before it records; of several, the first one records while the others evaluate.

        Raises:
            UserError: training diverged (the weights contain NaN or Inf), or the disk is full.
        """
        config, goal, is_alone = self.config, self.config.stop_at_return, self.world.size == 1

        def record_video() -> None:
            self.video_pending = config.capture_video and not log_video(self.policy, config, self.run, self.step)

        def evaluate_and_print(repetition: int, what: str) -> Scores:
            scores = self.evaluate(repetition, lambda: None if is_alone or repetition else record_video())
            self.run.print(f"step {self.step:,}: {format_scores(scores)} over {len(scores.returns)} {what}")
            return scores

        self.evaluation_pending = True
        try:
            scores = evaluate_and_print(0, f"episodes at epsilon {config.eval_epsilon}")
            confirms = goal is not None and scores.mean >= goal
            confirmation = evaluate_and_print(1, "further episodes to confirm it") if confirms else None
        except Stopped:
            return False
        self.evaluation_pending = False
        self.last_score, self.last_evaluation_step = scores.mean, self.step
        metrics = evaluation_metrics(scores, confirmation)
        goal_reached = goal is not None and confirmation is not None and confirmation.mean >= goal
        check_finite(self.learner.network, f"step {self.step:,}", self.run.folder)
        weights, figures, env = self.learner.network.state_dict(), {**metrics, "train/updates": self.updates}, self.env
        self.best.update(weights, figures, num_actions=env.num_actions, step=self.step, obs_shape=env.obs_shape)
        if self.world.is_main:
            self.run.log(self.step, {**metrics, "speed/hours": self.clock()})
            log_images(self.policy.network, self.obs, self.env.frame_channels, self.run, self.step)
        if is_alone and config.capture_video:
            self.goal_reached, self.video_pending = goal_reached, True
            self.save()
            record_video()
        return goal_reached

    # ---- logging

    def start_interval(self) -> None:
        """Start the interval that the next log entry covers."""
        self.interval, self.update_interval = LogInterval(self.step), LogInterval(self.updates)
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def log_metrics(self, more: Mapping[str, Any]) -> None:
        """Log training metrics of all processes; every process must call this. Speeds are those of the main process.

        In a single one, tensors on the device are not transferred before the next flush.
        """
        elapsed = self.interval.seconds()
        print_warnings(self.world, self.env.warnings, self.run.warn)
        own = Totals(
            {"train/games": self.episodes, "env/errors": self.env.errors},
            list(self.returns),
            list(self.lengths),
            self.learner.read_metrics() if self.updates else {},
        )
        totals = gather_totals(self.world, own)
        if self.config.env_errors != "restart":
            del totals.sums["env/errors"]
        scalars: dict[str, Any] = {
            "train/epsilon": self.epsilon,
            **totals.sums,
            "train/updates": self.updates,
            **more,
            "speed/hours": self.clock(),
            "speed/steps_per_s": self.interval.per_second(self.step),
            **{f"speed/{part}_share": seconds / elapsed for part, seconds in self.seconds.items()},
            **totals.learner,
        }
        if totals.returns:
            scalars["train/return"] = float(np.mean(totals.returns))
            scalars["train/length"] = float(np.mean(totals.lengths))
        self.run.log(self.step, scalars)
        self.run.flush()
        self.show_progress(scalars)

    def show_progress(self, scalars: dict[str, Any] | None = None) -> None:
        """Update the progress bar, or print a line if the output is not a terminal."""
        episodes = (scalars or {}).get("train/games", self.episodes)
        fields = bar_fields(self.env.settings, self.step, episodes, self.epsilon, scalars or {})
        self.run.progress(self.step, self.config.total_steps, fields)

    def closing_message(self) -> str:
        """Return the last returns of all processes, which all call this, and the command to resume or to watch."""
        returns = gather_returns(self.world, self.returns)
        scores = format_progress(self.last_score, self.best.score, self.best.step, returns, self.updates)
        resume = "" if self.is_finished else self.run.resume_command(program_command(self.program))
        return closing_line(self.config.env, self.step, scores, self.config.name, resume)

    # ---- checkpoints

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            UserError: training diverged (the weights contain NaN or Inf), or the disk is full; the previous checkpoint
                is kept.
        """
        check_finite(self.learner.network, f"step {self.step:,}", self.run.folder)
        self.run.save(self.run.checkpoint_path, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as tensors and plain values."""
        return {
            "env": self.env.state_dict(),
            "num_actions": self.env.num_actions,
            "obs_shape": list(self.env.obs_shape),
            "step": self.step,
            "updates": self.updates,
            "games": self.episodes,
            "running_return": self.running_return_N.tolist(),
            "running_length": self.running_length_N.tolist(),
            "returns": list(self.returns),
            "first_returns": self.goal.first_returns,
            "lengths": list(self.lengths),
            "last_score": self.last_score,
            "evaluated_at": self.last_evaluation_step,
            "owes_evaluation": self.evaluation_pending,
            "goal_reached": self.goal_reached,
            "best": self.best.state_dict(),
            "owes_video": self.video_pending,
            "hours": self.clock(),
            **part_states(self._parts),
            "rng": checkpoint.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.obs = self.env.load_state_dict(state["env"])
        self._load_counters(state)
        self.running_return_N = np.array(state["running_return"])
        self.running_length_N = np.array(state["running_length"], np.int64)
        load_parts(self._parts, state)
        if self.env.episodes_restarted:
            self.end_episodes()
        checkpoint.set_rng_state(state["rng"])

    def load_processes(self, states: Mapping[int, dict[str, Any]]) -> str:
        """Restore the state from checkpoints of other processes, as `Run.restore` describes it.

        The environments are divided in another way, so that they start new episodes. Random numbers are drawn anew.
        """
        state = states.get(self.world.rank, {**states[0], "games": 0, "returns": [], "lengths": []})
        self._load_counters(state)
        if self.world.is_main:  # and the episodes of processes that there are no longer
            self.episodes += sum(other["games"] for number, other in states.items() if number >= self.world.size)
        load_parts_of_processes(self._parts, states, self.world.rank, self.step)
        self.obs = self.env.reset(checkpoint.later_seed(self.seed, self.step) % 2**31)
        self.end_episodes()
        checkpoint.set_rng_state(state["rng"])
        return "the environments start new episodes, and random numbers are drawn anew"

    def _load_counters(self, state: Mapping[str, Any]) -> None:
        """Restore steps, updates, returns of past episodes, evaluations and time."""
        self.step, self.updates, self.episodes = state["step"], state["updates"], state["games"]
        self.returns.extend(state["returns"])
        self.goal.record(state.get("first_returns", state["returns"]))  # missing in older checkpoints
        self.lengths.extend(state["lengths"])
        self.last_evaluation_step, self.evaluation_pending = state["evaluated_at"], state["owes_evaluation"]
        if "best" in state:  # not in checkpoints of 0.1
            self.best.load_state_dict(state["best"])
        self.last_score = state["last_score"]
        self.video_pending = self.config.capture_video and state.get("owes_video", False)  # new in 0.2
        # --resume continues a run beyond its goal; a restart by torchrun, or of a run without its last video, does not.
        self.goal_reached = (is_restarted() or self.video_pending) and state.get("goal_reached", False)
        self.clock.hours = state["hours"]
