"""Fake agent for the tests of sweeps: it starts in no time, and its learning curve is known.

The return of the evaluation at step s is s * learning_rate + seed. Like a real agent it saves its settings in its
folder, resumes with --resume, saves on SIGTERM, and holds the lock of its folder. With batch size 13 it crashes, with
width multiplier 13 it diverges. At learning rate .0013 it sleeps until it is stopped. If the environment variable
FAKE_STOPS_SWEEP is set, it sends SIGTERM to its sweep in the middle of the run; with FAKE_IS_STOPPED, to itself. With
FAKE_WAITS_FOR it waits there until the file of this name exists.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def value(words: list[str], name: str, default: str = "") -> str:
    """Return the value of the last occurrence of a flag."""
    return words[len(words) - words[::-1].index(name)] if name in words else default


def main(words: list[str]) -> None:
    """Write the learning curve that the arguments define."""
    folder = Path("runs") / value(words, "--name")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if "--resume" in words:
        words = json.loads((folder / "config.json").read_text())
        (folder / "resumed").touch()
    (folder / "config.json").write_text(json.dumps(words))
    (folder / "replay-0").mkdir(exist_ok=True)

    def save(number: int, frame: FrameType | None) -> None:
        (folder / "saved").touch()
        sys.exit(75)

    signal.signal(signal.SIGTERM, save)
    if "13" in (value(words, "--batch-size"), value(words, "--width-multiplier")):
        print("error: Training diverged" if value(words, "--width-multiplier") == "13" else "error: a crash")
        sys.exit(2)
    steps, every = int(value(words, "--total-steps")), int(value(words, "--eval-every-steps"))
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    rate = value(words, "--learning-rate", "0.00025")
    for step in range(every * (done + 1), steps + 1, every):
        reached = step * float(rate) + int(value(words, "--seed"))
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "eval/return": reached}) + "\n")
        if "FAKE_STOPS_SWEEP" in os.environ and 2 * step == steps:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)
        if "FAKE_IS_STOPPED" in os.environ and 2 * step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        if "FAKE_WAITS_FOR" in os.environ and 2 * step == steps:
            while not Path(os.environ["FAKE_WAITS_FOR"]).exists():
                time.sleep(0.01)
        if rate == "0.0013":
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
