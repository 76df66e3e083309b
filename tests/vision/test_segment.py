"""The program as a person runs it: learns, survives a kill, reads the test set once, shows what it sees, refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import begun, disturbed, metrics, start, updates_of
from tests.vision.shapes import CLASSES, SIZE, plant_shapes
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, run_main
from zerokara.core.data.masks import MaskSet, load_masks
from zerokara.core.data.pictures import decode
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.zoo import registry as zoo
from zerokara.vision import segment, segment_predict
from zerokara.vision.segmentation import learner, model_file
from zerokara.vision.segmentation.config import PRESETS, Config
from zerokara.vision.segmentation.networks import make_segmenter

MACHINE = ("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1")
TINY = (
    *(
        "--data",
        "shapes",
        "--data-dir",
        ".",
        "--network",
        "fcn2s",
        "--backbone",
        "resnet18",
        "--width-multiplier",
        "0.125",
    ),
    *("--decoder-channels", "8", "--batch-size", "6", "--epochs", "6", "--warmup-epochs", "1", "--balance", "1"),
    *("--learning-rate", "0.01", "--ema-half-life-updates", "3", "--scale-high", "1.3", "--scale-low", "0.8"),
    *("--validate-every-epochs", "3", "--checkpoint-every-updates", "3", "--log-every-updates", "4"),
    *MACHINE,
)
# Where asked for, a pause, so that a kill finds the program at work.
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


def program(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """The real program, in a folder of its own."""
    return start(folder, "-c", PROGRAM, *words, **environment)


def slow(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The same, at a pace at which it can be disturbed."""
    return program(folder, *words, PAUSE="0.15", NO_PICTURES="1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, in a folder that holds the shapes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    plant_shapes(folder)
    process = program(folder, *TINY, "--name", "run")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "24 training images, 6 validation images; 3 classes; fcn2s on resnet18" in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("shapes: validation mean IoU ")
    assert "; test mean IoU " in last
    assert last.endswith("python -m vision.segment_predict runs/run <picture or folder>")
    return folder / "runs" / "run"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """In this process, in a folder of its own with the shapes, nothing measured; which splits were read, in order."""
    plant_shapes(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segment, "choose_compute", lambda config, images, world: Compute(threads=1))
    monkeypatch.setattr(segment, "log_start", lambda *args, **options: None)
    read: list[str] = []

    def load(data: str, split: Any, **options: Any) -> MaskSet:
        read.append(split)
        return load_masks(data, split, **options)

    monkeypatch.setattr(learner, "load_masks", load)
    threads = torch.get_num_threads()
    yield read
    torch.set_num_threads(threads)


# ---- what a run leaves


def test_it_learns_to_tell_discs_from_squares(here: list[str]) -> None:
    segment.main([*TINY, "--epochs", "14", "--validate-every-epochs", "14", "--name", "learns", "--quiet"])
    figures = json.loads(Path("runs/learns/result.json").read_text())["figures"]
    assert figures["test_accuracy"] > 0.75  # two thirds of all pixels are ground
    assert figures["test_mean_iou"] > 0.5  # ground alone would give 0.22


def test_a_run_leaves_what_it_promises(uninterrupted: Path) -> None:
    result = json.loads((uninterrupted / "result.json").read_text())
    figures = result["figures"]
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines if "train/loss" in line] == [4, 8, 12, 16, 20, 24]
    assert [line["step"] for line in lines if "val/mean_iou" in line] == [12, 24]
    best = max(line["val/mean_iou"] for line in lines if "val/mean_iou" in line)
    assert figures["validation_mean_iou"] == pytest.approx(best)
    assert set(result["iou_by_class"]["test"]) == set(CLASSES)
    assert figures["test_mean_iou"] == pytest.approx(np.mean(list(result["iou_by_class"]["test"].values())))
    assert result["protocol"]["unlabelled"] == "not counted"
    media = {path.name for path in (uninterrupted / "media").iterdir()}
    assert media >= {"augmented-0.png", "overlays-12.png", "overlays-24.png", "classes-24.png", "test_overlays-24.png"}
    assert list(uninterrupted.glob("events.*"))
    network, metadata = model_file.load(uninterrupted / "model.safetensors")
    assert metadata.classes == CLASSES
    assert metadata.figures == figures
    assert sum(parameter.numel() for parameter in network.parameters()) > 10_000


def test_shapes_are_learnt_in_seconds(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Far more of the picture is ground than anything else: a network that only says so has a mean IoU of 0.25."""
    words = list(TINY)
    words[words.index("--epochs") + 1] = "25"
    segment.main([*words, "--validate-every-epochs", "25", "--name", "learnt", "--quiet"])
    figures = json.loads(Path("runs/learnt/result.json").read_text())["figures"]
    assert figures["test_mean_iou"] > 0.75
    assert figures["test_accuracy"] > 0.9
    assert here == ["train", "val", "test"]
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


# ---- it survives


def test_a_run_goes_on_as_if_nothing_had_happened(uninterrupted: Path, tmp_path: Path) -> None:
    """Asked to stop in mid-epoch, then killed: in the end it is the run that nobody disturbed, bit for bit."""
    plant_shapes(tmp_path)
    run = begun(uninterrupted, tmp_path, "disturbed")
    words = ["--name", "disturbed", "--resume"]
    out, err, code = disturbed(slow(tmp_path, *words), run, "segment", signal.SIGTERM, aim=3)
    assert (code, err) == (0, "")
    assert out.strip().splitlines()[-1].endswith("resume with: python -m vision.segment --name disturbed --resume")
    assert not (run / "result.json").exists()
    aim = updates_of(run, "segment") + 3
    _, _, code = disturbed(slow(tmp_path, *words), run, "segment", signal.SIGKILL, aim)
    assert code == -signal.SIGKILL
    assert updates_of(run, "segment") < 24, "it had ended before it was killed"
    process = program(tmp_path, *words, "--quiet", NO_PICTURES="1")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert metrics(run) == metrics(uninterrupted)
    ours, theirs = (checkpoint.load(path / "checkpoint-0.pt", "segment") for path in (run, uninterrupted))
    for mine, its in ((ours["network"], theirs["network"]), (ours["ema"]["module"], theirs["ema"]["module"])):
        for name, weight in mine.items():
            assert torch.equal(weight, its[name])


def test_the_test_set_is_read_once(uninterrupted: Path, here: list[str]) -> None:
    shutil.copytree(uninterrupted, "runs/run")
    before = json.loads(Path("runs/run/result.json").read_text())
    segment.main(["--name", "run", "--resume", "--quiet"])
    assert here == ["train", "val"], "a finished run read the test set again"
    assert json.loads(Path("runs/run/result.json").read_text())["figures"] == before["figures"]


def test_numbers_that_are_none_end_the_run(here: list[str]) -> None:
    words = [*TINY, "--name", "nan", "--learning-rate", "1e30", "--optimizer", "sgd", "--max-grad-norm", "None"]
    with pytest.raises(UserError, match=r"NaN or Inf.*lower --learning-rate"):
        segment.main([*words, "--warmup-epochs", "0", "--quiet"])
    assert not Path("runs/nan/model.safetensors").exists()
    assert "test" not in here


# ---- where it starts from


def test_an_eye_of_another_run_starts_it(uninterrupted: Path, here: list[str]) -> None:
    shutil.copytree(uninterrupted, "runs/eye")
    config = Config(**{**PRESETS["fast"], "width_multiplier": 0.125, "pretrained_backbone": "runs/eye"})
    network = make_segmenter(
        "fcn4s", backbone="resnet18", channels=3, image_size=SIZE, classes=3, width=0.125, stem="medium"
    )
    (report,) = segment.start_from(config, network)
    assert "runs/eye" in report
    fresh = make_segmenter(
        "fcn4s", backbone="resnet18", channels=3, image_size=SIZE, classes=3, width=0.125, stem="medium"
    )
    load_pretrained_backbone(fresh.backbone, Path("runs/eye"))
    for name, tensor in fresh.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], tensor)


def test_a_name_of_the_zoo_will_do(uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = uninterrupted / "model.safetensors"
    monkeypatch.setattr(zoo, "files", lambda: {"photos": there})
    network = make_segmenter(
        "fcn4s", backbone="resnet18", channels=3, image_size=SIZE, classes=3, width=0.125, stem="medium"
    )
    config = parse(Config, PRESETS, [*TINY, "--pretrained-backbone", "photos"], "")
    assert str(there) in segment.start_from(config, network)[0]
    with pytest.raises(UserError, match=r"^There is no nowhere: give a run folder, a file"):
        segment.start_from(dataclasses.replace(config, pretrained_backbone="nowhere"), network)


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "shape"], r"no data set 'shape'.*did you mean shapes"),
        (["--network", "segnet"], r"backbone resnet18 is no VGG"),
        (["--network", "fcn32s"], r"no map of stride 32.*fcn2s, fcn4s, fcn8s, fcn16s"),
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
            r"fit a resnet18 of --width-multiplier 0\.25|fits this network",
        ),
        (["--weights", "x.pth", "--grayscale"], r"three colours"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_folder(
    uninterrupted: Path, here: list[str], words: list[str], sentence: str
) -> None:
    shutil.copytree(uninterrupted, "runs/run", ignore=shutil.ignore_patterns("events.*", "media"))
    with pytest.raises(UserError, match=sentence) as mistake:
        segment.main([*TINY, "--name", "mistake", "--quiet", *words])
    assert "\n" not in str(mistake.value)
    assert not Path("runs/mistake").exists()


def test_a_mistake_is_exit_code_2(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("shapes/valannot/03.png").unlink()
    with pytest.raises(SystemExit) as leaving:
        run_main(lambda: segment.main([*TINY, "--name", "mistake"]))
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: val/03.png in shapes has no mask: add 03.png")


def test_a_run_cannot_change_in_the_middle(uninterrupted: Path, here: list[str]) -> None:
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
            width=config.width_multiplier,
            **options,
        )
    assert network.classes == 11


# ---- one's own pictures


def test_overlays_and_a_film(uninterrupted: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import av

    frames = Path("frames")
    frames.mkdir()
    for number in range(3):
        picture = Image.open(f"shapes/val/{number:02}.png").resize((96 + 2 * (number == 2), 64))
        picture.save(frames / f"{number}.jpg")
    words = [str(uninterrupted), "frames", "shapes/val/00.png", "--out", "seen", "--masks", "--json", "--threads", "1"]
    segment_predict.main(words)
    told = json.loads(capsys.readouterr().out)
    assert [Path(one["picture"]).name for one in told] == ["0.jpg", "1.jpg", "2.jpg", "00.png"]
    assert all(sum(one["shares"].values()) == pytest.approx(1, abs=1e-4) for one in told)
    with av.open("seen/film.mp4") as film:
        sizes = {(frame.width, frame.height) for frame in film.decode(video=0)}
    assert sizes == {(96, 64)}
    assert {path.name for path in Path("seen").iterdir()} == {
        *("film.mp4", "0.png", "1.png", "2.png", "00.png"),
        *("0-mask.png", "1-mask.png", "2-mask.png", "00-mask.png"),
    }
    mask = np.asarray(Image.open("seen/2-mask.png"))
    assert mask.shape == (64, 98)
    overlaid = np.asarray(Image.open("seen/2.png"))
    assert overlaid.shape[0] > 64, "no legend"
    # A picture of the network's own size is seen as in validation.
    network, metadata = model_file.load(uninterrupted / "model.safetensors")
    image = decode(Path("shapes/val/00.png").read_bytes(), "it")
    guess = segment_predict.segment_picture(network, metadata, Compute(), image)
    assert np.array_equal(guess, np.asarray(Image.open("seen/00-mask.png")))


def test_sizes_at_which_pictures_are_seen(uninterrupted: Path) -> None:
    _, metadata = model_file.load(uninterrupted / "model.safetensors")
    assert segment_predict.seen_size(SIZE, metadata) == SIZE
    assert segment_predict.seen_size((320, 480), metadata) == SIZE
    assert segment_predict.seen_size((480, 320), metadata) == (48, 32)
    assert segment_predict.seen_size((320, 480), metadata, 2.0) == (64, 96)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No segmenter was named"),
        (["runs/run"], "No picture was named"),
        (["runs/nothing", "a.png"], "There is no runs/nothing"),
        (["empty", "shapes/val/00.png"], "has no model.safetensors"),
        (["runs/run", "empty"], "contains no images"),
    ],
)
def test_mistakes_of_prediction(uninterrupted: Path, here: list[str], words: list[str], sentence: str) -> None:
    Path("empty").mkdir()
    shutil.copytree(uninterrupted, "runs/run", ignore=shutil.ignore_patterns("events.*", "media"))
    with pytest.raises(UserError, match=sentence):
        segment_predict.main(words)


def test_broken_pictures_are_named_and_the_others_are_seen(uninterrupted: Path, here: list[str]) -> None:
    Path("broken.png").write_bytes(b"nothing")
    words = [str(uninterrupted), "broken.png", "shapes/val/00.png", "gone.png", "--out", "seen", "--threads", "1"]
    with pytest.raises(UserError, match=r"broken\.png cannot be decoded[\s\S]*gone\.png cannot be read"):
        segment_predict.main(words)
    assert {path.name for path in Path("seen").iterdir()} == {"00.png"}
