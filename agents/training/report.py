"""Lines that a training run prints about its settings and scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from zerokara.agents.configs.common import Settings
from zerokara.agents.configs.defaults import default_values, format_changes, preset_changes
from zerokara.agents.configs.lengths import describe_lengths
from zerokara.agents.training.evaluation import Scores
from zerokara.core.config import format_count
from zerokara.core.programs import program_command
from zerokara.core.run import Run


def print_settings(run: Run, config: Settings, environment: Mapping[str, Any], *, new: bool) -> None:
    """Print lines about the settings of a run. A new run saves the differences between preset and paper.

    Args:
        run: folder of the run.
        config: config of the run.
        environment: settings of the environment.
        new: the run is not resumed.
    """
    if new:
        run.save_extra(deviations=list(config.deviations))
    saved = run.extra.get("deviations")
    for line in settings_lines(config, environment, saved if isinstance(saved, list) else None, new=new):
        run.print(line)


def settings_lines(
    config: Settings, environment: Mapping[str, Any], saved: Collection[str] | None, *, new: bool
) -> Iterator[str]:
    """Yield lines about the settings of a run.

    Args:
        config: config of the run.
        environment: settings of the environment.
        saved: differences from the paper that the run saved at its start; None: it is of an older version, which did
            not save them.
        new: the run is not resumed, so its lengths are those of this command.
    """
    deviations: Collection[str] = config.deviations if saved is None else saved
    if saved is None and deviations and (changes := preset_changes(config)):
        yield (
            f"the run has other settings than preset {config.preset} of this version ({format_changes(changes)}), and "
            f"the version that started it did not save how they differ from the paper"
        )
        deviations = ()
    for deviation in deviations:
        yield f"preset {config.preset} differs from its paper: {deviation}"
    if new and (lengths := describe_lengths(config, default_values(config))):
        yield f"lengths that fit {config.total_steps:,} steps: {lengths}"
    yield f"{config.env}: {format_settings(environment)}"


def format_progress(
    last: float | None, best: float | None, best_step: int, returns: Collection[float], updates: int
) -> str:
    """Format the scores of a run: "evaluation 3.10 (best: 4.20 at step 400), last 100 training episodes 2.00".

    Args:
        last: mean raw return of the last evaluation.
        best: that of the best evaluation.
        best_step: step of the best evaluation.
        returns: raw returns of the last training episodes.
        updates: gradient steps so far.
    """
    score = "not evaluated yet" if last is None else f"evaluation {last:.2f}"
    if best is not None:
        score += f" (best: {best:.2f} at step {best_step:,})"
    if returns:
        score += f", last {format_count(len(returns), 'training episode')} {np.mean(list(returns)):.2f}"
    return score if updates else f"{score}, the network is untrained: there was no update"


def bar_fields(
    settings: Mapping[str, Any], step: int, episodes: int, epsilon: float, scalars: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of the progress bar.

    Args:
        settings: of the environment.
        step: agent steps so far.
        episodes: complete episodes so far.
        epsilon: probability of a random action.
        scalars: metrics of the last log entry; empty: there is none.
    """
    return {
        "frames": step * (settings.get("frame_skip") or 1),
        "episodes": episodes,
        "return": scalars.get("train/return", float("nan")),
        "epsilon": epsilon,
        "loss": scalars.get("train/loss", float("nan")),
        "steps/s": scalars.get("speed/steps_per_s", float("nan")),
    }


def format_scores(scores: Scores) -> str:
    """Format scores as text: "mean raw return 18.20 (standard error 0.41)"."""
    cut = f", {scores.cut} cut for length" if scores.cut else ""
    return f"mean raw return {scores.mean:.2f} (standard error {scores.standard_error:.2f}{cut})"


def format_settings(settings: Mapping[str, Any]) -> str:
    """Format settings as text: "protocol nature, frame_skip 4"."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def closing_line(env: str, step: int, scores: str, name: str, resume: str) -> str:
    """Return the closing line of a run: its returns, and the command to resume it or, if it is finished, to watch it.

    Args:
        env: id of the environment.
        step: agent steps done.
        scores: of `format_progress`.
        name: name of the run.
        resume: command that resumes the run; empty: it is finished.
    """
    next_command = (
        f"resume with: {resume}" if resume else f"watch it with: {program_command('agents.play')} runs/{name}"
    )
    return f"{env} at step {step:,}: {scores}; {next_command}"
