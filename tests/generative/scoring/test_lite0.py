"""Tests of FD-Lite0: against NumPy and SciPy on the same features, and independence of the number of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from tests.markers import needs_lite0
from tests.random_lite0 import use_random_weights
from zerokara.core.config import UserError
from zerokara.core.models import lite0
from zerokara.generative.scoring import lite0 as scoring
from zerokara.generative.scoring.distances import Features, frechet_distance
from zerokara.generative.scoring.lite0 import BATCH, Lite0

Array = npt.NDArray[np.float64]


@pytest.fixture
def random_lite0(monkeypatch: pytest.MonkeyPatch) -> Lite0:
    """Lite0 with random weights, on images of 32 pixels."""
    use_random_weights(monkeypatch)
    return Lite0("--lite0", channels=3)


def reference_scores(real_NF: Array, fake_MF: Array) -> dict[str, float]:
    """Compute all metrics in the way of their papers, one image at a time where the papers do so."""
    gap = real_NF.mean(0) - fake_MF.mean(0)
    real_cov, fake_cov = np.cov(real_NF, rowvar=False), np.cov(fake_MF, rowvar=False)
    root = scipy.linalg.sqrtm(real_cov)
    values = scipy.linalg.eigvalsh(root @ fake_cov @ root)
    frechet = gap @ gap + np.trace(real_cov) + np.trace(fake_cov) - 2 * np.sqrt(values.clip(0)).sum()
    n, m = len(real_NF), len(fake_MF)
    within = [((x @ x.T) / x.shape[1] + 1) ** 3 for x in (real_NF, fake_MF)]
    across = ((real_NF @ fake_MF.T) / real_NF.shape[1] + 1) ** 3
    kernel = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within) - 2 * across.mean()
    distance_NM = cdist(real_NF, fake_MF)
    real_radius, wide_radius = (np.sort(cdist(real_NF, real_NF), 1)[:, k] for k in (3, 5))
    fake_radius = np.sort(cdist(fake_MF, fake_MF), 1)[:, 3]
    return {
        "fd_lite0": float(frechet),
        "lite0_kernel_distance": float(kernel),
        "lite0_density": sum(int((distance_NM[:, j] <= wide_radius).sum()) for j in range(m)) / (5 * m),
        "lite0_coverage": sum(bool(distance_NM[i].min() <= wide_radius[i]) for i in range(n)) / n,
        "lite0_precision": sum(bool((distance_NM[:, j] <= real_radius).any()) for j in range(m)) / m,
        "lite0_recall": sum(bool((distance_NM[i] <= fake_radius).any()) for i in range(n)) / n,
    }


@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_all_metrics_are_those_of_a_reference_implementation(gap: float) -> None:
    random = np.random.default_rng(1)
    mixing = random.normal(size=(24, 24))
    real_NF, fake_MF = random.normal(size=(300, 24)) @ mixing, random.normal(size=(200, 24)) @ mixing * 1.1 + gap
    scores = Lite0.compare(Features(torch.from_numpy(real_NF)), Features(torch.from_numpy(fake_MF)))
    assert scores == pytest.approx(reference_scores(real_NF, fake_MF), rel=1e-6, abs=1e-9)
    assert 0 < scores["lite0_precision"] < 1
    assert 0 < scores["lite0_coverage"] < 1


def test_fewer_images_than_features_give_the_distance_of_the_reference(random_lite0: Lite0) -> None:
    """The covariances are singular. The reference reduces them to the 118 dimensions that the images span."""
    images = torch.randint(256, (2, 60, 3, 32, 32), dtype=torch.uint8)
    real, fake = random_lite0.extract(images[0]), random_lite0.extract(images[1] // 2)
    real_NF, fake_MF = real.features_NF, fake.features_NF
    x, y = ((f - f.mean(0)).numpy() / (len(f) - 1) ** 0.5 for f in (real_NF, fake_MF))
    gap = (real_NF.mean(0) - fake_MF.mean(0)).numpy()
    basis, _ = np.linalg.qr(np.concatenate([x, y]).T)
    values = scipy.linalg.eigvals((x @ basis).T @ (x @ basis) @ (y @ basis).T @ (y @ basis))
    expected = gap @ gap + (x**2).sum() + (y**2).sum() - 2 * np.sqrt(values).real.sum()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)


def check_independence(network: Lite0, images: Tensor, size: int) -> None:
    """Check that the features of an image do not depend on the others: all, backward, and `size` at a time."""
    whole = network.extract(images).features_NF
    assert whole.shape == (len(images), lite0.FEATURES)
    assert whole.dtype == torch.float64
    backward = network.extract(images.flip(0)).features_NF.flip(0)
    parts = torch.cat([network.extract(part).features_NF for part in images.split(size)])
    for other in (backward, parts):
        torch.testing.assert_close(other, whole, rtol=1e-6, atol=1e-6)
    half = len(images) // 2
    scores = [network.compare(Features(f[:half]), Features(f[half:])) for f in (whole, backward, parts)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
    assert scores[2] == pytest.approx(scores[0], rel=1e-6)


def test_scores_do_not_depend_on_the_number_of_images_at_a_time(random_lite0: Lite0) -> None:
    assert BATCH % 7
    check_independence(random_lite0, torch.randint(256, (2 * BATCH + 4, 3, 32, 32), dtype=torch.uint8), 7)


@needs_lite0
def test_scores_with_the_published_weights_do_not_depend_on_the_number_of_images_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "BATCH", 12)  # of 224 pixels per side
    torch.manual_seed(0)
    check_independence(Lite0("--lite0", channels=3), torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8), 7)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="--lite0 needs images of 1 or 3 channels, and these have 4: remove --lite0"):
        Lite0("--lite0", channels=4)
