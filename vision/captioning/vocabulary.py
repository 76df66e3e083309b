"""Vocabulary of captions: tokenization, and the mapping between words and token indices.

The words of the vocabulary are saved in the metadata of a captioner's weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unknown>")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lowercase words without punctuation: "A dog's T-shirt ." gives a, dog's, t-shirt.

    Training captions, generated captions and references are all tokenized by this function.
    """
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", caption.lower())


class Vocabulary:
    """Words and their token indices. The first four tokens are SPECIAL_TOKENS."""

    def __init__(self, words: Sequence[str]) -> None:
        """Create a vocabulary from a list of words that begins with SPECIAL_TOKENS.

        Raises:
            ValueError: the list does not begin with SPECIAL_TOKENS, or contains a word twice.
        """
        if tuple(words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS or len(set(words)) != len(words):
            raise ValueError("a vocabulary must begin with the four special tokens and contain no word twice")
        self.words = tuple(words)
        self._indices = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_word_count: int) -> Vocabulary:
        """Create the vocabulary of all words that occur at least `min_word_count` times.

        Words are sorted by descending frequency, and alphabetically if the frequency is equal.
        """
        counts = Counter(word for caption in captions for word in tokenize(caption))
        frequent = [word for word, count in counts.items() if count >= min_word_count]
        return cls((*SPECIAL_TOKENS, *sorted(frequent, key=lambda word: (-counts[word], word))))

    def __len__(self) -> int:
        """Number of tokens, including the special ones."""
        return len(self.words)

    def encode(self, caption: str, max_length: int) -> list[int]:
        """Return START, the token indices of the first `max_length` words, and END."""
        indices = [self._indices.get(word, UNKNOWN) for word in tokenize(caption)[:max_length]]
        return [START, *indices, END]

    def decode(self, indices: Iterable[int]) -> str:
        """Return the words before the first END, without special tokens."""
        words = []
        for index in indices:
            if index == END:
                break
            if index >= len(SPECIAL_TOKENS):
                words.append(self.words[index])
        return " ".join(words)
