"""An agent for the tests of sweeps: it starts at once, and its learning curve is known beforehand.

The evaluation at step s is worth s * learning_rate + seed. Like a real one it keeps its settings in its folder, goes on
with --resume, saves on SIGTERM, and holds its folder's lock. A batch of 13 is a crash, a width of 13 diverges; at a
learning rate of .0013 it plays until somebody stops it; with FAKE_STOPS_SWEEP it asks its sweep to stop half-way.
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
    """What follows a flag the last time that it is given."""
    return words[len(words) - words[::-1].index(name)] if name in words else default


def main(words: list[str]) -> None:
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
        sys.exit(0)

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
        if rate == "0.0013":
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
