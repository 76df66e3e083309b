"""Tests of the losses by hand, of L-BFGS, of the loss network's layers, and of the memory estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.generative.style.config import BackboneOptions
from zerokara.generative.style.critic import PerceptualLoss, Weights
from zerokara.generative.style.lbfgs import Lbfgs
from zerokara.generative.style.losses import (
    content_loss,
    gram,
    luminance,
    match_luminance,
    style_loss,
    total_variation,
    with_luminance,
)
from zerokara.generative.style.perceptual import (
    Layers,
    LossNetwork,
    chosen_layers,
    layers_of,
    make_loss_network,
)


def test_losses_by_hand() -> None:
    # Two channels at two positions: (1, 2) and (3, 4).
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    expected = torch.tensor([[[(1 + 4) / 2, (3 + 8) / 2], [(3 + 8) / 2, (9 + 16) / 2]]])
    torch.testing.assert_close(gram(features), expected)
    # Differences 2.5, 5.5, 5.5, 12.5. The paper's E, with N = M = 2 and Gram matrices not divided by M, is equal.
    assert style_loss(gram(features), torch.zeros(1, 2, 2)).item() == pytest.approx(
        (2.5**2 + 2 * 5.5**2 + 12.5**2) / 16
    )
    raw = 2 * expected  # F F^T
    assert style_loss(gram(features), torch.zeros(1, 2, 2)).item() == pytest.approx(
        (raw.square().sum() / (4 * 2**2 * 2**2)).item()
    )
    assert content_loss(features, torch.zeros_like(features)).item() == pytest.approx((1 + 4 + 9 + 16) / 2 / 4)
    pixels = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])  # vertical: 3, 2; horizontal: 1, 0
    assert total_variation(pixels).item() == pytest.approx((9 + 4) / 2 + (1 + 0) / 2)


def test_gram_matrix_does_not_depend_on_positions_or_sizes() -> None:
    features = torch.randn(2, 3, 4, 5)
    shuffled = features.flatten(2)[:, :, torch.randperm(20)].view(2, 3, 4, 5)
    torch.testing.assert_close(gram(shuffled), gram(features))
    torch.testing.assert_close(gram(torch.cat([features, features], 2)), gram(features))


def test_luminance_by_hand_and_colors_are_preserved() -> None:
    colors = torch.rand(1, 3, 4, 4)
    expected = 0.299 * colors[:, :1] + 0.587 * colors[:, 1:2] + 0.114 * colors[:, 2:]
    torch.testing.assert_close(luminance(colors), expected)
    other = torch.rand(1, 1, 4, 4)
    changed = with_luminance(colors, other)
    torch.testing.assert_close(luminance(changed), other)
    torch.testing.assert_close(changed[:, :1] - changed[:, 1:2], colors[:, :1] - colors[:, 1:2])
    style = match_luminance(torch.rand(1, 1, 9, 9) * 7 + 3, other)
    assert style.mean().item() == pytest.approx(other.mean().item(), abs=1e-5)
    assert style.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=1e-4)


def test_lbfgs_minimizes_an_ill_conditioned_quadratic() -> None:
    curvature = torch.logspace(0, 3, 30, dtype=torch.float64)
    minimum = torch.randn(30, dtype=torch.float64)
    x = torch.zeros(30, dtype=torch.float64)
    optimizer = Lbfgs(history=10, first_step=1e-3, max_step=1.0)
    for _ in range(150):
        x = optimizer.step(x, curvature * (x - minimum))
    assert (x - minimum).abs().max() < 1e-3  # gradient descent with the best constant step is a hundred times as far
    assert len(optimizer.steps) == 10


def test_lbfgs_with_one_stored_pair_by_hand() -> None:
    """With one pair (s, y) on a quadratic of curvature 4 the step is Newton's. Step lengths are limited."""
    optimizer = Lbfgs(history=5, first_step=0.5, max_step=100.0)
    x = torch.tensor([3.0])
    x = optimizer.step(x, 4 * x)
    assert x.item() == pytest.approx(2.5)  # the first step has its own length
    assert optimizer.step(x, 4 * x).item() == pytest.approx(0.0, abs=1e-6)
    short = Lbfgs(history=5, first_step=0.5, max_step=0.25)
    x = short.step(torch.tensor([3.0]), torch.tensor([12.0]))
    assert short.step(x, 4 * x).item() == pytest.approx(2.25)


def test_lbfgs_resumes_from_its_state_and_can_be_reset() -> None:
    def gradient(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 10.0, 100.0]) * x

    one, x = Lbfgs(3, 0.1, 1.0), torch.ones(3)
    for _ in range(4):
        x = one.step(x, gradient(x))
    other = Lbfgs(3, 0.1, 1.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.step(x, gradient(x)), one.step(x, gradient(x)))
    one.reset()
    step = one.step(x, gradient(x)) - x
    assert step.square().mean().sqrt().item() == pytest.approx(0.1)


def test_layer_names_are_those_of_the_papers() -> None:
    assert layers_of(make_backbone("vgg16", 3, 64, width=0.05)) == [
        f"relu{section}_{index}" for section, number in enumerate((2, 2, 3, 3, 3), 1) for index in range(1, number + 1)
    ]
    loss_network = make_backbone("vgg19_bn", 3, 64, width=0.05)
    assert chosen_layers(BackboneOptions(), loss_network) == (("relu4_2",), tuple(f"relu{i}_1" for i in range(1, 6)))
    assert chosen_layers(BackboneOptions(), make_backbone("resnet20", 3, 32)) == (
        ("stage2",),
        ("stage1", "stage2", "stage3"),
    )
    with pytest.raises(UserError, match=r"no layer 'relu4_9'.*--style-layers"):
        chosen_layers(BackboneOptions(style_layers=("relu4_9",)), loss_network)


def test_loss_network_returns_the_outputs_of_its_layers() -> None:
    backbone = make_backbone("vgg11", 3, 32, width=0.1).eval()
    selected = Layers(content=("relu3_2",), style=("relu1_1", "relu3_2"))
    loss_network = LossNetwork(backbone, selected, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "").on(Compute())
    pixels = torch.rand(1, 3, 32, 32)
    x = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    layers = list(backbone.get_submodule("layers").children())
    features_by_layer = loss_network(pixels)
    torch.testing.assert_close(features_by_layer["relu1_1"], torch.nn.Sequential(*layers[:2])(x))
    torch.testing.assert_close(features_by_layer["relu3_2"], torch.nn.Sequential(*layers[:10])(x))
    loss_network.balance([pixels])
    assert all(features.abs().mean().item() == pytest.approx(1, rel=1e-4) for features in loss_network(pixels).values())
    assert not any(parameter.requires_grad for parameter in loss_network.parameters())


def test_gradients_in_bfloat16_are_close_to_float32() -> None:
    pixels = torch.rand(1, 3, 48, 40)
    exact = make_loss_network(BackboneOptions(loss_network="random", width_multiplier=0.1)).on(Compute())
    half = make_loss_network(BackboneOptions(loss_network="random", width_multiplier=0.1)).on(
        Compute(precision="bfloat16", channels_last=True)
    )
    gradients = []
    for loss_network in (exact, half):
        loss_network.balance([pixels])
        x = pixels.clone().requires_grad_(True)
        features_by_layer = loss_network(x)
        assert all(features.dtype == torch.float32 for features in features_by_layer.values())
        size = torch.stack([gram(features).square().mean() for features in features_by_layer.values()]).sum()
        (gradient,) = torch.autograd.grad(size, x)
        gradients.append(gradient.flatten())
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.95


def test_grayscale_and_color_backbones_accept_both_kinds_of_images() -> None:
    grayscale = LossNetwork(make_backbone("deep_cnn", 1, 28), Layers((), ("stage1",)), (0.1,), (0.3,), "").on(Compute())
    pixels = torch.rand(1, 3, 40, 50)
    torch.testing.assert_close(grayscale(pixels)["stage1"], grayscale(luminance(pixels))["stage1"])
    color = LossNetwork(
        make_backbone("vgg11", 3, 32, width=0.1), Layers((), ("relu1_1",)), (0.5,) * 3, (0.2,) * 3, ""
    ).on(Compute())
    one = luminance(pixels)
    torch.testing.assert_close(color(one)["relu1_1"], color(one.repeat(1, 3, 1, 1))["relu1_1"])


@pytest.mark.parametrize(
    "name", ["vgg11_bn", "resnet20", "alexnet", "googlenet", "impala", "nature", "deep_cnn", "dcgan"]
)
def test_every_backbone_can_be_a_loss_network(name: str) -> None:
    width = 1.0 if name in ("nature", "resnet20", "googlenet") else 0.25
    loss_network = make_loss_network(BackboneOptions(backbone=name, loss_network="random", width_multiplier=width)).on(
        Compute()
    )
    content, style = torch.rand(1, 3, 96, 72), torch.rand(1, 3, 80, 80)
    loss_network.balance([content, style])
    criterion = PerceptualLoss(loss_network, Weights(content=1, style=1, variation=0), style)
    losses = criterion.losses(content.requires_grad_(True), criterion.content_features(content))
    assert losses.content.item() == pytest.approx(0, abs=1e-6)
    assert losses.style.item() > 0
    (gradient,) = torch.autograd.grad(losses.total, content)
    assert gradient.abs().max() > 0
    assert criterion.losses(style, criterion.content_features(style)).style.item() == pytest.approx(0, abs=1e-6)


def test_default_loss_network() -> None:
    loss_network = make_loss_network(BackboneOptions())
    assert loss_network.description.startswith("vgg13_bn of photographs-vgg of the zoo")
    assert loss_network.selected == (("relu3_1",), tuple(f"relu{i}_1" for i in range(1, 6)))
    assert loss_network.layers == ("relu3_1", "relu1_1", "relu2_1", "relu4_1", "relu5_1")


def test_sources_of_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weights and --loss-network name different weights"):
        make_loss_network(BackboneOptions(weights="x.pth", loss_network="random"))
    with pytest.raises(UserError, match="There is no file"):
        make_loss_network(BackboneOptions(weights=str(tmp_path / "x.pth")))
    one, same, other = (
        make_loss_network(BackboneOptions(loss_network="random", width_multiplier=0.05), seed) for seed in (1, 1, 2)
    )
    weight = "backbone.layers.0.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    # A file with torchvision's names and an unused head, and a file with only a part of the weights.
    backbone_weights = {
        name.replace("layers", "features"): tensor for name, tensor in one.backbone.state_dict().items()
    }
    torch.save({**backbone_weights, "classifier.0.weight": torch.zeros(3, 3)}, tmp_path / "vgg16.pth")
    read = make_loss_network(BackboneOptions(weights=str(tmp_path / "vgg16.pth"), width_multiplier=0.05), seed=5)
    assert torch.equal(read.state_dict()[weight], one.state_dict()[weight])
    part = {name: tensor for name, tensor in backbone_weights.items() if "28" not in name}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"does not contain all weights of vgg16.*features|layers"):
        make_loss_network(BackboneOptions(weights=str(tmp_path / "part.safetensors"), width_multiplier=0.05))


def test_published_weights_without_metadata_bring_their_normalization(tmp_path: Path) -> None:
    backbone = make_backbone("vgg11", 3, 32, width=0.05)
    torch.save({backbone.published_name(name): x for name, x in backbone.state_dict().items()}, tmp_path / "a.pth")
    options: dict[str, Any] = {"backbone": "vgg11", "width_multiplier": 0.05}
    file = str(tmp_path / "a.pth")

    def mean(**given: Any) -> list[float]:
        return make_loss_network(BackboneOptions(**options, **given)).mean.flatten().tolist()

    imagenet = pytest.approx(backbone.published_mean)
    assert mean(pretrained_backbone=file, published_normalization=True) == imagenet
    assert mean(pretrained_backbone=file) == [0, 0, 0], "runs of older releases"
    assert mean(weights=file) == imagenet
    assert mean(weights=file, published_normalization=False) == [0, 0, 0]
