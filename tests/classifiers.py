"""Metadata of a classifier for tests of what is done with classifiers."""

from __future__ import annotations

from zerokara.core.models.classifier import ClassifierMetadata

DIGITS = ClassifierMetadata(
    backbone="deep_cnn",
    head="paper",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(28, 28),
    mean=(0.13,),
    std=(0.3,),
    options={"width": 0.25},
)
"""A narrow network for MNIST's images."""
