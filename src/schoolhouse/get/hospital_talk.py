"""What people of the example hospital say to each other: dialogues on the phone, and e-mails."""

from __future__ import annotations

import html
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

from schoolhouse.get.hospital_marks import WHOLE, Planted, mark
from schoolhouse.get.hospital_notes import aged, listed, told, written
from schoolhouse.get.hospital_people import HOSPITAL, SCHOOLS, Staff
from schoolhouse.get.hospital_rules import ADULT, FERTILE, QUESTIONS
from schoolhouse.get.hospital_tables import Told, needed_and_known
from schoolhouse.get.hospital_visits import Visit, next_step

DIALOGUES = "dialogues/calls.jsonl"
_POLITE = ("", "Thank you. ", "I see. ", "All right. ")
_URGENCY = {
    "red": "call an ambulance at once", "orange": "come in right now", "yellow": "come in within the hour",
    "green": "come in today",
}  # fmt: skip


def dialogue(visit: Visit, draw: random.Random) -> dict[str, Any]:
    """A call, with marks in its words: the nurse asks for what is missing, and only then says what is to be done."""
    said = [("patient", _opening(visit, draw))]
    missing = visit.plan.missing
    if missing is not None:
        said.append(("nurse", draw.choice(_POLITE) + QUESTIONS[missing]))
        said.append(("patient", _answer(visit, missing, draw)))
    said.append(("nurse", _advice(visit)))
    said.append(
        ("patient", draw.choice(["Thank you.", "Okay, we will.", "Thanks. I will do that.", "Good, thank you."]))
    )
    return {
        "patient_key": visit.patient.key, "encounter_id": visit.id, "condition": visit.condition.name,
        "age_group": visit.to_row()["age_group"], "sex": visit.patient.sex, "language": visit.patient.language,
        "ethnicity": visit.patient.ethnicity, "missing": missing or "nothing",
        **needed_and_known(visit),
        "messages": [{"role": role, "content": words} for role, words in said],
    }  # fmt: skip


def _opening(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    if visit.age < ADULT:
        child = "son" if p.sex == "male" else "daughter"
        return (
            f"Hello, this is {mark('name', p.relative)}. I call about my {child} {mark('name', p.first)}, "
            f"{aged(visit)}. We see {listed(written(visit.findings, draw))}. {_known(visit)}"
        )
    works = p.place and p.place not in SCHOOLS and visit.age < 66 and draw.random() < 0.4
    place = f" I work at {mark('organisation', p.place)}." if works else ""
    who = f"{aged(visit)} {'woman' if p.sex == 'female' else 'man'}"
    feels = " ".join(f"{words[:1].upper()}{words[1:]}." for words in told(visit.findings, draw))
    return f"Hello, my name is {mark('name', p.name)}. I am {who}.{place} {feels} {_known(visit)}"


def _known(visit: Visit) -> str:
    """What the caller says of the facts that are known."""
    known, said = visit.known, []
    if known.heart_rate is not None:
        said.append(f"The pulse is {known.heart_rate}.")
    if known.spo2 is not None:
        said.append(f"The oxygen is {known.spo2}.")
    if known.temperature is not None:
        said.append(f"The temperature is {known.temperature}.")
    if known.weight is not None:
        said.append(f"The weight is {known.weight} kg.")
    if known.allergy is not None:
        said.append("There is a penicillin allergy." if known.allergy == "penicillin" else "There are no allergies.")
    if known.pregnant is not None and visit.patient.sex == "female" and visit.age in FERTILE:
        said.append("There is a pregnancy." if known.pregnant else "There is no pregnancy.")
    if known.egfr is not None:
        said.append(f"The last eGFR was {known.egfr}.")
    return " ".join(said)


def _answer(visit: Visit, missing: str, draw: random.Random) -> str:
    true = visit.true
    yes_no = {True: ["Yes.", "Yes, that is so."], False: ["No.", "No, not at all."]}
    if missing == "allergy":
        return draw.choice(yes_no[true.allergy == "penicillin"])
    if missing == "pregnancy":
        return draw.choice(yes_no[bool(true.pregnant)])
    value = {
        "heart rate": f"{true.heart_rate}", "oxygen saturation": f"{true.spo2} per cent",
        "temperature": f"{true.temperature}", "weight": f"{true.weight} kg", "kidney function": f"{true.egfr}",
    }[missing]  # fmt: skip
    return draw.choice([f"{value}.", f"It is {value}.", f"We measured {value}."])


def _advice(visit: Visit) -> str:
    plan = visit.whole_plan
    assert plan.triage is not None, "everything is known by now"
    return (
        f"This sounds like {visit.condition.name}. Please {_URGENCY[plan.triage]}. Plan: {next_step(plan)} "
        f"Call {mark('phone', visit.nurse.extension)} and ask for {mark('name', visit.nurse.first)}."
    )


def write_dialogues(raw: Path, visits: list[Visit], draw: random.Random, planted: Planted, told: Told) -> None:
    """Write calls, a line each, and two broken lines among them."""
    path = raw / DIALOGUES
    path.parent.mkdir(parents=True, exist_ok=True)
    damaged = {
        len(visits) // 3: (b'{"patient_key": "P0', "cut off"),
        2 * len(visits) // 3: (b'{"patient_key": "\xff\xfe\xfa', "cut off, and bytes that are no text"),
    }
    with path.open("wb") as file:
        line = 0
        for number, visit in enumerate(visits):
            if number in damaged:
                line += 1
                file.write(damaged[number][0] + b"\n")
                told.is_broken(DIALOGUES, f"line {line}", damaged[number][1])
            line += 1
            row = dialogue(visit, draw)
            for n, message in enumerate(row["messages"], 1):
                part = f"message {n}"
                message["content"] = planted.clean(
                    message["content"], DIALOGUES, f"line {line}", part, visit.patient.key
                )
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _reminder(visit: Visit, staff: Staff, draw: random.Random) -> tuple[str, str]:
    p = visit.patient
    day = mark("date", f"{visit.day:%A}, {visit.day.day} {visit.day:%B}")
    return "Your appointment", (
        f"Dear {'Ms.' if p.sex == 'female' else 'Mr.'} {mark('name', p.last)},\n\nyour appointment with Dr. "
        f"{mark('name', visit.doctor.last)} in {visit.ward} is on {day}. Please bring your card of "
        f"{mark('organisation', p.insurer)} ({mark('id', p.member)}).\n\nIf you can not come, call "
        f"{mark('phone', staff.extension)}."
    )


def _question(visit: Visit, staff: Staff, draw: random.Random) -> tuple[str, str]:
    p = visit.patient
    drug = visit.whole_plan.drug if visit.whole_plan.dose_mg else "check-up"
    why = listed(told(visit.findings, draw))
    if visit.age < ADULT:
        why = f"my child had {listed(written(visit.findings, draw))}"
    return "Question about my visit", (
        f"Hello,\n\nI was in {visit.ward} on {mark('date', f'{visit.day.month}/{visit.day.day}')} because {why}. "
        f"Do I still need the {drug}? You can call me at {mark('phone', p.phone)} or {mark('name', p.relative)} at "
        f"{mark('phone', p.relative_phone)}. "
        f"We moved to {mark('address', p.address)}.\n\nMany thanks\n{mark('name', p.first)}"
    )


def _handover(visit: Visit, staff: Staff, draw: random.Random) -> tuple[str, str]:
    p = visit.patient
    tomorrow = mark("date", f"{visit.day + timedelta(days=1):%A}")
    return f"Handover {visit.ward}", (
        f"Hi {mark('name', visit.nurse.first)},\n\ncan you look after {mark('name', p.name)} (MRN {mark('id', p.mrn)}) "
        f"from {tomorrow} on? It is {aged(visit)} with {visit.condition.name}, triage {visit.whole_plan.triage}. "
        f"{next_step(visit.plan)} {mark('name', p.relative)} will phone from {mark('phone', p.relative_phone)}.\n\n"
        f"Thanks, {mark('name', staff.first)}"
    )


_MAILS: tuple[Callable[[Visit, Staff, random.Random], tuple[str, str]], ...] = (_reminder, _question, _handover)


def write_mail(raw: Path, visit: Visit, staff: Staff, draw: random.Random, planted: Planted) -> str:
    """An e-mail between staff and a patient, or between staff; returns its name."""
    p, name = visit.patient, f"mail/{visit.patient.key}-{visit.id}.eml"
    kind = draw.randrange(3)
    subject, body = _MAILS[kind](visit, staff, draw)
    if kind != 1:
        body += (
            f"\n\n--\n{mark('name', staff.name)}\n{mark('organisation', HOSPITAL)}, {visit.ward}\n"
            f"{mark('phone', staff.extension)} | {mark('email', staff.email)}"
        )
    office, patient, nurse = (staff.name, staff.email), (p.name, p.email), (visit.nurse.name, visit.nurse.email)
    sender, receiver = ((office, patient), (patient, office), (office, nurse))[kind]
    message = EmailMessage(policy=SMTP)
    for header, (who, address) in (("From", sender), ("To", receiver)):
        planted.clean(f"{mark('name', who)} <{mark('email', address)}>", name, WHOLE, f"header {header}", p.key)
        message[header] = Address(who, addr_spec=address)
    message["Subject"] = subject
    message["Date"] = datetime.combine(visit.day, time(draw.randint(7, 20), draw.randint(0, 59)), UTC)
    message["Message-ID"] = f"<{visit.id}.{kind}@lindenmoor.example>"
    plain = planted.clean(body + "\n", name, WHOLE, "body", p.key)
    message.set_content(plain)
    if draw.random() < 0.3:
        paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in plain.split("\n\n"))
        message.add_alternative(f"<html><body>{paragraphs}</body></html>", subtype="html")
        message.set_boundary(f"part-of-{visit.id}")
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(message.as_bytes())
    return name
