"""The values that tests/gold_notes.py puts into notes: invented people, places, numbers. None belongs to anybody.

Telephone numbers, addresses of machines and mail domains come from the ranges that are kept free for fiction and
documentation (555-01xx, the dramas' numbers of Ofcom and others, RFC 5737, RFC 3849, RFC 2606), and social security
numbers from the ranges that were never given out.
"""

import random
import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

from faker import Faker


def parts(text: str) -> list[str]:
    """The entries of a list in one string: apart by `|`, or by blanks where there is none."""
    return text.split("|") if "|" in text else text.split()


LOCALES = parts(
    "en_US en_US en_US en_US en_GB en_IE en_IN en_NG en_PK de_DE fr_FR es_MX es_MX pt_BR it_IT nl_NL nl_BE pl_PL "
    "sv_SE "
    "fi_FI tr_TR vi_VN id_ID hr_HR cs_CZ hu_HU ro_RO yo_NG ha_NG ig_NG zu_ZA tw_GH sw ga_IE da_DK no_NO et_EE lv_LV "
    "az_AZ uz_UZ"
)
# First names and surnames that no Latin-script locale of Faker has, written as people write them in English notes.
ELSEWHERE = {
    "f": "Xiuying Mei-Ling Li Yuki Haruka Ji-woo Soo-Jin Fatima Aisha Noor Leilani Pa Nhia Hodan Tirunesh Oksana "
    "Svetlana Anahit Nino Paraskevi Noa Shirin Thandeka Citlali",
    "m": "Wei Jun Guo-Qiang Bao Kenji Haruto Min-jun Seung-Ho Abdul Omar Khaled Keoni Tou Yang Abdirahman Haile "
    "Dmytro "
    "Vladimir Armen Giorgi Stavros Uri Farhad Sipho Cuauhtemoc",
    "last": "Li Wang Ng Xu Ouyang Zhao Tanaka Suzuki Watanabe Kim Park Choi Al-Masri Haddad bin-Rashid El-Sayed "
    "Kealoha Kamaka Vang Xiong Lor Warsame Abdullahi Tesfaye Bekele Shevchenko Ivanova Petrosyan Kapanadze "
    "Papadopoulos Cohen Hosseini Moradi Dlamini O Yu Oh",
}
WORDS = {
    "f": "Grace Hope Faith Joy May April June Summer Autumn Dawn Rose Ivy Olive Iris Pearl Daisy Penny Sky "
    "Melody Chance "
    "Violet Heather Hazel Ginger Patience Mercy Charity Constance",
    "m": "Will Mark Bill Rob Pat Miles Chase Hunter Drew Frank Ray Art Cliff Dean Max Gene Rich Guy Jack Rusty "
    "Sandy Van "
    "Bob Grant Lance Chip Buck Earl Norm",
    "last": "Brown Young Long Small Price Baker Bell Stone Black White Green Gray Cook Cross Day Field Fish Good "
    "Hand Head "
    "Hope May Rose Sharp Short Sweet Wells Wise Wood Lamb Pepper Nurse Doctor Bone Blood Foot Payne Church Park King "
    "Knight Bishop Pope Winter Summer Rice Salt Lake Hill Rivers Street Parkinson Wilson Graves Foley Smith Barrett "
    "Addison Turner Down Babinski Murphy Thomas Allen Jackson Marsh Weeks Friday English French German Little Savage "
    "Love Hurt Drinkwater Tablet Will Christmas Walker Banks Stent Bair Wall Power Case Page Read",
}  # fmt: skip
EPONYMS = parts(
    "colles boxer tourette hashimoto huntington bowen wagner jamar norton berg thompson hamwi weber fowler gilbert "
    "apgar snellen goldmann hickman austin flint levine penrose cooper battle franklin bosniak douglas ghon"
)
COMMON = {word.lower() for words in WORDS.values() for word in words.split()} | set(EPONYMS)
"""Words that may be a name at one place of a note and a plain word at another."""

NICKS = {
    "William": "Bill", "Robert": "Bobby", "Elizabeth": "Liz", "Margaret": "Peggy", "Richard": "Dick", "John": "Jack",
    "Katherine": "Kate", "Michael": "Mikey", "Patricia": "Trish", "James": "Jimmy", "Susan": "Sue", "Joseph": "Joe",
    "Christopher": "Topher", "Jennifer": "Jen", "Matthew": "Matt", "Deborah": "Debs", "Daniel": "Danno",
}  # fmt: skip
LOOSE_NICKS = parts(
    "Skip Buddy Nana Red Doc Birdie Sparky Lupe Paco Zuzu Ace Bubba Dede Kiki Tex Moose Lefty Mimi Coco"
)
SAINTS = parts("Brendan Columba Odilia Fiacre Walburga Kevin Blaise Dymphna Hedwig Ninian Ursula Aidan Gerlach")
PLACES = parts(
    "Lakeshore|Harbor View|Three Rivers|Elmwood|Northgate|Pine Ridge|Cedar Falls|Riverbend|Mill Creek|Ashford|"
    "Kestrel Bay|"
    "Eastmoor|Stillwater|Copper Hill|Wendover|Larkspur|Greyfriars|Marrow Bay|Sable Point|Tamarack|Oakhurst|"
    "Vale of Arden"
)
TOWNS = parts(
    "Dover|Toledo|Springfield|Reading|Bath|Mobile|Leeds|Lagos|Cebu City|Kraków|San Pedro Sula|Gdańsk|Hue|Mysore|"
    "Tampere|"
    "Fresno|El Paso|Baton Rouge|Truth or Consequences|Nice|Split|Cork|Kumasi|Izmir|Pune|Osh|Tulsa|Bakersfield|Duluth|"
    "Hull|Wells|Sandwich|Orange|Flint|Port-au-Prince|Aleppo|Basra|Mogadishu|Guadalajara|St. Louis|Winston-Salem|"
    "Québec|"
    "Novi Sad|La Paz|Bury St Edmunds|Ho Chi Minh City|Zlín|Århus|Łódź|Kano|Soweto|Recife|Ploiești|Szeged"
)
STATES = parts("NH OH IL CA TX LA FL NY MN OK WA OR PA GA NC New+Mexico Ohio Vermont Ontario Kent Bavaria")
STREETS = parts(
    "Elm Street|Mill Lane|Old Post Road|4th Ave|MLK Blvd|Avenida Reforma|Rue des Lilas|Gartenstraße|Via Roma|Hwy 61|"
    "County Road 12|Saint Paul St|Sunset Dr|N. Main St|W 112th St|Broadway|The Crescent|Rosewood Ct|Church Row|"
    "Kingsway"
)
COMPANIES = parts(
    "Blue Heron Bakery|Kowalski & Sons Roofing|Amberline Logistics|Tri-County Poultry|QuickLube 9|Nordwind Shipping|"
    "Hall of Frames|Apex Paving|Grupo Salinero|the Gazette|Yellow Cab Co-op|J&R Drywall|Sunrise Nails|"
    "Ironbridge Steel|"
    "Pixelforge|Delmonte Tile|Old Mill Diner|Starling Airways|Bayview Casino|Chen's Laundry|Wexel GmbH|"
    "Tidewater Power"
)
TEACHING = parts(
    "Abel Stone|Maple Grove|Jefferson Davies|St. Kevin's|Hillcrest|Rosa Lind|Kings Cross|P.S. 912|Las Palomas"
)
JOBS = parts(
    "plumber|retired teacher|truck driver|seamstress|software developer|farmer|cashier|welder|nurse's aide|"
    "roofer|librarian|"
    "line cook|bus driver|carpenter|student|accountant|pastor|hairdresser|soldier|fisherman"
)
DRUGS = "Celexa|Allegra|Lucentis|Norvasc|Amaryl|Jardiance|Stelara|Victoza|Diovan|Levoxyl|Seroquel|Paxil|Zoloft|Trelegy"
PATTERNS = {
    "mrn": "########|#######|00######|E#######|LK#####|H-###-###|##-##-##|??######",
    "mrn2": "#######|A######|###-##-##",
    "acc": "####-##-####|RAD########|A##-#####|?#########|########|##?######",
    "acct": "#########|V########|##-######",
    "ssn": "9##-##-####|666-##-####|000-##-####|9## ## ####|9########",
    "ssn4": "####",
    "ins": "XQB#########|#S?#-S?#-S?##|W#########|#########A|??######?|####-####-###",
    "dev": "SN########|PJN######H|??-#####-?|#########|ICD####?##|2?##-####",
    "dev2": "PLD######|?##-####",
    "plate": "???-####|### ???|##-? ####|?## ???|?-?? ###",
    "nhs": "999 ### ####|999-###-####|999#######",
    "photo": "IMG_####|DSC#####|#####",
    "lic": "?#######|#########|?###-####-####|PA-######",
    "trial": "NCT9#######|ONC-####-##|??###-##",
    "pass": "?########|??#######|#########",
    "claim": "WC-##-######|##########|C#######-##",
    "run": "##-######|#########",
    "badge": "####|#####|?###",
    "case": "##-####|######|#########|C####-##",
    "case2": "ME##-####|########",
    "npi": "3#########|7#########",
    "dea": "??9######",
    "band": "#####?|??####",
    "band2": "#####?",
    "grp": "G######|#####-##|??#######",
    "path": "S##-#####|SP-##-####|##S-#####|H####/##",
    "clia": "##D#######",
    "rx": "#######|#######-#####|R######",
    "job": "########|J-######",
    "card": "####",
    "bank": "##########|######### / ########",
    "inmate": "#######|?#####",
    "alien": "A#########|A### ### ###",
    "staff": "######|??####|E-#####",
}
PHONES = {
    "us": "(###) 555-01##|###-555-01##|###.555.01##|### 555 01##|###55501##|+1 ### 555 01##|1-###-555-01##|555-01##|"
    "###/555-01##|(###)555-01##",
    "intl": "020 7946 0###|07700 900###|+44 7700 900###|(020)79460###|0161 496 0###|+33 1 99 00 ## ##|06 39 98 ## ##|"
    "+49 30 23125 ###|0171-39200##|+46 8 465 004 ##|020 91# ####|(02) 5550 ####|0491 570 ###|+61 491 570 ###|"
    "0044 1632 960###",
    "pager": "####|#####|555-01##|p####",
    "ext": "####|#####",
}
HOUSES = {
    "hosp": "St. {saint}'s Hospital|St {saint}'s|{place} Regional Medical Center|{place} General|{last} Memorial|"
    "{short}|"
    "Royal {place} Infirmary|Klinikum {last}|{town} VA|Hospital Universitario de {town}|{place} Children's|"
    "Sisters of St. {saint} Hospital|{last}-{place} Hospital",
    "clinic": "{place} Family Practice|{last} Clinic|{place} Spine & Pain|St. {saint} Health Center|"
    "{town} Medical Group",
    "company": "{firm}",
    "school": "{teaching} Elementary|{teaching} High|{place} Primary School|{place} Middle School",
    "college": "{place} State|{town} Community College|University of {place}|{last} College",
    "nursing": "{place} Manor|{place} Care Home|Villa {last}|{place} Skilled Nursing|The {word} House",
    "pharmacy": "{last} Pharmacy|{place} Drugs|{last} & Son Chemists|SaveRight #{number}",
    "insurer": "{place} Mutual|Pinnacle Care of {town}|{last} Health Plan|Evergold Advantage|NordCare Plus",
    "lab": "{place} Reference Laboratory|{last} Diagnostics|PathOne|{place} Labs",
    "imaging": "{place} Imaging|{last} Radiology Associates|{place} MRI Center",
    "surgery": "{place} Surgery|{last} Street Practice|The {place} Practice|{place} Health Centre",
    "homecare": "{place} Home Health|{last} Visiting Nurses|Helping Hands of {town}",
    "rehab": "{place} Rehabilitation Institute|{last} Rehab|St. {saint}'s Rehabilitation",
    "funeral": "{last} & Daughters|{last} Funeral Home|{place} Chapel",
    "jail": "{place} County Jail|HMP {place}|{place} Correctional",
    "agency": "{place} Resettlement|Catholic Aid of {town}|{last} Interpreting|Open Door {town}",
}
MONTHS = parts("January February March April May June July August September October November December")
DAYS = parts("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
HOLIDAYS = parts(
    "Christmas|Christmas Eve|Thanksgiving|New Year's Eve|Easter Monday|July 4th|Diwali|Halloween|Labor Day|Eid"
)
ONES = parts("one two three four five six seven eight nine")
DIGITS = ["oh", *ONES]
NTHS = parts(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third twenty-fourth "
    "twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"
)


@dataclass(frozen=True)
class Person:
    """Somebody who does not exist."""

    first: str
    middle: str
    last: str
    sex: str
    nick: str
    born: date
    mrn: str
    title: str


def plain(text: str) -> str:
    """Lower-case ASCII letters alone, as in a mail address."""
    folded = unicodedata.normalize("NFKD", text.lower().replace("ø", "o").replace("ł", "l").replace("\u0131", "i"))
    return re.sub(r"[^a-z]", "", folded)


class Maker:
    """Draws values; every draw follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fakers = {locale: Faker(locale) for locale in sorted(set(LOCALES) | {"en_CA", "en_AU"})}
        for number, faker in enumerate(self.fakers.values()):
            faker.seed_instance(seed * 1000 + number)

    def fill(self, pattern: str) -> str:
        """One of the patterns apart by `|`; `#` becomes a digit, `?` a capital letter."""
        chosen = self.random.choice(pattern.split("|"))
        letters = {"#": "0123456789", "?": "ABCDEFGHJKLMNPRTUVWXYZ"}
        return "".join(self.random.choice(letters[sign]) if sign in letters else sign for sign in chosen)

    def pattern(self, kind: str, form: str) -> str:
        """The patterns of a kind of number."""
        return {"id": PATTERNS, "phone": PHONES}[kind][form]

    def pool(self, kind: str) -> list[str]:
        """The drugs or the jobs."""
        return {"drug": DRUGS.split("|"), "job": JOBS}[kind]

    def person(self, group: str, sex: str | None = None, words: bool = False) -> Person:
        """A new person: group is kid, adult, old or baby."""
        draw = self.random
        sex = sex or draw.choice("fm")
        first, middle, last = (self._name(part, sex, words) for part in ("first", "first", "last"))
        if draw.random() < 0.08:
            last = f"{last}-{self._name('last', sex, words)}"
        elif draw.random() < 0.04:
            last = draw.choice(
                ["O'Neill", "D'Souza", "Mc Kenna", "MacLeod", "de la Cruz", "van der Berg", "St. James", "N'Diaye"]
            )
        years = {"kid": (3, 12), "adult": (22, 80), "old": (92, 99), "baby": (0, 0)}[group]
        born = date(2022, 1, 1) - timedelta(days=draw.randint(years[0] * 365 + years[0] // 4, years[1] * 365 + 20))
        nick = NICKS.get(first) or draw.choice(LOOSE_NICKS)
        titles = ("Mr.", "Mr", "Mister") if sex == "m" else ("Mrs.", "Ms.", "Miss", "Mrs")
        return Person(first, middle, last, sex, nick, born, self.fill(PATTERNS["mrn"]), draw.choice(titles))

    def _name(self, part: str, sex: str, words: bool) -> str:
        key = "last" if part == "last" else sex
        if self.random.random() < (0.7 if words else 0.1):
            return self.random.choice(WORDS[key].split())
        if self.random.random() < 0.14:
            return self.random.choice(ELSEWHERE[key].split())
        faker = self.fakers[self.random.choice(LOCALES)]
        while True:
            draw = (
                faker.last_name if part == "last" else faker.first_name_female if sex == "f" else faker.first_name_male
            )
            name = draw()
            if len(name) > 1:
                return name

    def town(self) -> str:
        """A town, in most draws one that exists: a town alone is nobody's."""
        if self.random.random() < 0.75:
            return self.random.choice(TOWNS)
        return self.fakers[self.random.choice(["en_US", "en_GB", "de_DE", "es_MX", "pl_PL"])].city()

    def address(self, form: str) -> str:
        """An address or a part of one."""
        draw = self.random
        if form == "city":
            return self.town()
        if form == "citystate":
            return f"{self.town()}, {draw.choice(STATES).replace('+', ' ')}"
        if form == "partial":
            one, other = draw.sample(STREETS, 2)
            return draw.choice([
                f"{one} and {other}", f"{draw.randint(1, 40)}00 block of {one}", f"apt {draw.randint(1, 30)}B on {one}",
                f"{other} near the water tower", f"Bldg {draw.choice('ABCD')}, {one}", f"{draw.randint(2, 980)} {one}",
            ])  # fmt: skip
        street, place = self._street()
        if form == "street":
            return street
        if form == "pobox":
            return f"{draw.choice(['PO Box', 'P.O. Box', 'Postfach'])} {draw.randint(11, 9940)}, {place}"
        return f"{street}{chr(10) if form in ('two', 'lines') else ', '}{place}"

    def _street(self) -> tuple[str, str]:
        draw = self.random
        locale = draw.choice(
            ["en_US", "en_US", "en_US", "en_GB", "en_GB", "en_CA", "en_AU", "de_DE", "nl_NL", "es_MX", "fr_FR"]
        )
        faker = self.fakers[locale]
        street = " ".join(faker.street_address().replace("\n", ", ").split())
        if draw.random() < 0.3:
            street = f"{draw.randint(1, 2900)} {draw.choice(STREETS)}"
            locale = "en_US" if locale in ("de_DE", "nl_NL", "es_MX", "fr_FR") else locale
            faker = self.fakers[locale]
        if locale == "en_GB":
            return street, f"{self.town()}{draw.choice([', ', ' '])}{faker.postcode()}"
        if locale in ("en_US", "en_CA", "en_AU"):
            code = faker.postcode()
            return street, f"{self.town()}, {faker.random_element(self._regions(locale))} {code}"
        return street, f"{faker.postcode()} {faker.city()}"

    @staticmethod
    def _regions(locale: str) -> tuple[str, ...]:
        regions = {"en_US": "CA NY TX Ohio OR MA", "en_CA": "ON BC QC Alberta", "en_AU": "NSW VIC QLD"}
        return tuple(regions[locale].split())

    def organisation(self, kind: str) -> str:
        """A hospital, a company, a school or another house with a name."""
        draw = self.random
        place, saint, town = draw.choice(PLACES), draw.choice(SAINTS), self.town()
        last = self._name("last", "f", False)
        firms = [draw.choice(COMPANIES), draw.choice(COMPANIES), self.fakers[draw.choice(LOCALES)].company()]
        values = {
            "place": place,
            "saint": saint,
            "town": town,
            "last": last,
            "short": "".join(word[0] for word in place.split()) + "RMC",
            "word": draw.choice(WORDS["f"].split()),
            "teaching": draw.choice(TEACHING),
            "number": draw.randint(100, 990),
            "firm": draw.choice(firms),
        }
        return draw.choice(HOUSES[kind].split("|")).format(**values)

    def email(self, person: Person) -> str:
        """A mail address that shows its owner's name."""
        draw = self.random
        first, last = plain(person.first), plain(person.last)
        local = draw.choice(
            [
                f"{first}.{last}",
                f"{first[:1]}{last}{draw.randint(1, 99)}",
                f"{last}_{first[:2]}",
                f"{first}{person.born.year}",
            ]
        )
        return (
            f"{local}@{draw.choice(['example.com', 'example.org', 'mail.example', 'web.example.net', 'post.example'])}"
        )

    def work_email(self) -> str:
        """A mail address of an office."""
        desk = self.random.choice(
            ["frontdesk", "records", "j.doe", "hr-team", "clinic.north", "privacy", "ward6", "appeals"]
        )
        return f"{desk}{self.random.choice(['', '2', '-a'])}@{plain(self.random.choice(PLACES))}.example"

    def url(self) -> str:
        """An address of a page."""
        host = f"{plain(self.random.choice(PLACES))}.example"
        return self.random.choice([
            f"https://{host}/p/{self.fill('####')}", f"www.{host}", f"https://my.{host}",
            f"http://{host}:8080/view?study={self.fill('#######')}", f"https://meet.example.com/{self.fill('???-####')}",
            f"{host}/{plain(self._name('last', 'f', False))}",
        ])  # fmt: skip

    def ip(self) -> str:
        """An address of a machine, out of the ranges for documentation."""
        number = self.random.randint(1, 254)
        return self.random.choice([
            f"192.0.2.{number}", f"198.51.100.{number}", f"203.0.113.{number}", f"10.4.{number}.17",
            f"2001:db8:{number:x}::{number + 7:x}",
        ])  # fmt: skip

    def date(self, form: str, day: date, moment: int) -> str:
        """A day in one of the forms that people write; moment is the minute of the day."""
        hour, minute = divmod(moment, 60)
        month, short = MONTHS[day.month - 1], MONTHS[day.month - 1][:3]
        nth = f"{day.day}{'th' if 10 < day.day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day.day % 10, 'th')}"
        either = self.random.choice
        forms = {
            "us": f"{day:%m/%d/%Y}",
            "us2": either([f"{day.month}/{day.day}/{day:%y}", f"{day:%m/%d/%y}", f"{day.month}-{day.day}-{day:%y}"]),
            "md": either([f"{day.month}/{day.day}", f"{day:%m/%d}"]),
            "iso": day.isoformat(),
            "isot": datetime(day.year, day.month, day.day, hour, minute).isoformat(timespec="minutes"),
            "eu": f"{day:%d.%m.%Y}",
            "dot": f"{day.day}.{day.month}.{day:%y}",
            "dash": either([f"{day:%d}-{short}-{day.year}", f"{day.day}-{short.upper()}-{day:%y}"]),
            "long": f"{month} {day.day}, {day.year}",
            "longuk": f"{day.day} {month} {day.year}",
            "ord": either([f"{nth} of {month}", f"{nth} {month}", f"{month} {nth}"]),
            "ordy": either([f"{nth} of {month} {day.year}", f"the {nth} of {month}, {day.year}".removeprefix("the ")]),
            "mon": f"{either([month, short])} {day.day}",
            "monord": f"{month} {nth}",
            "monyr": either([f"{month} '{day:%y}", f"{short} '{day:%y}", f"{short} {day.year}"]),
            "my": either([f"{month} {day.year}", f"{day.month}/{day.year}", f"{day:%m/%Y}", f"{short}-{day:%y}"]),
            "wd": either([DAYS[day.weekday()], DAYS[day.weekday()], DAYS[day.weekday()][:3]]),
            "wds": f"{DAYS[day.weekday()]}s",
            "wdl": either(
                [f"{DAYS[day.weekday()]}, {month} {day.day}", f"{DAYS[day.weekday()]} {day.month}/{day.day}"]
            ),
            "nth": nth,
            "hol": self.random.choice(HOLIDAYS),
            "abbr": either([f"{short} {day.day} {day.year}", f"{short}. {day.day}, {day.year}", f"{day:%Y%m%d}"]),
            "mail": f"{DAYS[day.weekday()][:3]}, {day.day} {short} {day.year}",
        }
        return forms[form]


def spelt(age: int) -> str:
    """An age from 90 on in words."""
    return str(age) if age > 99 else "ninety" + (f"-{ONES[age - 91]}" if age > 90 else "")


def lists(path: Path) -> dict[str, list[str]]:
    """The lists of a file of `key = one|other` lines."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, values = line.split(" = ", 1)
            found.setdefault(key, []).extend(values.split("|"))
    return found


def said(text: str) -> str:
    """Digits and letters one by one, as they are spoken."""
    return " ".join(DIGITS[int(sign)] if sign.isdigit() else sign for sign in text if sign.isalnum())


class FreshMaker(Maker):
    """Draws values for the fresh notes out of lists of their own, in more forms."""

    def __init__(self, seed: int, values: dict[str, list[str]]) -> None:
        super().__init__(seed)
        self.values = values
        for number, locale in enumerate(sorted(set(values["locales"]) | {"en_CA"}), start=500):
            self.fakers[locale] = Faker(locale)
            self.fakers[locale].seed_instance(seed * 1000 + number)

    def one(self, key: str) -> str:
        """An entry of a list."""
        return self.random.choice(self.values[key])

    def pattern(self, kind: str, form: str) -> str:
        return "|".join(self.values[f"{kind}.{form}"])

    def pool(self, kind: str) -> list[str]:
        return self.values[f"{kind}s"]

    def person(self, group: str, sex: str | None = None, words: bool = False) -> Person:
        made = super().person(group, sex, words)
        nick = NICKS.get(made.first, self.one("nicks"))
        return replace(made, nick=nick, mrn=self.fill(self.pattern("id", "mrn")))

    def _name(self, part: str, sex: str, words: bool) -> str:
        key, chance = "last" if part == "last" else sex, self.random.random()
        if chance < (0.6 if words else 0.08):
            return self.one(f"words.{key}")
        if chance > 0.8:
            return self.one(f"elsewhere.{key}")
        faker = self.fakers[self.one("locales")]
        name = (
            faker.last_name if part == "last" else faker.first_name_female if sex == "f" else faker.first_name_male
        )()
        return name if len(name) > 1 else self._name(part, sex, words)

    def fill(self, pattern: str) -> str:
        """As before, with `*` for the digits that an area code may begin with."""
        return super().fill(re.sub(r"\*", lambda _: str(self.random.randint(2, 9)), pattern))

    def town(self, land: str = "") -> str:
        """A town of the United Kingdom, of the United States, or of anywhere."""
        land = land or self.random.choice(["uk", "us", "uk", "us", "world"])
        if land == "world" or self.random.random() < 0.7:
            return self.one(f"towns.{land}")
        return self.fakers["en_GB" if land == "uk" else "en_US"].city()

    def address(self, form: str) -> str:
        draw, number = self.random, self.random.randint(1, 240)
        land = {"code": "uk", "lines": "uk", "zip": "us", "uslines": "us"}.get(form) or draw.choice(["uk", "us"])
        land = form if form in ("uk", "us") else land
        faker = self.fakers["en_GB" if land == "uk" else "en_US"]
        street = f"{number}{draw.choice(['', '', '', 'A', 'b'])} {self.one('streets')}"
        if draw.random() < 0.4:
            street = " ".join(faker.street_address().split())
        flats = [f"Flat {number % 30 + 1}, ", f"Apt {number % 9 + 1}C, ", f"{self.one('houses')}, "]
        flat = draw.choice(["", "", "", *flats])
        code, town = faker.postcode(), self.town(land)
        place = f"{town}, {code}" if land == "uk" else f"{town}, {self.one('states')} {code}"
        forms = {
            "city": self.town(),
            "citystate": f"{self.town('us')}, {self.one('states')}",
            "code": code,
            "zip": code,
            "road": self.one("streets"),
            "house": f"{self.one('houses')}, {self.one('streets')}",
            "room": f"{draw.choice(['Room', 'Rm', 'Flat', 'Unit', 'Bungalow'])} {number % 48 + 1}",
            "street": f"{flat}{street}",
            "partial": draw.choice([
                street, f"corner of {self.one('streets')} and {self.one('streets')}", f"{self.one('streets')}, {town}",
                f"top floor, {street}", f"{town} {code}", f"the flats on {self.one('streets')}",
            ]),
            "pobox": f"{draw.choice(['P.O. Box', 'PO Box', 'Freepost'])} {number}, {place}",
            "lines": f"{flat}{street}\n{town}\n{code}",
            "uslines": f"{flat}{street}\n{place}",
        }  # fmt: skip
        return forms.get(form, f"{flat}{street}, {place}")

    def organisation(self, kind: str) -> str:
        last, other = (self._name("last", "f", False) for _ in "12")
        place, firms = self.one("places"), [self.one("firms"), self.fakers[self.one("locales")].company()]
        values = {
            "place": place,
            "saint": self.one("saints"),
            "town": self.town(self.random.choice(["uk", "us"])),
            "last": last,
            "other": other,
            "word": self.one("words.f"),
            "number": self.random.randint(9, 990),
            "firm": self.random.choice(firms),
            "abbr": "".join(word[0] for word in place.split()),
        }
        return self.one(f"org.{kind}").format(**values)

    def email(self, person: Person) -> str:
        first, last, number = plain(person.first) or "me", plain(person.last) or "x", self.random.randint(2, 98)
        local = self.random.choice([
            f"{first}.{last}", f"{first[0]}.{last}", f"{last}{first[0]}", f"{first}-{last}",
            f"{last.upper()}.{first.upper()}", f"{first}_{last}{number}", f"{plain(person.nick)}{number}",
            f"{first}{last[0]}{person.born:%y}",
        ])  # fmt: skip
        return f"{local}@{self.one('hosts')}"

    def said_email(self, person: Person) -> str:
        """A mail address as it is spoken."""
        return f"{plain(person.first)} dot {plain(person.last)} at {self.one('hosts').replace('.', ' dot ')}"

    def handle(self, person: Person) -> str:
        """A name on a social network."""
        first, last = plain(person.first), plain(person.last)
        return self.random.choice([
            f"@{first}_{last[:3]}{self.fill('##')}", f"{first}{last}{person.born:%y}",
            f"@the.real.{plain(person.nick)}",
        ])  # fmt: skip

    def work_email(self) -> str:
        end = self.random.choice(["nhs.example", "example", "test"])
        return f"{self.one('desks')}@{plain(self.one('places'))}.{end}"

    def url(self) -> str:
        host = f"{plain(self.one('places'))}.example"
        return self.random.choice([
            f"https://visit.{host}/room/{self.fill('??##-####')}", f"https://{host}/pacs?uid=1.2.826.{self.fill('######')}",
            f"{host}/r/{self.fill('?#?#?#')}", f"http://www.{host}/staff/{plain(self._name('last', 'f', False))}",
            f"https://www.fundme.example/{plain(self._name('first', 'f', False))}-{self.fill('####')}",
        ])  # fmt: skip

    def date(self, form: str, day: date, moment: int) -> str:
        month, either = MONTHS[day.month - 1], self.random.choice
        short, week = month[:3], DAYS[day.weekday()]
        nth = super().date("nth", day, moment)
        forms = {
            "uk": f"{day:%d/%m/%Y}",
            "uk2": either([f"{day.day}/{day.month}/{day:%y}", f"{day:%d/%m/%y}"]),
            "ukd": either([f"{day.day}/{day.month}", f"{day:%d/%m}"]),
            "dmon": either([f"{day.day} {short}", f"{nth} {short}", f"{day.day} {month}"]),
            "wdmon": either([f"{week[:3]} {day.day} {short}", f"{week} {day.day} {month}", f"{week} the {nth}"]),
            "wdfull": either([f"{week}, {day.day} {month} {day.year}", f"{week}, {month} {day.day}, {day.year}"]),
            "wdsh": {"Tue": "Tues", "Wed": "Weds", "Thu": "Thurs"}.get(week[:3], week[:3]),
            "mil": either([f"{day:%d}{short.upper()}{day.year}", f"{day.day} {short.upper()} {day:%y}"]),
            "comp": f"{day:%Y%m%d}",
            "slash": f"{day:%Y/%m/%d}",
            "hyph": either([f"{day:%d-%m-%Y}", f"{day.day}-{day.month}-{day:%y}"]),
            "apos": f"{nth} {either([month, short])} '{day:%y}",
            "month": month,
            "hol": self.one("holidays"),
            "said": either([
                f"{month} {NTHS[day.day - 1]}", f"the {NTHS[day.day - 1]} of {month}".removeprefix("the "),
                f"{month} {NTHS[day.day - 1]} {day.year}",
            ]),
        }  # fmt: skip
        return forms[form] if form in forms else super().date(form, day, moment)
