"""Compute: the one owner of the hardware. Device, precision, memory layout, compilation, threads and CUDA graphs.

What is fastest depends on the machine: 16 bits are three times as fast where the processor has matrix units for them
and four times slower where it has none, compilation pays for one network and costs for another. So `choose` measures a
few real training steps, says what it found, and the choice is saved with the run, so that a resumed run makes it again.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zerokara.core.config import UserError
from zerokara.core.layers import NoisyLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
Precision = Literal["auto", "float32", "bfloat16"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a run computes."""

    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    threads: int = 1
    reason: str = ""  # what the probe measured, in words

    @property
    def dtype(self) -> torch.dtype:
        """The type in which images and activations are held."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch knows it."""
        return torch.device(self.device)

    def apply(self) -> None:
        """Set what is global to the process: threads, numbers too small for full speed, an allocator that keeps memory.

        Adam's averages of gradients that stay zero shrink for ever; once they are too small for ordinary floats, a
        processor handles them in microcode, and an update took twice as long (docs/LOG.md). Flushed, they are zero.
        Threads take this over from the one that starts them, so call it before the first parallel work.

        glibc gives every freed tensor of some size back to the kernel, and the next one of that size pays for fresh
        pages, some 8% of an update of the 2013 network (docs/LOG.md).
        """
        torch.set_flush_denormal(True)
        torch.set_num_threads(self.threads)
        if sys.platform == "linux" and self.torch_device.type == "cpu":
            mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
            if mallopt is not None:
                mallopt(_M_MMAP_THRESHOLD, 1 << 25)
                mallopt(_M_TRIM_THRESHOLD, 1 << 25)

    def module(self, module: ModuleT) -> ModuleT:
        """Move a module to the device, its convolutions in the chosen layout."""
        module = module.to(self.torch_device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload]

    def frozen(self, module: ModuleT) -> ModuleT:
        """A module that only looks: its weights are held in the type they are used in, not converted at every pass."""
        for layer in filter(_is_plain, module.modules()):
            _convert(layer, self.dtype)
        return module.requires_grad_(False)

    def working_copy(self, module: ModuleT) -> ModuleT:
        """What passes run through while `module` keeps the weights: a copy in 16 bits where that pays, or itself.

        It pays where code is compiled on a CPU: an optimiser that writes both (core.optim.CompiledAdam) saves every
        pass the conversion of all weights. Whatever is not converted is shared, not copied.
        """
        if not (self.compile and self.dtype is torch.bfloat16 and self.torch_device.type == "cpu"):
            return module
        layers = [layer for layer in module.modules() if _is_plain(layer)]
        converted = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
        shared = {id(t): t for t in (*module.parameters(), *module.buffers()) if id(t) not in converted}
        working = copy.deepcopy(module, shared)
        for layer in filter(_is_plain, working.modules()):
            _convert(layer, self.dtype)
        return working

    def images(self, x: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) as numbers from 0 to 1, in the chosen type and layout."""
        if self.compile and self.channels_last and x.shape[1] == 4 and self.torch_device.type == "cpu":
            # Four channels of a byte are one whole number of a pixel: its bytes are the layout, with no transposition,
            # which compiled code does three times faster (docs/LOG.md).
            first, *others = (channel.to(torch.int32) for channel in x.unbind(1))
            for place, channel in enumerate(others, 1):
                first = first | (channel << (8 * place))
            x = first.view(torch.uint8).view(*first.shape, 4).permute(0, 3, 1, 2)
        return self.layout(x.to(self.dtype) * (1 / 255))

    def layout(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of floats in the chosen type and layout."""
        x = x.to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    @staticmethod
    def to_host(x: Tensor) -> Tensor:
        """A copy in the memory of the CPU, float32 where it is 16 bits. Waits for the device."""
        x = x.detach().to("cpu")
        return x.float() if x.dtype is torch.bfloat16 else x

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Arithmetic of layers in the chosen type; parameters stay float32."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)

    def function(self, function: FunctionT) -> FunctionT:
        """The function, compiled as one graph where that was found to pay."""
        return torch.compile(function) if self.compile else function  # type: ignore[return-value]

    def graph(self, function: Callable[[], None], generators: tuple[torch.Generator, ...] = ()) -> Callable[[], None]:
        """On CUDA, `function` captured as a graph whose replay launches all its kernels at once; elsewhere itself.

        The function must take its inputs from, and leave its results in, tensors that stay where they are. It is run
        three times on a side stream before it is captured, as capture demands: pass it in a state where that is right.

        Args:
            function: works without waiting for the device.
            generators: random generators that it draws from.
        """
        if self.torch_device.type != "cuda":
            return function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def choose(
        cls,
        *,
        device: str,
        precision: Precision,
        compile: Switch,
        threads: int,
        train_step: Callable[[Compute], Callable[[], object]] | None,
        local_world_size: int = 1,
    ) -> Compute:
        """Choose by measurement what was left to "auto".

        Args:
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "auto" tries bfloat16 beside float32.
            compile: "auto" compiles where that is measured to be faster; "on" insists on it.
            threads: CPU threads, 0 for all cores this process may use, shared by the processes of one machine.
            train_step: gives, for a candidate, a function that does one training step with it. None: nothing is
                measured and "auto" is float32 and no compilation.
            local_world_size: processes on this machine.

        Raises:
            UserError: a device that is not there, or compilation asked for without a compiler.
        """
        device = find_device(device)
        threads = threads or max(1, _cores() // local_world_size)
        base = cls(device=device, threads=threads)
        base.apply()
        compiler = _compiler_missing(base.torch_device)
        if compile == "on" and compiler:
            raise UserError(f"--compile on needs a C++ compiler and {compiler}; install g++ or pass --compile off.")
        if train_step is None:
            precision = "float32" if precision == "auto" else precision
            return dataclasses.replace(base, precision=precision, compile=compile == "on")

        # The layout is measured with the precision only: whoever names that gets the same numbers every time.
        pairs = [(name, layout) for name in ("float32", "bfloat16") for layout in (True, False)]
        candidates = [
            dataclasses.replace(base, precision=name, channels_last=layout)
            for name, layout in (pairs if precision == "auto" else [(precision, True)])
        ]
        seconds = _measure({candidate: train_step(candidate) for candidate in candidates})
        best = min(seconds, key=lambda candidate: seconds[candidate])
        remarks = []
        if compile == "auto" and compiler:
            remarks.append(f"not compiled because {compiler}")
        elif compile != "off":
            # What decides between layouts where nothing is compiled, their transposition, costs little where it is.
            compiled = dataclasses.replace(best, compile=True, channels_last=True)
            try:
                # Beside the best, measured once more: what else the machine does must not decide.
                again = _measure({best: train_step(best), compiled: train_step(compiled)})
            except Exception as error:
                # Whatever the compiler stumbles over, the run can do without it.
                if compile == "on":
                    raise UserError(f"--compile on failed ({_first_line(error)}); pass --compile off.") from error
                remarks.append(f"not compiled because the compiler failed: {_first_line(error)}")
            else:
                seconds |= again
                best = compiled if compile == "on" or again[compiled] < again[best] else best
        found = [f"{_name(c)} {1e3 * s:.0f} ms" for c, s in seconds.items()] + remarks
        return dataclasses.replace(
            best, reason=f"{_name(best)} on {threads} threads; a training step took " + ", ".join(found)
        )


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer's weights may be held in the type they are used in."""
    return isinstance(layer, nn.Linear | nn.Conv2d | NoisyLinear) and not parametrize.is_parametrized(layer)


def _convert(layer: nn.Module, dtype: torch.dtype) -> None:
    """Hold a layer's weights in a type; noise stays as it is, and shared."""
    for weight in layer.parameters(recurse=False):
        weight.data = weight.data.to(dtype)


def find_device(name: str) -> str:
    """The device that was asked for, "auto" as what that is here.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    except (RuntimeError, KeyError):
        raise UserError(f"There is no device {name!r}; choose --device auto, cpu, cuda or mps.") from None
    if not there:
        raise UserError(f"--device {name} was asked for, but this machine or this PyTorch has none; use --device cpu.")
    return name


def _cores() -> int:
    """Cores that this process may use; where the system does not tell (macOS), all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiler_missing(device: torch.device) -> str:
    """Why nothing can be compiled, or nothing where it can."""
    if device.type == "mps":
        return "compilation on mps is not supported here"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "there is no C++ compiler on this machine"
    return ""


def _measure(steps: Mapping[Compute, Callable[[], object]], rounds: int = 5) -> dict[Compute, float]:
    """Seconds of a step of each candidate, taking turns; the least of all rounds, for other programs only ever add.

    A candidate that is hopeless after its warm-up (which compiles, and fills caches) is not tried again.
    """
    for step in steps.values():
        step()
    seconds: dict[Compute, float] = {}
    for _ in range(rounds):
        for candidate, step in steps.items():
            if seconds.get(candidate, 0.0) > 2 * min(seconds.values(), default=0.0):
                continue
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[candidate] = min(seconds.get(candidate, float("inf")), time.perf_counter() - start)
    return seconds


def _name(compute: Compute) -> str:
    parts = [compute.precision, "channels_last" * compute.channels_last, "compiled" * compute.compile]
    return " ".join(part for part in parts if part)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
