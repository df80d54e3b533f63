"""What stands in the place of what was found: names that nobody has, numbers of the same form, dates that moved.

Equal names get equal surrogates in the whole set, and for good under one key; dates move by one number of days for
each person. With the style "tag" it is a word such as [NAME-3f9c01] instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from schoolhouse.prepare.redaction.dates import Dates, nearest
from schoolhouse.prepare.redaction.forms import any_of
from schoolhouse.prepare.redaction.inventory import ENDINGS, STEMS
from schoolhouse.prepare.redaction.keys import Secret, plainly
from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.spans import Span

Style = Literal["surrogate", "tag"]
_FURTHEST = 365  # days that dates move at most, either way
_OLDEST = 90
_WORD = re.compile(r"\d+[^\W\d_]*|[^\W\d_]+(?:['\u2019](?=[^\W\d_]{2})[^\W\d_]+)*")
_WORD_OR_BREAK = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_NETS = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737: for documentation
_PHONE_TAIL = re.compile(r"(?i)[ ,\t]*(?:x|ext\.?|extension)[ \t]*\d+$")


@dataclass(frozen=True)
class Put:
    """One replacement: the span in the old text, and where its surrogate lies in the new one."""

    span: Span
    start: int
    end: int


class Surrogates:
    """Makes surrogates under one secret, in one style, for texts of one language."""

    def __init__(self, secret: Secret, style: Style, language: Language) -> None:
        self._secret = secret
        self._style = style
        self._language = language
        self._dates = Dates(language)
        name, organisation, address = language.name, language.organisation, language.address
        self._titles = {*name.titles, *name.doubtful_titles, *(w.lower().strip(".") for w in name.credentials)}
        self._dropped = {*name.particles, *name.suffixes}
        kinds = {part for kind in (*organisation.kinds, *organisation.generic) for part in kind.split()}
        self._org_kept = {*kinds, *language.words.stop, "&"}
        points = {"n", "s", "e", "w", "ne", "nw", "se", "sw", "north", "south", "east", "west"}
        self._place_kept = {
            *address.streets,
            *address.units,
            *address.places,
            *points,
            *language.words.stop,
            "po",
            "p",
            "o",
        }
        births = rf"(?<!\w)(?i:{any_of(language.age.birth)})"
        links = any_of([*language.day_cues, *language.year_cues, *language.date_links])
        self._born = re.compile(rf"{births}[\s:]*(?:(?i:{links})\s+)*$")
        self._make: Mapping[str, Callable[[str], str]] = {
            "name": self._name, "phone": self._phone, "email": self._email, "id": self._shape, "url": self._url,
            "address": self._address, "organisation": self._organisation, "ip": self._ip, "age": self._age,
        }  # fmt: skip

    def replace(
        self, text: str, spans: Sequence[Span], whose: str, *, head: str = "", latest: int = 0
    ) -> tuple[str, list[Put]]:
        """A text with surrogates for spans (in their order, without overlaps).

        whose: by whom dates move; head: what stands before the text, as the name of a fact does; latest: the last year
        that is known from the person's other texts.
        """
        whole = self._whole_dates(text, spans)
        latest = max([latest, *(day.year for _, day in whole)])
        days = self.days(whose)
        out, at, puts = "", 0, []
        for span in spans:
            was = span.inside(text)
            if self._style == "tag":
                new = self._tag(span.type, was)
            elif span.type == "date":
                before = (head + text[: span.start])[-24:]
                new = self._date(was, before, days, nearest(whole, span.start), latest)
            else:
                new = self._make[span.type](was)
            out += text[at : span.start]
            puts.append(Put(span, len(out), len(out) + len(new)))
            out += new
            at = span.end
        return out + text[at:], puts

    def days(self, whose: str) -> int:
        """How far somebody's dates move: 1 to 365 days, either way."""
        number = self._secret.number("days", whose) % (2 * _FURTHEST)
        return number - _FURTHEST if number < _FURTHEST else number - _FURTHEST + 1

    def one(self, kind: str, was: str, whose: str) -> str:
        """The surrogate of a value that stands by itself."""
        span = Span(0, len(was), kind, frozenset(), 1.0)
        return self.replace(was, [span], whose)[0]

    def _whole_dates(self, text: str, spans: Sequence[Span]) -> list[tuple[int, date]]:
        found = []
        for span in spans:
            written = self._dates.read(span.inside(text)) if span.type == "date" else None
            if written is not None and written.whole is not None:
                found.append((span.start, written.whole))
        return found

    def _date(self, was: str, before: str, days: int, near: date | None, latest: int) -> str:
        written = self._dates.read(was)
        if written is None:
            return self._tag("date", was)
        year = written.get("y")
        if self._born.search(before) and year is not None and latest - year >= _OLDEST:
            # The year of birth would say how old somebody over 89 is.
            days += (date(latest - _OLDEST, 1, 1) - date(year, 1, 1)).days
        return self._dates.move(written, days, near)

    def _tag(self, kind: str, was: str) -> str:
        return f"[{kind.upper()}-{self._secret.digest('tag', f'{kind}/{plainly(was)}').hex()[:6]}]"

    def _invented(self, word: str, use: str = "word") -> str:
        """A word of the inventory in the form of another; never the same."""
        for again in range(9):
            number = self._secret.number(use, f"{plainly(word)}/{again}")
            found = STEMS[number % len(STEMS)] + ENDINGS[number // len(STEMS) % len(ENDINGS)]
            if plainly(found) != plainly(word):
                break
        if word.isupper() and len(word) > 1:
            return found.upper()
        return found.lower() if word.islower() else found

    def _name(self, was: str) -> str:
        def one(match: re.Match[str]) -> str:
            word = match.group()
            small = word.lower().strip(".")
            if len(word) == 1:
                return self._letter(word, small)
            stop = small in self._language.words.stop and small not in self._language.ordinary
            if small in self._titles or (stop and (word.islower() or word.isupper())):
                return word
            if small in self._dropped and (word.islower() or small in self._language.name.suffixes):
                return ""
            return self._invented(word)

        was = re.sub(r"\d+", lambda number: self._shape(number[0]), was)
        new = re.sub(r"\s{2,}", " ", _WORD_OR_BREAK.sub(one, was)) if "\n" not in was else _WORD_OR_BREAK.sub(one, was)
        new = new.strip(" ,.")
        return new if re.search(r"\w", new) else self._invented("X")

    def _letter(self, word: str, key: str) -> str:
        letters = "ABCDEFGHIKLMNOPRSTW"
        choice = [letter for letter in letters if letter != word.upper()]
        found = choice[self._secret.number("letter", key) % len(choice)]
        return found if word.isupper() else found.lower()

    def _shape(self, was: str) -> str:
        """Digits for digits and letters for letters; the same whatever stands between them."""
        bare = "".join(c for c in was if c.isalnum())
        for again in range(9):
            stream = self._stream(f"{plainly(bare)}/{again}", len(was))
            new = "".join(_like(c, byte) for c, byte in zip(was, _spread(was, stream), strict=True))
            if was[0] in "123456789":  # a number keeps its length
                new = str(1 + stream[0] % 9) + new[1:]
            if new != was:
                return new
        return self._tag("id", was)

    def _stream(self, text: str, count: int) -> bytes:
        out = b""
        while len(out) < count:
            out += self._secret.digest("shape", f"{text}/{len(out)}")
        return out

    def _phone(self, was: str) -> str:
        tail = _PHONE_TAIL.search(was)
        body = was[: tail.start()] if tail else was
        digits = [c for c in body if c.isdigit()]
        if not digits:
            return self._shape(was)
        stream = self._stream("".join(digits)[-10:], len(digits) + 2)
        new = [str(byte % 10) for byte in stream[: len(digits)]]
        if len(digits) in (10, 11):  # North America's 555-01xx belongs to nobody
            new[-10] = str(2 + stream[0] % 8)
            new[-7:-2] = "55501"
            if len(digits) == 11:
                new[0] = digits[0]
        elif new and new[0] == "0" != digits[0]:
            new[0] = "7"
        if new == digits and new:
            new[-1] = str((int(new[-1]) + 1) % 10)
        rest = iter(new)
        body = "".join(next(rest) if c.isdigit() else c for c in body)
        return body + (re.sub(r"\d+", lambda found: self._shape(found[0]), tail[0]) if tail else "")

    def _email(self, was: str) -> str:
        number = self._secret.number("email", was.lower())
        return f"{self._invented(was.lower(), 'email')}{number % 90 + 10}@example.org"

    def _url(self, was: str) -> str:
        scheme = re.match(r"(?i)[a-z]+://", was)
        return f"{scheme[0] if scheme else ''}www.example.org/{self._secret.digest('url', was.lower()).hex()[:6]}"

    def _ip(self, was: str) -> str:
        number = self._secret.number("ip", was.lower())
        if ":" in was:
            return f"2001:db8::{number % 65535 + 1:x}"
        return f"{_NETS[number % 3]}.{number // 3 % 254 + 1}"

    def _age(self, was: str) -> str:
        older = self._language.age.older
        return older.replace(" ", "-") if "-" in was else older

    def _address(self, was: str) -> str:
        address = self._language.address
        states = [state for state in address.states if len(state) == 2]

        def one(match: re.Match[str]) -> str:
            word = match.group()
            small = word.lower()
            if word[0].isdigit():
                return self._house(word)
            if word in states:
                others = [state for state in states if state != word]
                return others[self._secret.number("state", word) % len(others)]
            return word if small in self._place_kept else self._invented(word)

        regions = [region for region in address.regions if plainly(region) == plainly(was)]
        if regions:
            others = [region for region in address.regions if region not in regions]
            return others[self._secret.number("state", plainly(was)) % len(others)]
        new = _WORD.sub(one, was)
        return new if new != was else self._invented(was if was.isalpha() else "X")

    def _house(self, word: str) -> str:
        """Another number of the same length; 42nd becomes one that ends in th."""
        ending = word.lstrip("0123456789").lower()
        if ending in self._language.ordinal_endings and len(self._language.ordinal_endings) == 4:
            return f"{11 + self._secret.number('ordinal', word) % 9}{self._language.ordinal_endings[-1]}"
        return self._shape(word)

    def _organisation(self, was: str) -> str:
        def one(match: re.Match[str]) -> str:
            word = match.group()
            if word[0].isdigit():
                return self._shape(word)
            if word.lower() in self._org_kept:
                return word
            if word.isupper() and 1 < len(word) <= 5:
                return self._shape(word)
            return self._invented(word)

        new = _WORD.sub(one, was)
        return new if new != was else f"{self._invented(was)} {was.split()[-1]}"


def _spread(was: str, stream: bytes) -> list[int]:
    """The stream's bytes for the letters and digits, so that what stands between does not count."""
    out, at = [], 0
    for c in was:
        out.append(stream[at] if c.isalnum() else 0)
        at += c.isalnum()
    return out


def _like(c: str, byte: int) -> str:
    if c.isdigit():
        return str(byte % 10)
    if not c.isalpha():
        return c
    letter = chr(ord("a") + byte % 26)
    return letter.upper() if c.isupper() else letter
