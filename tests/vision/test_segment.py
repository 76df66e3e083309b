"""Tests of vision.segment and vision.segment_predict from the command line: training, resuming, test set, errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import Process, metrics, num_updates, run_processes, signal_at, start, unstarted_run
from tests.tensorboard_pages import hparams_metrics
from tests.vision.shapes import CLASSES, SIZE, write_shapes
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import EXIT_STOPPED, UserError, run_main
from zerokara.core.data.image_files import decode
from zerokara.core.data.masks import MaskSet, load_masks
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.zoo import registry as zoo
from zerokara.vision import segment, segment_predict
from zerokara.vision.segmentation import learner
from zerokara.vision.segmentation.config import PRESETS, Config, width_of
from zerokara.vision.segmentation.networks import SegmenterMetadata, make_segmenter

pytestmark = pytest.mark.usefixtures("blank_figures")

HARDWARE = ("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1")
TINY = (
    *("--data", "shapes", "--data-dir", ".", "--network", "fcn2s", "--backbone", "resnet18"),
    *("--width-multiplier", "0.125"),
    *("--decoder-channels", "8", "--batch-size", "6", "--epochs", "6", "--warmup-epochs", "1", "--balance", "1"),
    *("--learning-rate", "0.01", "--ema-half-life-updates", "3", "--scale-high", "1.3", "--scale-low", "0.8"),
    *("--validate-every-epochs", "3", "--checkpoint-every-updates", "3", "--log-every-updates", "4"),
    *HARDWARE,
)
# Environment variables add a pause after each update (so that a signal arrives during training) and leave out images.
PROGRAM = """
import os, time
from zerokara.core.config import run_main
from zerokara.vision import segment
from zerokara.vision.segmentation.learner import Training
update = Training.update
def slow(self, index):
    update(self, index)
    time.sleep(float(os.environ.get("PAUSE", "0")) if len(self.data.train) == 24 else 0)
Training.update = slow
if "NO_PICTURES" in os.environ:
    segment.log_overlays = segment.log_classes = lambda *args, **options: None
run_main(segment.main)
"""


def program(folder: Path, *words: str, **environment: str) -> Process:
    """Start the program in a folder of its own."""
    return start(folder, "-c", PROGRAM, *words, **environment)


def slow(folder: Path, *words: str) -> Process:
    """Start the program with a pause after each update, so that it can be interrupted."""
    return program(folder, *words, PAUSE="0.15", NO_PICTURES="1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was not interrupted. Its working folder contains the data set shapes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_shapes(folder)
    process = program(folder, *TINY, "--name", "run")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "24 training images, 6 validation images; 3 classes; fcn2s on resnet18" in out
    closing = out.strip().splitlines()[-1]
    assert closing.startswith("shapes: validation mean IoU ")
    assert "; test mean IoU " in closing
    assert closing.endswith("python -m vision.segment_predict runs/run <image or folder>")
    return folder / "runs" / "run"


@pytest.fixture
def in_shapes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run in this process, in a folder with the data set shapes, without timing the hardware.

    Returns:
        The splits that are read, in order.
    """
    write_shapes(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segment, "choose_compute", lambda *_: Compute(threads=1))
    monkeypatch.setattr(segment, "log_start", lambda *args, **options: None)
    read: list[str] = []

    def load(data: str, split: Any, **options: Any) -> MaskSet:
        read.append(split)
        return load_masks(data, split, **options)

    monkeypatch.setattr(learner, "load_masks", load)
    return read


# ---- results and files of a run


def test_files_and_metrics_of_a_run(uninterrupted: Path) -> None:
    result = json.loads((uninterrupted / "result.json").read_text())
    results = result["figures"]
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines if "train/loss" in line] == [4, 8, 12, 16, 20, 24]
    assert [line["step"] for line in lines if "val/mean_iou" in line] == [12, 24]
    best = max(line["val/mean_iou"] for line in lines if "val/mean_iou" in line)
    assert results["validation_mean_iou"] == pytest.approx(best)
    expected = {f"final/{name}": value for name, value in results.items()}
    assert hparams_metrics(uninterrupted.parent)[uninterrupted.name] == pytest.approx(expected)
    assert set(result["iou_by_class"]["test"]) == set(CLASSES)
    assert results["test_mean_iou"] == pytest.approx(np.mean(list(result["iou_by_class"]["test"].values())))
    assert result["protocol"]["unlabelled"] == "not counted"
    media = {path.name for path in (uninterrupted / "media").iterdir()}
    assert media >= {"augmented-0.png", "overlays-12.png", "overlays-24.png", "classes-24.png", "test_overlays-24.png"}
    assert list(uninterrupted.glob("events.*"))
    network, metadata = SegmenterMetadata.load(uninterrupted / "model.safetensors")
    assert metadata.classes == CLASSES
    assert metadata.figures == results
    assert sum(parameter.numel() for parameter in network.parameters()) > 10_000


def test_training_for_seconds_separates_the_shapes(
    in_shapes_folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two thirds of the pixels are ground. Predicting ground everywhere has a mean IoU of 0.22."""
    words = [*TINY, "--scale-low", "1", "--scale-high", "1", "--decoder-channels", "16", "--learning-rate", "0.02"]
    words += ["--batch-size", "4", "--epochs", "16", "--validate-every-epochs", "8", "--name", "learnt", "--quiet"]
    words += ["--checkpoint-every-updates", "100"]
    segment.main(words)
    halfway = next(line for line in metrics(Path("runs/learnt")) if "val/mean_iou" in line)
    assert halfway["val/mean_iou"] > 0.5
    assert halfway["val/accuracy"] > 0.75
    results = json.loads(Path("runs/learnt/result.json").read_text())["figures"]
    assert results["test_mean_iou"] > 0.75
    assert results["test_accuracy"] > 0.9
    assert in_shapes_folder == ["train", "val", "test"]
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


# ---- interruptions


def test_an_interrupted_run_equals_an_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    """A run that is stopped within an epoch, resumed, killed and resumed again ends with the same bits."""
    write_shapes(tmp_path)
    run = unstarted_run(uninterrupted, tmp_path, "disturbed")
    words = ["--name", "disturbed", "--resume"]
    out, err, code = signal_at(slow(tmp_path, *words), run, "segment", signal.SIGTERM, update=3)
    assert (code, err) == (EXIT_STOPPED, "")
    assert out.strip().splitlines()[-1].endswith("resume with: python -m vision.segment --name disturbed --resume")
    assert not (run / "result.json").exists()
    aim = num_updates(run, "segment") + 3
    _, _, code = signal_at(slow(tmp_path, *words), run, "segment", signal.SIGKILL, aim)
    assert code == -signal.SIGKILL
    assert num_updates(run, "segment") < 24, "the run ended before it was killed"
    process = program(tmp_path, *words, "--quiet", NO_PICTURES="1")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert metrics(run) == metrics(uninterrupted)
    resumed, reference = (checkpoint.load(path / "checkpoint-0.pt", "segment") for path in (run, uninterrupted))
    for weights, expected in (
        (resumed["network"], reference["network"]),
        (resumed["ema"]["module"], reference["ema"]["module"]),
    ):
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name])


def test_the_test_set_is_read_once(uninterrupted: Path, in_shapes_folder: list[str]) -> None:
    shutil.copytree(uninterrupted, "runs/run")
    before = json.loads(Path("runs/run/result.json").read_text())
    segment.main(["--name", "run", "--resume", "--quiet"])
    assert in_shapes_folder == ["train", "val"], "resuming a finished run read the test set again"
    assert json.loads(Path("runs/run/result.json").read_text())["figures"] == before["figures"]


def test_divergence_ends_the_run(in_shapes_folder: list[str]) -> None:
    words = [*TINY, "--name", "nan", "--learning-rate", "1e30", "--optimizer", "sgd", "--max-grad-norm", "None"]
    with pytest.raises(UserError, match=r"NaN or Inf.*lower --learning-rate"):
        segment.main([*words, "--warmup-epochs", "0", "--quiet"])
    assert not Path("runs/nan/model.safetensors").exists()
    assert "test" not in in_shapes_folder


# ---- pretrained weights


def test_the_backbone_of_another_run_is_loaded(uninterrupted: Path, in_shapes_folder: list[str]) -> None:
    shutil.copytree(uninterrupted, "runs/pretrained")
    config = Config(**{**PRESETS["fast"], "width_multiplier": 0.125, "pretrained_backbone": "runs/pretrained"})
    network = make_segmenter(
        "fcn4s", backbone="resnet18", channels=3, image_size=SIZE, classes=3, width=0.125, stem="medium"
    )
    (report,) = segment.load_weights(config, network)
    assert "runs/pretrained" in report
    expected = make_segmenter(
        "fcn4s", backbone="resnet18", channels=3, image_size=SIZE, classes=3, width=0.125, stem="medium"
    )
    load_pretrained_backbone(expected.backbone, Path("runs/pretrained"))
    for name, tensor in expected.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], tensor)


def test_a_backbone_of_the_zoo_is_loaded_by_name(uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = uninterrupted / "model.safetensors"
    monkeypatch.setattr(zoo, "files", lambda kind="classifiers": {"photos": file})
    network = make_segmenter(
        "fcn4s", backbone="resnet18", channels=3, image_size=SIZE, classes=3, width=0.125, stem="medium"
    )
    config = parse(Config, PRESETS, [*TINY, "--pretrained-backbone", "photos"], "")
    assert str(file) in segment.load_weights(config, network)[0]
    with pytest.raises(UserError, match=r"^There is no nowhere: give a run folder, a file"):
        segment.load_weights(dataclasses.replace(config, pretrained_backbone="nowhere"), network)


# ---- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "shape"], r"no data set 'shape'.*did you mean shapes"),
        (["--network", "segnet"], r"backbone resnet18 is not a VGG"),
        (["--network", "fcn32s"], r"no feature map of stride 32.*fcn2s, fcn4s, fcn8s, fcn16s"),
        (["--network", "unet"], r"--network cannot be 'unet': it must be one of fcn32s"),
        (["--backbone", "resnet19"], r"no backbone resnet19"),
        (["--image-size", "32", "48", "16"], r"--image-size cannot be 32 48 16"),
        (["--crop-size", "16", "24", "8"], r"--crop-size cannot be 16 24 8"),
        (["--train-images", "25"], r"--train-images 25 is more than the 24"),
        (["--accumulation-steps", "4"], r"--batch-size 6 cannot be divided evenly"),
        (["--preset", "quick"], r"no preset 'quick'.*segnet-slim"),
        (["--classes", "ground", "disc"], r"class 2.*there are 2 classes.*--classes"),
        (["--weights", "vgg16.pth"], r"no file vgg16\.pth"),
        (["--pretrained-backbone", "runs/nothing"], r"runs/nothing"),
        (
            ["--pretrained-backbone", "runs/run", "--width-multiplier", "0.25"],
            r"fit a resnet18 with --width-multiplier 0\.25|fits this network",
        ),
        (["--weights", "x.pth", "--grayscale"], r"three color channels"),
    ],
)
def test_errors_are_one_line_and_leave_no_folder(
    uninterrupted: Path, in_shapes_folder: list[str], words: list[str], message: str
) -> None:
    shutil.copytree(uninterrupted, "runs/run", ignore=shutil.ignore_patterns("events.*", "media"))
    with pytest.raises(UserError, match=message) as error:
        segment.main([*TINY, "--name", "invalid", "--quiet", *words])
    assert "\n" not in str(error.value)
    assert not Path("runs/invalid").exists()


def test_an_error_has_exit_code_2(in_shapes_folder: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for mask in Path("shapes").glob("*annot/*.png"):
        mask.unlink()
    with pytest.raises(SystemExit) as exiting:
        run_main(lambda: segment.main([*TINY, "--name", "invalid"]))
    assert exiting.value.code == 2
    assert capsys.readouterr().err.startswith("error: There are no images with masks in shapes")


def test_a_resumed_run_keeps_its_settings(uninterrupted: Path, in_shapes_folder: list[str]) -> None:
    shutil.copytree(uninterrupted, "runs/run")
    with pytest.raises(UserError, match="--balance"):
        segment.main(["--name", "run", "--resume", "--balance", "0.25"])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_built(preset: str) -> None:
    config = Config(**{**PRESETS[preset], "preset": preset})
    options: dict[str, Any] = {"stem": config.stem} if config.backbone.startswith("resnet") else {}
    with torch.device("meta"):
        network = make_segmenter(
            config.network,
            backbone=config.backbone,
            channels=3,
            image_size=(180, 240),
            classes=11,
            decoder_channels=config.decoder_channels,
            width=width_of(config),
            **options,
        )
    assert network.classes == 11


# ---- vision.segment_predict


def test_overlays_masks_and_a_video(
    uninterrupted: Path, in_shapes_folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    frames = Path("frames")
    frames.mkdir()
    for number in range(3):
        image = Image.open(f"shapes/val/{number:02}.png").resize((96 + 2 * (number == 2), 64))
        image.save(frames / f"{number}.jpg")
    words = [
        str(uninterrupted),
        "frames",
        "shapes/val/00.png",
        "--out",
        "overlays",
        "--masks",
        "--json",
        "--threads",
        "1",
    ]
    segment_predict.main(words)
    answer = json.loads(capsys.readouterr().out)
    assert [Path(one["picture"]).name for one in answer] == ["0.jpg", "1.jpg", "2.jpg", "00.png"]
    assert all(sum(one["shares"].values()) == pytest.approx(1, abs=1e-4) for one in answer)
    with av.open("overlays/film.mp4") as video:
        sizes = {(frame.width, frame.height) for frame in video.decode(video=0)}
    assert sizes == {(96, 64)}
    assert {path.name for path in Path("overlays").iterdir()} == {
        *("film.mp4", "0.png", "1.png", "2.png", "00.png"),
        *("0-mask.png", "1-mask.png", "2-mask.png", "00-mask.png"),
    }
    mask = np.asarray(Image.open("overlays/2-mask.png"))
    assert mask.shape == (64, 98)
    overlay = np.asarray(Image.open("overlays/2.png"))
    assert overlay.shape[0] > 64, "the legend is missing"
    # An image of the size of the training images is not resized.
    network, metadata = SegmenterMetadata.load(uninterrupted / "model.safetensors")
    image_HWC = decode(Path("shapes/val/00.png").read_bytes(), "00.png")
    prediction_HW = segment_predict.segment_image(network, metadata, Compute(), image_HWC)
    assert np.array_equal(prediction_HW, np.asarray(Image.open("overlays/00-mask.png")))


def test_images_are_resized_to_the_pixels_of_the_training_images(uninterrupted: Path) -> None:
    _, metadata = SegmenterMetadata.load(uninterrupted / "model.safetensors")
    assert segment_predict.input_size(SIZE, metadata) == SIZE
    assert segment_predict.input_size((320, 480), metadata) == SIZE
    assert segment_predict.input_size((480, 320), metadata) == (48, 32)
    assert segment_predict.input_size((320, 480), metadata, 2.0) == (64, 96)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No network was given"),
        (["runs/run"], "No image was given"),
        (["runs/nothing", "a.png"], "There is no runs/nothing"),
        (["empty", "shapes/val/00.png"], "has no model.safetensors"),
        (["runs/run", "empty"], "contains no images"),
    ],
)
def test_errors_of_prediction(uninterrupted: Path, in_shapes_folder: list[str], words: list[str], message: str) -> None:
    Path("empty").mkdir()
    shutil.copytree(uninterrupted, "runs/run", ignore=shutil.ignore_patterns("events.*", "media"))
    with pytest.raises(UserError, match=message):
        segment_predict.main(words)


def test_unreadable_images_are_named_and_the_others_segmented(uninterrupted: Path, in_shapes_folder: list[str]) -> None:
    Path("broken.png").write_bytes(b"nothing")
    words = [str(uninterrupted), "broken.png", "shapes/val/00.png", "gone.png", "--out", "overlays", "--threads", "1"]
    with pytest.raises(UserError, match=r"broken\.png cannot be decoded[\s\S]*gone\.png cannot be read"):
        segment_predict.main(words)
    assert {path.name for path in Path("overlays").iterdir()} == {"00.png"}


def test_overlays_do_not_replace_images(
    uninterrupted: Path, in_shapes_folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """--out may be the folder of the images; the mask of one image does not replace the overlay of another."""
    Path("photos").mkdir()
    for name in ("a", "a-mask"):
        shutil.copy("shapes/val/00.png", f"photos/{name}.png")
    content = Path("photos/a.png").read_bytes()
    segment_predict.main([str(uninterrupted), "photos", "--out", "photos", "--masks", "--no-film", "--threads", "1"])
    assert all(Path(f"photos/{name}.png").read_bytes() == content for name in ("a", "a-mask"))
    assert {path.name for path in Path("photos").iterdir()} - {"a.png", "a-mask.png"} == {
        *("a-2.png", "a-2-mask.png", "a-mask-2.png", "a-mask-2-mask.png"),
    }
    assert f"{Path('photos/a.png')}: written as a-2.png" in capsys.readouterr().err


def test_two_processes_train_and_evaluate_together(tmp_path: Path) -> None:
    """The metrics of torchmetrics wait for all processes, unless they are told not to."""
    write_shapes(tmp_path)
    run_processes(tmp_path, 2, "-c", PROGRAM, *TINY, "--epochs", "3", "--name", "run")
    result = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())
    lines = [line for line in metrics(tmp_path / "runs" / "run") if "val/mean_iou" in line]
    assert [line["step"] for line in lines] == [12]
    assert 0 < result["figures"]["test_mean_iou"] <= 1
    assert "test" in result["iou_by_class"]
