"""Beam search: the most probable sentence of a model that tells the next word, nearly.

Vinyals et al. 2015, "Show and Tell", section 3.1: the best K beginnings are kept at every word. Every beginning may
also end, and what has ended is kept apart, so that a sentence is never dropped for being finished.

Shapes: K beginnings, V words of the vocabulary.
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
class Sentence:
    """Numbers of its words, without the one that ends it, and how good it is."""

    words: tuple[int, ...]
    score: float


def beam_search(
    first_1V: Tensor,
    state: StateT,
    advance: Callable[[StateT, Tensor, Tensor], tuple[Tensor, StateT]],
    *,
    beams: int,
    longest: int,
    end: int,
    length_power: float = 0.0,
    forbidden: tuple[int, ...] = (),
) -> list[Sentence]:
    """At most `beams` sentences, the best first. A score is log p(words and end) / (words + 1) ** length_power.

    Args:
        first_1V: log probabilities (1, V) of the first word.
        state: of the model before that word.
        advance: from the state, the beginnings (K,) of the last call that live on, and the word (K,) that each got,
            to log probabilities (K, V) of the next word and the new state.
        beams: K at most.
        longest: words of a sentence at most; there it ends.
        end: the word that ends a sentence.
        length_power: 0 is the paper's sum; 1 the mean over words, which does not favour short sentences.
        forbidden: words that are never said.
    """
    blocked = torch.tensor([*forbidden, end], dtype=torch.int64)
    beginnings: list[tuple[int, ...]] = [()]
    total_K = torch.zeros(1, dtype=torch.float64)
    log_KV = first_1V
    ended: list[Sentence] = []
    for length in range(longest + 1):
        log_KV = Compute.to_host(log_KV).double()
        last = (total_K + log_KV[:, end]) / (length + 1) ** length_power
        ended += [Sentence(words, float(score)) for words, score in zip(beginnings, last, strict=True)]
        ended = sorted(ended, key=lambda sentence: -sentence.score)[:beams]
        if length == longest:
            break
        scores_KV = total_K[:, None] + log_KV
        scores_KV[:, blocked] = -torch.inf
        best, places = scores_KV.flatten().topk(min(beams, scores_KV.numel()))
        kept = best > -torch.inf
        if not kept.any():
            break
        total_K, places = best[kept], places[kept]
        parent_K, word_K = places // scores_KV.shape[1], places % scores_KV.shape[1]
        beginnings = [
            (*beginnings[parent], word) for parent, word in zip(parent_K.tolist(), word_K.tolist(), strict=True)
        ]
        log_KV, state = advance(state, parent_K, word_K)
    return ended
