"""Classes and functions that are given in Python: their import paths, and what happens if they cannot be imported."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from zerokara.core.config import UserError
from zerokara.core.importing import load_callable, load_module
from zerokara.core.named_object import NamedObject, missing_object


class Net:
    class Inner:
        pass


def define(namespace: str, file: Path | None, **attributes: Any) -> type[Any]:
    """Return the class Mine of a module that is made up."""
    module = ModuleType(namespace)
    if file is not None:
        module.__file__ = str(file)
    sys.modules[namespace] = module
    exec("class Mine: pass", vars(module))
    vars(module).update(attributes)
    mine: type[Any] = vars(module)["Mine"]
    return mine


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("__main__", "my_net"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


def test_a_class_of_a_package_is_named_by_its_module() -> None:
    named = NamedObject.of(Net.Inner)
    assert named == f"{__name__}:Net.Inner"
    assert named.target is Net.Inner
    assert NamedObject.of(json.JSONDecoder) == "json.decoder:JSONDecoder"
    assert NamedObject.of(functools.reduce) == "_functools:reduce"


def test_a_file_of_one_s_own_is_named_by_its_path(tmp_path: Path) -> None:
    assert NamedObject.of(define("my_net", tmp_path / "nets" / "my_net.py")) == "nets/my_net.py:Mine"
    assert NamedObject.of(define("my_net", tmp_path.parent / "my_net.py")) == f"{tmp_path.parent}/my_net.py:Mine"


def test_a_script_a_notebook_and_a_program(tmp_path: Path) -> None:
    script = define("__main__", tmp_path / "train.py")
    assert NamedObject.of(script) == "train.py:Mine"
    notebook = define("__main__", None)
    assert NamedObject.of(notebook) == "__main__:Mine"
    program = define("__main__", tmp_path / "package" / "train.py")
    sys.modules["__main__"].__spec__ = type("Spec", (), {"name": "package.train"})()
    assert NamedObject.of(program) == "package.train:Mine"


def test_what_cannot_be_imported_has_a_name_too() -> None:
    def local() -> None:
        pass

    assert NamedObject.of(local).endswith("<locals>.local")
    assert NamedObject.of(lambda: None).endswith("<lambda>")
    assert NamedObject.of(functools.partial(Net)) == f"{__name__}:Net<partial>"

    class Callable:
        def __call__(self) -> None:
            pass

    assert NamedObject.of(Callable()).endswith("Callable>")


def test_it_is_a_text_that_keeps_its_object() -> None:
    named = NamedObject.of(Net)
    assert json.loads(json.dumps({"backbone": named})) == {"backbone": f"{__name__}:Net"}
    assert type(str(named)) is str
    restored = cloudpickle.loads(cloudpickle.dumps(named))
    assert (restored, type(restored)) == (named, NamedObject)
    assert restored.target.__qualname__ == "Net"
    assert load_callable(named, "--backbone") is Net


def test_a_class_of_a_notebook_is_found_again_or_asked_for() -> None:
    mine = define("__main__", None)
    assert missing_object("__main__:Mine", "backbone") is None
    assert load_callable("__main__:Mine", "--backbone") is mine
    for path, where in (("__main__:Gone", "in a notebook or an"), ("my_net:make.<locals>.Gone", "inside a function")):
        with pytest.raises(UserError, match=rf"^Gone was defined {where} .*with the argument backbone="):
            load_callable(path, "--backbone")
    assert missing_object("nature", "backbone") is None
    assert missing_object("my_net.py:MyNet", "backbone") is None


def test_a_running_script_is_not_executed_again(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("raise RuntimeError('a second time')")
    mine = define("__main__", path)
    assert load_callable("train.py:Mine", "--backbone") is mine
    assert load_module("train.py", "train.py:Mine") is sys.modules["__main__"]
