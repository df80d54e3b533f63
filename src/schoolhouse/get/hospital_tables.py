"""The tables of the example hospital: notes with their facts, the registry, appointments and bills."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from schoolhouse.get.hospital_marks import Planted, mark
from schoolhouse.get.hospital_notes import diagnosis, note
from schoolhouse.get.hospital_people import Patient, Staff
from schoolhouse.get.hospital_rules import BILLS, FIELDS, age_group, bill_action, dose_reason, required, triage_reason
from schoolhouse.get.hospital_visits import Visit, next_step

NOTES, ARCHIVE = "notes/notes.csv", "notes/archive.csv"
REGISTRY, APPOINTMENTS, BILLING = "office/registry.csv", "office/appointments.csv", "office/billing.parquet"
COLUMNS = (
    "patient_key", "encounter_id", "date", "ward", "age", "age_group", "sex", "ethnicity", "language", "note",
    "diagnosis", "condition", "icd10", "severity", "findings", "heart_rate", "spo2", "temperature", "systolic",
    "weight_kg", "allergy", "pregnant", "egfr", "triage", "drug", "dose_mg", "goes_to", "missing", "follow_up",
    "next_step", "needed", "known", "triage_reason", "dose_reason",
)  # fmt: skip
_COST = {"mild": 1, "moderate": 3, "severe": 12}
_TWICE, _NEARLY = 0.02, 0.03  # of rows stand there again, as they are or a little changed
_CHANGES: tuple[Callable[[str], str], ...] = (
    lambda text: text + " Unchanged since.",
    lambda text: "Copied forward. " + text,
    lambda text: text.replace(". ", ".  ").rstrip(".") + " .",
    lambda text: text.replace(" and ", " & ") + "\n(printed)",
)


@dataclass
class Told:
    """What else the truth has to say: what is broken, and which rows repeat others."""

    broken: list[dict[str, str]] = field(default_factory=list)
    repeated: list[dict[str, str]] = field(default_factory=list)

    def is_broken(self, file: str, place: str, why: str) -> None:
        """Remember that a place of a file cannot be read."""
        self.broken.append({"file": file, "place": place, "why": why})


def facts(visit: Visit) -> dict[str, str]:
    """A visit as columns, without its note; what is not known is empty."""
    known, plan = visit.known, visit.plan
    row: dict[str, object] = {
        "patient_key": visit.patient.key, "encounter_id": visit.id, "date": visit.day.isoformat(), "ward": visit.ward,
        "age": visit.age, "age_group": age_group(visit.age), "sex": visit.patient.sex,
        "ethnicity": visit.patient.ethnicity, "language": visit.patient.language, "condition": visit.condition.name,
        "icd10": visit.condition.code, "severity": visit.severity, "findings": "; ".join(visit.findings),
        "heart_rate": known.heart_rate, "spo2": known.spo2, "temperature": known.temperature,
        "systolic": known.systolic, "weight_kg": known.weight, "allergy": known.allergy,
        "pregnant": {True: "yes", False: "no", None: None}[known.pregnant], "egfr": known.egfr, "triage": plan.triage,
        "drug": plan.drug, "dose_mg": None if plan.dose_mg is None else f"{plan.dose_mg:g}", "goes_to": plan.goes_to,
        "missing": plan.missing or "nothing", "follow_up": next_step(plan) if plan.missing else "none",
        "next_step": next_step(plan), **_reasons(visit),
    }  # fmt: skip
    return {name: "" if value is None else str(value) for name, value in row.items()}


def needed_and_known(visit: Visit) -> dict[str, str]:
    """What has to be known at a visit before anything is given, and what of it is."""
    needed = required(visit.condition.name, visit.age, visit.patient.sex)
    there = [name for name in needed if getattr(visit.known, FIELDS[name]) is not None]
    return {"needed": ", ".join(needed), "known": ", ".join(there) or "none"}


def _reasons(visit: Visit) -> dict[str, str]:
    """What leads to a visit's triage, dose and question; empty where it cannot be said yet."""
    known, plan = visit.known, visit.plan
    is_dosed = plan.drug is not None and plan.dose_mg is not None
    return {
        **needed_and_known(visit),
        "triage_reason": triage_reason(visit.age, known) if plan.triage is not None else "",
        "dose_reason": dose_reason(plan.drug or "", visit.age, known) if is_dosed else "",
    }  # fmt: skip


class NotesTable:
    """Writes rows of notes into a CSV file, and what is true of each; some of them twice."""

    def __init__(self, file: TextIO, name: str, seed: int, planted: Planted, told: Told, delimiter: str = ",") -> None:
        self.name, self.planted, self.told = name, planted, told
        self.draw = random.Random(f"{seed}/{name}")
        self.writer = csv.writer(file, delimiter=delimiter)
        self.writer.writerow(COLUMNS)
        self.count = 1  # rows as in a spreadsheet, where the names of columns are row 1

    def add(self, visit: Visit) -> None:
        """A row for a visit, and now and then a second one."""
        row = facts(visit) | {"note": note(visit, self.draw), "diagnosis": diagnosis(visit, self.draw)}
        place = self._put(row)
        chance = self.draw.random()
        if chance < _TWICE:
            self._repeat(row, place, "same")
        elif chance < _TWICE + _NEARLY:
            changed = {"note": self.draw.choice(_CHANGES)(row["note"]), "encounter_id": row["encounter_id"] + "-2"}
            self._repeat(row | changed, place, "nearly the same")

    def _repeat(self, row: Mapping[str, str], first: str, kind: str) -> None:
        self.told.repeated.append({"file": self.name, "place": self._put(row), "repeats": first, "kind": kind})

    def _put(self, row: Mapping[str, str]) -> str:
        place = f"row {self.count + 1}"
        self._write([self._clean(row[name], name, place, row["patient_key"]) for name in COLUMNS])
        return place

    def _write(self, cells: list[str]) -> None:
        self.writer.writerow(cells)
        self.count += 1

    def _clean(self, value: str, column: str, place: str, person: str) -> str:
        is_personal = column == "date" or (column == "age" and int(value) >= 90)
        text = mark(column, value) if is_personal else value
        return self.planted.clean(text, self.name, place, column, person)

    def add_broken(self, visit: Visit) -> None:
        """Rows as a careless export leaves them: one cut off, one without a note, one with a cell too many."""
        row = facts(visit) | {"note": "", "diagnosis": visit.condition.name}
        empty = [row[name] for name in COLUMNS]
        for cells, why in ((empty[:2], "cut off"), (empty, "no note"), ([*empty, "?"], "a cell too many")):
            self._write(cells)
            self.told.is_broken(self.name, f"row {self.count}", why)


def _write_csv(
    path: Path, columns: Iterable[str], rows: Iterable[list[str]], encoding: str = "utf-8", delimiter: str = ","
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(rows)


def is_latin(visit: Visit) -> bool:
    """Whether all names around a visit can be written in Latin-1."""
    patient, staff = visit.patient, (visit.doctor.name, visit.nurse.name)
    return all(ord(sign) < 256 for name in (patient.name, patient.relative, *staff) for sign in name)


def _cells(row: Mapping[str, object], planted: Planted, file: str, number: int, person: str) -> list[str]:
    """The cells of a row without marks."""
    return [planted.clean(str(value), file, f"row {number}", name, person) for name, value in row.items()]


def write_registry(raw: Path, patients: list[Patient], planted: Planted) -> None:
    """Who is who in the hospital's own words, with the mark of a spreadsheet at its start."""
    rows, names = [], []
    for number, p in enumerate(patients, 2):
        row = {
            "patient_key": p.key, "mrn": mark("id", p.mrn), "surname": mark("name", p.last),
            "first_name": mark("name", p.first), "born": mark("date", f"{p.born:%d/%m/%Y}"), "sex": p.sex,
            "language": p.language, "ethnicity": p.ethnicity, "address": mark("address", p.address),
            "phone": mark("phone", p.phone), "email": mark("email", p.email), "ssn": mark("id", p.ssn),
            "insurer": mark("organisation", p.insurer), "member_id": mark("id", p.member),
            "contact": f"{mark('name', p.relative)} {mark('phone', p.relative_phone)}",
        }  # fmt: skip
        names = list(row)
        rows.append(_cells(row, planted, REGISTRY, number, p.key))
    _write_csv(raw / REGISTRY, names, rows, "utf-8-sig")


def write_appointments(raw: Path, visits: list[Visit], clerks: list[Staff], seed: int, planted: Planted) -> None:
    """Appointments: one before each visit, some of them missed or cancelled, with dates and semicolons of its own."""
    draw = random.Random(f"{seed}/appointments")
    rows, names = [], []
    for number, visit in enumerate(visits, 2):
        p, made = visit.patient, visit.day - timedelta(days=draw.randint(0, 30))
        row = {
            "appointment": f"A{number:06d}", "patient_key": p.key, "patient": mark("name", f"{p.last}, {p.first}"),
            "made_on": mark("date", f"{made:%d.%m.%Y}"), "day": mark("date", f"{visit.day:%d.%m.%Y}"),
            "time": f"{draw.randint(7, 18)}:{draw.choice(['00', '15', '30', '45'])}", "ward": visit.ward,
            "with": f"Dr. {mark('name', visit.doctor.last)}", "phone": mark("phone", p.phone),
            "state": draw.choices(["kept", "missed", "cancelled", "moved"], [80, 10, 6, 4])[0],
            "waited_minutes": draw.randint(2, 140), "booked_by": mark("name", draw.choice(clerks).name),
        }  # fmt: skip
        names = list(row)
        rows.append(_cells(row, planted, APPOINTMENTS, number, p.key))
    _write_csv(raw / APPOINTMENTS, names, rows, delimiter=";")


def write_billing(raw: Path, visits: list[Visit], seed: int, planted: Planted) -> None:
    """Bills as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(f"{seed}/billing")
    rows = []
    for number, visit in enumerate(visits, 1):
        p = visit.patient
        row = {
            "invoice": f"INV-{visit.day.year}-{number:06d}", "patient_key": p.key, "encounter_id": visit.id,
            "payer": mark("organisation", p.insurer), "member_id": mark("id", p.member), "holder": mark("name", p.name),
            "address": mark("address", p.address), "icd10": visit.condition.code,
        }  # fmt: skip
        cells: dict[str, object] = dict(zip(row, _cells(row, planted, BILLING, number, p.key), strict=True))
        cents = draw.randint(4_000, 95_000) * _COST[visit.severity]
        issued = visit.day + timedelta(days=draw.randint(3, 40))
        state = draw.choices(list(BILLS), [50, 25, 25])[0]
        action, reason = bill_action(state, cents / 100)
        cells |= {
            "issued": issued, "amount": cents / 100, "state": state, "action": action, "action_reason": reason,
        }  # fmt: skip
        rows.append(cells)
    (raw / BILLING).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), raw / BILLING)
