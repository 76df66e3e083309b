"""Tests of the image sizes and memory estimates of style transfer."""

from __future__ import annotations

import numpy as np
import pytest

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.generative.style import images
from zerokara.generative.style.config import BackboneOptions
from zerokara.generative.style.images import activation_bytes, check_memory, sizes
from zerokara.generative.style.perceptual import Layers, LossNetwork, make_loss_network


def test_sizes_double_and_have_a_minimum() -> None:
    assert sizes(768, 1024, 512, 2) == [(192, 256), (384, 512)]
    assert sizes(768, 1024, 0, 1) == [(768, 1024)]
    assert sizes(100, 400, 256, 5) == [(32, 128), (64, 256)]
    with pytest.raises(UserError, match="--size 40"):
        sizes(100, 400, 40, 2)


def test_memory_estimate_and_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_network = LossNetwork(
        make_backbone("vgg11", 3, 32, width=1 / 64), Layers((), ("relu1_1",)), (0.5,) * 3, (0.2,) * 3, ""
    ).on(Compute())
    pixels = 32 * 48 * 4  # bytes of a channel
    # Saved for the backward pass: the normalized image (3 channels), the largest, and the output of the ReLU (1), which
    # is also the input of the scaling.
    needed = activation_bytes(loss_network, (1, 3, 32, 48))
    largest = 3 * pixels
    assert needed >= 3 * pixels + pixels + images.TEMPORARIES * largest
    assert needed <= 3 * pixels + pixels + images.TEMPORARIES * largest + 3 * pixels
    assert activation_bytes(loss_network, (1, 3, 64, 96)) == pytest.approx(4 * needed, rel=0.01)
    monkeypatch.setattr(images, "free_bytes", lambda device: 2**30)
    message = check_memory({"maps": 2**29}, "cpu", (400, 800), "give --size {side}")
    assert "0.5 GiB of 1.0 free" in message
    with pytest.raises(UserError, match=r"800x400 pixels need about 4.0 GiB .*1.0 GiB are free: give --size 368"):
        check_memory({"maps": 2**32}, "cpu", (400, 800), "give --size {side}")
    with pytest.raises(UserError, match="too small"):
        activation_bytes(
            make_loss_network(BackboneOptions(backbone="alexnet", loss_network="random")).on(Compute()), (1, 3, 20, 20)
        )
    assert np.isfinite(needed)
