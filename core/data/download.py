"""Downloads from a list of mirrors: verified by checksum, resumed after interruptions, and written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from zerokara.core.config import DISK_FULL, UserError, error_summary
from zerokara.core.data.types import Progress
from zerokara.core.file_lock import lock

ATTEMPTS = 3  # per mirror; partial downloads are kept between attempts
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 2**18
MAX_DIGITS = 18  # of a Content-Length
MAX_BYTES = 2**30  # of a file; the largest one, CIFAR, has 170 MB


@dataclass(frozen=True)
class Remote:
    """File to download."""

    name: str
    md5: str
    """Checksum of the whole file in hexadecimal, as published."""
    urls: tuple[str, ...]
    """Mirrors, tried in this order."""


def fetch(remotes: Sequence[Remote], folder: Path, title: str, progress: Progress | None) -> None:
    """Download the files that are missing in `folder`, which is created if necessary.

    A partial download is kept in `.<name>.part`, and the next call resumes it. A second process that downloads the same
    file waits for the first.

    Args:
        remotes: files.
        folder: where they are saved.
        title: of the data set, for messages.
        progress: callback.

    Raises:
        UserError: no mirror returned a file with the right checksum, or the folder cannot be written.
        OSError: the disk is full; partial downloads are kept.
    """
    for remote in remotes:
        if (folder / remote.name).is_file():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = (folder / f".{remote.name}.part").open("ab")
        except OSError as error:
            raise UserError(
                f"{title} cannot be downloaded into {folder} ({error_summary(error)}): give a writable folder with "
                f"--data-dir."
            ) from None
        with part:
            lock(part, wait=True)
            problems = _fetch(remote, folder / remote.name, part, progress)
        if problems:
            files = ", ".join(other.name for other in remotes)
            raise UserError(
                f"{title} could not be downloaded ({'; '.join(dict.fromkeys(problems))}): copy {files} into {folder} "
                f"manually, or give a folder that contains them with --data-dir."
            )


def _fetch(remote: Remote, target: Path, part: BinaryIO, progress: Progress | None) -> list[str]:
    """Download a file into `part` and rename it to the target. Return the errors if all mirrors failed, else []."""
    path = Path(part.name)
    if target.is_file():  # another process has downloaded it
        path.unlink(missing_ok=True)
        return []
    problems = []
    for url in remote.urls:
        host = urlsplit(url).netloc
        for _ in range(ATTEMPTS):
            resumed = part.seek(0, os.SEEK_END) > 0
            try:
                _receive(url, part, f"bytes of {remote.name} downloaded", progress)
            except urllib.error.HTTPError as error:
                error.close()
                lines = str(error.reason).splitlines() or [""]  # those of a circle of redirects are several
                problems.append(f"{host}: {error.code} {lines[0]}")
                if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    break
                part.truncate(0)  # the partial file is larger than the remote file
                continue
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                reason = getattr(error, "reason", error)  # of a URLError
                problems.append(f"{host}: {error_summary(reason) if isinstance(reason, Exception) else reason}")
                if part.seek(0, os.SEEK_END) == 0:
                    break  # no data received: try the next mirror
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
                break  # after a resumed download the old part may have been wrong, so try this mirror again
    if part.seek(0, os.SEEK_END) == 0:
        with contextlib.suppress(OSError):
            path.unlink()
    return problems


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but not from https to http, where anyone on the way could change the file."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request to the new address.

        Raises:
            URLError: the new address is not encrypted, although the old one is.
        """
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirected from https to {newurl[:60]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        """Follow a redirect.

        Raises:
            URLError: the new address is invalid.
        """
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:
            fp.close()
            raise urllib.error.URLError(f"redirected to an invalid address ({error})") from None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _receive(url: str, part: BinaryIO, what: str, progress: Progress | None) -> None:
    """Append the missing bytes to `part`.

    Raises:
        OSError, HTTPException: the connection failed or was interrupted, or the disk is full.
    """
    have = part.seek(0, os.SEEK_END)
    headers = {"User-Agent": "zerokara"}
    if have:
        headers["Range"] = f"bytes={have}-"
    opener = urllib.request.build_opener(_NoDowngrade)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as response:
        if have and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            part.truncate(0)  # the server does not support ranges and sends the whole file
            have = 0
        length = response.headers.get("Content-Length") or "0"
        if not length.isascii() or not length.isdigit() or len(length) > MAX_DIGITS:
            raise ConnectionError(f"its Content-Length is {length[:40]!r} instead of a number")
        total = have + int(length) if length != "0" else 0
        while chunk := response.read(CHUNK_BYTES):
            have += len(chunk)
            if have > MAX_BYTES:
                part.truncate(0)
                raise ConnectionError(f"it sends more than {MAX_BYTES:,} bytes")
            part.write(chunk)
            if progress is not None:
                progress(what, have, total)
        part.flush()
    if have < total:
        raise ConnectionError(f"interrupted after {have:,} of {total:,} bytes")
