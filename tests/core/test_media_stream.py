"""MP4 videos from an iterator of frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from zerokara.core.media import write_mp4


def grayscale(values: list[int], height: int = 33, width: int = 48) -> Iterator[np.ndarray]:
    for value in values:
        yield np.full((height, width, 3), value, np.uint8)


def test_iterator_and_array_give_the_same_file(tmp_path: Path) -> None:
    values = [0, 60, 120, 180, 240]
    write_mp4(tmp_path / "stream.mp4", grayscale(values), fps=15)
    write_mp4(tmp_path / "array.mp4", np.stack(list(grayscale(values))), fps=15)
    assert (tmp_path / "stream.mp4").read_bytes() == (tmp_path / "array.mp4").read_bytes()
    with av.open(str(tmp_path / "stream.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(34, 48, 3)] * 5
    assert [round(float(frame.mean())) for frame in frames] == pytest.approx(values, abs=3)


def test_no_file_after_invalid_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of one size"):
        write_mp4(tmp_path / "a.mp4", [*grayscale([1]), *grayscale([1], width=50)], fps=15)
    with pytest.raises(ValueError, match="got none"):
        write_mp4(tmp_path / "a.mp4", grayscale([]), fps=15)
    assert list(tmp_path.iterdir()) == []
