"""The program that shows what layers look for: the weights before learning, its choices, its files, its sentences."""

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
from zerokara.vision import features
from zerokara.vision.classification.learner import Training
from zerokara.vision.studies.explain import Excited
from zerokara.vision.studies.finished_run import load_trained
from zerokara.vision.studies.receptive_fields import Depth, Span

ONE_THREAD = ("--device", "cpu", "--threads", "1")


def test_the_weights_before_learning_are_the_runs_own(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    found = trained.at_start().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    began = Training(trained.config, trained.data, Compute(), World()).network.state_dict()
    assert all(torch.equal(tensor, began[name]) for name, tensor in found.items())
    learnt = checkpoint.load(tiny_run / "checkpoint-0.pt", "classify")["network"]
    assert not torch.equal(found["backbone.layers.0.weight"], learnt["backbone.layers.0.weight"])
    assert torch.equal(trained.classifier.state_dict()["backbone.layers.0.weight"], learnt["backbone.layers.0.weight"])


def test_a_run_that_began_with_another_begins_with_it_again(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    other = dataclasses.replace(trained, config=dataclasses.replace(trained.config, pretrained_backbone=str(tiny_run)))
    weight = features.first_filters(other.at_start())
    assert torch.equal(weight, features.first_filters(trained.classifier))


def test_filters_as_pictures_by_hand() -> None:
    picture = features.filter_picture(torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]))
    assert picture.shape == (2, 2, 3)
    assert picture[..., 0].tolist() == [[1.0, 0.25], [0.5, 0.75]]
    colours = features.filter_picture(torch.tensor([1.0, 0.0, -4.0]).view(3, 1, 1))
    assert colours.tolist() == [[[0.625, 0.5, 0.0]]]
    mean = features.filter_picture(torch.tensor([3.0, -1.0]).view(2, 1, 1))
    assert mean.tolist() == [[[1.0, 1.0, 1.0]]]


def test_channels_that_nothing_excites_are_not_shown() -> None:
    value_CM = torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0], [1.0], [1.0]])
    none = torch.zeros(7, 1, dtype=torch.int64)
    found = Excited(Depth("", (7, 1, 1), Span(1, 0, 0), Span(1, 0, 0)), value_CM, none, none, none)
    assert features.choose_channels(found, 5) == [1, 2, 4, 5, 6]
    assert features.choose_channels(found, 2) == [1, 4]


def test_what_is_not_seen_is_dimmed_or_blue() -> None:
    image = torch.full((1, 3, 2), 255, dtype=torch.uint8)
    corner = Depth("", (1, 3, 2), Span(1, -1, 0), Span(1, 0, 0))  # sees a pixel and the one above
    picture = features.patch_picture(image, corner, 0, 0)
    assert picture[0, 0] == pytest.approx(features.NOT_SEEN)
    assert picture[1, 0].tolist() == [1.0, 1.0, 1.0]
    wide = Depth("", (1, 3, 2), Span(1, -2, 0), Span(1, 0, 1))  # as high as the image, so all of it is shown
    picture = features.patch_picture(image, wide, 1, 0)
    assert picture[1, 0].tolist() == [1.0, 1.0, 1.0]
    assert picture[2, 0] == pytest.approx([0.35 + 0.65 * colour for colour in features.NOT_SEEN])


def test_pictures_and_numbers(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--depths", "3", "--channels", "2", "--patches", "4", "--show", "5", "0", "--step", "7"]
    features.main([str(tiny_run), *words, *ONE_THREAD])
    shown = capsys.readouterr().out
    for name in ("features-filters.png", "features-patches.png", "features-where.png"):
        assert str(tiny_run / name) in shown
        with Image.open(tiny_run / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    content = json.loads((tiny_run / "features.json").read_text())
    assert content["searched"] == 200
    assert content["largest_change_of_a_filter"] > 0
    assert [depth["sees"] for depth in content["patches"]] == [[3, 3], [10, 10], [36, 36]]
    assert all(f"{side}x{side}" in shown for side in (3, 10, 36))
    for depth in content["patches"]:
        assert len(depth["channels"]) == 2
        for patches in depth["channels"].values():
            values = [patch["activation"] for patch in patches]
            assert len({patch["image"] for patch in patches}) == 4
            assert values == sorted(values, reverse=True)
            assert values[0] > 0
    assert [look["image"] for look in content["looks"]] == [5, 0]
    assert all(0 <= look["least_left"] <= look["confidence"] <= 1 for look in content["looks"])


def test_grad_cam_can_weigh_another_depth(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    options = features.Options(step=28)
    images = trained.images("validation")
    deep, shallow = (features.look_at(trained, images, [0], options, place)[0] for place in (5, 0))
    assert deep.guess == shallow.guess
    assert not torch.allclose(deep.cam_HW, shallow.cam_HW)
    assert deep.cam_HW.shape == (28, 28)


def test_mistakes_get_a_sentence(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="No run was named"):
        features.main([])
    with pytest.raises(UserError, match="--show 200 does not exist: there are 200 validation images, from 0"):
        features.main([str(tiny_run), "--show", "3", "200", *ONE_THREAD])
    with pytest.raises(UserError, match="--cam-depth 7 does not exist: tiny has 6 depths"):
        features.main([str(tiny_run), "--cam-depth", "7", *ONE_THREAD])
