"""The citizens of the example town, whom Faker draws, and what each asks the town hall for."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from schoolhouse.get.hospital_people import letters, phone
from schoolhouse.get.townhall_rules import (
    AGE,
    INCOME,
    NOTHING,
    OLD,
    SERVICES,
    TOWN,
    YEARS,
    YOUNG,
    Facts,
    Service,
    fee,
    is_entitled,
    missing,
)

if TYPE_CHECKING:
    from faker import Faker

TODAY = date(2024, 3, 1)  # all requests are of this month, in which nobody has a birthday
WRITES_FOR_SELF = 16
_LOCALES = (("en_GB", 50), ("pl_PL", 14), ("en_NG", 12), ("es_MX", 12), ("tr_TR", 7), ("vi_VN", 5))
_AGES = (((6, 11), 8), ((12, 17), 14), ((18, 20), 10), ((21, 59), 38), ((60, 64), 8), ((65, 88), 22))
_CHILDREN_ASK = {
    "residence certificate", "passport", "dog licence", "garden plot", "library card", "bus pass", "fishing permit",
}  # fmt: skip
_STREETS = ("Mill Lane", "Station Road", "Alder Street", "Church Hill", "Weir Row", "Linden Close", "Quarry Street")
_MAY = 0.6  # of the requests are by people who may apply
_LACKS_FACT, _LACKS_PAPER = 0.2, 0.3  # of the requests


@dataclass(frozen=True)
class Citizen:
    """Somebody who lives there. parent: who writes for a child."""

    key: str
    first: str
    last: str
    sex: str
    born: date
    age: int
    years: int
    income: int
    street: str
    phone: str
    email: str
    id_number: str
    parent: str

    @property
    def name(self) -> str:
        """First name and surname."""
        return f"{self.first} {self.last}"

    @property
    def address(self) -> str:
        """The address on one line."""
        return f"{self.street}, {TOWN}"

    @property
    def is_child(self) -> bool:
        """Whether somebody else writes for them."""
        return self.age < WRITES_FOR_SELF

    @property
    def age_group(self) -> str:
        """For counting by group."""
        return "young" if self.age < YOUNG else "adult" if self.age < OLD else "old"

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"born": self.born.isoformat()}


@dataclass(frozen=True)
class Request:
    """What somebody asks for. told: what they say of themselves, and have at hand; true: the same with nothing left
    out.
    """

    id: str
    citizen: Citizen
    service: Service
    day: date
    told: Facts
    true: Facts

    @property
    def missing(self) -> str:
        """What must be asked for, or NOTHING."""
        return missing(self.service, self.told)

    def facts(self) -> dict[str, str]:
        """What is known of it and what follows, as columns; empty is what cannot be said."""
        told, service = self.told, self.service
        entitled, price = is_entitled(service, told), fee(service, told)
        pays = price if entitled is not None and entitled[0] else None
        there = [need for need in service.needs if told.has(need)]
        row: dict[str, object] = {
            "citizen": self.citizen.key, "request": self.id, "date": self.day.isoformat(), "service": service.name,
            "form": service.form, "office": service.office, "age": told.age, "years": told.years,
            "income": told.income, "papers": "; ".join(told.papers), "age_group": self.citizen.age_group,
            "entitled": None if entitled is None else "yes" if entitled[0] else "no",
            "entitled_reason": entitled and entitled[1], "fee": pays and pays[0], "fee_reason": pays and pays[1],
            "missing": self.missing, "needed": ", ".join(service.needs), "known": ", ".join(there) or "none",
        }  # fmt: skip
        return {name: "" if value is None else str(value) for name, value in row.items()}


class People:
    """Draws citizens; who comes out follows from the seed and from how many were drawn before."""

    def __init__(self, seed: int) -> None:
        from faker import Faker

        self._draw = random.Random(f"{seed}/citizens")
        self._fakers: dict[str, Faker] = {}
        for number, (locale, _) in enumerate(_LOCALES):
            self._fakers[locale] = Faker(locale)
            self._fakers[locale].seed_instance(seed * 1000 + number)

    def citizen(self, number: int) -> Citizen:
        """A new citizen."""
        draw = self._draw
        faker = self._fakers[draw.choices(*zip(*_LOCALES, strict=True))[0]]
        sex = draw.choice(["female", "male"])
        first = faker.first_name_female() if sex == "female" else faker.first_name_male()
        last = faker.last_name()
        age = draw.randint(*draw.choices(*zip(*_AGES, strict=True))[0])
        parent = f"{faker.first_name()} {last}" if age < WRITES_FOR_SELF else ""
        local = "".join(sign for sign in letters(f"{first}{last}").lower() if sign.isalpha()) or "x"
        return Citizen(
            key=f"C{number:05d}", first=first, last=last, sex=sex, born=_birthday(age, draw), age=age,
            years=min(age, draw.choice([0, 1, 1, 2, 2, 3, 4, draw.randint(5, 12), draw.randint(13, 40)])),
            income=50 * draw.randint(11, 24) if draw.random() < 0.45 else 50 * draw.randint(24, 70),
            street=f"{draw.randint(1, 140)} {draw.choice(_STREETS)}", phone=phone(draw),
            email=f"{local}{number}@example.org",
            id_number=f"WM-{draw.randint(10**6, 10**7 - 1)}", parent=parent,
        )  # fmt: skip


def _birthday(age: int, draw: random.Random) -> date:
    """A day in another month than that of the requests, so that the age is the same on all of them."""
    day = date(TODAY.year, draw.choice([1, 2, *range(4, 13)]), draw.randint(1, 28))
    return day.replace(year=TODAY.year - age - (day > TODAY))


def draw_request(citizen: Citizen, number: int, draw: random.Random) -> Request:
    """Something that this citizen asks for: now and then a fact or a paper is missing, never both."""
    service = _service(citizen, draw.random() < _MAY, draw)
    own = set(service.papers)
    others = sorted({paper for one in SERVICES.values() for paper in one.papers} - own)
    if draw.random() < 0.15:
        own.add(draw.choice(others))
    chance = draw.random()
    gone = None
    facts = [need for need in service.needs if need not in service.papers]
    if chance < _LACKS_FACT and facts:
        gone = draw.choice(facts)
    elif chance < _LACKS_FACT + _LACKS_PAPER:
        gone = draw.choice(service.papers)
    papers = list(service.papers) + sorted(own - set(service.papers))
    draw.shuffle(papers)
    true = Facts(citizen.age, citizen.years, citizen.income, tuple(papers))
    told = Facts(
        _said(citizen.age, AGE, service, gone, draw), _said(citizen.years, YEARS, service, gone, draw),
        _said(citizen.income, INCOME, service, gone, draw), tuple(paper for paper in papers if paper != gone),
    )  # fmt: skip
    request = Request(f"R{number:05d}", citizen, service, TODAY + timedelta(days=draw.randint(0, 27)), told, true)
    assert request.missing == (gone or NOTHING)
    return request


def _said(value: int, name: str, service: Service, gone: str | None, draw: random.Random) -> int | None:
    """A fact as it is told: always where it is needed and not left out, else now and then."""
    if name == gone:
        return None
    return value if name in service.needs or draw.random() < 0.3 else None


def _service(citizen: Citizen, may: bool, draw: random.Random) -> Service:
    """A service for which this person may apply, or may not; any, where there is none such."""
    true = Facts(citizen.age, citizen.years, citizen.income)
    known = [one for one in SERVICES.values() if not citizen.is_child or one.name in _CHILDREN_ASK]
    fit = []
    for service in known:
        answer = is_entitled(service, true)
        assert answer is not None, "all facts are known"
        if answer[0] == may:
            fit.append(service)
    return draw.choice(fit or known)
