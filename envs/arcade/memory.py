"""Arrays whose memory is used again.

An array of a pool belongs to whoever has it, a view of it, or a tensor that shares its memory. When the last of them is
gone, its memory returns to the pool. New memory would have to be mapped and zeroed by the kernel at every step, and
memory that returns still has its last contents: in a frame of the step before the last, only what moved is drawn.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np


class Block:
    """Memory of one array of bytes, zero at first, and `more_bytes` that describe its contents."""

    def __init__(self, shape: tuple[int, ...], more_bytes: int) -> None:
        size = math.prod(shape)
        self._memory = np.zeros(size + more_bytes, np.uint8)
        self.address: int = self._memory.ctypes.data
        self.more_address = self.address + size
        self.interface = {"shape": shape, "typestr": "|u1", "data": (self.address, False), "version": 3}


class _Lease:
    """Base of an array of a pool. NumPy deletes it after the last array and view that use the memory."""

    __slots__ = ("__array_interface__", "_block", "_free")

    def __init__(self, block: Block, free: list[Block]) -> None:
        self.__array_interface__: dict[str, Any] = block.interface
        self._block, self._free = block, free

    def __del__(self) -> None:
        self._free.append(self._block)


class ArrayPool:
    """Pool of uint8 arrays of one shape.

    Args:
        shape: of the arrays.
        more_bytes: bytes of each block that describe the contents of its array; a multiple of 8 is aligned.
        max_free: free blocks that are kept.
    """

    def __init__(self, shape: tuple[int, ...], more_bytes: int = 0, *, max_free: int = 4) -> None:
        self._shape, self._more_bytes, self._max_free = shape, more_bytes, max_free
        self._free: list[Block] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what `pickle` and `copy` make: an empty pool, because a copied block would have the old addresses."""
        return functools.partial(ArrayPool, max_free=self._max_free), (self._shape, self._more_bytes)

    def take(self) -> tuple[np.ndarray, Block]:
        """Return an array, with the contents that its memory had last, and the block of this memory."""
        free = self._free
        block = free.pop() if free else Block(self._shape, self._more_bytes)
        del free[self._max_free :]
        return np.asarray(_Lease(block, free)), block

    def array(self) -> np.ndarray:
        """Return an array, with the contents that its memory had last."""
        return self.take()[0]
