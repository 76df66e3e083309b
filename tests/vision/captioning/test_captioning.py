"""Words and numbers, beam search against all sentences there are, BLEU by hand, baselines, intervals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.data.captions import CaptionSet
from zerokara.vision.captioning.beam_search import Sentence, beam_search
from zerokara.vision.captioning.config import Config, Data
from zerokara.vision.captioning.learner import Sentences
from zerokara.vision.captioning.network import CaptionerMetadata, caption_loss
from zerokara.vision.captioning.pictures import Entry, page
from zerokara.vision.captioning.scoring import bleu, most_frequent, nearest, paired, sentence_bleu
from zerokara.vision.captioning.vocabulary import END, MARKS, PAD, START, UNKNOWN, Vocabulary, words_of


def test_sentences_become_words_and_numbers_and_words_again() -> None:
    words = words_of("A dog's T-shirt , a 2nd one - wet ! _x_")
    assert " ".join(words) == "a dog's t-shirt a 2nd one wet x"
    vocabulary = Vocabulary.of(["a dog", "A cat .", "a dog runs", "the end"], at_least=2)
    assert vocabulary.words == (*MARKS, "a", "dog")  # by how often, then by the alphabet
    numbers = vocabulary.encode("A wet dog .", longest=20)
    assert numbers == [START, 4, UNKNOWN, 5, END]
    assert vocabulary.encode("a a a a", longest=2) == [START, 4, 4, END]
    assert vocabulary.decode([4, UNKNOWN, 5, END, 4]) == "a dog"
    with pytest.raises(ValueError, match="four marks"):
        Vocabulary(["a", "dog"])


class Markov:
    """The next word depends on the last two: enough for greedy search to go wrong."""

    def __init__(self, words: int) -> None:
        self.words = words
        self.log = F.log_softmax(torch.randn(words, words, words, dtype=torch.float64) * 2, -1)

    def first(self) -> tuple[Tensor, Tensor]:
        return self.log[0, 0][None], torch.zeros(1, 2, dtype=torch.int64)

    def advance(self, state_K2: Tensor, parent_K: Tensor, word_K: Tensor) -> tuple[Tensor, Tensor]:
        state_K2 = torch.stack([state_K2[parent_K, 1], word_K], 1)
        return self.log[state_K2[:, 0], state_K2[:, 1]], state_K2

    def score(self, words: tuple[int, ...], end: int, power: float) -> float:
        total, last = 0.0, (0, 0)
        for word in (*words, end):
            total += float(self.log[last[0], last[1], word])
            last = (last[1], word)
        return float(total / (len(words) + 1) ** power)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("forbidden", [(), (1,)])
def test_a_wide_beam_finds_what_trying_all_sentences_finds(power: float, forbidden: tuple[int, ...]) -> None:
    end, longest = 3, 3
    model = Markov(4)
    allowed = [word for word in range(4) if word != end and word not in forbidden]
    every = [words for length in range(longest + 1) for words in itertools.product(allowed, repeat=length)]
    best = sorted(every, key=lambda words: -model.score(words, end, power))
    found = beam_search(
        *model.first(),
        model.advance,
        beams=len(allowed) ** longest,
        longest=longest,
        end=end,
        length_power=power,
        forbidden=forbidden,
    )
    number = min(len(found), 8)
    assert [sentence.words for sentence in found[:number]] == best[:number]
    for sentence in found:
        assert sentence.score == pytest.approx(model.score(sentence.words, end, power))


def test_a_narrow_beam_by_hand() -> None:
    """Word 0 looks better at first; the best sentence begins with 1, which two beams find and one does not."""
    tables = {
        (): [0.6, 0.4, 1e-9],
        (0,): [0.34, 0.33, 0.33],
        (1,): [0.005, 0.005, 0.99],
    }

    def log(words: tuple[int, ...]) -> Tensor:
        return torch.tensor(tables.get(words, [1e-9, 1e-9, 1.0])).log()

    def advance(state: list[tuple[int, ...]], parent_K: Tensor, word_K: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
        state = [(*state[p], w) for p, w in zip(parent_K.tolist(), word_K.tolist(), strict=True)]
        return torch.stack([log(words) for words in state]), state

    def search(beams: int) -> Sentence:
        start: list[tuple[int, ...]] = [()]
        return beam_search(log(())[None], start, advance, beams=beams, longest=2, end=2)[0]

    assert search(1).words == (0, 0)
    assert search(1).score == pytest.approx(math.log(0.6 * 0.34), abs=1e-5)
    assert search(2).words == (1,)
    assert search(2).score == pytest.approx(math.log(0.4 * 0.99), abs=1e-5)


def test_no_word_at_all_is_a_sentence_too() -> None:
    first = torch.tensor([[0.1, 0.9]]).log()
    found = beam_search(first, None, lambda *_: (first, None), beams=2, longest=0, end=1)
    assert [sentence.words for sentence in found] == [()]


def test_the_loss_counts_words_and_no_padding() -> None:
    logits = torch.zeros(2, 3, 5)  # every word has probability 1/5
    logits[0, 0, 2] = math.log(6)  # 6/10
    words = torch.tensor([[2, 4, END], [END, PAD, PAD]])
    assert caption_loss(logits, words).item() == pytest.approx(-(math.log(0.6) + 3 * math.log(0.2)) / 4)


def test_sentences_of_a_batch() -> None:
    vocabulary = Vocabulary((*MARKS, "a", "b", "c"))
    sentences = Sentences([["a"], ["b b b", "c"], ["a c"]], vocabulary, longest=4)
    words_PT, which_P = sentences.of(torch.tensor([2, 1]))
    assert which_P.tolist() == [0, 1, 1]
    assert words_PT.tolist() == [
        [START, 4, 6, END, PAD],
        [START, 5, 5, 5, END],
        [START, 6, END, PAD, PAD],
    ]


def small_card() -> CaptionerMetadata:
    return CaptionerMetadata(
        backbone="resnet20",
        words=(*MARKS, "a", "b", "c", "d"),
        image_size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        embedding=12,
        hidden=16,
        dropout=0.3,
        options={"width": 0.25},
    )


def test_what_is_searched_is_what_is_learnt() -> None:
    """The probability that the search gives a sentence is that of the forward pass over the whole sentence."""
    captioner = small_card().build().eval()
    features_2F = captioner.features(torch.randn(2, 3, 32, 32))
    best = captioner.caption(features_2F[:1], beams=4, longest=5, length_power=0.0)[0]
    words = torch.tensor([[START, *best.words, END]])
    log_TV = F.log_softmax(captioner(features_2F[:1], words[:, :-1])[0], 1)
    expected = log_TV.gather(1, words[0, 1:, None]).sum().item()
    assert best.score == pytest.approx(expected, abs=1e-4)
    assert not {PAD, START, UNKNOWN} & set(best.words)
    # A word to come does not change what was said before it.
    longer = torch.cat([words[:, :-1], torch.tensor([[4, 5]])], 1)
    said = captioner(features_2F[:1], longer)[:, : words.shape[1] - 1]
    torch.testing.assert_close(said, captioner(features_2F[:1], words[:, :-1]))


def test_bleu_by_hand() -> None:
    # Papineni et al. 2002, section 2.1.1: two of the seven "the" count, and here the brevity penalty is 1.
    found = bleu(["The the the the the the the."], [["The cat is on the mat.", "There is a cat on the mat"]])
    assert found["bleu1"] == pytest.approx(100 * 2 / 7)
    assert found["bleu2"] == 0
    # 4 of 4 words, 3 of 3 pairs, 2 of 2, 1 of 1; the nearest reference has 5 words: exp(1 - 5/4).
    found = bleu(["a dog runs fast"], [["a dog runs fast today"]])
    assert found == {f"bleu{n}": pytest.approx(100 * math.exp(1 - 5 / 4)) for n in (1, 2, 3, 4)}
    # Photographs with different numbers of references.
    assert bleu(["a b c d", "e f g h"], [["x", "A b, c d"], ["e f g h"]])["bleu4"] == pytest.approx(100)
    assert sentence_bleu("a dog runs fast", ["A dog runs fast!"]) == pytest.approx(100)


def test_baselines() -> None:
    assert most_frequent([["A dog .", "b"], ["a dog", "B!"], ["c"]]) == "a dog"  # twice, as "b", and before it
    learnt = torch.tensor([[0.0, 100.0], [1.0, 0.0], [2.0, 50.0]])
    assert nearest(torch.tensor([[0.0, 99.0], [1.1, 1.0]]), learnt) == [0, 1]


def test_a_paired_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t of 2 degrees of freedom 4.3027."""
    found = paired([2.0, 5.0, 9.0], [1.0, 3.0, 6.0])
    assert (found.splits, found.mean) == (3, 2.0)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert found.low + found.high == pytest.approx(4.0)
    assert found.p == pytest.approx(0.0742, abs=1e-4)  # t = 2 sqrt(3)
    assert paired([2.0, 3.0], [1.0, 2.0]).low == 1.0


def test_splits_have_no_photograph_in_common() -> None:
    everything = CaptionSet(
        torch.zeros(60, 3, 16, 16, dtype=torch.uint8), tuple(f"{i:02}" for i in range(60)), (("a",),) * 60, "here"
    )
    config = Config(validation_images=10, test_images=20, batch_size=8)
    data = Data.split(everything, config)
    parts = [set(part.names) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [30, 10, 20]
    assert set.union(*parts) == set(everything.names)
    again = Data.split(everything, config)
    other = Data.split(everything, Config(validation_images=10, test_images=20, batch_size=8, split=1))
    assert data.test.names == again.test.names != other.test.names


def test_a_page_holds_its_pictures_and_no_markup_of_others() -> None:
    import numpy as np

    text = page("Title", ["<b>"], [Entry(np.zeros((8, 8, 3), np.uint8), "a <dog> & co", ("A dog .",), 12.4)])
    assert "a &lt;dog&gt; &amp; co" in text
    assert "&lt;b&gt;" in text
    assert "data:image/jpeg;base64," in text
    assert "BLEU 12" in text
    assert "http" not in text
