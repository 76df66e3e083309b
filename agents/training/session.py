"""Training state and logging that all agents share: episodes, returns, evaluations, elapsed time.

Shapes: N environments.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from zerokara import envs
from zerokara.agents.configs.common import Settings
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.training.evaluation import Scores, Stopped, evaluate
from zerokara.agents.training.pictures import log_images, log_video
from zerokara.core.divergence import divergence_error
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.stopwatch import Stopwatch


class LearnerProtocol(Protocol):
    """Interface of the learners of all agents."""

    def read_metrics(self) -> dict[str, Tensor]:
        """Means of the training metrics since the last call, as tensors on the device."""

    def is_finite(self) -> bool:
        """Return True if all weights are finite."""


class Session(ABC):
    """Algorithm-independent part of the state of a training run.

    Args:
        config: config of the run.
        num_envs: number of environments of this process.
        seed: seed of this process.
    """

    config: Settings
    learner: LearnerProtocol
    policy: Policy

    def __init__(self, config: Settings, num_envs: int, seed: int) -> None:
        self.config, self.num_envs, self.seed = config, num_envs, seed
        self.env = envs.make(config.env, num_envs, **config.env_settings())
        self.obs = np.empty(0)
        self.step = 0  # agent steps, summed over all processes
        self.updates = 0
        self.episodes = 0
        self.running_return_N = np.zeros(num_envs)
        self.running_length_N = np.zeros(num_envs, np.int64)
        self.returns: deque[float] = deque(maxlen=100)  # raw, of the last complete episodes
        self.lengths: deque[int] = deque(maxlen=100)
        self.last_score: float | None = None  # mean raw return of the last evaluation
        self.best_score: float | None = None
        self.last_evaluation_step = 0
        self.evaluation_pending = False  # True after an interrupted evaluation; it is repeated after resuming
        self.clock = Stopwatch()  # total time of the run over all restarts, including evaluations
        self.seconds = dict.fromkeys(("act", "emulate", "learn"), 0.0)
        self._eval_env: envs.VectorEnv | None = None  # reused, because creating it takes seconds

    @property
    @abstractmethod
    def epsilon(self) -> float:
        """Probability of a random action at this step."""

    @property
    def mean_return(self) -> float | None:
        """Mean raw return of the last 100 episodes (or fewer); None before the end of the first episode."""
        return float(np.mean(self.returns)) if self.returns else None

    def record_episodes(self, step: envs.Step) -> None:
        """Accumulate rewards, and record the raw returns and lengths of episodes that ended in this step."""
        self.running_return_N += step.reward
        self.running_length_N += 1
        for i in np.flatnonzero(step.terminal | step.truncated):
            self.returns.append(float(self.running_return_N[i]))
            self.lengths.append(int(self.running_length_N[i]))
            self.episodes += 1
            self.running_return_N[i] = self.running_length_N[i] = 0

    def evaluate(self, stop: Callable[[], object], repetition: int = 0) -> Scores:
        """Evaluate the policy in separate environments with other seeds than in training.

        Args:
            stop: called before every step; a true result interrupts the evaluation.
            repetition: another number gives other seeds.

        Raises:
            Stopped: `stop` returned a true value.
        """
        config = self.config
        if self._eval_env is None:
            self._eval_env = envs.make(config.env, config.eval_episodes, **config.env_settings())
        seed = 500_000_000 + config.seed * 1_009 + repetition * 7_919 + self.step % 1_000_003
        return evaluate(
            self.policy,
            self._eval_env,
            episodes_per_env=1,
            epsilon=config.eval_epsilon,
            max_steps=config.eval_max_steps,
            seed=seed,
            stop=stop,
        )

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as tensors and plain values."""
        return {
            "env": self.env.state_dict(),
            "num_actions": self.env.num_actions,
            "step": self.step,
            "updates": self.updates,
            "games": self.episodes,
            "running_return": self.running_return_N.tolist(),
            "running_length": self.running_length_N.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "last_score": self.last_score,
            "best_score": self.best_score,
            "evaluated_at": self.last_evaluation_step,
            "owes_evaluation": self.evaluation_pending,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.obs = self.env.load_state_dict(state["env"])
        self.step, self.updates, self.episodes = state["step"], state["updates"], state["games"]
        self.running_return_N = np.array(state["running_return"])
        self.running_length_N = np.array(state["running_length"], np.int64)
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])
        self.last_score, self.best_score = state["last_score"], state["best_score"]
        self.last_evaluation_step, self.evaluation_pending = state["evaluated_at"], state["owes_evaluation"]
        self.clock.hours = state["hours"]


def restore_or_reset(session: Session, run: Run, latest: Path) -> bool:
    """Restore the checkpoint `latest`, or reset the environments if there is none. Return True if restored.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    resumed = run.restore(latest, session.load_state_dict)
    if not resumed:
        session.obs = session.env.reset(session.seed % 2**31)
        run.save_extra(environment=dict(session.env.settings))
    return resumed


def save(session: Session, run: Run, latest: Path) -> None:
    """Write the checkpoint `latest`.

    Raises:
        UserError: training diverged (the weights contain NaN or Inf), or the disk is full; the previous checkpoint is
            kept.
    """
    if not session.learner.is_finite():
        raise divergence_error(f"step {session.step:,}", run.folder)
    run.save(latest, session.state_dict())


class LogInterval:
    """Start of the interval that a log entry describes: step, time, and seconds spent in each part of the loop."""

    def __init__(self, session: Session) -> None:
        self.step, self.start_time, self.seconds = session.step, time.perf_counter(), dict(session.seconds)


def is_early_evaluation_due(session: Session) -> bool:
    """Return True if recent training returns are near `stop_at_return`, so that an early evaluation is worthwhile."""
    config, recent = session.config, list(session.returns)[-20:]
    if config.stop_at_return is None or len(recent) < 20 or session.step - session.last_evaluation_step < 20_000:
        return False
    return float(np.mean(recent)) >= config.stop_at_return - 0.5


def evaluate_and_log(session: Session, run: Run) -> bool:
    """Evaluate, log the results, and record a video.

    Return True if `stop_at_return` is reached in this evaluation and in a second one that confirms it. A signal
    interrupts the evaluation; it is then discarded and repeated after resuming.
    """
    config = session.config

    def evaluate_and_print(repetition: int, what: str) -> Scores:
        scores = session.evaluate(lambda: run.stop_requested, repetition)
        run.print(f"step {session.step:,}: {format_scores(scores)} over {len(scores.returns)} {what}")
        return scores

    session.evaluation_pending = True
    try:
        scores = evaluate_and_print(0, f"episodes at epsilon {config.eval_epsilon}")
        goal_reached = config.stop_at_return is not None and scores.mean >= config.stop_at_return
        confirmation = evaluate_and_print(1, "further episodes to confirm it") if goal_reached else None
    except Stopped:
        return False
    session.evaluation_pending = False
    session.last_score, session.last_evaluation_step = scores.mean, session.step
    session.best_score = max(scores.mean, session.best_score if session.best_score is not None else -np.inf)
    metrics = {"eval/return": scores.mean, "eval/length": float(np.mean(scores.lengths)), "eval/cut": scores.cut}
    if confirmation is not None:
        metrics |= {"eval/return_confirmed": confirmation.mean, "eval/cut_confirmed": confirmation.cut}
        goal_reached = confirmation.mean >= (config.stop_at_return or 0)
    run.log(session.step, {**metrics, "speed/hours": session.clock()})
    log_images(session.policy.network, session.obs, session.env.frame_channels, run, session.step)
    if config.capture_video:
        log_video(session.policy, config, run, session.step)
    return goal_reached


def log_metrics(session: Session, run: Run, interval: LogInterval, **more: Any) -> None:
    """Log training metrics. Tensors on the device are not transferred before the next flush."""
    elapsed = time.perf_counter() - interval.start_time
    scalars: dict[str, Any] = {
        "train/epsilon": session.epsilon,
        "train/games": session.episodes,
        "train/updates": session.updates,
        **more,
        "speed/hours": session.clock(),
        "speed/steps_per_s": (session.step - interval.step) / elapsed,
        **{f"speed/{part}_share": (s - interval.seconds[part]) / elapsed for part, s in session.seconds.items()},
    }
    if session.mean_return is not None:
        scalars["train/return"] = session.mean_return
        scalars["train/length"] = float(np.mean(session.lengths))
    if session.updates:
        scalars |= session.learner.read_metrics()
    run.log(session.step, scalars)
    run.flush()
    show_progress(session, run, scalars)


def show_progress(session: Session, run: Run, scalars: dict[str, Any] | None = None) -> None:
    """Update the progress bar, or print a line if the output is not a terminal."""
    scalars = scalars or {}
    fields: dict[str, Any] = {
        "frames": session.step * (session.env.settings.get("frame_skip") or 1),
        "episodes": session.episodes,
        "return": scalars.get("train/return", float("nan")),
        "epsilon": session.epsilon,
        "loss": scalars.get("train/loss", float("nan")),
        "steps/s": scalars.get("speed/steps_per_s", float("nan")),
    }
    run.progress(session.step, session.config.total_steps, fields)


def format_scores(scores: Scores) -> str:
    """Format scores as text: "mean raw return 18.20 (standard error 0.41)"."""
    cut = f", {scores.cut} cut for length" if scores.cut else ""
    return f"mean raw return {scores.mean:.2f} (standard error {scores.standard_error:.2f}{cut})"


def format_settings(settings: Mapping[str, Any]) -> str:
    """Format settings as text: "protocol nature, frame_skip 4"."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def closing_message(session: Session, goal_reached: bool, entry: str) -> str:
    """Closing message: the last returns, and the command to resume the run or to watch the agent.

    Args:
        session: state of the run.
        goal_reached: True if `stop_at_return` was reached.
        entry: name of the training program, such as "agents.dqn".
    """
    config = session.config
    score = f"evaluation {session.last_score:.2f}" if session.last_score is not None else "not evaluated yet"
    if session.mean_return is not None:
        score += f", last {len(session.returns)} training episodes {session.mean_return:.2f}"
    if goal_reached or session.step >= config.total_steps:
        next_command = f"watch it with: {program_command('agents.play')} runs/{config.name}"
    else:
        next_command = f"resume with: {program_command(entry)} --name {config.name} --resume"
    return f"{config.env} at step {session.step:,}: {score}; {next_command}"
