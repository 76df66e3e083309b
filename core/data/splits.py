"""Folders named after splits (train, val, test, and other usual names), above or below class folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zerokara.core.config import UserError, format_count
from zerokara.core.data.audit import EXAMPLES
from zerokara.core.data.reading_rules import active_rules

AnySplit = Literal["train", "val", "test"]
SPLITS: dict[str, AnySplit] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in lower case."""
NEWER = frozenset({"dev", "eval", "evaluation"})  # of SPLITS, since version 2 of the rules of reading
FILLERS = frozenset({"set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "split", "seg"})
"""Words beside the name of a split in that of its folder, as in training_set, seg_train and test-images."""
YEAR = re.compile(r"(?:19|20)\d\d$")  # train2017


def known_splits() -> dict[str, AnySplit]:
    """Return the names of splits in lower case, by the active rules of reading."""
    return {name: split for name, split in SPLITS.items() if active_rules().version >= 2 or name not in NEWER}


def named_split(folder: str) -> AnySplit | None:
    """Return the split that a folder is named after, as train, Training, training_set, trainset and train2017 are."""
    if active_rules().version < 2:
        return known_splits().get(folder.lower())
    words = [word for word in re.split(r"[-_. ]+", YEAR.sub("", folder.lower())) if word and word not in FILLERS]
    return SPLITS.get(words[0].removesuffix("set")) if len(words) == 1 else None


def split_of(path: str) -> AnySplit | None:
    """Return the split that a folder of a path is named after."""
    return next((split for part in path.split("/")[:-1] if (split := named_split(part))), None)


def split_of_file(path: str) -> AnySplit | None:
    """Return the split in the name of a file such as instances_val2017.json."""
    words = re.split(r"[-_.]+", path.rpartition("/")[2].lower().rpartition(".")[0])
    known = known_splits()
    return next((known[key] for word in words if (key := word.rstrip("0123456789")) in known), None)


VALIDATION_IS_TEST = (
    "there is no test split: the validation split is the test set, and some training images are held out to validate"
)
"""Remark on data with training and validation images only."""


def describe_without_split(names: Sequence[str]) -> str:
    """Return a remark on images that belong to none of the splits that folders or files are named after."""
    more = f" and {len(names) - EXAMPLES:,} more" if len(names) > EXAMPLES else ""
    number = format_count(len(names), "image")
    return f"not used: {number} of no named split: {', '.join(names[:EXAMPLES])}{more}"


@dataclass(frozen=True)
class SplitFolders:
    """Position of the folders of the splits in a tree of images."""

    root: str
    """Folder that contains all images, such as "imagenette/"; empty: the top."""
    level: int | None
    """0: <split>/<class>/<image>; 1: <class>/<split>/<image>; None: there are no such folders."""
    names: Mapping[AnySplit, str]
    """Name of the folder of each split."""
    doubled: frozenset[str] = frozenset()
    """Names of those whose images are all in a further folder of this name, as in seg_train/seg_train/<class>."""

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
        name = self.names[split]
        if parts[self.level : self.level + 1] != [name]:
            return []
        rest = parts[: self.level] + parts[self.level + 1 :]
        return rest[1:] if name in self.doubled and rest[:1] == [name] else rest

    def describe_unused(self, images: Sequence[str]) -> list[str]:
        """Return a remark on images outside of the folders of the splits, if there are any."""
        outside = [name for name in images if not any(self.below(name, split) for split in self.names)]
        if not outside:
            return []
        names = ", ".join(f"{name}/" for name in self.names.values())
        return [f"not used: {format_count(len(outside), 'image')} outside of {names}, such as {outside[0]}"]


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
        if any(len(_parts(path, root)) < 2 for path in images) or (shallow and not named_split(top)):
            break
        root += f"{top}/"
    parts = [_parts(path, root) for path in images]
    for level in (0, 1):
        folders = {each[level] if len(each) > level + 1 else "" for each in parts}
        named = {folder: split for folder in sorted(folders) if (split := named_split(folder))}
        if level == 1 and len(named) < len(folders):
            continue  # below the classes, all folders must be those of splits
        names: dict[AnySplit, str] = {}
        for folder, split in named.items():
            if split in names:
                raise UserError(
                    f"{where} has {names[split]}/ and {folder}/, both for the {split} images: rename or merge them."
                )
            names[split] = folder
        if "train" in names and len(names) > 1:
            return SplitFolders(root, level, names, _doubled(parts, named) if level == 0 else frozenset())
        if len(names) > 1:
            raise UserError(
                f"{where} has {' and '.join(f'{name}/' for name in names.values())} but no train/: add training images "
                f"in train/."
            )
    return SplitFolders(root, None, {})


def _doubled(images: Sequence[Sequence[str]], folders: Collection[str]) -> frozenset[str]:
    """Return the folders whose images are all in a further folder of their name."""
    if active_rules().version < 2:
        return frozenset()
    single = {each[0] for each in images if len(each) < 3 or each[1] != each[0]}
    return frozenset(folders) - single


def _parts(path: str, root: str) -> list[str]:
    return path[len(root) :].split("/")


def describe_subfolders(subfolders: Mapping[str, Collection[str]]) -> list[str]:
    """Return a remark if folders inside of the classes may have been meant as the classes or as splits.

    Args:
        subfolders: class -> names of the folders with images in its folder.
    """
    for name, inside in subfolders.items():
        if len({named_split(each) for each in inside} - {None}) > 1:
            remark = (
                f"the folders {', '.join(sorted(inside)[:EXAMPLES])} in {name}/ are not used as splits, because there "
                f"are other folders beside {name}/: give {name}/ as the data, or move the others"
            )
            return [remark]
    first = next(iter(subfolders.values()), ())
    if len(subfolders) < 2 or len(first) < 2 or any(set(each) != set(first) for each in subfolders.values()):
        return []
    classes, inside = (", ".join(sorted(names)[:EXAMPLES]) for names in (subfolders, first))
    remark = (
        f"each class ({classes}) has the same folders ({inside}): if those are the classes, move them up, or rename "
        f"the folders above them to train/ and test/"
    )
    return [remark]
