"""Rules of reading data sets that have changed between releases: a resumed run keeps those that it began with.

with rules_of(config):
    boxes = load_boxes(config.data, image_side=400)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zerokara.core.run_folder import READING_RULES, read_config


class Resumable(Protocol):
    """Config of a run."""

    @property
    def name(self) -> str:
        """Folder under runs/."""

    @property
    def resume(self) -> bool:
        """Resume the run of this name."""


@dataclass(frozen=True)
class Rules:
    """Rules of reading data sets."""

    version: int = READING_RULES
    """1: only folders named exactly train, training, val, valid, validation, test or testing are splits, an image whose
    annotations are all damaged has no objects, and an annotation file names a folder if it contains its name. 2: see
    `core.data.splits` and `core.data.box_types`."""
    is_limited: bool = True
    """At most a tenth of the images may be left out; older releases had no limit."""


CURRENT = Rules()
_rules: ContextVar[Rules] = ContextVar("rules", default=CURRENT)


def active_rules() -> Rules:
    """Return the rules by which data sets are read now."""
    return _rules.get()


@contextmanager
def rules_of(config: Resumable) -> Iterator[None]:
    """Read data inside the block by the rules of a run: of the release that began it, if it is resumed.

    Raises:
        UserError: a resumed run does not exist, or its config.json is damaged.
    """
    rules = CURRENT
    if config.resume and config.name:  # without a name, the config is that of no run
        version = read_config(Path("runs") / config.name).get("reading_rules")
        rules = Rules(version if isinstance(version, int) else 1, is_limited=False)
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)
