"""Measurements of `benchmarks.scaling`: on one machine, and on hosts that are network namespaces.

Each measurement is one entry of the results, which are written after it, so that an interrupted program continues where
it was. The key "start" of each has date, load and commit of the start of the program that measured it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil
import torch

from benchmarks.scaling import hosts
from benchmarks.scaling.group import ADDRESS, Group, make_store
from benchmarks.scaling.model import VOTE_BYTES, ring_bytes
from benchmarks.scaling.recording import Recording, phases
from zerokara.agents.pqn import SPIN
from zerokara.core.config import UserError, format_count
from zerokara.core.machine import describe_machine, git_commit

Save = Callable[[], object]
SAME = {"cpu": "the processor", "cores_usable": "usable cores:", "torch": "PyTorch"}  # in all results of a part
STARTED = ("date", "commit", "load_at_start")  # may differ between results
OTHER_SIZES = (1 << 16, 1 << 20)  # bytes of all-reduces that are measured besides those of the jobs
REPEATS = 5  # of an all-reduce
STEP_SECONDS = 1e-3  # of a step of the ring, for the number of all-reduces that are measured


def show(text: str) -> None:
    """Print a line about the progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def describe() -> dict[str, Any]:
    """Return machine, load and versions of this start of the program."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": git_commit(),
        "torch": torch.__version__,
        "load_at_start": round(psutil.getloadavg()[0], 2),
        **describe_machine(),
    }


def add_machine(results: dict[str, Any], part: str, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Save the machine that measures a part, unless its first measurement did. Returns date, commit and load.

    Raises:
        UserError: the part has results of another machine, or of another version of PyTorch.
    """
    first = results["machines"].setdefault(part, machine)
    for name in SAME:
        if first[name] != machine[name]:
            raise UserError(
                f"The results of {part} were measured with {SAME[name]} {first[name]}, and this is {machine[name]}: "
                f"give another file by --results, or measure all of them with --again."
            )
    return {name: machine[name] for name in STARTED}


def measure_local(
    results: dict[str, Any], arguments: argparse.Namespace, machine: Mapping[str, Any], save: Save
) -> None:
    """Measure each job on this machine, with 1, 2, 4 processes of one thread, and record an iteration of it.

    With N processes, those that train together and N that do not communicate take turns. With two, one process of two
    threads that has the items of both is measured as well.
    """
    for job in arguments.jobs:
        entry = results["local"].setdefault(job, {})
        missing = [number for number in arguments.processes if str(number) not in entry]
        if not missing and job in results["recordings"]:
            continue
        start = add_machine(results, "local", machine)
        count = max(arguments.processes) + 1  # the last one has two threads
        variables = dict([SPIN]) if job.startswith("pqn") else {}  # as the program sets it
        with tempfile.TemporaryDirectory() as folder, Group([()] * count, variables) as group:
            if job not in results["recordings"]:
                show(f"{job}: recording")
                options = {**vars(arguments), "folder": f"{folder}/recording"}
                (recording,) = group.ask_all(1, "record", job=job, arguments=options)
                results["recordings"][job] = {**recording, "start": start}
                for measured in results["hosts"].values():  # hosts repeated the recording before
                    measured["jobs"].pop(job, None)
                save()
            for number in missing:
                show(f"{job}: {format_count(number, 'process')}")
                entry[str(number)] = {**_alternate(group, job, number, arguments, folder), "start": start}
                save()


def _alternate(group: Group, job: str, number: int, arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measure items per second of a number of processes that train together, and of the alternatives, in turns."""
    store = make_store()
    group.join(range(number), ADDRESS, store.port, has_store=True)
    sides: dict[str, list[int]] = {"together": list(range(number))}
    if number > 1:
        sides["independent"] = sides["together"]
    if number == 2:
        sides["threads"] = [max(arguments.processes)]
    items: dict[str, int] = {}
    updates: dict[str, int] = {}
    for side, workers in sides.items():
        orders = {}
        for worker in workers:
            # Processes that train together share a run folder; the others have one each.
            own = "" if side == "together" else f"-{worker}"
            options = {**vars(arguments), "folder": f"{folder}/{number}-{side}{own}"}
            threads = 2 if side == "threads" else 1
            order = {"do": "prepare", "key": side, "job": job, "arguments": options, "threads": threads}
            orders[worker] = {**order, "copies": threads, "together": side == "together"}
        items[side] = sum(answer["items"] for answer in group.ask(orders))
        first = {worker: {"do": "train", "key": side, "updates": arguments.learn_first} for worker in workers}
        slowest = max(answer["seconds"] for answer in group.ask(first))
        updates[side] = max(1, math.ceil(arguments.seconds / slowest))
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(arguments.repeats):
        for side, workers in sides.items():
            answers = group.ask({w: {"do": "train", "key": side, "updates": updates[side]} for w in workers})
            each = items[side] / len(workers)
            rates[side].append(sum(each / answer["seconds"] for answer in answers))
    group.ask({worker: {"do": "drop"} for worker in {w for workers in sides.values() for w in workers}})
    group.ask_all(number, "leave")
    return {
        side: {"median": round(statistics.median(values), 2), "values": [round(value, 2) for value in values]}
        for side, values in rates.items()
    }


def measure_hosts(
    results: dict[str, Any], arguments: argparse.Namespace, machine: Mapping[str, Any], save: Save
) -> None:
    """Measure all-reduces, and iterations with sleeps for computation, on hosts with links of several rates.

    All-reduces of few hosts are measured in as many rings at the same time as there are hosts for, so that the cores,
    which the hosts share, have as much to do as with one ring of all hosts. Iterations are repeated by the first ring,
    while the others do nothing.
    """
    recordings = {job: Recording.from_dict(results["recordings"][job]) for job in arguments.jobs}
    sizes = all_sizes(recordings.values())
    missing = {
        (rate, number): todo
        for number in arguments.hosts
        for rate in arguments.rates
        if (todo := _missing(results["hosts"].get(key(rate, number), {}), sizes, recordings))
    }
    if not missing:
        return
    start = add_machine(results, "hosts", machine)
    most = max(arguments.hosts)
    with hosts.hosts(most) as names:
        variables = {"GLOO_SOCKET_IFNAME": hosts.INTERFACE, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # addresses have no names
        with Group([hosts.enter(name) for name in names], variables) as group:
            for number in dict.fromkeys(number for _, number in missing):
                rings = most // number
                for first in range(0, rings * number, number):
                    group.join(range(first, first + number), hosts.address(first), hosts.PORT + number)
                for rate in arguments.rates:
                    if (rate, number) not in missing:
                        continue
                    show(f"{format_count(number, 'host')}, {rate:g} Mb/s")
                    hosts.set_rate(names, rate)
                    entry = results["hosts"].setdefault(key(rate, number), {"collectives": {}, "jobs": {}})
                    for size in missing[rate, number][0]:
                        answer = _measure_all_reduce(group, number, rings, rate, size)
                        entry["collectives"][str(size)] = {**answer, "start": start}
                    save()
                    for job in missing[rate, number][1]:
                        if number == 1 and (same := _measured_alone(results, arguments, job)):
                            entry["jobs"][job] = same
                        else:
                            times = repetitions(recordings[job], number, rate, arguments.replay_seconds)
                            order = {"recording": recordings[job].to_dict(), "updates": times}
                            answer = _slowest(group.ask_all(number, "replay", **order))
                            entry["jobs"][job] = {**answer, "start": start}
                        save()
                group.ask_all(rings * number, "leave")


def _measured_alone(results: dict[str, Any], arguments: argparse.Namespace, job: str) -> dict[str, Any] | None:
    """Return the measurement on one host with a link of another rate, which is not used."""
    for rate in arguments.rates:
        if found := results["hosts"].get(key(rate, 1), {}).get("jobs", {}).get(job):
            return dict(found)
    return None


def key(rate: float, number: int) -> str:
    """Return the key of the results at a rate in Mb/s with a number of hosts."""
    return f"{rate:g} Mb/s, {number} hosts"


def all_sizes(recordings: Iterable[Recording]) -> list[int]:
    """Return the bytes of the all-reduces to measure: those of the jobs, and a few others."""
    found = {size for recording in recordings for phase in phases(recording) for _, size in phase.messages}
    return sorted(found | {VOTE_BYTES, *OTHER_SIZES})


def repetitions(recording: Recording, number: int, rate: float, seconds: float) -> int:
    """Return how many iterations take about this long, at most 20."""
    sizes = [size for phase in phases(recording) for _, size in phase.messages]
    return _times(seconds, recording.seconds + sum(_estimate(size, number, rate) for size in sizes), 20)


def _estimate(size: int, number: int, rate: float) -> float:
    """Return roughly the seconds of an all-reduce."""
    return 2 * (number - 1) * STEP_SECONDS + ring_bytes(size, number) / (rate * 1e6 / 8)


def _times(seconds: float, each: float, most: int) -> int:
    return max(1, min(most, int(seconds / each)))


def _measure_all_reduce(group: Group, number: int, rings: int, rate: float, size: int) -> dict[str, Any]:
    """Measure an all-reduce in each ring a few times, and return the median of the slowest processes."""
    if number == 1:
        return {"seconds": 0.0, "sent": 0.0, "rings": rings}
    times = _times(0.3, _estimate(size, number, rate), 200)
    answers = [_slowest(group.ask_all(rings * number, "all_reduce", size=size, times=times)) for _ in range(REPEATS)]
    return {**sorted(answers, key=lambda answer: answer["seconds"])[REPEATS // 2], "rings": rings}


def _slowest(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the longest time of a process, and the most bytes that one has sent."""
    return {
        "seconds": round(max(answer["seconds"] for answer in answers), 7),
        "sent": round(max(answer["sent"] for answer in answers)),
    }


def _missing(
    entry: dict[str, Any], sizes: list[int], recordings: dict[str, Recording]
) -> tuple[list[int], list[str]] | None:
    """Return the sizes and jobs that were not measured; None: all were."""
    todo = (
        [size for size in sizes if str(size) not in entry.get("collectives", {})],
        [job for job in recordings if job not in entry.get("jobs", {})],
    )
    return todo if any(todo) else None


def forget(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Remove what the parts measure anew: results of the jobs, numbers of processes and hosts, and rates asked for."""
    if "hosts" in arguments.parts:
        plain = [results["recordings"][job] for job in arguments.jobs if job in results["recordings"]]
        sizes = all_sizes(Recording.from_dict(recording) for recording in plain)
        for entry in (results["hosts"].get(key(rate, n), {}) for rate in arguments.rates for n in arguments.hosts):
            _drop(entry.get("collectives", {}), map(str, sizes))
            _drop(entry.get("jobs", {}), arguments.jobs)
        _drop(results["hosts"], [name for name, entry in results["hosts"].items() if not any(entry.values())])
    if "local" in arguments.parts:
        _drop(results["recordings"], arguments.jobs)
        for job in arguments.jobs:
            _drop(results["local"].get(job, {}), map(str, arguments.processes))
        _drop(results["local"], [job for job, entry in results["local"].items() if not entry])
        if not results["recordings"] and not results["local"]:
            results["machines"].pop("local", None)
    if not results["hosts"]:
        results["machines"].pop("hosts", None)


def _drop(entries: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        entries.pop(name, None)
