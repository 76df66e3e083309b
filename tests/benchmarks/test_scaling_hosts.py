"""Tests of the network namespaces of benchmarks.scaling."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import hosts
from zerokara.core.config import UserError, run_main


@pytest.mark.parametrize(
    ("installed", "user", "sentence"),
    [
        ((), 0, "the programs ip and tc, which are not installed: install iproute2"),
        (("ip",), 0, "the program tc, which is not installed: install iproute2"),
        (("ip", "tc"), 1_000, "the rights of root: start with sudo, or measure without them"),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(
    installed: tuple[str, ...],
    user: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}" if tool in installed else None)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: scaling.main(["hosts", "--results", str(tmp_path / "new" / "scaling.json")]))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def record_commands(monkeypatch: pytest.MonkeyPatch, refused: str = "none") -> list[str]:
    """Let no command run; return the list that they are added to."""
    commands: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(command))
        return subprocess.CompletedProcess(command, int(refused in commands[-1]), "", "Operation not permitted\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(hosts, "check_namespaces", lambda: None)
    return commands


def test_what_the_kernel_refuses_is_reported_and_all_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = record_commands(monkeypatch, refused="type bridge")
    with pytest.raises(UserError, match=r"type bridge' \(Operation not permitted\): start as root"), hosts.hosts(2):
        pass
    deleted = [command.split()[-1] for command in commands if "delete" in command]
    own = f"{hosts.PREFIX}{os.getpid()}-{hosts.start_of(os.getpid())}"
    assert deleted == [f"{own}-{name}" for name in (0, 1, "bridge")]


def test_the_rate_is_set_with_a_bucket_of_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = record_commands(monkeypatch)
    hosts.set_rate(["a"], 10_000)
    hosts.set_rate(["b"], 100)
    start = "qdisc replace dev eth0 root tbf rate"
    assert commands == [
        f"tc -n a {start} 10000mbit burst 1250000b latency 50ms",
        f"tc -n b {start} 100mbit burst 131072b latency 50ms",
    ]


def test_namespaces_of_a_process_that_has_ended_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = record_commands(monkeypatch)
    monkeypatch.setattr(hosts, "FOLDER", tmp_path)
    mine, start = f"{hosts.PREFIX}{os.getpid()}", int(hosts.start_of(os.getpid()))
    # The second one is of a process whose number this one has got afterwards.
    for name in (f"{hosts.PREFIX}999999999-7-3", f"{mine}-{start - 1}-0", f"{mine}-{start}-0", "other"):
        (tmp_path / name).touch()
    hosts.remove_left_over()
    left_over = [f"ip netns delete {hosts.PREFIX}999999999-7-3", f"ip netns delete {mine}-{start - 1}-0"]
    assert sorted(commands) == sorted(left_over)


def test_the_start_of_a_process_is_that_of_the_kernel() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert int(hosts.start_of(os.getpid())) / ticks + psutil.boot_time() == pytest.approx(
        psutil.Process().create_time(), abs=2
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_block_by_an_exception(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # a process of nohup ignores SIGHUP
    try:
        with pytest.raises(SystemExit) as ended, hosts.ending_by_exception():
            signal.raise_signal(number)
        assert ended.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_remains_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as after nohup
    try:
        with hosts.ending_by_exception():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_real_namespaces_are_removed_after_a_signal(number: signal.Signals, error: type[BaseException]) -> None:
    try:
        with hosts.hosts(0):
            pass
    except UserError as refused:
        pytest.skip(str(refused))
    # A background process of a shell ignores SIGINT, and one of nohup SIGHUP.
    started = {each: signal.signal(each, signal.SIG_DFL) for each in hosts.ENDING}
    started[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = {each: signal.getsignal(each) for each in started}

    def end_inside() -> None:
        with hosts.hosts(2) as names:
            assert all((hosts.FOLDER / name).exists() for name in names)
            hosts.set_rate(names, 100)
            sent = f"/sys/class/net/{hosts.INTERFACE}/statistics/tx_bytes"
            done = subprocess.run([*hosts.enter(names[1]), "cat", sent], capture_output=True, text=True, check=True)
            assert int(done.stdout) >= 0
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(error):
            end_inside()
        assert list(hosts.FOLDER.glob(f"{hosts.PREFIX}{os.getpid()}-*")) == []
        assert {each: signal.getsignal(each) for each in started} == handlers
    finally:
        for each, handler in started.items():
            signal.signal(each, handler)
