"""What a benchmark found: numbers of every run, tables of them, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich import box
from rich.table import Table

from zerokara.agents.benchmarking.dopamine_curves import Published
from zerokara.agents.benchmarking.normalization import Scale, scale
from zerokara.agents.benchmarking.plan import Planned
from zerokara.agents.benchmarking.statistics import AGGREGATES, Estimate, estimate, height, improvement, mean
from zerokara.agents.configs.common import ProtocolName
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.agents.viewing.curves import X_LABELS, Curve, Group, draw, read_curve
from zerokara.core.report import new_figure, write_figure
from zerokara.core.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cells = Mapping[tuple[str, str], Sequence["Record"]]  # (environment, preset) -> its runs
SCORES = ("final", "area")
STYLES = ("--", ":", "-.", (0, (1, 4)), (0, (5, 5)), (0, (3, 1, 1, 1)))  # of published curves


@dataclass(frozen=True)
class Record:
    """One finished run in numbers; `final` and `area` are raw returns."""

    env: str
    preset: str
    seed: int
    final: float
    area: float  # mean height of the curve from its first point to its last
    frames: float
    hours: float
    curves: Mapping[str, Curve]  # against "frames" and "hours"
    content: Mapping[str, Any]  # of config.json

    def score(self, which: str, on: Scale | None = None) -> float:
        """One of SCORES, raw or on a scale."""
        raw = self.final if which == "final" else self.area
        return raw if on is None else on.normalize(raw)


@dataclass(frozen=True)
class Section:
    """A table with its heading."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        return f"## {self.heading}\n\n{table}\n\n{self.note}"

    def rich(self) -> Table:
        """For a terminal, without heading and note, which would be folded to its width."""
        table = Table(box=box.SIMPLE_HEAD)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def read_record(run: Planned, protocol: ProtocolName) -> Record:
    """What a finished run has shown.

    Raises:
        UserError: its metrics have no score.
    """
    metric = PROTOCOLS[protocol].metric
    curves = {x: read_curve(run.folder, metric, x) for x in ("frames", "hours")}
    along = curves["frames"]
    hours = read_curve(run.folder, "speed/hours", "frames")
    return Record(
        run.env,
        run.preset,
        run.seed,
        final=float(along.y[-1]),
        area=height(along.x, along.y),
        frames=float(along.x[-1]),
        hours=float(hours.y[-1]),
        curves=curves,
        content=Run.read_config(run.folder),
    )


def cells(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The runs of each environment and preset, in the order in which these come."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.env, record.preset), []).append(record)
    return found


def per_environment(found: Cells) -> dict[str, dict[str, dict[str, Any]]]:
    """Means over runs with intervals, by environment and preset: raw, and normalised where there is a scale."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (env, preset), runs in found.items():
        on = scale(env)
        numbers: dict[str, Any] = {"runs": len(runs), "seeds": [run.seed for run in runs]}
        for which in SCORES:
            numbers[which] = estimate(mean, [[run.score(which) for run in runs]])
            if on is not None:
                numbers[f"{which}_normalised"] = estimate(mean, [[run.score(which, on) for run in runs]])
        numbers["hours"] = float(np.mean([run.hours for run in runs]))
        result.setdefault(env, {})[preset] = numbers
    return result


def comparable(found: Cells) -> list[str]:
    """The environments that have a scale and runs of every preset: over these and no others is averaged."""
    presets = {preset for _, preset in found}
    return [
        env
        for env in dict.fromkeys(env for env, _ in found)
        if scale(env) is not None and all((env, preset) in found for preset in presets)
    ]


def samples(found: Cells, preset: str, which: str) -> list[list[float]]:
    """Normalised scores of a preset's runs, one list for each environment that can be compared."""
    return [[run.score(which, scale(env)) for run in found[env, preset]] for env in comparable(found)]


def aggregates(found: Cells) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Across environments: preset -> "final" and "area" -> aggregate -> number and interval."""
    if not comparable(found):
        return {}
    return {
        preset: {
            which: {name: estimate(f, samples(found, preset, which)) for name, f in AGGREGATES.items()}
            for which in SCORES
        }
        for preset in dict.fromkeys(preset for _, preset in found)
    }


def improvements(found: Cells) -> dict[str, dict[str, Estimate]]:
    """X -> Y -> the probability that X's final score beats Y's."""
    presets = list(dict.fromkeys(preset for _, preset in found))
    if not comparable(found):
        return {}
    scores = {preset: samples(found, preset, "final") for preset in presets}
    return {x: {y: estimate(improvement, [*scores[x], *scores[y]]) for y in presets if y != x} for x in presets}


@dataclass(frozen=True)
class Findings:
    """All numbers: of environments, across them, and of presets against each other."""

    found: Cells
    environments: Mapping[str, Mapping[str, Mapping[str, Any]]]
    across: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    better: Mapping[str, Mapping[str, Estimate]]
    published: Mapping[str, Sequence[Published]]

    @classmethod
    def of(cls, records: Sequence[Record], published: Mapping[str, Sequence[Published]]) -> Self:
        """The numbers of these runs."""
        found = cells(records)
        return cls(found, per_environment(found), aggregates(found), improvements(found), published)

    def beside(self, env: str) -> list[tuple[Published, float | None]]:
        """Published curves, and their values after as many frames as our shortest run had."""
        frames = min(run.frames for (where, _), runs in self.found.items() if where == env for run in runs)
        return [(curve, curve.at(frames)) for curve in self.published.get(env, ())]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "environments": _plain(self.environments),
            "across_environments": {"environments": comparable(self.found), "presets": _plain(self.across)},
            "probability_of_improvement": _plain(self.better),
            "scales": {env: asdict(on) for env in self.environments if (on := scale(env)) is not None},
            "published": {
                env: {curve.agent: {"runs": curve.runs, "value": value} for curve, value in self.beside(env)}
                for env in self.published
                if env in self.environments
            },
            "runs": [
                {name: getattr(run, name) for name in ("env", "preset", "seed", "final", "area", "frames", "hours")}
                | {"normalised": None if (on := scale(run.env)) is None else on.normalize(run.final)}
                | {key: run.content.get(key) for key in ("git_commit", "versions", "command", "created")}
                | {key: run.content["extra"].get(key) for key in ("environment", "compute")}
                for runs in self.found.values()
                for run in runs
            ],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    return {key: _plain(v) for key, v in value.items()} if isinstance(value, Mapping) else value


def sections(findings: Findings) -> list[Section]:
    """The tables."""
    interval = "95% stratified bootstrap over runs in brackets"
    rows = []
    for env, presets in findings.environments.items():
        for preset, numbers in presets.items():
            scores = [str(numbers.get(f"{which}{on}", "-")) for on in ("", "_normalised") for which in SCORES]
            rows.append([f"{env} {preset}", str(numbers["runs"]), *scores, f"{numbers['hours']:.2f}"])
        for curve, value in findings.beside(env):
            if value is not None and (on := scale(env)) is not None:
                scores = [f"{value:.3g}", "-", f"{on.normalize(value):.3g}", "-"]
                rows.append([f"{env} {curve.agent} (Dopamine)", str(curve.runs), *scores, "-"])
    columns = ["environment, preset", "runs", "final", "area under curve", "final, norm.", "area, norm.", "hours"]
    scales = "; ".join(dict.fromkeys(on.words for env in findings.environments if (on := scale(env)) is not None))
    note = f"Mean raw returns, {interval}; the area is the curve's mean height. Normalised: {scales or 'no scale'}."
    tables = [Section("Scores", columns, rows, note)]
    if findings.across:
        rows = [
            [f"{preset}, {'area under curve' if which == 'area' else which}", *map(str, numbers.values())]
            for preset, by_score in findings.across.items()
            for which, numbers in by_score.items()
        ]
        note = f"Normalised scores over {', '.join(comparable(findings.found))}; {interval} (Agarwal et al. 2021)."
        tables.append(Section("Across environments", ["preset, score", *AGGREGATES], rows, note))
    if len(findings.better) > 1:
        rows = [[x, *(str(findings.better[x].get(y, "-")) for y in findings.better)] for x in findings.better]
        note = f"That a run of the row's preset ends with a higher score than one of the column's; {interval}."
        tables.append(Section("Probability of improvement", ["preset", *findings.better], rows, note))
    return tables


def save_curves(findings: Findings, protocol: ProtocolName, x: str, path: Path) -> None:
    """Learning curves as PNG, a panel for each environment: thin lines are runs, thick ones means, bands min to max."""
    from matplotlib.ticker import EngFormatter

    env_ids = list(findings.environments)
    columns = min(3, len(env_ids))
    rows = -(-len(env_ids) // columns)
    figure, all_axes = new_figure(columns, rows, width=7)
    for spare in all_axes[len(env_ids) :]:
        spare.remove()
    for env, axes in zip(env_ids, all_axes, strict=False):
        groups: list[Group] = [
            (f"{preset} ({len(runs)} run{'s' * (len(runs) > 1)})", [run.curves[x] for run in runs])
            for (where, preset), runs in findings.found.items()
            if where == env
        ]
        if x == "frames":
            draw_published(axes, findings.published.get(env, ()), max(c.x[-1] for _, curves in groups for c in curves))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        draw(axes, groups, "eval/return", name_runs=False)
        axes.set_title(env, loc="left", fontweight="bold")
        axes.set_xlabel(X_LABELS[x])
        axes.set_ylabel(f"mean raw return ({protocol})")
    write_figure(path, figure, 130)


def draw_published(axes: Axes, curves: Sequence[Published], frames: float) -> None:
    """Means and bands from minimum to maximum in grey, as far as our own curves go."""
    for number, curve in enumerate(curves):
        x, mean_, low, high = (v[curve.frames <= frames] for v in (curve.frames, curve.mean, curve.low, curve.high))
        if len(x):
            style, label = STYLES[number % len(STYLES)], f"{curve.agent}, Dopamine ({curve.runs} runs)"
            axes.plot(x, mean_, linestyle=style, color="0.3", linewidth=1.5, label=label)
            axes.fill_between(x, low, high, color="0.3", alpha=0.08, linewidth=0)
