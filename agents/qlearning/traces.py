"""Q-network with eligibility traces: the weights and their traces are two vectors.

Shapes: P parameters, N observations, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning.network import QNetwork
from zerokara.core.compute import Compute

METRICS = ("train/loss", "train/q", "train/td_error", "train/step_size", "train/trace_norm")


class TraceLearner:
    """Q-network whose parameters are views of one vector, and whose gradients are views of the vector of traces.

    So a backward pass adds the gradient to the traces, and an update of all weights is one operation. Networks of one's
    own run in evaluation mode, because BatchNorm and dropout are made for batches.

    Args:
        network: Q-network.
        compute: device, precision and compilation.
    """

    def __init__(self, network: QNetwork, compute: Compute) -> None:
        self.network, self.compute = network.to(compute.torch_device).eval(), compute
        parameters = list(network.parameters())
        self.weight_P = torch.cat([p.detach().flatten() for p in parameters])
        self.trace_P = torch.zeros_like(self.weight_P)
        sizes = [p.numel() for p in parameters]
        for p, weight, trace in zip(parameters, self.weight_P.split(sizes), self.trace_P.split(sizes), strict=True):
            p.data, p.grad = weight.view_as(p), trace.view_as(p)
        self._values = compute.function(self._forward)
        self._sums = np.zeros(len(METRICS) + 1)  # since the last `read_metrics`, and last the number of updates

    def _forward(self, obs_NCHW: Tensor) -> Tensor:
        with self.compute.autocast():
            q_NA: Tensor = self.network(self.compute.images(obs_NCHW))
        return q_NA

    def values(self, obs_NCHW: np.ndarray) -> Tensor:
        """Q-values (N, A) float32 of observations (N, C, H, W), for a backward pass."""
        return self._values(torch.from_numpy(obs_NCHW).to(self.compute.torch_device))

    def add_metrics(self, *metrics: float) -> None:
        """Add the `METRICS` of an update."""
        self._sums += (*metrics, 1.0)

    def read_metrics(self) -> dict[str, float]:
        """Return the means of the metrics since the last call."""
        means = self._sums[:-1] / max(1.0, self._sums[-1])
        self._sums[:] = 0.0
        return dict(zip(METRICS, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """State of network, traces and metrics."""
        return {"network": self.network.state_dict(), "trace": self.trace_P, "sums": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned, in place."""
        self.network.load_state_dict(state["network"])
        self.trace_P.copy_(state["trace"])
        self._sums[:] = state["sums"]

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Restore the network of one of the processes, without traces, because new episodes start."""
        self.load_state_dict(states.get(rank, states[0]))
        self.trace_P.zero_()
