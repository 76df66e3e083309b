"""EfficientNet-Lite0 with random weights on small images, for tests that run without the package of its weights."""

from __future__ import annotations

import pytest
import torch

from zerokara.core.models import lite0
from zerokara.core.models.classifier import Classifier, make_classifier

SIZE = 32  # pixels per side


def random_classifier(option: str) -> Classifier:
    """Create the classifier with random weights, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_classifier(lite0.BACKBONE, 3, SIZE, 1000).eval().requires_grad_(False)


def use_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the published weights."""
    monkeypatch.setattr(lite0, "load", random_classifier)
    monkeypatch.setattr(lite0, "find_weights", lambda option: None)
    monkeypatch.setattr(lite0, "SIZE", SIZE)
