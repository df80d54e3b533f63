"""What can be asked of each term, by kind, and which terms are held out.

A held-out term is a leaf that nothing else refers to, so that no training question can need it: it is neither asked
about there, nor an answer, nor one of the choices. What is above it is taught, and has another child that is taught.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schoolhouse.prepare.ontologies.terms import Ontology, Term, fraction, key
from schoolhouse.prepare.ontologies.wordings import WORDINGS, Kind, held_out_wording, taught_wordings
from schoolhouse.tasks.task import Split

SEEN, TOLD, UNSEEN = "seen", "unseen-told", "unseen"
"""The levels of questions: about terms that are trained on; about terms never met, whose name tells the answer to
anybody who compares its words; and about the other terms never met.
"""
LEVELS = (SEEN, TOLD, UNSEEN)

ANSWERED_BY: Mapping[Kind, str] = {
    "code_to_name": "exact", "name_to_code": "exact", "synonym_to_code": "exact", "parent": "regex", "is_a": "exact",
    "choice": "choice", "relation": "regex",
}  # fmt: skip
"""The verifier of each kind. `regex` where any of several answers is right."""
INFERRED: tuple[Kind, ...] = ("parent", "is_a", "choice")
"""Kinds that can be answered of a term never met, from its name. No code and no relation can be."""

LETTERS = "ABCD"
_NEAR = 24  # terms that are looked at for wrong choices beside a term
_LIKEST = 6  # of these, the likest in words to what is asked for, among which three are drawn
_NEAREST = 3  # steps up to the wider term that is asked for
_LONGEST_WAY = 12  # terms above, in the worked way to a yes or no


def hold_out(whole: Ontology, share: float, seed: int) -> frozenset[str]:
    """The codes of about a share of the terms that can be held out; of one at least, if there is one."""
    targets = {code for term in whole.source.values() for codes in term.relations.values() for code in codes}
    able = [term for term in whole.terms.values() if term.code not in targets and _is_lone_leaf(whole, term)]
    able.sort(key=lambda term: fraction(seed, "held out", term.code))
    held = {term.code for term in able if fraction(seed, "held out", term.code) < share}
    for below in whole.children.values():
        if all(code in held for code in below):
            held.discard(max(below, key=lambda code: fraction(seed, "held out", code)))
    if not held:
        kept = (t.code for t in able if all(len(whole.children[parent]) > 1 for parent in t.parents))
        held = set(list(kept)[:1])
    return frozenset(held)


def _is_lone_leaf(whole: Ontology, term: Term) -> bool:
    """Whether a term has something above it, nothing below, and a name and code that stand for nothing else."""
    return (
        bool(term.parents)
        and term.code not in whole.children
        and whole.is_clear(term.name)
        and len(whole.by_code[key(term.code)]) == 1
    )


@dataclass(frozen=True)
class Asked:
    """One thing to be asked of a term.

    fields: what the wordings are filled with; answers: the right ones, of which any will do; others: codes of all other
    terms that the question or its answer names; options: names to choose from, the right one first; trace: the worked
    way to the answer; is_told: whether comparing words gives the answer.
    """

    code: str
    fields: Mapping[str, str]
    answers: tuple[str, ...]
    others: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    trace: str | None = None
    is_told: bool = False


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _shares_most(text: str, right: str, wrong: Sequence[str]) -> bool:
    """Whether the right text shares more words with a text than any wrong one does."""
    words = _words(text)
    return len(words & _words(right)) > max(len(words & _words(other)) for other in wrong)


@dataclass(frozen=True)
class Row:
    """A question as it is asked, with the answer as a pupil should say it."""

    split: Split
    level: str
    question: str
    said: str
    asked: Asked
    wording: int

    def to_task(self, kind: Kind) -> dict[str, Any]:
        """As a row of a task's file."""
        regex = ANSWERED_BY[kind] == "regex"
        row: dict[str, Any] = {
            "question": self.question, "answer": any_of(self.asked.answers) if regex else self.said,
            "level": self.level, "split": self.split,
        }  # fmt: skip
        if self.asked.trace is not None and self.split == "train":
            row["trace"] = self.asked.trace
        meta = {"code": self.asked.code, "others": list(self.asked.others), "wording": self.wording}
        return row | {"meta": meta | ({"answers": list(self.asked.answers)} if regex else {})}


def any_of(answers: Sequence[str]) -> str:
    """A pattern that matches any of some texts, whatever their case and spaces, with a full stop or without."""
    each = (r"\s+".join(map(re.escape, answer.removesuffix(".").split())) for answer in answers)
    return f"(?i)(?:{'|'.join(each)})\\s*\\.?"


@dataclass
class Questions:
    """The questions of one ontology. left_out: why terms gave none, by kind."""

    whole: Ontology
    held: frozenset[str]
    title: str
    share: float
    seed: int
    left_out: dict[Kind, Counter[str]] = field(default_factory=dict)

    def rows(self, kind: Kind, wordings: int) -> Iterator[Row]:
        """All questions of a kind, each once: those to train on in so many wordings, then those to test, by level."""
        self.left_out[kind] = Counter()
        taught = {code: asked for code in self.whole.terms if code not in self.held if (asked := self.of(kind, code))}
        is_inferred = kind in INFERRED and taught  # what nothing teaches can't be inferred either
        unseen = [asked for code in sorted(self.held) for asked in self.of(kind, code)] if is_inferred else []
        given: set[str] = set()
        for row in self._each(kind, taught, unseen, wordings):
            if row.question in given:
                self.left_out[kind]["the same question stands already"] += 1
                continue
            given.add(row.question)
            yield row

    def _each(
        self, kind: Kind, taught: Mapping[str, list[Asked]], unseen: Sequence[Asked], wordings: int
    ) -> Iterator[Row]:
        def order(asked: Asked) -> list[int]:
            return taught_wordings(kind, self.seed, f"{asked.code}/{sorted(asked.fields.items())}")

        for each in taught.values():
            for asked in each:
                for turn, wording in enumerate(order(asked)[:wordings]):
                    yield self._row(kind, asked, wording, "train", SEEN, turn)
        places = {code: fraction(self.seed, "recalled", kind, code) for code in taught}
        recalled = {code for code, place in places.items() if place < self.share}
        recalled |= set(sorted(places, key=places.__getitem__)[:1])
        for code in taught:
            for asked in taught[code] if code in recalled else ():
                yield self._row(kind, asked, held_out_wording(kind, self.seed), "test", SEEN)
        for asked in sorted(unseen, key=lambda asked: not asked.is_told):
            yield self._row(kind, asked, order(asked)[0], "test", TOLD if asked.is_told else UNSEEN)

    def _row(self, kind: Kind, asked: Asked, wording: int, split: Split, level: str, turn: int = 0) -> Row:
        fields = dict(asked.fields)
        said = asked.answers[turn % len(asked.answers)]
        if asked.options:
            mixed = sorted(asked.options, key=lambda name: fraction(self.seed, "option", asked.code, wording, name))
            fields["options"] = "\n".join(f"{a}) {name}" for a, name in zip(LETTERS, mixed, strict=True))
            said = LETTERS[mixed.index(asked.options[0])]
        question = WORDINGS[kind][wording].format(title=self.title, **fields)
        return Row(split, level, question, said, asked, wording)

    def of(self, kind: Kind, code: str) -> list[Asked]:
        """What is asked of a term; nothing, with the reason counted, where it could not be told from another."""
        term, whole = self.whole.terms[code], self.whole
        if kind in ("code_to_name", "name_to_code", "synonym_to_code") and len(whole.by_code[key(code)]) > 1:
            return self._none(kind, "a code that differs from another by case alone")
        if kind == "code_to_name":
            return [Asked(code, {"code": code}, (term.name,))]
        if kind == "synonym_to_code":
            return self._synonyms(term)
        if kind == "relation" and not term.relations and not term.words:
            return []
        if not whole.is_clear(term.name):
            return self._none(kind, "a name that several terms have")
        if kind == "name_to_code":
            return [Asked(code, {"name": term.name}, (code,))]
        if kind == "relation":
            return self._relations(term)
        if not term.parents:
            return self._none(kind, "nothing above it")
        if kind == "parent":
            above = whole.source[code].parents  # also those outside of this part: they are right as well
            names = tuple(whole.source[parent].name for parent in above)
            is_told = any(_words(name) <= _words(term.name) for name in names)
            return [Asked(code, {"name": term.name}, names, above, is_told=is_told)]
        return self._is_a(term) if kind == "is_a" else self._choice(term)

    def _none(self, kind: Kind, reason: str) -> list[Asked]:
        self.left_out[kind][reason] += 1
        return []

    def _synonyms(self, term: Term) -> list[Asked]:
        found = []
        for synonym in term.synonyms:
            if len(self.whole.by_synonym[key(synonym)]) > 1 or key(synonym) in self.whole.by_name:
                self.left_out["synonym_to_code"]["a synonym that stands for another term, too"] += 1
            else:
                found.append(Asked(term.code, {"synonym": synonym}, (term.code,)))
        return found

    def _relations(self, term: Term) -> list[Asked]:
        found: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for kind, codes in term.relations.items():
            names = tuple(self.whole.source[code].name for code in codes)
            found.append((kind, names, codes))
        found += [(kind, words, ()) for kind, words in term.words.items()]
        return [
            Asked(term.code, {"name": term.name, "relation": kind.replace("_", " ")}, answers, codes)
            for kind, answers, codes in found
            if answers
        ]

    def _is_a(self, term: Term) -> list[Asked]:
        """Yes of something above the term, no of something beside that: near, and a group as well."""
        whole, above = self.whole, self.whole.ancestors(term.code)
        groups = [code for code in above if whole.is_clear(whole.terms[code].name)][:_NEAREST]
        if not groups:
            return self._none("is_a", "a name that several terms have, above it")
        right = groups[int(fraction(self.seed, "above", term.code) * len(groups))]
        wrong = self._beside(term, right, above)
        if wrong is None:
            return self._none("is_a", "nothing beside it to tell it from")
        is_told = _shares_most(term.name, whole.terms[right].name, [whole.terms[wrong].name])
        found = []
        for code, answer in ((right, "yes"), (wrong, "no")):
            other = whole.terms[code].name
            trace = None
            if len(above) <= _LONGEST_WAY:
                way = "; ".join(whole.terms[c].name for c in above)
                trace = f'Above "{term.name}" stand: {way}. "{other}" is {"" if answer == "yes" else "not "}among them.'
            found.append(Asked(term.code, {"name": term.name, "other": other}, (answer,), (code,), (), trace, is_told))
        return found

    def _beside(self, term: Term, right: str, above: Sequence[str]) -> str | None:
        """A group that is not above a term, as near to one that is as there is; or else a term beside it."""
        taken = {term.code, *above}
        for top in (right, *self.whole.ancestors(right)):
            near = [code for code in self._clear_beside(top) if code in self.whole.children and code not in taken]
            if near:
                return near[int(fraction(self.seed, "beside", term.code) * len(near))]
        same = [c for c in self._clear_beside(term.code) if (c in self.held) == (term.code in self.held)]
        same = [code for code in same if code not in taken]
        return same[int(fraction(self.seed, "beside", term.code) * len(same))] if same else None

    def _clear_beside(self, code: str) -> list[str]:
        return [other for other in self.whole.beside(code) if self.whole.is_clear(self.whole.terms[other].name)]

    def _choice(self, term: Term) -> list[Asked]:
        clear = [parent for parent in term.parents if self.whole.is_clear(self.whole.terms[parent].name)]
        if not clear:
            return self._none("choice", "a name that several terms have, above it")
        parent = clear[int(fraction(self.seed, "under", term.code) * len(clear))]
        near = self._near(parent, term.code in self.held)
        if len(near) < len(LETTERS) - 1:
            return self._none("choice", "too few terms of its split to choose from")
        drawn = sorted(near, key=lambda code: fraction(self.seed, "wrong", term.code, code))[: len(LETTERS) - 1]
        options = tuple(self.whole.terms[code].name for code in (term.code, *drawn))
        other = self.whole.terms[parent].name
        is_told = _shares_most(other, options[0], options[1:])
        return [Asked(term.code, {"other": other}, options[:1], (parent, *drawn), options, is_told=is_told)]

    @functools.cached_property
    def _found_near(self) -> dict[tuple[str, bool], tuple[str, ...]]:
        return {}

    def _near(self, parent: str, held: bool) -> tuple[str, ...]:
        """Terms of one split that are not below a parent, but near it in place and words."""
        known = self._found_near.get((parent, held))
        if known is None:
            wanted = _words(self.whole.terms[parent].name)
            near = itertools.islice(self._look_near(parent, held), _NEAR)
            likest = sorted(near, key=lambda code: -len(wanted & _words(self.whole.terms[code].name)))
            known = self._found_near[parent, held] = tuple(likest[:_LIKEST])
        return known

    def _look_near(self, parent: str, held: bool) -> Iterator[str]:
        """Terms that are not below a parent: first those below its siblings, then those further away."""
        given: set[str] = set()
        for top in (parent, *self.whole.ancestors(parent)):
            for uncle in sorted(self.whole.beside(top), key=lambda code: fraction(self.seed, "uncle", parent, code)):
                below = self.whole.descendants(uncle) if uncle in self.whole.children else (uncle,)
                for code in below:
                    fits = (code in self.held) == held and self.whole.is_clear(self.whole.terms[code].name)
                    if fits and code not in given and parent not in self.whole.ancestors(code):
                        given.add(code)
                        yield code
