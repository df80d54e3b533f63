"""The visits to the example hospital: what was found, what was measured, what was forgotten, and what is to be done."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from schoolhouse.get.hospital_people import FIRST_DAY, LAST_DAY, Patient, People, Staff
from schoolhouse.get.hospital_rules import (
    ADULT,
    CONDITIONS,
    FERTILE,
    FIELDS,
    QUESTIONS,
    Condition,
    Facts,
    Plan,
    age_group,
    diagnose,
    plan,
    required,
    triage,
)

SEVERITIES = ("mild", "moderate", "severe")
_COLOURS = {"mild": ("green", "yellow"), "moderate": ("yellow", "orange"), "severe": ("orange", "red")}
_SCALE = {"mild": 0.25, "moderate": 0.7, "severe": 1.3}
_BREATHING = ("breathlessness", "wheeze", "stridor", "crackles")
_FORGOTTEN = {"pregnancy": 0.6, "kidney function": 0.6, "allergy": 0.3, "weight": 0.3}
"""Share of visits in which a fact is missing that is needed, by the first of these that is. What is rarely needed is
often forgotten: else there would be too few visits to learn from.
"""
_VITALS_FORGOTTEN = 0.1  # where only vital signs are needed
_OFTEN = {"weight": 4, "allergy": 5, "kidney function": 10, "pregnancy": 20}  # of vital signs each counts 1
_UNSAID = {"weight": 0.35, "allergy": 0.4, "pregnancy": 0.5, "kidney function": 0.65}  # of facts that are not needed
_FINDINGS = sorted({finding for condition in CONDITIONS.values() for finding in condition.findings})


@dataclass(frozen=True)
class Visit:
    """One visit. true: all facts as they are; known: what the hospital wrote down; plan: what follows from that."""

    id: str
    patient: Patient
    day: date
    condition: Condition
    severity: str
    findings: tuple[str, ...]
    absent: tuple[str, ...]
    true: Facts
    known: Facts
    ward: str
    doctor: Staff
    nurse: Staff

    @property
    def age(self) -> int:
        """Whole years on the day."""
        return self.patient.age(self.day)

    @property
    def plan(self) -> Plan:
        """What is to be done by what is known."""
        return plan(self.condition.name, self.age, self.patient.sex, self.known)

    @property
    def whole_plan(self) -> Plan:
        """What is to be done once everything is known."""
        return plan(self.condition.name, self.age, self.patient.sex, self.true)

    def to_row(self) -> dict[str, Any]:
        """As a JSON object: the truth, what was known of it, and both plans."""
        return {
            "encounter_id": self.id, "patient_key": self.patient.key, "date": self.day.isoformat(), "age": self.age,
            "age_group": age_group(self.age), "sex": self.patient.sex, "condition": self.condition.name,
            "icd10": self.condition.code, "severity": self.severity, "findings": list(self.findings),
            "absent": list(self.absent), "true": vars(self.true), "known": vars(self.known),
            "plan": vars(self.plan), "plan_when_all_is_known": vars(self.whole_plan), "ward": self.ward,
            "doctor": self.doctor.name, "nurse": self.nurse.name,
        }  # fmt: skip


def next_step(shown: Plan) -> str:
    """What is to be done, in one sentence: ask for the missing fact, or treat and send."""
    if shown.missing is not None:
        return QUESTIONS[shown.missing]
    drug = "No drug" if shown.dose_mg is None else f"{shown.drug} {shown.dose_mg:g} mg"
    return f"{drug}; triage {shown.triage}; {shown.goes_to}."


class Visits:
    """Draws visits of patients; what comes out follows from the seed and from the patients before."""

    def __init__(self, seed: int, staff: list[Staff]) -> None:
        self.draw = random.Random(f"{seed}/visits")
        self._doctors = [person for person in staff if person.role == "doctor"]
        self._nurses = [person for person in staff if person.role == "nurse"]
        self._count = 0

    def of(self, patient: Patient) -> list[Visit]:
        """One to six visits, by date."""
        draw = self.draw
        count = draw.choices([1, 2, 3, 4, 5, 6], [30, 25, 18, 12, 9, 6])[0]
        first = max(FIRST_DAY, patient.born + timedelta(days=14))
        days = sorted(first + timedelta(days=draw.randint(0, (LAST_DAY - first).days)) for _ in range(count))
        return [self._visit(patient, day) for day in days]

    def _visit(self, patient: Patient, day: date) -> Visit:
        draw, age = self.draw, patient.age(day)
        fitting = [c for c in CONDITIONS.values() if c.ages[0] <= age <= c.ages[1]]
        condition = draw.choice(fitting)
        findings = self._findings(condition, age)
        absent = draw.sample([name for name in _FINDINGS if name not in findings + condition.findings], 2)
        severity = draw.choices(SEVERITIES, condition.severity)[0]
        true = self._facts(patient, age, findings, severity)
        ward = "Paediatrics" if age < ADULT else "Surgery" if condition.name == "appendicitis" else "Emergency"
        ward = "Medicine" if ward == "Emergency" and draw.random() < 0.4 else ward
        self._count += 1
        return Visit(
            f"E{self._count:06d}", patient, day, condition, severity, findings, tuple(absent), true,
            self._known(true, condition, age, patient.sex), ward, draw.choice(self._doctors), draw.choice(self._nurses),
        )  # fmt: skip

    def _findings(self, condition: Condition, age: int) -> tuple[str, ...]:
        """At least three findings of the condition, at times one of another, so that no other fits as well."""
        draw = self.draw
        while True:
            found = draw.sample(condition.findings, draw.randint(3, len(condition.findings)))
            if draw.random() < 0.4:
                found.append(draw.choice([name for name in _FINDINGS if name not in condition.findings]))
            draw.shuffle(found)
            if diagnose(found, age) == [condition.name]:
                return tuple(found)

    def _facts(self, patient: Patient, age: int, findings: tuple[str, ...], severity: str) -> Facts:
        draw = self.draw
        is_fertile = patient.sex == "female" and age in FERTILE
        egfr = draw.randint(12, 29) if draw.random() < 0.2 else draw.randint(30, 115 - age // 2)
        rest = Facts(
            None, None, None, self._weight(age), "penicillin" if patient.penicillin_allergy else "none",
            is_fertile and age >= ADULT and draw.random() < 0.25, egfr,
            draw.randint(78, 105) + min(age, 40) // 2 if age < ADULT else draw.randint(98, 168),
        )  # fmt: skip
        for _ in range(60):
            facts = replace(rest, **self._vitals(age, findings, _SCALE[severity]))
            if triage(age, facts) in _COLOURS[severity]:
                break
        return facts

    def _vitals(self, age: int, findings: tuple[str, ...], scale: float) -> dict[str, Any]:
        draw = self.draw
        normal = next(rate for below, rate in ((1, 128), (5, 110), (12, 95), (200, 76)) if age < below)
        drop = draw.uniform(0, 9 if any(name in _BREATHING for name in findings) else 3) * scale
        fever = 38.0 + draw.uniform(0, 2) * min(1, scale + 0.2)
        return {
            "heart_rate": round(normal + draw.gauss(0, 8) + draw.uniform(0, 60) * scale),
            "spo2": max(70, min(100, round(98 + draw.uniform(-1, 1.5) - drop))),
            "temperature": round(fever if "fever" in findings else draw.uniform(36.1, 37.6), 1),
        }

    def _weight(self, age: int) -> int:
        usual = 4 + 6 * self.draw.random() if age < 1 else 2 * age + 9 if age < 9 else 3.2 * age if age < 18 else 75
        return max(3, round(usual * self.draw.uniform(0.82, 1.25)))

    def _known(self, true: Facts, condition: Condition, age: int, sex: str) -> Facts:
        """What was written down: most facts, and at times not one of those that are needed."""
        draw = self.draw
        needed = required(condition.name, age, sex)
        hidden = [name for name, share in _UNSAID.items() if name not in needed and draw.random() < share]
        if draw.random() < next((share for name, share in _FORGOTTEN.items() if name in needed), _VITALS_FORGOTTEN):
            hidden += draw.choices(needed, [_OFTEN.get(name, 1) for name in needed])
        if sex != "female" or age not in FERTILE:
            hidden = [name for name in hidden if name != "pregnancy"]  # nobody asks, and the answer is known
        gone = {FIELDS[name]: None for name in hidden} | ({"systolic": None} if draw.random() < 0.3 else {})
        return replace(true, **gone)


def world(seed: int, patients: int) -> tuple[list[Staff], list[Patient], list[Visit]]:
    """Staff, patients and all their visits in the order of patients."""
    people = People(seed)
    staff = people.staff()
    everyone = [people.patient(number) for number in range(1, patients + 1)]
    visits = Visits(seed, staff)
    return staff, everyone, [visit for patient in everyone for visit in visits.of(patient)]
