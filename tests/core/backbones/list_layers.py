"""Program of tests/test_start.py: make the table of layers of a classifier with each of the backbones named."""

from __future__ import annotations

import sys

from zerokara.core.backbones.base import on_meta_device
from zerokara.core.backbones.registry import BACKBONES
from zerokara.core.backbones.summary import summary
from zerokara.core.models.classifier import make_classifier

for name in sys.argv[1:]:
    channels, side = BACKBONES[name].default_input
    with on_meta_device():
        classifier = make_classifier(name, channels, side, 10)
    summary(classifier, (1, channels, side, side))
    print(name)
