"""Tests of the play program: its video, its PNG files, and the drawing of a frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.programs import error_message
from zerokara.agents import play
from zerokara.agents.qlearning.agent_file import BEST, AgentMetadata
from zerokara.agents.viewing.drawing import (
    BAR,
    EMPTY_BAR,
    GREEDY,
    PANEL_LEFT,
    PANEL_WIDTH,
    RANDOM,
    EpisodeRenderer,
    _font,
    bars_caption,
    curve_caption,
    draw_text,
    drawn_actions,
    enlarge,
    newest_frame,
    overlay,
    saliency_caption,
)
from zerokara.agents.viewing.loading import CHECKPOINT
from zerokara.core import checkpoint
from zerokara.core.config import UserError

ONE_THREAD = ("--device", "cpu", "--threads", "1")
LAST = ("--which", "last", *ONE_THREAD)  # of step 400


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def pixels(frame: np.ndarray, color: tuple[int, int, int]) -> int:
    """Count the pixels of exactly this color."""
    return int((frame == color).all(axis=-1).sum())


def drawn(q: list[float], action: int, **more: np.ndarray) -> np.ndarray:
    renderer = EpisodeRenderer("a game", "a run", ("noop", "left", "right"), epsilon=0.1)
    return renderer.draw(np.zeros((84, 84, 3), np.uint8), np.array(q, np.float32), action, 3.0, 7, **more)


def test_bars_are_differences_from_the_lowest_q_value() -> None:
    """The differences are 2 for the best action, 1 for the next, 0 for the worst, whose bar has a minimum length."""
    frame = drawn([1.0, 3.0, 2.0], action=1)
    assert pixels(frame, RANDOM) == 0
    best, others = pixels(frame, GREEDY), pixels(frame, BAR)
    # The dot at the end of the curve has the color GREEDY, and the short bar of the worst action the color BAR.
    assert others / best == pytest.approx(0.5, abs=0.06)
    shifted = drawn([101.0, 103.0, 102.0], action=1)
    assert pixels(shifted, BAR) == others


def test_a_random_action_is_marked() -> None:
    frame = drawn([1.0, 3.0, 2.0], action=2)
    assert pixels(frame, RANDOM) > 1000
    assert pixels(frame, GREEDY) < 100  # the dot of the curve only


def test_bars_are_scaled_by_the_widest_range_of_the_last_steps() -> None:
    renderer = EpisodeRenderer("a game", "a run", ("noop", "left"), epsilon=0.0)
    picture = np.zeros((84, 84, 3), np.uint8)
    large = renderer.draw(picture, np.array([0.0, 1.0], np.float32), 1, 0.0, 0)
    small = renderer.draw(picture, np.array([0.0, 0.1], np.float32), 1, 0.0, 1)
    assert large.shape == small.shape
    assert pixels(small, GREEDY) < 0.2 * pixels(large, GREEDY)
    assert pixels(small, EMPTY_BAR) > pixels(large, EMPTY_BAR)


def test_cached_text_has_the_pixels_of_text_that_is_drawn() -> None:
    texts = (
        ("Left (1,234)", "la", (3.0, 5.0)),
        ("-0.123", "rm", (90.0, 20.64)),
        ("gy|", "lm", (4.25, 38.5)),
        ("", "la", (0, 0)),
    )
    for size in (14, 30):
        for _ in range(2):  # the second time from the cache
            drawn, expected = (Image.new("RGB", (100, 50), BAR) for _ in range(2))
            for text, anchor, xy in texts:
                draw_text(ImageDraw.Draw(drawn), xy, text, GREEDY, size, anchor)
                ImageDraw.Draw(expected).text(xy, text, GREEDY, _font(size), anchor=anchor)
            np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
            assert (np.asarray(drawn) == GREEDY).all(axis=-1).any()


def test_parts_are_centered_beside_one_another_and_frames_are_separate_arrays() -> None:
    renderer = EpisodeRenderer("a game", "a run", ("noop", "left"), epsilon=0.0)
    q_A, picture = np.array([0.0, 1.0], np.float32), np.full((100, 200, 3), 200, np.uint8)
    first = renderer.draw(picture, q_A, 1, 0.0, 0)
    before = first.copy()
    rows, columns = np.nonzero((first == 200).all(axis=-1))
    height, width = 300, 600  # enlarged three times
    assert (rows.min(), columns.min()) == ((first.shape[0] - height) // 2, 24)
    assert (len(rows), first.shape[1]) == (height * width, 24 + width + 12 + 384 + 24)
    renderer.draw(np.zeros_like(picture), q_A, 0, 9.0, 1)
    np.testing.assert_array_equal(first, before)


def test_captions_give_the_scales_of_bars_curve_and_saliency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars are scaled by the widest range so far, 0.93; the maximum Q-value was -0.2, then 1.1."""
    texts: dict[str, tuple[float, int]] = {}  # text -> x, width
    original = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *args: Any, **kwargs: Any) -> None:
        font = args[1] if len(args) > 1 else kwargs["font"]
        texts[text] = (xy[0], int(font.getlength(text)))
        original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    renderer = EpisodeRenderer("a game", "a run", ("noop", "left"), epsilon=0.0)
    picture, frame = np.zeros((84, 84, 3), np.uint8), np.zeros((84, 84, 3), np.uint8)
    renderer.draw(picture, np.array([-1.13, -0.2]), 1, 0.0, 0, frame, np.full((84, 84), 0.5))
    texts.clear()
    renderer.draw(picture, np.array([1.1, 1.0]), 0, 0.0, 1, frame, np.full((84, 84), 0.1))
    assert "bars: Q(s,a) minus the lowest, full bar = 0.93" in texts
    assert "curve: max Q, from -0.2 to 1.1, last 2 steps" in texts
    assert "saliency: change of Q where blurred, brightest = 0.49" in texts  # 0.98 * 0.5


@pytest.mark.parametrize(
    "caption", [bars_caption(-1.23e-10, 3), bars_caption(-1.23e-10, 99_999), curve_caption(-1.23e-10, -1.23e10, 240)]
)
def test_captions_fit_the_panel_with_the_longest_numbers(caption: str) -> None:
    assert _font(14).getlength(caption) <= PANEL_WIDTH - PANEL_LEFT


def test_of_thousands_of_actions_the_best_ones_have_bars() -> None:
    q_A = np.arange(5_000, dtype=np.float32)
    assert drawn_actions(q_A, action=4_990) == list(range(4_999, 4_981, -1))
    assert drawn_actions(q_A, action=7) == [*range(4_999, 4_982, -1), 7]
    assert drawn_actions(q_A[:18], action=3) == list(range(18))
    renderer = EpisodeRenderer("a game", "a run", [str(i) for i in range(5_000)], epsilon=0.0)
    frame = renderer.draw(np.zeros((84, 84, 3), np.uint8), q_A, 7, 0.0, 0)
    assert frame.shape[0] < 1_000
    assert pixels(frame, RANDOM) > 0
    assert bars_caption(0.5, 5_000) == "bars: Q minus lowest, best 18 of 5,000, full = 0.5"


def test_the_caption_of_one_step_is_singular() -> None:
    assert curve_caption(1.0, 1.0, 1) == "curve: max Q, from 1 to 1, last 1 step"
    assert saliency_caption(0.0).endswith("brightest = 0")


def test_small_pictures_are_enlarged_by_an_integer_factor() -> None:
    checker = (np.indices((84, 84)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    large = enlarge(checker)
    assert large.shape == (672, 672, 3)
    np.testing.assert_array_equal(large, checker.repeat(8, axis=0).repeat(8, axis=1))
    assert enlarge(np.zeros((210, 160, 3), np.uint8)).shape == (630, 480, 3)
    assert enlarge(np.zeros((800, 1344, 3), np.uint8)).shape == (400, 672, 3)
    assert enlarge(checker, 630).shape == (630, 630, 3)


def test_the_heatmap_is_drawn_over_the_gray_picture() -> None:
    heat = np.zeros((84, 84))
    heat[20:30, 50:60] = 1
    blended = overlay(np.full((84, 84, 3), 100, np.uint8), heat).astype(int)
    red, green, blue = blended[100, 220]
    assert min(red, green) > 200 > blue + 30  # yellow
    assert np.ptp(blended[300, 50]) == 0  # gray as before, but darker
    assert blended[300, 50, 0] == 75


def test_the_newest_frame_is_the_last_channel_group() -> None:
    obs = np.arange(12, dtype=np.uint8)[:, None, None].repeat(5, axis=1).repeat(6, axis=2)
    np.testing.assert_array_equal(newest_frame(obs, 1), np.full((5, 6, 3), 11))
    np.testing.assert_array_equal(newest_frame(obs, 3)[0, 0], [9, 10, 11])


def test_a_video_and_a_png_file_of_every_step(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play.main([str(catch_run), "--max-steps", "12", "--frames", "pictures", *LAST])
    video = frames_of(catch_run / "media" / "play-400.mp4")
    files = sorted(Path("pictures").iterdir())
    assert len(video) == len(files) == 12
    assert [path.name for path in files[:2]] == ["frame-000000.png", "frame-000001.png"]
    picture = cv2.imread(str(files[5]))
    assert picture is not None
    game = enlarge(picture[..., ::-1])
    shown = video[5][24 : 24 + 672, 24 : 24 + 672]
    assert np.abs(shown.astype(int) - game).mean() < 3  # equal except for the compression of the video
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("in 12 steps, truncated by --max-steps 12; runs/catch/media/play-400.mp4")


def test_with_attention_the_video_is_wider_and_the_episode_is_the_same(catch_run: Path) -> None:
    words = [str(catch_run), "--max-steps", "5", "--seed", "3", *LAST]
    play.main(words)
    without = frames_of(catch_run / "media" / "play-400.mp4")
    play.main([*words, "--attention"])
    beside = frames_of(catch_run / "media" / "play-400.mp4")
    assert beside[0].shape[1] > without[0].shape[1] + 600
    difference = beside[4][24:696, 24:696].astype(int) - without[4][24:696, 24:696]
    assert np.abs(difference).mean() < 3


def test_the_same_seed_plays_the_same_episode(catch_run: Path) -> None:
    def pictures(folder: str, seed: str) -> list[bytes]:
        words = [str(catch_run), "--max-steps", "30", "--epsilon", "1", "--frames", folder, "--seed", seed]
        play.main([*words, *LAST])
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
    play.main([str(catch_run), "--window", *LAST])
    assert len(shown) == 4
    blue_first = np.array(GREEDY[::-1])
    assert any((frame == blue_first).all(axis=-1).any() for frame in shown)
    assert not (catch_run / "media" / "play-400.mp4").exists()


def test_without_a_display_the_program_prints_one_line_and_exits_with_code_2(
    catch_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    message = error_message(Path.cwd(), "-m", "agents.play", str(catch_run), "--window")
    assert message.startswith("error: --window needs a display")


def test_the_weights_are_named(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, weights = AgentMetadata.read(catch_run / BEST)
    words = [str(catch_run), "--max-steps", "2"]
    for updates, untrained in ((3, ""), (0, ", without any update: an untrained network")):
        figures = {"eval/return": 0.5, "train/updates": updates}
        dataclasses.replace(metadata, step=200, figures=figures).save(catch_run / BEST, weights)
        play.main([*words, *ONE_THREAD])
        first, last = capsys.readouterr().out.splitlines()[-2:]
        assert first == f"weights: of the best evaluation, which had a mean raw return of 0.50{untrained}"
        assert last.endswith("runs/catch/media/play-200.mp4")
    play.main([*words, *LAST])
    assert "weights: of the last checkpoint\n" in capsys.readouterr().out
    state = checkpoint.load(catch_run / CHECKPOINT, "dqn")
    checkpoint.save(catch_run / CHECKPOINT, {**state, "updates": 0}, "dqn")
    play.main([*words, *LAST])
    assert "weights: of the last checkpoint, without any update: an untrained network\n" in capsys.readouterr().out


def test_folder_for_png_files(tmp_path: Path) -> None:
    assert play.frames_folder("") is None
    assert play.frames_folder(str(tmp_path / "new" / "folder")) == tmp_path / "new" / "folder"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        play.frames_folder(str(tmp_path / "file"))
    (tmp_path / "frame-000000.png").touch()
    with pytest.raises(UserError, match="another episode"):
        play.frames_folder(str(tmp_path))


def test_a_missing_run_is_an_error() -> None:
    with pytest.raises(UserError, match="No run was named"):
        play.main([])
