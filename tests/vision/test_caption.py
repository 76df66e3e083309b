"""Tests of vision.caption, caption_predict and caption_splits: learning, resuming, comparing splits, error messages."""

from __future__ import annotations

import json
import re
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.programs import metrics, run_processes, start, wait_until
from tests.tensorboard_pages import hparams_metrics
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.media import png_bytes
from zerokara.core.models.classifier import ClassifierMetadata, make_classifier
from zerokara.core.models.weights import read_tensors
from zerokara.vision import caption, caption_predict, caption_splits
from zerokara.vision.captioning.network import CaptionerMetadata

TINY = (
    *("--data", "few.zip", "--image-size", "32", "--backbone", "resnet20", "--width-multiplier", "0.5"),
    *("--stem", "paper", "--validation-images", "8", "--test-images", "8", "--batch-size", "8", "--epochs", "3"),
    *("--min-word-count", "1", "--embedding-dim", "24", "--hidden-units", "32", "--beam-size", "3"),
    *("--max-length", "6", "--log-every-updates", "1", "--device", "cpu", "--threads", "1", "--precision", "float32"),
)
START = """
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.vision import caption
caption.choose_compute = lambda *_: Compute(device="cpu", threads=1)
run_main(caption.main)
"""
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230), "white": (240, 240, 240)}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write images of one color each, with two captions that name the color."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(caption, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
    random = np.random.default_rng(0)
    lines = ["image,caption"]
    with zipfile.ZipFile("few.zip", "w") as archive:
        for index in range(56):
            word, color = list(COLORS.items())[index % 4]
            image = np.clip(np.array(color) + random.integers(-20, 20, (36, 40, 3)), 0, 255).astype(np.uint8)
            archive.writestr(f"images/{index:02}.png", png_bytes(image))
            lines += [f"{index:02}.png,{word} wall stands here .", f"{index:02}.png,{word} is this picture ."]
        archive.writestr("captions.txt", "\n".join(lines))


@pytest.fixture
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the figures, which take three quarters of the time, by small images."""
    monkeypatch.setattr(caption, "draw", lambda _entries: None)
    monkeypatch.setattr(caption, "figure_pixels", lambda _figure: np.zeros((2, 2, 3), np.uint8))


@pytest.mark.usefixtures("_without_figures")
def test_a_captioner_learns_to_name_colors(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--width-multiplier", "1", "--embedding-dim", "48", "--hidden-units", "64")
    rates = ("--learning-rate", "0.02", "--backbone-learning-rate", "0.001")
    caption.main([*TINY, *sizes, *rates, "--name", "run", "--epochs", "8"])
    printed = capsys.readouterr().out
    assert "40 training images, 8 validation images, 8 test images; vocabulary of " in printed
    assert "backbone: resnet20, random weights; trained" in printed
    result = json.loads(Path("runs/run/result.json").read_text())
    figures = result["figures"]
    assert figures["nic"]["bleu4"] > 60 > figures["most_frequent"]["bleu4"]
    assert set(figures) == {"nic", "most_frequent", "nearest"}
    expected = {f"final/test_{name}_{key}": value for name, row in figures.items() for key, value in row.items()}
    assert hparams_metrics(Path("runs"))["run"] == pytest.approx(expected)
    assert len(result["test"]) == len(result["said"]) == 8
    html = Path("runs/run/captions.html").read_text()
    assert html.count("<article>") == 8
    assert "wall stands here" in html
    Path("red.png").write_bytes(png_bytes(np.full((50, 90, 3), COLORS["red"], np.uint8)))
    caption_predict.main(["runs/run", "red.png", "--threads", "1", "--out", "red.html"])
    assert re.search(r"red.png .*\bred\b", capsys.readouterr().out)
    assert "red" in Path("red.html").read_text()
    caption_predict.main(["runs/run", "red.png", "--threads", "1", "--out", "page.png", "--json", "--beam-size", "1"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["picture"] == "red.png"
    assert "red" in answer["caption"]
    assert Path("page.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("_without_figures")
def test_a_killed_run_is_resumed_with_the_same_result(tmp_path: Path) -> None:
    caption.main([*TINY, "--name", "whole", "--quiet"])
    process = start(tmp_path, "-c", START, *TINY, "--name", "killed", "--quiet")
    latest, first = Path("runs/killed/checkpoint-0.pt"), Path("runs/killed/model.safetensors")
    wait_until(process, first.exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert latest.exists()
    caption.main(["--name", "killed", "--resume", "--quiet"])
    whole, killed = (read_tensors(Path(f"runs/{name}/model.safetensors")) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert metrics(Path("runs/whole")) == metrics(Path("runs/killed"))
    results = [json.loads(Path(f"runs/{name}/result.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["said"] == results[1]["said"]


def test_a_pretrained_backbone_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = make_classifier("resnet20", 3, 32, 4, head="pooled", width=0.25)
    metadata = ClassifierMetadata(
        backbone="resnet20",
        head="pooled",
        classes=("a", "b", "c", "d"),
        channels=3,
        image_size=(32, 32),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        options={"width": 0.25},
    )
    metadata.save(Path("backbone.safetensors"), classifier.state_dict())
    caption.main([*TINY, "--name", "run", "--epochs", "1", "--pretrained-backbone", "backbone.safetensors"])
    assert "; frozen" in capsys.readouterr().out
    read, _ = CaptionerMetadata.load(Path("runs/run"))
    assert read.metadata.mean == (0.5, 0.4, 0.3)  # normalization of the classifier
    assert read.metadata.options == {"width": 0.25}
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(read.backbone.state_dict()[name], tensor)


@pytest.mark.usefixtures("_without_figures")
def test_runs_of_different_splits_are_compared_with_their_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("0", "1", "2"):
        caption.main([*TINY, "--name", f"s{split}", "--split-seed", split, "--epochs", "1", "--quiet"])
    capsys.readouterr()
    caption_splits.main(["runs/s0", "runs/s1", "runs/s2"])
    printed = capsys.readouterr().out
    assert "nic minus baseline, 3 splits" in printed
    older = Path("runs/s1/config.json")
    older_names = older.read_text().replace('"hidden_units"', '"hidden"').replace('"split_seed"', '"split"')
    older.write_text(older_names)
    caption_splits.main(["runs/s0", "runs/s1", "--json"])
    found = json.loads(capsys.readouterr().out)
    nic, frequent = ([found["splits"][s][name]["bleu1"] for s in ("0", "1")] for name in ("nic", "most_frequent"))
    expected = sum(a - b for a, b in zip(nic, frequent, strict=True)) / 2
    assert found["differences"]["most_frequent"]["bleu1"]["mean"] == pytest.approx(expected)
    with pytest.raises(UserError, match="At least two runs with different --split-seed"):
        caption_splits.main(["runs/s0"])
    with pytest.raises(UserError, match="Two of the runs have --split-seed 0"):
        caption_splits.main(["runs/s0", "runs/s0"])
    caption.main([*TINY, "--name", "other", "--split-seed", "3", "--epochs", "1", "--hidden-units", "16", "--quiet"])
    with pytest.raises(UserError, match="has another --hidden-units than"):
        caption_splits.main(["runs/s0", "runs/other"])
    path = Path("runs/s1/result.json")
    content = json.loads(path.read_text())
    content["test"] = json.loads(Path("runs/s0/result.json").read_text())["test"][::-1]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"s1 and runs/s0 have the same test images, .*--no-named-splits"):
        caption_splits.main(["runs/s0", "runs/s1"])
    path.unlink()
    with pytest.raises(UserError, match="has no readable result"):
        caption_splits.main(["runs/s0", "runs/s1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "There is no data set 'nowhere'"),
        (["--data", "few.zip", "--test-images", "50"], "too few training images are left for a batch of 32"),
        ([*TINY, "--backbone", "resnett"], "There is no backbone 'resnett'"),
        ([*TINY, "--weights", "a.pth", "--pretrained-backbone", "b"], "both give the weights of the backbone"),
        ([*TINY, "--weights", "a.pth"], "There is no file a.pth"),
        (
            [*TINY, "--no-finetune-backbone", "--backbone-learning-rate", "0.1"],
            "--backbone-learning-rate has no effect without --finetune-backbone",
        ),
    ],
)
def test_wrong_options_are_rejected(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        caption.main(words)
    assert not Path("runs").exists()


def test_wrong_options_of_caption_predict_are_rejected() -> None:
    with pytest.raises(UserError, match="No captioner was named"):
        caption_predict.main([])
    with pytest.raises(UserError, match=re.escape("ends in .html or .png")):
        caption_predict.main(["runs/run", "a.png", "--out", "x.jpg"])
    Path("runs/run").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape("has no model.safetensors")):
        caption_predict.main(["runs/run", "a.png"])


def test_two_processes_train_and_evaluate_together(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, "-c", START, *TINY, "--epochs", "2", "--name", "run")
    result = json.loads(Path("runs/run/result.json").read_text())
    assert len(result["said"]) == len(result["test"]) == 8
    assert [line["step"] for line in metrics(Path("runs/run")) if "val/loss" in line] == [5, 10]
    assert Path("runs/run/captions.html").exists()
