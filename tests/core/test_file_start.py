"""Files that are not what was to be downloaded: pointers of Git LFS and web pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerokara.core.config import UserError
from zerokara.core.data.image_files import read_image
from zerokara.core.file_start import describe_file, describe_start
from zerokara.core.models.weights import read_tensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n  <!DOCTYPE html><html><title>Quota exceeded</title>"


@pytest.mark.parametrize(("content", "message"), [(POINTER, "pointer of Git LFS"), (PAGE, "a web page")])
def test_readers_describe_what_a_file_is(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("photo.jpg", "weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "photo.jpg")
    for name in ("weights.pth", "weights.safetensors"):
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / name)


def test_other_files_are_not_described(tmp_path: Path) -> None:
    assert describe_start(b"\x89PNG") == describe_start(b"") == describe_file(tmp_path / "missing") == ""
