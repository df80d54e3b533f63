"""The finder: Presidio's analyser with our recognisers, and what is made of their findings.

Three recognisers are registered for each language: the rules, the tagger, spaCy's entity recogniser. Presidio's own
patterns are not: they validate numbers, and drop a social security number that is a well-known sample.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError, MachineError
from schoolhouse.prepare.redaction.casing import recased
from schoolhouse.prepare.redaction.forms import INITIAL, NEAR, WORD
from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.pieces import Remembered
from schoolhouse.prepare.redaction.quantities import is_code
from schoolhouse.prepare.redaction.rules import RULES, UNTOUCHED, Rules
from schoolhouse.prepare.redaction.spans import Span, grown, settle
from schoolhouse.prepare.redaction.tagger import TAGGER, Tagger
from schoolhouse.text.redaction import TYPES

SPACY = "spacy"
"""What spaCy's entity recogniser is called among the recognisers."""

PROPER = "proper"
"""What its tagger is called, which says that a word is a proper noun. Names that nobody else sees are found by it."""

_EXTRA = "pip install 'schoolhouse[prepare]'"
_SPACY_SCORE, _PROPER_SCORE, _COUPLED = 0.6, 0.45, 0.5
_SPACY_KINDS = {
    "PERSON": "name", "PER": "name", "GPE": "address", "LOC": "address", "FAC": "address", "ORG": "organisation",
}  # fmt: skip
_AFTER = re.compile(rf"{NEAR}[(\"\u201c]?({WORD}|{INITIAL})")
_SURNAME = re.compile(rf"(?:^|[\n:|]|[ \t]{{2,}}|\b(?i:pt|patient|pcp|re|name)[ \t])[ \t]*({WORD}),[ \t]*$")
_FIRST = re.compile(rf",[ \t]*({WORD}(?:[ \t]+{INITIAL})?)")
_ORG_AFTER = re.compile(rf"{NEAR}(?:(?:&|of|and)[ \t]+)?({WORD}(?:'s|\u2019s)?)(?!\w)")
_ALSO = re.compile(rf"[ \t]*(?:/|&|\band\b|\bor\b)[ \t]*({WORD}(?:[ \t]+{WORD})?)(?!\w)")
_BEFORE = re.compile(rf"({WORD}|{INITIAL}){NEAR}$")
_ENDS = re.compile(r"(?<=\w\w)(?<!\b[SMDJ][trsr])(?<!\bMrs)\.\s+")
_LEAST = 3  # letters of a proper noun in a text without large letters: mm and hb are none
_SHORT = 5  # letters of a word in capitals that is an abbreviation rather than a place

Finds = Callable[[str], Iterable[Span]]


class Finder:
    """Finds what is personal in texts of the languages that it was made for.

    tagger: the folder of one, or None. Raises MachineError without the packages, ModelError for a broken tagger.
    """

    def __init__(self, languages: Mapping[str, Language], tagger: Path | None, *, entities: bool = True) -> None:
        self.languages = dict(languages)
        tagged = Remembered(Tagger(tagger).find).find if tagger else None
        registry: list[tuple[str, str, Finds]] = []
        for code, language in self.languages.items():
            registry.append((RULES, code, Rules(language).find))
            if tagged is not None:
                registry.append((TAGGER, code, tagged))
            if entities and language.spacy:
                registry.append((SPACY, code, Remembered(_spacy(language.spacy)).find))
        self._analyser = _analyser(registry)

    def find(self, text: str, language: str) -> list[Span]:
        """Spans in their order, without overlaps. Raises DataError for a language that has no rules."""
        if language not in self.languages:
            raise DataError(f"there are no rules for the language {language!r}; see docs/redaction.md")
        rules = self.languages[language]
        left = [held.span() for held in UNTOUCHED.finditer(text)]
        found = []
        for again, read in enumerate(dict.fromkeys((text, recased(text, rules)))):
            for result in self._analyser.analyze(read, language=language):
                kind, _, by = result.entity_type.partition("@")
                if again and by == PROPER and result.end - result.start < _LEAST:  # the large letter is ours
                    continue
                if any(start < result.end and result.start < end for start, end in left):
                    continue
                whole = Span(result.start, result.end, kind, frozenset([by]), float(result.score))
                for part in [whole] if by == RULES else _sentences(read, whole):
                    span = grown(read, part)
                    if span is not None and (by == RULES or _counts(read, span, rules)):
                        found.append(span)
        found = settle(text, found)
        found = [span for span in found if _stays(text, span, found, rules)]
        found = settle(text, [more for span in found for more in _extended(text, span, found, rules)])
        return [span for span in found if _stays(text, span, found, rules)]


def _analyser(registry: Sequence[tuple[str, str, Finds]]) -> Any:
    """Presidio's analyser over recognisers: name, language and what each finds."""
    try:
        import tldextract
    except ImportError:
        raise MachineError(f"redaction needs presidio-analyzer, which is not installed: {_EXTRA}") from None
    # Presidio's e-mail recogniser would ask the net for a list of domains at its first use.
    vars(tldextract)["extract"] = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerRegistry, RecognizerResult
    from presidio_analyzer.nlp_engine import NoOpNlpEngine

    class Recogniser(EntityRecognizer):
        """One of ours, in the form that Presidio asks for. A type carries who found it, so that none hides another."""

        def __init__(self, name: str, language: str, finds: Finds) -> None:
            self._finds = finds
            super().__init__([f"{kind}@{by}" for kind in TYPES for by in (name, PROPER)], name, language)

        def load(self) -> None:
            """Nothing: what it asks is loaded already."""

        def analyze(self, text: str, entities: list[str], nlp_artifacts: Any) -> list[Any]:
            """What it finds in a text."""
            return [
                RecognizerResult(f"{span.type}@{next(iter(span.by))}", span.start, span.end, span.score)
                for span in self._finds(text)
            ]

    codes = sorted({code for _, code, _ in registry})
    held = RecognizerRegistry([Recogniser(*row) for row in registry], supported_languages=codes)
    nothing = NoOpNlpEngine([{"lang_code": code, "model_name": "none"} for code in codes])
    return AnalyzerEngine(held, nothing, supported_languages=codes)


def _is_large(word: str) -> bool:
    """Whether a word is written large and holds nothing but letters and what joins them."""
    return word.istitle() and all(c.isalpha() or c in "-'\u2019" for c in word)


@functools.cache
def _spacy(name: str) -> Callable[[str], list[Span]]:
    """The entity recogniser of an installed spaCy pipeline; nothing is fetched. Raises MachineError without it."""
    if importlib.util.find_spec("spacy") is None or importlib.util.find_spec(name) is None:
        raise MachineError(f"redaction needs spacy and its pipeline {name}, which are not installed: {_EXTRA}")
    import spacy

    pipeline = spacy.load(name, exclude=["parser", "lemmatizer", "senter"])

    def find(piece: str) -> list[Span]:
        read = pipeline(piece)
        found = [
            Span(entity.start_char, entity.end_char, kind, frozenset([SPACY]), _SPACY_SCORE)
            for entity in read.ents
            if (kind := _SPACY_KINDS.get(entity.label_)) is not None
        ]
        proper = [token for token in read if token.pos_ == "PROPN" and len(token) > 1 and _is_large(token.text)]
        found += [Span(t.idx, t.idx + len(t), "name", frozenset([PROPER]), _PROPER_SCORE) for t in proper]
        return found

    return find


def _sentences(text: str, span: Span) -> list[Span]:
    """A span in parts, if a sentence ends within it: a network may see one place in `Apt 4B. BP`."""
    parts, start = [], span.start
    for end in _ENDS.finditer(text, span.start, span.end):
        parts.append(replace(span, start=start, end=end.start()))
        start = end.end()
    return [*parts, replace(span, start=start)]


def _stays(text: str, span: Span, others: Sequence[Span], language: Language) -> bool:
    """Whether what is left of a span after others took their parts is worth a place of its own."""
    word = span.inside(text)
    if RULES not in span.by:
        beside = any(s.type == "address" and s is not span and abs(s.start - span.end) <= 3 for s in others)
        if is_code(word):
            return False
        if not any(c.isalpha() for c in word):
            return beside or any(s.type == "address" and 0 <= span.start - s.end <= 3 for s in others if s is not span)
        return _counts(text, span, language)
    degree = span.type == "address" and word.upper().replace(".", "") in language.name.credentials
    return not (degree and any(s.type == "name" and 0 <= span.start - s.end <= 2 for s in others))


def _counts(text: str, span: Span, language: Language) -> bool:
    """Whether what a network found is more than words of medicine, headings and names that became words."""
    words = re.findall(r"[^\W\d_]+(?:['\u2019\-][^\W\d_]+)*", span.inside(text))
    if not words:
        return TAGGER in span.by
    if all(language.is_plain(word) for word in words):
        return False
    if span.by == {TAGGER} and span.type != "name" and all(language.is_term(word) for word in words):
        return False
    if span.by <= {SPACY, PROPER} and all(language.is_term(word) for word in words) and span.by != {SPACY, PROPER}:
        return False
    if language.is_eponym(text, span.start, span.end):
        return False
    if span.by == {TAGGER} and language.is_common(words) and any(c.isupper() for c in text):
        return False
    if span.by == {SPACY}:
        if not any(word[0].isupper() for word in words):
            return False
        if span.type != "name" and len(words) == 1 and words[0].isupper() and len(words[0]) <= _SHORT:
            return False
    return True


def _extended(text: str, span: Span, others: Sequence[Span], language: Language) -> list[Span]:
    """A name with the words beside it that are written large and are nobody's else, and the one that `and` couples."""
    if span.type == "organisation":
        return [_with_words(text, span, others, language)]
    if span.type != "name":
        return [span]
    start, end = span.start, span.end
    for _ in range(2):
        after = _AFTER.match(text, end)
        if after is None or _is_other(text, after.span(1), others, language):
            break
        end = after.end(1)
    before = _BEFORE.search(text, max(0, start - 40), start)
    if before is not None and not _is_other(text, before.span(1), others, language):
        start = before.start(1)
    turned = _SURNAME.search(text, max(0, start - 40), start)
    if turned is not None and not _is_other(text, turned.span(1), others, language):
        start = turned.start(1)
    first = _FIRST.match(text, end) if text[start:end].split()[-1].isupper() and end - start > 2 else None
    if first is not None and not _is_other(text, first.span(1), others, language):
        end = first.end(1)
    out = [replace(span, start=start, end=end)]
    also = _ALSO.match(text, end)
    if (
        also is not None
        and not _is_other(text, also.span(1), others, language)
        and not language.is_eponym(text, *also.span(1))
    ):
        out.append(replace(span, start=also.start(1), end=also.end(1), score=_COUPLED))
    return out


def _with_words(text: str, span: Span, others: Sequence[Span], language: Language) -> Span:
    """An organisation with the words beside it that are written large: `Ashford` of `Ashford Children's`."""
    start, end = span.start, span.end
    for _ in range(4):
        after = _ORG_AFTER.match(text, end)
        if after is None or _taken(after.span(1), others) or text[after.end() : after.end() + 1] == ":":
            break
        end = after.end()
    before = _BEFORE.search(text, max(0, start - 40), start)
    if before is not None and not _taken(before.span(1), others) and before[1].lower() not in language.words.stop:
        start = before.start(1)
    return replace(span, start=start, end=end)


def _taken(place: tuple[int, int], others: Sequence[Span]) -> bool:
    return any(other.start < place[1] and place[0] < other.end for other in others)


def _is_other(text: str, place: tuple[int, int], others: Sequence[Span], language: Language) -> bool:
    word = text[slice(*place)]
    taken = _taken(place, others)
    if len(word.rstrip(".")) == 1:
        return taken or word in ("A", "I")
    words = word.split()
    return taken or all(language.is_plain(w) or w in language.name.credentials for w in words)


def finder_version(languages: Mapping[str, Language], tagger: Path | None) -> str:
    """A hash of what decides what is found: the program of this package, rules, pipelines, the tagger."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for code, language in sorted(languages.items()):
        digest.update(f"{code} {language.model_dump_json()}".encode())
        if language.spacy:
            digest.update(importlib.metadata.version(language.spacy.replace("_", "-")).encode())
    if tagger is not None:
        digest.update((tagger / "model.onnx").read_bytes())
    return digest.hexdigest()[:16]
