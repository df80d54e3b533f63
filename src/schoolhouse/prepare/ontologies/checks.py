"""Is a code system consistent? What is wrong is counted with its first examples; what cannot be used is set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from schoolhouse.prepare.ontologies.sources import Read
from schoolhouse.prepare.ontologies.terms import Ontology, Term, clean, key
from schoolhouse.text.reply import TAGS

_EXAMPLES = 20  # kept of each finding


@dataclass
class Finding:
    """One kind of trouble: what is done about it, how often it was met, and where first."""

    effect: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


def _findings() -> dict[str, Finding]:
    """Every check there is, in the order in which they are made."""
    return {
        "unreadable rows": Finding("set aside"),
        "terms without a code": Finding("set aside"),
        "terms without a name": Finding("set aside"),
        "terms that hold a tag of the form of replies": Finding("set aside"),
        "rows that say more of a code": Finding("joined with the row before"),
        "codes with two names": Finding("the first row is kept, the others are set aside"),
        "parents that do not exist": Finding("the parent is left out"),
        "cycles": Finding("parents within a cycle are left out"),
        "terms without parent and child": Finding("kept; nothing is asked about where they stand"),
        "relations to codes that do not exist": Finding("the relation is left out"),
        "relations by words": Finding("no cell of the column is a code or name: its words are asked for as they stand"),
        "names of several terms": Finding("kept; never asked by name alone"),
        "codes that differ by case alone": Finding("kept; never asked for"),
        "synonyms that are the name of another term": Finding("not asked"),
        "synonyms of several terms": Finding("not asked"),
    }


def check_terms(read: Read) -> tuple[Ontology, dict[str, Finding]]:
    """The graph of the terms that can be used, and what was found on the way."""
    found = _findings()
    for row in read.bad:
        found["unreadable rows"].add(str(row))
    terms = _parents(_by_code(read.terms, found), found)
    if any(term.parents for term in terms.values()):
        parents = {parent for term in terms.values() for parent in term.parents}
        for term in terms.values():
            if not term.parents and term.code not in parents:
                found["terms without parent and child"].add(f"{term.code} ({term.place})")
    whole = Ontology.of(_relations(terms, found))
    _names(whole, found)
    return whole, found


def _by_code(rows: Iterable[Term], found: Mapping[str, Finding]) -> dict[str, Term]:
    """Terms by their codes, cleaned; rows of the same code and name are joined."""
    terms: dict[str, Term] = {}
    for row in rows:
        term = replace(
            row, code=clean(row.code), name=clean(row.name), parents=_each(row.parents), synonyms=_each(row.synonyms)
        )
        held = terms.get(term.code)
        if not key(term.code):
            found["terms without a code"].add(f"{term.place}: {term.name[:60]!r}")
        elif not key(term.name):
            found["terms without a name"].add(f"{term.place}: {term.code}")
        elif any(tag in text for tag in TAGS for text in (term.code, term.name, *term.synonyms)):
            found["terms that hold a tag of the form of replies"].add(f"{term.place}: {term.code}")
        elif held is None:
            terms[term.code] = term
        elif key(held.name) == key(term.name):
            found["rows that say more of a code"].add(f"{term.place}: {term.code}")
            terms[term.code] = _joined(held, term)
        else:
            found["codes with two names"].add(f"{term.place}: {term.code} is {term.name!r}, was {held.name!r}")
    return {code: replace(term, synonyms=_others(term)) for code, term in terms.items()}


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in map(clean, texts) if key(text)))


def _others(term: Term) -> tuple[str, ...]:
    """Synonyms that are not the name itself, each once."""
    return tuple({key(text): text for text in reversed(term.synonyms) if key(text) != key(term.name)}.values())[::-1]


def _joined(first: Term, second: Term) -> Term:
    kinds = dict.fromkeys([*first.relations, *second.relations])
    return replace(
        first,
        parents=_each((*first.parents, *second.parents)),
        synonyms=_each((*first.synonyms, *second.synonyms)),
        notes=tuple(dict.fromkeys((*first.notes, *second.notes))),
        relations={kind: (*first.relations.get(kind, ()), *second.relations.get(kind, ())) for kind in kinds},
    )


def _parents(terms: Mapping[str, Term], found: Mapping[str, Finding]) -> dict[str, Term]:
    known: dict[str, Term] = {}
    for code, term in terms.items():
        for parent in term.parents:
            if parent not in terms:
                found["parents that do not exist"].add(f"{term.place}: {code} names {parent}")
        known[code] = replace(term, parents=tuple(parent for parent in term.parents if parent in terms))
    for cycle in cycles({code: term.parents for code, term in known.items()}):
        shown = ", ".join(cycle[:8]) + (", ..." if len(cycle) > 8 else "")
        found["cycles"].add(f"{shown} ({known[cycle[0]].place})")
        for code in cycle:
            rest = tuple(parent for parent in known[code].parents if parent not in cycle)
            known[code] = replace(known[code], parents=rest)
    return known


def cycles(parents: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Groups of codes each of which is above all others of its group, and codes that are their own parent.

    Source: Tarjan, "Depth-first search and linear graph algorithms", SIAM J. Comput. 1 (1972), section 4; here without
    recursion, for a chain of parents may be long.
    """
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_codes: dict[str, None] = {}
    for start in parents:
        if start in number:
            continue
        path = [(start, iter(parents[start]))]
        number[start] = lowest[start] = len(number)
        open_codes[start] = None
        while path:
            code, further = path[-1]
            above = next(further, None)
            if above is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[code])
                if lowest[code] == number[code]:
                    group: list[str] = []
                    while not group or group[-1] != code:
                        group.append(open_codes.popitem()[0])
                    if len(group) > 1 or code in parents[code]:
                        yield sorted(group)
            elif above not in number:
                number[above] = lowest[above] = len(number)
                open_codes[above] = None
                path.append((above, iter(parents[above])))
            elif above in open_codes:
                lowest[code] = min(lowest[code], number[above])


def _relations(terms: Mapping[str, Term], found: Mapping[str, Finding]) -> dict[str, Term]:
    """Relations as codes of terms, for which a name will do if it is that of one term alone, or else as words.

    A kind of relation of which no target at all is known is one to words: a drug list need not hold its indications.
    """
    if not any(term.relations for term in terms.values()):
        return dict(terms)
    whole = Ontology.of(terms)

    def code_of(target: str) -> str | None:
        if target in terms:
            return target
        named = whole.by_name.get(key(target), frozenset())
        return next(iter(named)) if len(named) == 1 else None

    kinds: dict[str, bool] = {}
    for term in terms.values():
        for kind, targets in term.relations.items():
            kinds[kind] = kinds.get(kind, False) or any(code_of(clean(target)) for target in targets)
    for kind, has_codes in kinds.items():
        if not has_codes:
            found["relations by words"].add(kind)
    known: dict[str, Term] = {}
    for code, term in terms.items():
        codes: dict[str, tuple[str, ...]] = {}
        words: dict[str, tuple[str, ...]] = {}
        for kind, targets in term.relations.items():
            if not kinds[kind]:
                words[kind] = tuple(text for text in _each(targets) if not any(tag in text for tag in TAGS))
                continue
            pairs = [(target, code_of(target)) for target in _each(targets)]
            for target, known_code in pairs:
                if known_code is None:
                    found["relations to codes that do not exist"].add(f"{term.place}: {code} {kind} {target[:60]}")
            codes[kind] = tuple(dict.fromkeys(c for _, c in pairs if c is not None and c != code))
        known[code] = replace(term, relations=codes, words=words)
    return known


def _names(whole: Ontology, found: Mapping[str, Finding]) -> None:
    def shown(text: str, codes: Iterable[str]) -> str:
        ordered = sorted(codes)
        return f"{text!r}: {', '.join(ordered[:6])}{', ...' if len(ordered) > 6 else ''}"

    for name, codes in whole.by_name.items():
        if len(codes) > 1:
            found["names of several terms"].add(shown(name, codes))
    for codes in whole.by_code.values():
        if len(codes) > 1:
            found["codes that differ by case alone"].add(", ".join(sorted(codes)))
    for synonym, codes in whole.by_synonym.items():
        others = whole.by_name.get(synonym, frozenset()) - codes
        if others:
            found["synonyms that are the name of another term"].add(shown(synonym, codes | others))
        elif len(codes) > 1:
            found["synonyms of several terms"].add(shown(synonym, codes))
