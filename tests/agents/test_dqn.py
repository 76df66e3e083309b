"""Tests of the program agents.dqn: files, reproducibility, resuming after signals and kills, errors, learning."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.programs import Process, check_damage_reported, error_message, last_checkpoint, metrics, start, wait_until
from tests.tensorboard_pages import curve_groups, hparams_metrics
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import PRESETS, Config, read_config
from zerokara.agents.training import session
from zerokara.agents.training.evaluation import Scores, evaluate
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.config import EXIT_STOPPED, Stopped, UserError
from zerokara.envs.arcade.base import ArcadeEnv

TINY = (
    *("--env", "zerokara/Catch-v0", "--num-envs", "8", "--total-steps", "1600", "--learning-starts", "200"),
    *("--batch-size", "16", "--train-every-steps", "16", "--replay-capacity", "1000", "--target-update-steps", "160"),
    *(
        "--width-multiplier",
        "0.25",
        "--hidden-units",
        "32",
        "--log-every-steps",
        "160",
        "--checkpoint-every-steps",
        "240",
    ),
    *("--eval-every-steps", "800", "--eval-episodes", "4", "--eval-max-steps", "60", "--no-capture-video"),
    *("--learning-rate", "1e-3", "--final-learning-rate", "1e-4", "--learning-rate-decay-steps", "1200"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)


def start_program(folder: Path, *words: str, module: str = "agents.dqn") -> Process:
    """Start the program as a process in a folder."""
    return start(folder, "-m", module, *words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start_program(folder, *TINY, "--name", "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "step 0/1,600" in out
    assert out.strip().splitlines()[-1].startswith("zerokara/Catch-v0 at step 1,600: evaluation")
    return folder / "runs" / "run"


def test_a_run_writes_all_its_files(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["env"] == "zerokara/Catch-v0"
    assert config["extra"]["compute"]["precision"] == "float32"
    assert config["extra"]["environment"]["frame_stack"] == 4
    lines = metrics(finished)
    scalars = {key for line in lines for key in line}
    assert {"train/loss", "train/q", "train/grad_norm", "train/epsilon", "train/return", "train/length"} <= scalars
    assert {"replay/fill", "eval/return", "eval/length"} <= scalars
    assert [line["step"] for line in lines if "train/epsilon" in line] == list(range(160, 1601, 160))
    assert list(finished.glob("events.*"))
    assert {path.name for path in (finished / "media").iterdir()} >= {"input_stack-0.png", "first_layer-800.png"}
    state = checkpoint.load(finished / "checkpoint-0.pt", "dqn")
    assert state["step"] == 1600
    assert [line["train/learning_rate"] for line in lines if "train/epsilon" in line][-1] == 1e-4
    assert state["learner"]["optimizer"]["param_groups"][0]["lr"] == 1e-4
    assert state["updates"] == (1600 - 8 - 200) // 16  # updates that were due at the last step


def test_tensorboard_opens_on_curves(finished: Path) -> None:
    groups = curve_groups(finished)
    assert list(groups) == ["eval", "replay", "speed", "train"]
    assert min(groups.values()) > 1
    lines = metrics(finished)
    last = {name: [line[name] for line in lines if name in line][-1] for name in ("eval/return", "train/return")}
    assert hparams_metrics(finished.parent)["run"] == pytest.approx(last)


def test_the_same_seed_gives_the_same_metrics(finished: Path, tmp_path: Path) -> None:
    process = start_program(tmp_path, *TINY, "--name", "again", "--quiet")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(out.strip().splitlines()) == 1
    assert metrics(tmp_path / "runs" / "again") == metrics(finished)
    other = start_program(tmp_path, *TINY, "--name", "other", "--seed", "2")
    other.communicate(timeout=120)
    assert metrics(tmp_path / "runs" / "other") != metrics(finished)


@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_run_resumes_bitwise_identically(finished: Path, tmp_path: Path, kills: int) -> None:
    run = tmp_path / "runs" / "killed"
    words = [*TINY, "--name", "killed"]
    for kill in range(kills):
        process = start_program(tmp_path, *words)
        target_step = 240 * (kill + 1)
        wait_until(process, partial(reaches, run, target_step))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert target_step <= step_of(run) < 1600, "the process was killed too late for this test"
        words = [*TINY, "--name", "killed", "--resume"]
    process = start_program(tmp_path, *words)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert metrics(run) == metrics(finished)
    ours, theirs = (checkpoint.load(path / "checkpoint-0.pt", "dqn") for path in (run, finished))
    for name, weight in ours["learner"]["network"].items():
        assert torch.equal(weight, theirs["learner"]["network"][name])


def step_of(run: Path) -> int:
    """Return the step of the last complete checkpoint, -1 if there is none."""
    return int(last_checkpoint(run, "dqn").get("step", -1))


def reaches(run: Path, target_step: int) -> bool:
    return step_of(run) >= target_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_prints_the_resume_command(tmp_path: Path, number: signal.Signals) -> None:
    process = start_program(tmp_path, *TINY, "--name", "stopped", "--total-steps", "1000000")
    run = tmp_path / "runs" / "stopped"
    wait_until(process, partial(reaches, run, 240))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, err
    assert f"{number.name}: saving" in out
    assert "resume with: python -m agents.dqn --name stopped --resume" in out.strip().splitlines()[-1]
    at = step_of(run)
    resumed = start_program(tmp_path, "--name", "stopped", "--resume", "--total-steps", str(at + 80))
    _, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert step_of(run) == at + 80


def test_an_interrupted_evaluation_is_repeated_after_resuming(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    interruptions: list[int] = []

    def evaluate_interrupted(*args: Any, max_steps: int, **options: Any) -> Scores:
        if not interruptions:
            interruptions.append(max_steps)
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, max_steps=max_steps, **options)

    monkeypatch.setattr(session, "evaluate", evaluate_interrupted)
    with pytest.raises(Stopped):
        dqn.main([*TINY, "--name", "cut"])
    out = capsys.readouterr().out
    assert "SIGTERM: saving" in out
    assert "step 800: not evaluated yet" in out.strip().splitlines()[-1]
    run = tmp_path / "runs" / "cut"
    assert step_of(run) == 800
    assert not any("eval/return" in line for line in metrics(run))
    dqn.main(["--name", "cut", "--resume"])
    assert [line["step"] for line in metrics(run) if "eval/return" in line] == [800, 1600]
    assert metrics(run) == metrics(finished)


FAULTY = """
import gymnasium
import numpy as np

class Faulty(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros((84, 84), np.uint8), {}

    def step(self, action):
        self.steps += 1
        if self.steps == BREAKS_AT:
            raise RuntimeError("the motor broke")
        return np.full((84, 84), self.steps, np.uint8), 1.0, self.steps == 90, False, {}

gymnasium.register("Faulty-v0", Faulty)
"""


def test_an_exception_in_the_environment_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    module = tmp_path / "faulty.py"
    module.write_text(f"BREAKS_AT = 45\n{FAULTY}")
    # Eight environments: checkpoints at steps 0 and 240, the exception in the iteration that would end at step 360.
    process = start_program(tmp_path, *TINY, "--env", "faulty:Faulty-v0", "--name", "faulty", "--eval-every-steps", "0")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(
        "error: Faulty-v0 raised RuntimeError: the motor broke; this happened at step 45 of an episode"
    )
    run = tmp_path / "runs" / "faulty"
    state = checkpoint.load(run / "checkpoint-0.pt", "dqn")
    assert (state["step"], state["updates"], state["running_length"]) == (240, (240 - 8 - 200) // 16, [30] * 8)
    module.write_text(f"BREAKS_AT = None\n{FAULTY}")
    repaired = start_program(tmp_path, "--name", "faulty", "--resume", "--total-steps", "800")
    _, err = repaired.communicate(timeout=100)
    assert repaired.returncode == 0, err
    state = checkpoint.load(run / "checkpoint-0.pt", "dqn")
    assert (state["step"], state["returns"], state["running_length"]) == (800, [90.0] * 8, [10] * 8)


FILMED = (*TINY, "--total-steps", "240", "--eval-every-steps", "240", "--eval-max-steps", "200", "--capture-video")


def test_a_video_is_recorded_at_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dqn.main([*FILMED, "--name", "filmed"])
    run = tmp_path / "runs" / "filmed"
    (evaluated,) = [line for line in metrics(run) if "eval/length" in line]
    with av.open(str(run / "media" / "game-240.mp4")) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        assert video.streams.video[0].average_rate == 15
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == evaluated["eval/length"]
    assert any((frame != frames[0]).any() for frame in frames), "all frames are equal"
    board = EventAccumulator(str(run), size_guidance={"images": 0})
    board.Reload()
    (logged,) = board.Images("visual/game")
    assert (logged.step, logged.encoded_image_string[:6]) == (240, b"GIF89a")
    assert b"target_update_steps" in board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert hparams_metrics(run.parent)["filmed"]["eval/return"] == pytest.approx(evaluated["eval/return"])


def test_a_failed_video_prints_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(env: ArcadeEnv) -> np.ndarray:
        raise RuntimeError("no screen\nand a trace of many lines")

    monkeypatch.setattr(ArcadeEnv, "render", broken)
    monkeypatch.chdir(tmp_path)
    dqn.main([*FILMED, "--name", "unfilmed"])
    out, err = capsys.readouterr()
    assert err == "warning: no video was recorded at step 240: no screen\n"
    assert out.strip().splitlines()[-1].startswith("zerokara/Catch-v0 at step 240: evaluation")
    run = tmp_path / "runs" / "unfilmed"
    assert not list((run / "media").glob("*.mp4"))
    assert step_of(run) == 240


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nonsense", "3"], "--nonsense"),
        (["--preset", "fastest"], "fast"),
        (["--batch-size", "0"], "at least 1"),
        (["--gamma", "1.5"], "at most 1"),
        (["--env", "zerokara/Cach-v0"], "zerokara/Catch-v0"),
        (["--env", "ALE/Pung-v5"], "ALE/Pong-v5"),
        (["--resume", "--name", "nowhere"], "nowhere"),
        (["--device", "toaster"], "cpu"),
        (["--replay-capacity", "16", "--env", "zerokara/Catch-v0", "--compile", "off"], "--replay-capacity"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        dqn.main([*words, "--precision", "float32"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_exits_with_code_2(tmp_path: Path) -> None:
    assert "--epsilon-end" in error_message(tmp_path, "-m", "agents.dqn", "--epsilon-endd", "0.1")


def test_settings_cannot_change_when_resuming(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[1])
    with pytest.raises(UserError, match=r"was started with --gamma 0\.99"):
        read_config(["--name", "run", "--resume", "--gamma", "0.9"])
    assert read_config(["--name", "run", "--resume", "--total-steps", "1700"]).total_steps == 1700
    with pytest.raises(UserError, match="--resume"):
        dqn.main([*TINY, "--name", "run"])


def test_a_damaged_checkpoint_is_named(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_bytes((finished / "config.json").read_bytes())
    whole = (finished / "checkpoint-0.pt").read_bytes()
    check_damage_reported(run / "checkpoint-0.pt", whole, lambda: dqn.main(["--name", "run", "--resume", "--quiet"]))


def test_divergence_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"diverged at step .* NaN or Inf"):
        dqn.main([*TINY, "--name", "nan", "--learning-rate", "1e30", "--max-grad-norm", "1e30"])
    state = checkpoint.load(tmp_path / "runs" / "nan" / "checkpoint-0.pt", "dqn")
    assert all(weight.isfinite().all() for weight in state["learner"]["network"].values())


def test_presets_match_the_papers() -> None:
    for name in PRESETS:
        assert parse(Config, PRESETS, ["--preset", name], "").preset == name
    nature = parse(Config, PRESETS, ["--preset", "nature"], "")
    assert (nature.batch_size, nature.replay_capacity, nature.target_update_steps) == (32, 1_000_000, 10_000)
    assert (nature.learning_rate, nature.gamma, nature.train_every_steps) == (2.5e-4, 0.99, 4)
    assert (nature.epsilon_end, nature.epsilon_decay_steps, nature.learning_starts) == (0.1, 1_000_000, 50_000)
    assert (nature.n_step, nature.double, nature.dueling, nature.terminal_on_life_loss) == (1, False, False, True)
    dopamine = parse(Config, PRESETS, ["--preset", "dopamine"], "")
    assert (dopamine.protocol, dopamine.learning_rate, dopamine.optimizer_epsilon) == ("machado", 6.25e-5, 1.5e-4)
    assert (dopamine.learning_starts, dopamine.target_update_steps, dopamine.epsilon_decay_steps) == (
        20_000,
        8_000,
        250_000,
    )


def test_two_processes_train_one_agent_and_resume(tmp_path: Path) -> None:
    """Run under torchrun: environments, replay buffer and batches are divided, gradients averaged, one process logs."""
    launch = ["--standalone", "--nproc-per-node", "2", "-m", "agents.dqn", *TINY, "--name", "two", "--no-capture-video"]
    process = start_program(tmp_path, *launch, "--total-steps", "800", module="torch.distributed.run")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("zerokara/Catch-v0 at step 800") == 1
    run = tmp_path / "runs" / "two"
    states = [checkpoint.load(run / f"checkpoint-{rank}.pt", "dqn") for rank in range(2)]
    assert [state["step"] for state in states] == [800, 800]
    assert [len(state["replay"]["head"]) for state in states] == [4, 4]
    for name, weight in states[0]["learner"]["network"].items():
        assert torch.equal(weight, states[1]["learner"]["network"][name]), "the weights differ between the processes"
    generators = [state["exploration"]["generator"] for state in states]
    assert not torch.equal(*generators)
    steps = [line["step"] for line in metrics(run) if "train/epsilon" in line]
    assert steps == list(range(160, 801, 160))
    process = start_program(tmp_path, *launch, "--total-steps", "960", "--resume", module="torch.distributed.run")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert [line["step"] for line in metrics(run) if "train/epsilon" in line] == list(range(160, 961, 160))


@pytest.mark.slow
def test_learns_catch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default preset nearly solves Catch, in at most 150,000 steps instead of its 60,000."""
    monkeypatch.chdir(tmp_path)
    words = ["--env", "zerokara/Catch-v0", "--stop-at-return", "4.75", "--no-capture-video", "--name", "catch"]
    dqn.main([*words, "--total-steps", "150000"])  # of ten runs, the slowest took 50,016
    # Five balls, one point each; the mean of 30 episodes reached the goal, and 30 further episodes confirm it.
    assert max(line.get("eval/return_confirmed", 0.0) for line in metrics(tmp_path / "runs" / "catch")) >= 0.95 * 5


def test_training_returns_are_raw(finished: Path) -> None:
    state = checkpoint.load(finished / "checkpoint-0.pt", "dqn")
    assert state["games"] >= len(state["returns"]) > 0
    assert all(-5 <= value <= 5 and float(value).is_integer() for value in state["returns"])
    last = [line["train/return"] for line in metrics(finished) if "train/return" in line][-1]
    assert np.mean(state["returns"]) == pytest.approx(last)
