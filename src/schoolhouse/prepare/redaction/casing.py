"""Texts without large letters, or with nothing else, as somebody would have written them who cares.

Recognisers and rules go by large letters. Where a text has none, a word that is in no vocabulary is written large.
"""

from __future__ import annotations

import re

from schoolhouse.prepare.redaction.language import Language

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_STATE = re.compile(r"(?<=, )[^\W\d_]{2}(?!\w)")
_FEW = 0.04  # share of words that begin large in a text that is written small
_LEAST = 3  # words in capitals that make a line of capitals


def recased(text: str, language: Language) -> str:
    """A text of the same length in which words that may be names are written large, and only they; often the same."""
    words = _WORD.findall(text)
    large = sum(word[0].isupper() for word in words)
    if words and large <= _FEW * len(words):
        return _STATE.sub(lambda found: _state(found[0], language), _spelt(text, language))
    return "".join(_line(line, language) for line in text.splitlines(keepends=True))


def _line(line: str, language: Language) -> str:
    words = [word for word in _WORD.findall(line) if len(word) > 1]
    if len(words) < _LEAST or not all(word.isupper() for word in words):
        return line
    return _spelt(line, language)


def _spelt(text: str, language: Language) -> str:
    """Strange words large; those that are common as well only beside a strange one, or behind a title or a relation."""
    found = list(_WORD.finditer(text))
    strange = [len(w[0]) > 1 and not language.is_plain(w[0]) and w[0].lower() not in language.ordinary for w in found]
    before = {*language.name.titles, *language.name.doubtful_titles, *language.name.relations, *language.name.weak_cues}
    out, at = "", 0
    for i, word in enumerate(found):
        small = word[0].lower()
        common = not strange[i] and small in language.ordinary and not language.is_plain(small)
        beside = common and (any(strange[max(0, i - 1) : i + 2]) or (i > 0 and found[i - 1][0].lower() in before))
        letter = len(small) == 1 and text[word.end() : word.end() + 1] == "." and any(strange[i + 1 : i + 2])
        new = small[0].upper() + small[1:] if strange[i] or beside or letter else small
        out += text[at : word.start()] + (new if len(new) == len(word[0]) else word[0])
        at = word.end()
    return out + text[at:]


def _state(word: str, language: Language) -> str:
    return word.upper() if word.upper() in language.address.states else word
