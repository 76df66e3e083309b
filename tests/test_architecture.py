"""Architecture: allowed imports between packages, one name per module, device moves only in Compute, docstrings."""

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

from tests.programs import start, start_with_torch
from zerokara.core.programs import PROGRAMS

ROOT = Path(__file__).resolve().parent.parent

# Package: the other packages of zerokara that it may import.
ALLOWED: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "envs": frozenset({"core"}),
    "vision": frozenset({"core"}),
    "generative": frozenset({"core", "envs"}),
    "agents": frozenset({"core", "envs"}),
}
OUTSIDE = frozenset({"tests", "benchmarks", "scripts", "examples"})  # import all packages, and no package imports them
MAX_FILE_LINES = 450
MAX_ALGORITHM_LINES = 320  # of a program that shows its algorithm from top to bottom
MAX_FOLDER_ENTRIES = 30  # in the top folder of a package: its programs and sub-packages

MODULES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))
PUBLIC = sorted((ROOT / "zerokara").rglob("*.py"))
OTHERS = sorted(path for folder in OUTSIDE for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """Return the module's full name: zerokara.agents.dqn for agents/dqn.py."""
    return "zerokara." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_program(path: Path) -> bool:
    """Return True if the module is a program: it ends in `if __name__ == "__main__"`."""
    return any(
        isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        for node in ast.parse(path.read_text("utf-8")).body[-1:]
    )


PROGRAM_MODULES = frozenset(module_name(path) for path in MODULES if is_program(path))


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every absolute import, also inside functions and by import_module.

    `from zerokara.agents import dqn` gives zerokara.agents.dqn.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def forbidden_imports(source: str, package: str) -> list[str]:
    """Find imports in a module of `package` of packages not allowed to it, of programs, and without `zerokara.`."""
    allowed = ALLOWED[package] | {package}
    found = []
    for line, name in imported_names(ast.parse(source)):
        top, _, rest = name.partition(".")
        not_allowed = top == "zerokara" and rest.split(".")[0] not in allowed
        of_program = any(name == program or name.startswith(f"{program}.") for program in PROGRAM_MODULES)
        if not_allowed or of_program or top in OUTSIDE | frozenset(ALLOWED):
            found.append(f"line {line}: {name}")
    return found


def bare_imports(source: str) -> list[str]:
    """Find imports of our packages without `zerokara.`, which would load a second copy of the module."""
    return [f"line {line}: {name}" for line, name in imported_names(ast.parse(source)) if name.split(".")[0] in ALLOWED]


def device_moves(source: str) -> list[str]:
    """Find calls of `.cuda()`, `.cpu()`, `.to("cuda")` and `.to("cpu")` on objects other than a Compute."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        if owner.split(".")[-1] == "compute":
            continue
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        names = [str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)]
        to_named_device = node.func.attr == "to" and any(name.split(":")[0] in {"cuda", "cpu"} for name in names)
        if node.func.attr in {"cuda", "cpu"} or to_named_device:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def undocumented(source: str) -> list[str]:
    """Find a missing docstring of the module and of its public classes and functions."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    return missing + [
        f"line {node.lineno}: {node.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def test_all_packages_exist() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ALLOWED)
    assert all((folder / "__init__.py").is_file() for folder in {path.parent for path in MODULES})


@pytest.mark.parametrize("package", ["agents", "generative", "vision"])
def test_files_at_the_top_of_a_package_are_programs(package: str) -> None:
    """All other modules are in sub-packages, which contain no programs."""
    files = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    assert [relative(path) for path in files if is_program(path) != (path.parent == ROOT / package)] == []
    entries = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(entries) <= MAX_FOLDER_ENTRIES


def test_every_program_is_listed_by_the_console_command() -> None:
    assert {f"zerokara.{name}" for name in PROGRAMS} == {name.removesuffix(".__main__") for name in PROGRAM_MODULES}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_are_allowed_by_the_architecture(path: Path) -> None:
    assert forbidden_imports(path.read_text("utf-8"), path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize("path", OTHERS + PUBLIC, ids=relative)
def test_modules_are_imported_as_zerokara(path: Path) -> None:
    assert bare_imports(path.read_text("utf-8")) == []


def test_only_empty_packages_are_loaded_under_two_names(tmp_path: Path) -> None:
    """`python -m core.zoo` loads the packages core and core.zoo besides zerokara.core: they must be empty."""
    code = (
        "import runpy, sys, contextlib, io\n"
        "for name in {programs!r}:\n"
        "    sys.argv = [name, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "bare = [m for m in sys.modules.values() if m and m.__name__.split('.')[0] in {packages!r}]\n"
        "print(sorted(m.__name__ for m in bare))\n"
        "print([m.__name__ for m in bare if any(not n.startswith('__') for n in vars(m))])\n"
    )
    programs = ["agents.dqn", "core.backbones", "core.zoo", "generative.sample", "vision.predict"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", code.format(programs=programs, packages=set(ALLOWED))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded, filled = map(ast.literal_eval, done.stdout.splitlines())
    assert loaded == ["agents", "core", "core.backbones", "core.zoo", "generative", "vision"]
    # runpy sets the imported sub-package as an attribute of its parent; the packages contain nothing else.
    assert filled == ["core"]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_compute_moves_tensors_between_devices(path: Path) -> None:
    if relative(path) != "core/compute.py":
        assert device_moves(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", MODULES + PUBLIC, ids=relative)
def test_public_names_have_docstrings(path: Path) -> None:
    assert undocumented(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_methods_have_docstrings(path: Path) -> None:
    """The docstring may be in the base class, of this package or of a library."""
    module = importlib.import_module(module_name(path))
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    missing = [
        f"{cls.__name__}.{name}"
        for cls in classes
        if not cls.__name__.startswith("_")
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and isinstance(member, property | classmethod | staticmethod | type(is_program))
        and not inspect.getdoc(getattr(cls, name))
    ]
    assert missing == []


@pytest.mark.parametrize("path", MODULES + OTHERS + PUBLIC, ids=relative)
def test_file_length(path: Path) -> None:
    most = MAX_ALGORITHM_LINES if relative(path) in {"agents/dqn.py", "agents/pqn.py"} else MAX_FILE_LINES
    assert len(path.read_text("utf-8").splitlines()) <= most


@pytest.mark.parametrize("names", [*([name] for name in sorted(PROGRAM_MODULES)), sorted(map(module_name, MODULES))])
def test_imports_have_no_side_effects(names: list[str], tmp_path: Path) -> None:
    """Import each program alone, then all modules together: no files in the working folder, no output.

    Only the process that imports all modules imports the libraries too, except PyTorch, which takes seconds.
    """
    code = "\n".join(f"import {name}" for name in names)
    process = (start if len(names) == 1 else start_with_torch)(tmp_path, "-c", code)
    assert (process.communicate(), process.returncode) == (("", ""), 0)
    assert list(tmp_path.iterdir()) == []


def test_the_checks_find_violations() -> None:
    assert forbidden_imports("import zerokara.envs.atari", "core") == ["line 1: zerokara.envs.atari"]
    nested = "def f():\n    from zerokara.agents.qlearning import replay"
    assert forbidden_imports(nested, "generative") == ["line 2: zerokara.agents.qlearning.replay"]
    dynamic = "importlib.import_module('zerokara.vision.studies.grid')"
    assert forbidden_imports(dynamic, "agents") == ["line 1: zerokara.vision.studies.grid"]
    assert forbidden_imports("from tests.core import helpers", "envs") == ["line 1: tests.core.helpers"]
    assert forbidden_imports("from zerokara.agents import dqn", "agents") == ["line 1: zerokara.agents.dqn"]
    assert forbidden_imports("from zerokara.agents.dqn import train", "agents") == ["line 1: zerokara.agents.dqn.train"]
    assert forbidden_imports("from agents.qlearning import replay", "agents") == ["line 1: agents.qlearning.replay"]
    allowed = "import zerokara.core.run, numpy\nfrom . import losses\nfrom zerokara.agents.configs import dqn"
    assert forbidden_imports(allowed, "agents") == []
    assert bare_imports("import envs\nfrom zerokara import envs\nfrom core.run import Run") == [
        "line 1: envs",
        "line 3: core.run.Run",
    ]
    assert device_moves("x = f(y).cpu()") == ["line 1: f(y).cpu()"]
    assert device_moves("x.to('cuda:0')\ny.to(device='cpu')") == [
        "line 1: x.to('cuda:0')",
        "line 2: y.to(device='cpu')",
    ]
    assert device_moves("torch.cuda.is_available(); self.compute.cpu(x); x.to(device); x.to(torch.float32)") == []
    assert undocumented('"""Module."""\ndef f(): ...\ndef _g(): ...\nclass C: "doc"') == ["line 2: f"]
    assert undocumented("x = 1") == ["the module"]
