"""Detection programs end to end: train both methods on drawn shapes, resume after kills, compare, predict."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import Process, metrics, num_updates, signal_at, start, unstarted_run
from tests.tensorboard_pages import hparams_metrics
from tests.vision import drawn_boxes as shapes
from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import EXIT_STOPPED, UserError, run_main
from zerokara.vision import detect, detect_compare, detect_predict
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.detection.learner import Data

MACHINE = ("--device", "cpu", "--precision", "float32", "--threads", "1")
SMALL = (
    *("--data", "shapes", "--data-dir", ".", "--proposal-cache", "cache", "--image-side", "96", "--proposals", "100"),
    *(
        "--search-color-spaces",
        "rgb",
        "--search-scales",
        "50",
        "--backbone",
        "resnet20",
        "--width-multiplier",
        "0.25",
        "--stride",
        "4",
    ),
    *("--bins", "4", "--hidden-units", "64", "--dropout", "0", "--crop-side", "32", "--regions-per-update", "32"),
    *("--learning-rate", "3e-3", "--warmup-updates", "10", "--svm-c", "0.1", *MACHINE),
)
SHORT = 24  # updates of the run that is interrupted
# The environment variable PAUSE slows updates down, so that a kill arrives during training.
PROGRAM = """
import os, time
from zerokara.core.config import run_main
from zerokara.vision import detect
from zerokara.vision.detection.learner import Training
update = Training.update
def slow(self):
    update(self)
    time.sleep(float(os.environ.get("PAUSE", "0")))
Training.update = slow
run_main(detect.main)
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a data set of drawn shapes and the cache of proposals."""
    folder = tmp_path_factory.mktemp("workspace")
    shapes.write(folder / "shapes", 40)
    return folder


@pytest.fixture
def quick(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the workspace the working directory and skip the measurement of hardware settings."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(detect, "choose_compute", lambda *_: Compute(threads=1))
    return workspace


@pytest.fixture(scope="module")
def finished(workspace: Path) -> dict[str, Path]:
    """Train a run of each method with the program; return the run folders."""
    runs = {}
    for method, updates in (("fast-rcnn", "80"), ("rcnn", "40")):
        words = [*SMALL, "--method", method, "--name", method, "--updates", updates]
        words += ["--validate-every-updates", "40", "--log-every-updates", "20", "--checkpoint-every-updates", "10"]
        out, err, code = run_program(workspace, *words)
        assert (code, err) == (0, ""), err
        assert "left out: disc (5, 5, 5, 5) in Annotations/003.xml: the box has no area" in out
        assert "cover" in out
        assert out.strip().splitlines()[-1].endswith(f"python -m vision.detect_predict runs/{method} <image>")
        runs[method] = workspace / "runs" / method
    return runs


@pytest.fixture(scope="module")
def short(workspace: Path) -> dict[str, Path]:
    """Train a short run of each method, whose interruption is tested; return the run folders."""
    every = ("--validate-every-updates", "12", "--log-every-updates", "4", "--checkpoint-every-updates", "4")
    for method in ("fast-rcnn", "rcnn"):
        words = (*SMALL, *every, "--method", method, "--name", f"{method}-short", "--updates", str(SHORT))
        assert run_program(workspace, *words)[1:] == ("", 0)
    return {method: workspace / "runs" / f"{method}-short" for method in ("fast-rcnn", "rcnn")}


def program(folder: Path, *words: str, **environment: str) -> Process:
    return start(folder, "-c", PROGRAM, *words, **environment)


def run_program(folder: Path, *words: str) -> tuple[str, str, int]:
    process = program(folder, *words)
    out, err = process.communicate(timeout=300)
    assert process.returncode is not None
    return out, err, process.returncode


def read_results(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "result.json").read_text())["figures"]
    return found


# ---- training


@pytest.mark.parametrize("method", ["fast-rcnn", "rcnn"])
def test_shapes_are_detected(finished: dict[str, Path], method: str) -> None:
    found = read_results(finished[method])
    assert found["test_recall_50"] > 0.9
    assert found["test_map_50"] > 0.7, found
    assert found["network_seconds"] > 0
    assert found["proposal_seconds"] > 0
    assert {"test_ap_50_disc", "test_ap_50_square", "test_map_50_95", "validation_map_50"} <= found.keys()


def test_a_run_folder_has_the_documented_files(finished: dict[str, Path]) -> None:
    run = finished["fast-rcnn"]
    lines = metrics(run)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(20, 81, 20))
    assert [line["step"] for line in lines if "val/map_50" in line] == [40, 80]
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["backbone"], config["width_multiplier"]) == ("resnet20", 0.25)
    media = {path.name for path in (run / "media").iterdir()}
    assert media >= {"learnt_from-0.png", "validation-40.png", "test_worst-80.png", "test_best-80.png"}
    assert list(run.glob("events.*"))
    detector = DetectorMetadata.load(run)[0]
    assert detector.metadata.figures == read_results(run)
    assert detector.metadata.classes == ("disc", "square")
    weights = checkpoint.load(run / "checkpoint-0.pt", "detect")["detector"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in detector.state_dict().items())
    expected = {
        f"speed/{name}" if name.endswith("_seconds") else f"final/{name}": v for name, v in read_results(run).items()
    }
    assert hparams_metrics(run.parent)[run.name] == pytest.approx(expected)
    protocol = json.loads((run / "result.json").read_text())["protocol"]
    assert [protocol[f"{part}_pictures"] for part in ("train", "validation", "test")] == [28, 4, 8]


def test_only_rcnn_has_svms(finished: dict[str, Path]) -> None:
    assert DetectorMetadata.load(finished["fast-rcnn"])[0].svm is None
    svm = DetectorMetadata.load(finished["rcnn"])[0].svm
    assert svm is not None
    assert float(svm.weight.abs().sum()) > 0
    assert float(svm.ridge.abs().sum()) > 0


# ---- reproducibility and resume


@pytest.mark.parametrize(
    ("method", "signals"), [("fast-rcnn", [signal.SIGKILL, signal.SIGTERM]), ("rcnn", [signal.SIGKILL])]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    short: dict[str, Path], workspace: Path, method: str, signals: list[signal.Signals]
) -> None:
    """A run that was killed and stopped ends with the same metrics and weights as an uninterrupted run."""
    whole = short[method]
    run = unstarted_run(whole, workspace, f"{method}-disturbed")
    words = ["--name", run.name, "--resume"]
    for number in signals:
        before = max(num_updates(run, "detect"), 0)
        process = program(workspace, *words, PAUSE="0.2")
        out, err, code = signal_at(process, run, "detect", number, update=before + 1)
        assert before < num_updates(run, "detect") < SHORT, "the signal arrived too late"
        if number is signal.SIGTERM:
            assert (code, err) == (EXIT_STOPPED, "")
            assert f"resume with: python -m vision.detect --name {run.name} --resume" in out
        else:
            assert code == -signal.SIGKILL
    assert not (run / "result.json").exists()
    out, err, code = run_program(workspace, *words, "--quiet")
    assert (code, err) == (0, "")
    assert len(out.strip().splitlines()) == 1
    assert metrics(run) == metrics(whole)
    ours, theirs = DetectorMetadata.load(run)[0].state_dict(), DetectorMetadata.load(whole)[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_finished_run_is_not_tested_again(
    finished: dict[str, Path], quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "test", lambda *words: pytest.fail("the test set was used twice"))
    before = (finished["fast-rcnn"] / "result.json").read_bytes()
    detect.main(["--name", "fast-rcnn", "--resume"])
    assert "test mAP" in capsys.readouterr().out
    assert (quick / "runs" / "fast-rcnn" / "result.json").read_bytes() == before


def test_no_test_leaves_the_test_set_out(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "test", lambda *words: pytest.fail("the test set was used"))
    detect.main([*SMALL, "--no-test", "--name", "untested", "--updates", "2", "--quiet"])
    assert not any(name.startswith("test") for name in read_results(quick / "runs" / "untested"))


def test_without_true_boxes_in_the_test_images_their_scores_are_null(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Data.load

    def without_boxes(config: Config) -> Data:
        data = load(config)
        few = data.test.take(range(2))
        none = (torch.zeros(0, 4), torch.zeros(0, 4)), (torch.zeros(0).long(), torch.zeros(0).long())
        return dataclasses.replace(data, test=dataclasses.replace(few, boxes=none[0], labels=none[1]))

    monkeypatch.setattr(Data, "load", without_boxes)
    detect.main([*SMALL, "--name", "no-truth", "--updates", "2"])
    said = "test mAP not measured at IoU 0.5 and not measured at 0.5 to 0.95 (no true boxes in the test images)"
    out = " ".join(capsys.readouterr().out.split())
    assert said in out
    assert "proposals per image; there are no true boxes" in out
    content = json.loads((quick / "runs" / "no-truth" / "result.json").read_text(), parse_constant=pytest.fail)
    assert content["figures"]["test_map_50"] is None
    assert content["protocol"]["remarks"] == ["no true boxes in the test images: their mAP is null"]
    assert "test_map_50" not in DetectorMetadata.load(quick / "runs" / "no-truth")[1].figures
    detect.main(["--name", "no-truth", "--resume"])
    assert said in " ".join(capsys.readouterr().out.split())


def test_divergence_ends_the_run(quick: Path) -> None:
    words = [*SMALL, "--name", "nan", "--learning-rate", "1e30", "--optimizer", "sgd", "--warmup-updates", "0"]
    with pytest.raises(UserError, match=r"NaN or Inf.*lower --learning-rate"):
        detect.main([*words, "--updates", "40", "--checkpoint-every-updates", "20", "--quiet"])
    assert num_updates(quick / "runs" / "nan", "detect") == 0


@pytest.mark.usefixtures("quick")
def test_pretrained_backbone_is_loaded(finished: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--pretrained-backbone", str(finished["fast-rcnn"]), "--freeze-batch-norm", "--name", "begun"]
    detect.main([*words, "--updates", "1", "--no-test"])
    assert "tensors from" in capsys.readouterr().out
    name = "net.backbone.bn1.running_mean"
    begun = checkpoint.load(Path("runs/begun/checkpoint-0.pt"), "detect")["detector"][name]
    assert torch.equal(begun, DetectorMetadata.load(finished["fast-rcnn"])[0].state_dict()[name])


# ---- detect_predict and detect_compare


@pytest.mark.parametrize("method", ["fast-rcnn", "rcnn"])
def test_detect_predict(
    finished: dict[str, Path], method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, marked = shapes.draw(np.random.default_rng(99))
    large = np.repeat(np.repeat(picture, 3, 0), 3, 1)
    Image.fromarray(large).save(tmp_path / "large.png")
    Image.fromarray(large[..., 0]).save(tmp_path / "gray.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = [str(finished[method]), str(tmp_path), "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"broken\.png"):
        detect_predict.main([*words, "--json"])
    found = {Path(each["picture"]).name: each["found"] for each in json.loads(capsys.readouterr().out)}
    assert found.keys() == {"large.png", "gray.png"}
    hits = 0
    for name, box in marked:
        middle = [(box[0] + box[2]) * 1.5, (box[1] + box[3]) * 1.5]
        hits += any(
            each["class"] == name
            and abs((each["box"][0] + each["box"][2]) / 2 - middle[0]) < 20
            and abs((each["box"][1] + each["box"][3]) / 2 - middle[1]) < 20
            for each in found["large.png"]
        )
    assert hits == len(marked), (found, marked)
    with Image.open(tmp_path / "out" / "large-found.png") as drawn:
        assert drawn.size == (288, 216)
        assert not np.array_equal(np.asarray(drawn), large)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "large.png").write_bytes((tmp_path / "gray.png").read_bytes())
    same_name = [str(tmp_path / "large.png"), str(tmp_path / "other" / "large.png")]
    detect_predict.main([words[0], *same_name, *words[2:]])
    assert "images with boxes" in capsys.readouterr().out
    assert (tmp_path / "out" / "large-found-2.png").exists(), "images of the same name do not overwrite one another"


def test_detect_compare(
    finished: dict[str, Path], quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With such small images either method may be faster, so times are set; everything else is measured.
    measure = detect_compare.measure
    monkeypatch.setattr(
        detect_compare, "measure", lambda *arguments: dataclasses.replace(measure(*arguments), network=(0.75, 0.25))
    )
    words = [
        str(finished["rcnn"]),
        str(finished["fast-rcnn"]),
        "--num-images",
        "3",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    detect_compare.main([*words, "--out", "compared"])
    printed = capsys.readouterr().out
    assert "times faster" in printed
    rows = json.loads((quick / "compared" / "compare.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["rcnn", "fast-rcnn"]
    assert [row["network_seconds"] for row in rows] == [0.75, 0.25]
    assert rows[0]["times_faster"] == 1.0
    assert rows[1]["times_faster"] == 3.0
    assert rows[0]["proposal_seconds"] == rows[1]["proposal_seconds"] > 0
    with Image.open(quick / "compared" / "compare.png") as picture:
        assert picture.size == (96 * 3 + 8, 72 * 3 + 8)
    with pytest.raises(UserError, match="Two runs"):
        detect_compare.main(words[:1])
    with pytest.raises(UserError, match="no run in"):
        detect_compare.main([words[0], "runs/nothing"])


# ---- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", ""], "--data bccd"),
        (["--data", "shape"], "shapes"),
        (["--method", "yolo"], "fast-rcnn"),
        (["--backbone", "resnet21"], "resnet20"),
        (["--backbone", "nature", "--stride", "2"], "--stride"),
        (["--stem", "small"], "--stem"),
        (["--pretrained-backbone", "nowhere"], "nowhere"),
        (["--regions-per-update", "0"], "at least 1"),
        (["--search-color-spaces", "cmyk"], "rgb"),
        (["--resume", "--name", "nowhere"], "nowhere"),
    ],
)
def test_an_error_is_one_sentence_and_creates_no_folder(workspace: Path, words: list[str], message: str) -> None:
    before = set(workspace.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        with pytest.raises(UserError) as error:
            detect.main([*SMALL, *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert set(workspace.rglob("*")) == before


@pytest.mark.usefixtures("quick")
def test_missing_arguments_and_changed_settings_are_refused(
    finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="No detector was given"):
        detect_predict.main([])
    with pytest.raises(UserError, match="No image was given"):
        detect_predict.main([str(finished["rcnn"])])
    with pytest.raises(UserError, match="cannot be resumed with 7"):
        detect.main(["--name", "fast-rcnn", "--resume", "--updates", "7"])
    with pytest.raises(SystemExit) as end:
        run_main(lambda: detect.main(["--data", "shape", "--data-dir", "."]))
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
