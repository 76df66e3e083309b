"""Every reader, given damaged files, returns a result or raises one UserError of one line: no traceback, no hang.

    python -m pytest tests/fuzz             # 25 damaged files for each reader
    python -m pytest tests/fuzz -m slow     # 3,500 for each

`FOUND` has the damaged files that once failed; they are tried every time.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import MUTATIONS, Mutation, mutate
from tests.fuzz.readers import Reader, make_readers
from zerokara.core.config import MAX_MESSAGE, UserError

MAX_SECONDS = 10  # of CPU time, of one reading
MAX_GROWTH_BYTES = 2**30  # of the process's memory, over all cases of a reader
FEW, MANY = 25, 3_500
SHARED_MEMORY = Path("/dev/shm")  # faster than a disk, where it exists

with tempfile.TemporaryDirectory() as _made:
    READERS = make_readers(Path(_made))
NAMES = sorted(READERS)

FOUND: dict[str, tuple[str, list[Mutation]]] = {
    "captions CSV": ("captions.txt", [Mutation("truncate", 1667, 1, 0), Mutation("nest", 0, 1, 0)]),
    "captions tokens": ("x.token.txt", [Mutation("delete", 0, 15, 0), Mutation("nest", 0, 1, 0)]),
    "metrics": ("metrics.jsonl", [Mutation("nest", 0, 1, 127)]),
    "zip": ("set.zip", [Mutation("set", 20, 20, 0), Mutation("set", 949, 64, 0)]),
}
"""Reader -> damaged file and mutations, of every fault that the fuzzer has found."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block after so many seconds of CPU time of this process.

    Time that passes while other processes run does not count.
    """

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"reading took more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check(reader: Reader, name: str, mutations: list[Mutation]) -> None:
    """Damage a file and read it."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as made:
        folder = Path(made)
        for path, content in reader.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(mutate(content, mutations) if path == name else content)
        before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        message = ""
        try:
            with cpu_limit(MAX_SECONDS):
                reader.read(folder)
        except UserError as error:
            message = str(error)
        assert "\n" not in message, "a message has one line"
        assert len(message) <= MAX_MESSAGE, "a message is a sentence, not a file"
        assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before, "a reader writes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_the_undamaged_files_are_read(name: str) -> None:
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as made:
        for path, content in reader.files.items():
            (Path(made) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(made) / path).write_bytes(content)
        assert reader.read(Path(made)) is not None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, FEW) for name in NAMES),
        *(pytest.param(name, MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)]) for name in NAMES),
    ],
)
def test_damaged_files(name: str, number: int) -> None:
    reader = READERS[name]
    memory = psutil.Process().memory_info().rss

    @seed(number)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(reader.damaged), MUTATIONS)
    def run(damaged: str, mutations: list[Mutation]) -> None:
        check(reader, damaged, mutations)

    if name in FOUND:
        run = example(*FOUND[name])(run)
    run()
    growth = psutil.Process().memory_info().rss - memory
    assert growth < MAX_GROWTH_BYTES, f"memory grew by {growth:,} bytes"
