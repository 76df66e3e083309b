"""Tests of the zoo: names, files, and the networks that are part of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zerokara.core.config import UserError
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.zoo import __main__ as listing
from zerokara.core.zoo import registry as zoo

METADATA = ClassifierMetadata(
    backbone="deep_cnn",
    head="paper",
    classes=("cat", "dog", "fox"),
    channels=3,
    image_size=(16, 16),
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
    options={"width": 0.25},
    command="python -m vision.classify",
    figures={"test_error": 0.125},
)


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create a zoo with one network."""
    METADATA.save(tmp_path / "pets.safetensors", METADATA.build().state_dict(), half=True)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    zoo.files.cache_clear()
    yield tmp_path
    zoo.files.cache_clear()


def test_load_by_name(pets: Path) -> None:
    classifier, metadata = zoo.load("pets")
    assert metadata == METADATA
    assert not classifier.training
    with pytest.raises(UserError, match="did you mean pets"):
        zoo.load("pet")


def test_find_file_accepts_a_run_folder_a_file_or_a_name(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = pets / "pets.safetensors"
    assert zoo.find_file("pets") == zoo.find_file(str(file)) == file
    run = tmp_path_factory.mktemp("run")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        zoo.find_file(str(run))
    (run / "model.safetensors").write_bytes(file.read_bytes())
    assert zoo.find_file(str(run)) == run / "model.safetensors"
    with pytest.raises(UserError, match="There is no pest"):
        zoo.find_file("pest")


def test_weights_source_accepts_any_run_a_file_or_a_name(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")  # an agent's run has no model.safetensors
    assert zoo.find_weights(str(run)) == run
    assert zoo.find_weights("pets") == pets / "pets.safetensors"
    with pytest.raises(UserError, match="There is no pest"):
        zoo.find_weights("pest")


def test_listing(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing.main([])
    printed = capsys.readouterr().out
    for word in ("pets", "deep_cnn", "3x16x16", "cat, dog, fox", "test error 0.125"):
        assert word in printed
    (pets / "pets.safetensors").unlink()
    zoo.files.cache_clear()
    listing.main([])
    assert "empty" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({"digits", "photographs", *zoo.files()}))
def test_networks_of_the_package_are_small_and_have_metadata(name: str) -> None:
    assert zoo.files()[name].stat().st_size <= zoo.MAX_BYTES
    classifier, metadata = zoo.load(name)
    assert metadata.command
    assert metadata.figures
    assert all(p.isfinite().all() for p in classifier.parameters())
