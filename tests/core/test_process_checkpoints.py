"""Checkpoints of several processes: which ones a resumed run starts from, and the files to which they refer.

The processes are threads here; real processes are in tests/agents/test_processes.py and its neighbors.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.process_checkpoints import ProcessCheckpoints, Saved, find


class Threads(World):
    """One of several processes, each in a thread. They find the same checkpoints."""

    job: Job

    def broadcast_value(self, value: Any) -> Any:
        """Return what the first process finds."""
        return find(self.job.folder, "numbers")

    def gather(self, value: Any) -> list[Any]:
        """Wait for all processes; return their values."""
        self.job.values[self.rank] = value
        self.job.barrier.wait()
        values = list(self.job.values)
        self.job.barrier.wait()
        return values


class Job:
    """Processes of a run that is started or resumed."""

    def __init__(self, folder: Path, size: int, *, resume: bool = True) -> None:
        self.folder, self.barrier, self.values = folder, threading.Barrier(size, timeout=20), [None] * size
        self.processes = []
        for rank in range(size):
            world = Threads(rank, size)
            object.__setattr__(world, "job", self)
            self.processes.append(ProcessCheckpoints(folder, "numbers", world, resume=resume))
        self.saved = [process.saved for process in self.processes]  # all processes look before any goes on

    def save(self, step: int, *ranks: int) -> None:
        """Save the state of some processes, or of all of them."""
        for rank in ranks or range(len(self.processes)):
            process = self.processes[rank]
            state = {"updates": step, "rank": rank, "run": process.begin_save(process.path)}
            checkpoint.save(process.path, state, "numbers")

    def restore(self, path: Path | None = None) -> tuple[list[Any], str | None]:
        """Restore each process from its checkpoint, or all from `path`. Returns what they load, and the message."""

        def restore(process: ProcessCheckpoints) -> tuple[list[Any], str | None]:
            loaded: list[Any] = []

            def load_processes(states: dict[int, dict[str, Any]]) -> str:
                loaded.append({rank: state["updates"] for rank, state in states.items()})
                return "something is new"

            restored = process.restore(
                path or process.path, lambda state: loaded.append((state["rank"], state["updates"])), load_processes
            )
            return loaded, None if restored is None else restored[1]

        with ThreadPoolExecutor(len(self.processes)) as pool:
            results = list(pool.map(restore, self.processes))
        (message,) = {message for _, message in results}
        return [each for loaded, _ in results for each in loaded], message


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def saved_by(saved: Saved | None) -> tuple[int, int, dict[int, str]]:
    assert saved is not None
    return saved.step, saved.size, {rank: path.name for rank, path in saved.paths.items()}


def test_one_process_keeps_one_checkpoint_without_a_record_of_its_number(tmp_path: Path) -> None:
    job = Job(tmp_path, 1, resume=False)
    for step in (0, 10, 20):
        job.save(step)
    assert names(tmp_path) == {"checkpoint-0.pt"}
    assert checkpoint.load(tmp_path / "checkpoint-0.pt", "numbers")["run"] == {}
    assert Job(tmp_path, 1).restore() == ([(0, 20)], "")
    assert job.processes[0].files("replay") == tmp_path / "replay-0"


def test_several_processes_keep_two_checkpoints(tmp_path: Path) -> None:
    job = Job(tmp_path, 2, resume=False)
    for step in (0, 10, 20):
        job.save(step)
    assert names(tmp_path) == {f"checkpoint-{rank}{end}.pt" for rank in (0, 1) for end in ("", "-previous")}
    assert checkpoint.load(tmp_path / "checkpoint-1-previous.pt", "numbers")["updates"] == 10
    assert Job(tmp_path, 2).restore() == ([(0, 20), (1, 20)], "")


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_killed_while_it_saved_resumes_from_what_all_have(tmp_path: Path, ahead: int) -> None:
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    job.save(20)
    job.save(30, ahead)
    for _ in range(3):  # killed at the same place again and again
        job = Job(tmp_path, 2)
        assert saved_by(job.saved[0])[2][ahead] == f"checkpoint-{ahead}-previous.pt"
        message = "resumed at step 20, the last one that every process has saved"
        assert job.restore() == ([(0, 20), (1, 20)], message)
        # The others wait for the process that has not saved, so the files are those of step 20.
        assert job.processes[0].files("replay") == tmp_path / "replay-0"
        job.save(30, ahead)
    job = Job(tmp_path, 2)
    job.restore()
    job.save(30)
    job.save(40)
    assert Job(tmp_path, 2).restore() == ([(0, 40), (1, 40)], "")


def test_a_run_killed_between_keeping_and_writing_has_lost_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    for process in job.processes:
        process.begin_save(process.path)
    job = Job(tmp_path, 2)
    assert job.restore() == ([(0, 10), (1, 10)], "")
    assert job.processes[1].files("replay") == tmp_path / "replay-1"
    job.save(20)  # both names of each process belong to one file now
    assert names(tmp_path) == {f"checkpoint-{rank}{end}.pt" for rank in (0, 1) for end in ("", "-previous")}
    assert Job(tmp_path, 2).restore() == ([(0, 20), (1, 20)], "")


def test_without_hard_links_the_checkpoint_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths: Path) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    job.save(20)
    assert checkpoint.load(tmp_path / "checkpoint-0-previous.pt", "numbers")["updates"] == 10


def test_a_damaged_checkpoint_means_the_one_before_with_empty_files(tmp_path: Path) -> None:
    """All processes went on after the newer checkpoint and may have overwritten what the older one refers to."""
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    job.save(20)
    (tmp_path / "checkpoint-1.pt").write_bytes(b"damaged")
    replay = tmp_path / "replay-1-1"
    for _ in range(2):
        job = Job(tmp_path, 2)
        assert job.processes[1].files("replay") == replay
        assert not replay.exists()
        replay.mkdir()  # killed before the first save: it is empty again
    loaded, message = job.restore()
    assert loaded == [(0, 10), (1, 10)]
    assert message == "resumed at step 10, the last one that every process has saved; damaged: checkpoint-1.pt"
    job.save(20)
    assert Job(tmp_path, 2).processes[1].files("replay") == replay


def test_a_process_without_any_checkpoint_restores_those_of_the_others(tmp_path: Path) -> None:
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    job.save(20)
    for path in tmp_path.glob("checkpoint-1*"):
        path.unlink()
    message = "resumed at step 20; without a checkpoint of process 1: something is new"
    assert Job(tmp_path, 2).restore() == ([{0: 20}, {0: 20}], message)


def test_without_the_checkpoint_of_the_first_process_the_run_stops(tmp_path: Path) -> None:
    """It alone has the metrics and the best validation; a new start would delete the metrics."""
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    job.save(20)
    for path in tmp_path.glob("checkpoint-0*"):
        path.unlink()
    with pytest.raises(UserError, match=r"checkpoint-0\.pt is missing or damaged, and .*replace it .*--name"):
        Job(tmp_path, 2).restore()


def test_a_run_killed_in_its_very_first_save_begins_again(tmp_path: Path) -> None:
    job = Job(tmp_path, 2, resume=False)
    job.save(0, 1)
    job = Job(tmp_path, 2)
    assert job.saved == [None, None]
    assert job.restore() == ([], None)


@pytest.mark.parametrize("saving", [0, 1])
def test_a_first_save_before_the_first_step_that_is_not_complete_is_no_checkpoint(tmp_path: Path, saving: int) -> None:
    job = Job(tmp_path, 2, resume=False)
    job.save(0, saving)
    assert Job(tmp_path, 2).restore() == ([], None)
    job.save(0, 1 - saving)
    job.save(10, saving)
    assert Job(tmp_path, 2).restore()[0] == [(0, 0), (1, 0)], "all have this one"


def test_damage_of_all_checkpoints_is_reported(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"checkpoint-{rank}.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"checkpoint-0\.pt is damaged"):
        Job(tmp_path, 2).restore()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2), (2, 3), (1, 3)])
def test_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    job = Job(tmp_path, before, resume=False)
    job.save(10)
    job.save(20)
    for process in job.processes:
        process.files("replay").mkdir()
    folders = [tmp_path / f"replay-{rank}-1" for rank in range(after)]
    for _ in range(2):  # killed before the first save
        job = Job(tmp_path, after)
        loaded, message = job.restore()
        assert loaded == [dict.fromkeys(range(before), 20)] * after
        one, other = (f"{number} process{'es' * (number > 1)}" for number in (after, before))
        assert message == f"resumed at step 20 with {one} from checkpoints of {other}: something is new"
        assert [process.files("replay") for process in job.processes] == folders
        assert all((tmp_path / f"replay-{rank}").exists() for rank in range(before)), "their checkpoints are needed"
    for folder in folders:
        folder.mkdir()
    job.save(30, 0)
    if after > 1:  # only one has saved: the checkpoints of the other processes count
        assert saved_by(find(tmp_path, "numbers"))[:2] == (20, before)
    job = Job(tmp_path, after)
    job.restore()
    for process in job.processes:
        process.files("replay").mkdir(exist_ok=True)
    job.save(30)
    again = Job(tmp_path, after)
    assert again.restore() == ([(rank, 30) for rank in range(after)], "")
    assert [process.files("replay") for process in again.processes] == [
        process.files("replay") for process in job.processes
    ]
    job.save(40)
    expected = {process.path.name for process in job.processes} | {
        process.files("replay").name for process in job.processes
    }
    expected |= {f"checkpoint-{rank}-previous.pt" for rank in range(after) if after > 1}
    assert names(tmp_path) == expected, "files of the other processes are removed after the second save"
    # And back again, from the checkpoints that record their number of processes.
    loaded, _ = Job(tmp_path, before).restore()
    assert loaded == [dict.fromkeys(range(after), 40)] * before


@pytest.mark.parametrize(("steps", "complete"), [((20, 20), True), ((20, 10), False), ((10, 20), False)])
def test_checkpoints_of_older_releases_record_no_numbers(
    tmp_path: Path, steps: tuple[int, int], complete: bool
) -> None:
    for rank, step in enumerate(steps):
        state = {"updates": step, "rank": rank, "run": {"metrics_bytes": 0, "last_step": -1}}
        checkpoint.save(tmp_path / f"checkpoint-{rank}.pt", state, "numbers")
    saved = find(tmp_path, "numbers")
    files = {rank: f"checkpoint-{rank}.pt" for rank in range(2 if complete else 1)}
    assert saved_by(saved) == (steps[0], 2, files)


@pytest.mark.parametrize(
    "state", [{"step": 7, "updates": 3}, {"updates": 7}, {"learner": {"updates": 7}}, {"learner": {}, "step": 7}]
)
def test_the_step_is_found_in_the_checkpoints_of_all_programs(tmp_path: Path, state: dict[str, Any]) -> None:
    checkpoint.save(tmp_path / "checkpoint-0.pt", state, "numbers")
    assert saved_by(find(tmp_path, "numbers"))[0] == 7


def test_another_file_is_restored_in_every_process_as_it_is(tmp_path: Path) -> None:
    job = Job(tmp_path, 2, resume=False)
    job.save(10)
    best = tmp_path / "best.pt"
    assert job.processes[0].begin_save(best) == {}
    checkpoint.save(best, {"updates": 5, "rank": 0, "run": {}}, "numbers")
    assert Job(tmp_path, 2).restore(best) == ([(0, 5), (0, 5)], "")


def test_files_of_other_names_are_ignored(tmp_path: Path) -> None:
    for name in ("checkpoint-0-old.pt", "checkpoint-x.pt", "checkpoint-0.pt.bak", "checkpoint-best.pt"):
        (tmp_path / name).write_bytes(b"")
    assert find(tmp_path, "numbers") is None
