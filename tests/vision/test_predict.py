"""Tests of vision.predict with photographs of digits and with damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import error_message
from zerokara.core.choices import Background
from zerokara.core.config import UserError
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.zoo import registry as zoo
from zerokara.vision import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the network of the zoo that was trained on synthetic digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    folder.mkdir()
    shutil.copy(zoo.files()["glyphs"], folder / "model.safetensors")
    return folder


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Return a folder with ten images of paper with a dark blue digit, and a file that is not an image."""
    folder = tmp_path / "sheets"
    folder.mkdir()
    for digit in range(10):
        paper = np.full((220, 300, 3), (200, 220, 225), np.uint8)
        cv2.putText(paper, str(digit), (60, 160), cv2.FONT_HERSHEY_SIMPLEX, 4.0, (110, 50, 40), 14, cv2.LINE_AA)
        Image.fromarray(paper).save(folder / f"{digit}.jpg", quality=90)
    (folder / "notes.txt").write_text("not for the network")
    return folder


def test_photographed_digits_are_classified(run: Path, sheets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.main([str(run), str(sheets), "--json", "--top", "3", "--device", "cpu"])
    results = json.loads(capsys.readouterr().out)
    assert [Path(each["picture"]).name for each in results] == [f"{digit}.jpg" for digit in range(10)]
    correct = [each["guesses"][0]["class"] == str(digit) for digit, each in enumerate(results)]
    assert sum(correct) >= 9
    for each in results:
        values = [guess["probability"] for guess in each["guesses"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert each["seen"] == "inverted, digit cropped and centered"


def test_table_and_image_of_the_prepared_input(run: Path, sheets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sheets / "seen.png"
    predict.main([str(run / "model.safetensors"), str(sheets / "7.jpg"), "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "7.jpg" in printed
    assert printed.count("%") == 5
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_views_are_averaged(run: Path, sheets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise, predictions = sheets / "noise.png", []  # not a digit, so that the network is not certain
    Image.fromarray(np.random.default_rng(0).integers(256, size=(28, 28), dtype=np.uint8)).save(noise)
    for views in ("1", "5"):
        predict.main([str(run), str(noise), "--json", "--views", views, "--device", "cpu"])
        predictions.append(json.loads(capsys.readouterr().out)[0]["guesses"])
    assert predictions[0] != predictions[1]


def untrained(folder: Path, classes: tuple[str, ...], side: int = 32, background: Background = "auto") -> Path:
    """Save an untrained network with another input size."""
    torch.manual_seed(1)
    metadata = ClassifierMetadata(
        backbone="deep_cnn",
        head="paper",
        classes=classes,
        channels=1,
        image_size=(side, side),
        mean=(0.2,),
        std=(0.3,),
        options={"width": 0.25},
        dropout=0.0,
        background=background,
    )
    metadata.save(folder, metadata.build().state_dict())
    return folder


def test_probabilities_of_several_classifiers_are_averaged(
    run: Path, sheets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each member gets the image in its own size. The result is the mean of the two single results."""
    second = untrained(sheets.parent / "second.safetensors", tuple("0123456789"))
    results, printed_err = [], ""
    for words in ([str(run)], [str(second)], [str(run), "--also", str(second)]):
        predict.main([words[0], str(sheets / "3.jpg"), *words[1:], "--json", "--top", "10", "--device", "cpu"])
        printed = capsys.readouterr()
        results.append({each["class"]: each["probability"] for each in json.loads(printed.out)[0]["guesses"]})
        printed_err = printed.err
    assert printed_err == "Ensemble: mean probabilities of 2 classifiers.\n"
    assert results[0] != results[1]
    for name in "0123456789":
        assert results[2][name] == pytest.approx((results[0][name] + results[1][name]) / 2, abs=2e-6)
    predict.main([str(run), str(sheets / "3.jpg"), "--also", str(second), "--device", "cpu"])
    assert "mean probabilities of 2 classifiers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"), [([], ["black", "white"]), (["--background", "auto"], ["auto", "auto"])]
)
def test_transparent_pixels_get_the_background_of_the_training_images(
    words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backgrounds: list[str] = []

    def read_image(path: Path, *, background: str) -> np.ndarray:
        backgrounds.append(background)
        return np.zeros((32, 32, 1), np.uint8)

    monkeypatch.setattr(predict, "read_image", read_image)
    first, second = (
        str(untrained(tmp_path / f"{background}.safetensors", ("a", "b"), background=background))
        for background in ("black", "white")
    )
    (tmp_path / "a.png").touch()
    predict.main([first, str(tmp_path / "a.png"), "--also", second, *words, "--json", "--device", "cpu"])
    assert backgrounds == expected


def test_classifiers_that_cannot_be_averaged_are_rejected(run: Path, sheets: Path) -> None:
    picture = str(sheets / "3.jpg")
    two = untrained(sheets.parent / "two.safetensors", ("cat", "dog"))
    with pytest.raises(UserError, match=r"two\.safetensors has 2 classes \(cat, dog\), but .* 10 classes \(0, 1, 2, "):
        predict.main([str(run), picture, "--also", str(two), "--device", "cpu"])
    reordered = untrained(sheets.parent / "reordered.safetensors", tuple("9876543210"))
    with pytest.raises(UserError, match="the same order"):
        predict.main([str(run), picture, "--also", str(reordered), "--device", "cpu"])
    with pytest.raises(UserError, match="is given twice"):
        predict.main([str(run), picture, "--also", str(run / "model.safetensors"), "--device", "cpu"])


def test_damaged_images_are_reported_and_the_others_classified(
    run: Path, sheets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, missing = sheets / "broken.png", sheets / "missing.png"
    broken.write_bytes(b"\x89PNG and nothing more")
    with pytest.raises(UserError, match=r"broken\.png cannot be decoded") as error:
        predict.main([str(run), str(broken), str(sheets / "1.jpg"), str(missing), "--json", "--device", "cpu"])
    assert "missing.png cannot be read" in str(error.value)
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_a_damaged_image_exits_with_code_2(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    words = ("-m", "vision.predict", str(run), str(tmp_path / "empty.png"), "--device", "cpu")
    assert "empty.png is empty" in error_message(tmp_path, *words)


def test_missing_arguments(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No classifier was given"):
        predict.main([])
    with pytest.raises(UserError, match="No image was given"):
        predict.main([str(run)])
    with pytest.raises(UserError, match="contains no images"):
        predict.main([str(run), str(tmp_path)])
    with pytest.raises(UserError, match="There is no nothing-here"):
        predict.main(["nothing-here", "a.png"])
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        predict.main([str(tmp_path), "a.png"])
