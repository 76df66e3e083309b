"""Compute: choice of the fastest settings by measurement, reasons and errors, memory layouts and dtypes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.programs import start_with_torch
from zerokara.core import compute as module
from zerokara.core import probe
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.config import UserError

Seconds = dict[tuple[str, bool, bool], float]  # by precision, channels_last, compile


class Machine:
    """Simulated machine with a given duration of a training step; nothing else advances its clock."""

    def __init__(
        self, seconds: Seconds, monkeypatch: pytest.MonkeyPatch, *, compiler: bool = True, bfloat16: bool = True
    ) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.steps: dict[tuple[str, bool, bool], int] = {}
        monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(module, "has_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr(module, "compiler_missing", lambda device: "" if compiler else "there is no C++ compiler")

    def train_step(self, candidate: Compute, batch_size: int) -> Callable[[], object]:
        key = (candidate.precision, candidate.channels_last, candidate.compile)

        def step() -> None:
            warming_up = key not in self.steps
            self.steps[key] = self.steps.get(key, 0) + 1
            # The first step includes compilation and must not be measured.
            self.now += self.seconds[key] + (20 if warming_up and candidate.compile else 0)

        return step

    def choose(self, **changes: Any) -> Compute:
        options: dict[str, Any] = {"device": "cpu", "precision": "auto", "compile": "auto", "threads": 1}
        return Compute.choose(train_step=TrainStep(self.train_step, 1), **(options | changes))


def table(**changes: float) -> Seconds:
    """Seconds of a training step by candidate: float32 or bfloat16, with _last (channels_last) and _compiled."""
    by_name = {"float32": 0.10, "float32_last": 0.06, "bfloat16": 0.05, "bfloat16_last": 0.02} | changes
    seconds = {}
    for name, value in by_name.items():
        precision, *rest = name.split("_")
        seconds[precision, "last" in rest, "compiled" in rest] = value
    for precision, layout, _ in list(seconds):
        seconds.setdefault((precision, layout, True), 9.0)
    return seconds


def settings(compute: Compute) -> tuple[str, bool, bool]:
    return compute.precision, compute.channels_last, compute.compile


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (table(), ("bfloat16", True, False)),
        (table(bfloat16_last_compiled=0.01), ("bfloat16", True, True)),
        (table(bfloat16=0.4, bfloat16_last=0.3), ("float32", True, False)),
        (table(bfloat16=0.4, bfloat16_last=0.3, float32_last_compiled=0.05), ("float32", True, True)),
        (table(float32=0.001), ("float32", False, False)),
        (table(bfloat16=0.01), ("bfloat16", False, False)),
    ],
)
def test_fastest_settings_are_selected(
    seconds: Seconds, expected: tuple[str, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Machine(seconds, monkeypatch).choose()
    assert settings(compute) == expected
    assert compute.device == "cpu"
    assert compute.threads == 1


def test_the_reason_lists_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Machine(table(bfloat16_last_compiled=0.013), monkeypatch).choose()
    assert compute.reason == (
        "bfloat16 channels_last compiled on 1 thread; a training step took float32 channels_last 60 ms, "
        "bfloat16 channels_last 20 ms, bfloat16 50 ms, float32 100 ms, bfloat16 channels_last compiled 13 ms"
    )


def test_requested_settings_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = table(bfloat16_last_compiled=0.001, float32_last_compiled=5.0)
    assert settings(Machine(seconds, monkeypatch).choose(precision="float32")) == ("float32", True, False)
    assert settings(Machine(seconds, monkeypatch).choose(compile="off")) == ("bfloat16", True, False)
    assert settings(Machine(seconds, monkeypatch).choose(precision="float32", compile="on")) == ("float32", True, True)
    slow = Machine(table(bfloat16=8.0, bfloat16_last=7.0), monkeypatch)
    assert settings(slow.choose(precision="bfloat16", compile="off")) == ("bfloat16", True, False)
    assert slow.steps == {}, "nothing to choose, nothing to measure"


def test_without_a_compiler_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(table(bfloat16_last_compiled=0.001), monkeypatch, compiler=False)
    compute = machine.choose()
    assert settings(compute) == ("bfloat16", True, False)
    assert compute.reason.endswith("not compiled because there is no C++ compiler")
    with pytest.raises(UserError, match=r"--compile on needs a C\+\+ compiler and there is no C\+\+ compiler; install"):
        machine.choose(compile="on")


def test_emulated_bfloat16_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(table(), monkeypatch, bfloat16=False)
    compute = machine.choose(compile="off")
    assert settings(compute) == ("float32", True, False)
    assert {precision for precision, _, _ in machine.steps} == {"float32"}
    assert compute.reason.endswith("bfloat16 not tried because the processor only emulates it")
    assert machine.choose(precision="bfloat16", compile="off").precision == "bfloat16"


def test_a_layout_that_is_measured_slower_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layouts are measured again beside compiled code, and the last measurement decides and is reported."""
    machine = Machine(table(bfloat16=0.021), monkeypatch)
    original = machine.train_step

    def train_step(candidate: Compute, batch_size: int) -> Callable[[], object]:
        if candidate.compile:
            machine.seconds["bfloat16", True, False] = 0.032
            machine.seconds["bfloat16", False, False] = 0.027
        return original(candidate, batch_size)

    monkeypatch.setattr(machine, "train_step", train_step)
    compute = machine.choose()
    assert settings(compute) == ("bfloat16", False, False)
    assert "bfloat16 channels_last 32 ms, bfloat16 27 ms" in compute.reason


@pytest.mark.parametrize(("updates", "compiled"), [(100, False), (10_000, False), (100_000, True), (None, True)])
def test_a_short_run_is_not_compiled(updates: int | None, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation takes 20 s, and a step 20 ms."""
    machine = Machine(table(bfloat16_last_compiled=0.01), monkeypatch)
    compute = machine.choose(updates=updates)
    assert compute.compile == compiled
    if not compiled:
        assert re.search(r"; not compiled because it takes more than 2% of the run of about \d+ s", compute.reason)
        assert machine.now < 2, "it is not tried"
        assert machine.choose(updates=updates, compile="on").compile


def test_a_measurement_that_was_cut_short_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Machine(table(float32_last=4.0, bfloat16_last=3.5, bfloat16=6.0), monkeypatch).choose(compile="off")
    assert settings(compute) == ("bfloat16", True, False)
    assert compute.reason.endswith("the measurement was cut short after 13.5 s (at most 10 s and 2% of the run)")
    compute = Machine(table(), monkeypatch).choose(updates=3)
    assert settings(compute) == ("float32", True, False)
    assert compute.reason == (
        "float32 channels_last on 1 thread; a training step took float32 channels_last 60 ms; not compiled because it "
        "takes more than 2% of the run of about 0 s; the measurement was cut short after 0.1 s (at most 10 s and 2% of "
        "the run)"
    )


def test_missing_compiler_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert module.compiler_missing(torch.device("cpu")) == "there is no C++ compiler on this machine"
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/clang++" if name == "clang++" else None)
    assert module.compiler_missing(torch.device("cpu")) == ""


@pytest.mark.parametrize("error", [RuntimeError("InductorError: g++ died\nfurther lines"), NotImplementedError()])
def test_failing_compiler_is_not_used(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(table(), monkeypatch)
    original = machine.train_step

    def train_step(candidate: Compute, batch_size: int) -> Callable[[], object]:
        def fail() -> None:
            raise error

        return fail if candidate.compile else original(candidate, batch_size)

    monkeypatch.setattr(machine, "train_step", train_step)
    compute = machine.choose()
    assert settings(compute) == ("bfloat16", True, False)
    reported = "InductorError: g++ died" if str(error) else "NotImplementedError"
    assert compute.reason.endswith(f"not compiled because the compiler failed: {reported}")
    with pytest.raises(UserError, match=rf"^--compile on failed \({re.escape(reported)}\); pass --compile off\.$"):
        machine.choose(compile="on")


def test_without_train_step_nothing_is_measured() -> None:
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "train_step": None}
    assert settings(Compute.choose(precision="auto", compile="auto", **options)) == ("float32", False, False)
    assert settings(Compute.choose(precision="bfloat16", compile="off", **options)) == ("bfloat16", False, False)


def test_requested_compilation_is_kept_without_train_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compiler_missing", lambda device: "")
    compute = Compute.choose(device="cpu", precision="float32", compile="on", threads=1, train_step=None)
    assert compute.compile


def test_a_gpu_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert module.find_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match=r"^--device cuda:2 is not available on this machine"):
        module.find_device("cuda:2")


def test_threads_are_divided_among_local_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    options: dict[str, Any] = {"device": "cpu", "precision": "float32", "compile": "off", "train_step": None}
    assert Compute.choose(threads=0, **options).threads == 8
    assert Compute.choose(threads=0, local_world_size=3, **options).threads == 2
    assert Compute.choose(threads=0, local_world_size=20, **options).threads == 1
    assert Compute.choose(threads=5, **options).threads == 5
    assert torch.get_num_threads() == 5, "the number of threads is set while candidates are measured"
    Compute(threads=2).apply()
    assert torch.get_num_threads() == 2


def test_device_names() -> None:
    assert module.find_device("cpu") == "cpu"
    assert module.find_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "tpu0", "meta", ""):
        with pytest.raises(UserError, match=f"There is no device '{name}'; choose --device auto, cpu, cuda or mps"):
            module.find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_unavailable_device_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"^--device {name} is not available on this machine.* use --device cpu"):
        Compute.choose(device=name, precision="auto", compile="off", threads=1, train_step=None)


def test_round_trip_through_config_json() -> None:
    compute = Compute(precision="bfloat16", channels_last=True, compile=True, threads=3, reason="fast, 3 ms")
    assert Compute(**json.loads(json.dumps(compute.to_dict()))) == compute


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_scaled_to_0_1(precision: str, channels_last: bool) -> None:
    compute = Compute(precision=precision, channels_last=channels_last)
    pixels = torch.randint(256, (3, 4, 6, 5), dtype=torch.uint8)
    pixels[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    x = compute.images(pixels)
    assert x.dtype == compute.dtype == {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(
        x.double(), pixels.double() / 255, rtol=2**-8 if precision == "bfloat16" else 1e-6, atol=0
    )
    assert x[0, 0, 0, :2].tolist() == [0, 1]


def compiled_without_vectors(monkeypatch: pytest.MonkeyPatch, capability: str = "AVX2") -> list[dict[str, Any]]:
    """Simulate a processor; compiled functions are not compiled, and the options of each are listed."""
    options: list[dict[str, Any]] = []

    def compile_nothing(function: Callable[..., Any], **given: Any) -> Callable[..., Any]:
        options.append(given)
        return function

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    return options


def test_on_avx2_images_are_converted_before_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    options = compiled_without_vectors(monkeypatch)
    compute = Compute(channels_last=True, compile=True)
    convert = compute.converter()
    assert options == [{"options": {"cpp.simdlen": 1}}]
    pixels = torch.randint(256, (3, 4, 6, 5), dtype=torch.uint8)
    x = convert(pixels)
    assert torch.equal(x, compute.images(pixels)), "equal to the bit"
    assert x.is_contiguous(memory_format=torch.channels_last)
    for other in (x, torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8)):
        assert convert(other) is other
    assert compute.images(x) is x, "nothing is left to do"


@pytest.mark.parametrize(
    ("capability", "changes"),
    [("AVX512", {}), ("DEFAULT", {}), ("AVX2", {"compile": False}), ("AVX2", {"precision": "bfloat16"})],
)
def test_elsewhere_compiled_code_converts_images(
    capability: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = compiled_without_vectors(monkeypatch, capability)
    pixels = torch.randint(256, (3, 4, 6, 5), dtype=torch.uint8)
    settings: dict[str, Any] = {"channels_last": True, "compile": True, **changes}
    assert Compute(**settings).converter()(pixels) is pixels
    assert options == []


def test_module_has_the_memory_format() -> None:
    layouts = []
    for channels_last in (True, False):
        conv = Compute(channels_last=channels_last).module(nn.Conv2d(4, 8, 3))
        assert isinstance(conv, nn.Conv2d)
        assert conv.weight.dtype == torch.float32
        layouts.append(conv.weight.is_contiguous(memory_format=torch.channels_last))
    assert layouts == [True, False]


def test_working_copy_shares_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    working_copy = Compute(precision="bfloat16", compile=True).working_copy(net)
    for i in (0, 3):
        assert working_copy[i].weight.dtype is working_copy[i].bias.dtype is torch.bfloat16
        assert net[i].weight.dtype is torch.float32
        assert working_copy[i].weight.requires_grad
        torch.testing.assert_close(working_copy[i].weight.float(), net[i].weight, rtol=1e-2, atol=0)
    assert working_copy[1].weight is net[1].weight
    assert working_copy[1].running_mean is net[1].running_mean
    for compute in (Compute(precision="bfloat16"), Compute(compile=True)):
        assert compute.working_copy(net) is net


def test_autocast_keeps_parameters_in_float32() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    x = torch.rand(2, 2, 6, 6)
    with Compute(precision="float32").autocast():
        exact = net(x)
    with Compute(precision="bfloat16").autocast():
        rounded = net(x)
    assert exact.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    # bfloat16 has 8 bits of mantissa: close, but not equal.
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.02)
    assert not torch.equal(rounded.float(), exact)
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_function_is_unchanged_without_compilation() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    assert Compute().function(double) is double


def test_graph_on_the_cpu_is_the_function_itself() -> None:
    calls = []
    function = Compute().graph(lambda: calls.append(1))
    assert calls == []
    function()
    assert calls == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_graph_replays_the_function() -> None:
    total = torch.zeros(3, device="cuda")
    generator = torch.Generator("cuda").manual_seed(1)

    def work() -> None:
        total.add_(torch.rand(3, generator=generator, device="cuda"))

    replay = Compute(device="cuda").graph(work, (generator,))
    total.zero_()
    totals = set()
    for _ in range(3):
        replay()
        totals.add(tuple(total.tolist()))
    assert len(totals) == 3, "each replay draws new random numbers"


def test_denormals_are_flushed_in_all_threads(tmp_path: Path) -> None:
    # In a new process, because threads inherit the setting when they start.
    code = "import torch; from zerokara.core.compute import Compute; Compute(device='cpu', threads=4).apply(); "
    # Compare the bits, because a comparison with 0.0 flushes denormals too.
    code += "print(int(torch.full((1 << 20,), 1e-38).mul_(0.5).view(torch.int32).ne(0).sum()))"
    assert start_with_torch(tmp_path, "-c", code).communicate() == ("0\n", "")
