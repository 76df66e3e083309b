"""The SLURM scripts in examples/ do with imitations of SLURM, Ray and Python what their first lines say."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
# Each writes its name and arguments to $OUT. `ray start` runs until it is killed, python with $WAITS until SIGTERM;
# python begins when Ray has started on $RAY_STARTS machines (here all commands run on one, in any order).
COMMANDS = {
    "scontrol": 'printf "n1\\nn2\\nn3\\n"',
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "ray": 'if [ "$1" = start ]; then exec sleep 60; fi; [ -e ready ] || { touch ready; exit 1; }',
    "python": 'until [ "$(grep -c "^ray start" $OUT)" -ge ${RAY_STARTS:-0} ]; do sleep 0.01; done; '
    'trap "echo saved >> $OUT; exit 75" TERM; echo ready >> $OUT; '
    '[ -z "${WAITS:-}" ] || { sleep 60 & wait; }; exit 3',
}


def start(tmp_path: Path, script: str, *words: str, **environment: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a script as SLURM does on the first of three nodes."""
    commands, out = tmp_path / "bin", tmp_path / "out"
    commands.mkdir()
    for name, body in COMMANDS.items():
        (commands / name).write_text(f'#!/bin/bash\necho {name} "$@" >> $OUT\n{body}\n')
        (commands / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "5",
    }
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", REPO / "examples" / script, *words],
        cwd=tmp_path,
        env={**os.environ, **slurm, **environment, "PATH": path, "OUT": str(out)},
        start_new_session=True,
    )
    return process, out


def end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a script; end what it has left running, as SLURM does."""
    code = process.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return code


def test_ray_is_started_on_all_nodes_and_the_program_on_the_first(tmp_path: Path) -> None:
    process, out = start(tmp_path, "slurm_ray.sh", "agents.benchmark", "--seeds", "1", "2", RAY_STARTS="2")
    assert end(process) == 3, "the exit code of the program"
    lines = out.read_text().splitlines()
    head = "ray start --head --port=20007 --num-cpus=5 --block"
    assert f"srun --overlap --nodes=1 --ntasks=1 --nodelist=n1 {head}" in lines
    others = "ray start --address=n1:20007 --num-cpus=5 --block"
    assert f"srun --overlap --nodes=2 --ntasks=2 --exclude=n1 {others}" in lines
    assert lines.count("ray status --address=n1:20007") == 2, "until the first node answers"
    assert "python -m zerokara.agents.benchmark --ray-address auto --seeds 1 2" in lines


@pytest.mark.parametrize("script", ["slurm_ray.sh", "slurm_sweep.sh"])
def test_sigterm_before_the_time_limit_reaches_the_program(tmp_path: Path, script: str) -> None:
    words = ("agents.sweep", "n_step=1..5") if script == "slurm_ray.sh" else ("n_step=1..5", "--storage", "journal")
    process, out = start(tmp_path, script, *words, WAITS="1", RAY_STARTS="2" if script == "slurm_ray.sh" else "0")
    deadline = time.monotonic() + 60
    while (not out.exists() or "ready" not in out.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert end(process) == 75
    assert out.read_text().splitlines()[-1] == "saved"
    assert "python -m zerokara.agents.sweep " in out.read_text()


def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    process, out = start(tmp_path, "slurm_ray.sh")
    assert process.wait(60) != 0
    assert not out.exists()
