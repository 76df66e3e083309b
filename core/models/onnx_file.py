"""ONNX files: a network for programs that are not ours, and the file as a function, to check it by running it.

ONNX needs three packages more: pip install onnx onnxscript onnxruntime.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core.config import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages(what: str = "ONNX", switch: str = "--no-onnx") -> None:
    """See whether what ONNX needs is there.

    Args:
        what: needs it.
        switch: what to type to do without.

    Raises:
        UserError: what is missing, and how to install it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install {' '.join(PACKAGES)}, or leave {what} out with {switch}."
        )


def write(
    network: nn.Module, example: Mapping[str, Tensor], output: str, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a network as ONNX that takes any number of rows.

    Args:
        example: its inputs by name, in the order of its `forward`, with at least 2 rows each.
        output: what its output is called.
        metadata: texts that are kept in the file.
    """
    batch = torch.export.Dim("batch")
    with _quiet_exporter():
        program = torch.onnx.export(
            network,
            tuple(example.values()),
            dynamo=True,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in example),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def load(path: Path) -> Callable[..., np.ndarray]:
    """The file's first output as a function of its inputs, as another program would run it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]

    def run(*inputs: Tensor) -> np.ndarray:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return np.asarray(session.run(None, feed)[0])

    return run


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter says of each operator of torchvision that it is not there, and that inputs share their rows."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # its own use of what PyTorch gives up
            yield
    finally:
        logger.setLevel(level)
