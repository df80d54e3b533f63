"""Writes the example hospital: its files as a hospital would have them, and the truth about all that is in them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from schoolhouse.get.hospital_fhir import write_bundle
from schoolhouse.get.hospital_guides import guidelines, rules
from schoolhouse.get.hospital_marks import WHOLE, Planted, mark
from schoolhouse.get.hospital_papers import write_lab_report, write_letter
from schoolhouse.get.hospital_people import Patient, Staff
from schoolhouse.get.hospital_rules import age_group
from schoolhouse.get.hospital_tables import (
    ARCHIVE,
    NOTES,
    NotesTable,
    Told,
    is_latin,
    write_appointments,
    write_billing,
    write_registry,
)
from schoolhouse.get.hospital_talk import write_dialogues, write_mail
from schoolhouse.get.hospital_visits import Visit, next_step, world
from schoolhouse.text.records import append_row, write_rows

ROUND = "wards/round.txt"
_DAMAGED = {  # name: folder of the file that is cut off, how much is left of it, why
    "letters/damaged.docx": ("letters", 400, "a Word file that is cut off"),
    "labs/damaged.pdf": ("labs", 90, "a PDF file that is cut off"),
    "fhir/damaged.json": ("fhir", 700, "a JSON file that is cut off"),
    "mail/empty.eml": ("mail", 0, "an empty file"),
}


def write_hospital(raw: Path, truth: Path, seed: int, count: int) -> dict[str, Any]:
    """Write files into `raw` and the truth into `truth`; return what was counted."""
    raw.mkdir(parents=True)
    truth.mkdir(parents=True)
    staff, patients, visits = world(seed, count)
    told = Told()
    with (truth / "spans.jsonl").open("w", encoding="utf-8") as file:
        planted = Planted(lambda row: append_row(file, row))
        _write_notes(raw, seed, visits, planted, told)
        write_registry(raw, patients, planted)
        write_appointments(raw, visits, [person for person in staff if person.role == "clerk"], seed, planted)
        write_billing(raw, visits, seed, planted)
        _write_papers(raw, seed, count, visits, staff, planted)
        draw = random.Random(f"{seed}/dialogues")
        write_dialogues(raw, _some(visits, count, draw), draw, planted, told)
        _write_round(raw, _some(visits, max(8, count // 10), random.Random(f"{seed}/round")), planted)
    (raw / "guidelines").mkdir()
    for name, text in guidelines().items():
        (raw / "guidelines" / name).write_text(text, encoding="utf-8")
    _damage(raw, told)
    _write_truth(truth, patients, staff, visits, told)
    return _counts(raw, patients, visits, planted, told)


def _some(visits: list[Visit], count: int, draw: random.Random) -> list[Visit]:
    """So many visits, or all, in their order."""
    chosen = sorted(draw.sample(range(len(visits)), min(count, len(visits))))
    return [visits[number] for number in chosen]


def _write_notes(raw: Path, seed: int, visits: list[Visit], planted: Planted, told: Told) -> None:
    """One big table, and an old one in Latin-1 with semicolons that holds the visits of every tenth patient."""
    (raw / NOTES).parent.mkdir(parents=True)
    with ExitStack() as stack:
        new = stack.enter_context((raw / NOTES).open("w", encoding="utf-8", newline=""))
        old = stack.enter_context((raw / ARCHIVE).open("w", encoding="latin-1", newline=""))
        notes = NotesTable(new, NOTES, seed, planted, told)
        archive = NotesTable(old, ARCHIVE, seed, planted, told, delimiter=";")
        for number, visit in enumerate(visits):
            is_old = visit.patient.key.endswith("5") and is_latin(visit)
            (archive if is_old else notes).add(visit)
            if number == len(visits) // 2:
                notes.add_broken(visit)


def _write_papers(raw: Path, seed: int, count: int, visits: list[Visit], staff: list[Staff], planted: Planted) -> None:
    """Letters, lab reports, bundles and e-mails: of each for about a tenth of the patients."""
    few = max(8, count // 10)
    draw = random.Random(f"{seed}/papers")
    for visit in _some(visits, few, draw):
        write_letter(raw, visit, draw, planted)
    for visit in _some(visits, few, draw):
        write_lab_report(raw, visit, draw, planted)
    for visit in _some(visits, few, draw):
        write_mail(raw, visit, draw.choice(staff), draw, planted)
    of: dict[str, list[Visit]] = {}
    for visit in visits:
        of.setdefault(visit.patient.key, []).append(visit)
    for key in sorted(draw.sample(sorted(of), min(few, len(of)))):
        write_bundle(raw, of[key][0].patient, of[key], draw, planted)


def _write_round(raw: Path, visits: list[Visit], planted: Planted) -> None:
    """The list of a ward round in UTF-16: many people in one text, which is nobody's."""
    lines = ["Ward round"]
    for number, visit in enumerate(visits, 1):
        p = visit.patient
        age = mark("age", visit.age) if visit.age >= 90 else visit.age
        lines.append(
            f"{number}. {mark('name', p.name)}, {age}, bed {number % 24 + 1}: {visit.condition.name}. "
            f"{next_step(visit.plan)} Dr. {mark('name', visit.doctor.last)}, {mark('date', f'{visit.day:%d/%m/%y}')}. "
            f"Family: {mark('name', p.relative)} {mark('phone', p.relative_phone)}."
        )
    (raw / ROUND).parent.mkdir(parents=True)
    text = planted.clean("\n".join(lines) + "\n", ROUND, WHOLE, "text", None)
    (raw / ROUND).write_text(text, encoding="utf-16")


def _damage(raw: Path, told: Told) -> None:
    """Leave files behind that cannot be read."""
    for name, (folder, left, why) in _DAMAGED.items():
        whole = min((raw / folder).iterdir()).read_bytes()
        (raw / name).write_bytes(whole[:left])
        told.is_broken(name, WHOLE, why)


def _write_truth(truth: Path, patients: list[Patient], staff: list[Staff], visits: list[Visit], told: Told) -> None:
    write_rows(truth / "patients.jsonl", (patient.to_row() for patient in patients))
    write_rows(truth / "staff.jsonl", (vars(person) for person in staff))
    write_rows(truth / "encounters.jsonl", (visit.to_row() for visit in visits))
    write_rows(truth / "broken.jsonl", told.broken)
    write_rows(truth / "repeated.jsonl", told.repeated)
    (truth / "rules.json").write_text(json.dumps(rules(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _counts(raw: Path, patients: list[Patient], visits: list[Visit], planted: Planted, told: Told) -> dict[str, Any]:
    """The figures for the card and the manifest."""
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    return {
        "patients": len(patients), "encounters": len(visits), "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "by_folder": _tally(path.relative_to(raw).parts[0] for path in files),
        "planted": _sorted(planted.counts), "broken": len(told.broken), "repeated": len(told.repeated),
        "conditions": _tally(visit.condition.name for visit in visits),
        "triage": _tally(visit.plan.triage or "unknown" for visit in visits),
        "missing": _tally(visit.plan.missing or "nothing" for visit in visits),
        "sex": _tally(patient.sex for patient in patients),
        "ethnicity": _tally(patient.ethnicity for patient in patients),
        "language": _tally(patient.language for patient in patients),
        "age_group": _tally(age_group(visit.age) for visit in visits),
    }  # fmt: skip


def _tally(values: Iterable[str]) -> dict[str, int]:
    return _sorted(Counter(values))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """By number, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
