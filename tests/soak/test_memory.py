"""Soak test of memory: its samples, its summary, and one of a few seconds in two parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.programs import Process, start
from tests.soak import memory
from tests.soak.memory import Sample, main, read_samples, seconds_so_far, summary
from zerokara.core.config import EXIT_STOPPED

SMALL = (
    *("agents.dqn", "--env", "zerokara/Catch-v0", "--num-envs", "8", "--total-steps", "1000000", "--batch-size", "16"),
    *("--replay-capacity", "1000", "--learning-starts", "200", "--width-multiplier", "0.25", "--hidden-units", "32"),
    *("--eval-every-steps", "200", "--eval-episodes", "4", "--eval-max-steps", "60", "--name", "run", "--quiet"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1", "--compile", "off"),
)


def test_values_after_ten_minutes_and_at_the_end_of_each_part() -> None:
    # Memory grows by 1 MiB a minute; a part of 20 minutes, and one of 5.
    lengths = (121, 31)
    samples = [Sample(k, 10.0 * i, 100 + i / 6, 60.0, 7 + k, 3) for k, n in enumerate(lengths) for i in range(n)]
    assert seconds_so_far(samples) == 1500
    first, second = summary(samples)
    assert (first["part"], first["minutes"], first["most_resident_mib"]) == (0, 20.0, 120.0)
    constant = {"private_mib": 60.0, "open_files": 7, "threads": 3}
    assert first["after_10_minutes"] == {"resident_mib": pytest.approx(109.58, abs=0.01), **constant}
    assert first["end"] == {"resident_mib": pytest.approx(119.58, abs=0.01), **constant}
    assert (second["after_10_minutes"], second["end"]["open_files"]) == (None, 8)


def test_an_incomplete_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert read_samples(path) == []
    line = '{"part": 0, "seconds": 5.0, "resident_mib": 1.5, "private_mib": 1.0, "open_files": 2, "threads": 3}'
    path.write_text(f"{line}\n{line[:20]}")
    assert read_samples(path) == [Sample(0, 5.0, 1.5, 1.0, 2, 3)]


def test_the_same_command_resumes_the_soak_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fork(command: Sequence[str], *, cwd: Path, **options: object) -> Process:
        return start(cwd, *command[1:])

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(Popen=fork, STDOUT=None))
    monkeypatch.setitem(memory.PROGRAMS, "agent", SMALL)
    words = ["agent", "--settle-minutes", "0.005", "--interval", "0.1", "--folder", str(tmp_path)]
    for number, minutes in enumerate(("0.03", "0.06"), 1):
        assert main([*words, "--minutes", minutes]) == 0
        content = json.loads(capsys.readouterr().out)
        assert (content["exit_code"], len(content["parts"])) == (EXIT_STOPPED, number)
        end = content["parts"][-1]["end"]
        assert 50 < end["private_mib"] < end["resident_mib"]
    assert main([*words, "--minutes", "0.03"]) == 0  # nothing is left
    assert len(json.loads(capsys.readouterr().out)["parts"]) == 2
