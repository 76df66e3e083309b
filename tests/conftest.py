"""Settings of all tests: fixed seeds, no display, hypothesis without deadlines, and the folder of real data."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Tests open no windows. Must be set before matplotlib or SDL is imported.
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"

import hypothesis
import numpy as np
import pytest
import torch

# As in every run. Threads inherit the setting when they start, so it is set before the first one.
torch.set_flush_denormal(True)

# No deadline: a slow machine must not fail a test. The same examples in every run: a failure must be reproducible.
hypothesis.settings.register_profile("zerokara", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("zerokara")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Seed all random number generators before every test, so that the order of the tests does not matter."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (other libraries use the legacy generator)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data, ZEROKARA_DATA; skip the test if the variable is not set."""
    folder = os.environ.get("ZEROKARA_DATA")
    if not folder:
        pytest.skip("ZEROKARA_DATA is not set to a folder of real data")
    return Path(folder)
