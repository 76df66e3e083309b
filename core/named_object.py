"""Classes and functions that are given in Python where a setting holds a name: environments and networks of one's own.

    config = replace(config, backbone=NamedObject.of(MyNet))     # saved in config.json as "my_net.py:MyNet"

The name is the import path by which another program finds the class, if it can: `my_net.py:MyNet` or
`package.module:MyNet`. A class of a notebook is called `__main__:MyNet`; it is found there again, or given again.
"""

from __future__ import annotations

import functools
import operator
import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from zerokara.core.config import UserError


class NamedObject(str):  # noqa: SLOT000  (it has an attribute)
    """Import path of a class or function, together with the class or function itself."""

    target: Callable[..., Any]

    def __new__(cls, path: str, target: Callable[..., Any]) -> Self:
        """Create the text `path`, with the attribute `target`."""
        named = super().__new__(cls, path)
        named.target = target
        return named

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.target)

    @classmethod
    def of(cls, target: Callable[..., Any]) -> Self:
        """Return a class or function with its import path."""
        return cls(_import_path(target), target)


def missing_object(path: str, keyword: str) -> UserError | None:
    """Return the error if a saved import path is that of a class which can only be given in Python, and was not.

    Args:
        path: import path, or another name.
        keyword: keyword argument with which it is given: "env", "backbone" or "loss".
    """
    module, colon, name = path.rpartition(":")
    if not colon or ("<" not in name and (module != "__main__" or _exists(sys.modules["__main__"], name))):
        return None
    where = "inside a function" if "<" in name else "in a notebook or an interactive session"
    return UserError(
        f"{name.rpartition('.')[2]} was defined {where} and cannot be imported from here: give it again in Python, "
        f"with the argument {keyword}=..., or define it in a file and give file.py:Name."
    )


def _import_path(target: Callable[..., Any]) -> str:
    """Return the import path of a class or function, as a text that is also unique for one that has none."""
    if isinstance(target, functools.partial):
        return f"{_import_path(target.func)}<partial>"
    qualname = getattr(target, "__qualname__", None)
    if qualname is None:  # an object with __call__
        return f"{type(target).__module__}:<{type(target).__qualname__}>"
    return f"{_module_path(target.__module__)}:{qualname}"


def _module_path(name: str) -> str:
    """Return the file of a module if it is a script or a single file of the user, otherwise the name of the module."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    spec = getattr(module, "__spec__", None)
    if file is None or not file.endswith(".py"):
        return name
    if name == "__main__" and spec is not None:  # python -m package.module
        return str(spec.name)
    path = Path(file).resolve()
    if "." in name or (name != "__main__" and _is_installed(path)):
        return name
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def _is_installed(path: Path) -> bool:
    folders = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("stdlib")]
    return path.name == "__init__.py" or any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _exists(module: object, name: str) -> bool:
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True
