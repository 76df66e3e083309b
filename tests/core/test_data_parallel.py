"""Gradients averaged over two and three Gloo processes, against those of one process with all images."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.programs import run_processes, start_processes
from zerokara.core.config import EXIT_STOPPED, UserError
from zerokara.core.data_parallel import DataParallel, check_sync_batch_norm, synchronize_batch_norm
from zerokara.core.distributed import World
from zerokara.vision.classification.config import Config

COMMON = """
import copy, sys
import torch
from torch import nn
from zerokara.core.data_parallel import DataParallel
from zerokara.core.distributed import World

world = World.from_env("cpu")

class Network(nn.Module):
    '''Several buckets of gradients: the matrices have 1.4 MB each. One layer is not used.'''
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(600, 600) for _ in range(4))
        self.unused = nn.Linear(5, 5)
        self.last = nn.Linear(600, 1)
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x) * 2)
        return self.last(x)[:, 0]

torch.manual_seed(3)
network = Network()
x = torch.randn(12, 600)
own = x[world.rank :: world.size]

def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]

def clear(module):
    for p in module.parameters():
        p.grad = None
"""

EQUAL = """
def penalized(module, x):
    '''Two passes, and a penalty on gradients that needs a second derivative.'''
    x = x.detach().requires_grad_()
    score = module(x)
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return (score + module(0.5 * x).square() + gradient.square().sum(1)).mean()

twin = copy.deepcopy(network)
parallel = DataParallel(world, network)
for parts in (1, 2, 1):
    network.requires_grad_(False).requires_grad_(True)  # as the discriminator in the step of the generator
    for number, part in enumerate(own.chunk(parts), 1):
        with parallel.no_sync(on=number < parts):
            parallel.backward(parallel.forward(penalized, network, part) / parts)
    (penalized(twin, x)).backward()
    for ours, theirs, (name, _) in zip(gradients(network), gradients(twin), network.named_parameters(), strict=True):
        assert (ours is None) == (theirs is None) == name.startswith("unused"), name
        if ours is not None:
            assert (ours - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max()), name
    both = world.gather([g for g in gradients(network) if g is not None])
    assert all(torch.equal(a, b) for other in both for a, b in zip(both[0], other, strict=True))
    clear(network), clear(twin)
assert list(network.state_dict()) == list(twin.state_dict()), "names in checkpoints"
assert parallel.state_dict() == {}
with torch.no_grad():
    assert torch.equal(parallel.forward(network, x), network(x))
"""

RESUMED = """
def loss(x):
    return network(x).square().mean()

parallel = DataParallel(world, network)
for _ in range(3):
    clear(network)
    parallel.backward(parallel.forward(loss, own))
before = gradients(network)
again = DataParallel(world, copy.deepcopy(network))
network = again.network
clear(network)
again.backward(again.forward(loss, own))
for ours, theirs in zip(gradients(network), before, strict=True):
    assert (ours is None) == (theirs is None)
    assert ours is None or torch.equal(ours, theirs)
"""

COMPRESSED = """
compression = sys.argv[1]

def loss(x):
    return network(x).square().mean()

def train(parallel, steps):
    found = []
    for _ in range(steps):
        clear(network)
        parallel.backward(parallel.forward(loss, own))
        found.append([g for g in gradients(network) if g is not None])
    return found

loss(x).backward()
exact = [g for g in gradients(network) if g is not None]
parallel = DataParallel(world, network, compression, updates=30)  # PowerSGD begins after 3 backward passes
first = train(parallel, 1)[0]
more = train(parallel, 4)
state = parallel.state_dict()
errors = {bucket: error.clone() for bucket, error in state.get("errors", {}).items()}
state = copy.deepcopy(state)
expected = train(parallel, 2)
resumed = DataParallel(world, network, compression, updates=30)
resumed.load_state_dict(state)
for ours, theirs in zip(train(resumed, 2), expected, strict=True):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
for each in (first, *more, *expected):
    both = world.gather(each)
    assert all(torch.equal(a, b) for other in both for a, b in zip(both[0], other, strict=True))
worst = lambda found: max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
if compression == "bfloat16":
    assert 1e-4 < worst(first) < 1e-2
    assert state == {}
else:
    assert worst(first) < 1e-5, "not compressed yet"
    assert 1e-3 < worst(more[-1]) < 1
    assert torch.linalg.matrix_rank(more[-1][0], rtol=1e-4) <= 2
    assert errors and all(error.any() for error in errors.values())
    assert state["processes"] == world.size
    other = DataParallel(world, network, compression, updates=30)
    other.load_state_dict({**state, "processes": 7})
    assert other.state_dict()["errors"] == {} and other.state_dict()["q"].keys() == state["q"].keys()
"""

COMPILED = """
import warnings
from zerokara.core.max_pool import MaxPool2d

warnings.filterwarnings("ignore", ".* should not be instantiated", DeprecationWarning)
network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), MaxPool2d(2), nn.Flatten(),
    nn.Linear(1200, 600), nn.Tanh(), nn.Linear(600, 600), nn.Tanh(), nn.Linear(600, 1),
)
own = own.view(-1, 1, 20, 30)

def loss(images):
    return network(images).square().mean()

loss(x.view(-1, 1, 20, 30)).backward()
expected = gradients(network)
parallel, compiled = DataParallel(world, network), torch.compile(loss, backend="aot_eager")
for _ in range(2):
    clear(network)
    parallel.backward(parallel.forward(compiled, own))
    for ours, theirs in zip(gradients(network), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max())
"""

LOSES = """
import os, time
from zerokara.core.config import run_main

def main():
    parallel = DataParallel(world, network)
    for step in range(3):
        clear(network)
        loss = parallel.forward(lambda: network(own).square().mean())
        if step == 2 and world.rank == 1:
            os.kill(os.getpid(), 9)
        parallel.backward(loss)

run_main(main)
"""


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_equal_those_of_one_process_with_all_images(tmp_path: Path, size: int) -> None:
    """Two passes, second derivatives, accumulation over parts, and parameters without a gradient."""
    assert run_processes(tmp_path, size, "-c", COMMON + EQUAL) == ("", "")


def test_a_resumed_run_has_the_same_gradients_bit_for_bit(tmp_path: Path) -> None:
    """PyTorch divides gradients into other buckets after the first backward pass, which rounds sums of three."""
    assert run_processes(tmp_path, 3, "-c", COMMON + RESUMED) == ("", "")


def test_gradients_of_a_compiled_network_with_max_pooling(tmp_path: Path) -> None:
    """PyTorch divides compiled code into the buckets of the gradients."""
    assert run_processes(tmp_path, 2, "-c", COMMON + COMPILED) == ("", "")


@pytest.mark.parametrize("compression", ["bfloat16", "powersgd"])
def test_compressed_gradients(tmp_path: Path, compression: str) -> None:
    assert run_processes(tmp_path, 2, "-c", COMMON + COMPRESSED, compression) == ("", "")


def test_a_process_that_has_ended_in_a_backward_pass_is_reported_in_one_sentence(tmp_path: Path) -> None:
    first, second = start_processes(tmp_path, 2, "-c", COMMON + LOSES, ZEROKARA_COLLECTIVE_TIMEOUT="20")
    out, err = first.communicate(timeout=100)
    second.communicate()
    assert (second.returncode, first.returncode) == (-signal.SIGKILL, EXIT_STOPPED), err
    assert out == ""
    assert err.startswith("error: Another process of this run has ended, or did not answer within 20 s (")
    assert err.count("\n") == 1


def test_an_error_of_the_forward_pass_is_not_taken_for_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connected:
        def __call__(self, function: object, *args: object) -> None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(DataParallel, "_connect", lambda _: Connected())
    with pytest.raises(RuntimeError, match="shapes"):
        DataParallel(World(0, 2), nn.Linear(1, 1)).forward(torch.sum)


def test_batch_norm_is_synchronized_only_with_several_processes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert synchronize_batch_norm(network, World())[1] is network[1]
    names = list(network.state_dict())
    layer = synchronize_batch_norm(network, World(0, 2))[1]
    assert isinstance(layer, nn.SyncBatchNorm)
    assert layer.weight is network[1].weight
    assert list(network.state_dict()) == names


def test_synchronized_batch_norm_is_refused_on_a_cpu() -> None:
    check_sync_batch_norm(Config(device="cpu"), World(0, 2))
    check_sync_batch_norm(Config(device="cpu", sync_batch_norm=True), World())
    with pytest.raises(UserError, match=r"on CUDA only: leave --sync-batch-norm out"):
        check_sync_batch_norm(Config(device="cpu", sync_batch_norm=True), World(0, 2))
