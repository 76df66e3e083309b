"""Default names of runs, and runs whose folder was renamed."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from zerokara.agents.configs import dqn
from zerokara.core import run_config
from zerokara.core.config import Stopped, UserError
from zerokara.core.run_config import configure, default_name
from zerokara.core.run_folder import read_config as read_run
from zerokara.core.training_program import open_run
from zerokara.generative.gan import config as gan
from zerokara.generative.style import config as style
from zerokara.vision import augmentation, depth
from zerokara.vision.captioning import config as captioning
from zerokara.vision.classification import config as classification
from zerokara.vision.classification.config import PRESETS, Config, read_config
from zerokara.vision.detection import config as detection
from zerokara.vision.segmentation import config as segmentation


@dataclass(frozen=True)
class Style:
    pictures: tuple[str, ...] = ("photos/old town.jpg", "wave (blue).png")
    env: str = "ALE/Pong-v5"
    rom: str = "package:Game-v0"
    seed: int = 3


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (["pictures", "seed"], "kind-old_town-wave_blue_-3"),
        (["env", "seed"], "kind-Pong-v5-3"),
        (["rom"], "kind-package-Game-v0"),
        ([], "kind"),
    ],
)
def test_paths_and_ids_become_parts_of_a_name(fields: list[str], name: str) -> None:
    assert default_name("kind", Style(), fields) == name


def test_name_of_a_classifier() -> None:
    config = read_config(["--data", "../my pets.zip", "--seed", "3", "--preset", "book"])
    assert config.name == "classify-my_pets-deep_cnn-book-3"


@pytest.mark.parametrize("program", [captioning, detection, gan, segmentation])
def test_airbench_needs_weights_where_its_first_layer_is_not_whitened(program: Any) -> None:
    with pytest.raises(UserError, match="first layer of the backbone airbench would be random and frozen"):
        program.read_config(["--backbone", "airbench"])
    given = ["--backbone", "airbench", "--pretrained-backbone", "runs/a"]
    assert program.read_config(given).backbone == "airbench"
    assert program.read_config(["--backbone", "resnet20"]).backbone == "resnet20"


@pytest.mark.parametrize(("program", "unit"), [(classification, "epochs"), (gan, "updates")])
def test_a_run_has_one_length(program: Any, unit: str) -> None:
    default = str(getattr(program.read_config([]), unit))
    for number in ("5", default):
        with pytest.raises(
            UserError, match=f"^--minutes chooses the number of {unit}: leave out --minutes or --{unit}"
        ):
            program.read_config(["--minutes", "15", f"--{unit}", number])
    assert program.read_config(["--minutes", "15"]).minutes == 15
    assert getattr(program.read_config(["--minutes", "0", f"--{unit}", "5"]), unit) == 5


def test_a_renamed_folder_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(*words: str) -> Config:
        return read_config(words)

    config = read("--name", "a", "--seed", "7")
    with open_run(config, "classify"):
        pass
    Path("runs/a").rename("runs/b")
    resumed = read("--name", "b", "--resume")
    assert (resumed.name, resumed.seed) == ("b", 7)
    with open_run(resumed, "classify") as run:
        assert run.folder == Path("runs/b")
    with pytest.raises(UserError, match="runs/b was started with --seed 7 and cannot be resumed with 8"):
        read("--name", "b", "--resume", "--seed", "8")


AGENT = ("--total-steps", "400", "--env", "zerokara/Catch-v0")
CHANGES = (  # program, command of the start, options on resume, options of the command that resumes it once more
    (dqn, AGENT, "--total-steps 900 --eval-episodes 7 --device cpu --quiet", "--total-steps 900 --eval-episodes 7"),
    (dqn, AGENT, "--total-steps 400", ""),
    (dqn, (*AGENT, "--stop-at-return", "3.0"), "--stop-at-return None", "--stop-at-return None"),
    (gan, ("--data", "glyphs"), "--updates 50 --rollback", "--updates 50"),
    (gan, ("--minutes", "2"), "--updates 50", "--updates 50"),
    (gan, ("--minutes", "2"), f"--updates {gan.Config.updates}", f"--updates {gan.Config.updates}"),
    (gan, ("--minutes", "2", "--quiet"), "", ""),
    (detection, (), "--proposal-cache 'my cache'", "--proposal-cache 'my cache'"),
    (style, ("a.jpg", "b.jpg"), "--out c.png", "--out c.png"),
    (augmentation, (), "--sizes 100 0 --seeds 4 5", "--sizes 100 0 --seeds 4 5"),
    (depth, (), "--part layers --depths 20", "--part layers --depths 20"),
)


@pytest.mark.parametrize(("program", "started", "changed", "named"), CHANGES)
def test_the_command_to_resume_names_the_options_that_were_changed_on_resume(
    program: Any, started: tuple[str, ...], changed: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = program.read_options if program in (augmentation, depth) else program.read_config
    with open_run(read([*started, "--name", "a"]), "kind") as run:
        assert run.resume_command("train") == "train --name a --resume"
    monkeypatch.setattr(run_config, "read_config", lambda folder, kind=None: read_run(folder))
    config = read(["--name", "a", "--resume", *shlex.split(changed)])
    with open_run(config, "kind") as run:
        command = run.resume_command("train")
    assert sorted(shlex.split(command)) == sorted(shlex.split(f"train --name a --resume {named}"))
    again = read(shlex.split(command)[1:])
    assert {field: value for field, value in vars(again).items() if field not in ("device", "quiet", "rollback")} == {
        field: value for field, value in vars(config).items() if field not in ("device", "quiet", "rollback")
    }


def test_the_closing_line_of_a_stopped_run_keeps_the_length_that_was_given_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run(gan.read_config(["--name", "a"]), gan.KIND):
        pass
    resumed = gan.read_config(["--name", "a", "--resume", "--updates", "7"])
    with contextlib.suppress(Stopped), open_run(resumed, gan.KIND) as run:
        run.stop_requested = "SIGTERM"
        raise Stopped
    assert capsys.readouterr().out.splitlines()[-1].endswith(" --name a --resume --updates 7")


def test_a_run_is_resumed_when_the_torchrun_that_began_it_restarts_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def read() -> Config:
        return configure(Config, PRESETS, ["--name", "a", "--seed", "7"], "", kind="classify", name_fields=())

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert not read().resume, "it was killed before there was a run"
    with open_run(read(), "classify"):
        pass
    resumed = read()
    assert (resumed.resume, resumed.seed) == (True, 7)
    # A run that is older than this torchrun must not be resumed by accident.
    monkeypatch.setattr(run_config, "restarting_since", lambda: datetime.now(UTC))
    assert not read().resume
