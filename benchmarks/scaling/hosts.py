"""Network namespaces as hosts: each has an interface of limited rate, and a bridge connects them.

    with hosts(8) as names:
        set_rate(names, 1000)

A namespace is a network stack of its own. All of them, the bridge included, are removed at the end, also after SIGINT,
SIGTERM or SIGHUP (a closed terminal); those of a process that was killed are removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from zerokara.core.config import UserError

PREFIX = "zerokara-scaling-"  # then number and start of the process, and the number of the host or "bridge"
INTERFACE = "eth0"  # of each host
PORT = 29_500
# A token bucket passes this many bytes at once. It must exceed the 64 KiB that the kernel hands over in one piece, and
# what the rate passes between two interrupts of the timer.
BURST_BYTES = 128 << 10
BURST_SECONDS = 1e-3
# The congestion control that every kernel has, whatever this machine uses (BBR paces what it sends, and 26 MB took
# twice as long), and no slow start after a computation that was longer than the timeout of a connection.
TCP = {"tcp_congestion_control": "reno", "tcp_slow_start_after_idle": "0"}
PRIORITY = "-15"  # so that a process that slept or received a message does not wait for other programs
FOLDER = Path("/run/netns")
ENDING = (signal.SIGTERM, signal.SIGHUP)
WITHOUT = "or measure without them: python -m benchmarks.scaling local report"


def address(host: int) -> str:
    """Return the IP address of a host, which only the namespaces can reach."""
    return f"10.77.0.{host + 1}"


def check_namespaces() -> None:
    """Check that this process can create network namespaces.

    Raises:
        UserError: it is not root, or ip or tc is not installed.
    """
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"Network namespaces need the program{'s' * (len(missing) > 1)} {' and '.join(missing)}, which "
            f"{'are' if len(missing) > 1 else 'is'} not installed: install iproute2 (on Debian apt-get install "
            f"iproute2), {WITHOUT}."
        )
    if os.geteuid() != 0:
        raise UserError(f"Network namespaces need the rights of root: start with sudo, {WITHOUT}.")


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[str]]:
    """Create hosts, and return the names of their namespaces; remove them at the end.

    Raises:
        UserError: as in `check_namespaces`, or the kernel refused them.
    """
    check_namespaces()
    remove_left_over()
    own = f"{PREFIX}{os.getpid()}-{start_of(os.getpid())}"
    names = [f"{own}-{host}" for host in range(number)]
    bridge = f"{own}-bridge"
    with ending_by_exception():
        try:
            _run("ip", "netns", "add", bridge)
            _run("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", bridge, "link", "set", "bridge", "up")
            for host, name in enumerate(names):
                _run("ip", "netns", "add", name)
                port = f"port{host}"
                peer = ("type", "veth", "peer", "name", INTERFACE, "netns", name)
                _run("ip", "-n", bridge, "link", "add", port, *peer)
                _run("ip", "-n", bridge, "link", "set", port, "master", "bridge", "up")
                _run("ip", "-n", name, "address", "add", f"{address(host)}/24", "dev", INTERFACE)
                _run("ip", "-n", name, "link", "set", "lo", "up")
                _run("ip", "-n", name, "link", "set", INTERFACE, "up")
                for setting, value in TCP.items():
                    write = f"echo {value} > /proc/sys/net/ipv4/{setting}"
                    _run("ip", "netns", "exec", name, "sh", "-c", write)
            yield names
        finally:
            with _ignoring_signals():
                for name in (*names, bridge):
                    _remove(name)


def set_rate(names: Sequence[str], megabits: float) -> None:
    """Limit what each host sends to a rate, in Mb/s.

    Raises:
        UserError: the kernel refused it.
    """
    burst = max(BURST_BYTES, round(megabits * 1e6 / 8 * BURST_SECONDS))
    limit = ("rate", f"{megabits:g}mbit", "burst", f"{burst}b", "latency", "50ms")
    for name in names:
        _run("tc", "-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "tbf", *limit)


def enter(name: str) -> list[str]:
    """Return the beginning of a command that runs in a namespace, before other programs of the machine."""
    return ["ip", "netns", "exec", name, "nice", "-n", PRIORITY]


def remove_left_over() -> None:
    """Remove the namespaces of processes that have ended without removing them."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        owner, start, *_ = path.name.removeprefix(PREFIX).split("-")
        if start_of(owner) != start:
            _remove(path.name)


def start_of(process: int | str) -> str:
    """Return when a process has started, in clock ticks since the machine has; empty: there is no such process.

    The kernel gives the number of a process that has ended to another one, which starts at another time.
    """
    try:
        line = Path("/proc", str(process), "stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return line.rpartition(")")[2].split()[19]  # proc(5): field 22; the name of the program, field 2, may have spaces


def _remove(name: str) -> None:
    """Remove a namespace with its interfaces, if it exists."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().replace("\n", " ")
        raise UserError(
            f"The kernel refused {' '.join(command)!r} ({reason}): start as root of the machine, {WITHOUT}."
        )


@contextlib.contextmanager
def ending_by_exception() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP raise SystemExit, so that what was created is removed.

    A signal that this process ignores, as SIGHUP after nohup, remains ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handled = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        _set_handlers(before)


@contextlib.contextmanager
def _ignoring_signals() -> Iterator[None]:
    """Inside the block, SIGINT, SIGTERM and SIGHUP do nothing."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        _set_handlers(before)


def _set_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
