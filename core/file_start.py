"""Detection of Git LFS pointers and web pages that were downloaded in place of a file."""

from __future__ import annotations

from pathlib import Path

LENGTH = 64  # bytes
GIT_LFS = b"version https://git-lfs.github.com/"
HTML = (b"<!doctype html", b"<html")


def describe_start(start: bytes) -> str:
    """Describe the first bytes of a file that is a pointer of Git LFS or a web page; "" for all others."""
    if start.startswith(GIT_LFS):
        return "it is a pointer of Git LFS, not the file itself, which git lfs pull downloads"
    if start[:LENGTH].lstrip().lower().startswith(HTML):
        return "it is a web page, not the file itself"
    return ""


def describe_file(path: Path) -> str:
    """Describe a file by its first bytes; see `describe_start`. A file that cannot be read gives ""."""
    try:
        with path.open("rb") as file:
            return describe_start(file.read(LENGTH))
    except OSError:
        return ""
