r"""Search hyperparameters of an agent with Optuna.

    python -m agents.sweep learning_rate=log:1e-5..1e-3 n_step=1..5 head=q,c51 --trials 30 --jobs 2 \
        -- --env zerokara/Catch-v0 --total-steps 50000 --eval-every-steps 5000

The command line has three parts: the search space, the options of the sweep and, after --, the options of the agent,
which all trials share. Each trial trains with agents.dqn, or with the program of --agent, once per seed. Its learning
curve is read while it trains, and a trial with a low value is pruned. The first trial has the agent's own settings, if
they lie in the search space. Settings are sampled by the tree-structured Parzen estimator (TPE, Bergstra et al. 2011).

Output in runs/<name>/: study.db (Optuna study, SQLite), runs/ (a run folder for each trial and seed), logs/,
trials.csv, history.png, importance.png. With --storage, several processes share one study. Repeat the same command to
resume a sweep. docs/sweep.md explains the details.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from zerokara.agents.sweeping.config import Config, describe_objective, read_command_line
from zerokara.agents.sweeping.search_space import AGENTS, AgentProgram, Dimension, format_params, trial_arguments
from zerokara.core.command_line import check_command_line
from zerokara.core.config import EXIT_STOPPED, Stopped, UserError, run_main, to_saved
from zerokara.core.machine import usable_cores
from zerokara.core.programs import program, program_command

if __name__ == "__main__":
    check_command_line(read_command_line, __doc__)  # before the imports below, which take seconds

import optuna
from optuna.trial import FrozenTrial, TrialState

from zerokara.agents.sweeping.kept_settings import (
    SETTINGS,
    Kept,
    describe_kept,
    find_kept,
    keep_in_base,
    kept_arguments,
    settings_of,
)
from zerokara.agents.sweeping.report import format_table, write_report
from zerokara.agents.sweeping.storage import (
    STORAGE_ERRORS,
    SWEEP,
    OpenedSweep,
    check_option,
    open_sweep,
    storage_error,
)
from zerokara.agents.sweeping.trial import DIVERGED, TrialProcess, curve_value, run_name
from zerokara.core.progress import Progress
from zerokara.core.scheduling.cluster import connect, launcher
from zerokara.core.scheduling.job import Exit, Launch

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
POLL_SECONDS = 0.5  # interval between two polls of the processes
MAX_FAILURES = 3  # consecutive failures of runs after which the sweep ends: the settings are then not the cause


class ActiveTrial:
    """A trial that is running: the process of its current seed, and the values of the finished seeds."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.seed_values: list[float] = list(trial.user_attrs.get("worths", []))
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self.reported = set(frozen.intermediate_values)  # agent steps, counted over all seeds
        self.process: TrialProcess | None = None
        self.pruned = False


class Sweep:
    """Optuna study with its running trials.

    Args:
        agent: program that trains.
        agent_arguments: its command line that all trials share.
        base: config that `agent_arguments` give. Where earlier trials have other settings, the sweep keeps those.
        opened: run, folder and driver of the sweep.
        launch: gives a run to this machine or to a cluster.
    """

    def __init__(
        self,
        config: Config,
        opened: OpenedSweep,
        study: optuna.Study,
        agent: AgentProgram,
        agent_arguments: Sequence[str],
        base: Any,
        space: Sequence[Dimension],
        launch: Launch,
    ) -> None:
        self.config, self.study, self.launch = config, study, launch
        self.run, self.folder, self.driver = opened.run, opened.folder, opened.driver
        self.agent, self.agent_arguments, self.base, self.space = agent, agent_arguments, base, space
        self.threads = (
            config.ray_threads if config.ray_address else max(1, usable_cores() // config.jobs)
        )  # of each run
        self.failures = 0  # consecutive
        self.active: list[ActiveTrial] = []
        self._given = base
        self._compared: set[int] | None = None  # numbers of the trials whose settings new trials keep
        self.kept: Kept = {}
        with self.driver.choosing():
            self._keep_settings()

    def _keep_settings(self) -> None:
        """Keep the settings of the first trials, which another driver, of another version, may have started meanwhile.

        Called inside `choosing`, since a trial has its settings only after its driver has chosen it.
        """
        started = self._started()
        if self._compared is not None and started <= self._compared:
            return
        self._compared = started
        before, self.kept = self.kept, self._find_kept()
        self.base = keep_in_base(self.kept, self._given)
        self.evaluations = self.base.total_steps // self.base.eval_every_steps  # of a complete run
        self.study.pruner = make_pruner(self.config, self.base)
        if self.kept and self.kept != before:
            names_presets = any(dimension.name == "preset" for dimension in self.space)
            self.run.print(
                "this version of zerokara has other settings than the earlier trials, which new trials keep: "
                f"{describe_kept(self.kept, name_presets=names_presets)}"
            )

    def _started(self) -> set[int]:
        """Return the numbers of the trials that a driver has started."""
        trials = self.study.get_trials(deepcopy=False)
        return {trial.number for trial in trials if trial.state != TrialState.WAITING}

    def _find_kept(self) -> Kept:
        """Find the settings of the earlier trials that this version of zerokara would not give to new ones."""
        earlier = []
        for trial in self.study.get_trials(deepcopy=False):
            run = self.folder / "runs" / run_name(trial.number, self.base.seed)
            config = settings_of(trial, run, self.agent)
            if config is not None:
                own = trial_arguments(self.space, trial.params, self._given)
                earlier.append((config, [*self.agent_arguments, *own]))
        return find_kept(self.agent, earlier, {dimension.name for dimension in self.space})

    def search(self) -> None:
        """Run trials until their number is reached or a signal is received. All runs are saved and have ended then.

        Raises:
            UserError: several consecutive runs failed.
        """
        try:
            while not self.run.stop_requested:
                while len(self.active) < self.config.jobs and (trial := self._next_trial()):
                    self.active.append(ActiveTrial(trial))
                if not self.active:
                    return
                self.active = [active for active in self.active if self._advance(active)]
                self._show_progress()
                time.sleep(POLL_SECONDS)
            self.run.print(f"{self.run.stop_requested}: saving")
        finally:
            processes = [active.process for active in self.active if active.process is not None]
            for process in processes:
                process.stop()
            for process in processes:
                process.wait()

    def count(self, *states: TrialState) -> int:
        """Return the number of trials in these states."""
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _next_trial(self) -> optuna.Trial | None:
        """Return the next trial to run: an interrupted one, or a new one; None if there are enough trials."""
        with self.driver.choosing():
            self._keep_settings()
            trial = self._choose_trial()
            self._compared = self._started()  # the new ones are of this driver
            return trial

    def _choose_trial(self) -> optuna.Trial | None:
        if interrupted := self._interrupted_trial():
            # Optuna has no public way to resume a trial of another process.
            trial = optuna.Trial(self.study, interrupted._trial_id)
            self.driver.claim(trial)
            self._sample(trial)
            self.run.print(f"trial {trial.number} resumes: {format_params(self.space, trial.params)}")
            return trial
        while self.count(*FINISHED, TrialState.RUNNING) < self.config.trials:
            number = self.count(*FINISHED, TrialState.RUNNING, TrialState.FAIL)
            # A new sampler for each trial, so that a resumed sweep samples the same settings as an uninterrupted one.
            self.study.sampler = optuna.samplers.TPESampler(seed=self.config.sampler_seed * 10_007 + number)
            trial = self.study.ask()
            self.driver.claim(trial)
            self._sample(trial)
            if not self._finished_without_run(trial):
                self.run.print(f"trial {trial.number} starts: {format_params(self.space, trial.params)}")
                return trial
        return None

    def _interrupted_trial(self) -> FrozenTrial | None:
        """Return a trial that no driver runs any more; None if there is none."""
        mine = {active.trial.number for active in self.active}
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return next((t for t in running if t.number not in mine and self.driver.may_resume(t)), None)

    def _sample(self, trial: optuna.Trial) -> None:
        for dimension in self.space:
            dimension.suggest(trial)

    def _arguments(self, trial: optuna.Trial) -> list[str]:
        """Return the agent's command line for a trial, without name and seed."""
        return [
            "--no-capture-video",
            "--threads",
            str(self.threads),
            *(["--no-delete-replay"] if self.config.keep_replays and hasattr(self.base, "delete_replay") else []),
            *self.settings(trial.params),
        ]

    def settings(self, params: Mapping[str, Any]) -> list[str]:
        """Return the agent's command line for sampled values, without output and hardware, name and seed.

        Raises:
            UserError: the settings are incompatible.
        """
        own = trial_arguments(self.space, params, self.base)
        kept = kept_arguments(self.kept, self.agent, [*self.agent_arguments, *own])
        return [*self.agent_arguments, *kept, *own]

    def _finished_without_run(self, trial: optuna.Trial) -> bool:
        """Finish a trial whose settings are incompatible or those of an earlier trial. Returns False for others."""
        try:
            config = self.agent.read_config(self._arguments(trial))
        except UserError as error:
            self._prune(trial, "refused")
            params = format_params(self.space, trial.params)
            self.run.print(f"trial {trial.number} is not run, because its settings are refused ({params}): {error}")
            return True
        finished = self.study.get_trials(deepcopy=False, states=FINISHED)
        twin = next((other for other in finished if other.params == trial.params), None)
        if twin is None:
            trial.set_user_attr(SETTINGS, to_saved(config))
            return False
        self.run.print(f"trial {trial.number} has the same settings as trial {twin.number} and takes its value")
        trial.set_user_attr("why", f"as {twin.number}")
        if twin.last_step is not None:
            trial.report(twin.intermediate_values[twin.last_step], twin.last_step)
        if twin.state == TrialState.COMPLETE:
            self.study.tell(trial, twin.value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        return True

    def _advance(self, active: ActiveTrial) -> bool:
        """Start the next run of a trial, read its learning curve, prune or finish it. Returns False at its end."""
        if len(active.seed_values) == self.config.seeds:
            value = fmean(active.seed_values)
            self.study.tell(active.trial, value)
            self.run.print(f"trial {active.trial.number} is complete: {value:.4g}")
            return False
        if active.process is None:
            seed = self.base.seed + len(active.seed_values)
            name = run_name(active.trial.number, seed)
            arguments = [*self._arguments(active.trial), "--seed", str(seed)]
            active.process = TrialProcess(self.folder, self.agent.module, name, arguments, self.launch)
        end = active.process.poll()  # before the curve is read, so that the curve of an ended run is complete
        if active.pruned:
            if end is not None and not self.config.keep_replays:
                active.process.delete_replay()
            return end is None
        curve = active.process.curve(self.base.eval_every_steps)
        self._report(active, curve)
        if end is None or active.pruned:
            return True
        if end.code == EXIT_STOPPED:
            self.run.print(f"trial {active.trial.number} was stopped from outside and resumes")
            active.process = None
            return True
        if end.code or max(curve, default=0) < self.evaluations:
            self._fail(active, active.process, end)
            return False
        self.failures = 0
        active.seed_values.append(curve_value(curve, self.config.objective))
        active.trial.set_user_attr("worths", active.seed_values)
        if not self.config.keep_replays:
            active.process.delete_replay()
        active.process = None
        return True

    def _report(self, active: ActiveTrial, curve: Mapping[int, float]) -> None:
        """Report new evaluations to the pruner, as the value that the trial would have if it ended there."""
        seed_index = len(active.seed_values)
        for number in sorted(curve):
            step = (seed_index * self.evaluations + min(number, self.evaluations)) * self.base.eval_every_steps
            if step in active.reported:
                continue
            active.reported.add(step)
            so_far = {k: value for k, value in curve.items() if k <= number}
            active.trial.report(fmean([*active.seed_values, curve_value(so_far, self.config.objective)]), step)
            complete = seed_index + 1 == self.config.seeds and number >= self.evaluations
            if not complete and active.trial.should_prune():
                self.run.print(f"trial {active.trial.number} is pruned after {step:,} steps")
                self._prune(active.trial, "pruned")
                active.pruned = True
                if active.process is not None:
                    active.process.stop()
                return

    def _prune(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("why", reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _fail(self, active: ActiveTrial, process: TrialProcess, end: Exit) -> None:
        """Finish a trial whose run ended early. A diverged run counts as pruned, any other failure does not count.

        Raises:
            UserError: this is failure number MAX_FAILURES in a row.
        """
        number, last_line = active.trial.number, end.last_line.strip().rstrip(".") or "no output"
        if DIVERGED in last_line:
            self.run.print(f"trial {number} has diverged (NaN or Inf in the weights)")
            self._prune(active.trial, "diverged")
            return
        self.study.tell(active.trial, state=TrialState.FAIL)
        self.failures += 1
        failure = f"trial {number} ended early with exit code {end.code} ({process.log}): {last_line}"
        if self.failures == MAX_FAILURES:
            raise UserError(
                f"{self.failures} runs failed one after the other; {failure}; fix the cause, then repeat the same "
                f"command."
            )
        self.run.warn(f"{failure}; another trial replaces it.")

    def _show_progress(self) -> None:
        trial_steps = self.config.seeds * self.base.total_steps
        finished = self.count(*FINISHED)
        running = sum(max(active.reported, default=0) for active in self.active if not active.pruned)
        fields = {
            "trials": f"{finished} of {self.config.trials}",
            "running": len(self.active),
            "best": best_value(self.study),
        }
        done = min(finished, self.config.trials) * trial_steps + running
        self.run.progress(done, self.config.trials * trial_steps, fields)


def best_value(study: optuna.Study) -> float:
    """Return the best value of the complete trials; NaN if there is none."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max((trial.value for trial in complete if trial.value is not None), default=math.nan)


def make_pruner(config: Config, base: Any) -> optuna.pruners.BasePruner:
    """Make the pruner. Its steps are agent steps, counted over the runs of all seeds of a trial."""
    every = base.eval_every_steps
    run_steps = base.total_steps // every * every
    if config.pruner == "median":
        warmup = round(config.pruner_warmup_fraction * run_steps)
        return optuna.pruners.MedianPruner(n_startup_trials=config.pruner_startup_trials, n_warmup_steps=warmup)
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=every, max_resource=run_steps * config.seeds)
    return optuna.pruners.NopPruner()


def open_study(config: Config, base: Any, space: Sequence[Dimension], opened: OpenedSweep) -> optuna.Study:
    """Open or create the study of a sweep. The first trial of a new study has the settings of `base`."""
    study = optuna.create_study(
        storage=opened.storage,
        study_name=config.name,
        direction="maximize",
        load_if_exists=True,
    )
    first = {dimension.key: dimension.sampled_value(getattr(base, dimension.name)) for dimension in space}
    with opened.driver.choosing():
        if opened.identity and SWEEP not in study.user_attrs:
            study.set_user_attr(SWEEP, opened.identity)
        if not study.get_trials(deepcopy=False) and None not in first.values():
            study.enqueue_trial(first)
    return study


def finish(sweep: Sweep, arguments: Sequence[str]) -> str:
    """Write the report and print the table. Returns the closing message.

    Args:
        arguments: command line of the sweep.
    """
    config, run, study = sweep.config, sweep.run, sweep.study
    with sweep.driver.choosing():  # another driver may write its report, too
        rows = write_report(study, sweep.space, sweep.folder)
    run.print(format_table(rows, sweep.space))
    finished = sweep.count(*FINISHED)
    if run.stop_requested and finished < config.trials:
        run.stopped = True
        return f"{finished} of {config.trials} trials are finished; resume with: {program()} {shlex.join(arguments)}"
    if elsewhere := sweep.count(TrialState.RUNNING):
        return (
            f"{finished} of {config.trials} trials are finished; other drivers run the last {elsewhere}. If one of "
            f"them was killed, repeat the same command."
        )
    if not sweep.count(TrialState.COMPLETE):
        return f"No trial is complete: all {finished} were refused, pruned or diverged; use a smaller search space."
    best = study.best_trial
    command = f"{program_command(sweep.agent.module)} {shlex.join(sweep.settings(best.params))}"
    run.print(f"best settings, trial {best.number}:\n{command}")
    seeds = range(sweep.base.seed, sweep.base.seed + config.seeds)
    new_seeds = range(seeds.stop, seeds.stop + max(3, config.seeds))
    return (
        f"trial {best.number} of {len(rows)} is best with {best.value:.4g}. This value is biased upwards, because the "
        f"trial was selected by it (seeds {', '.join(map(str, seeds))}); confirm the settings on new seeds: "
        f"for seed in {' '.join(map(str, new_seeds))}; do {command} --seed $seed --name {config.name}-best-$seed; done"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sweep, or resume it."""
    config, agent_arguments, base, space = read_command_line(argv, __doc__ or "")
    check_option(config.storage)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with connect(config, Progress(silent=config.quiet).warn) as cluster:
        opened = open_sweep(config, agent_arguments)
        with opened.run as run, contextlib.closing(opened):
            if cluster is not None:
                cluster.warn = run.warn
            try:
                study = open_study(config, base, space, opened)
                with run.signals():
                    sweep = Sweep(
                        config, opened, study, AGENTS[config.agent], agent_arguments, base, space, launcher(cluster)
                    )
                    run.print(describe_objective(config, sweep.base))
                    if cluster is not None:
                        run.print(cluster.describe())
                    sweep.search()
                    run.close(finish(sweep, sys.argv[1:] if argv is None else argv))
            except STORAGE_ERRORS as error:
                raise storage_error(config.storage, opened.folder, error) from None
    if run.stopped:
        raise Stopped


if __name__ == "__main__":
    run_main(main)
