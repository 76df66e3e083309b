"""Tests of vision.features: initial weights, selection of channels, figures, JSON and errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.layers import first_filters
from zerokara.vision import features
from zerokara.vision.classification.learner import Training
from zerokara.vision.studies.explain import TopActivations
from zerokara.vision.studies.finished_run import load_trained
from zerokara.vision.studies.receptive_fields import FeatureMap, Span

ONE_THREAD = ("--device", "cpu", "--threads", "1")


def test_initial_weights_are_reproduced_from_the_seed(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    reproduced = trained.initial_network().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    initial = Training(trained.config, trained.data, Compute(), World()).network.state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in reproduced.items())
    trained_state = checkpoint.load(tiny_run / "checkpoint-0.pt", "classify")["network"]
    assert not torch.equal(reproduced["backbone.layers.0.weight"], trained_state["backbone.layers.0.weight"])
    weight = trained.classifier.state_dict()["backbone.layers.0.weight"]
    assert torch.equal(weight, trained_state["backbone.layers.0.weight"])


def test_initial_weights_of_a_pretrained_backbone(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    other = dataclasses.replace(trained, config=dataclasses.replace(trained.config, pretrained_backbone=str(tiny_run)))
    weight = first_filters(other.initial_network())
    assert torch.equal(weight, first_filters(trained.classifier))


def test_filter_image_against_hand_computed_values() -> None:
    image = features.filter_image(torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]))
    assert image.shape == (2, 2, 3)
    assert image[..., 0].tolist() == [[1.0, 0.25], [0.5, 0.75]]
    rgb = features.filter_image(torch.tensor([1.0, 0.0, -4.0]).view(3, 1, 1))
    assert rgb.tolist() == [[[0.625, 0.5, 0.0]]]
    mean = features.filter_image(torch.tensor([3.0, -1.0]).view(2, 1, 1))
    assert mean.tolist() == [[[1.0, 1.0, 1.0]]]


def test_inactive_channels_are_not_chosen() -> None:
    value_CM = torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0], [1.0], [1.0]])
    none = torch.zeros(7, 1, dtype=torch.int64)
    top = TopActivations(FeatureMap("", (7, 1, 1), Span(1, 0, 0), Span(1, 0, 0)), value_CM, none, none, none)
    assert features.choose_channels(top, 5) == [1, 2, 4, 5, 6]
    assert features.choose_channels(top, 2) == [1, 4]


def test_pixels_outside_of_the_receptive_field_are_dimmed_or_blue() -> None:
    image = torch.full((1, 3, 2), 255, dtype=torch.uint8)
    corner = FeatureMap("", (1, 3, 2), Span(1, -1, 0), Span(1, 0, 0))  # a pixel and the one above it
    picture = features.patch_image(image, corner, 0, 0)
    assert picture[0, 0] == pytest.approx(features.OUTSIDE_COLOR)
    assert picture[1, 0].tolist() == [1.0, 1.0, 1.0]
    wide = FeatureMap("", (1, 3, 2), Span(1, -2, 0), Span(1, 0, 1))  # as high as the image, so the whole image is shown
    picture = features.patch_image(image, wide, 1, 0)
    assert picture[1, 0].tolist() == [1.0, 1.0, 1.0]
    assert picture[2, 0] == pytest.approx([0.35 + 0.65 * color for color in features.OUTSIDE_COLOR])


def test_figures_and_json(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--depths", "3", "--channels", "2", "--patches", "4", "--show", "5", "0", "--step", "7"]
    features.main([str(tiny_run), *words, *ONE_THREAD])
    printed = capsys.readouterr().out
    for name in ("features-filters.png", "features-patches.png", "features-where.png"):
        assert str(tiny_run / name) in printed
        with Image.open(tiny_run / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    content = json.loads((tiny_run / "features.json").read_text())
    assert content["searched"] == 200
    assert content["largest_change_of_a_filter"] > 0
    assert [one["sees"] for one in content["patches"]] == [[3, 3], [10, 10], [36, 36]]
    assert all(f"{side}x{side}" in printed for side in (3, 10, 36))
    for one in content["patches"]:
        assert len(one["channels"]) == 2
        for patches in one["channels"].values():
            values = [patch["activation"] for patch in patches]
            assert len({patch["image"] for patch in patches}) == 4
            assert values == sorted(values, reverse=True)
            assert values[0] > 0
    assert [look["image"] for look in content["looks"]] == [5, 0]
    assert all(0 <= look["least_left"] <= look["confidence"] <= 1 for look in content["looks"])


def test_grad_cam_of_another_feature_map(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    options = features.Options(step=28)
    images = trained.images("validation")
    deep, shallow = (features.explain(trained, images, [0], options, cam_map)[0] for cam_map in (5, 0))
    assert deep.prediction == shallow.prediction
    assert not torch.allclose(deep.cam_HW, shallow.cam_HW)
    assert deep.cam_HW.shape == (28, 28)


def test_error_messages(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="No run was given"):
        features.main([])
    with pytest.raises(UserError, match="--show 200 does not exist: there are 200 validation images, counted from 0"):
        features.main([str(tiny_run), "--show", "3", "200", *ONE_THREAD])
    with pytest.raises(UserError, match="--cam-depth 7 does not exist: tiny has 6 feature maps"):
        features.main([str(tiny_run), "--cam-depth", "7", *ONE_THREAD])
