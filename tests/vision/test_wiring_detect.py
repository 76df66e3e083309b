"""Tests of what connects the parts of vision.detect: which images, regions, labels and box targets are used when.

The real program trains on images that encode their index (tests/vision/coded_images.py) and their boxes: an object is a
rectangle whose green channel encodes its class. The parts themselves have tests of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.recorded import Shard, copy_of
from tests.vision.coded_images import Recording, indices_of, is_flipped, picture
from zerokara.core.boxes import encode, flip, iou
from zerokara.core.data.boxes import BoxSet
from zerokara.vision import detect
from zerokara.vision.detection.detector import Detections, Detector
from zerokara.vision.detection.network import RegionNet
from zerokara.vision.detection.proposals import Proposals
from zerokara.vision.detection.svm import Vectors

pytestmark = pytest.mark.usefixtures("coded_here")

IMAGES = 20  # 14 for training, 2 for validation, 4 for the test
WIDTH, HEIGHT = 64, 48
GREEN_STEP = 100  # the background has 0
TINY = (
    *("--data", "coded", "--data-dir", ".", "--image-side", "64", "--backbone", "resnet20", "--stride", "4"),
    *("--width-multiplier", "0.25", "--bins", "2", "--hidden-units", "8", "--dropout", "0", "--crop-side", "16"),
    *("--regions-per-update", "16", "--foreground-fraction", "0.5", "--brightness", "0", "--contrast", "0"),
    *("--learning-rate", "0.01", "--warmup-updates", "4", "--updates", "14", "--validate-every-updates", "7"),
)


def objects_of(index: int) -> list[tuple[int, list[int]]]:
    """Classes and boxes of an image: one of class 0 on the left, one of class 1 on the right, or both."""
    left = 0, [4 + index % 5, 8 + index % 7, 22 + index % 5, 24 + index % 7]
    right = 1, [36 + index % 6, 20 + index % 5, 56 + index % 6, 38 + index % 5]
    return [[left], [right], [left, right]][index % 3]


def proposals_of(index: int) -> Tensor:
    """Proposals of an image: three that overlap each object, then two of the background, which depend on the index."""
    shifts = torch.tensor([[1, -1, 2, 1], [-2, 0, 1, 1], [0, 1, -1, 2]])
    near = [torch.tensor(box) + shift for _, box in objects_of(index) for shift in shifts]
    far = [torch.tensor([index, 0, index + 12, 6]), torch.tensor([index, 44, index + 9, 48])]
    return torch.stack(near + far).float()


def shown(image_CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and classes (n,) of the objects that an image shows."""
    boxes, labels = [], []
    for label in (0, 1):
        rows, columns = torch.nonzero((image_CHW[1] / GREEN_STEP).round() == label + 1, as_tuple=True)
        if len(rows):
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            labels.append(label)
    return torch.tensor(boxes).float(), torch.tensor(labels)


class Batch(NamedTuple):
    """Input and targets of one update."""

    images: Tensor  # (B, 3, H, W) from 0 to 255
    boxes: Tensor
    image: Tensor
    label: Tensor
    codes: Tensor  # outputs for the foreground regions that the box loss uses
    targets: Tensor  # of these

    @property
    def indices(self) -> list[int]:
        """Indices of the images."""
        return indices_of(self.images)


class Detection(NamedTuple):
    """Call of the detector in an evaluation."""

    phase: str
    updates: int
    image: int
    proposals: Tensor
    weights: dict[str, Tensor]


class DetectRecording(Recording):
    """Recording of vision.detect, with scripted proposals and detections: the objects that the image shows."""

    phases = ("validate", "test")

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        self.batches: list[Batch] = []
        self.detections: list[Detection] = []
        self.vectors: list[tuple[int, Tensor]] = []  # images and regions whose vectors are computed for the SVMs
        self.fitted: list[Vectors] = []
        super().__init__(detect, RegionNet, words, **options)

    def network_of(self, training: Any) -> nn.Module:
        network: nn.Module = training.detector
        return network

    def patch(self, patch: pytest.MonkeyPatch, program: ModuleType, network: type[nn.Module]) -> None:
        super().patch(patch, program, network)
        patch.setattr(detect, "sheet", lambda *_args, **_options: np.zeros((2, 2, 3), np.uint8))
        patch.setattr(detect, "find_all", self._find_all)
        patch.setattr(detect, "fit", self._fit)
        patch.setattr(F, "smooth_l1_loss", self._smooth_l1_loss(F.smooth_l1_loss))
        patch.setattr(Detector, "detect", self._detect)
        patch.setattr(Detector, "vectors_of_crops", self._vectors_of_crops)

    @staticmethod
    def _find_all(boxes: BoxSet, *_args: Any, **_options: Any) -> list[Proposals]:
        return [Proposals(proposals_of(index), 0.0) for index in indices_of(boxes.images.float())]

    def _detect(self, canvas_CHW: Tensor, proposals_P4: Tensor, _compute: Any) -> Detections:
        detector = self.training.detector
        (index,) = indices_of(canvas_CHW[None].float())
        updates = len(self.updates)
        self.detections.append(Detection(self.phase, updates, index, proposals_P4, copy_of(detector)))
        boxes_n4, label_n = shown(canvas_CHW.float())
        return Detections(boxes_n4, torch.full((len(label_n),), 0.9), label_n)

    def _vectors_of_crops(self, canvas_CHW: Tensor, regions_R4: Tensor, _compute: Any) -> Tensor:
        (index,) = indices_of(canvas_CHW[None].float())
        self.vectors.append((index, regions_R4))
        return torch.full((len(regions_R4), 8), float(index))

    def _fit(self, _config: Any, _svm: Any, vectors: Vectors, _classes: Any) -> dict[str, int]:
        self.fitted.append(vectors)
        return {}

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(network: RegionNet, x_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor) -> tuple[Tensor, Tensor]:
            self._input = self.pixels(x_BCHW), boxes_R4, image_R
            self._logits, self._codes = original(network, x_BCHW, boxes_R4, image_R)
            return self._logits, self._codes

        return forward

    def _cross_entropy(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def cross_entropy(logits_RK: Tensor, label_R: Tensor) -> Tensor:
            assert logits_RK is self._logits, "the loss must be of the output for the last images"
            self._label = label_R
            return original(logits_RK, label_R)

        return cross_entropy

    def _smooth_l1_loss(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def smooth_l1_loss(codes: Tensor, target: Tensor, *, reduction: str) -> Tensor:
            foreground = torch.nonzero(self._label).flatten()
            assert torch.equal(codes, self._codes[foreground, self._label[foreground] - 1]), "codes of the true classes"
            self.batches.append(Batch(*self._input, self._label, codes, target))
            return original(codes, target, reduction=reduction)

        return smooth_l1_loss


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data set in the layout of PASCAL VOC, whose coordinates begin at 1."""
    folder = tmp_path_factory.mktemp("data") / "coded"
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for index in range(IMAGES):
        pixels = picture(index, (HEIGHT, WIDTH))
        pixels[..., 1] = 0
        rows = ""
        for label, (x1, y1, x2, y2) in objects_of(index):
            pixels[y1:y2, x1:x2, 1] = GREEN_STEP * (label + 1)
            values = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
            box = "".join(f"<{name}>{value}</{name}>" for name, value in values)
            rows += f"<object><name>{'ab'[label]}</name><bndbox>{box}</bndbox></object>"
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{index:02}.png")
        (folder / "Annotations" / f"{index:02}.xml").write_text(f"<annotation>{rows}</annotation>")
    return folder


@pytest.fixture(scope="module")
def recording(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectRecording:
    """Recording of a run of Fast R-CNN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        Path("coded").symlink_to(coded)
        return DetectRecording([*TINY, "--name", "run"])


def check_regions(batch: Batch) -> list[bool]:
    """Compare regions, labels and box targets with the objects that the images show. Returns which are flipped."""
    foreground, flips = 0, []
    for row, (image, index) in enumerate(zip(batch.images, batch.indices, strict=True)):
        truth_n4, true_label_n = shown(image)
        candidates = torch.cat([torch.tensor([box for _, box in objects_of(index)]).float(), proposals_of(index)])
        flips.append(is_flipped(image))
        if flips[-1]:
            candidates = flip(candidates, WIDTH)
        of_image = batch.image == row
        assert len(of_image) > 0
        regions, labels = batch.boxes[of_image], batch.label[of_image]
        for region, label in zip(regions, labels.tolist(), strict=True):
            assert bool((region == candidates).all(1).any()), "regions are candidates of their image"
            overlap_n = iou(region[None], truth_n4)[0]
            best = int(overlap_n.argmax())
            assert label == (int(true_label_n[best]) + 1 if overlap_n[best] >= 0.5 else 0)
            if label:
                expected = encode(region[None], truth_n4[best][None])[0]
                torch.testing.assert_close(batch.targets[foreground], expected)
                foreground += 1
        assert 0 < int((labels > 0).sum()) <= 4
        assert int((labels == 0).sum()) == 2
    assert len(batch.targets) == len(batch.codes) == foreground
    return flips


def test_regions_labels_and_box_targets_belong_to_their_image(recording: DetectRecording) -> None:
    assert len(recording.batches) == len(recording.updates) == 14
    flips = [flip for batch in recording.batches for flip in check_regions(batch)]
    assert 4 < sum(flips) < 24
    epochs = [[i for batch in recording.batches[e : e + 7] for i in batch.indices] for e in (0, 7)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 14
    assert epochs[0] != epochs[1]
    assert not set(epochs[0]) & {each.image for each in recording.detections}, "trained on evaluated images"


def test_each_update_has_the_learning_rate_of_the_schedule(recording: DetectRecording) -> None:
    rates = [update.rates[0] for update in recording.updates]
    expected = [0.01 * n / 4 for n in range(1, 5)]
    expected += [0.005 * (1 + math.cos(math.pi * n / 10)) for n in range(1, 11)]
    assert rates == pytest.approx(expected)


def test_the_newest_weights_are_evaluated_and_the_test_set_at_the_end(recording: DetectRecording) -> None:
    calls = [(each.phase, each.updates) for each in recording.detections]
    assert calls == [("validate", 7)] * 2 + [("validate", 14)] * 2 + [("test", 14)] * 4
    for each in recording.detections:
        assert torch.equal(each.proposals, proposals_of(each.image))
        expected = recording.updates[each.updates - 1].weights
        assert all(torch.equal(weight, expected[name]) for name, weight in each.weights.items())
    validated, again, tested = (
        [each.image for each in recording.detections if (each.phase, each.updates) == key]
        for key in (("validate", 7), ("validate", 14), ("test", 14))
    )
    assert validated == again
    assert len(set(tested)) == 4
    assert not set(tested) & set(validated)


def test_detections_are_compared_with_the_boxes_of_their_image() -> None:
    DetectRecording([*TINY, "--updates", "2", "--name", "run"])
    results = json.loads(Path("runs/run/result.json").read_text())["figures"]
    assert results["validation_map_50"] == results["test_map_50_95"] == pytest.approx(1)


def test_crops_of_rcnn_show_the_class_of_their_label() -> None:
    recording = DetectRecording([*TINY, "--method", "rcnn", "--updates", "6", "--name", "run"])
    assert len(recording.batches) == 6
    trained = set()
    for batch in recording.batches:
        assert torch.equal(batch.image, torch.arange(16))
        assert int((batch.label > 0).sum()) == 8
        center_R = (batch.images[:, 1, 8, 8] / GREEN_STEP).round().long()
        assert torch.equal(center_R, batch.label)
        trained |= {round(float(red) / 4) for red in batch.images[:, 0, 8, 8]}
    evaluated = {each.image for each in recording.detections}
    assert len(trained) > 10
    assert not trained & evaluated
    (vectors,) = recording.fitted
    assert len(recording.vectors) == 14
    assert not {index for index, _ in recording.vectors} & evaluated
    for position, (index, regions_R4) in enumerate(recording.vectors):
        true = objects_of(index)
        rows = vectors.image == position
        assert (vectors.vector[rows] == index).all()
        assert vectors.true_label[rows].tolist() == [label for label, _ in true] + [-1] * len(proposals_of(index))
        expected = torch.cat([torch.tensor([box for _, box in true]).float(), proposals_of(index)])
        assert torch.equal(regions_R4, expected)


def test_processes_train_on_different_images() -> None:
    words = [*TINY, "--updates", "7", "--no-test", "--name", "run"]
    halves = [DetectRecording(words, world=Shard(rank, 2)) for rank in (0, 1)]
    for one, other in zip(*(half.batches for half in halves), strict=True):
        assert len(one.indices) == len(other.indices) == 1
        check_regions(one)
        check_regions(other)
    assert len({index for half in halves for batch in half.batches for index in batch.indices}) == 14
