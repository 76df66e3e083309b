"""Tracking services: what a run sends to MLflow and to Weights & Biases, resuming, and servers that fail."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.core.mlflow_server import Recorder, recording_server
from zerokara.core import tracking
from zerokara.core.config import UserError
from zerokara.core.run import Run
from zerokara.core.run_config import configure
from zerokara.core.run_options import RunOptions
from zerokara.core.tracking import Rows, ServiceName, Status


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Config of the tests."""

    preset: str = "fast"
    """Preset."""
    sizes: tuple[int, ...] = (4, 5)
    """Sizes."""
    steps: int = 10
    """Steps."""


def new(root: Path, track: ServiceName = "mlflow", *, resume: bool = False, **settings: Any) -> Run:
    config = Config(name="a", resume=resume, track=track, **settings)
    return Run(config, kind="dqn", name="a", resume=resume, quiet=True, root=root)


def tracked_ids(root: Path) -> dict[str, str]:
    ids: dict[str, str] = Run.read_config(root / "a")["extra"].get("tracking", {})
    return ids


PICTURE = np.zeros((4, 6), np.uint8)
FRAMES = np.zeros((3, 16, 16, 3), np.uint8)

# ---- MLflow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    with recording_server() as recorder:
        use(recorder.url, monkeypatch)
        yield recorder


def use(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the client use a server, without pauses between its attempts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)


def test_a_run_is_mirrored(server: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new(tmp_path) as run:
        run.log(1, {"train/loss": 0.5, "train/q": 2.0})
        run.log(2, {"train/loss": float("nan")})
        run.flush()
        run.image("samples", 2, PICTURE)
        run.video("game", 2, FRAMES, fps=5)
        run.log_results(3, Config(name="a", track="mlflow"), {"test_error": 0.25})
    (run_id,) = server.runs
    assert tracked_ids(tmp_path) == {"mlflow": run_id}
    tracked = server.runs[run_id]
    assert server.experiments == {"zerokara": tracked.info["experiment_id"]}
    assert (tracked.info["run_name"], tracked.info["status"]) == ("a", "FINISHED")
    assert tracked.tags["mlflow.source.name"].startswith("python ")
    assert (tracked.params["kind"], tracked.params["sizes"], tracked.params["steps"]) == ("dqn", "[4, 5]", "10")
    assert not tracked.params.keys() & {"name", "resume", "quiet", "track"}
    assert tracked.points("train/q") == [(1, 2.0)]
    assert [step for step, _ in tracked.points("train/loss")] == [1, 2]
    assert tracked.points("final/test_error") == [(3, 0.25)]
    names = ("samples-2.png", "game-2.mp4")
    assert server.artifacts == {f"media/{n}": (run.folder / "media" / n).read_bytes() for n in names}
    assert capsys.readouterr() == ("", "")


def test_names_of_the_environment_choose_the_experiment(
    server: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pong")
    new(tmp_path / "1").close()
    new(tmp_path / "2").close()
    assert server.experiments == {"pong": "1"}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    new(tmp_path / "3").close()
    assert [run.info["experiment_id"] for run in server.runs.values()] == ["1", "1", "77"]


def test_a_resumed_run_continues_the_tracked_run_without_a_gap_or_a_repetition(
    server: Recorder, tmp_path: Path
) -> None:
    with new(tmp_path) as run:
        run.log(1, {"x": 1.0})
        run.log(2, {"x": 2.0, "y": 2.5})
        run.save(run.checkpoint_path, {})
        run.log(3, {"x": 3.0})  # after the checkpoint: logged again when the run is resumed
    (tracked,) = server.runs.values()
    del tracked.metrics[1]  # was lost with the server or the process
    config = (tmp_path / "a/config.json").read_bytes()
    with new(tmp_path, resume=True, steps=20) as run:
        assert run.restore(run.checkpoint_path, lambda state: None)
        run.log(3, {"x": 3.0})
        run.log(4, {"x": 4.0, "z": 4.5})
    assert list(server.runs.values()) == [tracked]
    assert sorted(tracked.points("x")) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert (tracked.points("y"), tracked.points("z")) == ([(2, 2.5)], [(4, 4.5)])
    assert tracked.statuses == ["FINISHED", "RUNNING", "FINISHED"]
    assert (tracked.params["steps"], tracked.tags["steps"]) == ("10", "20"), "MLflow's parameters cannot change"
    assert (tmp_path / "a/config.json").read_bytes() == config


def test_tracking_begins_when_a_run_is_resumed(server: Recorder, tmp_path: Path) -> None:
    with new(tmp_path, "off") as run:
        run.log(1, {"x": 1.0, "y": float("inf")})
        run.save(run.checkpoint_path, {})
    assert (server.requests, tracked_ids(tmp_path)) == ([], {})
    with new(tmp_path, resume=True) as run:
        run.restore(run.checkpoint_path, lambda state: None)
        run.log(2, {"x": 2.0})
    ((run_id, tracked),) = server.runs.items()
    assert tracked.points("x") == [(1, 1.0), (2, 2.0)]
    assert tracked_ids(tmp_path) == {"mlflow": run_id}
    with new(tmp_path, "off", resume=True) as run:
        run.log(3, {"x": 3.0})
    assert len(tracked.points("x")) == 2
    assert tracked_ids(tmp_path) == {"mlflow": run_id}, "it can be continued later"


def test_many_metrics_and_settings_are_sent_in_parts(server: Recorder, tmp_path: Path) -> None:
    with new(tmp_path) as run:
        for step in range(30):
            run.log(step, {f"m{number}": float(step) for number in range(50)})
        run.hparams({f"s{number}": number for number in range(230)}, [])
    (tracked,) = server.runs.values()
    assert len(tracked.metrics) == 1500
    assert {f"s{number}" for number in range(230)} <= tracked.params.keys()


@pytest.mark.parametrize(
    ("how", "status"),
    [
        *(("signal", "KILLED"), ("exception", "FAILED")),
        *(("end", "FINISHED"), ("signal at the end", "FINISHED")),
    ],
)
def test_how_a_run_ended(how: str, status: str, server: Recorder, tmp_path: Path) -> None:
    try:
        with new(tmp_path) as run:
            if how == "signal":
                run.print_stop()
            if how == "signal at the end":
                run.stop_requested = "SIGTERM"
            if how == "exception":
                raise UserError("diverged")
            run.close()
    except UserError:
        pass
    (tracked,) = server.runs.values()
    assert tracked.statuses == [status]


def test_a_server_that_fails_is_warned_about_once_and_may_come_back(
    server: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new(tmp_path) as run:
        run.log(1, {"x": 1.0})
        run.flush()
        wait_for(lambda: any(tracked.points("x") for tracked in server.runs.values()))
        server.failing = True
        sent = len(server.requests)
        for step in (2, 3):
            run.log(step, {"x": float(step)})
            run.image("samples", step, PICTURE)
            run.flush()
        wait_for(lambda: len(server.requests) >= sent + 4)
        server.failing = False
        run.log(4, {"x": 4.0})
        run.save(run.checkpoint_path, {})
    (tracked,) = server.runs.values()
    assert tracked.points("x") == [(1, 1.0), (4, 4.0)]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: metrics or media could not be sent to MLflow (")
    assert "out of order" in warning
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 4
    with new(tmp_path, resume=True) as run:
        run.restore(run.checkpoint_path, lambda state: None)
    assert sorted(tracked.points("x")) == [(step, float(step)) for step in (1, 2, 3, 4)], "a resumed run fills the gap"


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_gone_when_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with recording_server() as server:
        use(server.url, monkeypatch)
        new(tmp_path).close()
    assert_check_passes("--name", "a", "--resume", folder=tmp_path, monkeypatch=monkeypatch)
    with new(tmp_path, resume=True) as run:
        run.log(1, {"x": 1.0})
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 1
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: metrics or media could not be sent to MLflow (")


def assert_check_passes(*words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("runs").symlink_to(folder)
    assert read(*words).track == "mlflow"
    Path("runs").unlink()


def read(*words: str) -> Config:
    return configure(Config, {}, list(words), "", kind="dqn", name_fields=("preset", "seed"))


def test_a_missing_server_is_reported_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording_server() as server:
        url = server.url
        use(url, monkeypatch)
        monkeypatch.chdir(tmp_path)
        assert read("--track", "mlflow").track == "mlflow"
    with pytest.raises(
        UserError, match=r"--track mlflow cannot be used: MLflow does not answer or refuses .*leave out"
    ):
        read("--track", "mlflow")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("service", ["mlflow", "wandb"])
def test_a_missing_client_is_reported_before_anything_is_created(
    service: ServiceName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, service, None)
    for words in (["--track", service], ["--track", service, "--seed", "2"]):
        with pytest.raises(UserError, match=f"type pip install {service}, or leave out --track") as error:
            read(*words)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"type pip install {service}"):
        new(tmp_path, service)
    assert list(tmp_path.iterdir()) == []


def test_a_local_store_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    use((tmp_path / "store").as_uri(), monkeypatch)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with new(tmp_path) as run:
        run.log(1, {"x": 1.0})
        run.image("samples", 1, PICTURE)
    client, run_id = MlflowClient(), tracked_ids(tmp_path)["mlflow"]
    assert [(point.step, point.value) for point in client.get_metric_history(run_id, "x")] == [(1, 1.0)]
    assert [file.path for file in client.list_artifacts(run_id, "media")] == ["media/samples-1.png"]
    assert client.get_run(run_id).data.params["steps"] == "10"


# ---- the thread, with a service of this test


class Fake:
    """Service that records calls. `gate` holds up every call until it is set."""

    name, label, knows_history = "wandb", "Fake", False

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    def _call(self, *call: Any) -> None:
        self.gate.wait()
        self.calls.append(call)

    def check(self) -> None:
        self._call("check")

    def create(self, name: str) -> str:
        self._call("create", name)
        return "id"

    def open(self, run_id: str, folder: Path, *, resumed: bool) -> None:
        self._call("open", run_id, resumed)

    def settings(self, settings: Mapping[str, Any]) -> None:
        self._call("settings")

    def scalars(self, rows: Rows) -> None:
        self._call("scalars", *rows)

    def media(self, tag: str, step: int, path: Path) -> None:
        self._call("media", tag, step)

    def close(self, status: Status) -> None:
        self._call("close", status)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    service = Fake()
    monkeypatch.setattr(tracking, "SERVICES", {"wandb": lambda: service})
    return service


def test_a_service_without_history_gets_rows_once(fake: Fake, tmp_path: Path) -> None:
    with new(tmp_path, "wandb") as run:
        run.log(1, {"x": 1.0})
        run.save(run.checkpoint_path, {})
    with new(tmp_path, "wandb", resume=True) as run:
        run.restore(run.checkpoint_path, lambda state: None)
        run.log(2, {"x": 2.0})
    assert fake.calls == [
        *(("create", "a"), ("open", "id", False), ("settings",), ("scalars", (1, {"x": 1.0})), ("close", "FINISHED")),
        *(("open", "id", True), ("settings",), ("scalars", (2, {"x": 2.0})), ("close", "FINISHED")),
    ]


def test_training_does_not_wait_for_a_slow_server(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "MAX_WAITING", 20)
    run = new(tmp_path, "wandb")
    wait_for(lambda: fake.calls[-1] == ("settings",))
    fake.gate.clear()
    for step in range(30):
        run.log(step, {"x": 1.0})
        run.flush()
    run.close()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "Fake (the server is too slow): training continues" in warning
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 30
    fake.gate.set()


def test_the_end_waits_as_long_as_something_is_sent(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 2.0)
    original = fake._call

    def slow(*call: Any) -> None:
        time.sleep(0.3)
        original(*call)

    monkeypatch.setattr(fake, "_call", slow)
    with new(tmp_path, "wandb") as run:
        for step in range(8):
            run.image("samples", step, PICTURE)
    assert fake.calls[-1] == ("close", "FINISHED")
    assert sum(call[0] == "media" for call in fake.calls) == 8


def test_a_run_is_not_tracked_by_default(fake: Fake, tmp_path: Path) -> None:
    threads = threading.active_count()
    with new(tmp_path, "off") as run:
        run.log(1, {"x": 1.0})
        run.flush()
        assert all(thread.name != "tracking" for thread in threading.enumerate()[threads:])
    assert fake.calls == []
    assert "tracking" not in json.loads((run.folder / "config.json").read_text())["extra"]


# ---- Weights & Biases


def test_wandb_in_its_offline_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with new(tmp_path, "wandb") as run:
        run.log(1, {"train/loss": 0.5})
        run.image("samples", 1, PICTURE)
        run.video("game", 1, FRAMES, fps=5)
        run.save(run.checkpoint_path, {})
    run_id = tracked_ids(tmp_path)["wandb"]
    (first,) = (run.folder / "wandb").glob("offline-run-*")
    assert first.name.endswith(run_id)
    file, texts = first / f"run-{run_id}.wandb", (b"train/loss", b"media/samples", b"media/game", b"zerokara")
    # The process of the client writes the file, and may do so after the end of the run.
    wait_for(lambda: file.is_file() and all(text in file.read_bytes() for text in texts))
    assert {path.suffix for path in (first / "files" / "media").rglob("*") if path.is_file()} == {".png", ".mp4"}
    with new(tmp_path, "wandb", resume=True) as run:
        run.log(2, {"train/loss": 0.25})
    # A folder that is made in the same second as another one has a number at the end of its name.
    assert len(list((run.folder / "wandb").glob(f"offline-run-*{run_id}*"))) == 2
    assert capfd.readouterr() == ("", "")


def test_wandb_without_an_api_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no API key: type wandb login, or set WANDB_MODE=offline"):
        read("--track", "wandb")
    assert list(tmp_path.iterdir()) == []
