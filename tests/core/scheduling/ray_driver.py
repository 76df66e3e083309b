"""Driver that runs counters on a Ray cluster: python -m tests.core.scheduling.ray_driver ADDRESS JOBS COUNT SECONDS."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.core.scheduling import counter
from zerokara.core.config import run_main
from zerokara.core.progress import Progress
from zerokara.core.scheduling.cluster import ClusterOptions, connect, launcher
from zerokara.core.scheduling.job import Job
from zerokara.core.scheduling.monitor import Monitor
from zerokara.core.scheduling.pool import ProcessPool


def main() -> None:
    """Run the counters run-0, run-1, ... in the working folder."""
    address, jobs, count, seconds = sys.argv[1:]
    names = [f"run-{number}" for number in range(int(jobs))]
    progress = Progress(silent=False)
    monitor = Monitor(dict.fromkeys(names, 1), [], progress, position=lambda name: 0)

    def job(name: str) -> Job:
        words = ("-S", str(counter.__file__), str(Path(name).absolute()), count, seconds)
        return Job(name, words, Path("logs") / f"{name}.log", run_folder=Path(name), resume_arguments=words)

    with connect(ClusterOptions(ray_address=address), progress.warn) as cluster:
        assert cluster is not None
        print(cluster.describe(), flush=True)
        pool = ProcessPool(
            len(names),
            {},
            lambda one, code, line: monitor.on_exit(one, code, line, stopped=pool.stopped is not None),
            monitor.update,
            launcher(cluster),
        )
        pool.run([job(name) for name in names])
    print("failed:", sorted(monitor.failed), "stopped:", pool.stopped, flush=True)


if __name__ == "__main__":
    run_main(main)
