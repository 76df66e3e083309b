"""Tests of settings: ranges of augmentation, preset fast for small photographs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, to_dict
from zerokara.vision.binarization import config as binary_config
from zerokara.vision.classification import config


@pytest.mark.parametrize("module", [config, binary_config])
@pytest.mark.parametrize(
    ("flag", "maximum", "too_large"),
    [("--scale", "0.9", "1"), ("--shear-degrees", "80", "90"), ("--rotation-degrees", "180", "181")],
)
def test_degenerate_affine_maps_are_rejected(module: object, flag: str, maximum: str, too_large: str) -> None:
    """A scale factor of 0 and a shear of 90 degrees map every pixel to infinity."""
    kind, presets = module.Config, module.PRESETS  # type: ignore[attr-defined]
    parse(kind, presets, [flag, maximum], "")
    with pytest.raises(UserError, match=f"{flag} cannot be {too_large}.*at most {maximum}"):
        parse(kind, presets, [flag, too_large], "")


def settings(*words: str) -> dict[str, Any]:
    return to_dict(replace(config.read_config(list(words)), preset="", name=""))


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_fast_is_airbench_for_small_photographs(data: str) -> None:
    fast = settings("--data", data)
    assert fast == settings("--data", data, "--preset", "airbench", "--batch-size", "500")
    assert (fast["backbone"], fast["optimizer"], fast["ema_half_life_updates"]) == ("airbench", "muon_sgd", 0.0)


def test_what_is_given_is_kept() -> None:
    given = settings("--data", "cifar10", "--epochs", "3", "--tta-views", "1", "--elastic-pixels", "0.7")
    fast = settings("--data", "cifar10")
    assert given == {**fast, "epochs": 3, "tta_views": 1, "elastic_pixels": 0.7}


@pytest.mark.parametrize(
    "words",
    [
        ("--data", "mnist"),
        ("--data", "mnist", "--batch-size", "50"),
        ("--data", "cifar10", "--backbone", "deep_cnn"),
        ("--data", "cifar10", "--optimizer", "adamw"),
        ("--data", "cifar10", "--optimizer", "sgd"),
        ("--data", "cifar10", "--pretrained-backbone", "runs/a"),
        ("--data", "cifar10", "--weights", "resnet18.pth"),
        ("--data", "cifar10", "--preset", "photos"),
        ("--data", "cifar10", "--preset", "airbench", "--optimizer", "sgd", "--batch-size", "50"),
    ],
)
def test_other_runs_are_not_changed(words: tuple[str, ...]) -> None:
    expected = parse(config.Config, config.PRESETS, list(words), "")
    assert settings(*words) == to_dict(replace(expected, preset="", name=""))


@pytest.mark.parametrize("preset", ["fast", "airbench"])
def test_the_rates_of_airbench_follow_the_batch_size(preset: str) -> None:
    """airbench94_muon.py: 0.67 (on logits divided by 256) and 0.053 on a sum over the batch, decay 2e-6 per image.

    Its learning rate of Muon, 0.24, is in proportion to the root of the batch size.
    """
    found = settings("--data", "cifar10", "--preset", preset, "--batch-size", "128")
    assert found["output_learning_rate"] == pytest.approx(0.67 * 128 / 256**2, rel=3e-3)  # the preset has .0204
    assert found["bias_learning_rate"] == pytest.approx(0.053 * 128)
    assert found["weight_decay"] == pytest.approx(2e-6 * 128)
    assert found["learning_rate"] == pytest.approx(0.24 * (128 / 2000) ** 0.5)
    assert found["batch_size"] == 128
    given = settings("--data", "cifar10", "--preset", preset, "--batch-size", "128", "--bias-learning-rate", "7")
    assert given == {**found, "bias_learning_rate": 7.0}


def test_airbench_has_the_published_values_by_default() -> None:
    found = settings("--data", "cifar10", "--preset", "airbench")
    assert (found["batch_size"], found["learning_rate"], found["bias_learning_rate"]) == (2000, 0.24, 106.0)


def test_a_config_made_in_python_has_the_class_defaults() -> None:
    assert config.Config(data="cifar10").backbone == "deep_cnn"
    assert config.read_config(["--data", "cifar10"]).backbone == "airbench"
