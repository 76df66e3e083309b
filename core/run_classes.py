"""Classes of the images that a run is trained on: a resumed run must find them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zerokara.core.config import UserError, abbreviate
from zerokara.core.data.stylegan_labels import FILE, LAYOUT
from zerokara.core.models.model_file import read_raw_metadata
from zerokara.core.run import Run

MAX_NAMES = 200  # characters of the classes in a message


class HasClasses(Protocol):
    """Images with classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def source(self) -> str:
        """Description of the images' origin."""


def keep_classes(run: Run, images: HasClasses, *, resume: bool, model_file: str, key: str = "classes") -> None:
    """Save the classes of a new run in its config.json, and check those of a resumed one. All processes must call this.

    A run of an older release has not saved them; they are read from its model file.

    Args:
        run: the run, which is open.
        images: its data.
        resume: the run is resumed.
        model_file: name of the model file in the run folder.
        key: name of the classes in the metadata of the model file.

    Raises:
        UserError: the data have other classes than those of the resumed run, or perhaps have: the run has no record of
            its classes, and older releases took them from the folders beside a dataset.json.
    """
    with run.world.raising_together():
        if resume and run.world.is_main:
            saved = run.extra.get("classes") or read_raw_metadata(run.folder / model_file).get(key)
            _check(f"{run.folder}", saved if isinstance(saved, list) else None, images)
    if "classes" not in run.extra:
        run.save_extra(classes=list(images.classes))


def _check(folder: str, saved: Sequence[str] | None, images: HasClasses) -> None:
    if tuple(saved or images.classes) == images.classes and (saved or LAYOUT not in images.source):
        return
    labels = (
        f" (older releases took the folders of the images for the classes: move {FILE} out of the data to resume a run "
        f"that was started so)"
        if LAYOUT in images.source
        else ""
    )
    began = f"the classes {_format(saved)}" if saved else "classes that it has not recorded"
    raise UserError(
        f"{folder} was started with {began}, but {images.source} has {_format(images.classes)}{labels}: restore the "
        f"data that it was started with, or start a new run under another --name."
    )


def _format(classes: Sequence[str]) -> str:
    return abbreviate(", ".join(classes), MAX_NAMES)
