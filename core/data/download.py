"""Files from a list of mirrors: checked, resumed where they broke off, and in their place only when whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from zerokara.core.config import DISK_FULL, UserError, error_summary
from zerokara.core.data.types import Progress

ATTEMPTS = 3  # at each mirror; what has come so far is kept between them
SILENCE_SECONDS = 30.0
CHUNK_BYTES = 2**18


@dataclass(frozen=True)
class Remote:
    """A file that can be downloaded."""

    name: str
    md5: str
    """Of the whole file, in hexadecimal, as its publisher gives it."""
    urls: tuple[str, ...]
    """Mirrors, tried in this order."""


def fetch(remotes: Sequence[Remote], folder: Path, title: str, progress: Progress | None) -> None:
    """Download into `folder` (made if need be) what is not there yet.

    What came of a file that broke off stays in `.<name>.part`, and the next call goes on from there. A second process
    that wants the same file waits for the first.

    Raises:
        UserError: no mirror gave a file with the right checksum, or the folder cannot be written.
        OSError: the disk is full; what came so far is kept.
    """
    for remote in remotes:
        if (folder / remote.name).is_file():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = (folder / f".{remote.name}.part").open("ab")
        except OSError as error:
            raise UserError(
                f"{title} cannot be downloaded into {folder} ({error_summary(error)}): "
                "name a writable folder with --data-dir."
            ) from None
        with part:
            fcntl.flock(part, fcntl.LOCK_EX)
            problems = _fetch(remote, folder / remote.name, part, progress)
        if problems:
            files = ", ".join(other.name for other in remotes)
            raise UserError(
                f"{title} could not be downloaded ({'; '.join(dict.fromkeys(problems))}): put {files} into {folder} by "
                f"hand, or name a folder that has them with --data-dir."
            )


def _fetch(remote: Remote, target: Path, part: BinaryIO, progress: Progress | None) -> list[str]:
    """Fill `part` and put it in the target's place; what went wrong if no mirror had it."""
    path = Path(part.name)
    if target.is_file():  # another process was quicker
        path.unlink(missing_ok=True)
        return []
    problems = []
    for url in remote.urls:
        host = urlsplit(url).netloc
        for _ in range(ATTEMPTS):
            resumed = part.seek(0, os.SEEK_END) > 0
            try:
                _receive(url, part, f"downloading {remote.name}", progress)
            except urllib.error.HTTPError as error:
                error.close()
                problems.append(f"{host}: {error.code} {error.reason}")
                if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    break
                part.truncate(0)  # more came than there is: something else lay there
                continue
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                reason = getattr(error, "reason", error)  # of a URLError
                problems.append(f"{host}: {error_summary(reason) if isinstance(reason, Exception) else reason}")
                if part.seek(0, os.SEEK_END) == 0:
                    break  # nobody there; the next mirror rather than the same again
                continue
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found == remote.md5:
                os.fsync(part.fileno())
                path.replace(target)
                return []
            problems.append(f"{host}: wrong checksum {found}")
            part.truncate(0)
            if not resumed:
                break  # else what lay there may have been wrong, and this mirror gets another chance
    if part.seek(0, os.SEEK_END) == 0:
        with contextlib.suppress(OSError):
            path.unlink()
    return problems


def _receive(url: str, part: BinaryIO, what: str, progress: Progress | None) -> None:
    """Append to `part` what it lacks.

    Raises:
        OSError, HTTPException: the connection failed or broke off, or the disk is full.
    """
    have = part.seek(0, os.SEEK_END)
    headers = {"User-Agent": "zerokara"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE_SECONDS) as response:
        if have and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            part.truncate(0)  # this server begins at the beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        while chunk := response.read(CHUNK_BYTES):
            part.write(chunk)
            have += len(chunk)
            if progress is not None:
                progress(what, have, total)
        part.flush()
    if have < total:
        raise ConnectionError(f"broke off after {have:,} of {total:,} bytes")
