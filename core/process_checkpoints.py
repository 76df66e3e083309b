"""Checkpoints of a run's processes: which of them belong together, and what a resumed run starts from.

Process R writes checkpoint-R.pt. Under torchrun it keeps the one before as checkpoint-R-previous.pt, because a run may
be killed when some of its processes have saved and others have not: all of them then resume from the one before.
`Run` (core/run.py) uses this module.

A checkpoint may refer to files of its process, such as those of the replay buffer. They have a generation: a resumed
run whose checkpoints do not fit them (another number of processes) begins a new generation, in folders of other names,
and the old files stay until there are checkpoints that refer to the new ones.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from zerokara.core import checkpoint
from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.distributed import World

FILE = re.compile(r"checkpoint-(\d+)(-previous)?\.pt")

# Called with the states of all processes that saved, by rank, the first one among them, in which this process has no
# checkpoint or another share of the work. Restores what it can and returns what is not restored exactly.
LoadProcesses = Callable[[dict[int, dict[str, Any]]], str]


def current_path(folder: Path, rank: int) -> Path:
    """Return the path of a process's newest checkpoint."""
    return folder / f"checkpoint-{rank}.pt"


def previous_path(folder: Path, rank: int) -> Path:
    """Return the path of a process's checkpoint before the newest one."""
    return folder / f"checkpoint-{rank}-previous.pt"


@dataclass(frozen=True)
class Saved:
    """Checkpoints that the processes of a run saved together."""

    paths: Mapping[int, Path]  # by rank; without the processes whose checkpoints are missing or damaged
    size: int  # number of processes that saved
    step: int = 0  # steps or updates done
    generation: int = 0  # of the files that the checkpoints refer to
    last_number: int = 0  # largest number of a save in the folder
    is_newest: bool = True  # False: some processes have a newer checkpoint
    # True if every process saved once more afterwards: it may have overwritten files of these checkpoints since then.
    # As long as one process has not, the others wait for it and write nothing.
    files_overwritten: bool = False
    damaged: tuple[str, ...] = ()  # names of checkpoints that cannot be read

    @property
    def missing(self) -> list[int]:
        """Ranks of the processes without a checkpoint."""
        return [rank for rank in range(self.size) if rank not in self.paths]

    def fits(self, world: World) -> bool:
        """Return True if every process of `world` resumes from its own checkpoint."""
        return self.size == world.size and not self.missing

    def describe(self, world: World, changed: str) -> str:
        """Describe in one line what is not as usual about resuming from these checkpoints; "" if nothing is.

        Args:
            world: processes that resume.
            changed: what is not restored exactly if the checkpoints do not fit the processes.
        """
        if self.fits(world) and self.is_newest and not self.damaged:
            return ""
        text = f"resumed at step {self.step:,}"
        if self.size != world.size:
            now, before = (format_count(number, "process") for number in (world.size, self.size))
            text += f" with {now} from checkpoints of {before}"
        if not self.is_newest:
            text += ", the last one that every process has saved"
        if self.damaged:
            text += f"; damaged: {', '.join(self.damaged)}"
        if self.missing:
            text += f"; without a checkpoint of process {', '.join(map(str, self.missing))}"
        return text if self.fits(world) else f"{text}: {changed}"


def find(folder: Path, kind: str) -> Saved | None:
    """Find the newest checkpoints that all processes have; None if the run has to begin at its start.

    If no checkpoint of the first process has a counterpart in all others, its newest one is returned. If none can be
    read, then all of them are returned, so that loading them tells what is wrong.

    Args:
        folder: folder of the run.
        kind: name of the program, as for `checkpoint.load`.
    """
    matches = [match for path in sorted(folder.glob("checkpoint-*.pt")) if (match := FILE.fullmatch(path.name))]
    ranks = {folder / match[0]: int(match[1]) for match in matches}
    headers, damaged = dict[Path, dict[str, int]](), list[str]()
    for path in ranks:
        try:
            # The checksums of a single checkpoint are verified when it is loaded: there is no other to resume from.
            headers[path] = _header(checkpoint.load(path, kind, lazy=len(ranks) == 1))
        except UserError:
            damaged.append(path.name)
    if not headers:
        paths = {rank: path for path, rank in ranks.items() if path == current_path(folder, rank)}
        return Saved(paths, max(paths) + 1) if paths else None
    # Checkpoints of one process, and those of older releases, do not record the number of processes.
    unrecorded = 1 + max((ranks[path] for path, header in headers.items() if not header["processes"]), default=0)
    saves = dict[tuple[int, int, int, int], dict[int, Path]]()
    for path, header in headers.items():  # the newest checkpoint of a process comes after the one before
        key = (header["save"], header["step"], header["processes"] or unrecorded, header["generation"])
        saves.setdefault(key, {})[ranks[path]] = path
    complete = [key for key, paths in saves.items() if len(paths) == key[2]]
    if not complete and not damaged and not any(header["step"] for header in headers.values()):
        return None  # killed while it saved for the first time, before the first step
    newest = max(complete or [key for key, paths in saves.items() if 0 in paths] or saves)
    return Saved(
        paths=saves[newest],
        step=newest[1],
        size=newest[2],
        generation=newest[3],
        last_number=max(key[0] for key in saves),
        is_newest=newest == max(saves),
        files_overwritten=all(path != current_path(folder, rank) for rank, path in saves[newest].items()),
        damaged=tuple(damaged),
    )


def _header(state: Mapping[str, Any]) -> dict[str, int]:
    """Return what a checkpoint records about the save that it belongs to."""
    run = state.get("run", {})
    steps = (state.get("step"), state.get("updates"), state.get("learner", {}).get("updates"), 0)
    recorded = {name: run.get(name, 0) for name in ("save", "processes", "generation")}
    return {**recorded, "step": next(step for step in steps if step is not None)}


class ProcessCheckpoints:
    """Checkpoints of one process: what it resumes from, their names and numbers, and the files to which they refer.

    Args:
        folder: folder of the run.
        kind: name of the program, as for `checkpoint.load`.
        world: processes of the run.
        resume: False: a new run, which has no checkpoints yet.
    """

    def __init__(self, folder: Path, kind: str, world: World, *, resume: bool) -> None:
        self.folder, self.kind, self.world, self.resume = folder, kind, world, resume
        self.path = current_path(folder, world.rank)
        self._generation = 0
        self._begins_generation = False
        self._number = 0  # of the last save, counted over all restarts
        self._saves = 0  # since the start of this process
        self._folders: set[str] = set()  # names given to `files`

    @cached_property
    def saved(self) -> Saved | None:
        """Checkpoints that the run resumes from, the same in every process; None if it begins at its start.

        All processes must read this property for the first time together.
        """
        if not self.resume:
            return None
        saved = self.world.broadcast_value(find(self.folder, self.kind) if self.world.is_main else None)
        if saved is not None:
            self._number = saved.last_number
            self._begins_generation = not saved.fits(self.world) or saved.files_overwritten
            self._generation = saved.generation + self._begins_generation
        return saved

    def restore(
        self, path: Path, load: Callable[[dict[str, Any]], object], load_processes: LoadProcesses | None
    ) -> tuple[dict[str, Any], str] | None:
        """Read a checkpoint and load its state. An error in one process ends all.

        Args:
            path: `self.path`, which stands for the checkpoints in `saved`, or another file, the same in every process.
            load: called with the state of the checkpoint.
            load_processes: called instead of `load` if the checkpoints in `saved` do not fit the processes. None:
                `load` is called with the state of this process, or of the first one.

        Returns:
            The state, and a message ("" if everything is as usual); None without a checkpoint.

        Raises:
            UserError: as `checkpoint.load`, or the state does not fit the run.
        """
        saved = self.saved
        if path != self.path:
            ranks = range(self.world.size if self.resume and path.exists() else 0)
            saved = Saved(dict.fromkeys(ranks, path), len(ranks)) if ranks else None
        if saved is None:
            return None
        fits, changed = saved.fits(self.world), ""
        with self.world.raising_together():
            states = self._read(saved)
            state = states.get(self.world.rank, states[min(states)])
            try:
                if fits or load_processes is None:
                    load(state)
                else:
                    changed = load_processes(states)
            except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise UserError(
                    f"{path} does not fit the run of {self.folder / 'config.json'} ({error_summary(error)}): it is the "
                    f"checkpoint of another run, or of another version of zerokara; restore the one that belongs to "
                    f"this folder, or start a new run with another --name."
                ) from error
        # All processes have read their checkpoints. If a newer one of this process stayed, then it would have two that
        # others do not have after the next save.
        previous = previous_path(self.folder, self.world.rank)
        if saved.paths.get(self.world.rank) == previous:
            previous.replace(self.path)
        return state, saved.describe(self.world, changed)

    def _read(self, saved: Saved) -> dict[int, dict[str, Any]]:
        """Read the checkpoint of this process, or those of all processes if they do not fit. Returns states by rank.

        Raises:
            UserError: as `checkpoint.load`, or the first process has no checkpoint.
        """
        if 0 not in saved.paths:
            raise UserError(
                f"{current_path(self.folder, 0)} is missing or damaged, and the other processes do not save all that "
                f"the first one does: replace it with an intact copy, or start a new run with another --name."
            )
        ranks = [self.world.rank] if saved.fits(self.world) else sorted(saved.paths)
        return {rank: checkpoint.load(saved.paths[rank], self.kind) for rank in ranks}

    def files(self, name: str) -> Path:
        """Return the folder for files of this process to which its checkpoints refer, such as those of a replay buffer.

        If the checkpoints that the run resumes from do not fit its processes, this is another folder than theirs, and
        it is empty. All processes must call this method together.

        Args:
            name: name of the folder, to which rank and generation are appended.
        """
        begins = self.saved is not None and self._begins_generation
        suffix = f"-{self._generation}" if self._generation else ""
        folder = self.folder / f"{name}-{self.world.rank}{suffix}"
        if begins and name not in self._folders:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before its first checkpoint
        self._folders.add(name)
        return folder

    def begin_save(self, path: Path) -> dict[str, int]:
        """Keep the newest checkpoint as the one before, if there are several processes, because `path` will be saved.

        Returns what the new checkpoint records: nothing as long as the run has had one process only, or if `path` is
        another file than `self.path`.
        """
        if path != self.path:
            return {}
        self._saves += 1
        if self._saves == 2 and self.world.is_main:  # all processes have done their first save, since they vote
            self._remove_obsolete()
        if self.world.size > 1 and self.path.exists():
            previous = previous_path(self.folder, self.world.rank)
            temporary = previous.with_name(f".{previous.name}.tmp")
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.path, temporary)  # so that at any moment there is a file with the newest one's name
            except OSError:  # a file system without hard links
                shutil.copyfile(self.path, temporary)
            temporary.replace(previous)
            temporary.unlink(missing_ok=True)  # it is left if both names belong to one file: killed after this before
        if self.world.size == 1 and self._generation == 0:
            return {}
        self._number += 1
        return {"save": self._number, "processes": self.world.size, "generation": self._generation}

    def _remove_obsolete(self) -> None:
        """Remove the checkpoints of processes that the run does not have any more, and files of other generations."""
        for path in self.folder.glob("checkpoint-*.pt"):
            match = FILE.fullmatch(path.name)
            if match and (int(match[1]) >= self.world.size or (match[2] and self.world.size == 1)):
                path.unlink()
        for name in self._folders:
            for path in self.folder.glob(f"{name}-*"):
                match = re.fullmatch(rf"{re.escape(name)}-\d+(?:-(\d+))?", path.name)
                if match and int(match[1] or 0) != self._generation:
                    shutil.rmtree(path, ignore_errors=True)
