"""What all tests share: fixed seeds, no screen, hypothesis without a clock, and the way to the real data."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before matplotlib or SDL is imported by anyone: tests open no windows.
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"

import hypothesis
import numpy as np
import pytest
import torch

# As in every run, and before the first thread starts, which takes it over.
torch.set_flush_denormal(True)

# No deadline, because a busy machine is no fault, and the same examples for everyone, because a red test must be
# red again when it is looked into.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random numbers, so that the order of the tests does not matter."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the legacy generator is what other libraries draw from)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, named by ZEROKARA_DATA; tests that ask for it are skipped where there is none."""
    folder = os.environ.get("ZEROKARA_DATA")
    if not folder:
        pytest.skip("ZEROKARA_DATA names no folder of real data")
    return Path(folder)
