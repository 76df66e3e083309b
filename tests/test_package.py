"""Tests of the installed package: files of the wheel, installation beside other packages, start of every program."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.programs import error_message, start
from zerokara.core import programs

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agents", "core", "envs", "generative", "vision")


def run(words: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Run a process without the checkout on its path, check that its exit code is 0, and return its standard output."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of the files that git tracks, in a separate folder, because build/ may hold older files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    run([*command, "--wheel-dir", folder], source)
    (built,) = folder.glob("*.whl")
    return built


def tracked() -> list[str]:
    """List the files of the checkout that git tracks or would track."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def test_the_wheel_holds_zerokara_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert {name.split("/")[0] for name in names} == {"zerokara", f"zerokara-{version}.dist-info"}


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """Packages are listed by hand in pyproject.toml. One that is not listed is missing only from the wheel."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("zerokara/")}
    ours = {name if name.startswith("zerokara/") else f"zerokara/{name}" for name in tracked() if name.endswith(PARTS)}
    assert held == {name for name in ours if name.split("/")[1] in PACKAGES or name.count("/") == 1}
    assert "zerokara/py.typed" in held


PARTS = (".py", ".c", ".h", ".safetensors", "py.typed")


def test_every_program_starts_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Start the programs by the console command, outside the checkout. One process imports PyTorch only once."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # `check_beside` installs the wheel by pip
    code = (
        "import contextlib, io, sys, warnings\n"
        "from zerokara import __main__ as console\n"
        "from zerokara.core import programs\n"
        "assert console.__file__.startswith(sys.argv[1]), console.__file__\n"
        "for module, short in programs.short_names().items():\n"
        "    for word in (short, module):\n"
        "        sys.argv = ['zerokara', word, '--help']\n"
        "        with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "            try:\n"
        "                console.main()\n"
        "            except SystemExit as leaving:\n"
        "                assert not leaving.code, (word, leaving.code)\n"
        "        assert f'usage: zerokara {short}' in out.getvalue(), (word, out.getvalue()[:300])\n"
        "        print(word)\n"
    )
    told = run([sys.executable, "-c", code, str(site)], tmp_path, PYTHONPATH=str(site), COLUMNS="120").splitlines()
    assert told == [word for module, short in programs.short_names().items() for word in (short, module)]


@pytest.mark.parametrize("words", [["-m", "zerokara.agents.dqn"], ["-m", "zerokara", "dqn"], ["-m", "agents.dqn"]])
def test_a_program_has_one_text_by_every_name(words: list[str], tmp_path: Path) -> None:
    """The error message is the same for every way to start a program, in any folder, and no file is created."""
    message = error_message(tmp_path, *words, "--epsilon-endd", "3")
    assert message == "error: There is no flag --epsilon-endd (did you mean --epsilon-end?); --help lists them all.\n"
    assert list(tmp_path.iterdir()) == []


def test_the_console_command_lists_the_programs_and_refuses_others(tmp_path: Path) -> None:
    out, err = start(tmp_path, "-m", "zerokara").communicate(timeout=100)
    assert err == ""
    assert all(f"  {short} " in out for short in programs.short_names().values())
    assert max(map(len, out.splitlines())) <= 100
    for word, hint in (("dqnn", "did you mean dqn"), ("export", "generative.export or vision.export"), ("?", "--help")):
        process = start(tmp_path, "-m", "zerokara", word)
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out) == (2, "")
        assert err.startswith("error: ")
        assert hint in err


def test_beside_a_package_called_agents(wheel: Path, tmp_path: Path) -> None:
    """The other package has a top-level package agents, like openai-agents. Removing one keeps the other."""
    other = tmp_path / "other_agents-1.0-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        info = "other_agents-1.0.dist-info"
        archive.writestr("agents/__init__.py", "class Agent: ...\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: other-agents\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "agents/__init__.py,,\n" + f"{info}/RECORD,,\n")
    check_beside(tmp_path, other, "other-agents", [wheel, "--no-deps", "--no-index"])


@pytest.mark.slow
def test_beside_openai_agents(wheel: Path, tmp_path: Path) -> None:
    """The test downloads openai-agents from the package registry."""
    check_beside(tmp_path, "openai-agents", "openai-agents", [wheel, "--no-deps"])


def check_beside(folder: Path, other: str | Path, name: str, ours: Sequence[str | Path]) -> None:
    """Install both packages in new environments, in each order, and remove the first one."""
    imports = {name: "from agents import Agent", "zerokara": "import zerokara.core.programs, zerokara.agents"}
    for first in (name, "zerokara"):
        environment = folder / f"env-{first}"
        run([sys.executable, "-m", "venv", "--without-pip", environment], folder)
        python = environment / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        for package in sorted(imports, key=lambda package: package != first):
            install = [*pip, "install", "--quiet", "--no-compile"]  # compiling takes longer than everything else
            run([*install, *(ours if package == "zerokara" else [other])], folder)
        for statement in imports.values():
            run([python, "-c", statement], folder)
        run([*pip, "uninstall", "--quiet", "--yes", first], folder)
        (left,) = imports.keys() - {first}
        run([python, "-c", imports[left]], folder)
        assert subprocess.run([python, "-c", imports[first]], cwd=folder, capture_output=True, check=False).returncode


def test_an_editable_install_is_found_beside_a_clone_called_zerokara(tmp_path: Path) -> None:
    """Python first finds the folder zerokara, which has no __init__.py. The .pth file takes precedence over it."""
    (tmp_path / "zerokara").mkdir()
    where = run([sys.executable, "-c", "import zerokara; print(zerokara.__file__)"], tmp_path).strip()
    assert where == str(ROOT / "zerokara" / "__init__.py")
    installed = run([sys.executable, "-m", "pip", "show", "--files", "zerokara"], tmp_path)
    assert "__editable__.zerokara" in installed
    assert ".pth" in installed
