"""Tests that the runs of segment, detect and caption have one background behind transparent pixels.

It is printed, saved, and used for predictions. tests/vision/classification/test_background.py has those of classify.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.models.model_file import Metadata
from zerokara.core.run import Run
from zerokara.vision import caption, caption_predict, detect, detect_predict, segment, segment_predict
from zerokara.vision.captioning.inputs import BackboneSource
from zerokara.vision.captioning.learner import make_metadata as make_captioner
from zerokara.vision.captioning.network import CaptionerMetadata
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.detection.learner import make_metadata as make_detector
from zerokara.vision.segmentation.learner import make_metadata as make_segmenter
from zerokara.vision.segmentation.networks import SegmenterMetadata

NUMBER = 24
LINE = "icons: {} images with transparency, all placed on black ({} cannot be told from white, 0 from black); "


def write_icon(path: Path, index: int) -> None:
    """Write an icon of 80x64 pixels with transparency; two of three are nearly white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    icon = Image.new("LA", (80, 64), (0, 0))
    icon.paste((128 if index % 3 == 0 else 240, 255), (20, 20, 60, 50))
    icon.save(path)


def write_masks(folder: Path) -> None:
    for split, number in (("train", NUMBER), ("val", 3), ("test", 3)):
        for index in range(number):
            write_icon(folder / split / f"{index:02}.png", index)
            (folder / f"{split}annot").mkdir(exist_ok=True)
            mask = Image.new("L", (80, 64), 0)
            mask.paste(1, (20, 20, 60, 50))
            mask.save(folder / f"{split}annot" / f"{index:02}.png")
    (folder / "classes.txt").write_text("ground\nicon")


def write_boxes(folder: Path) -> None:
    (folder / "Annotations").mkdir(parents=True)
    for index in range(NUMBER):
        write_icon(folder / "JPEGImages" / f"{index:02}.png", index)
        ends = "<xmin>21</xmin><ymin>21</ymin><xmax>60</xmax><ymax>50</ymax>"
        content = f"<annotation><object><name>icon</name><bndbox>{ends}</bndbox></object></annotation>"
        (folder / "Annotations" / f"{index:02}.xml").write_text(content)


def write_captions(folder: Path) -> None:
    for index in range(NUMBER):
        write_icon(folder / f"{index:02}.png", index)
    lines = ["image,caption", *(f"{index:02}.png,an icon stands here ." for index in range(NUMBER))]
    (folder / "captions.txt").write_text("\n".join(lines))


def of_captioner(config: Any, data: Any) -> Metadata[Any]:
    return make_captioner(config, data, BackboneSource.from_config(config, data.train))


HARDWARE = ("--device", "cpu", "--precision", "float32", "--threads", "1")
PROGRAMS: dict[str, tuple[Any, Any, str, Any, tuple[str, ...]]] = {
    "segment": (segment, write_masks, "train", make_segmenter, ("--no-test",)),
    "detect": (detect, write_boxes, "work", make_detector, ("--backbone", "resnet20", "--stride", "4")),
    "caption": (
        caption,
        write_captions,
        "train",
        of_captioner,
        ("--validation-images", "3", "--test-images", "3", "--batch-size", "4", "--backbone", "resnet20"),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_background_is_chosen_printed_saved_and_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, write, trains, make_metadata, words = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "icons")
    corners: list[set[int]] = []
    saved: list[Any] = []

    def train(config: Any, run: Run, data: Any, metadata: Any, *_: Any) -> str:
        parts = [data.train, data.validation, *([data.test] if hasattr(data, "test") else [])]
        corners.extend({int(level) for level in part.images[:, :, 0, 0].unique()} for part in parts)
        saved.append(metadata if isinstance(metadata, DetectorMetadata) else make_metadata(config, data))
        return "the end"

    monkeypatch.setattr(program, trains, train)
    monkeypatch.setattr(program, "choose_compute", lambda *_: Compute(threads=1))
    program.main(["--data", "icons", "--name", "run", *HARDWARE, *words])
    assert LINE.format(NUMBER, NUMBER * 2 // 3) in capsys.readouterr().out
    assert json.loads(Path("runs/run/config.json").read_text())["config"]["background"] == "black"
    program.main(["--name", "run", "--background", "auto", "--resume"])  # the default, stated
    assert "all placed on" not in capsys.readouterr().out
    assert {metadata.background for metadata in saved} == {"black"}
    assert corners
    assert set.union(*corners) == {0}
    with pytest.raises(UserError, match="started with --background black and cannot be resumed with white"):
        program.main(["--name", "run", "--background", "white", "--resume"])


@pytest.mark.parametrize(
    ("program", "metadata"),
    [
        (segment_predict, SegmenterMetadata),
        (detect_predict, DetectorMetadata),
        (caption_predict, CaptionerMetadata),
    ],
)
def test_images_to_predict_are_placed_on_the_background_of_the_training(
    program: types.ModuleType, metadata: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_icon(tmp_path / "icon.png", 0)
    grounds: list[str] = []

    def read_image(path: Path, *, background: str) -> None:
        grounds.append(background)
        raise UserError("not decoded")

    model = types.SimpleNamespace(background="black", classes=("a", "b"), image_size=32, data="icons")
    network = types.SimpleNamespace(metadata=model)
    monkeypatch.setattr(metadata, "load", lambda path: (network, model))
    monkeypatch.setattr(Compute, "module", lambda compute, module: module)
    monkeypatch.setattr(program, "read_image", read_image)
    with pytest.raises(UserError, match="not decoded"):
        program.main(["model", "icon.png", "--device", "cpu"])
    assert grounds == ["black"]
