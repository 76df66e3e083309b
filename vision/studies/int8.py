"""Static 8-bit quantization of weights and activations with ONNX Runtime, including convolutions.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2: a real number is r = scale * (q - zero_point). Weights are signed, with a scale for each output channel.
Activations are unsigned; their ranges are measured on some training images.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

IMAGES, LOGITS = "images", "logits"  # names of the input and the output in the file


@dataclass(frozen=True)
class Session:
    """Network that runs in ONNX Runtime on the CPU."""

    runtime: Any

    def __call__(self, x_BCHW: np.ndarray) -> np.ndarray:
        """Return the logits (B, K) of normalized images, both float32."""
        logits_BK: np.ndarray = self.runtime.run([LOGITS], {IMAGES: x_BCHW})[0]
        return logits_BK


def quantize(path: Path, calibration: Sequence[Tensor], out: Path) -> None:
    """Quantize weights and activations of a network to 8 bits.

    Args:
        path: ONNX file of the network in float32.
        calibration: batches (B, C, H, W) of normalized training images, on which the ranges of the activations are
            measured.
        out: file to write.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Iterator over the calibration batches, as ONNX Runtime needs it."""

        def __init__(self) -> None:
            self._batches = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        folded = str(Path(folder) / "folded.onnx")  # normalization layers are merged into the convolutions
        quant_pre_process(str(path), folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def open_session(path: Path, threads: int) -> Session:
    """Open an ONNX file for inference on the CPU with this number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return Session(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def count_operations(path: Path) -> Counter[str]:
    """Count the operations of the graph that ONNX Runtime runs after its optimizations."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "run.onnx")
        options.log_severity_level = 3  # hide the warning that the optimized file is valid only for this machine
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        return Counter(node.op_type for node in graph.node)
