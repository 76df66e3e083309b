"""Tests of flushing denormal numbers to zero in all threads that compute."""

from __future__ import annotations

import sys

import pytest

from tests.programs import REPO, run_interpreter

# An operation before the settings are applied starts the threads with other ones, as the timing of candidates does.
PROGRAM = """
import torch
from zerokara.core.compute import Compute

denormal = torch.full((1 << 20,), 1e-39)  # would be filled with zeros later

def count() -> list[int]:
    halved = denormal * 0.5
    bits = halved.view(torch.int32)  # comparisons of denormal numbers with 0 would flush them, too
    return [int(part.count_nonzero()) for part in bits.chunk(2)]

torch.set_num_threads(2)
before = count()
Compute(threads=2).apply()
print(before, count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the OpenMP library by /proc/self/maps")
def test_denormal_numbers_are_flushed_in_both_threads() -> None:
    done = run_interpreter(REPO, "-c", PROGRAM)
    assert (done.returncode, done.stdout.strip()) == (0, "[524288, 524288] [0, 0]"), done.stderr
