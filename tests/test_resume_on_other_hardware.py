"""Runs of every program that were trained on a GPU with compilation are resumed on a CPU, and with other flags.

There is no GPU here: the old runs of tests/old_runs/ get the hardware settings, the random generators and the optimizer
settings that a run on CUDA saves.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_old_runs import EXPECTED, FOLDER, check_state
from zerokara.core import checkpoint
from zerokara.core.compute import Compute

pytestmark = pytest.mark.usefixtures("blank_figures")

RUNS = (
    "dqn-q",
    "dqn-iqn",
    "pqn",
    "dcgan",
    "classify",
    "binary",
    "segment",
    "caption",
    "detect-fast-rcnn",
    "style-transfer",
    "fast-style",
    "depth",
)
# Generators that are on the device, by their keys in a checkpoint.
ON_DEVICE = ("learner.generator", "replay.generator", "noise", "shuffle", "learner.random", "light_generator")
BOTH = "generator"  # on the device, except where there is a light_generator as well
GPU = {"device": "cuda", "precision": "bfloat16", "channels_last": True, "compile": True, "threads": 99, "reason": ""}


def unpacked(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, compute: dict[str, Any]) -> list[str]:
    """Unpack a run with these hardware settings in its config.json; return the words of the command that resumes it."""
    zipfile.ZipFile(FOLDER / f"{name}.zip").extractall(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    path = Path("runs") / name / "config.json"
    content = json.loads(path.read_text("utf-8"))
    content["extra"]["compute"] = compute
    settings = {"device": compute["device"], "precision": "auto", "threads": 0}
    if "compile" in content["config"]:
        settings["compile"] = "auto"
    content["config"] |= settings
    path.write_text(json.dumps(content), "utf-8")
    return shlex.split(EXPECTED[name]["resume"]["command"])[2:]


def move_to_gpu(state: Any, path: str = "") -> Any:
    """Return a state as a run on CUDA saves it: generators of 16 bytes, optimizers for CUDA graphs."""
    generators = ON_DEVICE if "light_generator" in state or path else (*ON_DEVICE, BOTH)
    result: dict[str, Any] = {}
    for key, value in state.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, torch.Tensor) and name in generators:
            assert len(value) > 1000, "the state of a generator"
            result[key] = torch.arange(16, dtype=torch.uint8)
        elif key == "param_groups":
            result[key] = [{**group, "capturable": True, "lr": torch.tensor(float(group["lr"]))} for group in value]
        else:
            result[key] = move_to_gpu(value, name) if isinstance(value, dict) else value
    return result


def is_equal(left: Any, right: Any) -> bool:
    """Compare two states of checkpoints."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(is_equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(is_equal, left, right))
    return type(left) is type(right) and bool(left == right)


def run(words: list[str]) -> None:
    importlib.import_module(f"zerokara.{words[0]}").main(words[1:])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_a_gpu_resumes_on_a_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = unpacked(name, tmp_path, monkeypatch, GPU)
    lengths: list[int] = []
    original = Compute.choose

    def choose(**options: Any) -> Compute:
        lengths.append(options["updates"])
        return original(**options)

    monkeypatch.setattr(Compute, "choose", choose)
    changed = 0
    for path in Path("runs").rglob("checkpoint*.pt"):
        kind = EXPECTED[name]["kind"]
        before = checkpoint.load(path, kind)
        state = move_to_gpu(before)
        changed += not is_equal(state, before)
        checkpoint.save(path, state, kind)
    assert changed > 0 or name in ("style-transfer", "depth")  # one has neither, the other was stopped between cells
    run(words)
    captured = capsys.readouterr()
    assert (
        captured.err.count("hardware settings changed (cuda is not available here): from here on, the results are") == 1
    )
    check_state(EXPECTED[name]["resume"]["state"], EXPECTED[name]["kind"])
    compute = json.loads((Path("runs") / name / "config.json").read_text("utf-8"))["extra"]["compute"]
    assert (compute["device"], compute["threads"]) == ("cpu", 1)
    for counters in EXPECTED[name]["resume"]["state"].values():
        updates = counters.get("updates", counters.get("iteration"))
        assert lengths == [pytest.approx(updates, rel=0.1)], "the measurement knows the length of the run"


@pytest.mark.parametrize("name", RUNS)
def test_threads_and_precision_may_be_changed_on_resume(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = unpacked(name, tmp_path, monkeypatch, {**GPU, "device": "cpu", "compile": False, "threads": 1})
    run([*words, "--threads", "2", "--precision", "float32"])
    errors = capsys.readouterr().err
    assert "hardware settings changed (" in errors
    assert "--threads 2 was given" in errors
    assert "--precision float32 was given" in errors
    compute = json.loads((Path("runs") / name / "config.json").read_text("utf-8"))["extra"]["compute"]
    assert (compute["precision"], compute["threads"], compute["compile"]) == ("float32", 2, False)
    check_state(EXPECTED[name]["resume"]["state"], EXPECTED[name]["kind"])
