"""Results that are kept: a small JSON file for each finished run, and a page with the tables of all of them.

A run of a benchmark ends after minutes or hours, many of them take days. Its result is written as soon as it has ended
and can be committed; a run whose result exists is not trained again, on any machine. The page says what there is, with
the statistics of agents/benchmarking/statistics.py.

A method is a preset with the settings that change what is learned and the number of steps. The values behind a preset
may change with the version of zerokara, so a file also has the values of all options that count (`method_values`), and
results with other values are other results.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zerokara.agents.benchmarking.atari_scores import reference_scores
from zerokara.agents.benchmarking.atari_sets import FITTED_ABOVE, REGRESSIONS, env_id
from zerokara.agents.benchmarking.normalization import score_scale
from zerokara.agents.benchmarking.plan import PRESETS, PlannedRun, setting_fields, version_changes
from zerokara.agents.benchmarking.report import Record, Section
from zerokara.agents.benchmarking.statistics import AGGREGATES, estimate, mean
from zerokara.agents.configs.common import HARDWARE_FIELDS, OUTPUT_FIELDS, ProtocolName, Settings
from zerokara.agents.configs.defaults import format_changes
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, class_mapping, format_count, from_dict, to_dict
from zerokara.core.report import read_json, write_json

BEGIN, END = "<!-- agents.benchmark: begin -->", "<!-- agents.benchmark: end -->"
UNIMPORTANT = HARDWARE_FIELDS | OUTPUT_FIELDS | {"precision", "log_every_steps", "checkpoint_every_steps"}
# No values of a method: they identify a run, or change neither what is learned nor its score. Evaluations only have an
# effect with --stop-at-return.
NO_VALUES = UNIMPORTANT | {"env", "preset", "seed", "eval_every_steps", "save_replay"}
FEW_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one run, as it is in its file."""

    env: str
    preset: str
    settings: tuple[str, ...]  # field=value; those that change what is learned
    protocol: ProtocolName
    total_steps: int
    seed: int
    score: float  # last value of the learning curve, a mean raw return
    area: float  # mean of the learning curve
    evaluations: tuple[tuple[float, float], ...]  # the learning curve: frames of the game, mean raw return
    hours: float  # of wall clock, evaluations included
    processor: str  # of the run, or "unknown"
    threads: int  # of the run; 0: unknown
    precision: str
    at_once: int  # most runs at the same time, of the command that wrote the file
    load: float  # of the machine when it wrote the file: processes that compute or wait for a core, mean of 15 minutes
    git_commit: str | None
    versions: Mapping[str, str | None]
    created: str
    config: Mapping[str, Any] | None = None  # `method_values` of the run; None: a file of an older version

    @property
    def method(self) -> str:
        """Name of the method in tables."""
        return " ".join((self.preset, *self.settings, f"{self.total_steps:,}"))

    @property
    def settings_hash(self) -> str:
        """First eight digits of the hash of `config`, or "unknown"."""
        if self.config is None:
            return "unknown"
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def file_name(self) -> str:
        """Name of the file."""
        game = self.env.rpartition("/")[2]
        known = () if self.config is None else (self.settings_hash,)
        words = (game, self.preset, *self.settings, str(self.total_steps), *known, str(self.seed))
        return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words) + ".json"

    @property
    def identity(self) -> tuple[Any, ...]:
        """Values by which two runs are the same."""
        return (self.env, self.preset, self.settings, self.protocol, self.total_steps, self.seed, self.settings_hash)

    @property
    def normalized(self) -> float | None:
        """Score of which 0 is random play and 1 the human score; None if there are no reference scores."""
        scale = score_scale(self.env)
        return None if scale is None else scale.normalize(self.score)


def method_values(config: Settings) -> dict[str, Any]:
    """Return the values of a config that have an effect on what is learned or on its score.

    Left out are `NO_VALUES` and the options that have no effect without another one.
    """
    requires = class_mapping(type(config), "REQUIRES")
    left_out = NO_VALUES - ({"eval_every_steps"} if config.stop_at_return is not None else set())
    return {
        name: value
        for name, value in to_dict(config).items()
        if name not in left_out and (name not in requires or requires[name][0](config))
    }


def planned_result(run: PlannedRun, settings: Sequence[str], protocol: ProtocolName, at_once: int) -> Result:
    """Return the result of a planned run without what only a finished one has."""
    fields = setting_fields(settings)
    return Result(
        env=run.env,
        preset=run.preset,
        settings=tuple(f"{name}={value}" for name, value in sorted(fields.items()) if name not in UNIMPORTANT),
        protocol=protocol,
        total_steps=run.config.total_steps,
        seed=run.seed,
        score=0.0,
        area=0.0,
        evaluations=(),
        hours=0.0,
        processor="",
        threads=run.config.threads,
        precision=run.config.precision,
        at_once=at_once,
        load=0.0,
        git_commit=None,
        versions={},
        created="",
        config=method_values(run.config),
    )


def refuse_other_values(runs: Iterable[PlannedRun]) -> None:
    """Check that the folders of runs hold no runs that another version of zerokara started with other values.

    Such a run would end as the result of its own values, and the planned one would still be missing.

    Raises:
        UserError: a folder does.
    """
    for run in runs:
        changes = version_changes(run)
        then = replace(run.config, **{name: value for name, (value, _) in changes.items()})
        if method_values(then) != method_values(run.config):
            raise UserError(
                f"{run.folder} was started by another version of zerokara, which gave preset {run.preset} "
                f"{format_changes(changes)}, so it is another result: choose another --name, or remove the run first: "
                f"rm -r {run.folder}."
            )


class ResultsFolder:
    """Folder with a file for each finished run.

    Args:
        path: the folder, which need not exist.
        settings: --settings of the benchmark.
        protocol: its protocol.
        at_once: number of runs at the same time.
    """

    def __init__(self, path: Path, settings: Sequence[str], protocol: ProtocolName, at_once: int) -> None:
        self.path, self.settings, self.protocol, self.at_once = path, settings, protocol, at_once

    def _planned(self, run: PlannedRun) -> Result:
        return planned_result(run, self.settings, self.protocol, self.at_once)

    def missing(self, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Return the runs that have no file; one with other values, or of unknown ones, is the result of another run.

        Raises:
            UserError: a file is damaged.
        """
        found = {result.identity for result in self.read()}
        return [run for run in runs if self._planned(run).identity not in found]

    def save(self, run: PlannedRun, record: Record) -> Path:
        """Write the file of a finished run, with the values that it was started with. Returns its path.

        Raises:
            UserError: its config.json is damaged, or of a newer version.
        """
        config = from_dict(type(run.config), record.content["config"], str(run.folder))
        planned = self._planned(replace(run, config=config))
        compute = record.content.get("extra", {}).get("compute", {})
        curve = record.curves["frames"]
        content = asdict(planned) | {
            "score": record.final,
            "area": record.area,
            "evaluations": [[float(x), float(y)] for x, y in zip(curve.x, curve.y, strict=True)],
            "hours": round(record.hours, 4),
            "processor": _processor(record.content),
            "threads": compute.get("threads", 0),
            "precision": compute.get("precision", planned.precision),
            "load": round(os.getloadavg()[2], 1),
            "git_commit": record.content.get("git_commit"),
            "versions": record.content.get("versions", {}),
            "created": str(record.content.get("created", ""))[:10],
        }
        self.path.mkdir(parents=True, exist_ok=True)
        return write_json(self.path / planned.file_name, content)

    def read(self) -> list[Result]:
        """Read all files, in the order of environment, method and seed.

        Raises:
            UserError: a file is damaged.
        """
        results = [read_result(path) for path in sorted(self.path.glob("*.json"))]
        return sorted(results, key=lambda result: (result.env, _label(result), result.seed))


def _processor(content: Mapping[str, Any]) -> str:
    """Return the processor or the GPU of a run, as its config.json names it, or "unknown"."""
    machine, device = content.get("machine", {}), content.get("extra", {}).get("compute", {}).get("device", "")
    if device.startswith("cuda"):
        gpus, index = machine.get("gpus", []), int(device.partition(":")[2] or 0)
        return str(gpus[index]) if index < len(gpus) else "unknown"
    return str(machine.get("processor") or machine.get("cpu") or "unknown")  # older runs have the model only


def read_result(path: Path) -> Result:
    """Read the file of a finished run. Of its values those that were renamed or added since are brought up to date.

    Raises:
        UserError: it is damaged, or of another kind.
    """
    number = (int, float)
    content = read_json(
        path,
        "restore it, or remove it and repeat the command",
        env=str,
        preset=str,
        settings=list,
        protocol=str,
        total_steps=int,
        seed=int,
        score=number,
        hours=number,
        evaluations=list,
        processor=str,
        threads=int,
        load=number,
    )
    try:
        content["config"] = _values_of_today(content["preset"], content.get("config"), path)
        return Result(**{name: _tuples(value) for name, value in content.items()})
    except TypeError as error:
        raise UserError(f"{path} was written by another version of zerokara ({error}): remove it.") from None


def _values_of_today(preset: str, values: Any, path: Path) -> dict[str, Any] | None:
    """Return values of a file as this version has them; None if there are none.

    They stay as they are if this version does not know the preset or one of the options, or no longer allows a value:
    the file is then the result of a method that this version does not have.
    """
    if values is not None and not isinstance(values, dict):
        raise TypeError("config is no mapping")
    if values is None or preset not in PRESETS:
        return values
    _, config_class, _, name = PRESETS[preset]
    try:
        return method_values(from_dict(config_class, {"preset": name, **values}, str(path)))
    except UserError:
        return values


def _tuples(value: Any) -> Any:
    """Convert lists, also nested ones, to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# ---- the page


def sections(results: Sequence[Result]) -> list[Section]:
    """Make the tables of all results."""
    return [_methods(results), _games(results), _runs(results)]


def _by(results: Iterable[Result], key: str) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(getattr(result, key), []).append(result)
    return groups


def _label(result: Result) -> str:
    """Name of a method with the hash of its values, and with its protocol if that is not the usual one."""
    protocol = "" if result.protocol == "nature" else f"{result.protocol}, "
    return f"{result.method} ({protocol}settings {result.settings_hash})"


def _methods(results: Sequence[Result]) -> Section:
    """Table of methods: aggregates over their games."""
    rows = []
    for label in sorted({_label(result) for result in results}):
        own = [result for result in results if _label(result) == label]
        games = {env: runs for env, runs in _by(own, "env").items() if reference_scores(env) is not None}
        scores = [[run.normalized or 0.0 for run in runs] for runs in games.values()]
        values = [str(estimate(f, scores)) for f in AGGREGATES.values()] if scores else ["-"] * len(AGGREGATES)
        hours = f"{sum(run.hours for run in own):.1f}"
        rows.append([label, str(len(games)), str(len(own)), *values, *map(_predicted(games), REGRESSIONS), hours])
    errors = "; ".join(f"{name}: {regression.error:.1%}" for name, regression in REGRESSIONS.items())
    note = (
        "Human-normalized scores of Atari games: random play 0, human 1. Brackets: 95% confidence interval, stratified "
        "bootstrap over "
        "runs (Agarwal et al. 2021); none where a game has a single run. Rows with different games cannot be compared. "
        "The last columns but one predict the median of 57 games from five or ten (Aitchison et al. 2023), where there "
        f"are runs of all of these; mean relative error of the prediction in cross-validation, {errors}. The "
        f"regressions were fitted to algorithms whose median is above {FITTED_ABOVE}; predictions below it (*) "
        "extrapolate, and their error is not known. Settings: hash of the values of all options that count, which are "
        "in the file of the result; it differs if a preset has changed or has values of its own for a game. Unknown: a "
        "file of an older version."
    )
    columns = [
        "method, steps",
        "Atari games",
        "runs",
        *AGGREGATES,
        *(f"median of 57 by {name}" for name in REGRESSIONS),
    ]
    return Section("Methods", [*columns, "hours"], rows, note)


def _predicted(games: Mapping[str, Sequence[Result]]) -> Any:
    """Return a function: name of a set of games -> predicted median as text, "-" without runs of all its games."""

    def predict(name: str) -> str:
        regression = REGRESSIONS[name]
        if not all(env_id(game) in games for game in regression.coefficients):
            return "-"
        means = {
            game: sum(run.normalized or 0.0 for run in games[env_id(game)]) / len(games[env_id(game)])
            for game in regression.coefficients
        }
        median = regression.predict(means)
        return f"{median:.3g} (error {regression.error * median:.2g})" if median >= FITTED_ABOVE else f"{median:.3g}*"

    return predict


def _games(results: Sequence[Result]) -> Section:
    """Table of games: mean score of each method."""
    rows = []
    for env, of_env in _by(results, "env").items():
        for label in sorted({_label(result) for result in of_env}):
            runs = [result for result in of_env if _label(result) == label]
            normalized = [run.normalized for run in runs if run.normalized is not None]
            rows.append(
                [
                    env,
                    label,
                    ", ".join(str(run.seed) for run in runs),
                    str(estimate(mean, [[run.score for run in runs]])),
                    ", ".join(f"{run.score:,.1f}" for run in runs),
                    str(estimate(mean, [normalized])) if normalized else "-",
                ]
            )
    note = (
        "Mean raw returns of the last evaluation. Normalized: random play 0; human 1 in Atari games, scripted expert 1 "
        "in the arcade games of zerokara. The interval of a single game with three seeds is too narrow."
    )
    columns = ["game", "method, steps", "seeds", "mean", "of each seed", "normalized"]
    return Section("Games", columns, rows, note)


def _threads(result: Result) -> str:
    return f"{result.threads or 'unknown'} thread{'s' * (result.threads != 1)}"


def _runs(results: Sequence[Result]) -> Section:
    """Table of runs: hours and hardware."""
    rows = [
        [
            f"{result.env}, {_label(result)}, seed {result.seed}",
            f"{result.score:,.1f}",
            f"{result.hours:.2f}",
            f"{result.processor}, {_threads(result)}, {result.precision}",
            f"{result.at_once} at once, load {result.load:.1f}",
            (result.git_commit or "unknown")[:7],
            result.created,
        ]
        for result in results
    ]
    note = (
        "Hours of wall clock, evaluations included. The last column but two is about the machine and the command that "
        "wrote the file of the result, at that time: runs at once at most, and mean load of 15 minutes. They are those "
        "of the run only if the run ended there and then, as without --ray-address; with a load above the cores, hours "
        "are then upper bounds."
    )
    columns = ["run", "score", "hours", "hardware", "when its file was written", "commit", "started"]
    return Section("Runs", columns, rows, note)


def summary(results: Sequence[Result]) -> str:
    """Return a paragraph that says how much there is, and what follows from it."""
    if not results:
        return "There is no result yet."
    groups: dict[tuple[str, str], int] = {}
    for result in results:
        groups[result.env, _label(result)] = groups.get((result.env, _label(result)), 0) + 1
    games = len({result.env for result in results if result.env.startswith("ALE/")})
    few = sum(number < FEW_SEEDS for number in groups.values())
    text = (
        f"{format_count(len(results), 'run')}: {len({_label(r) for r in results})} method(s), {games} of 57 "
        f"Atari games. {few} of {len(groups)} pairs of game and method have fewer than {FEW_SEEDS} seeds"
    )
    text += "; such means say nothing about the spread." if few else "."
    protocols = "; ".join(f"{name}: {PROTOCOLS[name].score}" for name in sorted({r.protocol for r in results}))
    return f"{text} Scores ({protocols})."


def write_page(path: Path, results: Sequence[Result]) -> Path:
    """Write the tables between the markers of a page; a page without markers gets them at its end.

    Raises:
        UserError: the page has only one of the two markers.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# Evidence\n"
    if text.count(BEGIN) != text.count(END) or text.count(BEGIN) > 1:
        raise UserError(f"{path} must have the lines {BEGIN} and {END} once each, or neither: correct the page.")
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [section.markdown() for section in sections(results)] if results else []
    content = "\n\n".join([summary(results), *tables])
    page = f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path
