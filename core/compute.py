"""`Compute` holds all hardware settings: device, precision, memory format, compilation, threads and CUDA graphs.

The fastest settings depend on the machine: bfloat16 is three times as fast on a processor with matrix units for it and
four times slower on one without; compilation makes one network faster and another slower. `Compute.choose` therefore
measures a few real training steps (core/probe.py) and reports the result. The choice is saved with the run; a resumed
run keeps it where possible (core/resumed_compute.py).
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zerokara.core.choices import Precision, Switch
from zerokara.core.config import UserError, format_count
from zerokara.core.denormals import flush_denormals
from zerokara.core.layers import NoisyLinear
from zerokara.core.machine import has_bfloat16, usable_cores
from zerokara.core.probe import MAX_FRACTION, MAX_SECONDS, Probe

ModuleT = TypeVar("ModuleT", bound=nn.Module)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Precision and channels_last of the candidates, in the order in which they are measured. A run that is too short to
# measure the second one is trained in float32 on every machine, unless its steps are long (core/probe.py).
_LAYOUTS: tuple[tuple[Precision, bool], ...] = (
    ("float32", True),
    ("bfloat16", True),
    ("bfloat16", False),
    ("float32", False),
)


@dataclass(frozen=True)
class TrainStep:
    """Training step that is timed with several settings.

    Attributes:
        make: returns, for settings and a batch size, a function that does one training step with them.
        batch_size: items (images, transitions) in a training step of one process. `make` also gets smaller numbers if a
            step is long (core/probe.py), but not below twice `multiple_of`.
        multiple_of: smaller batches are multiples of this number, such as that of the gradient accumulation steps.
    """

    make: Callable[[Compute, int], Callable[[], object]]
    batch_size: int
    multiple_of: int = 1


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Hardware settings of a run."""

    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    threads: int = 1
    reason: str = ""  # description of the measurements, for the log

    @property
    def dtype(self) -> torch.dtype:
        """Data type of images and activations."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def settings(self) -> str:
        """Precision, memory format and compilation as text: "bfloat16 channels_last compiled"."""
        parts = [self.precision, "channels_last" * self.channels_last, "compiled" * self.compile]
        return " ".join(part for part in parts if part)

    @property
    def torch_device(self) -> torch.device:
        """Return the device as a torch.device."""
        return torch.device(self.device)

    def apply(self) -> None:
        """Apply the settings that are global to the process: threads, flushing of denormal numbers, memory allocator.

        By default glibc returns the memory of every large freed tensor to the kernel, and the next tensor of that size
        causes page faults: about 8% of an update of the 2013 network (docs/LOG.md).
        """
        torch.set_num_threads(self.threads)
        flush_denormals(self.threads)
        if sys.platform == "linux" and self.torch_device.type == "cpu":
            mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl does not have it
            if mallopt is not None:
                mallopt(_M_MMAP_THRESHOLD, 1 << 25)
                mallopt(_M_TRIM_THRESHOLD, 1 << 25)

    def module(self, module: ModuleT) -> ModuleT:
        """Move a module to the device, with its convolutions in the selected memory format."""
        module = module.to(self.torch_device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload]

    def frozen(self, module: ModuleT) -> ModuleT:
        """Prepare a module for inference: convert its weights to `dtype` once instead of in every forward pass."""
        for layer in filter(_is_plain, module.modules()):
            _convert(layer, self.dtype)
        return module.requires_grad_(False)

    def working_copy(self, module: ModuleT) -> ModuleT:
        """Return the module to use in forward and backward passes: a bfloat16 copy if that is faster, else `module`.

        It is faster with compilation on a CPU: an optimizer that updates float32 weights and copy together
        (core.optim.CompiledAdam) makes the conversion of all weights in every pass unnecessary. Parameters and buffers
        that are not converted are shared with `module`.
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
        """Convert uint8 pixels (B, C, H, W) to values from 0 to 1 in the selected data type and memory format.

        Floats, which are observed vectors, keep their values.
        """
        if x.is_floating_point():
            return self.layout(x)
        if self.compile and self.channels_last and x.shape[1] == 4 and self.torch_device.type == "cpu":
            # Packs the four uint8 channels of a pixel into one int32, whose bytes are already in channels_last order.
            # Compiled code does this three times faster than a transposition (docs/LOG.md).
            first, *others = (channel.to(torch.int32) for channel in x.unbind(1))
            for index, channel in enumerate(others, 1):
                first = first | (channel << (8 * index))
            x = first.view(torch.uint8).view(*first.shape, 4).permute(0, 3, 1, 2)
        return self._scaled(x)

    def converter(self) -> Callable[[Tensor], Tensor]:
        """Return a function that converts uint8 images as `images` does, for the arguments of compiled functions.

        Only float32 code for AVX2 needs it: there the compiler's vectors load eight bytes through memory, and a loop
        without vectors takes half the time (docs/LOG.md). Elsewhere, and for other tensors, the function returns its
        argument, and the compiled function converts the images.
        """
        on_avx2 = self.torch_device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        if not (self.compile and on_avx2 and self.dtype is torch.float32):
            return lambda x: x
        convert = torch.compile(self._scaled, options={"cpp.simdlen": 1})
        return lambda x: convert(x) if x.dtype is torch.uint8 and x.ndim == 4 else x

    def _scaled(self, x: Tensor) -> Tensor:
        return self.layout(x.to(self.dtype) * (1 / 255))

    def layout(self, x: Tensor) -> Tensor:
        """Convert float images (B, C, H, W) to the selected data type and memory format."""
        x = x.to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    @staticmethod
    def to_host(x: Tensor) -> Tensor:
        """Copy a tensor to the CPU, bfloat16 as float32. Synchronizes with the device."""
        x = x.detach().to("cpu")
        return x.float() if x.dtype is torch.bfloat16 else x

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which layers compute in the selected precision; parameters stay float32."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)

    def function(self, function: FunctionT) -> FunctionT:
        """Return the function, compiled if compilation is selected."""
        return torch.compile(function) if self.compile else function  # type: ignore[return-value]

    def graph(
        self, function: Callable[[], object], generators: tuple[torch.Generator, ...] = ()
    ) -> Callable[[], object]:
        """Capture `function` as a CUDA graph and return its replay; on other devices return `function`.

        The function must read its inputs from, and write its results to, tensors whose memory addresses do not change.
        Before the capture it runs three times on a side stream, as CUDA graphs require, with all its side effects.

        Args:
            function: must not synchronize with the device.
            generators: random generators that the function uses.
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
        """Return the settings as a dict for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def choose(
        cls,
        *,
        device: str,
        precision: Precision,
        compile: Switch,
        threads: int,
        train_step: TrainStep | None,
        local_world_size: int = 1,
        updates: int | None = None,
        minutes: float = 0.0,
    ) -> Compute:
        """Select the settings given as "auto" by measuring training steps.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            precision: "auto" measures float32 and, if the device does not only emulate it, bfloat16.
            compile: "auto" compiles if that is measured to be faster, and not if the run is too short to compile
                anything in 2% of it; "on" always compiles.
            threads: CPU threads; 0 divides all usable cores among the processes of this machine.
            train_step: what is timed. None: nothing is measured, and "auto" means float32 without compilation.
            local_world_size: number of processes on this machine.
            updates: training steps in the run, for the limits of the measurement (core/probe.py); None: unknown.
            minutes: length of a run that is limited in time; 0: it is not.

        Raises:
            UserError: the device is not available, or `compile` is "on" and compilation is not possible.
        """
        device = find_device(device)
        threads = threads or max(1, usable_cores() // local_world_size)
        base = cls(device=device, threads=threads)
        base.apply()
        compiler = compiler_missing(base.torch_device)
        if compile == "on" and compiler:
            raise UserError(f"--compile on needs a C++ compiler and {compiler}; install g++ or pass --compile off.")
        if train_step is None:
            precision = "float32" if precision == "auto" else precision
            return dataclasses.replace(base, precision=precision, compile=compile == "on")

        probe = Probe[Compute](
            updates,
            minutes,
            batch_size=train_step.batch_size,
            multiple_of=train_step.multiple_of,
            interruptible=base.torch_device.type == "cpu",
        )
        return _choose_fastest(base, precision, compile, compiler, train_step, probe)


def _choose_fastest(
    base: Compute,
    precision: Precision,
    compile: Switch,
    compiler: str,
    train_step: TrainStep,
    probe: Probe[Compute],
) -> Compute:
    """Return `base` with the fastest settings, and the measurements as its reason.

    Args:
        base: has device and threads.
        precision: as for `Compute.choose`.
        compile: as for `Compute.choose`.
        compiler: reason why code cannot be compiled; empty: it can.
        train_step: as for `Compute.choose`.
        probe: measurement, with its limits.
    """
    # The memory format is measured only if the precision is: a fixed precision gives reproducible results.
    layouts: list[tuple[Precision, bool]] = list(_LAYOUTS) if precision == "auto" else [(precision, True)]
    notes = []
    if precision == "auto" and not has_bfloat16(base.torch_device):
        layouts = [(name, layout) for name, layout in _LAYOUTS if name == "float32"]
        notes.append("bfloat16 not tried because the processor only emulates it")
    candidates = [dataclasses.replace(base, precision=name, channels_last=layout) for name, layout in layouts]
    make = {candidate: partial(train_step.make, candidate) for candidate in candidates}
    # bfloat16 is a candidate where the hardware has instructions for it.
    likely = next((candidate for candidate in candidates if candidate.precision == "bfloat16"), candidates[0])
    if len(candidates) > 1 or (compile == "auto" and not compiler):
        probe.measure(make, likely)
    best = probe.fastest([likely, *candidates])  # `likely` if no step has ended in time
    # Always channels_last: transposing images is slow only in code that is not compiled.
    compiled = dataclasses.replace(best, compile=True, channels_last=True)
    run_fraction = f"{MAX_FRACTION:.0%} of the run of about {probe.run_seconds:.0f} s"
    if compile == "on":
        try:
            train_step.make(compiled, train_step.batch_size)()
        except Exception as error:
            raise UserError(f"--compile on failed ({_first_line(error)}); pass --compile off.") from error
        best = compiled
    elif compile == "auto" and compiler:
        notes.append(f"not compiled because {compiler}")
    elif compile == "auto" and not probe.seconds:
        notes.append("not compiled because nothing could be timed to compare it with")
    elif compile == "auto" and not probe.has_time_to_compile:
        notes.append(f"not compiled because it takes more than {run_fraction}")
    elif compile == "auto":
        alike = {candidate: step for candidate, step in make.items() if candidate.precision == best.precision}
        try:
            if not probe.measure_compiled(compiled, alike | {compiled: partial(train_step.make, compiled)}):
                notes.append(f"not compiled because it took more than {run_fraction}")
            # What was measured is compared with what was measured, not with what was estimated.
            measured = [candidate for candidate in (*alike, compiled) if candidate not in probe.estimated]
            best = probe.fastest([best, *measured])
        except Exception as error:  # noqa: BLE001  (the compiler raises many exception types)
            notes.append(f"not compiled because the compiler failed: {_first_line(error)}")
    if probe.cut_short:
        notes.append(
            f"the measurement was cut short after {probe.cut_short:.1f} s (at most {MAX_SECONDS:.0f} s and "
            f"{MAX_FRACTION:.0%} of the run)"
        )
    parts = [
        f"{best.settings} on {format_count(base.threads, 'thread')}",
        *_format_timings(probe, train_step.batch_size),
        *notes,
    ]
    return dataclasses.replace(best, reason="; ".join(parts))


def _format_timings(probe: Probe[Compute], batch_size: int) -> list[str]:
    """Return the seconds of training steps as text, which were measured or estimated or have passed without an end.

    Args:
        probe: the measurement.
        batch_size: of a training step.
    """

    def table(seconds: Mapping[Compute, float]) -> str:
        return ", ".join(f"{candidate.settings} {_format_seconds(value)}" for candidate, value in seconds.items())

    seconds = probe.seconds
    measured = {candidate: value for candidate, value in seconds.items() if candidate not in probe.estimated}
    estimated = {candidate: value for candidate, value in seconds.items() if candidate in probe.estimated}
    unfinished = {candidate: value for candidate, value in probe.stopped.items() if not candidate.compile}
    parts = []
    if measured:
        parts.append(f"a training step took {table(measured)}")
    if estimated:
        batch = f"a batch of {probe.estimated_batch:,} instead of {batch_size:,}"
        parts.append(f"a training step takes about {table(estimated)} (estimated from {batch})")
    if unfinished:
        stopped = ", ".join(f"{candidate.settings} after {_format_seconds(s)}" for candidate, s in unfinished.items())
        parts.append(f"stopped before the end of a step: {stopped}")
    return parts


def _format_seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _is_plain(layer: nn.Module) -> bool:
    """Return True if the weights of the layer may be converted to bfloat16."""
    return isinstance(layer, nn.Linear | nn.Conv2d | NoisyLinear) and not parametrize.is_parametrized(layer)


def _convert(layer: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters of a layer; buffers, such as the noise of `NoisyLinear`, stay unchanged and shared."""
    for weight in layer.parameters(recurse=False):
        weight.data = weight.data.to(dtype)


def find_device(name: str) -> str:
    """Return the device with this name; "auto" is CUDA if available, else the CPU.

    Raises:
        UserError: the device is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        number = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[
            device.type
        ]
    except (RuntimeError, KeyError):
        raise UserError(f"There is no device {name!r}; choose --device auto, cpu, cuda or mps.") from None
    if number <= (device.index or 0):
        raise UserError(f"--device {name} is not available on this machine or in this PyTorch; use --device cpu.")
    return name


def compiler_missing(device: torch.device) -> str:
    """Return the reason why code cannot be compiled, or an empty string if it can."""
    if device.type == "mps":
        return "compilation on mps is not supported here"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "there is no C++ compiler on this machine"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
