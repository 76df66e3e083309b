"""Tests of vision.devices: settings, interleaved rounds, speed-ups, files, and timing in a subprocess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.programs import start
from zerokara.core.config import UserError
from zerokara.core.run import Run
from zerokara.vision import devices
from zerokara.vision.devices import BASE, Options, Setting, settings, speed_ups, time_all


def test_settings_combine_cores_gpu_and_precisions() -> None:
    assert [str(one) for one in settings((), 2, gpu=False)] == [
        "cpu:1:float32",
        "cpu:1:bfloat16",
        "cpu:2:float32",
        "cpu:2:bfloat16",
    ]
    assert [one.threads for one in settings((), 6, gpu=False)[::2]] == [1, 2, 4, 6]
    assert [one.threads for one in settings((3,), 6, gpu=False)[::2]] == [
        1,
        3,
    ]  # 1 is always included
    assert [str(one) for one in settings((1,), 1, gpu=True)][2:] == ["cuda:1:float32", "cuda:1:bfloat16"]
    with pytest.raises(UserError, match="--cores cannot be 3: this process may use 2"):
        settings((3,), 2, gpu=False)


def test_a_setting_can_be_formatted_and_parsed() -> None:
    assert Setting.read("cpu:2:bfloat16") == Setting("cpu", 2, "bfloat16")
    assert Setting.read(str(BASE)) == BASE
    assert (BASE.label, Setting("cpu", 4, "bfloat16").label) == ("1 core, float32", "4 cores, bfloat16")


@pytest.mark.parametrize("text", ["cpu", "cpu:0:float32", "cpu:2:float16x", "tpu:1:float32", "cpu:two:float32"])
def test_an_invalid_setting_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match=f"--only cannot be '{text}': it must be device:threads:precision"):
        devices.main(["--only", text])


def test_speed_ups_against_hand_computed_values() -> None:
    """The medians are 200 and 500. Outliers are reported but do not change the speed-up."""
    two = Setting("cpu", 2, "float32")
    results = speed_ups({BASE: [100.0, 200.0, 210.0], two: [500.0, 90.0, 600.0]})
    assert results[BASE] == {"images_per_s": 200, "least": 100, "most": 210, "speed_up": 1}
    assert results[two] == {"images_per_s": 500, "least": 90, "most": 600, "speed_up": 2.5}


def test_rounds_are_interleaved_in_alternating_order(tmp_path: Path) -> None:
    order = []
    all_settings = settings((), 2, gpu=False)

    def measure(options: Options, setting: Setting) -> float:
        order.append(all_settings.index(setting))
        return float(len(order))

    with Run(Options(), kind="devices", name="d", resume=False, quiet=True, root=tmp_path) as run:
        rates = time_all(Options(rounds=2), all_settings, measure, run)
    assert order == [0, 1, 2, 3, 3, 2, 1, 0]
    assert rates[all_settings[0]] == [1, 8]


def test_figure_table_and_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "time_in_subprocess", lambda options, setting: 100.0 * setting.threads)
    machine: dict[str, Any] = {"cores_usable": 2}
    monkeypatch.setattr(devices, "describe_machine", lambda: machine)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    devices.main(["--rounds", "1", "--name", "d"])
    content = json.loads(Path("runs/d/devices.json").read_text())
    assert content["settings"]["cpu:2:float32"]["speed_up"] == 2
    assert content["base"] == "cpu:1:float32"
    assert "2 cores, bfloat16" in capsys.readouterr().out
    with Image.open("runs/d/devices.png") as picture:
        assert picture.width > 1000
    with pytest.raises(UserError, match="already holds a run: remove it, or choose another --name"):
        devices.main(["--rounds", "1", "--name", "d"])


def test_only_prints_json(tmp_path: Path) -> None:
    words = ["--only", "cpu:1:float32", "--updates", "1", "--batch-size", "10"]
    process = start(tmp_path, "-m", "vision.devices", *words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["images_per_s"] > 0


def test_the_error_of_a_subprocess_is_reported() -> None:
    options = Options(data="mnst", updates=1)
    with pytest.raises(UserError, match="cpu:1:float32 could not be timed: There is no data set 'mnst'"):
        devices.time_in_subprocess(options, BASE)
