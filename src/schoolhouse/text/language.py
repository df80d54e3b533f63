"""Which language a text is in, as far as it can be told: sentence by sentence, against one that is wanted."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from schoolhouse.core.config import did_you_mean
from schoolhouse.core.errors import RecipeError

SURE = 10.0  # nats by which another language must be likelier; whole sentences of another are 25 and more
LEAST = 8  # bytes of letters below which a sentence says too little

_SENTENCE = re.compile(r"[\n.!?;\u3002\uff01\uff1f\uff1b\u061f]+")
_LETTERS = re.compile(r"[^\W\d_]+")


def check_language(code: str) -> None:
    """Raise RecipeError for what is no language that can be told, with what may have been meant."""
    known = [name for name, _ in _rank()("")]
    if code not in known:
        meant = did_you_mean(code, known) if len(code) < 4 else ""  # all of them would fill the screen
        raise RecipeError(
            f"language is {code!r}{meant}: give a two-letter code such as en, fr, ar, zh ({len(known)} are known)."
        )


def share_in(text: str, language: str) -> float:
    """Which share of a text's letters stands in sentences that are not surely of another language, 0 to 1.

    Sentences of a few letters count for nothing, and a text without longer ones is 1: nothing speaks against it.
    """
    own = all_ = 0
    for sentence in _SENTENCE.split(text):
        letters = sum(len(word.encode()) for word in _LETTERS.findall(sentence))
        if letters < LEAST:
            continue
        all_ += letters
        own += letters * (not _is_other(sentence, language))
    return own / all_ if all_ else 1.0


@functools.lru_cache(maxsize=1 << 14)
def _is_other(sentence: str, language: str) -> bool:
    likely = dict(_rank()(sentence))
    return bool(max(likely.values()) - likely[language] > SURE)


@functools.cache
def _rank() -> Callable[[str], list[tuple[str, float]]]:
    import py3langid  # its model takes most of a second

    rank: Callable[[str], list[tuple[str, float]]] = py3langid.rank
    return rank
