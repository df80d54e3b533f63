"""Rules for dates: every form that names a day, a month or a year of the calendar, whole or in part."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schoolhouse.prepare.redaction.forms import BREAK, Part, Rule, any_of, part, rule
from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.quantities import Quantities

YEAR = r"(?:19|20)\d{2}"
_SEPARATED = r"\d{1,2}(?P<s>[\-./])\d{1,2}(?P=s)(?:\d{4}|['\u2019]?\d{2})(?!\d)"
_CLOCK = r"(?:T\d{2}:?\d{2}(?::?\d{2})?(?:\.\d+)?(?:Z|[+\-]\d{2}:?\d{2})?)?"
_SCORES = ("5/5", "7/7", "10/10")
_FRACTIONS = ("1/2", "1/3", "2/3", "1/4", "3/4", "1/8")


def date_rules(language: Language, quantities: Quantities) -> Iterator[Rule]:
    """Rules for dates."""
    yield rule(
        "date",
        0.96,
        r"(?<![\w/])(?:19|20)\d{2}[\-/.](?:0?[1-9]|1[0-2])[\-/.](?:0?[1-9]|[12]\d|3[01])" + _CLOCK + r"(?!\d)",
    )
    yield rule("date", 0.95, rf"(?<![\w/.])(?<!\d-)(?P<x>{_SEPARATED})(?!\w)", _three_parts)
    yield rule("date", 0.8, r"(?<![\w/.])(?:0?[1-9]|1[0-2])[/\-](?:19|20)\d{2}(?![\w/])")
    yield rule("date", 0.8, r"(?<![\w/.\-])(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:T\d{4,6}Z?)?(?!\w)")
    yield rule(
        "date",
        0.7,
        r"(?<![\w/.$])(?<!\d-)\d{1,2}/\d{1,2}(?![\w/%]|\.\d)",
        lambda match: _two_parts(match, language, quantities),
    )
    if language.months:
        yield from _worded(language)
    yield from _years(language, quantities)


def _three_parts(match: re.Match[str]) -> Part | None:
    first, second = (int(piece) for piece in re.findall(r"\d+", match["x"])[:2])
    return match.span("x") if min(first, second) in range(1, 13) and max(first, second) < 32 else None


def _two_parts(match: re.Match[str], language: Language, quantities: Quantities) -> Part | None:
    first, second = (int(piece) for piece in match.group().split("/"))
    if min(first, second) not in range(1, 13) or max(first, second) > 31:
        return None
    before = match.string[max(0, match.start() - 12) : match.start()]
    days = any_of(w for day in language.weekdays for w in day)
    if re.search(rf"(?<!\w)(?i:{days}|on|since|from|until|by|dated?|last|due)\.?,?[ \t:]*$", before):
        return match.span()
    return None if match.group() in (*_FRACTIONS, *_SCORES) or quantities.is_score(match) else match.span()


def _worded(language: Language) -> Iterator[Rule]:
    """Dates with a month, a weekday or a holiday in words."""
    months = any_of(w for month in language.months for w in month)
    month = rf"(?i:{months})(?![^\W\d_])\.?"
    days = any_of(w for day in language.weekdays for w in day)
    endings = any_of(language.ordinal_endings)
    day = rf"(?:\d{{1,2}}(?:(?i:{endings})|\.(?!\d))?(?!\d)|(?i:{any_of(language.ordinals)})(?!\w))"
    link = rf"(?:(?i:{any_of(language.date_links)}){BREAK})"
    until = rf"(?:[ \t]*(?:[\-\u2013\u2014&/,+]|\b(?:to|and|through|thru)\b)[ \t]*{day}(?![/%.\-]?\d))?"
    year = rf"(?:{YEAR}|['\u2019]\d{{2}})(?!\w)"

    def certain(match: re.Match[str]) -> Part | None:
        """A word such as `may` is a month only if it is written large."""
        return part(match) if _is_month(match, language) else None

    yield rule(
        "date",
        0.94,
        rf"(?<!\w){month}{BREAK}?(?:{link})?{day}{until}(?:,?{BREAK}(?:{link})?{year}|,?[ \t]*{YEAR})?(?![\w%])",
        certain,
    )
    yield rule(
        "date",
        0.94,
        rf"(?<![\w/.]){day}(?:{BREAK}|[\-/,]|(?<=\d))(?:{link})*{month}(?:(?:,?{BREAK}|[\-/,]|(?<=[a-zA-Z]))(?:{link})?(?:{year}|(?<=[\-/])\d{{2}}(?!\w)))?(?![\w%])",
        certain,
    )
    yield rule(
        "date",
        0.93,
        rf"(?<!\w){month},?(?:{BREAK}(?:{link})?|[\-/]|(?<=[a-zA-Z])(?=['\u2019]))(?:{year}|(?<=[\-/])\d{{2}}(?!\w))",
        certain,
    )
    yield rule("date", 0.93, rf"(?<!\w){YEAR}[ \t\-/]{month}(?:[ \t\-/]\d{{1,2}}(?!\d))?", certain)
    yield rule("date", 0.6, rf"(?<!\w)(?P<x>{month})(?:'s|\u2019s)?(?!\w)", lambda match: _alone(match, language))
    yield rule("date", 0.6, rf"(?<!\w)(?P<x>(?i:{days}))(?:s|'s|\u2019s)?(?!\w)", lambda match: _alone(match, language))
    if language.holidays:
        yield rule("date", 0.7, rf"(?<!\w)(?i:{any_of(language.holidays)})(?!\w)".replace("'", "['\u2019]"))
    not_after = rf"(?![ \t\-]*(?i:{any_of(language.ordinals_before)})(?!\w))"
    late = any_of(language.ordinals[10:])
    cue = rf"(?<!\w)(?i:{any_of(language.day_cues)})"
    for number in (rf"(?:[12]?\d|3[01])(?i:{endings})", rf"(?i:{late})"):
        yield rule("date", 0.6, rf"{cue}{BREAK}(?P<x>{number})(?!\w){not_after}")
        yield rule(
            "date",
            0.6,
            rf"{cue}{BREAK}{number}[ \t]*(?:,|\band\b|\bor\b|-|\u2013|\bto\b)[ \t]*(?P<x>{number})(?!\w){not_after}",
        )


def _is_month(match: re.Match[str], language: Language) -> bool:
    """Whether the words of a match are those of a date: a doubtful one has to be written large, or beside a year."""
    doubtful = set(language.doubtful_dates)
    words = re.findall(r"[^\W\d_]+", match.group())
    if re.search(rf"{YEAR}|\d(?:{'|'.join(language.ordinal_endings) or '$'})\b|[\-/'\u2019]\d{{2}}$", match.group()):
        return True
    return all(w[:1].isupper() for w in words if w.lower() in doubtful)


def _alone(match: re.Match[str], language: Language) -> Part | None:
    """A month or weekday by itself; one that is a common word as well has to be written large within a sentence."""
    word = match["x"].rstrip(".")
    if word.lower() not in language.doubtful_dates:
        return match.span("x")
    before = match.string[max(0, match.start() - 3) : match.start()].rstrip(" \t\"'(")
    begins = not before or before[-1] in ".!?:\n"
    cues = rf"(?<!\w)(?i:{any_of(language.date_cues)})[ \t]+$"
    if re.search(cues, match.string[max(0, match.start() - 16) : match.start()]) and word.lower() != "may":
        return match.span("x")
    followers = rf"[ \t]+(?i:{any_of(language.date_followers)})(?!\w)"
    if re.match(followers, match.string[match.end() : match.end() + 16]):
        return match.span("x")
    return match.span("x") if word.istitle() and not begins and len(word) > 2 else None


def _years(language: Language, quantities: Quantities) -> Iterator[Rule]:
    def is_year(match: re.Match[str]) -> Part | None:
        return None if quantities.has_unit(match.string, match.end()) else part(match)

    cue = rf"(?<!\w)(?i:{any_of(language.year_cues)})[ \t]+"
    yield rule("date", 0.7, rf"{cue}(?P<x>{YEAR})(?![\w/\-]|[.,]\d)", is_year)
    yield rule("date", 0.5, rf"(?<![\w/.$#@])(?<!\d[,\-]){YEAR}(?![\w/@]|[.,]\d|-\d{{4}}|-[A-Za-z])", is_year)
    yield rule("date", 0.6, r"(?<![\w'\u2019])['\u2019]\d{2}(?![\w'\u2019\"])")
