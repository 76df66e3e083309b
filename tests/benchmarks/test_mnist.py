"""Tests of benchmarks/mnist.py: seeds are trained once and resumed, the test set is read once, ensemble selection."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import mnist, seeds
from zerokara.core import data
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import glyphs
from zerokara.core.report import write_json
from zerokara.vision import classify

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = (
    *("--data", "glyphs", "--train-images", "200", "--validation-images", "100", "--batch-size", "50", "--epochs", "1"),
    *(
        "--width-multiplier",
        "0.25",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--compile",
        "off",
        "--threads",
        "1",
        "--quiet",
    ),
)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train in this process on few digits. Yields the list of trained seeds and loaded splits, in order."""
    events: list[str] = []
    whole = data.load

    def load(name: str, split: Any, **options: Any) -> Any:
        events.append(split)
        return whole(name, split, **options)

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        extra_args = command[3:]
        events.append(f"seed {extra_args[extra_args.index('--seed') + 1]}")
        classify.main(extra_args)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(classify, "choose_compute", lambda *_: Compute(threads=1))
    monkeypatch.setattr(classify, "log_misread", lambda *args, **options: None)
    monkeypatch.chdir(tmp_path)
    return events


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *extra_args: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["mnist.py", *extra_args])
    capsys.readouterr()
    mnist.main()
    out = capsys.readouterr().out
    result: dict[str, Any] = json.loads(out[out.index("{\n") :])
    return result


def test_seeds_are_trained_once_and_tested_once(
    read: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = call(monkeypatch, capsys, "seeds", *TINY, "--seeds", "1", "2")
    assert {"seed 1", "seed 2"} <= set(read)
    assert "test" not in read
    assert "test" not in first
    errors = [run["validation_error"] for run in first["runs"]]
    assert first["validation"]["mean"] == pytest.approx(sum(errors) / 2)
    assert first["protocol"]["train_images"] == 200
    read.clear()
    tested = call(monkeypatch, capsys, "seeds", *TINY, "--seeds", "1", "2", "--test")
    assert {event for event in read if event.startswith("seed")} == set(), "a finished seed was trained again"
    assert "test" in read
    assert [run["validation_error"] for run in tested["runs"]] == errors
    read.clear()
    assert call(monkeypatch, capsys, "seeds", *TINY, "--seeds", "1", "2", "--test") == tested
    assert "test" not in read
    with pytest.raises(UserError, match="has the test errors of mnist-fast-1, mnist-fast-2"):
        call(monkeypatch, capsys, "seeds", *TINY, "--seeds", "1", "--test")
    with pytest.raises(UserError, match="started with another --learning-rate"):
        call(monkeypatch, capsys, "seeds", *TINY, "--seeds", "1", "--learning-rate", "1e-3")

    read.clear()
    extra_args = ["ensemble", "runs/mnist-fast-1", "runs/mnist-fast-2", "--members", "2", "--test"]
    both = call(monkeypatch, capsys, *extra_args)
    assert sorted(both["members"]) == ["mnist-fast-1", "mnist-fast-2"]
    assert sorted(both["test_errors_of_members"]) == sorted(run["test_error"] for run in tested["runs"])
    assert read.count("test") == 2
    assert call(monkeypatch, capsys, *extra_args) == both
    assert read.count("test") == 2


FOREIGN = ("", "{}", '{"figures": 3}', '{"figures": {"validation_error": 0.1}}', "[" * 100_000)
NO_NUMBERS = '{"figures": {"validation_error": 0.1}, "protocol": {"epochs": "three"}}'


@pytest.mark.parametrize("content", [*FOREIGN, NO_NUMBERS])
def test_a_damaged_or_foreign_result_is_one_sentence_that_names_the_file(tmp_path: Path, content: str) -> None:
    protocol = {"epochs": 2, "hours": 0.1}
    write_json(tmp_path / "result.json", {"figures": {"validation_error": 0.1}, "protocol": protocol})
    assert seeds.read_run_result(tmp_path, "epochs", "hours")["protocol"] == protocol
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}/result.json (is damaged|has no).*again with --resume"):
        seeds.read_run_result(tmp_path, "epochs", "hours")


@pytest.mark.parametrize("content", ["", "[]", '{"of": "all"}', '{"wall_minutes": "long"}'])
def test_damaged_files_of_the_benchmarks_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "wall.json").write_text(content)
    with pytest.raises(UserError, match=r"wall\.json"):
        seeds.wall_minutes(tmp_path)
    with pytest.raises(UserError, match=r"wall\.json"):
        seeds.load_saved_result(tmp_path / "wall.json", True, ["a"])


def test_ensemble_members_are_selected_by_the_loss_of_their_mean() -> None:
    """Select the best run, then the run that lowers the loss most, which is not the second best run."""
    right = torch.tensor([[0.9, 0.6], [0.9, 0.5], [0.2, 0.9]])  # of each run, on each of two images
    probability_RNK = torch.stack([right, 1 - right], 2)
    label_N = torch.tensor([0, 0])
    assert mnist.choose(probability_RNK, label_N, 1) == [0]
    # with run 1: 0.9 and 0.55; with run 2: 0.55 and 0.75
    assert mnist.choose(probability_RNK, label_N, 2) == [0, 1]
    lopsided = torch.tensor([[0.9, 0.5], [0.9, 0.45], [0.4, 0.99]])
    assert mnist.choose(torch.stack([lopsided, 1 - lopsided], 2), label_N, 2) == [0, 2]
