"""Images that encode their index, and a record of what network and loss of a training program receive.

Every pixel of the red channel encodes the index of the image in its data set. So a test can tell from the input of a
network which image it is, also after a flip, a shift or another geometric augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.recorded import copy_of, record_averages
from zerokara.core.compute import Compute
from zerokara.core.distributed import World

RED_STEP = 4  # difference of the red channel of consecutive images
HARDWARE = ("--device", "cpu", "--precision", "float32", "--threads", "1", "--quiet")
DRAWINGS = ("log_start", "log_misread", "log_confusion", "log_overlays", "log_classes")


def picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """Image (H, W, 3) uint8: red encodes the index, green its complement; the right half of blue is bright."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = RED_STEP * index, 255 - RED_STEP * index
    pixels[:, size[1] // 2 :, 2] = 255
    return pixels


def indices_of(images_BCHW: Tensor) -> list[int]:
    """Indices of images with pixels from 0 to 255. Fails if an image is a mixture of several images."""
    red_B = images_BCHW[:, 0].flatten(1)
    assert bool(((red_B - red_B[:, :1]).abs() < 0.5).all()), "the red channel of an image is not constant"
    code_B = red_B.mean(1) / RED_STEP
    assert bool(((code_B - code_B.round()).abs() < 0.1).all()), "the red channel is not the code of an image"
    return [int(code) for code in code_B.round()]


def is_flipped(image_CHW: Tensor) -> bool:
    """Return True if the bright half of the blue channel is on the left."""
    half = image_CHW.shape[2] // 2
    return bool(image_CHW[2, :, :half].mean() > image_CHW[2, :, half:].mean())


class Part(NamedTuple):
    """A batch of an update, or the part of it that one gradient accumulation step or process uses."""

    images: Tensor  # (b, C, H, W) from 0 to 255, augmented
    target: Tensor  # of the loss

    @property
    def indices(self) -> list[int]:
        """Indices of the images."""
        return indices_of(self.images)


@dataclass
class Update:
    """One step of the optimizer."""

    parts: list[Part] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # learning rates of the parameter groups
    gradients: list[Tensor] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)  # after the step
    has_gradients: bool = False  # the backward pass has begun

    @property
    def indices(self) -> list[int]:
        """Indices of all images of the update."""
        return [index for part in self.parts for index in part.indices]


class Evaluation(NamedTuple):
    """One forward pass of a network in evaluation mode."""

    phase: str  # function of the program that evaluates
    updates: int  # done before
    images: Tensor  # (B, C, H, W) from 0 to 255
    weights: dict[str, Tensor]

    @property
    def indices(self) -> list[int]:
        """Indices of the images."""
        return indices_of(self.images)


class Recording:
    """Run of a training program with a record of what its network and its loss receive.

    Args:
        program: vision.classify or vision.segment.
        network: class of its network.
        words: command line.
        world: processes that train together.
        answer: returns the output of the network in evaluations, in place of the real one, for images (B, C, H, W) from
            0 to 255 and the number of updates after which the network had its weights.
    """

    phases: ClassVar[tuple[str, ...]] = ("validate", "finish")
    """Functions of the program that evaluate."""

    def __init__(
        self,
        program: ModuleType,
        network: type[nn.Module],
        words: Sequence[str],
        *,
        world: World | None = None,
        answer: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.updates: list[Update] = []
        self.evaluations: list[Evaluation] = []
        self.evaluated_targets: list[Tensor] = []  # of losses in evaluations
        self.phase = ""
        self._answer, self._current, self._averaged = answer, Update(), set[int]()
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            self.patch(patch, program, network)
            if world is not None:
                patch.setattr(World, "from_env", lambda *_: world)
            try:
                program.main([*words, *HARDWARE])
            finally:
                torch.set_num_threads(threads)

    def patch(self, patch: pytest.MonkeyPatch, program: ModuleType, network: type[nn.Module]) -> None:
        """Replace the functions of the program that the recording observes."""
        patch.setattr(program, "choose_compute", lambda *_: Compute(threads=1))
        for name in filter(lambda name: hasattr(program, name), DRAWINGS):
            patch.setattr(program, name, lambda *_args, **_options: None)
        for name in self.phases:
            patch.setattr(program, name, self._in_phase(name, getattr(program, name)))
        patch.setattr(program.Training, "__init__", self._init(program.Training.__init__))
        patch.setattr(network, "forward", self._forward(network.forward))
        record_averages(patch, self._record_averages)
        patch.setattr(Tensor, "backward", self._backward(Tensor.backward))
        patch.setattr(F, "cross_entropy", self._cross_entropy(F.cross_entropy))

    def updates_with(self, weights: dict[str, Tensor]) -> int:
        """Return the last number of updates after which the trained network had these weights."""
        for number in range(len(self.updates), 0, -1):
            if all(torch.equal(self.updates[number - 1].weights[name], weight) for name, weight in weights.items()):
                return number
        raise AssertionError("the trained network never had these weights")

    def network_of(self, training: Any) -> nn.Module:
        """Network that is trained."""
        network: nn.Module = training.network
        return network

    def pixels(self, x_BCHW: Tensor) -> Tensor:
        """Pixels from 0 to 255 of normalized images."""
        metadata = self.training.metadata
        mean, std = (torch.tensor(moment).view(1, -1, 1, 1) for moment in (metadata.mean, metadata.std))
        return (x_BCHW.detach() * std + mean) * 255

    def _in_phase(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            self.phase = name
            try:
                return function(*args)
            finally:
                self.phase = ""

        return wrapped

    def _init(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(training: Any, *args: Any) -> None:
            original(training, *args)
            self.training, self.first = training, copy_of(self.network_of(training))
            training.optimizer.register_step_pre_hook(self._before_step)
            training.optimizer.register_step_post_hook(self._after_step)

        return init

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        trained = {id(p) for group in groups for p in group["params"]}
        assert trained <= self._averaged, "gradients are averaged over the processes before each step"
        self._averaged = set()
        self._current.rates = [float(group["lr"]) for group in groups]
        self._current.gradients = [p.grad.clone() for group in groups for p in group["params"] if p.grad is not None]

    def _record_averages(self, parameters: set[int]) -> None:
        self._averaged = parameters

    def _backward(self, original: Callable[..., None]) -> Callable[..., None]:
        def backward(loss: Tensor) -> None:
            if not self._current.has_gradients:
                parameters = [p for group in self.training.optimizer.param_groups for p in group["params"]]
                assert not any(p.grad is not None and p.grad.any() for p in parameters), "gradients of the last update"
            self._current.has_gradients = True
            original(loss)

        return backward

    def _after_step(self, *_: Any) -> None:
        self._current.weights = copy_of(self.network_of(self.training))
        self.updates.append(self._current)
        self._current = Update()

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(network: nn.Module, x_BCHW: Tensor) -> Tensor:
            out: Tensor = original(network, x_BCHW)
            if not hasattr(self, "training") or x_BCHW.is_meta:
                return out
            self._images = self.pixels(x_BCHW)
            if self.phase and not network.training:
                weights = copy_of(network)
                self.evaluations.append(Evaluation(self.phase, len(self.updates), self._images, weights))
                if self._answer is not None:
                    out = self._answer(self._images, self.updates_with(weights))
            self._out = out
            return out

        return forward

    def _cross_entropy(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def cross_entropy(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
            assert logits is self._out, "the loss must be of the output for the last images"
            if self.phase:
                self.evaluated_targets.append(target.clone())
            else:
                self._current.parts.append(Part(self._images, target.clone()))
            return original(logits, target, *args, **options)

        return cross_entropy
