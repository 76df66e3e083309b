"""Tests of what connects the parts of vision.caption: which images, captions and weights are used when.

The real program trains on images that encode their index (tests/vision/coded_images.py), with captions that name it.
The parts themselves have tests of their own.
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
from PIL import Image
from torch import Tensor, nn

from tests.programs import metrics
from tests.recorded import Shard, copy_of
from tests.vision.coded_images import Evaluation, Recording, indices_of, picture
from zerokara.core.augment import Augment
from zerokara.core.models.classifier import ClassifierMetadata, make_classifier
from zerokara.vision import caption
from zerokara.vision.captioning import learner
from zerokara.vision.captioning.network import Captioner
from zerokara.vision.captioning.vocabulary import START

pytestmark = pytest.mark.usefixtures("coded_here")

IMAGES = 32
TINY = (
    *("--data", "coded", "--image-size", "16", "--backbone", "resnet20", "--width-multiplier", "0.25"),
    *("--stem", "paper", "--validation-images", "5", "--test-images", "7", "--batch-size", "6", "--epochs", "3"),
    *("--min-word-count", "1", "--embedding-dim", "12", "--hidden-units", "12", "--dropout", "0", "--beam-size", "1"),
    *("--max-length", "8", "--learning-rate", "0.01", "--backbone-learning-rate", "0.002"),
)


def captions_of(index: int) -> list[str]:
    """Captions of an image: one, two or three, with different lengths."""
    return [f"word{index} is in caption {'very ' * k}number {k}" for k in range(1 + index % 3)]


class Sentence(NamedTuple):
    """A caption that the loss compares with the output for an image."""

    image: int
    caption: str


Said = Callable[[str, int, int, int], str]


class CaptionRecording(Recording):
    """Recording of vision.caption: `sentences` has the image and the caption of each row of each update.

    Args:
        said: returns the caption that the captioner generates, for the function of the program that evaluates, the
            position of the image in its data set, its index, and the number of updates after which the network had its
            weights; None: the captioner generates it.
    """

    def __init__(
        self, words: Sequence[str], said: Callable[[str, int, int, int], str] | None = None, **options: Any
    ) -> None:
        self.sentences: list[list[Sentence]] = []
        self.evaluated_sentences: list[Sentence] = []
        self.said = said
        super().__init__(caption, Captioner, words, **options)

    def patch(self, patch: pytest.MonkeyPatch, program: ModuleType, network: type[nn.Module]) -> None:
        super().patch(patch, program, network)
        # Changes of brightness would change the code of an image.
        patch.setattr(learner, "AUGMENT", Augment(shift=0.06, flip=True))
        patch.setattr(caption, "draw", lambda _entries: None)
        patch.setattr(caption, "figure_pixels", lambda _figure: np.zeros((2, 2, 3), np.uint8))
        patch.setattr(Captioner, "features", self._features(Captioner.features))
        if self.said is not None:
            patch.setattr(learner, "generate_captions", self._generate)

    def _features(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def features(network: Captioner, x_BCHW: Tensor) -> Tensor:
            features_BF = original(network, x_BCHW)
            images = self.pixels(x_BCHW)
            rows = features_BF.detach().numpy()
            assert len(np.unique(rows, axis=0)) == len(rows), "images of a batch must have different features"
            self._index_of = getattr(self, "_index_of", {}) | {
                row.tobytes(): index for row, index in zip(rows, indices_of(images), strict=True)
            }
            if self.phase:
                weights = copy_of(network)
                self.evaluations.append(Evaluation(self.phase, len(self.updates), images, weights))
            return features_BF

        return features

    def indices(self, features_PF: Tensor) -> list[int]:
        """Indices of the images that have these features."""
        return [self._index_of[row.tobytes()] for row in features_PF.detach().numpy()]

    def _generate(self, captioner: Captioner, features_NF: Tensor) -> list[str]:
        assert self.said is not None
        updates = self.updates_with(copy_of(captioner))
        return [self.said(self.phase, *row, updates) for row in enumerate(self.indices(features_NF))]

    def _forward(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(network: Captioner, features_PF: Tensor, tokens_PT: Tensor) -> Tensor:
            self._rows, self._tokens = self.indices(features_PF), tokens_PT
            out: Tensor = original(network, features_PF, tokens_PT)
            self._out = out
            return out

        return forward

    def _cross_entropy(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int) -> Tensor:
            assert logits.data_ptr() == self._out.data_ptr(), "the loss must be of the output for the last images"
            target_PT = target.view(len(self._rows), -1)
            assert bool((self._tokens[:, 0] == START).all())
            assert torch.equal(self._tokens[:, 1:], target_PT[:, :-1])
            decode = self.training.network.vocabulary.decode
            sentences = [Sentence(*row) for row in zip(self._rows, map(decode, target_PT.tolist()), strict=True)]
            if self.phase:
                self.evaluated_sentences += sentences
            else:
                self.sentences.append(sentences)
            return original(logits, target, ignore_index=ignore_index)

        return cross_entropy


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data set."""
    folder = tmp_path_factory.mktemp("data") / "coded"
    folder.mkdir()
    lines = ["image,caption"]
    for index in range(IMAGES):
        Image.fromarray(picture(index, (16, 16))).save(folder / f"{index:02}.png")
        lines += [f"{index:02}.png,{text}" for text in captions_of(index)]
    (folder / "captions.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def recording(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> CaptionRecording:
    """Recording of a run that trains its backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        Path("coded").symlink_to(coded)
        return CaptionRecording([*TINY, "--select", "loss", "--name", "run"])


def check_epochs(recording: CaptionRecording) -> None:
    """Check that each epoch of 20 images has three batches of six images with all of their captions."""
    epochs = [recording.sentences[first : first + 3] for first in (0, 3, 6)]
    for epoch in epochs:
        rows = [row for batch in epoch for row in batch]
        images = {row.image for row in rows}
        assert len(images) == 18
        assert [len({row.image for row in batch}) for batch in epoch] == [6, 6, 6]
        assert sorted(rows) == sorted(Sentence(image, text) for image in images for text in captions_of(image))
    assert len({tuple(row for batch in epoch for row in batch) for epoch in epochs}) == 3, "a new order"
    trained = {row.image for batch in recording.sentences for row in batch}
    evaluated = {index for each in recording.evaluations for index in each.indices if each.phase == "validate"}
    assert not trained & evaluated


def test_each_training_image_meets_its_captions_once_an_epoch(recording: CaptionRecording) -> None:
    assert len(recording.sentences) == len(recording.updates) == 9
    check_epochs(recording)


def test_decoder_and_backbone_have_the_learning_rates_of_the_schedule(recording: CaptionRecording) -> None:
    factors = [n / 3 for n in (1, 2, 3)] + [(1 + math.cos(math.pi * n / 6)) / 2 for n in range(1, 7)]
    backbone = {id(parameter) for parameter in recording.training.network.backbone.parameters()}
    groups = recording.training.optimizer.param_groups
    in_backbone = [{id(parameter) in backbone for parameter in group["params"]} for group in groups]
    assert sorted(map(tuple, in_backbone)) == [(False,), (False,), (True,), (True,)]
    for update, factor in zip(recording.updates, factors, strict=True):
        for rate, (is_backbone,) in zip(update.rates, in_backbone, strict=True):
            assert rate == pytest.approx(factor * (0.002 if is_backbone else 0.01), abs=1e-9)


def test_the_validation_loss_compares_validation_images_with_their_captions(recording: CaptionRecording) -> None:
    held_out = {row.image for row in recording.evaluated_sentences}
    expected = [Sentence(image, text) for image in held_out for text in captions_of(image)]
    unknown = {word for image in held_out for word in captions_of(image)[0].split() if word.startswith("word")}
    assert len(unknown) == 5
    # Names of validation images are no words of the vocabulary, which is that of the training captions.
    known = sorted(Sentence(image, text.removeprefix(f"word{image} ")) for image, text in expected)
    assert sorted(recording.evaluated_sentences) == sorted(known * 3)


def test_a_frozen_backbone_gives_each_image_its_own_features() -> None:
    classifier = make_classifier("resnet20", 3, 16, 4, head="pooled", width=0.25)
    metadata = ClassifierMetadata(
        backbone="resnet20", head="pooled", classes=("a", "b", "c", "d"), channels=3, image_size=(16, 16),
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), options={"width": 0.25},
    )  # fmt: skip
    metadata.save(Path("backbone.safetensors"), classifier.state_dict())
    words = [word for word in TINY if word not in ("--backbone-learning-rate", "0.002")]
    recording = CaptionRecording([*words, "--pretrained-backbone", "backbone.safetensors", "--name", "run"])
    check_epochs(recording)
    last = recording.updates[-1].weights
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(last[f"backbone.{name}"], tensor), "weights and statistics of the backbone stay unchanged"
    assert not torch.equal(last["say.weight"], recording.first["say.weight"])


@pytest.mark.parametrize(("select", "epoch"), [("bleu", 2), ("last", 3)])
def test_the_weights_are_selected_by_the_validation_images(select: str, epoch: int) -> None:
    """The captioner says the right caption of a number of images after each epoch. For test images epoch 1 is best."""
    right = {"validate": (2, 5, 3), "finish": (7, 7, 0)}
    wrong = "nothing to be seen at all today"

    def said(phase: str, position: int, index: int, updates: int) -> str:
        return captions_of(index)[0] if position < right[phase][updates // 3 - 1] else wrong

    CaptionRecording([*TINY, "--select", select, "--name", "run"], said)
    result = json.loads(Path("runs/run/result.json").read_text())
    assert result["protocol"]["epoch"] == epoch
    known = right["finish"][epoch - 1]
    names = [int(name.removesuffix(".png")) for name in result["test"]]
    assert result["said"] == [captions_of(index)[0] for index in names[:known]] + [wrong] * (7 - known)
    assert result["figures"]["nic"]["bleu4"] == pytest.approx(100 if known == 7 else 0)
    scores = [row["val/bleu4"] for row in metrics(Path("runs/run")) if "val/bleu4" in row]
    assert scores[1] == pytest.approx(100)
    assert scores[1] > scores[2] > scores[0] > 0


def test_processes_train_on_disjoint_halves() -> None:
    words = [*TINY, "--epochs", "1", "--name", "run"]
    halves = [CaptionRecording(words, world=Shard(rank, 2)) for rank in (0, 1)]
    rows = [[{row.image for row in batch} for batch in half.sentences] for half in halves]
    assert [[len(batch) for batch in half] for half in rows] == [[3, 3, 3]] * 2
    assert len(set().union(*rows[0], *rows[1])) == 18
