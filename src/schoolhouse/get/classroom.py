"""Writes the example classroom: exercises in Swahili as pupils did them over three terms, and the truth beside them."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.get.classroom_attempts import Attempt, draw_attempt
from schoolhouse.get.classroom_exercises import LANGUAGE, LEVELS, SUMS, Exercise, draw_exercise
from schoolhouse.get.classroom_words import NAMES, NOUNS, SURNAMES
from schoolhouse.get.hospital_marks import Planted, mark
from schoolhouse.get.hospital_tables import Told
from schoolhouse.text.records import append_row, write_rows

INVENTED = "School, pupils and marks are invented for an example; the exercises were written for it."
TERMS = {1: (35, 65, 0, 0, 0), 2: (15, 15, 40, 30, 0), 3: (10, 15, 15, 20, 40)}
"""Term to how often each level is drawn: the new ones, and revision of those before."""

COLUMNS = (
    "pupil", "name", "term", "level", "topic", "exercise", "steps", "result", "attempt", "right", "review", "hint",
)  # fmt: skip
_EACH_TERM = ((SUMS, 5), (LANGUAGE, 4))  # exercises of one pupil
_TRIES = 50
_WRITTEN = {1: ("notebooks/term-1.csv", ","), 2: ("notebooks/term-2.csv", ";")}
_LAST = "notebooks/term-3.jsonl"
_PUPILS, _GUIDE = "office/pupils.csv", "guide/curriculum.md"
_FOLDERS = {
    "notebooks": "what pupils did, an exercise a row, with the teacher's hint (CSV, CSV with semicolons, JSON lines)",
    "office": "the list of pupils (CSV)", "guide": "the curriculum and the noun classes, in Markdown; it names nobody",
}  # fmt: skip


@dataclass(frozen=True)
class Pupil:
    """A child of the class."""

    key: str
    name: str
    age: int
    guardian: str
    phone: str


@dataclass(frozen=True)
class Entry:
    """A row of a notebook."""

    pupil: Pupil
    term: int
    attempt: Attempt

    def to_row(self) -> dict[str, str]:
        """As columns."""
        done, exercise = self.attempt, self.attempt.exercise
        return {
            "pupil": self.pupil.key, "name": mark("name", self.pupil.name), "term": str(self.term),
            "level": str(exercise.level), "topic": exercise.topic, "exercise": exercise.text, "steps": done.steps,
            "result": done.result, "attempt": done.written, "right": "yes" if done.is_right else "no",
            "review": done.review, "hint": done.hint,
        }  # fmt: skip


def write_classroom(raw: Path, truth: Path, seed: int, count: int) -> dict[str, Any]:
    """Write files into `raw` and the truth into `truth`; return what was counted."""
    raw.mkdir(parents=True)
    truth.mkdir(parents=True)
    draw = random.Random(f"{seed}/classroom")
    pupils = [_pupil(number, draw) for number in range(1, count + 1)]
    entries = list(_entries(pupils, draw))
    told = Told()
    with (truth / "spans.jsonl").open("w", encoding="utf-8") as file:
        planted = Planted(lambda row: append_row(file, row))
        for term in TERMS:
            rows = [entry.to_row() for entry in entries if entry.term == term]
            if term in _WRITTEN:
                _write_table(raw, *_WRITTEN[term], rows, planted, told)
            else:
                _write_lines(raw, rows, planted, told)
        _write_pupils(raw, pupils, planted)
    (raw / _GUIDE).parent.mkdir()
    (raw / _GUIDE).write_text(_guide(), encoding="utf-8")
    write_rows(truth / "pupils.jsonl", map(vars, pupils))
    write_rows(truth / "broken.jsonl", told.broken)
    write_rows(truth / "repeated.jsonl", told.repeated)
    (truth / "nouns.json").write_text(_nouns(), encoding="utf-8")
    return _counts(raw, pupils, entries, planted, told)


def _pupil(number: int, draw: random.Random) -> Pupil:
    phone = f"+255 000 {draw.randint(100, 999)} {draw.randint(100, 999)}"  # no prefix of Tanzania begins so
    names = draw.sample(NAMES, 2)
    last = draw.choice(SURNAMES)
    return Pupil(f"S{number:05d}", f"{names[0]} {last}", draw.randint(7, 10), f"{names[1]} {last}", phone)


def _entries(pupils: list[Pupil], draw: random.Random) -> Iterable[Entry]:
    """Everybody's exercises of three terms. None is given twice, so that whoever is held out has only new ones."""
    given: set[Hashable] = set()
    for term, weights in TERMS.items():
        for pupil in pupils:
            for topic, count in _EACH_TERM:
                for level in draw.choices(LEVELS, weights, k=count):
                    exercise = _new(topic, level, given, draw)
                    if exercise is not None:
                        yield Entry(pupil, term, draw_attempt(exercise, draw.random() < 0.5, draw))


def _new(topic: str, level: int, given: set[Hashable], draw: random.Random) -> Exercise | None:
    """An exercise that nobody had; None where of an easy level hardly any is left."""
    for _ in range(_TRIES):
        exercise = draw_exercise(topic, level, draw)
        if exercise.same not in given:
            given.add(exercise.same)
            return exercise
    return None


def _write_table(
    raw: Path, name: str, delimiter: str, rows: list[dict[str, str]], planted: Planted, told: Told
) -> None:
    """A notebook as a table; in its middle a row that stands there twice, and one that was cut off."""
    (raw / name).parent.mkdir(exist_ok=True)
    with (raw / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(COLUMNS)
        count = 1
        for number, row in enumerate(rows):
            for again in range(1 + (number == len(rows) // 2)):
                count += 1
                if again:
                    told.repeated.append(
                        {"file": name, "place": f"row {count}", "repeats": f"row {count - 1}", "kind": "same"}
                    )
                cells = [planted.clean(row[part], name, f"row {count}", part, row["pupil"]) for part in COLUMNS]
                table.writerow(cells)
            if number == len(rows) // 2:
                count += 1
                table.writerow([row["pupil"], "?"])
                told.is_broken(name, f"row {count}", "too few cells")


def _write_lines(raw: Path, rows: list[dict[str, str]], planted: Planted, told: Told) -> None:
    """The last notebook, a JSON object a line; one line is cut off."""
    with (raw / _LAST).open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, 1):
            place = f"line {number}"
            append_row(file, {part: planted.clean(row[part], _LAST, place, part, row["pupil"]) for part in COLUMNS})
        file.write('{"pupil": "S0\n')
        told.is_broken(_LAST, f"line {len(rows) + 1}", "cut off")


def _write_pupils(raw: Path, pupils: list[Pupil], planted: Planted) -> None:
    (raw / _PUPILS).parent.mkdir()
    with (raw / _PUPILS).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        head = ("pupil", "name", "age", "guardian", "phone")
        table.writerow(head)
        for number, one in enumerate(pupils, 2):
            cells = (mark("name", one.name), str(one.age), mark("name", one.guardian), mark("phone", one.phone))
            pairs = zip(head[1:], cells, strict=True)
            table.writerow([one.key, *(planted.clean(c, _PUPILS, f"row {number}", p, one.key) for p, c in pairs)])


def _guide() -> str:
    """The curriculum, for teachers."""
    return "\n".join([
        "# Mtaala", "",
        "| Ngazi | Hesabu | Lugha |", "|---|---|---|",
        "| 1 | kujumlisha na kutoa | wingi wa neno moja, -ngapi, -angu, -zuri |",
        "| 2 | hadithi ya hatua moja | jina na sifa, au -angu, -ako, -ake |",
        "| 3 | kuzidisha na kugawanya | namba kwa maneno |",
        "| 4 | hatua mbili, tarakimu mbili | sentensi yenye huyu, hiki, hili |",
        "| 5 | fedha | sentensi yenye -angu, -ako, -ake na kitendo |", "",
        "Mwalimu hasemi jibu. Anaonyesha hatua au neno la kuangalia tena.", "",
        "## Ngeli", "", "| Ngeli | Umoja | Wingi |", "|---|---|---|",
        *(f"| {noun.of.name} | {noun.singular} | {noun.plural} |" for noun in NOUNS), "",
    ])  # fmt: skip


def _nouns() -> str:
    rows = [[noun.singular, noun.plural, noun.of.name] for noun in NOUNS]
    return json.dumps({"note": INVENTED, "nouns": rows}, indent=1) + "\n"


def _counts(raw: Path, pupils: list[Pupil], entries: list[Entry], planted: Planted, told: Told) -> dict[str, Any]:
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    done = [entry.attempt for entry in entries]
    return {
        "people": len(pupils), "exercises": len(entries), "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "by_folder": _tally(path.relative_to(raw).parts[0] for path in files),
        "planted": _tally_of(planted.counts), "broken": len(told.broken), "repeated": len(told.repeated),
        "levels": _tally(f"{one.exercise.topic}, level {one.exercise.level}" for one in done),
        "attempts": _tally("right" if one.is_right else "wrong" for one in done),
        "terms": _tally(f"term {entry.term}" for entry in entries),
    }  # fmt: skip


def _tally(values: Iterable[str]) -> dict[str, int]:
    return _tally_of(Counter(values))


def _tally_of(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def card(counts: Mapping[str, Any], seed: int) -> str:
    """The data card."""
    folders = [f"| `raw/{name}` | {counts['by_folder'].get(name, 0)} | {what} |" for name, what in _FOLDERS.items()]
    return "\n".join([
        "# An example classroom, in Swahili", "", INVENTED, "",
        "Names are put together from common ones; one may still be somebody's by chance. Telephone numbers belong to",
        "nobody.", "",
        f"{counts['people']:,} pupils, {counts['exercises']:,} exercises, {counts['files']} files, "
        f"{counts['bytes'] / 1e6:.1f} MB, seed {seed}. No exercise is given twice.", "",
        "| Folder | Files | What |", "|---|---|---|", *folders, "",
        "## The truth, in `truth`", "",
        "- `pupils.jsonl`: who is who; `nouns.json`: every noun with its class",
        "- `spans.jsonl`: every personal value that was planted, with file, place, part, start and end",
        "- `broken.jsonl`, `repeated.jsonl`: what cannot be read, and what stands there twice", "",
        "What is right stands in the notebooks themselves: `result`, `right`, `review` and `hint`.", "",
        *_table("Exercises", counts["levels"]), *_table("Terms", counts["terms"]),
        *_table("Attempts", counts["attempts"]), *_table("Personal values", counts["planted"]),
    ])  # fmt: skip


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    return [f"| {title} | Count |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in counts.items()), ""]
