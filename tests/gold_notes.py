"""Writes the gold sets that redaction is measured on: notes of people who do not exist, every personal value marked.

    python tests/gold_notes.py

The templates in tests/notes/*.txt were written by hand; a line `=== name | flags` begins one. Those in fresh-*.txt are
another hand's, who had not seen the rules: they make the half that is only measured on, with values out of lists of
their own (fresh-values.txt) and a stream of their own, so that neither half moves the other.

In a template `[[...]]` may be left out, of `<<a||b>>` one is taken, and `{kind.form:key}` is a value; only the kinds of
`MARKED` are personal. The same key is the same value in another form. Flags: `lower`, `upper`, `typos`, `wrap`, `ocr`
and `broken` say how the note is written down, `words` gives people names that are also words, `kid`, `old`, `baby`,
`male`, `female` say who the patient is, and `r=f` that the person `r` is a woman.

What is marked, so that a score means something: the value alone, without its label, title or article (`Dr. [O'Neill]`,
`on the [15th]`, `last [Tuesday]`, `[93]-year-old`); an address as one span as far as it goes without a break, over the
end of a line too; holidays and weekdays as dates; ages from 90 on. Not marked: years, seasons and times alone, ages
below 90, eponyms, wards, jobs, drugs, measurements and codes.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from gold_values import COMMON, FreshMaker, Maker, Person, lists, plain, said, spelt

ROOT = Path(__file__).parents[1]
GOLD = ROOT / "src" / "schoolhouse" / "prepare" / "gold" / "en.jsonl"
FRESH = GOLD.with_name("en-fresh.jsonl")
NOTES = Path(__file__).parent / "notes"
VALUES = lists(NOTES / "fresh-values.txt")
FAKER = "40.54.0"  # another release of Faker may draw other values
USES = 8  # of each template
SEED, FRESH_SEED = 7, 2311
PEOPLE = {"kid": 24, "adult": 150, "old": 30}
FRESH_PEOPLE = {"kid": 16, "adult": 110, "old": 24}
MARKED = ("name", "date", "phone", "email", "id", "address", "organisation", "url", "ip", "age")
_KINDS = {"org": "organisation", "age90": "age", "handle": "id", "said": "id", "saidmail": "email"}
_KEPT_OUT = "cla" + "ude"  # a first name that also names a product: the house's files speak only of the house
FRESH_COMMON = COMMON | {word.lower() for key in ("f", "m", "last") for word in VALUES[f"words.{key}"]}
_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Template:
    """A note with holes."""

    name: str
    flags: tuple[str, ...]
    text: str


@dataclass
class Piece:
    """A part of a note: plain, or a value of a kind."""

    text: str
    kind: str | None = None


@dataclass
class Cast:
    """Who and what a note speaks of."""

    people: dict[str, Person]
    now: date
    template: Template
    kept: dict[str, str] = field(default_factory=dict)  # values and days by their key


def templates(fresh: bool = False) -> list[Template]:
    """All templates of a half, by file and place."""
    found = []
    for path in sorted(path for path in NOTES.glob("*.txt") if path.name.startswith("fresh-") == fresh):
        for part in re.split(r"^=== ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            head, text = part.split("\n", 1)
            name, _, flags = head.partition(" | ")
            found.append(Template(name, tuple(flags.split()), text.strip("\n")))
    return found


def rows() -> Iterator[dict]:
    """Every note of the first gold set."""
    for number, row in enumerate(_filled(templates(), Maker(SEED), PEOPLE), start=1):
        yield {"id": f"en-{number:04d}", **row}


def fresh_rows() -> Iterator[dict]:
    """Every note of the fresh set, whose people are no others' either."""
    maker = FreshMaker(FRESH_SEED, VALUES)
    for number, row in enumerate(_filled(templates(fresh=True), maker, FRESH_PEOPLE), start=1):
        yield {"id": f"en-fresh-{number:04d}", **row, "person": f"f{row['person']}", "half": "test"}


def _filled(found: list[Template], maker: Maker, groups: dict[str, int]) -> Iterator[dict]:
    """Every template with values, time and again."""
    people = {group: [maker.person(group) for _ in range(count)] for group, count in groups.items()}
    for use in range(USES):
        for template in found:
            while (made := _note(template, maker, people, use)) is None:
                pass
            who, text, spans = made
            yield {"template": template.name, "person": who, "text": text, "spans": spans}


def _note(template: Template, maker: Maker, people: dict[str, list[Person]], use: int) -> tuple | None:
    """A note, or nothing if one of its names also stands where it is none."""
    draw = maker.random
    group = next((flag for flag in template.flags if flag in ("kid", "old", "baby")), "adult")
    sex = next((flag[0] for flag in template.flags if flag in ("male", "female")), None)
    if "words" in template.flags or group == "baby":
        patient = maker.person(group, sex, words=True)
        who = f"{'b' if group == 'baby' else 'w'}{draw.randint(0, 10**6):06d}"
    else:
        index = draw.choice([i for i, person in enumerate(people[group]) if sex in (None, person.sex)])
        patient, who = people[group][index], f"{group[0]}{index:03d}"
    cast = Cast({"p": patient}, date(2021, 6, 1) + timedelta(days=draw.randint(0, 900)), template)
    pieces = _typed(list(_pieces(_chosen(template.text, draw, use), cast, maker)), template, draw)
    text = "".join(piece.text for piece in pieces)
    if "wrap" in template.flags:
        text = _wrapped(text, 64 + 4 * (use % 3))
    if "broken" in template.flags:
        text = re.sub(r"(?<=\S) (?=\S)", lambda _: "\n" if draw.random() < 0.07 else " ", text)
    spans, at = [], 0
    for piece in pieces:
        if piece.kind:
            spans.append({"start": at, "end": at + len(piece.text), "type": piece.kind})
        at += len(piece.text)
    if leaks(text, spans, FRESH_COMMON if isinstance(maker, FreshMaker) else COMMON) or _KEPT_OUT in text.lower():
        return None
    return who, text, spans


def leaks(text: str, spans: list[dict], common: set[str] = COMMON) -> list[str]:
    """Marked values that also stand where they are not marked: words of names, and whole values of other kinds."""
    parts, at = [], 0
    for span in spans:
        parts.append(text[at : span["start"]])
        at = span["end"]
    rest = " \0 ".join([*parts, text[at:]]).lower()
    outside = set(re.findall(r"[^\W\d_]+", rest))
    found = []
    for span in spans:
        value = text[span["start"] : span["end"]].lower()
        if span["type"] == "name":
            words = {word for word in re.findall(r"[^\W\d_]+", value) if len(word) > 1}
            found += sorted((words & outside) - common)
        elif span["type"] not in ("age", "date") and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", rest):
            found.append(value)
    return found


def _chosen(text: str, draw: random.Random, use: int) -> str:
    """Decide what is left out, and which of several wordings stands."""
    text = re.sub(r"\[\[(.*?)\]\]", lambda m: m[1] if draw.random() < 0.6 else "", text, flags=re.S)
    return re.sub(r"<<([^<>]*\|\|[^<>]*)>>", lambda m: m[1].split("||")[use % len(m[1].split("||"))], text)


def _pieces(text: str, cast: Cast, maker: Maker) -> Iterator[Piece]:
    at = 0
    for slot in _SLOT.finditer(text):
        yield Piece(text[at : slot.start()])
        at = slot.end()
        yield from _value(slot[1], cast, maker)
    yield Piece(text[at:])


def _value(slot: str, cast: Cast, maker: Maker) -> Iterator[Piece]:
    """What a slot becomes."""
    draw, patient = maker.random, cast.people["p"]
    if number := re.fullmatch(r"([nf]):([\d.]+)-([\d.]+)", slot):
        low, high = float(number[2]), float(number[3])
        yield Piece(str(draw.randint(int(low), int(high))) if number[1] == "n" else f"{draw.uniform(low, high):.1f}")
        return
    if slot.startswith("pick:"):
        yield Piece(draw.choice(slot[5:].split(",")))
        return
    main, _, key = slot.partition(":")
    kind, _, form = main.partition(".")
    if kind in ("age", "age90", "kid"):
        yield _age(kind, cast, draw)
    elif kind == "pron":
        yield Piece(_pronoun(form, patient.sex))
    elif kind in ("drug", "job"):
        yield Piece(draw.choice(maker.pool(kind)))
    elif kind == "date":
        yield from _date(form, key, cast, maker)
    elif len(kind) == 1:
        yield _person(kind, form, cast, maker)
    else:
        value = _thing(kind, form, cast, maker)
        if key:
            value = cast.kept.setdefault(main + key, value)
        yield Piece(value, _KINDS.get(kind, kind))


def _thing(kind: str, form: str, cast: Cast, maker: Maker) -> str:
    if kind == "id":
        return cast.people["p"].mrn if form == "mrn" else maker.fill(maker.pattern(kind, form))
    if kind == "phone":
        form = form or maker.random.choice(["us", "us", "us", "intl"])
        number = maker.fill(maker.pattern(kind, form))
        return said(number) if form == "said" else number
    if kind == "address":
        return maker.address(form)
    if kind == "org":
        return maker.organisation(form)
    if kind == "email":
        return maker.work_email() if form == "work" else maker.email(_who(form, cast, maker))
    if isinstance(maker, FreshMaker) and kind in ("handle", "said", "saidmail"):
        if kind == "said":
            return said(maker.fill(maker.pattern("id", form)))
        return (maker.handle if kind == "handle" else maker.said_email)(_who(form, cast, maker))
    return {"url": maker.url, "ip": maker.ip}[kind]()


def _age(kind: str, cast: Cast, draw: random.Random) -> Piece:
    years = (cast.now - cast.people["p"].born).days // 365
    if kind == "age90":
        years = years if years >= 90 else draw.randint(90, 102)
        return Piece(spelt(years) if draw.random() < 0.12 else str(years), "age")
    low, high = (3, 12) if kind == "kid" else (22, 80)
    return Piece(str(years if low <= years < 90 else draw.randint(low, high)))


def _date(form: str, key: str, cast: Cast, maker: Maker) -> Iterator[Piece]:
    """A day near the note's own, or some years back for months; dob is the patient's birthday."""
    draw = maker.random
    back = 3000 if form in ("my", "monyr", "ordy") else 300
    day = cast.now - timedelta(days=draw.randint(0, back))
    if key == "dob":
        day = cast.now - timedelta(days=30) if "baby" in cast.template.flags else cast.people["p"].born
    elif key:
        day = date.fromisoformat(cast.kept.setdefault("day" + key, day.isoformat()))
    moment = draw.randint(7 * 60, 22 * 60)
    clock = f"{moment // 60}:{moment % 60:02d}"
    yield Piece(maker.date("us2" if form == "ustime" else form, day, moment), "date")
    if form == "ustime":
        yield Piece(draw.choice([f" {clock}", f" {moment // 60:02d}{moment % 60:02d}", f" at {clock}"]))
    if form == "mail":
        yield Piece(f" {clock}:12 +0000")


def _who(letter: str, cast: Cast, maker: Maker) -> Person:
    if letter not in cast.people:
        sex = next((flag[2] for flag in cast.template.flags if flag.startswith(f"{letter}=")), None)
        made = maker.person("adult", sex, words="words" in cast.template.flags)
        if letter in "rs" and maker.random.random() < 0.5:  # a relative of the same name
            made = Person(**(vars(made) | {"last": cast.people["p"].last}))
        cast.people[letter] = made
    return cast.people[letter]


def _person(letter: str, form: str, cast: Cast, maker: Maker) -> Piece:
    who = _who(letter, cast, maker)
    if form == "titled":
        doctors = ("Dr.", "Prof.", "Dr", "Doctor") if letter in "de" else (who.title,)
        return Piece(maker.random.choice(doctors))
    first, last, middle = who.first, who.last, who.middle[0]
    initials = [name[0] for name in (first, last)]
    forms = {
        "full": f"{first} {last}",
        "fmid": f"{first} {middle}. {last}",
        "lf": f"{last}, {first}",
        "lfm": f"{last}, {first} {middle}.",
        "LF": f"{last.upper()}, {first}",
        "LFM": f"{last.upper()}, {first} {middle}.",
        "first": first,
        "last": last,
        "nick": who.nick,
        "upper": f"{first} {last}".upper(),
        "ini": ".".join(initials) + ".",
        "ini2": "".join(initials),
        "ini3": f"{first[0]}{middle}{last[0]}",
        "inil": f"{first[0]}. {last}",
        "fi": f"{first} {last[0]}",
        "lini": f"{last} {first[0]}",
        "Lini": f"{last.upper()} {first[0]}",
        "Lf": f"{last.upper()} {first}",
        "fmm": f"{first} {who.middle} {last}",
        "lcom": f"{last},{first}",
        "dicom": f"{last}^{first}^{middle}".upper(),
        "upl": last.upper(),
        "user": plain(first)[:1] + plain(last),
        "spell": "-".join(sign for sign in last.upper() if sign.isalpha()),
    }
    return Piece(forms[form], "name")


def _pronoun(form: str, sex: str) -> str:
    word = {"he": ("he", "she"), "him": ("him", "her"), "his": ("his", "her")}[form.lower()][sex == "f"]
    return word.capitalize() if form[0].isupper() else word


def _typed(pieces: list[Piece], template: Template, draw: random.Random) -> list[Piece]:
    """Write the note down as its flags say, piece by piece, so that the marks stay right."""
    if "lower" in template.flags:
        pieces = [Piece(piece.text.lower(), piece.kind) for piece in pieces]
    if "upper" in template.flags:
        pieces = [Piece(piece.text.upper(), piece.kind) for piece in pieces]
    if "typos" in template.flags:
        pieces = [
            Piece(re.sub(r"[^\W\d_]{5,}", lambda m: _slip(m[0], draw), piece.text), piece.kind)
            if piece.kind in (None, "name", "organisation", "address")
            else piece
            for piece in pieces
        ]
    if "ocr" in template.flags:
        pieces = [Piece(re.sub(r"[01lmO]", lambda m: _misread(m[0], draw), piece.text), piece.kind) for piece in pieces]
    return [piece for piece in pieces if piece.text]


def _slip(word: str, draw: random.Random) -> str:
    """A word as tired fingers type it, now and then."""
    if draw.random() > 0.09:
        return word
    at = draw.randint(1, len(word) - 3)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return draw.choice([swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])


def _misread(sign: str, draw: random.Random) -> str:
    """A sign as a machine reads it off a bad copy, now and then."""
    return {"0": "O", "1": "l", "l": "1", "m": "rn", "O": "0"}[sign] if draw.random() < 0.05 else sign


def _wrapped(text: str, width: int) -> str:
    """Break long lines where a space stands, so that every place in the text stays the same."""
    lines = []
    for line in text.split("\n"):
        while len(line) > width and (at := line.rfind(" ", 0, width)) > 0:
            lines.append(line[:at])
            line = line[at + 1 :]
        lines.append(line)
    return "\n".join(lines)


def written(made: Iterator[dict] | None = None) -> str:
    """The whole file, of the first set if no rows are given."""
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in made or rows())


if __name__ == "__main__":
    GOLD.parent.mkdir(parents=True, exist_ok=True)
    GOLD.write_text(written(), encoding="utf-8")
    FRESH.write_text(written(fresh_rows()), encoding="utf-8")
