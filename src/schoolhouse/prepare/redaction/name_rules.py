"""Rules for people's names: by a title, a degree, a label, a relation or a greeting beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schoolhouse.prepare.redaction.forms import (
    BLANK,
    INITIAL,
    LARGE,
    LETTER,
    NEAR,
    WORD,
    Keep,
    Part,
    Rule,
    any_of,
    name_form,
    reversed_form,
    rule,
)
from schoolhouse.prepare.redaction.language import Language

_TWO = {
    "md",
    "rn",
    "do",
    "pa",
    "ok",
    "ed",
    "er",
    "iv",
    "po",
    "ct",
    "pt",
    "ns",
    "or",
    "am",
    "pm",
}  # end a line, and are no initials
_POINTED = {
    "y.o",
    "q.d",
    "b.i.d",
    "t.i.d",
    "q.i.d",
    "p.o",
    "p.r.n",
    "a.m",
    "p.m",
    "m.d",
    "r.n",
    "n.p.o",
    "d.o",
    "p.a",
    "n.p",
    "i.v",
    "e.g",
    "i.e",
}
_DEGREES = {"md", "rn", "pt", "phd"}  # two of them stand beside each other
_ABBREVIATION = 6  # letters from which a word in capitals is no abbreviation
_WORDS = re.compile(rf"{LETTER}(?:{LETTER}|['\u2019.\-](?={LETTER}))*")


def name_rules(language: Language) -> Iterator[Rule]:
    """Rules for names."""
    words = language.name
    name, turned = name_form(words.particles), reversed_form(words.particles)
    either = rf"(?P<x>{turned}|{name})"
    title = rf"(?<!\w)(?i:{any_of(words.titles)})\b\.?{BLANK}"
    certain, careful = _kept(language, titled=True), _kept(language)
    yield rule("name", 0.96, rf"{title}(?P<x>{name})", certain)
    yield rule("name", 0.9, rf"{title}(?P<x>{LETTER}{{3,}}(?:-{LETTER}+)?)(?!\w)", careful)
    also = rf"(?:(?:,|{BLANK}(?:and|&|or)|/)[ \t]*)"
    yield rule("name", 0.9, rf"{title}(?:{name}){also}(?P<x>{name})", careful)
    yield rule("name", 0.85, rf"(?<!\w)(?i:{any_of(words.doubtful_titles)})\b\.?{BLANK}(?P<x>{name})", careful)
    if words.credentials:
        degree = rf"(?:[ \t]*,[ \t]*|{BLANK}|[ \t]*\()(?:{any_of(words.credentials)})(?!\w)"
        yield rule("name", 0.93, rf"(?<![\w'\u2019\-])(?P<x>{turned}|{name}){degree}", careful)
    colon = r"[ \t]*(?:\([^)\n]{0,20}\)[ \t]*)?(?:[:#=][ \t]*(?:\n[ \t]*)?|[ \t]-[ \t]|\t+|[ ]{2,}|\|[ \t]*)"
    yield rule("name", 0.93, rf"(?<!\w)(?i:{any_of(words.labels)}){colon}{either}", careful)
    strong = any_of(words.strong_labels).replace(BLANK, r"[ \t_]+")
    yield rule("name", 0.94, rf"(?<!\w)(?i:{strong})[ \t]*[:=|][ \t]*(?P<x>{turned}|{name})", certain)
    relation = rf"(?<!\w)(?i:{any_of(words.relations)})(?:'s|\u2019s)?"
    named = rf"(?:{BLANK}(?:(?i:name){BLANK})?(?i:is|was|named|called)|,|[ \t]*\(|[ \t]*[/:\-])?[ \t]*"
    yield rule("name", 0.85, rf"{relation}{named}(?<=[\s,(/:\-])(?P<x>{name})", careful)
    yield rule("name", 0.8, rf"(?<!\w)(?i:{any_of(words.cues)})(?:[ \t,:]+|,?[ \t]*\n\s*)(?P<x>{name})", careful)
    weak = rf"(?<!\w)(?i:{any_of(words.weak_cues)}){BLANK}(?P<x>{name})"
    yield rule("name", 0.7, weak, _no_term(language, careful))
    single = rf"{WORD}(?:-{WORD})?,[ \t]*{WORD}(?:{BLANK}{INITIAL})?"
    yield rule(
        "name",
        0.75,
        rf"(?:^|[.:;|])[ \t]*(?P<x>{single})(?=[ \t]*(?:$|[(|;.\d]|{BLANK}\d|[ \t]+[A-Z]{{3}}\b))",
        _all_strange(language),
    )
    bed = r"(?=,[ \t]*(?:(?i:bed|room|rm)\b|\d{1,3}[ ]?(?i:y|m|f)))"
    item = rf"^[ \t]*(?:\(?\d{{1,2}}[).]|[\-*•])[ \t]+(?P<x>{WORD}(?:{BLANK}{WORD})?){bed}"
    yield rule("name", 0.8, item, careful)
    quoted = rf"[\"\u201c]{WORD}[\"\u201d]{BLANK}{WORD}(?:-{WORD})?"
    yield rule("name", 0.8, rf"(?P<x>{quoted})", certain)
    labelled = rf"(?<!\w)(?i:{any_of(words.labels)}){NEAR}(?P<x>{turned})"
    yield rule("name", 0.8, labelled, careful)
    yield from _initials(language, careful)
    yield rule(
        "name", 0.85, rf"(?i:\binitials?)[ \t:=\-]+(?P<x>[{LARGE}]\.?[ ]?[{LARGE}]\.?(?:[ ]?[{LARGE}]\.?)?)(?!\w)"
    )
    letters = r"(?P<x>[A-Z]\.[ ]?(?:[A-Z]\.[ ]?)?[A-Z]\.?)(?!\w)"
    yield rule("name", 0.8, rf"(?<!\w)(?i:{any_of(words.labels)}|initials)[ \t]*[:\-]?[ \t]*{letters}")


def _initials(language: Language, careful: Keep) -> Iterator[Rule]:
    """Two or three letters that stand for a name: with points, behind a sentence at the end of a line, in slashes."""
    known = {w.lower().rstrip(".") for w in (*language.words.abbreviations, *language.name.credentials)}

    never = _TWO

    degree = rf"(?:{any_of(language.name.credentials)})(?!\w)"

    def ending(match: re.Match[str]) -> Part | None:
        """Behind a sentence at the end of a line stands who wrote it, unless it is a degree or a known pair."""
        bare = match["x"].lower()
        if len(bare) == 2:
            return None if bare in never else match.span("x")
        return strange(match)

    def signed(match: re.Match[str]) -> Part | None:
        """Behind `signed by` stand initials, whatever else they may mean."""
        bare = match["x"].lower().replace(" ", "").rstrip(".")
        return None if bare in never or bare in _POINTED else match.span("x")

    def strange(match: re.Match[str]) -> Part | None:
        bare = match["x"].lower().replace(" ", "").strip("/")
        plain = bare.replace(".", "")
        held = {bare.rstrip("."), plain} & known or (plain in language.plain and "." not in bare)
        return None if held else match.span("x")

    pointed = r"(?:[^\W\d_]\.[ ]?){2,3}"
    yield rule("name", 0.7, rf"(?<=[.!?)\d])[ \t]+(?P<x>{pointed}(?<!\s))[ \t]*$", signed)
    yield rule("name", 0.7, rf"(?<![\w.])(?P<x>{pointed}(?<!\s))(?=[ \t]*(?:$|[|;,)\d/]|{BLANK}\d))", strange)
    yield rule("name", 0.7, rf"(?<=[.!?)]|\d)[ \t]+-{{0,2}}[ \t]*(?P<x>[{LARGE}]{{2,3}})[ \t]*$", ending)
    yield rule(
        "name",
        0.8,
        rf"(?:^|[ \t])[/~][ \t]?(?P<x>[{LARGE}]{{2,3}})(?=[ \t]*(?:/|$|{BLANK}{degree}))",
        signed,
    )
    yield rule(
        "name",
        0.75,
        rf"(?i:\b(?:by|signed|verified|entered|checked))[ \t:]+(?P<x>{pointed}(?<!\s)|[{LARGE}]{{2,3}}(?!\w))",
        signed,
    )
    behind = rf"(?:^|(?<=[.!?)\d])[ \t]+)(?P<x>{LETTER}{{2,3}}){NEAR}(?i:{degree})[ \t.]*$"
    yield rule("name", 0.75, behind, lambda match: None if match["x"].lower() in _DEGREES else match.span("x"))
    yield rule("name", 0.75, rf"(?:^|[ \t])-{{1,2}}[ \t]?(?P<x>{WORD}(?:{BLANK}{WORD})?)[ \t]*$", careful)


def _kept(language: Language, *, titled: bool = False) -> Keep:
    """A name without words that are nobody's at its ends; behind a title two words count whatever they are."""
    name = language.name
    degrees = {w.strip(".") for w in name.credentials}

    def keep(match: re.Match[str]) -> Part | None:
        start, end = match.span("x")
        found = list(_WORDS.finditer(match.string, start, end))
        for i, other in enumerate(found[1:], 1):
            small = other.group().lower()
            if small in name.titles or (len(small) > 2 and small in language.words.stop and small not in name.ordinary):
                del found[i:]
                break
        while found:
            word = found[-1].group()
            doubtful = word.lower() in language.words.stop or match.string[end : end + 1] == ":" or len(found) > 2
            if word not in degrees and (not language.is_plain(word) or (titled and (len(found) == 1 or not doubtful))):
                break
            found.pop()
        turned = len(found) > 1 and match.string[found[0].end()] == ","  # Merchant, Ida
        while found and not (titled or turned) and len(found[0].group()) > 1 and language.is_plain(found[0].group()):
            found.pop(0)
        if len(found) == 1 and len(found[0].group()) == 1 and not titled:
            return None
        return (found[0].start(), found[-1].end()) if found else None

    return keep


def _no_term(language: Language, careful: Keep) -> Keep:
    """A name that holds a word which is none of medicine, and is no abbreviation."""

    def keep(match: re.Match[str]) -> Part | None:
        found = careful(match)
        words = _WORDS.findall(match.string[slice(*found)]) if found else []
        strange = [w for w in words if not language.is_term(w) and not (w.isupper() and len(w) < _ABBREVIATION)]
        return found if found and strange and not language.is_eponym(match.string, *found) else None

    return keep


def _all_strange(language: Language) -> Keep:
    """A name of which no word is anybody else's: `Hypertension, Diabetes` is none."""

    def keep(match: re.Match[str]) -> Part | None:
        words = _WORDS.findall(match["x"])
        return None if any(language.is_plain(w) or w.lower() in language.eponyms for w in words) else match.span("x")

    return keep
