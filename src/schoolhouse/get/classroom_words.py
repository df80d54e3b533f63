"""Words of the example classroom: Swahili nouns by class, and what agrees with them.

A small, closed set, so that every form in it can be looked over. Classes are named by what verbs begin with (ngeli), as
schools in Kenya and Tanzania name them. Source: the tables of concords in any Swahili grammar, such as Ashton, "Swahili
Grammar", 1944, on noun classes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NounClass:
    """A class and its concords, singular and plural. adjective, of stems that begin with a consonant; subject, of
    verbs; possessive, before -angu, -ako, -ake; this: the near demonstrative; many: the stem -ngapi, how many.
    """

    name: str
    adjective: tuple[str, str]
    subject: tuple[str, str]
    possessive: tuple[str, str]
    this: tuple[str, str]
    many: str

    def adjective_of(self, stem: str, plural: bool) -> str:
        """An adjective that agrees, such as vizuri."""
        if self.name == "I-ZI":
            return _NASAL.get(stem, stem)
        return self.adjective[plural] + stem

    def number(self, number: int) -> str:
        """A number from two to ten in words, after a plural."""
        stem, agrees = _NUMBERS[number]
        if not agrees:
            return stem
        if self.name == "I-ZI":
            return "mbili" if stem == "wili" else stem
        return self.adjective[1] + stem

    @property
    def one(self) -> str:
        """The number one, after a singular."""
        return {"A-WA": "mmoja", "U-I": "mmoja", "KI-VI": "kimoja"}.get(self.name, "moja")

    def own(self, stem: str, plural: bool) -> str:
        """A possessive that agrees: langu, yako, chake."""
        return self.possessive[plural] + stem

    def verb(self, rest: str, plural: bool) -> str:
        """A verb in the third person; `rest` begins with the tense: na-, me-."""
        return self.subject[plural] + rest


CLASSES = {
    one.name: one
    for one in (
        NounClass("A-WA", ("m", "wa"), ("a", "wa"), ("w", "w"), ("huyu", "hawa"), "wangapi"),
        NounClass("U-I", ("m", "mi"), ("u", "i"), ("w", "y"), ("huu", "hii"), "mingapi"),
        NounClass("LI-YA", ("", "ma"), ("li", "ya"), ("l", "y"), ("hili", "haya"), "mangapi"),
        NounClass("KI-VI", ("ki", "vi"), ("ki", "vi"), ("ch", "vy"), ("hiki", "hivi"), "vingapi"),
        NounClass("I-ZI", ("", ""), ("i", "zi"), ("y", "z"), ("hii", "hizi"), "ngapi"),
    )
}
_NASAL = {"zuri": "nzuri", "dogo": "ndogo", "refu": "ndefu", "baya": "mbaya"}  # kubwa and fupi stay as they are
_NUMBERS = {
    2: ("wili", True), 3: ("tatu", True), 4: ("nne", True), 5: ("tano", True), 6: ("sita", False),
    7: ("saba", False), 8: ("nane", True), 9: ("tisa", False), 10: ("kumi", False),
}  # fmt: skip
ADJECTIVES, TALL_OR_SHORT, BAD = ("zuri", "kubwa", "dogo"), ("refu", "fupi"), ("baya",)
POSSESSIVES = ("angu", "ako", "ake")
DONE = {  # what may have befallen it, in the perfect, by the kind of noun
    "person": ("mefika", "melala", "meanguka"), "fruit": ("meanguka", "mepotea"),
    "thing": ("mepotea", "meanguka", "meonekana"), "place": ("meanguka", "meonekana"),
}  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """A noun. kind: person, animal, fruit (what is eaten), thing (what one may own) or place (what stays where it is).

    tall: whether it may be called tall or short.
    """

    singular: str
    plural: str
    of: NounClass
    kind: str
    tall: bool = False

    @property
    def adjectives(self) -> tuple[str, ...]:
        """Stems of adjectives that may be said of it."""
        is_alive = self.of.name == "A-WA"
        return ADJECTIVES + (TALL_OR_SHORT if self.tall else ()) + (() if is_alive else BAD)

    @property
    def how_many(self) -> str:
        """The noun and its question word: vitabu vingapi."""
        return f"{self.plural} {self.of.many}"


def _nouns(of: str, kind: str, words: str, tall: bool = False) -> list[Noun]:
    pairs = (word.split("/") for word in words.split())
    return [Noun(singular, plural, CLASSES[of], kind, tall) for singular, plural in pairs]


NOUNS = (
    *_nouns("A-WA", "person", "mtoto/watoto mwanafunzi/wanafunzi mvulana/wavulana msichana/wasichana", tall=True),
    *_nouns("A-WA", "person", "mgeni/wageni mkulima/wakulima mpishi/wapishi mwalimu/walimu", tall=True),
    *_nouns("A-WA", "animal", "mbuzi/mbuzi kuku/kuku punda/punda"),
    *_nouns("U-I", "fruit", "mkate/mikate"),
    *_nouns("U-I", "thing", "mpira/mipira mfuko/mifuko mkeka/mikeka"),
    *_nouns("U-I", "place", "mti/miti mlango/milango mnazi/minazi", tall=True),
    *_nouns("LI-YA", "fruit", "embe/maembe chungwa/machungwa papai/mapapai nanasi/mananasi yai/mayai tunda/matunda"),
    *_nouns("LI-YA", "thing", "sanduku/masanduku daftari/madaftari ua/maua jiwe/mawe"),
    *_nouns("KI-VI", "thing", "kitabu/vitabu kikombe/vikombe kijiko/vijiko kikapu/vikapu kiti/viti kitambaa/vitambaa"),
    *_nouns("KI-VI", "thing", "kisu/visu", tall=True),
    *_nouns("I-ZI", "fruit", "ndizi/ndizi"),
    *_nouns("I-ZI", "thing", "kalamu/kalamu sahani/sahani picha/picha taa/taa meza/meza"),
    *_nouns("I-ZI", "place", "nyumba/nyumba", tall=True),
)
"""No noun of the U-ZI class, and none of a class whose concords are disputed."""

NOUN = {noun.singular: noun for noun in NOUNS}
FRUITS = tuple(noun for noun in NOUNS if noun.kind == "fruit")
GOODS = tuple(map(NOUN.__getitem__, ("kitabu", "kikombe", "kijiko", "kalamu", "picha", "daftari", "mpira", "sahani")))
LEARNERS = tuple(map(NOUN.__getitem__, ("mtoto", "mwanafunzi", "mvulana", "msichana")))
ANIMALS = tuple(noun for noun in NOUNS if noun.kind == "animal")
HOLDERS = tuple(map(NOUN.__getitem__, ("kikapu", "sanduku", "mfuko")))  # what things are kept in
NAMES = (
    "Asha", "Juma", "Amina", "Baraka", "Neema", "Musa", "Zawadi", "Rehema", "Daudi", "Fatuma", "Hamisi", "Salma",
    "Pendo", "Tumaini", "Jabali", "Mwanaidi", "Faraja", "Upendo", "Rashidi", "Halima",
)  # fmt: skip
SURNAMES = (
    "Mushi", "Komba", "Mwakyusa", "Kimaro", "Mgaya", "Ngowi", "Mrema", "Chuwa", "Lyimo", "Sanga", "Mbwana", "Kileo",
    "Mtui", "Shayo", "Massawe", "Nyoni", "Haule", "Msuya", "Temba", "Kessy",
)  # fmt: skip


def first_up(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]
