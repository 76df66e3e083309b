"""Hardware settings of a resumed run: kept where possible, changed by the machine or the command line, and reported."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from zerokara.core import resumed_compute as module
from zerokara.core.choices import Switch
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.resumed_compute import compute_on_resume, options_on_resume
from zerokara.core.run import Run
from zerokara.core.run_config import configure
from zerokara.core.run_options import RunOptions


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Config of the tests."""

    RENAMED: ClassVar = {"cores": "threads"}

    name: str = "a"
    """Name."""
    quiet: bool = True
    """Quiet."""
    compile: Switch = "auto"
    """Compilation."""


SAVED = Compute(precision="bfloat16", channels_last=False, threads=2, reason="measured")
CHOSEN = Compute(threads=3, reason="measured again")


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores with instructions for bfloat16 and a compiler, no GPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    machine(monkeypatch)


def machine(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool = True, compiler: str = "", gpus: int = 0) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr(module, "compiler_missing", lambda device: compiler)
    if gpus:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def resume(
    saved: Compute, config: Config | None = None, started: Config | None = None, processes: int = 1, before: int = 0
) -> Any:
    started = started or Config()
    return compute_on_resume(saved, config or started, started, processes, lambda: CHOSEN, before or processes)


@pytest.mark.parametrize(
    ("saved", "started"),
    [
        (SAVED, Config()),
        (replace(SAVED, compile=True), Config()),
        (replace(SAVED, compile=True), Config(compile="on", precision="bfloat16", threads=2, device="cpu")),
        (replace(SAVED, threads=4), Config()),
        (replace(SAVED, threads=99), Config(threads=99)),
        (replace(SAVED, precision="float32"), Config(compile="off")),
    ],
)
def test_settings_that_the_machine_has_are_kept(saved: Compute, started: Config) -> None:
    assert resume(saved, started=started) == (saved, [])


def test_another_device_is_used_if_that_of_the_run_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = replace(SAVED, device="cuda")
    assert resume(saved) == (CHOSEN, ["cuda is not available here"])
    assert resume(replace(SAVED, device="cuda:3")) == (CHOSEN, ["cuda:3 is not available here"])
    machine(monkeypatch, gpus=1)
    assert resume(saved) == (saved, [])
    assert resume(SAVED) == (SAVED, []), "a GPU that the run did not use does not change it"


def test_precision_is_chosen_again_if_the_processor_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, bfloat16=False)
    assert resume(SAVED) == (CHOSEN, ["the processor only emulates bfloat16"])
    asked = Config(precision="bfloat16")
    assert resume(SAVED, started=asked) == (SAVED, []), "it was asked for"


def test_without_a_compiler_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, compiler="there is no C++ compiler")
    new, reasons = resume(replace(SAVED, compile=True))
    assert new == replace(SAVED, reason="bfloat16 on 2 threads")
    assert reasons == ["there is no C++ compiler"]
    assert resume(SAVED) == (SAVED, [])


def test_threads_fit_the_cores() -> None:
    new, reasons = resume(replace(SAVED, threads=5))
    assert new == replace(SAVED, threads=4, reason="bfloat16 on 4 threads")
    assert reasons == ["each process had 5 threads, and has 4 cores now"]
    assert resume(SAVED, processes=2) == (SAVED, [])
    assert resume(replace(SAVED, threads=3), processes=2)[0].threads == 2
    assert resume(replace(SAVED, threads=1), processes=20)[1] == []


def test_another_number_of_processes_divides_the_cores_again() -> None:
    new, reasons = resume(SAVED, processes=1, before=2)
    assert new == replace(SAVED, threads=4, reason="bfloat16 on 4 threads")
    assert reasons == ["each process had 2 threads, and has 4 cores now"]
    assert resume(replace(SAVED, threads=4), processes=4, before=1)[0].threads == 1
    assert resume(SAVED, processes=2, before=4) == (SAVED, []), "the number of threads is already the right one"
    asked = Config(threads=2)
    assert resume(SAVED, started=asked, processes=1, before=2) == (SAVED, []), "it was asked for"


@pytest.mark.parametrize(
    ("change", "expected", "reason"),
    [
        ({"threads": 3}, replace(SAVED, threads=3, reason="bfloat16 on 3 threads"), "--threads 3 was given"),
        ({"compile": "on"}, CHOSEN, "--compile on was given"),
        ({"precision": "float32"}, CHOSEN, "--precision float32 was given"),
        ({"device": "mps"}, CHOSEN, "--device mps was given"),
        ({"precision": "bfloat16"}, SAVED, ""),
        ({"threads": 2}, SAVED, ""),
        ({"device": "cpu"}, SAVED, ""),
        ({"compile": "off"}, SAVED, ""),
    ],
)
def test_the_command_line_changes_settings(change: dict[str, Any], expected: Compute, reason: str) -> None:
    assert resume(SAVED, Config(**change)) == (expected, [reason] if reason else [])


def test_compilation_is_switched_off_without_a_measurement() -> None:
    saved = replace(SAVED, compile=True)
    assert resume(saved, Config(compile="off"))[0] == replace(SAVED, reason="bfloat16 on 2 threads")


def test_auto_in_place_of_a_fixed_setting_is_measured() -> None:
    started = Config(precision="bfloat16", compile="off")
    assert resume(SAVED, Config(compile="off"), started) == (CHOSEN, ["--precision auto was given"])
    assert resume(SAVED, Config(precision="bfloat16"), started) == (CHOSEN, ["--compile auto was given"])


def test_the_same_result_of_a_measurement_is_no_change() -> None:
    saved = replace(CHOSEN, reason="before")
    assert resume(saved, Config(), Config(precision="float32")) == (saved, [])


# ---- options of the resumed config


def options(config: Config, given: str = "", saved: Compute | None = SAVED) -> dict[str, Any]:
    return options_on_resume(config, given.split(), None if saved is None else saved.to_dict())


def test_settings_of_an_earlier_resume_stay() -> None:
    """The config says how the run was started; the compute settings say how it was last trained."""
    fixed = Config(device="cpu", precision="float32", compile="on", threads=1)
    assert options(fixed) == {"precision": "bfloat16", "compile": "off", "threads": 2}
    assert options(Config()) == {}
    assert options(Config(device="cuda")) == {"device": "cpu"}


def test_other_settings_stay_if_one_is_changed() -> None:
    assert options(Config(threads=1), "threads") == {"precision": "bfloat16", "compile": "off"}
    assert options(Config(precision="float32"), "precision") == {"compile": "off"}
    assert options(Config(threads=2), "threads") == {}, "no change"


def test_on_another_device_everything_is_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=1)
    assert options(Config(device="cuda"), "device") == {}
    assert options(Config(device="cuda", precision="float32"), "device") == {"precision": "bfloat16"}
    assert options(Config(device="cuda"), "device precision") == {}


def test_a_device_that_is_missing_becomes_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = replace(SAVED, device="cuda")
    assert options(Config(device="cuda"), saved=on_gpu) == {"device": "auto"}
    assert options(Config(), saved=on_gpu) == {}
    assert options(Config(device="cuda"), saved=None) == {"device": "auto"}
    assert options(Config(), saved=None) == {}
    with pytest.raises(UserError, match=r"^--device cuda is not available"):
        options(Config(device="cuda"), "device", saved=on_gpu)
    machine(monkeypatch, gpus=1)
    assert options(Config(), saved=on_gpu) == {}
    assert options(Config()) == {"device": "cpu"}, "auto is another device here"


def test_compilation_that_was_asked_for_is_not_possible_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, compiler="there is no C++ compiler")
    compiled = replace(SAVED, compile=True)
    assert options(Config(compile="on"), saved=compiled) == {"compile": "auto"}
    assert options(Config(compile="on"), saved=replace(compiled, device="cuda")) == {"compile": "auto"}
    assert options(Config(compile="on"), "compile", saved=SAVED) == {"precision": "bfloat16"}


# ---- through config.json


def read(*words: str) -> Config:
    return configure(Config, {}, list(words), "", kind="k", name_fields=())


def start(config: Config, compute: Compute) -> None:
    with Run(config, kind="k", name="a", resume=False, quiet=True) as run:
        run.compute(lambda: compute, 1)


def resumed(*words: str) -> Compute:
    config = read("--resume", *words)
    with Run(config, kind="k", name="a", resume=True, quiet=True) as run:
        return run.compute(lambda: CHOSEN, 1)


def test_a_change_is_reported_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    start(read(), SAVED)
    assert resumed() == SAVED
    assert capsys.readouterr().err == ""
    assert resumed("--cores", "1").threads == 1
    errors = capsys.readouterr().err
    assert "hardware settings changed (--threads 1 was given): from here on, the results are not bit-" in errors
    content = json.loads(Path("runs/a/config.json").read_text("utf-8"))
    assert content["extra"]["compute"]["threads"] == 1
    assert content["config"]["threads"] == 0, "how the run was started"
    assert resumed().threads == 1, "without a flag, the last settings"
    assert capsys.readouterr().err == ""
    assert resumed("--precision", "float32") == CHOSEN
    assert resumed("--precision", "float32") == CHOSEN
    with pytest.raises(UserError, match="cannot be resumed with 2"):
        read("--resume", "--seed", "2")


def test_a_run_of_a_gpu_resumes_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    start(read(), SAVED)
    path = Path("runs/a/config.json")
    content = json.loads(path.read_text("utf-8"))
    content["config"]["device"] = content["extra"]["compute"]["device"] = "cuda"
    path.write_text(json.dumps(content), "utf-8")
    assert read("--resume").device == "auto"
    assert resumed() == CHOSEN
    assert "hardware settings changed (cuda is not available here)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^--device cuda is not available on this machine"):
        read("--resume", "--device", "cuda")
