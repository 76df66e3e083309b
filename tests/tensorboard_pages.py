"""Content of TensorBoard's pages for a folder of runs, read by TensorBoard's own code."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import ListHyperparametersResult
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups


def curve_groups(run: Path) -> dict[str, int]:
    """Return the groups of the Time Series page in their order, each with the points of its longest curve."""
    board = EventAccumulator(str(run), size_guidance={"scalars": 0})
    board.Reload()
    points: dict[str, int] = {}
    for tag in sorted(board.Tags()["scalars"]):
        group = tag.partition("/")[0]
        points[group] = max(points.get(group, 0), len(board.Scalars(tag)))
    return points


def hparams_metrics(runs: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of the HPARAMS page: run -> name of the column -> value."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(runs))
    multiplexer.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(runs))))
    asked = RequestContext()
    nothing = ListHyperparametersResult(hyperparameters=[], session_groups=[])
    experiment = context.experiment_from_metadata(asked, "", True, context.hparams_metadata(asked, ""), nothing)
    columns = {info.name.tag: info.display_name for info in experiment.metric_infos}
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=api_pb2.Status.values(), slice_size=100)
    groups = list_session_groups.Handler(asked, context, "", request).run().session_groups
    return {
        session.name: {columns[metric.name.tag]: metric.value for metric in session.metric_values}
        for group in groups
        for session in group.sessions
    }
