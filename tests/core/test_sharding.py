"""Tests of evaluations that are divided among processes, and of a signal that interrupts one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import run_processes
from zerokara.core.config import Stopped
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
from zerokara.vision.classification.config import Config

PROGRAM = """
import os, signal, sys
from zerokara.core.config import Stopped
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
from zerokara.vision.classification.config import Config

world = World.from_env("cpu")
with Run(Config(name="r"), kind="k", name="r", resume=False, quiet=True, world=world) as run, run.signals():
    evaluated = []
    def evaluate(shard):
        evaluated.append(shard)
        return list(range(10, 20))[shard]
    with run.interruptible(on=False):
        assert evaluate_shards(world, run, 7, evaluate) == [[10, 11], [12, 13], [14, 15, 16]]
        assert len(evaluated) == 1
        assert evaluate_shards(world, run, 2, evaluate) == [[10], [11]], "one process has no shard"
        assert len(evaluated) == 1 + (world.rank > 0)

        def interrupted(shard):
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("the signal interrupts")
            return shard
        try:
            evaluate_shards(world, run, 7, interrupted)
        except Stopped:
            print("stopped", file=sys.stderr)
        assert world.gather(world.rank) == [0, 1, 2], "the processes still agree on the next operation"
world.barrier()
"""


def test_all_processes_get_all_results_and_stop_together(tmp_path: Path) -> None:
    assert run_processes(tmp_path, 3, "-c", PROGRAM) == ("", "stopped\n" * 3)


def test_one_process_evaluates_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Run(Config(name="r"), kind="k", name="r", resume=False, quiet=True) as run:
        assert evaluate_shards(World(), run, 5, lambda shard: shard) == [slice(0, 5)]
        run.stop_requested = "SIGTERM"
        with pytest.raises(Stopped):
            evaluate_shards(World(), run, 5, lambda shard: shard)
