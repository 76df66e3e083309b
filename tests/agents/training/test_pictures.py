"""Videos that are recorded during training: length, size, failures of the environment, signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from zerokara.agents.configs.dqn import Config
from zerokara.agents.training.pictures import log_video
from zerokara.core.compute import Compute
from zerokara.core.run import Run

EPISODE = 40  # steps


class Game(gymnasium.Env[Any, Any]):
    """Episodes of 40 steps, rendered with 20x30 pixels. `event` happens at step 25 of the video."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium's form)
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def __init__(self, event: str = "", render_mode: str | None = None) -> None:
        self.event, self.render_mode, self.steps = event, render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 25:
            if self.event == "raise":
                raise RuntimeError("the game is broken")
            if self.event == "exit":
                raise SystemExit("the game is over")
            if self.event == "signal":
                signal.raise_signal(signal.SIGTERM)
        return np.zeros((16, 16, 3), np.uint8), 0.0, self.steps == EPISODE, False, {}

    def render(self) -> Any:
        if self.event == "display":
            raise RuntimeError('Cannot connect to display "None"')
        size = (2160, 3840, 3) if self.event == "large" else (20, 30, 3)
        return np.full(size, self.steps, np.uint8)

    def close(self) -> None:
        if self.event == "close":
            raise SystemExit(1)


class Policy:
    """Always the same Q-values."""

    compute = Compute()

    def values(self, obs: np.ndarray) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0]])

    def forget(self) -> None:
        """Do nothing."""


Record = Callable[..., Run]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Return a function that records a video at step 7 of a run, in which an event happens."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def record_video(event: str, *, complete: bool = True) -> Run:
        config = Config(env=f"{__file__}:Game", env_kwargs=(f"event={event}",) * bool(event), name="run", image_size=16)
        with Run(config, kind="dqn", name="run", resume=False, quiet=False, root=tmp_path) as run, run.signals():
            assert log_video(Policy(), config, run, 7) == complete  # type: ignore[arg-type]
            run.close("training goes on")
        return run

    return record_video


def frames(run: Run) -> list[np.ndarray]:
    with av.open(str(run.folder / "media" / "game-7.mp4")) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_has_a_frame_for_each_step(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = frames(record(""))
    assert len(recorded) == EPISODE
    assert recorded[0].shape == (20, 30, 3)
    assert capsys.readouterr().err == ""


def test_a_video_is_cut_and_reduced_with_one_warning_for_each(
    record: Record, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("core.media", "agents.training.pictures"):
        monkeypatch.setattr(f"zerokara.{module}.MAX_FRAMES", 12)
    recorded = frames(record("large"))
    assert [frame.shape for frame in recorded] == [(720, 1280, 3)] * 12
    assert capsys.readouterr().err.splitlines() == [
        "warning: the video 'game' has 1280x720 pixels, reduced from 3840x2160.",
        "warning: the video 'game' ends after 12 frames, although the recording is longer.",
    ]


@pytest.mark.parametrize(
    ("event", "message"),
    [("raise", "raised RuntimeError: the game is broken"), ("exit", "raised SystemExit: the game is over")],
)
def test_a_video_ends_where_the_environment_fails(
    record: Record, capsys: pytest.CaptureFixture[str], event: str, message: str
) -> None:
    assert len(frames(record(event))) == 24, "those of the steps before the one that failed"
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("warning: the video of step 7 ends early: ")
    assert message in line
    assert out.splitlines()[-1] == "training goes on"


def test_an_environment_that_cannot_be_rendered_has_no_video(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record("display")
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("warning: no video was recorded at step 7: ")
    assert "This machine has no display: type xvfb-run -a before the command" in line
    assert out.splitlines()[-1] == "training goes on"
    assert not (run.folder / "media").exists()


def test_an_environment_may_exit_when_it_is_closed(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(frames(record("close"))) == EPISODE
    assert capsys.readouterr().err == ""


def test_a_signal_interrupts_the_recording(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record("signal", complete=False)
    assert (run.stop_requested, list((tmp_path / "run" / "media").iterdir())) == ("SIGTERM", [])
    assert capsys.readouterr().err == ""
