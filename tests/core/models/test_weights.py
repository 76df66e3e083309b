"""Weights as other programs save them: prefixes, several copies, settings beside them, files that are no weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models.classifier import make_classifier
from zerokara.core.models.weights import load_pretrained_backbone, read_tensors

Weights = dict[str, Tensor]


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("beside", [{}, {"args": argparse.Namespace(lr=0.1)}, {"best": np.float64(0.5)}])
def test_averaged_weights_are_preferred_and_the_choice_is_reported(tmp_path: Path, beside: dict[str, Any]) -> None:
    """A checkpoint of timm: the weights and their average, of a network that was parallel and compiled."""
    backbone = make_backbone("nature", 4, 84, width=0.25)
    state = {backbone.published_name(name): tensor for name, tensor in backbone.state_dict().items()}
    raw, averaged = ({name: torch.full_like(tensor, value) for name, tensor in state.items()} for value in (0, 1))
    content = {
        "state_dict": prefixed(raw, "module._orig_mod."),
        "state_dict_ema": prefixed(averaged, "module._orig_mod."),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        **beside,
    }
    torch.save(content, tmp_path / "last.pth")
    report = load_pretrained_backbone(backbone, tmp_path / "last.pth")
    assert all((tensor == 1).all() for tensor in backbone.state_dict().values())
    assert "(state_dict_ema.module._orig_mod, and not state_dict.module._orig_mod)" in str(report)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: prefixed(weights, "module._orig_mod."),
        lambda weights: {"state_dict": weights, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda weights: {"epoch": 3, "model": prefixed(weights, "module."), "model_ema": weights},
    ],
)
def test_a_classifier_is_found_under_any_prefix(tmp_path: Path, wrap: Callable[[Weights], dict[str, Any]]) -> None:
    source, target = (make_classifier("resnet20", 3, 32, 5, head="pooled", width=0.25) for _ in range(2))
    torch.save(wrap({source.published_name(name): x for name, x in source.state_dict().items()}), tmp_path / "a.pth")
    report = target.load_published(tmp_path / "a.pth")
    assert (report.missing, report.wrong_shape) == ((), ())
    assert all(torch.equal(x, target.state_dict()[name]) for name, x in source.state_dict().items())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_files_that_are_no_weights(tmp_path: Path) -> None:
    """No message recommends to run the code in a file, as those of PyTorch do."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    torch.jit.script(network).save(str(tmp_path / "script.pth"))
    torch.save(network, tmp_path / "whole.pth")
    (tmp_path / "other.pth").write_bytes(b"version 2 of the weights")
    for name, message in (
        ("script.pth", "is a TorchScript archive"),
        ("whole.pth", r"contains an object of torch\.nn\.modules\.container\.Sequential"),
        ("other.pth", r"is damaged or contains objects other than weights \(invalid bytes\)"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read_tensors(tmp_path / name)
        assert "weights_only" not in str(error.value)
