"""Words as numbers: how a sentence is cut into words, and the vocabulary that is kept with a run.

Shapes: T words of a sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

PAD, START, END, UNKNOWN = 0, 1, 2, 3
MARKS = ("<pad>", "<start>", "<end>", "<unknown>")


def words_of(sentence: str) -> list[str]:
    """A sentence in small letters without punctuation: "A dog's T-shirt ." is a, dog's, t-shirt.

    What is learnt, what is said and what it is compared with all go through here.
    """
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", sentence.lower())


class Vocabulary:
    """Words by their numbers and numbers by their words; the first four are MARKS."""

    def __init__(self, words: Sequence[str]) -> None:
        """A vocabulary of these words, MARKS among them.

        Raises:
            ValueError: it does not begin with MARKS, or a word comes twice.
        """
        if tuple(words[: len(MARKS)]) != MARKS or len(set(words)) != len(words):
            raise ValueError("a vocabulary begins with its four marks, and has no word twice")
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def of(cls, sentences: Iterable[str], at_least: int) -> Vocabulary:
        """The words that come at least so many times, the most frequent first, equals by the alphabet."""
        counts = Counter(word for sentence in sentences for word in words_of(sentence))
        kept = sorted((word for word, count in counts.items() if count >= at_least), key=lambda w: (-counts[w], w))
        return cls((*MARKS, *kept))

    def __len__(self) -> int:
        """How many, marks included."""
        return len(self.words)

    def encode(self, sentence: str, longest: int) -> list[int]:
        """START, the numbers of at most `longest` words, END."""
        numbers = [self._numbers.get(word, UNKNOWN) for word in words_of(sentence)[:longest]]
        return [START, *numbers, END]

    def decode(self, numbers: Iterable[int]) -> str:
        """The words up to END, without marks."""
        said = []
        for number in numbers:
            if number == END:
                break
            if number >= len(MARKS):
                said.append(self.words[number])
        return " ".join(said)
