"""Tests of what connects the parts of generative.dcgan: which images, labels, latents and weights are used when.

The real program trains on images that encode their index (tests/generative/recorded_gan.py). The losses and the parts
have tests of their own.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.generative.recorded_gan import TEST, TRAIN, GanRecording, Pass, Sample, indices_of, write_coded
from tests.recorded import Shard, averaged
from zerokara.core import checkpoint
from zerokara.generative.dcgan import discriminator_loss
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.gan.session import preview_latents

pytestmark = pytest.mark.usefixtures("coded_here")

NO_NORM = ("--discriminator-norm", "none", "--generator-norm", "none")


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data set."""
    folder = tmp_path_factory.mktemp("data") / "coded"
    write_coded(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, coded: Path) -> Path:
    """Working folder of the recorded run."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "coded").symlink_to(coded)
    return folder


@pytest.fixture(scope="module")
def recording(folder: Path) -> GanRecording:
    """Recording of a class-conditional GAN with averaged weights; its second evaluation is the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--conditional", "--updates", "14", "--eval-every-updates", "5", "--video-every-updates", "4"]
        words += ["--ema-half-life-updates", "0.4", "--schedule", "cosine"]
        return GanRecording(words, distances=(9.0, 5.0, 3.0, 4.0))


def labels_of(indices: list[int]) -> Tensor:
    """Labels of images."""
    return torch.tensor(indices) % 3


def check_real(real: Pass, pixels: Tensor) -> None:
    """Check that the discriminator received these training images with their labels."""
    torch.testing.assert_close((real.images.detach() + 1) * 127.5, pixels.float(), rtol=0, atol=1e-2)
    assert real.label is not None
    assert torch.equal(real.label, labels_of(real.indices))


def check_generated(fake: Pass, sample: Sample) -> None:
    """Check that the discriminator received these generated images with the labels that the generator received."""
    assert torch.equal(fake.images.detach(), sample.images.detach())
    assert fake.label is not None
    assert sample.label is not None
    assert torch.equal(fake.label, sample.label)


# ---- training


def test_an_epoch_uses_each_training_image_once_with_its_label(recording: GanRecording) -> None:
    held_out = set(indices_of(recording.extracted[0]))
    epochs = [[i for u in recording.updates[e : e + 6] for i in indices_of(u.pixels)] for e in (0, 6)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 96
        assert set(epoch) <= set(TRAIN) - held_out
    assert epochs[0] != epochs[1]
    for update in recording.updates:
        assert torch.equal(update.label, labels_of(indices_of(update.pixels)))


def test_the_discriminator_separates_real_images_from_the_generated_ones_of_the_same_labels(
    recording: GanRecording,
) -> None:
    for update in recording.updates:
        (sample,), step = update.samples, update.discriminator
        assert sample.label is not None
        assert torch.equal(sample.label, update.label)
        real, fake = step.passes
        check_real(real, update.pixels)
        check_generated(fake, sample)
        assert not fake.images.requires_grad, "this step does not need the generator's gradients"
        ((real_score, fake_score),) = step.scores
        assert real_score is real.score
        assert fake_score is fake.score
    latents = torch.cat([update.samples[0].z for update in recording.updates])
    assert len(latents.unique(dim=0)) == len(latents), "new latent vectors in every update"


def test_the_generator_is_trained_on_the_same_generated_images(recording: GanRecording) -> None:
    for update in recording.updates:
        step = update.generator
        (fake,) = step.passes
        check_generated(fake, update.samples[0])
        assert fake.images.requires_grad
        assert step.scores[0][1] is fake.score
        assert not step.samples
        assert step.scores[0][0] is None, "only the relativistic loss needs the scores of real images"


def test_each_step_changes_one_network(recording: GanRecording) -> None:
    for update in recording.updates:
        assert update.discriminator.changed() == update.discriminator.optimizers == ["discriminator"]
        assert update.generator.changed() == update.generator.optimizers == ["generator"]
        for one, other in zip(
            update.generator.before["discriminator"], update.discriminator.after["discriminator"], strict=True
        ):
            assert torch.equal(one, other), "the generator's step comes after the discriminator's"


def test_each_update_has_the_learning_rates_of_the_schedule(recording: GanRecording) -> None:
    """A cosine from 1 at the first update to a hundredth after the last. The preset has 5e-4 and 1e-3."""
    for number, update in enumerate(recording.updates):
        factor = 0.01 + 0.99 * (1 + math.cos(math.pi * number / 14)) / 2
        assert update.discriminator.rates == pytest.approx([5e-4 * factor])
        assert update.generator.rates == pytest.approx([1e-3 * factor])


def test_accumulated_parts_keep_images_labels_and_latents_together() -> None:
    """The relativistic loss compares generated images with real ones also in the generator's step."""
    words = ["--conditional", "--updates", "3", "--accumulation-steps", "2", "--loss", "relativistic"]
    recording = GanRecording([*words, *NO_NORM])
    for update in recording.updates:
        assert [len(sample.z) for sample in update.samples] == [8, 8]
        assert not any(sample.images.requires_grad for sample in update.samples), "this would need too much memory"
        parts = list(zip(update.pixels.chunk(2), update.label.chunk(2), update.samples, strict=True))
        for part, (pixels, label, sample) in enumerate(parts):
            assert sample.label is not None
            assert torch.equal(sample.label, label)
            real, fake = update.discriminator.passes[2 * part : 2 * part + 2]
            check_real(real, pixels)
            check_generated(fake, sample)
            again = update.generator.samples[part]
            assert torch.equal(again.z, sample.z)
            torch.testing.assert_close(again.images.detach(), sample.images)
            fake, real = update.generator.passes[2 * part : 2 * part + 2]
            check_generated(fake, again)
            check_real(real, pixels)
            assert update.generator.scores[part][0] is real.score
            assert not real.score.requires_grad
            assert update.generator.scores[part][1] is fake.score
        assert update.discriminator.changed() == update.discriminator.optimizers == ["discriminator"]
        assert update.generator.changed() == update.generator.optimizers == ["generator"]


def test_processes_train_on_disjoint_halves_with_other_latents() -> None:
    words = ["--updates", "6", "--conditional"]
    halves = [GanRecording(words, world=Shard(rank, 2)) for rank in (0, 1)]
    for one, other in zip(*(half.updates for half in halves), strict=True):
        assert len(one.pixels) == len(other.pixels) == 8
        assert not torch.equal(one.samples[0].z, other.samples[0].z)
    used = [index for half in halves for update in half.updates for index in indices_of(update.pixels)]
    assert len(set(used)) == len(used) == 96
    assert [len(half.compared) for half in halves] == [2, 2], "floor and generated images; Shard divides nothing"
    assert [len(half.extracted) for half in halves] == [3, 3], "held-out, training and generated images"


# ---- penalties


@pytest.mark.parametrize(
    "weights", [{"r1": 2.0}, {"r2": 3.0}, {"gradient_penalty": 5.0}, {"r1": 2.0, "r2": 3.0}], ids=str
)
def test_penalties_are_of_their_images_and_in_every_second_update(weights: dict[str, float]) -> None:
    words = [word for name, weight in weights.items() for word in (f"--{name.replace('_', '-')}", str(weight))]
    recording = GanRecording([*words, "--updates", "3", "--penalty-every-updates", "2", "--conditional", *NO_NORM])
    for number, update in enumerate(recording.updates):
        step = update.discriminator
        real, fake = step.passes[:2]
        loss = float(discriminator_loss("bce", real.score, fake.score).detach())
        if number % 2:
            assert not step.penalties
            assert step.losses == pytest.approx([loss])
            continue
        factors = []
        for (name, score, images, _), kind in zip(step.penalties, weights, strict=True):
            factors.append(2 * weights[kind] * (1 if kind == "gradient_penalty" else 0.5))
            if kind == "gradient_penalty":
                assert name == "gradient_penalty"
                check_between(images, real, fake)
                between = step.passes[2]
                assert score is between.score
                assert between.label is not None
                assert torch.equal(between.label, update.label)
            else:
                assert name == "squared_gradient_norm"
                expected = real if kind == "r1" else fake
                assert score is expected.score
                assert images is expected.images
        values = [value for *_, value in step.penalties]
        assert min(values) > 0
        assert step.losses == pytest.approx([loss + float(np.dot(factors, values))], rel=1e-4)
        check_real(real, update.pixels)
        check_generated(fake, update.samples[0])


def check_between(images: Tensor, real: Pass, fake: Pass) -> None:
    """Check that each image is on the line from a generated to a real one, with a fraction of its own."""
    fractions = []
    for middle, one, other in zip(images.detach(), real.images.detach(), fake.images.detach(), strict=True):
        difference = (one - other).flatten()
        fraction = float((middle - other).flatten() @ difference / difference.square().sum())
        torch.testing.assert_close(middle, other + fraction * (one - other), rtol=1e-3, atol=1e-4)
        fractions.append(fraction)
    assert 0 <= min(fractions) < 0.5 < max(fractions) <= 1
    assert len(set(fractions)) == len(fractions)


# ---- evaluation


def test_evaluations_compare_generated_images_with_held_out_ones(recording: GanRecording) -> None:
    held_out, training, *generated = recording.extracted
    assert len(held_out) == 12
    trained = {index for update in recording.updates for index in indices_of(update.pixels)}
    assert not set(indices_of(held_out)) & (trained | set(TEST))
    assert len(set(indices_of(training))) == 100
    assert set(indices_of(training)) <= set(TRAIN) - set(indices_of(held_out))
    assert recording.compared == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert recording.extracted_at == [5, 5, 5, 10, 14], "training does not wait for the floor"
    evaluated = [each for each in recording.previews if each.phase == "evaluation" and len(each.z) == 100]
    assert [each.update for each in evaluated] == [5, 10, 14]
    for each, images in zip(evaluated, generated, strict=True):
        assert torch.equal(each.images, images)
        assert torch.equal(each.z, evaluated[0].z), "the same latent vectors in all evaluations"
        assert each.label is not None
        assert torch.equal(each.label, torch.arange(100) % 3)


def test_evaluations_and_previews_use_the_averaged_generator(recording: GanRecording) -> None:
    assert {each.update for each in recording.previews} == {4, 5, 8, 10, 12, 14}
    parameters = dict(recording.learner.generator.named_parameters())
    for each in recording.previews:
        expected = averaged([update.weights for update in recording.updates[: each.update]], recording.first, 0.4)
        raw = recording.updates[each.update - 1].weights
        for name in parameters:
            torch.testing.assert_close(each.weights[name], expected[name], rtol=1e-3, atol=1e-5)
        assert not all(torch.equal(each.weights[name], raw[name]) for name in parameters)


def test_previews_have_fixed_latents_and_labels(recording: GanRecording) -> None:
    previews = [each for each in recording.previews if len(each.z) == 9]
    assert [(each.phase, each.update) for each in previews] == [
        ("video", 4),
        ("evaluation", 5),
        ("video", 8),
        ("evaluation", 10),
        ("video", 12),
        ("evaluation", 14),
    ]
    for each in previews:
        assert torch.equal(each.z, preview_latents(recording.learner.config))
        assert each.label is not None
        assert torch.equal(each.label, torch.arange(9) % 3)


def test_without_averaging_the_generator_itself_is_evaluated() -> None:
    recording = GanRecording(["--ema-half-life-updates", "0", "--updates", "3", "--video-every-updates", "2"])
    parameters = dict(recording.learner.generator.named_parameters())
    assert {each.update for each in recording.previews} == {2, 3}
    for each in recording.previews:
        assert each.label is None
        weights = recording.updates[each.update - 1].weights
        assert all(torch.equal(each.weights[name], weights[name]) for name in parameters)


def test_the_best_checkpoint_is_that_of_the_best_evaluation(recording: GanRecording, folder: Path) -> None:
    run = folder / "runs" / "run"
    assert checkpoint.load(run / "best.pt", "dcgan")["best"] == {"update": 10, "score": 3.0}
    for name, update in (("best.pt", 10), ("checkpoint-0.pt", 14)):
        state = checkpoint.load(run / name, "dcgan")["learner"]
        assert state["updates"] == update
        weights = recording.updates[update - 1].weights
        assert all(torch.equal(tensor, weights[key]) for key, tensor in state["generator"].items())
    evaluated = {each.update: each.weights for each in recording.previews if each.phase == "evaluation"}
    for which, update in (("best", 10), ("last", 14)):
        sampler = Sampler.load(run, which, threads=1)
        assert (sampler.update, sampler.scores["random_fd"]) == (update, {10: 3.0, 14: 4.0}[update])
        weights = sampler.generator.state_dict()
        assert all(torch.equal(tensor, evaluated[update][key]) for key, tensor in weights.items())
