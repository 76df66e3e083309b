"""Tests that two processes compute what one does with all images: gradients to 1e-6, and evaluations.

BatchNorm layers normalize by fixed statistics, since in training each process has those of its own images.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import run_processes

pytestmark = pytest.mark.usefixtures("blank_figures")

COMMON = """
import sys, torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from zerokara.core.compute import Compute
from zerokara.core.data.boxes import BoxSet
from zerokara.core.data.captions import CaptionSet
from zerokara.core.data.masks import UNLABELED, MaskSet
from zerokara.core.data.types import ImageSet
from zerokara.core.distributed import World
from zerokara.core.augment import Augment

_BatchNorm.train = lambda self, mode=True: nn.Module.train(self, False)
world, random = World.from_env("cpu"), torch.Generator().manual_seed(9)
N, CLASSES = int(sys.argv[2]), ("a", "b", "c")
pixels = torch.randint(256, (N, 3, 64, 64), dtype=torch.uint8, generator=random)
moments = torch.full((3,), 0.5), torch.full((3,), 0.25)

def classify(world):
    from zerokara.vision.classification.config import NO_AUGMENTATION, Config
    from zerokara.vision.classification.learner import Data, Training
    images = ImageSet(pixels[..., :32, :32], torch.arange(N) % 3, CLASSES, "noise")
    config = Config(**NO_AUGMENTATION, backbone="resnet20", width_multiplier=0.25, batch_size=8, accumulation_steps=2)
    return Training(config, Data(images, images, *moments), Compute(), world)

class Compiled(torch.autograd.Function):
    '''A loss as compiled code returns it: it depends on all parameters, and some of them get no gradient.'''
    @staticmethod
    def forward(ctx, loss, *parameters):
        return loss.clone()
    @staticmethod
    def backward(ctx, gradient):
        return gradient, *(None for _ in ctx.needs_input_grad[1:])

def airbench(world):
    from zerokara.vision.classification.config import PRESETS, Config
    from zerokara.vision.classification.learner import Data, Training
    images = ImageSet(pixels[..., :32, :32], torch.arange(N) % 3, CLASSES, "noise")
    settings = {**PRESETS["airbench"], "width_multiplier": 0.25, "batch_size": 8, "whitening_bias_epochs": 1}
    training = Training(Config(**settings | {"crop_pixels": 0}), Data(images, images, *moments), Compute(), world)
    training.updates = training.updates_per_epoch  # the first bias is no longer trained
    loss, parameters = training._loss, list(training.network.parameters())
    def compiled(*args):
        value, accuracy = loss(*args)
        return Compiled.apply(value, *parameters), accuracy
    training._loss = compiled
    return training

def segment(world):
    from zerokara.vision.segmentation.config import Config
    from zerokara.vision.segmentation.learner import Data, Training
    masks = torch.randint(3, (N, 64, 64), generator=random.manual_seed(8)).to(torch.uint8)
    for index in range(N):
        masks[index, : 7 * (index % 8)] = UNLABELED
        masks[index, :, : 5 * (index % 5)] = 1
    images = MaskSet(pixels, masks, CLASSES, tuple(map(str, range(N))), "noise")
    plain = dict(scale_low=1.0, scale_high=1.0, flip=False, brightness=0.0, contrast=0.0, color_jitter=0.0)
    config = Config(**plain, width_multiplier=0.125, decoder_channels=8, dropout=0.0, balance=1.0, batch_size=8)
    return Training(config, Data(images, images, *moments), Compute(), world)

def caption(world):
    from zerokara.vision.captioning import learner
    from zerokara.vision.captioning.config import Config
    from zerokara.vision.captioning.inputs import Data
    learner.AUGMENT = Augment()
    captions = tuple(tuple(f"word{k} " * (1 + index % 5) for k in range(1 + index % 3)) for index in range(N))
    images = CaptionSet(pixels, tuple(map(str, range(N))), captions, "noise")
    small = dict(embedding_dim=12, hidden_units=12, dropout=0.0, min_word_count=1, max_length=8)
    config = Config(**small, backbone="resnet20", width_multiplier=0.25, batch_size=8, image_size=64)
    return learner.Training(config, Data(images, images, images), Compute(), world)

def detect(world):
    from zerokara.vision.detection import batches
    from zerokara.vision.detection.config import Config
    from zerokara.vision.detection.learner import Training, make_metadata
    from zerokara.vision.detection.proposals import Proposals
    batches.sample = lambda indices, number, generator: indices[:number]
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    boxes = BoxSet(
        pixels, torch.full((N, 2), 64), torch.ones(N).double(), (box,) * N, (torch.tensor([1]),) * N,
        tuple(map(str, range(N))), CLASSES, "noise",
    )
    proposals = []
    for index in range(N):
        corner = torch.rand(2 + 3 * index, 2, generator=random.manual_seed(index)) * 24
        proposals.append(Proposals(torch.cat([corner, corner + 30], 1), 0.0))
    config = Config(
        backbone="resnet20", width_multiplier=0.25, stride=4, bins=2, hidden_units=8, dropout=0.0, flip="none",
        brightness=0.0, contrast=0.0, images_per_update=4, regions_per_update=80, image_side=64,
    )
    training = Training(config, make_metadata(config, boxes, None), boxes, proposals, Compute(), world)
    training.proposals = proposals
    return training

def binary(world):
    from zerokara.vision.binarization.config import Config
    from zerokara.vision.binary import Data, Training
    images = ImageSet(pixels[..., :16, :16], torch.arange(N) % 3, CLASSES, "noise")
    plain = dict(rotation_degrees=0.0, shift=0.0, scale=0.0, shear_degrees=0.0)
    config = Config(**plain, hidden_units=16, num_hidden_layers=1, batch_size=8)
    return Training(config, Data(images, images, *moments), Compute(), world)

def make(world):
    return globals()[sys.argv[1]](world)
"""

GRADIENTS = """
def gradients(world):
    training = make(world)
    training.network.train()
    training.optimizer.step = lambda: None
    training.update(*([] if sys.argv[1] == "detect" else [training.next_batch()]))
    metrics = {name: float(value) for name, value in training.read_metrics().items()}
    return {name: p.grad for name, p in training.network.named_parameters() if p.grad is not None}, metrics

(ours, our_metrics), (theirs, their_metrics) = gradients(world), gradients(World())
assert ours.keys() == theirs.keys() and ours
largest = max(float(gradient.abs().max()) for gradient in theirs.values())
for name, gradient in theirs.items():
    assert (ours[name] - gradient).abs().max() <= 1e-6 * max(1, largest), (name, ours[name], gradient)
for name, value in their_metrics.items():
    assert abs(our_metrics[name] - value) <= 1e-5 * max(1, abs(value)), (name, our_metrics[name], value)
"""

EVALUATION = """
from zerokara.core.run import Run
from zerokara.vision.classification.config import Config

def evaluate(training, run):
    images = None if sys.argv[1] == "detect" else training.data.validation
    if sys.argv[1] == "classify":
        scores = training.score_in_processes(run, images, views=2)
        return [scores.probability_NK], [scores.error]
    if sys.argv[1] == "segment":
        scores = training.score_in_processes(run, images, [0, 4, 6])
        return [scores.prediction_NHW, scores.confusion_KK, scores.iou_K], [scores.loss, scores.accuracy]
    if sys.argv[1] == "caption":
        captions, features = training.generate_in_processes(run, images)
        assert len(captions) == len(images)
        loss = training.validation_loss(run, features, images)
        return [features, training.features_in_processes(run, images.images)], [captions, loss]
    if sys.argv[1] == "detect":
        scored = training.score_in_processes(run, training.train, training.proposals)
        assert len(scored.found) == N
        return [torch.cat([each.boxes for each in scored.found])], [scored.precision.map_50]
    return [training.logits_in_processes(run, images)], [training.score_in_processes(run, images).error]

with Run(Config(name="r"), kind="k", name="r", resume=False, quiet=True, world=world) as run:
    training, twin = make(world), make(World())
    for layer in training.network.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean += world.rank  # the statistics of the main process count
    ours, theirs = evaluate(training, run), evaluate(twin, run)
    for one, other in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert one == other or abs(one - other) <= 1e-6 * abs(other), (one, other)
"""


@pytest.mark.parametrize("kind", ["classify", "airbench", "segment", "caption", "detect", "binary"])
def test_the_gradient_of_two_processes_is_that_of_all_images(tmp_path: Path, kind: str) -> None:
    """The images have different numbers of labeled pixels, tokens and regions."""
    assert run_processes(tmp_path, 2, "-c", COMMON + GRADIENTS, kind, "12") == ("", "")


@pytest.mark.parametrize("kind", ["classify", "binary", "caption"])
def test_an_epoch_smaller_than_a_batch_is_divided_unevenly(tmp_path: Path, kind: str) -> None:
    assert run_processes(tmp_path, 2, "-c", COMMON + GRADIENTS, kind, "7") == ("", "")


@pytest.mark.parametrize("kind", ["classify", "segment", "caption", "detect", "binary"])
def test_two_processes_get_the_results_of_one(tmp_path: Path, kind: str) -> None:
    assert run_processes(tmp_path, 2, "-c", COMMON + EVALUATION, kind, "7") == ("", "")
