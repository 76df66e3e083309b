"""Measure what two processes that train together reach of the speed of two independent ones. Prints JSON.

    python -m benchmarks.scaling_local                     # a classifier (ResNet-18) and a DCGAN, at 64x64
    python -m benchmarks.scaling_local --jobs classify --gradient-compression bfloat16
    python -m benchmarks.scaling_local --jobs pqn-rollout

Each process has one thread and the same number of images per update, or of environments. The processes that train
together have the environment variables of torchrun, and average by Gloo; the independent ones do not communicate. Both
pairs are measured in turns, in the same call. The ratio of their images per second is the efficiency of the
communication on this machine, with the limits of memory and caches that both pairs share. `benchmarks.scaling` measures
other numbers of processes, and slow links.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks import alternating
from benchmarks.result import print_result
from benchmarks.scaling import jobs
from benchmarks.scaling.group import ADDRESS, make_store, torchrun_variables
from zerokara.core.distributed import World

PROCESSES = 2


def process(
    job: str, port: int | None, rank: int, folder: str, arguments: argparse.Namespace
) -> tuple[alternating.RunSteps, str]:
    """Create the updates of one process; with a port, it trains together with the others."""
    if port is not None:
        os.environ |= torchrun_variables(rank, PROCESSES, ADDRESS, port, has_store=True)
    compute = jobs.make_compute(arguments, arguments.threads)
    world = World.from_env("cpu")
    work = jobs.JOBS[job].make(argparse.Namespace(**vars(arguments), folder=folder), compute, world, 1)

    def run_steps(steps: int) -> None:
        for _ in range(steps):
            work.update()

    return (
        run_steps,
        f"{compute.settings}, process {world.rank + 1} of {world.size}",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=jobs.JOBS, default=["classify", "dcgan"], help="what to measure")
    alternating.add_arguments(parser, learn_first=3, steps=10, threads=1, unit="updates")
    jobs.add_arguments(parser)
    arguments = parser.parse_args(argv)
    figures: dict[str, Any] = {}
    for job in arguments.jobs:
        store = make_store()
        with tempfile.TemporaryDirectory() as folder:
            sides = {
                name: [partial(process, job, port, rank, f"{folder}/{port or rank}") for rank in range(PROCESSES)]
                for name, port in (("together", store.port), ("independent", None))
            }
            figures[job] = alternating.alternate(sides, arguments)
        if jobs.JOBS[job].unit == "images":
            rates = figures[job]["median"].items()
            figures[job]["images_per_s"] = {name: round(rate * arguments.batch_size, 1) for name, rate in rates}
    print_result({"what": "updates/s of two processes", "jobs": figures})


if __name__ == "__main__":
    main()
