"""Tests of the soak test of kills: it kills in the phase that it chose, finds differences, and continues."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.soak import kills
from tests.soak.comparison import differences
from tests.soak.phases import PHASES
from zerokara.core import checkpoint


@pytest.fixture(scope="module", autouse=True)
def _short_runs() -> Iterator[None]:
    """Halve the run of DQN, which still has two evaluations and three checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kills.PROGRAMS, "dqn", (*kills.PROGRAMS["dqn"], "--total-steps", "800"))
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> kills.Reference:
    """An undisturbed run. Tests must not write to it."""
    return kills.run_undisturbed("dqn", tmp_path_factory.mktemp("soak") / "undisturbed")


def test_an_undisturbed_run_enters_every_phase(reference: kills.Reference) -> None:
    assert all(reference.durations[phase] for phase in PHASES)
    assert (reference.folder / "checkpoint-0.pt").is_file()
    assert list(reference.folder.glob("replay-*/*.bin"))


def test_every_kind_of_difference_is_found(reference: kills.Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference.folder, run)
    assert differences(reference.folder, run) == []

    state = checkpoint.load(run / "checkpoint-0.pt", "dqn")
    name, weight = next(iter(state["learner"]["network"].items()))
    weight += 1e-3
    checkpoint.save(run / "checkpoint-0.pt", {**state, "step": state["step"] + 1, "hours": 99.0}, "dqn")
    replay = next(path for path in sorted(run.glob("replay-*/*.bin")) if path.stat().st_size)
    content = bytearray(replay.read_bytes())
    content[len(content) // 2] ^= 1
    replay.write_bytes(content)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    picture = next(iter(sorted((run / "media").glob("*.png"))))
    picture.unlink()
    save_file({"weight": torch.zeros(2)}, run / "more.safetensors")
    found = differences(reference.folder, run)
    assert len(found) == 6
    for part in (f"network/{name}", "checkpoint-0.pt/step", replay.name, "metrics.jsonl", picture.name, "more.safet"):
        assert sum(part in line for line in found) == 1, part


def test_changed_weights_of_a_model_file_are_found(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0 + 1e-6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"kind": "classify"}))
        save_file({"weight": torch.tensor([value])}, tmp_path / name / "model.safetensors")
    assert differences(tmp_path / "a", tmp_path / "a") == []
    assert load_file(tmp_path / "b/model.safetensors")["weight"] != 1
    assert differences(tmp_path / "a", tmp_path / "b") == ["model.safetensors/weight has other values"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_is_killed_in_the_chosen_phase(phase: str, reference: kills.Reference, tmp_path: Path) -> None:
    """The signal is sent at the beginning of the first stretch of a phase, and the process ends by it."""
    only = kills.Reference(reference.folder, {key: [0.0] if key == phase else [] for key in PHASES})
    kill: kills.Kill | None = None
    for attempt in range(5):  # on a loaded machine the phase may end before the signal arrives
        (tmp_path / str(attempt)).mkdir()
        process, phases = kills.start_run("dqn", tmp_path / str(attempt))
        kill = kills.kill_once(process, phases, only, random.Random(1))
        assert kill is not None
        if kill.phase == phase:
            break
    assert kill is not None
    assert kill.phase == phase
    if kill.signal == "SIGKILL":
        assert kill.status == -signal.SIGKILL


def test_a_run_that_cannot_be_resumed_is_lost(
    reference: kills.Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = kills.kill_once

    def kill_and_damage(*arguments: object) -> kills.Kill | None:
        kill = original(*arguments)  # type: ignore[arg-type]
        for config in tmp_path.glob("lost/runs/run/config.json"):
            config.write_text("{")
        return kill

    monkeypatch.setattr(kills, "kill_once", kill_and_damage)
    monkeypatch.setattr(kills, "MAX_KILLS", 1)
    late = kills.Reference(reference.folder, {**reference.durations, "start-up": [], "write": [], "training": []})
    result = kills.disturb("dqn", 0, late, tmp_path / "lost")
    assert result.outcome == "lost"
    assert any("config.json is damaged" in line for line in result.details)
    assert (tmp_path / "lost").is_dir(), "the folder is kept"
    assert kills.summarize([result])["lost"] == 1
    assert kills.summarize([result])["by_program"]["dqn"]["lost"] == 1


def test_the_soak_test_resumes_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kills, "MAX_KILLS", 2)
    words = ["--programs", "dqn", "--folder", str(tmp_path)]
    summaries = []
    for number in ("1", "3"):
        with pytest.raises(SystemExit) as leaving:
            kills.main([*words, "--kills", number])
        assert leaving.value.code == 0
        summaries.append(json.loads(capsys.readouterr().out))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join([*lines, '{"program": "dq']))
    assert [row["number"] for row in map(json.loads, lines)] == list(range(len(lines)))
    assert summaries[0]["kills"] >= 1
    assert summaries[1]["kills"] >= 3
    assert summaries[1]["runs"] == len(lines) == len(kills.read_results(tmp_path / "results.jsonl"))
    assert (summaries[1]["lost"], summaries[1]["different"]) == (0, 0)
    by_phase = [count for counts in summaries[1]["by_phase"].values() for count in counts.values()]
    assert sum(by_phase) == summaries[1]["kills"]
    assert [path.name for path in (tmp_path / "dqn").iterdir()] == ["undisturbed"], "folders of equal runs are removed"
