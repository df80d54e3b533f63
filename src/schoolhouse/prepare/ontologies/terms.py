"""What every code system becomes: terms with codes, names, parents and relations, and the graph that they make."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from schoolhouse.core.config import did_you_mean
from schoolhouse.core.errors import DataError


@dataclass(frozen=True)
class Term:
    """One entry of a code system. parents: codes right above it; relations: by kind, codes of other terms; words: by
    kind, what is no code of the source; place: where it was read.
    """

    code: str
    name: str
    parents: tuple[str, ...] = ()
    relations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    synonyms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    place: str = ""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def clean(text: str) -> str:
    """A name as it is asked and answered: composed characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def key(text: str) -> str:
    """The same for two texts that the verifier `exact` takes for one."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).removesuffix(".").rstrip()


def fraction(*parts: object) -> float:
    """A number in [0, 1) that follows from the parts alone, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def owners(pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """Which codes each text stands for. pairs: text, code."""
    found: dict[str, set[str]] = {}
    for text, code in pairs:
        found.setdefault(key(text), set()).add(code)
    return {text: frozenset(codes) for text, codes in found.items()}


@dataclass(frozen=True)
class Ontology:
    """Terms whose parents are all among them, without cycles.

    source: all terms that could be used, of which `terms` may be a part. by_code, by_name, by_synonym: the codes of all
    terms of the source that a text stands for.
    """

    terms: Mapping[str, Term]
    source: Mapping[str, Term]
    by_code: Mapping[str, frozenset[str]]
    by_name: Mapping[str, frozenset[str]]
    by_synonym: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, terms: Mapping[str, Term]) -> Ontology:
        """The graph of terms that have been checked."""
        each = terms.values()
        return cls(
            terms, terms,
            owners((t.code, t.code) for t in each),
            owners((t.name, t.code) for t in each),
            owners((synonym, t.code) for t in each for synonym in t.synonyms),
        )  # fmt: skip

    @functools.cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The codes right below each term that has any."""
        found: dict[str, list[str]] = {}
        for term in self.terms.values():
            for parent in term.parents:
                found.setdefault(parent, []).append(term.code)
        return {code: tuple(below) for code, below in found.items()}

    @functools.cached_property
    def roots(self) -> tuple[str, ...]:
        """The codes of terms without a parent."""
        return tuple(term.code for term in self.terms.values() if not term.parents)

    def ancestors(self, code: str) -> tuple[str, ...]:
        """Everything in this part that is above a term, the nearest first.

        A part is cut out downwards (`below`), then upwards (`sample`), so that no way between two of its terms leads
        outside.
        """
        return tuple(_walk(self.terms[code].parents, lambda above: self.terms[above].parents))

    def descendants(self, code: str) -> Iterator[str]:
        """Everything below a term, the nearest first, as far as it is asked for."""
        return _walk(self.children.get(code, ()), lambda below: self.children.get(below, ()))

    def beside(self, code: str) -> tuple[str, ...]:
        """The other children of a term's parents; of a root, the other roots."""
        parents = self.terms[code].parents
        rows = [self.children[parent] for parent in parents] if parents else [self.roots]
        return tuple(dict.fromkeys(other for row in rows for other in row if other != code))

    def is_clear(self, name: str) -> bool:
        """Whether a name stands for one term alone."""
        return len(self.by_name[key(name)]) == 1

    def only(self, codes: Iterable[str]) -> Ontology:
        """The part that holds these terms; what leads up and out of it is cut off."""
        kept = set(codes)
        terms = {
            code: replace(term, parents=tuple(p for p in term.parents if p in kept))
            for code, term in self.terms.items()
            if code in kept
        }
        return replace(self, terms=terms)


def _walk(first: Sequence[str], further: Callable[[str], Sequence[str]]) -> Iterator[str]:
    seen = dict.fromkeys(first)
    queue = deque(seen)
    while queue:
        now = queue.popleft()
        yield now
        new = [code for code in further(now) if code not in seen]
        seen |= dict.fromkeys(new)
        queue.extend(dict.fromkeys(new))


def below(whole: Ontology, tops: Sequence[str]) -> Ontology:
    """The terms named by `tops` with all that is below them, or everything where none is named; raises DataError."""
    kept: dict[str, None] = {}
    for top in tops:
        if top not in whole.terms:
            raise DataError(f"below names {top!r}, which is no code of the source{did_you_mean(top, whole.terms)}")
        kept |= dict.fromkeys((top, *whole.descendants(top)))
    return whole.only(kept) if tops else whole


def sample(whole: Ontology, most: int | None, seed: int) -> Ontology:
    """At most so many terms: whole families, each a parent with its children and all that is above them.

    Families come in an order that the seed draws, and only the last is cut short, so that a term has its siblings with
    it, and every parent but that of a root.
    """
    if most is None or most >= len(whole.terms):
        return whole
    kept: set[str] = set()
    for group in _families(whole, seed):
        for code in group:
            needed = [c for c in (*whole.ancestors(code), code) if c not in kept]
            if len(kept) + len(needed) <= most:
                kept |= set(needed)
        if len(kept) >= most:
            break
    return whole.only(kept)


def _families(whole: Ontology, seed: int) -> Iterator[tuple[str, ...]]:
    """Each parent with its children, and each term that has neither parent nor child, in the seed's order."""
    groups = {code: whole.children.get(code, ()) for code in (*whole.roots, *whole.children)}
    for head in sorted(groups, key=lambda code: fraction(seed, "family", code)):
        yield head, *sorted(groups[head], key=lambda code: fraction(seed, "child", code))
