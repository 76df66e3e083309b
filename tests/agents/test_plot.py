"""Tests of learning curves: groups, means computed by hand, axes, legends, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from zerokara.agents import plot
from zerokara.agents.viewing import curves
from zerokara.agents.viewing.curves import (
    Y_LABELS,
    Curve,
    draw,
    group_curves,
    join_names,
    mean_and_range,
    read_curve,
)
from zerokara.core.config import UserError
from zerokara.core.report import new_figure


def make_run(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Path:
    """Create a run folder with the files that plots read."""
    folder.mkdir(parents=True)
    fields = {"name": folder.name, "env": "ALE/Pong-v5", "preset": "fast", "frame_skip": None, **config}
    (folder / "config.json").write_text(json.dumps({"kind": "dqn", "config": fields, "extra": {}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def curve(x: list[float], y: list[float], *, target_reached: bool = False, **config: Any) -> Curve:
    return Curve(config.get("name", "run"), config, np.array(x, float), np.array(y, float), target_reached)


def drawn(given: list[Curve], metric: str = "train/return") -> tuple[Axes, list[str]]:
    """Draw curves; return the axes and the labels of the legend, with line breaks as spaces."""
    _, (axes,) = new_figure()
    draw(axes, group_curves(given), metric)
    legend = axes.get_legend()
    assert legend is not None
    return axes, [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def test_runs_with_equal_configs_except_for_seed_are_a_group() -> None:
    runs = [
        curve([0], [0], name="a1", seed=1, n_step=1, env="ALE/Pong-v5"),
        curve([0], [0], name="b1", seed=1, n_step=3, env="ALE/Pong-v5"),
        curve([0], [0], name="a2", seed=2, n_step=1, env="ALE/Pong-v5", resume=True, device="cuda", threads=4),
    ]
    assert [(label, [run.name for run in runs]) for label, runs in group_curves(runs)] == [
        ("n-step 1", ["a1", "a2"]),
        ("n-step 3", ["b1"]),
    ]
    assert [label for label, _ in group_curves(runs[:1] + runs[2:])] == ["ALE/Pong-v5"]


def test_legend_names_the_runs() -> None:
    fast = [curve([0, 1], [0, 1], name=f"pong-{seed}", seed=seed, n_step=1) for seed in (1, 2, 12)]
    slow = curve([0, 1], [0, 1], name="slow", seed=1, n_step=3)
    assert drawn([*fast, slow])[1] == [
        "n-step 1: pong-{1,2,12} (mean of 3 runs, band from min to max)",
        "n-step 3: slow",
    ]


def test_groups_that_differ_in_many_settings_are_labeled_with_the_names_of_their_runs() -> None:
    runs = [
        curve([0], [0], name=name, gamma=value, n_step=value, width_multiplier=value, env=value)
        for name, value in (("one", 1), ("two", 2))
    ]
    assert drawn(runs)[1] == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["pong-1"], "pong-1"),
        (["pong-1", "pong-2"], "pong-{1,2}"),
        (["pong-1", "pong-12"], "pong-{1,12}"),
        (["pong", "pong-2"], "pong, pong-2"),
        (["a1", "a2"], "a1, a2"),
        ([f"run-{i}" for i in range(12)], "run-{0,1,2,3,4,5,6,7,...}"),
    ],
)
def test_names_of_runs_are_joined_as_a_shell_expands_them(names: list[str], joined: str) -> None:
    assert join_names(names) == joined


def test_mean_and_range_by_hand() -> None:
    """Values between the points of a run are interpolated linearly; the mean ends with the shortest run."""
    x, mean, low, high = mean_and_range([curve([0, 10, 20], [0, 10, 30]), curve([5, 10, 15], [1, 2, 3])])
    assert x.tolist() == [5, 10, 15]
    assert mean.tolist() == [3, 6, 11.5]
    assert low.tolist() == [1, 2, 3]
    assert high.tolist() == [5, 10, 20]


def test_runs_without_common_x_have_no_mean() -> None:
    runs = [curve([0, 1], [0, 0]), curve([5, 6], [1, 1])]
    x, mean, _, _ = mean_and_range(runs)
    assert (len(x), len(mean)) == (0, 0)
    assert drawn(runs)[1] == [
        "run, run (mean of 2 runs, band from min to max; not drawn, for the runs have no x in common)"
    ]


def test_legend_tells_where_the_mean_ends() -> None:
    runs = [curve([0, 100], [0, 1], name="long-1"), curve([0, 60], [0, 1], name="long-2")]
    assert drawn(runs)[1] == ["long-{1,2} (mean of 2 runs, band from min to max while all 2 have values)"]
    runs[1] = curve([0, 99], [0, 1], name="long-2")
    assert drawn(runs)[1] == ["long-{1,2} (mean of 2 runs, band from min to max)"]


def test_runs_that_reached_their_target_are_drawn_one_by_one_to_their_ends() -> None:
    ends = ((12.4, 20.0), (12.7, 20.1), (18.0, 19.6))
    runs = [
        curve([4, 8, x], [-20, -5, y], target_reached=True, name=f"pong-{i}", seed=i, stop_at_return=18.0)
        for i, (x, y) in enumerate(ends, start=1)
    ]
    axes, labels = drawn(runs, "eval/return")
    assert labels == [
        "pong-1 (last value 20, target reached)",
        "pong-2 (last value 20.1, target reached)",
        "pong-3 (last value 19.6, target reached)",
        "target return 18",
    ]
    assert not axes.collections, "there is no band"
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()]
    assert [line for line in lines if len(line) == 3] == [[[4, -20], [8, -5], [x, y]] for x, y in ends]
    assert [line for line in lines if len(line) == 1] == [[[x, y]] for x, y in ends], "a marker at each end"
    assert len({line.get_color() for line in axes.get_lines() if line.get_linestyle() == "-"}) == 3


def test_evaluations_are_points_joined_by_lines() -> None:
    for metric, marker in (("eval/return", "o"), ("train/return", "None")):
        axes, _ = drawn([curve([0, 1], [0, 1])], metric)
        (line,) = axes.get_lines()
        assert (line.get_marker(), line.get_linestyle()) == (marker, "-")


def test_label_of_the_training_return_does_not_promise_100_episodes() -> None:
    assert Y_LABELS["train/return"] == "mean raw return of the last up to 100 training episodes"


def test_axes_in_steps_frames_minutes_and_hours(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 100, "train/return": -21.0, "speed/hours": 0.5},
        {"step": 150, "eval/return": -20.0},
        {"step": 200, "train/return": None, "speed/hours": 1.0},
        {"step": 300, "train/return": -19.0, "speed/hours": 2.0},
        {"step": 300, "eval/return": -18.0, "speed/hours": 2.5},
    ]
    pong = make_run(tmp_path / "pong", rows)
    steps = read_curve(pong, "train/return", "steps")
    assert (steps.x.tolist(), steps.y.tolist()) == ([100, 300], [-21, -19])
    assert read_curve(pong, "train/return", "frames").x.tolist() == [400, 1200]
    assert read_curve(pong, "train/return", "hours").x.tolist() == [0.5, 2.0]
    # The first evaluation is half-way between two lines with a time; the last one has a time of its own.
    assert read_curve(pong, "eval/return", "hours").x.tolist() == [0.75, 2.5]
    assert read_curve(pong, "eval/return", "minutes").x.tolist() == [45, 150]
    catch = make_run(tmp_path / "catch", rows, env="zerokara/Catch-v0")
    assert read_curve(catch, "train/return", "frames").x.tolist() == [100, 300]
    every_2nd = make_run(tmp_path / "every_2nd", rows, frame_skip=2)
    assert read_curve(every_2nd, "train/return", "frames").x.tolist() == [200, 600]
    content = json.loads((pong / "config.json").read_text())
    content["extra"] = {"environment": {"frame_skip": 3}}  # the active setting, as the run saved it
    (pong / "config.json").write_text(json.dumps(content))
    assert read_curve(pong, "train/return", "frames").x.tolist() == [300, 900]


@pytest.mark.parametrize(
    ("target", "last", "reached"),
    [
        (18.0, {"eval/return": 20.0, "eval/return_confirmed": 19.0}, True),
        (18.0, {"eval/return": 20.0, "eval/return_confirmed": 17.0}, False),
        (18.0, {"eval/return": 17.0}, False),
        (None, {"eval/return": 20.0}, False),
    ],
)
def test_target_is_reached_by_an_evaluation_and_its_confirmation(
    tmp_path: Path, target: float | None, last: dict[str, float], reached: bool
) -> None:
    rows = [{"step": 1, "train/return": 0.0}, {"step": 2, **last}, {"step": 3, "train/return": 1.0}]
    run = make_run(tmp_path / "pong", rows, stop_at_return=target)
    assert read_curve(run, "train/return", "steps").target_reached is reached


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 2.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_curve(run, "loss", "steps").x.tolist() == [1]


def test_messages_about_runs_that_cannot_be_plotted(tmp_path: Path) -> None:
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
        read_curve(run, "train/loss", "minutes")
    damaged = make_run(tmp_path / "b", [{"step": 1, "loss": 2.0}])
    (damaged / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="damaged in line 2"):
        read_curve(damaged, "loss", "steps")
    with pytest.raises(UserError, match="no run in"):
        read_curve(tmp_path / "none", "loss", "steps")


def test_plot_of_a_real_run_is_written_beside_it(catch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot.main([str(catch_run), "--metric", "eval/return", "--x", "minutes"])
    assert "zerokara/Catch-v0, fast: last eval/return: catch " in capsys.readouterr().out
    with Image.open("runs/learning-curves.png") as picture:
        assert picture.size == (1350, 825)


def test_groups_have_their_colors_and_bands(tmp_path: Path) -> None:
    for name, n_step, level in (("a1", 1, 0.0), ("a2", 1, 2.0), ("b1", 3, 9.0)):
        rows = [{"step": step, "train/return": level} for step in (0, 1000)]
        make_run(tmp_path / name, rows, n_step=n_step, seed=int(name[1]))
    out = tmp_path / "curves.png"
    plot.main([*(str(tmp_path / name) for name in ("a1", "a2", "b1")), "--out", str(out)])
    with Image.open(out) as picture:
        colors = {tuple(color) for color in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    # The first two colors of matplotlib, and the first one at 15% opacity over white.
    assert {(31, 119, 180), (255, 127, 14)} <= colors
    assert any(abs(r - 221) < 3 and abs(g - 235) < 3 and abs(b - 244) < 3 for r, g, b in colors)


def test_plots_are_png_files_in_existing_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 2.0}])
    with pytest.raises(UserError, match=r"must be a PNG file, such as .*curves\.png"):
        plot.main([str(run), "--metric", "loss", "--out", str(tmp_path / "curves.jpg")])
    with pytest.raises(UserError, match="does not exist"):
        plot.main([str(run), "--metric", "loss", "--out", str(tmp_path / "none" / "curves.png")])
    with pytest.raises(UserError, match="No run was named"):
        plot.main([])


def test_every_x_axis_has_a_label() -> None:
    assert set(curves.X_LABELS) == {"steps", "frames", "minutes", "hours"}
