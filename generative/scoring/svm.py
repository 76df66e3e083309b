"""Linear support vector machine with the objective of scikit-learn's LinearSVC, for all classes at once, in float32.

LinearSVC copies features to 16 bytes each and fits one class after the other. For 3,072 features of 60,000 digits it
needs 3 GB and minutes per class. Here features are not copied. A test compares the weights with LinearSVC's.

Shapes: N images, F features, K classes, G = F + 1 weights, the last one a bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ITERATIONS = 400
FOLDS = 5
CROSS_VALIDATED = 5_000  # from this number of images on, one fold is enough


@torch.no_grad()
def fit(features_NF: Tensor, label_N: Tensor, classes: int, c: float, start_GK: Tensor | None = None) -> Tensor:
    """Fit weights (G, K) of one classifier per class, against the rest.

    Minimizes 1/2 |w|^2 + c * sum of max(0, 1 - y (w.x + b))^2.

    The bias is regularized like the weights, as in LinearSVC.

    Args:
        start_GK: initial weights; None: zeros.
    """
    sign_NK = torch.full((len(label_N), classes), -1.0, device=features_NF.device)
    sign_NK[torch.arange(len(label_N)), label_N] = 1.0
    shape = (features_NF.shape[1] + 1, classes)
    weight_GK = torch.zeros(shape, device=features_NF.device) if start_GK is None else start_GK.clone()
    optimizer = torch.optim.LBFGS(
        [weight_GK],
        max_iter=MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    # The loss is scaled to be independent of c and of the number of images. This does not change its minimum.
    scale = 1 / (c * len(label_N))

    def loss() -> Tensor:
        violation_NK = (1 - sign_NK * scores(features_NF, weight_GK)).clamp_(min=0)
        signed_NK = sign_NK * violation_NK
        grad_FK, grad_K = features_NF.T @ signed_NK, signed_NK.sum(0)
        weight_GK.grad = scale * weight_GK - 2 / len(label_N) * torch.cat([grad_FK, grad_K[None]])
        return scale / 2 * weight_GK.square().sum() + violation_NK.square().sum() / len(label_N)

    optimizer.step(loss)
    return weight_GK


def scores(features_NF: Tensor, weight_GK: Tensor) -> Tensor:
    """Compute the decision function (N, K)."""
    return torch.addmm(weight_GK[-1], features_NF, weight_GK[:-1])


def error(features_NF: Tensor, label_N: Tensor, weight_GK: Tensor) -> float:
    """Return the fraction of misclassified images."""
    return float((scores(features_NF, weight_GK).argmax(1) != label_N).double().mean())


def choose_c(features_NF: Tensor, label_N: Tensor, classes: int, candidates: Sequence[float]) -> float:
    """Choose the candidate (in ascending order) with the lowest validation error; of equals, the smallest.

    Cross-validation with five folds; with `CROSS_VALIDATED` images or more, only the first fold. Image i is in fold
    i // K % 5, so that every fold is balanced if classes alternate.
    """
    fold_N = torch.arange(len(label_N)) // classes % FOLDS
    wrong = dict.fromkeys(candidates, 0.0)
    for fold in range(FOLDS if len(label_N) < CROSS_VALIDATED else 1):
        held_out_N = fold_N == fold
        train = features_NF[~held_out_N], label_N[~held_out_N]
        held_out = features_NF[held_out_N], label_N[held_out_N]
        weight_GK = None
        for c in candidates:
            weight_GK = fit(*train, classes, c, weight_GK)
            wrong[c] += error(*held_out, weight_GK)
    return min(candidates, key=lambda c: wrong[c])
