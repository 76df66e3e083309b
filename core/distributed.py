"""Distributed training with torchrun: rank and number of processes, and the collective operations of training.

    torchrun --nproc-per-node 2 -m agents.dqn

Without torchrun's environment variables there is one process, and the collective operations do nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from zerokara.core.config import UserError

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class World:
    """Group of processes that train together. Every process must make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # rank among the processes of this machine: the index of its GPU

    @property
    def is_main(self) -> bool:
        """Return True in the main process, the only one that writes files."""
        return self.rank == 0

    @classmethod
    def from_env(cls, device: str = "auto") -> World:
        """Join the process group described by torchrun's environment variables: NCCL on CUDA, Gloo on the CPU.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:1"; "auto" is CUDA if available.

        Raises:
            UserError: some of the variables are missing or not numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            return cls()
        missing = [name for name in names if name not in os.environ]
        try:
            rank, size, local_rank = (int(os.environ[name]) for name in names[:3])
        except (KeyError, ValueError):
            raise UserError(
                f"The environment variables of a distributed run are incomplete (missing or not a number: "
                f"{', '.join(missing) or ', '.join(names[:3])}): start with torchrun, or unset RANK and WORLD_SIZE."
            ) from None
        if missing and size > 1:
            raise UserError(
                f"{', '.join(missing)} must be set in addition to RANK and WORLD_SIZE: start with torchrun."
            )
        if size > 1:
            on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
            if on_cuda:
                torch.cuda.set_device(local_rank)
            dist.init_process_group("nccl" if on_cuda else "gloo", rank=rank, world_size=size)
        return cls(rank, size, local_rank)

    @staticmethod
    def require_single_process(command: str) -> None:
        """Refuse torchrun in a program that does not support several processes.

        Args:
            command: command of the program, for the message ("python -m vision.depth").

        Raises:
            UserError: torchrun started more than one process.
        """
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            raise UserError(f"This program runs in one process, but torchrun started several: start it with {command}.")

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one all-reduce of the concatenated gradients.

        Parameters without a gradient are skipped; they must be the same in every process.
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def broadcast(self, module: nn.Module) -> None:
        """Copy parameters and buffers from the main process to all processes."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dense = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(dense, src=0)
                tensor.copy_(dense)

    def broadcast_value(self, value: ValueT) -> ValueT:
        """Return the main process's value, a plain value or a container of such, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: ValueT) -> list[ValueT]:
        """Return the values of all processes, by rank, in every process: plain values or containers of such."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def raising_together(self) -> Iterator[None]:
        """End all processes if the block raises a `UserError` in any, so that none waits for one that has ended.

        The first process with an error raises it; the others exit silently with the same exit code. The block must not
        communicate with other processes.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as raised:
            error = raised
        failed = self.gather(error is not None)
        if error is not None and failed.index(True) == self.rank:
            raise error
        if any(failed):
            raise SystemExit(2)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean over the processes of a floating-point tensor, as a new tensor, in every process."""
        if self.size == 1:
            return tensor.detach().clone()
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Return True in every process if `flag` is True in any; used, for example, to stop all processes together.

        `device` must be supported by the backend (CUDA for NCCL).
        """
        if self.size == 1:
            return flag
        result = torch.tensor(int(flag), device=device)
        dist.all_reduce(result, op=dist.ReduceOp.MAX)
        return bool(result.item())

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
