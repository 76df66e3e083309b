"""Tests of finding data sets by name or path."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data import DATASETS, load, sources
from zerokara.core.data.emnist import NAMES as EMNIST_NAMES


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a data folder with two sets, and a working folder with a set of the same name."""
    for name, side in (("data/cats", 4), ("data/dogs", 5), ("here/cats", 6)):
        for index in range(2):
            path = tmp_path / name / "class" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (side, side)).save(path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ZEROKARA_DATA", str(tmp_path / "data"))
    return tmp_path


def test_names_refer_to_the_data_folder_and_paths_to_files(folders: Path) -> None:
    assert load("cats", "train").shape == (1, 4, 4)
    assert load("./cats", "train").shape == (1, 6, 6)
    assert load(str(folders / "here" / "cats"), "train").shape == (1, 6, 6)
    assert load("dogs", "train", data_dir=folders / "data").shape == (1, 5, 5)
    assert load("cats", "train", data_dir=folders).shape == (1, 6, 6), "a name that is not in the data folder is a path"


def test_default_data_folder_is_in_the_home_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZEROKARA_DATA")
    monkeypatch.setenv("HOME", str(folders / "home"))
    (folders / "home" / ".cache").mkdir(parents=True)
    (folders / "data").rename(folders / "home" / ".cache" / "zerokara")
    assert load("dogs", "train").shape == (1, 5, 5)
    assert load("~/.cache/zerokara/dogs", "train").shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("mnits", "did you mean mnist"),
        ("catz", "did you mean cats"),
        ("./mnist", "give one of glyphs, mnist"),
        ("", "''"),
    ],
)
def test_unknown_set_lists_the_known_ones(folders: Path, data: str, hint: str) -> None:
    with pytest.raises(UserError, match="There is no data set") as error:
        load(data, "train")
    assert hint in str(error.value)
    assert str(folders / "data") in str(error.value)


def test_missing_data_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no data set 'unknown'"):
        load("unknown", "train", data_dir=tmp_path / "missing")


def test_known_sets_are_resized_and_converted() -> None:
    images = load("glyphs", "test", image_size=16, grayscale=False)
    assert images.shape == (3, 16, 16)
    assert bool((images.images[:, 0] == images.images[:, 2]).all())


def test_downloads_have_checkchecksums_and_two_mirrors() -> None:
    assert set(DATASETS) == {"glyphs", *sources.IDX_SETS, *EMNIST_NAMES, *sources.CIFAR_REMOTES}
    checksums = [md5 for source in sources.IDX_SETS.values() for md5 in source.md5s]
    checksums += [remote.md5 for remote in sources.CIFAR_REMOTES.values()]
    assert all(len(md5) == 32 and int(md5, 16) for md5 in checksums)
    assert len(set(checksums)) == len(checksums) == 10
    for mirrors in [source.mirrors for source in sources.IDX_SETS.values()]:
        assert len(mirrors) >= 2
        assert all(url.startswith("http") and url.endswith("/") for url in mirrors)


def test_class_folders_of_cifar(folders: Path) -> None:
    (folders / "data" / "cats").rename(folders / "train")
    (folders / "data" / "cifar10").mkdir()
    (folders / "train").rename(folders / "data" / "cifar10" / "train")
    assert load("cifar10", "train", download=False).shape == (1, 4, 4)
