"""Distances between generated and real images, as pure functions of features, in float64.

No result depends on the order of the images.

Shapes: N real images, M generated images, F features, k neighbors, K distances to neighbors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

BLOCK = 500  # rows of a distance matrix that are in memory at once; larger blocks take longer
MAX_NEIGHBORS = 5  # largest k; distances to so many neighbors are kept


class Features:
    """Features of a set of images, and statistics of this set alone, each computed once, when it is first needed.

    Comparisons of one set with several others, such as the real images of a run, share them.

    Attributes:
        features_NF: features (N, F), float64.
    """

    def __init__(self, features_NF: Tensor) -> None:
        """Convert features (N, F) to float64."""
        self.features_NF = features_NF.double()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.features_NF)

    @functools.cached_property
    def mean_F(self) -> Tensor:
        """Mean (F,)."""
        return self.features_NF.mean(0)

    @functools.cached_property
    def covariance_FF(self) -> Tensor:
        """Covariance (F, F)."""
        covariance_FF: Tensor = torch.atleast_2d(self.features_NF.T.cov())
        return covariance_FF

    @functools.cached_property
    def mean_kernel(self) -> Tensor:
        """Mean (scalar) of the kernel of `kernel_distance` over all pairs of two images."""
        features_NF, number = self.features_NF, len(self)
        diagonal = (features_NF.square().sum(1) / features_NF.shape[1] + 1).pow(3).sum()
        return (kernel_sum(features_NF, features_NF) - diagonal) / (number * (number - 1))

    @functools.cached_property
    def nearest_distance_NK(self) -> Tensor:
        """Distances (N, K) of every image to itself, 0, and to its `MAX_NEIGHBORS` nearest neighbors, ascending."""
        distances = []
        for start in range(0, len(self), BLOCK):
            distance_nN = torch.cdist(self.features_NF[start : start + BLOCK], self.features_NF)
            row_n = torch.arange(len(distance_nN))
            distance_nN[row_n, row_n + start] = 0.0  # rounding may have made it slightly positive
            distances.append(distance_nN.topk(min(MAX_NEIGHBORS + 1, len(self)), dim=1, largest=False).values)
        return torch.cat(distances)

    def radii(self, k: int) -> Tensor:
        """Return the distance (N,) of every image to its k-th nearest neighbor, itself not counted.

        Args:
            k: at most `MAX_NEIGHBORS`. With fewer neighbors, the last one counts.
        """
        return self.nearest_distance_NK[:, min(k, len(self) - 1)]


def frechet_distance(real: Features, fake: Features) -> float:
    """Fréchet distance between Gaussians with the means and covariances of the two sets (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). With a classifier's features it is the Fréchet classifier distance,
    with Inception's the FID (Heusel et al. 2017, equation 6). The trace of the matrix square root is the sum of the
    square roots of the eigenvalues of S1 S2, so no matrix square root is computed. With S1 = X^T X and S2 = Y^T Y these
    are the singular values of X Y^T, which is the smaller matrix if there are fewer images than features.
    """
    gap_F = real.mean_F - fake.mean_F
    if min(len(real), len(fake)) < real.features_NF.shape[1]:
        x_NF, y_MF = ((s.features_NF - s.mean_F) / (len(s) - 1) ** 0.5 for s in (real, fake))
        root_trace = torch.linalg.svdvals(x_NF @ y_MF.T).sum()
        return float(gap_F @ gap_F + x_NF.square().sum() + y_MF.square().sum() - 2 * root_trace)
    real_FF, fake_FF = real.covariance_FF, fake.covariance_FF
    root_trace = torch.linalg.eigvals(real_FF @ fake_FF).sqrt().real.sum()
    return float(gap_F @ gap_F + real_FF.trace() + fake_FF.trace() - 2 * root_trace)


def kernel_distance(real: Features, fake: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / F + 1)^3: KID (Binkowski et al. 2018).

    Computed over all pairs of images, not over random subsets. Near 0, possibly negative, for equal distributions.
    """
    across = kernel_sum(real.features_NF, fake.features_NF) / (len(real) * len(fake))
    return float(real.mean_kernel + fake.mean_kernel - 2 * across)


def kernel_sum(features_NF: Tensor, other_MF: Tensor) -> Tensor:
    """Sum (scalar) of the kernel of `kernel_distance` over all pairs of an image of each set."""
    sums = [
        (rows @ other_MF.T).div_(other_MF.shape[1]).add_(1).pow_(3).sum()  # in place: a new matrix would take longer
        for rows in features_NF.split(BLOCK)
    ]
    return torch.stack(sums).sum()


@dataclass(frozen=True)
class Overlap:
    """Precision, recall, density and coverage of generated images.

    A ball around an image reaches to its k-th nearest neighbor in its own set.

    Attributes:
        density: mean number of real images' balls that contain a generated image, divided by k; 1 for equal sets.
        coverage: fraction of real images whose ball contains a generated image (Naeem et al. 2020, equations 4 and 5).
        precision: fraction of generated images within a ball of a real image; recall: fraction of real images within a
            ball of a generated image (Kynkäänniemi et al. 2019, equations 1 to 3).
    """

    density: float
    coverage: float
    precision: float
    recall: float


def overlap(real: Features, fake: Features, k_precision: int = 3, k_density: int = 5) -> Overlap:
    """Compute precision and recall with `k_precision` neighbors, density and coverage with `k_density`."""
    real_radius_N, fake_radius_M = real.radii(k_precision), fake.radii(k_precision)
    wide_radius_N = real.radii(k_density)
    precise_M = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered, inside = 0, 0, 0
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        distance_nM = torch.cdist(real.features_NF[rows], fake.features_NF)
        precise_M |= (distance_nM <= real_radius_N[rows, None]).any(0)
        recalled += int((distance_nM <= fake_radius_M).any(1).sum())
        within_nM = distance_nM <= wide_radius_N[rows, None]
        inside += int(within_nM.sum())
        covered += int(within_nM.any(1).sum())
    return Overlap(
        density=inside / (k_density * len(fake)),
        coverage=covered / len(real),
        precision=float(precise_M.double().mean()),
        recall=recalled / len(real),
    )


def compare(real: Features, fake: Features) -> dict[str, float]:
    """Compute kernel distance, density, coverage, precision and recall by name."""
    return {name: value for compute in comparisons(real, fake) for name, value in compute().items()}


def comparisons(real: Features, fake: Features) -> list[Callable[[], dict[str, float]]]:
    """Return functions that together compute the metrics of `compare`; several processes can divide them."""
    return [
        lambda: {"kernel_distance": kernel_distance(real, fake)},
        lambda: asdict(overlap(real, fake)),
    ]


def nearest(points_MF: Tensor, others_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index (M,) of every point's nearest neighbor among the others, and the distance (M,)."""
    indices, distances = [], []
    others_NF = others_NF.double()
    for rows in points_MF.double().split(BLOCK):
        distance, index = torch.cdist(rows, others_NF).min(1)
        indices.append(index)
        distances.append(distance)
    return torch.cat(indices), torch.cat(distances)


def spread(images_NCHW: Tensor) -> float:
    """Mean root-mean-square pixel difference over all pairs of images, from 0 (all identical) to 1."""
    flat_NP = images_NCHW.flatten(1).double()
    distance = torch.nn.functional.pdist(flat_NP).mean() if len(flat_NP) > 1 else torch.zeros(())
    return float(distance / (255 * math.sqrt(flat_NP.shape[1])))
