"""The people of the example hospital: patients, their relatives, and staff. Faker draws them; none of them exists."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faker import Faker

HOSPITAL = "Lindenmoor General Hospital"
FIRST_DAY, LAST_DAY = date(2023, 1, 1), date(2024, 12, 31)
# Language, ethnicity, locale of names, patients out of a hundred. The small groups are meant to be found too small.
GROUPS = (
    ("English", "white", "en_US", 34), ("English", "Black", "en_NG", 12), ("English", "white", "en_IE", 6),
    ("Spanish", "Hispanic", "es_MX", 18), ("Hindi", "South Asian", "en_IN", 9), ("Polish", "white", "pl_PL", 6),
    ("Vietnamese", "East Asian", "vi_VN", 5), ("Turkish", "Middle Eastern", "tr_TR", 4),
    ("Yoruba", "Black", "yo_NG", 3), ("French", "white", "fr_FR", 2), ("German", "white", "de_DE", 1),
)  # fmt: skip
TOWNS = ("Lindenmoor", "Ashwick", "Port Carrow", "Elmsbury", "Hollow Creek", "Kestrel Bay", "Nether Vale")
SCHOOLS = ("Elmsbury Primary School", "Kestrel Bay High School", "St. Odilia School", "Hollow Creek Elementary")
EMPLOYERS = (
    "Blue Heron Bakery", "Carrow Shipping", "Nordwind Logistics", "Ironbridge Steel", "Sunrise Laundry",
    "Ashwick Council", "Vale Poultry", "Pixelforge",
)  # fmt: skip
PRACTICES = ("Ashwick Family Practice", "Elmsbury Health Centre", "Kestrel Bay Surgery", "Vale Medical Group")
INSURERS = ("Evergold Mutual", "NordCare Plus", "Pinnacle Health Plan")
_ROLES = ("doctor",) * 14 + ("nurse",) * 12 + ("clerk",) * 4
_LETTERS = str.maketrans({"ł": "l", "đ": "d", "\u0131": "i", "Ł": "L", "Đ": "D", "ø": "o", "ß": "ss", "\u2019": "'"})


@dataclass(frozen=True)
class Patient:
    """A patient as the registry knows them. relative: a parent of a child, next of kin of others."""

    key: str
    mrn: str
    first: str
    last: str
    sex: str
    born: date
    language: str
    ethnicity: str
    street: str
    town: str
    postcode: str
    phone: str
    email: str
    ssn: str
    insurer: str
    member: str
    relative: str
    relative_phone: str
    place: str  # of work, or the school
    practice: str
    doctor: str  # the family doctor
    penicillin_allergy: bool

    @property
    def name(self) -> str:
        """First name and surname."""
        return f"{self.first} {self.last}"

    @property
    def address(self) -> str:
        """The address on one line."""
        return f"{self.street}, {self.town} {self.postcode}"

    def age(self, day: date) -> int:
        """Whole years on a day."""
        return day.year - self.born.year - ((day.month, day.day) < (self.born.month, self.born.day))

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"born": self.born.isoformat()}


@dataclass(frozen=True)
class Staff:
    """Somebody who works in the hospital."""

    first: str
    last: str
    role: str
    email: str
    extension: str

    @property
    def name(self) -> str:
        """First name and surname."""
        return f"{self.first} {self.last}"


def letters(text: str) -> str:
    """A text in ASCII, as old machines write names."""
    folded = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    return folded.encode("ascii", "ignore").decode()


def phone(draw: random.Random) -> str:
    """A number out of the range that is kept for fiction."""
    area, last = draw.randint(201, 989), draw.randint(100, 199)
    return draw.choice(
        [f"({area}) 555-0{last}", f"{area}-555-0{last}", f"{area}.555.0{last}", f"+1 {area} 555 0{last}"]
    )


class People:
    """Draws people; who comes out follows from the seed and from how many were drawn before."""

    def __init__(self, seed: int) -> None:
        from faker import Faker

        self.draw = random.Random(f"{seed}/people")
        self._fakers: dict[str, Faker] = {}
        for number, locale in enumerate(sorted({group[2] for group in GROUPS})):
            self._fakers[locale] = Faker(locale)
            self._fakers[locale].seed_instance(seed * 1000 + number)

    def staff(self) -> list[Staff]:
        """Everybody who works there."""
        found = []
        for role in _ROLES:
            faker = self._fakers[self.draw.choice(["en_US", "en_US", "en_IN", "pl_PL", "es_MX", "en_NG", "de_DE"])]
            first, last = faker.first_name(), faker.last_name()
            email = f"{_local(first)}.{_local(last)}@lindenmoor.example"
            found.append(Staff(first, last, role, email, str(self.draw.randint(2000, 7999))))
        return found

    def patient(self, number: int) -> Patient:
        """A new patient."""
        draw = self.draw
        language, ethnicity, locale, _ = draw.choices(GROUPS, [group[3] for group in GROUPS])[0]
        faker, home = self._fakers[locale], self._fakers["en_US"]
        sex = draw.choice(["female", "male"])
        first = faker.first_name_female() if sex == "female" else faker.first_name_male()
        last = faker.last_name()
        low, high = draw.choices([(-2, -1), (0, 5), (6, 15), (16, 45), (46, 64), (65, 97)], [12, 12, 14, 34, 13, 15])[0]
        years = draw.randint(low, high)  # on the first day; who is not yet born then is born in the first 20 months
        born = FIRST_DAY - timedelta(days=round(years * 365.25) + draw.randint(0, 364))
        if years < 0:
            born = FIRST_DAY + timedelta(days=draw.randint(0, 600))
        relative = f"{self._other(faker, first)} {last if draw.random() < 0.7 else faker.last_name()}"
        place = draw.choice(SCHOOLS if years <= 15 else EMPLOYERS) if years >= 5 else ""
        return Patient(
            key=f"P{number:05d}", mrn=str(4_000_000 + number * 37 + draw.randint(0, 36)), first=first, last=last,
            sex=sex, born=born, language=language, ethnicity=ethnicity, street=home.street_address(),
            town=draw.choice(TOWNS),
            postcode=home.postcode(), phone=phone(draw), email=f"{_local(first)}.{_local(last)}{number}@example.org",
            ssn=f"9{draw.randint(0, 99):02d}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}",
            insurer=draw.choice(INSURERS), member=f"LM{draw.randint(10**7, 10**8 - 1)}", relative=relative,
            relative_phone=phone(draw), place=place, practice=draw.choice(PRACTICES), doctor=home.last_name(),
            penicillin_allergy=draw.random() < 0.12,
        )  # fmt: skip

    @staticmethod
    def _other(faker: Faker, first: str) -> str:
        """A first name that is not this one."""
        while (name := faker.first_name()) == first:
            pass
        return str(name)


def _local(name: str) -> str:
    return "".join(sign for sign in letters(name).lower() if sign.isalpha()) or "x"
