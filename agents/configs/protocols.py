"""How an agent is scored, by name: the one definition that training, evaluation and benchmarks share.

    python -m agents.dqn --protocol machado
    python -m agents.evaluate runs/<name> --protocol nature
    python -m agents.benchmark --protocol 100k

A name stands for the settings of Atari games (`envs.PROTOCOLS`) and for what is here: which number of a run is its
score, and what a run's config must say for it. Where `--protocol` is typed, these overrides lie over those of the
preset, so that two presets are scored alike; a preset alone is scored as its paper scored it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zerokara.agents.configs.common import ProtocolName


@dataclass(frozen=True)
class Protocol:
    """Where a score comes from."""

    source: str
    metric: str  # of metrics.jsonl; its last value is the run's score
    score: str  # in words
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of fields in agents/configs/common.py


PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    # The paper reports the best of its evaluations, which are what it was chosen by; here the last one counts.
    "nature": Protocol(
        "Mnih et al. 2015, Methods: up to 30 no-ops begin a game",
        "eval/return",
        "mean raw return of 30 whole games at epsilon .05, cut after 5 minutes (18,000 frames)",
        {"eval_episodes": 30, "eval_epsilon": 0.05, "eval_max_steps": 4_500},
    ),
    "machado": Protocol(
        "Machado et al. 2018: sticky actions with probability .25",
        "train/return",
        "mean raw return of the last 100 games of training, without an evaluation of its own",
        {"eval_every_steps": 0},
    ),
    # Epsilon and the number of games are those of the code that Agarwal et al. 2021 compare.
    "100k": Protocol(
        "Kaiser et al. 2020, Agarwal et al. 2021: 100,000 steps (400,000 frames), up to 30 no-ops begin a game",
        "eval/return",
        "mean raw return of 100 whole games at epsilon .001 after the last step, cut after 30 minutes (108,000 frames)",
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
