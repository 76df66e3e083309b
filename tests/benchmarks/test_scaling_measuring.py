"""Tests of benchmarks.scaling: what is measured, measured anew, and saved, and the processes that measure."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import hosts, measuring, worker
from benchmarks.scaling.group import Group, make_store
from benchmarks.scaling.recording import Event, Recording
from zerokara.core.compute import Compute
from zerokara.core.config import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--batch-size", "4", "--image-size", "32", "--width", "0.125", "--env", "zerokara/Catch-v0", "--num-envs", "4"),
    *("--seconds", "0.01", "--repeats", "2", "--learn-first", "1"),
)
MACHINE = {"date": "2026-11-30", "commit": "a", "load_at_start": 0.1, "cpu": "X", "cores_usable": 2, "torch": "2"}
START = {"date": "2026-11-30", "commit": "a", "load_at_start": 0.1}
RECORDING = Recording(1, {"2 elements": [2]}, (Event("mean_gradients", (0.5,), "2 elements"), Event("end", (0.5,))))
JOBS = ("classify", "dqn")


class InProcess(Group):
    """Group whose workers are objects of this process; each trains alone."""

    def __init__(self, prefixes: Sequence[Sequence[str]], variables: Mapping[str, str] | None = None) -> None:
        super().__init__(())
        self.workers = [worker.Worker() for _ in prefixes]

    def ask(self, orders: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Call the methods one after another."""
        answers = []
        for number, order in orders.items():
            arguments = dict(order)
            do = arguments.pop("do")
            answers.append({} if do == "join" else getattr(self.workers[number], do)(**arguments))
        return answers


class Answering(InProcess):
    """Group that only counts orders."""

    orders: list[tuple[str, Any]]

    def ask(self, orders: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the same measurement for each order."""
        self.orders.extend((order["do"], order.get("job", order.get("size"))) for order in orders.values())
        return [{"items": 1, "seconds": 1.0, "sent": 2.0, **RECORDING.to_dict()} for _ in orders]


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Measure nothing; return the list to which the orders are added."""

    @contextlib.contextmanager
    def no_hosts(number: int) -> Iterator[list[str]]:
        yield [str(host) for host in range(number)]

    monkeypatch.setattr(Answering, "orders", [], raising=False)
    monkeypatch.setattr(measuring, "Group", Answering)
    monkeypatch.setattr(hosts, "check_namespaces", lambda: None)
    monkeypatch.setattr(hosts, "hosts", no_hosts)
    monkeypatch.setattr(hosts, "set_rate", lambda names, rate: None)
    monkeypatch.setattr(measuring, "describe", lambda: dict(MACHINE))
    return Answering.orders


@pytest.fixture
def path(orders: list[tuple[str, Any]], tmp_path: Path) -> Path:
    """Return results of two jobs, of 1 and 2 processes and hosts, and of two rates."""
    path = tmp_path / "results" / "r.json"
    measure(path, "local", "hosts")
    orders.clear()
    return path


def measure(path: Path, *words: str, jobs: Sequence[str] = JOBS) -> dict[str, Any]:
    """Start the program, and return the results."""
    numbers = ("--processes", "1", "2", "--hosts", "1", "2", "--rates", "100", "1000")
    scaling.main([*numbers, "--jobs", *jobs, *TINY, "--results", str(path), *words])
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def test_each_measurement_has_its_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads(path.read_text())
    later = {"date": "2026-12-01", "commit": "b", "load_at_start": 3.0}
    monkeypatch.setattr(measuring, "describe", lambda: {**MACHINE, **later})
    results = measure(path, "local", "hosts", "--processes", "1", "4", "--hosts", "4")
    assert results["machines"] == {"local": MACHINE, "hosts": MACHINE}
    entry = results["local"]["dqn"]
    assert [entry[number]["start"] for number in "124"] == [START, START, later]
    assert results["recordings"]["dqn"]["start"] == START
    new = {measuring.key(rate, 4) for rate in (100, 1_000)}
    for name, entry in results["hosts"].items():
        for group in entry.values():
            assert [each["start"] for each in group.values()] == [later if name in new else START] * len(group)
    assert {name: results["hosts"][name] for name in first["hosts"]} == first["hosts"]


@pytest.mark.parametrize(("name", "value"), [("cpu", "Y"), ("cores_usable", 4), ("torch", "3")])
@pytest.mark.parametrize("part", ["local", "hosts"])
def test_another_machine_is_refused(
    part: str, name: str, value: object, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_text()
    monkeypatch.setattr(measuring, "describe", lambda: {**MACHINE, name: value})
    measure(path, part)  # all of it has been measured
    with pytest.raises(UserError, match=f"{MACHINE[name]}, and this is {value}: give another file"):
        measure(path, part, "--processes", "4", "--hosts", "4")
    assert json.loads(path.read_text())["local"] == json.loads(before)["local"]
    results = measure(path, part, "--again")
    assert results["machines"][part][name] == value


def test_again_repeats_the_jobs_rates_and_hosts_asked_for(path: Path, orders: list[tuple[str, Any]]) -> None:
    before = json.loads(path.read_text())
    results = measure(path, "hosts", "--again", "--rates", "100", "--hosts", "2", jobs=["dqn"])
    assert results == before  # the same measurements: none is lost
    sizes = measuring.all_sizes([RECORDING])
    assert [size for do, size in orders if do == "all_reduce"][:: 2 * measuring.REPEATS] == sizes
    assert [do for do, _ in orders].count("replay") == 2


def test_few_hosts_average_in_several_rings_at_the_same_time(orders: list[tuple[str, Any]], tmp_path: Path) -> None:
    """Of eight hosts, 3 form two rings, and two do nothing; iterations are repeated by the first ring alone."""
    path = tmp_path / "r.json"
    measure(path, "local", jobs=["dqn"])
    for number, busy, rings in ((2, 8, 4), (3, 6, 2), (8, 8, 1)):
        orders.clear()
        results = measure(path, "hosts", "--hosts", str(number), "8", "--rates", "100", "--again", jobs=["dqn"])
        sizes = measuring.all_sizes([RECORDING])
        expected = len(sizes) * measuring.REPEATS * (busy + (8 if number < 8 else 0))
        assert [do for do, _ in orders].count("all_reduce") == expected
        assert [do for do, _ in orders].count("join") == busy + (8 if number < 8 else 0)
        assert [do for do, _ in orders].count("replay") == number + (8 if number < 8 else 0)
        answers = results["hosts"][measuring.key(100, number)]["collectives"].values()
        assert {answer["rings"] for answer in answers} == {rings}


def test_again_of_local_drops_what_hosts_repeated(path: Path, orders: list[tuple[str, Any]]) -> None:
    before = json.loads(path.read_text())
    results = measure(path, "local", "--again", "--processes", "2", jobs=["dqn"])
    assert [job for do, job in orders if do == "record"] == ["dqn"]
    assert results["local"] == before["local"]
    for name, entry in results["hosts"].items():
        assert list(entry["jobs"]) == ["classify"]
        assert entry["collectives"] == before["hosts"][name]["collectives"]
    assert measure(path, "hosts")["hosts"] == before["hosts"]


def test_what_is_measured_on_one_host_is_saved_for_all_rates(path: Path) -> None:
    entries = json.loads(path.read_text())["hosts"]
    alone = [entries[measuring.key(rate, 1)]["jobs"] for rate in (100, 1_000)]
    assert alone == [{job: {"seconds": 1.0, "sent": 2, "start": START} for job in JOBS}] * 2


def test_a_copied_measurement_is_written(path: Path) -> None:
    """The last measurement of a start may be a copy of that at another rate."""
    results = json.loads(path.read_text())
    expected = copy.deepcopy(results["hosts"])
    del results["hosts"][measuring.key(1_000, 1)]["jobs"]["dqn"]
    path.write_text(json.dumps(results))
    assert measure(path, "hosts")["hosts"] == expected


@pytest.mark.parametrize("parts", [["hosts"], ["local", "hosts"], []])
def test_compressed_gradients_are_refused_where_they_are_not_repeated(
    parts: list[str], orders: list[tuple[str, Any]], tmp_path: Path
) -> None:
    words = [*parts, "--gradient-compression", "bfloat16"]
    with pytest.raises(UserError, match="hosts and report cannot be used with --gradient-compression bfloat16"):
        scaling.main([*words, "--results", str(tmp_path / "r.json")])
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "r.json"
    assert measure(path, "local", "--gradient-compression", "bfloat16")["local"]
    with pytest.raises(UserError, match="hosts and report cannot be used with --gradient-compression bfloat16"):
        measure(path, "report")


def test_new_files_and_folders_belong_to_who_called_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, user, group: given.append((path, user, group)))
    path = tmp_path / "a" / "b" / "r.json"

    def write(user: int) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: user)
        with scaling.owned_by_caller(path):
            path.touch()

    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "1001")
    write(0)
    assert given == [(each, 1000, 1001) for each in (path, tmp_path / "a" / "b", tmp_path / "a")]
    given.clear()
    write(1000)
    assert given == []
    monkeypatch.delenv("SUDO_UID")  # root without sudo
    write(0)
    assert given == []


def test_all_processes_are_killed_after_an_error() -> None:
    """The first process has ended without reading its order; the second one sleeps."""
    group = Group([("true",), ("sh", "-c", "sleep 60")])
    processes = group._processes
    processes[0].wait()

    def fail() -> None:
        with group:
            processes[0].stdin.write("order")  # type: ignore[union-attr]
            raise ValueError("an error of the measurement")

    with pytest.raises(ValueError, match="an error of the measurement"):
        fail()
    assert [process.returncode for process in processes] == [0, -9]


def test_stores_have_different_ports() -> None:
    stores = [make_store() for _ in range(3)]
    assert len({store.port for store in stores} - {0}) == 3


def check_local(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a tiny classifier in one and two processes; the second start measures nothing."""
    words = ["local", "--jobs", "classify", "--processes", "1", "2", "--results", str(path), *TINY]
    scaling.main(words)
    results = json.loads(path.read_text())
    entry = results["local"]["classify"]
    assert {number: list(sides) for number, sides in entry.items()} == {
        "1": ["together", "start"],
        "2": ["together", "independent", "threads", "start"],
    }
    sides = [side for each in entry.values() for name, side in each.items() if name != "start"]
    assert [len(side["values"]) for side in sides] == [2] * 4
    assert Recording.from_dict(results["recordings"]["classify"]).items == 4
    monkeypatch.setattr(measuring, "Group", None)  # nothing is measured again
    scaling.main(words)
    assert json.loads(path.read_text())["local"] == results["local"]


def test_a_classifier_is_measured_and_an_interrupted_program_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "Group", InProcess)
    monkeypatch.setattr(worker, "make_compute", lambda options, threads: Compute())
    check_local(tmp_path / "results" / "r.json", monkeypatch)


@pytest.mark.slow
def test_processes_are_measured_and_an_interrupted_program_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the processes import benchmarks from the working folder
    check_local(tmp_path / "results" / "r.json", monkeypatch)
