"""Classes and functions by import path: files, modules, and a sentence for every mistake."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zerokara.core.config import UserError
from zerokara.core.importing import load_callable, load_module, locate

SOURCE = "NUMBER = 3\n\nclass Outer:\n    class Inner:\n        pass\n\ndef double(x):\n    return 2 * x\n"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return my_code.py in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_code.py"
    path.write_text(SOURCE)
    return path


def test_a_file_by_relative_and_absolute_path_and_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_callable("my_code.py:double", "--loss")(4) == 8
    assert load_callable(f"{file}:double", "--loss") is load_callable("my_code.py:double", "--loss")
    assert load_callable("my_code.py:Outer.Inner", "--loss").__name__ == "Inner"
    assert load_callable("os.path:join", "--loss") is os.path.join
    monkeypatch.syspath_prepend(str(file.parent))
    assert load_callable("my_code:double", "--loss")(4) == 8


def test_files_of_the_same_name_do_not_replace_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "net.py").write_text(f"def size():\n    return {number}\n")
    first, second = (load_callable(f"{number}/net.py:size", "--backbone") for number in (1, 2))
    assert (first(), second()) == (1, 2)
    assert load_callable("1/net.py:size", "--backbone") is first, "not loaded twice"


def test_a_file_that_has_changed_is_loaded_again(file: Path) -> None:
    load_module("my_code.py", "my_code.py:double")
    file.write_text("def double(x):\n    return 3 * x\n")
    os.utime(file, ns=(1, 1))
    assert load_callable("my_code.py:double", "--loss")(4) == 12


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.py:Net", r"There is no file none\.py in .*, which 'none\.py:Net' names: give the path of a Python file"),
        ("/none.py:Net", r"There is no file /none\.py, which"),
        ("my_code.py:doubel", r"my_code\.py defines no 'doubel' \(did you mean double\?\): give --loss a class or"),
        ("my_code.py:", r"my_code\.py defines no ''"),
        ("my_code.py:NUMBER", r"my_code\.py:NUMBER is a int: --loss needs a class or a function"),
        ("my_code:double", r"my_code in 'my_code:double' cannot be imported .*: write my_code\.py:\.\.\."),
        ("no_such_package.net:Net", r"cannot be imported \(No module named 'no_such_package'\): install it with pip"),
        (":Net", r"^:Net cannot be imported: ValueError"),
        ("bad.py:Net", r"^bad\.py cannot be imported: SyntaxError"),
        ("leaves.py:Net", r"^leaves\.py cannot be imported: SystemExit: it called sys\.exit\(3\)"),
        ("needs.py:Net", r"^needs\.py cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_mistakes_get_one_sentence(path: str, message: str, tmp_path: Path) -> None:
    sys.modules.pop("my_code", None)  # of another test
    (tmp_path / "bad.py").write_text("class Net(:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match=message) as error:
        load_callable(path, "--loss")
    assert "\n" not in str(error.value)


def test_a_file_of_a_saved_run_is_found_from_every_working_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "a"
    other = tmp_path / "other"
    run.mkdir(parents=True)
    other.mkdir()
    assert locate("my_code.py:double", Path("runs/a")) == "my_code.py:double"
    monkeypatch.chdir(other)
    (other / "my_code.py").write_text("def double(x):\n    return 0\n")  # a file of another project
    assert locate("my_code.py:double", run) == locate("my_code.py:double", Path("../runs/a")) == f"{file}:double"
    assert load_callable(locate("my_code.py:double", run), "--loss")(4) == 8
    assert locate(f"{file}:double", run) == f"{file}:double"
    for path in ("resnet18", "os.path:join", "missing.py:Net", "ALE/Pong-v5"):
        assert locate(path, run) == path
    assert locate("my_code.py:double", other / "copied") == "my_code.py:double"  # no run folder: as it was saved
