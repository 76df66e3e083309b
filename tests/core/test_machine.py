"""Capabilities of the machine: instructions for bfloat16; class of the processor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zerokara.core import machine
from zerokara.core.machine import describe_machine, has_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True}, False),
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bw": True, "avx512_vnni": True}, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "amx_tile": True, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
    ],
)
def test_processors(capabilities: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bfloat16(torch.device("cpu")) is expected


def test_the_names_are_those_of_pytorch() -> None:
    """On x86 two of them must exist, whatever their value; the names of other architectures are not known here."""
    capabilities = torch.cpu.get_capabilities()
    names = {"x86_64": {"amx_bf16", "avx512_bf16"}}.get(capabilities["architecture"], set())
    assert names | {"architecture"} <= capabilities.keys()


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_gpus(major: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def properties(device: torch.device) -> SimpleNamespace:
        asked.append(device)
        return SimpleNamespace(major=major)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert has_bfloat16(torch.device("cuda:1")) is expected
    assert asked == [torch.device("cuda:1")]
    assert has_bfloat16(torch.device("mps"))


def test_class_of_the_processor_is_saved_with_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_model", lambda: "Intel(R) Xeon(R) CPU @ 2.20GHz")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "amx_bf16": True, "avx2": True})
    assert describe_machine()["processor"] == "Intel Xeon, AMX"
