"""What a sweep found: the order of its table, and importances where the answer is known."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.trial import TrialState

from zerokara.agents.sweeping.report import importances, rows, table
from zerokara.agents.sweeping.search_space import AGENTS, read_space

SPACE = read_space(["gamma=0..1", "width_multiplier=1..2"], AGENTS["dqn"], [])


def study(*values: float | None) -> optuna.Study:
    """A study whose complete trials have these values; None was pruned at step 100 with value 5."""
    made = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for value in values:
        trial = made.ask()
        for dimension in SPACE:
            dimension.suggest(trial)
        if value is None:
            trial.report(5.0, 100)
            made.tell(trial, state=TrialState.PRUNED)
        else:
            made.tell(trial, value)
    return made


def test_complete_trials_come_first_best_on_top() -> None:
    found = rows(study(1, None, 3, -2), SPACE)
    assert [(row.number, row.value, row.state) for row in found] == [
        (2, 3, "complete"),
        (0, 1, "complete"),
        (3, -2, "complete"),
        (1, 5, "pruned"),
    ]
    text = table(found, SPACE)
    assert text.splitlines()[0].split() == ["trial", "value", "steps", "state", "gamma", "width_multiplier"]
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["2", "0", "3", "1"]


def test_what_decides_is_important_and_what_does_not_is_not() -> None:
    made = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = made.ask()
        for dimension in SPACE:
            dimension.suggest(trial)
        made.tell(trial, trial.params["gamma"])
    shares = importances(made)
    assert list(shares) == ["gamma", "width_multiplier"]
    assert shares["gamma"] > 0.8
    np.testing.assert_allclose(sum(shares.values()), 1)


def test_there_are_no_importances_of_too_few_or_of_equals() -> None:
    assert importances(study(*range(7))) == {}
    assert importances(study(*[1.0] * 12)) == {}
    assert importances(study(*range(8)))
