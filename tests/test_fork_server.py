"""Tests of the processes that tests fork: what a failure shows of them, and the compiled modules that they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import start


def test_a_failed_test_shows_the_stderr_of_its_processes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    processes = [start(tmp_path, "-c", f"import sys; sys.exit('reason {number}')") for number in (1, 2)]
    assert [process.wait() for process in processes] == [1, 1]
    shown = []
    for outcome in (lambda: None, lambda: pytest.fail("on purpose")):
        call = pytest.CallInfo.from_call(outcome, "call")
        shown.append(request.node.ihook.pytest_runtest_makereport(item=request.node, call=call).sections)
    passed, failed = shown
    assert passed == []
    title = "stderr of \"-c import sys; sys.exit('reason {}')\", exit status 1"
    assert failed == [(title.format(number), f"reason {number}\n") for number in (1, 2)]


def test_a_limit_on_the_size_of_files_does_not_truncate_compiled_modules(tmp_path: Path) -> None:
    """A process imports a module of 10,000 bytes after the limit that simulates a full disk; another one imports it."""
    (tmp_path / "large.py").write_text(f"TEXT = {'x' * 10_000!r}")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    for before in (limit, "pass"):
        process = start(tmp_path, "-c", f"{before}\nimport large\nprint(len(large.TEXT))")
        assert process.communicate() == ("10000\n", "")
