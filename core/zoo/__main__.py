"""List the zoo's trained networks: input, classes, size, metrics, and the command that trained each.

python -m core.zoo
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.command_line import parse
from zerokara.core.config import run_main
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.zoo import registry


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program: none."""


def table(files: Mapping[str, Path]) -> Table:
    """Make a table with a row for each network."""
    found = Table(box=box.SIMPLE_HEAD)
    for heading in ("name", "backbone", "images", "classes", "parameters", "kB", "metrics", "trained by"):
        found.add_column(heading, overflow="fold", justify="right" if heading in ("parameters", "kB") else "left")
    for name, path in files.items():
        classifier, metadata = ClassifierMetadata.load(path)
        height, width = metadata.image_size
        shown = (
            metadata.classes
            if len(metadata.classes) <= 10
            else (*metadata.classes[:3], f"... {len(metadata.classes)} in all")
        )
        found.add_row(
            name,
            metadata.backbone,
            f"{metadata.channels}x{height}x{width}",
            ", ".join(shown),
            f"{sum(p.numel() for p in classifier.parameters()):,}",
            f"{path.stat().st_size / 1e3:,.0f}",
            ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in metadata.figures.items()),
            metadata.command,
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of networks."""
    parse(Options, {}, argv, __doc__ or "")
    files = registry.files()
    if not files:
        print("The zoo is empty: add a network with python -m scripts.add_to_zoo runs/<name> <name in the zoo>")
        return
    Console(width=None if sys.stdout.isatty() else 160).print(table(files))


if __name__ == "__main__":
    run_main(main)
