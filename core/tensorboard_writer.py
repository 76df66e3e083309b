"""TensorBoard event files: scalars, images (also animated), texts, graphs and hyperparameters of one run.

After the first failure the writer warns and drops everything that follows; it never ends a training run.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core.config import error_summary
from zerokara.core.tracking import OMITTED

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter, SummaryWriter

# TensorBoard sorts the groups of its Time Series page by name. Curves come first: eval, replay, speed, train, val.
IMAGE_GROUP = "visual"
FINAL_GROUP = "z_final"  # metrics final/<name>, which have a single point

# Order of the columns in HPARAMS. A run has only some of these settings; the others follow in alphabetical order.
FIRST_HPARAMS = (
    *("env", "data", "content", "style", "preset", "seed"),
    *("network", "backbone", "head", "loss", "double", "dueling", "n_step", "munchausen", "noisy", "per_alpha"),
    *("optimizer", "learning_rate", "generator_learning_rate", "discriminator_learning_rate", "batch_size"),
    *("gamma", "total_steps", "epochs", "updates", "iterations"),
)
LAST_HPARAMS = ("device", "precision", "compile", "threads")


class TensorBoardWriter:
    """Writer of event files. TensorBoard is imported at the first write, because the import takes 0.3 s."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.purge_step: int | None = None  # TensorBoard discards events of earlier processes from this step on
        self._folder = folder
        self._warn = warn
        self._writer: SummaryWriter | None = None
        self._closed = False
        self._hook = self._previous_hook = threading.excepthook

    def scalars(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Write rows of (step, value by tag). The group "final" is written as `FINAL_GROUP`."""

        def write(writer: SummaryWriter) -> None:
            for step, row in rows:
                for tag, value in row.items():
                    writer.add_scalar(_displayed_tag(tag), value, step)
            writer.flush()

        self._write(write)

    def image(self, tag: str, step: int, encoded: bytes) -> None:
        """Write an encoded PNG or animated GIF, which browsers play, in the group `IMAGE_GROUP`."""

        def write(writer: SummaryWriter) -> None:
            from PIL import Image
            from tensorboard.compat.proto.summary_pb2 import Summary

            with Image.open(io.BytesIO(encoded)) as picture:
                width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
            value = Summary.Value(tag=f"{IMAGE_GROUP}/{tag}", image=image)
            _event_writer(writer).add_summary(Summary(value=[value]), step)

        self._write(write)

    def histogram(self, tag: str, step: int, values: np.ndarray) -> None:
        """Write a histogram of values."""
        self._write(lambda writer: writer.add_histogram(tag, values, step))

    def graph(self, module: nn.Module, example: Tensor) -> None:
        """Write the graph of a network, traced with an example input."""

        def write(writer: SummaryWriter) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer warns about shapes, which are constant here
                try:
                    # Traced here, because `add_graph` would compare two traces, which imports the compiler.
                    writer.add_graph(torch.jit.trace(module, example, check_trace=False), example)
                except OSError:
                    raise
                except Exception as error:  # noqa: BLE001  (a network of one's own, which the tracer does not support)
                    self._warn(
                        f"TensorBoard has no graph of the network, because it cannot be traced: {error_summary(error)}"
                    )

        self._write(write)

    def text(self, tag: str, text: str) -> None:
        """Write a Markdown text."""
        self._write(lambda writer: writer.add_text(tag, text))

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write settings and names of metrics for the table of hyperparameters, the most important settings first.

        TensorBoard sorts the columns by name. Each name therefore gets its rank as a prefix ("05 seed"), and the plain
        name as the displayed one. The value of a metric is the last one of its scalars.
        """
        names = {_displayed_tag(tag): tag for tag in metrics}

        def write(writer: SummaryWriter) -> None:
            from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
            from torch.utils.tensorboard.summary import hparams

            plain = {
                f"{_hparam_rank(key):02} {key}": v if isinstance(v, (bool, int, float, str)) else str(v)
                for key, v in config.items()
                if key not in OMITTED  # TensorBoard shows the name of the run beside them
            }
            for summary in hparams(plain, dict.fromkeys(names, 0.0)):
                for value in summary.value:
                    if value.tag == EXPERIMENT_TAG:
                        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                        for info in data.experiment.hparam_infos:
                            info.display_name = info.name.partition(" ")[2]
                        for metric in data.experiment.metric_infos:
                            metric.display_name = names[metric.name.tag]
                        value.metadata.plugin_data.content = data.SerializeToString()
                _event_writer(writer).add_summary(summary)

        self._write(write)

    def close(self) -> None:
        """Write the remaining events and close the file. Later calls of any method do nothing."""
        if self._writer is not None:
            self._write(lambda writer: writer.close())
        self._closed = True
        if threading.excepthook is self._hook:
            threading.excepthook = self._previous_hook

    def _silence_writer_thread(self) -> None:
        """Suppress the stack trace of TensorBoard's thread: the next call of the writer raises the same error."""
        previous = self._previous_hook = threading.excepthook

        def hook(args: threading.ExceptHookArgs) -> None:
            if not type(args.thread).__module__.startswith("tensorboard."):
                previous(args)

        self._hook = threading.excepthook = hook

    def _write(self, write: Callable[[SummaryWriter], object]) -> None:
        """Call `write` with the writer; on an exception warn and close."""
        if self._closed:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._silence_writer_thread()
                self._writer = SummaryWriter(str(self._folder), purge_step=self.purge_step)
            write(self._writer)
        except Exception as error:  # noqa: BLE001  (no exception here may end a training run)
            self._closed = True  # the writer's thread has ended and would raise the same error again
            self._warn(
                f"TensorBoard's events could not be written ({error_summary(error)}): training continues without them."
            )


def _displayed_tag(tag: str) -> str:
    """Return the tag under which TensorBoard has a metric: final/test_error -> z_final/test_error."""
    group, slash, name = tag.partition("/")
    return f"{FINAL_GROUP}/{name}" if slash and group == "final" else tag


def _hparam_rank(name: str) -> int:
    """Return the position of a setting among the columns of HPARAMS, from 0 to 99; equal ranks are sorted by name."""
    if name in LAST_HPARAMS:
        return 99
    return FIRST_HPARAMS.index(name) if name in FIRST_HPARAMS else 50


def _event_writer(writer: SummaryWriter) -> FileWriter:
    """Return the file writer inside a SummaryWriter, which accepts Summary protocol buffers."""
    file_writer: FileWriter | None = writer.file_writer
    assert file_writer is not None  # None only after close
    return file_writer
