"""Image sets by name or path: known names, local folders, and download mirrors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zerokara.core.choices import Background
from zerokara.core.config import UserError, suggest
from zerokara.core.data import cifar, glyphs
from zerokara.core.data.download import Remote, fetch
from zerokara.core.data.emnist import NAMES as EMNIST_NAMES
from zerokara.core.data.emnist import check_no_emnist, find_emnist, load_emnist
from zerokara.core.data.folders import is_image, load_folders, opened, training_files
from zerokara.core.data.idx import has_idx, load_idx
from zerokara.core.data.image_files import convert_image_set, is_hidden
from zerokara.core.data.survey import survey
from zerokara.core.data.types import ImageSet, Progress, Split


@dataclass(frozen=True)
class Request:
    """Arguments of `load`."""

    name: str
    split: Split
    data_dir: Path
    image_size: int | None
    grayscale: bool | None
    download: bool
    background: Background
    progress: Progress | None


def load(
    data: str,
    split: Split,
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    grayscale: bool | None = None,
    download: bool = True,
    background: Background = "auto",
    progress: Progress | None = None,
) -> ImageSet:
    """Load the training or test images of a data set.

    Args:
        data: a name in `DATASETS`; the name of a folder or of `<name>.zip` in `data_dir`; the path of a folder or zip
            of class folders (see `load_folders`), of an LSUN database or of a folder of these. "./mnist" is a path.
        split: "train" or "test".
        data_dir: folder of named data sets; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        image_size: height and width to which images are resized, in pixels; None: no resizing, all must have one size.
        grayscale: convert to one channel (True) or three (False); None: no conversion.
        download: download missing files of known sets.
        background: color behind transparent pixels of image files.
        progress: callback.

    Raises:
        UserError: the set does not exist or is damaged, images have different sizes and `image_size` is None, or the
            download failed.
    """
    folder = data_folder(data_dir)
    if data in DATASETS:
        request = Request(data, split, folder, image_size, grayscale, download, background, progress)
        return convert_image_set(DATASETS[data](request), image_size, grayscale)
    if found := find_data(data, folder):
        check_no_emnist(found)
        return load_folders(found, split, image_size, grayscale, progress, background)
    raise UserError(
        f"There is no data set {data!r}{suggest(data, [*DATASETS, *list_data(folder)])}: give one of "
        f"{', '.join(DATASETS)}, the path of a folder or zip of class folders, or the name of one in {folder}."
    )


def training_lumas(data: str, data_dir: Path | None, progress: Progress | None) -> list[float]:
    """Return the luma of each training image with transparency, see `Survey`; none for a named data set.

    Args:
        data: as for `load`.
        data_dir: as for `load`.
        progress: callback.

    Raises:
        UserError: as `load`, except that a set that does not exist has no images.
    """
    found = None if data in DATASETS else find_data(data, data_folder(data_dir))
    if found is None:
        return []
    check_no_emnist(found)
    return survey(training_files(found, progress), str(found), progress).lumas


def image_lumas(data: str, data_dir: Path | None, progress: Progress | None) -> list[float]:
    """Return the luma of each image with transparency in a folder or zip, see `Survey`.

    Args:
        data: its path or name, see `find_data`.
        data_dir: see `data_folder`.
        progress: callback.

    Raises:
        UserError: the folder or zip cannot be read; one that does not exist has no images.
    """
    found = find_data(data, data_folder(data_dir))
    if found is None:
        return []
    with opened(found) as (members, read):
        files = [(name, partial(read, name)) for name in members if is_image(name) and not is_hidden(name)]
        return survey(files, str(found), progress).lumas


def data_folder(data_dir: Path | None) -> Path:
    """Return the folder of named data sets: `data_dir`, else $ZEROKARA_DATA, else ~/.cache/zerokara."""
    return data_dir or Path(os.environ.get("ZEROKARA_DATA") or Path.home() / ".cache" / "zerokara")


def find_data(data: str, folder: Path) -> Path | None:
    """Find a folder or archive by its name in `folder`, with or without .zip, or by its path; None if it is missing."""
    paths = [Path(data).expanduser()]
    if data and paths[0].name == data:  # a bare name
        paths = [folder / data, folder / f"{data}.zip", *paths]
    return next((path for path in paths if path.exists()), None) if data else None


def require_data(data: str, data_dir: Path | None, contents: str) -> Path:
    """Find a folder or archive as `find_data` does.

    Args:
        data: its name or path.
        data_dir: see `data_folder`.
        contents: what it must contain, for the message.

    Raises:
        UserError: it does not exist.
    """
    folder = data_folder(data_dir)
    if (path := find_data(data, folder)) is None:
        raise UserError(
            f"There is no data set {data!r}{suggest(data, list_data(folder))}: give the path of a folder or zip of "
            f"{contents}, or the name of one in {folder}."
        )
    return path


def list_data(folder: Path) -> list[str]:
    """List the names that `find_data` finds in a folder."""
    return sorted({path.name.removesuffix(".zip") for path in folder.iterdir()}) if folder.is_dir() else []


@dataclass(frozen=True)
class _Idx:
    """Data set in MNIST's file format."""

    title: str
    classes: tuple[str, ...]
    md5s: tuple[str, str, str, str]
    mirrors: tuple[str, ...]
    torchvision: str
    """Name of torchvision's folder of the set."""


IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# The checksums are from torchvision's mnist.py.
IDX_SETS = {
    "mnist": _Idx(
        "MNIST",
        tuple("0123456789"),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        "MNIST",
    ),
    "fashion-mnist": _Idx(
        "Fashion-MNIST",
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        "FashionMNIST",
    ),
}
# The binary version, which can be read without unpickling. The checksums are from the data sets' web page.
CIFAR_REMOTES = {
    "cifar10": Remote(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
        ),
    ),
    "cifar100": Remote(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "https://cave.cs.toronto.edu/kriz/cifar-100-binary.tar.gz",
        ),
    ),
}


def _load_idx(request: Request) -> ImageSet:
    """Load MNIST or Fashion-MNIST from data_dir/<name> or torchvision's folder; download it if it is missing."""
    info = IDX_SETS[request.name]
    own = request.data_dir / request.name
    folders = (own, own / "raw", request.data_dir / info.torchvision / "raw")
    folder = next((path for path in folders if has_idx(path, request.split)), own)
    if not has_idx(folder, request.split):
        remotes = [
            Remote(name, md5, tuple(mirror + name for mirror in info.mirrors))
            for name, md5 in zip(IDX_FILES, info.md5s, strict=True)
        ]
        _get(request, remotes, own, info.title)
    return load_idx(folder, request.split, info.classes, info.title)


def _load_emnist(request: Request) -> ImageSet:
    """Load a data set of EMNIST from its files, or a folder or archive of one's own with its name."""
    own = find_data(request.name, request.data_dir)
    if own is not None and find_emnist(request.name, request.data_dir, request.split) is None:
        sizes = request.image_size, request.grayscale
        return load_folders(own, request.split, *sizes, request.progress, request.background)
    return load_emnist(request.name, request.data_dir, request.split)


def _load_cifar(request: Request) -> ImageSet:
    """Load CIFAR from its published files or from class folders of its images; download it if it is missing."""
    own = request.data_dir / request.name
    if (found := cifar.find_cifar(request.name, [own, request.data_dir])) is None:
        for path in (own, own.with_suffix(".zip")):
            if path.is_file() or (path / "train").is_dir():
                images = load_folders(path, request.split, None, None, request.progress, request.background)
                title = cifar.LAYOUTS[request.name][0].title
                return dataclasses.replace(images, source=f"a copy of {title} as image files, {images.source}")
        remote = CIFAR_REMOTES[request.name]
        _get(request, [remote], own, cifar.LAYOUTS[request.name][0].title)
        found = cifar.LAYOUTS[request.name][0], own / remote.name
    return cifar.load_cifar(*found, request.split)


def _get(request: Request, remotes: list[Remote], folder: Path, title: str) -> None:
    """Download files.

    Raises:
        UserError: downloads are disabled or failed.
    """
    if not request.download:
        files = ", ".join(remote.name for remote in remotes)
        raise UserError(
            f"There is no {title} in {folder}: copy {files} into it, or give a folder that has it with --data-dir."
        )
    fetch(remotes, folder, title, request.progress)


DATASETS: dict[str, Callable[[Request], ImageSet]] = {
    "glyphs": lambda request: glyphs.glyphs(request.split),
    "mnist": _load_idx,
    "fashion-mnist": _load_idx,
    **dict.fromkeys(EMNIST_NAMES, _load_emnist),
    "cifar10": _load_cifar,
    "cifar100": _load_cifar,
}
"""Known data sets by name, with the function that loads each without conversion."""
