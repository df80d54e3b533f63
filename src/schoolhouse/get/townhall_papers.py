"""The papers of the example town hall that name nobody (rules, services, questions), and its registers that do."""

from __future__ import annotations

import csv
import random
import zipfile
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from schoolhouse.get.hospital_marks import Planted, mark
from schoolhouse.get.hospital_tables import Told
from schoolhouse.get.townhall_people import Citizen, Request
from schoolhouse.get.townhall_rules import LOW_INCOME, OFFICES, OLD, QUESTIONS, SERVICES, TOWN, YOUNG, listed, who_may
from schoolhouse.get.townhall_talk import counted_days, message

INVENTED = f"The town of {TOWN}, its rules and its people are invented for an example. No town has these fees."
CASES, CITIZENS, SERVICE_LIST, QUESTIONS_FILE = (
    "cases/register.csv", "office/citizens.csv", "rules/services.csv", "rules/questions.docx",
)  # fmt: skip
COLUMNS = (
    "citizen", "request", "date", "message", "service", "form", "office", "age", "years", "income", "papers",
    "age_group", "entitled", "entitled_reason", "fee", "fee_reason", "missing", "needed", "known",
)  # fmt: skip
_TWICE, _NEARLY = 0.02, 0.02  # of rows stand there again, as they are or a little changed
_CHANGES: tuple[Callable[[str], str], ...] = (lambda text: text + " (sent again)", lambda text: "Fwd: " + text)
_STAMP = (1980, 1, 1, 0, 0, 0)  # of the members of a Word file, so that the same seed gives the same bytes


def rules() -> dict[str, Any]:
    """The rules as JSON."""
    return {
        "note": INVENTED, "young": YOUNG, "old": OLD, "low_income": LOW_INCOME, "offices": OFFICES,
        "questions": QUESTIONS, "services": [vars(service) for service in SERVICES.values()],
    }  # fmt: skip


def write_rules(raw: Path) -> None:
    """Rules in Markdown, the services as a table, and questions with their answers as a Word file."""
    (raw / "rules").mkdir(parents=True, exist_ok=True)
    for name, lines in (("who-may-apply.md", _who_may()), ("fees.md", _fees()), ("papers.md", _papers())):
        text = "\n".join([*lines, "", "---", "", INVENTED, ""])
        (raw / "rules" / name).write_text(text, encoding="utf-8")
    with (raw / SERVICE_LIST).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["service", "form", "office", "hours", "days", "fee", "under 18", "from 65", "low income"])
        for one in SERVICES.values():
            fees = [one.fee, one.under_18, one.from_65, one.low_income]
            table.writerow([one.name, one.form, one.office, OFFICES[one.office], one.days, *fees])
    (raw / QUESTIONS_FILE).write_bytes(_questions())


def _who_may() -> list[str]:
    return ["# Who may apply", "", *(f"- {one.name}: {who_may(one)}" for one in SERVICES.values())]


def _fees() -> list[str]:
    head = ["# Fees, in crowns", "", "| Service | Fee | Under 18 | From 65 | Low income |", "|---|---|---|---|---|"]
    rows = [
        f"| {one.name} | {one.fee} | {_cell(one.under_18)} | {_cell(one.from_65)} | {_cell(one.low_income)} |"
        for one in SERVICES.values()
    ]
    least = f"Where several fees hold, the least one counts. A low income is less than {LOW_INCOME} crowns a month."
    return [*head, *rows, "", least]


def _cell(fee: int | None) -> str:
    return "" if fee is None else str(fee)


def _papers() -> list[str]:
    head = ["# What must be brought, and what is asked", "", "| Service | Form | What is needed |", "|---|---|---|"]
    rows = [f"| {one.name} | {one.form} | {', '.join(one.needs)} |" for one in SERVICES.values()]
    order = "What is not told is asked for in this order, one thing at a time:"
    return [*head, *rows, "", order, "", *(f"- {need}: {question}" for need, question in QUESTIONS.items())]


def _questions() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("Questions that we are often asked", 1)
    for one in SERVICES.values():
        document.add_paragraph(f"Where do I get a {one.name}, and how long does it take?")
        document.add_paragraph(
            f"At the {one.office}, {OFFICES[one.office]}, with form {one.form}. It takes {counted_days(one.days)}. "
            f"Bring {listed([f'the {paper}' for paper in one.papers])}."
        )
    document.add_paragraph(INVENTED)
    document.core_properties.created = document.core_properties.modified = datetime(2024, 3, 1)
    held, out = BytesIO(), BytesIO()
    document.save(held)
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(zipfile.ZipInfo(member, _STAMP), old.read(member), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def write_citizens(raw: Path, citizens: list[Citizen], planted: Planted) -> None:
    """The register of citizens, in UTF-8 with a byte order mark, as spreadsheets write it."""
    (raw / CITIZENS).parent.mkdir(parents=True, exist_ok=True)
    with (raw / CITIZENS).open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        head = ["citizen", "name", "born", "address", "phone", "email", "id_number"]
        table.writerow(head)
        for number, one in enumerate(citizens, 2):
            marked = [
                mark("name", one.name), mark("date", one.born.isoformat()), mark("address", one.address),
                mark("phone", one.phone), mark("email", one.email), mark("id", one.id_number),
            ]  # fmt: skip
            pairs = zip(head[1:], marked, strict=True)
            cells = [planted.clean(cell, CITIZENS, f"row {number}", part, one.key) for part, cell in pairs]
            table.writerow([one.key, *cells])


def write_cases(raw: Path, requests: list[Request], draw: random.Random, planted: Planted, told: Told) -> None:
    """The register of requests with what the clerks decided; some rows twice, two that cannot be used."""
    (raw / CASES).parent.mkdir(parents=True, exist_ok=True)
    with (raw / CASES).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        count = 1

        def put(row: dict[str, str]) -> str:
            nonlocal count
            count += 1
            place = f"row {count}"
            table.writerow([planted.clean(row[name], CASES, place, name, row["citizen"]) for name in COLUMNS])
            return place

        for number, request in enumerate(requests):
            row = request.facts() | {"message": message(request, draw)}
            place, chance = put(row), draw.random()
            if chance < _TWICE:
                told.repeated.append({"file": CASES, "place": put(row), "repeats": place, "kind": "same"})
            elif chance < _TWICE + _NEARLY:
                row |= {"message": draw.choice(_CHANGES)(row["message"]), "request": f"{request.id}-2"}
                told.repeated.append({"file": CASES, "place": put(row), "repeats": place, "kind": "nearly the same"})
            if number == len(requests) // 2:
                told.is_broken(CASES, put(row | {"message": ""}), "no message")
                table.writerow([row["citizen"], request.id, "see paper file"])
                count += 1
                told.is_broken(CASES, f"row {count}", "too few cells")
