"""What may be searched: read by hand, typed back, refused in one sentence."""

from __future__ import annotations

import optuna
import pytest

from zerokara.agents.sweeping.search_space import AGENTS, Dimension, in_words, read_dimension, read_space, words_of
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
        ("head=q, c51", Dimension("head", choices=("q", "c51"), meant=("q", "c51"))),
        ("dueling=true,False", Dimension("dueling", choices=("true", "False"), meant=(True, False), switch=True)),
        ("batch_size=32,64", Dimension("batch_size", choices=("32", "64"), meant=(32, 64))),
        ("max_grad_norm=none,10", Dimension("max_grad_norm", choices=("none", "10"), meant=(None, 10.0))),
        ("max_grad_norm=1..10", Dimension("max_grad_norm", 1.0, 10.0)),
        ("preset=nature,rainbow", Dimension("preset", choices=("nature", "rainbow"), meant=("nature", "rainbow"))),
    ],
)
def test_a_dimension_is_read_as_it_is_meant(search: str, expected: Dimension) -> None:
    found = read_dimension(search, DQN)
    assert found == expected
    assert [type(end) for end in (found.low, found.high)] == [type(end) for end in (expected.low, expected.high)]


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("learning_rate", "'learning_rate' cannot be searched: write name=low..high"),
        ("=1..2", "cannot be searched: write name=low..high"),
        ("n_step=", "cannot be searched: write name=low..high"),
        ("lerning_rate=1..2", r"agents.dqn has no field lerning_rate \(did you mean learning_rate\?\)"),
        ("rollout_steps=1..2", "agents.dqn has no field rollout_steps"),
        ("seed=1..9", "seed cannot be searched, for trials must be equal in it to be compared"),
        ("total_steps=1000,2000", r"give one value after the dashes, as in -- --total-steps <value>"),
        ("n_step=0..5", "--n-step cannot be 0: it must be a whole number, at least 1"),
        ("n_step=1..1.5", "--n-step cannot be '1.5': it must be a whole number"),
        ("gamma=0.9..1.1", "--gamma cannot be 1.1: it must be a number, at least 0 and at most 1"),
        ("head=q,c52", "--head cannot be 'c52': it must be one of q, c51, qr, iqn"),
        ("head=1..2", "--head cannot be '1': it must be one of"),
        ("device=a..b", "device is no number, so 'device=a..b' is no range: list its values"),
        ("dueling=1..2", "dueling is a switch and cannot be '1': write dueling=true,false"),
        ("dueling=yes,no", "dueling is a switch and cannot be 'yes'"),
        ("n_step=5..1", "'n_step=5..1' is empty: the lower end comes first, as in n_step=1..5"),
        ("n_step=3..3", "is empty"),
        ("gamma=log:0..1", "has no logarithm at 0: begin above 0"),
        ("n_step=log:1,2", r"log: goes before a range"),
        ("n_step=1,,2", "has a value that is nothing"),
        ("n_step=3", r"gives nothing to choose from: .* as in -- --n-step 3\."),
        ("dueling=false", r"as in -- --no-dueling\."),
        ("n_step=1,2,1", "has a value twice"),
    ],
)
def test_what_cannot_be_searched_is_refused(search: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read_dimension(search, DQN)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_space_has_each_field_once_and_at_least_one() -> None:
    assert [d.name for d in read_space(["td_lambda=0..1", "num_minibatches=16,32"], PQN, [])] == [
        "td_lambda",
        "num_minibatches",
    ]
    with pytest.raises(UserError, match="n_step is searched twice"):
        read_space(["n_step=1..2", "n-step=3..4"], DQN, [])
    with pytest.raises(UserError, match="Nothing was given to search"):
        read_space([], DQN, [])


def test_values_go_back_to_the_command_line() -> None:
    searches = ["learning_rate=log:1e-5..1e-3", "n_step=1..5", "dueling=true,false", "max_grad_norm=1,none"]
    space = read_space(searches, DQN, [])
    params = {"learning_rate": 1.23456789e-4, "n_step": 3, "dueling": "false", "max_grad_norm": "none"}
    words = words_of(space, params, DQN.parse([]))
    assert words == ["--learning-rate", "0.000123457", "--n-step", "3", "--no-dueling", "--max-grad-norm", "None"]
    config = DQN.parse(words)
    assert (config.learning_rate, config.n_step, config.dueling, config.max_grad_norm) == (0.000123457, 3, False, None)
    assert in_words(space, params) == "learning_rate 0.000123457, n_step 3, dueling false, max_grad_norm none"


def test_six_digits_never_leave_the_range() -> None:
    dimension = Dimension("gamma", 0.9, 0.99999951)
    assert dimension.flags(0.99999951) == ["--gamma", "0.99999951"]
    assert dimension.flags(0.9876543) == ["--gamma", "0.987654"]


def test_presets_change_nothing_that_trials_are_compared_by() -> None:
    """`nature` evaluates at epsilon .05 and `fast` at .001: what stands without them is held."""
    given = ["--total-steps", "1000"]
    space = read_space(["preset=fast,nature"], DQN, given)
    base = DQN.parse(given)
    configs = [DQN.parse([*given, *words_of(space, {"preset": name}, base)]) for name in ("fast", "nature")]
    assert [config.hidden_units for config in configs] == [256, 512]
    assert {(config.total_steps, config.eval_epsilon, config.eval_every_steps) for config in configs} == {
        (1000, 0.001, 200_000)
    }


def test_the_settings_as_they_stand_are_found() -> None:
    assert read_dimension("n_step=1..5", DQN).find(5) == 5
    assert read_dimension("n_step=1..4", DQN).find(5) is None
    assert read_dimension("max_grad_norm=1,none", DQN).find(None) == "none"
    assert read_dimension("max_grad_norm=1..10", DQN).find(None) is None
    assert read_dimension("dueling=true,false", DQN).find(False) == "false"
    assert read_dimension("head=q,c51", DQN).find("qr") is None


def test_a_trial_draws_whole_numbers_and_words() -> None:
    space = read_space(["n_step=1..5", "learning_rate=log:1e-5..1e-3", "dueling=true,false"], DQN, [])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(20):
        trial = study.ask()
        for dimension in space:
            dimension.suggest(trial)
        drawn.append(trial.params)
    assert {type(params["n_step"]) for params in drawn} == {int}
    assert {params["n_step"] for params in drawn} == {1, 2, 3, 4, 5}
    assert {params["dueling"] for params in drawn} == {"true", "false"}
    assert 5 <= sum(params["learning_rate"] < 1e-4 for params in drawn) <= 15  # half of them, in logarithms
