"""A run mirrored to a real MLflow server. ZEROKARA_MLFLOW names the command `mlflow` of a complete installation:

python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow
ZEROKARA_MLFLOW=/tmp/mlflow/bin/mlflow pytest tests/core/test_tracking_server.py
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.core.test_tracking import new, tracked_ids, use


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with a database and a folder of files."""
    command = os.environ.get("ZEROKARA_MLFLOW")
    if not command:
        pytest.skip("ZEROKARA_MLFLOW is not set to the command of a complete MLflow")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *words],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while not answers(f"{address}/health"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def test_a_run_on_a_real_server(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use(url, monkeypatch)
    with new(tmp_path) as run:
        run.log(1, {"train/loss": 0.5, "train/q": float("nan")})
        run.image("samples", 1, np.zeros((4, 6), np.uint8))
        run.video("game", 1, np.zeros((3, 16, 16, 3), np.uint8), fps=5)
        run.save(run.checkpoint_path, {})
        run.log(2, {"train/loss": 0.25})
    client, run_id = MlflowClient(), tracked_ids(tmp_path)["mlflow"]
    assert capfd.readouterr() == ("", "")
    assert client.get_run(run_id).info.status == "FINISHED"
    with new(tmp_path, resume=True, steps=20) as run:
        assert run.restore(run.checkpoint_path, lambda state: None)
        run.log(2, {"train/loss": 0.25})
        run.log(3, {"train/loss": 0.125})
        run.print_stop()
    assert capfd.readouterr() == ("", "")
    tracked = client.get_run(run_id)
    assert client.get_experiment(tracked.info.experiment_id).name == "zerokara"
    assert (tracked.info.run_name, tracked.info.status) == ("a", "KILLED")
    assert (tracked.data.params["steps"], tracked.data.tags["steps"]) == ("10", "20")
    points = [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")]
    assert sorted(points) == [(1, 0.5), (2, 0.25), (3, 0.125)]
    files = {file.path for file in client.list_artifacts(run_id, "media")}
    assert files == {"media/samples-1.png", "media/game-1.mp4"}
    local = client.download_artifacts(run_id, "media/samples-1.png", str(tmp_path))
    assert Path(local).read_bytes() == (run.folder / "media/samples-1.png").read_bytes()
