"""ONNX files: export of networks, and inference with ONNX Runtime to verify the exported file.

Three additional packages are required: pip install onnx onnxscript onnxruntime.
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

from zerokara.core.config import UserError, error_summary

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages(what: str = "ONNX", switch: str = "--no-onnx") -> None:
    """Check that the packages for ONNX export are installed.

    Args:
        what: the feature that needs them, for the message.
        switch: option that disables the feature, for the message.

    Raises:
        UserError: packages are missing; the message contains the command to install them.
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
    """Export a network to ONNX, with a dynamic batch size.

    Args:
        network: to export.
        example: example inputs by name, in the order of the arguments of `forward`, with a batch size of at least 2.
        output: name of the output.
        path: of the file.
        metadata: strings stored in the file.

    Raises:
        UserError: the exporter does not support the network.
    """
    batch = torch.export.Dim("batch")
    try:
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
    except Exception as error:  # the exporter raises many exception types
        raise UserError(
            f"PyTorch's ONNX exporter does not support this network ({error_summary(error)}): leave the file out with "
            f"--no-onnx."
        ) from error
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def load(path: Path) -> Callable[..., np.ndarray]:
    """Load an ONNX file and return a function from its inputs to its first output, computed on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> np.ndarray:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return np.asarray(session.run(None, feed)[0])

    return run


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's messages about missing torchvision operators and about shared dynamic dimensions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            # The exporter uses a deprecated API of PyTorch.
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
