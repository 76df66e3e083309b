"""Tables and chart of the results of `benchmarks.scaling`, made of its JSON file alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.scaling.jobs import JOBS
from benchmarks.scaling.measuring import key
from benchmarks.scaling.model import (
    VOTE_BYTES,
    Fit,
    Link,
    Phase,
    Sample,
    fit,
    iteration_seconds,
    predict,
    ring_bytes,
)
from benchmarks.scaling.recording import Recording, phases
from zerokara.core.config import UserError
from zerokara.core.report import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN, END = "<!-- benchmarks.scaling report: begin -->", "<!-- end -->"
FITTED = 4  # hosts at most whose measurements the model is fitted to
CHECKED = 8  # hosts whose measurements are predicted
NODES = 1_000
BUSY = 0.7  # load average from which other programs take time of the measurement
# Latency of a step: NCCL's own estimates for its protocol for large messages (src/graph/tuning.cc), 14 microseconds
# over a network and 3.4 over NVLink. NVLink: 450 GB/s in each direction, of an H100.
LINKS = {
    "10 Gb/s": Link(14e-6, 10e9 / 8),
    "25 Gb/s": Link(14e-6, 25e9 / 8),
    "100 Gb/s": Link(14e-6, 100e9 / 8),
    "400 Gb/s": Link(14e-6, 400e9 / 8),
    "NVLink": Link(3.4e-6, 450e9),
}
FACTORS = {1: "as measured (one core)", 50: "50 times as fast (assumed)"}
PROVISIONAL = " (provisional)"  # after a number that other programs have changed
MARKERS = {"computation": "o", "latency": "^", "bandwidth": "s"}


@dataclass(frozen=True)
class Check:
    """Prediction for hosts whose measurement was not used in the fit."""

    rate: float
    what: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1


def samples(results: Mapping[str, Any]) -> list[Sample]:
    """Return all measured all-reduces over several hosts."""
    arguments = results["arguments"]
    return [
        Sample(rate * 1e6 / 8, number, int(size), answer["seconds"], answer.get("rings", 1))
        for rate in arguments["rates"]
        for number in arguments["hosts"]
        if number > 1
        for size, answer in results["hosts"].get(key(rate, number), {}).get("collectives", {}).items()
    ]


def fitted(results: Mapping[str, Any]) -> Fit:
    """Fit the model to the measurements of at most `FITTED` hosts.

    Raises:
        UserError: there are too few.
    """
    used = [sample for sample in samples(results) if sample.hosts <= FITTED]
    if len({sample.hosts for sample in used}) < 2 or len({sample.size for sample in used}) < 2:
        raise UserError(
            "The cost model needs all-reduces of 2 and 4 hosts: measure them first with python -m benchmarks.scaling "
            "hosts, as root."
        )
    return fit(used)


def job_phases(results: Mapping[str, Any]) -> dict[str, list[Phase]]:
    """Return the recorded iteration of each job."""
    return {job: phases(Recording.from_dict(plain)) for job, plain in results["recordings"].items()}


def check_collectives(results: Mapping[str, Any], model: Fit) -> list[Check]:
    """Return predicted and measured seconds of each all-reduce over `CHECKED` hosts."""
    return [
        Check(
            sample.rate * 8 / 1e6,
            format_bytes(sample.size),
            sample.seconds,
            model.seconds(sample.rate, sample.hosts, sample.size, sample.rings),
        )
        for sample in samples(results)
        if sample.hosts == CHECKED
    ]


def check_jobs(results: Mapping[str, Any], model: Fit) -> list[Check]:
    """Return predicted and measured seconds of an iteration of each job over `CHECKED` hosts.

    The computation is that measured on one host, sleeps included, which are a little longer than those asked for.
    """
    return [
        Check(rate, job, seconds[CHECKED], predicted_seconds(recorded, model, rate, CHECKED, seconds[1]))
        for rate in results["arguments"]["rates"]
        for job, recorded in job_phases(results).items()
        if {1, CHECKED} <= (seconds := measured_seconds(results, job, rate)).keys()
    ]


def measured_seconds(results: Mapping[str, Any], job: str, rate: float) -> dict[int, float]:
    """Return the measured seconds of an iteration of a job by number of hosts, over links of a rate in Mb/s."""
    answers = {
        number: results["hosts"].get(key(rate, number), {}).get("jobs", {}).get(job)
        for number in results["arguments"]["hosts"]
    }
    return {number: answer["seconds"] for number, answer in answers.items() if answer}


def predicted_seconds(recorded: Sequence[Phase], model: Fit, rate: float, number: int, one: float) -> float:
    """Return the seconds of an iteration over several hosts, where that on one host takes `one` seconds."""
    cost = {size: model.seconds(rate * 1e6 / 8, number, size) for phase in recorded for _, size in phase.messages}
    return one + iteration_seconds(recorded, cost.__getitem__) - iteration_seconds(recorded, lambda size: 0.0)


def tables(results: Mapping[str, Any]) -> str:
    """Return all tables of the page, as Markdown."""
    parts = [_machine_lines(results), _local_table(results), _threads_table(results)]
    if results["hosts"]:
        model = fitted(results)
        parts += [_bytes_table(results), _hosts_table(results), _model_table(results, model)]
    if results["recordings"]:
        parts.append(_extrapolation_table(results))
    return "\n\n".join(part for part in parts if part)


def _machine_lines(results: Mapping[str, Any]) -> str:
    """Return when and where each part was measured, and if other programs were running."""
    local = (*results["recordings"].values(), *(each for entry in results["local"].values() for each in entry.values()))
    groups = [group for entry in results["hosts"].values() for group in entry.values()]
    measured = {"local": local, "hosts": [each for group in groups for each in group.values()]}
    lines = []
    for part, machine in results["machines"].items():
        starts = [_start(results, part, each) for each in measured[part]] or [machine]
        dates = sorted({start["date"] for start in starts})
        load = max(start["load_at_start"] for start in starts)
        line = (
            f"- `{part}`: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machine['cpu']}, "
            f"{machine['cores_usable']} cores, PyTorch {machine['torch']}; load average {load:.1f} before the "
            f"{'measurement' if len({str(start) for start in starts}) == 1 else 'measurements at most'}"
        )
        busy = load > BUSY
        lines.append(f"{line}: **other programs were running, so these figures are provisional**" if busy else line)
    return "\n".join(lines)


def _start(results: Mapping[str, Any], part: str, measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return date and load of a measurement; one without them is of the first start of the part."""
    start: Mapping[str, Any] = measured.get("start") or results["machines"][part]
    return start


def _mark(results: Mapping[str, Any], *measured: Mapping[str, Any]) -> str:
    """Return what follows a result of these measurements on one machine: nothing if no other program was running."""
    busy = any(_start(results, "local", each)["load_at_start"] > BUSY for each in measured)
    return PROVISIONAL if busy else ""


def _local_table(results: Mapping[str, Any]) -> str:
    rows = []
    for job, entry in results["local"].items():
        if "1" not in entry:
            continue
        one = entry["1"]["together"]["median"]
        cells = [f"{one:,.1f} {JOBS[job].unit}/s"]
        for number in results["arguments"]["processes"]:
            if number == 1:
                continue
            sides = entry.get(str(number), {})
            if not sides:
                cells += ["-", "-"]
                continue
            together, independent = (sides[side]["median"] for side in ("together", "independent"))
            mark = _mark(results, entry["1"], sides)
            cells += [f"{together / one:.2f}{mark}", f"{together / independent:.2f}"]
        rows.append([job, *cells])
    numbers = [number for number in results["arguments"]["processes"] if number > 1]
    heads = [f"{number} processes: {what}" for number in numbers for what in ("speed-up", "of independent ones")]
    return _section("On one machine", ["job", "1 process", *heads], rows)


def _threads_table(results: Mapping[str, Any]) -> str:
    rows = []
    for job, entry in results["local"].items():
        sides = entry.get("2", {})
        if "threads" not in sides:
            continue
        processes, threads = sides["together"], sides["threads"]
        ratio = processes["median"] / threads["median"]
        faster = "processes" if min(processes["values"]) > max(threads["values"]) else "no difference"
        if max(processes["values"]) < min(threads["values"]):
            faster = "threads"
        values = [f"{side['median']:,.1f}" for side in (processes, threads)]
        rows.append([job, *values, f"{ratio:.2f}", f"{faster}{_mark(results, sides)}"])
    heads = ["job", "2 processes of 1 thread", "1 process of 2 threads", "ratio", "faster"]
    return _section("Two processes or two threads", heads, rows)


def _bytes_table(results: Mapping[str, Any]) -> str:
    rows = []
    rate = max(results["arguments"]["rates"])
    numbers = [number for number in results["arguments"]["hosts"] if number > 1]
    for job, recorded in job_phases(results).items():
        sizes = [size for phase in recorded for _, size in phase.messages]
        votes = sizes.count(VOTE_BYTES)
        cells = [f"{sum(phase.seconds for phase in recorded):.3f}", f"{len(sizes) - votes} + {votes}"]
        cells.append(format_bytes(sum(sizes)))
        for number in numbers:
            answer = results["hosts"].get(key(rate, number), {}).get("jobs", {}).get(job)
            expected = sum(ring_bytes(size, number) for size in sizes)
            cells.append(f"{format_bytes(answer['sent'])} ({answer['sent'] / expected:.2f})" if answer else "-")
        rows.append([job, *cells])
    heads = ["job", "computation, s", "averages + votes", "their bytes", *(f"sent, {n} hosts" for n in numbers)]
    return _section("Messages of an iteration", heads, rows)


def _hosts_table(results: Mapping[str, Any]) -> str:
    rows = []
    numbers = [number for number in results["arguments"]["hosts"] if number > 1]
    for job in results["recordings"]:
        for rate in results["arguments"]["rates"]:
            measured = {
                number: results["hosts"].get(key(rate, number), {}).get("jobs", {}).get(job) for number in (1, *numbers)
            }
            one = measured[1]
            if one is None:
                continue
            cells = [
                f"{one['seconds'] / answer['seconds']:.3f}" if (answer := measured[number]) else "-"
                for number in numbers
            ]
            rows.append([job, format_rate(rate), *cells])
    return _section("Efficiency on hosts", ["job", "links", *(f"{number} hosts" for number in numbers)], rows)


def _model_table(results: Mapping[str, Any], model: Fit) -> str:
    used = ", ".join(str(number) for number in results["arguments"]["hosts"] if 1 < number <= FITTED)
    line = (
        f"Fitted to {used} hosts: {1e6 * model.step:.0f} µs for a step, {1e6 * model.message:.1f} µs of the cores for "
        f"a message, {1e6 * model.wait:.1f} µs for each host that waits, {model.overhead:.3f} bytes on the wire for a "
        f"byte, and of the cores {1e9 * model.core_byte:.2f} ns to send a byte and {1e9 * model.copy_byte:.2f} ns to "
        f"copy one."
    )
    rows = []
    for name, checks in (
        ("all-reduces", check_collectives(results, model)),
        ("iterations", check_jobs(results, model)),
    ):
        for rate in dict.fromkeys(check.rate for check in checks):
            errors = [check.error for check in checks if check.rate == rate]
            worst = max((check for check in checks if check.rate == rate), key=lambda check: abs(check.error))
            within = sum(abs(error) <= 0.2 for error in errors)
            median = statistics.median(map(abs, errors))
            largest = f"{worst.error:+.0%} ({worst.what}: {worst.predicted:.4f} for {worst.measured:.4f} s)"
            rows.append([name, format_rate(rate), f"{within} of {len(errors)}", f"{median:.0%}", largest])
    heads = ["predicted", "links", "within 20%", "median error", "largest error"]
    return f"{_section(f'Prediction for {CHECKED} hosts', heads, rows)}\n\n{line}"


def _extrapolation_table(results: Mapping[str, Any]) -> str:
    rows = []
    for factor, text in FACTORS.items():
        for job, recorded in job_phases(results).items():
            cells = []
            for link in LINKS.values():
                prediction = predict(recorded, NODES, link, factor)
                cells.append(f"{prediction.efficiency:.0%}, {prediction.bound}")
            rows.append([text, job, *cells])
    heads = ["nodes compute", "job", *LINKS]
    return _section(f"Extrapolation to {NODES:,} nodes", heads, rows)


def _section(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a heading and a table; empty without rows."""
    rows = list(rows)
    if not rows:
        return ""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return f"### {title}\n\n" + "\n".join(lines)


def format_bytes(size: float) -> str:
    """Format a number of bytes: 8 B, 65.5 kB, 6.75 MB."""
    if size < 1_000:
        return f"{size:.0f} B"
    return f"{size / 1e3:.3g} kB" if size < 1e6 else f"{size / 1e6:.3g} MB"


def format_rate(rate: float) -> str:
    """Format a rate given in Mb/s."""
    return f"{rate:g} Mb/s" if rate < 1_000 else f"{rate / 1_000:g} Gb/s"


def replace_tables(page: str, content: str) -> str:
    """Return the text of a page with other tables between its two comments.

    Raises:
        UserError: the page does not have them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"The page has no place for the tables: it needs the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Draw speed-up against number of nodes, a column for each job.

    The first row has the measurements on hosts beside the cost model, the others its extrapolation, for each speed of
    the nodes.
    """
    recorded = job_phases(results)
    nodes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, NODES]
    figure, all_axes = new_figure(len(recorded), 1 + len(FACTORS), width=2.4, height=2.5)
    for job, axes in zip(recorded, all_axes, strict=False):
        draw_measured(results, job, axes)
    panels = iter(all_axes[len(recorded) :])
    for factor, text in FACTORS.items():
        for job, its_phases in recorded.items():
            axes = next(panels)
            axes.plot(nodes, nodes, color="0.6", linestyle="--", linewidth=1, label="ideal")
            for name, link in LINKS.items():
                predictions = [predict(its_phases, number, link, factor) for number in nodes]
                speedups = [p.speedup(number) for p, number in zip(predictions, nodes, strict=True)]
                (line,) = axes.plot(nodes, speedups, linewidth=1.2, label=name)
                axes.plot(nodes[-1], speedups[-1], MARKERS[predictions[-1].bound], color=line.get_color(), markersize=4)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(f"{job}\n{text}", fontsize=8)
            axes.tick_params(labelsize=7)
    for axes in all_axes[:: len(recorded)]:
        axes.set_ylabel("speed-up", fontsize=8)
    for axes in all_axes[-len(recorded) :]:
        axes.set_xlabel("nodes", fontsize=8)
    all_axes[0].legend(fontsize=6, frameon=False)
    handles, labels = all_axes[-1].get_legend_handles_labels()
    from matplotlib.lines import Line2D

    for bound, marker in MARKERS.items():
        handles.append(Line2D([], [], color="black", marker=marker, linestyle="", markersize=4))
        labels.append(f"bound by {bound}")
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7, frameon=False)
    figure.suptitle(
        f"First row: measured on hosts (points) and computed by the cost model (lines). Others: extrapolation by the "
        f"cost model, not measured, up to {NODES:,} nodes",
        fontsize=9,
    )
    return write_figure(path, figure, dpi=90)


def draw_measured(results: Mapping[str, Any], job: str, axes: Axes) -> None:
    """Draw the measured speed-ups of a job on hosts as points, and those of the cost model as lines."""
    numbers = results["arguments"]["hosts"]
    axes.plot(numbers, numbers, color="0.6", linestyle="--", linewidth=1)
    axes.set_title(f"{job}\nmeasured on hosts", fontsize=8)
    axes.tick_params(labelsize=7)
    for index, rate in enumerate(results["arguments"]["rates"]):
        seconds = measured_seconds(results, job, rate)
        if 1 not in seconds:
            continue
        one, recorded, model = seconds[1], job_phases(results)[job], fitted(results)
        predicted = [n * one / predicted_seconds(recorded, model, rate, n, one) if n > 1 else 1.0 for n in numbers]
        axes.plot(numbers, predicted, color=f"C{index}", linewidth=1.2)
        speedups = [number * one / each for number, each in seconds.items()]
        axes.plot(list(seconds), speedups, "o", color=f"C{index}", markersize=4, label=format_rate(rate))
