"""Training runs of a program that starts several, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zerokara.core.progress import Progress
from zerokara.core.scheduling.cluster import ClusterOptions, connect, launcher
from zerokara.core.scheduling.job import Job
from zerokara.core.scheduling.monitor import Monitor
from zerokara.core.scheduling.pool import ProcessPool


def train_runs(
    jobs: Sequence[Job],
    number: int,
    options: ClusterOptions,
    monitor: Monitor,
    progress: Progress,
    *,
    max_processes: int,
    threads: int,
    free_memory: Callable[[], Mapping[str, int]] = dict,
    on_start: Callable[[], object] = lambda: None,
    on_finish: Callable[[Job, str], object] = lambda job, last_line: None,
) -> str | None:
    """Run the jobs of the runs that are not finished. Returns the name of the signal that stopped them, or None.

    Args:
        jobs: those to run.
        number: of all runs, with those that are finished.
        options: name the cluster, if there is one.
        monitor: displays the runs, and collects those that fail.
        progress: its bar, which is closed at the end.
        max_processes: maximum number of runs at the same time.
        threads: CPU threads of each run.
        free_memory: returns the free bytes of this machine by name. A cluster reserves the memory of each run itself.
        on_start: called before the first run, when the cluster is connected.
        on_finish: called with each job whose process has ended with exit code 0, and its last line.

    Raises:
        UserError: the cluster cannot be used.
    """

    def on_exit(job: Job, code: int, last_line: str) -> None:
        if code == 0:
            on_finish(job, last_line)
        monitor.on_exit(job, code, last_line, stopped=pool.stopped is not None)

    with connect(options, progress.warn) as cluster:
        where = f"{max_processes} at the same time" if cluster is None else cluster.describe()
        progress.print(f"{len(jobs)} of {number} runs to train, {where}, CPU threads of each: {threads}")
        on_start()
        memory = free_memory() if cluster is None else {}
        pool = ProcessPool(max_processes, memory, on_exit, monitor.update, launcher(cluster))
        try:
            pool.run(jobs)
        finally:
            progress.close()
    return pool.stopped
