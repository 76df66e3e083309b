"""Networks of one's own in the programs of vision: training, model file, weights of another program, other networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.vision.conftest import TINY_GLYPHS
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.vision import classify, predict
from zerokara.vision.captioning.network import Captioner, CaptionerMetadata
from zerokara.vision.detection.network import RegionNet
from zerokara.vision.segmentation.networks import make_segmenter, stage_strides

pytestmark = pytest.mark.usefixtures("blank_figures")

SOURCE = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 6, 2, 2)

    def forward(self, x):
        return self.second(self.first(x))

class Staged(MyNet):
    def stages(self, x):
        x = self.first(x)
        return [x, self.second(x)]

class Flat(MyNet):
    def forward(self, x):
        return super().forward(x).mean((2, 3))
"""
WORDS = [*TINY_GLYPHS, "--backbone", "my_net.py:MyNet", "--epochs", "2"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return my_net.py in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_net.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.usefixtures("few_glyphs")
def test_a_classifier_can_be_resumed_and_used_while_the_file_is_there(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--validation-images", "20"]
    classify.main(words)
    run = Path("runs/tiny")
    assert json.loads((run / "config.json").read_text())["config"]["backbone"] == "my_net.py:MyNet"
    classifier, metadata = ClassifierMetadata.load(run)
    assert metadata.backbone == "my_net.py:MyNet"
    assert classifier.state_dict()["backbone.module.first.1.num_batches_tracked"] > 0
    classify.main(["--name", "tiny", "--resume", "--quiet"])
    with pytest.raises(UserError, match=r"has no option --width-multiplier: it has no options"):
        classify.main([*words, "--name", "wide", "--width-multiplier", "2"])
    file.rename("other.py")
    with pytest.raises(UserError, match=r"There is no file my_net\.py"):
        predict.main([str(run), "picture.png"])
    with pytest.raises(UserError, match=r"There is no file my_net\.py"):
        classify.main(["--name", "tiny", "--resume", "--quiet"])


def test_weights_of_the_network_itself_and_of_a_classifier_are_loaded(file: Path) -> None:
    backbone, other = (make_backbone("my_net.py:MyNet", 1, 16) for _ in range(2))
    torch.save(backbone.module.state_dict(), "alone.pth")  # type: ignore[union-attr]
    report = load_pretrained_backbone(other, Path("alone.pth"))
    assert (report.missing, report.unexpected, report.wrong_shape) == ((), (), ())
    assert torch.equal(other.state_dict()["module.second.weight"], backbone.state_dict()["module.second.weight"])


def test_segmentation_chooses_maps_by_their_stride(file: Path) -> None:
    assert stage_strides("my_net.py:Staged", 3) == [4, 8]
    network = make_segmenter("fcn4s", backbone="my_net.py:Staged", channels=3, image_size=(32, 48), classes=5)
    assert network(torch.rand(2, 3, 32, 48)).shape == (2, 5, 32, 48)
    coarse = make_segmenter("fcn8s", backbone="my_net.py:MyNet", channels=3, image_size=(32, 48), classes=5)
    assert coarse(torch.rand(1, 3, 32, 48)).shape == (1, 5, 32, 48)
    with pytest.raises(UserError, match=r"no feature map of stride 4: .*, or a --network from fcn8s\.$"):
        make_segmenter("fcn4s", backbone="my_net.py:MyNet", channels=3, image_size=(32, 48), classes=5)
    with pytest.raises(UserError, match=r"no feature map of stride 8: choose another --backbone or --stem\.$"):
        make_segmenter("fcn8s", backbone="my_net.py:Flat", channels=3, image_size=(32, 48), classes=5)


def test_a_file_called_vgg_does_not_get_the_head_of_vgg(file: Path) -> None:
    file.rename("vgg_of_mine.py")
    network = make_segmenter("fcn8s", backbone="vgg_of_mine.py:MyNet", channels=3, image_size=(32, 32), classes=5)
    assert sum(p.numel() for p in network.parameters()) < 100_000, "fc6 and fc7 of VGG have more"


def test_detection_chooses_a_map_by_its_stride(file: Path) -> None:
    boxes, image = torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([0])
    for stride, found, channels in ((4, 4, 8), (8, 8, 6)):
        network = RegionNet("my_net.py:Staged", 2, stride=stride, bins=2, hidden_units=4)
        assert (network.stride, network.fc6.in_features) == (found, channels * 4)
        assert network(torch.rand(1, 3, 32, 32), boxes, image)[0].shape == (1, 3)


def test_a_captioner_takes_features(file: Path) -> None:
    metadata = CaptionerMetadata(
        backbone="my_net.py:Flat",
        words=("<pad>", "<start>", "<end>", "<unknown>", "red"),
        image_size=16,
        embedding=3,
        hidden=4,
        dropout=0.0,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    assert Captioner(metadata).features(torch.rand(2, 3, 16, 16)).shape == (2, 6)
