"""Measure the resident memory of a replay buffer of a million Atari transitions while it is filled. Prints JSON.

    python -m benchmarks.replay_memory

Frames are random, so that no zero pages are shared. Resident memory includes the cached pages of memory-mapped files.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.result import print_result
from zerokara.agents.qlearning.replay import Replay
from zerokara.core.config import run_main


def main() -> None:
    """Parse the arguments, fill the replay buffer, and print its memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity", type=int, default=1_000_000, help="transitions")
    parser.add_argument("--num-envs", type=int, default=16, help="number of environments (ring buffers)")
    parser.add_argument("--slack", type=int, default=10_064, help="extra transitions, as for checkpoints every 10,000")
    parser.add_argument("--in-memory", action="store_true", help="keep the buffer in memory instead of files")
    arguments = parser.parse_args()
    process = psutil.Process()
    rng = np.random.default_rng(0)
    envs = arguments.num_envs
    no = np.zeros(envs, bool)
    obs = rng.integers(256, size=(8, envs, 4, 84, 84), dtype=np.uint8)
    before = process.memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(
            arguments.capacity,
            envs,
            (4, 84, 84),
            1,
            n_step=3,
            gamma=0.99,
            seed=0,
            device=torch.device("cpu"),
            folder=None if arguments.in_memory else Path(folder),
            checkpoint_margin=0 if arguments.in_memory else arguments.slack,
        )
        began = time.perf_counter()
        peak = 0
        # Fill the ring buffer one and a half times; the second pass overwrites existing pages.
        for step in range(3 * arguments.capacity // (2 * envs)):
            replay.add(obs[step % 8], np.zeros(envs, np.int64), np.zeros(envs, np.float32), no, no, obs[step % 8])
            if step % 500 == 0:
                replay.sample(256)
                peak = max(peak, process.memory_info().rss)
        seconds = time.perf_counter() - began
    print_result(
        {
            "what": "resident memory above the start, while a replay fills",
            "arguments": vars(arguments),
            "announced_gb": round(replay.bytes / 1e9, 3),
            "resident_gb": round((peak - before) / 1e9, 3),
            "transitions_per_s": round(3 * arguments.capacity / 2 / seconds),
        }
    )


if __name__ == "__main__":
    run_main(main)
