"""Tests of classifiers: parameter counts, torchvision's names, gradients of all pixels, weights from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.backbones import __main__ as listing
from zerokara.core.backbones.__main__ import main
from zerokara.core.backbones.cost import layer_costs, multiply_adds, receptive_field
from zerokara.core.backbones.registry import BACKBONES, make_backbone
from zerokara.core.config import UserError
from zerokara.core.models.classifier import Classifier, make_classifier
from zerokara.core.models.weights import load_pretrained_backbone


def classifier_on_meta(name: str, channels: int, size: int, classes: int, **options: Any) -> Classifier:
    with torch.device("meta"):
        return make_classifier(name, channels, size, classes, **options)


def published_shapes(classifier: Classifier) -> dict[str, tuple[int, ...]]:
    return {classifier.published_name(name): tuple(t.shape) for name, t in classifier.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [
        ("alexnet", {}, 61_100_840),
        ("alexnet_2012", {}, 60_965_224),
        ("vgg11", {}, 132_863_336),
        ("vgg13", {}, 133_047_848),
        ("vgg16", {}, 138_357_544),
        ("vgg19", {}, 143_667_240),
        ("vgg11_bn", {}, 132_868_840),
        ("vgg13_bn", {}, 133_053_736),
        ("vgg16_bn", {}, 138_365_992),
        ("vgg19_bn", {}, 143_678_248),
        ("googlenet", {}, 13_004_888),
        ("googlenet", {"auxiliaries": False}, 6_624_904),
        ("googlenet", {"auxiliaries": False, "true_5x5": True}, 7_005_832),
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("resnet101", {}, 44_549_160),
        ("resnet152", {}, 60_192_808),
    ],
)
def test_published_parameter_counts(name: str, options: dict[str, Any], number: int) -> None:
    assert sum(p.numel() for p in classifier_on_meta(name, 3, 224, 1000, **options).parameters()) == number


@pytest.mark.parametrize(
    ("name", "channels", "size", "number"),
    [
        ("deep_cnn", 1, 28, 123_552),
        ("resnet20", 3, 32, 269_722),
        ("resnet32", 3, 32, 464_154),
        ("resnet44", 3, 32, 658_586),
        ("resnet56", 3, 32, 853_018),
        ("resnet110", 3, 32, 1_727_962),
        ("plain56", 3, 32, 853_018),
    ],
)
def test_parameter_counts_at_ten_classes(name: str, channels: int, size: int, number: int) -> None:
    assert sum(p.numel() for p in classifier_on_meta(name, channels, size, 10).parameters()) == number


def test_dcgan_is_the_discriminator_of_the_tutorial() -> None:
    backbone = make_backbone("dcgan", 3, 64)
    assert sum(p.numel() for p in backbone.parameters()) + 512 * 4 * 4 == 2_765_568
    assert backbone.stage_shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert make_backbone("dcgan", 1, (28, 60)).out_size == (3, 7)
    assert make_backbone("dcgan", 1, 256).out_size == (4, 4)
    with pytest.raises(UserError, match="sides of 28 to 256"):
        make_backbone("dcgan", 1, 27)


@pytest.mark.parametrize(
    ("name", "shapes", "number"),
    [
        (
            "alexnet",
            {"features.0.weight": (64, 3, 11, 11), "features.3.weight": (192, 64, 5, 5)}
            | {"features.10.bias": (256,), "classifier.1.weight": (4096, 9216), "classifier.6.weight": (1000, 4096)},
            16,
        ),
        (
            "vgg16",
            {"features.28.weight": (512, 512, 3, 3), "classifier.0.weight": (4096, 25088)}
            | {"classifier.3.bias": (4096,), "classifier.6.weight": (1000, 4096)},
            32,
        ),
        ("vgg16_bn", {"features.41.running_var": (512,), "features.40.weight": (512, 512, 3, 3)}, 97),
        (
            "resnet18",
            {"conv1.weight": (64, 3, 7, 7), "bn1.running_mean": (64,), "layer1.0.conv1.weight": (64, 64, 3, 3)}
            | {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.bias": (512,), "fc.weight": (1000, 512)},
            122,
        ),
        (
            "resnet50",
            {"layer1.0.downsample.0.weight": (256, 64, 1, 1), "layer4.2.conv3.weight": (2048, 512, 1, 1)},
            320,
        ),
        (
            "googlenet",
            {"conv1.conv.weight": (64, 3, 7, 7), "inception3a.branch1.conv.weight": (64, 192, 1, 1)}
            | {"inception3a.branch3.1.conv.weight": (32, 16, 3, 3), "inception5b.branch4.1.bn.weight": (128,)}
            | {"aux1.conv.conv.weight": (128, 512, 1, 1), "aux1.fc1.weight": (1024, 2048), "aux2.fc2.bias": (1000,)},
            59 * 6 + 10,
        ),
    ],
)
def test_names_and_shapes_are_those_of_torchvision(name: str, shapes: dict[str, tuple[int, ...]], number: int) -> None:
    state = published_shapes(classifier_on_meta(name, 3, 224, 1000))
    assert shapes.items() <= state.items()
    assert len(state) == number


CASES = [("deep_cnn", 1, 28), ("dcgan", 1, 28), ("alexnet", 3, 64), ("vgg11", 3, 32), ("googlenet", 3, 64)]


@pytest.mark.parametrize(("name", "channels", "size"), [*CASES, ("resnet20", 3, 32), ("resnet18", 3, 64)])
def test_every_pixel_has_a_gradient(name: str, channels: int, size: int) -> None:
    options = {} if name in ("deep_cnn", "dcgan", "resnet20") else {"width": 0.25}
    if name in ("alexnet", "googlenet", "resnet18"):
        options |= {"stem": "small"}  # type: ignore[dict-item]
    x = torch.rand(8, channels, size, size, requires_grad=True)
    backbone = make_backbone(name, channels, size, **options)
    (backbone(x) * torch.randn(8, backbone.out_channels, *backbone.out_size)).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(dim=0).any(dim=0).all()


def test_smaller_stems_downsample_less() -> None:
    sizes = {
        stem: classifier_on_meta("resnet18", 3, 64, 10, stem=stem).backbone.out_size
        for stem in ("paper", "medium", "small")
    }
    assert sizes == {"paper": (2, 2), "medium": (4, 4), "small": (8, 8)}
    assert classifier_on_meta("alexnet", 3, 32, 10, stem="small").backbone.out_size == (3, 3)
    assert classifier_on_meta("googlenet", 3, 32, 10, stem="small").backbone.out_size == (4, 4)


def test_invalid_arguments_are_errors() -> None:
    with pytest.raises(UserError, match="choose resnet20 or resnet26"):
        make_backbone("resnet22", 3, 32)
    assert type(make_backbone("resnet8", 3, 32)).name == "resnet8"
    with pytest.raises(UserError, match="has no option --stem: its options are --width-multiplier"):
        make_backbone("vgg16", 3, 32, stem="small")
    with pytest.raises(UserError, match="16x16 pixels are too small for the backbone vgg16"):
        classifier_on_meta("vgg16", 3, 16, 10)
    with pytest.raises(UserError, match="at least 2 classes"):
        make_classifier("deep_cnn", 1, 28, 1)


def test_auxiliary_heads_are_used_only_in_training() -> None:
    classifier = make_classifier("googlenet", 3, 32, 5, width=0.125, stem="small")
    x = torch.rand(2, 3, 32, 32)
    logits, auxiliaries = classifier.logits_and_auxiliaries(x)
    assert [(weight, tuple(a.shape)) for weight, a in auxiliaries] == [(0.3, (2, 5)), (0.3, (2, 5))]
    assert logits.shape == (2, 5)
    assert classifier.eval().logits_and_auxiliaries(x)[1] == []


def test_dropout_of_the_logits() -> None:
    classifier = make_classifier("deep_cnn", 1, 28, 10, output_dropout=0.5)
    x = torch.rand(20, 1, 28, 28)
    assert 0.3 < float((classifier(x) == 0).float().mean()) < 0.7
    assert not (classifier.eval()(x) == 0).any()


def test_plain_network_differs_only_by_the_shortcuts() -> None:
    plain, residual = make_backbone("plain20", 3, 32), make_backbone("resnet20", 3, 32)
    residual.load_state_dict(plain.state_dict())
    for backbone in (plain, residual):
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d) and module is not backbone.get_submodule("bn1"):
                nn.init.zeros_(module.weight)
    x = torch.rand(2, 3, 32, 32)
    assert not plain(x).any()
    first = torch.relu(residual.get_submodule("bn1")(residual.get_submodule("conv1")(x)))
    expected = torch.zeros(2, 64, 8, 8)
    expected[:, 24:40] = first[:, :, ::4, ::4]  # 8 zero channels on each side, then 16
    torch.testing.assert_close(residual(x), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loading_a_published_file_reports_every_key(tmp_path: Path, suffix: str) -> None:
    source = make_classifier("resnet18", 3, 32, 7, width=0.125)
    state = {source.published_name(name): tensor.clone() for name, tensor in source.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    state["unexpected"] = torch.zeros(2)
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    target = make_classifier("resnet18", 3, 32, 5, width=0.125)
    report = target.load_published(path)
    assert (len(report.loaded), len(report.missing), report.unexpected) == (100, 20, ("unexpected",))
    assert report.wrong_shape == (("head.fc.weight", (5, 64), (7, 64)), ("head.fc.bias", (5,), (7,)))
    assert "head.fc.weight 7x64 instead of 5x64" in str(report)
    assert torch.equal(target.backbone.state_dict()["conv1.weight"], source.backbone.state_dict()["conv1.weight"])


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg11_bn", "googlenet", "resnet50"])
def test_published_file_loads_all_weights(tmp_path: Path, name: str) -> None:
    """Names are torchvision's, which `test_names_and_shapes_are_those_of_torchvision` checks."""
    source, target = (make_classifier(name, 3, 64, 7, width=0.0625) for _ in range(2))
    assert not torch.equal(next(source.parameters()), next(target.parameters()))
    path = tmp_path / "weights.safetensors"
    save_file({source.published_name(key): tensor.clone() for key, tensor in source.state_dict().items()}, path)
    report = target.load_published(path)
    assert (report.missing, report.unexpected, report.wrong_shape) == ((), (), ())
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in target.state_dict().items())


def test_backbone_is_found_under_any_prefix(tmp_path: Path) -> None:
    source, target = make_backbone("nature", 4, 84, width=0.25), make_backbone("nature", 4, 84, width=0.25)
    online = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    target_network = {name: tensor + 1 for name, tensor in online.items()}
    state = {
        "learner": {"target": target_network, "network": {**online, "advantage.0.weight": torch.zeros(3)}},
        "step": 3,
    }
    checkpoint.save(tmp_path / "checkpoint-0.pt", state, "dqn")
    report = load_pretrained_backbone(target, tmp_path)
    assert len(report.loaded) == 6
    assert report.unexpected == ()
    assert all(
        torch.equal(a, b) for a, b in zip(target.state_dict().values(), source.state_dict().values(), strict=True)
    )
    with pytest.raises(UserError, match=r"Nothing in .* fits this network"):
        load_pretrained_backbone(make_backbone("resnet20", 3, 32), tmp_path)


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    backbone = make_backbone("nips", 1, 84)
    with pytest.raises(UserError, match="contains neither"):
        load_pretrained_backbone(backbone, tmp_path)
    with pytest.raises(UserError, match="There is no file"):
        load_pretrained_backbone(backbone, tmp_path / "missing.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(UserError, match=rf"{name} (cannot be read as safetensors|is damaged)"):
            load_pretrained_backbone(backbone, tmp_path / name)


def test_costs_equal_published_values() -> None:
    """Compare with published multiply-adds and receptive fields (Araujo et al. 2019, "Computing Receptive Fields")."""
    published_costs = {"alexnet": (714_188_480, 195), "vgg16": (15_470_264_320, 212), "resnet50": (4_089_184_256, 427)}
    for name, costs in published_costs.items():
        classifier, shape = classifier_on_meta(name, 3, 224, 1000), (1, 3, 224, 224)
        assert (multiply_adds(classifier, shape), receptive_field(classifier.backbone, shape)) == costs
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Conv2d(2, 4, 3, bias=False))
    first, relu, second = layer_costs(net, (1, 1, 9, 9))
    assert (first.multiply_adds, first.parameters, first.receptive_field, first.stride) == (16 * 2 * 9, 20, 3, 2)
    assert (relu.multiply_adds, second.multiply_adds, second.receptive_field) == (0, 4 * 4 * 18, 7)


def test_table_of_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    main(["deep_cnn", "resnet26"])
    assert "123,552" in (out := capsys.readouterr().out)
    assert "resnet26" in out
    main(["--image-size", "28", "--channels", "1"])
    out = capsys.readouterr().out
    assert "too small" in out
    assert all(name in out for name in BACKBONES)
    with pytest.raises(UserError, match="too small"):
        main(["vgg16", "--image-size", "16"])


def test_he_initialization() -> None:
    weight: Tensor = make_backbone("deep_cnn", 1, 28, width=4.0).state_dict()["layers.12.weight"]
    assert float(weight.std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


def test_he_initialization_of_every_layer_of_deep_cnn() -> None:
    torch.manual_seed(0)
    classifier = make_classifier("deep_cnn", 1, 28, 10, width=4.0)
    layers = [layer for layer in classifier.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 8
    for layer in layers[1:]:  # the first layer has too few weights for a precise estimate
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.06)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_table_with_measured_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(listing, "_MIN_SECONDS", 0.001)
    argv = ["deep_cnn", "googlenet", "--image-size", "32", "--channels", "1", "--batch-size", "2", "--device", "cpu"]
    argv += ["--threads", "1"]
    main([*argv, "--measure"])
    rows = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith((" deep_cnn", " googlenet"))
    ]
    assert [row[0] for row in rows] == ["deep_cnn", "googlenet"]
    for row in rows:
        training, training_precision, inference, inference_precision = row[-4:]
        assert {training_precision, inference_precision} <= {"float32", "bfloat16"}
        assert float(training.replace(",", "")) > 0
        assert float(inference.replace(",", "")) > 0
