"""How far painted images are from real ones, as pure functions of features, in float64.

Whatever the features are taken from, the numbers do not depend on the order of the images.

Shapes: N real, M painted images, F features, k neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2_000  # rows of a matrix of distances that are in memory at once


def frechet_distance(real_NF: Tensor, fake_MF: Tensor) -> float:
    """Fréchet distance between Gaussians with the sets' means and covariances (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); of a classifier's features it is the Fréchet classifier distance, of
    Inception's the FID (Heusel et al. 2017, equation 6). The trace of the root is the sum of the roots of S1 S2's
    eigenvalues, which needs no root of a matrix.
    """
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    gap_F = real_NF.mean(0) - fake_MF.mean(0)
    real_FF, fake_FF = (torch.atleast_2d(features.T.cov()) for features in (real_NF, fake_MF))
    root_trace = torch.linalg.eigvals(real_FF @ fake_FF).sqrt().real.sum()
    return float(gap_F @ gap_F + real_FF.trace() + fake_FF.trace() - 2 * root_trace)


def kernel_distance(real_NF: Tensor, fake_MF: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / F + 1)^3: the KID of Binkowski et al. 2018.

    Over all pairs of images, not over subsets, so that nothing is drawn at random. Near 0, or below it, for equals.
    """
    real_NF, fake_MF = real_NF.double(), fake_MF.double()

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([((rows @ b.T) / b.shape[1] + 1).pow(3).sum() for rows in a.split(BLOCK)]).sum()

    def itself(a: Tensor) -> Tensor:
        return (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()

    n, m = len(real_NF), len(fake_MF)
    within_real = (total(real_NF, real_NF) - itself(real_NF)) / (n * (n - 1))
    within_fake = (total(fake_MF, fake_MF) - itself(fake_MF)) / (m * (m - 1))
    return float(within_real + within_fake - 2 * total(real_NF, fake_MF) / (n * m))


@dataclass(frozen=True)
class Overlap:
    """How two sets of images lie in each other.

    Attributes:
        precision: share of painted images within the real ones' balls; recall: of real ones within the painted ones'
            (Kynkäänniemi et al. 2019, equations 1 to 3).
        density: real balls that a painted image lies in, on average, over k; 1 for equals.
        coverage: share of real images whose ball holds a painted one (Naeem et al. 2020, equations 4 and 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(real_NF: Tensor, fake_MF: Tensor, k_precision: int = 3, k_density: int = 5) -> Overlap:
    """Precision, recall, density and coverage with balls that reach to the k-th nearest neighbour of the same set."""
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


def radii(points_NF: Tensor, k: int) -> Tensor:
    """Distance (N,) of every point to its k-th nearest neighbour, itself not counted."""
    found = []
    for start in range(0, len(points_NF), BLOCK):
        distance_nN = torch.cdist(points_NF[start : start + BLOCK], points_NF)
        here = torch.arange(len(distance_nN))
        distance_nN[here, here + start] = 0.0  # rounding may leave it a little above
        found.append(distance_nN.kthvalue(min(k + 1, len(points_NF)), dim=1).values)
    return torch.cat(found)


def nearest(points_MF: Tensor, others_NF: Tensor) -> tuple[Tensor, Tensor]:
    """For every point the place (M,) of its nearest among the others, and the distance (M,)."""
    places, distances = [], []
    others_NF = others_NF.double()
    for rows in points_MF.double().split(BLOCK):
        distance, place = torch.cdist(rows, others_NF).min(1)
        places.append(place)
        distances.append(distance)
    return torch.cat(places), torch.cat(distances)


def spread(images_NCHW: Tensor) -> float:
    """Mean Euclidean distance between two of the images, per pixel in units of its range; 0 when all are one."""
    flat_NP = images_NCHW.flatten(1).double()
    distance = torch.nn.functional.pdist(flat_NP).mean() if len(flat_NP) > 1 else torch.zeros(())
    return float(distance / (255 * math.sqrt(flat_NP.shape[1])))
