"""The linear SVM against scikit-learn's, what is pooled and drawn, and the program that compares eyes."""

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
from zerokara.core.models import model_file
from zerokara.core.progress import Progress
from zerokara.generative import representation
from zerokara.generative.representation import Eye, Material, Options, draw, make_eye, pool, svm_error
from zerokara.generative.scoring import svm


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run. Not to be written to."""
    return make_run(tmp_path_factory.mktemp("painted"), "plain")


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.setattr(representation, "CANDIDATES", (0.1, 1.0))
    monkeypatch.setattr(svm, "MOST_ITERATIONS", 40)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/plain", ignore=shutil.ignore_patterns("tensorboard"))
    return Path("runs/plain")


@pytest.fixture
def material(run: Path) -> Material:
    options = Options(run=str(run), labels=(100,), device="cpu", threads=1)
    return representation.read(options, Progress(silent=True))


def clouds(number: int, features: int = 6, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points of three classes in turn around three corners."""
    label_N = torch.arange(number) % 3
    return torch.randn(number, features) + apart * torch.eye(3, features)[label_N], label_N


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_the_svm_is_that_of_scikit_learn(c: float) -> None:
    features_NF, label_N = clouds(200)
    weight_GK = svm.fit(features_NF, label_N, 3, c)
    peer = LinearSVC(C=c, dual=False, tol=1e-8, max_iter=10_000).fit(features_NF.numpy(), label_N.numpy())
    torch.testing.assert_close(weight_GK[:-1].T.double(), torch.from_numpy(peer.coef_), atol=2e-3, rtol=2e-3)
    # With dual=False the peer counts the bias among the weights as we do.
    torch.testing.assert_close(weight_GK[-1].double(), torch.from_numpy(peer.intercept_), atol=2e-3, rtol=2e-3)
    assert 1 - svm.error(features_NF, label_N, weight_GK) == pytest.approx(
        peer.score(features_NF.numpy(), label_N.numpy())
    )


def test_it_begins_where_it_is_told_and_ends_at_the_same() -> None:
    features_NF, label_N = clouds(100)
    start_GK = torch.randn(7, 3)
    kept = start_GK.clone()
    torch.testing.assert_close(
        svm.fit(features_NF, label_N, 3, 1.0, start_GK), svm.fit(features_NF, label_N, 3, 1.0), atol=2e-3, rtol=2e-3
    )
    assert torch.equal(start_GK, kept)


def test_c_is_small_where_labels_are_noise_and_large_where_the_signal_is_faint() -> None:
    # As many features as images are learnt from, nearly: whoever fits all of them fits the noise.
    features_NF, label_N = clouds(120, features=90)
    mixed_N = torch.where(torch.rand(120) < 0.3, torch.randint(3, (120,)), label_N)
    assert svm.choose_c(features_NF, mixed_N, 3, (1e-3, 1e3)) == 1e-3
    faint_NF, label_N = clouds(90, apart=20.0)
    faint_NF[:, 3:] = 0
    assert svm.choose_c(torch.cat([0.001 * faint_NF, torch.randn(90, 1)], 1), label_N, 3, (1e-3, 1e4)) == 1e4
    assert svm.choose_c(*clouds(60, apart=50.0), 3, (0.5, 1.0)) == 0.5  # both are right always


def test_labels_are_drawn_class_by_class() -> None:
    label_N = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    images = ImageSet(torch.arange(73, dtype=torch.uint8).view(73, 1, 1, 1), label_N, ("a", "b", "c"), "a test")
    assert torch.bincount(draw(images, 6, 0).labels).tolist() == [2, 2, 2]
    assert torch.bincount(draw(images, 15, 0).labels).tolist() == [6, 3, 6]  # there are only three of the second
    assert sorted(draw(images, 73, 0).images.flatten().tolist()) == list(range(73))
    assert torch.equal(draw(images, 9, 1).images, draw(images, 9, 1).images)
    assert not torch.equal(draw(images, 9, 1).images, draw(images, 9, 2).images)


def test_a_layer_is_max_pooled_to_four_by_four_at_most() -> None:
    rows = torch.arange(64.0).view(1, 1, 8, 8)
    assert pool(rows)[0, 0, 0].tolist() == [9.0, 11.0, 13.0, 15.0]  # the largest of 2x2
    assert pool(rows).shape == (1, 1, 4, 4)
    assert torch.equal(pool(rows[:, :, :3, :5]), rows[:, :, :3, :5].unfold(3, 2, 1).amax(4))  # 3x5 becomes 3x4
    assert pool(torch.ones(2, 5, 3, 3)).shape == (2, 5, 3, 3)


def test_every_layer_of_the_run_s_own_discriminator_is_seen(material: Material) -> None:
    eye = make_eye(material, material.discriminator, 0)
    images = material.test.images[:3]
    # 64, 128 and 256 channels, an eighth of them; the last map has 3x3 places.
    assert eye.features(images, material.compute).shape == (3, (8 + 16) * 16 + 32 * 9)
    weight = dict(eye.trunk.named_parameters())["convs.0.weight"]
    assert torch.equal(weight, material.discriminator["backbone.convs.0.weight"])
    conv, norm = eye.trunk.get_submodule("convs.1"), eye.trunk.get_submodule("norms.1")
    with torch.no_grad():
        first = nn.functional.leaky_relu(eye.trunk.get_submodule("convs.0")(material.train.images.float() / 255), 0.2)
        mean_C = conv(first).mean((0, 2, 3))
    assert isinstance(norm.running_mean, Tensor)
    torch.testing.assert_close(norm.running_mean, mean_C, atol=1e-4, rtol=1e-3)
    random = make_eye(material, None, 5)
    assert not torch.equal(dict(random.trunk.named_parameters())["convs.0.weight"], weight)


def test_the_test_set_has_no_part_in_the_choice_of_c(material: Material) -> None:
    eye = make_eye(material, None, 0)
    labelled = draw(material.train, 100, 0)
    shuffled = replace(material.test, labels=(material.test.labels + 1) % 10)
    right, wrong = (svm_error(eye, labelled, test, material.compute) for test in (material.test, shuffled))
    assert right[1] == wrong[1]
    assert right[0] < 0.75 < wrong[0]


def test_a_supervised_network_learns_from_these_labels_alone(material: Material) -> None:
    labelled = draw(material.train, 100, 0)
    eye, layer = representation.learn(material, labelled, 150, seed=0)
    assert representation.own_error(eye, layer, labelled, material.compute) < 0.1
    error = representation.own_error(eye, layer, material.test, material.compute)
    assert error < 0.82, "chance is 0.9"
    assert isinstance(eye, Eye)
    again, _ = representation.learn(material, labelled, 150, seed=0)
    for one, other in zip(eye.trunk.parameters(), again.trunk.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_program(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert any(len(set(of["60"])) == 2 for of in errors.values()), "other labels, other errors"
    assert f"{100 * (first + second) / 2:.2f} ±" in shown
    assert "60 labels" in shown
    assert "700 labels" in shown
    assert (run / "media" / "representation.png").stat().st_size > 5_000
    representation.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["test_errors"] == errors, "the same command, the same numbers"


def test_a_classifier_stands_in_for_the_supervised_network(run: Path) -> None:
    Path("judge").mkdir()
    model_file.save(Path("judge/model.safetensors"), METADATA.build().state_dict(), METADATA)
    representation.main([str(run), "--labels", "60", "--seeds", "1", "--supervised", "judge", "--json", *HERE])
    content = json.loads((run / "representation.json").read_text())
    assert list(content["test_errors"]) == ["discriminator", "random network", "supervised"]
    assert content["protocol"]["supervised"] == "judge"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No run was named"),
        (["runs/nothing"], "There is no run in runs/nothing"),
        (["runs/plain", "--labels", "49"], "--labels cannot be 49: at least 50"),
        (["runs/plain", "--labels", "701"], "there are 700"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        representation.main([*words, *HERE])


def test_a_discriminator_that_was_told_the_labels_is_refused(run: Path) -> None:
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"]["conditional"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="--conditional"):
        representation.main([str(run), *HERE])
