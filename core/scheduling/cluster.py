"""Jobs on a Ray cluster: the options, the connection, and a job that was submitted.

    with connect(options, warn) as cluster:
        pool = ProcessPool(..., launch=launcher(cluster))

Every job is a Ray actor with one method call: unlike a Ray task, it can be asked to stop and to save. Ray reserves the
CPU cores, GPUs and memory of the job for the life of the actor, starts the job when a node has them, and does so on
nodes that join later, too. A job whose node or worker is lost is submitted again, and its run resumes.

All nodes share the folder with runs/ at the same path. Nothing but the command of a job and its end goes through Ray:
logs, checkpoints and metrics are files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Annotated, Any, ClassVar

from zerokara.core.command_line import Requirement
from zerokara.core.config import EXIT_STOPPED, Range, UserError, error_summary, flag, format_count
from zerokara.core.file_lock import lock
from zerokara.core.programs import import_path
from zerokara.core.scheduling.job import Exit, Job, Launch
from zerokara.core.scheduling.local import LocalProcess
from zerokara.core.scheduling.node import Runner, look_at

CONNECT_SECONDS = 5.0  # in which a machine must answer
CHECK_SECONDS = 120.0  # for the first answer of every node: Ray starts a process there
MAX_LOSSES = 10  # of a job, after which it counts as failed
MARK = ".zerokara-cluster-"  # beginning of the name of the driver's file in the shared folder


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options of a Ray cluster. A config class inherits them."""

    REQUIRES: ClassVar[Mapping[str, Requirement]] = MappingProxyType(
        {name: (lambda config: bool(config.ray_address), "--ray-address auto") for name in ("ray_cpus", "ray_gpus")}
    )

    ray_address: str = ""
    """Ray cluster: auto or <host>:<port> (none: this machine). It runs the processes. See docs/cluster.md."""
    ray_cpus: Annotated[float, Range(0, low_open=True)] = 1.0
    """CPU cores of each run on the cluster."""
    ray_gpus: Annotated[float, Range(0)] = 0.0
    """GPUs of each run on the cluster. 0.5: two runs share a GPU."""

    @property
    def ray_threads(self) -> int:
        """CPU threads of each run on the cluster."""
        return max(1, int(self.ray_cpus))


CLUSTER_FIELDS = ("ray_address", "ray_cpus", "ray_gpus")


@contextlib.contextmanager
def connect(options: ClusterOptions, warn: Callable[[str], object]) -> Iterator[Cluster | None]:
    """Connect to the cluster that the options name; yield None if they name none.

    Args:
        options: address of the cluster, resources of a run.
        warn: called with each warning.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, none of its nodes has the resources of a run, or
            a node does not see the working folder.
    """
    if not options.ray_address:
        yield None
        return
    cluster = Cluster(options, warn)
    try:
        cluster.check_nodes()
        yield cluster
    finally:
        cluster.close()


def launcher(cluster: Cluster | None) -> Launch:
    """Return the function that starts jobs: on the cluster, or on this machine."""
    return LocalProcess if cluster is None else cluster.launch


class Cluster:
    """Connection of this process, the driver, to a Ray cluster.

    Raises:
        UserError: as `connect`, but for the check of the nodes.
    """

    def __init__(self, options: ClusterOptions, warn: Callable[[str], object]) -> None:
        self.options, self.warn = options, warn
        self.ray = _import_ray()
        self.environment = _environment()
        if not options.ray_gpus:  # otherwise Ray sets it; a run must not use a GPU that was not reserved for it
            self.environment["CUDA_VISIBLE_DEVICES"] = ""
        _connect(self.ray, options.ray_address, self.environment)
        try:
            largest = self._check_resources()
            self._memory = int(largest.get("memory", 0))
            self.mark, self._mark_file = _make_mark(shared_folder())
        except BaseException:
            self.ray.shutdown()
            raise

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return Ray's description of the nodes that are alive."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def describe(self) -> str:
        """Describe the size of the cluster and the share of a run: "2 nodes, 8 CPU cores, ..."."""
        total = self.ray.cluster_resources()
        count = len(self.nodes())
        return (
            f"Ray cluster at {self.options.ray_address}: {format_count(count, 'node')}, {total.get('CPU', 0):g} CPU "
            f"cores, {total.get('GPU', 0):g} GPUs; each run: {self.options.ray_cpus:g} cores, "
            f"{self.options.ray_gpus:g} GPUs"
        )

    def _check_resources(self) -> Mapping[str, float]:
        """Check that a node has the resources of a run. Returns those of the node with the largest memory.

        Raises:
            UserError: none has.
        """
        if self.options.ray_gpus > 1 and self.options.ray_gpus % 1:
            raise UserError(
                f"--ray-gpus is {self.options.ray_gpus:g}, and Ray divides single GPUs only: give a number up to 1, or "
                f"a whole number."
            )
        wanted = {"CPU": ("ray_cpus", self.options.ray_cpus), "GPU": ("ray_gpus", self.options.ray_gpus)}
        nodes = [node["Resources"] for node in self.nodes()]
        able = [node for node in nodes if all(node.get(key, 0) >= value for key, (_, value) in wanted.items())]
        if not able:
            needs = " and ".join(f"{flag(field)} {value:g}" for field, value in wanted.values() if value)
            has = "; ".join(f"{node.get('CPU', 0):g} CPU cores, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise UserError(
                f"No node of the cluster has {needs} (nodes: {has or 'none'}): give each run less, or add a node to "
                f"the cluster."
            )
        return max(able, key=lambda node: node.get("memory", 0))

    def check_nodes(self) -> None:
        """Check that every node sees the shared folder, and warn if the nodes do not see each other's locks there.

        Raises:
            UserError: a node does not see the folder, does not answer, or cannot import zerokara.
        """
        ray = self.ray
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = ray.remote(num_cpus=0, max_retries=0)(look_at)
        for node in self.nodes():
            name, here = node["NodeManagerHostname"], socket.gethostname()
            try:
                on_node = task.options(scheduling_strategy=strategy(node["NodeID"], soft=False))
                seen = ray.get(on_node.remote(self.mark), timeout=CHECK_SECONDS)
            except ray.exceptions.RayError as error:
                if node["NodeID"] not in {other["NodeID"] for other in self.nodes()}:
                    continue  # it has left the cluster in the meantime
                raise UserError(
                    f"The node {name} of the cluster cannot run zerokara ({_last_line(error)}): install zerokara and "
                    f"its packages there, or remove the node with: ray stop."
                ) from None
            if not seen.file:
                raise UserError(
                    f"The node {name} of the cluster does not see {self.mark.parent}, which all nodes must share: "
                    f"mount it there at the same path, or remove the node with: ray stop."
                )
            if not seen.lock and seen.host != here:
                self.warn(
                    f"locks of files in {self.mark.parent} do not reach the node {name}: start a command only once, "
                    f"because two processes on different nodes could write the same run folder."
                )

    def launch(self, job: Job) -> ClusterJob:
        """Submit a job."""
        job = replace(
            job,
            log=job.log.absolute(),
            run_folder=None if job.run_folder is None else job.run_folder.absolute(),
            working_folder=job.working_folder.absolute(),
            environment={**self.environment, **job.environment},
        )
        return ClusterJob(job, self)

    def make_actor(self, job: Job) -> Any:
        """Create the actor of a job. Ray starts it when a node has the resources."""
        memory = min(job.memory.get("main", 0), self._memory)
        actor = self.ray.remote(
            num_cpus=self.options.ray_cpus,
            num_gpus=self.options.ray_gpus,
            memory=memory or None,
            max_restarts=0,
            max_concurrency=3,  # run, ping and stop
        )(Runner)
        return actor.options(name=f"{job.name}-{uuid.uuid4().hex[:8]}").remote()

    def close(self) -> None:
        """Leave the cluster."""
        self._mark_file.close()
        self.mark.unlink(missing_ok=True)
        self.ray.shutdown()


class ClusterJob:
    """A job that was submitted to the cluster."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self.job = job
        self._cluster, self._ray = cluster, cluster.ray
        self._losses = 0
        self._stopped = False
        self._exit: Exit | None = None
        self._submit()

    def _submit(self) -> None:
        self._actor = self._cluster.make_actor(self.job)
        self._started = self._actor.ping.remote()
        self._outcome = self._actor.run.remote(self.job, self._cluster.mark)

    def _is_ready(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    @property
    def is_running(self) -> bool:
        """True while the job is on a node."""
        return self._exit is None and self._is_ready(self._started)

    def poll(self) -> Exit | None:
        """Return how the process ended; None before. A job whose node or worker is lost is submitted again."""
        if self._exit is None and self._is_ready(self._outcome):
            try:
                outcome = self._ray.get(self._outcome)
            except self._ray.exceptions.RayError as error:
                self._lost(_last_line(error))
            else:
                self._ray.kill(self._actor)  # gives its resources back
                if outcome.problem:  # it does not count as a failure if the node gave it back without a start
                    self._lost(outcome.problem, counts=outcome.code != 0)
                else:
                    self._exit = Exit(outcome.code, outcome.last_line)
        return self._exit

    def _lost(self, reason: str, *, counts: bool = True) -> None:
        if self._stopped:
            self._exit = Exit(EXIT_STOPPED, "")
            return
        self._losses += counts
        if self._losses == MAX_LOSSES:
            self._exit = Exit(1, f"lost by the cluster {MAX_LOSSES} times, at last because: {reason}")
            return
        self._cluster.warn(f"{self.job.name} was lost by the cluster and is submitted again: {reason}")
        self._submit()

    def stop(self) -> None:
        """Ask the process to save and exit. A job that has not started is not started any more."""
        self._end(kill=False)

    def kill(self) -> None:
        """Kill the process, and those that it has started."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        self._stopped = True
        if self._exit is not None:
            return
        if self._is_ready(self._started):
            self._actor.stop.remote(kill=kill)
        else:
            self._ray.kill(self._actor)
            self._exit = Exit(EXIT_STOPPED, "")


def shared_folder() -> Path:
    """Return the folder that all nodes must share: runs/, or the working folder before there is one."""
    runs = Path("runs").absolute()
    return runs if runs.is_dir() else Path.cwd()


def check_that_it_answers(address: str) -> None:
    """Check that a server listens at host:port, because Ray itself takes minutes; other forms are not checked.

    Raises:
        OSError: there is none.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UserError(
            "--ray-address needs Ray, which is not installed: pip install 'zerokara[cluster]', on every node, or leave "
            "the option out to use this machine only."
        ) from None
    return ray


def _environment() -> dict[str, str]:
    """Return environment variables with which a process on a node finds the modules that this process finds."""
    path = os.environ.get("PYTHONPATH")
    return {**({"PYTHONPATH": path} if path else {}), **import_path()}


def _connect(ray: Any, address: str, environment: Mapping[str, str]) -> None:
    """Connect to a cluster.

    Raises:
        UserError: it cannot be reached.
    """
    host, colon, port = address.rpartition(":")
    if "://" in address or (address not in ("auto", "local") and not (colon and host and port.isdigit())):
        raise UserError(
            f"--ray-address cannot be {address!r}: it must be auto, on a machine of the cluster, or <host>:<port>."
        )
    advice = "start one with: ray start --head; or leave --ray-address out to use this machine only."
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # of an attempt to connect; by default minutes
    if address == "local":  # by default workers have nice 15, and hardly act on a machine that does anything else
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        check_that_it_answers(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict(environment)} if environment else None,
        )
    except Exception as error:  # Ray raises errors of many kinds
        raise UserError(
            f"There is no Ray cluster that can be reached at {address} ({error_summary(error)}): {advice}"
        ) from error


def _make_mark(folder: Path) -> tuple[Path, IO[str]]:
    """Create a file and lock it, by which nodes recognize the shared folder. Removes those of killed drivers."""
    mine = f"{MARK}{socket.gethostname()}-"  # locks may not reach other hosts
    for old in folder.glob(f"{mine}*"):
        with contextlib.suppress(OSError), old.open("a") as file:
            if lock(file):
                old.unlink()
    path = folder / f"{mine}{uuid.uuid4().hex}"
    file = path.open("a")
    lock(file)
    return path, file


def _last_line(error: Exception) -> str:
    """Return the last line of an error of Ray: those of a task begin with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
