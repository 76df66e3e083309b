"""Tests of videos, GIFs, PNG files and image grids."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from zerokara.core.media import gif_bytes, grid, png_bytes, write_mp4, write_png


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """Generate frames (T, H, W, 3) uint8 of a white square that falls in front of blue."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 2] = 200
    for t in range(frames):
        top = t * (height - 16) // max(frames - 1, 1)
        video[t, top : top + 16, 8:24] = 255
    return video


def test_mp4_has_the_format_for_browsers_and_the_given_frames(tmp_path: Path) -> None:
    frames = clip(12, 83, 61)
    write_mp4(tmp_path / "a.mp4", frames, fps=15)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (62, 84)  # even, as required by yuv420p
        assert stream.average_rate == 15
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert shown.shape == (12, 84, 62, 3)
    error = np.abs(shown[:, :83, :61].astype(int) - frames)
    assert error.mean() < 6  # lossy, and half the color resolution
    assert np.array_equal(shown[:, 40, 40].argmax(-1), np.full(12, 2))  # the color order is RGB, not BGR


def test_gif_has_the_right_speed() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(30, 84, 84), fps=15))) as gif:
        assert gif.format == "GIF"
        assert (gif.size, getattr(gif, "n_frames", 1), gif.info["loop"]) == ((84, 84), 30, 0)
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] in (60, 70)  # 66.7 ms in units of 10 ms
    assert np.abs(np.stack(frames).astype(int) - clip(30, 84, 84)).mean() < 3


def test_a_long_episode_gives_a_small_gif() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(1000, 480, 320), fps=60, max_frames=100))) as gif:
        assert getattr(gif, "n_frames", 1) == 100
        assert max(gif.size) <= 240
        assert gif.info["duration"] in (160, 170)  # ten frames of 1/60 s each


@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_clips(frames: int, tmp_path: Path) -> None:
    still = np.zeros((frames, 20, 20, 3), np.uint8)  # without motion the GIF has one frame
    assert gif_bytes(still, fps=1000).startswith(b"GIF89a")
    write_mp4(tmp_path / "a.mp4", still, fps=7.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == frames


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    for wrong in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3))):
        with pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
            write_mp4(tmp_path / "a.mp4", wrong, 15)
        with pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
            gif_bytes(wrong, 15)
    assert list(tmp_path.iterdir()) == []


def test_png_of_every_layout(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for picture, expected in [
        (rgb, rgb),
        (rgb.transpose(2, 0, 1), rgb),
        (rgb[..., 0], rgb[..., 0]),
        (rgb[..., :1], rgb[..., 0]),
        (rgb[None, ..., 0], rgb[..., 0]),
    ]:
        write_png(tmp_path / "a.png", picture)
        with Image.open(tmp_path / "a.png") as read:
            assert np.array_equal(np.asarray(read), expected)
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(rgb.astype(float))
    with pytest.raises(ValueError, match=r"\(5, 7, 2\)"):
        png_bytes(rgb[..., :2])


def test_grid_against_hand_computed_values() -> None:
    images = np.arange(1, 4, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)  # three 2x2 images: 1, 2, 3
    expected = [[1, 1, 0, 2, 2], [1, 1, 0, 2, 2], [0, 0, 0, 0, 0], [3, 3, 0, 0, 0], [3, 3, 0, 0, 0]]
    assert grid(images)[..., 0].tolist() == expected
    assert grid(images, columns=3, gap=0)[..., 0].tolist() == [[1, 1, 2, 2, 3, 3]] * 2
    assert grid(images[:1, :1, :1], scale=3).shape == (3, 3, 1)


def test_grid_scales_floats_to_the_full_range() -> None:
    filters = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.bfloat16).view(3, 1, 1, 1).requires_grad_()
    assert grid(filters, columns=3, gap=0)[0, :, 0].tolist() == [0, 128, 255]
    assert grid(torch.zeros(1, 3, 2, 2)).tolist() == np.zeros((2, 2, 3)).tolist()  # constant images are black, not NaN
    with pytest.raises(ValueError, match="C 1 or 3"):
        grid(np.zeros((1, 4, 2, 2)))
