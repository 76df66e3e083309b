"""The program that shows a game: its film, its pictures, what is drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from zerokara.agents import play
from zerokara.agents.viewing.drawing import (
    BAR,
    CHOSEN,
    GROOVE,
    RANDOM,
    TensorBoardWriter,
    enlarge,
    newest_frame,
    overlay,
)
from zerokara.core.config import UserError

REPO = Path(__file__).parents[2]
ONE_THREAD = ("--device", "cpu", "--threads", "1")


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def pixels(frame: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((frame == colour).all(axis=-1).sum())


def drawn(q: list[float], action: int, **more: np.ndarray) -> np.ndarray:
    board = TensorBoardWriter("a game", "a run", ("noop", "left", "right"), epsilon=0.1)
    return board.draw(np.zeros((84, 84, 3), np.uint8), np.array(q, np.float32), action, 3.0, 7, **more)


def test_bars_show_how_much_better_an_action_is() -> None:
    """Above the worst: 2 for the best, 1 for the next, nothing but a stub for the worst."""
    frame = drawn([1.0, 3.0, 2.0], action=1)
    assert pixels(frame, RANDOM) == 0
    best, others = pixels(frame, CHOSEN), pixels(frame, BAR)
    # The dot at the end of the trace has the chosen one's colour, and the worst bar's stub that of the others.
    assert others / best == pytest.approx(0.5, abs=0.06)
    shifted = drawn([101.0, 103.0, 102.0], action=1)
    assert pixels(shifted, BAR) == others


def test_an_action_by_chance_is_marked() -> None:
    frame = drawn([1.0, 3.0, 2.0], action=2)
    assert pixels(frame, RANDOM) > 1000
    assert pixels(frame, CHOSEN) < 100  # the dot of the trace only


def test_the_bar_of_a_small_choice_is_short_beside_a_great_one_before_it() -> None:
    board = TensorBoardWriter("a game", "a run", ("noop", "left"), epsilon=0.0)
    picture = np.zeros((84, 84, 3), np.uint8)
    great = board.draw(picture, np.array([0.0, 1.0], np.float32), 1, 0.0, 0)
    small = board.draw(picture, np.array([0.0, 0.1], np.float32), 1, 0.0, 1)
    assert great.shape == small.shape
    assert pixels(small, CHOSEN) < 0.2 * pixels(great, CHOSEN)
    assert pixels(small, GROOVE) > pixels(great, GROOVE)


def test_small_pictures_are_enlarged_by_whole_numbers() -> None:
    checker = (np.indices((84, 84)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    large = enlarge(checker)
    assert large.shape == (672, 672, 3)
    np.testing.assert_array_equal(large, checker.repeat(8, axis=0).repeat(8, axis=1))
    assert enlarge(np.zeros((210, 160, 3), np.uint8)).shape == (630, 480, 3)
    assert enlarge(np.zeros((800, 1344, 3), np.uint8)).shape == (400, 672, 3)
    assert enlarge(checker, 630).shape == (630, 630, 3)


def test_heat_glows_where_it_is() -> None:
    heat = np.zeros((84, 84))
    heat[20:30, 50:60] = 1
    glowing = overlay(np.full((84, 84, 3), 100, np.uint8), heat).astype(int)
    red, green, blue = glowing[100, 220]
    assert min(red, green) > 200 > blue + 30  # yellow
    assert np.ptp(glowing[300, 50]) == 0  # grey as it was, but dimmed
    assert glowing[300, 50, 0] == 75


def test_the_newest_frame_is_the_last_one() -> None:
    obs = np.arange(12, dtype=np.uint8)[:, None, None].repeat(5, axis=1).repeat(6, axis=2)
    np.testing.assert_array_equal(newest_frame(obs, 1), np.full((5, 6, 3), 11))
    np.testing.assert_array_equal(newest_frame(obs, 3)[0, 0], [9, 10, 11])


def test_a_film_with_the_picture_of_every_step(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play.main([str(catch_run), "--max-steps", "12", "--frames", "pictures", *ONE_THREAD])
    film = frames_of(catch_run / "media" / "play-400.mp4")
    kept = sorted(Path("pictures").iterdir())
    assert len(film) == len(kept) == 12
    assert [path.name for path in kept[:2]] == ["frame-000000.png", "frame-000001.png"]
    picture = cv2.imread(str(kept[5]))
    assert picture is not None
    game = enlarge(picture[..., ::-1])
    shown = film[5][24 : 24 + 672, 24 : 24 + 672]
    assert np.abs(shown.astype(int) - game).mean() < 3  # the game, but for what the codec loses
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("in 12 steps, cut by --max-steps 12; runs/catch/media/play-400.mp4")


def test_with_attention_the_film_is_wider_and_the_game_is_the_same(catch_run: Path) -> None:
    words = [str(catch_run), "--max-steps", "5", "--seed", "3", *ONE_THREAD]
    play.main(words)
    without = frames_of(catch_run / "media" / "play-400.mp4")
    play.main([*words, "--attention"])
    beside = frames_of(catch_run / "media" / "play-400.mp4")
    assert beside[0].shape[1] > without[0].shape[1] + 600
    difference = beside[4][24:696, 24:696].astype(int) - without[4][24:696, 24:696]
    assert np.abs(difference).mean() < 3


def test_the_same_seed_plays_the_same_game(catch_run: Path) -> None:
    def pictures(folder: str, seed: str) -> list[bytes]:
        words = [str(catch_run), "--max-steps", "30", "--epsilon", "1", "--frames", folder, "--seed", seed]
        play.main([*words, *ONE_THREAD])
        return [path.read_bytes() for path in sorted(Path(folder).iterdir())]

    first = pictures("a", "1")
    assert pictures("b", "1") == first
    assert pictures("c", "2") != first


def test_a_window_shows_the_frames_until_q(catch_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(play, "check_window", lambda: None)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, frame: shown.append(frame))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 4 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    play.main([str(catch_run), "--window", *ONE_THREAD])
    assert len(shown) == 4
    blue_first = np.array(CHOSEN[::-1])
    assert any((frame == blue_first).all(axis=-1).any() for frame in shown)
    assert not (catch_run / "media" / "play-400.mp4").exists()


def test_no_display_is_one_sentence_and_code_2(catch_run: Path) -> None:
    gone = {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"}
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    done = subprocess.run(
        [sys.executable, "-m", "agents.play", str(catch_run), "--window"],
        env={**environment, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --window needs a display")
    assert done.stderr.count("\n") == 1


def test_folders_for_pictures(tmp_path: Path) -> None:
    assert play.frames_folder("") is None
    assert play.frames_folder(str(tmp_path / "new" / "folder")) == tmp_path / "new" / "folder"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        play.frames_folder(str(tmp_path / "file"))
    (tmp_path / "frame-000000.png").touch()
    with pytest.raises(UserError, match="another game"):
        play.frames_folder(str(tmp_path))


def test_a_run_must_be_named() -> None:
    with pytest.raises(UserError, match="No run was named"):
        play.main([])
