"""How good captions are: BLEU by sacrebleu, baselines to beat, and intervals over splits.

Shapes: N photographs, M photographs that were learnt from, F features, S splits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from zerokara.vision.captioning.vocabulary import words_of

CONFIDENCE = 0.95
ORDERS = (1, 2, 3, 4)


def normal(sentence: str) -> str:
    """A sentence as it is compared: small letters, no punctuation."""
    return " ".join(words_of(sentence))


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu1 to bleu4 in percent, over all photographs at once (Papineni et al. 2002), unsmoothed.

    Args:
        said: a sentence for each of N photographs.
        references: all that people said of each; they may be more of one than of another.
    """
    from sacrebleu.metrics.bleu import BLEU

    said = [normal(sentence) for sentence in said]
    most = max(len(sentences) for sentences in references)
    # sacrebleu takes the first references of all, then the second ones, ...; None where there is none.
    streams = [
        [normal(sentences[place]) if place < len(sentences) else None for sentences in references]
        for place in range(most)
    ]
    found = {}
    for order in ORDERS:
        metric = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
        found[f"bleu{order}"] = float(metric.corpus_score(said, streams).score)  # type: ignore[arg-type]
    return found


def sentence_bleu(said: str, references: Sequence[str]) -> float:
    """BLEU-4 in percent of one sentence, smoothed, for sorting good from bad."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", effective_order=True)
    return float(metric.sentence_score(normal(said), [normal(reference) for reference in references]).score)


def most_frequent(captions: Sequence[Sequence[str]]) -> str:
    """The sentence that was said most often; of equals the first by the alphabet."""
    counts = Counter(normal(sentence) for sentences in captions for sentence in sentences)
    return min(counts, key=lambda sentence: (-counts[sentence], sentence))


def nearest(features_NF: Tensor, learnt_MF: Tensor) -> list[int]:
    """For each photograph the place of the one, of those learnt from, that looks most alike.

    Alike is the cosine of the features, each brought to mean 0 and deviation 1 over what was learnt from.
    """
    mean, deviation = learnt_MF.mean(0), learnt_MF.std(0, correction=0).clamp(min=1e-6)
    here, there = (F.normalize((x - mean) / deviation, dim=1) for x in (features_NF, learnt_MF))
    return [int(place) for place in (here @ there.T).argmax(1)]


@dataclass(frozen=True)
class Paired:
    """How much better one is than another on the same splits: mean, 95% interval by Student's t, and its p-value."""

    splits: int
    mean: float
    low: float
    high: float
    p: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """The mean of ours - theirs over splits, at least two, with its interval; p is two-sided, of no difference.

    Splits share photographs that are learnt from, so they are not quite independent and the interval is a little too
    narrow (Nadeau and Bengio 2003).
    """
    from scipy import stats

    difference_S = np.array(ours, float) - np.array(theirs, float)
    mean, error = float(difference_S.mean()), float(stats.sem(difference_S))
    if error <= 1e-9 * abs(mean):  # all alike, but for rounding
        return Paired(len(difference_S), mean, mean, mean, 0.0 if mean else 1.0)
    low, high = stats.t.interval(CONFIDENCE, len(difference_S) - 1, mean, error)
    p = float(stats.ttest_rel(ours, theirs).pvalue)
    return Paired(len(difference_S), mean, float(low), float(high), p if math.isfinite(p) else 1.0)
