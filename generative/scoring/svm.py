"""A linear support vector machine on many features of many images: what scikit-learn's LinearSVC minimises, for all
classes at once and in float32.

That one copies features to 16 bytes each and solves a class after the other, which for the 3,072 numbers of 60,000
digits takes 3 GB and minutes for each class; here they stay as they are, and a test holds the two to the same answers.

Shapes: N images, F features, K classes, G = F + 1 weights, the last one a bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ITERATIONS = 400
FOLDS = 5
CROSS_VALIDATED = 5_000  # images from which on one fold says enough


@torch.no_grad()
def fit(features_NF: Tensor, label_N: Tensor, classes: int, c: float, start_GK: Tensor | None = None) -> Tensor:
    """Weights (G, K) that minimise 1/2 |w|^2 + c * sum of max(0, 1 - y (w.x + b))^2 for each class against the rest.

    The bias counts among the weights, as it does in LinearSVC.

    Args:
        start_GK: where to begin; None: at zero.
    """
    sign_NK = torch.full((len(label_N), classes), -1.0, device=features_NF.device)
    sign_NK[torch.arange(len(label_N)), label_N] = 1.0
    shape = (features_NF.shape[1] + 1, classes)
    weight_GK = torch.zeros(shape, device=features_NF.device) if start_GK is None else start_GK.clone()
    optimizer = torch.optim.LBFGS(
        [weight_GK],
        max_iter=MOST_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    scale = 1 / (c * len(label_N))  # the same minimum, of a sum that neither c nor the number of images makes large

    def loss() -> Tensor:
        missing_NK = (1 - sign_NK * scores(features_NF, weight_GK)).clamp_(min=0)
        pull_NK = sign_NK * missing_NK
        grad_FK, grad_K = features_NF.T @ pull_NK, pull_NK.sum(0)
        weight_GK.grad = scale * weight_GK - 2 / len(label_N) * torch.cat([grad_FK, grad_K[None]])
        return scale / 2 * weight_GK.square().sum() + missing_NK.square().sum() / len(label_N)

    optimizer.step(loss)
    return weight_GK


def scores(features_NF: Tensor, weight_GK: Tensor) -> Tensor:
    """How far each image is on the side of each class, (N, K)."""
    return torch.addmm(weight_GK[-1], features_NF, weight_GK[:-1])


def error(features_NF: Tensor, label_N: Tensor, weight_GK: Tensor) -> float:
    """Share of images that are put into another class than theirs."""
    return float((scores(features_NF, weight_GK).argmax(1) != label_N).double().mean())


def choose_c(features_NF: Tensor, label_N: Tensor, classes: int, candidates: Sequence[float]) -> float:
    """The candidate, in rising order, with the least error on held-out ones of these images; of equals the smallest.

    Each of five folds is held out in turn; of many images only the first. Image i is in fold i // K % 5: where classes
    follow each other in turn, every fold has as many of each.
    """
    fold_N = torch.arange(len(label_N)) // classes % FOLDS
    wrong = dict.fromkeys(candidates, 0.0)
    for fold in range(FOLDS if len(label_N) < CROSS_VALIDATED else 1):
        held_N = fold_N == fold
        learnt, held = (features_NF[~held_N], label_N[~held_N]), (features_NF[held_N], label_N[held_N])
        weight_GK = None
        for c in candidates:
            weight_GK = fit(*learnt, classes, c, weight_GK)
            wrong[c] += error(*held, weight_GK)
    return min(candidates, key=lambda c: wrong[c])
