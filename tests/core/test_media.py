"""MP4 videos compared after decoding, frame durations of GIFs, PNG images and image grids."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from zerokara.core.media import MAX_FRAMES, Gif, fit, grid, png_bytes, to_uint8, within_limits, write_mp4, write_png


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """Video of a white square that moves down on blue, (T, H, W, 3) uint8."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 2] = 200
    for t in range(frames):
        top = t * (height - 16) // max(frames - 1, 1)
        video[t, top : top + 16, 8:24] = 255
    return video


def test_mp4_is_h264_and_decodes_to_the_frames(tmp_path: Path) -> None:
    frames = clip(12, 83, 61)
    write_mp4(tmp_path / "a.mp4", frames, fps=15)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (62, 84)  # even, as yuv420p requires
        assert stream.average_rate == 15
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == (12, 84, 62, 3)
    error = np.abs(decoded[:, :83, :61].astype(int) - frames)
    assert error.mean() < 6  # lossy, with half the color resolution
    assert np.array_equal(decoded[:, 40, 40].argmax(-1), np.full(12, 2))  # the order of the color channels


def gif_bytes(frames: Iterable[np.ndarray], fps: float, max_frames: int = 300) -> bytes:
    """Encode a GIF."""
    gif = Gif(fps, max_frames)
    for frame in frames:
        gif.add(frame)
    return gif.encode()


def test_gif_frames_and_duration() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(30, 84, 84), fps=15))) as gif:
        assert gif.format == "GIF"
        assert (gif.size, getattr(gif, "n_frames", 1), gif.info["loop"]) == ((84, 84), 30, 0)
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] in (60, 70)  # 66.7 in ticks of 10 ms
    assert np.abs(np.stack(frames).astype(int) - clip(30, 84, 84)).mean() < 3


def test_long_video_is_shortened_and_downscaled_for_gif() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(1000, 480, 320), fps=60, max_frames=100))) as gif:
        # Every second frame of 1/60 s would be shorter than 20 ms; twice as many are dropped until 100 suffice.
        assert getattr(gif, "n_frames", 1) == 63
        assert max(gif.size) <= 240
        assert gif.info["duration"] in (260, 270)  # each frame replaces 16 frames
        shown = [int(np.asarray(frame.convert("L"))[:, 8].argmax()) for frame in ImageSequence.Iterator(gif)]
    positions = [16 * t * (480 - 16) // 999 // 2 for t in range(63)]  # reduced by 2
    assert np.abs(np.array(shown) - positions).max() <= 1


def test_a_gif_holds_a_bounded_number_of_small_pictures() -> None:
    gif = Gif(fps=15, max_frames=8)
    for index, frame in enumerate(gif.collect(np.full((480, 270, 3), t, np.uint8) for t in range(100))):
        assert (frame.shape, int(frame[0, 0, 0])) == ((480, 270, 3), index)
        assert len(gif._pictures) <= 8
    assert {picture.size for picture in gif._pictures} == {(135, 240)}
    assert [picture.getpixel((0, 0))[0] for picture in gif._pictures] == list(range(0, 100, 16))  # type: ignore[index]


@pytest.mark.parametrize("frames", [1, 2])
def test_videos_of_one_and_two_frames(frames: int, tmp_path: Path) -> None:
    video = np.zeros((frames, 20, 20, 3), np.uint8)  # equal frames: Pillow writes a GIF of one frame
    assert gif_bytes(video, fps=1000).startswith(b"GIF89a")
    write_mp4(tmp_path / "a.mp4", video, fps=7.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == frames


def test_invalid_frames_are_an_error(tmp_path: Path) -> None:
    for frames in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3))):
        with pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
            write_mp4(tmp_path / "a.mp4", frames, 15)
        with pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
            gif_bytes(frames, 15)
    assert list(tmp_path.iterdir()) == []


def test_large_frames_are_reduced_and_small_ones_are_not() -> None:
    small = np.zeros((720, 1280, 3), np.uint8)
    assert fit(small) is small
    halves = np.zeros((1080, 1920, 3), np.uint8)
    halves[:, 960:] = (10, 20, 30)
    assert fit(halves).shape == (720, 1280, 3)
    assert fit(halves)[300, [10, 1270]].tolist() == [[0, 0, 0], [10, 20, 30]]
    assert fit(np.zeros((4000, 400, 3), np.uint8)).shape == (720, 72, 3)
    assert fit(np.zeros((10, 12_800, 3), np.uint8)).shape == (1, 1280, 3)


def test_limits_of_a_video_are_reported_and_no_more_frames_are_asked_for() -> None:
    made, messages = [0], list[str]()

    def frames() -> Iterator[np.ndarray]:
        while True:
            made[0] += 1
            yield np.zeros((8, 2560, 3), np.uint8)

    assert [frame.shape for frame in within_limits(frames(), "game", messages.append)] == [(4, 1280, 3)] * MAX_FRAMES
    assert made == [MAX_FRAMES + 1]
    assert sorted(set(messages)) == [
        "the video 'game' ends after 3,000 frames, although the recording is longer.",
        "the video 'game' has 1280x4 pixels, reduced from 2560x8.",
    ]
    messages.clear()
    assert len(list(within_limits(clip(30, 84, 84), "game", messages.append))) == 30
    assert messages == []


def test_png_of_all_layouts(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for image, expected in [
        (rgb, rgb),
        (rgb.transpose(2, 0, 1), rgb),
        (rgb[..., 0], rgb[..., 0]),
        (rgb[..., :1], rgb[..., 0]),
        (rgb[None, ..., 0], rgb[..., 0]),
    ]:
        write_png(tmp_path / "a.png", image)
        with Image.open(tmp_path / "a.png") as read:
            assert np.array_equal(np.asarray(read), expected)
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(rgb.astype(float))
    with pytest.raises(ValueError, match=r"\(5, 7, 2\)"):
        png_bytes(rgb[..., :2])


def test_grid_layout_by_hand() -> None:
    images = (
        np.arange(1, 4, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    )  # three 2x2 images with the values 1, 2 and 3
    expected = [[1, 1, 0, 2, 2], [1, 1, 0, 2, 2], [0, 0, 0, 0, 0], [3, 3, 0, 0, 0], [3, 3, 0, 0, 0]]
    assert grid(images)[..., 0].tolist() == expected
    assert grid(images, columns=3, gap=0)[..., 0].tolist() == [[1, 1, 2, 2, 3, 3]] * 2
    assert grid(images[:1, :1, :1], scale=3).shape == (3, 3, 1)


def test_grid_scales_floats_to_0_255() -> None:
    filters = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.bfloat16).view(3, 1, 1, 1).requires_grad_()
    assert grid(filters, columns=3, gap=0)[0, :, 0].tolist() == [0, 128, 255]
    assert grid(torch.zeros(1, 3, 2, 2)).tolist() == np.zeros((2, 2, 3)).tolist()  # constant values: black, not NaN
    with pytest.raises(ValueError, match="C 1 or 3"):
        grid(np.zeros((1, 4, 2, 2)))


def test_pixels_are_rounded_and_clipped_to_uint8() -> None:
    pixels = to_uint8(torch.tensor([-1.0, 0.0, 0.501 / 255, 0.499 / 255, 1.0, 7.0]))
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == [0, 0, 1, 0, 255, 255]
