"""Tests of distances and fractions against closed forms, and of their independence of the batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.scoring import distances
from zerokara.generative.scoring.distances import (
    Features,
    compare,
    frechet_distance,
    kernel_distance,
    nearest,
    overlap,
    spread,
)
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, FeatureSet, class_scores, label_accuracy


def with_moments(number: int, mean_F: Tensor, root_FF: Tensor) -> Tensor:
    """Draw points (number, F) with exactly this mean and the covariance root root^T."""
    x_NF = torch.randn(number, len(mean_F), dtype=torch.float64)
    x_NF -= x_NF.mean(0)
    white = torch.linalg.cholesky(torch.atleast_2d(x_NF.T.cov()))
    shaped_NF: Tensor = torch.linalg.solve_triangular(white, x_NF.T, upper=False).T @ root_FF.T + mean_F
    return shaped_NF


def test_frechet_distance_in_one_dimension() -> None:
    a = with_moments(50, torch.tensor([1.0]).double(), torch.tensor([[2.0]]).double())
    b = with_moments(70, torch.tensor([4.0]).double(), torch.tensor([[0.5]]).double())
    assert frechet_distance(Features(a), Features(b)) == pytest.approx(3**2 + 1.5**2)


def test_frechet_distance_of_commuting_covariances() -> None:
    """(S1 S2)^(1/2) has the products of the deviations along the common axes, for any rotation of them."""
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    first, second = torch.tensor([1.0, 2, 3, 0.1, 5]).double(), torch.tensor([2.0, 2, 0.5, 4, 1]).double()
    gap = torch.arange(5).double()
    a = with_moments(400, gap * 0, rotation @ first.diag())
    b = with_moments(300, gap, rotation @ second.diag())
    assert frechet_distance(Features(a), Features(b)) == pytest.approx(
        float(gap.square().sum() + (first - second).square().sum())
    )


def test_frechet_distance_equals_the_form_with_a_symmetric_root() -> None:
    a, b = torch.randn(200, 6) @ torch.randn(6, 6), torch.randn(150, 6) @ torch.randn(6, 6) + 1
    sa, sb = (np.cov(x.double().numpy().T) for x in (a, b))
    values, vectors = np.linalg.eigh(sa)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ sb @ root)).sum()
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum()
    assert frechet_distance(Features(a), Features(b)) == pytest.approx(
        float(gap) + np.trace(sa) + np.trace(sb) - 2 * trace
    )


@pytest.mark.parametrize(("number", "other"), [(5, 40), (40, 5), (7, 6), (5, 5), (12, 12), (13, 12), (12, 11)])
def test_frechet_distance_of_fewer_images_than_features(number: int, other: int) -> None:
    """Covariances are singular; the reference is the form with a symmetric root."""
    a, b = torch.randn(number, 12) @ torch.randn(12, 12), torch.randn(other, 12) @ torch.randn(12, 12) + 1
    sa, sb = (np.cov(x.double().numpy().T) for x in (a, b))
    values, vectors = np.linalg.eigh(sa)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ sb @ root).clip(0)).sum()
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum()
    expected = float(gap) + np.trace(sa) + np.trace(sb) - 2 * trace
    assert frechet_distance(Features(a), Features(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(Features(a), Features(a)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_computed_in_float64() -> None:
    """A deviation of .01 far from the origin is lost in float32; covariances of few points are singular."""
    a = torch.randn(500, 8) * 0.01
    assert frechet_distance(Features(a.double() + 1e4), Features(a.double() + 1e4)) == pytest.approx(0, abs=1e-9)
    far = torch.randn(20, 64)
    assert frechet_distance(Features(far), Features(far)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(Features(a), Features(a + 0.5)) == pytest.approx(8 * 0.25, rel=1e-5)


def test_kernel_distance_by_hand() -> None:
    """In one dimension k(x, y) = (xy + 1)^3; points 0, 1 against 1, 2: within 1, within 27, across 1, 1, 8, 27."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(Features(a), Features(b)) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_kernel_distance_of_equal_distributions_is_unbiased() -> None:
    equal = [kernel_distance(Features(torch.randn(100, 4)), Features(torch.randn(100, 4))) for _ in range(30)]
    assert min(equal) < 0 < max(equal)
    assert abs(np.mean(equal)) < 3 * np.std(equal) / 30**0.5
    assert kernel_distance(Features(torch.randn(100, 4)), Features(torch.randn(100, 4) + 1)) > max(equal)


def test_overlap_by_hand() -> None:
    real = Features(torch.tensor([[0.0], [1.0], [2.0], [10.0]]))
    fake = Features(torch.tensor([[0.4], [2.5], [30.0]]))
    result = overlap(real, fake, k_precision=1, k_density=1)  # real radii 1, 1, 1, 8; fake 2.1, 2.1, 27.5
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == 1  # 10 lies in 30's ball
    assert result.density == pytest.approx((2 + 2) / 3)  # 0.4 in the balls of 0 and 1, 2.5 in those of 2 and 10
    assert result.coverage == 1
    assert real.radii(1).tolist() == [1, 1, 1, 8]
    assert real.radii(2).tolist() == [2, 1, 2, 9]
    assert real.radii(5).tolist() == [10, 9, 8, 10], "with three neighbors, the third one"


def test_overlap_distinguishes_missing_modes_from_bad_images() -> None:
    real = torch.cat([torch.randn(200, 3), torch.randn(200, 3) + 50])
    half = overlap(Features(real), Features(torch.randn(400, 3)))
    assert half.precision > 0.85
    assert half.coverage < 0.55
    assert half.recall < 0.6
    bad = overlap(Features(real), Features(torch.cat([real[::2], torch.randn(200, 3) - 500])))
    assert bad.precision == pytest.approx(0.5)
    assert overlap(Features(real), Features(real)).coverage == 1


def all_distances(real: Features, fake: Features) -> dict[str, float]:
    """Compute all metrics by name."""
    return {"frechet_distance": frechet_distance(real, fake), **compare(real, fake)}


def test_statistics_of_real_images_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three comparisons with the same 40 real images, the second and the third use the statistics of the first."""
    real_NF, fakes = torch.randn(40, 8), torch.randn(3, 30, 8)
    separate = [all_distances(Features(real_NF), Features(fake_MF)) for fake_MF in fakes]
    computed: list[tuple[int, int]] = []

    def recorded(original: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def record(a: Tensor, b: Tensor) -> Tensor:
            computed.append((len(a), len(b)))
            return original(a, b)

        return record

    monkeypatch.setattr(torch, "cdist", recorded(torch.cdist))
    monkeypatch.setattr(distances, "kernel_sum", recorded(distances.kernel_sum))
    real = Features(real_NF)
    assert [all_distances(real, Features(fake_MF)) for fake_MF in fakes] == separate, "bit for bit"
    assert [computed.count(sizes) for sizes in ((40, 40), (40, 30), (30, 30))] == [2, 6, 6]
    assert real.covariance_FF is real.covariance_FF


def test_distances_do_not_depend_on_the_rows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    real_NF, fake_MF = torch.randn(50, 8), torch.randn(41, 8)
    whole = all_distances(Features(real_NF), Features(fake_MF))
    monkeypatch.setattr(distances, "BLOCK", 7)
    assert all_distances(Features(real_NF), Features(fake_MF)) == pytest.approx(whole, rel=1e-9)
    assert Features(real_NF).radii(3).tolist() == pytest.approx(np.sort(cdist(real_NF, real_NF))[:, 3])


def test_spread_by_hand() -> None:
    images = torch.tensor([[[[0, 0]]], [[[255, 255]]], [[[0, 255]]]], dtype=torch.uint8)
    assert spread(images) == pytest.approx((1 + 0.5**0.5 + 0.5**0.5) / 3)
    assert spread(images[:1]) == 0
    assert spread(images[[1, 1, 1]]) == 0


def test_nearest_returns_index_and_distance() -> None:
    index, distance = nearest(torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[5.0, 4.0], [3.0, -4.0]]))
    assert (index.tolist(), distance.tolist()) == ([1, 0], [5.0, 1.0])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch_size(batch: int) -> None:
    extractor = FeatureExtractor.random((1, 28, 28))
    real, fake = (torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8) // part for part in (1, 2))
    whole = extractor.compare(extractor.extract(real), extractor.extract(fake))
    parts = extractor.compare(extractor.extract(real, batch), extractor.extract(fake, batch))
    assert parts == pytest.approx(whole, rel=1e-4)
    assert extractor.extract(real).features_NF.dtype == torch.float64


def test_random_network_is_fixed_and_uses_no_global_random_numbers() -> None:
    before = torch.get_rng_state()
    images = torch.randint(0, 256, (5, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = FeatureExtractor.random((3, 32, 40)).extract(images).features_NF
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.manual_seed(9)
    torch.testing.assert_close(FeatureExtractor.random((3, 32, 40)).extract(images).features_NF, first)
    extractor = FeatureExtractor.random((3, 32, 40))
    assert extractor.name == "random_fd", "only a classifier's distance is called FCD"
    assert "random network" in extractor.protocol


def test_class_scores_by_hand() -> None:
    probability = torch.tensor([[0.95, 0.05, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.92, 0.0, 0.08]]).double()
    features = FeatureSet(torch.zeros(4, 2), probability)
    assert class_scores(features) == {"confident": 0.75, "rarest_class": 0.0, "commonest_class": 0.75}
    assert label_accuracy(features, torch.tensor([0, 1, 1, 2])) == 0.5
    assert class_scores(FeatureSet(torch.zeros(4, 2), None)) == {}


def test_missing_classifier_is_reported() -> None:
    config = parse(Config, PRESETS, ["--classifier", "runs/nowhere"], "")
    with pytest.raises(UserError, match="runs/nowhere"):
        FeatureExtractor.choose(config, (1, 28, 28))
