"""Tests of vision.classify from the command line: training, reproducibility, resuming, the test set, errors."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef

from tests.programs import (
    Process,
    check_damage_reported,
    error_message,
    metrics,
    num_updates,
    signal_at,
    start,
    unstarted_run,
)
from zerokara.core import checkpoint, data
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import EXIT_STOPPED, UserError, run_main
from zerokara.core.data import ImageSet, glyphs
from zerokara.core.models.classifier import ClassifierMetadata, make_classifier
from zerokara.core.zoo import registry as zoo
from zerokara.vision import classify
from zerokara.vision.classification.config import PRESETS, Config
from zerokara.vision.classification.learner import Training
from zerokara.vision.classification.scoring import Scores

pytestmark = pytest.mark.usefixtures("blank_figures")

FEW = {"train": 800, "test": 200}  # generating thousands of digits takes seconds
TINY = (
    *("--train-images", "400", "--validation-images", "200", "--epochs", "3", "--batch-size", "50"),
    *("--width-multiplier", "0.5"),
    *("--checkpoint-every-updates", "2", "--log-every-updates", "3", "--warmup-epochs", "1"),
    *("--ema-half-life-updates", "5", "--mixup", "0.2", "--tta-views", "1"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)
# The program with fewer digits. Environment variables add a pause after each update (so that a signal arrives during
# training), leave out images of errors, and limit the size of files (as a full disk does).
PROGRAM = f"""
import os, resource, time
from zerokara.core.config import run_main
from zerokara.core.data import glyphs
from zerokara.vision import classify
from zerokara.vision.classification.learner import Training
glyphs.NUMBER = {FEW}
update = Training.update
def slow(self, index):
    update(self, index)
    time.sleep(float(os.environ.get("PAUSE", "0")) if len(self.data.train) == 400 else 0)
Training.update = slow
if "NO_PICTURES" in os.environ:
    classify.log_misread = lambda *args, **options: None
if "LARGEST_FILE" in os.environ:
    limit = int(os.environ["LARGEST_FILE"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
run_main(classify.main)
"""


def program(folder: Path, *words: str, **environment: str) -> Process:
    """Start the program in a folder of its own."""
    return start(folder, "-c", PROGRAM, *words, **environment)


def slow(folder: Path, *words: str) -> Process:
    """Start the program with a pause after each update, so that it can be interrupted."""
    return program(folder, *words, PAUSE="0.1", NO_PICTURES="1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = program(folder, *TINY, "--name", "run")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    assert "400 training images, 200 validation images" in out
    parameters = sum(p.numel() for p in make_classifier("deep_cnn", 1, 28, 10, width=0.5).parameters())
    (sums,) = [line.split() for line in out.splitlines() if line.startswith(" sum")]
    assert sums[:2] == ["sum", f"{parameters:,}"], "the summary of the network is printed at the start"
    closing = out.strip().splitlines()[-1]
    assert closing.startswith("glyphs: validation error ")
    assert closing.endswith("after 3 epochs; classify an image: python -m vision.predict runs/run <image>")
    return folder / "runs" / "run"


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run in this process, in an empty folder, with few digits. Return the splits that are read, in order."""
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.chdir(tmp_path)
    read: list[str] = []
    original = data.load

    def load(name: str, split: Any, **options: Any) -> ImageSet:
        read.append(split)
        return original(name, split, **options)

    monkeypatch.setattr(data, "load", load)
    return read


@pytest.fixture
def fast_setup(in_empty_folder: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Like `in_empty_folder`, without the slow parts: timing the hardware and drawing misclassified images."""
    monkeypatch.setattr(classify, "choose_compute", lambda *_: Compute(threads=1))
    monkeypatch.setattr(classify, "log_misread", lambda *args, **options: None)
    return in_empty_folder


# ---- files of a run


def test_files_and_metrics_of_a_run(uninterrupted: Path) -> None:
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["config"]["train_images"] == 400
    assert config["extra"]["compute"]["precision"] == "float32"
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(3, 25, 3))
    assert [line["step"] for line in lines if "val/error" in line] == [8, 16, 24]
    assert [line["train/epoch"] for line in lines if "train/epoch" in line][-1] == 3.0
    result = json.loads((uninterrupted / "result.json").read_text())
    final = {key: value for line in lines for key, value in line.items() if key.startswith("final/")}
    assert final == {f"final/{name}": value for name, value in result["figures"].items()}
    assert result["figures"]["validation_error"] == lines[-2]["val/error"]
    protocol = {key: value for key, value in result["protocol"].items() if key != "hours"}
    data_and_length = {"train_images": 400, "validation_images": 200, "seed": 1, "epochs": 3}
    assert protocol == data_and_length | {"weights": "averaged", "views": 1}
    media = {path.name for path in (uninterrupted / "media").iterdir()}
    assert media >= {"augmented-0.png", "misread-8.png", "confusion-24.png"}
    assert list(uninterrupted.glob("events.*"))
    assert num_updates(uninterrupted, "classify") == 24


def test_only_the_final_evaluation_uses_all_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[tuple[int, int]] = []
    score = Training.score

    def recording_score(self: Training, images: ImageSet, *, views: int = 1) -> Scores:
        evaluated.append((len(images), views))
        return score(self, images, views=views)

    monkeypatch.setattr(Training, "score", recording_score)
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.setattr(classify, "log_misread", lambda *args, **options: None)
    monkeypatch.chdir(tmp_path)
    classify.main([*TINY, "--tta-views", "5", "--name", "run", "--quiet"])
    assert evaluated == [(200, 1)] * 3 + [(200, 5), (200, 5)]


def test_tensorboard_has_curves_images_graph_histograms_and_hparams(uninterrupted: Path) -> None:
    board = EventAccumulator(str(uninterrupted), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    board.Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) >= {
        *("train/loss", "train/accuracy", "train/learning_rate", "val/error", "val/loss", "speed/images_per_s"),
        "z_final/test_error",
    }
    assert [(event.step, event.value) for event in board.Scalars("val/error")] == [
        (line["step"], pytest.approx(line["val/error"])) for line in metrics(uninterrupted) if "val/error" in line
    ]
    assert set(tags["images"]) >= {"visual/" + tag for tag in ("augmented", "misread", "confusion", "test_misread")}
    assert [event.step for event in board.Images("visual/misread")] == [8, 16, 24]
    assert tags["graph"]
    nodes = {node.name for node in GraphDef.FromString(board.Graph().SerializeToString()).node}
    assert any("backbone" in name for name in nodes)
    assert any("classifier" in name for name in nodes)
    weights = set(make_classifier("deep_cnn", 1, 28, 10, width=0.5).state_dict())
    assert set(tags["histograms"]) == {f"weights/{name}" for name in weights}
    assert [event.step for event in board.Histograms("weights/backbone.layers.0.weight")] == [8, 16, 24]
    hparams = board.SummaryMetadata("_hparams_/session_start_info")
    assert hparams.plugin_data.plugin_name == "hparams"
    assert b"label_smoothing" in hparams.plugin_data.content


def test_model_file_holds_the_averaged_weights(uninterrupted: Path) -> None:
    classifier, metadata = ClassifierMetadata.load(uninterrupted / "model.safetensors")
    state = checkpoint.load(uninterrupted / "checkpoint-0.pt", "classify")
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, state["ema"]["module"][name])
    not_averaged = state["network"]["backbone.layers.0.weight"]
    assert not torch.equal(not_averaged, classifier.state_dict()["backbone.layers.0.weight"])
    assert metadata.figures == json.loads((uninterrupted / "result.json").read_text())["figures"]


# ---- resuming, divergence


def test_an_interrupted_run_equals_an_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    """The run is stopped by SIGTERM in an epoch, killed in the next one, then runs out of disk space."""
    run = unstarted_run(uninterrupted, tmp_path, "disturbed")
    words = ["--name", "disturbed", "--resume"]

    out, err, code = signal_at(slow(tmp_path, *words), run, "classify", signal.SIGTERM, update=2)
    assert (code, err) == (EXIT_STOPPED, "")
    assert "SIGTERM: saving" in out
    assert out.strip().splitlines()[-1].endswith("resume with: python -m vision.classify --name disturbed --resume")
    assert 2 <= num_updates(run, "classify") < 8, "it was not stopped in the middle of an epoch"
    assert not (run / "result.json").exists()

    _, _, code = signal_at(slow(tmp_path, *words), run, "classify", signal.SIGKILL, update=10)
    assert code == -signal.SIGKILL
    assert 10 <= num_updates(run, "classify") < 16, "it was not killed in the middle of an epoch"

    whole = (run / "checkpoint-0.pt").read_bytes()
    process = program(tmp_path, *words, LARGEST_FILE=str(len(whole) // 2), NO_PICTURES="1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    message = err.strip().splitlines()[-1]
    assert message.startswith("error: runs/disturbed/")
    assert "could not be written (the disk is full)" in message
    assert "--resume" in message
    assert (run / "checkpoint-0.pt").read_bytes() == whole

    process = program(tmp_path, *words, "--quiet", NO_PICTURES="1")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert len(out.strip().splitlines()) == 1
    assert metrics(run) == metrics(uninterrupted)
    resumed, reference = (checkpoint.load(path / "checkpoint-0.pt", "classify") for path in (run, uninterrupted))
    pairs = (resumed["network"], reference["network"]), (resumed["ema"]["module"], reference["ema"]["module"])
    for weights, expected in pairs:
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name])


def test_a_damaged_checkpoint_is_named_in_the_error(uninterrupted: Path, in_empty_folder: list[str]) -> None:
    run = unstarted_run(uninterrupted, Path.cwd(), "run")
    whole = (uninterrupted / "checkpoint-0.pt").read_bytes()
    check_damage_reported(
        run / "checkpoint-0.pt", whole, lambda: classify.main(["--name", "run", "--resume", "--quiet"])
    )


def test_divergence_ends_the_run_and_keeps_the_good_checkpoint(fast_setup: list[str]) -> None:
    words = [*TINY, "--name", "nan", "--learning-rate", "1e30", "--optimizer", "sgd", "--warmup-epochs", "0"]
    with pytest.raises(UserError, match=r"diverged.*NaN or Inf.*lower --learning-rate"):
        classify.main([*words, "--checkpoint-every-updates", "100"])  # it is detected at the end of the epoch
    run = Path("runs/nan")
    state = checkpoint.load(run / "checkpoint-0.pt", "classify")
    assert state["updates"] == 0
    assert all(weight.isfinite().all() for weight in state["network"].values())
    assert not (run / "model.safetensors").exists(), "non-finite weights were saved"
    assert fast_setup == ["train"]


# ---- the test set


def test_the_test_set_is_read_once_at_the_end(
    uninterrupted: Path, fast_setup: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run that is resumed does not read the test set again, and its metrics stay the same."""
    run = Path("runs/once")
    unstarted_run(uninterrupted, Path.cwd(), "once")
    during_training: list[str] = []
    original = classify.validate

    def validate(*args: Any) -> None:
        during_training.extend(fast_setup)
        original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "validate", validate)
        classify.main(["--name", "once", "--resume", "--quiet"])
    assert fast_setup == ["train", "test"]
    assert set(during_training) == {"train"}, "the test set was read before training was over"
    first, lines = capsys.readouterr().out, metrics(run)
    figures = json.loads((run / "result.json").read_text())["figures"]
    fast_setup.clear()
    classify.main(["--name", "once", "--resume", "--quiet"])
    assert fast_setup == ["train"]
    assert capsys.readouterr().out == first
    assert metrics(run) == lines == metrics(uninterrupted)
    assert json.loads((run / "result.json").read_text())["figures"] == figures


def test_no_test_leaves_the_test_set_unread(fast_setup: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--name", "no", "--no-test", "--quiet", "--epochs", "1", "--ema-half-life-updates", "0"]
    classify.main(words)
    assert fast_setup == ["train"]
    figures = json.loads(Path("runs/no/result.json").read_text())["figures"]
    assert list(figures) == ["validation_error"]
    assert "test error" not in capsys.readouterr().out
    classifier, metadata = ClassifierMetadata.load(Path("runs/no/model.safetensors"))
    state = checkpoint.load(Path("runs/no/checkpoint-0.pt"), "classify")
    assert all(torch.equal(tensor, state["network"][name]) for name, tensor in classifier.state_dict().items())
    assert metadata.figures == figures


# ---- early stopping, initial weights


@pytest.mark.usefixtures("fast_setup")
def test_patience_ends_a_run_and_resuming_does_not_continue_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch has the lowest error. `--select best` loads its weights at the end."""
    errors = iter([0.25, 0.5, 0.75])  # then always 0.25
    original = Training.score

    def score(self: Any, images: ImageSet, *, views: int = 1) -> Any:
        scores = original(self, images, views=views)
        prediction = scores.label_N.clone()
        prediction[: round(len(prediction) * next(errors, 0.25))].add_(1).remainder_(10)
        return type(scores)(torch.nn.functional.one_hot(prediction, 10).float(), scores.label_N)

    monkeypatch.setattr(Training, "score", score)
    words = [*TINY, "--name", "p", "--epochs", "9", "--patience-epochs", "2", "--select", "best", "--quiet"]
    classify.main([*words, "--no-test"])
    run = Path("runs/p")
    lines = metrics(run)
    assert [line["val/error"] for line in lines if "val/error" in line] == [0.25, 0.5, 0.75]
    assert num_updates(run, "classify") == 24
    state = checkpoint.load(run / "checkpoint-0.pt", "classify")
    assert (state["best"]["epoch"], state["best"]["figure"]) == (1, 0.25)
    classifier, _ = ClassifierMetadata.load(run / "model.safetensors")
    assert all(torch.equal(tensor, state["best"]["weights"][name]) for name, tensor in classifier.state_dict().items())
    assert not torch.equal(
        state["best"]["weights"]["backbone.layers.0.weight"], state["ema"]["module"]["backbone.layers.0.weight"]
    )
    classify.main(["--name", "p", "--resume", "--quiet"])
    assert metrics(run) == lines
    assert num_updates(run, "classify") == 24


@pytest.mark.usefixtures("fast_setup")
def test_equal_errors_do_not_reset_patience_but_the_later_weights_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5, 0.25, 0.25, 0.25, 0.0])
    original = Training.score

    def score(self: Any, images: ImageSet, *, views: int = 1) -> Any:
        scores = original(self, images, views=views)
        prediction = scores.label_N.clone()
        prediction[: round(len(prediction) * next(errors))].add_(1).remainder_(10)
        return type(scores)(torch.nn.functional.one_hot(prediction, 10).float(), scores.label_N)

    monkeypatch.setattr(Training, "score", score)
    words = [*TINY, "--name", "tie", "--epochs", "9", "--patience-epochs", "2", "--select", "best", "--quiet"]
    classify.main([*words, "--no-test"])
    state = checkpoint.load(Path("runs/tie/checkpoint-0.pt"), "classify")
    assert num_updates(Path("runs/tie"), "classify") == 4 * 8, "two epochs after the last improvement"
    assert (state["best"]["epoch"], state["best"]["since"], state["best"]["figure"]) == (4, 2, 0.25)


@pytest.mark.usefixtures("fast_setup")
def test_pretrained_backbone_from_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--name", "zoo", "--no-test", "--epochs", "1", "--width-multiplier", "1", "--learning-rate", "1e-9"]
    classify.main([*words, "--weight-decay", "0", "--pretrained-backbone", "digits"])
    assert "12 of 12 tensors from" in capsys.readouterr().out
    source, _ = zoo.load("digits")
    trained, _ = ClassifierMetadata.load(Path("runs/zoo/model.safetensors"))
    for name, tensor in trained.backbone.state_dict().items():
        torch.testing.assert_close(tensor, source.backbone.state_dict()[name], atol=1e-6, rtol=0)


def test_pretrained_backbone_from_another_run(
    uninterrupted: Path, fast_setup: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(uninterrupted, "runs/run")
    words = [*TINY, "--name", "next", "--no-test", "--epochs", "1", "--learning-rate", "1e-9", "--weight-decay", "0"]
    classify.main([*words, "--pretrained-backbone", "runs/run"])
    assert "12" in capsys.readouterr().out  # twelve tensors of six convolutions
    assert fast_setup == ["train"]
    source, _ = ClassifierMetadata.load(Path("runs/run/model.safetensors"))
    trained, _ = ClassifierMetadata.load(Path("runs/next/model.safetensors"))
    for name, tensor in trained.backbone.state_dict().items():
        torch.testing.assert_close(tensor, source.backbone.state_dict()[name], atol=1e-6, rtol=0)


# ---- errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--nonsense", "3"], "--nonsense"),
        (["--preset", "fastest"], "fast"),
        (["--batch-size", "0"], "at least 1"),
        (["--backbone", "deep_cn"], "deep_cnn"),
        (["--backbone", "vgg16"], "too small"),
        (["--data", "glyph"], "glyphs"),
        (["--stem", "small"], "--stem"),
        (["--train-images", "100000"], "--train-images"),
        (["--validation-images", "800"], "800"),
        (["--accumulation-steps", "3"], "--accumulation-steps"),
        (["--resume", "--name", "nowhere"], "nowhere"),
        (["--device", "toaster"], "toaster"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--pretrained-backbone", "runs/nowhere"], "nowhere"),
    ],
)
@pytest.mark.usefixtures("in_empty_folder")
def test_a_user_error_is_one_line_and_creates_no_folder(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        classify.main([*words, "--precision", "float32", "--compile", "off"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("words", [["--backbone", "deep_cn"], ["--data", "./nowhere"]])
def test_a_user_error_exits_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_main(lambda: classify.main(words))
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words[1] in err
    assert len(err.strip().splitlines()) == 1


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    assert "--epochs" in error_message(tmp_path, "-m", "vision.classify", "--epoch", "3")


def test_settings_cannot_change_when_resuming(uninterrupted: Path, in_empty_folder: list[str]) -> None:
    unstarted_run(uninterrupted, Path.cwd(), "run")
    with pytest.raises(UserError, match=r"was started with --epochs 3 and cannot be resumed with 4"):
        classify.main(["--name", "run", "--resume", "--epochs", "4"])
    with pytest.raises(UserError, match="--resume"):
        classify.main([*TINY, "--name", "run"])
    assert "test" not in in_empty_folder


def test_presets() -> None:
    for name in PRESETS:
        assert parse(Config, PRESETS, ["--preset", name], "").preset == name
    book = parse(Config, PRESETS, ["--preset", "book"], "")
    assert (book.optimizer, book.learning_rate, book.epochs, book.batch_size) == ("adam", 1e-3, 20, 100)
    assert (book.output_dropout, book.label_smoothing, book.schedule) == (0.5, 0.0, "constant")
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(book.augment()(x, torch.Generator()), x)
