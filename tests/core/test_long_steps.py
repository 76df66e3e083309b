"""Choice of the hardware settings where a training step is long: with a smaller batch, except for compiled code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zerokara.core import compute as module
from zerokara.core import probe
from zerokara.core.compute import Compute, TrainStep

BATCH = 2_000
OPERATION_SECONDS = 0.05


class Processor:
    """Simulated processor on which steps take most of their time in proportion to their batch.

    Args:
        seconds: of a whole step, by the description of the settings.
        fixed: seconds of each step that do not depend on the batch.
        compilation: seconds.
        bfloat16: the processor has instructions for it.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        seconds: dict[str, float],
        *,
        fixed: float = 0.0,
        compilation: float = 60.0,
        bfloat16: bool = True,
    ) -> None:
        self.now = 0.0
        self.steps: list[tuple[str, int]] = []  # settings and batch size of the steps that ended
        self.seconds, self.fixed, self.compilation = seconds, fixed, compilation
        monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(probe, "_alarm", self.alarm)
        monkeypatch.setattr(module, "has_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr(module, "compiler_missing", lambda device: "")
        self.alarm_at = float("inf")

    def alarm(self, seconds: float) -> Any:
        """Stand in for the timer that stops a compilation."""
        processor = self

        class Alarm:
            def __enter__(self) -> None:
                processor.alarm_at = processor.now + seconds

            def __exit__(self, *_: object) -> None:
                processor.alarm_at = float("inf")

        return Alarm()

    def make(self, candidate: Compute, size: int) -> Callable[[], object]:
        return partial(self.step, candidate, size)

    def step(self, candidate: Compute, size: int) -> None:
        name = candidate.settings
        if candidate.compile and (name, size) not in self.steps:
            self.advance(self.compilation)
        seconds = self.fixed + (self.seconds[name] - self.fixed) * size / BATCH
        operations = int(seconds / OPERATION_SECONDS) + 1
        for _ in range(operations):
            torch.zeros(2)
            self.advance(seconds / operations)
        self.steps.append((name, size))

    def advance(self, seconds: float) -> None:
        if self.now + seconds > self.alarm_at:
            self.now = self.alarm_at
            raise probe.TooSlowError
        self.now += seconds

    def choose(self, batch_size: int = BATCH, **changes: Any) -> Compute:
        options: dict[str, Any] = {"device": "cpu", "precision": "auto", "compile": "auto", "threads": 2}
        return Compute.choose(train_step=TrainStep(self.make, batch_size), **(options | changes))


AIRBENCH = {
    "float32 channels_last": 11.0,
    "bfloat16 channels_last": 6.0,
    "bfloat16": 8.0,
    "float32": 12.0,
    "bfloat16 channels_last compiled": 4.0,
}


def test_every_precision_is_tried_in_a_run_of_twenty_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step took longer than the limit, and 20 minutes were spent in float32."""
    processor = Processor(monkeypatch, AIRBENCH)
    compute = processor.choose(minutes=20.0)
    assert compute.reason == (
        "bfloat16 channels_last on 2 threads; a training step takes about bfloat16 channels_last 6.0 s, float32 "
        "channels_last 11.0 s, bfloat16 8.0 s, float32 12.0 s (estimated from a batch of 243 instead of 2,000); not "
        "compiled because it takes more than 2% of the run of about 1200 s"
    )
    assert (compute.precision, compute.channels_last, compute.compile) == ("bfloat16", True, False)
    assert processor.now < probe.MAX_SECONDS
    assert all(size < BATCH for _, size in processor.steps)


def test_compiled_code_is_compared_on_whole_steps_in_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = Processor(monkeypatch, AIRBENCH)
    compute = processor.choose(updates=10_000)  # 60,000 s
    assert compute.compile
    assert compute.reason == (
        "bfloat16 channels_last compiled on 2 threads; a training step took bfloat16 channels_last 6.0 s, bfloat16 "
        "channels_last compiled 4.0 s; a training step takes about float32 channels_last 11.0 s, bfloat16 8.0 s, "
        "float32 12.0 s (estimated from a batch of 243 instead of 2,000)"
    )
    assert {size for name, size in processor.steps if "compiled" in name} == {BATCH}, "compiled for the run's batch"
    slower = Processor(monkeypatch, AIRBENCH | {"bfloat16 channels_last compiled": 6.5})
    assert not slower.choose(updates=10_000).compile


def test_a_compilation_that_takes_too_long_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = Processor(monkeypatch, AIRBENCH, compilation=600.0)
    compute = processor.choose(updates=5_000)  # 30,000 s
    assert (compute.precision, compute.channels_last, compute.compile) == ("bfloat16", True, False)
    assert processor.now <= 0.02 * 30_000 + 0.1
    assert compute.reason.endswith("; not compiled because it took more than 2% of the run of about 30000 s")
    assert "stopped" not in compute.reason


def test_measured_seconds_are_not_compared_with_estimated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has started: the whole step is slower than was estimated, and so would the other layout be."""
    processor = Processor(monkeypatch, AIRBENCH)
    make = processor.make

    def slower(candidate: Compute, size: int) -> Callable[[], object]:
        if candidate.compile:
            processor.seconds = {**AIRBENCH, "bfloat16 channels_last": 9.0, candidate.settings: 9.5}
        return make(candidate, size)

    monkeypatch.setattr(processor, "make", slower)
    compute = processor.choose(updates=10_000)
    assert compute.settings == "bfloat16 channels_last"
    assert "took bfloat16 channels_last 9.0 s, bfloat16 channels_last compiled 9.5 s; " in compute.reason


def test_the_order_is_that_of_whole_steps_if_a_part_does_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = Processor(monkeypatch, AIRBENCH, fixed=0.1)
    compute = processor.choose(updates=1_000, compile="off")
    assert compute.settings == "bfloat16 channels_last"
    assert processor.now < probe.MAX_SECONDS + 1


def test_without_instructions_for_bfloat16_memory_formats_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = Processor(monkeypatch, AIRBENCH | {"float32": 9.0}, bfloat16=False)
    assert processor.choose(minutes=20.0, compile="off").settings == "float32"


def test_if_no_step_ends_in_time_the_hardware_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is a single image, which cannot be divided."""
    seconds = dict.fromkeys(AIRBENCH, BATCH * 60.0)
    for bfloat16, precision in ((True, "bfloat16"), (False, "float32")):
        processor = Processor(monkeypatch, seconds, bfloat16=bfloat16)
        compute = processor.choose(1, updates=10)
        assert (compute.precision, compute.channels_last, compute.compile) == (precision, True, False)
        assert "; stopped before the end of a step: float32 channels_last after 10." in compute.reason
        assert "; not compiled because nothing could be timed to compare it with" in compute.reason
        assert processor.steps == []


def test_if_there_is_time_for_one_candidate_the_hardware_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest batch, two images, takes so long that a second candidate is stopped."""
    seconds = dict.fromkeys(AIRBENCH, BATCH * 2.5) | {"float32 channels_last": BATCH * 2.0}
    compute = Processor(monkeypatch, seconds).choose(updates=10, compile="off")
    assert compute.settings == "bfloat16 channels_last"
    assert "a training step takes about bfloat16 channels_last 5000.0 s (estimated from a batch of 2" in compute.reason
    assert "; stopped before the end of a step: float32 channels_last after " in compute.reason
    compute = Processor(monkeypatch, seconds, bfloat16=False).choose(updates=10, compile="off")
    assert compute.settings == "float32 channels_last"


def test_a_hopeless_candidate_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = Processor(monkeypatch, {**AIRBENCH, "float32 channels_last": 0.9, "float32": 0.8, "bfloat16": 90.0})
    compute = processor.choose(compile="off")
    assert (
        "; stopped before the end of a step: bfloat16 channels_last after 2.7 s, bfloat16 after 2.7 s; "
        in compute.reason
    )
