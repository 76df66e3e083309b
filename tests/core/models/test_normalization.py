"""Tests of the normalization that published weights expect: which files are published, and what a run then uses."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.core.models import normalization
from zerokara.core.models.classifier import ClassifierMetadata, make_classifier
from zerokara.core.models.normalization import (
    decide_normalization,
    expected_moments,
    format_normalization,
    is_published,
    published_moments,
)
from zerokara.core.run_options import NormalizationOptions
from zerokara.core.zoo import registry as zoo


@dataclass(frozen=True, kw_only=True)
class Config(NormalizationOptions):
    backbone: str = "resnet20"
    weights: str = ""
    pretrained_backbone: str = ""
    resume: bool = False


WEIGHTS: dict[str, Tensor] = {"conv1.weight": torch.zeros(3, 3)}


def config_with(field: str, path: Path, **settings: Any) -> Config:
    values: dict[str, Any] = {field: str(path), **settings}
    return Config(**values)


def write_files(folder: Path) -> dict[str, Path]:
    """Write weights of other programs (in lower case) and of zerokara (in upper case)."""
    paths = {"a.pth": folder / "a.pth", "b.safetensors": folder / "b.safetensors", "timm": folder / "timm.safetensors"}
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, paths["a.pth"])
    save_file(WEIGHTS, paths["b.safetensors"])
    save_file(WEIGHTS, paths["timm"], {"format": "pt"})
    network = make_classifier("resnet20", 3, 32, 2, head="pooled", width=0.25)
    metadata = ClassifierMetadata(
        backbone="resnet20",
        head="pooled",
        classes=("a", "b"),
        channels=3,
        image_size=(32, 32),
        mean=(0.5,) * 3,
        std=(0.1,) * 3,
        options={"width": 0.25},
    )
    (folder / "RUN").mkdir()
    paths |= {"RUN": folder / "RUN", "MODEL": folder / "RUN" / "model.safetensors", "CHECKPOINT": folder / "C.pt"}
    metadata.save(paths["MODEL"], network.state_dict())
    checkpoint.save(paths["CHECKPOINT"], {"network": WEIGHTS}, "dqn")
    return paths


def test_files_of_other_programs_are_published_and_those_of_zerokara_are_not(tmp_path: Path) -> None:
    paths = write_files(tmp_path)
    assert {name: is_published(path) for name, path in paths.items()} == {name: name.islower() for name in paths}
    assert {name: zoo.lacks_metadata(path) for name, path in paths.items()} == {
        name: name.islower() or name == "CHECKPOINT" for name in paths
    }
    with pytest.raises(UserError, match=r"There is no file .*none\.pth"):
        is_published(tmp_path / "none.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(UserError, match="contains an object"):
        is_published(tmp_path / "module.pth")


@pytest.mark.parametrize("field", ["weights", "pretrained_backbone"])
def test_a_new_run_decides_by_its_files_and_a_resumed_one_keeps_its_decision(tmp_path: Path, field: str) -> None:
    for name, path in write_files(tmp_path).items():
        new = decide_normalization(config_with(field, path), 3)
        assert new.published_normalization is name.islower(), name
        assert decide_normalization(config_with(field, path), 1).published_normalization is False
    assert decide_normalization(Config(), 3).published_normalization is False
    given = config_with(field, tmp_path / "a.pth", published_normalization=False)
    assert decide_normalization(given, 3) is given
    asked = Config(published_normalization=True)
    assert decide_normalization(asked, 3) is asked
    with pytest.raises(UserError, match="three color channels, but these have 1"):
        decide_normalization(asked, 1)
    old = config_with(field, tmp_path / "deleted.pth", resume=True)
    assert decide_normalization(old, 3) is old, "the file may be gone"


def test_weights_of_a_network_of_ones_own_are_not_published_weights(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pth")
    (tmp_path / "net.py").write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    config = Config(weights=str(tmp_path / "a.pth"), backbone=f"{tmp_path}/net.py:Net")
    assert decide_normalization(config, 3).published_normalization is False


def test_moments_are_those_of_the_backbone() -> None:
    assert published_moments("googlenet") == ((0.5,) * 3, (0.5,) * 3)
    assert published_moments("vgg16")[0] == (0.485, 0.456, 0.406)
    line = format_normalization(Config(backbone="googlenet"))
    assert "mean 0.5, 0.5, 0.5 and standard deviation 0.5" in line
    assert "as published weights of googlenet expect" in line
    assert "as published weights of vgg16 expect" in format_normalization(Config(backbone="googlenet"), "vgg16")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3}}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}),
    ],
)
def test_published_files_bring_their_normalization(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    path, own = tmp_path / "model.safetensors", ((0.5, 0.4, 0.3), (0.2,) * 3)
    save_file(WEIGHTS, path)
    assert decide_normalization(config_with("weights", path), 3).published_mean == ()
    (tmp_path / name).write_text(json.dumps(content))
    for settings in ({}, {"published_normalization": True}):
        found = decide_normalization(config_with("weights", path, **settings), 3)
        assert (found.published_mean, found.published_std) == own == expected_moments(found)
        assert "mean 0.5, 0.4, 0.3 and standard deviation 0.2, 0.2, 0.2, as these weights" in format_normalization(
            found
        )
    chosen = config_with("weights", path, published_mean=(0.1,) * 3, published_std=(1.0,) * 3)
    assert expected_moments(decide_normalization(chosen, 3)) == ((0.1,) * 3, (1.0,) * 3)
    off = config_with("weights", path, published_normalization=False)
    assert decide_normalization(off, 3) is off
    wrong = [(1, 2), *(([0.5, 0.5, limit], [0.2] * 3) for limit in (math.nan, -math.inf, 1e6, -1e6))]
    wrong += [([0.5] * 3, [0.2, 0.2, limit]) for limit in (math.nan, 0.0, 1e6)]
    files = ({"pretrained_cfg": {"mean": m, "std": s}, "image_mean": m, "image_std": s} for m, s in wrong)
    for damaged in ("{", "[]", *map(json.dumps, files)):
        (tmp_path / name).write_text(damaged)
        with pytest.raises(UserError, match=rf"{name} beside the weights has no readable normalization"):
            decide_normalization(config_with("weights", path), 3)
    (tmp_path / name).write_text('{"model_type": "resnet"}')
    assert decide_normalization(config_with("weights", path), 3).published_mean == ()


def test_a_known_file_is_recognized_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is free, and another file of the same name has the moments of its backbone."""
    prefix, moments = normalization.KNOWN_FILES["vgg16"]
    assert (prefix, moments) == ("88682ab5", ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3))
    known, other = tmp_path / "x.pth", tmp_path / "vgg16_features-amdegroot-88682ab5.pth"
    torch.save(WEIGHTS, known)
    torch.save({"conv1.weight": torch.ones(3, 3)}, other)
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    monkeypatch.setattr(normalization, "KNOWN_FILES", {"vgg16": (digest[:8], moments)})
    found = decide_normalization(config_with("weights", known, backbone="vgg16"), 3)
    assert expected_moments(found) == moments
    found = decide_normalization(config_with("weights", other, backbone="vgg16"), 3)
    assert expected_moments(found) == published_moments("vgg16")


@pytest.mark.parametrize(
    "settings",
    [
        {"published_mean": (0.5,)},
        {"published_mean": (0.5,) * 3},
        {"published_std": (0.5,) * 3},
        {"published_mean": (0.5,) * 3, "published_std": (0.5, 0.5, 0.0)},
        {"published_mean": (0.5,) * 3, "published_std": (0.5,) * 3, "published_normalization": False},
    ],
)
def test_invalid_moments_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--published-mean"):
        decide_normalization(Config(**settings), 3)
