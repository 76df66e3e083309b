"""Tests of what connects the parts of vision.classify: which images, labels, learning rates and weights are used when.

The real program trains on images that encode their index (tests/vision/coded_images.py). The parts themselves have
tests of their own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.recorded import Shard, averaged
from tests.vision.coded_images import Recording, indices_of, is_flipped, picture
from zerokara.core import data
from zerokara.core.models.classifier import Classifier
from zerokara.vision import classify
from zerokara.vision.classification.learner import Training

pytestmark = pytest.mark.usefixtures("coded_here")

CLASSES = ("a", "b", "c")
SIZE = (16, 16)
TRAIN, TEST = range(45), range(45, 60)  # indices of the images; nine of the first are held out for validation
PLAIN = (
    *("--rotation-degrees", "0", "--shift", "0", "--scale", "0", "--shear-degrees", "0", "--elastic-pixels", "0"),
    *("--label-smoothing", "0", "--ema-half-life-updates", "0", "--tta-views", "1"),
)
TINY = (
    *("--data", "./coded", "--validation-images", "9", "--width-multiplier", "0.25", "--dropout", "0"),
    *("--optimizer", "sgd", "--learning-rate", "0.02", "--weight-decay", "0", "--batch-size", "8", "--epochs", "3"),
    *("--compile", "off", "--eval-batch-size", "4", *PLAIN),
)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data set: image i has the class i % 3."""
    root = tmp_path_factory.mktemp("data")
    for split, indices in (("train", TRAIN), ("test", TEST)):
        for index in indices:
            path = root / "coded" / split / CLASSES[index % 3] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(index, SIZE)).save(path)
    return root / "coded"


@pytest.fixture(scope="module")
def recording(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Recording of a run with shifts, flips, label smoothing, two accumulation steps and averaged weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        Path("coded").symlink_to(coded)
        words = ["--shift", "0.1", "--flip", "--label-smoothing", "0.3", "--accumulation-steps", "2"]
        words += ["--ema-half-life-updates", "0.4", "--warmup-epochs", "1", "--momentum", "0.5"]
        return Recording(classify, Classifier, [*TINY, *words, "--name", "run"])


def epochs_of(recording: Recording) -> list[list[int]]:
    """Indices of the training images in the order of each epoch."""
    return [
        [index for update in recording.updates[first : first + 4] for index in update.indices]
        for first in range(0, len(recording.updates), 4)
    ]


def one_hot(indices: list[int], smoothing: float = 0.0) -> Tensor:
    """Targets of images, by definition."""
    classes = torch.tensor(indices) % 3
    return F.one_hot(classes, 3) * (1 - smoothing) + smoothing / 3


# ---- training


def test_an_epoch_uses_each_training_image_once_in_a_new_order(recording: Recording) -> None:
    epochs = epochs_of(recording)
    trained = set(TRAIN) - validation_images(recording)
    assert [len(epoch) for epoch in epochs] == [32, 32, 32]
    for epoch in epochs:
        assert len(set(epoch)) == 32, "an image was used twice in an epoch"
        assert epoch != sorted(epoch)
        assert set(epoch) <= trained
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert set(epochs[0]) != set(epochs[1]), "the images of the incomplete last batch must change"


def validation_images(recording: Recording) -> set[int]:
    """Indices of the images of the first validation."""
    return {i for each in recording.evaluations if (each.phase, each.updates) == ("validate", 4) for i in each.indices}


def test_each_part_of_a_batch_has_the_smoothed_labels_of_its_images(recording: Recording) -> None:
    for update in recording.updates:
        assert [len(part.images) for part in update.parts] == [4, 4]
        for part in update.parts:
            torch.testing.assert_close(part.target, one_hot(part.indices, 0.3))


def test_flips_alternate_from_epoch_to_epoch(recording: Recording) -> None:
    flipped: list[dict[int, bool]] = [{}, {}, {}]
    for number, update in enumerate(recording.updates):
        for part in update.parts:
            for index, image in zip(part.indices, part.images, strict=True):
                flipped[number // 4][index] = is_flipped(image)
    assert len(set(flipped[0].values())) == 2, "half of the images are flipped in the first epoch"
    for now, later in ((0, 1), (1, 2)):
        common = flipped[now].keys() & flipped[later].keys()
        assert len(common) > 20
        assert all(flipped[now][index] != flipped[later][index] for index in common)


def test_each_update_has_the_learning_rate_of_the_schedule(recording: Recording) -> None:
    """Four updates of linear warm-up, then eight of cosine decay to zero."""
    rates = [rate for update in recording.updates for rate in update.rates[:1]]
    assert rates == pytest.approx(
        [0.02 * n / 4 for n in (1, 2, 3, 4)] + [0.01 * (1 + math.cos(math.pi * n / 8)) for n in range(1, 9)]
    )
    assert all(set(update.rates) == {rate} for update, rate in zip(recording.updates, rates, strict=True))


def test_accumulated_parts_give_the_step_of_the_whole_batch() -> None:
    whole = Recording(classify, Classifier, [*TINY, "--name", "whole"])
    parts = Recording(classify, Classifier, [*TINY, "--name", "parts", "--accumulation-steps", "4"])
    assert [update.indices for update in parts.updates] == [update.indices for update in whole.updates]
    assert [len(update.parts) for update in parts.updates] == [4] * 12
    for one, other in zip(whole.updates, parts.updates, strict=True):
        for name, weight in one.weights.items():
            torch.testing.assert_close(other.weights[name], weight, rtol=1e-3, atol=1e-5)


def test_processes_train_on_disjoint_halves_whose_mean_gradient_is_that_of_the_batch() -> None:
    """Without communication only the first update has the weights of the run with one process."""
    words = [*TINY, "--epochs", "1", "--no-test"]
    whole = Recording(classify, Classifier, [*words, "--name", "whole"])
    halves = [Recording(classify, Classifier, [*words, "--name", "half"], world=Shard(rank, 2)) for rank in (0, 1)]
    assert len(whole.updates) == len(halves[0].updates) == len(halves[1].updates) == 4
    for update, *shards in zip(whole.updates, *(half.updates for half in halves), strict=True):
        assert [len(shard.indices) for shard in shards] == [4, 4]
        assert sorted(shards[0].indices + shards[1].indices) == sorted(update.indices)
        for shard in shards:
            torch.testing.assert_close(shard.parts[0].target, one_hot(shard.indices))
    for gradient, *partial in zip(*(each.updates[0].gradients for each in (whole, *halves)), strict=True):
        torch.testing.assert_close((partial[0] + partial[1]) / 2, gradient, rtol=1e-3, atol=1e-6)
    assert [{each.phase for each in half.evaluations} for half in halves] == [{"validate", "finish"}] * 2


MIXING = (["--mixup", "1"], ["--cutmix", "1"], ["--mixup", "1", "--cutmix", "1"])


@pytest.mark.parametrize("words", MIXING, ids=" ".join)
def test_mixed_images_have_mixed_targets(words: list[str]) -> None:
    """Images of class k are bright in channel k only, so the mean of channel k is the fraction of class k."""
    for index in range(36):
        pixels = np.zeros((*SIZE, 3), np.uint8)
        pixels[..., index % 3] = 255
        path = Path("colors", CLASSES[index % 3], f"{index:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    words = [*TINY, "--data", "./colors", "--no-test", "--epochs", "2", "--shift", "0.1", *words]
    recording = Recording(classify, Classifier, [*words, "--name", "run"])
    targets = torch.cat([part.target for update in recording.updates for part in update.parts])
    images = torch.cat([part.images for update in recording.updates for part in update.parts])
    torch.testing.assert_close(targets, images.mean((2, 3)) / 255, rtol=0, atol=1e-3)
    mixed = (targets.amax(1) < 0.95).sum()
    assert mixed > len(targets) / 4
    assert len(targets.round(decimals=3).unique(dim=0)) > 10, "every image has a fraction of its own"


# ---- evaluation


def test_every_validation_evaluates_all_held_out_images_unchanged(recording: Recording) -> None:
    held_out = validation_images(recording)
    assert len(held_out) == 9
    assert [sum(index % 3 == label for index in held_out) for label in range(3)] == [3, 3, 3]
    for updates in (4, 8, 12):
        passes = [e for e in recording.evaluations if (e.phase, e.updates) == ("validate", updates)]
        assert [len(each.images) for each in passes] == [4, 4, 1]
        assert sorted(index for each in passes for index in each.indices) == sorted(held_out)
        for each in passes:
            for image, index in zip(each.images, each.indices, strict=True):
                pixels = torch.from_numpy(picture(index, SIZE)).permute(2, 0, 1).float()
                torch.testing.assert_close(image, pixels, rtol=0, atol=0.1)


def test_the_averaged_weights_are_evaluated(recording: Recording) -> None:
    for each in recording.evaluations:
        expected = averaged([update.weights for update in recording.updates[: each.updates]], recording.first, 0.4)
        raw = recording.updates[each.updates - 1].weights
        for name, weight in each.weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
        assert not all(torch.equal(weight, raw[name]) for name, weight in each.weights.items())


def test_the_test_set_is_read_and_evaluated_once_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []  # splits and the number of updates done before
    done: list[Tensor] = []
    original, update = data.load, Training.update

    def load(name: str, split: Any, **options: Any) -> data.ImageSet:
        read.append((split, len(done)))
        return original(name, split, **options)

    def count(training: Training, index_B: Tensor) -> None:
        update(training, index_B)
        done.append(index_B)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(Training, "update", count)
    recording = Recording(classify, Classifier, [*TINY, "--name", "run"])
    assert read == [("train", 0), ("test", 12)]
    finishing = [index for each in recording.evaluations if each.phase == "finish" for index in each.indices]
    assert sorted(finishing) == sorted([*validation_images(recording), *TEST])
    others = [index for each in recording.evaluations if each.phase == "validate" for index in each.indices]
    assert not set(others) & set(TEST)


@pytest.mark.parametrize(("select", "epoch"), [("best", 2), ("last", 4)])
def test_the_weights_are_selected_by_the_validation_error(select: str, epoch: int) -> None:
    """The network has a scripted error after each epoch. On test images another epoch is the best."""
    wrong = {"validation": (6, 3, 6, 9), "test": (15, 10, 0, 5)}  # images that are misclassified after each epoch
    order: dict[str, list[int]] = {"validation": [], "test": []}

    def answer(images_BCHW: Tensor, updates: int) -> Tensor:
        indices = indices_of(images_BCHW)
        labels = []
        for index in indices:
            name = "test" if index in TEST else "validation"
            if index not in order[name]:
                order[name].append(index)
            rank = order[name].index(index)
            labels.append(index + (rank < wrong[name][updates // 4 - 1]))
        return 20 * one_hot(labels)

    words = [*TINY, "--epochs", "4", "--select", select, "--seed", "2", "--name", "run"]
    recording = Recording(classify, Classifier, words, answer=answer)
    lines = [json.loads(line) for line in Path("runs/run/metrics.jsonl").read_text().splitlines()]
    assert [line["val/error"] for line in lines if "val/error" in line] == pytest.approx([6 / 9, 3 / 9, 6 / 9, 1])
    results = json.loads(Path("runs/run/result.json").read_text())["figures"]
    assert results["validation_error"] == pytest.approx(wrong["validation"][epoch - 1] / 9)
    assert results["test_error"] == pytest.approx(wrong["test"][epoch - 1] / 15)
    validated = [e for e in recording.evaluations if e.phase == "validate"]
    assert all(recording.updates_with(each.weights) == each.updates for each in validated), "the newest weights"


def test_training_images_are_chosen_by_the_seed_and_validation_images_are_not(recording: Recording) -> None:
    words = [*TINY, "--train-images", "24", "--epochs", "1", "--no-test"]
    others = [Recording(classify, Classifier, [*words, "--seed", seed, "--name", seed]) for seed in ("2", "3")]
    used = [{index for update in other.updates for index in update.indices} for other in others]
    assert [len(indices) for indices in used] == [24, 24]
    assert used[0] != used[1]
    for other, indices in zip(others, used, strict=True):
        held_out = {index for each in other.evaluations for index in each.indices}
        assert held_out == validation_images(recording)
        assert not held_out & indices
