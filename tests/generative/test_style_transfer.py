"""Tests of the program: results, preserved colors, resuming, error messages."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.programs import start, wait_until
from tests.tensorboard_pages import hparams_metrics
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data.image_files import resize
from zerokara.core.media import write_png
from zerokara.generative import style_transfer
from zerokara.generative.style import images

TINY = (
    *(
        "content.png",
        "style.png",
        "--loss-network",
        "random",
        "--width-multiplier",
        "0.1",
        "--size",
        "80",
        "--iterations",
        "24",
    ),
    *("--video-every-iterations", "4", "--image-every-iterations", "12", "--checkpoint-every-iterations", "3"),
    *("--log-every-iterations", "4", "--device", "cpu", "--threads", "1", "--precision", "float32"),
)
# The same hardware settings in all processes: measured settings vary with the machine's load.
START = """
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.generative import style_transfer
style_transfer.choose_compute = lambda *_: Compute(device="cpu", threads=1)
run_main(style_transfer.main)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a content image with a bright square and a style image of stripes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(style_transfer, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
    content = np.full((140, 160, 3), (40, 60, 90), np.uint8)
    content[35:105, 40:120] = (220, 180, 60)
    style = np.zeros((48, 48, 3), np.uint8)
    style[::4], style[1::4] = (250, 30, 30), (250, 200, 30)
    write_png(Path("content.png"), content)
    write_png(Path("style.png"), style)


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def lines(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in rows]


def test_result_and_printed_messages(capsys: pytest.CaptureFixture[str]) -> None:
    style_transfer.main([*TINY, "--name", "run", "--out", "copy.png"])
    printed = capsys.readouterr().out
    assert re.search(r"copy.png: 80x70 after 24 iterations", printed)
    assert "random weights; trained weights give better results" in printed
    assert re.search(r"memory: up to .* GiB of .* free", printed)
    run = Path("runs/run")
    result = pixels(run / "result.png")
    assert (pixels("copy.png") == result).all()
    assert result.shape == (70, 80, 3)
    assert {path.name for path in (run / "film").iterdir()} == {f"{i:06}.png" for i in range(4, 25, 4)}
    assert {pixels(path).shape for path in (run / "film").iterdir()} == {(70, 80, 3)}
    assert (run / "media" / "film-24.mp4").stat().st_size > 0
    first, *_, last, final = lines(run)
    assert last["train/style"] < first["train/style"]
    assert final["final/loss"] <= last["train/loss"] * (1 + 1e-6), "the loss of the best image"
    assert hparams_metrics(Path("runs"))["run"] == pytest.approx({"final/loss": final["final/loss"]})
    # The square must be where it was.
    content = np.asarray(Image.open("content.png").resize((80, 70)).convert("L"), float)
    stylized = np.asarray(Image.fromarray(result).convert("L"), float)
    assert np.corrcoef(content.ravel(), stylized.ravel())[0, 1] > 0.5


def test_colors_are_preserved(capsys: pytest.CaptureFixture[str]) -> None:
    style_transfer.main([*TINY, "--name", "run", "--keep-color", "--start", "content", "--quiet"])
    result = pixels("runs/run/result.png").astype(float)
    content = resize(pixels("content.png"), (70, 80)).astype(float)
    for one, other in ((0, 1), (1, 2)):  # differences of channels do not depend on luminance, except in clipped pixels
        inside = ((result > 0) & (result < 255)).all(2)
        assert inside.mean() > 0.5
        assert (
            np.abs((result[..., one] - result[..., other]) - (content[..., one] - content[..., other]))[inside].max()
            <= 2
        )
    assert np.abs(result - content).mean() > 2


def test_resuming_a_killed_run_is_bitwise_exact(tmp_path: Path) -> None:
    style_transfer.main([*TINY, "--name", "whole", "--quiet"])
    process = start(tmp_path, "-c", START, *TINY, "--name", "killed", "--quiet", "--iterations", "24")
    latest = Path("runs/killed/checkpoint-0.pt")
    wait_until(process, latest.exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert latest.exists()
    shutil.rmtree("runs/killed/media", ignore_errors=True)
    style_transfer.main(["--name", "killed", "--resume", "--quiet"])
    assert (pixels("runs/killed/result.png") == pixels("runs/whole/result.png")).all()
    assert lines(Path("runs/killed")) == lines(Path("runs/whole"))
    for frame in Path("runs/whole/film").iterdir():
        assert (pixels(frame) == pixels(f"runs/killed/film/{frame.name}")).all()


def test_resuming_a_run_of_an_older_release_with_another_image_is_refused() -> None:
    style_transfer.main([*TINY, "--name", "run", "--quiet", "--iterations", "2"])
    for name in images.INPUT_FILES:  # which older releases did not save
        Path("runs/run", name).unlink()
    write_png(Path("style.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match="is not the image that"):
        style_transfer.main(["--name", "run", "--resume", "--quiet"])


def test_start_from_noise() -> None:
    style_transfer.main([*TINY, "--name", "run", "--start", "noise", "--scales", "1", "--quiet"])
    first, *_, last, _final = lines(Path("runs/run"))
    assert last["train/loss"] < first["train/loss"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["content.png"], "Two images are needed, content and style, and 1 were named"),
        (["content.png", "nowhere.png", "--loss-network", "random"], "nowhere.png cannot be read"),
        (["content.png", "style.png", "--loss-network", "random", "--out", "x.jpg"], "ends in .png"),
        (["content.png", "style.png", "--loss-network", "random", "--size", "16"], "larger --size"),
        (["content.png", "style.png", "--weights", "none.pth"], "There is no file none.pth"),
        (
            ["content.png", "style.png", "--loss-network", "random", "--backbone", "vgg17"],
            "There is no backbone 'vgg17'",
        ),
    ],
)
def test_mistakes_are_reported_before_a_folder_is_created(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        style_transfer.main(words)
    assert not Path("runs").exists()


def test_sizes_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "free_bytes", lambda device: 10**6)
    with pytest.raises(UserError, match=r"80x70 pixels need about .* GiB.*--size"):
        style_transfer.main(list(TINY))
    assert not Path("runs").exists()
