"""Rules for addresses and for organisations."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schoolhouse.prepare.redaction.forms import BLANK, LETTER, WORD, Keep, Part, Rule, any_of, rule
from schoolhouse.prepare.redaction.language import Language

_LINE = r"(?:,?[ \t]*\r?\n[ \t]*|,?[ \t]+)"
_POINT = r"(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West|Northeast|Northwest|Southeast|Southwest)\.?"


def address_rules(language: Language) -> Iterator[Rule]:
    """Rules for addresses and their parts."""
    words = language.address
    town = rf"{WORD}(?:[ \t\-]+{WORD}){{0,2}}"
    state = any_of([*words.states]) if words.states else "(?!)"
    region = rf"(?i:{any_of(words.regions)})" if words.regions else "(?!)"
    post = r"(?:[ \t]+\d{5}(?:-\d{4})?(?!\d))?"
    unit = rf"(?:(?i:{any_of(words.units)})\.?(?:[ \t]*#?[ \t]*|[ \t]*\n[ \t]*)\w*\d\w*)"
    code = r"(?:\d{4,6}|[A-Z]{1,2}\d[A-Z\d]?[ ]?\d[A-Z]{2}|[A-Z]\d[A-Z][ ]?\d[A-Z]\d)"
    tail = rf"(?:{_LINE}{unit})?(?:{_LINE}{town},?[ \t]+(?:{state}\b\.?|{region}\b){post})?"
    large = any_of(w.title() if w.islower() else w for w in words.streets)
    house = r"(?<![\w.,/\-])\d{1,6}[A-Za-z]?(?:-\d+)?"
    names = rf"(?:(?:{WORD}|\d+(?:st|nd|rd|th))\.?[ \t]+){{1,4}}"
    yield rule(
        "address",
        0.94,
        rf"{house}[ \t]+(?:{_POINT}[ \t]+)?{names}{large}s?\b\.?(?:[ \t]+{_POINT}(?!\w))?{tail}",
    )
    number = r"(?:\d{1,5}[A-Za-z]?(?:[\-/]\d+)?,?[ \t]+)?"
    kinds = any_of([*(w.title() for w in words.street_heads), "rue", "calle", "rua", "block of"])
    heads = rf"(?<!\w){number}{kinds}[ \t]+(?:(?:de|du|des|del|della|di|da|do|la|le|los|las|el|of|the|d'|l')[ \t]+)*"
    yield rule(
        "address",
        0.8,
        rf"{heads}(?:{WORD}(?:[ \t\-]+{WORD}){{0,3}}(?:,?[ \t]+\d{{1,4}}\w?)?|\d{{1,4}}[A-Z]?)(?!\w){tail}",
        _streets,
    )
    tails = rf"(?<!\w)(?:{WORD}[ \t\-]+)?(?:{LETTER}|-)+(?i:{any_of(words.street_tails)})"
    yield rule("address", 0.8, rf"{tails}[ \t]+\d{{1,4}}[A-Za-z]?(?:-\d+)?(?!\w)")
    clear = any_of(w for w in words.streets if w in ("street", "avenue", "road", "boulevard", "lane", "drive", "court"))
    yield rule("address", 0.9, rf"(?<![\w.,/\-])\d{{1,6}}[ \t]+(?:[\w'\u2019.\-]+[ \t]+){{1,3}}(?i:{clear})\b{tail}")
    yield rule("address", 0.9, rf"(?<!\w)(?i:p\.?[ \t]?o\.?[ \t]?box|post office box)[ \t]*#?[ \t]*\d+{tail}")
    strange = _strange(language)
    yield rule("address", 0.9, rf"(?<!\w)(?P<x>{town},?[ \t]+(?:{state})[ \t]+\d{{5}}(?:-\d{{4}})?)(?!\d)")
    yield rule("address", 0.72, rf"(?<!\w)(?P<x>{town},[ \t]*(?:{state}|{region}))(?!\w)", strange)
    yield rule("address", 0.9, rf"(?<!\w)(?P<x>{town}{_LINE}[A-Z]{{2,3}}[ \t]+{code})(?!\w)")
    yield rule("address", 0.85, rf"(?<!\w)(?P<x>{town}(?:,[ \t]*{town})?,?[ \t]+{code})(?!\w)", strange)
    zip = r"\d{5}(?:-\d{4})?(?!\w|[.,]\d)"
    beside = rf"(?<=,)[ \t]+(?P<x>{town},?[ \t]+{zip}|{zip}[ \t]+{town})(?!\w)"
    yield rule("address", 0.85, beside, _beside_a_zip(language))
    yield rule("address", 0.9, r"(?<![\w\-])\d{5}-\d{4}(?![\w\-])")
    yield rule("address", 0.9, r"(?<!\w)[A-Z]{1,2}\d[A-Z\d]?[ ]\d[A-Z]{2}(?!\w)|(?<!\w)[A-Z]\d[A-Z][ ]?\d[A-Z]\d(?!\w)")
    yield rule("address", 0.7, rf"(?<!\w)(?P<x>{unit})(?!\w)", _named_unit)
    labels = rf"(?<!\w)(?i:{any_of(words.labels)})[ \t]*[:=][ \t]*(?:\n[ \t]*)?"
    yield rule(
        "address",
        0.85,
        rf"{labels}(?P<x>[^\n;|\t]{{2,80}}?)(?=[ ]{{2,}}|[\n;|\t]|$|[,.]?[ \t]+[A-Z][\w ]{{1,20}}:)",
        _no_plain(language),
    )
    yield rule(
        "address",
        0.75,
        rf"(?<!\w)(?i:{any_of(words.cues)}){BLANK}(?:(?i:the|a){BLANK})?(?P<x>{town}(?:,[ \t]*{town})?)",
        strange,
    )
    yield rule(
        "address",
        0.7,
        rf"(?<!\w)(?P<x>{WORD}(?:[ \t]{WORD})?[ \t]+(?:{any_of(w.title() for w in words.places)}))(?!\w)",
        strange,
    )


def organisation_rules(language: Language) -> Iterator[Rule]:
    """Rules for organisations."""
    words = language.organisation
    if not words.kinds:
        return
    kinds = any_of(form for w in words.kinds for form in {w.title(), w.upper()})
    clear = any_of(w for w in words.kinds if w not in words.doubtful_kinds)
    piece = rf"(?:{WORD}|St\.|Mt\.|[A-Z]\.|[A-Z]&[A-Z])(?:'s|\u2019s)?"
    head = rf"(?:{piece}[ \t]+(?:(?:of|the|and|&|for|at|in|de|del|la)[ \t]+)*){{1,5}}"
    tail = rf"(?:[ \t]+(?:of|at|for|in)[ \t]+(?:the[ \t]+)?{WORD}(?:[ \t]+{WORD}){{0,2}})?"
    yield rule("organisation", 0.83, rf"(?<![\w'\u2019\-])(?P<x>{head}(?:{kinds}){tail})(?!\w)", _named(language))
    lower = rf"(?:(?:[^\W\d_]+[ \t]+){{0,2}})(?:{clear}|(?:middle|high|elementary)[ \t]+school|high|general)"
    yield rule("organisation", 0.7, rf"(?<![\w'\u2019\-])(?P<x>{head}{lower})(?!\w)", _named(language))
    small = r"(?:de|del|la|le|of|the|st\.?|St\.?|san|los|las|von|di|der)"
    first = any_of(form for w in words.heads for form in {w.title(), w.upper(), w[:1].upper() + w[1:]})
    yield rule(
        "organisation",
        0.75,
        rf"(?<!\w){first}[ \t]+(?:{small}[ \t]+)*(?:{WORD}|\d+)(?:[ \t]+(?:(?:{small}|or|and)[ \t]+)*{WORD}){{0,4}}",
        _named(language),
    )
    yield rule(
        "organisation",
        0.75,
        rf"(?<!\w)(?P<x>{WORD}(?:,[ \t]{WORD})*[ \t]&[ \t]{WORD}(?:[ \t]{WORD})?)(?!\w)",
        _strange(language),
    )
    listed = rf"{WORD}(?:-{WORD})?(?:,[ \t]{WORD})+[ \t](?:and|&)[ \t]{WORD}"
    body = rf"(?:{WORD}|St\.|[A-Z]&[A-Z])(?:'s|\u2019s)?(?:[ \t]+(?:(?:of|the|and|&|for|de|la)[ \t]+)*{WORD}){{0,4}}"
    cue = rf"(?<!\w)(?i:{any_of(words.cues)})[ \t]*:?[ \t]+(?:(?:the|a|an|our)[ \t]+)?"
    yield rule("organisation", 0.72, rf"{cue}(?P<x>{listed}|{body})", _strange(language, trailing=True))


def _streets(match: re.Match[str]) -> Part | None:
    """A street whose kind stands first: `via catheter` is none, so that something has to be written large."""
    found = match.group()
    return match.span() if re.search(r"\d", found) or found.split()[0][0].isupper() or found.startswith("rue") else None


def _named_unit(match: re.Match[str]) -> Part | None:
    """`Apt 4B` is a part of an address, `#30` may be the number of anything."""
    return None if match["x"].startswith("#") else match.span("x")


def _beside_a_zip(language: Language) -> Keep:
    """Towns may be made of plain words (Hollow Creek); a single plain word beside a number is what is counted."""

    def keep(match: re.Match[str]) -> Part | None:
        words = re.findall(rf"{LETTER}+", match["x"])
        told = len(words) > 1 or not language.is_term(words[0])
        return match.span("x") if told and any(c.islower() for c in match["x"]) else None

    return keep


def _no_plain(language: Language) -> Keep:
    """A line behind `Address:` that holds a number, or a word written large that is nobody's else."""

    def keep(match: re.Match[str]) -> Part | None:
        words = re.findall(r"[^\W\d_][\w'\u2019\-]*", match["x"])
        named = any(w[0].isupper() and not language.is_plain(w) for w in words)
        return match.span("x") if named or re.search(r"\d", match["x"]) else None

    return keep


def _strange(language: Language, *, trailing: bool = False) -> Keep:
    """What holds a word that is nobody's else, from the first such word on; with `trailing`, to the end."""

    def keep(match: re.Match[str]) -> Part | None:
        start, end = match.span("x")
        found = list(re.finditer(r"[^\W\d_][\w'\u2019\-]*", match["x"]))
        while found and language.is_plain(found[0].group()):
            found.pop(0)
        while found and not trailing and language.is_plain(found[-1].group()) and not found[-1].group().isupper():
            found.pop()
        return (start + found[0].start(), end if trailing else start + found[-1].end()) if found else None

    return keep


def _named(language: Language) -> Keep:
    """An organisation with a name of its own: `Outpatient Clinic` is none, `Mercy Clinic` is one."""
    known = {*language.organisation.departments, *language.words.stop, *language.words.headings}

    def keep(match: re.Match[str]) -> Part | None:
        start, end = match.span("x") if "x" in match.re.groupindex else match.span()
        found = list(re.finditer(r"[^\W\d_][\w'\u2019\-]*", match.string[start:end]))
        while found and found[0].group().lower() in language.words.stop:
            found.pop(0)
        named = [w for w in found if w.group().lower() not in known and w.group().lower() not in language.plain]
        if not named or len(found) < 2:
            return None
        return start + found[0].start(), end

    return keep
