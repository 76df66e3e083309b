"""Test scheduling on a cluster with an imitation of Ray: lost jobs, signals, resources, messages."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.core.scheduling.fake_ray import Actor, FakeRay
from zerokara.core.config import UserError
from zerokara.core.file_lock import is_locked
from zerokara.core.scheduling import cluster as cluster_module
from zerokara.core.scheduling.cluster import MARK, MAX_LOSSES, ClusterOptions, connect, launcher
from zerokara.core.scheduling.job import Job
from zerokara.core.scheduling.local import LocalProcess
from zerokara.core.scheduling.node import Seen
from zerokara.core.scheduling.pool import ProcessPool

AUTO = ClusterOptions(ray_address="auto")
NODE = {"CPU": 4.0, "GPU": 1.0, "memory": 8e9}
SAVES_ON_SIGTERM = """
import pathlib, signal, sys, time
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(1))
pathlib.Path(sys.argv[1]).touch()
while not done:
    time.sleep(0.01)
print("saved")
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def use(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], **keywords: Any) -> FakeRay:
    """Replace Ray by an imitation."""
    ray = FakeRay(nodes or (NODE,), **keywords)
    monkeypatch.setattr(cluster_module, "_import_ray", lambda: ray)
    return ray


def run(
    jobs: Sequence[Job], on_poll: Callable[[Sequence[Job]], None] = lambda jobs: None
) -> tuple[ProcessPool, dict[str, tuple[int, str]], list[str]]:
    """Run jobs on the cluster. Returns the pool, the exit codes and last lines, and the warnings."""
    ended: dict[str, tuple[int, str]] = {}
    warnings: list[str] = []
    with connect(AUTO, warnings.append) as cluster:
        pool = ProcessPool(
            9, {}, lambda job, code, line: ended.update({job.name: (code, line)}), on_poll, launcher(cluster)
        )
        pool.run(jobs)
    return pool, ended, warnings


def job(name: str, code: str, *words: str, **keywords: Any) -> Job:
    return Job(name, ("-S", "-c", code, *words), Path("logs") / f"{name}.log", **keywords)


def test_jobs_end_with_their_codes_and_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(monkeypatch)
    good = job("good", "print('one'); print('two')", memory={"main": int(5e9), "cuda:0": 1})
    large = job("large", "import sys; sys.exit('error: It went wrong.')", memory={"main": int(9e9)})
    pool, ended, warnings = run([good, large])
    assert (pool.stopped, warnings) == (None, [])
    assert ended == {"good": (0, "two"), "large": (1, "error: It went wrong.")}
    assert Path("logs/good.log").read_text() == "one\ntwo\n"
    # A job that needs more memory than any node has must not wait forever for such a node.
    assert [wanted["memory"] for wanted in ray.wanted] == [5e9, 8e9]
    assert all((wanted["num_cpus"], wanted["num_gpus"], wanted["max_restarts"]) == (1, 0, 0) for wanted in ray.wanted)
    assert len(ray.killed) == 2, "the resources of a finished job are given back"
    assert not ray.is_connected


def test_a_lost_job_is_submitted_again_and_its_run_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(actor: Actor) -> None:
        if len(ray.actors) == 1:  # the node is lost after the run has written its first files
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.json").touch()
            actor.die("The node died")
        else:
            actor.alive.set()

    ray = use(monkeypatch, start=start)
    resumed = ("-S", "-c", "print('resumed')")
    lost = job("a", "print('started')", run_folder=Path("run"), resume_arguments=resumed)
    _, ended, warnings = run([lost])
    assert ended == {"a": (0, "resumed")}
    assert warnings == ["a was lost by the cluster and is submitted again: The node died"]


def test_a_node_without_the_shared_folder_does_not_fail_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("zerokara.core.scheduling.pool.POLL_SECONDS", 0.01)
    monkeypatch.setattr("zerokara.core.scheduling.node.FOLDER_SECONDS", 0.0)
    hidden, marks = tmp_path / "hidden", list[Path]()

    def start(actor: Actor) -> None:
        if len(ray.actors) == 1:  # as if the node did not see the driver's file
            (mark,) = tmp_path.rglob(f"{cluster_module.MARK}*")
            marks.append(mark)
            mark.rename(hidden)
        if len(ray.actors) == MAX_LOSSES + 3:
            hidden.rename(marks[0])
        actor.alive.set()

    ray = use(monkeypatch, start=start)
    _, ended, warnings = run([job("a", "print('done')")])
    assert ended == {"a": (0, "done")}
    assert len(warnings) == MAX_LOSSES + 2


def test_a_job_that_is_always_lost_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerokara.core.scheduling.pool.POLL_SECONDS", 0.01)
    ray = use(monkeypatch, start=lambda actor: actor.die("Out of memory"))
    _, ended, _ = run([job("a", "")])
    assert ended == {"a": (1, f"lost by the cluster {MAX_LOSSES} times, at last because: Out of memory")}
    assert len(ray.actors) == MAX_LOSSES


def test_a_job_whose_process_is_always_lost_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the process ends without an exit code, because it is killed or cannot write the log."""
    monkeypatch.setattr("zerokara.core.scheduling.pool.POLL_SECONDS", 0.01)
    monkeypatch.setattr("zerokara.core.scheduling.node.GUARD", "pass")

    def start(actor: Actor) -> None:
        assert len(ray.actors) <= MAX_LOSSES
        actor.alive.set()

    ray = use(monkeypatch, start=start)
    _, ended, warnings = run([job("a", "")])
    lost = f"its process on {socket.gethostname()} was lost"
    assert ended == {"a": (1, f"lost by the cluster {MAX_LOSSES} times, at last because: {lost}")}
    assert (len(ray.actors), len(warnings)) == (MAX_LOSSES, MAX_LOSSES - 1)


def test_signal_lets_running_jobs_save_and_waiting_ones_are_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(actor: Actor) -> None:
        if len(ray.actors) == 1:
            actor.alive.set()

    ray = use(monkeypatch, start=start)
    sent: list[int] = []

    def on_poll(running: Sequence[Job]) -> None:
        assert {one.name for one in running} <= {"a"}, "the other waits for resources"
        if not sent and (tmp_path / "a").exists():
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    jobs = [job(name, SAVES_ON_SIGTERM, str(tmp_path / name)) for name in "ab"]
    pool, ended, warnings = run(jobs, on_poll)
    assert (pool.stopped, warnings) == ("SIGINT", [])
    assert ended == {"a": (0, "saved"), "b": (75, "")}
    assert not (tmp_path / "b").exists()


def test_the_mark_is_locked_while_connected_and_removed_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch)
    left = tmp_path / f"{MARK}{socket.gethostname()}-left-by-a-killed-driver"
    left.touch()
    with connect(AUTO, print) as cluster:
        assert cluster is not None
        assert [path.name for path in tmp_path.iterdir()] == [cluster.mark.name]
        assert is_locked(cluster.mark)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with connect(AUTO, print) as cluster:
        assert cluster is not None
        assert cluster.mark.parent == tmp_path / "runs"


def test_without_an_address_jobs_run_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_import_ray", None)
    with connect(ClusterOptions(), print) as cluster:
        assert launcher(cluster) is LocalProcess


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray_gpus": 2.0}, r"No node of the cluster has --ray-cpus 1 and --ray-gpus 2 \(nodes: 4 CPU cores, 1 GPUs"),
        ({"ray_gpus": 1.5}, "--ray-gpus is 1.5, and Ray divides single GPUs only"),
        ({"ray_cpus": 5.0}, "No node of the cluster has --ray-cpus 5"),
        ({"ray_address": "ray://head:10001"}, "--ray-address cannot be 'ray://head:10001': it must be auto"),
        ({"ray_address": "head"}, "--ray-address cannot be 'head'"),
        (
            {"ray_address": "127.0.0.1:1"},
            r"no Ray cluster .* at 127\.0\.0\.1:1 \(Connection refused\)",
        ),
        ({"ray_address": "127.0.0.1:99999"}, r"no Ray cluster that can be reached at 127\.0\.0\.1:99999"),
    ],
)
def test_error_messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    use(monkeypatch, NODE, {"CPU": 2.0})
    with pytest.raises(UserError, match=message), connect(ClusterOptions(**{"ray_address": "auto", **options}), print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_does_not_answer_and_a_node_without_zerokara(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = use(monkeypatch)

    def fail(**keywords: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(UserError, match=r"at auto \(Could not find .*ray start --head"),
        connect(AUTO, print),
    ):
        pass
    ray = use(monkeypatch)
    ray.seen = ray.exceptions.RayError("Traceback\nModuleNotFoundError: No module named 'zerokara'")
    match = r"node node0 .* cannot run zerokara \(ModuleNotFound.*'zerokara'\)"
    with pytest.raises(UserError, match=match), connect(AUTO, print):
        pass
    assert not ray.is_connected
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_leaves_while_it_is_asked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(monkeypatch, NODE, NODE)
    task, asked, warnings = ray.task, list[int](), list[str]()

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        asked.append(len(ray.resources))
        if len(asked) == 2:
            ray.resources, ray.seen = ray.resources[:1], ray.exceptions.RayError("The node has died.")
        return task(function, *arguments)

    monkeypatch.setattr(ray, "task", ask)
    with connect(AUTO, warnings.append):
        pass
    assert (asked, warnings) == ([2, 2], [])


def test_a_missing_ray_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'zerokara\[cluster\]'"), connect(AUTO, print):
        pass


def test_nodes_must_share_the_folder_and_locks_should_reach_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = use(monkeypatch)
    ray.seen = Seen("node0", file=False, lock=False)
    match = f"node node0 of the cluster does not see {tmp_path}, which all nodes must"
    with pytest.raises(UserError, match=match), connect(AUTO, print):
        pass
    assert list(tmp_path.iterdir()) == []
    warnings: list[str] = []
    ray.seen = Seen("node0", file=True, lock=False)
    with connect(AUTO, warnings.append):
        pass
    assert warnings[0].startswith(
        f"locks of files in {tmp_path} do not reach the node node0: start a command only once"
    )
    ray.seen = Seen(socket.gethostname(), file=True, lock=False)  # the same host: the lock of this very process
    with connect(AUTO, warnings.append):
        pass
    assert len(warnings) == 1


def test_threads_of_a_run() -> None:
    assert [ClusterOptions(ray_cpus=cpus).ray_threads for cpus in (0.5, 1, 2.5)] == [1, 1, 2]
