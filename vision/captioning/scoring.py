"""Scores of captions: BLEU by sacrebleu, baselines, and confidence intervals over data splits.

Shapes: N images, M training images, F features, S splits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from zerokara.vision.captioning.vocabulary import tokenize

CONFIDENCE = 0.95
ORDERS = (1, 2, 3, 4)


def normalize_caption(caption: str) -> str:
    """Return a caption in lowercase and without punctuation, as it is compared."""
    return " ".join(tokenize(caption))


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute bleu1 to bleu4 in percent over the whole corpus, without smoothing (Papineni et al. 2002).

    Args:
        captions: a generated caption for each of N images.
        references: all reference captions of each image; their number may differ between images.
    """
    from sacrebleu.metrics.bleu import BLEU

    captions = [normalize_caption(caption) for caption in captions]
    max_references = max(len(of_image) for of_image in references)
    # sacrebleu expects the first reference of every image, then the second, ...; None if an image has no more.
    streams = [
        [normalize_caption(of_image[number]) if number < len(of_image) else None for of_image in references]
        for number in range(max_references)
    ]
    scores = {}
    for order in ORDERS:
        metric = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
        scores[f"bleu{order}"] = float(metric.corpus_score(captions, streams).score)  # type: ignore[arg-type]
    return scores


def sentence_bleu(caption: str, references: Sequence[str]) -> float:
    """Compute BLEU-4 in percent of one caption, with smoothing. It is used to sort captions by quality."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", effective_order=True)
    normalized = [normalize_caption(reference) for reference in references]
    return float(metric.sentence_score(normalize_caption(caption), normalized).score)


def most_frequent(captions: Sequence[Sequence[str]]) -> str:
    """Return the most frequent normalized caption; if several are equally frequent, the alphabetically first."""
    counts = Counter(normalize_caption(caption) for of_image in captions for caption in of_image)
    return min(counts, key=lambda caption: (-counts[caption], caption))


def nearest(features_NF: Tensor, train_MF: Tensor) -> list[int]:
    """Return for each image the index of the most similar training image.

    The similarity is the cosine of the features, standardized to mean 0 and standard deviation 1 over the training
    images.
    """
    mean, std = train_MF.mean(0), train_MF.std(0, correction=0).clamp(min=1e-6)
    unit_NF, train_unit_MF = (F.normalize((x - mean) / std, dim=1) for x in (features_NF, train_MF))
    return [int(index) for index in (unit_NF @ train_unit_MF.T).argmax(1)]


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two scores on the same splits, its 95% interval by Student's t, and the p-value."""

    splits: int
    mean: float
    low: float
    high: float
    p: float


def paired_difference(scores: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Compute the mean of scores - baseline over at least two splits, with its interval and two-sided p-value.

    The p-value belongs to the null hypothesis of no difference. Splits share training images and are therefore not
    independent, which makes the interval slightly too narrow (Nadeau and Bengio 2003).
    """
    from scipy import stats

    difference_S = np.array(scores, float) - np.array(baseline, float)
    mean, error = float(difference_S.mean()), float(stats.sem(difference_S))
    if error <= 1e-9 * abs(mean):  # all differences are equal up to rounding
        return PairedDifference(len(difference_S), mean, mean, mean, 0.0 if mean else 1.0)
    low, high = stats.t.interval(CONFIDENCE, len(difference_S) - 1, mean, error)
    p = float(stats.ttest_rel(scores, baseline).pvalue)
    return PairedDifference(len(difference_S), mean, float(low), float(high), p if math.isfinite(p) else 1.0)
