"""Tests that runs of commit 682d9ba are used and resumed by the current code, with the numbers that it computed.

tests/old_runs/README.md explains the runs and expected.json.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import shlex
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.programs import start
from zerokara.agents.configs import dqn
from zerokara.agents.viewing.curves import read_curve
from zerokara.agents.viewing.loading import load_agent
from zerokara.core import checkpoint
from zerokara.core.zoo.provenance import trace
from zerokara.generative.gan.sampler import Sampler
from zerokara.vision.binarization.network import BinaryMetadata

pytestmark = pytest.mark.usefixtures("blank_figures")

FOLDER = Path(__file__).parent / "old_runs"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
USED = [name for name, run in EXPECTED.items() if run.get("commands") or run.get("values")]
RESUMED = [name for name, run in EXPECTED.items() if "resume" in run]
OTHER_WAYS = [(name, command) for name, run in EXPECTED.items() for command in run.get("also", {})]
# Descriptions, which are worded differently today, and the key of a setting that has another name.
WORDED = {"seen", "picture"}


def unpacked(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Unpack a run, change the working folder to it, and return the expected results."""
    zipfile.ZipFile(FOLDER / f"{name}.zip").extractall(folder)
    monkeypatch.chdir(folder)
    return EXPECTED[name]


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run `python -m agents.dqn ...` in this process, or one that starts others; return what it prints on stdout."""
    _, _, module, *words = shlex.split(command)
    if module in ("agents.sweep", "agents.benchmark"):
        process = start(Path.cwd(), "-m", module, *words)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out
    capsys.readouterr()
    importlib.import_module(f"zerokara.{module}").main(words)
    return capsys.readouterr().out


def compare(found: Any, expected: Any, where: str, tolerance: float = 1e-3) -> None:
    """Compare JSON values. Numbers have a tolerance, because processors differ in the order of additions."""
    if isinstance(expected, dict):
        for key in expected.keys() - WORDED:
            compare(found[key], expected[key], f"{where}.{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            compare(found[index], value, f"{where}[{index}]", tolerance)
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance), (where, found, expected)
    else:
        assert found == expected, where


def check_state(expected: dict[str, dict[str, int]], kind: str) -> None:
    """Check the steps and updates of checkpoints."""
    for path, counters in expected.items():
        owner = "dqn" if kind in ("sweep", "benchmark") else kind
        saved = checkpoint.load(Path(path), owner)
        assert {name: saved.get(name, saved.get("learner", {}).get(name)) for name in counters} == counters, path


def check_values(values: dict[str, Any], name: str, tolerance: float) -> None:
    """Check the numbers that a network computes, and the images that a command wrote."""
    folder = Path("runs") / name
    for key, expected in values.items():
        if key == "q_values":
            compare(q_values(folder), expected, key, tolerance)
        elif key == "painted":
            compare({which: generated(folder, which) for which in expected}, expected, key, 2.0)  # levels of 255
        elif key == "packed_logits":
            compare(packed_logits(folder), expected, key, tolerance)
        else:
            image = cv2.imread(key, cv2.IMREAD_UNCHANGED)
            assert image is not None, key
            assert list(image.shape) == expected["shape"], key
            compare(float(image.mean()), expected["mean"], key, 2.0)


def q_values(folder: Path) -> dict[str, list[float]]:
    agent = load_agent(folder, which="last", threads=1)
    config = agent.config
    shape = (1, config.frame_stack * (1 if config.grayscale else 3), config.image_size, config.image_size)
    inputs = {
        "all_128": np.full(shape, 128, np.uint8),
        "ramp": (np.arange(math.prod(shape)) % 251).astype(np.uint8).reshape(shape),
    }
    return {name: agent.policy.values(obs_NCHW)[0].tolist() for name, obs_NCHW in inputs.items()}


def generated(folder: Path, which: Any) -> dict[str, Any]:
    sampler = Sampler.load(folder, which)
    images = sampler.generate(sampler.latents(4, 0), sampler.labels(4)).float()
    row = images[0, :, images.shape[2] // 2].flatten()[:6]
    return {
        "update": sampler.update,
        "shape": list(images.shape),
        "mean": float(images.mean()),
        "row": row.tolist(),
    }


def packed_logits(folder: Path) -> list[float]:
    network, metadata = BinaryMetadata.load(folder / "packed.safetensors")
    shape = (1, metadata.channels, *metadata.image_size)
    pixels = (torch.arange(math.prod(shape)) % 251).float().reshape(shape) / 250
    with torch.no_grad():
        return [float(value) for value in network(pixels)[0]]


def check_commands(commands: dict[str, Any], capsys: pytest.CaptureFixture[str], tolerance: float) -> None:
    """Run commands, and compare the output of those that print JSON."""
    for command, answer in commands.items():
        out = run(command, capsys)
        if not isinstance(answer, str):
            compare(json.loads(out), answer, command, tolerance)


@pytest.mark.parametrize("name", USED)
def test_an_old_run_is_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that evaluate, play, sample, predict and export are those of 682d9ba, with its flags."""
    expected = unpacked(name, tmp_path, monkeypatch)
    check_state(expected["state"], expected["kind"])
    check_commands(expected.get("commands", {}), capsys, 1e-3)
    check_values(expected.get("values", {}), name, 1e-3)


def test_curves_of_old_and_new_runs_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are grouped by settings, so the settings of an old run need the current names."""
    unpacked("dqn-q", tmp_path, monkeypatch)
    curve = read_curve(Path("runs/dqn-q"), "eval/return", "steps")
    assert curve.config.keys() == {field.name for field in dataclasses.fields(dqn.Config)}
    assert (curve.config["total_steps"], curve.config["clip_rewards"]) == (240, False)


def test_the_backbone_of_an_old_run_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone is found by the old name of its setting, also if config.json has no other record of it."""
    unpacked("dqn-q", tmp_path, monkeypatch)
    unpacked("dqn-qr", tmp_path, monkeypatch)
    path = Path("runs/dqn-qr/config.json")
    content = json.loads(path.read_text("utf-8"))
    assert content["config"]["init_backbone"] == "runs/dqn-q"
    del content["extra"]["eye"]
    path.write_text(json.dumps(content), "utf-8")
    assert trace(Path("runs/dqn-q"))[0] in trace(Path("runs/dqn-qr"))


@pytest.mark.parametrize("name", RESUMED)
def test_an_old_run_resumes_to_its_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps and updates are exact. Weights after the resume differ in the last digits between processors."""
    expected = unpacked(name, tmp_path, monkeypatch)
    resume = expected["resume"]
    run(resume["command"], capsys)
    check_state(resume["state"], expected["kind"])
    check_values(resume.get("values", {}), name, 0.02)


@pytest.mark.parametrize(("name", "command"), OTHER_WAYS, ids=lambda text: text.split(" --name ")[-1])
def test_an_old_run_resumes_with_another_length(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = unpacked(name, tmp_path, monkeypatch)
    run(command, capsys)
    check_state(expected["also"][command]["state"], expected["kind"])
