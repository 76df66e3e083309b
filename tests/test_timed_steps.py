"""Steps that are timed to choose the hardware settings: of every training program, with its batch and smaller ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vision import drawn_boxes, noise_captions
from tests.vision.shapes import write_shapes
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data import glyphs
from zerokara.core.media import write_png

DETECT = (
    "--data boxes --data-dir . --proposal-cache cache --image-side 64 --backbone resnet20 --width-multiplier .25 "
    "--stride 4 --bins 4 --hidden-units 16 --crop-side 32"
)
SEGMENT = "--data shapes --data-dir . --network fcn2s --backbone resnet18 --width-multiplier .125 --decoder-channels 8"
CAPTION = (
    "--data few.zip --image-size 32 --backbone resnet20 --width-multiplier .25 --stem paper --validation-images 4 "
    "--test-images 4"
)
CLASSIFY = "--data glyphs --train-images 40 --validation-images 20 --width-multiplier .25"
STYLE = (
    "--data few.zip --loss-network random --width-multiplier .1 --image-size 32 --style-network-width .125 "
    "--held-out-images 2"
)
GAN = "--data glyphs --generator-width .125 --discriminator-width .125 --latent-dim 8"
AGENT = "--env zerokara/Catch-v0 --width-multiplier .25 --hidden-units 8"
# Command, and the number of items in a training step and in the smallest one, in each forward pass.
CASES = [
    ("agents.dqn", f"{AGENT} --batch-size 12", 12, 2),
    ("agents.pqn", f"{AGENT} --rollout-steps 4 --num-envs 6 --num-minibatches 2", 12, 2),
    ("agents.pqn", f"{AGENT} --rollout-steps 4 --num-envs 6 --num-minibatches 2 --lstm-units 8", 12, 8),
    ("agents.stream", "--env zerokara/Catch-v0", 1, 1),
    ("generative.dcgan", f"{GAN} --batch-size 16", 16, 2),
    ("generative.dcgan", f"{GAN} --batch-size 18 --accumulation-steps 3", 6, 2),
    ("generative.fast_style", f"--style style.png {STYLE} --batch-size 5", 5, 2),
    ("generative.style_transfer", "style.png style.png --loss-network random --width-multiplier .1 --size 32", 1, 1),
    ("vision.classify", f"{CLASSIFY} --batch-size 25", 25, 2),
    ("vision.classify", f"{CLASSIFY} --batch-size 99", 40, 2),
    ("vision.classify", f"{CLASSIFY} --batch-size 21 --accumulation-steps 3", 7, 2),
    ("vision.binary", "--data glyphs --train-images 40 --validation-images 20 --batch-size 25", 25, 2),
    ("vision.segment", f"{SEGMENT} --batch-size 6", 6, 2),
    ("vision.segment", f"{SEGMENT} --batch-size 8 --accumulation-steps 2", 4, 2),
    ("vision.detect", f"{DETECT} --images-per-update 3", 3, 2),
    ("vision.detect", f"{DETECT} --images-per-update 9", 9, 2),
    ("vision.detect", f"{DETECT} --method rcnn --regions-per-update 24", 24, 2),
    ("vision.caption", f"{CAPTION} --batch-size 8", 8, 2),
]


class Chosen(Exception):
    """Raised in place of the measurement."""


class Products(TorchDispatchMode):
    """Records the number of items in each convolution, and in each matrix product of a network without convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._convolutions: set[int] = set()
        self._matrices: set[int] = set()

    @property
    def items(self) -> set[int]:
        """The numbers of items."""
        return self._convolutions or self._matrices

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self._convolutions.add(len(args[0]))
        elif func is torch.ops.aten.mm.default:
            self._matrices.add(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test's folder, with a small data set of each kind, the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 200, "test": 50})
    write_shapes(tmp_path)
    drawn_boxes.write(tmp_path / "boxes", 24)
    noise_captions.write(Path("few.zip"), number=24, side=40)
    random = np.random.default_rng(0)
    write_png(Path("style.png"), random.integers(0, 255, (48, 48, 3), np.uint8))


def timed_step(module: str, words: str, monkeypatch: pytest.MonkeyPatch) -> TrainStep:
    """Return the step that a program has timed."""
    steps: list[TrainStep] = []

    def choose(**options: Any) -> Compute:
        steps.append(options["train_step"])
        raise Chosen

    monkeypatch.setattr(Compute, "choose", choose)
    machine = ["--name", "run", "--quiet", "--device", "cpu", "--threads", "1"]
    with pytest.raises(Chosen):
        importlib.import_module(f"zerokara.{module}").main([*words.split(), *machine])
    (step,) = steps
    return step


@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(("module", "words", "whole", "smallest"), CASES, ids=[f"{m} {w}" for m, w, *_ in CASES])
def test_a_timed_step_has_the_batch_that_it_is_asked_for(
    module: str, words: str, whole: int, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = timed_step(module, words, monkeypatch)
    sizes = {whole: step.batch_size, smallest: min(step.batch_size, 2 * step.multiple_of)}
    for items, batch_size in sizes.items():
        update = step.make(Compute(), batch_size)
        with Products() as products:
            update()
        assert items in products.items
        assert whole == items or whole not in products.items
