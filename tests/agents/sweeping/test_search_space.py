"""Test the search space: parsing, formatting for the agent's command line, error messages."""

from __future__ import annotations

import optuna
import pytest

from zerokara.agents.sweeping.search_space import (
    AGENTS,
    Dimension,
    format_params,
    read_dimension,
    read_space,
    trial_arguments,
)
from zerokara.core.config import UserError

DQN, PQN = AGENTS["dqn"], AGENTS["pqn"]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("learning_rate=log:1e-5..1e-3", Dimension("learning_rate", 1e-5, 1e-3, log=True)),
        ("--learning-rate=0.1..0.5", Dimension("learning_rate", 0.1, 0.5)),
        ("n_step=1..5", Dimension("n_step", 1, 5)),
        ("munchausen_clip=-2..-.5", Dimension("munchausen_clip", -2.0, -0.5)),
        ("gamma=0..1", Dimension("gamma", 0.0, 1.0)),
        ("head=q, c51", Dimension("head", choices=("q", "c51"), parsed=("q", "c51"))),
        ("dueling=true,False", Dimension("dueling", choices=("true", "False"), parsed=(True, False), is_bool=True)),
        ("batch_size=32,64", Dimension("batch_size", choices=("32", "64"), parsed=(32, 64))),
        ("max_grad_norm=none,10", Dimension("max_grad_norm", choices=("none", "10"), parsed=(None, 10.0))),
        ("max_grad_norm=1..10", Dimension("max_grad_norm", 1.0, 10.0)),
        ("preset=nature,rainbow", Dimension("preset", choices=("nature", "rainbow"), parsed=("nature", "rainbow"))),
    ],
)
def test_dimensions_are_parsed(search: str, expected: Dimension) -> None:
    found = read_dimension(search, DQN)
    assert found == expected
    assert [type(end) for end in (found.low, found.high)] == [type(end) for end in (expected.low, expected.high)]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("learning_rate", "'learning_rate' cannot be searched: write name=low..high"),
        ("=1..2", "cannot be searched: write name=low..high"),
        ("n_step=", "cannot be searched: write name=low..high"),
        ("lerning_rate=1..2", r"agents.dqn has no field lerning_rate \(did you mean learning_rate\?\)"),
        ("rollout_steps=1..2", "agents.dqn has no field rollout_steps"),
        ("seed=1..9", "seed cannot be searched, because trials with different values are not comparable"),
        ("total_steps=1000,2000", r"set it for all trials after --, as in -- --total-steps <value>"),
        ("n_step=0..5", "--n-step cannot be 0: it must be a whole number, at least 1"),
        ("n_step=1..1.5", "--n-step cannot be '1.5': it must be a whole number"),
        ("gamma=0.9..1.1", "--gamma cannot be 1.1: it must be a number, at least 0 and at most 1"),
        ("head=q,c52", "--head cannot be 'c52': it must be one of q, c51, qr, iqn"),
        ("head=1..2", "--head cannot be '1': it must be one of"),
        ("device=a..b", "device is not a number, so 'device=a..b' is not a range: list values"),
        ("dueling=1..2", "dueling is a switch and cannot be '1': write dueling=true,false"),
        ("dueling=yes,no", "dueling is a switch and cannot be 'yes'"),
        ("n_step=5..1", "'n_step=5..1' is empty: give the lower end first, as in n_step=1..5"),
        ("n_step=3..3", "is empty"),
        ("gamma=log:0..1", "there is no logarithm of 0: start the range above 0"),
        ("n_step=log:1,2", r"log: needs a range"),
        ("n_step=1,,2", "contains an empty value"),
        ("n_step=3", r"has only one value: .* as in -- --n-step 3\."),
        ("dueling=false", r"as in -- --no-dueling\."),
        ("n_step=1,2,1", "contains a value twice"),
    ],
)
def test_error_messages(search: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_dimension(search, DQN)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_space_is_not_empty_and_has_each_field_once() -> None:
    assert [d.name for d in read_space(["td_lambda=0..1", "num_minibatches=16,32"], PQN, [])] == [
        "td_lambda",
        "num_minibatches",
    ]
    assert [d.name for d in read_space(["td_lambda=0..1", "kappa=log:1..8"], AGENTS["stream"], [])] == [
        "td_lambda",
        "kappa",
    ]
    with pytest.raises(UserError, match="n_step is searched twice"):
        read_space(["n_step=1..2", "n-step=3..4"], DQN, [])
    with pytest.raises(UserError, match="There is nothing to search"):
        read_space([], DQN, [])


def test_sampled_values_are_formatted_for_the_command_line() -> None:
    searches = ["learning_rate=log:1e-5..1e-3", "n_step=1..5", "dueling=true,false", "max_grad_norm=1,none"]
    space = read_space(searches, DQN, [])
    params = {"learning_rate": 1.23456789e-4, "n_step": 3, "dueling": "false", "max_grad_norm": "none"}
    arguments = trial_arguments(space, params, DQN.parse([]))
    assert arguments == ["--learning-rate", "0.000123457", "--n-step", "3", "--no-dueling", "--max-grad-norm", "None"]
    config = DQN.parse(arguments)
    assert (config.learning_rate, config.n_step, config.dueling, config.max_grad_norm) == (0.000123457, 3, False, None)
    assert format_params(space, params) == "learning_rate 0.000123457, n_step 3, dueling false, max_grad_norm none"


def test_rounded_values_stay_in_the_range() -> None:
    dimension = Dimension("gamma", 0.9, 0.99999951)
    assert dimension.arguments(0.99999951) == ["--gamma", "0.99999951"]
    assert dimension.arguments(0.9876543) == ["--gamma", "0.987654"]


def test_searched_presets_do_not_change_length_and_evaluation() -> None:
    """Check that all trials evaluate at epsilon .001, although the preset nature evaluates at .05."""
    agent_arguments = ["--total-steps", "1000"]
    space = read_space(["preset=fast,nature"], DQN, agent_arguments)
    base = DQN.parse(agent_arguments)
    configs = [
        DQN.parse([*agent_arguments, *trial_arguments(space, {"preset": name}, base)]) for name in ("fast", "nature")
    ]
    assert [config.hidden_units for config in configs] == [256, 512]
    assert {(config.total_steps, config.eval_epsilon, config.eval_every_steps) for config in configs} == {
        (1000, 0.001, 200_000)
    }


def test_config_values_as_sampled_values() -> None:
    assert read_dimension("n_step=1..5", DQN).sampled_value(5) == 5
    assert read_dimension("n_step=1..4", DQN).sampled_value(5) is None
    assert read_dimension("max_grad_norm=1,none", DQN).sampled_value(None) == "none"
    assert read_dimension("max_grad_norm=1..10", DQN).sampled_value(None) is None
    assert read_dimension("dueling=true,false", DQN).sampled_value(False) == "false"
    assert read_dimension("head=q,c51", DQN).sampled_value("qr") is None


def test_types_and_distribution_of_sampled_values() -> None:
    space = read_space(["n_step=1..5", "learning_rate=log:1e-5..1e-3", "dueling=true,false"], DQN, [])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = []
    for _ in range(20):
        trial = study.ask()
        for dimension in space:
            dimension.suggest(trial)
        sampled.append(trial.params)
    assert {type(params["n_step"]) for params in sampled} == {int}
    assert {params["n_step"] for params in sampled} == {1, 2, 3, 4, 5}
    assert {params["dueling"] for params in sampled} == {"true", "false"}
    assert 5 <= sum(params["learning_rate"] < 1e-4 for params in sampled) <= 15  # half of them on a logarithmic scale
