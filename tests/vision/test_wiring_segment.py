"""Tests of what connects the parts of vision.segment: which images, masks, learning rates and weights are used when.

The real program trains on images that encode their index and their mask (tests/vision/coded_images.py): green is the
class of each pixel. The parts themselves have tests of their own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.recorded import Shard, averaged, copy_of
from tests.vision.coded_images import Part, Recording, indices_of, picture
from zerokara.core.data.masks import UNLABELED
from zerokara.vision import segment
from zerokara.vision.segmentation.networks import Fcn

pytestmark = pytest.mark.usefixtures("coded_here")

SIZE = (16, 24)
GREEN_STEP = 100  # difference of the green channel of consecutive classes
SPLITS = {"train": range(22), "val": range(22, 27), "test": range(27, 34)}  # indices of the images
PLAIN = ("--scale-low", "1", "--scale-high", "1", "--no-flip", "--brightness", "0", "--contrast", "0")
TINY = (
    *("--data", "./coded", "--network", "fcn2s", "--backbone", "resnet18", "--width-multiplier", "0.125"),
    *("--decoder-channels", "8", "--optimizer", "sgd", "--learning-rate", "0.02", "--batch-size", "4", "--epochs", "3"),
    *("--validate-every-epochs", "1", "--eval-batch-size", "3", "--warmup-epochs", "1", "--balance", "0"),
    *("--compile", "off", "--color-jitter", "0", *PLAIN),
)


def mask_of(index: int) -> np.ndarray:
    """Mask (H, W) of an image: four vertical stripes whose classes are the digits of the index in base 3."""
    digits = [index // 3**place % 3 for place in range(4)]
    return np.repeat(np.array(digits, np.uint8), SIZE[1] // 4)[None].repeat(SIZE[0], 0)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data set in the layout of CamVid."""
    root = tmp_path_factory.mktemp("data")
    for split, indices in SPLITS.items():
        for index in indices:
            pixels, mask = picture(index, SIZE), mask_of(index)
            pixels[..., 1] = GREEN_STEP * mask
            for folder, array in ((split, pixels), (f"{split}annot", mask)):
                path = root / "coded" / folder / f"{index:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "coded" / "classes.txt").write_text("a\nb\nc")
    return root / "coded"


@pytest.fixture(scope="module")
def recording(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Recording of a run with random scales and flips, two accumulation steps and averaged weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        Path("coded").symlink_to(coded)
        words = ["--scale-low", "0.7", "--scale-high", "1.5", "--flip", "--accumulation-steps", "2"]
        return Recording(segment, Fcn, [*TINY, *words, "--ema-half-life-updates", "0.4", "--name", "run"])


def classes_in(images_BCHW: Tensor) -> Tensor:
    """Classes (B, H, W) that the green channel encodes; UNLABELED where interpolation has mixed two classes."""
    code_BHW = images_BCHW[:, 1] / GREEN_STEP
    exact = (code_BHW - code_BHW.round()).abs() < 0.02
    return torch.where(exact, code_BHW.round().long(), UNLABELED)


def agreement(part: Part) -> list[float]:
    """Fraction of the labeled pixels of each image whose class is the one that the image shows."""
    shown = classes_in(part.images)
    compared = (shown != UNLABELED) & (part.target != UNLABELED)
    right = (shown == part.target) & compared
    assert bool((compared.sum((1, 2)) > 0.2 * compared[0].numel()).all())
    return (right.sum((1, 2)) / compared.sum((1, 2))).tolist()


def test_each_training_image_meets_its_mask_once_an_epoch(recording: Recording) -> None:
    epochs = [[i for update in recording.updates[e : e + 5] for i in update.indices] for e in (0, 5, 10)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 20
        assert set(epoch) <= set(SPLITS["train"])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    parts = [part for update in recording.updates for part in update.parts]
    assert [len(part.images) for part in parts] == [2] * 30
    fractions = [fraction for part in parts for fraction in agreement(part)]
    assert min(fractions) > 0.9, "the mask is scaled, moved and flipped with its image"
    unlabeled = [float((mask == UNLABELED).float().mean()) for part in parts for mask in part.target]
    assert min(unlabeled) == 0 < max(unlabeled), "pixels outside of a reduced image have no label"
    first = [part.images[i, 2] for part in parts for i in range(2)]
    flipped = [bool(blue[:, 0].mean() > blue[:, -1].mean()) for blue in first]
    assert 0.2 < np.mean(flipped) < 0.8


def test_each_update_has_the_learning_rate_of_the_schedule(recording: Recording) -> None:
    rates = [update.rates[0] for update in recording.updates]
    assert rates == pytest.approx(
        [0.02 * n / 5 for n in range(1, 6)] + [0.01 * (1 + math.cos(math.pi * n / 10)) for n in range(1, 11)]
    )


def test_the_averaged_weights_are_evaluated_on_the_masks_of_the_split(recording: Recording) -> None:
    """Only validation images are evaluated during training, and the weights of the best epoch at the end."""
    parts = [Part(e.images, t) for e, t in zip(recording.evaluations, recording.evaluated_targets, strict=True)]
    assert all(fraction == 1 for part in parts for fraction in agreement(part))
    for number in (5, 10, 15):
        passes = [e for e in recording.evaluations if (e.phase, e.updates) == ("validate", number)]
        assert [index for each in passes for index in each.indices] == list(SPLITS["val"])
        expected = averaged([update.weights for update in recording.updates[:number]], recording.first, 0.4)
        for name, weight in passes[0].weights.items():
            if weight.is_floating_point():
                torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
        name = next(iter(expected))
        assert not torch.equal(passes[0].weights[name], recording.updates[number - 1].weights[name])
    finishing = [e for e in recording.evaluations if e.phase == "finish"]
    assert [index for each in finishing for index in each.indices] == [*SPLITS["val"], *SPLITS["test"]]


@pytest.mark.parametrize(("select", "epoch"), [("best", 2), ("last", 3)])
def test_the_weights_are_selected_by_the_validation_mean_iou(select: str, epoch: int) -> None:
    """The network has a scripted result after each epoch: a number of images in which all pixels are right."""
    right = {"val": (1, 4, 2), "test": (7, 0, 3)}

    def answer(images_BCHW: Tensor, updates: int) -> Tensor:
        classes = classes_in(images_BCHW)
        for row, index in enumerate(indices_of(images_BCHW)):
            name = "test" if index in SPLITS["test"] else "val"
            if index - SPLITS[name][0] >= right[name][updates // 5 - 1]:
                classes[row] = (classes[row] + 1) % 3
        return 20.0 * torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()

    recording = Recording(segment, Fcn, [*TINY, "--select", select, "--name", "run"], answer=answer)
    assert all(
        recording.updates_with(each.weights) == each.updates
        for each in recording.evaluations
        if each.phase == "validate"
    )
    results = json.loads(Path("runs/run/result.json").read_text())["figures"]
    assert results["validation_accuracy"] == pytest.approx(right["val"][epoch - 1] / 5)
    assert results["test_accuracy"] == pytest.approx(right["test"][epoch - 1] / 7)
    lines = [json.loads(line) for line in Path("runs/run/metrics.jsonl").read_text().splitlines()]
    accuracies = [line["val/accuracy"] for line in lines if "val/accuracy" in line]
    assert accuracies == pytest.approx([1 / 5, 4 / 5, 2 / 5])


def test_processes_train_on_disjoint_halves() -> None:
    words = [*TINY, "--epochs", "1", "--no-test", "--name", "run"]
    halves = [Recording(segment, Fcn, words, world=Shard(rank, 2)) for rank in (0, 1)]
    for one, other in zip(*(half.updates for half in halves), strict=True):
        assert len(one.indices) == len(other.indices) == 2
        assert not set(one.indices) & set(other.indices)
        assert [f for update in (one, other) for part in update.parts for f in agreement(part)] == [1] * 4
    used = [index for half in halves for update in half.updates for index in update.indices]
    assert len(used) == len(set(used)) == 20


def test_all_weights_are_trained(recording: Recording) -> None:
    last = copy_of(recording.training.network)
    for name, parameter in recording.training.network.named_parameters():
        assert not torch.equal(last[name], recording.first[name]), name
        assert parameter.requires_grad
