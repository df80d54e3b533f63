"""Whether a number is a quantity, a score, a time or a code of medicine: what names nobody and has to stay."""

from __future__ import annotations

import re

from schoolhouse.prepare.redaction.forms import any_of
from schoolhouse.prepare.redaction.language import Language

THREE_DIGITS = r"(?<![\w@])(?<!\d[.,])(?<![\w][\-/])(?=[\w/\-]*\d[\w/\-]*\d[\w/\-]*\d)[A-Za-z0-9][\w/\-]*"
"""A token that holds three digits or more."""

_FORMS = [
    r"\d{1,4}/\d{1,3}(?:/\d{1,3})*",  # blood pressure, vision, strength
    r"\d+(?:x\d+)+(?:cm|mm|m)?",  # measures of a thing
    r"\d{3,5}-\d",  # a code of LOINC
    r"[A-TV-Z]\d[\dA-Z]",  # the head of a code of ICD-10
    r"[CTLS]\d{1,2}(?:[\-/][CTLS]?\d{1,2})+",  # vertebrae
    r"[GP]\d+(?:[PATL]\d+)+|[Gg]\d+[Pp]\d{3,4}",  # pregnancies
    r"\d{2,3}(?:st|nd|rd|th)",
    r"(?:CA|CD|HLA|HPV|IL|BRCA|BNT|PD|COVID|SARS|mRNA|Tc|Ga|Lu|I|FDG|NPH|D5|D10|H|T|F)-?\d{1,4}(?:[a-z\-]\d+)?[a-z]?",
]
_FORM = re.compile("|".join(f"(?:{form})$" for form in _FORMS))
_RANGE_ON = re.compile(r"[ \t]+[\-\u2013][ \t]+\d{1,4}(?![\w/])")  # 150 - 400
_RANGE_OFF = re.compile(r"(?<![\w/])\d{1,4}[ \t]+[\-\u2013][ \t]+$")
_TIME = re.compile(r"(?:[01]?\d|2[0-3]):?[0-5]\d[hH]?$")
_PLAIN_NUMBER = re.compile(r"\d+(?:-\d+)?$")
_SHORT = re.compile(r"(?:0\d|1\d|2[0-3])[0-5]\d$")
_LONGEST, _SHORTEST = 5, 3  # digits of a quantity; of one that only a doubtful word makes one
_EMERGENCY = ("911", "112", "999", "988", "211", "311", "411")


class Quantities:
    """What a language's words say of the numbers beside them."""

    def __init__(self, language: Language) -> None:
        words = language.numbers
        self._drugs, self._endings = frozenset(language.words.drugs), language.words.endings
        self._labels = {piece for label in (*language.id.labels, *language.phone.labels) for piece in label.split()}
        units = any_of([*words.units, *words.doubtful_units])
        clear = any_of(words.units)
        self._unit = re.compile(rf"[ \t]?-?(?:%|°|℃|℉|\+|\u00d7|/{units}(?!\w)|(?i:{clear})(?!\w))")
        self._doubtful_unit = re.compile(rf"[ \t]?-?(?i:{any_of(words.doubtful_units)})(?!\w)")
        self._glued = re.compile(rf"\d{{1,4}}(?:[.,]\d+)?-?(?i:{units})(?:/\w+)*-?\w*$")
        link = (
            r"[ \t]*(?:\b(?:of|is|was|to|at|are|were|in|now|up|down|low|high|and|with)\b[ \t]*){0,2}[(:=~<>≤≥*]*[ \t]*"
        )
        values = r"(?:[\d./,]+[ \t]*(?:->|→|-|\u2013|,|to|and|/)[ \t]*)*"  # values before it in a row
        self._measure = re.compile(rf"(?<!\w)(?i:{any_of(words.measures)}){link}{values}$")
        general = any_of(words.doubtful_measures)
        self._doubtful_measure = re.compile(rf"(?<!\w)(?i:{general}){link}{values}$")
        self._coded = re.compile(
            rf"(?<!\w)(?i:{any_of(words.codes)})s?(?:[ \t]?\d)?[ \t]*[:=#]?[ \t]*(?:[\w.\-]+,[ \t]*)*$"
        )
        self._score_before = re.compile(rf"(?<!\w)(?i:{any_of(words.scores)})(?!\w)[^\n.;]{{0,24}}$")
        self._score_after = re.compile(rf"[^\n.;]{{0,20}}(?<!\w)(?i:{any_of(words.scores)})(?!\w)")

    def is_one(self, match: re.Match[str]) -> bool:
        """Whether a token of three digits or more is no id."""
        text, token = match.string, match.group()
        before, after = text[max(0, match.start() - 48) : match.start()], text[match.end() : match.end() + 24]
        if _is_range(token):
            return True
        if token in _EMERGENCY or _FORM.match(token) or self._glued.match(token):
            return True
        if _is_icd(token, after) or (after[:1] == ":" and token.isdigit() and after[1:2].isdigit()):
            return True
        if re.match(r"[.,]\d", after) and token.isdigit() and len(token) <= 4:  # 1250.5, 250,000
            return True
        if self._coded.search(before):
            return True
        if _PLAIN_NUMBER.match(token) and len(token) <= 4 and (_RANGE_ON.match(after) or _RANGE_OFF.search(before)):
            return True
        if not token[:1].isdigit():
            return False
        last = re.search(r"([^\W\d_]+)[ \t]*$", before)
        if last and _PLAIN_NUMBER.match(token) and len(token) <= 4 and self._is_before_value(last[1]):
            return True
        if _SHORT.match(token) and re.search(r"\d[/\-.]\d{1,4}[ \t,]*(?:at[ \t])?$", before):
            return True
        if _SHORT.match(token) and re.search(
            r"(?i:\b(?:at|by|until|time|from|to|around|since)|[@\-\u2013/])[ \t:]*$", before
        ):
            return True
        if _PLAIN_NUMBER.match(token) and len(token) <= _LONGEST and self._measures(before, token):
            return True
        return self.has_unit(text, match.end())

    def _is_before_value(self, word: str) -> bool:
        """Whether a word stands before values: a drug, an abbreviation that labels no id."""
        small = word.lower()
        if small in self._drugs or any(small.endswith(ending) for ending in self._endings):
            return True
        return word.isupper() and 1 < len(word) < 6 and small not in self._labels

    def _measures(self, before: str, token: str) -> bool:
        short = len(token) <= _SHORTEST and self._doubtful_measure.search(before) is not None
        return short or self._measure.search(before) is not None

    def has_unit(self, text: str, end: int) -> bool:
        """Whether a unit follows the number that ends at a place. Ids are longer than quantities, or have letters."""
        start = end
        while start > 0 and text[start - 1].isalnum():
            start -= 1
        if end - start > _LONGEST or not text[start:end].isdigit():
            return False
        if self._unit.match(text, end) is not None:
            return True
        return end - start <= _SHORTEST and self._doubtful_unit.match(text, end) is not None

    def is_measured(self, match: re.Match[str]) -> bool:
        """Whether a quantity's name stands before the group `x`, or a unit behind it."""
        before = match.string[max(0, match.start("x") - 48) : match.start("x")]
        unit = self._unit.match(match.string, match.end("x"))
        return self._measure.search(before) is not None or unit is not None

    def is_score(self, match: re.Match[str]) -> bool:
        """Whether 9/10 is a score and no day."""
        before = match.string[max(0, match.start() - 48) : match.start()]
        after = match.string[match.end() : match.end() + 32]
        beside = self._score_before.search(before) or self._score_after.match(after)
        return beside is not None or self.has_unit(match.string, match.end())


def is_code(token: str) -> bool:
    """Whether a token by itself is a code of medicine, a measurement's form or a time with its letter."""
    bare = token.upper()
    icd = re.fullmatch(r"[A-TV-Z]\d[\dA-Z]\.\w{1,4}", bare) is not None
    timed = _TIME.match(token) is not None and not token.isdigit()
    return icd or timed or (_FORM.match(bare) is not None and not token.isdigit())


def _is_range(token: str) -> bool:
    """Whether a token such as 150-400 goes from a number up to one that is not much longer."""
    found = re.fullmatch(r"(\d+)[\-\u2013](\d+)[A-Za-z%]{0,3}", token)
    return found is not None and len(found[2]) - len(found[1]) in (0, 1) and int(found[1]) < int(found[2])


def _is_icd(token: str, after: str) -> bool:
    return re.fullmatch(r"[A-TV-Z]\d[\dA-Z]", token) is not None or (
        re.fullmatch(r"[A-TV-Z]\d[\dA-Z]\d{0,4}", token) is not None and re.match(r"\.\w", after) is not None
    )
