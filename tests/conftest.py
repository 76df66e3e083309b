"""Settings of all tests: fixed seeds, one thread, no display, hypothesis without deadlines, the folder of real data."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

# Tests open no windows. Must be set before matplotlib or SDL is imported.
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"
# `make test` runs one process of pytest per core; a second thread in each would slow all of them down. Must be set
# before PyTorch is imported, and holds for the processes that tests start unless they choose their threads themselves.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads of tests that use several do not wait in a loop

import hypothesis
import numpy as np
import pytest
import torch

from tests import programs
from tests.fork_server import BLANK_FIGURES
from zerokara.core.data import lmdb_check
from zerokara.core.machine import usable_cores
from zerokara.core.zoo import registry as zoo

# Files must survive a kill here, not a loss of power, and waiting for the disk takes longer than many tests compute.
vars(os)["fsync"] = lambda descriptor: None
# As in every run. Threads inherit the setting when they start, so it is set before the first one.
torch.set_flush_denormal(True)

GPU = torch.cuda.is_available()

# No deadline: a slow machine must not fail a test. The same examples in every run: a failure must be reproducible.
hypothesis.settings.register_profile("zerokara", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("zerokara")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of `pytest -n auto`."""
    return usable_cores()


def pytest_collection_finish() -> None:
    """Leave out of all garbage collections what stays to the end: modules and tests, a million objects."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Reset global settings before the fixtures of a test, so that the order of the tests does not matter."""
    reset()
    programs.STARTED.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the stderr of processes that a failed test has started."""
    report = yield
    if report.failed:
        report.sections += programs.stderr_of_started()
    return report


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Reset global settings once more after fixtures of modules, which other tests may have created already."""
    reset()


def reset() -> None:
    """Seed all random number generators and use one thread."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (other libraries use the legacy generator)
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats the stack for a GPU that is not there
    if GPU:
        torch.cuda.manual_seed_all(0)
    torch.set_num_threads(1)


@pytest.fixture
def empty_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Replace the zoo by an empty folder zoo/ in the working folder of the test, and return it.

    A test that adds files by itself calls `registry.files.cache_clear` if it has listed the zoo before.
    """
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    zoo.files.cache_clear()
    yield folder
    zoo.files.cache_clear()


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures blank, for tests that are about something else: rendering takes most of the time of tiny runs.

    The figures of programs that such a test starts are blank, too.
    """
    monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda figure, renderer: None)
    monkeypatch.setenv(BLANK_FIGURES, "1")


@pytest.fixture(scope="session")
def onnx_operators() -> Iterator[None]:
    """Let PyTorch list its operators for ONNX once; it does so in every export, a third of a small one's time."""
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


@pytest.fixture
def coded_here(coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty folder with a link to the data set of the module, the fixture `coded`."""
    monkeypatch.chdir(tmp_path)
    Path("coded").symlink_to(coded)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data, ZEROKARA_DATA; skip the test if the variable is not set."""
    folder = os.environ.get("ZEROKARA_DATA")
    if not folder:
        pytest.skip("ZEROKARA_DATA is not set to a folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True, scope="session")
def _own_records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the records of checked LMDB databases out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("lmdb")
        patch.setattr(lmdb_check, "cache_folder", lambda: folder)
        yield
