"""Tests of torchrun on two hosts, which are network namespaces: restarts, errors; they need root and the program ip."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest
import torch

from benchmarks.scaling.hosts import INTERFACE, address, hosts
from tests.programs import REPO, metrics, run_processes
from zerokara.core import checkpoint

SECONDS = 600.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (os.geteuid() == 0 and shutil.which("ip")), reason="no network namespaces"),
]
WORDS = (
    *("agents.pqn", "--env", "zerokara/Catch-v0", "--num-envs", "12", "--rollout-steps", "10", "--total-steps", "9600"),
    *("--num-minibatches", "2", "--width-multiplier", "0.25", "--hidden-units", "32", "--log-every-steps", "480"),
    *("--checkpoint-every-steps", "480", "--eval-every-steps", "1440", "--eval-episodes", "8", "--no-capture-video"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1", "--compile", "off", "--name", "run"),
)


def restarting(host: int) -> tuple[str, ...]:
    """Options of torchrun with restarts, as docs/cluster.md describes them.

    The name of this machine does not lead to the address of a namespace.
    """
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address(0)}:29400", "--rdzv-id", "run")
    own = ("--local-addr", address(host), "--rdzv-conf", f"is_host={int(host == 0)}")
    return (*rendezvous, *own, "--max-restarts", "2")


def plain(host: int) -> tuple[str, ...]:
    """Options of torchrun without restarts, as docs/distributed.md names them."""
    return ("--node-rank", str(host), "--master-addr", address(0))


@contextlib.contextmanager
def torchruns(
    folder: Path,
    namespaces: list[str],
    options: Callable[[int], tuple[str, ...]],
    more: Mapping[int, tuple[str, ...]] = MappingProxyType({}),
    **variables: str,
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a torchrun in each namespace; in the end no process of them is left.

    Its output is in host-0.log and host-1.log.

    Args:
        folder: working directory.
        namespaces: one of each host.
        options: returns those of torchrun, given the host.
        more: host -> further options of the program.
        variables: of the environment.
    """
    variables |= {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
    started = []
    for host, name in enumerate(namespaces):
        launch = ("torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *options(host))
        program = ("-m", *WORDS, *more.get(host, ()))
        with (folder / f"host-{host}.log").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-m", *launch, *program],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(REPO), **variables},
                stdout=log,
                stderr=log,
            )
        started.append(process)
    try:
        yield started
    finally:
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


def output(folder: Path) -> str:
    return "".join((folder / f"host-{host}.log").read_text() for host in (0, 1))


def saved_step(run: Path, rank: int) -> int:
    path = run / f"checkpoint-{rank}.pt"
    return int(checkpoint.load(path, "pqn")["step"]) if path.exists() else 0


@pytest.mark.parametrize("killed", [0, 1])
def test_two_hosts_restart_when_the_process_of_one_is_killed(tmp_path: Path, killed: int) -> None:
    run, undisturbed = tmp_path / "runs" / "run", tmp_path / "undisturbed"
    undisturbed.mkdir()
    with (
        hosts(2) as namespaces,
        torchruns(tmp_path, namespaces, restarting, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as started,
    ):
        deadline = time.monotonic() + SECONDS
        while min(saved_step(run, rank) for rank in (0, 1)) < 960:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in started), output(tmp_path)
            time.sleep(0.1)
        (worker,) = psutil.Process(started[killed].pid).children()
        worker.send_signal(signal.SIGKILL)
        assert [process.wait(timeout=SECONDS) for process in started] == [0, 0], output(tmp_path)
    assert "failed (exitcode: -9)" in output(tmp_path)
    run_processes(undisturbed, 2, "-m", *WORDS)
    for rank in (0, 1):
        ours, theirs = (
            checkpoint.load(folder / f"checkpoint-{rank}.pt", "pqn") for folder in (run, undisturbed / "runs" / "run")
        )
        assert ours["step"] == theirs["step"] == 9_600
        for name, weight in theirs["learner"]["network"].items():
            assert torch.equal(ours["learner"]["network"][name], weight), name
    assert metrics(run) == metrics(undisturbed / "runs" / "run")


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_wrong_option_on_one_host_ends_the_other_one(tmp_path: Path, wrong: int) -> None:
    with hosts(2) as namespaces, torchruns(tmp_path, namespaces, plain, {wrong: ("--num-env", "6")}) as started:
        assert [process.wait(timeout=SECONDS) for process in started] == [1, 1], output(tmp_path)
    own, other = ((tmp_path / f"host-{host}.log").read_text() for host in (wrong, 1 - wrong))
    assert "error: There is no flag --num-env" in own
    assert other.count("error: ") == 1
    assert "error: Another process of this run has ended with an error before the run began" in other
