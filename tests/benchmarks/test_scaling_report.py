"""Tests of benchmarks.scaling: command line, processes, and tables and chart of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import measuring, report
from benchmarks.scaling.model import Fit, iteration_seconds
from benchmarks.scaling.recording import Event, Recording, phases
from zerokara.core.config import UserError

ROOT = Path(__file__).resolve().parents[2]
TRUTH = Fit(step=2e-4, message=2e-5, wait=1e-5, overhead=1.05, core_byte=1e-10, copy_byte=5e-11)
RECORDING = Recording(
    items=64,
    networks={"1000000 elements": [1_000_000]},
    events=(Event("any", (0.25,)), Event("mean_gradients", (0.25,), "1000000 elements"), Event("end", (0.5,))),
)


def make_results() -> dict[str, Any]:
    """Return results that follow the model exactly, except for one iteration that took 1.5 times as long."""
    rates, numbers = [100, 1_000, 10_000], [1, 2, 4, 8]
    results: dict[str, Any] = {
        "arguments": {"processes": [1, 2], "hosts": numbers, "rates": rates},
        "machines": {
            "hosts": {"date": "2026-11-30", "cpu": "X", "cores_usable": 2, "torch": "2", "load_at_start": 3.0},
            "local": {"date": "2026-11-30", "cpu": "X", "cores_usable": 2, "torch": "2", "load_at_start": 0.1},
        },
        "recordings": {"dqn": RECORDING.to_dict()},
        "local": {
            "dqn": {
                "1": {"together": {"median": 100.0, "values": [99.0, 100.0, 101.0]}},
                "2": {
                    "together": {"median": 150.0, "values": [149.0, 150.0, 151.0]},
                    "independent": {"median": 160.0, "values": [160.0] * 3},
                    "threads": {"median": 120.0, "values": [119.0, 120.0, 130.0]},
                },
            }
        },
        "hosts": {},
    }
    for rate in rates:
        for number in numbers:

            def cost(size: int, rings: int = 1, rate: int = rate, number: int = number) -> float:
                return TRUTH.seconds(rate * 1e6 / 8, number, size, rings)

            seconds = iteration_seconds(phases(RECORDING), cost) * (1.5 if (rate, number) == (1_000, 8) else 1)
            rings = 8 // number
            sent = 2 * (number - 1) / number * 4_000_008 * 1.05
            results["hosts"][measuring.key(rate, number)] = {
                "collectives": {
                    str(size): {"seconds": cost(size, rings), "sent": 0, "rings": rings}
                    for size in (8, 65_536, 1_048_576, 4_000_000, 26_000_000)
                },
                "jobs": {"dqn": {"seconds": seconds, "sent": sent}},
            }
    return results


def table(text: str, title: str) -> list[list[str]]:
    """Return the cells of the rows of a table."""
    lines = text.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def test_tables() -> None:
    text = report.tables(make_results())
    assert text.startswith(
        "- `hosts`: 2026-11-30, X, 2 cores, PyTorch 2; load average 3.0 before the measurement: **other"
    )
    assert table(text, "On one machine") == [["dqn", "100.0 agent steps/s", "1.50", "0.94"]]
    assert table(text, "Two processes or two threads") == [["dqn", "150.0", "120.0", "1.25", "processes"]]
    (row,) = table(text, "Messages of an iteration")
    assert row == ["dqn", "1.000", "1 + 1", "4 MB", "4.2 MB (1.05)", "6.3 MB (1.05)", "7.35 MB (1.05)"]
    # A vote of 2 hosts at 100 Mb/s: 2 steps of .22 ms; then 4.2 MB at 12.5 MB/s, which take longer than their steps.
    rows = table(text, "Efficiency on hosts")
    assert rows[0][:3] == ["dqn", "100 Mb/s", f"{1 / (1 + 2 * 2.2e-4 + 0.336):.3f}"]
    predicted = table(text, "Prediction for 8 hosts")
    assert [row[:3] for row in predicted[:3]] == [
        ["all-reduces", rate, "5 of 5"] for rate in ("100 Mb/s", "1 Gb/s", "10 Gb/s")
    ]
    assert [row[2] for row in predicted[3:]] == ["1 of 1", "0 of 1", "1 of 1"]
    assert "-33% (dqn:" in predicted[4][4]
    extrapolated = table(text, "Extrapolation to 1,000 nodes")
    assert [row[0] for row in extrapolated] == list(report.FACTORS.values())
    # 4 MB as a ring at 10 Gb/s: 6.4 ms, 20 steps of 14 us, and 10 for the vote; 20 ms of computation.
    assert extrapolated[1][2] == "75%, computation"


def test_checks_compare_with_the_measurements_that_were_not_fitted() -> None:
    results = make_results()
    model = report.fitted(results)
    results["hosts"][measuring.key(100, 8)]["collectives"]["8"]["seconds"] *= 2
    assert report.fitted(results) == model
    errors = [check.error for check in report.check_collectives(results, model)]
    assert errors[0] == pytest.approx(-0.5, abs=0.01)
    assert errors[1:] == pytest.approx([0.0] * 14, abs=0.01)


def test_the_model_needs_measurements() -> None:
    results = make_results()
    for key in [key for key in results["hosts"] if key.endswith(" 4 hosts")]:
        del results["hosts"][key]
    with pytest.raises(UserError, match="needs all-reduces of 2 and 4 hosts"):
        report.fitted(results)


def test_report_replaces_the_tables_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page, chart = tmp_path / "r.json", tmp_path / "page.md", tmp_path / "chart.png"
    results.write_text(json.dumps(make_results()))
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    scaling.main(["report", "--results", str(results), "--page", str(page), "--chart", str(chart)])
    tables = report.tables(make_results())
    assert page.read_text() == f"before\n{report.BEGIN}\n\n{tables}\n\n{report.END}\nafter\n"
    assert capsys.readouterr().out == f"{tables}\n"
    assert chart.read_bytes().startswith(b"\x89PNG")
    page.write_text("no place")
    with pytest.raises(UserError, match="no place for the tables"):
        scaling.main(["report", "--results", str(results), "--page", str(page), "--chart", str(chart)])


def test_the_committed_page_shows_the_committed_results() -> None:
    results = json.loads((ROOT / "docs/results/scaling.json").read_text("utf-8"))
    page = (ROOT / "docs/scaling.md").read_text("utf-8")
    assert report.replace_tables(page, report.tables(results)) == page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["everything"], "no part 'everything'"),
        (["--rates", "0"], "--rates 0 is too small"),
        (["--processes", "0"], "--processes 0 is too small"),
        (["--repeats", "0"], "--repeats and --learn-first must be 1 or more"),
        (["report"], "has no results: start the parts local and hosts first"),
    ],
)
def test_mistakes_create_nothing(words: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        scaling.main([*words, "--results", str(tmp_path / "r.json"), "--chart", str(tmp_path / "c.png")])
    assert list(tmp_path.iterdir()) == []


def test_results_of_other_options_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**make_results(), "arguments": {"batch_size": 64}}))
    with pytest.raises(UserError, match="has results with --batch-size 64: give this value"):
        scaling.main(["local", "--results", str(path), "--batch-size", "32"])


def test_a_report_does_not_depend_on_options_of_the_measurements(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**make_results(), "arguments": {**make_results()["arguments"], "batch_size": 32}}))
    scaling.main(["report", "--results", str(path), "--page", str(tmp_path / "p"), "--chart", str(tmp_path / "c.png")])
    assert (tmp_path / "c.png").exists()


def test_results_of_a_busy_machine_are_marked() -> None:
    """Four processes took part after two idle starts, when other programs were running; so did the threads' side."""
    results = make_results()
    idle, busy = ({"date": f"2026-12-0{day}", "load_at_start": load} for day, load in ((1, 0.2), (3, 2.5)))
    results["machines"]["local"] = {**results["machines"]["hosts"], **idle}
    results["arguments"]["processes"] = [1, 2, 4]
    entry = results["local"]["dqn"]
    entry["4"] = {**entry["2"], "start": busy}
    text = report.tables(results)
    (row,) = table(text, "On one machine")
    assert row == ["dqn", "100.0 agent steps/s", "1.50", "0.94", "1.50 (provisional)", "0.94"]
    assert table(text, "Two processes or two threads")[0][-1] == "processes"
    assert "`local`: 2026-12-01 to 2026-12-03, X, 2 cores, PyTorch 2; load average 2.5 before the measurements" in text
    entry["2"]["start"] = busy
    text = report.tables(results)
    assert table(text, "On one machine")[0][2] == "1.50 (provisional)"
    assert table(text, "Two processes or two threads")[0][-1] == "processes (provisional)"
