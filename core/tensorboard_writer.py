"""TensorBoard's event files: scalars, pictures (animated too), texts and hyperparameters of one run.

Nothing here is worth a run: the first failure is warned of, and from then on TensorBoard is left out.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from zerokara.core.config import error_summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter, SummaryWriter


class TensorBoardWriter:
    """A writer of event files that is made when first needed: importing TensorBoard takes a third of a second."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.purge_step: int | None = None  # events of an earlier process from this step on are void
        self._folder = folder
        self._warn = warn
        self._writer: SummaryWriter | None = None
        self._closed = False
        self._hook = self._hook_before = threading.excepthook

    def scalars(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Write (step, values by tag)."""

        def write(writer: SummaryWriter) -> None:
            for step, row in rows:
                for tag, value in row.items():
                    writer.add_scalar(tag, value, step)
            writer.flush()

        self._write(write)

    def picture(self, tag: str, step: int, encoded: bytes) -> None:
        """Put an encoded PNG, or a GIF that moves, among the images: browsers play what they are sent."""

        def write(writer: SummaryWriter) -> None:
            from PIL import Image
            from tensorboard.compat.proto.summary_pb2 import Summary

            with Image.open(io.BytesIO(encoded)) as picture:
                width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
            _events(writer).add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

        self._write(write)

    def histogram(self, tag: str, step: int, values: np.ndarray) -> None:
        """Put the distribution of numbers among the histograms."""
        self._write(lambda writer: writer.add_histogram(tag, values, step))

    def graph(self, module: nn.Module, example: Tensor) -> None:
        """Put the network's graph, traced on an example, on its page."""

        def write(writer: SummaryWriter) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracer, on shapes that are constants here
                writer.add_graph(module, example)

        self._write(write)

    def text(self, tag: str, text: str) -> None:
        """Put Markdown among the texts."""
        self._write(lambda writer: writer.add_text(tag, text))

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Put what was set and what came of it into the table of hyperparameters."""

        def write(writer: SummaryWriter) -> None:
            from torch.utils.tensorboard.summary import hparams

            plain = {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in config.items()}
            for summary in hparams(plain, dict(metrics)):
                _events(writer).add_summary(summary)
            for tag, value in metrics.items():
                writer.add_scalar(tag, value, step)

        self._write(write)

    def close(self) -> None:
        """Write what is left; what is given afterwards is dropped."""
        if self._writer is not None:
            self._write(lambda writer: writer.close())
        self._closed = True
        if threading.excepthook is self._hook:
            threading.excepthook = self._hook_before

    def _silence_its_thread(self) -> None:
        """When the writer's thread dies, its error comes back from the next call: its stack need not be printed."""
        before = self._hook_before = threading.excepthook

        def hook(args: threading.ExceptHookArgs) -> None:
            if not type(args.thread).__module__.startswith("tensorboard."):
                before(args)

        self._hook = threading.excepthook = hook

    def _write(self, write: Callable[[SummaryWriter], object]) -> None:
        if self._closed:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._silence_its_thread()
                self._writer = SummaryWriter(str(self._folder), purge_step=self.purge_step)
            write(self._writer)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is not worth a run)
            self._closed = True  # its thread is dead and would raise the same again
            self._warn(
                f"TensorBoard's events could not be written ({error_summary(error)}): training goes on without them."
            )


def _events(writer: SummaryWriter) -> FileWriter:
    """The file under the writer, which takes summaries as they are."""
    events: FileWriter | None = writer.file_writer
    assert events is not None  # only a closed writer has none
    return events
