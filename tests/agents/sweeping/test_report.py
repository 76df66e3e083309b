"""Test the report of a sweep: order of the table, and importances with a known result."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.trial import TrialState

from zerokara.agents.sweeping.report import compute_importances, format_table, make_rows
from zerokara.agents.sweeping.search_space import AGENTS, read_space

SPACE = read_space(["gamma=0..1", "width_multiplier=1..2"], AGENTS["dqn"], [])


def make_study(*values: float | None) -> optuna.Study:
    """Make a study with complete trials of these values; None: a trial pruned at step 100 with value 5."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for value in values:
        trial = study.ask()
        for dimension in SPACE:
            dimension.suggest(trial)
        if value is None:
            trial.report(5.0, 100)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return study


def test_complete_trials_come_first_and_best_first() -> None:
    rows = make_rows(make_study(1, None, 3, -2), SPACE)
    assert [(row.number, row.value, row.state) for row in rows] == [
        (2, 3, "complete"),
        (0, 1, "complete"),
        (3, -2, "complete"),
        (1, 5, "pruned"),
    ]
    text = format_table(rows, SPACE)
    assert text.splitlines()[0].split() == ["trial", "value", "steps", "state", "gamma", "width_multiplier"]
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["2", "0", "3", "1"]


def test_state_of_a_trial_with_the_settings_of_another() -> None:
    study = make_study(1)
    trial = study.ask()
    for dimension in SPACE:
        dimension.suggest(trial)
    trial.set_user_attr("why", "as 0")  # set by Sweep._finished_without_run
    study.tell(trial, 1)
    rows = make_rows(study, SPACE)
    assert [row.state for row in rows] == ["complete", "same as trial 0"]
    assert "same as trial 0" in " ".join(format_table(rows, SPACE).split())


def test_importance_of_a_setting_with_and_without_effect() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        for dimension in SPACE:
            dimension.suggest(trial)
        study.tell(trial, trial.params["gamma"])
    importances = compute_importances(study)
    assert list(importances) == ["gamma", "width_multiplier"]
    assert importances["gamma"] > 0.8
    np.testing.assert_allclose(sum(importances.values()), 1)


def test_no_importances_with_few_trials_or_equal_values() -> None:
    assert compute_importances(make_study(*range(7))) == {}
    assert compute_importances(make_study(*[1.0] * 12)) == {}
    assert compute_importances(make_study(*range(8)))
