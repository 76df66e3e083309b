"""The torchrun world: which process this is, who writes, and the few collectives that training needs.

    torchrun --nproc-per-node 2 -m agents.dqn

Without torchrun's variables the world has one member and every call below is free.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from zerokara.core.config import UserError

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class World:
    """The processes that train together. Every member must make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine: the index of the GPU to take

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    @classmethod
    def from_env(cls, device: str = "auto") -> World:
        """Join the world that torchrun's variables describe: NCCL on CUDA, Gloo on the CPU.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:1"; auto is CUDA where there is one.

        Raises:
            UserError: some of the variables are missing or no numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            return cls()
        missing = [name for name in names if name not in os.environ]
        try:
            rank, size, local_rank = (int(os.environ[name]) for name in names[:3])
        except (KeyError, ValueError):
            raise UserError(
                f"The environment describes a distributed run by halves (missing or not a number: "
                f"{', '.join(missing) or ', '.join(names[:3])}): start it with torchrun, or unset RANK and WORLD_SIZE."
            ) from None
        if missing and size > 1:
            raise UserError(f"{', '.join(missing)} must be set beside RANK and WORLD_SIZE: start with torchrun.")
        if size > 1:
            on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
            if on_cuda:
                torch.cuda.set_device(local_rank)
            dist.init_process_group("nccl" if on_cuda else "gloo", rank=rank, world_size=size)
        return cls(rank, size, local_rank)

    @staticmethod
    def require_single_process(command: str) -> None:
        """For programs that are one process.

        Args:
            command: how to start it, "python -m vision.depth".

        Raises:
            UserError: torchrun's variables describe more than one process.
        """
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            raise UserError(f"This program is one process, and torchrun started several: start it with {command}.")

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the world, in one all-reduce of all of them laid end to end.

        Parameters without a gradient are left out; they must be the same ones in every process.
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
        """Give every process the main one's parameters and buffers."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dense = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(dense, src=0)
                tensor.copy_(dense)

    def broadcast_value(self, value: ValueT) -> ValueT:
        """The main process's value, plain or made of plain ones, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over the world of a floating-point tensor, a new one; every process gets it."""
        if self.size == 1:
            return tensor.detach().clone()
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether any process says yes, e.g. was asked to stop: all leave together or none does.

        `device` must be one that the backend moves (CUDA under NCCL).
        """
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag), device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the world."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
