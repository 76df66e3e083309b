"""Reading of files of limited size, in folders and zip archives."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

from zerokara.core.config import UserError, error_summary

DEFLATE64 = 9  # compression method in zip archives
MAX_BYTES = 256 * 2**20  # maximum size of an image file


def read_file(path: Path) -> bytes:
    """Read an image file.

    Raises:
        UserError: the file cannot be read, is not a regular file, or is larger than `MAX_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise UserError(f"{path} is not a regular file: remove it.")
        _check_file_size(str(path), status.st_size)
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error_summary(error)}): give an image file that exists and is readable."
        ) from None


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an image file from a zip archive.

    Raises:
        UserError: the file cannot be unpacked or is larger than `MAX_BYTES`.
    """
    where = f"{name} in {archive.filename}"
    _check_file_size(where, archive.getinfo(name).file_size)
    try:
        return archive.read(name)
    except (NotImplementedError, RuntimeError) as error:  # another method, such as the Explorer's Deflate64; a password
        number = archive.getinfo(name).compress_type
        method = "Deflate64" if number == DEFLATE64 else f"method {number}"
        raise UserError(
            f"{where} cannot be unpacked ({error_summary(error)}; packed by {method}): unpack the archive with the "
            f"program that wrote it, and give the folder."
        ) from None
    except Exception as error:  # noqa: BLE001  (zlib, zipfile and codecs raise many types for damaged archives)
        raise UserError(
            f"{where} cannot be unpacked ({error_summary(error)}): replace the archive with an undamaged copy."
        ) from None


def _check_file_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise UserError(
            f"{name} has {size / 2**20:,.0f} MiB, and images may have {MAX_BYTES / 2**20:,.0f}: make it smaller, or "
            f"remove it."
        )
