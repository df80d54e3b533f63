"""What texts are compared by: words without case and punctuation, and hashes of every n of them in a row."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: there a character counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_ASCII = re.compile("[a-z0-9]+")
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing


def words(text: str) -> list[str]:
    """The words of a text as they are compared: case, punctuation, symbols and the width of letters count for nothing.

    Marks that are part of a letter stay, for many scripts write their vowels so.
    """
    if text.isascii():  # the same, sooner
        return _ASCII.findall(text.casefold())
    return _word().findall(unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _word() -> re.Pattern[str]:
    """Everything but separators, punctuation, symbols and control characters; a character where none are spaced."""
    other = [c for c in map(chr, range(0x20000)) if unicodedata.category(c)[0] in "ZPSC"]
    ranges: list[list[str]] = []
    for c in other:
        if ranges and ord(c) == ord(ranges[-1][1]) + 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    left_out = "".join(f"{re.escape(a)}-{re.escape(b)}" for a, b in ranges)
    return re.compile(f"(?![{left_out}])[{UNSPACED}]|[^{left_out}{UNSPACED}]+")


@functools.lru_cache(maxsize=8)  # several steps ask for the same text, one after the other
def word_hashes(text: str) -> NDArray[np.uint64]:
    """A number for each word of a text; not to be written to."""
    found = hashes(words(text))
    found.flags.writeable = False
    return found


@functools.lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def hashes(tokens: Sequence[str]) -> NDArray[np.uint64]:
    """One 64-bit number a token, the same on every machine."""
    return np.array([_hash(token) for token in tokens], dtype=np.uint64)


def ngrams(tokens: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of every n tokens in a row, in their order; none where there are fewer. tokens: their hashes."""
    count = len(tokens) - n + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        total = total * _STEP + tokens[i : i + count]
    total ^= total >> np.uint64(29)  # the products fill the high bits, and low ones are what others use
    return total


def shingles(tokens: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """The different n-grams of a text, sorted; a text of fewer tokens is one n-gram of its own length."""
    return np.unique(ngrams(tokens, min(n, max(1, len(tokens)))))
