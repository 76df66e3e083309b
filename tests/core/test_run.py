"""Run and its folder: locking, config.json, metrics, media, resuming and write errors."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.programs import start, wait_until
from zerokara.core.config import UserError
from zerokara.core.run import Run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Config of the tests."""

    preset: str = "fast"
    learning_rate: float = 1e-4
    hidden: tuple[int, ...] = (4, 5)
    resume: bool = False


def new(root: Path, name: str = "a", *, resume: bool = False, kind: str = "dqn", **options: Any) -> Run:
    return Run(Config(), kind=kind, name=name, resume=resume, quiet=True, root=root, **options)


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def events(run: Run) -> EventAccumulator:
    accumulator = EventAccumulator(str(run.folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


# Folder.


def test_content_of_config_json(tmp_path: Path) -> None:
    new(tmp_path, extra={"precision": "bfloat16"}).close()
    content = Run.read_config(tmp_path / "a", "dqn")
    assert content["kind"] == "dqn"
    assert content["config"] == {
        "config_version": 2,
        "preset": "fast",
        "learning_rate": 1e-4,
        "hidden": [4, 5],
        "resume": False,
    }
    assert content["extra"] == {"precision": "bfloat16"}
    assert content["versions"]["torch"] == torch.__version__
    assert content["versions"]["python"] == sys.version.split()[0]
    assert set(content["versions"]) == {"python", "zerokara", "torch", "numpy", "gymnasium", "ale_py", "opencv"}
    assert content["git_commit"] is None or len(content["git_commit"].removesuffix("-dirty")) == 40
    assert content["machine"]["cores"] == os.cpu_count()
    assert content["machine"]["memory_bytes"] > 2**28
    assert content["machine"]["cpu"]
    assert content["command"].startswith("python ")
    assert content["created"].endswith("+00:00")


def test_existing_folders_are_not_overwritten(tmp_path: Path) -> None:
    new(tmp_path).close()
    with pytest.raises(UserError, match=r"a already holds a run: resume it with --resume, or choose another --name"):
        new(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").write_text("text", encoding="utf-8")
    with pytest.raises(UserError, match="--name"):
        new(tmp_path, "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file.txt"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="--name"):
        new(tmp_path, "file")
    (tmp_path / "empty").mkdir()
    new(tmp_path, "empty").close()


def test_resume_does_not_change_config_json(tmp_path: Path) -> None:
    new(tmp_path, extra={"key": 1}).close()
    before = (tmp_path / "a/config.json").read_bytes()
    new(tmp_path, resume=True, extra={"key": 2}).close()
    assert (tmp_path / "a/config.json").read_bytes() == before


def test_errors_when_resuming(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*missing; name an existing run"):
        new(tmp_path, "missing", resume=True)
    assert list(tmp_path.iterdir()) == []
    new(tmp_path, "pong-1").close()
    with pytest.raises(UserError, match=r"no run in .*pong1 \(did you mean pong-1\?\)"):
        new(tmp_path, "pong1", resume=True)
    with pytest.raises(UserError, match="a run of dqn, not of dcgan"):
        new(tmp_path, "pong-1", resume=True, kind="dcgan")
    config = tmp_path / "pong-1/config.json"
    for text, message in [('{"kind"', "damaged"), ("[]", "not written by zerokara"), ('{"kind": 3}', "not written by")]:
        config.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            new(tmp_path, "pong-1", resume=True)
    config.write_text('{"kind": "dqn", "config": {}, "extra": {"compute": [1]}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged \(its extra compute is no mapping\)"):
        Run.read_config(tmp_path / "pong-1")
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="damaged"):
        Run.read_config(tmp_path / "pong-1")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", "a b", ".hidden", "a\n"])
def test_invalid_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name cannot be"):
        new(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import sys
import time
from pathlib import Path
from zerokara.core.config import run_main
from zerokara.core.run import Run
from dataclasses import dataclass
@dataclass(frozen=True)
class Config:
    preset: str = "fast"
def main():
    run = Run(Config(), kind="dqn", name="a", resume="--resume" in sys.argv, quiet=True, root=Path(sys.argv[1]))
    print("locked", flush=True)
    if "--fork" in sys.argv:
        import os
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
        time.sleep(60)
run_main(main)
"""


def test_two_processes_cannot_write_the_same_run(tmp_path: Path) -> None:
    run = new(tmp_path)
    for resume in (False, True):  # in this process
        with pytest.raises(UserError, match="being written by another process"):
            new(tmp_path, resume=resume)
    other = start(tmp_path, "-c", PROGRAM, str(tmp_path), "--resume")  # in another process
    out, err = other.communicate()
    assert (other.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert "being written by another process" in err
    assert err.count("\n") == 1
    run.log(1, {"train/loss": 1.0})  # the first run still works
    run.close()
    assert rows(run) == [{"step": 1, "train/loss": 1.0}]
    new(tmp_path, resume=True).close()


def test_lock_is_released_with_the_process_despite_a_child(tmp_path: Path) -> None:
    other = start(tmp_path, "-c", PROGRAM, str(tmp_path), "--fork")
    wait_until(other, lambda: other.out.read_text().count("\n") == 2)
    locked, child = other.out.read_text().split()
    try:
        assert locked == "locked"
        with pytest.raises(UserError, match="another process"):
            new(tmp_path, resume=True)
        other.send_signal(signal.SIGKILL)
        other.communicate()
        os.kill(int(child), 0)  # raises if the child is not alive
        new(tmp_path, resume=True).close()
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_path_creates_folders(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.path("checkpoints", "last.pt").write_bytes(b"x")
        assert (tmp_path / "a/checkpoints/last.pt").is_file()


# Metrics.


def test_tensors_are_converted_at_the_flush(tmp_path: Path) -> None:
    run = new(tmp_path)
    loss = torch.tensor(0.5, requires_grad=True)
    run.log(
        1, {"train/loss": loss, "train/return": -21, "train/epsilon": 0.1, "train/half": torch.tensor(1.5).bfloat16()}
    )
    with torch.no_grad():
        loss.fill_(7.0)  # a captured CUDA graph writes each loss into the same memory
    run.log(2, {"train/loss": loss, "train/count": torch.tensor([2**40 + 1]), "train/numpy": np.float32(0.25)})
    assert not (run.folder / "metrics.jsonl").exists()
    run.flush()
    assert rows(run) == [
        {"step": 1, "train/loss": 0.5, "train/return": -21, "train/epsilon": 0.1, "train/half": 1.5},
        {"step": 2, "train/loss": 7.0, "train/count": 2**40 + 1, "train/numpy": 0.25},
    ]
    run.close()
    scalars = events(run)
    assert [(e.step, e.value) for e in scalars.Scalars("train/loss")] == [(1, 0.5), (2, 7.0)]
    assert [(e.step, e.value) for e in scalars.Scalars("train/return")] == [(1, -21.0)]


def test_non_finite_values_are_null_in_json(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log(1, {"a": math.nan, "b": torch.tensor(math.inf), "c": np.float64("-inf"), "d": 1.0})
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == '{"step": 1, "a": null, "b": null, "c": null, "d": 1.0}\n'
    assert math.isnan(events(run).Scalars("a")[0].value)


def test_resume_discards_metrics_after_the_checkpoint(tmp_path: Path) -> None:
    run = new(tmp_path)
    state: dict[str, Any] = {}
    for step in range(10):
        run.log(step, {"train/loss": float(step)})
        if step == 5:
            state = run.state_dict()
    run.close()
    time.sleep(1)  # TensorBoard reads files in the order of their names, which contain the time in seconds
    resumed = new(tmp_path, resume=True)
    resumed.resume_from(json.loads(json.dumps(state)))  # the state is JSON-serializable
    assert [row["step"] for row in rows(resumed)] == [0, 1, 2, 3, 4, 5]
    assert resumed.state_dict() == state
    for step in range(6, 8):
        resumed.log(step, {"train/loss": 100.0 + step})
    resumed.close()
    assert [row["train/loss"] for row in rows(resumed)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 106.0, 107.0]
    scalars = events(resumed).Scalars("train/loss")
    assert [(e.step, e.value) for e in scalars] == [*((s, float(s)) for s in range(6)), (6, 106.0), (7, 107.0)]


@pytest.mark.parametrize("damage", ["missing", "shorter", "incomplete"])
def test_lost_lines_of_metrics_do_not_stop_a_run(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new(tmp_path)
    for step in range(5):
        run.log(step, {"x": 1.0})
    state = run.state_dict()
    run.close()
    path = run.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:2]) + (b'{"st' if damage == "incomplete" else b""))
    resumed = new(tmp_path, resume=True)
    resumed.resume_from(state)
    assert "is shorter than it was" in capsys.readouterr().err
    resumed.log(5, {"x": 2.0})
    resumed.close()
    assert [row["step"] for row in rows(resumed)] == ([5] if damage == "missing" else [0, 1, 5])


def test_incomplete_last_line_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new(tmp_path)
    run.log(1, {"x": 1.0})
    state = run.state_dict()
    run.close()
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "x"')  # as after SIGKILL during a write
    resumed = new(tmp_path, resume=True)
    resumed.resume_from(state)
    resumed.close()
    assert rows(resumed) == [{"step": 1, "x": 1.0}]
    assert capsys.readouterr().err == ""


# Media, texts and hyperparameters.


def test_video_is_an_mp4_file_and_a_gif_in_tensorboard(tmp_path: Path) -> None:
    frames = np.zeros((6, 40, 40, 3), np.uint8)
    for t in range(6):
        frames[t, :, 4 * t : 4 * t + 8] = 255
    with new(tmp_path) as run:
        run.video("eval/game", 1000, frames, fps=15)
        run.image("input/stack", 1000, frames[0])
        run.text("notes", "**hello**")
        run.log(1000, {"eval/return": 20.5})
        run.hparams({"learning_rate": 1e-4, "name": None, "hidden": (4, 5), "double": True}, ["eval/return"])
    with av.open(str(run.folder / "media/eval-game-1000.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert len(list(container.decode(video=0))) == 6
    assert sorted(path.name for path in (run.folder / "media").iterdir()) == [
        "eval-game-1000.mp4",
        "input-stack-1000.png",
    ]
    board = events(run)
    (gif,) = board.Images("visual/eval/game")
    assert (gif.step, gif.width, gif.height) == (1000, 40, 40)
    assert gif.encoded_image_string.startswith(b"GIF89a")
    assert board.Images("visual/input/stack")[0].encoded_image_string.startswith(b"\x89PNG")
    assert board.Scalars("eval/return")[0].value == 20.5
    assert b"**hello**" in board.Tensors("notes/text_summary")[0].tensor_proto.string_val[0]
    hparams = board.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert hparams.plugin_name == "hparams"
    assert b"learning_rate" in hparams.content


def test_failed_media_warn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new(tmp_path) as run:
        for step in range(3):
            run.video("eval/game", step, np.zeros((0, 8, 8, 3), np.uint8), fps=15)
            run.image("eval/stack", step, np.zeros((8, 8)))
        run.video("eval/game", 3, np.zeros((2, 8, 8, 3), np.uint8), fps=15)  # later writes are attempted
    err = capsys.readouterr().err
    assert err.startswith("warning: media could not be written (frames must be")
    assert err.count("\n") == 1
    assert [path.name for path in (run.folder / "media").iterdir()] == ["eval-game-3.mp4"]


def test_full_disk_does_not_stop_training(tmp_path: Path) -> None:
    """The disk is simulated by a limit on the size of files, in a separate process, for all files of a run."""
    code = """
import resource, sys
import numpy as np
from pathlib import Path
from dataclasses import dataclass
from zerokara.core.run import Run
@dataclass(frozen=True)
class Config:
    preset: str = "fast"
frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
with Run(Config(), kind="dqn", name="a", resume=False, quiet=True, root=Path(sys.argv[1])) as run:
    run.log(0, {"train/loss": 1.0})
    run.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    for step in range(1, 200):
        run.log(step, {"train/loss": 1.0, "train/return": 3})
        run.flush()
        if step % 50 == 0:
            run.video("eval/game", step, frames, 15)
            run.image("eval/stack", step, frames[0])
            run.hparams({}, [])
    state = run.state_dict()
    assert state["last_step"] == 199
    run.close("trained to the end")
"""
    process = start(tmp_path, "-c", code, str(tmp_path))
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "trained to the end\n"), err
    assert sorted(err.splitlines()) == [
        f"warning: {output} could not be written (the disk is full): training continues{end}."
        for output, end in (
            ("TensorBoard's events", " without them"),
            ("media", ", and later writes are attempted"),
            ("metrics.jsonl", ", and later writes are attempted"),
        )
    ]
    lines = (tmp_path / "a/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))  # no incomplete lines
    assert 40 < len(lines) < 199
    assert list((tmp_path / "a/media").iterdir()) == []


# Closing.


def test_closing_line_is_printed_once_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(Config(), kind="dqn", name="a", resume=False, quiet=False, root=tmp_path) as run:
        run.progress(5, 10, {"return": 1.5})
        run.print("a message")
        for _ in range(3):
            run.warn("careful")
        run.log(5, {"x": 1.0})
        run.close("reached 1.5; resume with --resume")
    out, err = capsys.readouterr()
    assert out.splitlines() == ["step 5/10  eta -  return 1.5", "a message", "reached 1.5; resume with --resume"]
    assert err == "warning: careful\n"
    assert rows(run) == [{"step": 5, "x": 1.0}]  # written by close


def test_quiet_prints_only_the_closing_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new(tmp_path) as run:
        run.progress(5, 10, {"return": 1.5})
        run.print("a message")
        run.close("the end")
    assert capsys.readouterr() == ("the end\n", "")
