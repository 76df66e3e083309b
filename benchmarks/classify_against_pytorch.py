"""Compare training images/s of `deep_cnn` in zerokara, in plain PyTorch and in NumPy, in one process. Prints JSON.

    python -m benchmarks.classify_against_pytorch --data mnist --numpy

Sides, all with the same 123,552 parameters, threads and batches of 100:

* ours: the loop of vision.classify with the preset `book` (no augmentation) and the automatically chosen hardware
  settings;
* ours_augmented: the same loop with the preset `fast`, which rotates, scales, shears and shifts every image;
* pytorch_float32: a sequence of layers, Adam, cross-entropy, float32 images normalized before the timing;
* pytorch_bfloat16: the same under autocast, in channels_last;
* numpy (with --numpy): layers with forward and backward passes based on im2col, and Adam, in float64, as in the book.

All sides train on the same images, shuffled in each epoch. The times of zerokara include the rest of its loop (uint8 to
float, metrics, progress). The PyTorch sides read one number per update, the loss, and load no data. The sides are timed
alternately and the medians are compared. The setting of glibc to keep freed memory (core/compute.py) affects all sides.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.result import print_result
from zerokara.core.compute import TrainStep
from zerokara.core.config import run_main
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval
from zerokara.core.training_program import choose_compute
from zerokara.vision.classification.config import PRESETS, Config
from zerokara.vision.classification.learner import Data, Training
from zerokara.vision.training.epochs import probe_update

BATCH = 100
PARAMETERS = 123_552
CHANNELS = (16, 16, 32, 32, 64, 64)
PADDING = (1, 1, 1, 2, 1, 1)
RunUpdates = Callable[[int], None]
"""Run this number of updates and wait for the device."""


def batches(images: int) -> Iterator[Tensor]:
    """Yield full batches of shuffled indices, without end."""
    while True:
        yield from torch.randperm(images)[: images // BATCH * BATCH].split(BATCH)


# ---- zerokara


def ours(arguments: argparse.Namespace, images: Data, preset: str, folder: Path) -> tuple[RunUpdates, str]:
    """Create the loop of vision.classify without the end of an epoch. Also returns the reason of its settings."""
    fields: dict[str, Any] = {**PRESETS[preset], "batch_size": BATCH, "threads": arguments.threads}
    config = Config(preset=preset, data=arguments.data, precision=arguments.precision, **fields)
    compute = choose_compute(config, World(), TrainStep(partial(probe_update, Training, config, images), BATCH))
    compute.apply()
    training = Training(config, images, compute, World())
    run = Run(config, kind="classify", name=preset, resume=False, quiet=True, root=folder)
    count(training.network)

    def run_updates(updates: int) -> None:
        interval = LogInterval(training.updates)
        last = training.updates + updates
        while training.updates < last:
            training.update(training.next_batch())
            if training.updates % config.log_every_updates == 0:
                training.log_metrics(run, interval)
                interval = LogInterval(training.updates)
        training.read_metrics()["train/loss"].item()

    return run_updates, compute.reason


# ---- plain PyTorch


def eager_network() -> nn.Sequential:
    """Create `deep_cnn` in the style of PyTorch's tutorials."""
    layers: list[nn.Module] = []
    before = 1
    for place, (channels, padding) in enumerate(zip(CHANNELS, PADDING, strict=True)):
        layers += [nn.Conv2d(before, channels, 3, padding=padding), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (place % 2)
        before = channels
    head = [nn.Flatten(), nn.Linear(64 * 4 * 4, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10), nn.Dropout(0.5)]
    return nn.Sequential(*layers, *head)


def eager(images: Data, *, bfloat16: bool) -> RunUpdates:
    """Create a standard PyTorch training loop."""
    x_NCHW, label_N = normalize(images), images.train.labels
    network = eager_network().train()
    if bfloat16:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the type stubs
    count(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    source = batches(len(label_N))

    def run_updates(updates: int) -> None:
        running_loss = 0.0
        for index_B in itertools.islice(source, updates):
            x_BCHW, label_B = x_NCHW[index_B], label_N[index_B]
            if bfloat16:
                x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(network(x_BCHW), label_B)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()

    return run_updates


def normalize(images: Data) -> Tensor:
    """Normalize all training images (N, C, H, W) to float32 with mean 0 and standard deviation 1."""
    x_NCHW = images.train.images.float() / 255
    return (x_NCHW - images.mean_C.view(1, -1, 1, 1)) / images.std_C.view(1, -1, 1, 1)


def count(network: nn.Module) -> None:
    """Check the number of parameters."""
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == PARAMETERS, f"{found:,} parameters"


# ---- NumPy, as in the book: each layer stores the inputs of its backward pass, and lists of parameters and gradients


def im2col(x: np.ndarray, side: int, stride: int, padding: int) -> tuple[np.ndarray, int, int]:
    """Extract windows (B * rows * columns, C * side * side) from images (B, C, H, W). Also returns rows and columns."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    batch, channels, height, width = x.shape
    rows, columns = (height - side) // stride + 1, (width - side) // stride + 1
    col = np.empty((batch, channels, side, side, rows, columns), x.dtype)
    for top, left in np.ndindex(side, side):
        col[:, :, top, left] = x[:, :, top : top + stride * rows : stride, left : left + stride * columns : stride]
    return col.transpose(0, 4, 5, 1, 2, 3).reshape(batch * rows * columns, -1), rows, columns


def col2im(col: np.ndarray, shape: tuple[int, ...], side: int, stride: int, padding: int) -> np.ndarray:
    """Sum the gradients of overlapping windows into gradients of images."""
    batch, channels, height, width = shape
    rows, columns = (height + 2 * padding - side) // stride + 1, (width + 2 * padding - side) // stride + 1
    col = col.reshape(batch, rows, columns, channels, side, side).transpose(0, 3, 4, 5, 1, 2)
    x = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding), col.dtype)
    for top, left in np.ndindex(side, side):
        x[:, :, top : top + stride * rows : stride, left : left + stride * columns : stride] += col[:, :, top, left]
    return x[:, :, padding : padding + height, padding : padding + width]


class Layer(ABC):
    """Base class of layers, without parameters by default."""

    params: list[np.ndarray]
    grads: list[np.ndarray]

    def __init__(self) -> None:
        self.params, self.grads = [], []

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Compute the output from the input."""

    @abstractmethod
    def backward(self, dout: np.ndarray) -> np.ndarray:
        """Compute the gradient of the input from the gradient of the output."""


class Convolution(Layer):
    """Convolution with 3x3 filters and He initialization."""

    def __init__(self, before: int, channels: int, padding: int, rng: np.random.Generator) -> None:
        super().__init__()
        weight = rng.standard_normal((channels, before, 3, 3)) * np.sqrt(2 / (before * 9))
        self.params, self.padding = [weight, np.zeros(channels)], padding

    def forward(self, x: np.ndarray) -> np.ndarray:
        weight, bias = self.params
        self.shape = x.shape
        self.col, rows, columns = im2col(x, 3, 1, self.padding)
        out: np.ndarray = self.col @ weight.reshape(len(weight), -1).T + bias
        return out.reshape(len(x), rows, columns, -1).transpose(0, 3, 1, 2)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        weight = self.params[0]
        dout = dout.transpose(0, 2, 3, 1).reshape(-1, len(weight))
        self.grads = [(self.col.T @ dout).T.reshape(weight.shape), dout.sum(0)]
        return col2im(dout @ weight.reshape(len(weight), -1), self.shape, 3, 1, self.padding)


class Pooling(Layer):
    """Max pooling over 2x2 windows."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape = x.shape
        col, rows, columns = im2col(x, 2, 2, 0)
        col = col.reshape(-1, 4)
        self.place = col.argmax(1)
        most: np.ndarray = col.max(1)
        return most.reshape(len(x), rows, columns, -1).transpose(0, 3, 1, 2)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        col = np.zeros((dout.size, 4))
        col[np.arange(dout.size), self.place] = dout.transpose(0, 2, 3, 1).ravel()
        return col2im(col, self.shape, 2, 2, 0)


class Relu(Layer):
    """Rectified linear unit."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.mask = x > 0
        out: np.ndarray = x * self.mask
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        dx: np.ndarray = dout * self.mask
        return dx


class Affine(Layer):
    """Fully connected layer."""

    def __init__(self, units: int, out: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.params = [rng.standard_normal((units, out)) * np.sqrt(2 / units), np.zeros(out)]

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        out: np.ndarray = self.x @ self.params[0] + self.params[1]
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        self.grads = [self.x.T @ dout, dout.sum(0)]
        dx: np.ndarray = dout @ self.params[0].T
        return dx.reshape(self.shape)


class Dropout(Layer):
    """Dropout with probability 0.5, without rescaling, as in the book."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.rng = rng

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.mask = self.rng.random(x.shape) > 0.5
        out: np.ndarray = x * self.mask
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        dx: np.ndarray = dout * self.mask
        return dx


def numpy_layers(rng: np.random.Generator) -> list[Layer]:
    """Create `deep_cnn` in NumPy."""
    layers: list[Layer] = []
    before = 1
    for place, (channels, padding) in enumerate(zip(CHANNELS, PADDING, strict=True)):
        layers += [Convolution(before, channels, padding, rng), Relu()]
        layers += [Pooling()] if place % 2 else []
        before = channels
    head: list[Layer] = [Affine(64 * 4 * 4, 50, rng), Relu(), Dropout(rng), Affine(50, 10, rng), Dropout(rng)]
    return layers + head


def softmax_loss(scores_BK: np.ndarray, label_B: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute the mean cross-entropy and its gradient (B, K)."""
    power_BK = np.exp(scores_BK - scores_BK.max(1, keepdims=True))
    gradient_BK = power_BK / power_BK.sum(1, keepdims=True)
    rows = np.arange(len(label_B))
    loss = -np.log(gradient_BK[rows, label_B] + 1e-7).mean()
    gradient_BK[rows, label_B] -= 1
    return float(loss), gradient_BK / len(label_B)


class Adam:
    """Adam optimizer (Kingma and Ba 2015)."""

    def __init__(self, params: list[np.ndarray], lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.params, self.lr, self.beta1, self.beta2, self.steps = params, lr, beta1, beta2, 0
        self.m, self.v = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]

    def update(self, grads: list[np.ndarray]) -> None:
        """Update the parameters."""
        self.steps += 1
        rate = self.lr * np.sqrt(1 - self.beta2**self.steps) / (1 - self.beta1**self.steps)
        for place, grad in enumerate(grads):
            self.m[place] += (1 - self.beta1) * (grad - self.m[place])
            self.v[place] += (1 - self.beta2) * (grad**2 - self.v[place])
            self.params[place] -= rate * self.m[place] / (np.sqrt(self.v[place]) + 1e-7)


def numpy_loss_and_gradients(
    layers: list[Layer], x_BCHW: np.ndarray, label_B: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """Run the forward and backward pass. Returns the loss and the gradients of all parameters."""
    out = x_BCHW
    for layer in layers:
        out = layer.forward(out)
    loss, dout = softmax_loss(out, label_B)
    for layer in reversed(layers):
        dout = layer.backward(dout)
    return loss, [grad for layer in layers for grad in layer.grads]


def book(images: Data) -> RunUpdates:
    """Create the training loop of the book."""
    x_NCHW, label_N = normalize(images).numpy(), images.train.labels.numpy()
    layers = numpy_layers(np.random.default_rng(1))
    params = [param for layer in layers for param in layer.params]
    assert sum(param.size for param in params) == PARAMETERS
    adam = Adam(params)
    source = batches(len(label_N))

    def run_updates(updates: int) -> None:
        for index_B in itertools.islice(source, updates):
            adam.update(numpy_loss_and_gradients(layers, x_NCHW[index_B], label_N[index_B])[1])

    return run_updates


def main() -> None:
    """Parse the arguments, time all sides alternately, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="mnist, or glyphs (generated, no files needed)")
    parser.add_argument("--numpy", action="store_true", help="also time the NumPy implementation")
    parser.add_argument("--updates", type=int, default=300, help="updates per timed interval; 1/100 of it for NumPy")
    parser.add_argument("--repeats", type=int, default=5, help="timed intervals per side")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of all sides; 0: all cores")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="precision of zerokara"
    )
    arguments = parser.parse_args()
    images = Data.load(Config(data=arguments.data))
    updates = {"numpy": max(1, arguments.updates // 100)}
    with tempfile.TemporaryDirectory() as folder:
        reasons = {}
        sides: dict[str, RunUpdates] = {}
        for side, preset in (("ours", "book"), ("ours_augmented", "fast")):
            sides[side], reasons[side] = ours(arguments, images, preset, Path(folder))
        sides["pytorch_float32"] = eager(images, bfloat16=False)
        sides["pytorch_bfloat16"] = eager(images, bfloat16=True)
        if arguments.numpy:
            sides["numpy"] = book(images)
        for side, run_updates in sides.items():
            run_updates(updates.get(side, 30))
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side, run_updates in sides.items():
                number = updates.get(side, arguments.updates)
                began = time.perf_counter()
                run_updates(number)
                rates[side].append(number * BATCH / (time.perf_counter() - began))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    peers = [side for side in sides if not side.startswith("ours")]
    result = {
        "what": "training images/s",
        "arguments": vars(arguments),
        "parameters": PARAMETERS,
        "batch_size": BATCH,
        "threads": torch.get_num_threads(),
        "compute": reasons,
        "images_per_s": {side: [round(value, 1) for value in values] for side, values in rates.items()},
        "median": {side: round(value, 1) for side, value in medians.items()},
        "ratio": {
            side: {peer: round(medians[side] / medians[peer], 2) for peer in peers}
            for side in sides
            if side.startswith("ours")
        },
    }
    print_result(result)


if __name__ == "__main__":
    run_main(main)
