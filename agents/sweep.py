r"""Sweep: search settings of an agent, with Optuna.

    python -m agents.sweep learning_rate=log:1e-5..1e-3 n_step=1..5 head=q,c51 --trials 30 --jobs 2 \
        -- --env zerokara/Catch-v0 --total-steps 50000 --eval-every-steps 5000

What is searched comes first, then the sweep's own flags, and after two dashes the agent's command line, which all
trials share. Each trial is a real run of agents.dqn or agents.pqn, one for each seed, one after the other; its learning
curve is read while it goes, and a trial that falls behind is stopped. The first trial has the settings as they stand,
where they lie in what is searched. Settings are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011).

Everything lies in runs/<name>/: study.db (Optuna's, SQLite), runs/ (a run folder for each trial and seed), logs/,
trials.csv, history.png, importance.png. Killed or stopped, the same command goes on. docs/sweep.md says the rest.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.trial import TrialState

from zerokara.agents.sweeping.config import KIND, Config, check_it_goes_on, objective_in_words, read_command_line
from zerokara.agents.sweeping.report import table, write_report
from zerokara.agents.sweeping.search_space import AGENTS, Agent, Dimension, in_words, words_of
from zerokara.agents.sweeping.trial import DIVERGED, Child, worth
from zerokara.core.config import UserError, error_summary, run_main
from zerokara.core.machine import describe_machine
from zerokara.core.programs import program, program_command
from zerokara.core.run import Run

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
POLL_SECONDS = 0.5
MOST_FAILURES = 3  # one after the other, before the cause is taken for something else than the settings


class Attempt:
    """A trial that runs: which seed's turn it is, and what the seeds before were worth."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.worths: list[float] = list(trial.user_attrs.get("worths", []))
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self.reported = set(frozen.intermediate_values)  # agent steps, over all seeds
        self.child: Child | None = None
        self.pruned = False


class Sweep:
    """The study, and the trials that run.

    Args:
        agent: the entry that learns.
        given: its command line, as far as all trials share it.
        base: the config that this describes.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        study: optuna.Study,
        agent: Agent,
        given: Sequence[str],
        base: Any,
        space: Sequence[Dimension],
    ) -> None:
        self.config, self.run, self.study = config, run, study
        self.agent, self.given, self.base, self.space = agent, given, base, space
        self.evaluations = base.total_steps // base.eval_every_steps  # of a whole run
        self.threads = max(1, int(describe_machine()["cores_usable"] or 1) // config.jobs)  # of each run
        self.failures = 0  # one after the other
        self.active: list[Attempt] = []
        self.interrupted = deque(
            optuna.Trial(study, trial._trial_id)  # the one way back to a trial that another process began
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        )

    def search(self) -> None:
        """Run trials until there are enough, or somebody asks to stop. Every run has ended, and saved, behind it.

        Raises:
            UserError: runs that fail one after the other.
        """
        try:
            while not self.run.stop_requested:
                while len(self.active) < self.config.jobs and (trial := self._next_trial()):
                    self.active.append(Attempt(trial))
                if not self.active:
                    return
                self.active = [attempt for attempt in self.active if self._goes_on(attempt)]
                self._show()
                time.sleep(POLL_SECONDS)
            self.run.print(f"{self.run.stop_requested}: saving")
        finally:
            children = [attempt.child for attempt in self.active if attempt.child is not None]
            for child in children:
                child.stop()
            for child in children:
                child.wait()

    def count(self, *states: TrialState) -> int:
        """How many trials are in one of these states."""
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _next_trial(self) -> optuna.Trial | None:
        """A trial that has to run: one that was interrupted, or a new one; None where there are enough."""
        if self.interrupted:
            trial = self.interrupted.popleft()
            self._draw(trial)
            self.run.print(f"trial {trial.number} goes on: {in_words(self.space, trial.params)}")
            return trial
        while self.count(*COUNTED, TrialState.RUNNING) < self.config.trials:
            number = self.count(*COUNTED, TrialState.RUNNING, TrialState.FAIL)
            # Anew for each trial, so that a sweep that was interrupted draws what it would have drawn.
            self.study.sampler = optuna.samplers.TPESampler(seed=self.config.search_seed * 10_007 + number)
            trial = self.study.ask()
            self._draw(trial)
            if not self._is_settled(trial):
                self.run.print(f"trial {trial.number} begins: {in_words(self.space, trial.params)}")
                return trial
        return None

    def _draw(self, trial: optuna.Trial) -> None:
        for dimension in self.space:
            dimension.suggest(trial)

    def _words(self, trial: optuna.Trial) -> list[str]:
        """The agent's command line for a trial, without name and seed."""
        return [
            "--no-capture-video",
            "--threads",
            str(self.threads),
            *self.given,
            *words_of(self.space, trial.params, self.base),
        ]

    def _is_settled(self, trial: optuna.Trial) -> bool:
        """Whether a trial needs no run, because its settings contradict each other or were tried before."""
        try:
            self.agent.read_config(self._words(trial))
        except UserError as error:
            self._prune(trial, "refused")
            self.run.print(f"trial {trial.number} cannot be, with {in_words(self.space, trial.params)}: {error}")
            return True
        tried = self.study.get_trials(deepcopy=False, states=COUNTED)
        twin = next((other for other in tried if other.params == trial.params), None)
        if twin is None:
            return False
        self.run.print(f"trial {trial.number} has the settings of trial {twin.number}, and its value")
        trial.set_user_attr("why", f"as {twin.number}")
        if twin.last_step is not None:
            trial.report(twin.intermediate_values[twin.last_step], twin.last_step)
        if twin.state == TrialState.COMPLETE:
            self.study.tell(trial, twin.value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        return True

    def _goes_on(self, attempt: Attempt) -> bool:
        """Look at a trial: begin the run of its next seed, read its curve, stop it, finish it."""
        if len(attempt.worths) == self.config.seeds:
            value = fmean(attempt.worths)
            self.study.tell(attempt.trial, value)
            self.run.print(f"trial {attempt.trial.number} is complete: {value:.4g}")
            return False
        if attempt.child is None:
            seed = self.base.seed + len(attempt.worths)
            name = f"{attempt.trial.number}-seed-{seed}"
            words = [*self._words(attempt.trial), "--seed", str(seed)]
            attempt.child = Child(self.run.folder, self.agent.module, name, words)
        code = attempt.child.poll()  # before the curve, so that nothing of it is missed
        if attempt.pruned:
            if code is not None and not self.config.keep_replays:
                attempt.child.forget_replay()
            return code is None
        curve = attempt.child.curve(self.base.eval_every_steps)
        self._report(attempt, curve)
        if code is None or attempt.pruned:
            return True
        if code or max(curve, default=0) < self.evaluations:
            self._fail(attempt, attempt.child, code)
            return False
        self.failures = 0
        attempt.worths.append(worth(curve, self.config.objective))
        attempt.trial.set_user_attr("worths", attempt.worths)
        if not self.config.keep_replays:
            attempt.child.forget_replay()
        attempt.child = None
        return True

    def _report(self, attempt: Attempt, curve: Mapping[int, float]) -> None:
        """Tell the pruner what is new in a curve: what the trial would be worth if it ended there."""
        seed = len(attempt.worths)
        for number in sorted(curve):
            step = (seed * self.evaluations + min(number, self.evaluations)) * self.base.eval_every_steps
            if step in attempt.reported:
                continue
            attempt.reported.add(step)
            so_far = {k: value for k, value in curve.items() if k <= number}
            attempt.trial.report(fmean([*attempt.worths, worth(so_far, self.config.objective)]), step)
            through = seed + 1 == self.config.seeds and number >= self.evaluations
            if not through and attempt.trial.should_prune():
                self.run.print(f"trial {attempt.trial.number} is pruned after {step:,} steps")
                self._prune(attempt.trial, "pruned")
                attempt.pruned = True
                if attempt.child is not None:
                    attempt.child.stop()
                return

    def _prune(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _fail(self, attempt: Attempt, child: Child, code: int) -> None:
        """A run ended by itself before its time: it diverged, which its settings answer for, or something is wrong.

        Raises:
            UserError: it is not the first one.
        """
        number, words = attempt.trial.number, child.last_words().rstrip(".")
        if DIVERGED in words:
            self.run.print(f"trial {number} has diverged")
            self._prune(attempt.trial, "diverged")
            return
        self.study.tell(attempt.trial, state=TrialState.FAIL)
        self.failures += 1
        what = f"trial {number} ended before its time with exit code {code} ({child.log}): {words}"
        if self.failures == MOST_FAILURES:
            raise UserError(
                f"{self.failures} runs failed one after the other; {what}; mend that, and type the same command again."
            )
        self.run.warn(f"{what}; another one takes its place.")

    def _show(self) -> None:
        whole = self.config.seeds * self.base.total_steps
        done = self.count(*COUNTED)
        going = sum(max(attempt.reported, default=0) for attempt in self.active if not attempt.pruned)
        fields = {"trials": f"{done} of {self.config.trials}", "running": len(self.active), "best": best(self.study)}
        self.run.progress(min(done, self.config.trials) * whole + going, self.config.trials * whole, fields)


def best(study: optuna.Study) -> float:
    """The best value so far; NaN where no trial is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max((trial.value for trial in complete if trial.value is not None), default=math.nan)


def make_pruner(config: Config, base: Any) -> optuna.pruners.BasePruner:
    """What stops trials: in agent steps, those of a trial's seeds one behind the other."""
    every = base.eval_every_steps
    whole = base.total_steps // every * every
    if config.pruner == "median":
        warmup = round(config.unpruned_share * whole)
        return optuna.pruners.MedianPruner(n_startup_trials=config.unpruned_trials, n_warmup_steps=warmup)
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=every, max_resource=whole * config.seeds)
    return optuna.pruners.NopPruner()


def open_study(config: Config, base: Any, space: Sequence[Dimension], folder: Path) -> optuna.Study:
    """The study in folder/study.db, as it was left; a new one begins with the settings as they stand."""
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}"),
        study_name=config.name,
        direction="maximize",
        pruner=make_pruner(config, base),
        load_if_exists=True,
    )
    start = {dimension.key: dimension.find(getattr(base, dimension.name)) for dimension in space}
    if not study.get_trials(deepcopy=False) and None not in start.values():
        study.enqueue_trial(start)
    return study


def conclude(sweep: Sweep, words: Sequence[str]) -> str:
    """Write what was found, show it, and say what to do next."""
    config, run, study = sweep.config, sweep.run, sweep.study
    rows = write_report(study, sweep.space, run.folder)
    run.print(table(rows, sweep.space))
    if run.stop_requested and sweep.count(*COUNTED) < config.trials:
        done = f"{sweep.count(*COUNTED)} of {config.trials} trials are through"
        return f"{done}; go on with: {program()} {shlex.join(words)}"
    complete = sweep.count(TrialState.COMPLETE)
    if not complete:
        return f"No trial is complete: all {sweep.count(*COUNTED)} were refused, pruned or diverged; search less far."
    found = study.best_trial
    settings = [*sweep.given, *words_of(sweep.space, found.params, sweep.base)]
    run.print(f"best settings, trial {found.number}:\n{program_command(sweep.agent.module)} {shlex.join(settings)}")
    seeds = range(sweep.base.seed, sweep.base.seed + config.seeds)
    fresh = range(seeds.stop, seeds.stop + max(3, config.seeds))
    again = f"{program_command(sweep.agent.module)} {shlex.join(settings)} --seed $seed --name {config.name}-best-$seed"
    return (
        f"trial {found.number} of {len(rows)} is best with {found.value:.4g}, on the seeds that it was chosen by "
        f"({', '.join(map(str, seeds))}), which flatters it; confirm it on fresh ones: "
        f"for seed in {' '.join(map(str, fresh))}; do {again}; done"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The program: command line, folder, study, trials, what was found."""
    config, given, base, space = read_command_line(argv, __doc__ or "")
    folder = Path("runs") / config.name
    going_on = (folder / "config.json").exists()
    if going_on:
        check_it_goes_on(config, given, folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    extra = {"given": given}
    with Run(config, kind=KIND, name=config.name, resume=going_on, quiet=config.quiet, extra=extra) as run:
        run.print(objective_in_words(config, base))
        try:
            study = open_study(config, base, space, folder)
            with run.signals():
                sweep = Sweep(config, run, study, AGENTS[config.agent], given, base, space)
                sweep.search()
                run.close(conclude(sweep, sys.argv[1:] if argv is None else argv))
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise UserError(
                f"{folder / 'study.db'} cannot be read or written ({error_summary(error)}): free some space if the "
                f"disk is full; if the file is damaged, start a new sweep under another --name."
            ) from None


if __name__ == "__main__":
    run_main(main)
