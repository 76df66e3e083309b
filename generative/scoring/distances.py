"""Distances between generated and real images, as pure functions of features, in float64.

No result depends on the order of the images.

Shapes: N real images, M generated images, F features, k neighbors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2_000  # rows of a distance matrix that are in memory at once


def frechet_distance(real_NF: Tensor, fake_MF: Tensor) -> float:
    """Fréchet distance between Gaussians with the means and covariances of the two sets (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). With a classifier's features it is the Fréchet classifier distance,
    with Inception's the FID (Heusel et al. 2017, equation 6). The trace of the matrix square root is the sum of the
    square roots of the eigenvalues of S1 S2, so no matrix square root is computed. With S1 = X^T X and S2 = Y^T Y these
    are the singular values of X Y^T, which is the smaller matrix if there are fewer images than features.
    """
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    gap_F = real_NF.mean(0) - fake_MF.mean(0)
    if min(len(real_NF), len(fake_MF)) < real_NF.shape[1]:
        x_NF, y_MF = ((features - features.mean(0)) / (len(features) - 1) ** 0.5 for features in (real_NF, fake_MF))
        root_trace = torch.linalg.svdvals(x_NF @ y_MF.T).sum()
        return float(gap_F @ gap_F + x_NF.square().sum() + y_MF.square().sum() - 2 * root_trace)
    real_FF, fake_FF = (torch.atleast_2d(features.T.cov()) for features in (real_NF, fake_MF))
    root_trace = torch.linalg.eigvals(real_FF @ fake_FF).sqrt().real.sum()
    return float(gap_F @ gap_F + real_FF.trace() + fake_FF.trace() - 2 * root_trace)


def kernel_distance(real_NF: Tensor, fake_MF: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / F + 1)^3: KID (Binkowski et al. 2018).

    Computed over all pairs of images, not over random subsets. Near 0, possibly negative, for equal distributions.
    """
    real_NF, fake_MF = real_NF.double(), fake_MF.double()

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([((rows @ b.T) / b.shape[1] + 1).pow(3).sum() for rows in a.split(BLOCK)]).sum()

    def diagonal(a: Tensor) -> Tensor:
        return (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()

    n, m = len(real_NF), len(fake_MF)
    within_real = (total(real_NF, real_NF) - diagonal(real_NF)) / (n * (n - 1))
    within_fake = (total(fake_MF, fake_MF) - diagonal(fake_MF)) / (m * (m - 1))
    return float(within_real + within_fake - 2 * total(real_NF, fake_MF) / (n * m))


@dataclass(frozen=True)
class Overlap:
    """Precision, recall, density and coverage of generated images.

    A ball around an image reaches to its k-th nearest neighbor in its own set.

    Attributes:
        precision: fraction of generated images within a ball of a real image; recall: fraction of real images within a
            ball of a generated image (Kynkäänniemi et al. 2019, equations 1 to 3).
        density: mean number of real images' balls that contain a generated image, divided by k; 1 for equal sets.
        coverage: fraction of real images whose ball contains a generated image (Naeem et al. 2020, equations 4 and 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(real_NF: Tensor, fake_MF: Tensor, k_precision: int = 3, k_density: int = 5) -> Overlap:
    """Compute precision and recall with `k_precision` neighbors, density and coverage with `k_density`."""
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    real_radius_N, fake_radius_M = radii(real_NF, k_precision), radii(fake_MF, k_precision)
    wide_radius_N = radii(real_NF, k_density)
    precise_M = torch.zeros(len(fake_MF), dtype=torch.bool)
    recalled, covered, inside = 0, 0, 0
    for start in range(0, len(real_NF), BLOCK):
        rows = slice(start, start + BLOCK)
        distance_nM = torch.cdist(real_NF[rows], fake_MF)
        precise_M |= (distance_nM <= real_radius_N[rows, None]).any(0)
        recalled += int((distance_nM <= fake_radius_M).any(1).sum())
        within_nM = distance_nM <= wide_radius_N[rows, None]
        inside += int(within_nM.sum())
        covered += int(within_nM.any(1).sum())
    return Overlap(
        precision=float(precise_M.double().mean()),
        recall=recalled / len(real_NF),
        density=inside / (k_density * len(fake_MF)),
        coverage=covered / len(real_NF),
    )


def compare(real_NF: Tensor, fake_MF: Tensor) -> dict[str, float]:
    """Compute kernel distance, density, coverage, precision and recall by name."""
    overlaps = overlap(real_NF, fake_MF)
    return {
        "kernel_distance": kernel_distance(real_NF, fake_MF),
        "density": overlaps.density,
        "coverage": overlaps.coverage,
        "precision": overlaps.precision,
        "recall": overlaps.recall,
    }


def radii(points_NF: Tensor, k: int) -> Tensor:
    """Return the distance (N,) of every point to its k-th nearest neighbor, itself not counted."""
    radius_N = []
    for start in range(0, len(points_NF), BLOCK):
        distance_nN = torch.cdist(points_NF[start : start + BLOCK], points_NF)
        row_n = torch.arange(len(distance_nN))
        distance_nN[row_n, row_n + start] = 0.0  # rounding may have made it slightly positive
        radius_N.append(distance_nN.kthvalue(min(k + 1, len(points_NF)), dim=1).values)
    return torch.cat(radius_N)


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
