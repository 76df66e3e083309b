"""Tests of a GAN that several processes train: equal weights, and resuming with another number of processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.programs import metrics, run_processes
from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.generative.gan.config import KIND

pytestmark = pytest.mark.usefixtures("blank_figures")

PROGRAM = """
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.core.data import glyphs
from zerokara.generative import dcgan
glyphs.NUMBER = {"train": 240, "test": 40}
dcgan.choose_compute = lambda *_: Compute(device="cpu", threads=1)
run_main(dcgan.main)
"""
TINY = (
    *("--generator-width", "0.125", "--discriminator-width", "0.125", "--latent-dim", "8", "--batch-size", "12"),
    *("--log-every-updates", "5", "--checkpoint-every-updates", "5", "--eval-every-updates", "100"),
    *("--eval-images", "100", "--preview-images", "4", "--ema-half-life-updates", "5", "--flip", "--name", "run"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1"),
)
NO_NORM = ("--discriminator-norm", "none", "--generator-norm", "none")
STATISTICS = ("running_mean", "running_var")  # of BatchNorm, over the images of the process


def train(folder: Path, size: int, *words: str, status: int | None = 0) -> tuple[str, str]:
    return run_processes(folder, size, "-c", PROGRAM, *words, status=status)


def states(run: Path, size: int) -> list[dict[str, Any]]:
    return [checkpoint.load(run / f"checkpoint-{rank}.pt", KIND) for rank in range(size)]


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a state with their paths."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, f"{name}.{key}")


def check_equal_weights(run: Path, size: int) -> set[str]:
    """Check that networks, averaged weights and optimizers are equal in all processes, bit for bit.

    Returns the names of the tensors that differ: statistics of BatchNorm.
    """
    names = ("generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer")
    first, *others = ({name: state["learner"][name] for name in names} for state in states(run, size))
    different = set[str]()
    for other in others:
        for (name, ours), (_, theirs) in zip(tensors(first), tensors(other), strict=True):
            if not torch.equal(ours, theirs):
                assert name.endswith(STATISTICS), f"{name} differs between the processes"
                different.add(name)
    return different


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("words", "has_statistics"),
    [
        ((), True),
        (("--backbone", "dcgan", "--spectral-norm", *NO_NORM), False),
        (("--loss", "relativistic", "--r1", "1", "--r2", "1", *NO_NORM), False),
    ],
    ids=["batch-norm", "spectral-norm", "penalties"],
)
def test_only_the_statistics_of_batch_norm_differ_between_processes(
    tmp_path: Path, size: int, words: tuple[str, ...], has_statistics: bool
) -> None:
    """Each process measures the mean and variance of its own images, as in PyTorch's data-parallel training."""
    train(tmp_path, size, *TINY, "--updates", "15", "--eval-every-updates", "0", *words)
    different = check_equal_weights(tmp_path / "runs" / "run", size)
    assert bool(different) == has_statistics


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with runs of 1, 2 and 3 processes. Tests must not write to them."""
    folders = {size: tmp_path_factory.mktemp(f"processes-{size}") for size in (1, 2, 3)}
    for size, folder in folders.items():
        train(folder, size, *TINY, "--updates", "20")
    return folders


def copy(finished: dict[int, Path], size: int, folder: Path) -> Path:
    shutil.copytree(finished[size] / "runs", folder / "runs")
    return folder / "runs" / "run"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (1, 3), (3, 2)])
def test_another_number_of_processes(finished: dict[int, Path], tmp_path: Path, before: int, after: int) -> None:
    run = copy(finished, before, tmp_path)
    old = states(run, before)[0]["learner"]
    _, err = train(tmp_path, after, "--name", "run", "--resume", "--updates", "30")
    one, other = (f"{number} process{'es' * (number > 1)}" for number in (after, before))
    assert f"warning: resumed at step 20 with {one} from checkpoints of {other}: random numbers are drawn anew" in err
    check_equal_weights(run, after)
    new = [state["learner"] for state in states(run, after)]
    assert [learner["updates"] for learner in new] == [30] * after
    step = old["generator_optimizer"]["state"][0]["step"]
    assert new[0]["generator_optimizer"]["state"][0]["step"] == step + 10, "the optimizer was restored"
    random = [learner["random"] for learner in new]
    assert after == 1 or not torch.equal(random[0], random[1])
    assert [line["step"] for line in metrics(run) if "train/d_loss" in line] == [5, 10, 15, 20, 25, 30]


def test_a_rollback_with_another_number_of_processes(finished: dict[int, Path], tmp_path: Path) -> None:
    run = copy(finished, 2, tmp_path)
    (run / "film").mkdir()
    for update in (20, 25):
        (run / "film" / f"{update:08}.png").touch()
    train(tmp_path, 3, "--name", "run", "--resume", "--rollback", "--updates", "30")
    check_equal_weights(run, 3)
    assert [state["rollbacks"] for state in states(run, 3)] == [1, 1, 1]
    assert [path.stem for path in (run / "film").iterdir()] == ["00000020"]


def test_a_checkpoint_that_another_process_lacks_is_not_used(finished: dict[int, Path], tmp_path: Path) -> None:
    """Killed when only the first process had saved: the resumed run ends as without the kill."""
    run, undisturbed = copy(finished, 2, tmp_path / "killed"), copy(finished, 2, tmp_path / "whole")
    for folder in ("killed", "whole"):
        train(tmp_path / folder, 2, "--name", "run", "--resume", "--updates", "30")
    before = finished[2] / "runs" / "run"
    for name in ("checkpoint-1.pt", "checkpoint-1-previous.pt"):
        shutil.copy(before / name, run / name)
    shutil.copy(before / "checkpoint-0.pt", run / "checkpoint-0-previous.pt")
    _, err = train(tmp_path / "killed", 2, "--name", "run", "--resume", "--updates", "30")
    assert "warning: resumed at step 20, the last one that every process has saved" in err
    for ours, theirs in zip(states(run, 2), states(undisturbed, 2), strict=True):
        for (name, left), (_, right) in zip(tensors(ours["learner"]), tensors(theirs["learner"]), strict=True):
            assert torch.equal(left, right), name


def test_without_the_checkpoint_of_the_first_process_all_stop(finished: dict[int, Path], tmp_path: Path) -> None:
    run = copy(finished, 2, tmp_path)
    for path in run.glob("checkpoint-0*"):
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        states(run, 1)
    _, err = train(tmp_path, 2, "--name", "run", "--resume", "--updates", "30", status=2)
    assert err.count("error: ") == 1
    assert "checkpoint-0.pt is missing or damaged" in err
