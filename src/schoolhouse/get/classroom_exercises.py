"""Exercises of the example classroom, in Swahili, from level 1 to 5, each with its worked steps.

Sums: adding and taking away; a story of one step; times and shares; two steps and two digits; money. Language: one
noun; a noun and its adjective; numbers in words; a sentence with a demonstrative; one with a possessive and a verb.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from schoolhouse.get.classroom_words import (
    ANIMALS,
    DONE,
    FRUITS,
    GOODS,
    HOLDERS,
    LEARNERS,
    NAMES,
    NOUN,
    NOUNS,
    POSSESSIVES,
    Noun,
    first_up,
)

LEVELS = (1, 2, 3, 4, 5)
SUMS, LANGUAGE = "sums", "language"
TIMES, SHARE = "\u00d7", "\u00f7"  # the signs that schools write


@dataclass(frozen=True)
class Before:
    """The result of an earlier step, as a number of a later one."""

    step: int


@dataclass(frozen=True)
class Step:
    """One step of a sum; in a story the reader has to find out which operation is meant."""

    first: int | Before
    operation: str
    second: int | Before


@dataclass(frozen=True)
class Word:
    """A word of an answer, and how pupils get it wrong."""

    right: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exercise:
    """An exercise. steps: of a sum; words: of an answer about language, why: the way to it, noun_class: of its noun."""

    topic: str
    level: int
    text: str
    steps: tuple[Step, ...] = ()
    is_story: bool = False
    words: tuple[Word, ...] = field(default=())
    why: str = ""
    noun_class: str = ""

    @property
    def same(self) -> Hashable:
        """What two exercises have in common that are the same in other words: a plain sum; a pair of forms, whichever
        is asked for.
        """
        if self.topic == SUMS:
            return self.text if self.is_story else self.steps
        asked, answer = self.text.partition(": ")[2].rstrip("."), " ".join(word.right for word in self.words)
        return frozenset((asked.lower(), answer.lower()))


Work = Callable[[int, str, int], tuple[str, int]]
"""How somebody works out a step: of its numbers and operation the operation that is done, and the result."""


def worked(steps: Sequence[Step], wrong: Mapping[int, Work] | None = None) -> list[tuple[str, int]]:
    """Each step as its left side and its result. wrong: by the step's number how somebody else works it out."""
    found: list[tuple[str, int]] = []
    for number, step in enumerate(steps):
        first, second = (
            found[side.step][1] if isinstance(side, Before) else side for side in (step.first, step.second)
        )
        work = (wrong or {}).get(number, _right)
        operation, value = work(first, step.operation, second)
        found.append((f"{first} {operation} {second}", value))
    return found


def _right(first: int, operation: str, second: int) -> tuple[str, int]:
    return operation, calculate(first, operation, second)


def calculate(first: int, operation: str, second: int) -> int:
    """The value of one operation; divisions come out even."""
    if operation == SHARE:
        assert first % second == 0
        return first // second
    return {"+": first + second, "-": first - second, TIMES: first * second}[operation]


def shown(rows: Sequence[tuple[str, int]]) -> str:
    """Steps as they are written."""
    return " ".join(f"Hatua {number}: {left} = {value}." for number, (left, value) in enumerate(rows, 1))


def draw_exercise(topic: str, level: int, draw: random.Random) -> Exercise:
    """Any exercise of a level."""
    return draw.choice((_SUMS if topic == SUMS else _LANGUAGE)[level - 1])(draw)


def _sum(level: int, text: str, *steps: Step, story: bool = True) -> Exercise:
    return Exercise(SUMS, level, text, steps, story)


def _plain_sum(draw: random.Random) -> Exercise:
    a, b = draw.randint(2, 20), draw.randint(2, 9)
    if draw.random() < 0.5:
        return _sum(1, draw.choice([f"Hesabu: {a} + {b}.", f"Jumlisha {a} na {b}."]), Step(a, "+", b), story=False)
    a += b
    return _sum(1, draw.choice([f"Hesabu: {a} - {b}.", f"Toa {b} kutoka {a}."]), Step(a, "-", b), story=False)


def _given(draw: random.Random) -> Exercise:
    """Somebody has things, and is given more or gives some away."""
    noun, (one, other) = draw.choice(FRUITS + GOODS), draw.sample(NAMES, 2)
    a, b = draw.randint(10, 30), draw.randint(2, 9)
    if draw.random() < 0.5:
        text = f"{one} ana {noun.plural} {a}. {other} anampa {one} {noun.plural} {b}. Sasa {one} ana {noun.how_many}?"
        return _sum(2, text, Step(a, "+", b))
    text = f"{one} ana {noun.plural} {a}. Anampa {other} {noun.plural} {b}. {one} anabaki na {noun.how_many}?"
    return _sum(2, text, Step(a, "-", b))


def _taken(draw: random.Random) -> Exercise:
    """Things lie somewhere, and some are taken."""
    noun, one = draw.choice(FRUITS + GOODS), draw.choice(NAMES)
    a, b = draw.randint(10, 30), draw.randint(2, 9)
    where = "Kikapuni" if noun.kind == "fruit" else "Mezani"
    left = first_up(noun.of.verb("nabaki", plural=True))
    text = f"{where} kuna {noun.plural} {a}. {one} anachukua {noun.plural} {b}. {left} {noun.how_many}?"
    return _sum(2, text, Step(a, "-", b))


def _class(draw: random.Random) -> Exercise:
    """Learners come into the classroom or leave it."""
    who = draw.choice(LEARNERS)
    a, b = draw.randint(10, 30), draw.randint(2, 9)
    begin = f"Darasani kuna {who.plural} {a}. {first_up(who.plural)} {b}"
    if draw.random() < 0.5:
        return _sum(2, f"{begin} wanaingia. Sasa kuna {who.how_many} darasani?", Step(a, "+", b))
    return _sum(2, f"{begin} wanatoka. Wanabaki {who.how_many} darasani?", Step(a, "-", b))


def _farm(draw: random.Random) -> Exercise:
    animal = draw.choice(ANIMALS)
    a, b = draw.randint(10, 30), draw.randint(2, 9)
    begin = f"Mkulima ana {animal.plural} {a}."
    if draw.random() < 0.5:
        return _sum(2, f"{begin} Ananunua {animal.plural} {b}. Sasa ana {animal.how_many}?", Step(a, "+", b))
    return _sum(2, f"{begin} Anauza {animal.plural} {b}. Anabaki na {animal.how_many}?", Step(a, "-", b))


def _table(draw: random.Random) -> Exercise:
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    if draw.random() < 0.5:
        return _sum(
            3, draw.choice([f"Hesabu: {a} {TIMES} {b}.", f"Zidisha {a} kwa {b}."]), Step(a, TIMES, b), story=False
        )
    text = draw.choice([f"Hesabu: {a * b} {SHARE} {b}.", f"Gawanya {a * b} kwa {b}."])
    return _sum(3, text, Step(a * b, SHARE, b), story=False)


def _held(draw: random.Random) -> tuple[str, Noun, int, int]:
    """Several baskets, boxes or bags with as many things in each: the words, the things, how many of both."""
    holder, noun = draw.choice(HOLDERS), draw.choice(FRUITS + GOODS)
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    each = f"Kila {holder.singular} {holder.of.verb('na', plural=False)} {noun.plural} {b}."
    return f"Kuna {holder.plural} {a}. {each}", noun, a, b


def _each(draw: random.Random) -> Exercise:
    text, noun, a, b = _held(draw)
    return _sum(3, f"{text} Kuna {noun.how_many} kwa jumla?", Step(a, TIMES, b))


def _shared(draw: random.Random) -> Exercise:
    noun, who = draw.choice(FRUITS + GOODS), draw.choice(LEARNERS)
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    text = (
        f"Mwalimu ana {noun.plural} {a * b}. Anawagawia {who.plural} {a} kwa usawa. Kila {who.singular} anapata "
        f"{noun.how_many}?"
    )
    return _sum(3, text, Step(a * b, SHARE, a))


def _given_and_sold(draw: random.Random) -> Exercise:
    noun, (one, other) = draw.choice(FRUITS + GOODS), draw.sample(NAMES, 2)
    a, b, c = draw.randint(10, 30), draw.randint(2, 20), draw.randint(2, 9)
    text = (
        f"{one} ana {noun.plural} {a}. {other} anampa {one} {noun.plural} {b}. Kisha {one} anauza {noun.plural} {c}. "
        f"{one} anabaki na {noun.how_many}?"
    )
    return _sum(4, text, Step(a, "+", b), Step(Before(0), "-", c))


def _each_and_sold(draw: random.Random) -> Exercise:
    text, noun, a, b = _held(draw)
    c = draw.randint(2, min(9, a * b - 2))
    sold, left = noun.of.verb("nauzwa", plural=True), first_up(noun.of.verb("nabaki", plural=True))
    text = f"{text} {first_up(noun.plural)} {c} {sold}. {left} {noun.how_many}?"
    return _sum(4, text, Step(a, TIMES, b), Step(Before(0), "-", c))


def _two_digits(draw: random.Random) -> Exercise:
    a, b = (10 * draw.randint(1, 8) + draw.randint(1, 9) for _ in range(2))
    text = draw.choice([f"Hesabu: {a} + {b}.", f"Jumlisha {a} na {b}."])
    tens, ones = Step(a // 10 * 10, "+", b // 10 * 10), Step(a % 10, "+", b % 10)
    return _sum(4, text, tens, ones, Step(Before(0), "+", Before(1)), story=False)


def _change(draw: random.Random) -> Exercise:
    noun, one = draw.choice(FRUITS + GOODS), draw.choice(NAMES)
    price, count = 10 * draw.randint(2, 9), draw.randint(2, 9)
    paid = -(-(price * count + 1) // 100) * 100
    text = (
        f"{first_up(noun.singular)} {noun.of.one} {noun.of.verb('nauzwa', plural=False)} shilingi {price}. {one} "
        f"ananunua {noun.plural} {count}. Anatoa shilingi {paid}. Anarudishiwa shilingi ngapi?"
    )
    return _sum(5, text, Step(count, TIMES, price), Step(paid, "-", Before(0)))


def _two_goods(draw: random.Random) -> Exercise:
    (first, second), one = draw.sample(GOODS, 2), draw.choice(NAMES)
    prices, counts = [10 * draw.randint(2, 9) for _ in range(2)], [draw.randint(2, 9) for _ in range(2)]
    text = (
        f"{first_up(first.singular)} {first.of.one} {first.of.verb('nauzwa', plural=False)} shilingi {prices[0]}, na "
        f"{second.singular} {second.of.one} {second.of.verb('nauzwa', plural=False)} shilingi {prices[1]}. {one} "
        f"ananunua {first.plural} {counts[0]} na {second.plural} {counts[1]}. Analipa shilingi ngapi?"
    )
    steps = (Step(counts[0], TIMES, prices[0]), Step(counts[1], TIMES, prices[1]), Step(Before(0), "+", Before(1)))
    return _sum(5, text, *steps)


def _language(level: int, text: str, noun: Noun, why: str, *words: Word) -> Exercise:
    return Exercise(LANGUAGE, level, text, words=words, why=why, noun_class=noun.of.name)


def _word(right: str, *wrong: str) -> Word:
    return Word(right, tuple(word for word in dict.fromkeys(wrong) if word != right))


def _noun_word(noun: Noun, plural: bool) -> Word:
    if not plural:
        return _word(noun.singular, noun.plural)
    return _word(noun.plural, noun.singular if noun.singular != noun.plural else f"ma{noun.singular}")


def _agreeing(noun: Noun, plural: bool, form: Callable[[Noun, bool], str]) -> Word:
    """A word that agrees; wrong are the other number's and another class's forms."""
    others = [form(NOUN[word], plural) for word in ("kitabu", "embe", "mti", "mtoto")]
    return _word(form(noun, plural), form(noun, not plural), *others)


def _class_of(noun: Noun, plural: bool) -> str:
    """The first sentence of a worked way, from one number to the other."""
    at, to, what = (noun.singular, noun.plural, "wingi") if plural else (noun.plural, noun.singular, "umoja")
    return f"{at}: ngeli ya {noun.of.name}, {what} {to}."


def _one_word(draw: random.Random) -> Exercise:
    noun = draw.choice(NOUNS)
    return _language(1, f"Andika wingi: {noun.singular}.", noun, _class_of(noun, True), _noun_word(noun, True))


def _filled(draw: random.Random) -> Exercise:
    """A word in the right form, behind a plural."""
    stem = draw.choice(["ngapi", "angu", "zuri"])
    noun = draw.choice([noun for noun in NOUNS if stem != "angu" or noun.kind != "animal"])

    def form(of: Noun, _: bool) -> str:
        return {"ngapi": of.of.many, "angu": of.of.own("angu", True), "zuri": of.of.adjective_of("zuri", True)}[stem]

    word = _agreeing(noun, True, form)
    why = f"{noun.plural}: ngeli ya {noun.of.name}, {word.right}."
    return _language(1, f"Jaza neno -{stem}: {noun.plural} ___.", noun, why, word)


def _pair(draw: random.Random) -> Exercise:
    noun, plural = draw.choice(NOUNS), draw.random() < 0.6
    stem = draw.choice(noun.adjectives if noun.kind == "animal" else (*noun.adjectives, *POSSESSIVES))

    def form(of: Noun, number: bool) -> str:
        return of.of.own(stem, number) if stem in POSSESSIVES else of.of.adjective_of(stem, number)

    at = noun.singular if plural else noun.plural
    text = f"Andika {'wingi' if plural else 'umoja'}: {at} {form(noun, not plural)}."
    why = f"{_class_of(noun, plural)} {form(noun, not plural)}: {form(noun, plural)}."
    return _language(2, text, noun, why, _noun_word(noun, plural), _agreeing(noun, plural, form))


def _number(draw: random.Random) -> Exercise:
    noun, number = draw.choice(NOUNS), draw.randint(2, 10)
    right = noun.of.number(number)
    wrong = [NOUN[word].of.number(number) for word in ("kitabu", "embe", "ndizi", "mti", "mtoto")]
    word = _word(right, *(wrong if number not in (6, 7, 9, 10) else [f"{noun.of.adjective[1] or 'ma'}{right}"]))
    how = f"{number}: {right}." if number not in (6, 7, 9, 10) else f"{number}: {right}, haibadiliki."
    why = f"{noun.plural}: ngeli ya {noun.of.name}. {how}"
    return _language(3, f"Andika namba kwa maneno: {noun.plural} {number}.", noun, why, Word(noun.plural), word)


def _this(draw: random.Random) -> Exercise:
    noun, plural = draw.choice(NOUNS), draw.random() < 0.7
    stem = draw.choice(noun.adjectives)

    def adjective(of: Noun, number: bool) -> str:
        return of.of.adjective_of(stem, number)

    def this(of: Noun, number: bool) -> str:
        return of.of.this[number]

    return _sentence(4, noun, plural, [this, "ni", adjective])


def _mine(draw: random.Random) -> Exercise:
    noun = draw.choice([noun for noun in NOUNS if noun.kind in DONE])
    plural, stem, whose = draw.random() < 0.7, draw.choice(noun.adjectives), draw.choice(POSSESSIVES)
    rest = draw.choice(DONE[noun.kind])

    def own(of: Noun, number: bool) -> str:
        return of.of.own(whose, number)

    def adjective(of: Noun, number: bool) -> str:
        return of.of.adjective_of(stem, number)

    def verb(of: Noun, number: bool) -> str:
        return of.of.verb(rest, number)

    return _sentence(5, noun, plural, [own, adjective, verb])


def _sentence(level: int, noun: Noun, plural: bool, forms: Sequence[str | Callable[[Noun, bool], str]]) -> Exercise:
    """Put a sentence into the other number. forms: what stands behind the noun, words or what agrees with it."""
    asked, words, steps = [noun.singular if plural else noun.plural], [_noun_word(noun, plural)], []
    for form in forms:
        if isinstance(form, str):
            asked.append(form)
            words.append(Word(form))
        else:
            asked.append(form(noun, not plural))
            words.append(_agreeing(noun, plural, form))
            steps.append(f"{asked[-1]}: {words[-1].right}.")
    text = f"Andika kwa {'wingi' if plural else 'umoja'}: {first_up(' '.join(asked))}."
    first = Word(first_up(words[0].right), tuple(map(first_up, words[0].wrong)))
    return _language(level, text, noun, " ".join([_class_of(noun, plural), *steps]), first, *words[1:])


_SUMS = (
    (_plain_sum,), (_given, _given, _taken, _class, _farm), (_table, _each, _shared),
    (_given_and_sold, _each_and_sold, _two_digits), (_change, _two_goods),
)  # fmt: skip
_LANGUAGE = ((_one_word, _filled, _filled), (_pair,), (_number,), (_this,), (_mine,))
