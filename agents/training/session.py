"""What every agent's training keeps beside what it learns: games and their scores, evaluations, hours.

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
    """What every agent's learner says of itself."""

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""

    def is_finite(self) -> bool:
        """Whether every weight is a number."""


class Session(ABC):
    """The part of a checkpoint, and of the loop's state, that does not depend on how the agent learns.

    Args:
        num_envs: of this process.
        seed: of this process.
    """

    config: Settings
    learner: LearnerProtocol
    policy: Policy

    def __init__(self, config: Settings, num_envs: int, seed: int) -> None:
        self.config, self.num_envs, self.seed = config, num_envs, seed
        self.env = envs.make(config.env, num_envs, **config.env_settings())
        self.obs = np.empty(0)
        self.step = 0  # agent steps of all processes together
        self.updates = 0
        self.episodes = 0
        self.running_return_N = np.zeros(num_envs)
        self.running_length_N = np.zeros(num_envs, np.int64)
        self.returns: deque[float] = deque(maxlen=100)  # raw, of the last whole games
        self.lengths: deque[int] = deque(maxlen=100)
        self.last_score: float | None = None  # mean raw return of the last evaluation
        self.best_score: float | None = None
        self.last_evaluation_step = 0
        self.evaluation_pending = False  # a signal cut one short: it is played when the run goes on
        self.clock = Stopwatch()  # of all processes that wrote this run, evaluations included
        self.seconds = dict.fromkeys(("act", "emulate", "learn"), 0.0)
        self._eval_env: envs.VectorEnv | None = None  # making it takes seconds, so it is kept

    @property
    @abstractmethod
    def epsilon(self) -> float:
        """Probability of a random action at this step."""

    @property
    def mean_return(self) -> float | None:
        """Mean raw return of the last games, 100 at the most; None before the first has ended."""
        return float(np.mean(self.returns)) if self.returns else None

    def count(self, step: envs.Step) -> None:
        """Keep raw returns and lengths of whole games."""
        self.running_return_N += step.reward
        self.running_length_N += 1
        for i in np.flatnonzero(step.terminal | step.truncated):
            self.returns.append(float(self.running_return_N[i]))
            self.lengths.append(int(self.running_length_N[i]))
            self.episodes += 1
            self.running_return_N[i] = self.running_length_N[i] = 0

    def play(self, stop: Callable[[], object], fresh: int = 0) -> Scores:
        """Evaluate on games that training never sees; `fresh` chooses other ones.

        Raises:
            Stopped: `stop` said so.
        """
        config = self.config
        if self._eval_env is None:
            self._eval_env = envs.make(config.env, config.eval_episodes, **config.env_settings())
        seed = 500_000_000 + config.seed * 1_009 + fresh * 7_919 + self.step % 1_000_003
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
        """Tensors and plain values."""
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
        """Go on from `state_dict`."""
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
    """Put a run where its checkpoint `latest` says, or at its beginning. Whether it goes on from a checkpoint.

    Raises:
        UserError: a checkpoint that cannot be read.
    """
    resumed = run.restore(latest, session.load_state_dict)
    if not resumed:
        session.obs = session.env.reset(session.seed % 2**31)
        run.save_extra(environment=dict(session.env.settings))
    return resumed


def save(session: Session, run: Run, latest: Path) -> None:
    """Write the checkpoint `latest`.

    Raises:
        UserError: the weights are no numbers any more, or the disk is full; the checkpoint before stays.
    """
    if not session.learner.is_finite():
        raise divergence_error(f"step {session.step:,}", run.folder)
    run.save(latest, session.state_dict())


class LogInterval:
    """What the clock and the counters said when the stretch began that a line of metrics is about."""

    def __init__(self, session: Session) -> None:
        self.step, self.began, self.seconds = session.step, time.perf_counter(), dict(session.seconds)


def is_early_evaluation_due(session: Session) -> bool:
    """Whether training games promise `stop_at_return`, so that an evaluation before its time is worth its price."""
    config, recent = session.config, list(session.returns)[-20:]
    if config.stop_at_return is None or len(recent) < 20 or session.step - session.last_evaluation_step < 20_000:
        return False
    return float(np.mean(recent)) >= config.stop_at_return - 0.5


def evaluate_and_log(session: Session, run: Run) -> bool:
    """Evaluate, film, and say so. Whether the aim is reached: by this evaluation, and by fresh games to confirm it.

    A signal cuts it short; then nothing of it is kept, and the session owes it.
    """
    config = session.config

    def play(fresh: int, what: str) -> Scores:
        scores = session.play(lambda: run.stop_requested, fresh)
        run.print(f"step {session.step:,}: {in_words(scores)} over {len(scores.returns)} {what}")
        return scores

    session.evaluation_pending = True
    try:
        scores = play(0, f"games at epsilon {config.eval_epsilon}")
        reached = config.stop_at_return is not None and scores.mean >= config.stop_at_return
        fresh = play(1, "fresh games to confirm it") if reached else None
    except Stopped:
        return False
    session.evaluation_pending = False
    session.last_score, session.last_evaluation_step = scores.mean, session.step
    session.best_score = max(scores.mean, session.best_score if session.best_score is not None else -np.inf)
    figures = {"eval/return": scores.mean, "eval/length": float(np.mean(scores.lengths)), "eval/cut": scores.cut}
    if fresh is not None:
        figures |= {"eval/return_confirmed": fresh.mean, "eval/cut_confirmed": fresh.cut}
        reached = fresh.mean >= (config.stop_at_return or 0)
    run.log(session.step, {**figures, "speed/hours": session.clock()})
    log_images(session.policy.network, session.obs, session.env.frame_channels, run, session.step)
    if config.capture_video:
        log_video(session.policy, config, run, session.step)
    return reached


def log_metrics(session: Session, run: Run, interval: LogInterval, **more: Any) -> None:
    """One line of metrics. Values that are still on the device stay there until the next flush."""
    elapsed = time.perf_counter() - interval.began
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
    """The progress bar, or a plain line where there is no terminal."""
    scalars = scalars or {}
    fields: dict[str, Any] = {
        "frames": session.step * (session.env.settings.get("frame_skip") or 1),
        "games": session.episodes,
        "return": scalars.get("train/return", float("nan")),
        "epsilon": session.epsilon,
        "loss": scalars.get("train/loss", float("nan")),
        "steps/s": scalars.get("speed/steps_per_s", float("nan")),
    }
    run.progress(session.step, session.config.total_steps, fields)


def in_words(values: Mapping[str, Any] | Scores) -> str:
    """Settings or scores for a line of text."""
    if isinstance(values, Scores):
        cut = f", {values.cut} cut for length" if values.cut else ""
        return f"mean raw return {values.mean:.2f} (standard error {values.standard_error:.2f}{cut})"
    return ", ".join(f"{key} {value}" for key, value in values.items())


def closing_message(session: Session, reached: bool, entry: str) -> str:
    """What was reached, and the command that goes on from there.

    Args:
        entry: the program that trains, "agents.dqn".
    """
    config = session.config
    score = f"evaluation {session.last_score:.2f}" if session.last_score is not None else "not evaluated yet"
    if session.mean_return is not None:
        score += f", last {len(session.returns)} games {session.mean_return:.2f}"
    if reached or session.step >= config.total_steps:
        resumed = f"watch it with: {program_command('agents.play')} runs/{config.name}"
    else:
        resumed = f"go on with: {program_command(entry)} --name {config.name} --resume"
    return f"{config.env} at step {session.step:,}: {score}; {resumed}"
