"""Tests of agents that several processes train: resuming with another number of processes, and after lost files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.programs import metrics, run_processes
from zerokara.core import checkpoint

COMMON = (
    *("--env", "zerokara/Catch-v0", "--num-envs", "12", "--no-capture-video", "--eval-every-steps", "0"),
    *("--width-multiplier", "0.25", "--hidden-units", "32", "--log-every-steps", "240"),
    *("--checkpoint-every-steps", "240", "--device", "cpu", "--precision", "float32", "--compile", "off"),
    *("--threads", "1", "--name", "run"),
)
DQN = (
    *("-m", "agents.dqn", *COMMON, "--batch-size", "24", "--train-every-steps", "24", "--learning-starts", "240"),
    *("--replay-capacity", "1200", "--target-update-steps", "240", "--noisy", "--per-alpha", "0.5"),
    "--no-delete-replay",
)
PQN = ("-m", "agents.pqn", *COMMON, "--rollout-steps", "5", "--num-minibatches", "2")
STEPS = {"dqn": 960, "pqn": 960}
ANEW = "the environments start new episodes, and random numbers are drawn anew"

Copy = Callable[[str, int], Path]


def states(run: Path, kind: str, size: int) -> list[dict[str, Any]]:
    """Read the checkpoints of all processes, and check that they have the same weights, bit for bit.

    Noisy layers hold the last noise, which each process draws for itself.
    """
    loaded = [checkpoint.load(run / f"checkpoint-{rank}.pt", kind) for rank in range(size)]
    assert len({state["step"] for state in loaded}) == 1
    for state in loaded[1:]:
        for name, weight in loaded[0]["learner"]["network"].items():
            same = torch.equal(weight, state["learner"]["network"][name])
            assert same or ".noise_" in name, f"{name} differs between the processes"
    return loaded


def optimizer_steps(state: dict[str, Any]) -> int:
    return int(state["learner"]["optimizer"]["state"][0]["step"])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Return a function that copies a run of an agent and a number of processes into a new folder."""
    finished: dict[tuple[str, int], Path] = {}

    def train_once(kind: str, size: int) -> Path:
        if (kind, size) not in finished:
            folder = finished[kind, size] = tmp_path_factory.mktemp(f"{kind}-{size}")
            words = DQN if kind == "dqn" else PQN
            out, _ = run_processes(folder, size, *words, "--total-steps", str(STEPS[kind]))
            assert f"step {STEPS[kind]:,}/{STEPS[kind]:,}" in out
            states(folder / "runs" / "run", kind, size)
        target = tmp_path_factory.mktemp("resumed")
        shutil.copytree(finished[kind, size] / "runs", target / "runs")
        return target

    return train_once


def resume(folder: Path, kind: str, size: int, total_steps: int) -> tuple[str, str]:
    """Resume the run with a number of processes; return stdout and stderr."""
    words = ("-m", f"agents.{kind}", "--name", "run", "--resume", "--total-steps", str(total_steps))
    return run_processes(folder, size, *words)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (1, 3), (3, 2), (2, 3)])
def test_dqn_resumes_with_another_number_of_processes(copy: Copy, before: int, after: int) -> None:
    folder = copy("dqn", before)
    run = folder / "runs" / "run"
    old = states(run, "dqn", before)
    stored = sum(int(state["replay"]["head"].sum()) for state in old)
    out, err = resume(folder, "dqn", after, 1440)
    one, other = (f"{number} process{'es' * (number > 1)}" for number in (after, before))
    assert err.strip() == f"warning: resumed at step 960 with {one} from checkpoints of {other}: {ANEW}"
    assert f"replay buffer: {stored:,} of 1,200 transitions" in out, "all transitions are there"
    new = states(run, "dqn", after)
    assert new[0]["step"] == 1440
    assert [len(state["replay"]["head"]) for state in new] == [12 // after] * after
    assert new[0]["updates"] == old[0]["updates"] + 20
    assert optimizer_steps(new[0]) == optimizer_steps(old[0]) + 20, "no update was skipped"
    assert {path.name for path in run.glob("replay-*")} == {f"replay-{rank}-1" for rank in range(after)}
    assert [line["step"] for line in metrics(run) if "train/epsilon" in line] == list(range(240, 1441, 240))
    # Resumed once more with the same number of processes, nothing is new.
    _, err = resume(folder, "dqn", after, 1680)
    assert err == ""
    assert states(run, "dqn", after)[0]["step"] == 1680


def test_pqn_resumes_with_another_number_of_processes(copy: Copy) -> None:
    folder = copy("pqn", 2)
    _, err = resume(folder, "pqn", 1, 1200)
    assert err.strip() == f"warning: resumed at step 960 with 1 process from checkpoints of 2 processes: {ANEW}"
    _, err = resume(folder, "pqn", 3, 1440)
    assert err.strip() == f"warning: resumed at step 1,200 with 3 processes from checkpoints of 1 process: {ANEW}"
    run = folder / "runs" / "run"
    assert states(run, "pqn", 3)[0]["step"] == 1440
    assert [line["step"] for line in metrics(run) if "train/epsilon" in line] == list(range(240, 1441, 240))


def test_pqn_averages_weights_once_a_rollout(tmp_path: Path) -> None:
    """Each process does its own updates, with its own state of the optimizer, and all have the same weights after."""
    words = (*PQN, "--total-steps", "480", "--average-every", "rollout")
    run_processes(tmp_path, 2, *words)
    one, other = states(tmp_path / "runs" / "run", "pqn", 2)
    momenta = [state["learner"]["optimizer"]["state"][0]["exp_avg"] for state in (one, other)]
    assert not torch.equal(*momenta)
    assert one["updates"] == other["updates"] == 480 // (12 * 5) * 2 * 2
    rates = [state["learner"]["optimizer"]["param_groups"][0]["lr"] for state in (one, other)]
    logged = [row["train/learning_rate"] for row in metrics(tmp_path / "runs" / "run") if "train/learning_rate" in row]
    assert set(rates) == set(logged) == {2.5e-4 * 2**0.5}
    resume(tmp_path, "pqn", 2, 720)
    assert states(tmp_path / "runs" / "run", "pqn", 2)[0]["step"] == 720


def test_processes_share_the_episodes_of_an_evaluation(tmp_path: Path) -> None:
    evaluation = ("--eval-every-steps", "480", "--eval-episodes", "5", "--total-steps", "960")
    out, _ = run_processes(tmp_path, 2, *PQN, *evaluation)
    assert out.count("over 5 episodes at epsilon 0.0") == 2
    results = [line["eval/return"] for line in metrics(tmp_path / "runs" / "run") if "eval/return" in line]
    assert len(results) == 2
    loaded = states(tmp_path / "runs" / "run", "pqn", 2)
    assert [state["last_score"] for state in loaded] == [results[-1]] * 2


@pytest.mark.parametrize("kind", ["dqn", "pqn"])
def test_a_checkpoint_that_another_process_lacks_is_not_used(copy: Copy, kind: str) -> None:
    """Killed when only the first process had saved: the resumed run ends as without the kill."""
    folder, undisturbed = copy(kind, 2), copy(kind, 2)
    resume(undisturbed, kind, 2, 1200)
    run = folder / "runs" / "run"
    before = states(run, kind, 2)
    shutil.copytree(run, folder / "before")
    resume(folder, kind, 2, 1200)
    for path in (folder / "before").glob("checkpoint-1*"):
        shutil.copy(path, run)  # as if the second process had not saved
    shutil.copy(folder / "before" / "checkpoint-0.pt", run / "checkpoint-0-previous.pt")
    out, err = resume(folder, kind, 2, 1200)
    assert err.strip() == "warning: resumed at step 960, the last one that every process has saved"
    if kind == "dqn":
        stored = sum(int(state["replay"]["head"].sum()) for state in before)
        assert f"replay buffer: {stored:,} of 1,200 transitions" in out
    for ours, theirs in zip(states(run, kind, 2), states(undisturbed / "runs" / "run", kind, 2), strict=True):
        for name, weight in ours["learner"]["network"].items():
            assert torch.equal(weight, theirs["learner"]["network"][name])
    assert metrics(run) == metrics(undisturbed / "runs" / "run")


def test_a_missing_checkpoint_does_not_stop_the_others(copy: Copy) -> None:
    folder = copy("dqn", 2)
    run = folder / "runs" / "run"
    (run / "checkpoint-1.pt").unlink()
    out, err = resume(folder, "dqn", 2, 1200)
    assert err.strip().startswith("warning: resumed at step ")
    assert err.strip().endswith(", the last one that every process has saved")
    assert "the files in runs/run/replay-0 were written after the checkpoint; the buffer is empty" in out
    assert states(run, "dqn", 2)[0]["step"] == 1200


def test_the_newest_checkpoint_of_the_first_process_is_used_if_another_has_none(copy: Copy) -> None:
    folder = copy("dqn", 2)
    run = folder / "runs" / "run"
    old = states(run, "dqn", 2)
    for path in run.glob("checkpoint-1*"):
        path.unlink()
    out, err = resume(folder, "dqn", 2, 1200)
    assert err.strip() == f"warning: resumed at step 960; without a checkpoint of process 1: {ANEW}"
    assert states(run, "dqn", 2)[0]["step"] == 1200
    stored = int(old[0]["replay"]["head"].sum())
    assert f"replay buffer: {stored:,} of 1,200 transitions" in out, "those of the first process"


def test_lost_replay_files_of_one_process_do_not_stop_the_others(copy: Copy) -> None:
    """All processes wait until the empty buffer is filled again: an update needs the gradients of all."""
    folder = copy("dqn", 2)
    run = folder / "runs" / "run"
    old = states(run, "dqn", 2)
    (run / "replay-1" / "frame.bin").unlink()
    resume(folder, "dqn", 2, 1680)
    new = states(run, "dqn", 2)
    assert [state["updates"] - old[0]["updates"] for state in new] == [30] * 2
    done = [optimizer_steps(state) - optimizer_steps(old[0]) for state in new]
    assert done[0] == done[1]
    assert 0 < done[0] < 30, "those until the buffer is filled are skipped"
    heads = [int(state["replay"]["head"].sum()) for state in new]
    assert heads[1] < heads[0] // 2


def test_errors_of_one_process_end_all_with_one_sentence(copy: Copy) -> None:
    folder = copy("pqn", 2)
    run = folder / "runs" / "run"
    for path in run.glob("checkpoint-0*"):
        path.unlink()
    words = ("-m", "agents.pqn", "--name", "run", "--resume", "--total-steps", "1200")
    _, err = run_processes(folder, 2, *words, status=2)
    assert err.count("error: ") == 1
    assert "checkpoint-0.pt is missing or damaged" in err
    _, err = run_processes(folder, 2, *words[:2], "--name", "other", "--resume", status=2)
    assert err.count("There is no run in runs/other") >= 1
