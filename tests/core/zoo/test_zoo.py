"""The zoo: names, files, and what ships is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zerokara.core.config import UserError
from zerokara.core.models import model_file
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.zoo import __main__ as listing
from zerokara.core.zoo import registry as zoo

CARD = ClassifierMetadata(
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
    """A zoo with one network."""
    model_file.save(tmp_path / "pets.safetensors", CARD.build().state_dict(), CARD, half=True)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    zoo.files.cache_clear()
    yield tmp_path
    zoo.files.cache_clear()


def test_by_name(pets: Path) -> None:
    classifier, metadata = zoo.load("pets")
    assert metadata == CARD
    assert not classifier.training
    with pytest.raises(UserError, match="did you mean pets"):
        zoo.load("pet")


def test_a_word_is_a_folder_a_file_or_a_name(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = pets / "pets.safetensors"
    assert zoo.find_file("pets") == zoo.find_file(str(file)) == file
    run = tmp_path_factory.mktemp("run")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        zoo.find_file(str(run))
    (run / "model.safetensors").write_bytes(file.read_bytes())
    assert zoo.find_file(str(run)) == run / "model.safetensors"
    with pytest.raises(UserError, match="There is no pest"):
        zoo.find_file("pest")


def test_an_eye_is_a_run_of_any_kind_a_file_or_a_name(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")  # that of an agent has no model.safetensors
    assert zoo.weights_source(str(run)) == run
    assert zoo.weights_source("pets") == pets / "pets.safetensors"
    with pytest.raises(UserError, match="There is no pest"):
        zoo.weights_source("pest")


def test_the_listing(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing.main([])
    printed = capsys.readouterr().out
    for word in ("pets", "deep_cnn", "3x16x16", "cat, dog, fox", "test error 0.125"):
        assert word in printed
    (pets / "pets.safetensors").unlink()
    zoo.files.cache_clear()
    listing.main([])
    assert "empty" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({"digits", "photographs", *zoo.files()}))
def test_what_ships_is_small_and_says_what_made_it(name: str) -> None:
    assert zoo.files()[name].stat().st_size <= zoo.MOST_BYTES
    classifier, metadata = zoo.load(name)
    assert metadata.command
    assert metadata.figures
    assert all(p.isfinite().all() for p in classifier.parameters())
