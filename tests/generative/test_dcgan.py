"""Tests of the program: results, reproducibility, resuming, rollback, divergence, error messages."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import Process, error_message, last_checkpoint, metrics, start, wait_until
from tests.tensorboard_pages import curve_groups, hparams_metrics
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import EXIT_STOPPED, Stopped, UserError
from zerokara.core.data import glyphs
from zerokara.core.run import Run
from zerokara.generative import dcgan
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import Learner
from zerokara.generative.gan.pictures import image_grid
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.gan.session import preview_latents
from zerokara.generative.scoring import distances, feature_extractor
from zerokara.generative.scoring.distances import Features, Overlap, overlap

# The finished run has its figures, because fixtures of the module come first.
pytestmark = pytest.mark.usefixtures("blank_figures")

FEW = {"train": 240, "test": 40}
TINY = (
    *("--generator-width", "0.125", "--discriminator-width", "0.125", "--latent-dim", "8", "--batch-size", "16"),
    *("--updates", "60", "--log-every-updates", "10", "--checkpoint-every-updates", "10", "--eval-every-updates", "30"),
    *("--eval-images", "100", "--video-every-updates", "15", "--preview-images", "9", "--ema-half-life-updates", "5"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1"),
)
# Few glyphs, and the same hardware settings in all processes: measured settings vary with the machine's load.
START = f"""
import sys
from zerokara.core.compute import Compute
from zerokara.core.data import glyphs
from zerokara.core.run import Run
from zerokara.generative import dcgan
glyphs.NUMBER = {FEW}
dcgan.choose_compute = lambda *_: Compute(device="cpu", threads=1)
from zerokara.core.config import run_main
run_main(dcgan.main)
"""


def program(folder: Path, *words: str) -> Process:
    """Start the program in its own process and folder."""
    return start(folder, "-c", START, *words)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(monkeypatch)


def tiny(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(glyphs, "NUMBER", FEW)
    patch.setattr(dcgan, "choose_compute", lambda *_: Compute(device="cpu", threads=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run. Tests must not write to it."""
    root = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        dcgan.main([*TINY, "--name", "run", "--quiet"])
    return root / "runs" / "run"


@pytest.fixture
def run(finished: Path) -> Path:
    """A copy of that run in the test's folder."""
    shutil.copytree(finished, "runs/run")
    return Path("runs/run")


def test_tensorboard_opens_on_curves(finished: Path) -> None:
    groups = curve_groups(finished)
    assert list(groups) == ["eval", "speed", "train"]
    assert min(groups.values()) > 1
    (evaluated,) = [line for line in metrics(finished) if "eval/spread" in line and line["step"] == 60]
    expected = {name: value for name, value in evaluated.items() if name.startswith("eval/")}
    assert hparams_metrics(finished.parent)["run"] == pytest.approx(expected)


def state(folder: Path, name: str = "checkpoint-0.pt") -> dict[str, Any]:
    return checkpoint.load(folder / name, "dcgan")


def same(one: Any, other: Any) -> bool:
    """Return True if two states are bitwise equal, except for the hours."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "hours")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def test_run_folder_has_all_documented_files(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines if "train/d_loss" in line] == list(range(10, 61, 10))
    assert [line["step"] for line in lines if "eval/fcd" in line] == [30, 60]
    scalars = {key for line in lines for key in line}
    assert {"train/g_loss", "train/d_accuracy_real", "train/d_accuracy_fake", "train/g_grad_norm"} <= scalars
    assert {"eval/kernel_distance", "eval/density", "eval/coverage", "eval/precision", "eval/recall"} <= scalars
    media = {path.name for path in (finished / "media").iterdir()}
    assert {"real-0.png", "samples-30.png", "samples-60.png", "curves-60.png", "film-60.mp4"} <= media
    assert [path.stem for path in sorted((finished / "film").iterdir())] == [f"{at:08}" for at in (15, 30, 45, 60)]
    assert list(finished.glob("events.*"))
    assert state(finished)["learner"]["updates"] == 60
    scores = {line["step"]: line["eval/fcd"] for line in lines if "eval/fcd" in line}
    best = state(finished, "best.pt")["best"]
    assert best == {"update": min(scores, key=lambda step: scores[step]), "score": min(scores.values())}


def test_logged_samples_are_of_the_fixed_latents_and_the_saved_weights(finished: Path) -> None:
    sampler = Sampler.load(finished, "last", threads=1)
    assert sampler.update == 60
    z_NZ = preview_latents(sampler.config)
    expected = image_grid(sampler.generate(z_NZ))
    with Image.open(finished / "media" / "samples-60.png") as opened:
        assert np.array_equal(np.asarray(opened).squeeze(), expected.squeeze())
    alone = torch.cat([sampler.generate(z_NZ[index : index + 1]) for index in range(len(z_NZ))])
    together = sampler.generate(z_NZ)
    assert int((alone.int() - together.int()).abs().max()) <= 1, (
        "an image must not depend on the other images of its batch"
    )
    others = z_NZ.clone()
    others[1:] *= -3
    assert torch.equal(sampler.generate(others)[0], together[0])
    assert torch.equal(sampler.latents(3, seed=5), sampler.latents(9, seed=5)[:3])


def test_same_seed_gives_same_metrics_and_weights(finished: Path) -> None:
    dcgan.main([*TINY, "--name", "again", "--quiet"])
    assert metrics(Path("runs/again")) == metrics(finished)
    assert same(state(Path("runs/again"))["learner"], state(finished)["learner"])
    dcgan.main([*TINY, "--name", "other", "--quiet", "--seed", "2", "--updates", "10"])
    assert metrics(Path("runs/other"))[0]["train/d_loss"] != metrics(finished)[0]["train/d_loss"]


def test_training_images_reach_the_update_with_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    update = dcgan.update

    def record(learner: Learner, pixels_BCHW: torch.Tensor, label_B: torch.Tensor) -> None:
        batches.append((pixels_BCHW, label_B))
        update(learner, pixels_BCHW, label_B)

    monkeypatch.setattr(dcgan, "update", record)
    dcgan.main([*TINY, "--name", "order", "--quiet", "--updates", "13", "--video-every-updates", "0"])
    train = Data.load(parse(Config, PRESETS, [*TINY], "")).train
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(train.images, train.labels, strict=True)}
    seen = [image.numpy().tobytes() for pixels_BCHW, _ in batches for image in pixels_BCHW]
    labels = [int(label) for _, label_B in batches for label in label_B]
    assert [label_of[image] for image in seen] == labels
    assert len(seen) == len(set(seen)) == 13 * 16, "an epoch has each image once"


def test_resuming_a_killed_run_is_bitwise_exact(finished: Path, tmp_path: Path) -> None:
    killed = tmp_path / "runs" / "killed"
    process = program(tmp_path, *TINY, "--name", "killed", "--quiet")
    wait_until(process, lambda: update_of(killed) >= 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 20 <= update_of(killed) < 60, "the run was killed too late for this test"
    process = program(tmp_path, "--name", "killed", "--resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "features: classifier deep_cnn" in out, "the protocol must be printed"
    before, after = out.split("\nfloor (training images in place of generated ones): fcd ")
    assert "against 20 held-out images" in before
    assert "update 60: fcd" in after
    assert "update 60: fcd" not in before
    assert "the Fréchet distance to only 20 images is biased upward" in out
    assert out.strip().splitlines()[-1].startswith("glyphs at update 60: FCD ")
    assert metrics(killed) == metrics(finished)
    ours, theirs = state(killed), state(finished)
    for part in ("learner", "watch", "best", "scores"):
        assert same(ours[part], theirs[part]), part
    assert torch.equal(ours["rng"]["torch"], theirs["rng"]["torch"])
    assert (killed / "film" / "00000060.png").read_bytes() == (finished / "film" / "00000060.png").read_bytes()


def update_of(folder: Path) -> int:
    """Return the update of the last checkpoint, -1 if there is none."""
    return int(last_checkpoint(folder, "dcgan").get("learner", {"updates": -1})["updates"])


def test_ctrl_c_saves_and_prints_the_command_to_resume(tmp_path: Path) -> None:
    process = program(tmp_path, *TINY, "--name", "stopped", "--updates", "1000000", "--eval-every-updates", "0")
    folder = tmp_path / "runs" / "stopped"
    wait_until(process, lambda: update_of(folder) >= 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, err
    assert "resume with: python -m generative.dcgan --name stopped --resume" in out.strip().splitlines()[-1]
    at = update_of(folder)
    dcgan.main(["--name", "stopped", "--resume", "--updates", str(at + 5), "--quiet"])
    assert update_of(folder) == at + 5


@pytest.mark.parametrize("call", [1, 2], ids=["floor", "metrics"])
def test_a_signal_interrupts_an_evaluation_which_is_repeated_after_resuming(
    call: int, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [0]

    def interrupted(real: Features, fake: Features) -> Overlap:
        calls[0] += 1
        if calls[0] in (call, call + 2):  # in the first evaluation of a process: its floor (1, 3) or its metrics (2, 4)
            signal.raise_signal(signal.SIGTERM)
        return overlap(real, fake)

    monkeypatch.setattr(distances, "overlap", interrupted)
    with pytest.raises(Stopped):
        dcgan.main([*TINY, "--name", "cut"])
    cut = Path("runs/cut")
    assert (update_of(cut), state(cut)["evaluation_pending"]) == (30, True)
    assert not any("eval/spread" in line for line in metrics(cut))
    monkeypatch.setattr(distances, "overlap", overlap)
    dcgan.main(["--name", "cut", "--resume", "--updates", "59"])
    assert metrics(cut)[:-1] == [line for line in metrics(finished) if line["step"] < 59]

    calls[0] = 2
    monkeypatch.setattr(distances, "overlap", interrupted)
    with pytest.raises(Stopped):
        dcgan.main(["--name", "cut", "--resume", "--updates", "60"])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.endswith("resume with: python -m generative.dcgan --name cut --resume"), "the evaluation is missing"
    monkeypatch.setattr(distances, "overlap", overlap)
    dcgan.main(["--name", "cut", "--resume"])
    ours, theirs = state(cut), state(finished)
    assert same(ours["learner"], theirs["learner"])
    assert [line for line in metrics(cut) if line["step"] == 60] == [
        line for line in metrics(finished) if line["step"] == 60
    ]


def test_rollback_resumes_from_the_best_checkpoint_with_other_random_numbers(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run)
    dcgan.main([*TINY, "--name", "run", "--quiet", "--updates", "30"])
    best = (run / "best.pt").read_bytes()
    dcgan.main(["--name", "run", "--resume", "--quiet", "--updates", "45"])
    (run / "best.pt").write_bytes(best)  # whatever the later evaluation resulted in
    before = [line for line in metrics(run) if line["step"] <= 30]
    later = [line for line in metrics(run) if line["step"] == 40]
    dcgan.main(["--name", "run", "--resume", "--rollback", "--updates", "40"])
    assert "rolled back to update 30" in capsys.readouterr().out
    assert state(run)["rollbacks"] == 1
    after = metrics(run)
    assert [line for line in after if line["step"] <= 30] == before
    again = [line for line in after if line["step"] == 40]
    assert again[0].keys() == later[0].keys()
    assert again[0]["train/d_loss"] != later[0]["train/d_loss"], "training must take another course"


def test_a_rollback_is_saved_before_the_first_update(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcgan, "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    at = state(run, "best.pt")["learner"]["updates"]
    with pytest.raises(KeyboardInterrupt):
        dcgan.main(["--name", "run", "--resume", "--rollback", "--updates", "90", "--quiet"])
    assert (update_of(run), state(run)["rollbacks"]) == (at, 1)


def test_non_finite_weights_end_the_run_and_are_not_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {name: (run / name).read_bytes() for name in ("checkpoint-0.pt", "best.pt", "generator-last.safetensors")}
    update = dcgan.update

    def poisoned(learner: Learner, *batch: Any) -> None:
        update(learner, *batch)
        with torch.no_grad():
            next(learner.generator.parameters()).fill_(float("nan"))

    monkeypatch.setattr(dcgan, "update", poisoned)
    with pytest.raises(UserError, match=r"diverged at update 61: the weights contain NaN or Inf.*--resume --rollback"):
        dcgan.main(["--name", "run", "--resume", "--updates", "61", "--quiet"])
    assert {name: (run / name).read_bytes() for name in good} == good


def test_divergence_of_the_loss_is_detected() -> None:
    with pytest.raises(UserError, match=r"diverged at update .* NaN or Inf"):
        dcgan.main(
            [*TINY, "--name", "nan", "--quiet", "--discriminator-learning-rate", "1e38", "--loss", "wasserstein"]
        )
    assert update_of(Path("runs/nan")) == 0


def test_damaged_checkpoint_is_reported(run: Path) -> None:
    whole = (run / "checkpoint-0.pt").read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole[:3000] + bytes(40) + whole[3040:]):
        (run / "checkpoint-0.pt").write_bytes(damage)
        with pytest.raises(UserError, match=r"checkpoint-0\.pt"):
            dcgan.main(["--name", "run", "--resume", "--updates", "70", "--quiet"])
        assert (run / "checkpoint-0.pt").read_bytes() == damage


def test_damaged_weights_are_reported(run: Path) -> None:
    path = run / "generator-best.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"generator-best\.safetensors"):
        Sampler.load(run, threads=1)
    path.unlink()
    with pytest.raises(UserError, match=r"generator-best\.safetensors yet"):
        Sampler.load(run, threads=1)


def test_damaged_best_checkpoint_is_reported_and_nothing_is_lost(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "best.pt"}
    (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best\.pt") as error:
        dcgan.main(["--name", "run", "--resume", "--rollback", "--quiet"])
    assert "remove --rollback" in str(error.value)
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "best.pt"}
    assert after == before


def test_rollback_works_with_a_damaged_last_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-0.pt").write_bytes(b"damaged")
    dcgan.main(["--name", "run", "--resume", "--rollback", "--updates", "65"])
    assert "rolled back to update" in capsys.readouterr().out
    assert update_of(run) == 65


def test_without_a_classifier_the_score_is_named_after_the_random_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerokara.generative.scoring.feature_extractor.zoo_files", dict)
    dcgan.main([*TINY, "--name", "strange", "--updates", "10"])
    out = capsys.readouterr().out
    assert "features: a random network" in out
    assert out.strip().splitlines()[-1].startswith("glyphs at update 10: distance in a random network's features ")
    assert "eval/random_fd" in metrics(Path("runs/strange"))[-1]


def test_nan_score_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([9.0, math.nan, 7.0])  # the first is the floor
    monkeypatch.setattr(feature_extractor, "frechet_distance", lambda *_: next(values))
    dcgan.main([*TINY, "--name", "nan", "--quiet", "--updates", "20", "--eval-every-updates", "10"])
    assert state(Path("runs/nan"), "best.pt")["best"] == {"update": 20, "score": 7.0}


def test_warns_of_a_perfect_discriminator(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--generator-learning-rate", "1e-9", "--discriminator-learning-rate", "2e-3", "--updates", "100")
    dcgan.main([*TINY, *words, "--name", "won", "--quiet", "--eval-every-updates", "0", "--batch-size", "32"])
    printed = "".join(capsys.readouterr())
    assert "the discriminator classifies nearly all images correctly" in printed


def test_classes_are_generated_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    dcgan.main([*TINY, "--name", "classes", "--conditional", "--updates", "10", "--preset", "r3"])
    assert Run.read_config(Path("runs/classes"))["extra"]["classes"] == [str(digit) for digit in range(10)]
    sampler = Sampler.load(Path("runs/classes"), threads=1)
    assert sampler.class_names == tuple("0123456789")
    labels = sampler.labels(12)
    assert labels is not None
    assert labels.tolist() == [*range(10), 0, 1]
    with pytest.raises(UserError, match="from 0 to 9"):
        sampler.labels(3, 10)
    assert "220 training images, 20 held-out images" in capsys.readouterr().out


def test_pretrained_backbone_is_loaded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dcgan.main([*TINY, "--name", "next", "--updates", "1", "--pretrained-backbone", str(run)])
    assert "runs/run" in capsys.readouterr().out
    dcgan.main([*TINY, "--name", "fresh", "--updates", "1", "--quiet"])
    name = next(key for key in state(run)["learner"]["discriminator"] if key.startswith("backbone."))
    theirs, ours, fresh = (state(Path("runs", of))["learner"]["discriminator"][name] for of in ("run", "next", "fresh"))
    assert float((ours - theirs).abs().max()) < 1e-3 < float((fresh - theirs).abs().max())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nonsense", "3"], "--nonsense"),
        (["--preset", "fastest"], "fast"),
        (["--loss", "bcee"], "bce"),
        (["--image-size", "300"], "256"),
        (["--data", "minst"], "mnist"),
        (["--data", "frames:zerokara/Cach-v0"], "zerokara/Catch-v0"),
        (["--backbone", "dcgam"], "dcgan"),
        (["--r1", "1"], "--discriminator-norm none"),
        (["--rollback"], "--resume"),
        (["--resume", "--name", "nowhere"], "nowhere"),
        (["--accumulation-steps", "5"], "--accumulation-steps 5"),
    ],
)
def test_mistakes_are_reported_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        dcgan.main(["--batch-size", "16", *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rollback_without_a_best_checkpoint_is_refused(run: Path) -> None:
    (run / "best.pt").unlink()
    with pytest.raises(UserError, match="no best checkpoint yet"):
        dcgan.main(["--name", "run", "--resume", "--rollback", "--quiet"])


def test_changed_options_are_refused_when_resuming(run: Path) -> None:
    with pytest.raises(UserError, match=r"--latent-dim 8"):
        dcgan.main(["--name", "run", "--resume", "--latent-dim", "9"])
    with pytest.raises(UserError, match="--resume"):
        dcgan.main([*TINY, "--name", "run"])


def test_mistakes_exit_with_code_2(tmp_path: Path) -> None:
    assert "--latent-dim" in error_message(tmp_path, "-m", "generative.dcgan", "--latent-dm", "3")
