"""Tests of generators and discriminators: parameters, image sizes, channels, labels and independence of images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.r3 import Block
from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.generative.dcgan import squared_gradient_norm
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.diffaugment import augment
from zerokara.generative.gan.learner import check_penalties, make_discriminator, make_generator
from zerokara.generative.gan.networks import Discriminator, Generator, R3Generator, map_sizes


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_equal_the_tutorials() -> None:
    assert parameter_count(Generator(100, 3, (64, 64))) == 3_576_704
    assert parameter_count(Discriminator("dcgan", 3, (64, 64))) == 2_765_568


def test_initialization_is_the_papers() -> None:
    generator, discriminator = Generator(100, 3, (64, 64)), Discriminator("dcgan", 3, (64, 64))
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                weight = module.weight.detach()
                assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
                assert abs(float(weight.mean())) < 0.001
                assert module.bias is None
            if isinstance(module, nn.BatchNorm2d):
                assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.02)
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.5)
                assert not module.bias.detach().any()


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        *[(1, size) for size in ((28, 28), (33, 47), (48, 96), (28, 256), (130, 100))],
        *[(3, size) for size in ((32, 32), (96, 28), (64, 64), (45, 64), (256, 256))],
        (4, (84, 84)),
    ],
)
def test_image_sizes_from_28_to_256(channels: int, size: tuple[int, int]) -> None:
    generator = Generator(16, channels, size, width=0.125)
    images = generator(torch.randn(2, 16))
    assert images.shape == (2, channels, *size)
    assert (images.abs() <= 1).all()
    logits = Discriminator("dcgan", channels, size, width=0.125)(images)
    assert (logits.shape, logits.dtype) == ((2,), torch.float32)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in generator.parameters())


def test_depth_depends_on_the_image_size() -> None:
    assert [len(Generator(8, 1, (side, side), width=0.1).ups) for side in (28, 32, 64, 128, 256)] == [3, 3, 4, 5, 6]
    assert map_sizes((28, 90), 2) == [(7, 23), (14, 45), (28, 90)]


@pytest.mark.parametrize("size", [(27, 64), (64, 300)])
def test_unsupported_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="28 to 256"):
        Generator(8, 1, size)


@pytest.mark.parametrize("upsample", ["deconvolution", "resize"])
def test_both_networks_depend_on_the_label(upsample: str) -> None:
    generator = Generator(8, 1, (28, 28), width=0.25, classes=3, upsample=upsample).eval()  # type: ignore[arg-type]
    z = torch.randn(1, 8).expand(3, 8)
    images = generator(z, torch.arange(3))
    assert not torch.equal(images[0], images[1])
    concatenated = torch.cat([z, torch.eye(3)], 1)
    torch.testing.assert_close(generator(concatenated), images)
    discriminator = Discriminator("dcgan", 1, (28, 28), width=0.25, classes=3).eval()
    scores = discriminator(images[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert len(set(scores.tolist())) == 3


def test_resize_upsampling_has_no_checkerboard_artifacts() -> None:
    """With equal weights the output is constant; a 3x3 transposed convolution would double every other pixel."""
    generator = Generator(4, 1, (32, 32), width=0.25, upsample="resize", norm="none")
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, 0.001)
    middle = generator(torch.ones(1, 4))[0, 0, 8:-8, 8:-8]
    assert float(middle.detach().std()) < 1e-6 * float(middle.detach().mean()) + 1e-9


def test_generated_images_are_independent_of_their_batch_in_evaluation_mode() -> None:
    generator = Generator(8, 1, (32, 32), width=0.25)
    z, others, more = torch.randn(1, 8), torch.randn(3, 8), 5 * torch.randn(3, 8)
    one, other = (generator(torch.cat([z, batch]))[0] for batch in (others, more))
    assert not torch.allclose(one, other), "in training mode they depend on each other, or this test shows nothing"
    generator.eval()
    one, other = (generator(torch.cat([z, batch]))[0] for batch in (others, more))
    assert torch.equal(one, other)


def test_spectral_norm_bounds_every_layer() -> None:
    discriminator = Discriminator("dcgan", 1, (32, 32), width=0.25, norm="none", spectral_norm=True)
    x = torch.randn(4, 1, 32, 32)
    for _ in range(30):  # steps of the power iteration
        discriminator(x)
    discriminator.eval()
    layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(largest) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("channels", "size"), [(1, (28, 28)), (3, (45, 64)), (4, (84, 84)), (3, (96, 28)), (1, (33, 47))]
)
def test_r3_networks_at_different_sizes(channels: int, size: tuple[int, int]) -> None:
    generator, discriminator = (
        R3Generator(16, channels, size, width=0.25),
        Discriminator("r3", channels, size, width=0.25),
    )
    for network in (generator, discriminator):
        assert not any(isinstance(m, nn.modules.batchnorm._NormBase | nn.GroupNorm) for m in network.modules())
        for module in network.modules():
            if isinstance(module, Block):  # initialized to zero, which blocks gradients to earlier layers
                nn.init.normal_(module.reduce.weight, std=0.1)
    images = generator(torch.randn(2, 16))
    assert images.shape == (2, channels, *size)
    assert (images.abs() <= 1).all()
    assert not torch.equal(images[0], images[1])
    scores = discriminator(images)
    assert scores.shape == (2,)
    alone = discriminator(images[:1])
    torch.testing.assert_close(alone, scores[:1])
    assert not discriminator.mixes_images()
    scores.sum().backward()
    for network in (generator, discriminator):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_second_derivative_of_r3_equals_finite_differences() -> None:
    """R1 differentiates the gradient of the scores."""
    discriminator = Discriminator("r3", 1, (28, 28), width=0.25).double()
    for module in discriminator.modules():
        if isinstance(module, Block):
            nn.init.normal_(module.reduce.weight, std=0.3)
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    weight = discriminator.backbone.get_submodule("blocks.0.filter").weight
    assert isinstance(weight, Tensor)

    def score_B() -> Tensor:
        features: Tensor = discriminator.backbone((x + 1) / 2)
        return features.square().sum((1, 2, 3))

    def penalty() -> float:
        (grad_BCHW,) = torch.autograd.grad(score_B().sum(), x)  # in float64; `squared_gradient_norm` returns float32
        return float(grad_BCHW.square().sum((1, 2, 3)).mean())

    (grad,) = torch.autograd.grad(squared_gradient_norm(score_B(), x), weight)
    index, step = (0, 0, 1, 1), 1e-7  # so small that no leaky ReLU changes its sign
    with torch.no_grad():
        weight[index] += step
    above = penalty()
    with torch.no_grad():
        weight[index] -= 2 * step
    assert (above - penalty()) / (2 * step) == pytest.approx(float(grad[index]), rel=2e-3)


def test_r3_generator_uses_the_label_and_refuses_options_of_dcgan() -> None:
    generator = R3Generator(8, 1, (28, 28), width=0.25, classes=3)
    images = generator(torch.randn(1, 8).expand(3, 8), torch.arange(3))
    assert not torch.equal(images[0], images[1])
    resize, no_norm = Config(generator="r3", upsample="resize"), Config(generator="r3", generator_norm="none")
    for config, option in ((resize, "--upsample"), (no_norm, "--generator-norm")):
        with pytest.raises(UserError, match=f"{option} is an option of --generator dcgan"):
            make_generator(config, (1, 28, 28), 0)


def test_spectral_norm_refuses_layers_initialized_to_zero() -> None:
    with pytest.raises(UserError, match="--spectral-norm"):
        Discriminator("r3", 1, (28, 28), width=0.25, spectral_norm=True)


@pytest.mark.parametrize("name", ["resnet18", "nature", "impala"])
def test_discriminator_with_other_backbones(name: str) -> None:
    discriminator = Discriminator(name, 3, (64, 64))
    assert discriminator(torch.randn(2, 3, 64, 64)).shape == (2,)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="dcgan"):
        Discriminator("dcgam", 3, (64, 64))


@pytest.mark.parametrize("penalty", ["r1", "r2", "gradient-penalty"])
def test_penalties_refuse_batchnorm_in_the_discriminator(penalty: str) -> None:
    words = [f"--{penalty}", "1", "--discriminator-width", "0.25"]
    config = parse(Config, PRESETS, words, "")
    with pytest.raises(UserError, match="--discriminator-norm none"):
        check_penalties(config, make_discriminator(config, (1, 28, 28), 0))
    config = parse(Config, PRESETS, [*words, "--discriminator-norm", "none"], "")
    check_penalties(config, make_discriminator(config, (1, 28, 28), 0))


@pytest.mark.parametrize("kind", ["color", "translation", "cutout"])
def test_augmentation_is_differentiable_and_reproducible(kind: str) -> None:
    x = torch.rand(6, 3, 16, 20, requires_grad=True)
    once, again = (augment(x, [kind], torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == x.shape
    assert not torch.equal(once, x)
    (grad,) = torch.autograd.grad(once.square().sum(), x)
    assert all(image.any() for image in grad), "every image must get a gradient"
    assert not torch.equal(once, augment(x, [kind], torch.Generator().manual_seed(2)))


def test_augmentation_is_bounded() -> None:
    x = torch.ones(64, 1, 16, 16)
    holes = augment(x, ["cutout"], torch.Generator().manual_seed(1))
    area = (holes == 0).flatten(1).sum(1)
    assert int(area.max()) <= 8 * 8
    assert int(area.min()) >= 4 * 4
    moved = augment(x, ["translation"], torch.Generator().manual_seed(1))
    assert int((moved == 0).flatten(1).sum(1).max()) <= 16 * 16 - 14 * 14
    brighter = augment(x, ["color"], torch.Generator().manual_seed(1)) - x
    assert float(brighter.abs().max()) <= 0.5 + 1e-6
