"""Test that new trials keep the settings of the earlier ones if presets or defaults have changed in between."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zerokara.agents import sweep
from zerokara.agents.configs import dqn
from zerokara.agents.sweeping.config import read_command_line
from zerokara.agents.sweeping.kept_settings import Kept, describe_kept, find_kept, keep_in_base, kept_arguments
from zerokara.agents.sweeping.search_space import AGENTS, AgentProgram
from zerokara.agents.sweeping.storage import open_sweep
from zerokara.core.config import from_dict
from zerokara.core.scheduling.local import LocalProcess

OLD_RUNS = Path(__file__).parents[2] / "old_runs"
AGENT = AGENTS["dqn"]
PONG = ("--total-steps", "1000", "--eval-every-steps", "100")


def kept_from(
    words: Sequence[str], other_defaults: Sequence[str], searched: Sequence[str] = ("learning_rate",)
) -> Kept:
    """Settings that new trials keep from a trial of a version in which the flags `other_defaults` were defaults."""
    return find_kept(AGENT, [(dqn.read_config([*words, *other_defaults]), words)], searched)


def test_fields_with_another_default_are_kept_and_others_are_not() -> None:
    kept = kept_from(PONG, ("--gamma", "0.9", "--no-dueling", "--obs-range", "0", "255", "--threads", "3"))
    flags = kept_arguments(kept, AGENT, [*PONG, "--learning-rate", "0.01"])
    assert sorted(flags) == sorted(["--gamma", "0.9", "--no-dueling", "--obs-range", "0.0", "255.0"])
    config = dqn.read_config([*PONG, *flags])
    assert (config.gamma, config.dueling, config.obs_range) == (0.9, False, (0.0, 255.0))
    assert "--gamma 0.9 instead of 0.99" in describe_kept(kept, name_presets=False)
    assert kept_arguments(kept_from(PONG, ()), AGENT, PONG) == []


def test_a_searched_field_is_never_kept() -> None:
    kept = kept_from(PONG, ("--n-step", "7", "--gamma", "0.9"), searched=("n_step",))
    assert kept_arguments(kept, AGENT, [*PONG, "--n-step", "3"]) == ["--gamma", "0.9"]


def test_a_field_without_effect_is_left_out() -> None:
    kept = kept_from([*PONG, "--per-alpha", "0.5"], ("--per-beta-start", "0.7"), searched=("per_alpha",))
    assert kept_arguments(kept, AGENT, [*PONG, "--per-alpha", "0.6"]) == ["--per-beta-start", "0.7"]
    assert kept_arguments(kept, AGENT, PONG) == [], "uniform replay has no beta, and its flag would be refused"


def test_what_another_searched_value_sets_is_not_overridden() -> None:
    """The backbone mlp sets the number of stacked frames."""
    kept = kept_from([*PONG, "--backbone", "der"], ("--frame-stack", "3"), searched=("backbone",))
    assert kept_arguments(kept, AGENT, [*PONG, "--backbone", "nature"]) == ["--frame-stack", "3"]
    assert kept_arguments(kept, AGENT, [*PONG, "--backbone", "mlp"]) == []


def test_each_searched_preset_keeps_its_own_settings() -> None:
    nature = [*PONG, "--preset", "nature"]
    kept = kept_from(nature, ("--gamma", "0.9", "--eval-episodes", "7"), searched=("preset",))
    assert kept_arguments(kept, AGENT, [*PONG, "--preset", "c51"]) == []
    assert sorted(kept_arguments(kept, AGENT, nature)) == sorted(["--gamma", "0.9", "--eval-episodes", "7"])
    assert "--gamma 0.9 instead of 0.99 (preset nature)" in describe_kept(kept, name_presets=True)
    # How trials are compared is the same for all presets, also for those that were not tried before.
    base = keep_in_base(kept, dqn.read_config(PONG))
    assert isinstance(base, dqn.Config)
    assert (base.eval_episodes, base.gamma) == (7, 0.99)


def test_the_first_of_several_trials_decides_and_refused_settings_are_left_out() -> None:
    refused = [*PONG, "--munchausen", "--double"]
    first, second = (dqn.read_config([*PONG, "--gamma", gamma]) for gamma in ("0.9", "0.8"))
    earlier = [(dqn.read_config([*PONG, "--n-step", "9"]), refused), (first, PONG), (second, PONG)]
    assert kept_arguments(find_kept(AGENT, earlier, ()), AGENT, PONG) == ["--gamma", "0.9"]


def test_new_trials_of_a_sweep_of_the_first_version_have_the_settings_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trials do not hold their settings, so that these are read from the folders of their runs."""
    zipfile.ZipFile(OLD_RUNS / "sweep.zip").extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = json.loads((OLD_RUNS / "expected.json").read_text("utf-8"))["sweep"]["made"]
    config, agent_arguments, base, space = read_command_line(shlex.split(made)[3:], "")
    opened = open_sweep(config, agent_arguments)
    with opened.run, contextlib.closing(opened):
        study = sweep.open_study(config, base, space, opened)
        searching = sweep.Sweep(config, opened, study, AGENT, agent_arguments, base, space, LocalProcess)
        now = dqn.read_config(searching.settings({"learning_rate": 0.001}))
    path = Path("runs/sweep/runs/0-seed-1/config.json")
    before: Any = from_dict(dqn.Config, json.loads(path.read_text("utf-8"))["config"], str(path))
    same = dataclasses.replace(
        now,
        learning_rate=before.learning_rate,
        name=before.name,
        quiet=before.quiet,
        delete_replay=before.delete_replay,
    )
    assert same == before
    today = dqn.read_config([*agent_arguments, "--learning-rate", "0.001"])
    assert (today.n_step, now.n_step) == (today.n_step, before.n_step)
    assert today != now
    assert "has other settings than the earlier trials, which new trials keep: --" in capsys.readouterr().out


def test_drivers_of_two_versions_that_start_at_once_give_their_trials_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have opened the empty study before the first of them starts a trial."""
    monkeypatch.chdir(tmp_path)
    words = ["learning_rate=1e-4..1e-3", "--name", "s", "--trials", "4", "--storage", "journal", "--", *PONG]
    config, agent_arguments, base, space = read_command_line(words, "")

    def with_defaults(*defaults: str) -> AgentProgram:
        return AGENT._replace(read_config=lambda arguments: dqn.read_config([*defaults, *arguments]))

    with contextlib.ExitStack() as at_end:
        drivers = []
        for defaults in (("--gamma", "0.9", "--eval-episodes", "7"), ()):
            opened = open_sweep(config, agent_arguments)
            at_end.callback(opened.run.close)
            at_end.callback(opened.close)
            agent = with_defaults(*defaults)
            study, own = sweep.open_study(config, base, space, opened), agent.read_config(agent_arguments)
            drivers.append(sweep.Sweep(config, opened, study, agent, agent_arguments, own, space, LocalProcess))
        first, second = drivers
        assert [driver.base.eval_episodes for driver in drivers] == [7, base.eval_episodes]
        numbers, configs = [], []
        for driver in (first, second, first, second):
            trial = driver._next_trial()
            assert trial is not None
            driver.active.append(sweep.ActiveTrial(trial))
            numbers.append(trial.number)
            configs.append(from_dict(dqn.Config, trial.user_attrs["settings"], ""))
        assert numbers == [0, 1, 2, 3]
        assert {(each.gamma, each.eval_episodes) for each in configs} == {(0.9, 7)}
        assert len({each.learning_rate for each in configs}) == 4
        assert second.base.eval_episodes == 7
    out = capsys.readouterr().out
    assert out.count("has other settings than the earlier trials") == 1
