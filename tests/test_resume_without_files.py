"""A run is resumed from its folder alone: files that it was started from may be gone, or be others meanwhile."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.programs import metrics
from tests.test_pretrained_backbone import RESNET, VGG, write_captions, write_pictures
from tests.vision import drawn_boxes, shapes
from zerokara.core import checkpoint
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import Stopped, UserError
from zerokara.core.data import glyphs
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.run import Run

pytestmark = pytest.mark.usefixtures("blank_figures")

Write = Callable[[Path, int], object]
"""Writes a file that a run is started from; the number decides on its content."""


def classifier(name: str, channels: int, side: int, width: float) -> Write:
    """Return a function that writes a classifier with random weights and a normalization of its own."""

    def write(path: Path, number: int) -> None:
        moments = (0.2 * number,) * channels
        metadata = ClassifierMetadata(
            backbone=name,
            head="pooled",
            classes=("a", "b"),
            channels=channels,
            image_size=(side, side),
            mean=moments,
            std=moments,
            options={"width": width},
        )
        torch.manual_seed(number)
        metadata.save(path, metadata.build().state_dict())

    return write


def published(name: str, width: float) -> Write:
    """Return a function that writes random weights of a backbone without metadata, as other programs do."""

    def write(path: Path, number: int) -> None:
        torch.manual_seed(number)
        torch.save(make_backbone(name, 3, 64, width=width).state_dict(), path)

    return write


def picture(path: Path, number: int) -> None:
    """Write an image of noise."""
    torch.manual_seed(number)
    Image.fromarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()).save(path)


def nothing() -> None:
    """Write no data set."""


DQN = (
    "--env zerokara/Catch-v0 --backbone nature --num-envs 2 --total-steps 48 --learning-starts 16 --batch-size 4 "
    "--train-every-steps 8 --replay-capacity 64 --width-multiplier 0.25 --hidden-units 8 --log-every-steps 8 "
    "--checkpoint-every-steps 8 --eval-every-steps 0 --no-capture-video"
)
DCGAN = (
    "--data glyphs --backbone dcgan --discriminator-width 0.125 --generator-width 0.125 --latent-dim 4 --batch-size 4 "
    "--updates 6 --log-every-updates 1 --checkpoint-every-updates 2 --eval-every-updates 3 --eval-images 100 "
    "--held-out-images 100 --preview-images 4 --classifier judge.safetensors"
)
FAST_STYLE = (
    "--data photos --style style.png --held-out-images 2 --batch-size 2 --image-size 32 --updates 6 "
    "--style-network-width 0.125 --log-every-updates 1 --image-every-updates 3"
)
TRANSFER = "content.png style.png --size 48 --iterations 6 --scales 1 --log-every-iterations 1"
CAPTION = (
    "--data captioned --image-size 32 --validation-images 2 --test-images 2 --batch-size 4 --epochs 3 "
    "--min-word-count 1 --embedding-dim 4 --hidden-units 4 --beam-size 1 --log-every-updates 1"
)
CLASSIFY = RESNET + "--data glyphs --validation-images 20 --epochs 1 --batch-size 40 --log-every-updates 1"
DETECT = (
    "--data shapes --data-dir . --updates 6 --proposals 20 --proposal-cache cache --hidden-units 8 "
    "--log-every-updates 1 --regions-per-update 8 --images-per-update 2 --image-side 64"
)
SEGMENT = RESNET + "--data shapes --data-dir . --epochs 2 --batch-size 6 --log-every-updates 1 --decoder-channels 8"
PRETRAINED = " --pretrained-backbone start.safetensors"
WEIGHTS = " --weights start.pth"
VGG_CLASSIFIER = classifier("vgg11", 3, 64, 0.125)
PICTURES: dict[str, Write] = {"content.png": picture, "style.png": picture}
# Case -> program, arguments, function that writes its data set, and the files that it is started from.
CASES: dict[str, tuple[str, str, Callable[[], object], Mapping[str, Write]]] = {
    "dqn": ("agents.dqn", DQN + PRETRAINED, nothing, {"start.safetensors": classifier("nature", 4, 84, 0.25)}),
    "dcgan": (
        "generative.dcgan",
        DCGAN + PRETRAINED,
        nothing,
        {"start.safetensors": classifier("dcgan", 1, 32, 0.125), "judge.safetensors": classifier("vgg11", 1, 32, 0.1)},
    ),
    "fast_style": (
        "generative.fast_style",
        FAST_STYLE + PRETRAINED,
        write_pictures,
        {"start.safetensors": VGG_CLASSIFIER, "style.png": picture},
    ),
    "fast_style --weights": (
        "generative.fast_style",
        VGG + FAST_STYLE + WEIGHTS,
        write_pictures,
        {"style.png": picture, "start.pth": published("vgg11", 0.125)},
    ),
    "style_transfer": (
        "generative.style_transfer",
        TRANSFER + PRETRAINED,
        write_pictures,
        {"start.safetensors": VGG_CLASSIFIER, **PICTURES},
    ),
    "caption": (
        "vision.caption",
        CAPTION + PRETRAINED,
        write_captions,
        {"start.safetensors": classifier("resnet20", 3, 32, 0.25)},
    ),
    "caption --weights": (
        "vision.caption",
        RESNET + CAPTION + WEIGHTS,
        write_captions,
        {"start.pth": published("resnet20", 0.25)},
    ),
    "classify": (
        "vision.classify",
        CLASSIFY + PRETRAINED,
        nothing,
        {"start.safetensors": classifier("resnet20", 1, 32, 0.25)},
    ),
    "detect": (
        "vision.detect",
        DETECT + PRETRAINED,
        lambda: drawn_boxes.write(Path("shapes"), 10),
        {"start.safetensors": classifier("resnet20", 3, 64, 0.25)},
    ),
    "segment": (
        "vision.segment",
        SEGMENT + PRETRAINED,
        lambda: shapes.write_shapes(Path()),
        {"start.safetensors": classifier("resnet20", 3, 32, 0.25)},
    ),
}
READ_AGAIN = ("dcgan", "fast_style", "fast_style --weights", "style_transfer", "caption", "detect")
"""Cases whose resumed run needs something of the files that is not in a checkpoint."""


def run(case: str, *words: str) -> None:
    """Run the program of a case with the same hardware settings."""
    importlib.import_module(f"zerokara.{CASES[case][0]}").main([*CASES[case][1].split(), *words])


def prepare(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the data set and the files of a case into the folder, and change the working folder to it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 240, "test": 40})  # generating thousands takes seconds
    monkeypatch.setattr(Compute, "choose", lambda **options: Compute(device="cpu", threads=1))
    CASES[case][2]()
    write_files(case, 1)


def write_files(case: str, number: int) -> None:
    """Write the files that a case is started from."""
    for name, write in CASES[case][3].items():
        write(Path(name), number)


def stop(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the run "stopped", and stop it by a signal after a third of its updates."""
    show = Run.progress
    stopped: list[int] = []

    def progress(self: Run, step: int, total: int, fields: Mapping[str, Any]) -> None:
        show(self, step, total, fields)
        if not stopped and step >= total / 3 and "proposals" not in fields:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "progress", progress)
        with pytest.raises(Stopped):
            run(case, "--name", "stopped")
    assert len(stopped) == 1
    assert stopped[0] > 0


def tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Return all tensors inside of a state by their dotted names."""
    if isinstance(state, Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {key: x for part, value in items for key, x in tensors(value, f"{name}.{part}").items()}


def read_tensors(case: str, name: str) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint of a run by their dotted names."""
    kind = CASES[case][0].split(".")[1]
    return tensors(checkpoint.load(Path("runs", name, "checkpoint-0.pt"), kind))


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_without_the_files_that_it_was_started_from(
    case: str, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(case, tmp_path, monkeypatch)
    run(case, "--name", "whole")
    stop(case, monkeypatch)
    for name in CASES[case][3]:
        Path(name).unlink()
    if replaced:
        write_files(case, 2)
    run(case, "--name", "stopped", "--resume")
    whole, resumed = (read_tensors(case, name) for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []
    assert json.dumps(metrics(Path("runs/whole"))) == json.dumps(metrics(Path("runs/stopped")))


@pytest.mark.parametrize("case", READ_AGAIN)
def test_a_run_of_an_older_release_names_the_file_that_is_gone(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older releases saved neither copies nor what they read. The run resumes while the files are there."""
    prepare(case, tmp_path, monkeypatch)
    stop(case, monkeypatch)
    content = Run.read_config(Path("runs/stopped"))
    for key in ("backbone", "normalization", "classifier_bias"):
        content["extra"].pop(key, None)
    Path("runs/stopped/config.json").write_text(json.dumps(content))
    for name in ("content.png", "style.png", "loss_network.safetensors", "classifier.safetensors"):
        Path("runs/stopped", name).unlink(missing_ok=True)
    shutil.copytree("runs/stopped", "runs/older")
    file = list(CASES[case][3])[-1]
    Path(file).rename("elsewhere")
    message = rf"^There is no {file}, which runs/older was started from, .* restore it to resume the run\.$"
    with pytest.raises(UserError, match=message):
        run(case, "--name", "older", "--resume")
    Path("elsewhere").rename(file)
    run(case, "--name", "stopped", "--resume")
