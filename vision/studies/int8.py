"""Networks in 8 bits: static quantisation of weights and activations by ONNX Runtime, convolutions too.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2: a number r is scale * (q - zero point). Weights are signed, with a scale for each output channel; activations
are unsigned, and their ranges are what they reach on some training images.

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

IMAGES, LOGITS = "images", "logits"  # what a network's input and output are called in the file


@dataclass(frozen=True)
class Session:
    """A network that ONNX Runtime runs on the CPU."""

    runtime: Any

    def __call__(self, x_BCHW: np.ndarray) -> np.ndarray:
        """Logits (B, K) of normalised images, both float32."""
        logits_BK: np.ndarray = self.runtime.run([LOGITS], {IMAGES: x_BCHW})[0]
        return logits_BK


def quantise(path: Path, calibration: Sequence[Tensor], out: Path) -> None:
    """Write the network in `path` with weights and activations in 8 bits.

    Args:
        path: ONNX, float32.
        calibration: batches (B, C, H, W) of normalised images that it learnt from: activations get the ranges that
            they reach on these.
        out: where to.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives the batches, one by one."""

        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        folded = str(Path(folder) / "folded.onnx")  # normalisation becomes part of the convolutions
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
    """A network to be run on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return Session(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def operations(path: Path) -> Counter[str]:
    """How often each operation is run, when ONNX Runtime has made of the file what it will really run."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "run.onnx")
        options.log_severity_level = 3  # it warns that such a file is for this machine only
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        return Counter(node.op_type for node in graph.node)
