"""Evaluation protocols by name, shared by training, evaluation and benchmarks.

    python -m agents.dqn --protocol machado
    python -m agents.evaluate runs/<name> --protocol nature
    python -m agents.benchmark --protocol 100k

A protocol consists of Atari settings (`envs.PROTOCOLS`), of the metric that is the score of a run, and of overrides of
config fields. If `--protocol` is given on the command line, its overrides take precedence over the preset, so that
different presets have the same score. What a preset sets for the start of an episode and for lost lives (the no-ops of
btr, FIRE of PQN and of streaming) stays, in training as in evaluation; benchmarks and evaluations name it. Without
--protocol, a preset is scored as in its paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zerokara.agents.configs.common import ProtocolName


@dataclass(frozen=True)
class Protocol:
    """Definition of a score."""

    source: str  # paper
    metric: str  # name in metrics.jsonl; its last value is the score of the run
    score: str  # description for reports
    overrides: Mapping[str, Any] = field(default_factory=dict)  # values of fields in agents/configs/common.py


PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    # The paper reports the best of its evaluations, which is biased upwards by the selection; here the last one counts.
    "nature": Protocol(
        "Mnih et al. 2015, Methods: up to 30 no-ops at the start of an episode",
        "eval/return",
        "mean raw return of 30 episodes at epsilon .05, cut after 5 minutes (18,000 frames)",
        {"eval_episodes": 30, "eval_epsilon": 0.05, "eval_max_steps": 4_500},
    ),
    "machado": Protocol(
        "Machado et al. 2018: sticky actions with probability .25",
        "train/return",
        "mean raw return of the last 100 training episodes, without a separate evaluation",
        {"eval_every_steps": 0},
    ),
    # Epsilon and the number of episodes are those of the code that Agarwal et al. 2021 compare.
    "100k": Protocol(
        "Kaiser et al. 2020, Agarwal et al. 2021: 100,000 steps (400,000 frames), up to 30 no-ops at the start of an "
        "episode",
        "eval/return",
        "mean raw return of 100 episodes at epsilon .001 after the last step, cut after 30 minutes (108,000 frames)",
        {
            "total_steps": 100_000,
            "eval_every_steps": 100_000,
            "eval_episodes": 100,
            "eval_epsilon": 0.001,
            "eval_max_steps": 27_000,
        },
    ),
}

OVERRIDES: Mapping[str, Mapping[str, Any]] = {name: protocol.overrides for name, protocol in PROTOCOLS.items()}
