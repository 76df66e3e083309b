"""Soak test: memory, open files and threads of a training program with evaluations and videos, over hours.

    python -m tests.soak.memory agent --minutes 120
    python -m tests.soak.memory generator --minutes 120 --folder build/soak-memory

Trains an agent on Catch (an evaluation and a video about every half a minute) or a generator of digits (an evaluation
about every minute), and takes a sample of the process and its children every few seconds. At the end the program is
stopped by SIGTERM, and the last output is JSON: for each process, its memory (MiB), open files and threads after ten
minutes and at the end, as medians over a minute. `resident_mib` includes the mapped files of a replay buffer, whose
pages become resident as it is filled; `private_mib` does not.

Samples are appended to samples.jsonl in the folder. The same command resumes a soak test that was interrupted: the run
continues in a new process, a part of its own in the output, until all parts together have the duration.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.programs import REPO
from zerokara.core.config import EXIT_STOPPED

SETTLE_MINUTES = 10.0  # until buffers are full and everything that is used has been used once
WINDOW_SECONDS = 60.0
RUN = "run"
_FIXED = ("--name", RUN, "--quiet", "--device", "cpu", "--precision", "float32", "--threads", "1")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "agent": (
        *("agents.dqn", "--env", "zerokara/Catch-v0", "--num-envs", "16", "--total-steps", "1000000000"),
        *("--replay-capacity", "20000", "--learning-starts", "2000", "--log-every-steps", "2000"),
        *("--eval-every-steps", "8000", "--eval-episodes", "8", "--checkpoint-every-steps", "20000"),
        *(*_FIXED, "--compile", "off"),
    ),
    "generator": (
        *("generative.dcgan", "--generator-width", "0.25", "--discriminator-width", "0.25", "--updates", "1000000000"),
        *("--eval-every-updates", "1000", "--eval-images", "1000", "--video-every-updates", "0", *_FIXED),
    ),
}
"""Name on the command line -> module and arguments."""


@dataclass(frozen=True)
class Sample:
    """State of a process and its children."""

    part: int  # number of the process, from 0
    seconds: float  # since its start
    resident_mib: float
    private_mib: float  # without pages of files and shared memory
    open_files: int
    threads: int


def take_sample(process: psutil.Process, part: int, seconds: float) -> Sample:
    """Sample a process and its children.

    Raises:
        psutil.Error: it has ended.
    """
    resident = private = open_files = threads = 0
    for each in (process, *process.children(recursive=True)):
        try:
            memory, files, count = each.memory_info(), each.num_fds(), each.num_threads()
        except psutil.Error:
            if each is process:
                raise
            continue  # a child has ended in the meantime
        resident += memory.rss
        private += memory.rss - memory.shared
        open_files += files
        threads += count
    mib = 2**20
    return Sample(part, round(seconds, 1), round(resident / mib, 1), round(private / mib, 1), open_files, threads)


def read_samples(path: Path) -> list[Sample]:
    """Read the samples of earlier parts; an incomplete last line is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [Sample(**json.loads(line)) for line in lines]


def seconds_so_far(samples: Iterable[Sample]) -> float:
    """Return the duration of all parts together."""
    return sum({sample.part: sample.seconds for sample in samples}.values())


def medians(samples: Sequence[Sample], end: float) -> dict[str, float] | None:
    """Return the medians over the minute that ends at `end` seconds; None if there is no sample in it."""
    window = [sample for sample in samples if end - WINDOW_SECONDS < sample.seconds <= end]
    if not window:
        return None
    names = ("resident_mib", "private_mib", "open_files", "threads")
    return {name: statistics.median(getattr(sample, name) for sample in window) for name in names}


def summary(samples: Sequence[Sample], settle_minutes: float = SETTLE_MINUTES) -> list[dict[str, Any]]:
    """Return, for each part, its minutes, the values after `settle_minutes` (None if it was shorter) and at its end."""
    parts = []
    for part, group in itertools.groupby(samples, key=lambda sample: sample.part):
        of_part = list(group)
        end = of_part[-1].seconds
        settled = 60 * settle_minutes
        parts.append(
            {
                "part": part,
                "minutes": round(end / 60, 1),
                f"after_{settle_minutes:g}_minutes": medians(of_part, settled) if end > settled else None,
                "end": medians(of_part, end),
                "most_resident_mib": max(sample.resident_mib for sample in of_part),
                "most_private_mib": max(sample.private_mib for sample in of_part),
            }
        )
    return parts


def has_started(run: Path, since: float) -> bool:
    """Return True if a program that was started at `since` has read or written the checkpoint of its run."""
    return any(path.stat().st_mtime > since for path in (*run.glob("checkpoint*"), *run.glob("metrics.jsonl")))


def run_part(command: Sequence[str], folder: Path, part: int, seconds: float, interval: float) -> int:
    """Run the program for some seconds after its start-up, with samples, and stop it. Returns its exit code."""
    since = time.time()
    with (folder / f"output-{part}.log").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(REPO)}, stdout=output, stderr=subprocess.STDOUT
        )
    watched = psutil.Process(process.pid)
    while process.poll() is None and not has_started(folder / "runs" / RUN, since):
        time.sleep(0.1)
    start = time.monotonic()
    path = folder / "samples.jsonl"
    earlier = [json.dumps(asdict(sample)) + "\n" for sample in read_samples(path)]
    path.write_text("".join(earlier), encoding="utf-8")  # without a line that was cut when a part was killed
    try:
        with path.open("a", encoding="utf-8") as file:
            while process.poll() is None and (elapsed := time.monotonic() - start) < seconds:
                try:
                    sample = take_sample(watched, part, elapsed)
                except psutil.Error:
                    break
                file.write(json.dumps(asdict(sample)) + "\n")
                file.flush()
                time.sleep(interval)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    return code


def logged(path: Path, key: str) -> int:
    """Return the number of lines of metrics.jsonl that have a key."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return sum(key in json.loads(line) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak test, and print its summary as JSON. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Memory, open files and threads of a training program over hours.")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--minutes", type=float, default=120.0, help="duration of all parts together")
    parser.add_argument("--settle-minutes", type=float, default=SETTLE_MINUTES, help="time of the first values")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--folder", type=Path, default=Path("build/soak-memory"))
    options = parser.parse_args(argv)
    folder: Path = options.folder / options.program
    folder.mkdir(parents=True, exist_ok=True)
    samples = read_samples(folder / "samples.jsonl")
    part = samples[-1].part + 1 if samples else 0
    module, *arguments = PROGRAMS[options.program]
    started = (folder / "runs" / RUN / "config.json").exists()
    command = [sys.executable, "-m", module, *(("--name", RUN, "--resume") if started else arguments)]
    left = 60 * options.minutes - seconds_so_far(samples)
    code = run_part(command, folder, part, left, options.interval) if left > 0 else EXIT_STOPPED
    metrics = folder / "runs" / RUN / "metrics.jsonl"
    content = {
        "program": options.program,
        "parts": summary(read_samples(folder / "samples.jsonl"), options.settle_minutes),
        "evaluations": logged(metrics, "eval/return" if options.program == "agent" else "eval/spread"),
        "videos": len(list((folder / "runs" / RUN / "media").glob("*.mp4"))),
        "exit_code": code,
    }
    print(json.dumps(content, indent=2))
    return 0 if code == EXIT_STOPPED else 1


if __name__ == "__main__":
    sys.exit(main())
