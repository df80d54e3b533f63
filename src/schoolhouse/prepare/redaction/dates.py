"""Dates moved by a number of days: the form stays, and whatever is whole stays possible.

What is missing of a date (the year of 9/30, the month of "the 15th") is taken from the nearest whole date of the text,
so that it moves with it.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from schoolhouse.prepare.redaction.language import Language

_YEAR = re.compile(r"(?:19|20)\d{2}")
_NUMERIC = re.compile(r"(?P<a>\d{1,4})(?P<s>[\-./])(?P<b>\d{1,2})(?P=s)['\u2019]?(?P<c>\d{4}|\d{1,2})(?!\d)")
_PAIR = re.compile(r"(?P<a>\d{1,2})(?P<s>[/\-])(?P<b>\d{4}|\d{1,2})(?!\d)")
_COMPACT = re.compile(r"(?P<y>(?:19|20)\d{2})(?P<m>\d{2})(?P<d>\d{2})(?!\d)")
_PIVOT = 50  # 49 is 2049, 50 is 1950
_MIDDLE = 15  # the day that stands for a month


@dataclass(frozen=True)
class Token:
    """A part of a written date: the place in it, the value, and what it is: y, m, d, w(eekday) or h(oliday)."""

    start: int
    end: int
    kind: str
    value: int


@dataclass(frozen=True)
class Written:
    """A date as it is written, taken apart."""

    text: str
    tokens: tuple[Token, ...]

    def get(self, kind: str) -> int | None:
        """The first value of a kind, if it is there."""
        return next((token.value for token in self.tokens if token.kind == kind), None)

    @property
    def whole(self) -> date | None:
        """The day, if year, month and day are there."""
        year, month, day = self.get("y"), self.get("m"), self.get("d")
        if year is None or month is None or day is None:
            return None
        return date(year, month, min(day, calendar.monthrange(year, month)[1]))


class Dates:
    """Reads and moves the dates of one language."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._months = {word: i for i, month in enumerate(language.months, 1) for word in month}
        self._days = {word: i for i, day in enumerate(language.weekdays) for word in day}
        self._ordinals = {word: i for i, word in enumerate(language.ordinals, 1)}
        endings = "|".join(map(re.escape, language.ordinal_endings)) or "(?!)"
        ordinals = "|".join(re.escape(w) for w in sorted(self._ordinals, key=len, reverse=True)) or "(?!)"
        self._word = re.compile(
            rf"(?P<y>(?:19|20)\d{{2}})(?!\d)|['\u2019](?P<y2>\d{{2}})(?!\d)|(?P<d>\d{{1,2}})(?i:{endings})?(?!\d)"
            rf"|(?P<o>(?i:{ordinals}))(?![^\W\d_])|(?P<w>[^\W\d_]+)"
        )

    def read(self, text: str) -> Written | None:
        """Take a written date apart; None if it can't be read."""
        found = self._holiday(text) or _compact(text) or self._numeric(text) or self._pair(text) or self._worded(text)
        return Written(text, tuple(found)) if found and _possible(found) else None

    def move(self, written: Written, days: int, near: date | None) -> str:
        """Write a date that lies so many days later in the same form; near: a whole date that it belongs to."""
        starts = [token for token in written.tokens if token.kind == "d"]
        moved = _moved(written, starts[0].value if starts else None, days, near)
        out, at = "", 0
        for token in written.tokens:
            day = moved
            if token.kind == "d" and token is not starts[0]:
                day = _moved(written, token.value, days, near)
            piece = self._render(written, token, day, days)
            if token.kind == "d" and token is not starts[0] and day.month != moved.month and written.get("m"):
                piece = self._in_next_month(written, piece, day)
            out += written.text[at : token.start] + piece
            at = token.end
        return out + written.text[at:]

    def _in_next_month(self, written: Written, piece: str, day: date) -> str:
        """The second day of March 30 to 2 stands in another month, which has to be said."""
        month = next(token for token in written.tokens if token.kind == "m")
        word = self._render(written, month, day, 0)
        return f"{word} {piece}" if not word.isdigit() else f"{word}/{piece}"

    def _render(self, written: Written, token: Token, day: date, days: int) -> str:
        was = written.text[token.start : token.end]
        if token.kind == "y":
            return str(day.year) if len(was) == 4 else f"{day.year % 100:02}"
        if token.kind == "h":
            return f"{self._language.months[day.month - 1][0].title()} {day.day}"
        if token.kind == "w":
            return _as(was, self._language.weekdays[(token.value + days) % 7], self._days)
        if token.kind == "m" and not was.isdigit():
            return _as(was, self._language.months[day.month - 1], self._months)
        number = day.month if token.kind == "m" else day.day
        if was[0].isdigit():
            padded = was.startswith("0") or _is_padded(written)
            digits = f"{number:02}" if padded else str(number)
            return digits + self._ending(number, was)
        return _as(was, (self._language.ordinals[number - 1],), self._ordinals)

    def _ending(self, number: int, was: str) -> str:
        """The ending of an ordinal number: st, nd, rd, th."""
        if was.isdigit():
            return ""
        endings = self._language.ordinal_endings
        which = number % 10 if number % 10 in (1, 2, 3) and number not in (11, 12, 13) else 0
        ending = endings[which - 1 if which else -1] if len(endings) == 4 else endings[0]
        return ending.upper() if was[-1].isupper() else ending

    def _holiday(self, text: str) -> list[Token] | None:
        small = text.lower().replace("\u2019", "'")
        held = self._language.holidays.get(" ".join(small.split()))
        if held is None:
            return None
        month, day = map(int, held.split("-"))
        return [Token(0, len(text), "h", 100 * month + day)]

    def _numeric(self, text: str) -> list[Token] | None:
        found = _NUMERIC.search(text)
        if found is None:
            return None
        a, b, c = (int(found[name]) for name in "abc")
        if len(found["a"]) == 4:
            kinds = "ymd"
        elif a > 12 or (self._language.date_order == "dmy" and b <= 12):
            kinds = "dmy"
        else:
            kinds = "mdy" if b <= 31 else "dmy"
        values = [_century(v) if kind == "y" else v for kind, v in zip(kinds, (a, b, c), strict=True)]
        tokens = [Token(*found.span(n), kind, v) for n, kind, v in zip("abc", kinds, values, strict=True)]
        return [*self._weekdays(text, found.start()), *tokens]

    def _pair(self, text: str) -> list[Token] | None:
        found = _PAIR.search(text)
        if found is None or self._months.keys() & set(re.findall(r"[^\W\d_]+", text.lower())):
            return None
        a, b = int(found["a"]), int(found["b"])
        if len(found["b"]) == 4:
            kinds = "my"
        else:
            kinds = "dm" if a > 12 or (self._language.date_order == "dmy" and b <= 12) else "md"
        tokens = [Token(*found.span(n), kind, v) for n, kind, v in zip("ab", kinds, (a, b), strict=True)]
        return [*self._weekdays(text, found.start()), *tokens]

    def _weekdays(self, text: str, before: int) -> list[Token]:
        words = re.finditer(r"[^\W\d_]+", text[:before])
        return [Token(*w.span(), "w", self._days[w[0].lower()]) for w in words if w[0].lower() in self._days]

    def _worded(self, text: str) -> list[Token]:
        tokens: list[Token] = []
        for found in self._word.finditer(text):
            kinds = {token.kind for token in tokens}
            word = found[0].lower()
            if found["y"]:
                tokens.append(Token(*found.span(), "y", int(found["y"])))
            elif found["y2"]:
                tokens.append(Token(*found.span("y2"), "y", _century(int(found["y2"]))))
            elif found["d"]:
                bare = found["d"]
                late = "m" in kinds and text[found.start() - 1 : found.start()] in ("-", "/") and len(bare) == 2
                last = found.end() == len(text) and found[0].isdigit()
                if late and last and ("d" in kinds or int(bare) > 31):
                    tokens.append(Token(*found.span(), "y", _century(int(bare))))
                else:
                    tokens.append(Token(*found.span(), "d", int(bare)))
            elif found["o"]:
                tokens.append(Token(*found.span(), "d", self._ordinals[word]))
            elif word in self._months and "m" not in kinds:
                tokens.append(Token(*found.span(), "m", self._months[word]))
            elif word in self._days or word.removesuffix("s") in self._days:
                bare = word if word in self._days else word[:-1]
                tokens.append(Token(found.start(), found.start() + len(bare), "w", self._days[bare]))
        return tokens


def _compact(text: str) -> list[Token] | None:
    found = _COMPACT.match(text)
    return [Token(*found.span(kind), kind, int(found[kind])) for kind in "ymd"] if found else None


def _century(year: int) -> int:
    return year if year > 99 else year + (2000 if year < _PIVOT else 1900)


def _possible(tokens: Sequence[Token]) -> bool:
    months = [t.value for t in tokens if t.kind == "m"]
    days = [t.value for t in tokens if t.kind == "d"]
    return all(1 <= m <= 12 for m in months) and all(1 <= d <= 31 for d in days)


def _moved(written: Written, day: int | None, days: int, near: date | None) -> date:
    """The day that is meant, as far as it is said, so many days later."""
    year = written.get("y")
    month = written.get("m")
    feast = written.get("h")
    if feast is not None:
        month, day = divmod(feast, 100)
    if year is None:
        year = near.year if near else 2001
        if month == 2 and day == 29 and not calendar.isleap(year):
            year += 4 - year % 4 if calendar.isleap(year + 4 - year % 4) else 8 - year % 4
    if month is None:
        month = near.month if near and day is not None else 7
        if day is not None and day > calendar.monthrange(year, month)[1]:
            month = 7
        day = 1 if day is None else day
    day = min(day or _MIDDLE, calendar.monthrange(year, month)[1])
    return date(year, month, day) + timedelta(days=days)


def _is_padded(written: Written) -> bool:
    """Whether numbers below ten are written with a nought: one of them is, or the year comes first."""
    numbers = [
        (t.kind, written.text[t.start : t.end]) for t in written.tokens if written.text[t.start : t.end].isdigit()
    ]
    if any(len(digits) == 2 and digits[0] == "0" for kind, digits in numbers if kind in "md"):
        return True
    ordered = [kind for kind, _ in numbers]
    return ordered == ["y", "m", "d"] and not any(len(digits) == 1 for _, digits in numbers)


def _as(was: str, forms: Sequence[str], known: dict[str, int]) -> str:
    """A word in the form of another: as short, as large."""
    number = known.get(was.lower())
    same = [word for word in known if known[word] == number]
    short = bool(same) and was.lower() != same[0] and len(forms) > 1
    word = min(forms[1:], key=lambda form: abs(len(form) - len(was))) if short else forms[0]
    if was.isupper() and len(was) > 1:
        return word.upper()
    return word.title() if was[:1].isupper() else word


def nearest(whole: Sequence[tuple[int, date]], place: int) -> date | None:
    """The whole date that stands last before a place, or else the first one behind it."""
    before = [day for at, day in whole if at <= place]
    return before[-1] if before else (whole[0][1] if whole else None)
