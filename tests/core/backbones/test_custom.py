"""Networks of one's own as backbones: the interface, what is left unchanged, and a sentence for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.registry import find_backbone, make_backbone, option_names
from zerokara.core.backbones.summary import summary
from zerokara.core.config import UserError
from zerokara.core.importing import load_callable, load_module
from zerokara.core.models.classifier import ClassifierMetadata, make_classifier

SOURCE = """
import torch
from torch import nn

class Flat(nn.Module):
    def __init__(self, channels, image_size, units=5, *, depth=1):
        super().__init__()
        self.linear = nn.Linear(channels * image_size[0] * image_size[1], units)
        self.got = (channels, image_size, units, depth)

    def forward(self, x):
        return self.linear(x.flatten(1))

def make(channels, image_size):
    return nn.Sequential(nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6), nn.Dropout(0.5))

class Staged(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(channels, 4, 2, 2), nn.Conv2d(4, 7, 2, 2)

    def stages(self, x):
        fine = self.fine(x)
        return [fine, self.coarse(fine)]

class NotMeta(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.scale = torch.linspace(0, 1, 3).tolist()[1]
        self.offset, self.conv = torch.zeros(1), nn.Conv2d(channels, 2, 3)

    def forward(self, x):
        return self.conv(x * self.scale + self.offset)

class Fails(Flat):
    def __init__(self, channels):
        super().__init__(channels, (4, 4))

class FailsInForward(Flat):
    def forward(self, x):
        return self.linear(x)

class ReturnsPair(Flat):
    def forward(self, x):
        return super().forward(x), x

class ReturnsIntegers(Flat):
    def forward(self, x):
        return super().forward(x).long()

class MixesImages(Flat):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)

class NoModule:
    def __init__(self, channels, image_size):
        pass

def makes_no_module(channels, image_size):
    return [channels]

def no_stages(channels, image_size):
    class Empty(nn.Module):
        def stages(self, x):
            return []
    return Empty()

net = Flat(1, (2, 2))
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write my_net.py into the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(SOURCE)


def test_a_network_is_loaded_and_created_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constructor may be expensive, and allocates memory also in a pass that measures the size of a network."""
    (tmp_path / "counted.py").write_text(
        SOURCE
        + """
created = []

class Counted(Flat):
    def __init__(self, channels, image_size):
        super().__init__(channels, image_size)
        created.append(self)
"""
    )
    loaded = []

    def record(path: str, option: str) -> Any:
        loaded.append(path)
        return load_callable(path, option)

    monkeypatch.setattr("zerokara.core.backbones.registry.load_callable", record)
    classifier = make_classifier("counted.py:Counted", 1, 4, 2)
    created = load_module("counted.py", "counted.py:Counted").created
    assert (len(loaded), len(created)) == (1, 1)
    metadata = ClassifierMetadata(
        backbone="counted.py:Counted",
        head="paper",
        classes=("a", "b"),
        channels=1,
        image_size=(4, 4),
        mean=(0.5,),
        std=(0.25,),
    )
    metadata.save(tmp_path / "model.safetensors", classifier.state_dict())
    again, _ = ClassifierMetadata.load(tmp_path / "model.safetensors")
    assert (len(loaded), len(created)) == (2, 2)
    assert torch.equal(again(torch.ones(1, 1, 4, 4)), classifier.eval()(torch.ones(1, 1, 4, 4)))


def test_features_become_a_map_of_one_pixel() -> None:
    backbone = make_backbone("my_net.py:Flat", 3, (4, 6))
    assert backbone.module.got == (3, (4, 6), 5, 1)  # type: ignore[union-attr]
    assert (backbone.name, backbone.out_channels, backbone.out_size, backbone.features) == (
        "my_net.py:Flat",
        5,
        (1, 1),
        5,
    )
    x = torch.rand(2, 3, 4, 6)
    assert torch.equal(backbone(x)[:, :, 0, 0], backbone.module(x))  # type: ignore[operator]
    assert [tuple(m.shape) for m in backbone.stages(x)] == [(2, 5, 1, 1)]
    assert all(p.device.type == "cpu" and p.requires_grad for p in backbone.parameters())


def test_a_function_that_returns_feature_maps() -> None:
    backbone = make_backbone("my_net.py:make", 1, 9)
    assert (backbone.image_size, backbone.out_channels, backbone.out_size, backbone.features) == ((9, 9), 6, (4, 4), 96)


def test_a_method_stages_returns_all_maps() -> None:
    backbone = make_backbone("my_net.py:Staged", 1, 8)
    assert backbone.stage_shapes == [(4, 4, 4), (7, 2, 2)]
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(backbone(x), backbone.stages(x)[-1])


def test_an_attribute_called_stages_is_not_called() -> None:
    class Net(nn.Module):
        def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(channels, 3, 3)])

        def forward(self, x: Tensor) -> Any:
            return self.stages[0](x)

    backbone = make_backbone(Net, 1, 5)
    assert backbone.stage_shapes == [(3, 3, 3)]
    assert backbone.name == Net.__qualname__


def test_measuring_changes_neither_statistics_nor_modes_nor_random_numbers() -> None:
    def make(channels: int, image_size: tuple[int, int]) -> nn.Module:
        net = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
        net[1].eval()
        return net

    torch.manual_seed(1)
    make(1, (5, 5))
    expected = torch.rand(3)
    torch.manual_seed(1)
    backbone = make_backbone(make, 1, 5)
    assert torch.equal(torch.rand(3), expected)
    net = backbone.module
    assert isinstance(net, nn.Sequential)
    assert [layer.training for layer in net] == [True, False, True]
    assert net.state_dict()["1.num_batches_tracked"] == 0


def test_options_are_the_parameters_after_the_first_two() -> None:
    assert option_names("my_net.py:Flat") == ["units", "depth"]
    assert option_names("my_net.py:make") == []
    assert option_names(lambda *arguments, width=1: nn.Identity()) == ["width"]
    assert make_backbone("my_net.py:Flat", 1, 4, units=9).features == 9
    with pytest.raises(UserError, match=r"my_net\.py:make has no option --width-multiplier: it has no options"):
        make_backbone("my_net.py:make", 1, 9, width=2.0)
    with pytest.raises(UserError, match=r"my_net\.py:Flat has no option --stem: its options are --units, --depth"):
        make_backbone("my_net.py:Flat", 1, 9, stem="small")


def test_a_subclass_of_our_base_class_is_used_as_it_is() -> None:
    own = find_backbone("nature")
    assert find_backbone(own) is own
    assert make_backbone(own, 4, 84, width=0.5).out_channels == 32


def test_a_classifier_and_its_summary() -> None:
    classifier = make_classifier("my_net.py:make", 1, 9, 3)
    assert classifier(torch.rand(2, 1, 9, 9)).shape == (2, 3)
    assert "backbone.module.0" in summary(classifier, (1, 1, 9, 9))
    assert classifier.published_name("backbone.module.0.weight") == "0.weight"


def test_a_network_that_does_not_run_on_the_meta_device() -> None:
    """Its constructor computes with values, and its forward pass has a tensor that is no buffer."""
    with torch.device("meta"):
        backbone = make_backbone("my_net.py:NotMeta", 1, 5)
    assert backbone(torch.ones(1, 1, 5, 5)).shape == (1, 2, 3, 3)
    text = summary(make_classifier("my_net.py:NotMeta", 1, 5, 3), (1, 1, 5, 5))
    assert text.startswith("29 parameters. The layers and their multiply-adds cannot be listed, because")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Fails", r"Fails\(1, \(4, 4\)\) cannot be created \(TypeError: .*\): it is called with the channels and the"),
        (
            "FailsInForward",
            r"FailsInForward failed on 2 images of shape \(1, 4, 4\) \(RuntimeError: .*\): it must conv",
        ),
        ("ReturnsPair", r"returned a tuple for 2 images of shape \(1, 4, 4\): it must convert images \(B, C, H, W\)"),
        ("ReturnsIntegers", r"returned int64 of shape \(2, 5, 1, 1\) for 2 images"),
        ("MixesImages", r"returned float32 of shape \(1, 5, 1, 1\) for 2 images"),
        ("no_stages", r"returned a NoneType for 2 images"),
        ("makes_no_module", r"makes_no_module\(1, \(4, 4\)\) is a list, but it must be a torch\.nn\.Module"),
        ("NoModule", r"NoModule is the class of something else: a backbone is given as a class of torch\.nn\.Module"),
        ("net", r"my_net\.py:net is a network: a backbone is given as a class"),
        ("flat", r"my_net\.py defines no 'flat' \(did you mean Flat\?\)"),
    ],
)
def test_mistakes_get_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_backbone(f"my_net.py:{name}", 1, 4)
    assert "\n" not in str(error.value)


def test_texts_of_a_model_file_are_not_passed_to_foreign_code() -> None:
    with pytest.raises(TypeError, match="must be integers"):
        make_backbone("my_net.py:Flat", "rm", 4)  # type: ignore[arg-type]
