"""Tests of the classifier's training state: data, learning rate, order of images, updates, targets, averaging."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core import data
from zerokara.core.backbones.airbench import Whitening, whitening_filters
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.divergence import has_finite_weights
from zerokara.vision.classification.config import NO_AUGMENTATION, Config
from zerokara.vision.classification.learner import Data, Training
from zerokara.vision.training.epochs import probe_update

PLAIN: dict[str, Any] = {**NO_AUGMENTATION, "dropout": 0.0, "width_multiplier": 0.25, "validation_images": 20}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Return 120 different RGB images of noise, in ten classes."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (120, 3, 28, 28), dtype=torch.uint8, generator=generator)
    pixels[:, 1] //= 2  # so that the channels have different means
    images = ImageSet(pixels, torch.arange(120) % 10, tuple("0123456789"), "noise")
    monkeypatch.setattr(data, "load", lambda *args, **options: images)
    return images


def training(**settings: Any) -> Training:
    config = Config(**{"batch_size": 10, **PLAIN, **settings})
    return Training(config, Data.load(config), Compute(), World())


def rows(images: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


# ---- data


def test_the_model_file_has_the_background_of_transparent_pixels() -> None:
    assert training(background="black").metadata.background == "black"


def test_validation_images_are_the_same_for_every_seed_and_not_in_the_training_set(few_images: ImageSet) -> None:
    loaded = [Data.load(Config(seed=seed, train_images=50, **PLAIN)) for seed in (1, 2, 3)]
    for one in loaded:
        assert torch.equal(one.validation.images, loaded[0].validation.images)
        assert (len(one.train), len(one.validation)) == (50, 20)
        assert not rows(one.train) & rows(one.validation)
        assert rows(one.train) | rows(one.validation) <= rows(few_images)
    assert rows(loaded[0].train) != rows(loaded[1].train), "the training images must depend on the seed"
    whole = Data.load(Config(**PLAIN))
    assert rows(whole.train) | rows(whole.validation) == rows(few_images)
    assert (len(whole.train), len(whole.validation)) == (100, 20)
    assert torch.equal(whole.validation.images, loaded[0].validation.images)


def test_default_validation_set_is_a_twelfth() -> None:
    assert len(Data.load(Config()).validation) == 10


def test_train_images_must_not_exceed_the_available_images() -> None:
    assert len(Data.load(Config(train_images=100, **PLAIN)).train) == 100
    with pytest.raises(UserError, match="--train-images 101 is more than the 100 available images"):
        Data.load(Config(train_images=101, **PLAIN))
    with pytest.raises(UserError, match="cannot be held out"):
        Data.load(Config(validation_images=120))


def test_mean_and_standard_deviation_are_those_of_the_training_images() -> None:
    loaded = Data.load(Config(train_images=50, **PLAIN))
    pixels = loaded.train.images.double() / 255
    torch.testing.assert_close(loaded.mean_C, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(loaded.std_C, pixels.transpose(0, 1).flatten(1).std(1, correction=0).float())
    assert loaded.mean_C.tolist() == pytest.approx([0.5, 0.25, 0.5], abs=0.01)


def test_standard_deviation_of_constant_images_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    grayscale = ImageSet(
        torch.full((20, 1, 28, 28), 51, dtype=torch.uint8), torch.arange(20) % 2, ("a", "b"), "grayscale"
    )
    monkeypatch.setattr(data, "load", lambda *args, **options: grayscale)
    loaded = Data.load(Config(validation_images=2))
    assert loaded.mean_C.tolist() == pytest.approx([0.2])
    assert loaded.std_C.tolist() == pytest.approx([1e-3])


# ---- learning rate


def test_warmup_and_cosine_schedule_against_hand_computed_values() -> None:
    """Ten updates per epoch: warm-up over the first of four epochs, then cosine decay over 30 updates."""
    learner = training(learning_rate=0.6, warmup_epochs=1.0, epochs=4)
    assert (learner.updates_per_epoch, learner.total_updates) == (10, 40)
    rates = []
    for learner.updates in range(40):
        rates.append(learner.learning_rate)
    assert rates[:10] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3, 0.36, 0.42, 0.48, 0.54, 0.6])
    assert rates[10:] == pytest.approx([0.6 * (1 + math.cos(math.pi * n / 30)) / 2 for n in range(1, 31)])
    assert rates[24] == pytest.approx(0.3)  # half way down


def test_constant_schedule_has_a_warmup() -> None:
    learner = training(learning_rate=0.6, schedule="constant", warmup_epochs=0.5, epochs=4)
    rates = []
    for learner.updates in range(8):
        rates.append(learner.learning_rate)
    assert rates == pytest.approx([0.12, 0.24, 0.36, 0.48, 0.6, 0.6, 0.6, 0.6])
    assert training(learning_rate=0.6, schedule="constant", warmup_epochs=0.0).learning_rate == 0.6


def test_linear_schedule_is_a_triangle_with_the_warmup() -> None:
    learner = training(learning_rate=0.6, schedule="linear", warmup_epochs=0.5, epochs=2)
    rates = []
    for learner.updates in range(20):
        rates.append(learner.learning_rate)
    assert rates[:5] == pytest.approx([0.12, 0.24, 0.36, 0.48, 0.6])
    assert rates[5:] == pytest.approx([0.04 * n for n in range(14, -1, -1)])


def test_biases_and_output_layers_have_their_own_learning_rates() -> None:
    rates = {"output_learning_rate": 0.02, "bias_learning_rate": 50.0, "momentum": 0.6, "sgd_momentum": 0.7}
    learner = training(
        optimizer="muon_sgd", learning_rate=0.24, schedule="linear", warmup_epochs=0.0, epochs=4, **rates
    )
    learner.updates = 29
    learner.update(torch.arange(10))
    groups = learner.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.06, 0.005, 12.5]), "a quarter is left"
    assert [group["momentum"] for group in groups] == [0.6, 0.7, 0.7]


def test_update_sets_the_learning_rate_of_the_optimizer() -> None:
    learner = training(optimizer="muon", learning_rate=0.6, warmup_epochs=1.0)
    learner.update(torch.arange(10))
    rates = {group["lr"] for group in learner.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.006, 0.06])


# ---- order of images


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    one, same, other = training(seed=1), training(seed=1), training(seed=2)
    first = one.epoch_order()
    torch.rand(7)  # other random numbers do not matter
    assert torch.equal(first, same.epoch_order())
    assert torch.equal(first, one.epoch_order())
    assert sorted(first.tolist()) == list(range(100))
    assert not torch.equal(first, other.epoch_order())
    same.updates = 9
    assert torch.equal(first, same.epoch_order()), "the order must not change within an epoch"
    same.updates = 10
    assert not torch.equal(first, same.epoch_order())
    assert sorted(same.epoch_order().tolist()) == list(range(100))


def test_an_incomplete_last_batch_is_left_out() -> None:
    assert training(batch_size=30).updates_per_epoch == 3
    assert training(batch_size=500).updates_per_epoch == 1, "fewer images than a batch make one update"


# ---- update


def test_sgd_update_against_hand_computed_values() -> None:
    """The new weights are w - learning_rate * gradient of the mean cross-entropy."""
    settings: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    learner = training(**settings, learning_rate=0.1, warmup_epochs=0.0, label_smoothing=0.0)
    index = torch.tensor([3, 1, 4, 15, 92, 65, 35, 89, 79, 32])
    reference = copy.deepcopy(learner.network)
    pixels = learner.data.train.images[index].double() / 255
    mean, std = (t.double().view(1, 3, 1, 1) for t in (learner.data.mean_C, learner.data.std_C))
    logits = reference(((pixels - mean) / std).float())
    loss = F.cross_entropy(logits, learner.data.train.labels[index])
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    learner.update(index)
    for after, before, gradient in zip(weights(learner.network), weights(reference), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    metrics = learner.read_metrics()
    assert float(metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    accuracy = (logits.argmax(1) == learner.data.train.labels[index]).float().mean()
    assert float(metrics["train/accuracy"]) == pytest.approx(float(accuracy))
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert float(metrics["train/grad_norm"]) == pytest.approx(float(norm), rel=1e-4)
    assert float(learner.read_metrics()["train/loss"]) == 0.0, "the sums must be reset"


@pytest.mark.parametrize(("accumulation_steps", "images"), [(2, 10), (5, 10), (4, 7)])
def test_gradient_accumulation_gives_the_same_step(accumulation_steps: int, images: int) -> None:
    """The parts may have different sizes: 2, 2, 2, 1 in the last case."""
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "warmup_epochs": 0.0}
    whole, parts = training(**settings), training(**settings, accumulation_steps=accumulation_steps)
    before = weights(whole.network)
    for learner in (whole, parts):
        learner.update(torch.arange(images))
    for a, b, old in zip(weights(whole.network), weights(parts.network), before, strict=True):
        torch.testing.assert_close(a - old, b - old, rtol=1e-3, atol=1e-6)
    assert max(float((a - old).abs().max()) for a, old in zip(weights(whole.network), before, strict=True)) > 1e-3
    one, other = whole.read_metrics(), parts.read_metrics()
    for name, value in one.items():
        assert float(other[name]) == pytest.approx(float(value), rel=1e-4)


def test_gradients_are_clipped() -> None:
    settings: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0}
    learner = training(**settings, learning_rate=1.0, schedule="constant", max_grad_norm=0.01)
    before = weights(learner.network)
    learner.update(torch.arange(10))
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(learner.network), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(learner.read_metrics()["train/grad_norm"]) > 0.05, "the logged norm must be the one before clipping"


# ---- targets


def test_label_smoothing_against_hand_computed_values() -> None:
    learner = training(label_smoothing=0.2)
    _, target = learner.batch(torch.tensor([0, 1]))
    labels = learner.data.train.labels[:2]
    assert target.shape == (2, 10)
    for row, label in zip(target.tolist(), labels.tolist(), strict=True):
        assert row == pytest.approx([0.8 + 0.02 if k == label else 0.02 for k in range(10)])


def test_mixup_mixes_images_and_targets_alike() -> None:
    """An image of mixup is weight * image + (1 - weight) * partner, and so is its target."""
    mixed, plain = training(mixup=1.0, label_smoothing=0.1), training(label_smoothing=0.1)
    index = torch.arange(6)
    x, target = mixed.batch(index)
    x_plain, _ = plain.batch(index)
    labels = plain.data.train.labels[:6]
    assert labels.unique().numel() == 6, "a partner is identified by its class"
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    mixed_images = 0
    for i in range(6):
        unsmoothed = (target[i] - 0.01) / 0.9  # the weights of the two classes
        weight = float(unsmoothed[labels[i]])
        if weight < 0.999:
            partner = int((unsmoothed.scatter(0, labels[i], -1.0)[labels]).argmax())
            expected = weight * x_plain[i] + (1 - weight) * x_plain[partner]
            torch.testing.assert_close(x[i], expected, rtol=1e-3, atol=1e-4)
            mixed_images += 1
        else:
            torch.testing.assert_close(x[i], x_plain[i], rtol=1e-3, atol=0.02)
    assert mixed_images >= 3


def test_augmentation_is_reproducible_from_the_seed() -> None:
    moving: dict[str, Any] = {"rotation_degrees": 20.0, "shift": 0.2}
    index = torch.arange(4)
    one, same, other = training(**moving), training(**moving), training(**moving, seed=2)
    x = one.batch(index)[0]
    assert torch.equal(x, same.batch(index)[0])
    assert not torch.equal(x, one.batch(index)[0]), "the next batch must be augmented differently"
    assert not torch.equal(x, other.batch(index)[0])
    assert not torch.equal(x, training().batch(index)[0])


# ---- evaluation, state


def test_averaged_weights_are_evaluated() -> None:
    learner, plain = training(ema_half_life_updates=50.0, learning_rate=0.05, warmup_epochs=0.0), training()
    for _ in range(6):
        learner.update(learner.epoch_order()[:10])
    assert learner.ema is not None
    assert learner.evaluation_network is learner.ema.module
    assert plain.evaluation_network is plain.network
    scores = learner.score(learner.data.validation)
    learner.network.load_state_dict(learner.ema.module.state_dict())
    learner.ema = None
    assert torch.equal(learner.score(learner.data.validation).probability_NK, scores.probability_NK)


def test_early_stopping_after_patience_epochs() -> None:
    learner = training(patience_epochs=2)
    assert not learner.should_stop_early, "there was no validation yet"
    learner.best = {"epoch": 1, "figure": 0.5, "since": 1}
    stops = []
    for learner.updates in (10, 20, 25, 30, 40):
        stops.append(learner.should_stop_early)
    assert stops == [False, False, False, True, True]
    learner = training()
    learner.best, learner.updates = {"epoch": 1, "figure": 0.5, "since": 1}, 140
    assert not learner.should_stop_early, "with patience_epochs 0 a run must never stop early"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon", "muon_sgd"])
def test_a_restored_state_continues_bit_for_bit(optimizer: str) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "ema_half_life_updates": 5.0, "mixup": 0.5, "dropout": 0.5}
    settings |= {"rotation_degrees": 10.0}
    one, two = training(**settings), training(**settings)
    for _ in range(3):
        one.update(one.epoch_order()[:10])
    state = copy.deepcopy(one.state_dict())
    one.update(torch.arange(10))
    torch.rand(3)
    two.load_state_dict(state)
    two.update(torch.arange(10))
    assert two.updates == one.updates == 4
    for a, b in zip(weights(one.network), weights(two.network), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(weights(one.evaluation_network), weights(two.evaluation_network), strict=True):
        assert torch.equal(a, b)
    assert {k: float(v) for k, v in one.read_metrics().items()} == {k: float(v) for k, v in two.read_metrics().items()}


def test_non_finite_weights_are_detected() -> None:
    learner = training()
    assert has_finite_weights(learner.network)
    with torch.no_grad():
        next(learner.network.parameters()).view(-1)[3] = math.inf
    assert not has_finite_weights(learner.network)


def test_metadata_describes_the_network_of_the_config() -> None:
    metadata = training(head="pooled", dropout=0.25).metadata
    assert (metadata.backbone, metadata.head, metadata.dropout, metadata.options) == (
        "deep_cnn",
        "pooled",
        0.25,
        {"width": 0.25},
    )
    assert (metadata.channels, metadata.image_size, metadata.classes) == (3, (28, 28), tuple("0123456789"))
    assert metadata.mean == pytest.approx(tuple(training().data.mean_C.tolist()))
    assert metadata.data == "noise"


# ---- airbench


def test_the_first_layer_of_airbench_is_whitened_and_its_bias_frozen() -> None:
    settings = {"backbone": "airbench", "width_multiplier": 1 / 8, "optimizer": "muon_sgd", "learning_rate": 0.1}
    learner = training(**settings, whitening_bias_epochs=1)
    layer = learner.network.backbone.get_submodule("whiten")
    assert isinstance(layer, Whitening)
    train = learner.data.train.images
    expected = whitening_filters(learner.metadata.normalize_uint8(train), 2)
    torch.testing.assert_close(layer.weight, expected)
    biases = []
    for learner.updates in (8, 9, 10, 11):
        learner.update(torch.arange(10))
        biases.append(layer.bias.detach().clone())
    assert torch.equal(layer.weight, expected)
    assert not torch.equal(biases[0], biases[1])
    assert torch.equal(biases[1], biases[2]), "the second epoch begins with update 10"
    assert torch.equal(biases[2], biases[3])
    always = training(**settings)
    always.updates = 50
    always.update(torch.arange(10))
    assert always.network.backbone.get_parameter("whiten.bias").grad is not None


def test_the_probe_times_one_variant_of_airbench() -> None:
    """Its batch is an epoch, and code that is compiled for the trained bias is of no use for the frozen one."""
    made = []

    def make(*args: Any) -> Training:
        made.append(Training(*args))
        return made[0]

    settings = {"backbone": "airbench", "width_multiplier": 1 / 8, "optimizer": "muon_sgd", "whitening_bias_epochs": 1}
    config = Config(**PLAIN | settings, batch_size=10)
    step = probe_update(make, config, Data.load(config), Compute(), 10)
    for _ in range(3):
        step()
        assert made[0].network.backbone.get_submodule("whiten").trains_bias


def test_a_run_of_airbench_continues_bit_for_bit_where_its_bias_is_frozen() -> None:
    settings = {"backbone": "airbench", "width_multiplier": 1 / 8, "optimizer": "muon_sgd", "whitening_bias_epochs": 1}
    settings |= {"crop_pixels": 2, "crop_padding": "reflect", "flip": True, "learning_rate": 0.1}
    one, two = training(**settings), training(**settings, seed=2)
    two.network.backbone.get_parameter("whiten.weight").data.zero_()  # the checkpoint has these filters
    for _ in range(12):
        one.update(one.next_batch())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for learner in (one, two):
        learner.update(torch.arange(10))
    assert all(torch.equal(a, b) for a, b in zip(weights(one.network), weights(two.network), strict=True))
    again = training(**settings)
    for _ in range(12):
        again.update(again.next_batch())
    again.update(torch.arange(10))
    assert all(torch.equal(a, b) for a, b in zip(weights(one.network), weights(again.network), strict=True))
