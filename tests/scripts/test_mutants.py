"""Tests of the mutation test: its changes of code, the draw, equivalent mutants, a run in a small repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import mutants
from scripts.mutation_sites import KEY, Mutant, find_changes, find_mutants

SOURCE = '''"""Module with 1 < 2 in its docstring."""

LIMIT: int = 3


def clip(value, low=0.5, *, strict=True):
    """Clip a value."""
    if strict and value > LIMIT or not low:
        raise ValueError(f"{value + 1} is above {LIMIT}")
    assert value < 100
    print("clipped", value + 2)
    return max(low, value - 1)


class Counter:
    def __init__(self):
        self.count = 0

    def add(self, items):
        start_time = time.perf_counter() + 1
        self.count += len(items[1:])
        self.last = join(items, self.count, sep=None)
        log({"count": self.count, "speed/items": self.count / 2})
        items.clear()
'''


def changes(source: str) -> list[tuple[str, str]]:
    """Return all changes as pairs of lines."""
    return [(mutant.original, mutant.mutated) for mutant in find_mutants("a.py", source.encode())]


def mutated(line: str) -> set[str]:
    """Return all mutants of a module of one line."""
    return {after for _, after in changes(line + "\n")}


def test_every_mutant_is_another_program_that_compiles() -> None:
    found = find_mutants("a.py", SOURCE.encode())
    assert len(found) > 20
    for mutant in found:
        changed = mutant.apply(SOURCE.encode())
        assert changed != SOURCE.encode()
        compile(changed, "a.py", "exec")
        assert mutant.mutated in " ".join(changed.decode().split())
        assert SOURCE.splitlines()[mutant.line - 1].strip() == mutant.original


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a is not None", {"a is None"}),
        ("a not in b", {"a in b"}),
        ("a and b or c", {"a or b or c", "a and b and c"}),
        ("-a // b", {"a // b", "-a * b"}),
        ("not a", {"a"}),
        ("x = 7", {"x = 8"}),
        ("x = 0.25", {"x = 0.5"}),
        ("x = True", {"x = False"}),
        ("x[a:b]", {"x[:b]", "x[a:]"}),
        ("x += y", {"x -= y", "pass"}),
        ("x.y = z", {"pass"}),
        ("f(a_B, b_B, c.x, c.y)", {"f(b_B, a_B, c.x, c.y)", "f(a_B, b_B, c.y, c.x)", "f(a_B, b_B, c.x)", "pass"}),
        ("x = f(k=a, m=(b))", {"x = f(m=(b))", "x = f(k=a)"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = y if a else b", {"x = y if not (a) else b"}),
        ("x: Tensor | None = y", set()),
        ("Pair = Tensor | None", set()),
        ('"""Text with 1 < 2."""', set()),
    ],
)
def test_changes_of_a_line(line: str, expected: set[str]) -> None:
    assert mutated(line) == expected


def test_messages_assertions_and_timing_are_left_out() -> None:
    touched = " ".join(original for original, _ in changes(SOURCE))
    for left_out in ("ValueError", "assert", "print", "perf_counter"):
        assert left_out not in touched
    assert ("self.count = 0", "pass") not in changes(SOURCE), "any test notices a missing attribute"
    speed = [after for before, after in changes(SOURCE) if "speed/" in before]
    assert speed == ["pass"], "only the whole statement is deleted"


def test_a_mutant_names_its_function_and_line() -> None:
    deleted = next(mutant for mutant in find_mutants("a.py", SOURCE.encode()) if mutant.original == "items.clear()")
    assert (deleted.function, deleted.line, deleted.operator) == ("Counter.add", 24, "deleted statement")


def test_the_draw_depends_on_the_seed_and_is_in_proportion_to_the_sites() -> None:
    sites = {"a.py": find_mutants("a.py", SOURCE.encode()), "b.py": find_mutants("b.py", (3 * SOURCE).encode())}
    first, second, other = (mutants.draw(sites, 20, seed) for seed in (1, 1, 2))
    assert first == second != other
    assert [mutant.file for mutant in first].count("b.py") == 15
    assert len(set(first)) == 20
    everything = mutants.draw(sites, 10_000, 1)
    assert everything == [mutant for of_file in sites.values() for mutant in of_file]


def write_equivalent(path: Path, mutant: Mutant) -> None:
    entry = {**dict(zip(KEY, mutant.key, strict=True)), "reason": "the same"}
    path.write_text(json.dumps([entry]))


def test_an_equivalent_mutant_is_recognized_when_its_line_has_moved(tmp_path: Path) -> None:
    first = find_mutants("a.py", SOURCE.encode())[5]
    write_equivalent(tmp_path / "equivalent.json", first)
    equivalents = mutants.read_equivalents(tmp_path / "equivalent.json")
    moved = find_mutants("a.py", SOURCE.replace("LIMIT: int", "OTHER = 1\n\nLIMIT: int").encode())
    assert [equivalents[mutant.key] for mutant in moved if mutant.key in equivalents] == ["the same"]


def test_the_listed_equivalent_mutants_have_reasons_and_are_those_of_files_in_the_table() -> None:
    entries = json.loads(mutants.EQUIVALENTS.read_text())
    assert len(mutants.read_equivalents(mutants.EQUIVALENTS)) == len(entries), "a mutant is listed twice"
    assert {entry["file"] for entry in entries} <= set(mutants.TESTS)
    assert all(len(entry["reason"]) > 10 for entry in entries)


def test_the_listed_equivalent_mutants_are_mutants_of_the_code() -> None:
    """A line that has changed needs a new entry, because nobody has looked at its mutants. They are not compiled."""
    listed = mutants.read_equivalents(mutants.EQUIVALENTS)
    found = {
        change.key
        for file in sorted({file for file, *_ in listed})
        for change in find_changes(file, (mutants.ROOT / file).read_bytes())
    }
    assert [key for key in listed if key not in found] == []


def test_the_table_names_existing_files() -> None:
    for source, tests in mutants.TESTS.items():
        assert all((mutants.ROOT / path).is_file() for path in (source, *tests))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: a\.py is missing"):
        mutants.main(["--list"], root=tmp_path, tests={"a.py": ("test_a.py",)})


# The packages that the programs of this repository need are not imported.
PROGRAM = """
import pathlib, sys
from scripts import mutants, mutation_runs
mutation_runs.PRELOADED = ("pytest",)
mutants.EXTRA_CPU_SECONDS = 1
root = pathlib.Path.cwd()
sys.exit(mutants.main(sys.argv[1:], root, {"a.py": ("test_a.py",)}, root / "equivalent.json"))
"""
PYPROJECT = """
[tool.pytest.ini_options]
pythonpath = ["."]
markers = ["slow: takes minutes"]
"""


def program(folder: Path, *words: str) -> tuple[int, list[str]]:
    """Run the program in a small repository; return its exit status and its output."""
    environment = {**os.environ, "PYTHONPATH": str(mutants.ROOT)}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_a_run_in_a_small_repository(tmp_path: Path) -> None:
    """The test notices changes of the sum but not of the limit; the endless loop is ended; one mutant is equivalent."""
    source = "def add(a, b):\n    while a > 1000:\n        a -= 1000\n    return a + b\n"
    (tmp_path / "a.py").write_text(source)
    (tmp_path / "test_a.py").write_text("from a import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    found = find_mutants("a.py", source.encode())
    write_equivalent(tmp_path / "equivalent.json", next(m for m in found if m.mutated == "while a >= 1000:"))
    status, lines = program(tmp_path, "--seed", "3")
    summary = json.loads(lines[-1])
    results = [json.loads(line) for line in (tmp_path / "build" / "mutants-3.jsonl").read_text().splitlines()]
    by_code = {result["mutated"]: result["result"] for result in results}
    assert by_code["return a - b"] == "killed"
    assert by_code["while a <= 1000:"] == "killed", "it does not end"
    assert by_code["while a > 1001:"] == "survived"
    assert "while a >= 1000:" not in by_code
    assert (tmp_path / "a.py").read_text() == source
    assert summary["drawn"] == len(found)
    assert summary["equivalent"] == 1
    assert summary["killed"] + summary["survived"] == len(results) == len(found) - 1
    assert status == 1, "fewer than 90% were killed"
    assert program(tmp_path, "--seed", "3")[1][-1] == lines[-1], "the results are read again"
    assert len((tmp_path / "build" / "mutants-3.jsonl").read_text().splitlines()) == len(results)
