"""Run that counts, for tests of schedulers: python counter.py FOLDER COUNT SECONDS.

Like a training program it holds the lock of its folder, resumes where it was, and saves and exits on SIGTERM. It
appends each number to FOLDER/counts, beside the process id of the Ray process of its node.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path


def main(folder: Path, count: int, seconds: float) -> None:
    """Count to `count`, with a pause of `seconds` before each number."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "config.json").touch()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    counts = folder / "counts"
    done = len(counts.read_text().splitlines()) if counts.exists() else 0
    for number in range(done + 1, count + 1):
        time.sleep(seconds)
        with counts.open("a") as file:
            file.write(f"{number} {os.environ.get('RAY_RAYLET_PID', '')}\n")
        if stopped:
            print("saved")
            sys.exit(75)
    print(f"counted to {count}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
