"""The example classroom: its Swahili agrees, its sums come out, and a wrong attempt is wrong where the hint says."""

import csv
import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from school import draft
from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.get import example
from schoolhouse.get.classroom_attempts import RIGHT, draw_attempt
from schoolhouse.get.classroom_exercises import LANGUAGE, LEVELS, SUMS, draw_exercise
from schoolhouse.get.classroom_words import CLASSES, NOUN, NOUNS
from schoolhouse.pipeline import plan_recipe, run_plan
from schoolhouse.tasks.jsonl import load_jsonl
from schoolhouse.text.language import share_in
from schoolhouse.text.records import read_conversations

# What follows is written down by hand, not worked out as the program does.
AGREEMENT = {  # singular noun: what is said of one and of several
    "mtoto": ("mtoto huyu ni mzuri", "watoto hawa ni wazuri", "wangapi", "watoto wawili", "ameanguka", "wameanguka"),
    "mti": ("mti huu ni mzuri", "miti hii ni mizuri", "mingapi", "miti miwili", "umeanguka", "imeanguka"),
    "embe": ("embe hili ni zuri", "maembe haya ni mazuri", "mangapi", "maembe mawili", "limeanguka", "yameanguka"),
    "kiti": ("kiti hiki ni kizuri", "viti hivi ni vizuri", "vingapi", "viti viwili", "kimeanguka", "vimeanguka"),
    "kalamu": ("kalamu hii ni nzuri", "kalamu hizi ni nzuri", "ngapi", "kalamu mbili", "imeanguka", "zimeanguka"),
    "mbuzi": ("mbuzi huyu ni mzuri", "mbuzi hawa ni wazuri", "wangapi", "mbuzi wawili", "ameanguka", "wameanguka"),
}  # fmt: skip
OWN = {
    "mtoto": ("wangu", "wangu"), "mti": ("wangu", "yangu"), "embe": ("langu", "yangu"), "kiti": ("changu", "vyangu"),
    "kalamu": ("yangu", "zangu"),
}  # fmt: skip
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "\u00d7": lambda a, b: a * b, "\u00f7": lambda a, b: a / b}


def make(folder, seed=5, people=40):
    out = draft(folder / f"out-{seed}")
    settings = example.Config(kind="classroom", people=people)
    example.check(settings)
    example.run(settings, {}, Run.for_tests(folder / f"run-{seed}", seed), out)
    return out


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    return make(tmp_path_factory.mktemp("school"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path, delimiter):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def rows(school):
    """The good rows of all notebooks."""
    folder = school.path / "raw" / "notebooks"
    found = []
    for name, delimiter in (("term-1.csv", ","), ("term-2.csv", ";")):
        head, *cells = table(folder / name, delimiter)
        found += [dict(zip(head, row, strict=True)) for row in cells if len(row) == len(head)]
    return found + [json.loads(line) for line in (folder / "term-3.jsonl").read_text("utf-8").splitlines()[:-1]]


@pytest.mark.parametrize("word", AGREEMENT)
def test_what_is_said_of_a_noun_agrees_with_its_class(word):
    noun = NOUN[word]
    of = noun.of
    one, several, many, two, fell, all_fell = AGREEMENT[word]
    assert f"{noun.singular} {of.this[0]} ni {of.adjective_of('zuri', False)}" == one
    assert f"{noun.plural} {of.this[1]} ni {of.adjective_of('zuri', True)}" == several
    assert (of.many, f"{noun.plural} {of.number(2)}") == (many, two)
    assert (of.verb("meanguka", False), of.verb("meanguka", True)) == (fell, all_fell)
    if word in OWN:
        assert (of.own("angu", False), of.own("angu", True)) == OWN[word]


def test_numbers_adjectives_and_one_are_those_of_a_grammar():
    numbers = {name: [of.number(n) for n in range(2, 11)] for name, of in CLASSES.items()}
    assert numbers["I-ZI"] == ["mbili", "tatu", "nne", "tano", "sita", "saba", "nane", "tisa", "kumi"]
    assert numbers["A-WA"] == ["wawili", "watatu", "wanne", "watano", "sita", "saba", "wanane", "tisa", "kumi"]
    assert numbers["LI-YA"][5:8] == ["saba", "manane", "tisa"]
    stems = ("zuri", "kubwa", "dogo", "refu", "fupi", "baya")
    nasal = [CLASSES["I-ZI"].adjective_of(stem, True) for stem in stems]
    assert nasal == ["nzuri", "kubwa", "ndogo", "ndefu", "fupi", "mbaya"]
    assert [CLASSES["LI-YA"].adjective_of(stem, False) for stem in stems[:3]] == ["zuri", "kubwa", "dogo"]
    ones = [CLASSES[name].one for name in ("A-WA", "U-I", "LI-YA", "KI-VI", "I-ZI")]
    assert ones == ["mmoja", "mmoja", "moja", "kimoja", "moja"]


def test_nouns_change_their_prefix_as_their_class_does():
    prefixes = {"KI-VI": ("ki", "vi"), "U-I": ("m", "mi"), "A-WA": ("m", "wa")}
    for noun in NOUNS:
        if noun.of.name in prefixes and noun.kind != "animal":
            one, several = prefixes[noun.of.name]
            assert noun.singular.startswith(one), noun
            assert noun.plural.startswith(several), noun
        if noun.of.name == "I-ZI" or noun.kind == "animal":
            assert noun.singular == noun.plural
        if noun.of.name == "LI-YA":
            assert noun.plural in (f"ma{noun.singular}", f"ma{noun.singular.removeprefix('ji')}")
    assert len({noun.singular for noun in NOUNS}) == len(NOUNS) > 35


def test_the_question_word_of_every_story_agrees_with_its_noun(school):
    many = {f"{noun.plural} {noun.of.many}" for noun in NOUNS} | {"shilingi ngapi"}
    subjects = {noun.plural: noun.of.subject[1] for noun in NOUNS}
    seen = 0
    for row in rows(school):
        if row["topic"] != "sums" or "?" not in row["exercise"]:
            continue
        asked = re.search(r"(\w+ \w*ngapi)(?: kwa jumla| darasani)?\?$", row["exercise"])
        assert asked is not None, row["exercise"]
        assert asked[1] in many, row["exercise"]
        for verb, noun in re.findall(r"([A-Z]\w*)nabaki (\w+) \w*ngapi", row["exercise"]):
            assert verb.lower() == subjects[noun], row["exercise"]
            seen += 1
    assert seen > 10


def parsed(text):
    """Steps as they are written: left number, sign, right number, result."""
    found = re.findall(r"Hatua (\d+): (\d+) (\S) (\d+) = (\d+)\.", text)
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    return [(int(a), sign, int(b), int(c)) for _, a, sign, b, c in found]


def test_steps_come_out_and_a_wrong_attempt_is_wrong_where_the_hint_says(school):
    seen = Counter()
    for row in rows(school):
        if row["topic"] != "sums":
            continue
        right, written = parsed(row["steps"]), parsed(row["attempt"])
        assert all(SIGNS[sign](a, b) == value for a, sign, b, value in right), row
        assert str(right[-1][3]) == row["result"]
        numbers = set(map(int, re.findall(r"\d+", row["exercise"])))
        assert right[0][0] in numbers or "Hesabu" in row["exercise"] or "Jumlisha" in row["exercise"]
        assert row["attempt"].endswith(f"Jibu: {written[-1][3]}.")
        wrong = [n for n, (own, other) in enumerate(zip(right, written, strict=True), 1) if own != other]
        if row["right"] == "yes":
            assert (wrong, row["hint"], row["result"]) == ([], RIGHT, str(written[-1][3]))
            seen["right"] += 1
            continue
        a, sign, b, value = written[wrong[0] - 1]
        own = right[wrong[0] - 1]
        assert row["hint"].startswith(f"Hatua {wrong[0]} si sahihi: ")
        if row["hint"].endswith("soma swali tena"):
            assert sign != own[1]
            seen["misread"] += 1
        else:
            assert row["hint"].endswith(f"hesabu tena {a} {sign} {b}")
            assert SIGNS[sign](a, b) != value
            seen["slip"] += 1
        assert not re.search(rf"(?<!\d){own[3]}(?!\d)", row["hint"].partition(": ")[2]) or own[3] in (a, b)
    assert min(seen[kind] for kind in ("right", "misread", "slip")) > 20


def test_a_hint_on_language_names_the_wrong_word_and_never_the_right_one(school):
    classes = {word: noun.of.name for noun in NOUNS for word in (noun.singular, noun.plural)}
    seen = Counter()
    for row in rows(school):
        if row["topic"] != "language":
            continue
        written, right = row["attempt"].rstrip(".").split(), row["result"].split()
        wrong = [(own, other) for own, other in zip(right, written, strict=True) if own != other]
        if row["right"] == "yes":
            assert (wrong, row["hint"]) == ([], RIGHT)
        else:
            ((own, other),) = wrong
            word, name = re.fullmatch(r"Si sahihi: angalia neno (\w+), ngeli ya (\S+)", row["hint"]).groups()
            assert word == other.lower() != own.lower()
            asked = re.split(r"[ .]", row["exercise"].partition(": ")[2].lower())[0]
            assert name == classes[asked]
        seen[row["level"], row["right"]] += 1
    assert len(seen) == 10


def test_levels_come_with_the_terms_and_no_exercise_is_given_twice(school):
    given = rows(school)
    levels = defaultdict(Counter)
    for row in given:
        levels[row["term"]][int(row["level"])] += 1
    assert set(levels["1"]) == {1, 2}
    assert max(levels["2"], key=levels["2"].get) in (3, 4)
    assert max(levels["3"], key=levels["3"].get) == 5
    counts = Counter(row["exercise"] for row in given)
    twice = [text for text, count in counts.items() if count > 1]
    assert len(twice) == len(lines(school.path / "truth" / "repeated.jsonl")) == 2
    sums = Counter(row["steps"] for row in given if row["topic"] == "sums" and "?" not in row["exercise"])
    assert sum(count - 1 for count in sums.values()) <= 2
    assert max(Counter(row["level"] for row in given).values()) < len(given) / 2


def test_the_same_seed_gives_the_same_bytes_and_planted_names_stand_at_their_places(school, tmp_path):
    again, other = make(tmp_path / "again"), make(tmp_path / "other", seed=6)
    files = sorted(path.relative_to(school.path) for path in school.path.rglob("*") if path.is_file())
    assert [str(f) for f in files if (school.path / f).read_bytes() != (again.path / f).read_bytes()] == []
    assert rows(school)[0] != rows(other)[0]
    raw, seen = school.path / "raw", Counter()
    for span in lines(school.path / "truth" / "spans.jsonl"):
        path = raw / span["file"]
        if path.suffix == ".csv":
            cells = table(path, ";" if path.stem == "term-2" else ",")
            text = cells[int(span["place"].removeprefix("row ")) - 1][cells[0].index(span["part"])]
        else:
            text = lines_of(path)[int(span["place"].removeprefix("line ")) - 1][span["part"]]
        assert text[span["start"] : span["end"]] == span["text"]
        seen[span["type"]] += 1
    assert dict(seen) == school.meta["planted"]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]


def test_broken_rows_are_where_the_truth_says(school):
    for row in lines(school.path / "truth" / "broken.jsonl"):
        path, number = school.path / "raw" / row["file"], int(row["place"].split()[1])
        if path.suffix == ".csv":
            cells = table(path, ";" if path.stem == "term-2" else ",")
            assert len(cells[number - 1]) == 2 != len(cells[0])
        else:
            with pytest.raises(ValueError, match=r"."):
                json.loads(path.read_text(encoding="utf-8").splitlines()[number - 1])


def test_few_exercises_of_a_level_are_left_out_rather_than_given_twice(tmp_path):
    large = make(tmp_path, people=400)
    counts = large.meta["levels"]
    assert counts["language, level 1"] <= 4 * len(NOUNS)
    assert large.meta["exercises"] < 400 * 3 * 9


def test_patients_are_refused_and_nothing_need_be_installed(monkeypatch):
    with pytest.raises(RecipeError, match="patients is set, and a classroom has none"):
        example.check(example.Config(kind="classroom", patients=30))
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    example.check(example.Config(kind="classroom", people=30))
    assert example.fingerprint(example.Config(kind="classroom"))


@pytest.mark.parametrize("topic", [SUMS, LANGUAGE])
@pytest.mark.parametrize("level", LEVELS)
def test_every_exercise_can_be_got_right_and_wrong(topic, level):
    draw = random.Random(level)
    for _ in range(300):
        exercise = draw_exercise(topic, level, draw)
        right, wrong = (draw_attempt(exercise, is_right, draw) for is_right in (True, False))
        assert right.is_right
        assert not wrong.is_right
        assert right.result == wrong.result
        assert wrong.written != right.written
        assert exercise.level == level


def test_the_recipe_teaches_term_by_term_and_examines_what_nobody_was_taught(tmp_path):
    path = Path(__file__).parents[2] / "recipes" / "tutor.toml"
    plan = plan_recipe(load_recipe(path, ["classroom.people=40", "machine.threads=1"]))
    until = [stage.name for stage in plan.stages].index("base")
    done = run_plan(replace(plan, stages=plan.stages[:until]), tmp_path / "runs")
    taught = {
        term: read_conversations(done[term].path / "conversations.jsonl").good
        for term in ("term-1", "term-2", "term-3")
    }
    levels = {term: Counter(talk.meta["level"] for talk in talks) for term, talks in taught.items()}
    assert set(levels["term-1"]) == {"1", "2"}
    assert levels["term-3"].most_common(1)[0][0] == "5"
    known = {talk.messages[1].content for talks in taught.values() for talk in talks}
    for name, verifier in (("sums", "number"), ("language", "exact"), ("check", "exact")):
        task = load_jsonl(done["questions"].path / f"{name}.jsonl", verifier)
        assert task.levels == ("1", "2", "3", "4", "5")
        asked = [e.question for level in task.levels for e in task.examples("test", level, 1000, 0)]
        assert len(asked) > 20
        assert not known & set(asked)
        exercises = {question.partition("\n")[0] for question in asked}
        assert not exercises & {question.partition("\n")[0] for question in known}


def test_what_is_thought_and_asked_is_in_swahili(school):
    texts = " ".join(row["exercise"] for row in rows(school) if "?" in row["exercise"])
    assert share_in(texts, "sw") > 0.97
