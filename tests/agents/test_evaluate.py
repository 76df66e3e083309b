"""Test agents.evaluate: statistics by hand, output files, messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.programs import error_message, start
from zerokara.agents import evaluate
from zerokara.agents.benchmarking.atari_scores import SCORES, human_normalized, reference_scores
from zerokara.agents.qlearning.agent_file import BEST, AgentMetadata
from zerokara.agents.training.evaluation import Scores
from zerokara.core.config import UserError

ONE_THREAD = ("--device", "cpu", "--threads", "1", "--which", "last")


def test_human_normalized_scores_by_hand() -> None:
    assert human_normalized("ALE/Pong-v5", -20.7) == pytest.approx(0)
    assert human_normalized("ALE/Pong-v5", 14.6) == pytest.approx(1)
    assert human_normalized("ALE/Pong-v5", 18.0) == pytest.approx(38.7 / 35.3)
    assert human_normalized("ALE/Breakout-v5", 366.9) == pytest.approx(365.2 / 28.8)  # 12.68
    assert human_normalized("ALE/Skiing-v5", -17098.1) == pytest.approx(0)
    assert human_normalized("ALE/Pacman-v5", 100.0) is None  # part of ale-py, but without reference scores
    assert human_normalized("zerokara/Breakout-v5", 100.0) is None
    assert reference_scores("Pong-v5") is None


def test_names_and_scores_of_the_57_games(data_dir: Path) -> None:
    rows = (data_dir / "atari" / "human_random.csv").read_text().split()[1:]
    expected = {
        game.replace("_", ""): (float(random), float(human)) for game, random, human in (r.split(",") for r in rows)
    }
    assert {game.lower(): scores for game, scores in SCORES.items()} == expected
    assert len(SCORES) == 57


def test_every_game_with_reference_scores_can_be_made() -> None:
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    assert [game for game in SCORES if f"ALE/{game}-v5" not in gymnasium.registry] == []


def test_episodes_are_distributed_evenly() -> None:
    assert evaluate.distribute_episodes(30, 0) == (1, 30)
    assert evaluate.distribute_episodes(100, 0) == (4, 25)
    assert evaluate.distribute_episodes(37, 0) == (37, 1)
    assert evaluate.distribute_episodes(12, 4) == (3, 4)
    with pytest.raises(UserError, match="use --episodes 32"):
        evaluate.distribute_episodes(30, 8)


def test_summary_by_hand() -> None:
    result = evaluate.summarize("ALE/Pong-v5", Scores((21.0, 15.0, 18.0, -18.0), (100, 200, 300, 400), cut=1))
    assert result["games"] == 4
    assert result["mean"] == 9.0
    # Deviations 12, 6, 9, -27: squares 144, 36, 81, 729 sum to 990; / 3, root, / 2.
    assert result["standard_error"] == pytest.approx((990 / 3) ** 0.5 / 2)
    assert (result["median"], result["min"], result["max"]) == (16.5, -18.0, 21.0)
    assert (result["mean_length"], result["cut"]) == (250.0, 1)
    assert result["human_normalised"] == pytest.approx(29.7 / 35.3)
    assert (result["random_score"], result["human_score"]) == (-20.7, 14.6)


def test_printed_text_and_saved_json(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(catch_run), "--episodes", "6", "--num-envs", "3", "--epsilon", "0.5", *ONE_THREAD])
    output = capsys.readouterr().out
    result = json.loads((catch_run / "evaluation-400.json").read_text())

    assert result["env"] == "zerokara/Catch-v0"
    assert result["protocol"]["games_per_env"] * result["protocol"]["num_envs"] == result["games"] == 6
    assert len(result["returns"]) == len(result["lengths"]) == 6
    assert result["mean"] == pytest.approx(sum(result["returns"]) / 6)
    assert result["protocol"]["epsilon"] == 0.5
    assert result["protocol"]["settings"]["frame_stack"] == 4
    assert result["human_normalised"] is None
    for words in (
        "catch: zerokara/Catch-v0 at step 400",
        "episodes: 6, 2 in each of 3 environments",
        "epsilon 0.5, episodes cut after 4,500 steps",
        "stack 4, size 84",
        "no human-normalized score",
        "saved: runs/catch/evaluation-400.json",
        f"{result['mean']:,.2f} ± {result['standard_error']:.2f}",
    ):
        assert words in output


def test_printed_json_equals_the_file_and_the_seed_is_reproducible(
    catch_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(seed: str, name: str = "evaluation-400.json") -> list[float]:
        evaluate.main([str(catch_run), "--episodes", "8", "--epsilon", "0.3", "--seed", seed, "--json", *ONE_THREAD])
        printed = json.loads(capsys.readouterr().out)
        assert printed == json.loads((catch_run / name).read_text())
        returns: list[float] = printed["returns"]
        return returns

    first = play("1")
    assert play("1") == first
    # A result with another seed does not overwrite it; the same seed does not add a file.
    assert play("2", "evaluation-400-2.json") != first
    assert play("2", "evaluation-400-2.json") != first
    assert json.loads((catch_run / "evaluation-400.json").read_text())["returns"] == first
    assert len(list(catch_run.glob("evaluation-*"))) == 2


def test_the_weights_and_the_score_that_selected_them_are_named(
    catch_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, weights = AgentMetadata.read(catch_run / BEST)
    figures = {**metadata.figures, "eval/return": 3.25}
    dataclasses.replace(metadata, step=200, figures=figures).save(catch_run / BEST, weights)

    words = [str(catch_run), "--episodes", "2", "--device", "cpu", "--threads", "1"]
    evaluate.main(words)
    output = capsys.readouterr().out
    assert "catch: zerokara/Catch-v0 at step 200" in output
    assert "weights: of the best evaluation, which had a mean raw return of 3.25" in output
    result = json.loads((catch_run / "evaluation-200.json").read_text())
    assert (result["selection_return"], result["training"]) == (3.25, None)
    assert result["mean"] != 3.25
    assert result["protocol"]["env_seed"] >= 1_600_000_000, "training and its evaluations have smaller seeds"

    evaluate.main([*words, "--which", "last"])
    assert "weights: of the last checkpoint\n" in capsys.readouterr().out
    result = json.loads((catch_run / "evaluation-400.json").read_text())
    assert (result["selection_return"], result["weights"]) == (None, "of the last checkpoint")
    assert result["training"]["games"] == 4


def test_cut_episodes_are_counted_and_printed(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(catch_run), "--episodes", "2", "--max-steps", "5", *ONE_THREAD])
    assert "2 of 2 episodes were cut" in capsys.readouterr().out
    assert json.loads((catch_run / "evaluation-400.json").read_text())["lengths"] == [5, 5]


def test_errors_print_one_line_and_exit_with_code_2(catch_run: Path) -> None:
    message = error_message(Path.cwd(), "-m", "agents.evaluate", "runs/cach")
    assert message.startswith("error: There is no runs/cach (did you mean runs/catch?)")
    process = start(Path.cwd(), "-m", "agents.evaluate", "runs/catch", "--episodes", "2", "--json", *ONE_THREAD)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["games"] == 2


def test_uneven_number_of_episodes_is_refused_before_loading(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--episodes 30 is not a multiple of --num-envs 7"):
        evaluate.main([str(tmp_path / "none"), "--num-envs", "7"])
