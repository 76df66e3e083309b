"""Beam search for the most probable token sequence of an autoregressive model.

Vinyals et al. 2015, "Show and Tell", section 3.1: after every token the K best partial sequences are kept. Each partial
sequence is also a candidate for a finished one. Finished sequences are stored separately, so they do not compete with
partial ones for the K places.

Shapes: K partial sequences, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from zerokara.core.compute import Compute

StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Hypothesis:
    """Finished token sequence, without its end token, and its score."""

    tokens: tuple[int, ...]
    score: float


def beam_search(
    first_1V: Tensor,
    state: StateT,
    advance: Callable[[StateT, Tensor, Tensor], tuple[Tensor, StateT]],
    *,
    beam_size: int,
    max_length: int,
    end: int,
    length_penalty: float = 0.0,
    forbidden: tuple[int, ...] = (),
) -> list[Hypothesis]:
    """Return at most `beam_size` finished sequences, the best first.

    The score of a sequence is log p(tokens and end) / (number of tokens + 1) ** length_penalty.

    Args:
        first_1V: log probabilities (1, V) of the first token.
        state: model state before the first token.
        advance: maps the state, the indices (K,) of the sequences of the last call that are continued, and their next
            tokens (K,), to the log probabilities (K, V) of the token after that and the new state.
        beam_size: maximum of K.
        max_length: maximum number of tokens in a sequence, without the end token.
        end: index of the end token.
        length_penalty: 0 is the sum of log probabilities, as in the paper; 1 is their mean, which does not favor short
            sequences.
        forbidden: tokens that are never generated.
    """
    blocked = torch.tensor([*forbidden, end], dtype=torch.int64)
    partial: list[tuple[int, ...]] = [()]
    total_K = torch.zeros(1, dtype=torch.float64)
    log_KV = first_1V
    finished: list[Hypothesis] = []
    for length in range(max_length + 1):
        log_KV = Compute.to_host(log_KV).double()
        score_K = (total_K + log_KV[:, end]) / (length + 1) ** length_penalty
        finished += [Hypothesis(tokens, float(score)) for tokens, score in zip(partial, score_K, strict=True)]
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beam_size]
        if length == max_length:
            break
        total_KV = total_K[:, None] + log_KV
        total_KV[:, blocked] = -torch.inf
        best, indices = total_KV.flatten().topk(min(beam_size, total_KV.numel()))
        possible = best > -torch.inf
        if not possible.any():
            break
        total_K, indices = best[possible], indices[possible]
        parent_K, token_K = indices // total_KV.shape[1], indices % total_KV.shape[1]
        partial = [(*partial[parent], token) for parent, token in zip(parent_K.tolist(), token_K.tolist(), strict=True)]
        log_KV, state = advance(state, parent_K, token_K)
    return finished
