"""Tests of adaptive augmentation: probabilities by hand, transformations at known numbers, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.generative.gan.ada import (
    AdaptiveAugmentation,
    Draws,
    adjust,
    draw_color,
    draw_geometry,
    recolor,
    resample,
    rotation,
    scaling,
    transform,
    translation,
)
from zerokara.generative.gan.config import PRESETS, Config, read_config

ALL = ("blit", "geometry", "color")


def random(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=random(1)) * 2 - 1


class Scripted(Draws):
    """Draws whose selected values are given."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(1, torch.ones(()), random())
        self.values = values

    def select(self, value_B: Tensor, neutral: float, probability: Tensor | None = None) -> Tensor:
        return torch.tensor([self.values.pop(0)])


# ---- probability


@pytest.mark.parametrize(
    ("probability", "overfitting", "expected"),
    [(0.1, 0.8, 0.1 + 256 / 500_000), (0.1, 0.5, 0.1 - 256 / 500_000), (0.1, 0.6, 0.1), (1, 1, 1), (0, -1, 0)],
)
def test_probability_is_adjusted_towards_the_target(probability: float, overfitting: float, expected: float) -> None:
    found = adjust(torch.tensor(probability), torch.tensor(overfitting), 0.6, 256, 500_000)
    assert float(found) == pytest.approx(expected, abs=1e-7)


def test_overfitting_is_averaged_over_four_updates_and_all_processes() -> None:
    """Accuracies .5, .75, 1 and .75 of this process, all 1 of the other: r_t = 2 (.75 + 1) / 2 - 1 = .75."""

    class Two(World):
        def mean(self, tensor: Tensor) -> Tensor:
            return (tensor + 4) / 2

    config = Config(ada=("color",), ada_probability=0.5, ada_images=2_560, batch_size=64, ada_target=0.7)
    it = AdaptiveAugmentation(config, Two(), torch.device("cpu"))
    for number, accuracy in enumerate((0.5, 0.75, 1.0, 0.75), 1):
        assert float(it.probability) == 0.5
        it.observe(torch.tensor(accuracy))
        it.finish_update(number)
    assert float(it.metrics()["train/ada_overfitting"]) == pytest.approx(0.75)
    assert float(it.metrics()["train/ada_probability"]) == pytest.approx(0.5 + 4 * 64 / 2_560)
    for number in range(5, 9):  # the sum starts anew: r_t = 2 (0 + 1) / 2 - 1 = 0
        it.observe(torch.tensor(0.0))
        it.finish_update(number)
    assert float(it.overfitting) == pytest.approx(0)
    assert float(it.probability) == pytest.approx(0.5)


@pytest.mark.parametrize(("kinds", "neutral"), [(("color",), 0.5**2 * 0.75), (("geometry",), 0.5**4)])
def test_each_transformation_has_the_probability(kinds: tuple[str, ...], neutral: float) -> None:
    """Gray images of two transformations and a reflection that is the identity half of the time; geometry of four.

    Both rotations together count as one.
    """
    x = pictures(1, 1, 8, 8).expand(4_000, -1, -1, -1)
    same = (transform(x, kinds, torch.tensor(0.5), random()) - x).abs().amax((1, 2, 3)) < 1e-5
    assert float(same.float().mean()) == pytest.approx(neutral, abs=4 * math.sqrt(neutral / 4_000))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_stay_as_they_are_at_probability_0(channels: int) -> None:
    x = pictures(20, channels, 9, 12)
    torch.testing.assert_close(transform(x, ALL, torch.tensor(0.0), random()), x, rtol=0, atol=1e-5)
    assert (transform(x, ALL, torch.tensor(1.0), random()) - x).abs().amax((1, 2, 3)).min() > 0.1


# ---- transformations


def test_blitting_moves_whole_pixels() -> None:
    """A flip or none, four rotations, shifts of -1, 0 and 1 of 8 pixels on each axis: nothing else, and all of them."""
    x = pictures(1, 3, 8, 8)
    found = transform(x.expand(3_000, -1, -1, -1), ("blit",), torch.tensor(1.0), random())
    expected = []
    for flipped in (x, x.flip(3)):
        for turns in range(4):
            padded = torch.nn.functional.pad(flipped.rot90(turns, (2, 3)), (1, 1, 1, 1), "replicate")
            expected += [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    distances = torch.cdist(
        found.flatten(1), torch.cat(expected).flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert float(distances.min(1).values.max()) < 1e-4
    assert len(distances.argmin(1).unique()) == 72


def test_matrices_are_those_of_pixels_from_the_center() -> None:
    x = pictures(1, 2, 4, 6)
    one, zero = torch.ones(1), torch.zeros(1)
    torch.testing.assert_close(resample(x, translation(one, zero)[:, :2])[..., :-1], x[..., 1:])
    torch.testing.assert_close(resample(x, translation(zero, -one)[:, :2])[..., 1:, :], x[..., :-1, :])
    torch.testing.assert_close(resample(x, scaling(-one, one)[:, :2]), x.flip(3))
    middle = resample(x, rotation(one * math.pi / 2)[:, :2])[..., 1:5]  # x towards y: the source is turned clockwise
    torch.testing.assert_close(middle, x[..., 1:5].rot90(1, (2, 3)), rtol=0, atol=1e-5)


def test_geometry_is_composed_in_the_order_of_the_paper() -> None:
    """Inverses: scale 2, rotation by 90 degrees, scale (4, 1/4), rotation by -90 degrees, no translation: diagonal."""
    script = Scripted([2, math.pi / 2, 4, -math.pi / 2, 0])
    matrix = draw_geometry(("geometry",), script, 8, 16)
    torch.testing.assert_close(matrix, torch.tensor([[[2.0, 0, 0], [0, 1 / 8, 0]]]), rtol=0, atol=1e-6)
    script = Scripted([-1, math.pi / 2, 0])  # a flip of x before a rotation
    matrix = draw_geometry(("blit",), script, 8, 8)
    torch.testing.assert_close(matrix, torch.tensor([[[0.0, 1, 0], [1, 0, 0]]]), rtol=0, atol=1e-6)


def test_color_equals_a_computation_by_hand() -> None:
    """(.1 .2 .3) + .3, times 2: (.8 1 1.2); luma reflected: (-1.2 -1 -.8); hue by 120 degrees; half the saturation."""
    matrix, offset = draw_color(Scripted([0.3, 2, 1, 2 * math.pi / 3, 0.5]), 3)
    pixel = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    expected = torch.tensor([-0.9, -1.1, -1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(recolor(pixel, matrix, offset), expected)
    matrix, offset = draw_color(Scripted([0.3, 2, 1]), 1)  # 2 (.1 + .3), reflected
    torch.testing.assert_close(recolor(pixel[:, :1], matrix, offset), torch.full((1, 1, 1, 1), -0.8))


def test_resampling_has_second_derivatives() -> None:
    """With A for the look-up, the gradient of |A x|^2 / 2 is A'A x, and that of its square norm is 2 (A'A)^2 x."""
    matrix = (rotation(torch.tensor([0.7])) @ scaling(torch.tensor([1.3]), torch.tensor([0.6])))[:, :2]
    basis = resample(torch.eye(20).view(20, 1, 4, 5), matrix.expand(20, -1, -1)).view(20, 20)  # rows A e
    x = pictures(1, 1, 4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(resample(x, matrix).square().sum() / 2, x, create_graph=True)
    product = basis @ basis.t()
    torch.testing.assert_close(gradient.flatten(), product @ x.detach().flatten())
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    torch.testing.assert_close(second.flatten(), 2 * product @ product @ x.detach().flatten())


def test_coordinates_are_exact_under_autocast() -> None:
    x = pictures(8, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = transform(x, ALL, torch.tensor(0.9), random())
    assert torch.equal(found, transform(x, ALL, torch.tensor(0.9), random()))


# ---- command line


def test_a_probability_that_stays_0_is_refused() -> None:
    with pytest.raises(UserError, match="--ada-probability above 0"):
        read_config(["--ada", "color", "--ada-target", "0"])
    config = parse(Config, PRESETS, ["--ada", "color", "--ada-target", "0", "--ada-probability", "0.3"], "")
    it = AdaptiveAugmentation(config, World(), torch.device("cpu"))
    for number in range(1, 9):
        it.observe(torch.ones(()))
        it.finish_update(number)
    assert float(it.probability) == pytest.approx(0.3)
