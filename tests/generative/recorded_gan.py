"""A data set whose images encode their index, and a record of what the networks and losses of a GAN receive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.recorded import copy_of, record_averages
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.generative import dcgan
from zerokara.generative.gan.learner import Learner
from zerokara.generative.gan.networks import Discriminator, Generator
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.gan.session import Session
from zerokara.generative.scoring import evaluation
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, FeatureSet

TRAIN, TEST = range(120), range(120, 126)  # indices of the images; 12 of the first are held out
CLASSES = ("a", "b", "c")
RED_STEP = 2  # difference of the red channel of consecutive images
TINY = (
    *("--data", "./coded", "--held-out-images", "12", "--generator-width", "0.05", "--discriminator-width", "0.05"),
    *("--latent-dim", "4", "--batch-size", "16", "--instance-noise", "0", "--final-instance-noise", "0"),
    "--no-augment-few-images",
    *("--eval-images", "100", "--preview-images", "9", "--video-every-updates", "0", "--eval-every-updates", "0"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1", "--quiet", "--name", "run"),
)


def write_coded(folder: Path) -> None:
    """Write the data set: image i has the class i % 3, and its red channel has the value 2 i everywhere."""
    for split, indices in (("train", TRAIN), ("test", TEST)):
        for index in indices:
            pixels = np.random.default_rng(index).integers(0, 256, (28, 28, 3), np.uint8)
            pixels[..., 0] = RED_STEP * index
            path = folder / split / CLASSES[index % 3] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def indices_of(images_BCHW: Tensor) -> list[int]:
    """Indices of images with pixels from 0 to 255. Fails if an image is none of the data set."""
    red_B = images_BCHW[:, 0].flatten(1).float()
    assert bool(((red_B - red_B[:, :1]).abs() < 0.5).all()), "this is no image of the data set"
    return [int(code) for code in (red_B.mean(1) / RED_STEP).round()]


class Pass(NamedTuple):
    """Forward pass of the discriminator."""

    images: Tensor  # from -1 to 1
    label: Tensor | None
    score: Tensor

    @property
    def indices(self) -> list[int]:
        """Indices of the images, which must be images of the data set."""
        return indices_of((self.images.detach() + 1) * 127.5)


class Sample(NamedTuple):
    """Forward pass of the generator in training."""

    z: Tensor
    label: Tensor | None
    images: Tensor


@dataclass
class Step:
    """Step of one network."""

    network: str = ""
    has_gradients: bool = False  # the backward pass has begun
    passes: list[Pass] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    scores: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)  # of real and generated images
    penalties: list[tuple[str, Tensor, Tensor, float]] = field(default_factory=list)  # name, scores, images, value
    losses: list[float] = field(default_factory=list)  # of the discriminator, with penalties
    rates: list[float] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)  # networks whose optimizer did a step
    before: dict[str, list[Tensor]] = field(default_factory=dict)  # parameters of both networks
    after: dict[str, list[Tensor]] = field(default_factory=dict)

    def changed(self) -> list[str]:
        """Networks whose parameters the step changed."""
        return [
            name
            for name, before in self.before.items()
            if any(not torch.equal(old, new) for old, new in zip(before, self.after[name], strict=True))
        ]


@dataclass
class Update:
    """One step of each network."""

    pixels: Tensor  # real images, uint8
    label: Tensor
    samples: list[Sample] = field(default_factory=list)  # generated before both steps
    discriminator: Step = field(default_factory=Step)
    generator: Step = field(default_factory=Step)
    weights: dict[str, Tensor] = field(default_factory=dict)  # of the generator, afterwards


class Preview(NamedTuple):
    """Generation of images for an evaluation or a frame of the video."""

    phase: str
    update: int
    z: Tensor
    label: Tensor | None
    images: Tensor  # uint8
    weights: dict[str, Tensor]


class GanRecording:
    """Run of generative.dcgan with a record of what passes between its parts.

    Args:
        words: command line.
        distances: scripted scores: of the training images (in the first evaluation), then of each evaluation.
        world: processes that train together.
    """

    def __init__(
        self, words: Sequence[str], distances: Sequence[float] = (9.0, 5.0), world: World | None = None
    ) -> None:
        self.updates: list[Update] = []
        self.previews: list[Preview] = []
        self.extracted: list[Tensor] = []  # images whose features are computed
        self.extracted_at: list[int] = []  # numbers of updates at which they are
        self.compared: list[tuple[int, int]] = []  # indices in `extracted` of real and generated images
        self._distances = iter(distances)
        self._phase, self._step, self._averaged = "", Step(), set[int]()
        self._features: list[FeatureSet] = []
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            self._patch(patch)
            if world is not None:
                patch.setattr(World, "from_env", lambda *_: world)
            try:
                dcgan.main([*TINY, *words])
            finally:
                torch.set_num_threads(threads)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(dcgan, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
        patch.setattr(evaluation, "draw_curves", lambda _path: None)
        patch.setattr(Learner, "__init__", self._init(Learner.__init__))
        record_averages(patch, self._record_averages)
        patch.setattr(Tensor, "backward", self._backward(Tensor.backward))
        patch.setattr(Generator, "forward", self._generator_forward(Generator.forward))
        patch.setattr(Discriminator, "forward", self._discriminator_forward(Discriminator.forward))
        patch.setattr(dcgan, "update", self._update(dcgan.update))
        patch.setattr(dcgan, "discriminator_loss", self._discriminator_loss(dcgan.discriminator_loss))
        patch.setattr(dcgan, "generator_loss", self._generator_loss(dcgan.generator_loss))
        patch.setattr(dcgan, "discriminator_forward", self._loss_with_penalties(dcgan.discriminator_forward))
        for name in ("discriminator", "generator"):
            patch.setattr(dcgan, f"{name}_step", self._network_step(name, getattr(dcgan, f"{name}_step")))
        for name in ("squared_gradient_norm", "gradient_penalty"):
            patch.setattr(dcgan, name, self._penalty(name, getattr(dcgan, name)))
        patch.setattr(dcgan, "evaluate", self._in_phase("evaluation", evaluation.evaluate))
        patch.setattr(Session, "save_video_frame", self._in_phase("video", Session.save_video_frame))
        patch.setattr(Sampler, "generate", self._generate(Sampler.generate))
        patch.setattr(FeatureExtractor, "extract", lambda _, images_NCHW: self._extract(images_NCHW))
        patch.setattr(FeatureExtractor, "comparisons", lambda _, *sets: [lambda: self._compare(*sets)])

    def _init(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(learner: Learner, *args: Any) -> None:
            original(learner, *args)
            self.learner, self.first = learner, copy_of(learner.generator)
            for name in ("discriminator", "generator"):
                optimizer: torch.optim.Optimizer = getattr(learner, f"{name}_optimizer")
                optimizer.register_step_pre_hook(self._before_step(name))

        return init

    def _before_step(self, name: str) -> Callable[..., None]:
        def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            assert trained == self._averaged, "gradients of a network are averaged over the processes before its step"
            self._averaged = set()
            self._step.optimizers.append(name)
            self._step.rates += [float(group["lr"]) for group in optimizer.param_groups]

        return before_step

    def _record_averages(self, parameters: set[int]) -> None:
        self._averaged = parameters

    def _backward(self, original: Callable[..., None]) -> Callable[..., None]:
        def backward(loss: Tensor) -> None:
            if not self._step.has_gradients:
                network: nn.Module = getattr(self.learner, self._step.network)
                assert all(p.grad is None or not p.grad.any() for p in network.parameters()), "of the last update"
            self._step.has_gradients = True
            original(loss)

        return backward

    def _generator_forward(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(generator: Generator, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
            images = original(generator, z_BZ, label_B)
            if not self._phase:
                self._step.samples.append(Sample(z_BZ, label_B, images))
            return images

        return forward

    def _discriminator_forward(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(discriminator: Discriminator, x_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
            score = original(discriminator, x_BCHW, label_B)
            self._step.passes.append(Pass(x_BCHW, label_B, score))
            return score

        return forward

    def _update(self, original: Callable[..., None]) -> Callable[..., None]:
        def update(learner: Learner, pixels_BCHW: Tensor, label_B: Tensor) -> None:
            self.updates.append(Update(pixels_BCHW.clone(), label_B.clone()))
            self._step = Step()
            self.updates[-1].samples = self._step.samples
            original(learner, pixels_BCHW, label_B)
            self.updates[-1].weights = copy_of(learner.generator)

        return update

    def _network_step(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def step(learner: Learner, parts: Any) -> None:
            self._step = Step(name, before=self._parameters())
            setattr(self.updates[-1], name, self._step)
            original(learner, parts)
            self._step.after = self._parameters()

        return step

    def _parameters(self) -> dict[str, list[Tensor]]:
        networks: dict[str, nn.Module] = {
            "generator": self.learner.generator,
            "discriminator": self.learner.discriminator,
        }
        return {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}

    def _discriminator_loss(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(name: str, real_B: Tensor, fake_B: Tensor, *args: Any) -> Tensor:
            self._step.scores.append((real_B, fake_B))
            return original(name, real_B, fake_B, *args)

        return loss

    def _generator_loss(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(name: str, fake_B: Tensor, real_B: Tensor | None = None) -> Tensor:
            self._step.scores.append((real_B, fake_B))
            return original(name, fake_B, real_B)

        return loss

    def _loss_with_penalties(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def discriminator_forward(*args: Any) -> tuple[Tensor, Tensor]:
            loss, metrics = original(*args)
            self._step.losses.append(float(loss.detach()))
            return loss, metrics

        return discriminator_forward

    def _penalty(self, name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def penalty(score_B: Tensor, images_BCHW: Tensor) -> Tensor:
            value = original(score_B, images_BCHW)
            self._step.penalties.append((name, score_B, images_BCHW, float(value.detach())))
            return value

        return penalty

    def _in_phase(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            self._phase = name
            try:
                original(*args)
            finally:
                self._phase = ""

        return wrapped

    def _generate(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def generate(sampler: Sampler, z_NZ: Tensor, label_N: Tensor | None = None) -> Tensor:
            images = original(sampler, z_NZ, label_N)
            weights = copy_of(sampler.generator)
            self.previews.append(Preview(self._phase, len(self.updates), z_NZ, label_N, images, weights))
            return images

        return generate

    def _extract(self, images_NCHW: Tensor) -> FeatureSet:
        self.extracted.append(images_NCHW)
        self.extracted_at.append(len(self.updates))
        self._features.append(FeatureSet(torch.zeros(len(images_NCHW), 2, dtype=torch.float64), None))
        return self._features[-1]

    def _compare(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        of = [next(i for i, features in enumerate(self._features) if features is each) for each in (real, fake)]
        self.compared.append((of[0], of[1]))
        return {"random_fd": next(self._distances)}
