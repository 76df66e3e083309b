"""Tests of vision.captioning: vocabulary, beam search against exhaustive search, BLEU by hand, baselines, intervals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.config import UserError
from zerokara.core.data.captions import CaptionSet
from zerokara.core.data.splits import VALIDATION_IS_TEST, AnySplit
from zerokara.vision.captioning.beam_search import Hypothesis, beam_search
from zerokara.vision.captioning.config import Config
from zerokara.vision.captioning.inputs import Data
from zerokara.vision.captioning.learner import EncodedCaptions
from zerokara.vision.captioning.network import CaptionerMetadata, caption_loss
from zerokara.vision.captioning.pictures import Entry, page
from zerokara.vision.captioning.scoring import bleu, most_frequent, nearest, paired_difference, sentence_bleu
from zerokara.vision.captioning.vocabulary import END, PAD, SPECIAL_TOKENS, START, UNKNOWN, Vocabulary, tokenize


def test_captions_are_tokenized_encoded_and_decoded() -> None:
    words = tokenize("A dog's T-shirt , a 2nd one - wet ! _x_")
    assert " ".join(words) == "a dog's t-shirt a 2nd one wet x"
    vocabulary = Vocabulary.from_captions(["a dog", "A cat .", "a dog runs", "the end"], min_word_count=2)
    assert vocabulary.words == (*SPECIAL_TOKENS, "a", "dog")  # by frequency, then alphabetically
    indices = vocabulary.encode("A wet dog .", max_length=20)
    assert indices == [START, 4, UNKNOWN, 5, END]
    assert vocabulary.encode("a a a a", max_length=2) == [START, 4, 4, END]
    assert vocabulary.decode([4, UNKNOWN, 5, END, 4]) == "a dog"
    with pytest.raises(ValueError, match="four special tokens"):
        Vocabulary(["a", "dog"])


class Markov:
    """Markov chain of order 2: the next token depends on the last two, so greedy search can fail."""

    def __init__(self, tokens: int) -> None:
        self.log = F.log_softmax(torch.randn(tokens, tokens, tokens, dtype=torch.float64) * 2, -1)

    def first(self) -> tuple[Tensor, Tensor]:
        return self.log[0, 0][None], torch.zeros(1, 2, dtype=torch.int64)

    def advance(self, state_K2: Tensor, parent_K: Tensor, token_K: Tensor) -> tuple[Tensor, Tensor]:
        state_K2 = torch.stack([state_K2[parent_K, 1], token_K], 1)
        return self.log[state_K2[:, 0], state_K2[:, 1]], state_K2

    def score(self, tokens: tuple[int, ...], end: int, length_penalty: float) -> float:
        total, last = 0.0, (0, 0)
        for token in (*tokens, end):
            total += float(self.log[last[0], last[1], token])
            last = (last[1], token)
        return float(total / (len(tokens) + 1) ** length_penalty)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("forbidden", [(), (1,)])
def test_a_wide_beam_finds_the_result_of_exhaustive_search(length_penalty: float, forbidden: tuple[int, ...]) -> None:
    end, max_length = 3, 3
    model = Markov(4)
    allowed = [token for token in range(4) if token != end and token not in forbidden]
    every = [tokens for length in range(max_length + 1) for tokens in itertools.product(allowed, repeat=length)]
    best = sorted(every, key=lambda tokens: -model.score(tokens, end, length_penalty))
    found = beam_search(
        *model.first(),
        model.advance,
        beam_size=len(allowed) ** max_length,
        max_length=max_length,
        end=end,
        length_penalty=length_penalty,
        forbidden=forbidden,
    )
    number = min(len(found), 8)
    assert [hypothesis.tokens for hypothesis in found[:number]] == best[:number]
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(model.score(hypothesis.tokens, end, length_penalty))


def test_a_narrow_beam_by_hand() -> None:
    """Token 0 is the most probable first token, but the best sequence begins with 1; it needs a beam of 2."""
    tables = {
        (): [0.6, 0.4, 1e-9],
        (0,): [0.34, 0.33, 0.33],
        (1,): [0.005, 0.005, 0.99],
    }

    def log(tokens: tuple[int, ...]) -> Tensor:
        return torch.tensor(tables.get(tokens, [1e-9, 1e-9, 1.0])).log()

    def advance(
        state: list[tuple[int, ...]], parent_K: Tensor, token_K: Tensor
    ) -> tuple[Tensor, list[tuple[int, ...]]]:
        state = [(*state[p], t) for p, t in zip(parent_K.tolist(), token_K.tolist(), strict=True)]
        return torch.stack([log(tokens) for tokens in state]), state

    def search(beam_size: int) -> Hypothesis:
        start: list[tuple[int, ...]] = [()]
        return beam_search(log(())[None], start, advance, beam_size=beam_size, max_length=2, end=2)[0]

    assert search(1).tokens == (0, 0)
    assert search(1).score == pytest.approx(math.log(0.6 * 0.34), abs=1e-5)
    assert search(2).tokens == (1,)
    assert search(2).score == pytest.approx(math.log(0.4 * 0.99), abs=1e-5)


def test_beam_search_returns_the_empty_sequence_at_length_0() -> None:
    first = torch.tensor([[0.1, 0.9]]).log()
    found = beam_search(first, None, lambda *_: (first, None), beam_size=2, max_length=0, end=1)
    assert [hypothesis.tokens for hypothesis in found] == [()]


def test_the_loss_ignores_padding() -> None:
    logits = torch.zeros(2, 3, 5)  # every token has probability 1/5
    logits[0, 0, 2] = math.log(6)  # 6/10
    tokens = torch.tensor([[2, 4, END], [END, PAD, PAD]])
    assert caption_loss(logits, tokens).item() == pytest.approx(-(math.log(0.6) + 3 * math.log(0.2)) / 4)


def test_captions_of_a_batch() -> None:
    vocabulary = Vocabulary((*SPECIAL_TOKENS, "a", "b", "c"))
    captions = EncodedCaptions([["a"], ["b b b", "c"], ["a c"]], vocabulary, max_length=4)
    tokens_PT, image_P = captions.batch(torch.tensor([2, 1]))
    assert image_P.tolist() == [0, 1, 1]
    assert tokens_PT.tolist() == [
        [START, 4, 6, END, PAD],
        [START, 5, 5, 5, END],
        [START, 6, END, PAD, PAD],
    ]


def small_metadata() -> CaptionerMetadata:
    return CaptionerMetadata(
        backbone="resnet20",
        words=(*SPECIAL_TOKENS, "a", "b", "c", "d"),
        image_size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        embedding=12,
        hidden=16,
        dropout=0.3,
        options={"width": 0.25},
    )


def test_beam_search_and_training_use_the_same_probabilities() -> None:
    """The score of a generated caption is its log probability in a forward pass over the whole caption."""
    captioner = small_metadata().build().eval()
    features_2F = captioner.features(torch.randn(2, 3, 32, 32))
    best = captioner.caption(features_2F[:1], beam_size=4, max_length=5, length_penalty=0.0)[0]
    tokens = torch.tensor([[START, *best.tokens, END]])
    log_TV = F.log_softmax(captioner(features_2F[:1], tokens[:, :-1])[0], 1)
    expected = log_TV.gather(1, tokens[0, 1:, None]).sum().item()
    assert best.score == pytest.approx(expected, abs=1e-4)
    assert not {PAD, START, UNKNOWN} & set(best.tokens)
    # The logits do not depend on later tokens.
    longer = torch.cat([tokens[:, :-1], torch.tensor([[4, 5]])], 1)
    logits = captioner(features_2F[:1], longer)[:, : tokens.shape[1] - 1]
    torch.testing.assert_close(logits, captioner(features_2F[:1], tokens[:, :-1]))


def test_bleu_by_hand() -> None:
    # Papineni et al. 2002, section 2.1.1: two of the seven "the" are counted; the brevity penalty is 1.
    found = bleu(["The the the the the the the."], [["The cat is on the mat.", "There is a cat on the mat"]])
    assert found["bleu1"] == pytest.approx(100 * 2 / 7)
    assert found["bleu2"] == 0
    # All n-grams match: 4 of 4, 3 of 3, 2 of 2, 1 of 1. The reference has 5 words: brevity penalty exp(1 - 5/4).
    found = bleu(["a dog runs fast"], [["a dog runs fast today"]])
    assert found == {f"bleu{n}": pytest.approx(100 * math.exp(1 - 5 / 4)) for n in (1, 2, 3, 4)}
    # Images with different numbers of references.
    assert bleu(["a b c d", "e f g h"], [["x", "A b, c d"], ["e f g h"]])["bleu4"] == pytest.approx(100)
    assert sentence_bleu("a dog runs fast", ["A dog runs fast!"]) == pytest.approx(100)


def test_baselines() -> None:
    # "a dog" and "b" both occur twice; "a dog" is alphabetically first.
    assert most_frequent([["A dog .", "b"], ["a dog", "B!"], ["c"]]) == "a dog"
    train = torch.tensor([[0.0, 100.0], [1.0, 0.0], [2.0, 50.0]])
    assert nearest(torch.tensor([[0.0, 99.0], [1.1, 1.0]]), train) == [0, 1]


def test_a_paired_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1; quantile of t with 2 degrees of freedom 4.3027."""
    found = paired_difference([2.0, 5.0, 9.0], [1.0, 3.0, 6.0])
    assert (found.splits, found.mean) == (3, 2.0)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert found.low + found.high == pytest.approx(4.0)
    assert found.p == pytest.approx(0.0742, abs=1e-4)  # t = 2 sqrt(3)
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).low == 1.0


def test_training_validation_and_test_images_are_disjoint() -> None:
    dataset = CaptionSet(
        torch.zeros(60, 3, 16, 16, dtype=torch.uint8), tuple(f"{i:02}" for i in range(60)), (("a",),) * 60, "here"
    )
    config = Config(validation_images=10, test_images=20, batch_size=8)
    data = Data.split(dataset, config)
    parts = [set(part.names) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [30, 10, 20]
    assert set.union(*parts) == set(dataset.names)
    again = Data.split(dataset, config)
    other = Data.split(dataset, Config(validation_images=10, test_images=20, batch_size=8, split_seed=1))
    assert data.test.names == again.test.names != other.test.names


def test_named_splits() -> None:
    """Without test images, those for validation are the test images, and others are held out for validation."""
    names = tuple(f"{i:02}" for i in range(40))
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    options: dict[str, Any] = {"validation_images": 5, "test_images": 3, "batch_size": 8}

    def sizes(*splits: AnySplit | None, **changes: Any) -> list[int]:
        dataset = CaptionSet(images, names, (("a",),) * 40, "here", splits=splits)
        data = Data.split(dataset, Config(**options, **changes))
        unused = "not used: 2 images of no named split: 20, 21"
        assert data.train.messages == ((unused, VALIDATION_IS_TEST) if None in splits and not changes else ())
        for part, split in ((data.train, "train"), (data.test, splits[-1])):
            assert changes or set(part.splits) == {split}
        return [len(data.train), len(data.validation), len(data.test)]

    assert sizes(*("train",) * 20, *("val",) * 12, *("test",) * 8) == [20, 12, 8]
    assert sizes(*("train",) * 20, None, None, *("val",) * 18) == [15, 5, 18]
    assert sizes(*("train",) * 28, *("val",) * 12, named_splits=False) == [32, 5, 3]
    assert sizes(*("train",) * 20, None, None, *("val",) * 18, named_splits=False) == [32, 5, 3]
    with pytest.raises(UserError, match=r"too few images in them \(10 train, 0 val, 30 test\) .*--no-named-splits"):
        sizes(*("train",) * 10, *("test",) * 30)


def test_a_page_embeds_its_images_and_escapes_text() -> None:
    import numpy as np

    text = page("Title", ["<b>"], [Entry(np.zeros((8, 8, 3), np.uint8), "a <dog> & co", ("A dog .",), 12.4)])
    assert "a &lt;dog&gt; &amp; co" in text
    assert "&lt;b&gt;" in text
    assert "data:image/jpeg;base64," in text
    assert "BLEU 12" in text
    assert "http" not in text
