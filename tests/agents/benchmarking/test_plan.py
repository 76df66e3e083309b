"""Test the plan of a benchmark: command lines, error messages, states of runs, memory, threads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zerokara.agents.benchmarking import plan as benchmark_plan
from zerokara.agents.benchmarking.plan import (
    PRESETS,
    PlannedRun,
    describe_version_changes,
    deviations_by_preset,
    make_job,
    memory_needed,
    plan_runs,
    protocol_deviations,
    run_state,
    version_changes,
)
from zerokara.agents.configs import dqn
from zerokara.agents.configs.common import ProtocolName
from zerokara.agents.configs.dqn import Config
from zerokara.core import checkpoint
from zerokara.core.config import UserError, from_dict

CATCH, SNAKE = "zerokara/Catch-v0", "zerokara/Snake-v0"


def planned(
    env_ids: tuple[str, ...] = (CATCH,),
    presets: tuple[str, ...] = ("fast",),
    seeds: tuple[int, ...] = (1,),
    protocol: ProtocolName = "nature",
    **changes: Any,
) -> list[PlannedRun]:
    options: dict[str, Any] = {"name": "bench", "steps": 400, "evaluations": 4, "settings": (), "threads": 1}
    return plan_runs(env_ids, presets, seeds, protocol=protocol, **{**options, "devices": ["cpu"], **changes})


def test_every_combination_is_planned_once_and_the_seed_varies_slowest() -> None:
    runs = planned((CATCH, SNAKE, CATCH), ("fast", "pqn-paper"), (3, 1, 3))
    assert [(run.env, run.preset, run.seed) for run in runs] == [
        (env, preset, seed) for seed in (3, 1) for env in (CATCH, SNAKE) for preset in ("fast", "pqn-paper")
    ]
    assert runs[1].name == "bench-zerokara-Catch-v0-pqn-paper-3"
    assert (runs[1].kind, runs[1].config.preset, runs[1].folder) == ("pqn", "paper", Path("runs") / runs[1].name)
    assert len({run.name for run in runs}) == 8


def test_arguments_give_the_planned_config() -> None:
    (run,) = planned(settings=("width=0.5", "dueling=false", "n-step=2", "stop_at_return=None"))
    config = dqn.read_config(run.arguments)
    assert config == run.config
    assert (config.width_multiplier, config.dueling, config.n_step, config.stop_at_return) == (0.5, False, 2, None)
    assert (config.total_steps, config.eval_every_steps, config.capture_video, config.device, config.threads) == (
        400,
        100,
        False,
        "cpu",
        1,
    )
    assert (config.eval_epsilon, config.protocol) == (0.05, "nature")
    assert planned(settings=("capture_video=True", "eval_every_steps=50"))[0].config.eval_every_steps == 50


def test_each_game_has_its_settings_and_replays_are_kept_if_asked_for() -> None:
    runs = planned((CATCH, SNAKE), ("fast", "pqn-paper"), keep_replays=True)
    assert [run.config.backbone for run in runs if isinstance(run.config, Config)] == ["der", "nature"]
    for run in runs:
        assert ("--no-delete-replay" in run.arguments) == (run.kind == "dqn")
        assert PRESETS[run.preset][2](run.arguments) == run.config
        resumed = make_job(run, Path("log")).resume_arguments
        assert ("--no-delete-replay" in resumed) == (run.kind == "dqn")
    assert not any("delete-replay" in word for run in planned((CATCH,)) for word in run.arguments)


def test_protocols_set_total_steps_and_evaluations() -> None:
    (machado,) = planned(protocol="machado")
    assert machado.config.eval_every_steps == 0
    (short,) = planned(protocol="100k", steps=None, presets=("data-efficient",))
    assert (short.config.total_steps, short.config.eval_every_steps, short.config.eval_episodes) == (
        100_000,
        25_000,
        100,
    )


def test_devices_are_assigned_in_turn() -> None:
    runs = planned(seeds=(1, 2, 3), devices=["cuda:0", "cuda:1"])
    assert [run.config.device for run in runs] == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": ("fastt",)}, r"no preset 'fastt' \(did you mean fast\?\): give --presets some of"),
        ({"presets": ("paper",)}, "no preset 'paper'.*pqn-paper"),
        ({"env_ids": (CATCH, "zerokara/Cach-v0")}, "zerokara/Catch-v0"),
        ({"env_ids": ("CartPol-v1",)}, "CartPole-v1"),
        ({"settings": ("width",)}, "--settings cannot be 'width': it must be field=value"),
        ({"settings": ("wdth=1",)}, r"no flag --wdth \(did you mean --width-multiplier\?\)"),
        ({"settings": ("gamma=2",)}, "--gamma cannot be 2.0"),
        ({"settings": ("seed=2",)}, "the benchmark itself sets seed"),
        ({"settings": ("munchausen=true", "double=true")}, "cannot be combined"),
        (
            {"presets": ("fast", "nature"), "steps": None},
            r"\(fast on \S+Catch-v0 60,000, nature on \S+Catch-v0 50,000,000 steps\): set one with --to",
        ),
    ],
)
def test_errors_are_raised_before_anything_is_created(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        planned(**changes)
    assert list(tmp_path.iterdir()) == []


def planned_catch_run(catch_run: Path) -> PlannedRun:
    """Return the run of the fixture as a planned run."""
    content = json.loads((catch_run / "config.json").read_text())
    config = from_dict(Config, content["config"], "config.json")
    return PlannedRun(config.env, "fast", config.seed, "dqn", config, ("--name", "catch"))


def test_state_of_a_run(catch_run: Path) -> None:
    run = planned_catch_run(catch_run)
    assert run_state(run) == "finished"
    state = checkpoint.load(catch_run / "checkpoint-0.pt", "dqn")
    checkpoint.save(catch_run / "checkpoint-0.pt", {**state, "owes_evaluation": True}, "dqn")
    assert run_state(run) == "started", "the last evaluation was interrupted"
    checkpoint.save(catch_run / "checkpoint-0.pt", {**state, "step": 200, "goal_reached": True}, "dqn")
    assert run_state(run) == "finished", "it reached --stop-at-return before its last step"
    checkpoint.save(catch_run / "checkpoint-0.pt", {**state, "step": 200, "goal_reached": False}, "dqn")
    assert run_state(run) == "started"
    (catch_run / "checkpoint-0.pt").write_bytes(b"damaged")
    assert run_state(run) == "started"  # the run itself reports the damage
    (catch_run / "checkpoint-0.pt").unlink()
    assert run_state(run) == "started"
    (catch_run / "config.json").unlink()
    assert run_state(run) == "new"
    shutil.rmtree(catch_run)
    assert run_state(run) == "new"


def test_run_that_is_not_finished_is_resumed(catch_run: Path) -> None:
    run = planned_catch_run(catch_run)
    content = json.loads((catch_run / "config.json").read_text())
    content["config"]["total_steps"] = 500
    (catch_run / "config.json").write_text(json.dumps(content))
    longer = PlannedRun(
        run.env, run.preset, run.seed, "dqn", from_dict(Config, content["config"], "config.json"), run.arguments
    )
    assert run_state(longer) == "started"
    log = Path("x.log")
    resumed = ("-m", "zerokara.agents.dqn", "--name", "catch", "--resume")
    assert make_job(longer, log).resume_arguments == (*resumed, "--delete-replay")
    kept = replace(longer, config=from_dict(Config, {**content["config"], "delete_replay": False}, "config.json"))
    assert make_job(kept, log).resume_arguments == (*resumed, "--no-delete-replay")
    assert make_job(longer, log).arguments == (*resumed[:2], *longer.arguments)


def test_another_run_of_the_same_name_is_refused(catch_run: Path) -> None:
    run = planned_catch_run(catch_run)
    content = json.loads((catch_run / "config.json").read_text())
    for field, value in (("threads", 7), ("device", "auto"), ("quiet", False), ("env_workers", 3), ("compile", "on")):
        content["config"][field] = value
    (catch_run / "config.json").write_text(json.dumps(content))
    assert run_state(run) == "finished"
    content["config"]["gamma"] = 0.5
    (catch_run / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"started with --gamma 0\.5, but this benchmark needs 0\.99: choose another"):
        run_state(run)
    content["kind"] = "pqn"
    (catch_run / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds a run of pqn"):
        run_state(run)


def started_with(run: PlannedRun, command: str, **changes: Any) -> None:
    """Let the run of the fixture be one that this command started, with other settings than the plan."""
    path = run.folder / "config.json"
    content = json.loads(path.read_text())
    content["config"] |= changes
    path.write_text(json.dumps({**content, "command": command}))


@pytest.mark.parametrize("program", ["python -m agents.dqn", "python -m zerokara.agents.dqn", "zerokara dqn"])
def test_a_run_of_another_version_of_its_preset_is_recognized(catch_run: Path, program: str) -> None:
    run = planned_catch_run(catch_run)
    assert describe_version_changes([run]) == []
    started_with(run, f"{program} --preset fast --name catch", gamma=0.5, loss="mse")
    assert version_changes(run) == {"gamma": (0.5, 0.99), "loss": ("mse", "huber")}
    assert run_state(run) == "finished"
    (line,) = describe_version_changes([run, *planned()])
    changes = "--loss mse instead of huber, --gamma 0.5 instead of 0.99"
    assert line == f"catch: started by another version of zerokara, which gave preset fast {changes}"


@pytest.mark.parametrize(
    ("command", "changes", "arguments"),
    [
        ("python -m agents.dqn --preset fast --gamma 0.5", {"gamma": 0.5}, ()),
        ("python -m agents.dqn --stack 2", {"frame_stack": 2}, ()),  # an older name
        ("python -m agents.dqn --preset fast", {"gamma": 0.5}, ("--gamma", "0.99")),
        ("python -m agents.dqn --preset fast", {"dueling": False}, ("--dueling",)),
        ("python my_script.py", {"gamma": 0.5}, ()),
        ("python -m agents.dqn --name '", {"gamma": 0.5}, ()),
    ],
)
def test_a_run_with_settings_that_were_given_is_another_run(
    command: str, changes: dict[str, Any], arguments: tuple[str, ...], catch_run: Path
) -> None:
    run = planned_catch_run(catch_run)
    run = replace(run, arguments=(*run.arguments, *arguments))
    started_with(run, command, **changes)
    with pytest.raises(UserError, match=r"was started with --\S+ \S+, but this benchmark needs"):
        run_state(run)


def test_a_switch_that_the_benchmark_turns_off_is_not_taken_for_a_change_of_the_preset(catch_run: Path) -> None:
    run = planned_catch_run(catch_run)
    assert isinstance(run.config, Config)
    off = replace(run, config=replace(run.config, dueling=False), arguments=("--no-dueling",))
    with pytest.raises(UserError, match="was started with --dueling True, but this benchmark needs False"):
        run_state(off)


def test_a_preset_that_became_longer_keeps_its_number_of_evaluations(catch_run: Path) -> None:
    run = planned_catch_run(catch_run)
    longer = replace(run, config=replace(run.config, total_steps=4000, eval_every_steps=2000))
    longer = replace(longer, arguments=("--eval-every-steps", "2000"))
    started_with(longer, "python -m agents.dqn --eval-every-steps 200 --name catch")
    assert run_state(longer) == "finished", "it has done the steps of its own length"
    assert version_changes(longer) == {"total_steps": (400, 4000), "eval_every_steps": (200, 2000)}
    more = replace(longer, config=replace(longer.config, eval_every_steps=1000))
    with pytest.raises(UserError, match="was started with --eval-every-steps 200"):
        run_state(more)


def test_memory_is_that_of_replay_and_process() -> None:
    nature = dqn.read_config(["--preset", "nature"])
    slots = 1_000_000 + 10_000 + 4
    assert memory_needed(nature) == {"main": slots * (84 * 84 + 9) + benchmark_plan.PROCESS_BYTES}
    color = dqn.read_config(["--no-grayscale", "--replay-capacity", "1000", "--num-envs", "10"])
    color = replace(color, device="cuda:1")
    assert memory_needed(color) == {
        "main": benchmark_plan.PROCESS_BYTES,
        "cuda:1": (1000 + 10_000 + 40) * (3 * 84 * 84 + 9) + benchmark_plan.DEVICE_BYTES,
    }
    (pqn,) = planned(presets=("pqn-paper",))
    assert memory_needed(pqn.config)["main"] - benchmark_plan.PROCESS_BYTES == 128 * 32 * 4 * (84 * 84 + 9)
    (stream,) = planned(presets=("stream-paper",))
    assert (stream.kind, memory_needed(stream.config)) == ("stream", {"main": benchmark_plan.PROCESS_BYTES})


def test_memory_of_vectors_is_that_of_their_numbers() -> None:
    config = dqn.read_config(["--env", "CartPole-v1", "--backbone", "mlp", "--replay-capacity", "1000"])
    slots = 1000 + config.checkpoint_every_steps + 4 * config.num_envs
    assert memory_needed(config) == {"main": slots * (4 * 4 + 9) + benchmark_plan.PROCESS_BYTES}


def test_memory_is_what_the_replay_allocates(tmp_path: Path) -> None:
    from zerokara.agents.qlearning.replay import Replay

    config = dqn.read_config(["--replay-capacity", "1000", "--num-envs", "10", "--checkpoint-every-steps", "200"])
    replay = Replay(
        config.replay_capacity,
        config.num_envs,
        (4, 84, 84),
        1,
        n_step=1,
        gamma=0.9,
        seed=0,
        device=torch.device("cpu"),
        checkpoint_margin=config.checkpoint_every_steps + 4 * config.num_envs,
    )
    assert memory_needed(config)["main"] - benchmark_plan.PROCESS_BYTES == replay.bytes


def test_deviations_from_a_protocol_are_listed() -> None:
    def deviations(*settings: str, protocol: ProtocolName = "nature", steps: int | None = 400) -> list[str]:
        (run,) = planned(("ALE/Pong-v5",), settings=settings, protocol=protocol, steps=steps)
        return protocol_deviations(run.config, protocol)

    assert deviations("eval-epsilon=0.1", "width=0.5", "repeat_action_probability=0") == [
        "eval_epsilon is 0.1, but 0.05 in protocol nature"
    ]
    assert deviations(protocol="100k") == ["total_steps is 400, but 100000 in protocol 100k"]
    assert deviations("eval_every_steps=7", protocol="100k", steps=None) == []
    assert deviations("repeat_action_probability=0.5", protocol="machado") == [
        "repeat_action_probability is 0.5, but 0.25 in protocol machado"
    ]


def test_deviations_of_some_presets_name_them() -> None:
    runs = planned(("ALE/Pong-v5",), ("fast", "btr"), protocol="machado")
    assert deviations_by_preset(runs, "machado") == ["noop_max is 30, but 0 in protocol machado (preset btr)"]
    both = planned(("ALE/Pong-v5",), ("fast", "nature"), settings=("eval-epsilon=0.1",))
    assert deviations_by_preset(both, "nature") == ["eval_epsilon is 0.1, but 0.05 in protocol nature"]


def test_switches_that_may_be_none_are_formatted() -> None:
    (run,) = planned(settings=("full_action_space=true", "fire-reset=None"), env_ids=("ALE/Pong-v5",))
    assert (run.config.full_action_space, run.config.fire_reset) == (True, None)
    assert "--full-action-space" in run.arguments
    assert dqn.read_config(run.arguments) == run.config
