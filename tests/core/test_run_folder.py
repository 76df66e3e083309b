"""Folders of runs: unusable ones, those of a run that was killed at its start, and checkpoints of other runs."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from zerokara.core.config import UserError
from zerokara.core.run import Run
from zerokara.core.run_folder import READING_RULES


@dataclass(frozen=True)
class Config:
    resume: bool = False


def open_run(root: Path, name: str = "a", *, resume: bool = False) -> Run:
    return Run(Config(), kind="dqn", name=name, resume=resume, quiet=True, root=root)


def test_a_run_that_was_killed_before_its_config_was_written_can_be_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".config.json.tmp").write_text('{"kind"')
    with open_run(tmp_path):
        pass
    content = json.loads((folder / "config.json").read_text())
    assert (content["kind"], content["reading_rules"]) == ("dqn", READING_RULES)
    with pytest.raises(UserError, match="already holds a run"):
        open_run(tmp_path)


@pytest.mark.parametrize("obstacle", ["file", "dangling link", "lock is a folder", "read-only"])
def test_a_folder_that_cannot_be_used_is_one_sentence(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    if obstacle == "file":
        root.touch()
    elif obstacle == "dangling link":
        root.symlink_to(tmp_path / "nowhere")
    elif obstacle == "lock is a folder":
        (root / "a" / "lock").mkdir(parents=True)
    else:
        (root / "a").mkdir(parents=True)

        def refused(path: Path, *_args: Any, **_options: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(Path, "open", refused)  # the user of the tests may be allowed to write everywhere
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"cannot be used as the folder of a run \(.*: .*\): .*another --name") as error:
        open_run(root)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_too_long_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name has 300 bytes: use at most 255"):
        open_run(tmp_path / "runs", "a" * 300)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.save(run.checkpoint_path, {"network": torch.zeros(3)})

    def load(state: dict[str, Any]) -> None:
        torch.nn.Linear(2, 2).load_state_dict(state)

    with open_run(tmp_path, resume=True) as run:
        for failing in (load, lambda state: state["step"]):
            with pytest.raises(UserError, match=r"checkpoint-0\.pt does not fit the run of .*another run"):
                run.restore(run.checkpoint_path, failing)
