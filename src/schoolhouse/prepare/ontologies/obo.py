"""Reads ontologies in the OBO format, stanza by stanza: codes, names, parents, relations, exact synonyms, definitions.

Only the tags that are needed are looked at, so that a term with an odd cross-reference is kept. A stanza in which one
of those cannot be read is set aside with its line, and the rest is read on.

Source: OBO Flat File Format 1.4, https://owlcollab.github.io/oboformat/doc/GO.format.obo-1_4.html
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from schoolhouse.core.errors import DataError
from schoolhouse.prepare.ontologies.terms import Term
from schoolhouse.text.records import BadRow

_ESCAPES = {"n": "\n", "t": "\t", "W": " "}
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^",{}]*)'
_MODIFIERS = re.compile(rf"\s*\{{\s*(?:[^\s=,{{}}\"]+={_VALUE}(?:\s*,\s*[^\s=,{{}}\"]+={_VALUE})*)?\s*\}}\s*$")
# What stands before a comment. A quote opens a text only where the format has one: at the start of a value, behind a
# space, or behind the `=` of a modifier; one inside a word, such as the sign for inches, opens nothing.
_BODY = re.compile(r'(?:\\.|(?<![^\s:=\[])"(?:[^"\\]|\\.)*"|[^!\\])*\\?')
_SCOPES = ("EXACT", "BROAD", "NARROW", "RELATED")


@dataclass
class Obo:
    """What a file holds; bad: stanzas that could not be read; obsolete: terms that are no longer in use."""

    terms: list[Term] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    obsolete: int = 0


@dataclass
class _Stanza:
    kind: str
    line: int
    tags: list[tuple[int, str, str]] = field(default_factory=list)
    problem: str | None = None


def read_obo(path: Path) -> Obo:
    """Read a file. Relations get the names that its Typedef stanzas give them. Raises DataError if it cannot be opened.

    A term that names another as `intersection_of` or under `alt_id` is not read as related to it.
    """
    found, labels = Obo(), dict[str, str]()
    try:
        with path.open("rb") as file:
            for stanza in _stanzas(_logical(file)):
                _take(stanza, path, found, labels)
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}. Give the path of an .obo file.") from error
    found.terms = [_named(term, labels) for term in found.terms]
    return found


def _take(stanza: _Stanza, path: Path, found: Obo, labels: dict[str, str]) -> None:
    if stanza.kind not in ("Term", "Typedef"):
        return
    try:
        if stanza.problem:
            raise DataError(stanza.problem)
        if stanza.kind == "Typedef":
            name = _one(stanza, "name")
            labels[_one(stanza, "id") or ""] = name or ""
        elif any(tag == "is_obsolete" and value.startswith("true") for _, tag, value in stanza.tags):
            found.obsolete += 1
        else:
            found.terms.append(_term(stanza))
    except DataError as error:
        found.bad.append(BadRow(path.name, stanza.line, f"{stanza.kind}: {error}"))


def _term(stanza: _Stanza) -> Term:
    code = _one(stanza, "id")
    if not code:
        raise DataError("no id")
    parents, synonyms, notes, relations = [], [], [], dict[str, list[str]]()
    for line, tag, value in stanza.tags:
        if tag == "is_a":
            parents.append(_unescape(_bare(value)))
        elif tag == "relationship":
            kind, _, target = _bare(value).partition(" ")
            if not target.strip():
                raise DataError(f"line {line}: a relationship needs a kind and a term, this is {value[:60]!r}")
            relations.setdefault(_unescape(kind), []).append(_unescape(target.strip()))
        elif tag in ("synonym", "exact_synonym"):
            text, rest = _quoted(value, line)
            if tag == "exact_synonym" or _scope(rest) == "EXACT":
                synonyms.append(text)
        elif tag == "def":
            notes.append(_quoted(value, line)[0])
        elif tag == "comment":
            notes.append(_unescape(_bare(value)))
    kinds = {kind: tuple(targets) for kind, targets in relations.items()}
    name = _one(stanza, "name") or ""
    return Term(code, name, tuple(parents), kinds, tuple(synonyms), tuple(notes), f"line {stanza.line}")


def _named(term: Term, labels: dict[str, str]) -> Term:
    """The term with its relations under the names that people read."""
    kinds: dict[str, tuple[str, ...]] = {}
    for kind, targets in term.relations.items():
        label = labels.get(kind) or kind
        kinds[label] = (*kinds.get(label, ()), *targets)
    return Term(term.code, term.name, term.parents, kinds, term.synonyms, term.notes, term.place)


def _one(stanza: _Stanza, wanted: str) -> str | None:
    values = [_unescape(_bare(value)) for _, tag, value in stanza.tags if tag == wanted]
    if len(set(values)) > 1:
        raise DataError(f"{len(values)} lines {wanted!r} that differ")
    return values[0] if values else None


def _quoted(value: str, line: int) -> tuple[str, str]:
    match = _QUOTED.match(value)
    if match is None:
        raise DataError(f"line {line}: no text between double quotes in {value[:60]!r}")
    return _unescape(match[1]), value[match.end() :]


def _scope(rest: str) -> str:
    """How near a synonym is; where nothing is said the format calls it related."""
    words = rest.split(maxsplit=1)
    return words[0] if words and words[0] in _SCOPES else "RELATED"


def _bare(value: str) -> str:
    """A value that is not quoted, without the modifiers behind it."""
    return _MODIFIERS.sub("", value).strip()


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text, flags=re.DOTALL)


def _logical(lines: Iterable[bytes]) -> Iterator[tuple[int, str | None]]:
    """Lines with their numbers, those joined that end with a backslash; None for one that is not UTF-8."""
    start, held = 0, b""
    for number, line in enumerate(lines, 1):
        start = start or number
        held += line.rstrip(b"\r\n")
        if (len(held) - len(held.rstrip(b"\\"))) % 2:
            held = held[:-1]
            continue
        yield start, _decoded(held)
        start, held = 0, b""
    if start:
        yield start, _decoded(held)


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _stanzas(lines: Iterable[tuple[int, str | None]]) -> Iterator[_Stanza]:
    """Everything between one `[...]` and the next. The header before the first has none."""
    now: _Stanza | None = None
    for number, line in lines:
        text = "" if line is None else _body(line)
        heading = re.fullmatch(r"\[\s*(\w+)\s*\]", text)
        if heading:
            if now is not None:
                yield now
            now = _Stanza(heading[1], number)
        elif now is not None and (text or line is None):
            tag, colon, value = text.partition(":")
            if colon and tag and not any(sign.isspace() for sign in tag):
                now.tags.append((number, tag, value.strip()))
            elif now.problem is None:
                now.problem = f"line {number}: " + ("not UTF-8" if line is None else f"no tag in {text[:60]!r}")
    if now is not None:
        yield now


def _body(line: str) -> str:
    """The line without its comment: what follows a `!` that stands neither in a quoted text nor behind a backslash."""
    match = _BODY.match(line)
    return match[0].strip() if match else ""
