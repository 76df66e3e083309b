"""Mutations of valid files, as a strategy of hypothesis that shrinks to few and early ones."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import strategies as st

INTERESTING = (
    *(b"", b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xef\xbb\xbf"),
    *(b"0", b"-1", b"1e309", b"NaN", b"99999999999", b"null", b"true", b'"', b"'", b"[", b"{", b"]", b"}", b",", b":"),
    *(
        b"\n",
        b"\r",
        b"\t",
        b" ",
        b"../",
        b"/",
        b"\\",
        b"<",
        b">",
        b"&a;",
        b"\xc3\x28",
        b"\xf0\x9f\x98\x80",
        b"#",
        b"%s",
    ),
)


class Mutation(NamedTuple):
    """One change of a file."""

    kind: str
    position: int  # in ten thousandths of the length
    length: int
    seed: int


MUTATIONS = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(("set", "flip", "delete", "insert", "repeat", "swap", "nest", "truncate")),
        st.integers(0, 10_000),
        st.integers(1, 64),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, mutations: list[Mutation]) -> bytes:
    """Apply mutations one after another."""
    for each in mutations:
        content = _mutate(content, each)
    return content


def _mutate(content: bytes, mutation: Mutation) -> bytes:
    kind, position, length, seed = mutation
    rng = random.Random(seed)
    start = position * len(content) // 10_000
    end = start + length
    before, part, after = content[:start], content[start:end], content[end:]
    if kind == "set":
        return before + rng.randbytes(len(part)) + after
    if kind == "flip":
        return before + bytes(byte ^ 1 << rng.randrange(8) for byte in part[:1]) + part[1:] + after
    if kind == "delete":
        return before + after
    if kind == "insert":
        return before + rng.choice(INTERESTING) + part + after
    if kind == "repeat":
        return before + part * rng.choice((2, 3, 50)) + after
    if kind == "swap":
        return before + after[:length] + part + after[length:]
    if kind == "nest":
        return before + rng.choice((b"[", b"{", b'{"a":', b"<a>", b"(")) * rng.choice((2, 1000, 200_000)) + part + after
    return before  # truncate
