"""What style transfer minimises, computed by hand; its optimiser; the eye's layers; the memory that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.generative.style import pictures
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
    BackboneOptions,
    Layers,
    LossNetwork,
    chosen_layers,
    layers_of,
    make_loss_network,
)
from zerokara.generative.style.pictures import activation_bytes, check_memory, sizes


def test_losses_by_hand() -> None:
    # Two channels at two positions: (1, 2) and (3, 4).
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    expected = torch.tensor([[[(1 + 4) / 2, (3 + 8) / 2], [(3 + 8) / 2, (9 + 16) / 2]]])
    torch.testing.assert_close(gram(features), expected)
    # Gram matrices differ by 2.5, 5.5, 5.5, 12.5; the paper's E with N 2 and M 2 of the unnormalised ones is the same.
    assert style_loss(gram(features), torch.zeros(1, 2, 2)).item() == pytest.approx(
        (2.5**2 + 2 * 5.5**2 + 12.5**2) / 16
    )
    raw = 2 * expected  # F F^T
    assert style_loss(gram(features), torch.zeros(1, 2, 2)).item() == pytest.approx(
        (raw.square().sum() / (4 * 2**2 * 2**2)).item()
    )
    assert content_loss(features, torch.zeros_like(features)).item() == pytest.approx((1 + 4 + 9 + 16) / 2 / 4)
    pixels = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])  # below: 3, 2; beside: 1, 0
    assert total_variation(pixels).item() == pytest.approx((9 + 4) / 2 + (1 + 0) / 2)


def test_a_gram_matrix_does_not_know_places_or_sizes() -> None:
    features = torch.randn(2, 3, 4, 5)
    shuffled = features.flatten(2)[:, :, torch.randperm(20)].view(2, 3, 4, 5)
    torch.testing.assert_close(gram(shuffled), gram(features))
    torch.testing.assert_close(gram(torch.cat([features, features], 2)), gram(features))


def test_luminance_by_hand_and_colours_are_kept() -> None:
    colors = torch.rand(1, 3, 4, 4)
    expected = 0.299 * colors[:, :1] + 0.587 * colors[:, 1:2] + 0.114 * colors[:, 2:]
    torch.testing.assert_close(luminance(colors), expected)
    other = torch.rand(1, 1, 4, 4)
    painted = with_luminance(colors, other)
    torch.testing.assert_close(luminance(painted), other)
    torch.testing.assert_close(painted[:, :1] - painted[:, 1:2], colors[:, :1] - colors[:, 1:2])
    style = match_luminance(torch.rand(1, 1, 9, 9) * 7 + 3, other)
    assert style.mean().item() == pytest.approx(other.mean().item(), abs=1e-5)
    assert style.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=1e-4)


def test_lbfgs_finds_the_bottom_of_a_narrow_valley() -> None:
    curvature = torch.logspace(0, 3, 30, dtype=torch.float64)
    bottom = torch.randn(30, dtype=torch.float64)
    x = torch.zeros(30, dtype=torch.float64)
    optimizer = Lbfgs(history=10, first_step=1e-3, max_step=1.0)
    for _ in range(150):
        x = optimizer.step(x, curvature * (x - bottom))
    assert (x - bottom).abs().max() < 1e-3  # descent with the best constant step is still a hundred times as far
    assert len(optimizer.steps) == 10


def test_lbfgs_of_one_pair_by_hand() -> None:
    """With one pair (s, y) on a quadratic of curvature 4 the step is Newton's, and steps have a greatest length."""
    optimizer = Lbfgs(history=5, first_step=0.5, max_step=100.0)
    x = torch.tensor([3.0])
    x = optimizer.step(x, 4 * x)
    assert x.item() == pytest.approx(2.5)  # the first step has its own length
    assert optimizer.step(x, 4 * x).item() == pytest.approx(0.0, abs=1e-6)
    short = Lbfgs(history=5, first_step=0.5, max_step=0.25)
    x = short.step(torch.tensor([3.0]), torch.tensor([12.0]))
    assert short.step(x, 4 * x).item() == pytest.approx(2.25)


def test_lbfgs_goes_on_from_its_state_and_forgets() -> None:
    def slope(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 10.0, 100.0]) * x

    one, x = Lbfgs(3, 0.1, 1.0), torch.ones(3)
    for _ in range(4):
        x = one.step(x, slope(x))
    other = Lbfgs(3, 0.1, 1.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.step(x, slope(x)), one.step(x, slope(x)))
    one.reset()
    step = one.step(x, slope(x)) - x
    assert step.square().mean().sqrt().item() == pytest.approx(0.1)


def test_layers_are_called_as_in_the_papers() -> None:
    assert layers_of(make_backbone("vgg16", 3, 64, width=0.05)) == [
        f"relu{section}_{place}" for section, most in enumerate((2, 2, 3, 3, 3), 1) for place in range(1, most + 1)
    ]
    loss_network = make_backbone("vgg19_bn", 3, 64, width=0.05)
    assert chosen_layers(BackboneOptions(), loss_network) == (("relu4_2",), tuple(f"relu{i}_1" for i in range(1, 6)))
    assert chosen_layers(BackboneOptions(), make_backbone("resnet20", 3, 32)) == (
        ("stage2",),
        ("stage1", "stage2", "stage3"),
    )
    with pytest.raises(UserError, match=r"no layer 'relu4_9'.*--style-layers"):
        chosen_layers(BackboneOptions(style_layers=("relu4_9",)), loss_network)


def test_the_eye_sees_what_the_layers_give() -> None:
    backbone = make_backbone("vgg11", 3, 32, width=0.1).eval()
    selected = Layers(content=("relu3_2",), style=("relu1_1", "relu3_2"))
    loss_network = LossNetwork(backbone, selected, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "").on(Compute())
    pixels = torch.rand(1, 3, 32, 32)
    x = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    layers = list(backbone.get_submodule("layers").children())
    seen = loss_network(pixels)
    torch.testing.assert_close(seen["relu1_1"], torch.nn.Sequential(*layers[:2])(x))
    torch.testing.assert_close(seen["relu3_2"], torch.nn.Sequential(*layers[:10])(x))
    loss_network.balance([pixels])
    assert all(features.abs().mean().item() == pytest.approx(1, rel=1e-4) for features in loss_network(pixels).values())
    assert not any(parameter.requires_grad for parameter in loss_network.parameters())


def test_sixteen_bits_see_nearly_the_same() -> None:
    pixels = torch.rand(1, 3, 48, 40)
    exact = make_loss_network(BackboneOptions(loss_network="random", width_multiplier=0.1)).on(Compute())
    rough = make_loss_network(BackboneOptions(loss_network="random", width_multiplier=0.1)).on(
        Compute(precision="bfloat16", channels_last=True)
    )
    slopes = []
    for loss_network in (exact, rough):
        loss_network.balance([pixels])
        x = pixels.clone().requires_grad_(True)
        seen = loss_network(x)
        assert all(features.dtype == torch.float32 for features in seen.values())
        size = torch.stack([gram(features).square().mean() for features in seen.values()]).sum()
        (slope,) = torch.autograd.grad(size, x)
        slopes.append(slope.flatten())
    assert torch.cosine_similarity(slopes[0], slopes[1], dim=0) > 0.95


def test_a_grey_eye_looks_at_luminance_and_a_coloured_one_at_grey_pixels() -> None:
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
def test_any_backbone_can_judge(name: str) -> None:
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


def test_unasked_a_vgg_of_ours_judges() -> None:
    loss_network = make_loss_network(BackboneOptions())
    assert loss_network.description.startswith("vgg13_bn of photographs-vgg of the zoo")
    assert loss_network.selected == (("relu3_1",), tuple(f"relu{i}_1" for i in range(1, 6)))
    assert loss_network.layers == ("relu3_1", "relu1_1", "relu2_1", "relu4_1", "relu5_1")


def test_whose_eye_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weights and --eye both say"):
        make_loss_network(BackboneOptions(weights="x.pth", loss_network="random"))
    with pytest.raises(UserError, match="There is no file"):
        make_loss_network(BackboneOptions(weights=str(tmp_path / "x.pth")))
    one, same, other = (
        make_loss_network(BackboneOptions(loss_network="random", width_multiplier=0.05), seed) for seed in (1, 1, 2)
    )
    weight = "backbone.layers.0.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    # torchvision's names, with a head that is not needed; and a file that holds half an eye.
    trunk = {name.replace("layers", "features"): tensor for name, tensor in one.backbone.state_dict().items()}
    torch.save({**trunk, "classifier.0.weight": torch.zeros(3, 3)}, tmp_path / "vgg16.pth")
    read = make_loss_network(BackboneOptions(weights=str(tmp_path / "vgg16.pth"), width_multiplier=0.05), seed=5)
    assert torch.equal(read.state_dict()[weight], one.state_dict()[weight])
    half = {name: tensor for name, tensor in trunk.items() if "28" not in name}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"does not hold all weights of vgg16.*features|layers"):
        make_loss_network(BackboneOptions(weights=str(tmp_path / "half.safetensors"), width_multiplier=0.05))


def test_sizes_double_and_are_not_too_small() -> None:
    assert sizes(768, 1024, 512, 2) == [(192, 256), (384, 512)]
    assert sizes(768, 1024, 0, 1) == [(768, 1024)]
    assert sizes(100, 400, 256, 5) == [(32, 128), (64, 256)]
    with pytest.raises(UserError, match="--size 40"):
        sizes(100, 400, 40, 2)


def test_memory_is_counted_to_the_byte_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_network = LossNetwork(
        make_backbone("vgg11", 3, 32, width=1 / 64), Layers((), ("relu1_1",)), (0.5,) * 3, (0.2,) * 3, ""
    ).on(Compute())
    pixels = 32 * 48 * 4  # bytes of a channel
    # Kept: the normalised picture that the convolution saw (3 channels), what the ReLU gave (1), what the scale saw is
    # the same map; the scaled map is what comes out, and the largest kept is the picture.
    needed = activation_bytes(loss_network, (1, 3, 32, 48))
    largest = 3 * pixels
    assert needed >= 3 * pixels + pixels + pictures.TEMPORARIES * largest
    assert needed <= 3 * pixels + pixels + pictures.TEMPORARIES * largest + 3 * pixels
    assert activation_bytes(loss_network, (1, 3, 64, 96)) == pytest.approx(4 * needed, rel=0.01)
    monkeypatch.setattr(pictures, "free_bytes", lambda device: 2**30)
    said = check_memory({"maps": 2**29}, "cpu", (400, 800), "give --size {side}")
    assert "0.5 GiB of 1.0 free" in said
    with pytest.raises(UserError, match=r"800x400 pixels need about 4.0 GiB .*1.0 GiB are free: give --size 368"):
        check_memory({"maps": 2**32}, "cpu", (400, 800), "give --size {side}")
    with pytest.raises(UserError, match="too small"):
        activation_bytes(
            make_loss_network(BackboneOptions(backbone="alexnet", loss_network="random")).on(Compute()), (1, 3, 20, 20)
        )
    assert np.isfinite(needed)
