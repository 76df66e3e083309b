"""The house keeps its form: arrows point inward, one owner of the hardware, imports do nothing, names are explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# package: the packages of the house that it may import
ARROWS: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "envs": frozenset({"core"}),
    "vision": frozenset({"core"}),
    "generative": frozenset({"core", "envs"}),
    "agents": frozenset({"core", "envs"}),
}
OUTSIDE = frozenset({"tests", "benchmarks"})  # import everything, imported by nothing
LONGEST_FILE_LINES = 450

MODULES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))
OTHERS = sorted(path for folder in OUTSIDE for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_entry(path: Path) -> bool:
    """Whether `python -m` runs something: the module ends in `if __name__ == "__main__"`."""
    return any(
        isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        for node in ast.parse(path.read_text("utf-8")).body
    )


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, also inside functions, also through import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def wrong_arrows(source: str, package: str) -> list[str]:
    """Imports of `source`, a module of `package`, that point outward or sideways. Relative imports stay inside."""
    forbidden = (frozenset(ARROWS) | OUTSIDE) - ARROWS[package] - {package}
    return [
        f"line {line}: {name}" for line, name in imported_names(ast.parse(source)) if name.split(".")[0] in forbidden
    ]


def device_moves(source: str) -> list[str]:
    """Calls of `.cuda()`, `.cpu()`, `.to("cuda")` and `.to("cpu")` on anything but a Compute."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        if owner.split(".")[-1] == "compute":
            continue
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        names = [str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)]
        to_a_named_device = node.func.attr == "to" and any(name.split(":")[0] in {"cuda", "cpu"} for name in names)
        if node.func.attr in {"cuda", "cpu"} or to_a_named_device:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def undocumented(source: str) -> list[str]:
    """The module itself, and its public classes and functions, where they have no docstring."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    return missing + [
        f"line {node.lineno}: {node.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def test_the_packages_are_there() -> None:
    packages = {path.relative_to(ROOT).parts[0] for path in MODULES}
    assert packages >= {"core", "envs", "agents"}
    assert all((folder / "__init__.py").is_file() for folder in {path.parent for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_arrows_point_inward(path: Path) -> None:
    assert wrong_arrows(path.read_text("utf-8"), path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_compute_moves_things_between_devices(path: Path) -> None:
    if relative(path) != "core/compute.py":
        assert device_moves(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_names_are_explained(path: Path) -> None:
    assert undocumented(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_methods_are_explained(path: Path) -> None:
    """Here or in the class that they override, of ours or of a library."""
    module = importlib.import_module(module_name(path))
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    missing = [
        f"{cls.__name__}.{name}"
        for cls in classes
        if not cls.__name__.startswith("_")
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and isinstance(member, property | classmethod | staticmethod | type(is_entry))
        and not inspect.getdoc(getattr(cls, name))
    ]
    assert missing == []


@pytest.mark.parametrize("path", MODULES + OTHERS, ids=relative)
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE_LINES


ENTRIES = [module_name(path) for path in MODULES if is_entry(path)]


@pytest.mark.parametrize("names", [[entry] for entry in ENTRIES] + [[module_name(path) for path in MODULES]])
def test_importing_does_nothing(names: list[str], tmp_path: Path) -> None:
    """Each entry alone, then all modules together: no file in the working folder, no output."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(f"import {name}" for name in names)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_checks_see_what_they_look_for() -> None:
    assert wrong_arrows("import envs.atari", "core") == ["line 1: envs.atari"]
    assert wrong_arrows("def f():\n    from agents import replay", "generative") == ["line 2: agents"]
    assert wrong_arrows("importlib.import_module('vision.classify')", "agents") == ["line 1: vision.classify"]
    assert wrong_arrows("from tests.core import helpers", "envs") == ["line 1: tests.core"]
    assert wrong_arrows("import core.run, envs, numpy\nfrom . import losses\nimport agents.dqn", "agents") == []
    assert device_moves("x = f(y).cpu()") == ["line 1: f(y).cpu()"]
    assert device_moves("x.to('cuda:0')\ny.to(device='cpu')") == [
        "line 1: x.to('cuda:0')",
        "line 2: y.to(device='cpu')",
    ]
    assert device_moves("torch.cuda.is_available(); self.compute.cpu(x); x.to(device); x.to(torch.float32)") == []
    assert undocumented('"""Module."""\ndef f(): ...\ndef _g(): ...\nclass C: "doc"') == ["line 2: f"]
    assert undocumented("x = 1") == ["the module"]
