"""Display of a run in TensorBoard: order of tags, run name, order of the hyperparameters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data, parse_session_start_info_plugin_data

from tests.core.test_run import events, new
from tests.tensorboard_pages import curve_groups, hparams_metrics


def test_images_and_final_metrics_are_sorted_after_the_curves(tmp_path: Path) -> None:
    """TensorBoard's Time Series page sorts groups, the part of a tag before the first slash, by name."""
    curves = ("eval", "replay", "speed", "train", "val", "validation")
    with new(tmp_path) as run:
        run.image("first_layer", 0, np.zeros((8, 8), np.uint8))
        run.log(1, {f"{group}/x": 1.0 for group in (*curves, "final")})
    tags = events(run).Tags()
    groups = sorted({tag.partition("/")[0] for tag in (*tags["scalars"], *tags["images"])})
    assert groups == [*curves, "visual", "z_final"]
    assert tags["images"] == ["visual/first_layer"]
    assert "final/x" in json.loads((run.folder / "metrics.jsonl").read_text())


def test_run_name(tmp_path: Path) -> None:
    with new(tmp_path, "pong-1") as run:
        run.log(1, {"train/loss": 1.0})
    with new(tmp_path, "old") as run:
        pass
    (tmp_path / "old/tensorboard").mkdir()  # folder of event files in older versions
    with new(tmp_path, "old", resume=True) as run:
        run.log(1, {"train/loss": 1.0})
    boards = EventMultiplexer()
    boards.AddRunsFromDirectory(str(tmp_path))
    assert set(boards.Runs()) == {"pong-1", "old/tensorboard"}, "a resumed run of an older version is still one run"


def test_order_of_hparams(tmp_path: Path) -> None:
    settings = ("beta", "alpha", "name", "device", "batch_size", "learning_rate", "double", "seed", "quiet", "env")
    with new(tmp_path) as run:
        run.hparams({**dict.fromkeys(settings, 1), "preset": "fast"}, [])
    board = events(run)
    experiment = parse_experiment_plugin_data(board.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    columns = sorted(experiment.hparam_infos, key=lambda info: info.name)  # as TensorBoard does
    assert [info.display_name for info in columns] == [
        *("env", "preset", "seed", "double", "learning_rate", "batch_size"),
        *("alpha", "beta"),
        "device",
    ]
    start = parse_session_start_info_plugin_data(
        board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    assert set(start.hparams) == {info.name for info in columns}, "values are found by the names of the columns"


def test_metrics_of_hparams_are_the_last_values_of_curves(tmp_path: Path) -> None:
    for name, result in (("a", 3.0), ("b", 4.0)):
        with new(tmp_path, name) as run:
            run.log(1, {"eval/return": 1.0})
            run.log(2, {"eval/return": result})
            run.log(2, {"final/test_error": 0.25})  # recorded, and not yet written
            run.hparams({"seed": 1, "name": name}, ["eval/return", "final/test_error"])
    assert hparams_metrics(tmp_path) == {
        "a": {"eval/return": 3.0, "final/test_error": 0.25},
        "b": {"eval/return": 4.0, "final/test_error": 0.25},
    }
    assert curve_groups(tmp_path / "a") == {"eval": 2, "z_final": 1}, "the metrics are not written a second time"
