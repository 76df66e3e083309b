"""Tests of vision.misread: results against hand-computed values and scikit-learn, files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from zerokara.core.config import UserError
from zerokara.vision import misread
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies.finished_run import load_trained, single_run_folder

ONE_THREAD = ("--device", "cpu", "--threads", "1")
# Labels a a b b c; predictions a b b b a.
SCORES = Scores(
    torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.1, 0.7, 0.2], [0.0, 1.0, 0.0], [0.8, 0.1, 0.1]]),
    torch.tensor([0, 0, 1, 1, 2]),
)


def test_mistakes_are_ordered_by_confidence() -> None:
    assert misread.mistakes(SCORES, "abc") == [
        {
            "image": index,
            "label": label,
            "guess": guess,
            "confidence": pytest.approx(confidence),
            "probability_of_label": pytest.approx(chance),
        }
        for index, label, guess, confidence, chance in [(4, "c", "a", 0.8, 0.1), (1, "a", "b", 0.6, 0.4)]
    ]


def test_report_against_hand_computed_values() -> None:
    rows = misread.report(SCORES, ("a", "b", "c"))
    # a: precision 1 of 2, recall 1 of 2. b: precision 2 of 3, recall 2 of 2. c: never predicted.
    assert rows["a"] == {"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 2.0}
    assert rows["b"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1-score": 0.8, "support": 2.0})
    assert rows["c"] == {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 1.0}
    assert rows["macro avg"]["f1-score"] == pytest.approx(1.3 / 3)
    assert rows["weighted avg"]["recall"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_table_figures_and_json(tiny_run: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    misread.main([str(tiny_run), "--split", split, "--max-images", "2", *ONE_THREAD])
    printed = capsys.readouterr().out
    content = json.loads((tiny_run / f"misread-{split}.json").read_text())
    number = {"validation": 200, "test": 400}[split]
    assert content["images"] == number
    assert content["misread"] == len(content["mistakes"]) == round(content["error"] * number)
    assert content["misread"] > 2  # otherwise the table below is not truncated
    assert f"{content['misread']} of {number:,} misclassified, the 2 most confident" in printed
    assert f"{content['error']:.2%} of {number:,} {split} images misclassified" in printed

    trained = load_trained(tiny_run, threads=1)
    images = trained.images("validation" if split == "validation" else "test")
    prediction_N = trained.score(images).prediction_N
    assert content["confusion"] == confusion_matrix(images.labels, prediction_N, labels=range(10)).tolist()
    precision, recall, f1, _ = precision_recall_fscore_support(images.labels, prediction_N, zero_division=0.0)
    rows = [content["classes"][name] for name in "0123456789"]
    assert [row["precision"] for row in rows] == precision.tolist()
    assert [row["recall"] for row in rows] == recall.tolist()
    assert [row["f1-score"] for row in rows] == f1.tolist()
    confidence = [row["confidence"] for row in content["mistakes"]]
    assert confidence == sorted(confidence, reverse=True)
    for row in content["mistakes"]:
        assert (
            row["label"]
            == str(int(images.labels[row["image"]]))
            != row["guess"]
            == str(int(prediction_N[row["image"]]))
        )

    for name in (f"misread-{split}.png", f"confusion-{split}.png"):
        assert str(tiny_run / name) in printed
        with Image.open(tiny_run / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_out_sets_the_output_folder(tiny_run: Path) -> None:
    misread.main([str(tiny_run), "--out", "elsewhere", *ONE_THREAD])
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == [
        *("confusion-validation.png", "misread-validation.json", "misread-validation.png")
    ]
    assert not (tiny_run / "misread-validation.json").exists()


def test_error_messages(tiny_run: Path) -> None:
    with pytest.raises(UserError, match=r"No run was given: .* as in python -m vision\.misread runs/tiny"):
        misread.main([])
    with pytest.raises(UserError, match="2 runs were given, but exactly one is needed"):
        misread.main(["runs/tiny", "runs/other"])
    with pytest.raises(UserError, match=r"There is no run in runs/tinny \(did you mean tiny\?\)"):
        misread.main(["runs/tinny"])
    with pytest.raises(UserError, match="--split cannot be 'train'"):
        misread.main([str(tiny_run), "--split", "train"])
    Path("file").write_text("")
    with pytest.raises(UserError, match="--out cannot be 'file'"):
        misread.main([str(tiny_run), "--out", "file", *ONE_THREAD])
    (tiny_run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors yet"):
        misread.main([str(tiny_run)])
    with pytest.raises(UserError, match="as in program runs/<name>"):
        single_run_folder([""], "program")


def test_data_of_another_shape_are_rejected(tiny_run: Path) -> None:
    config = json.loads((tiny_run / "config.json").read_text())
    config["config"]["image_size"] = 32
    (tiny_run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"was trained on 10 classes of shape \(1, 28, 28\)"):
        misread.main([str(tiny_run), *ONE_THREAD])
