"""Results of a benchmark: scores of all runs, tables, and plots of learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.table import Table

from zerokara.agents.benchmarking.dopamine_curves import PublishedCurve
from zerokara.agents.benchmarking.normalization import Scale, score_scale
from zerokara.agents.benchmarking.plan import PlannedRun
from zerokara.agents.benchmarking.statistics import (
    AGGREGATES,
    Estimate,
    estimate,
    mean,
    mean_height,
    probability_of_improvement,
)
from zerokara.agents.configs.common import ProtocolName
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.agents.viewing.curves import X_LABELS, Curve, Group, draw, read_curve
from zerokara.core.config import format_count
from zerokara.core.report import new_figure, tables_within, write_figure
from zerokara.core.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Groups = Mapping[tuple[str, str], Sequence["Record"]]  # (environment, preset) -> runs
SCORES = ("final", "area")
LINE_STYLES = ("--", ":", "-.", (0, (1, 4)), (0, (5, 5)), (0, (3, 1, 1, 1)))  # of published curves


@dataclass(frozen=True)
class Record:
    """Results of one finished run; `final` and `area` are raw returns."""

    env: str
    preset: str
    seed: int
    final: float
    area: float  # area under the learning curve, divided by the length of its base
    frames: float
    hours: float
    curves: Mapping[str, Curve]  # learning curve over "frames" and over "hours"
    content: Mapping[str, Any]  # content of config.json

    def score(self, which: str, scale: Scale | None = None) -> float:
        """Return one of SCORES, raw or normalized by a scale."""
        raw = self.final if which == "final" else self.area
        return raw if scale is None else scale.normalize(raw)


@dataclass(frozen=True)
class Section:
    """Table with a heading and a note."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def markdown(self) -> str:
        """Format as Markdown."""
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        return f"## {self.heading}\n\n{table}\n\n{self.note}"

    def rich(self, width: int) -> list[Table]:
        """Format for a terminal of `width` characters, without heading and note."""
        return tables_within(self.columns, self.rows, width)


def read_record(run: PlannedRun, protocol: ProtocolName) -> Record:
    """Read the results of a finished run.

    Raises:
        UserError: the metrics contain no score.
    """
    metric = PROTOCOLS[protocol].metric
    curves = {x: read_curve(run.folder, metric, x) for x in ("frames", "hours")}
    curve = curves["frames"]
    hours = read_curve(run.folder, "speed/hours", "frames")
    return Record(
        run.env,
        run.preset,
        run.seed,
        final=float(curve.y[-1]),
        area=mean_height(curve.x, curve.y),
        frames=float(curve.x[-1]),
        hours=float(hours.y[-1]),
        curves=curves,
        content=Run.read_config(run.folder),
    )


def group_records(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Group runs by environment and preset, in order of appearance."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.env, record.preset), []).append(record)
    return groups


def scores_per_environment(groups: Groups) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute mean scores with confidence intervals: environment -> preset -> score.

    Scores are raw; environments with a scale also have normalized scores.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (env, preset), runs in groups.items():
        scale = score_scale(env)
        numbers: dict[str, Any] = {"runs": len(runs), "seeds": [run.seed for run in runs]}
        for which in SCORES:
            numbers[which] = estimate(mean, [[run.score(which) for run in runs]])
            if scale is not None:
                numbers[f"{which}_normalised"] = estimate(mean, [[run.score(which, scale) for run in runs]])
        numbers["hours"] = float(np.mean([run.hours for run in runs]))
        result.setdefault(env, {})[preset] = numbers
    return result


def comparable_environments(groups: Groups) -> list[str]:
    """List the environments that have a scale and runs of every preset. Only these are aggregated."""
    presets = {preset for _, preset in groups}
    return [
        env
        for env in dict.fromkeys(env for env, _ in groups)
        if score_scale(env) is not None and all((env, preset) in groups for preset in presets)
    ]


def normalized_scores(groups: Groups, preset: str, which: str) -> list[list[float]]:
    """Return the normalized scores of a preset's runs, one list for each comparable environment."""
    return [
        [run.score(which, score_scale(env)) for run in groups[env, preset]] for env in comparable_environments(groups)
    ]


def aggregate_scores(groups: Groups) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Aggregate over environments: preset -> "final" and "area" -> aggregate -> estimate."""
    if not comparable_environments(groups):
        return {}
    return {
        preset: {
            which: {name: estimate(f, normalized_scores(groups, preset, which)) for name, f in AGGREGATES.items()}
            for which in SCORES
        }
        for preset in dict.fromkeys(preset for _, preset in groups)
    }


def compare_presets(groups: Groups) -> dict[str, dict[str, Estimate]]:
    """Estimate the probability of improvement: X -> Y -> probability that X has a higher final score than Y."""
    presets = list(dict.fromkeys(preset for _, preset in groups))
    if not comparable_environments(groups):
        return {}
    scores = {preset: normalized_scores(groups, preset, "final") for preset in presets}
    return {
        x: {y: estimate(probability_of_improvement, [*scores[x], *scores[y]]) for y in presets if y != x}
        for x in presets
    }


@dataclass(frozen=True)
class Results:
    """All results: per environment, aggregated over environments, and comparisons of presets."""

    groups: Groups
    environments: Mapping[str, Mapping[str, Mapping[str, Any]]]
    aggregates: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    improvements: Mapping[str, Mapping[str, Estimate]]
    published: Mapping[str, Sequence[PublishedCurve]]

    @classmethod
    def of(cls, records: Sequence[Record], published: Mapping[str, Sequence[PublishedCurve]]) -> Self:
        """Compute the results of these runs."""
        groups = group_records(records)
        return cls(groups, scores_per_environment(groups), aggregate_scores(groups), compare_presets(groups), published)

    def published_values(self, env: str) -> list[tuple[PublishedCurve, float | None]]:
        """Return the published curves of an environment, and their values at the length of our shortest run."""
        frames = min(run.frames for (other, _), runs in self.groups.items() if other == env for run in runs)
        return [(curve, curve.at(frames)) for curve in self.published.get(env, ())]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "environments": _plain(self.environments),
            "across_environments": {
                "environments": comparable_environments(self.groups),
                "presets": _plain(self.aggregates),
            },
            "probability_of_improvement": _plain(self.improvements),
            "scales": {env: asdict(scale) for env in self.environments if (scale := score_scale(env)) is not None},
            "published": {
                env: {curve.agent: {"runs": curve.runs, "value": value} for curve, value in self.published_values(env)}
                for env in self.published
                if env in self.environments
            },
            "runs": [
                {name: getattr(run, name) for name in ("env", "preset", "seed", "final", "area", "frames", "hours")}
                | {"normalised": None if (scale := score_scale(run.env)) is None else scale.normalize(run.final)}
                | {key: run.content.get(key) for key in ("git_commit", "versions", "command", "created")}
                | {key: run.content["extra"].get(key) for key in ("environment", "compute")}
                for runs in self.groups.values()
                for run in runs
            ],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    return {key: _plain(v) for key, v in value.items()} if isinstance(value, Mapping) else value


def sections(results: Results) -> list[Section]:
    """Make the tables."""
    interval = "brackets: 95% confidence interval, stratified bootstrap over runs"
    rows = []
    for env, presets in results.environments.items():
        for preset, numbers in presets.items():
            scores = [str(numbers.get(f"{which}{suffix}", "-")) for suffix in ("", "_normalised") for which in SCORES]
            rows.append([f"{env} {preset}", str(numbers["runs"]), *scores, f"{numbers['hours']:.2f}"])
        for curve, value in results.published_values(env):
            if value is not None and (scale := score_scale(env)) is not None:
                scores = [f"{value:.3g}", "-", f"{scale.normalize(value):.3g}", "-"]
                rows.append([f"{env} {curve.agent} (Dopamine)", str(curve.runs), *scores, "-"])
    columns = ["environment, preset", "runs", "final", "area under curve", "final, norm.", "area, norm.", "hours"]
    scales = "; ".join(
        dict.fromkeys(scale.words for env in results.environments if (scale := score_scale(env)) is not None)
    )
    note = (
        f"Mean raw returns; {interval}. The area under the learning curve is divided by the length of its base. "
        f"Normalized: {scales or 'no reference scores'}."
    )
    tables = [Section("Scores", columns, rows, note)]
    if results.aggregates:
        rows = [
            [f"{preset}, {'area under curve' if which == 'area' else which}", *map(str, numbers.values())]
            for preset, by_score in results.aggregates.items()
            for which, numbers in by_score.items()
        ]
        names = ", ".join(comparable_environments(results.groups))
        note = f"Normalized scores over {names}; {interval} (Agarwal et al. 2021)."
        tables.append(Section("Across environments", ["preset, score", *AGGREGATES], rows, note))
    if len(results.improvements) > 1:
        rows = [
            [x, *(str(results.improvements[x].get(y, "-")) for y in results.improvements)] for x in results.improvements
        ]
        note = (
            f"Probability that a run of the preset in the row has a higher final score than a run of the preset in the "
            f"column; {interval}."
        )
        tables.append(Section("Probability of improvement", ["preset", *results.improvements], rows, note))
    return tables


def save_curves(results: Results, protocol: ProtocolName, x: str, path: Path) -> None:
    """Plot learning curves over `x` as PNG, a panel for each environment.

    Thin lines are runs, thick lines their means, bands their minimum and maximum.
    """
    from matplotlib.ticker import EngFormatter

    env_ids = list(results.environments)
    columns = min(3, len(env_ids))
    rows = -(-len(env_ids) // columns)
    figure, all_axes = new_figure(columns, rows, width=7)
    for unused in all_axes[len(env_ids) :]:
        unused.remove()
    for env, axes in zip(env_ids, all_axes, strict=False):
        groups: list[Group] = [
            (f"{preset} ({format_count(len(runs), 'run')})", [run.curves[x] for run in runs])
            for (other, preset), runs in results.groups.items()
            if other == env
        ]
        if x == "frames":
            draw_published(axes, results.published.get(env, ()), max(c.x[-1] for _, curves in groups for c in curves))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        draw(axes, groups, "eval/return", name_runs=False)
        axes.set_title(env, loc="left", fontweight="bold")
        axes.set_xlabel(X_LABELS[x])
        axes.set_ylabel(f"mean raw return ({protocol})")
    write_figure(path, figure, 130)


def draw_published(axes: Axes, curves: Sequence[PublishedCurve], frames: float) -> None:
    """Plot published means and ranges (minimum to maximum) in gray, up to `frames`, the end of our own curves."""
    for number, curve in enumerate(curves):
        x, mean_, low, high = (v[curve.frames <= frames] for v in (curve.frames, curve.mean, curve.low, curve.high))
        if len(x):
            style, label = LINE_STYLES[number % len(LINE_STYLES)], f"{curve.agent}, Dopamine ({curve.runs} runs)"
            axes.plot(x, mean_, linestyle=style, color="0.3", linewidth=1.5, label=label)
            axes.fill_between(x, low, high, color="0.3", alpha=0.08, linewidth=0)
