"""The rules of the example town: one table of services, and what follows from it for a person.

Everything that the town's papers say, and every right answer about them, is worked out from `SERVICES`. Town, fees and
conditions are invented.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

TOWN = "Wendelmere"
YOUNG, OLD = 18, 65  # below and from which age a fee may be lower
LOW_INCOME = 1200  # crowns a month of a household, below which a fee may be lower
AGE, YEARS, INCOME = "age", "years in town", "income"
NOTHING = "nothing"
OFFICES = {
    "Registry": "Monday to Thursday, 8 to 12",
    "Streets Office": "Tuesday and Friday, 9 to 13",
    "Building Office": "Wednesday, 10 to 16",
    "Family Office": "Monday to Friday, 8 to 14",
    "Social Office": "Tuesday and Thursday, 13 to 18",
}


@dataclass(frozen=True)
class Service:
    """What people can ask for. wishes: how they say it. under_18, from_65, low_income: lower fees, if there are any.

    from_age, years, most_income: who may apply; days: how long it takes.
    """

    name: str
    form: str
    wishes: tuple[str, ...]
    fee: int
    office: str
    days: int
    papers: tuple[str, ...]
    under_18: int | None = None
    from_65: int | None = None
    low_income: int | None = None
    from_age: int = 0
    years: int = 0
    most_income: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be known or brought, in the order in which the office asks for it."""
        of_age = self.from_age > 0 or self.under_18 is not None or self.from_65 is not None
        of_income = self.most_income is not None or self.low_income is not None
        facts = [name for name, is_needed in ((AGE, of_age), (YEARS, self.years > 0), (INCOME, of_income)) if is_needed]
        return (*facts, *self.papers)


@dataclass(frozen=True)
class Facts:
    """What is known of who applies; None is unknown. papers: what is at hand."""

    age: int | None
    years: int | None
    income: int | None
    papers: tuple[str, ...] = ()

    def has(self, need: str) -> bool:
        """Whether a fact is known, or a paper there."""
        held = {AGE: self.age, YEARS: self.years, INCOME: self.income}
        return held[need] is not None if need in held else need in self.papers


SERVICES = {
    service.name: service
    for service in (
        Service("residence certificate", "A11",
                ("I need a paper that says that I live here", "my bank wants proof of where I live",
                 "I would like a certificate of residence"),
                12, "Registry", 3, ("identity card", "rent contract"), from_65=6, low_income=4),
        Service("passport", "A12",
                ("I want to travel abroad and have no passport", "my passport has run out",
                 "I would like to apply for a passport"),
                60, "Registry", 21, ("photo", "birth certificate"), under_18=28),
        Service("dog licence", "B21",
                ("we have got a puppy and must register it", "I would like to register my dog",
                 "I need the licence for a dog"),
                45, "Streets Office", 5, ("identity card", "vaccination record"), from_65=20, low_income=15,
                from_age=18),
        Service("parking permit", "B22",
                ("I want to park my car in my street", "I need a resident's parking permit",
                 "I would like a permit to leave my car in front of the house"),
                80, "Streets Office", 7, ("car registration", "rent contract"), from_65=40, from_age=18, years=1),
        Service("market stall", "B23",
                ("I would like to sell vegetables on the market", "I want to rent a stall",
                 "I need room for my stall on the market"),
                90, "Streets Office", 14, ("identity card", "hygiene certificate"), low_income=30, from_age=18),
        Service("building permit", "C31",
                ("I want to build a shed in the garden", "we would like to put up a garage",
                 "I need permission to add a room to the house"),
                150, "Building Office", 60, ("site plan", "land register extract"), from_age=18),
        Service("garden plot", "C32",
                ("I would like to rent a plot to grow vegetables", "I want one of the town's allotments",
                 "I would like to put my name down for a garden plot"),
                110, "Building Office", 30, ("identity card",), from_65=70, low_income=55, from_age=21, years=5),
        Service("nursery place", "D41",
                ("I need a place in the nursery for my daughter", "I want to put my son into day care",
                 "my baby needs a place in the town's nursery"),
                75, "Family Office", 28, ("birth certificate", "proof of income"), low_income=25, years=1),
        Service("wedding date", "D42",
                ("we would like to get married in the town hall", "I want to book a wedding",
                 "we are engaged and need a date for the ceremony"),
                120, "Family Office", 42, ("identity card", "birth certificate"), low_income=50, from_age=18),
        Service("library card", "D43",
                ("I would like to borrow books", "I want to join the library", "I need a card for the library"),
                10, "Family Office", 1, ("identity card",), under_18=0, from_65=5, low_income=2, from_age=6),
        Service("bus pass", "E51",
                ("I would like a yearly ticket for the town's buses", "I need a bus pass",
                 "I take the bus every day and want the cheaper pass"),
                35, "Social Office", 4, ("photo",), under_18=18, from_65=16, low_income=14, from_age=6),
        Service("housing benefit", "E52",
                ("I can no longer pay the rent by myself", "I would like help with my rent",
                 "I want to apply for housing benefit"),
                8, "Social Office", 35, ("proof of income", "rent contract"), from_age=18, years=3, most_income=1800),
        Service("heating grant", "E53",
                ("I cannot pay the heating this winter", "I would like help with my heating bill",
                 "I want to apply for the heating grant"),
                6, "Social Office", 20, ("proof of income", "heating bill"), from_age=60, years=2, most_income=1500),
        Service("fishing permit", "F61",
                ("I would like to fish in the lake", "I want to go fishing and need the permit",
                 "I need a permit to catch trout in the river"),
                25, "Registry", 2, ("identity card", "photo"), under_18=9, from_age=12),
    )
}  # fmt: skip
QUESTIONS = {
    AGE: "How old is the person who applies?",
    YEARS: f"How many years has the person lived in {TOWN}?",
    INCOME: "How many crowns a month does the household have?",
    **{
        paper: f"Do you have the {paper}?"
        for paper in sorted({paper for service in SERVICES.values() for paper in service.papers})
    },
}
"""What the office asks where a fact or a paper is missing."""


def missing(service: Service, facts: Facts) -> str:
    """The first of what is needed that is neither known nor there; NOTHING if all is."""
    return next((need for need in service.needs if not facts.has(need)), NOTHING)


def is_entitled(service: Service, facts: Facts) -> tuple[bool, str] | None:
    """Whether a person may apply, and why; None while a fact is unknown that decides it."""
    checks: list[tuple[str, str, bool]] = []
    if service.from_age:
        if facts.age is None:
            return None
        checks.append((f"from age {service.from_age}", f"age {facts.age}", facts.age >= service.from_age))
    if service.years:
        if facts.years is None:
            return None
        here = counted_years(facts.years)
        checks.append((f"{counted_years(service.years)} here", here, facts.years >= service.years))
    if service.most_income is not None:
        if facts.income is None:
            return None
        most, own = f"income up to {service.most_income} crowns", f"{facts.income} crowns"
        checks.append((most, own, facts.income <= service.most_income))
    said = [f"{rule}: {found} {'yes' if holds else 'no'}" for rule, found, holds in checks] or ["for all"]
    return all(holds for *_, holds in checks), f"{service.name}, {', '.join(said)}"


def fee(service: Service, facts: Facts) -> tuple[int, str] | None:
    """What a person pays, the least of all fees that hold, and why; None while a fact is unknown that decides it."""
    held, steps = [service.fee], [f"{service.name} fee {service.fee}"]
    for lower, rule, name, value, holds in (
        (service.under_18, f"under {YOUNG}", AGE, facts.age, facts.age is not None and facts.age < YOUNG),
        (service.from_65, f"from {OLD}", AGE, facts.age, facts.age is not None and facts.age >= OLD),
        (service.low_income, f"income under {LOW_INCOME}", INCOME, facts.income,
         facts.income is not None and facts.income < LOW_INCOME),
    ):  # fmt: skip
        if lower is None:
            continue
        if value is None:
            return None
        steps.append(f"{rule} pays {lower}: {name} {value} {'yes' if holds else 'no'}")
        held += [lower] * holds
    return min(held), f"{', '.join(steps)}; so {min(held)}"


def who_may(service: Service) -> str:
    """Who may apply, in words."""
    if not (service.from_age or service.years or service.most_income):
        return "everybody"
    age = f" from the age of {service.from_age}" if service.from_age else ""
    years = f" who have lived in {TOWN} for {counted_years(service.years)} or more" if service.years else ""
    income = f", in a household with up to {service.most_income} crowns a month" if service.most_income else ""
    return f"people{age}{years}{income}"


def counted_years(years: int) -> str:
    """A number of years in words."""
    return f"{years} year{'s' * (years != 1)}"


def listed(words: Collection[str]) -> str:
    """Words in a row, with an "and" before the last."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
