"""`Run` owns the folder runs/<name>/: configuration, metrics, TensorBoard events, media, progress bar and lock.

    with Run(config, kind="dqn", name="pong", resume=False, quiet=False) as run, run.signals():
        while step < total and not run.stop_requested:
            run.log(step, {"train/loss": loss})        # a tensor: no synchronization with the device
            with run.interruptible():                  # a signal raises Stopped here, instead of setting stop_requested
                score = evaluate()
        run.save(run.path("checkpoint.pt"), {"step": step, ...})
        run.close("reached 20.1; resume with ...")

A run folder holds config.json, metrics.jsonl, TensorBoard's event files, media/, lock, and the files of the program
that trains (checkpoints, model files). With the option `track`, metrics, media and settings also go to a tracking
service (core/tracking.py). A failure to write or to send metrics, TensorBoard events or media is warned about once and
does not end training.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core import checkpoint, media, speed_trial
from zerokara.core.compute import Compute
from zerokara.core.config import error_summary, to_dict
from zerokara.core.distributed import World
from zerokara.core.metrics import Scalar, as_numbers, json_line
from zerokara.core.process_checkpoints import LoadProcesses, ProcessCheckpoints
from zerokara.core.progress import Progress
from zerokara.core.report import write_json
from zerokara.core.resumed_compute import adapt_compute
from zerokara.core.run_config import resume_command
from zerokara.core.run_folder import check_name, check_same_options, first_config, lock_folder, read_config
from zerokara.core.stop_signals import StopSignals
from zerokara.core.tensorboard_writer import TensorBoardWriter
from zerokara.core.tracking import Status, Tracking, connect

LogCallback = Callable[[int, dict[str, float]], object]
"""Function that gets the step and the metrics of each log entry; if it returns False, the run is saved and stopped."""


class Run(StopSignals):
    """Training run and its folder. Only the main process writes; in the other processes the methods do nothing."""

    def __init__(
        self,
        config: Any,
        *,
        kind: str,
        name: str,
        resume: bool,
        quiet: bool,
        root: Path = Path("runs"),
        extra: Mapping[str, Any] | None = None,
        world: World = World(),  # noqa: B008  (frozen)
    ) -> None:
        """Create and lock the folder root/name, or with `resume` open the folder of an existing run of the same kind.

        Args:
            config: frozen dataclass, saved in config.json. A resumed run leaves config.json unchanged.
            kind: name of the program that trains ("dqn").
            name: name of the folder in `root`.
            resume: continue an existing run.
            quiet: print only warnings and the closing line.
            root: folder that holds all runs.
            extra: plain values saved in config.json beside the config (hardware choice, environment settings).
            world: processes that train together.

        Raises:
            UserError: the folder already holds a run, is in use, is missing, or holds a run of another kind; or `name`
                is not a valid folder name; or the client of the tracking service is not installed; or the options
                are not the same in all processes.
        """
        check_name(name)
        self.folder = speed_trial.folder_of_runs(root) / name
        self.world = world
        self._config, self._kind, self._resume = config, kind, resume
        self.callback: LogCallback | None = None  # called in the main process
        self._compute: Compute | None = None
        self._progress = Progress(silent=quiet or not world.is_main)
        self._warned: set[str] = set()
        self._pending: list[tuple[int, dict[str, Scalar]]] = []
        self._last_step = -1  # largest step in the metrics
        self._metrics: IO[bytes] | None = None
        self._metrics_bytes = 0  # length of metrics.jsonl up to the end of the last complete line
        self._board = TensorBoardWriter(_events_folder(self.folder), self.warn)
        self._tracking = Tracking(None, self.warn)
        self._closed = self._failed = False
        self.checkpoints = ProcessCheckpoints(self.folder, kind, world, resume=resume)
        self.extra = {
            **speed_trial.choice(),
            **(extra or {}),
        }  # as in config.json: a resumed run gets the values of its first start
        configs, resumes = zip(*world.gather((to_dict(config), resume)), strict=True)
        with world.raising_together():
            check_same_options(configs, resumes)
            if world.is_main:
                self._open_folder(config, kind, resume)
        self.extra = world.broadcast_value(self.extra)

    def _open_folder(self, config: Any, kind: str, resume: bool) -> None:
        """Create or open the folder, lock it, and write config.json for a new run."""
        self._tracking = Tracking(connect(getattr(config, "track", "off")), self.warn)
        if resume:
            self.extra = read_config(self.folder, kind)["extra"]
        remedy = "resume it with --resume" if hasattr(config, "resume") else "remove it"
        self._lock = lock_folder(self.folder, resume=resume, remedy=remedy)
        content = self.read_config(self.folder) if resume else first_config(config, kind, self.extra)
        tracked = self._tracking.find_or_create(self.folder.name, self.extra.get("tracking", {}))
        if tracked:
            self.extra = {**self.extra, "tracking": tracked}
        if not resume or content["extra"] != self.extra:
            write_json(self.folder / "config.json", {**content, "extra": self.extra})
        self._tracking.start(self.folder, {"kind": kind, **to_dict(config)})

    def save_extra(self, **extra: Any) -> None:
        """Add values determined after the start, such as the hardware choice, to `extra` in config.json.

        Every process must call this method; all of them get the values of the main process.
        """
        self.extra |= self.world.broadcast_value(extra)
        if self.world.is_main:
            write_json(self.folder / "config.json", {**self.read_config(self.folder), "extra": self.extra})

    def compute(self, choose: Callable[[], Compute], total: int) -> Compute:
        """Return and apply the run's `Compute`: the result of `choose` in a new run, the saved one in a resumed run.

        A resumed run changes settings that this machine does not have or that the command line changed, with a warning.

        Every process must call this method. A second call returns the result of the first.

        Args:
            choose: measures and returns the fastest `Compute`; called in the main process, if there is none to keep.
            total: length of the run in steps, for the progress bar.
        """
        if self._compute is not None:
            return self._compute

        def measure() -> Compute:
            compiles = getattr(self._config, "compile", "off") == "on"
            named = "the fastest hardware settings" + ", and compiling, which can take minutes" * compiles
            self.progress(0, total, {"measuring": named})
            return choose()

        if "compute" not in self.extra:
            chosen = measure().to_dict() if self.world.is_main else {}
            self.save_extra(compute=chosen, local_size=self.world.local_size)
        elif self._resume:
            saved, before = self.extra["compute"], self.extra.get("local_size")
            adapted, change = adapt_compute(saved, before, self._config, self.folder, self.world, measure)
            if change:
                self.warn(change)
            if change or before != self.world.local_size:
                self.save_extra(compute=adapted, local_size=self.world.local_size)
        self._compute = Compute(**self.extra["compute"])
        self._compute.apply()
        self.print(f"compute: {self._compute.reason}")
        return self._compute

    read_config = staticmethod(read_config)

    def path(self, *parts: str) -> Path:
        """Return a path inside the run folder; its parent folders are created."""
        path = self.folder.joinpath(*parts)
        if self.world.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def checkpoint_path(self) -> Path:
        """Path of this process's checkpoint: checkpoint-<rank>.pt in the run folder."""
        return self.checkpoints.path

    # ---- metrics

    def log(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Record scalars (numbers, or tensors of one element) of a step; the next `flush` writes them.

        Names are "group/name". Values that depend on the wall clock belong to the group "speed/", so that all other
        values of two runs can be compared exactly.
        """
        if not self.world.is_main:
            return
        # Copied, because the caller may write the loss of the next step into the same memory.
        copied = {key: v.detach().clone() if isinstance(v, torch.Tensor) else v for key, v in scalars.items()}
        self._pending.append((step, copied))

    def flush(self) -> None:
        """Write the recorded scalars to metrics.jsonl and TensorBoard. Synchronizes with the device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = as_numbers(pending)
        self._last_step = max(self._last_step, *(step for step, _ in rows))
        with self._warn_on_failure("metrics.jsonl"):
            self._append("".join(json_line(step, row) for step, row in rows).encode())
        self._tracking.scalars(rows)
        self._board.scalars(rows)
        if self.callback is None:
            return
        results = [self.callback(step, dict(row)) for step, row in rows]
        if any(isinstance(result, bool | np.bool_) and not result for result in results):
            self.stop_requested = "the callback"

    def _append(self, lines: bytes) -> None:
        """Append complete lines to metrics.jsonl, or nothing if the write fails."""
        if self._metrics is None:
            self._metrics = (self.folder / "metrics.jsonl").open("ab", buffering=0)
            self._metrics_bytes = self._metrics.tell()
        try:
            written = 0
            while written < len(lines):
                written += self._metrics.write(lines[written:])
            self._metrics_bytes += written
        except OSError:
            self._metrics.truncate(self._metrics_bytes)
            raise

    def state_dict(self) -> dict[str, Any]:
        """Flush, and return the state that `resume_from` needs."""
        self.flush()
        with self._warn_on_failure("metrics.jsonl"):
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())  # the lines must be on disk before a checkpoint that counts them
        return {"metrics_bytes": self._metrics_bytes, "last_step": self._last_step}

    def resume_from(self, state: Mapping[str, Any]) -> None:
        """Remove everything logged after the checkpoint that holds `state`, so that no line is written twice."""
        self._last_step = state["last_step"]
        self._board.purge_step = self._last_step + 1
        if not self.world.is_main:
            return
        path = self.folder / "metrics.jsonl"
        with self._warn_on_failure("metrics.jsonl"):
            size = path.stat().st_size if path.exists() else 0
            keep = min(size, state["metrics_bytes"])
            if size < state["metrics_bytes"]:
                self.warn(f"{path} is shorter than it was at the checkpoint: some lines are lost; training continues.")
            if size:
                with path.open("r+b") as file:
                    lines = file.read(keep)
                    keep = lines.rfind(b"\n") + 1
                    file.truncate(keep)  # atomic for the file system: the old length or the new one
                    os.fsync(file.fileno())
                self._tracking.history(lines[:keep])
            self._metrics_bytes = keep

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint with `state` and the state of the run itself, as `restore` needs it.

        Raises:
            UserError: as `core.checkpoint.save`.
        """
        saved = self.checkpoints.begin_save(path)
        checkpoint.save(path, {**state, "run": {**self.state_dict(), **saved}}, self._kind)

    def restore(
        self, path: Path, load: Callable[[dict[str, Any]], object], load_processes: LoadProcesses | None = None
    ) -> bool:
        """Restore a resumed run from the checkpoint at `path`. Returns True if there was a checkpoint to restore.

        Otherwise the run is new, or was killed before its first checkpoint; everything it logged is removed. Every
        process must call this method. With `checkpoint_path`, all processes resume from the newest checkpoints that all
        of them have.

        Args:
            path: file written by `save`.
            load: called with the state of the checkpoint.
            load_processes: called instead of `load` if the checkpoints are those of other processes.

        Raises:
            UserError: as `ProcessCheckpoints.restore`.
        """
        restored = self.checkpoints.restore(path, load, load_processes)
        if restored is None:
            self.resume_from({"metrics_bytes": 0, "last_step": -1})
            return False
        state, message = restored
        if message:
            self.warn(message)
        self.resume_from(state["run"])
        return True

    # ---- terminal, images and TensorBoard

    def progress(self, step: int, total: int, fields: Mapping[str, Any]) -> None:
        """Show the progress. May be called at every step: it draws at most ten times a second."""
        self._progress.show(step, total, fields)

    def record_position(self, position: int, total: int) -> None:
        """Record the position after an iteration where `core.processes` measures the speed, and else do nothing."""
        if self.world.is_main:
            speed_trial.record_position(position, total)

    def print(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._progress.print(text)

    def print_stop(self) -> None:
        """Print that the run is saved because a signal asked this or another process to stop, and set `stopped`."""
        self.stopped = True
        self.print(f"{self.stop_requested or 'another process was asked to stop'}: saving")

    def warn(self, text: str) -> None:
        """Print a warning, also in a quiet run. A repeated warning is printed once."""
        if self.world.is_main and text not in self._warned:
            self._warned.add(text)
            self._progress.warn(text)

    def image(self, tag: str, step: int, picture: np.ndarray) -> None:
        """Write an image to media/<tag>-<step>.png and to TensorBoard: uint8, (H, W), (H, W, C) or (C, H, W)."""
        if not self.world.is_main:
            return
        with self._warn_on_failure("media"):
            encoded = media.png_bytes(picture)
            self._board.image(tag, step, encoded)
            path = self._media_path(tag, step, "png")
            checkpoint.write_atomically(path, lambda file: file.write(encoded))
            self._tracking.media(tag, step, path)

    def video(self, tag: str, step: int, frames: Iterable[np.ndarray], fps: float) -> None:
        """Write RGB frames (H, W, 3) uint8 to media/<tag>-<step>.mp4, and as a GIF to TensorBoard's images.

        The frames are encoded as they arrive and are not kept. Large frames are reduced, and a long video is cut, to
        the limits of `core.media`; a warning names both.
        """
        if not self.world.is_main:
            return
        gif = media.Gif(fps)
        limited = media.within_limits(frames, tag, self.warn)
        with self._warn_on_failure("media"):
            path = self._media_path(tag, step, "mp4")
            media.write_mp4(path, gif.collect(limited), fps)
            self._tracking.media(tag, step, path)
        with self._warn_on_failure("media"):
            self._board.image(tag, step, gif.encode())

    def histogram(self, tag: str, step: int, values: Tensor) -> None:
        """Write a histogram of a tensor's values to TensorBoard."""
        if self.world.is_main:
            self._board.histogram(tag, step, Compute.to_host(values).float().numpy())

    def graph(self, module: nn.Module, example: Tensor) -> None:
        """Write the graph of a network, traced with an example input, to TensorBoard. Keeps train or eval mode."""
        if self.world.is_main:
            training = module.training
            self._board.graph(module.eval(), example)
            module.train(training)

    def text(self, tag: str, text: str) -> None:
        """Write a Markdown text to TensorBoard."""
        if self.world.is_main:
            self._board.text(tag, text)

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write the settings of the run to TensorBoard's table of hyperparameters (HPARAMS).

        Args:
            config: settings by name.
            metrics: names of logged scalars; the table has their last values.
        """
        if self.world.is_main:
            self.flush()
            self._board.hparams(config, metrics)
            self._tracking.settings(config)

    def log_results(self, step: int, config: Any, results: Mapping[str, float]) -> None:
        """Log the results of a finished run as final/<name>, and write its settings with them to HPARAMS.

        Seconds are logged as speed/<name>, so that all other values of two runs can be compared exactly.
        """
        tags = {name: f"{'speed' if name.endswith('_seconds') else 'final'}/{name}" for name in results}
        self.log(step, {tags[name]: value for name, value in results.items()})
        self.hparams(to_dict(config), list(tags.values()))

    def _media_path(self, tag: str, step: int, suffix: str) -> Path:
        return self.path("media", f"{re.sub(r'[^A-Za-z0-9._-]+', '-', tag)}-{step}.{suffix}")

    @contextlib.contextmanager
    def _warn_on_failure(self, what: str) -> Iterator[None]:
        """Suppress exceptions of the block; warn once for each kind of output that could not be written."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (failed logging must not end a training run)
            if what not in self._warned:
                self._warned.add(what)
                self.warn(
                    f"{what} could not be written ({error_summary(error)}): "
                    f"training continues, and later writes are attempted."
                )

    # ---- the end

    def resume_command(self, program: str) -> str:
        """Return the command that resumes this run, as `core.run_config.resume_command`; "" in other processes."""
        return resume_command(program, self._config, self.folder) if self.world.is_main else ""

    def close(self, summary: str = "", status: Status | None = None) -> None:
        """Flush, print the closing line, and unlock the folder. A second call does nothing.

        Args:
            summary: closing line.
            status: of the tracked run; None: by how the run ended.
        """
        self._interruptible = False
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:  # the callback of a user may raise an exception
            self._tracking.close(status or self._status())
            self._progress.close(summary if self.world.is_main else "")
            self._board.close()
            if self._metrics is not None:
                self._metrics.close()
            if self.world.is_main:
                self._lock.close()

    def _status(self) -> Status:
        if self.stopped or (self._failed and self.stop_requested):
            return "KILLED"
        return "FAILED" if self._failed else "FINISHED"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = kind is not None
        self.close()


def _events_folder(folder: Path) -> Path:
    """Return the folder of TensorBoard's event files: the run folder, since TensorBoard names a run by this folder.

    A run started by an older version has them in tensorboard/; resumed, it keeps writing there and remains one run.
    """
    old = folder / "tensorboard"
    return old if old.is_dir() else folder
