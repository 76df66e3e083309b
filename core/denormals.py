"""Flushing of denormal numbers to zero, in all threads that compute.

Adam's averages of gradients that stay zero decay until they are denormal numbers. Many processors compute with these in
microcode. If only the second of two threads does, a step of Adam takes up to 1.4 times as long (docs/LOG.md).
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def flush_denormals(threads: int) -> None:
    """Flush denormal numbers to zero in this thread and in the OpenMP threads that compute for it.

    `torch.set_flush_denormal` changes the calling thread alone, and the threads that OpenMP starts do not take this
    over from it. On other systems than Linux only this thread is changed.

    Args:
        threads: number of threads that compute, this one included.
    """
    torch.set_flush_denormal(True)
    path = _openmp_library()
    if path is not None and threads > 1:
        function = _FUNCTION(_flush)
        # As a compiler does for "#pragma omp parallel num_threads(threads)": each thread calls the function.
        ctypes.CDLL(str(path)).GOMP_parallel(function, None, threads, 0)


def _flush(data: int | None) -> None:
    torch.set_flush_denormal(True)


def _openmp_library() -> Path | None:
    """Return the OpenMP library that PyTorch has loaded (GCC's, or Intel's, which has the same function)."""
    if sys.platform != "linux":
        return None
    maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    found = [Path(path) for path in re.findall(r"(/\S*/lib[gi]omp[^/\s]*\.so[^/\s]*)$", maps, re.MULTILINE)]
    of_torch = [path for path in found if path.is_relative_to(Path(torch.__file__).parent)]
    return next(iter(of_torch or found), None)
