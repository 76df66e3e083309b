"""Measure and model how training scales: on one machine, on hosts with slow links, and extrapolated to 1,000 nodes.

    python -m benchmarks.scaling local            # 1, 2 and 4 processes on this machine; records each job
    sudo python -m benchmarks.scaling hosts       # 1, 2, 4 and 8 network namespaces as hosts, links of three rates
    python -m benchmarks.scaling report           # cost model, tables and chart; computes nothing else

docs/scaling.md describes the protocol. The results are one JSON file, which is written after each measurement: the same
command continues where an interrupted one ended, and --again measures anew what is asked for. `report` replaces the
tables of the page and the chart. Only `hosts` needs root; what it writes belongs to the user who called sudo.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling import hosts, jobs, measuring, report
from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, run_main
from zerokara.core.report import read_json, write_json

PARTS = ("local", "hosts", "report")
# Options that change what is measured. Others, such as the number of repeats, may differ between measurements.
FIXED = ("batch_size", "image_size", "width", "env", "num_envs", "precision", "compile", "gradient_compression")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: a number of processes, hosts or repeats is below 1, or a rate is not above 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; none: all of them")
    parser.add_argument("--jobs", nargs="+", choices=jobs.JOBS, default=list(jobs.JOBS), help="what to measure")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], help="on this machine")
    parser.add_argument("--hosts", nargs="+", type=int, default=[1, 2, 4, 8], help="network namespaces")
    parser.add_argument("--rates", nargs="+", type=float, default=[100, 1_000, 10_000], help="of links, in Mb/s")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a measurement of training")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of training of each side")
    parser.add_argument("--learn-first", type=int, default=2, help="iterations before the first measurement")
    parser.add_argument("--replay-seconds", type=float, default=3.0, help="length of a measurement on hosts")
    jobs.add_arguments(parser)
    parser.add_argument("--results", default="docs/results/scaling.json", help="JSON file")
    parser.add_argument("--page", default="docs/scaling.md", help="page whose tables `report` replaces")
    parser.add_argument("--chart", default="docs/images/scaling.png", help="PNG file that `report` draws")
    parser.add_argument("--again", action="store_true", help="measure anew what the JSON file has")
    arguments = parser.parse_args(argv)
    for part in arguments.parts:
        if part not in PARTS:
            raise UserError(f"There is no part {part!r}: name {', '.join(PARTS)}, or none for all of them.")
    for name in ("processes", "hosts", "rates"):
        if min(getattr(arguments, name)) < (1 if name != "rates" else 1e-3):
            raise UserError(f"--{name} {min(getattr(arguments, name)):g} is too small: give 1 or more.")
    if arguments.repeats < 1 or arguments.learn_first < 1:
        raise UserError("--repeats and --learn-first must be 1 or more.")
    arguments.parts = arguments.parts or list(PARTS)
    return arguments


def open_results(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the results so far; with --again, forget those that are measured anew.

    Raises:
        UserError: the file is damaged, or the parts measure and it has results of other options.
    """
    path = Path(arguments.results)
    results: dict[str, Any] = {"arguments": {}, "machines": {}, "recordings": {}, "local": {}, "hosts": {}}
    if path.exists():
        results = read_json(path, "delete it, or name another file by --results", **dict.fromkeys(results, dict))
    if arguments.again:
        measuring.forget(results, arguments)
    measures = bool(set(arguments.parts) & {"local", "hosts"})
    options = {name: getattr(arguments, name) for name in FIXED}
    saved = {name: results["arguments"].get(name, value) for name, value in options.items()}
    different = [name for name in FIXED if saved[name] != options[name]]
    if measures and different and results["recordings"]:
        raise UserError(
            f"{path} has results with --{different[0].replace('_', '-')} {saved[different[0]]}: give this value, or "
            f"another file by --results."
        )
    if measures:
        results["arguments"] = options | {
            name: sorted(set(results["arguments"].get(name, [])) | set(getattr(arguments, name)))
            for name in ("processes", "hosts", "rates")
        }
    compression = results["arguments"].get("gradient_compression", "none")
    if compression != "none" and arguments.parts != ["local"]:
        raise UserError(
            f"hosts and report cannot be used with --gradient-compression {compression}, which neither the repetition "
            f"nor the cost model has: start only the part local, or measure without it in another file by --results."
        )
    return results


@contextlib.contextmanager
def owned_by_caller(path: Path) -> Iterator[None]:
    """Create the folder of a file; after the block, give what is new to the user who called sudo."""
    folders = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if os.geteuid() == 0 and {"SUDO_UID", "SUDO_GID"} <= os.environ.keys():
            for each in (path, *folders):
                if each.exists():
                    os.chown(each, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write results, tables and chart.

    Raises:
        UserError: a wrong option, namespaces that cannot be created, or a report without measurements.
    """
    arguments = read_arguments(argv)
    if "hosts" in arguments.parts:
        hosts.check_namespaces()
    path, results = Path(arguments.results), open_results(arguments)

    def save() -> None:
        with owned_by_caller(path):
            write_json(path, results)

    with hosts.ending_by_exception():
        measure(arguments, results, save)
    if "report" in arguments.parts:
        write_report(arguments, results)


def measure(arguments: argparse.Namespace, results: dict[str, Any], save: measuring.Save) -> None:
    """Do the measurements that are missing.

    Raises:
        UserError: the kernel refused the namespaces, a job was not recorded, or another machine has measured before.
    """
    machine = measuring.describe()
    if "local" in arguments.parts:
        measuring.measure_local(results, arguments, machine, save)
    if "hosts" in arguments.parts:
        absent = [job for job in arguments.jobs if job not in results["recordings"]]
        if absent:
            raise UserError(f"{arguments.results} has no recording of {absent[0]}: start the part local first.")
        measuring.measure_hosts(results, arguments, machine, save)


def write_report(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print the tables, write them into the page if there is one, and draw the chart.

    Raises:
        UserError: there are no results, or the page has no place for the tables.
    """
    if not results["recordings"]:
        raise UserError(f"{arguments.results} has no results: start the parts local and hosts first.")
    content = report.tables(results)
    page = Path(arguments.page)
    if page.exists():
        text = report.replace_tables(page.read_text("utf-8"), content)
        with owned_by_caller(page):
            write_atomically(page, lambda file: file.write(text.encode()))
    chart = Path(arguments.chart)
    with owned_by_caller(chart):
        report.draw(results, chart)
    print(content)


if __name__ == "__main__":
    run_main(main)
