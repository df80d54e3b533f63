"""What the rules know of a language: lists of words from TOML files, so that a language is added without a program."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from schoolhouse.core.errors import DataError, RecipeError

SHIPPED = Path(__file__).with_name("languages")
"""The folder of the rules files that come with the program, one a language."""

Words = tuple[str, ...]
_POSSESSIVE = ("'s", "\u2019s")


class Table(BaseModel):
    """A table of a rules file: frozen, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))


class Ages(Table):
    """How an age is written: what stands before and after the number, from 90 on as words, and what replaces it."""

    before: Words = ()
    after: Words = ()
    words: Words = ()
    older: str = "90+"
    birth: Words = ()
    links: Words = ()
    subjects: Words = ()
    possessives: Words = ()
    nineties: Words = ()
    sexes: Words = ()


class Names(Table):
    """What stands before, in and behind people's names, and the names that are common words as well."""

    titles: Words = ()
    doubtful_titles: Words = ()
    credentials: Words = ()
    suffixes: Words = ()
    particles: Words = ()
    strong_labels: Words = ()
    labels: Words = ()
    cues: Words = ()
    weak_cues: Words = ()
    relations: Words = ()
    ordinary: Words = ()


class Ids(Table):
    """What stands before a number that names somebody."""

    labels: Words = ()
    number_words: Words = ()
    digits: Words = ()
    vehicles: Words = ()
    logins: Words = ()


class Phones(Table):
    """What stands before a phone number."""

    labels: Words = ()


class Addresses(Table):
    """Parts of addresses, and what stands before a place."""

    streets: Words = ()
    street_heads: Words = ()
    street_tails: Words = ()
    units: Words = ()
    labels: Words = ()
    cues: Words = ()
    states: Words = ()
    regions: Words = ()
    places: Words = ()


class Organisations(Table):
    """The last words of organisations' names, what stands before them, and words that make no name."""

    kinds: Words = ()
    doubtful_kinds: Words = ()
    heads: Words = ()
    cues: Words = ()
    generic: Words = ()
    departments: Words = ()


class Numbers(Table):
    """Words beside numbers that are quantities or scores."""

    units: Words = ()
    doubtful_units: Words = ()
    codes: Words = ()
    measures: Words = ()
    doubtful_measures: Words = ()
    scores: Words = ()


class Vocabulary(Table):
    """Words that are nobody's: function words, headings, drugs, and names that became words of medicine."""

    stop: Words = ()
    headings: Words = ()
    drugs: Words = ()
    eponyms: Words = ()
    eponym_after: Words = ()
    abbreviations: Words = ()
    endings: Words = ()


class Pattern(Table):
    """A regular expression of one's own, such as the form of a hospital's numbers; its group `x` is what counts."""

    type: str
    regex: str
    score: float = 0.9


class Language(Table):
    """One language, as its rules files describe it."""

    code: str
    spacy: str | None = None
    date_order: Literal["mdy", "dmy", "ymd"] = "dmy"
    vocabularies: tuple[Literal["icd10cm"], ...] = ()
    months: tuple[Words, ...] = ()
    weekdays: tuple[Words, ...] = ()
    doubtful_dates: Words = ()
    date_cues: Words = ()
    date_followers: Words = ()
    ordinals: Words = ()
    ordinal_endings: Words = ()
    date_links: Words = ()
    day_cues: Words = ()
    year_cues: Words = ()
    ordinals_before: Words = ()
    holidays: Mapping[str, str] = {}
    age: Ages = Ages()
    name: Names = Names()
    id: Ids = Ids()
    phone: Phones = Phones()
    address: Addresses = Addresses()
    organisation: Organisations = Organisations()
    numbers: Numbers = Numbers()
    words: Vocabulary = Vocabulary()
    pattern: tuple[Pattern, ...] = ()

    @cached_property
    def ordinary(self) -> frozenset[str]:
        """Names that are common words as well."""
        return frozenset(self.name.ordinary)

    @cached_property
    def eponyms(self) -> frozenset[str]:
        """Names that became words of medicine."""
        return frozenset(self.words.eponyms) | _medical(self.vocabularies)[1]

    @cached_property
    def plain(self) -> frozenset[str]:
        """Words that are nobody's name, in small letters."""
        words, name, organisation = self.words, self.name, self.organisation
        held = {*words.stop, *words.headings, *words.drugs, *name.titles, *name.doubtful_titles, *name.relations}
        held |= {*name.labels, *organisation.departments, *organisation.generic, *self.numbers.measures}
        held |= {w.lower() for w in name.credentials} | {w for month in (*self.months, *self.weekdays) for w in month}
        single = {part for phrase in held for part in phrase.split()}
        certain = {*words.stop, *words.headings, *words.drugs}
        return frozenset((single | _medical(self.vocabularies)[0]) - (self.ordinary - certain))

    def is_plain(self, word: str) -> bool:
        """Whether a word, whatever its case, is nobody's name."""
        small = word.lower().strip(".,;:()'\u2019\"")
        for ending in _POSSESSIVE:
            small = small.removesuffix(ending)
        if "-" in small:
            return all(self.is_plain(piece) for piece in small.split("-"))
        if not small or small in self.plain:
            return True
        return small.endswith("s") and small[:-1] in self.plain and small not in self.ordinary

    def is_common(self, words: Sequence[str]) -> bool:
        """Whether words that are written small are those of the language, though some are names as well: `white`."""
        return all(word.islower() and (self.is_plain(word) or word in self.ordinary) for word in words)

    def is_term(self, word: str) -> bool:
        """Whether a word is plain, or ends as words of medicine do."""
        small = word.lower()
        long = any(small.endswith(ending) and len(small) > len(ending) + 2 for ending in self.words.endings)
        return long or small in self.words.abbreviations or self.is_plain(word)

    def is_eponym(self, text: str, start: int, end: int) -> bool:
        """Whether words are said of everybody where they stand: `Wilson disease`, `Rankin 3`, but not `Wilson`."""
        found = list(re.finditer(r"[^\W\d_]+(?:['\u2019\-][^\W\d_]+)*", text[start:end]))
        words = [word.group() for word in found if not re.fullmatch(r"[IVX]+|['\u2019]?s", word.group())]
        parts = [part.removesuffix("'s").removesuffix("\u2019s") for word in words for part in (word.lower(),)]
        if not words or not all(self.is_plain(w) or w in self.eponyms for w in parts):
            return False
        behind = text[start + found[-1].end() : end + 40]
        if len(words) < len(found) or words[-1].lower() != parts[-1] or parts[-1] in self._after:
            return True
        if re.match(r"['\u2019]s\b|[ \t]*[:\d]|[ \t]+[IVX]+\b|[ \t]+n/a", behind):
            return True
        follows = re.match(r"[ \t\-]+(?:and|or|/)?[ \t]*([^\W\d_]+)", behind)
        return follows is not None and (follows[1].lower() in self._after or follows[1].lower() in self.eponyms)

    @cached_property
    def _after(self) -> frozenset[str]:
        return frozenset(self.words.eponym_after) | frozenset(self.words.headings)


def load_languages(own: Sequence[str]) -> dict[str, Language]:
    """The languages by their codes: those that are shipped, with the rules files of one's own added to them.

    Raises DataError for a file that is no rules file, RecipeError for one that is not there.
    """
    raw = {table["code"]: table for table in map(_read, sorted(SHIPPED.glob("*.toml")))}
    for name in own:
        table = _read(Path(name))
        raw[table["code"]] = _added(raw.get(table["code"], {}), table)
    found = {}
    for code, table in raw.items():
        try:
            found[code] = Language.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DataError(f"the rules of {code!r}: {place}: {first['msg']}; see docs/redaction.md") from None
    return found


def rules_files(own: Iterable[str]) -> list[Path]:
    """Every rules file that counts, for a fingerprint."""
    return [*sorted(SHIPPED.glob("*.toml")), *map(Path, own)]


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"rules: there is no file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is no rules file: {error}") from None
    if not isinstance(table.get("code"), str):
        raise DataError(f'{path}: the rules file does not say of which language it is: code = "en"')
    return table


def _added(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """One rules file on top of another: lists grow, tables are gone through, single values are replaced."""
    out = dict(base)
    for key, value in more.items():
        held = out.get(key)
        if isinstance(value, dict) and isinstance(held, dict):
            out[key] = _added(held, value)
        elif isinstance(value, list) and isinstance(held, list) and key not in ("months", "weekdays"):
            out[key] = [*held, *value]
        else:
            out[key] = value
    return out


_MEDICAL: dict[tuple[str, ...], tuple[frozenset[str], frozenset[str]]] = {}


def _medical(names: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Words of medical vocabularies: those that are written small somewhere, and those that never are (eponyms).

    Source: ICD-10-CM's descriptions, out of `simple-icd-10-cm`; without that package only the shipped lists count.
    """
    if names not in _MEDICAL:
        small: set[str] = set()
        large: set[str] = set()
        if "icd10cm" in names and importlib.util.find_spec("simple_icd_10_cm"):
            import simple_icd_10_cm as icd

            for code in icd.get_all_codes():
                for word in icd.get_description(code).replace("/", " ").replace("-", " ").split()[1:]:
                    bare = word.strip("()[],;:.'\u2019\"")
                    if bare.isalpha() and len(bare) > 2 and not (bare.isupper() and len(bare) < 5):
                        (small if bare.islower() else large).add(bare.lower())
        _MEDICAL[names] = frozenset(small), frozenset(large - small)
    return _MEDICAL[names]
