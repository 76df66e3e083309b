"""Networks for pixels: the papers' numbers of parameters, upsampling, unpooling, sizes, weights of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.vision.segmentation.networks import Fcn, fitted, make_segmenter, strides_of, unpool, upsampling


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "backbone", "classes", "expected"),
    [
        ("fcn32s", "vgg16", 21, 136_152_917),
        ("fcn16s", "vgg16", 21, 134_815_994),
        ("fcn8s", "vgg16", 21, 134_489_759),
        ("segnet", "vgg16_bn", 11, 29_449_355),
    ],
)
def test_parameters_are_the_papers(network: str, backbone: str, classes: int, expected: int) -> None:
    with torch.device("meta"):
        made = make_segmenter(network, backbone=backbone, channels=3, image_size=(224, 224), classes=classes)
    assert parameters(made) == expected


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_upsampling_begins_as_bilinear_interpolation_and_learns(factor: int) -> None:
    x = torch.randn(2, 3, 5, 6)
    layer = upsampling(3, factor)
    y = layer(x)
    assert y.shape == (2, 3, 5 * factor, 6 * factor)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = slice(factor, -factor)  # beyond the edge one sees zeros, the other goes on
    assert torch.allclose(y[:, :, inside, inside], expected[:, :, inside, inside], atol=1e-5)
    assert layer.weight.requires_grad
    y.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[0, 1].abs().sum() > 0


def test_unpooling_puts_maxima_where_they_were() -> None:
    x = torch.tensor([[[[1.0, 5.0, 2.0], [0.0, 3.0, 9.0], [7.0, 8.0, 4.0]]]])
    pooled, place = F.max_pool2d(x, 2, return_indices=True)
    assert unpool(10 * pooled, place, x.shape[2:]).tolist() == [[[[0, 50, 0], [0, 0, 0], [0, 0, 0]]]]
    x = torch.randn(2, 3, 8, 6)
    pooled, place = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(unpool(pooled, place, x.shape[2:]), F.max_unpool2d(pooled, place, (2, 2)))


def test_maps_are_brought_to_a_size() -> None:
    x = torch.arange(20.0).view(1, 1, 4, 5)
    assert torch.equal(fitted(x, torch.Size((4, 5))), x)
    assert torch.equal(fitted(x, torch.Size((2, 4))), x[:, :, 1:3, :4])
    grown = fitted(x, torch.Size((6, 5)))
    assert torch.equal(grown[:, :, 1:5], x)
    assert torch.equal(grown[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vgg16", {}, [2, 4, 8, 16, 32]),
        ("resnet18", {"stem": "medium"}, [2, 4, 8, 16]),
        ("resnet18", {}, [2, 4, 8, 16, 32]),
        ("alexnet", {}, [8, 16, 32]),
        ("googlenet", {}, [2, 4, 8, 16, 32]),
        ("deep_cnn", {}, [2, 4, 8]),
        ("resnet20", {}, [1, 2, 4]),
    ],
)
def test_strides(name: str, options: dict[str, str], expected: list[int]) -> None:
    assert strides_of(name, 3, **options) == expected


@pytest.mark.parametrize(
    ("network", "backbone", "options"),
    [
        ("fcn32s", "vgg11", {"width": 0.1, "hidden_units": 8}),
        ("fcn8s", "alexnet", {"width": 0.1, "hidden_units": 8}),
        ("fcn4s", "deep_cnn", {"decoder_channels": 6}),
        ("fcn2s", "resnet18", {"width": 0.1, "stem": "medium", "decoder_channels": 6}),
        ("fcn8s", "googlenet", {"width": 0.1}),
        ("fcn2s", "resnet20", {"width": 0.5}),
        ("segnet", "vgg11_bn", {"width": 0.1}),
    ],
)
def test_any_backbone_and_any_size(network: str, backbone: str, options: dict[str, object]) -> None:
    made = make_segmenter(network, backbone=backbone, channels=3, image_size=(64, 96), classes=5, **options).eval()  # type: ignore[arg-type]
    for height, width in ((64, 96), (70, 101), (128, 64)):
        x = torch.randn(1, 3, height, width)
        assert made(x).shape == (1, 5, height, width)


@pytest.mark.parametrize("network", ["fcn8s", "segnet"])
def test_what_moves_in_the_image_moves_in_the_map(network: str) -> None:
    """A picture moved by whole cells gives scores moved by as much: nothing is shifted on the way through."""
    torch.manual_seed(3)
    options = {"decoder_channels": 4, "hidden_units": 0} if network == "fcn8s" else {}
    made = make_segmenter(
        network, backbone="vgg11_bn", channels=1, image_size=(256, 256), classes=3, width=0.1, **options
    ).eval()
    x = torch.zeros(1, 1, 256, 256)
    x[:, :, 96:128, 96:128] = torch.randn(32, 32)
    moved = torch.roll(x, (32, 64), (2, 3))
    y, y_moved = made(x), made(moved)
    spread = (y - y[:, :, :1, :1]).abs().amax(1)[0]
    assert spread[90:134, 90:134].max() > 2 * spread[:, 200:].max(), "scores are somewhere else than the image"
    assert torch.allclose(
        torch.roll(y, (32, 64), (2, 3))[..., 96:192, 128:192], y_moved[..., 96:192, 128:192], atol=1e-3
    )


def test_a_score_begins_at_nothing_and_every_weight_learns() -> None:
    made = make_segmenter("fcn8s", backbone="vgg11", channels=3, image_size=(64, 64), classes=4, width=0.1)
    x = torch.randn(2, 3, 64, 64)
    assert made(x).abs().max() == 0
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(3):  # first scores, then what is below and above them
        optimizer.zero_grad()
        F.cross_entropy(made(x), torch.randint(4, (2, 64, 64))).backward()
        optimizer.step()
    still = [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert still == []


def test_torchvisions_classifier_slides_over_the_map(tmp_path: Path) -> None:
    """fc6 as a 7x7 convolution gives in the middle of a 7x7 map what the linear layer gives."""
    made = make_segmenter("fcn32s", backbone="vgg11", channels=3, image_size=(224, 224), classes=4, width=0.125)
    assert isinstance(made, Fcn)
    eye = make_backbone("vgg11", 3, 224, width=0.125)
    head = eye.paper_head(10, None).eval()
    state = {eye.published_name(name): tensor for name, tensor in eye.state_dict().items()} | dict(head.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vgg.safetensors")
    reports = made.load_published(tmp_path / "vgg.safetensors")
    assert reports[1:] == ["fc6 from classifier.0", "fc7 from classifier.3"]
    x = torch.randn(1, 3, 224, 224)
    features = eye(x)
    assert torch.allclose(made.backbone(x), features)
    hidden = made.hidden.eval()(features)[:, :, 3, 3]
    linear = head.get_submodule("classifier")[:6](features.flatten(1))  # type: ignore[index]
    assert torch.allclose(hidden, linear, atol=1e-4)
    made = make_segmenter(
        "fcn32s", backbone="vgg11", channels=3, image_size=(224, 224), classes=4, width=0.125, hidden_units=7
    )
    assert made.load_published(tmp_path / "vgg.safetensors")[1].startswith("fc6 stays fresh")


def test_an_eye_of_another_run_is_found(tmp_path: Path) -> None:
    made = make_segmenter("segnet", backbone="vgg11_bn", channels=3, image_size=(64, 64), classes=4, width=0.1)
    other = make_segmenter("fcn8s", backbone="vgg11_bn", channels=3, image_size=(64, 64), classes=9, width=0.1)
    save_file(dict(other.state_dict()), tmp_path / "model.safetensors")
    loaded = load_pretrained_backbone(made.backbone, tmp_path / "model.safetensors")
    assert loaded.missing == ()
    assert torch.equal(made.backbone.state_dict()["layers.0.weight"], other.backbone.state_dict()["layers.0.weight"])


@pytest.mark.parametrize(
    ("network", "backbone", "words"),
    [
        ("fcn8s", "resnet21", "6n"),
        ("segnet", "resnet18", r"no VGG.*vgg16_bn"),
        ("fcn16s", "deep_cnn", r"no map of stride 16.*fcn2s, fcn4s, fcn8s"),
        ("unet", "vgg16", "no network 'unet'"),
    ],
)
def test_what_cannot_be_is_refused(network: str, backbone: str, words: str) -> None:
    with pytest.raises(UserError, match=words), torch.device("meta"):
        make_segmenter(network, backbone=backbone, channels=3, image_size=(64, 64), classes=4)
