"""Tests of an update of both networks."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.r3 import Block
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.generative.dcgan import discriminator_forward, make_learner, update
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.learner import Learner, draw_latents, recalibration_latents

SHAPE = (1, 28, 28)
NO_NOISE = ("--instance-noise", "0", "--final-instance-noise", "0")
ADA = ("--ada", "blit", "geometry", "color", "--ada-probability", "0.5")
CPU = Compute(device="cpu", threads=1)


def learner(*words: str, seed: int = 1, compute: Compute = CPU) -> Learner:
    small = ("--generator-width", "0.125", "--discriminator-width", "0.125", "--latent-dim", "8", "--batch-size", "8")
    config = parse(Config, PRESETS, ["--seed", str(seed), *small, *words], "")
    return make_learner(config, SHAPE, 3, compute, World())


def batch(number: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (number, *SHAPE), dtype=torch.uint8, generator=random)
    return pixels, torch.arange(number) % 3


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_the_generators_step_leaves_no_gradients_on_the_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    it = learner()
    discriminator_gradients: list[list[Tensor]] = []
    step = it.discriminator_optimizer.step

    def record(*args: Any) -> Any:
        discriminator_gradients.append([p.grad.clone() for p in it.discriminator.parameters() if p.grad is not None])
        return step(*args)

    monkeypatch.setattr(it.discriminator_optimizer, "step", record)
    update(it, *batch())
    after = [p.grad for p in it.discriminator.parameters()]
    assert len(after) == len(discriminator_gradients[0])
    for before, now in zip(discriminator_gradients[0], after, strict=True):
        assert now is not None
        assert torch.equal(before, now)


def test_the_discriminators_step_leaves_no_gradients_on_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    it = learner()
    generator_gradients = []
    monkeypatch.setattr(
        it.discriminator_optimizer,
        "step",
        lambda: generator_gradients.append([p.grad for p in it.generator.parameters()]),
    )
    update(it, *batch())
    assert generator_gradients[0]
    assert all(grad is None for grad in generator_gradients[0])


def test_each_network_is_updated_by_its_own_optimizer() -> None:
    it = learner()
    before = weights(it.generator), weights(it.discriminator)
    update(it, *batch())
    assert not torch.equal(weights(it.generator), before[0])
    assert not torch.equal(weights(it.discriminator), before[1])
    it = learner("--generator-learning-rate", "1e-12")
    before = weights(it.generator), weights(it.discriminator)
    update(it, *batch())
    torch.testing.assert_close(weights(it.generator), before[0], atol=1e-10, rtol=0)
    assert (weights(it.discriminator) - before[1]).abs().max() > 1e-5


def test_update_equals_the_pytorch_tutorials() -> None:
    """The training step of PyTorch's DCGAN tutorial leads to the same weights and loss."""
    words = (*NO_NOISE, "--generator-learning-rate", "2e-4", "--discriminator-learning-rate", "2e-4")
    it, reference = learner(*words), learner(*words)
    pixels, labels = batch()
    update(it, pixels, labels)
    generator, discriminator = reference.generator, reference.discriminator
    real = pixels.float() / 127.5 - 1
    z = torch.randn(8, 8, generator=torch.Generator().manual_seed(1_000_003))
    bce = nn.BCEWithLogitsLoss()
    adam = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.99)) for m in (discriminator, generator)]
    fake = generator(z)
    loss = bce(discriminator(real), torch.ones(8)) + bce(discriminator(fake.detach()), torch.zeros(8))
    loss.backward()
    adam[0].step()
    bce(discriminator(fake), torch.ones(8)).backward()
    adam[1].step()
    torch.testing.assert_close(weights(it.discriminator), weights(discriminator))
    torch.testing.assert_close(weights(it.generator), weights(generator))
    assert float(it.read_metrics()["train/d_loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_real_and_generated_images_have_separate_batchnorm_statistics() -> None:
    it = learner()
    sizes = []
    norm = next(m for m in it.discriminator.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda _, inputs, out: sizes.append((len(inputs[0]), out.detach().mean((0, 2, 3)))))
    update(it, *batch())
    assert [size for size, _ in sizes] == [8, 8, 8]  # real, generated, and generated for the generator's step
    for _, mean in sizes:  # a joint batch would give other means; biases have done one small step
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0)


def test_gradient_accumulation_equals_the_whole_batch() -> None:
    """This holds without BatchNorm, whose statistics differ between the parts, and without random numbers."""
    plain = ("--generator-norm", "none", "--discriminator-norm", "none", *NO_NOISE)
    whole, parts = learner(*plain), learner(*plain, "--accumulation-steps", "4")
    for it in (whole, parts):
        update(it, *batch())
    torch.testing.assert_close(weights(parts.generator), weights(whole.generator), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(weights(parts.discriminator), weights(whole.discriminator), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(parts.read_metrics(), whole.read_metrics(), atol=1e-5, rtol=1e-4)


def test_snapshot_is_the_averaged_generator_with_recalibrated_statistics() -> None:
    it = learner("--ema-half-life-updates", "5")
    for _ in range(120):
        update(it, *batch())
    snapshot = it.snapshot()
    assert it.ema is not None
    assert torch.equal(weights(snapshot), weights(it.ema.module))
    assert not torch.equal(weights(snapshot), weights(it.generator))
    assert not snapshot.training
    # On the latent vectors of the recalibration, training mode must give nearly the same images.
    z = torch.cat(recalibration_latents(it.config, 0, CPU))
    with torch.no_grad():
        recalibrated = snapshot(z)
        training_mode = snapshot.train()(z)
        unaveraged = it.generator.eval()(z)
    assert float((recalibrated - training_mode).abs().max()) < 0.02
    assert float((recalibrated - unaveraged).abs().max()) > 0.02


def test_snapshot_changes_neither_weights_nor_random_numbers() -> None:
    one, other = learner(), learner()
    for _ in range(3):
        update(one, *batch())
        one.snapshot()
        update(other, *batch())
    state, expected = one.state_dict(), other.state_dict()
    for name, value in expected["generator"].items():
        assert torch.equal(state["generator"][name], value)
    assert torch.equal(state["random"], expected["random"])
    assert one.generator.training


@pytest.mark.parametrize("loss", ["bce", "least-squares", "hinge", "wasserstein", "relativistic"])
def test_losses_are_finite_in_bfloat16(loss: str) -> None:
    bf16 = Compute(device="cpu", threads=1, precision="bfloat16", channels_last=True)
    it = learner("--loss", loss, "--diffaugment", "color", "translation", "cutout", "--flip", *ADA, compute=bf16)
    for _ in range(3):
        update(it, *batch())
    metrics = it.read_metrics()
    assert all(value.isfinite() for value in metrics.values())
    assert it.has_finite_weights()
    assert metrics["train/g_grad_norm"] > 0
    assert metrics["train/d_grad_norm"] > 0


@pytest.mark.parametrize(
    "words",
    [
        ("--preset", "r3"),
        ("--loss", "wasserstein", "--gradient-penalty", "10", "--discriminator-norm", "none"),
        ("--loss", "hinge", "--spectral-norm", "--discriminator-norm", "none", "--conditional"),
        ("--conditional", "--accumulation-steps", "2", "--upsample", "resize"),
    ],
)
def test_options_beyond_the_paper_update_both_networks(words: tuple[str, ...]) -> None:
    it = learner(*words)
    before = weights(it.discriminator), weights(it.generator)
    for _ in range(3):
        update(it, *batch())
    assert it.has_finite_weights()
    assert not torch.equal(weights(it.discriminator), before[0])
    assert not torch.equal(weights(it.generator), before[1])
    penalty = float(it.read_metrics()["train/penalty"])
    assert (penalty > 0) == bool(it.config.r1 or it.config.gradient_penalty)


def test_r1_and_r2_penalties_are_added_to_the_loss() -> None:
    words = ("--discriminator-norm", "none", "--generator-norm", "none")
    losses = {}
    for name, more in {
        "none": (),
        "r1": ("--r1", "2"),
        "r2": ("--r2", "2"),
        "both": ("--r1", "2", "--r2", "2"),
    }.items():
        it = learner(*words, *more)
        update(it, *batch())
        metrics = it.read_metrics()
        losses[name] = float(metrics["train/d_loss"])
        assert losses[name] - losses["none"] == pytest.approx(float(metrics["train/penalty"]), abs=1e-5)
    assert losses["both"] - losses["none"] == pytest.approx(losses["r1"] + losses["r2"] - 2 * losses["none"], abs=1e-5)
    assert losses["r1"] != pytest.approx(losses["r2"])


@pytest.mark.parametrize(("name", "factor"), [("r1", 0.25), ("r2", 0.25), ("gradient-penalty", 0.5)])
def test_penalties_equal_an_explicit_computation(name: str, factor: float) -> None:
    """Gamma / 2 times the squared gradient norm at real (R1) or generated (R2) images; WGAN-GP between them."""
    it = learner("--discriminator-norm", "none", *NO_NOISE, f"--{name}", "0.5", "--penalty-every-updates", "2")
    generator = torch.Generator().manual_seed(4)
    real, fake = (torch.rand(8, *SHAPE, generator=generator) for _ in range(2))
    fraction_B = torch.rand(8, generator=torch.Generator().manual_seed(1_000_003)).view(-1, 1, 1, 1)
    images = {"r1": real, "r2": fake, "gradient-penalty": fraction_B * real + (1 - fraction_B) * fake}[name]
    penalties = []
    for image in images:
        x = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(it.discriminator(x, None).sum(), x)
        norm = float(gradient.norm())
        penalties.append((norm - 1) ** 2 if name == "gradient-penalty" else norm**2)
    expected = 2 * factor * sum(penalties) / 8  # the factor 2 makes up for the updates without penalty
    plain, _ = discriminator_forward(it, real.clone(), fake.clone(), None, penalize=False)
    loss, metrics = discriminator_forward(it, real.clone(), fake.clone(), None, penalize=True)
    assert float(metrics[4]) == pytest.approx(expected, rel=1e-4)
    assert float((loss - plain).detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("version", ["published", "0.1"])
@pytest.mark.parametrize("name", ["r1", "r2"])
def test_penalties_are_those_of_images_before_augmentation(name: str, version: str) -> None:
    """As in R3GAN's code, where the images need gradients and the discriminator gets augmented ones."""
    kinds = ("--diffaugment", "color", "translation", "cutout", "--diffaugment-version", version)
    it = learner("--discriminator-norm", "none", *NO_NOISE, f"--{name}", "0.5", *kinds)
    generator = torch.Generator().manual_seed(4)
    real, fake = (torch.rand(8, *SHAPE, generator=generator) * 2 - 1 for _ in range(2))
    it.random.manual_seed(5)
    inputs = {}
    for key, raw in (("r1", real), ("r2", fake)):
        x = raw.clone().requires_grad_()
        inputs[key] = x, it.discriminator_input(x)
    x, augmented = inputs[name]
    at = x if version == "published" else augmented
    (gradient,) = torch.autograd.grad(it.discriminator(augmented, None).sum(), at)
    it.random.manual_seed(5)
    _, metrics = discriminator_forward(it, real, fake, None, penalize=True)
    assert float(metrics[4]) == pytest.approx(0.25 * float(gradient.square().sum()) / 8, rel=1e-4)
    assert not real.requires_grad, "the images of the generator's step need no gradients"


def test_penalties_are_those_of_images_before_adaptive_augmentation() -> None:
    it = learner("--discriminator-norm", "none", *NO_NOISE, "--r1", "0.5", *ADA, "--ada-probability", "0.8")
    real, fake = (torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (4, 5))
    it.random.manual_seed(6)
    x = real.clone().requires_grad_()
    augmented = it.discriminator_input(x)
    assert float((augmented - x).detach().abs().amax((1, 2, 3)).min()) > 0.1
    (gradient,) = torch.autograd.grad(it.discriminator(augmented, None).sum(), x)
    it.random.manual_seed(6)
    _, metrics = discriminator_forward(it, real, fake, None, penalize=True)
    assert float(metrics[4]) == pytest.approx(0.25 * float(gradient.square().sum()) / 8, rel=1e-4)
    update(it, *batch())  # the penalty has second derivatives
    assert it.has_finite_weights()


def test_adaptive_augmentation_follows_the_scores_of_real_images() -> None:
    """Two accumulated parts are one update; the probability moves at every fourth by 4 * 8 / 320 images."""
    words = ("--ada", "color", "--ada-probability", "0.5", "--ada-images", "320", "--accumulation-steps", "2")
    for target, score, expected in (("0.5", -1, 0.4), ("0.5", 1, 0.6), ("0", 1, 0.5)):
        it = learner(*words, "--ada-target", target, "--discriminator-learning-rate", "1e-9")
        with torch.no_grad():  # weights of one sign: leaky ReLU's outputs are mostly positive
            it.discriminator.head.weight.abs_()
            it.discriminator.head.weight.mul_(score)
        accuracies = []
        for number in range(4):
            assert float(it.read_metrics()["train/ada_probability"]) == 0.5
            update(it, *batch())
            accuracies.append(float(it.read_metrics()["train/d_accuracy_real"]))
            assert it.updates == number + 1
        metrics = it.read_metrics()
        assert float(metrics["train/ada_probability"]) == pytest.approx(expected)
        if target != "0":
            assert float(metrics["train/ada_overfitting"]) == pytest.approx(2 * sum(accuracies) / 4 - 1)


def test_penalties_need_the_same_images_without_augmentation() -> None:
    """Instance noise is added, so it does not change the gradients; such runs have the numbers of 0.1 bit for bit."""
    for words in (
        ("--preset", "r3"),
        ("--r1", "1", "--r2", "2", "--discriminator-norm", "none", "--gradient-penalty", "1"),
    ):
        both = []
        for version in ("published", "0.1"):
            it = learner(*words, "--instance-noise", "0.2")
            it.config = dataclasses.replace(it.config, diffaugment_version=version)
            for _ in range(3):
                update(it, *batch())
            both.append(torch.cat([weights(it.discriminator), weights(it.generator)]))
        assert torch.equal(*both)


def test_tensors_of_an_update_are_on_the_device_of_the_run() -> None:
    """A tensor created without a device would be on the default device, here one without data."""
    plain = ("--discriminator-norm", "none", "--generator-norm", "none", "--conditional", "--flip", "--r1", "1")
    it = learner(*plain, "--gradient-penalty", "1", "--diffaugment", "color", "--accumulation-steps", "2")
    pixels_BCHW, label_B = batch()
    with torch.device("meta"):
        update(it, pixels_BCHW, label_B)
    assert all(bool(value.isfinite()) for value in it.read_metrics().values())


def test_lazy_regularization_multiplies_the_penalty() -> None:
    plain = ("--discriminator-norm", "none", "--r1", "2")
    every_update, lazy = learner(*plain), learner(*plain, "--penalty-every-updates", "3")
    first = []
    for it in (every_update, lazy):
        update(it, *batch())
        first.append(float(it.read_metrics()["train/penalty"]))
    assert first[1] == pytest.approx(3 * first[0], rel=1e-5)
    penalized = []
    for _ in range(5):
        update(lazy, *batch())
        penalized.append(float(lazy.read_metrics()["train/penalty"]) > 0)
    assert penalized == [False, False, True, False, False]


def test_label_smoothing_needs_bce() -> None:
    plain, smooth = learner(), learner("--label-smoothing", "0.2")
    losses = []
    for it in (plain, smooth):
        update(it, *batch())
        losses.append({name: float(value) for name, value in it.read_metrics().items()})
    assert losses[0]["train/d_score_real"] == losses[1]["train/d_score_real"]
    gain = losses[1]["train/d_loss"] - losses[0]["train/d_loss"]
    assert gain == pytest.approx(0.2 * losses[0]["train/d_score_real"], abs=1e-6)
    with pytest.raises(UserError, match="--label-smoothing"):
        make_learner(Config(label_smoothing=0.1, loss="hinge"), SHAPE, 3, CPU, World())


def test_instance_noise_changes_linearly_and_is_differentiable() -> None:
    it = learner("--instance-noise", "0.4", "--final-instance-noise", "0", "--updates", "4")
    zeros = torch.zeros(8, *SHAPE, requires_grad=True)
    deviations = []
    for _ in range(5):
        update(it, *batch())
        deviations.append(float(it.discriminator_input(zeros).detach().std()))
    assert deviations == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0], abs=0.02)
    (grad,) = torch.autograd.grad(it.discriminator_input(zeros).sum(), zeros)
    assert torch.equal(grad, torch.ones_like(zeros))
    assert learner(*NO_NOISE).discriminator_input(zeros) is zeros
    rising = learner("--instance-noise", "0", "--final-instance-noise", "0.2", "--updates", "1")
    update(rising, *batch())
    update(rising, *batch())
    assert float(rising.discriminator_input(zeros).detach().std()) == pytest.approx(0.2, abs=0.02)


def test_r3_blocks_are_initialized_to_zero_and_learn() -> None:
    it = learner("--preset", "r3")
    modules = [*it.generator.modules(), *it.discriminator.modules()]
    branches = [module for module in modules if isinstance(module, Block)]
    assert len(branches) == 8
    assert not any(block.reduce.weight.any() for block in branches)
    before = [block.filter.weight.clone() for block in branches]
    for _ in range(3):
        update(it, *batch())
    assert all(block.reduce.weight.any() for block in branches)
    assert not any(torch.equal(block.filter.weight, old) for block, old in zip(branches, before, strict=True))
    assert it.has_finite_weights()


def test_same_seed_gives_same_weights() -> None:
    first, again, other = learner(), learner(), learner(seed=2)
    for it in (first, again, other):
        for _ in range(2):
            update(it, *batch())
    assert torch.equal(weights(first.generator), weights(again.generator))
    assert not torch.equal(weights(first.generator), weights(other.generator))


def test_cosine_schedule_ends_at_a_hundredth() -> None:
    it = learner("--schedule", "cosine", "--updates", "4", "--discriminator-learning-rate", "5e-3")
    rates = []
    for _ in range(5):
        update(it, *batch())
        rates.append([o.param_groups[0]["lr"] for o in (it.generator_optimizer, it.discriminator_optimizer)])
    assert rates[0] == pytest.approx([1e-3, 5e-3])
    assert rates[4] == pytest.approx([1e-5, 5e-5])


def test_latent_distributions() -> None:
    random = torch.Generator().manual_seed(0)
    config = parse(Config, PRESETS, ["--latent-distribution", "uniform"], "")
    z = draw_latents(config, (1000, 64), random, torch.device("cpu"))
    assert (float(z.min()), float(z.max())) == pytest.approx((-1, 1), abs=1e-3)
    z = draw_latents(parse(Config, PRESETS, [], ""), (1000, 64), random, torch.device("cpu"))
    assert float(z.std()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(
    "words",
    [
        ("--preset", "r3"),
        ("--conditional",),
        ("--spectral-norm", "--loss", "hinge"),
        ("--loss", "wasserstein", "--gradient-penalty", "10", "--discriminator-norm", "none"),
        ("--accumulation-steps", "2", "--diffaugment", "color", "translation", "cutout"),
        ("--r1", "1", "--discriminator-norm", "none", "--penalty-every-updates", "2"),
        (*ADA, "--ada-images", "100"),
        ("--instance-noise", "0.3", "--label-smoothing", "0.1", "--flip", "--upsample", "resize"),
    ],
    ids=" ".join,
)
def test_resuming_is_bitwise_exact(words: tuple[str, ...]) -> None:
    one, two = learner(*words), learner(*words, seed=2)
    update(one, *batch())
    state = copy.deepcopy(one.state_dict())
    for _ in range(3):
        update(one, *batch())
    if two.ada is not None:
        two.ada.probability.zero_()
    two.load_state_dict(state)
    for _ in range(3):
        update(two, *batch())
    if one.ada is not None:
        assert one.ada.state_dict() == two.ada.state_dict()  # type: ignore[union-attr]
    assert two.updates == one.updates == 4
    for name in ("generator", "discriminator"):
        ours, theirs = getattr(one, name).state_dict(), getattr(two, name).state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
    assert torch.equal(weights(one.snapshot()), weights(two.snapshot()))


def test_non_finite_averages_and_statistics_are_detected() -> None:
    it = learner()
    assert it.has_finite_weights()
    next(buffer for buffer in it.generator.buffers() if buffer.is_floating_point()).fill_(torch.nan)
    assert not it.has_finite_weights()
    it = learner()
    assert it.ema is not None
    with torch.no_grad():
        next(it.ema.module.parameters()).fill_(torch.inf)
    assert not it.has_finite_weights()
