"""Rules for what is a number or an address of the net: phones, ids, e-mail, links, IP addresses, ages over 89."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schoolhouse.prepare.redaction.forms import BLANK, BREAK, WORD, Part, Rule, any_of, part, rule
from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.quantities import THREE_DIGITS, Quantities

_TLDS = (
    "com|org|net|edu|gov|mil|io|health|info|us|uk|de|fr|es|it|nl|ca|au|eu|me|care|clinic|app|int|biz|tv|test|example"
)
_EXTENSION = r"(?:,?[ \t]*(?:x|ext\.?|extension)[ \t]*\d{1,6})?"
_PHONE = (
    r"(?<![\w.])(?:\+?\d{1,3}[ .\-]?)?(?:\(\d{2,5}\)[ \t.\-]*|\d{2,5}[ .\-])\d{3,4}[ .\-]?\d{3,4}"
    + _EXTENSION
    + r"(?!\w)"
)
_LINK_END = r"[^\s<>\"'.,;:!?)\]]"
_FORMS = [
    ("email", 0.99, r"[\w.+'\-]+@[\w\-]+(?:\.[\w\-]+)+"),
    ("email", 0.9, rf"\b[\w.+\-]+ ?[(\[]?\bat\b[)\]]? ?[\w\-]+ ?[(\[]?\bdot\b[)\]]? ?(?:{_TLDS})\b"),
    ("url", 0.99, rf"\b(?:(?:https?|ftp)://|www\.)[^\s<>\"']*{_LINK_END}"),
    ("url", 0.8, rf"(?<![\w@.])(?:[A-Za-z0-9](?:[\w\-]*\w)?\.)+(?:{_TLDS})\b(?:/[^\s<>\"']*{_LINK_END})?"),
    ("ip", 0.98, r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,2})?(?!\w|\.\d)"),
    ("ip", 0.98, r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])"),
    ("ip", 0.98, r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){1,6}(?::[0-9A-Fa-f]{1,4}){1,6}(?![\w:])"),
    ("id", 0.99, r"(?<![\w:])[0-9A-Fa-f]{2}(?:[:\-][0-9A-Fa-f]{2}){5}(?![\w:])"),
    ("id", 0.97, r"(?<![\w\-])(?:\d{3}|[xX*]{3})[\- ](?:\d{2}|[xX*]{2})[\- ]\d{4}(?![\w\-])"),
    ("id", 0.9, r"(?<!\w)@\w{3,}"),
    ("id", 0.85, r"(?<![\w.])\d{1,3}(?:\.\d{3}){2,}(?:-\d{1,2})?(?!\w|\.\d)"),
    ("id", 0.9, r"(?<!\w)[A-Z]{2}[ ]?\d{2}[ ]?\d{2}[ ]?\d{2}[ ]?[A-D](?!\w)"),
    ("id", 0.9, r"(?<!\w)[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){3,7}(?:[ ]?[A-Z0-9]{1,3})?(?!\w)"),
    ("id", 0.9, r"(?<!\w)\d{4}(?:[ \-]\d{4}){2,3}(?!\w)"),
    ("id", 0.85, r"(?<!\w)[xX*.\u2022]{2,}[ \-]?\d{3,4}(?!\w)"),
    ("id", 0.75, r"(?<!\w)[A-Z]{1,2}\d{2}[ ]?[A-Z]{3}(?!\w)"),
    ("id", 0.9, r"(?<![\w.])\d+(?:\.\d+){4,}(?!\w|\.\d)"),  # of an image, as DICOM numbers them
    ("id", 0.8, r"(?<![\w\-])[A-Z]{1,4}-(?=(?:-?\d){5})\d{2,}(?:-\d{2,})*(?!\w)"),
    ("id", 0.7, r"(?<!\w)\d{2,}[A-Z]{1,2}\d{5,}(?!\w)"),
    ("phone", 0.9, _PHONE),
    ("phone", 0.9, r"(?<!\w)\+\d{1,3}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}" + _EXTENSION + r"(?![\w])"),
    ("phone", 0.85, r"(?<![\w.\-])\d{3}[\-.]\d{4}(?![\w\-])"),
    ("phone", 0.8, r"(?<![\w./\-])0\d{1,4}(?:[ .\-]\d{2,4}){2,4}(?![\w./\-])"),
    ("id", 0.9, r"(?i:\bplates?|\btag)[ \t:#]+(?P<x>(?=[\w \-]*\d)[A-Z0-9]{1,4}(?:[ \-][A-Z0-9]{1,4}){1,2})(?!\w)"),
    ("phone", 0.8, r"(?<!\w)[xX]\d{3,6}(?!\w)"),
]
_PIECE = r"(?=[\w./*\-]*\d)[A-Za-z0-9*](?:[\w*]|[./\-](?=[\w*]))*"
_ID = rf"(?:[A-Z]{{1,4}}[ \t]\d[\w\-]*|{_PIECE})(?:[ \t]\d{{2,6}}(?![\w./]))*"


def number_rules(language: Language, quantities: Quantities) -> Iterator[Rule]:
    """Rules for numbers and addresses of the net."""
    for kind, score, form in _FORMS:
        yield rule(kind, score, form)
    yield rule("id", 0.4, THREE_DIGITS, lambda match: None if quantities.is_one(match) else match.span())
    yield from _labelled(language, quantities)
    yield from _ages(language, quantities)


def _labelled(language: Language, quantities: Quantities) -> Iterator[Rule]:
    ids, phones = language.id, language.phone

    def is_id(match: re.Match[str]) -> Part | None:
        """It holds three letters and digits or more, one of them a digit, and no unit follows."""
        found = match["x"]
        solid = sum(c.isalnum() for c in found)
        marked = re.search(
            r"[:#]|\b(?:no|number|id)\b", match.group()[: match.start("x") - match.start()], re.IGNORECASE
        )
        if (
            solid < (2 if marked else 3)
            or not any(c.isdigit() for c in found)
            or quantities.has_unit(match.string, match.end("x"))
        ):
            return None
        return match.span("x")

    if ids.digits:
        said = rf"(?i:{any_of(ids.digits)})(?!\w)"
        yield rule("id", 0.8, rf"(?<!\w)(?P<x>{said}(?:[ \t,\-]+{said}){{4,}})")
        behind = rf"(?<!\w)(?i:{any_of(ids.labels)})(?!\w)(?:{BLANK}(?i:{any_of(ids.number_words)})(?!\w)){{0,2}}"
        yield rule("id", 0.9, rf"{behind}[ \t:]+(?P<x>{said}(?:[ \t,\-]+{said}){{2,}})")
    if ids.labels:
        aside = r"(?:[ \t]*\([^)\n]{1,20}\))?"
        words = rf"{aside}(?:{BLANK}?(?i:{any_of(ids.number_words)})(?!\w)){{0,2}}{aside}"
        between = rf"{words}[ \t]*(?:[:#=.\-][ \t]*){{0,2}}(?:(?<=[:#])[ \t]*\n)?[ \t]*"
        yield rule("id", 0.93, rf"(?<!\w)(?i:{any_of(ids.labels)})(?!\w){between}(?P<x>{_ID})", is_id)
        last = r"(?i:\b(?:ending(?: in| with)?|(?:last|final)(?: four| 4)(?: digits)?))"
        yield rule("id", 0.9, rf"{last}[^\d\n]{{0,30}}(?P<x>(?<!\w)\d{{4}})(?!\w)")
        plate = r"(?P<x>(?=[\w \-]*\d)[A-Z0-9]{1,4}(?:[ \-]?[A-Z0-9]{1,4}){1,3})(?!\w)"
        vehicle = rf"(?<!\w)(?i:{any_of(ids.vehicles)})(?:{BLANK}(?i:{any_of(ids.number_words)}))?[ \t:#,(]*"
        yield rule("id", 0.88, rf"{vehicle}{plate}")
        login = rf"(?<!\w)(?i:{any_of(ids.logins)})[ \t]*(?:[:=]|\b(?i:is|was)\b)[ \t]*"
        yield rule("id", 0.9, rf"{login}(?P<x>[\w.\-@+]{{3,}})(?!\w)")
    if phones.labels:
        between = r"[ \t]*(?:#|(?i:no\.?|number)\b)?[ \t]*(?:(?i:is|at|was|on)\b)?[ \t]*[:.#\-=]?[ \t]*"
        number = r"(?:\+?[\d(][\d() .\-]{1,20}\d)" + _EXTENSION
        form = rf"(?<!\w)(?i:{any_of(phones.labels)}){between}(?P<x>{number})(?![\w/%])"
        yield rule("phone", 0.91, form, lambda match: _phone(match, quantities))


def _phone(match: re.Match[str], quantities: Quantities) -> Part | None:
    """A labelled phone number has four digits or more, or is an extension; no unit follows."""
    digits = sum(c.isdigit() for c in match["x"])
    extension = match.group().lower().startswith(("ext", "x"))
    if digits < (2 if extension else 4) or quantities.has_unit(match.string, match.end("x")):
        return None
    return part(match)


def _ages(language: Language, quantities: Quantities) -> Iterator[Rule]:
    age, relations = language.age, any_of(language.name.relations)
    figure = r"(?:9\d|1[0-3]\d)"
    worded = any_of(age.words).replace(r"\-", r"[\- ]")
    number = rf"(?:{figure}|(?i:{worded}))"
    older = re.escape(age.older.partition(" ")[2])
    behind = rf"(?![\w%/]|[.,]\d|[ \-](?i:{older}))"

    def unless_measured(match: re.Match[str]) -> Part | None:
        return None if quantities.is_measured(match) else match.span("x")

    yield rule("age", 0.96, rf"(?<![\w.,/])(?P<x>{number}[ \t\-]*(?i:{any_of(age.after)}))(?!\w)")
    sexes = any_of(
        form for sex in age.sexes for form in (sex.upper(), sex.lower(), sex.title()) if len(form) > 1 or form.isupper()
    )
    yield rule("age", 0.9, rf"(?<![\w.,/])(?P<x>{number})[ \t]?(?:/[ \t]?)?{sexes}(?!\w)", unless_measured)
    yield rule("age", 0.9, rf"(?<!\w)[MFmf][ \t]?/[ \t]?(?P<x>{figure})(?!\w)")
    before = rf"(?<!\w)(?i:{any_of(age.before)})[ \t]*[:=]?[ \t]*"
    yield rule("age", 0.95, rf"{before}(?P<x>{number}){behind}")
    somebody = any_of([*age.subjects, *language.name.relations])
    said = rf"(?<!\w)(?i:{somebody})[ \t]+(?i:{any_of(age.links)})[ \t]+(?P<x>{number}){behind}"
    yield rule("age", 0.8, said, unless_measured)
    titled = rf"(?<!\w)(?i:{any_of(language.name.titles)})\.?{BREAK}{WORD}(?:[ \t\-]{WORD})?"
    yield rule("age", 0.85, rf"{titled}{BREAK}(?i:{any_of(age.links)}){BREAK}(?P<x>{number}){behind}", unless_measured)
    ending = any_of(language.ordinal_endings)
    yield rule("age", 0.8, rf"(?<!\w)(?i:{any_of(age.possessives)})[ \t]+(?P<x>{figure}{ending})(?!\w)")
    listed = rf"(?:[^\W\d_]\)?,|\w:)[ \t](?P<x>{number})(?=[,;)][ \t]*[^\W\d_]|\.(?:\s|$))"
    yield rule("age", 0.7, listed, unless_measured)
    yield rule("age", 0.7, rf"[^\W\d_][ \t]\((?:(?i:age)[ \t]*)?(?P<x>{figure})\)", unless_measured)
    yield rule(
        "age", 0.7, rf"(?<!\w)(?i:{relations})(?:[^.\n\d]{{1,16}})(?<!\w)(?P<x>{number}){behind}", unless_measured
    )
    if age.words:
        yield rule("age", 0.6, rf"(?<![\w\-])(?P<x>(?i:{worded})){behind}", unless_measured)
    if age.nineties:
        yield rule("age", 0.6, rf"(?<!\w)(?P<x>(?i:{any_of(age.nineties)}))(?!\w)")
