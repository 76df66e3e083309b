"""Distributed training with torchrun: rank and number of processes, and the collective operations of training.

    torchrun --nproc-per-node 2 -m agents.dqn

Without torchrun's environment variables there is one process, and the collective operations do nothing.

A process that has ended, or that does not answer within a time limit, ends the others with one sentence and the exit
code `EXIT_STOPPED`; the run resumes from the last checkpoints. torchrun can restart the processes, which then resume
their run without --resume:

    torchrun --nproc-per-node 2 --max-restarts 3 -m agents.dqn
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from zerokara.core.config import ProcessLost, UserError, error_summary
from zerokara.core.rendezvous import create_store, meet

ValueT = TypeVar("ValueT")

TIMEOUT = "ZEROKARA_COLLECTIVE_TIMEOUT"
"""Environment variable: seconds that a process waits for the others."""
DEFAULT_TIMEOUT = 1800.0  # longer than an evaluation, for which the other processes wait in some programs
_COMMUNICATION = re.compile("gloo|NCCL|ProcessGroup")  # in the messages of errors that have no class of their own


@dataclass(frozen=True)
class World:
    """Group of processes that train together. Every process must make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # rank among the processes of this machine: the index of its GPU
    machine_size: int | None = None  # number of processes on this machine; None: all of them

    @property
    def local_size(self) -> int:
        """Number of processes on this machine, which divide its cores."""
        return self.machine_size or self.size

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
            UserError: some of the variables are missing or not numbers, or torchrun is to restart processes of several
                machines with one store of addresses.
            ProcessLost: another process did not join in time, or has ended with an error.
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
            timeout = timedelta(seconds=collective_timeout())
            backend = "nccl" if on_cuda else "gloo"
            with _others_answer("The processes of this run could not connect ({reason}): type the same command again."):
                store = create_store(rank, size, timeout)
                if not (has_failed := meet(store, rank, size)):
                    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout, store=store)
            if has_failed:
                raise ProcessLost(
                    "Another process of this run has ended with an error before the run began: see its message, and "
                    "type the same command again."
                )
        on_machine = os.environ.get("LOCAL_WORLD_SIZE", "")
        return cls(rank, size, local_rank, int(on_machine) if on_machine.isdigit() else None)

    def shard(self, number: int) -> slice:
        """Return which of `number` items belong to this process: the same number in all, or one more."""
        return slice(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def process_seed(self, seed: int) -> int:
        """Return the seed of what each process of a training draws by itself, from the seed of the run.

        The processes of agents have others (`agents.training.start.spaced_process_seed`).
        """
        return seed * 1_000_003 + self.rank

    @property
    def batch_shard(self) -> slice:
        """Items of a training batch that belong to this process: every `size`-th one."""
        return slice(self.rank, None, self.size)

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

    def mean_gradients(self, parameters: Iterable[nn.Parameter], masters: Iterable[nn.Parameter] | None = None) -> None:
        """Average the gradients over the processes in float32, in one all-reduce of the concatenated gradients.

        With one process, nothing is done.

        Args:
            parameters: parameters with gradients. Those without are skipped; they must be the same in every process.
            masters: float32 weights of which the parameters are copies, in the same order: the means become their
                gradients. None: the means replace the gradients of the parameters.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        pairs = zip(parameters, parameters if masters is None else masters, strict=True)
        pairs_with_gradients = [pair for pair in pairs if pair[0].grad is not None]
        for _, master in pairs_with_gradients:
            if master.grad is None:
                master.grad = torch.empty_like(master)
        gradients = [parameter.grad.float() for parameter, _ in pairs_with_gradients if parameter.grad is not None]
        means = [master.grad for _, master in pairs_with_gradients if master.grad is not None]
        if gradients:
            self._mean(gradients, means)

    @torch.no_grad()
    def mean_weights(self, module: nn.Module) -> None:
        """Replace all floating-point parameters and buffers by their means over the processes, in one all-reduce.

        Other buffers, such as counters, stay those of the process.
        """
        if self.size > 1:
            tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
            self._mean(tensors, tensors)

    def _mean(self, tensors: Sequence[torch.Tensor], means: Sequence[torch.Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _others_answer():
            dist.all_reduce(flat)
        flat /= self.size
        for mean, part in zip(means, flat.split([t.numel() for t in tensors]), strict=True):
            mean.copy_(part.view(mean.shape))

    def broadcast(self, module: nn.Module) -> None:
        """Copy parameters and buffers from the main process to all processes."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dense = tensor.detach().clone(memory_format=torch.contiguous_format)
                with _others_answer():
                    dist.broadcast(dense, src=0)
                tensor.copy_(dense)

    def broadcast_value(self, value: ValueT) -> ValueT:
        """Return the main process's value, a plain value or a container of such, in every process."""
        if self.size == 1:
            return value
        values = [value]
        with _others_answer():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: ValueT) -> list[ValueT]:
        """Return the values of all processes, by rank, in every process: plain values or containers of such."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _others_answer():
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
        with _others_answer():
            dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Return True in every process if `flag` is True in any; used, for example, to stop all processes together.

        `device` must be supported by the backend (CUDA for NCCL).
        """
        if self.size == 1:
            return flag
        result = torch.tensor(int(flag), device=device)
        with _others_answer():
            dist.all_reduce(result, op=dist.ReduceOp.MAX)
            return bool(result.item())  # with NCCL, an error appears here

    def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
        """Return the maximum of each value over the processes, in every process. `device` is as for `any`."""
        if self.size == 1:
            return list(values)
        result = torch.tensor(values, dtype=torch.float32, device=device)
        with _others_answer():
            dist.all_reduce(result, op=dist.ReduceOp.MAX)
            return [float(value) for value in result.tolist()]

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        if self.size > 1:
            with _others_answer():
                dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Votes:
    """Votes of the processes, such as on stopping, about one per second: a vote waits until all have reached it.

    Args:
        world: processes that vote.
        device: as for `World.any`.
        seconds: between two votes.
        most_calls: from a vote to the next one at most; None: no limit.
    """

    def __init__(
        self,
        world: World,
        device: torch.device | str = "cpu",
        seconds: float = 1.0,
        most_calls: int | None = None,
    ) -> None:
        self._world, self._device, self._seconds, self._most_calls = world, device, seconds, most_calls
        self._calls = 0  # since the last vote
        self._next = 1  # number of calls from the last vote to the next one
        self._last_vote = time.perf_counter()

    def __call__(self, *flags: bool, now: bool = False) -> tuple[bool, ...]:
        """Return for each flag True in every process if it is True in any; all False if this call is no vote.

        Args:
            flags: votes of this process, such as to stop. They must stay True in later calls.
            now: vote in this call; must be the same in all processes.
        """
        if self._world.size == 1:
            return flags
        self._calls += 1
        if self._calls < self._next and not now:
            return (False,) * len(flags)
        time_per_call = (time.perf_counter() - self._last_vote) / self._calls
        *results, slowest = self._world.max([*map(float, flags), time_per_call], self._device)
        self._calls, self._next = 0, max(1, round(self._seconds / max(slowest, 1e-6)))
        if self._most_calls is not None:
            self._next = min(self._next, self._most_calls)
        self._last_vote = time.perf_counter()
        return tuple(result > 0 for result in results)


def collective_timeout() -> float:
    """Return the seconds that a process waits for the others: those of `TIMEOUT`, or `DEFAULT_TIMEOUT`.

    Raises:
        UserError: the variable is not a number above 0.
    """
    text = os.environ.get(TIMEOUT, "") or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{TIMEOUT} is {text!r}, expected seconds above 0: set it to {DEFAULT_TIMEOUT:g}, or unset it.")
    return seconds


@contextlib.contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """Around code that computes and communicates: report that another process has ended, or does not answer.

    Other errors pass.

    Raises:
        ProcessLost: an operation of torch.distributed failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _COMMUNICATION.search(str(error)):
            raise
        with _others_answer():
            raise


@contextlib.contextmanager
def _others_answer(
    sentence: str = "Another process of this run has ended, or did not answer within {seconds:g} s ({reason}): type "
    "the same command with --resume.",
) -> Iterator[None]:
    """Around a collective operation: report that another process has ended, or does not answer, in one sentence.

    Raises:
        ProcessLost: the operation failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the base class of all errors of torch.distributed; Gloo raises it directly
        reason = re.sub(r"\[\S+:\d+\] ", "", error_summary(error)).partition(". ")[0]  # without Gloo's source file
        raise ProcessLost(sentence.format(seconds=collective_timeout(), reason=reason)) from error
