"""MP4 videos compared after decoding, frame durations of GIFs, PNG images and image grids."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from zerokara.core.media import gif_bytes, grid, png_bytes, to_uint8, write_mp4, write_png


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


def test_gif_frames_and_duration() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(30, 84, 84), fps=15))) as gif:
        assert gif.format == "GIF"
        assert (gif.size, getattr(gif, "n_frames", 1), gif.info["loop"]) == ((84, 84), 30, 0)
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] in (60, 70)  # 66.7 in ticks of 10 ms
    assert np.abs(np.stack(frames).astype(int) - clip(30, 84, 84)).mean() < 3


def test_long_video_is_shortened_and_downscaled_for_gif() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(1000, 480, 320), fps=60, max_frames=100))) as gif:
        assert getattr(gif, "n_frames", 1) == 100
        assert max(gif.size) <= 240
        assert gif.info["duration"] in (160, 170)  # each frame replaces ten frames of 1/60 s


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
