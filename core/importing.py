"""Classes and functions of one's own by import path: `my_net.py:MyNet`, `package.module:MyNet`.

    MyNet = load_callable("my_net.py:MyNet", "--backbone")

Settings hold the path as it was typed, so that a run can be resumed, evaluated and played while the file is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import operator
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerokara.core.config import UserError, error_summary, suggest
from zerokara.core.named_object import NamedObject, missing_object


def load_callable(path: str, option: str) -> Callable[..., Any]:
    """Load the class or function that an import path names.

    Args:
        path: `file.py:Name` or `module:Name`; the name may have dots, as in `module:Class.method`. Or a `NamedObject`.
        option: the option that it was given to, for messages.

    Raises:
        UserError: the module, the file or the name does not exist, cannot be imported, or is something else.
    """
    if isinstance(path, NamedObject):
        return path.target
    if (missing := missing_object(path, option.lstrip("-"))) is not None:
        raise missing
    module_name, _, name = path.rpartition(":")
    module = load_module(module_name, path)
    try:
        target = operator.attrgetter(name)(module)
    except AttributeError:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"{module_name} defines no {name!r}{suggest(name, own)}: give {option} a class or function of it, as in "
            f"{module_name}:MyName."
        ) from None
    if not callable(target):
        raise UserError(f"{path} is a {type(target).__name__}: {option} needs a class or a function.")
    return target  # type: ignore[no-any-return]


def load_module(name: str, source: str) -> Any:
    """Import a module by name, or a Python file by path. A file that has changed is loaded again.

    Args:
        name: `package.module`, or the path of a file *.py.
        source: the import path or id that contains the name, for messages.

    Raises:
        UserError: there is no such file, or the module cannot be imported.
    """
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            file = name.replace(".", "/") + ".py"
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
            hint = f"write {file}:..." if is_missing and Path(file).is_file() else "install it with pip"
            raise UserError(f"{name} in {source!r} cannot be imported ({error}): {hint}.") from error
        except (Exception, SystemExit) as error:
            raise _import_error(name or source, error) from error
    path = Path(name).expanduser()
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"There is no file {name}{where}, which {source!r} names: give the path of a Python file.")
    resolved = str(path.resolve())
    if (script := getattr(sys.modules["__main__"], "__file__", None)) and str(Path(script).resolve()) == resolved:
        return sys.modules["__main__"]  # not a second time: the script may train or load an agent
    key = f"zerokara_file_{path.stem}_{zlib.crc32(resolved.encode()):08x}"
    version = (resolved, path.stat().st_mtime_ns)
    if getattr(sys.modules.get(key), "zerokara_version", None) == version:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.zerokara_version = version  # type: ignore[attr-defined]
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[key]
        raise _import_error(name, error) from error
    return module


def locate(path: str, run: Path) -> str:
    """Return the import path of a saved run in such a way that its file is found from every working folder.

    A relative file is that of the folder in which the run was started, where the run is runs/<name>; if it is not
    there, that of the working folder.

    Args:
        path: import path, or another name.
        run: run folder.
    """
    file, _, name = path.rpartition(":")
    runs = run.resolve().parent
    if not file.endswith(".py") or runs.name != "runs" or runs.parent == Path.cwd().resolve():
        return path
    there = runs.parent / Path(file).expanduser()
    return f"{there}:{name}" if there.is_file() else path


def _import_error(name: str, error: BaseException) -> UserError:
    summary = error_summary(error) if isinstance(error, Exception) else f"it called sys.exit({error})"
    return UserError(f"{name} cannot be imported: {type(error).__name__}: {summary}")
