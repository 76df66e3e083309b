"""Tests of agents of the zoo: found by name, evaluated and played, and what the package ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.agents.qlearning.test_agent_file import write_file
from zerokara.agents import evaluate, export, play
from zerokara.agents.qlearning.agent_file import AgentMetadata
from zerokara.agents.viewing.loading import Agent, find_agent, load_agent
from zerokara.core.config import UserError
from zerokara.core.zoo import registry as zoo

ONE_THREAD = ("--device", "cpu", "--threads", "1")


@pytest.fixture
def ball(catch_run: Path, empty_zoo: Path) -> Path:
    """Create a zoo with one agent, that of runs/catch."""
    path = empty_zoo / "agents" / "ball.safetensors"
    path.parent.mkdir()
    write_file(catch_run, path, half=True)
    return path


def test_an_agent_is_loaded_by_name_file_or_folder(ball: Path, catch_run: Path) -> None:
    of_run, obs = load_agent(str(catch_run), which="last", threads=1), np.zeros((1, 4, 84, 84), np.uint8)
    for source in ("ball", str(ball), ball):
        agent = load_agent(source, threads=1)
        assert (agent.name, agent.source, agent.step) == ("ball", ball, 400)
        np.testing.assert_allclose(agent.policy.values(obs), of_run.policy.values(obs), rtol=0.01, atol=1e-3)
    with pytest.raises(UserError, match=r"There is no bal \(did you mean ball\?\): .*; existing runs: runs/catch\."):
        load_agent("bal")
    with pytest.raises(UserError, match=r"--which last selects weights of a run folder, and ball\.safetensors is one"):
        load_agent("ball", which="last")


def test_an_agent_of_the_zoo_is_played_into_a_folder_of_its_name(
    ball: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in ball.parent.rglob("*"))
    play.main(["ball", "--max-steps", "5", *ONE_THREAD])
    video = Path("runs/outputs-ball/media/play-400.mp4")
    with av.open(str(video)) as container:
        assert len(list(container.decode(video=0))) == 5
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"truncated by --max-steps 5; {video}")
    assert sorted(path for path in ball.parent.rglob("*")) == before, "nothing is written to the package"


def test_an_agent_of_the_zoo_is_played_for_fewer_steps_than_a_run(
    ball: Path, catch_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(play, "ZOO_MAX_STEPS", 3)
    monkeypatch.setattr(play, "MAX_STEPS", 7)
    for source, steps in (("ball", 3), (str(catch_run), 7), (str(ball), 7)):
        play.main([source, *ONE_THREAD])
        assert f"in {steps} steps, truncated by --max-steps {steps};" in capsys.readouterr().out


def test_an_agent_of_the_zoo_is_evaluated_beside_a_run(ball: Path, catch_run: Path) -> None:
    evaluate.main(["ball", str(catch_run), "--episodes", "2", *ONE_THREAD])
    result = json.loads(Path("runs/outputs-ball/evaluation-400.json").read_text())
    assert (result["run"], result["games"]) == ("ball", 2)
    assert len(list(catch_run.glob("evaluation-*.json"))) == 1


def test_an_agent_of_the_zoo_is_exported(ball: Path) -> None:
    export.main(["ball", "--no-onnx", "--observations", "8"])
    np.testing.assert_array_equal(
        load_agent(Path("ball.safetensors"), threads=1).policy.values(np.zeros((1, 4, 84, 84), np.uint8)),
        load_agent("ball", threads=1).policy.values(np.zeros((1, 4, 84, 84), np.uint8)),
    )


def test_one_observation_at_a_time_is_computed_by_one_thread(ball: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def load(*args: Any, **options: Any) -> Agent:
        threads.append(options["threads"])
        return load_agent(*args, **{**options, "threads": 1})

    monkeypatch.setattr(play, "load_agent", load)
    for words in ((), ("--attention",), ("--threads", "3")):
        play.main(["ball", "--max-steps", "1", "--device", "cpu", *words])
    assert threads == [1, 0, 3], "0: one per core"


@pytest.mark.parametrize("name", zoo.files("agents"))
def test_agents_of_the_package_are_small_scored_and_can_be_played(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = AgentMetadata.read_metadata(find_agent(name))
    assert metadata is not None
    assert find_agent(name).stat().st_size <= zoo.MAX_BYTES
    assert metadata.figures["return_float16"] >= 0.98 * metadata.figures["return"]
    assert metadata.figures["return_float16"] >= {"pong": 18}.get(name, 0)
    assert metadata.protocol["episodes"] >= 30
    assert metadata.command.startswith("python -m ")
    assert metadata.data
    agent = load_agent(name, threads=1)
    assert all(p.isfinite().all() for p in agent.policy.network.parameters())
    play.main([name, "--max-steps", "4", *ONE_THREAD])
    assert [path.suffix for path in Path(f"runs/outputs-{name}/media").iterdir()] == [".mp4"]
