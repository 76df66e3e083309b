"""Learning curves: grouping, means and spreads by hand, axes, sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zerokara.agents import plot
from zerokara.agents.plot import group
from zerokara.agents.viewing.curves import Curve, mean_and_spread, read_curve
from zerokara.core.config import UserError


def make_run(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Path:
    """A run's folder as far as plots read it."""
    folder.mkdir(parents=True)
    fields = {"name": folder.name, "env": "ALE/Pong-v5", "preset": "fast", "frame_skip": None, **config}
    (folder / "config.json").write_text(json.dumps({"kind": "dqn", "config": fields, "extra": {}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def curve(x: list[float], y: list[float], **config: Any) -> Curve:
    return Curve(config.get("name", "run"), config, np.array(x, float), np.array(y, float))


def test_seeds_of_one_config_are_a_group() -> None:
    runs = [
        curve([0], [0], name="a1", seed=1, n_step=1, env="ALE/Pong-v5"),
        curve([0], [0], name="b1", seed=1, n_step=3, env="ALE/Pong-v5"),
        curve([0], [0], name="a2", seed=2, n_step=1, env="ALE/Pong-v5", resume=True),
    ]
    assert [(label, [run.name for run in runs]) for label, runs in group(runs)] == [
        ("n-step 1 (2 runs)", ["a1", "a2"]),
        ("n-step 3", ["b1"]),
    ]
    assert [label for label, _ in group(runs[:1] + runs[2:])] == ["ALE/Pong-v5 (2 runs)"]


def test_groups_that_differ_in_much_are_named_after_their_first_run() -> None:
    fields = ("gamma", "n_step", "width", "env")
    runs = [curve([0], [0], name=name, **dict.fromkeys(fields, value)) for name, value in (("one", 1), ("two", 2))]
    assert [label for label, _ in group(runs)] == ["one", "two"]


def test_mean_and_spread_by_hand() -> None:
    """Runs with points at other steps are joined by straight lines; beyond the shorter one there is no mean."""
    x, mean, low, high = mean_and_spread([curve([0, 10, 20], [0, 10, 30]), curve([5, 10, 15], [1, 2, 3])])
    assert x.tolist() == [5, 10, 15]
    assert mean.tolist() == [3, 6, 11.5]
    assert low.tolist() == [1, 2, 3]
    assert high.tolist() == [5, 10, 20]


def test_runs_without_a_stretch_in_common_have_no_mean() -> None:
    x, mean, _, _ = mean_and_spread([curve([0, 1], [0, 0]), curve([5, 6], [1, 1])])
    assert (len(x), len(mean)) == (0, 0)


def test_axes_in_steps_frames_and_hours(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 100, "train/return": -21.0, "speed/hours": 0.5},
        {"step": 150, "eval/return": -20.0},
        {"step": 200, "train/return": None, "speed/hours": 1.0},
        {"step": 300, "train/return": -19.0, "speed/hours": 2.0},
    ]
    pong = make_run(tmp_path / "pong", rows)
    steps = read_curve(pong, "train/return", "steps")
    assert (steps.x.tolist(), steps.y.tolist()) == ([100, 300], [-21, -19])
    assert read_curve(pong, "train/return", "frames").x.tolist() == [400, 1200]
    assert read_curve(pong, "train/return", "hours").x.tolist() == [0.5, 2.0]
    assert read_curve(pong, "eval/return", "hours").x.tolist() == [0.75]  # half way between two lines that know
    catch = make_run(tmp_path / "catch", rows, env="zerokara/Catch-v0")
    assert read_curve(catch, "train/return", "frames").x.tolist() == [100, 300]
    every_2nd = make_run(tmp_path / "every_2nd", rows, frame_skip=2)
    assert read_curve(every_2nd, "train/return", "frames").x.tolist() == [200, 600]
    content = json.loads((pong / "config.json").read_text())
    content["extra"] = {"environment": {"frame_skip": 3}}  # what was in force, as the run noted it
    (pong / "config.json").write_text(json.dumps(content))
    assert read_curve(pong, "train/return", "frames").x.tolist() == [300, 900]


def test_a_half_written_last_line_counts_for_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 2.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_curve(run, "loss", "steps").x.tolist() == [1]


def test_what_cannot_be_plotted(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="empty has no metrics yet"):
        read_curve(empty, "loss", "steps")
    (empty / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="empty has no metrics yet"):
        read_curve(empty, "loss", "steps")
    run = make_run(tmp_path / "a", [{"step": 1, "train/loss": 2.0}])
    with pytest.raises(UserError, match=r"no train/los \(did you mean train/loss\?\): give --metric one of train/loss"):
        read_curve(run, "train/los", "steps")
    with pytest.raises(UserError, match="no speed/hours"):
        read_curve(run, "train/loss", "hours")
    damaged = make_run(tmp_path / "b", [{"step": 1, "loss": 2.0}])
    (damaged / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="damaged in line 2"):
        read_curve(damaged, "loss", "steps")
    with pytest.raises(UserError, match="no run in"):
        read_curve(tmp_path / "none", "loss", "steps")


def test_the_figure_of_a_real_run_lies_beside_it(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot.main([str(catch_run), "--metric", "eval/return", "--x", "frames"])
    assert "zerokara/Catch-v0, fast: last eval/return" in capsys.readouterr().out
    with Image.open("runs/learning-curves.png") as figure:
        assert figure.size == (1350, 825)


def test_groups_have_their_colours_and_bands(tmp_path: Path) -> None:
    for name, n_step, level in (("a1", 1, 0.0), ("a2", 1, 2.0), ("b1", 3, 9.0)):
        rows = [{"step": step, "train/return": level} for step in (0, 1000)]
        make_run(tmp_path / name, rows, n_step=n_step, seed=int(name[1]))
    out = tmp_path / "curves.png"
    plot.main([*(str(tmp_path / name) for name in ("a1", "a2", "b1")), "--out", str(out)])
    with Image.open(out) as figure:
        colours = {tuple(colour) for colour in np.asarray(figure.convert("RGB")).reshape(-1, 3).tolist()}
    # matplotlib's first two colours, and the first at 15% over white
    assert {(31, 119, 180), (255, 127, 14)} <= colours
    assert any(abs(r - 221) < 3 and abs(g - 235) < 3 and abs(b - 244) < 3 for r, g, b in colours)


def test_figures_are_png_in_folders_that_are_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 2.0}])
    with pytest.raises(UserError, match=r"must be a PNG file, such as .*curves\.png"):
        plot.main([str(run), "--metric", "loss", "--out", str(tmp_path / "curves.jpg")])
    with pytest.raises(UserError, match="does not exist"):
        plot.main([str(run), "--metric", "loss", "--out", str(tmp_path / "none" / "curves.png")])
    with pytest.raises(UserError, match="No run was named"):
        plot.main([])
