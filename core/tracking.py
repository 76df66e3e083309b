"""Copy of a run on a tracking service, Weights & Biases or MLflow, through the client of the service.

    tracking = Tracking(connect("mlflow"), warn)
    ids = tracking.find_or_create("pong", {})  # {"mlflow": "0a1b..."}: saved, so that a resumed run continues this one
    tracking.start(folder, {"seed": 1})
    tracking.scalars([(1, {"train/loss": 0.5})])
    tracking.close("FINISHED")

A thread sends the requests, so that a slow server does not delay training. Failures are warned about once and do not
end training. The clients are optional packages, imported only where a run is tracked. Which server, project and user
they use is decided by their own environment variables (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from zerokara.core.config import UserError, error_summary
from zerokara.core.programs import command

ServiceName = Literal["off", "wandb", "mlflow"]
Status = Literal["FINISHED", "KILLED", "FAILED"]
Rows = Sequence[tuple[int, Mapping[str, float]]]
"""Rows of (step, value by name)."""

PROJECT = "zerokara"  # project or experiment, unless an environment variable of the service names another one
PATIENCE_SECONDS = 30.0  # at the end of a run, for each thing that is still to be sent
MAX_WAITING = 10_000  # things to send that are held while the server does not answer
# Options of run folder and output, no settings of the training: they are not sent, and not among TensorBoard's HPARAMS.
OMITTED = ("name", "resume", "quiet", "track")


class Service(Protocol):
    """Client of a service, with one tracked run. Methods raise the exceptions of the client."""

    name: str
    """Name of the service in --track."""
    label: str
    """Name of the service in messages."""
    knows_history: bool
    """True if metrics that the service already has are not sent again: a resumed run then fills all gaps."""

    def check(self) -> None:
        """Check that runs can be tracked."""

    def create(self, name: str) -> str:
        """Return the id of a new tracked run."""

    def open(self, run_id: str, folder: Path, *, resumed: bool) -> None:
        """Open a tracked run. With `resumed`, an earlier process has written into it."""

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Set the settings of the run."""

    def scalars(self, rows: Rows) -> None:
        """Add metrics."""

    def media(self, tag: str, step: int, path: Path) -> None:
        """Add an image or a video."""

    def close(self, status: Status) -> None:
        """End the tracked run."""


class MLflow:
    """Run of an MLflow server, or of the store that MLFLOW_TRACKING_URI names."""

    name, label = "mlflow", "MLflow"
    knows_history = True

    def __init__(self) -> None:
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # printed by a thread
        self._client = MlflowClient()
        self._run_id = ""
        self._resumed = False
        self._known_steps: dict[str, set[int]] = {}  # steps of a metric that the server had when the run was opened

    def check(self) -> None:
        """Ask the server for an experiment, without the minutes of attempts that are usual while a run trains."""
        with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="10"):
            self._client.search_experiments(max_results=1)

    def create(self, name: str) -> str:
        """Create the run, in the experiment that the environment names or in `PROJECT`."""
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if experiment_id is None:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
        tags = {"mlflow.source.name": command(), "mlflow.source.type": "LOCAL"}
        return str(self._client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)

    def open(self, run_id: str, folder: Path, *, resumed: bool) -> None:
        """See `Service`."""
        self._run_id, self._resumed = run_id, resumed
        if resumed:
            self._client.update_run(run_id, status="RUNNING")

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Log parameters. MLflow's parameters cannot change: another value, of a resumed run, becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._run_id).data.params
        texts = {name: str(value)[:5_000] for name, value in settings.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        changed = [RunTag(name, text) for name, text in texts.items() if known.get(name, text) != text]
        for first in range(0, len(new), 100):  # as many as the server accepts at once
            self._client.log_batch(self._run_id, params=new[first : first + 100])
        if changed:
            self._client.log_batch(self._run_id, tags=changed)

    def scalars(self, rows: Rows) -> None:
        """Log metrics, without those of a resumed run that the server has."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(key, value, now, step)
            for step, row in rows
            for key, value in row.items()
            if step not in self._steps_of(key)
        ]
        for first in range(0, len(metrics), 1000):  # as many as the server accepts at once
            self._client.log_batch(self._run_id, metrics=metrics[first : first + 1000])

    def _steps_of(self, key: str) -> set[int]:
        if key not in self._known_steps:
            history = self._client.get_metric_history(self._run_id, key) if self._resumed else ()
            self._known_steps[key] = {metric.step for metric in history}
        return self._known_steps[key]

    def media(self, tag: str, step: int, path: Path) -> None:
        """Upload the file as an artifact in media/."""
        self._client.log_artifact(self._run_id, str(path), "media")

    def close(self, status: Status) -> None:
        """See `Service`."""
        self._client.set_terminated(self._run_id, status)


class WandB:
    """Run of Weights & Biases. With WANDB_MODE=offline it is in the run folder, for `wandb sync`."""

    name, label = "wandb", "Weights & Biases"
    knows_history = False

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = None

    def check(self) -> None:
        """Check that there is an API key, unless the mode is offline or disabled."""
        if os.environ.get("WANDB_MODE", "online") == "online" and not self._wandb.api.api_key:
            raise ValueError("there is no API key: type wandb login, or set WANDB_MODE=offline")

    def create(self, name: str) -> str:
        """See `Service`. The service creates the run when it is opened."""
        return uuid.uuid4().hex[:12]

    def open(self, run_id: str, folder: Path, *, resumed: bool) -> None:
        """Start the client's process. Its files are in the folder of the run."""
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            settings=self._wandb.Settings(console="off", silent=True),
        )
        # Its own steps must not decrease, and those of metrics, images and of resumed runs do.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def settings(self, settings: Mapping[str, Any]) -> None:
        """See `Service`."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def scalars(self, rows: Rows) -> None:
        """See `Service`."""
        for step, row in rows:
            self._run.log({**row, "step": step})

    def media(self, tag: str, step: int, path: Path) -> None:
        """See `Service`."""
        video = path.suffix == ".mp4"
        item = self._wandb.Video(str(path), format="mp4") if video else self._wandb.Image(str(path))
        self._run.log({f"media/{tag}": item, "step": step})

    def close(self, status: Status) -> None:
        """See `Service`."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


SERVICES: Mapping[str, Callable[[], Service]] = {"wandb": WandB, "mlflow": MLflow}


def connect(name: str) -> Service | None:
    """Return the client of a service, None for "off".

    Raises:
        UserError: the client is not installed.
    """
    if name == "off":
        return None
    try:
        return SERVICES[name]()
    except ImportError as error:
        raise UserError(
            f"--track {name} needs the package {name}, which cannot be imported ({error_summary(error)}): "
            f"type pip install {name}, or leave out --track."
        ) from None


def check(name: str, *, resume: bool) -> None:
    """Check, before anything is created, that a run can be tracked.

    A resumed run needs no server: it continues without, as it would if the server stopped while it trains.

    Raises:
        UserError: the client is not installed; or its server does not answer, or refuses.
    """
    service = connect(name)
    if service is None or resume:
        return
    try:
        service.check()
    except Exception as error:  # noqa: BLE001  (a client raises exceptions of many libraries)
        raise UserError(
            f"--track {name} cannot be used: {service.label} does not answer or refuses ({_reason(error)}); "
            f"start or name the server, or leave out --track."
        ) from None


class Tracking:
    """Tracked run, sent by a thread. Without a service the methods do nothing.

    Args:
        service: client of the service; None: the run is not tracked.
        warn: prints a warning. Only the thread of the caller calls it.
    """

    def __init__(self, service: Service | None, warn: Callable[[str], None]) -> None:
        self._service, self._warn = service, warn
        self._jobs: queue.SimpleQueue[Callable[[Service], object] | None] = queue.SimpleQueue()
        self._done = 0
        self._error: Exception | None = None
        self._warned = False
        self._run_id, self._resumed = "", False
        self._thread: threading.Thread | None = None

    def find_or_create(self, name: str, known: Mapping[str, str]) -> dict[str, str]:
        """Find the tracked run of a resumed run, or create one. Returns the ids of the tracked runs by service.

        Args:
            name: name of the run.
            known: what this method returned when the run was started; empty for a new run.
        """
        service = self._service
        if service is None:
            return dict(known)
        self._resumed = service.name in known
        try:
            self._run_id = known[service.name] if self._resumed else service.create(name)
        except Exception as error:  # noqa: BLE001  (no exception of a client may end a training run)
            self._warned = True
            self._warn(
                f"{service.label} could not be reached ({_reason(error)}): training continues, and this run is not "
                f"tracked before it is resumed."
            )
            return dict(known)
        return {**known, service.name: self._run_id}

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the tracked run, and send the settings. The folder of the run must hold its config.json."""
        service, run_id, resumed = self._service, self._run_id, self._resumed
        if service is None or not run_id:
            return
        self._thread = threading.Thread(target=self._send, args=(service,), name="tracking", daemon=True)
        self._thread.start()
        self._put(lambda service: service.open(run_id, folder, resumed=resumed))
        self.settings(settings)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Send settings by name."""
        sent = {name: value for name, value in settings.items() if name not in OMITTED}
        self._put(lambda service: service.settings(sent))

    def scalars(self, rows: Rows) -> None:
        """Send rows of (step, value by name)."""
        self._put(lambda service: service.scalars(rows))

    def history(self, lines: bytes) -> None:
        """Send what the service may not have of the metrics.jsonl of a resumed run."""
        if lines and self._service is not None and (self._service.knows_history or not self._resumed):
            self._put(lambda service: service.scalars(_rows(lines)))

    def media(self, tag: str, step: int, path: Path) -> None:
        """Send an image or a video. The file must not be removed."""
        self._put(lambda service: service.media(tag, step, path))

    def close(self, status: Status) -> None:
        """Send what is left, and end the tracked run. Gives up if nothing could be sent for a while."""
        if self._thread is None:
            return
        self._jobs.put(lambda service: service.close(status))
        self._jobs.put(None)
        done = -1
        while self._thread.is_alive() and done != self._done:
            done = self._done
            self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._error = self._error or TimeoutError(f"no answer for {PATIENCE_SECONDS:.0f} s")
        self._warn_once()

    def _put(self, job: Callable[[Service], object]) -> None:
        """Add something to send, and warn if something before it failed."""
        if self._thread is None:
            return
        if self._jobs.qsize() < MAX_WAITING:
            self._jobs.put(job)
        else:
            self._error = self._error or TimeoutError("the server is too slow")
        self._warn_once()

    def _send(self, service: Service) -> None:
        """Send until the tracked run is closed."""
        while (job := self._jobs.get()) is not None:
            try:
                job(service)
            except Exception as error:  # noqa: BLE001  (no exception of a client may end a training run)
                self._error = self._error or error
            self._done += 1

    def _warn_once(self) -> None:
        if self._error is not None and not self._warned and self._service is not None:
            self._warned = True
            self._warn(
                f"metrics or media could not be sent to {self._service.label} ({_reason(self._error)}): "
                f"training continues, and later ones are attempted."
            )


def _reason(error: Exception) -> str:
    """Return the beginning of an error's text; those of HTTP clients are long."""
    return error_summary(error)[:200]


def _rows(lines: bytes) -> Rows:
    """Return the rows of lines of metrics.jsonl, without values that were not finite."""
    rows = []
    for line in lines.splitlines():
        row = json.loads(line)
        step = row.pop("step")
        rows.append((step, {key: value for key, value in row.items() if value is not None}))
    return rows


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
