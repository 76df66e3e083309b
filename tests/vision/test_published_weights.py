"""Tests of published weights in training programs: inputs are normalized as the weights expect, also after resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.data.captions import CaptionSet
from zerokara.core.data.masks import MaskSet
from zerokara.core.data.moments import channel_moments
from zerokara.core.media import write_png
from zerokara.core.models.classifier import ClassifierMetadata, make_classifier
from zerokara.core.models.normalization import published_moments
from zerokara.vision import classify
from zerokara.vision.captioning.config import Config as CaptionConfig
from zerokara.vision.captioning.inputs import BackboneSource, load_weights
from zerokara.vision.classification import config as classification
from zerokara.vision.classification import learner as classifier_learner
from zerokara.vision.detection.config import Config as DetectConfig
from zerokara.vision.detection.config import resolve_backbone
from zerokara.vision.detection.learner import make_metadata as make_detector_metadata
from zerokara.vision.segmentation import config as segmentation
from zerokara.vision.segmentation import learner as segmenter_learner

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = (
    *("--data", "colors", "--epochs", "2", "--batch-size", "8", "--validation-images", "4", "--quiet"),
    *("--backbone", "resnet18", "--stem", "small", "--width-multiplier", "0.1", "--head", "pooled"),
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write images of two classes in color, and weights as torchvision publishes them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classify, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
    random = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 120)):
        Path("colors", name).mkdir(parents=True)
        for index in range(20):
            write_png(Path("colors", name, f"{index:02}.png"), random.integers(low, low + 100, (16, 16, 3), np.uint8))
    network = make_classifier("resnet18", 3, 16, 2, head="pooled", width=0.1, stem="small")
    torch.save({network.published_name(name): x for name, x in network.state_dict().items()}, "resnet18.pth")


def moments(run: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    metadata = ClassifierMetadata.read_metadata(Path("runs") / run)
    assert metadata is not None
    return metadata.mean, metadata.std


def saved_config(run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("runs", run, "config.json").read_text())["config"]
    return content


@pytest.mark.parametrize("option", ["--weights", "--pretrained-backbone"])
def test_a_classifier_keeps_the_normalization_of_published_weights(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in TINY if word != "--quiet"]
    classify.main([*words, option, "resnet18.pth", "--name", "run", "--no-test"])
    expected = published_moments("resnet18")
    assert moments("run") == expected
    assert saved_config("run")["published_normalization"] is True
    assert "normalized by mean 0.485, 0.456, 0.406" in " ".join(capsys.readouterr().out.split())
    Path("resnet18.pth").unlink()  # a run needs nothing outside of its folder
    Path("runs/run/model.safetensors").unlink()
    classify.main(["--name", "run", "--resume", "--quiet"])
    assert moments("run") == expected


def test_the_normalization_of_published_weights_can_be_turned_off() -> None:
    classify.main([*TINY, "--weights", "resnet18.pth", "--no-published-normalization", "--name", "run", "--no-test"])
    assert moments("run")[0] != published_moments("resnet18")[0]
    assert saved_config("run")["published_normalization"] is False


def test_a_run_of_an_older_release_keeps_the_moments_of_its_images() -> None:
    off = ("--no-published-normalization", "--no-test")
    classify.main([*TINY, "--weights", "resnet18.pth", "--name", "run", *off])
    before = moments("run")
    path = Path("runs/run/config.json")
    content = json.loads(path.read_text())
    del content["config"]["published_normalization"]
    path.write_text(json.dumps(content))
    Path("runs/run/model.safetensors").unlink()
    classify.main(["--name", "run", "--resume", "--quiet"])
    assert moments("run") == before


def color_images() -> torch.Tensor:
    return torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("chosen", "weights"), [(True, ""), (False, "x.pth"), (None, "x.pth"), (None, "")])
def test_every_program_normalizes_as_its_config_says(chosen: bool | None, weights: str) -> None:
    """Without a choice, as in runs of older releases, only --weights of segment and caption has its own moments."""
    images, published = color_images(), published_moments("googlenet")
    own = tuple(tuple(x.tolist()) for x in channel_moments(images))
    options: dict[str, Any] = {"backbone": "googlenet", "published_normalization": chosen}
    train = ImageSet(images, torch.arange(6) % 2, ("a", "b"), "noise")
    classifier = classifier_learner.make_metadata(
        classification.Config(**options, weights=weights),
        classifier_learner.Data(train, train, *channel_moments(images)),
    )
    assert (classifier.mean, classifier.std) == (published if chosen else own)
    legacy = chosen or (chosen is None and bool(weights))
    masks = MaskSet(images, torch.arange(6).view(6, 1, 1).expand(6, 32, 32).byte() % 2, ("a", "b"), ("x",) * 6, "noise")
    segmenter = segmenter_learner.make_metadata(
        segmentation.Config(**options, weights=weights),
        segmenter_learner.Data(masks, masks, *channel_moments(images)),
    )
    assert (segmenter.mean, segmenter.std) == (published if legacy else own)
    captions = CaptionSet(images, ("x",) * 6, (("a",),) * 6, "noise")
    source = BackboneSource.from_config(CaptionConfig(**options, weights=weights), captions)
    assert (source.mean, source.std) == (published if legacy else own)


def test_published_weights_in_safetensors_are_a_backbone_of_a_captioner() -> None:
    """They have no metadata, which was an error."""
    backbone = make_backbone("resnet18", 3, 32, width=0.1)
    save_file({backbone.published_name(name): x for name, x in backbone.state_dict().items()}, "r.safetensors")
    captions = CaptionSet(color_images(), ("x",) * 6, (("a",),) * 6, "noise")
    config = CaptionConfig(pretrained_backbone="r.safetensors", width_multiplier=0.1, published_normalization=True)
    source = BackboneSource.from_config(config, captions)
    assert (source.mean, source.std) == published_moments("resnet18")
    report = load_weights(config, make_backbone("resnet18", 3, 32, width=0.1))
    assert report is not None
    assert not report.missing


def test_a_detector_takes_the_normalization_of_published_weights(tmp_path: Path) -> None:
    given = DetectConfig(data="x", backbone="resnet18", pretrained_backbone=str(tmp_path / "resnet18.pth"))
    config, pretrained = resolve_backbone(given)
    assert pretrained is None
    boxes: Any = type("Boxes", (), {"images": color_images(), "classes": ("a",), "source": "noise"})
    metadata = make_detector_metadata(config, boxes, pretrained)
    assert (metadata.mean, metadata.std) == published_moments("resnet18")
