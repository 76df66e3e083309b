"""Tests of the benchmark against PyTorch's DCGAN tutorial."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import dcgan_against_tutorial as benchmark
from benchmarks.dcgan_against_tutorial import Tutorial, tutorial_discriminator, tutorial_generator
from tests.generative.finished_run import FEW
from tests.generative.test_metrics import save_classifier
from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.core.data import glyphs
from zerokara.generative import dcgan
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.learner import make_discriminator, make_generator

pytestmark = pytest.mark.usefixtures("blank_figures")

SMALL = ("--generator-width", "0.1", "--discriminator-width", "0.1", "--device", "cpu", "--threads", "1")
QUICK = (*SMALL, "--precision", "float32", "--video-every-updates", "0", "--eval-images", "100", "--quiet")


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def batch(number: int = 4) -> Tensor:
    return torch.randint(0, 256, (number, 1, 32, 32), dtype=torch.uint8)


def test_parameter_counts_are_the_tutorials() -> None:
    assert parameter_count(tutorial_generator(3, 64)) == 3_576_704
    assert parameter_count(tutorial_discriminator(3, 64)) == 2_765_568
    images = tutorial_generator(1, 32)(torch.randn(2, 100, 1, 1))
    assert images.shape == (2, 1, 32, 32)
    assert tutorial_discriminator(1, 32)(images).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_preset_paper_has_the_tutorials_networks(channels: int, training: bool) -> None:
    """With the tutorial's weights copied, images and logits are equal. At 0 to 1, zero padding would be black."""
    config = parse(Config, PRESETS, ["--preset", "paper"], "")
    shape = (channels, 64, 64)
    generator, discriminator = make_generator(config, shape, 0), make_discriminator(config, shape, 0)
    tutorial = Tutorial(channels, 64, seed=1)
    first, *ups = (module for module in tutorial.generator if isinstance(module, nn.ConvTranspose2d))
    *convs, last = (module for module in tutorial.discriminator if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        generator.project.weight.copy_(first.weight.permute(2, 3, 1, 0).flatten(0, 2))
        discriminator.head.weight.copy_(last.weight.permute(0, 2, 3, 1).flatten(1))
    for ours, theirs in (
        *zip(generator.get_submodule("ups").children(), ups, strict=True),
        *zip(discriminator.backbone.get_submodule("convs").children(), convs, strict=True),
        *zip(norms(generator), norms(tutorial.generator), strict=True),
        *zip(norms(discriminator), norms(tutorial.discriminator), strict=True),
    ):
        ours.load_state_dict(theirs.state_dict())
    for network in (generator, discriminator, tutorial.generator, tutorial.discriminator):
        network.train(training)
    z_BZ = torch.rand(4, 100) * 2 - 1
    with torch.no_grad():
        images = tutorial.generator(z_BZ[:, :, None, None])
        logit_B = tutorial.discriminator[:-1](images).flatten()  # without the sigmoid
        torch.testing.assert_close(generator(z_BZ), images, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(discriminator(images), logit_B, atol=1e-5, rtol=1e-5)
        discriminator.input_range = "unit"
        assert float((discriminator(images) - logit_B).abs().max()) > 1e-3


def norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_tutorials_update_leaves_gradients_on_the_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tutorial's code does this; zerokara's does not."""
    tutorial = Tutorial(1, 32, seed=1)
    before: list[Tensor] = []
    step = tutorial.discriminator_optimizer.step

    def record() -> None:
        before.extend(p.grad.clone() for p in tutorial.discriminator.parameters() if p.grad is not None)
        step()

    monkeypatch.setattr(tutorial.discriminator_optimizer, "step", record)
    tutorial.update(batch())
    after = [p.grad for p in tutorial.discriminator.parameters()]
    assert all(now is not None and not torch.equal(then, now) for then, now in zip(before, after, strict=True))
    assert all(loss > 0 for loss in tutorial.losses)


def test_resuming_is_exact_and_sampling_changes_nothing() -> None:
    pixels = batch(12)
    through, stopped = Tutorial(1, 32, seed=1), Tutorial(1, 32, seed=1)
    for tutorial in (through, stopped):
        tutorial.update(pixels[:4])
    through.update(pixels[4:8])
    for training in (True, False):
        stopped.sample(3, training=training)
    again = Tutorial(1, 32, seed=2)
    again.load_state_dict(stopped.state_dict())
    again.update(pixels[4:8])
    for one, other in zip(through.generator.state_dict().values(), again.generator.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert again.updates == 2
    assert torch.equal(again.sample(5, training=False), through.sample(5, training=False))


def test_unsupported_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="--image-size 32"):
        Tutorial(1, 28, seed=1)


def test_speed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--precision", "float32", *SMALL]
    benchmark.main(["speed", "--image-size", "32", "--updates", "1", "--repeats", "2", *words])
    result = json.loads(capsys.readouterr().out)
    assert {name: len(values) for name, values in result["images_per_s"].items()} == {"ours": 2, "tutorial": 2}
    assert result["ratio"] == pytest.approx(result["median"]["ours"] / result["median"]["tutorial"], rel=0.02)
    assert result["parameters"]["ours"] < result["parameters"]["tutorial"]


def test_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.setattr(benchmark, "run_ours", in_this_process)
    save_classifier(tmp_path / "classifier")
    words = ["quality", "--data", "glyphs", "--classifier", "classifier", "--updates", "3", "--images", "120"]
    benchmark.main([*words, "--seeds", "1", "2", *QUICK])
    first = json.loads(capsys.readouterr().out)
    assert [one["seed"] for one in first["seeds"]] == [1, 2]
    for one in first["seeds"]:
        least = min(one["tutorial_in_training_mode"], one["tutorial_in_evaluation_mode"])
        assert one["ratio_last"] == pytest.approx(one["ours_last"] / least)
    assert first["seeds"][0]["ours_last"] != first["seeds"][1]["ours_last"]
    assert first["images_seen"] == 3 * 64
    assert 0 < first["floor"] < first["seeds"][0]["ours_last"]
    monkeypatch.setattr(Tutorial, "update", None)  # training again would fail
    benchmark.main([*words, "--seeds", "1", "2", *QUICK])
    assert json.loads(capsys.readouterr().out)["seeds"] == first["seeds"]


def test_quality_needs_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.setattr("zerokara.generative.scoring.feature_extractor.zoo_files", dict)
    with pytest.raises(UserError, match="--classifier"):
        benchmark.main(["quality", "--data", "glyphs", "--updates", "1", "--seeds", "1", *QUICK])


def in_this_process(name: str, words: list[str]) -> Path:
    """Train like `run_ours`, but in this process, where the number of glyphs is small."""
    folder = Path("runs") / name
    with contextlib.redirect_stdout(sys.stderr):
        dcgan.main(["--name", name, *words, *(["--resume"] if folder.exists() else [])])
    return folder
