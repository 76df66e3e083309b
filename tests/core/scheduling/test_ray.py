"""Test scheduling on a real Ray cluster whose nodes are processes of this machine. Skipped without Ray.

Every run counts; that none of its numbers is missing or there twice means that nothing is lost and nothing run twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[3]
SECONDS = 600  # for anything that is waited for, on a busy machine
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
    "PYTHONPATH": str(REPO),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",  # a lost node is noticed within seconds
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# Starts a cluster of two nodes with one core each; adds and kills nodes as its standard input says.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = [cluster.add_node(num_cpus=1)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "add\\n":
        nodes.append(cluster.add_node(num_cpus=1))
    else:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""


class Nodes:
    """Process that holds the nodes of a cluster."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        while not self.address.replace(".", "").replace(":", "").isdigit():  # messages of Ray come first
            assert self.process.poll() is None
            self.address = self.process.stdout.readline().strip()

    def tell(self, word: str) -> None:
        """Add a node ("add"), or kill the one that was added last ("kill")."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(word, file=self.process.stdin, flush=True)
        while self.process.stdout.readline() != "done\n":
            assert self.process.poll() is None

    def close(self) -> None:
        """Stop all nodes."""
        self.process.communicate(timeout=SECONDS)  # the end of its input ends it


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def driver(address: str, jobs: int, count: int, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.core.scheduling.ray_driver", address, str(jobs), str(count), str(seconds)]
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, out + err
    return out, err


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "too slow"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def counts(number: int) -> list[int]:
    path = Path(f"run-{number}/counts")
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def raylets(jobs: int) -> set[str]:
    """Return the nodes on which runs have been, by the process id of their Ray process."""
    return {line.split()[1] for i in range(jobs) for line in Path(f"run-{i}/counts").read_text().splitlines()}


def check_counts(jobs: int, count: int) -> None:
    assert [counts(number) for number in range(jobs)] == [list(range(1, count + 1))] * jobs


def counters() -> list[psutil.Process]:
    """Return the counters of this test that are running."""
    folder = str(Path.cwd())
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if len(words) > 2 and words[1] == "-S" and any(word.startswith(folder) for word in words):
            found.append(process)
    return found


def test_jobs_use_all_nodes_and_one_that_joins(nodes: Nodes) -> None:
    process = driver(nodes.address, 5, 30, 0.1)
    wait_for(lambda: sum(bool(counts(number)) for number in range(5)) > 1, process)
    assert sum(bool(counts(number)) for number in range(5)) == 2, "one run for each core"
    nodes.tell("add")
    out, err = ended(process)
    nodes.tell("kill")
    assert "2 nodes, 2 CPU cores, 0 GPUs; each run: 1 cores, 0 GPUs" in out
    assert (out.splitlines()[-1], err) == ("failed: [] stopped: None", "")
    assert "run-0: counted to 30" in out
    check_counts(5, 30)
    assert len(raylets(5)) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["logs", *(f"run-{i}" for i in range(5))]


def test_jobs_of_a_killed_worker_and_of_a_killed_node_resume_elsewhere(nodes: Nodes) -> None:
    nodes.tell("add")
    process = driver(nodes.address, 3, 80, 0.1)
    wait_for(lambda: all(len(counts(number)) > 3 for number in range(3)), process)
    titles = ((p, "".join(p.info["cmdline"] or ())) for p in psutil.process_iter(["cmdline"]))
    worker = next(p for p, title in titles if title.startswith("ray::Runner"))
    worker.kill()
    wait_for(lambda: len(counters()) == 2, process)
    nodes.tell("kill")
    out, err = ended(process)
    assert out.splitlines()[-1] == "failed: [] stopped: None"
    assert 1 <= err.count("was lost by the cluster and is submitted again") <= 3
    check_counts(3, 80)
    assert any("saved" in Path(f"logs/run-{number}.log").read_text() for number in range(3))


def test_killed_driver_lets_the_runs_save_and_the_same_command_resumes(nodes: Nodes) -> None:
    process = driver(nodes.address, 3, 40, 0.1)
    wait_for(lambda: len(counts(0)) > 3 and len(counts(1)) > 3, process)
    process.kill()
    process.communicate()
    wait_for(lambda: not counters())
    assert [Path(f"logs/run-{number}.log").read_text() for number in (0, 1)] == ["saved\n", "saved\n"]
    assert len(counts(0)) < 40
    assert list(Path().glob(".zerokara-cluster-*")), "a killed driver leaves its file behind"
    out, _ = ended(driver(nodes.address, 3, 40, 0.1))
    assert out.splitlines()[-1] == "failed: [] stopped: None"
    check_counts(3, 40)
    assert not list(Path().glob(".zerokara-cluster-*"))


def test_a_restarted_driver_waits_for_runs_that_still_save(nodes: Nodes) -> None:
    """Start the driver again at once, while the runs of the killed one are still there."""
    process = driver(nodes.address, 2, 12, 1.0)
    wait_for(lambda: counts(0) and counts(1), process)
    process.kill()
    process.communicate()
    out, err = ended(driver(nodes.address, 2, 12, 1.0))
    assert (out.splitlines()[-1], err) == ("failed: [] stopped: None", "")
    check_counts(2, 12)


def test_ctrl_c_lets_running_jobs_save_and_drops_waiting_ones(nodes: Nodes) -> None:
    process = driver(nodes.address, 3, 40, 0.1)
    wait_for(lambda: counts(0) and counts(1), process)
    process.send_signal(signal.SIGINT)
    out, _ = ended(process)
    assert out.splitlines()[-1] == "failed: [] stopped: SIGINT"
    assert out.count("stopped; saved") == 2
    assert out.count("stopped; no output yet") == 1
    assert counts(2) == []
    ended(driver(nodes.address, 3, 40, 0.1))
    check_counts(3, 40)


def test_two_drivers_with_the_same_runs_do_not_run_them_twice(nodes: Nodes) -> None:
    processes = [driver(nodes.address, 2, 20, 0.1) for _ in range(2)]
    for process in processes:
        out, err = ended(process)
        assert (out.splitlines()[-1], err) == ("failed: [] stopped: None", "")
    check_counts(2, 20)


def test_addresses_and_resources_that_are_not_there(nodes: Nodes) -> None:
    port = nodes.address.split(":")[1]
    for address, message in {
        "127.0.0.1:1": "There is no Ray cluster that can be reached at 127.0.0.1:1 (Connection refused)",
        "192.0.2.1": "--ray-address cannot be '192.0.2.1'",
        f"ray://127.0.0.1:{port}": "--ray-address cannot be 'ray://",
    }.items():
        out, err = ended(driver(address, 1, 1, 0.1), code=2)
        assert (out, len(err.splitlines())) == ("", 1)
        assert message in err
    assert list(Path().iterdir()) == []


def test_benchmark_and_sweep_and_seeds_on_a_cluster(nodes: Nodes, tmp_path: Path) -> None:
    agent: tuple[str, ...] = (
        *("num_envs=4", "width_multiplier=0.25", "hidden_units=16", "eval_episodes=2", "checkpoint_every_steps=80"),
        *("learning_starts=100", "batch_size=8", "train_every_steps=16", "replay_capacity=1000"),
        *("precision=float32", "compile=off"),
    )
    flags = [word for field in agent for word in (f"--{field.split('=')[0].replace('_', '-')}", field.split("=")[1])]
    ray = ("--ray-address", nodes.address)
    game = ("--env", "zerokara/Catch-v0", "--total-steps", "320")
    commands: dict[str, tuple[str, ...]] = {
        "agents.benchmark": (
            *("--envs", "zerokara/Catch-v0", "--total-steps", "320", "--evaluations", "2", "--seeds", "1", "2"),
            *("--name", "b", "--settings", *agent),
        ),
        "agents.sweep": (
            *("learning_rate=log:1e-4..1e-2", "--name", "s", "--trials", "2", "--jobs", "2", "--storage", "journal"),
            *("--", *game, "--eval-every-steps", "160", "--device", "cpu", *flags),
        ),
        "core.seeds": (
            *("agents.dqn", "--name", "d", "--seeds", "1", "2", "--", *game, "--eval-every-steps", "160"),
            *("--device", "cpu", *flags),
        ),
    }
    for program, words in commands.items():
        first, *rest = words if program != "agents.benchmark" else ("--quiet", *words)
        command = [sys.executable, "-m", program, first, *ray, *rest]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "runs" / "b" / "results.json").read_text())["runs"]) == 2
    assert len((tmp_path / "runs" / "s" / "trials.csv").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "runs" / "d" / "results.json").read_text())["seeds"] == [1, 2]
    config = json.loads((tmp_path / "runs" / "d-1" / "config.json").read_text())["config"]
    assert config["threads"] == 1, "those of --ray-cpus"
