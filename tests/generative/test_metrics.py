"""Tests of metrics against closed forms, their independence of the batch size, and the program."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import DIGITS
from tests.generative.finished_run import HERE, make_run
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.models import model_file
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.generative import metrics
from zerokara.generative.scoring.distances import Features, frechet_distance, kernel_distance, overlap
from zerokara.generative.scoring.feature_extractor import FeatureExtractor

METADATA = dataclasses.replace(DIGITS, data="drawn for a test", figures={"test_accuracy": 0.5})


def save_classifier(folder: Path, seed: int = 0, half: bool = False) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    metadata = dataclasses.replace(METADATA, origin=(f"run {seed}",))
    metadata.save(folder / "model.safetensors", METADATA.build().state_dict(), half=half)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unconditional run, a class-conditional run, and a classifier."""
    root = tmp_path_factory.mktemp("generated")
    make_run(root, "plain")
    make_run(root, "by_class", "--conditional")
    save_classifier(root / "classifier")
    return root


def whitened(number: int, features: int) -> Tensor:
    """Draw points with mean 0 and exactly unit covariance."""
    x = torch.randn(number, features, dtype=torch.float64)
    x = x - x.mean(0)
    root: Tensor = torch.linalg.cholesky(x.T.cov())
    white: Tensor = torch.linalg.solve_triangular(root, x.T, upper=False).T
    return white


def test_frechet_distance_of_gaussians_has_a_closed_form() -> None:
    x, y = whitened(300, 3), whitened(200, 3)
    shift = torch.tensor([1.0, -2.0, 0.5])
    scale = torch.tensor([2.0, 0.5, 3.0])
    # Covariances that commute: |m|^2 + sum of (s1 - s2)^2.
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(Features(x), Features(y * scale + shift)) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert frechet_distance(Features(x @ rotation), Features((y * scale + shift) @ rotation)) == pytest.approx(
        expected, rel=1e-9
    )
    assert frechet_distance(Features(x), Features(y)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(Features(x[:, :1]), Features(3 * x[:, :1] + 1)) == pytest.approx(1 + 4)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    x, y = whitened(300, 2), whitened(300, 2)
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    # Covariances A^2 = diag(4, 1) and B^T B = [[1, 1], [1, 2]]. For 2x2 matrices
    # tr(root M) = root(tr M + 2 root(det M)).
    expected = 5 + 3 - 2 * ((4 * 1 + 1 * 2) + 2 * (4 * 1) ** 0.5) ** 0.5
    assert frechet_distance(Features(x @ a), Features(y @ b)) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_by_hand() -> None:
    real, fake = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [-1.0]])
    # (xy + 1)^3: within real (1*2 + 1)^3 = 27, within fake 1; across 1, 0, 1, (-1)^3.
    assert kernel_distance(Features(real), Features(fake)) == pytest.approx(27 + 1 - 2 * (1 + 0 + 1 - 1) / 4)


def test_overlap_of_identical_and_of_distant_sets() -> None:
    x = torch.randn(200, 4)
    same = overlap(Features(x), Features(x))
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1.2)  # each is in its own ball and, on average, in five others
    far = overlap(Features(x), Features(x + 100))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    half = overlap(Features(x), Features(torch.cat([x[:100], x[:100] + 100])))
    assert half.precision == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["random", "classifier"])
def test_a_score_does_not_depend_on_the_batch_size(kind: str, root: Path) -> None:
    extractor = FeatureExtractor.random((1, 28, 28)) if kind == "random" else FeatureExtractor.load(root / "classifier")
    real, generated = torch.randint(256, (2, 150, 1, 28, 28), dtype=torch.uint8)
    whole, parts = (extractor.compare(extractor.extract(real, n), extractor.extract(generated, n)) for n in (150, 7))
    assert whole == pytest.approx(parts, rel=1e-4)
    assert all(isinstance(value, float) for value in whole.values())


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
def test_fid_is_the_frechet_distance_for_any_batch_size(tmp_path: Path) -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
            if not return_features:
                return torch.zeros(x.shape[0], 2)
            return torch.stack([x[:, 0].float().mean((1, 2)), x[:, 2, :4].float().mean((1, 2))], 1)

    torch.jit.save(torch.jit.script(Means()), tmp_path / "network.pt")
    network = metrics.Inception(tmp_path / "network.pt")
    grayscale, other = torch.randint(256, (2, 60, 1, 8, 8), dtype=torch.uint8)
    expected = frechet_distance(Features(network(grayscale)), Features(network(other // 2)))
    assert expected > 100
    for batch_size in (60, 7):
        assert metrics.inception_distance(network, grayscale, other // 2, batch_size) == pytest.approx(
            expected, rel=1e-9
        )


def test_files_other_than_torchscript_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        metrics.Inception(tmp_path / "none.pt")
    (tmp_path / "bytes.pt").write_bytes(b"not an archive")
    with pytest.raises(UserError, match="is not a TorchScript file"):
        metrics.Inception(tmp_path / "bytes.pt")


def test_the_program_prints_scores_and_protocol(at_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.main(["runs/by_class", "--images", "200", "--classifier", "classifier", "--json", *HERE])
    first = capsys.readouterr().out
    result = json.loads(first)
    scores, protocol = result["scores"], result["protocol"]
    assert 0 <= scores["painted"]["accuracy"] <= 1
    assert 0 <= scores["floor"]["accuracy"] <= 1
    assert scores["painted"]["fcd"] > 10 * scores["floor"]["fcd"] > 0
    assert scores["painted"]["random_fd"] > 10 * scores["floor"]["random_fd"] > 0
    assert protocol["classifier"] == model_file.fingerprint(at_root / "classifier" / "model.safetensors")
    assert protocol["classifier_figures"] == {"test_accuracy": 0.5}
    counts = ("painted_images", "real_images", "floor_images", "training_images", "update")
    assert [protocol[name] for name in counts] == [200, 200, 200, 580, 4]
    metrics.main(["runs/by_class", "--images", "200", "--classifier", "classifier", "--json", *HERE])
    assert capsys.readouterr().out == first
    metrics.main(["runs/by_class", "--images", "200", "--classifier", "classifier", *HERE])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{scores['painted']['fcd']:.4g} {scores['floor']['fcd']:.4g}" in printed
    for part in (
        protocol["classifier"],
        "test_accuracy 0.5",
        "inputs of its last layer",
        "test split",
        "float64",
        "update 4",
        "for accuracy, real images",
    ):
        assert part in printed


@pytest.mark.parametrize("number", [10, 9])
def test_the_floor_of_the_accuracy_is_that_of_the_real_images(number: int, root: Path) -> None:
    """30 of 40 real images have the label that the classifier gives; training images have none of them."""
    extractor = FeatureExtractor.load(root / "classifier")
    classes = DIGITS.classes[:number]

    def images(seed: int, right: int) -> ImageSet:
        pixels = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        probability_NK = extractor.extract(pixels).probability_NK
        assert probability_NK is not None
        label_N = probability_NK[:, :number].argmax(1)
        label_N[right:] = (label_N[right:] + 1) % number
        return ImageSet(pixels, label_N, classes, "noise")

    real, train = images(1, 30), images(2, 0)
    compared = metrics.ComparedImages(real, train, train, "test", train.images, train.labels)
    scores = metrics.measure(compared, extractor, DIGITS.classes)
    assert scores["painted"]["accuracy"] == 0
    assert scores["floor"].get("accuracy") == (0.75 if number == 10 else None)


def test_without_a_classifier_the_protocol_says_that_quality_is_not_measured(
    at_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerokara.generative.scoring.feature_extractor.zoo_files", dict)
    metrics.main(["runs/plain", "--images", "100", "--split", "held-out", "--json", *HERE])
    result = json.loads(capsys.readouterr().out)
    assert "random_fd" in result["scores"]["painted"]
    assert "fcd" not in result["scores"]["painted"]
    assert "but not quality" in result["protocol"]["features"]
    with pytest.raises(UserError, match="type --images 290"):
        metrics.main(["runs/plain", "--images", "500", "--split", "train", *HERE])
    with pytest.raises(UserError, match="No run was named"):
        metrics.main([])


@pytest.fixture
def pretrained_run(tmp_path: Path) -> Path:
    """A run whose discriminator was initialized from the classifier `pretrained`."""
    save_classifier(tmp_path / "pretrained", seed=2)
    words = ("--backbone", "deep_cnn", "--discriminator-width", "0.25", "--pretrained-backbone", "pretrained")
    return make_run(tmp_path, "pretrained_run", *words)


def test_the_classifier_of_the_pretrained_backbone_is_refused(
    at_root: Path, pretrained_run: Path, tmp_path: Path
) -> None:
    scored = [str(pretrained_run), "--images", "100", "--json", *HERE]
    for name in ("elsewhere", "rounded"):  # the recorded path of the backbone does not exist from here
        if name == "elsewhere":
            (tmp_path / "pretrained").rename(tmp_path / name)
        else:
            save_classifier(tmp_path / name, seed=2, half=True)
        with pytest.raises(UserError, match="has the weights that the discriminator's backbone was initialized from"):
            metrics.main([*scored, "--classifier", str(tmp_path / name)])
    other = save_classifier(tmp_path / "other", seed=1)
    metrics.main([*scored, "--classifier", str(other)])


def test_unknown_origin_of_the_backbone_gives_a_warning(
    at_root: Path, pretrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((pretrained_run / "config.json").read_text())
    del content["extra"]["origin"]  # as in runs of older releases
    (pretrained_run / "config.json").write_text(json.dumps(content))
    (tmp_path / "pretrained").rename(tmp_path / "gone")
    metrics.main([str(pretrained_run), "--images", "100", "--classifier", str(tmp_path / "gone"), "--json", *HERE])
    out, err = capsys.readouterr()
    assert "warning: The discriminator's backbone was initialized from pretrained, which no longer exists" in err
    assert "no longer exists" in json.loads(out)["protocol"]["doubt"]


def test_training_refuses_and_warns_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained = save_classifier(tmp_path / "pretrained", seed=2)
    words = ("--backbone", "deep_cnn", "--discriminator-width", "0.25", "--pretrained-backbone", str(pretrained))
    with pytest.raises(UserError, match="has the weights that the discriminator's backbone was initialized from"):
        make_run(tmp_path, "refused", *words, "--classifier", str(pretrained / "model.safetensors"))
    relative = ClassifierMetadata(
        **{**vars(METADATA), "command": "python -m vision.classify --pretrained-backbone runs/gone"}
    )
    weights = METADATA.build().state_dict()
    relative.save(pretrained / "model.safetensors", weights)
    classifier = save_classifier(tmp_path / "classifier", seed=3)
    make_run(tmp_path, "warned", *words, "--classifier", str(classifier))
    assert "warning: The discriminator's backbone was initialized from runs/gone" in capsys.readouterr().err


def test_help_says_that_an_inception_network_is_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        metrics.main(["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "TorchScript is a program that is run: give only files from sources that you trust" in text
