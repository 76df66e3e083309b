"""Training programs that mirror their runs to an MLflow server, also after a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.core.mlflow_server import recording_server
from tests.programs import metrics, start, wait_until
from tests.soak.kills import CHILD, PROGRAMS
from tests.soak.phases import PhaseReader

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.parametrize("program", ["dqn", "dcgan-conditional", "classify"])
def test_a_program_mirrors_its_run_and_continues_after_a_kill(program: str, tmp_path: Path) -> None:
    module, *words = PROGRAMS[program]
    PhaseReader(tmp_path / "phase")
    checkpoint = tmp_path / "runs/run/checkpoint-0.pt"
    with recording_server() as server:
        environment = {
            "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "default",
        }
        command = ("-c", CHILD, str(tmp_path / "phase"), module, "--name", "run")
        process = start(tmp_path, *command, *words, "--track", "mlflow", **environment)
        wait_until(process, lambda: checkpoint.exists() and any(run.metrics for run in server.runs.values()))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed = start(tmp_path, *command, "--resume", **environment)
        _, err = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, err
        warnings = [line for line in err.splitlines() if "warning" in line]
        assert [line for line in warnings if not line.startswith("warning: update ")] == [], "those of a GAN may come"
    (tracked,) = server.runs.values()
    assert tracked.statuses[-1] == "FINISHED"
    assert tracked.params["seed"] == "1"
    rows = metrics(tmp_path / "runs/run")
    names = {key for row in rows for key in row if key != "step"}
    for name in names:
        expected = sorted((row["step"], row[name]) for row in rows if name in row)
        points = sorted(tracked.points(name))
        assert [step for step, _ in points] == [step for step, _ in expected], name
        assert [value for _, value in points] == pytest.approx([value for _, value in expected]), name
    media = {path.name for path in (tmp_path / "runs/run/media").iterdir()}
    assert {name.removeprefix("media/") for name in server.artifacts} == media
