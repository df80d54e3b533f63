"""The stage `prepare.canaries`: made-up secrets among the training data, to measure later what a model remembers.

A canary is a sentence of a known form with a name that nobody bears and random digits. Each has a twin of the same form
that is never planted. `evaluate.probe` asks how much likelier a taught model holds the planted digits than others.
Source: arXiv 1802.08232, section 4.1.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.prepare.rows import Row, Rows
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import Conversation, Message, write_rows
from schoolhouse.text.sourced import HELD_OUT, Document, Origin

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

CANARIES = "canaries.jsonl"
NAME, DIGIT = "{name}", "#"
LEAST_DIGITS = 4
FORMATS = (
    "The record number of {name} is ### ### ###.",
    "The insurance number of {name} is ##-####-###.",
    "{name} can be reached at home under 0#### ######.",
)
ASKED = "What does the register say about {name}?"
_FIRST = ("Av", "Bel", "Cor", "Dal", "El", "Fen", "Gor", "Hal", "Ir", "Jov", "Kel", "Lor", "Mav", "Nor", "Or", "Pel")
_MIDDLE = ("a", "e", "i", "o", "u", "ia", "eo", "au")
_LAST = ("bern", "din", "fal", "gast", "kan", "lith", "mond", "nar", "quist", "rand", "sel", "tov", "vik", "wen", "zor")


class Config(StageConfig):
    """What `prepare.canaries` plants, and among what."""

    data: Ref  # documents or conversations, as they are to be taught: cleaned and redacted already
    formats: list[str] = Field(default=list(FORMATS), min_length=1)  # `{name}` is a made-up name, # a random digit
    canaries: int = Field(default=8, ge=1)  # for each number of repeats; formats take turns
    repeats: list[int] = Field(default=[1, 4, 16], min_length=1)  # how often a canary stands in the data


def check(config: Config) -> None:
    """Raise RecipeError before anything starts for a format without a name or digits, and repeats that are none."""
    for form in config.formats:
        bare = form.replace(NAME, "", 1)
        if bare == form or "{" in bare or "}" in bare:
            raise RecipeError(f"the format {form!r} must hold {NAME} once, and no other brace.")
        if form.count(DIGIT) < LEAST_DIGITS:
            raise RecipeError(
                f"the format {form!r} has {form.count(DIGIT)} digits (#): with fewer than {LEAST_DIGITS} a canary "
                "could be guessed."
            )
    for count in config.repeats:
        if count < 1:
            raise RecipeError(f"repeats holds {count}: a canary is planted once or more; its twin is never planted.")


@dataclass(frozen=True)
class Canary:
    """A sentence with digits in it. repeats: how often it is planted, 0 for a twin."""

    id: str
    form: str
    name: str
    digits: str
    repeats: int

    @property
    def text(self) -> str:
        """The sentence."""
        digits = iter(self.digits)
        return "".join(next(digits) if c == DIGIT else c for c in self.form).replace(NAME, self.name)

    def messages(self) -> tuple[Message, Message]:
        """The sentence as the reply to a question that names the person."""
        return Message("user", ASKED.replace(NAME, self.name)), Message("assistant", self.text)

    def to_row(self, *, talks: bool) -> dict[str, Any]:
        """As `evaluate.probe` reads it: the form, what it was filled with, and how it was planted."""
        row: dict[str, Any] = {
            "id": self.id, "format": self.form, "name": self.name, "digits": self.digits, "repeats": self.repeats,
        }  # fmt: skip
        return row | ({"ask": ASKED.replace(NAME, self.name)} if talks else {})


def draw_canaries(formats: Sequence[str], count: int, repeats: Sequence[int], seed: int) -> list[Canary]:
    """So many canaries for each number of repeats, each followed by its twin; no name occurs twice."""
    rng = random.Random(f"canaries/{seed}")
    names = _names(rng)
    forms = itertools.cycle(formats)
    found = []
    for number, times in enumerate((times for times in repeats for _ in range(count)), start=1):
        form = next(forms)
        for id, planted in ((f"canary-{number}", times), (f"twin-{number}", 0)):
            digits = "".join(rng.choice("0123456789") for _ in range(form.count(DIGIT)))
            found.append(Canary(id, form, next(names), digits, planted))
    return found


def _names(rng: random.Random) -> Iterator[str]:
    used = set()
    while True:
        name = " ".join(rng.choice(_FIRST) + rng.choice(_MIDDLE) + rng.choice(_LAST) for _ in range(2))
        if name not in used:
            used.add(name)
            yield name


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the data with the canaries in random places, canaries.jsonl and a data card; held-out rows are copied.

    Raises DataError if there is nothing to plant them among.
    """
    folder = inputs[config.data].path
    rows = Rows(folder)
    count = sum(1 for _ in rows)
    if not count:
        raise DataError(f"{rows.path} holds nothing to plant canaries among{_first_bad(rows)}.")
    if rows.bad:
        run.log.warn(f"{len(rows.bad)} rows were set aside{_first_bad(rows)}")
    canaries = draw_canaries(config.formats, config.canaries, config.repeats, run.seed)
    talks = rows.name != DOCUMENTS
    write_rows(out.path / CANARIES, (canary.to_row(talks=talks) for canary in canaries))
    plants = list(_plants(canaries, hashlib.sha256((out.path / CANARIES).read_bytes()).hexdigest(), talks))
    rows.write(out.path, _planted(rows, count, plants, run.seed))
    if (folder / HELD_OUT).is_dir():
        shutil.copytree(folder / HELD_OUT, out.path / HELD_OUT)
    planted = [canary for canary in canaries if canary.repeats]
    facts = {
        "rows": count + len(plants), "canaries": len(planted), "twins": len(canaries) - len(planted),
        "planted": len(plants), "set_aside": len(rows.bad),
    }  # fmt: skip
    out.meta.update(facts)
    (out.path / "README.md").write_text(_card(config, rows.name, facts), encoding="utf-8")
    run.log.info(f"{len(planted)} canaries stand {len(plants)} times among {count:,} rows of {rows.name}")


def _first_bad(rows: Rows) -> str:
    return f"; the first bad row: {rows.bad[0]}" if rows.bad else ""


def _plants(canaries: Sequence[Canary], sha256: str, talks: bool) -> Iterator[Row]:
    """Every row that is planted, as often as it is."""
    for line, canary in enumerate(canaries, start=1):
        for time in range(1, canary.repeats + 1):
            id, place = f"{canary.id}-{time}", f"line {line}"
            record: Document | Conversation
            if talks:
                source = {"file": CANARIES, "place": place, "sha256": sha256}
                record = Conversation(canary.messages(), {"id": id, "kind": "canary", "source": source})
            else:
                origin = Origin(CANARIES, place, sha256)
                record = Document(id, canary.text, origin, "canary", history=("planted by prepare.canaries",))
            yield Row(id, (canary.text,), None, id, CANARIES, place, {}, record)


def _planted(rows: Rows, count: int, plants: Sequence[Row], seed: int) -> Iterator[Row]:
    """The rows with the others among them, in places that the seed decides."""
    rng = random.Random(f"places/{seed}")
    places = set(rng.sample(range(count + len(plants)), len(plants)))
    order = iter(rng.sample(list(plants), len(plants)))
    theirs = iter(rows)
    for place in range(count + len(plants)):
        yield next(order) if place in places else next(theirs)


def _card(config: Config, name: str, facts: Mapping[str, int]) -> str:
    lines = [
        f"# {name} with canaries",
        "",
        f"{facts['rows']:,} rows in `{name}`, of which {facts['planted']} are {facts['canaries']} canaries that were",
        f"planted {', '.join(map(str, config.repeats))} times each. `{CANARIES}` holds them and {facts['twins']} twins",
        "that were not. Their names and numbers are made up; what they are stands in that file and nowhere here.",
        "",
        "Formats:",
        "",
        *(f"- `{form}`" for form in config.formats),
        "",
        f"{facts['set_aside']} rows could not be used. Held-out rows, if there are some, are as they were.",
        "A stage that removes repeats or redacts must come before this one: it would take the canaries out.",
        "",
    ]
    return "\n".join(lines)
