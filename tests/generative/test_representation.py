"""Tests of the linear SVM against scikit-learn's, of pooling and label draws, and of the program."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from tests.generative.finished_run import FEW, HERE, make_run
from tests.generative.test_metrics import METADATA
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet, glyphs
from zerokara.core.progress import Progress
from zerokara.generative import representation
from zerokara.generative.representation import (
    Inputs,
    Options,
    StageExtractor,
    draw_labeled,
    make_extractor,
    pool,
    svm_error,
)
from zerokara.generative.scoring import svm


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run. Tests must not write to it."""
    return make_run(tmp_path_factory.mktemp("generated"), "plain")


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.setattr(representation, "CANDIDATES", (0.1, 1.0))
    monkeypatch.setattr(svm, "MAX_ITERATIONS", 40)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/plain", ignore=shutil.ignore_patterns("events.*"))
    return Path("runs/plain")


@pytest.fixture
def inputs(run: Path) -> Inputs:
    options = Options(run=str(run), labels=(100,), device="cpu", threads=1)
    return representation.read(options, Progress(silent=True))


def clouds(number: int, features: int = 6, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw points of three classes in turn, around three corners."""
    label_N = torch.arange(number) % 3
    return torch.randn(number, features) + apart * torch.eye(3, features)[label_N], label_N


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_svm_equals_scikit_learns(c: float) -> None:
    features_NF, label_N = clouds(200)
    weight_GK = svm.fit(features_NF, label_N, 3, c)
    reference = LinearSVC(C=c, dual=False, tol=1e-8, max_iter=10_000).fit(features_NF.numpy(), label_N.numpy())
    torch.testing.assert_close(weight_GK[:-1].T.double(), torch.from_numpy(reference.coef_), atol=2e-3, rtol=2e-3)
    # With dual=False LinearSVC regularizes the bias, too.
    torch.testing.assert_close(weight_GK[-1].double(), torch.from_numpy(reference.intercept_), atol=2e-3, rtol=2e-3)
    assert 1 - svm.error(features_NF, label_N, weight_GK) == pytest.approx(
        reference.score(features_NF.numpy(), label_N.numpy())
    )


def test_svm_with_initial_weights_has_the_same_minimum() -> None:
    features_NF, label_N = clouds(100)
    start_GK = torch.randn(7, 3)
    copy_GK = start_GK.clone()
    torch.testing.assert_close(
        svm.fit(features_NF, label_N, 3, 1.0, start_GK), svm.fit(features_NF, label_N, 3, 1.0), atol=2e-3, rtol=2e-3
    )
    assert torch.equal(start_GK, copy_GK)


def test_chosen_c_is_small_for_noisy_labels_and_large_for_weak_features() -> None:
    # Nearly as many features as training images: a large C would fit the noise.
    features_NF, label_N = clouds(120, features=90)
    mixed_N = torch.where(torch.rand(120) < 0.3, torch.randint(3, (120,)), label_N)
    assert svm.choose_c(features_NF, mixed_N, 3, (1e-3, 1e3)) == 1e-3
    faint_NF, label_N = clouds(90, apart=20.0)
    faint_NF[:, 3:] = 0
    assert svm.choose_c(torch.cat([0.001 * faint_NF, torch.randn(90, 1)], 1), label_N, 3, (1e-3, 1e4)) == 1e4
    assert svm.choose_c(*clouds(60, apart=50.0), 3, (0.5, 1.0)) == 0.5  # both classify all images correctly


def test_drawn_labels_are_balanced() -> None:
    label_N = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    images = ImageSet(torch.arange(73, dtype=torch.uint8).view(73, 1, 1, 1), label_N, ("a", "b", "c"), "a test")
    assert torch.bincount(draw_labeled(images, 6, 0).labels).tolist() == [2, 2, 2]
    assert torch.bincount(draw_labeled(images, 15, 0).labels).tolist() == [
        6,
        3,
        6,
    ]  # the second class has only three images
    assert sorted(draw_labeled(images, 73, 0).images.flatten().tolist()) == list(range(73))
    assert torch.equal(draw_labeled(images, 9, 1).images, draw_labeled(images, 9, 1).images)
    assert not torch.equal(draw_labeled(images, 9, 1).images, draw_labeled(images, 9, 2).images)


def test_feature_maps_are_max_pooled_to_at_most_4x4() -> None:
    rows = torch.arange(64.0).view(1, 1, 8, 8)
    assert pool(rows)[0, 0, 0].tolist() == [9.0, 11.0, 13.0, 15.0]  # the largest of 2x2
    assert pool(rows).shape == (1, 1, 4, 4)
    assert torch.equal(pool(rows[:, :, :3, :5]), rows[:, :, :3, :5].unfold(3, 2, 1).amax(4))  # 3x5 becomes 3x4
    assert pool(torch.ones(2, 5, 3, 3)).shape == (2, 5, 3, 3)


def test_features_are_all_stages_of_the_runs_discriminator(inputs: Inputs) -> None:
    extractor = make_extractor(inputs, inputs.discriminator, 0)
    images = inputs.test.images[:3]
    # 64, 128 and 256 channels, divided by 8; the last feature map is 3x3.
    assert extractor.features(images, inputs.compute).shape == (3, (8 + 16) * 16 + 32 * 9)
    weight = dict(extractor.backbone.named_parameters())["convs.0.weight"]
    assert torch.equal(weight, inputs.discriminator["backbone.convs.0.weight"])
    conv, norm = extractor.backbone.get_submodule("convs.1"), extractor.backbone.get_submodule("norms.1")
    with torch.no_grad():
        first = nn.functional.leaky_relu(
            extractor.backbone.get_submodule("convs.0")(inputs.train.images.float() / 255), 0.2
        )
        mean_C = conv(first).mean((0, 2, 3))
    assert isinstance(norm.running_mean, Tensor)
    torch.testing.assert_close(norm.running_mean, mean_C, atol=1e-4, rtol=1e-3)
    random = make_extractor(inputs, None, 5)
    assert not torch.equal(dict(random.backbone.named_parameters())["convs.0.weight"], weight)


def test_c_does_not_depend_on_the_test_set(inputs: Inputs) -> None:
    extractor = make_extractor(inputs, None, 0)
    labeled = draw_labeled(inputs.train, 100, 0)
    shuffled = replace(inputs.test, labels=(inputs.test.labels + 1) % 10)
    right, wrong = (svm_error(extractor, labeled, test, inputs.compute) for test in (inputs.test, shuffled))
    assert right[1] == wrong[1]
    assert right[0] < 0.75 < wrong[0]


def test_supervised_network_learns_from_the_given_labels(inputs: Inputs) -> None:
    labeled = draw_labeled(inputs.train, 300, 0)
    extractor, layer = representation.train_supervised(inputs, labeled, 150, seed=0)
    assert representation.linear_layer_error(extractor, layer, labeled, inputs.compute) < 0.1
    error = representation.linear_layer_error(extractor, layer, inputs.test, inputs.compute)
    assert error < 0.7, "chance is 0.9"  # at most 0.55 with five seeds
    assert isinstance(extractor, StageExtractor)
    again, _ = representation.train_supervised(inputs, labeled, 150, seed=0)
    for one, other in zip(extractor.backbone.parameters(), again.backbone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_program(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(svm, "MAX_ITERATIONS", 8)
    words = [str(run), "--labels", "60", "0", "--seeds", "2", "--updates", "5", *HERE]
    representation.main(words)
    shown = capsys.readouterr().out
    content = json.loads((run / "representation.json").read_text())
    errors = content["test_errors"]
    assert list(errors) == ["discriminator", "random network", "supervised", "supervised, its own last layer"]
    for of in errors.values():
        assert {number: len(values) for number, values in of.items()} == {"60": 2, "700": 1}
        assert all(0 <= value <= 1 for values in of.values() for value in values)
    first, second = errors["discriminator"]["60"]
    assert any(len(set(of["60"])) == 2 for of in errors.values()), "other labels must give other errors"
    assert f"{100 * (first + second) / 2:.2f} ±" in shown
    assert "60 labels" in shown
    assert "700 labels" in shown
    assert (run / "media" / "representation.png").stat().st_size > 5_000
    representation.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["test_errors"] == errors, "the same command must give the same numbers"


@pytest.mark.usefixtures("blank_figures")
def test_classifier_instead_of_the_supervised_network(run: Path) -> None:
    Path("classifier").mkdir()
    METADATA.save(Path("classifier/model.safetensors"), METADATA.build().state_dict())
    representation.main([str(run), "--labels", "60", "--seeds", "1", "--supervised", "classifier", "--json", *HERE])
    content = json.loads((run / "representation.json").read_text())
    assert list(content["test_errors"]) == ["discriminator", "random network", "supervised"]
    assert content["protocol"]["supervised"] == "classifier"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No run was named"),
        (["runs/nothing"], "There is no run in runs/nothing"),
        (["runs/plain", "--labels", "49"], "--labels cannot be 49: at least 50"),
        (["runs/plain", "--labels", "701"], "there are 700"),
    ],
)
def test_invalid_options_are_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        representation.main([*words, *HERE])


def test_conditional_discriminator_is_refused(run: Path) -> None:
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"]["conditional"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="--conditional"):
        representation.main([str(run), *HERE])
