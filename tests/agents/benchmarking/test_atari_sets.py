"""Test sets of Atari games, and the prediction of the median of 57 games against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerokara.agents.benchmarking.atari_scores import SCORES
from zerokara.agents.benchmarking.atari_sets import REGRESSIONS, SETS, environments
from zerokara.core.config import UserError

ATARI_5 = ["BattleZone", "DoubleDunk", "NameThisGame", "Phoenix", "Qbert"]


def test_sets_have_the_games_of_their_papers() -> None:
    assert {name: len(games) for name, games in SETS.items()} == {
        "atari-5": 5,
        "atari-10": 10,
        "atari-26": 26,
        "atari-57": 57,
    }
    assert list(SETS["atari-5"]) == ATARI_5
    assert set(SETS["atari-10"]) == {*ATARI_5, "Amidar", "Bowling", "Frostbite", "KungFuMaster", "Riverraid"}
    for games in SETS.values():
        assert len(set(games)) == len(games)
        assert set(games) <= set(SCORES)


def test_all_games_have_a_rom() -> None:
    import ale_py.roms

    for game in SETS["atari-57"]:
        snake_case = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in game).strip("_")
        assert ale_py.roms.get_rom_path(snake_case) is not None, game


def test_environments_of_sets_and_games_are_listed_once() -> None:
    assert environments(["atari-5", "pong", "Qbert"]) == tuple(f"ALE/{game}-v5" for game in (*ATARI_5, "Pong"))
    with pytest.raises(UserError, match=r"--games cannot be 'atari-6' \(did you mean atari-"):
        environments(["atari-6"])
    with pytest.raises(UserError, match=r"--games cannot be 'Pongg' \(did you mean Pong\?\)"):
        environments(["Pongg"])


def test_predicted_median_by_hand() -> None:
    """Scores of 9, 99 and 999% have logarithms 1, 2 and 3; a score below random play counts as 0."""
    predict = REGRESSIONS["atari-5"].predict
    zero = dict.fromkeys(ATARI_5, 0.0)
    assert predict(zero) == 0
    assert predict(dict.fromkeys(ATARI_5, -5.0)) == 0
    # 10^.38198 = 2.40977
    assert predict({**zero, "BattleZone": 0.09}) == pytest.approx(0.0140977, rel=1e-4)
    # .0679099 * 1 + .3108041 * 2 + .1241262 * 3 = 1.0618968; 10^1.0618968 = 11.5318
    scores = {**zero, "DoubleDunk": 0.09, "NameThisGame": 0.99, "Phoenix": 9.99}
    assert predict(scores) == pytest.approx(0.105318, rel=1e-4)


@pytest.mark.parametrize(("name", "total"), [("atari-5", 0.9653006), ("atari-10", 0.9809685)])
def test_equal_scores_by_hand(name: str, total: float) -> None:
    """99% in all games give 100^(sum of the coefficients) - 1 percent."""
    regression = REGRESSIONS[name]
    assert sum(regression.coefficients.values()) == pytest.approx(total, abs=1e-6)
    assert regression.predict(dict.fromkeys(SETS[name], 0.99)) == pytest.approx((100**total - 1) / 100, rel=1e-5)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_page_has_the_coefficients_and_the_error(name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmark.md").read_text("utf-8")
    section = page.partition("| | coefficients | error |\n")[2]
    _, _, coefficients, error, _ = next(line for line in section.splitlines() if f"`{name}`" in line).split("|")
    listed = {game: float(value) for game, value in (word.split() for word in coefficients.split(","))}
    assert listed == {game: round(value, 5) for game, value in REGRESSIONS[name].coefficients.items()}
    assert error.strip() == f"{REGRESSIONS[name].error:.1%}"
