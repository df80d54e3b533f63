"""What citizens of the example town write to the town hall, and what is said at its counter."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, time
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

from schoolhouse.get.hospital_marks import WHOLE, Planted, mark
from schoolhouse.get.hospital_tables import Told
from schoolhouse.get.townhall_people import Request
from schoolhouse.get.townhall_rules import (
    AGE,
    INCOME,
    NOTHING,
    QUESTIONS,
    TOWN,
    YEARS,
    counted_years,
    fee,
    is_entitled,
    listed,
    who_may,
)

CHATS = "counter/chats.jsonl"
_HELLO = ("Good morning.", "Hello.", "To the town hall.", "Good afternoon.")
_END = ("Many thanks.", "Thank you.", "What do I have to do?", "Kind regards.")


def message(request: Request, draw: random.Random) -> str:
    """What a citizen writes, with marks around what is personal; the facts are those that are told."""
    citizen = request.citizen
    if citizen.is_child:
        opening = [
            f"I am {mark('name', citizen.parent)} and write for my {_child(citizen.sex)} {mark('name', citizen.first)},"
            " who says:",
        ]
    else:
        opening = [
            f"My name is {mark('name', citizen.name)}.", f"This is {mark('name', citizen.name)}.",
            f"I am {mark('name', citizen.name)}, {mark('address', citizen.street)}.",
            f"{mark('name', citizen.name)} here, number {mark('id', citizen.id_number)}.",
        ]  # fmt: skip
    reach = draw.choice([
        f"Please call {mark('phone', citizen.phone)}.", f"My number is {mark('phone', citizen.phone)}.",
        f"Please write to {mark('email', citizen.email)}.", f"I live at {mark('address', citizen.address)}.", "",
    ])  # fmt: skip
    parts = [draw.choice(_HELLO), draw.choice(opening), _wish(request, draw), *_about(request, draw), reach]
    return " ".join(part for part in [*parts, draw.choice(_END)] if part)


def _wish(request: Request, draw: random.Random) -> str:
    wish = draw.choice(request.service.wishes)
    return f"{wish[:1].upper()}{wish[1:]}."


def _child(sex: str) -> str:
    return "daughter" if sex == "female" else "son"


def _about(request: Request, draw: random.Random) -> list[str]:
    """What is told of the person, in any order."""
    told = request.told
    said = []
    if told.age is not None:
        said.append(draw.choice([f"I am {told.age} years old.", f"I am {told.age}.", f"My age is {told.age}."]))
    if told.years is not None:
        said.append(_years(told.years, draw))
    if told.income is not None:
        said.append(draw.choice([
            f"We have {told.income} crowns a month.", f"The income of our household is {told.income} crowns a month.",
            f"At home we live on {told.income} crowns a month.",
        ]))  # fmt: skip
    if told.papers:
        papers = listed([f"the {paper}" for paper in told.papers])
        said.append(draw.choice([f"I have {papers}.", f"I can bring {papers}.", f"With this I send {papers}."]))
    draw.shuffle(said)
    return said


def _years(years: int, draw: random.Random) -> str:
    if years == 0:
        return f"I have lived in {TOWN} for less than a year."
    words = counted_years(years)
    return draw.choice([f"I have lived in {TOWN} for {words}.", f"I moved to {TOWN} {words} ago."])


def advice(request: Request) -> str:
    """What the clerk says when everything is known and there."""
    service, true = request.service, request.true
    answer, price = is_entitled(service, true), fee(service, true)
    assert answer is not None, "everything is known"
    assert price is not None
    if not answer[0]:
        return f"I am sorry, this is for {who_may(service)}."
    return (
        f"Please fill in form {service.form} at the {service.office}. The fee is {price[0]} crowns, and it takes "
        f"{counted_days(service.days)}."
    )


def counted_days(days: int) -> str:
    """A number of days in words."""
    return f"{days} day{'s' * (days != 1)}"


def chat(request: Request, draw: random.Random) -> dict[str, Any]:
    """A talk at the counter, with marks in its words: the clerk asks for what is missing, and then says what to do."""
    said = [("citizen", message(request, draw))]
    if request.missing != NOTHING:
        said.append(("clerk", QUESTIONS[request.missing]))
        said.append(("citizen", _answer(request, draw)))
    said.append(("clerk", advice(request)))
    row = request.facts()
    kept = ("citizen", "request", "date", "service", "form", "age_group", "missing")
    return {name: row[name] for name in kept} | {"messages": [{"role": who, "content": words} for who, words in said]}


def _answer(request: Request, draw: random.Random) -> str:
    true = request.true
    facts = {
        AGE: [f"{true.age}.", f"I am {true.age}."],
        YEARS: ["Less than one." if not true.years else f"{counted_years(true.years)}."],
        INCOME: [f"{true.income} crowns.", f"About {true.income} crowns."],
    }  # fmt: skip
    return draw.choice(facts.get(request.missing, ["Yes, here it is.", "Yes, I have it with me."]))


def write_chats(raw: Path, requests: list[Request], draw: random.Random, planted: Planted, told: Told) -> None:
    """Write talks, a line each, and a broken line among them."""
    path = raw / CHATS
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        line = 0
        for number, request in enumerate(requests):
            if number == len(requests) // 2:
                line += 1
                file.write(b'{"citizen": "C0\n')
                told.is_broken(CHATS, f"line {line}", "cut off")
            line += 1
            row = chat(request, draw)
            for n, said in enumerate(row["messages"], 1):
                place = (CHATS, f"line {line}", f"message {n}", request.citizen.key)
                said["content"] = planted.clean(said["content"], *place)
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def write_mail(raw: Path, request: Request, draw: random.Random, planted: Planted) -> str:
    """An e-mail that nobody has answered yet; returns its name."""
    citizen = request.citizen
    name = f"mail/{citizen.key}-{request.id}.eml"
    sender = citizen.parent or citizen.name
    mail = EmailMessage(policy=SMTP)
    planted.clean(f"{mark('name', sender)} <{mark('email', citizen.email)}>", name, WHOLE, "header From", citizen.key)
    mail["From"] = Address(sender, addr_spec=citizen.email)
    mail["To"] = Address(f"Town Hall of {TOWN}", addr_spec="office@wendelmere.example")
    mail["Subject"] = draw.choice(["A question", "What do I need?", "Request", "Form"])
    mail["Date"] = datetime.combine(request.day, time(draw.randint(6, 22), draw.randint(0, 59)), UTC)
    mail["Message-ID"] = f"<{request.id}@wendelmere.example>"
    body = f"{message(request, draw)}\n\n{mark('name', sender)}\n{mark('address', citizen.address)}\n"
    mail.set_content(planted.clean(body, name, WHOLE, "body", citizen.key))
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(mail.as_bytes())
    return name
