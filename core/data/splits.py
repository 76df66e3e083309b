"""Folders named after splits (train, val, test, and other usual names), above or below class folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zerokara.core.config import UserError

AnySplit = Literal["train", "val", "test"]
SPLITS: dict[str, AnySplit] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders in lower case."""


def split_of(path: str) -> AnySplit | None:
    """Return the split that a folder of a path is named after."""
    return next((SPLITS[part.lower()] for part in path.split("/")[:-1] if part.lower() in SPLITS), None)


@dataclass(frozen=True)
class SplitFolders:
    """Position of the folders of the splits in a tree of images."""

    root: str
    """Folder that contains all images, such as "imagenette/"; empty: the top."""
    level: int | None
    """0: <split>/<class>/<image>; 1: <class>/<split>/<image>; None: there are no such folders."""
    names: Mapping[AnySplit, str]
    """Name of the folder of each split."""

    def below(self, path: str, split: AnySplit | None) -> list[str]:
        """Return the parts of a path below the root, without the folder of its split; [] if it is not of this split.

        Args:
            path: of a file, or of a folder with "/" at its end.
            split: None if `level` is None.
        """
        if not path.startswith(self.root) or path == self.root:
            return []
        # pathlib takes ten times as long, and there may be millions of paths
        parts = path[len(self.root) :].rstrip("/").split("/")
        if split is None or self.level is None:
            return parts
        if parts[self.level : self.level + 1] != [self.names[split]]:
            return []
        return parts[: self.level] + parts[self.level + 1 :]


def find_split_folders(images: Sequence[str], where: str) -> SplitFolders:
    """Find the folders of the splits.

    They are recognized if there is one for training and another one. A single folder of this kind, as in a download of
    the training images only, belongs to the root. A class may be called "train" if no other folder is named after a
    split.

    Args:
        images: paths of all images.
        where: the folder or archive, for messages.

    Raises:
        UserError: there are two folders for one split, or folders of splits without one for training.
    """
    root = ""
    while len(tops := {_parts(path, root)[0] for path in images}) == 1:
        top = next(iter(tops))
        shallow = any(len(_parts(path, root)) < 3 for path in images)
        if any(len(_parts(path, root)) < 2 for path in images) or (shallow and top.lower() not in SPLITS):
            break
        root += f"{top}/"
    parts = [_parts(path, root) for path in images]
    for level in (0, 1):
        folders = {each[level] if len(each) > level + 1 else "" for each in parts}
        named = sorted(folder for folder in folders if folder.lower() in SPLITS)
        if level == 1 and len(named) < len(folders):
            continue  # below the classes, all folders must be those of splits
        names: dict[AnySplit, str] = {}
        for folder in named:
            split = SPLITS[folder.lower()]
            if split in names:
                raise UserError(
                    f"{where} has {names[split]}/ and {folder}/, both for the {split} images: rename or merge them."
                )
            names[split] = folder
        if "train" in names and len(names) > 1:
            return SplitFolders(root, level, names)
        if len(names) > 1:
            raise UserError(
                f"{where} has {' and '.join(f'{name}/' for name in names.values())} but no train/: add training images "
                f"in train/."
            )
    return SplitFolders(root, None, {})


def _parts(path: str, root: str) -> list[str]:
    return path[len(root) :].split("/")
