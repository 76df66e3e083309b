"""Tests of the zoo: names, files, and the networks that are part of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zerokara.core.config import UserError
from zerokara.core.models import lite0, model_file
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
def pets(empty_zoo: Path) -> Path:
    """Create a zoo with one classifier, and an agent and a generator with less than what their programs need."""
    folder = empty_zoo
    for kind in zoo.KINDS:
        (folder / kind).mkdir()
    METADATA.save(folder / "classifiers" / "pets.safetensors", METADATA.build().state_dict(), half=True)
    weights = {"layer.weight": torch.zeros(3, 5), "norm.running_mean": torch.zeros(7)}
    figures = {"return_float16": 20.5}
    agent = {"config": {"backbone": "nature", "env": "ALE/Pong-v5"}, "num_actions": 6, "figures": figures}
    generator = {"config": {"generator": "r3"}, "shape": [1, 28, 30], "class_names": ["a", "b"], "figures": {"fcd": 5}}
    command = {"command": "python -m trained"}
    model_file.write(folder / "agents" / "pong.safetensors", weights, agent | command, "agent")
    model_file.write(folder / "generators" / "pets.safetensors", weights, generator | command, "generator")
    return folder / "classifiers"


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


def test_lite0_is_the_name_of_weights_in_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no classifier of zerokara; a missing package is one sentence."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(lite0, "find_weights", Path)
        assert zoo.find_weights("lite0") == Path("--pretrained-backbone lite0")
        assert not zoo.is_classifier("lite0")
        assert capsys.readouterr().err == ""
        Path("runs/lite0").mkdir(parents=True)
        zoo.find_weights("lite0")
    expected = "lite0 is taken for the weights of efficientnet_lite0; for the folder here, type runs/lite0."
    assert expected in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(UserError) as caught:
        zoo.find_weights("lite0")
    assert str(caught.value) == (
        "--pretrained-backbone lite0 needs the package no-such-package-of-weights, which is not installed: type pip "
        "install no-such-package-of-weights==0.1.0."
    )


def test_names_are_those_of_a_kind(pets: Path) -> None:
    assert {kind: list(zoo.files(kind)) for kind in zoo.KINDS} == {
        "classifiers": ["pets"],
        "agents": ["pong"],
        "generators": ["pets"],
    }
    assert zoo.find("pets") == pets / "pets.safetensors"
    assert zoo.find("pets", "generators") == pets.parent / "generators" / "pets.safetensors"
    with pytest.raises(UserError, match=r"There is no pets: give .*name in the zoo \(pong\)\.$"):
        zoo.find("pets", "agents")


def test_a_plain_name_is_one_of_the_zoo_and_a_path_is_a_folder(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("pong", "runs/pong", "other"):
        Path(folder).mkdir(parents=True)
    assert zoo.find("pong", "agents") == pets.parent / "agents" / "pong.safetensors"
    noted = capsys.readouterr().err
    assert "pong is taken for the name in the zoo (agents); for the folder here, type ./pong" in noted
    assert "type runs/pong" in noted
    for word in ("./pong", "pong/", "runs/pong", "other"):
        assert zoo.find(word, "agents") == Path(word)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pnog", r"^There is no pnog \(did you mean pong\?\): give .* zoo \(pong\); existing runs: runs/catch\.$"),
        ("catch", r"There is no catch \(did you mean runs/catch\?\)"),
        ("runs/cacth", r"There is no runs/cacth \(did you mean runs/catch\?\)"),
        ("runs/pong", r"There is no runs/pong: give a run folder"),  # no hint at a name that is no path beside it
    ],
)
def test_unknown_names_list_what_exists(pets: Path, word: str, message: str) -> None:
    Path("runs/catch").mkdir(parents=True)
    Path("runs/catch/config.json").touch()
    with pytest.raises(UserError, match=message):
        zoo.find(word, "agents")


def test_listing(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing.main([])
    printed = capsys.readouterr().out
    for word in ("classifiers", "pets", "deep_cnn", "3x16x16", "cat, dog, fox", "test error 0.125"):
        assert word in printed
    lines = {line.split()[0]: line.split() for line in printed[printed.index("agents") :].splitlines() if line.strip()}
    assert lines["pong"][1:5] == ["nature", "ALE/Pong-v5", "6", "15"], "statistics of BatchNorm are no parameters"
    assert lines["pets"][1:5] == ["r3", "1x28x30", "a,", "b"]
    assert "return float16 20.5" in printed
    for file in pets.parent.rglob("*.safetensors"):
        file.unlink()
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
