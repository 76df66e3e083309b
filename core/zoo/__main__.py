"""List the zoo's trained networks by kind: their size, metrics, and the command that trained each.

python -m core.zoo
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import run_main
from zerokara.core.zoo import registry

MAX_CLASSES = 10  # that are listed by name
# Columns of a kind, as `describe` fills them.
COLUMNS: Mapping[registry.Kind, tuple[str, str, str]] = {
    "classifiers": ("backbone", "images", "classes"),
    "agents": ("backbone", "environment", "actions"),
    "generators": ("generator", "images", "classes"),
}
# Buffers of BatchNorm, which are no parameters.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program: none."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

from rich import box
from rich.table import Table
from safetensors import safe_open

from zerokara.core.models.model_file import read_raw_metadata
from zerokara.core.report import table_console


def describe(kind: registry.Kind, metadata: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the cells of COLUMNS, given the metadata of a file."""
    if kind == "agents":
        config = metadata["config"]
        return config["backbone"], config["env"], str(metadata["num_actions"])
    if kind == "generators":
        return metadata["config"]["generator"], "x".join(map(str, metadata["shape"])), classes(metadata["class_names"])
    size = "x".join(map(str, (metadata["channels"], *metadata["image_size"])))
    return metadata["backbone"], size, classes(metadata["classes"])


def classes(names: Sequence[str]) -> str:
    """Format the names of classes; of many, the first ones and their number."""
    return ", ".join(names if len(names) <= MAX_CLASSES else (*names[:3], f"... {len(names)} in all"))


def count_parameters(path: Path) -> int:
    """Count the parameters in a model file."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118  (not a dict)
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def table(kind: registry.Kind) -> Table:
    """Make a table with a row for each network of a kind."""
    found = Table(title=kind, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("name", *COLUMNS[kind], "parameters", "kB", "metrics", "trained by"):
        found.add_column(heading, overflow="fold", justify="right" if heading in ("parameters", "kB") else "left")
    for name, path in registry.files(kind).items():
        metadata = read_raw_metadata(path)
        found.add_row(
            name,
            *describe(kind, metadata),
            f"{count_parameters(path):,}",
            f"{path.stat().st_size / 1e3:,.0f}",
            ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in metadata["figures"].items()),
            metadata["command"],
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of the networks of each kind."""
    parse(Options, {}, argv, __doc__ or "")
    console = table_console()
    kinds = [kind for kind in registry.KINDS if registry.files(kind)]
    if not kinds:
        print("The zoo is empty: add a network with python -m scripts.add_to_zoo runs/<name> <name in the zoo>")
    for kind in kinds:
        console.print(table(kind))


if __name__ == "__main__":
    run_main(main)
