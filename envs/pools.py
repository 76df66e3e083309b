"""Groups of single environments: in this process, or divided among worker processes.

    pool = make_pool(make_single, num_envs, workers)
    pool.send([(0, "advance", (3,)), (1, "advance", (0,))])   # returns immediately with worker processes
    outcomes = pool.receive()

A worker process runs this file's `serve`. It is a plain subprocess, which imports neither the program that started it
nor PyTorch, and it ends when the connection closes, so that a killed run leaves none behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from zerokara.core.config import UserError
from zerokara.envs.single import SingleEnv, close

Call = tuple[int, str, tuple[Any, ...]]
"""Number of an environment, name of a method of `SingleEnv`, and its arguments."""
CLOSE_SECONDS = 5.0


class Pool(ABC):
    """N environments, whose methods are called for several environments at once."""

    @abstractmethod
    def send(self, calls: Sequence[Call]) -> None:
        """Start calls, at most one per environment."""

    @abstractmethod
    def receive(self) -> list[Any]:
        """Return the results of the calls in their order; a UserError that a call raised is returned."""

    @abstractmethod
    def close(self) -> None:
        """Close the environments."""

    def call(self, calls: Sequence[Call]) -> list[Any]:
        """Call and return the results.

        Raises:
            UserError: the first one that a call raised.
        """
        self.send(calls)
        results = self.receive()
        for result in results:
            if isinstance(result, UserError):
                raise result
        return results


def _run(envs: dict[int, SingleEnv], calls: Sequence[Call]) -> list[Any]:
    results: list[Any] = []
    for i, method, args in calls:
        try:
            results.append(getattr(envs[i], method)(*args))
        except UserError as error:
            results.append(error)
    return results


class SerialPool(Pool):
    """Environments of this process, called one after another."""

    def __init__(self, make_single: Callable[..., SingleEnv], num_envs: int) -> None:
        self.envs: dict[int, SingleEnv] = {}
        self._calls: list[Call] = []
        try:
            for i in range(num_envs):
                self.envs[i] = make_single(index=i)
        except BaseException:
            self.close()
            raise

    def send(self, calls: Sequence[Call]) -> None:
        """See `Pool.send`. The calls are made by `receive`."""
        self._calls = list(calls)

    def receive(self) -> list[Any]:
        """See `Pool.receive`."""
        return _run(self.envs, self._calls)

    def close(self) -> None:
        """See `Pool.close`."""
        while self.envs:  # so that a second call has no effect
            close(self.envs.popitem()[1].env)


class WorkerPool(Pool):
    """Environments divided among worker processes, in blocks of successive numbers.

    Raises:
        UserError: an environment cannot be created, a worker process ended, or the system is Windows.
    """

    def __init__(self, make_single: Callable[..., SingleEnv], num_envs: int, workers: int) -> None:
        if os.name != "posix":  # the connection is inherited as a file descriptor
            raise UserError("Worker processes for environments need Linux or macOS: remove --env-workers.")
        self._owner = {i: i * workers // num_envs for i in range(num_envs)}
        self._sent: list[tuple[int | None, Call]] = []  # with the worker that makes the call; None: nothing is to do
        self._new: set[int] = set()  # environments of a worker that was replaced, which have not been called yet
        self._waiting = False  # True between `send` and `receive`
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pickled = cloudpickle.dumps(make_single)
        for worker in range(workers):
            connection, process = self._start(worker)
            self._connections.append(connection)
            self._processes.append(process)
        try:
            for worker in range(workers):
                if isinstance(error := self._receive(worker), UserError):
                    raise error
        except BaseException:  # also if a worker ended: the others must not stay behind
            self.close()
            raise

    def _start(self, worker: int) -> tuple[Connection, subprocess.Popen[bytes]]:
        """Start a worker process, which creates its environments."""
        ours, theirs = Pipe()
        command = [sys.executable, "-c", f"from zerokara.envs.pools import serve; serve({theirs.fileno()})"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        ours.send((self._pickled, [i for i, owner in self._owner.items() if owner == worker]))
        return ours, process

    def _replace(self, worker: int) -> None:
        """Start a worker process in place of one that has ended.

        Raises:
            UserError: an environment cannot be created again.
        """
        self._connections[worker].close()
        self._connections[worker], self._processes[worker] = self._start(worker)
        self._new |= {i for i, owner in self._owner.items() if owner == worker}
        if isinstance(error := self._receive(worker), UserError):
            raise error

    def send(self, calls: Sequence[Call]) -> None:
        """See `Pool.send`. A worker process that has ended is replaced when its environments are created again.

        The new process creates all of its environments, so that none of them has to be created again.
        """
        if self._waiting:  # results of calls that nobody has asked for, after a reset before `recv`
            self.receive()
        for worker in {self._owner[i] for i, method, _ in calls if method == "recreate"}:
            if self._processes[worker].poll() is not None:
                self._replace(worker)
        created = {i for i, method, _ in calls if method == "recreate" and i in self._new}
        self._new -= {i for i, _, _ in calls}
        self._sent = [(None if call[0] in created else self._owner[call[0]], call) for call in calls]
        self._waiting = True
        for worker, connection in enumerate(self._connections):
            if own := [call for owner, call in self._sent if owner == worker]:
                with contextlib.suppress(ConnectionError):  # the worker has ended, which `receive` reports
                    connection.send(own)

    def receive(self) -> list[Any]:
        """See `Pool.receive`."""
        self._waiting = False
        workers = sorted({owner for owner, _ in self._sent if owner is not None})
        results: dict[int, Iterator[Any]] = {}
        for worker in workers:
            try:
                results[worker] = iter(self._receive(worker))
            except UserError as error:  # the worker has ended, and with it all of its environments
                results[worker] = itertools.repeat(error)
        return [None if owner is None else next(results[owner]) for owner, _ in self._sent]

    def _receive(self, worker: int) -> Any:
        try:
            return self._connections[worker].recv()
        except (EOFError, ConnectionError):
            code = self._processes[worker].wait(CLOSE_SECONDS)
            raise UserError(
                f"A worker process of the environments ended with exit code {code}: see its message above, or run the "
                f"environments in this process with --env-workers 0."
            ) from None

    def close(self) -> None:
        """See `Pool.close`."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __del__(self) -> None:
        """Close the environments of a run that has ended, so that no worker process stays behind."""
        if hasattr(self, "_processes"):  # not if the constructor failed before
            self.close()


def make_pool(make_single: Callable[..., SingleEnv], num_envs: int, workers: int) -> Pool:
    """Create N environments in this process (`workers` 0) or in worker processes, at most one per environment."""
    return WorkerPool(make_single, num_envs, min(workers, num_envs)) if workers else SerialPool(make_single, num_envs)


def serve(descriptor: int) -> None:
    """Create environments and make the calls that arrive on a connection, until it is closed."""
    # Terminals and schedulers send signals to all processes. They are for the main process, which saves the run and
    # closes the connection.
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    pickled, numbers = connection.recv()
    envs: dict[int, SingleEnv] = {}
    try:
        make_single = cloudpickle.loads(pickled)
        envs = {i: make_single(index=i) for i in numbers}
    except UserError as error:
        connection.send(error)
        return
    connection.send("ready")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(_run(envs, connection.recv()))
    for single in envs.values():
        close(single.env)
