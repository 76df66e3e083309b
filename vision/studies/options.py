"""Options that the programs which train grids of runs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from zerokara.core.choices import Precision
from zerokara.core.config import Range
from zerokara.vision.studies import names


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that all grid programs share."""

    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_GRID
    REQUIRES: ClassVar = names.REQUIRES
    CHANGEABLE: ClassVar = frozenset({"seeds"})

    data: str = "glyphs"
    """glyphs, mnist, fashion-mnist, cifar10, cifar100, or a folder or zip. Data set: synthetic digits (glyphs), a named
    data set, or the path of a folder or zip file of class folders."""
    data_dir: str = ""
    """Folder of named data sets (none: $ZEROKARA_DATA or ~/.cache/zerokara). They are downloaded to it."""
    seeds: Annotated[tuple[int, ...], Range(0, 10**6)] = (1, 2, 3)
    """Random seeds, each of which trains every cell once."""
    validation_images: Annotated[int, Range(0)] = 0
    """Number of training images held out to measure errors (0: one twelfth). One twelfth of MNIST's training set is
    5,000 of 60,000."""
    test: bool = False
    """Measure errors on the test set. Once for each finished cell; only for final results, not for choosing
    settings."""
    name: str = ""
    """Folder under runs/ (none: made of program and data)."""
    resume: bool = False
    """Resume the grid of this name. Finished cells are kept, the others are trained."""
    quiet: bool = False
    """Print only warnings and the closing messages."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the networks. auto: the fastest in a short measurement with the first cell."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads (0: one per core)."""
