"""Texts that stood before: equal ones by a hash, similar ones by MinHash signatures in bands (LSH).

Held in memory are hashes and signatures, no text. Nothing depends on a seed, so that the same texts in the same order
are found in every run. Source: Broder 1997, "On the resemblance and containment of documents"; shingles of 5 words as
in FineWeb (arXiv 2406.17557, section 3.4).
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.errors import RecipeError
from schoolhouse.prepare.cleaning.shingles import shingles, word_hashes

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

WORDS = 5  # of a shingle
NUMBERS = 128  # of a signature: a similarity of 0.75 is told to within 0.08, 19 times in 20
MISSED = 0.01  # pairs exactly at the threshold that no band finds, at most
_BAND_BYTES, _TEXT_BYTES = 370, 1_000  # that a kept text takes, measured: in each band; its signature, hash and place


@dataclass(frozen=True)
class Twin:
    """An earlier text, by its number, and how similar it is; `equal`: both have the same words in the same order."""

    number: int
    similarity: float
    equal: bool = False


class Before:
    """The texts that were kept so far. `similar` is the least similarity that counts; at 1 only equal texts do."""

    def __init__(self, similar: float) -> None:
        self.similar = similar
        self._equal: dict[bytes, int] = {}
        self._bands = _bands(similar) if similar < 1 else None
        self._blank = _blank() if similar < 1 else None
        self._numbers: list[int] = []  # of the texts in the bands
        self._signatures = np.zeros((1024, NUMBERS), dtype=np.uint32)  # of the same; rows beyond them are spare

    def meet(self, text: str, number: int) -> Twin | None:
        """The kept text that this one is equal to, or else most similar to; None for a text that is new, and kept now.

        number: what to call it by.
        """
        ids = word_hashes(text)
        said = ids.tobytes() or text.encode("utf-8", "replace")  # where there are no words, every character counts
        digest = hashlib.blake2b(said, digest_size=16).digest()
        if digest in self._equal:
            return Twin(self._equal[digest], 1.0, equal=True)
        if self._bands is not None and self._blank is not None and len(ids):
            own = _signature(ids, self._blank)
            twin = self._nearest(self._bands, own)
            if twin is not None:
                return twin
            self._keep(self._bands, own, number)
        self._equal[digest] = number
        return None

    def _nearest(self, bands: MinHashLSH, own: MinHash) -> Twin | None:
        rows = np.array(sorted(bands.query(own)), dtype=np.int64)  # sorted: of two as similar the first one counts
        if not len(rows):
            return None
        alike = np.count_nonzero(self._signatures[rows] == own.hashvalues, axis=1) / NUMBERS
        best = int(np.argmax(alike))
        return Twin(self._numbers[rows[best]], float(alike[best])) if alike[best] >= self.similar else None

    def _keep(self, bands: MinHashLSH, own: MinHash, number: int) -> None:
        row = len(self._numbers)
        if row == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[row] = own.hashvalues
        self._numbers.append(number)
        bands.insert(row, own, check_duplication=False)


def bytes_of(similar: float) -> int:
    """About how much memory a kept text takes."""
    return _TEXT_BYTES + (_BAND_BYTES * bands_and_rows(similar)[0] if similar < 1 else 0)


def need_datasketch() -> None:
    """Raise RecipeError if the library that finds similar texts is missing."""
    if importlib.util.find_spec("datasketch") is None:
        raise RecipeError("similar texts are found by datasketch: pip install 'schoolhouse[prepare]', or similar = 1.")


def bands_and_rows(similar: float) -> tuple[int, int]:
    """How many bands of how many numbers: the longest that miss no more than MISSED of the pairs at the threshold.

    Two signatures share a band of r numbers with probability s^r, and one of b bands with 1 - (1 - s^r)^b.
    Source: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
    """
    fits = [r for r in range(1, NUMBERS // 2 + 1) if (1 - similar**r) ** (NUMBERS // r) <= MISSED]
    rows = max(fits, default=1)
    return NUMBERS // rows, rows


def _bands(similar: float) -> MinHashLSH:
    from datasketch import MinHashLSH

    return MinHashLSH(num_perm=NUMBERS, params=bands_and_rows(similar))


def _blank() -> MinHash:
    from datasketch import MinHash

    return MinHash(NUMBERS, hashfunc=int, scheme="affine32")


def _signature(ids: NDArray[np.uint64], blank: MinHash) -> MinHash:
    own = blank.copy()
    own.update_batch((shingles(ids, WORDS) & np.uint64(0xFFFFFFFF)).tolist())
    return own
