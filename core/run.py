"""`Run` owns runs/<name>/: configuration, metrics, TensorBoard, media, the progress bar, and who may write there.

    with Run(config, kind="dqn", name="pong", resume=False, quiet=False) as run, run.signals():
        while step < total and not run.stop_requested:
            run.log(step, {"train/loss": loss})        # a tensor: nothing waits for the device
        run.save(run.path("checkpoint.pt"), {"step": step, ...})
        run.close("reached 20.1; go on with ...")

What a run folder holds: config.json, metrics.jsonl, tensorboard/, media/, lock, and what the entry puts there. What can
fail without harm (metrics, TensorBoard, media) warns once and never ends training.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core import checkpoint, media
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary, suggest, to_saved
from zerokara.core.distributed import World
from zerokara.core.machine import describe_machine, describe_versions, git_commit
from zerokara.core.programs import command
from zerokara.core.progress import Progress
from zerokara.core.report import write_json
from zerokara.core.tensorboard_writer import TensorBoardWriter

Scalar = float | int | np.floating[Any] | np.integer[Any] | torch.Tensor


class Run:
    """One training run and its folder. Only the world's main process writes; in the others the methods do nothing."""

    stop_requested: str | None = None  # the signal's name, once one came while `signals()` was in force

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
        """Take the folder root/name: a fresh one, or with `resume` that of a run of the same kind.

        Args:
            config: frozen dataclass; saved in config.json, which a resumed run keeps as it is.
            kind: the entry that runs ("dqn").
            quiet: no progress and no remarks, only warnings and the closing line.
            extra: plain values saved in config.json beside the config (hardware choice, environment settings).

        Raises:
            UserError: the folder is taken, in use, missing, or not of this kind; the name makes no folder.
        """
        if not re.fullmatch(r"\w[\w.+=-]*", name):
            raise UserError(f"--name cannot be {name!r}: it must be letters, digits and . _ + = - to make a folder.")
        self.folder = root / name
        self.world = world
        self._kind, self._resume = kind, resume
        self._compute: Compute | None = None
        self._progress = Progress(silent=quiet or not world.is_main)
        self._warned: set[str] = set()
        self._pending: list[tuple[int, dict[str, Scalar]]] = []
        self._last_step = -1  # newest step in the metrics
        self._metrics: IO[bytes] | None = None
        self._metrics_bytes = 0  # length of metrics.jsonl up to the last whole line
        self._board = TensorBoardWriter(self.folder / "tensorboard", self.warn)
        self._closed = False
        self.extra = dict(extra or {})  # as config.json has it: a resumed run finds what it began with
        if world.is_main:
            self._take_folder(config, kind, resume)
        self.extra = world.broadcast_value(self.extra)

    def _take_folder(self, config: Any, kind: str, resume: bool) -> None:
        go_on = "go on with it by --resume" if hasattr(config, "resume") else "remove it"
        taken = f"{self.folder} already holds a run: {go_on}, or choose another --name."
        lock = self.folder / "lock"
        if resume:
            self.extra = self.read_config(self.folder, kind)["extra"]
        elif self.folder.exists() and not lock.exists() and (self.folder.is_file() or any(self.folder.iterdir())):
            raise UserError(taken)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock.open("a")
        # A forked child would keep the lock when this process dies; closing its copy does not unlock ours.
        os.register_at_fork(after_in_child=self._lock.close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(
                f"{self.folder} is being written by another process: wait for it, stop it, or choose another --name."
            ) from None
        if not resume and any(path != lock for path in self.folder.iterdir()):
            self._lock.close()
            raise UserError(taken)
        if resume:
            return
        content = {
            "kind": kind,
            "config": to_saved(config),
            "extra": self.extra,
            "versions": describe_versions(),
            "git_commit": git_commit(),
            "machine": describe_machine(),
            "command": command(),
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        write_json(self.folder / "config.json", content)

    def save_extra(self, **extra: Any) -> None:
        """Put what was found out after the start (the choice of hardware, say) into config.json's `extra`.

        Every process must call it; the main one's values are everybody's.
        """
        self.extra |= self.world.broadcast_value(extra)
        if self.world.is_main:
            write_json(self.folder / "config.json", {**self.read_config(self.folder), "extra": self.extra})

    def compute(self, choose: Callable[[], Compute], total: int) -> Compute:
        """How this run computes, in force: what `choose` finds when it begins, and the same whenever it goes on.

        Every process must call it; a second call gets what the first one got. `total` is the run's length, for the
        progress bar.
        """
        if self._compute is not None:
            return self._compute
        if "compute" not in self.extra:
            self.progress(0, total, {"measuring": "what is fastest here"})
            self.save_extra(compute=choose().to_dict() if self.world.is_main else {})
        self._compute = Compute(**self.extra["compute"])
        self._compute.apply()
        self.print(f"compute: {self._compute.reason}")
        return self._compute

    @staticmethod
    def read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
        """What config.json of a run folder says, with the keys kind, config, extra, versions, machine, ...

        Raises:
            UserError: no such run, a damaged or foreign file, or (with `kind`) a run of another kind.
        """
        path = folder / "config.json"
        if not path.is_file():
            runs = [p.parent.name for p in folder.parent.glob("*/config.json")]
            known = f"; there are {', '.join(sorted(runs))}" if 0 < len(runs) <= 12 else ""
            raise UserError(f"There is no run in {folder}{suggest(folder.name, runs)}{known}: give an existing one.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is damaged or cannot be read ({error_summary(error)}): give another run, or start afresh."
            ) from None
        parts = {"kind": str, "config": dict, "extra": dict}
        if not isinstance(content, dict) or any(not isinstance(content.get(key), t) for key, t in parts.items()):
            raise UserError(
                f"{path} was not written by zerokara (it lacks {', '.join(parts)}): give the folder of a run."
            )
        if kind is not None and content["kind"] != kind:
            raise UserError(
                f"{folder} holds a run of {content['kind']}, not of {kind}: give the folder of a {kind} run."
            )
        return content

    def path(self, *parts: str) -> Path:
        """A path inside the run's folder, with the folders above it made."""
        path = self.folder.joinpath(*parts)
        if self.world.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # ---- metrics

    def log(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Note scalars (numbers, or tensors of one element) of a step; they are written at the next `flush`.

        Names are "group/name". What the wall clock says goes under "speed/", so that two runs can be compared without.
        """
        if not self.world.is_main:
            return
        # Copies, since the caller may write the next step's loss into the same memory.
        kept = {key: v.detach().clone() if isinstance(v, torch.Tensor) else v for key, v in scalars.items()}
        self._pending.append((step, kept))

    def flush(self) -> None:
        """Write what was logged to metrics.jsonl and TensorBoard. The one place where tensors become numbers."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = _as_numbers(pending)
        self._last_step = max(self._last_step, *(step for step, _ in rows))
        with self._forgiving("metrics.jsonl"):
            self._append("".join(_json_line(step, row) for step, row in rows).encode())
        self._board.scalars(rows)

    def _append(self, lines: bytes) -> None:
        """Whole lines or nothing."""
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
        """Flushes; what a checkpoint must hold for `resume_from`."""
        self.flush()
        with self._forgiving("metrics.jsonl"):
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())  # a checkpoint must not outlive the lines that it counts
        return {"metrics_bytes": self._metrics_bytes, "last_step": self._last_step}

    def resume_from(self, state: Mapping[str, Any]) -> None:
        """Forget what was logged after the checkpoint that holds `state`, so that no line comes twice."""
        self._last_step = state["last_step"]
        self._board.purge_step = self._last_step + 1
        if not self.world.is_main:
            return
        path = self.folder / "metrics.jsonl"
        with self._forgiving("metrics.jsonl"):
            size = path.stat().st_size if path.exists() else 0
            keep = min(size, state["metrics_bytes"])
            if size < state["metrics_bytes"]:
                self.warn(f"{path} is shorter than it was at the checkpoint: some lines are lost, and the run goes on.")
            if size:
                with path.open("r+b") as file:
                    keep = file.read(keep).rfind(b"\n") + 1
                    file.truncate(keep)  # one step for the file system: the old length or the new one
                    os.fsync(file.fileno())
            self._metrics_bytes = keep

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of this run: `state`, and what `restore` needs of the run itself.

        Raises:
            UserError: as `core.checkpoint.save`.
        """
        checkpoint.save(path, {**state, "run": self.state_dict()}, self._kind)

    def restore(self, path: Path, load: Callable[[dict[str, Any]], object]) -> bool:
        """Go on from the checkpoint at `path` where the run is resumed and has one. Whether it does.

        If not, the run is a fresh one, or was killed before its first checkpoint, and what it logged is forgotten.

        Args:
            path: what `save` wrote.
            load: takes the state over.

        Raises:
            UserError: as `core.checkpoint.load`.
        """
        if not (self._resume and path.exists()):
            self.resume_from({"metrics_bytes": 0, "last_step": -1})
            return False
        state = checkpoint.load(path, self._kind)
        load(state)
        self.resume_from(state["run"])
        return True

    # ---- what a person sees

    def progress(self, step: int, total: int, fields: Mapping[str, Any]) -> None:
        """Show how far the run is; as often as one likes, it draws ten times a second at most."""
        self._progress.show(step, total, fields)

    def print(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._progress.print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also of a quiet run; the same one only once."""
        if self.world.is_main and text not in self._warned:
            self._warned.add(text)
            self._progress.warn(text)

    def image(self, tag: str, step: int, picture: np.ndarray) -> None:
        """Keep a picture uint8, (H, W), (H, W, C) or (C, H, W), as media/<tag>-<step>.png and in TensorBoard."""
        if not self.world.is_main:
            return
        with self._forgiving("media"):
            encoded = media.png_bytes(picture)
            self._board.picture(tag, step, encoded)
            checkpoint.write_atomically(self._media_path(tag, step, "png"), lambda file: file.write(encoded))

    def video(self, tag: str, step: int, frames_THWC: np.ndarray, fps: float) -> None:
        """Keep RGB frames (T, H, W, 3) uint8 as media/<tag>-<step>.mp4, and as a GIF among TensorBoard's images."""
        if not self.world.is_main:
            return
        with self._forgiving("media"):
            media.write_mp4(self._media_path(tag, step, "mp4"), frames_THWC, fps)
        with self._forgiving("media"):
            self._board.picture(tag, step, media.gif_bytes(frames_THWC, fps))

    def histogram(self, tag: str, step: int, values: Tensor) -> None:
        """Put the distribution of a tensor's numbers among TensorBoard's histograms."""
        if self.world.is_main:
            self._board.histogram(tag, step, Compute.to_host(values).float().numpy())

    def graph(self, module: nn.Module, example: Tensor) -> None:
        """Put a network's graph, traced on an example of its input, on TensorBoard's page; the mode is kept."""
        if self.world.is_main:
            training = module.training
            self._board.graph(module.eval(), example)
            module.train(training)

    def text(self, tag: str, text: str) -> None:
        """Put Markdown among TensorBoard's texts."""
        if self.world.is_main:
            self._board.text(tag, text)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Put what was set and what came of it into TensorBoard's table of hyperparameters."""
        if self.world.is_main:
            self._board.hparams(config, metrics, max(self._last_step, 0))

    def _media_path(self, tag: str, step: int, suffix: str) -> Path:
        return self.path("media", f"{re.sub(r'[^A-Za-z0-9._-]+', '-', tag)}-{step}.{suffix}")

    @contextlib.contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """Warn once per kind of thing that could not be written, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (no failure here is worth a run)
            if what not in self._warned:
                self._warned.add(what)
                self.warn(
                    f"{what} could not be written ({error_summary(error)}): training goes on, and so do the attempts."
                )

    # ---- the end

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """While inside, SIGINT and SIGTERM set `stop_requested`; the second SIGINT is a KeyboardInterrupt.

        torchrun repeats a SIGINT to its members, so there the second one counts for nothing.
        """
        interrupts = 0

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT
            self.stop_requested = signal.Signals(number).name
            if interrupts > 1 and self.world.size == 1:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self, summary: str = "") -> None:
        """Flush, print the closing line, and give the folder free. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.flush()
        self._progress.close(summary if self.world.is_main else "")
        self._board.close()
        if self._metrics is not None:
            self._metrics.close()
        if self.world.is_main:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_numbers(pending: list[tuple[int, dict[str, Scalar]]]) -> list[tuple[int, dict[str, float]]]:
    """Tensors as Python numbers, with one transfer per device."""
    places: dict[torch.device, list[tuple[dict[str, Any], str]]] = {}
    rows: list[tuple[int, dict[str, Any]]] = [(step, {**row}) for step, row in pending]
    for _, row in rows:
        for key, value in row.items():
            if isinstance(value, torch.Tensor):
                places.setdefault(value.device, []).append((row, key))
    for device, cells in places.items():
        wide = torch.float32 if device.type == "mps" else torch.float64  # exact for counters too
        values = torch.stack([row[key].reshape(()).to(wide) for row, key in cells]).tolist()
        for (row, key), value in zip(cells, values, strict=True):
            row[key] = value if row[key].dtype.is_floating_point else int(value)
    whole = (int, np.integer, np.bool_)
    return [(step, {key: int(v) if isinstance(v, whole) else float(v) for key, v in row.items()}) for step, row in rows]


def _json_line(step: int, row: Mapping[str, float]) -> str:
    """One line of metrics.jsonl; JSON has no NaN or infinity, so they are null."""
    finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
    return json.dumps({"step": step, **finite}, allow_nan=False) + "\n"
