"""The example town hall: the same by seed, right by its own papers, every planted value at its place."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import date
from email import policy
from email.parser import BytesParser
from itertools import product
from pathlib import Path

import pytest

from school import artifact, draft, fp32_run
from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.get import example
from schoolhouse.get.townhall_rules import (
    NOTHING,
    QUESTIONS,
    SERVICES,
    Facts,
    counted_years,
    fee,
    is_entitled,
    listed,
    missing,
    who_may,
)
from schoolhouse.pipeline import plan_recipe, run_plan
from schoolhouse.prepare import read
from schoolhouse.prepare.redaction.language import load_languages
from schoolhouse.text.records import read_conversations
from schoolhouse.text.sourced import read_documents

for package in ("faker", "docx", "datasketch"):
    pytest.importorskip(package)

RECIPES = Path(__file__).parents[2] / "recipes"


def make(folder, seed=5, people=60):
    out = draft(folder / f"out-{seed}")
    settings = example.Config(kind="townhall", people=people)
    example.check(settings)
    example.run(settings, {}, Run.for_tests(folder / f"run-{seed}", seed), out)
    return out


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return make(tmp_path_factory.mktemp("town"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path, delimiter=","):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def cases(town):
    """The good rows of the register, as objects."""
    head, *rows = table(town.path / "raw" / "cases" / "register.csv")
    found = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
    return [row for row in found if row["message"]]


def paper(town, name):
    """The first table of a rules paper, or its list, as rows of cells."""
    text = (town.path / "raw" / "rules" / name).read_text(encoding="utf-8")
    rows = [[c.strip() for c in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]
    return rows[1:] or [line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- ")]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_people(town, tmp_path):
    again, other = make(tmp_path / "again"), make(tmp_path / "other", seed=6)
    names = sorted(path.relative_to(town.path) for path in town.path.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    assert [str(name) for name in names if (town.path / name).read_bytes() != (again.path / name).read_bytes()] == []
    first, second = ({row["last"] for row in lines(out.path / "truth" / "citizens.jsonl")} for out in (town, other))
    assert len(first & second) < len(first) / 2
    assert len(lines(town.path / "truth" / "citizens.jsonl")) == town.meta["people"] == 60


def test_a_key_of_another_kind_is_refused_and_so_is_a_missing_package(monkeypatch):
    with pytest.raises(RecipeError, match="patients is set, and a townhall has none: write people"):
        example.check(example.Config(kind="townhall", patients=30))
    with pytest.raises(RecipeError, match="people is set, and a hospital has none: write patients"):
        example.check(example.Config(people=30))
    with pytest.raises(ValueError, match="greater than or equal to 20"):
        example.Config(kind="townhall", people=5)
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="needs faker"):
        example.check(example.Config(kind="townhall"))


def test_fees_follow_from_the_paper_on_fees(town):
    rows = {name: fees for name, *fees in paper(town, "fees.md")}
    assert rows.keys() == SERVICES.keys()
    seen = Counter()
    for case in cases(town):
        if not case["fee"]:
            continue
        whole, young, old, poor = rows[case["service"]]
        age, income = int(case["age"] or 30), int(case["income"] or 5000)
        lower = [(young, age < 18), (old, age >= 65), (poor, income < 1200)]
        held = [int(whole), *(int(amount) for amount, holds in lower if amount and holds)]
        assert int(case["fee"]) == min(held), case
        assert case["fee_reason"].endswith(f"; so {min(held)}")
        seen["whole" if len(held) == 1 else "lower"] += 1
    assert min(seen.values()) > 5


def test_who_may_apply_follows_from_the_paper_on_it(town):
    rules = dict(paper(town, "who-may-apply.md"))
    seen = Counter()
    for case in cases(town):
        words = rules[case["service"]]
        checks = []
        for pattern, column in (
            (r"age of (\d+)", "age"),
            (r"for (\d+) years?", "years"),
            (r"to (\d+) crowns", "income"),
        ):
            limit = re.search(pattern, words)
            if limit is not None:
                checks.append(None if not case[column] else
                              (int(case[column]) <= int(limit[1])) if column == "income"
                              else int(case[column]) >= int(limit[1]))  # fmt: skip
        should = "" if None in checks else "yes" if all(checks) else "no"
        assert case["entitled"] == should, case
        assert bool(case["fee"]) <= (should == "yes")
        seen[should] += 1
    assert min(seen[answer] for answer in ("yes", "no", "")) > 5


def test_what_is_asked_for_is_the_first_of_what_the_paper_names(town):
    needed = {name: (form, needs.split(", ")) for name, form, needs in paper(town, "papers.md")}
    columns = {"age": "age", "years in town": "years", "income": "income"}
    seen = Counter()
    for case in cases(town):
        form, needs = needed[case["service"]]
        there = case["papers"].split("; ")
        gone = [need for need in needs if not (case[columns[need]] if need in columns else need in there)]
        assert case["missing"] == (gone[0] if gone else "nothing"), case
        assert (case["form"], case["needed"]) == (form, ", ".join(needs))
        assert case["known"] == (", ".join(need for need in needs if need not in gone) or "none")
        seen["nothing" if not gone else "fact" if gone[0] in columns else "paper"] += 1
    assert min(seen.values()) > 5
    assert len(seen) == 3


def test_a_message_says_what_is_known_and_neither_form_nor_fee(town):
    for case in cases(town):
        text = case["message"]
        assert bool(case["age"]) == bool(re.search(r"I am \d+|My age is", text)), text
        assert not case["age"] or re.search(rf"(I am|age is) {case['age']}\b", text)
        assert bool(case["income"]) == (" crowns a month" in text)
        assert not case["income"] or f" {case['income']} crowns" in text
        assert bool(case["years"]) == bool(re.search(r"lived in|moved to", text))
        assert case["years"] in ("", "0") or counted_years(int(case["years"])) in text
        for name in QUESTIONS:
            if name not in ("age", "years in town", "income"):
                assert (f"the {name}" in text) == (name in case["papers"].split("; "))
        assert not re.search(rf"\b{case['form']}\b|fee", text)


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_nothing_is_decided_without_the_facts_that_decide_it(service):
    for age, years, income in product((None, 17, 40, 70), (None, 0, 9), (None, 900, 3000)):
        facts = Facts(age, years, income, service.papers)
        gone = missing(service, facts)
        if gone == NOTHING:
            assert is_entitled(service, facts) is not None
            assert fee(service, facts) is not None
        elif is_entitled(service, facts) is not None and fee(service, facts) is not None:
            pytest.fail(f"{gone} is asked for, and decides nothing")
        assert gone == NOTHING or gone in QUESTIONS
    assert len({s.form for s in SERVICES.values()}) == len(SERVICES)
    assert who_may(service)


def test_words_are_put_in_a_row():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert [counted_years(n) for n in (1, 2)] == ["1 year", "2 years"]


def test_the_clerk_asks_for_what_is_missing_and_only_then_says_what_to_do(town):
    truth = {row["request"]: row for row in lines(town.path / "truth" / "requests.jsonl")}
    broken = {row["place"] for row in lines(town.path / "truth" / "broken.jsonl") if "chats" in row["file"]}
    asked = sorry = 0
    for number, line in enumerate((town.path / "raw" / "counter" / "chats.jsonl").read_bytes().splitlines(), 1):
        if f"line {number}" in broken:
            with pytest.raises(ValueError, match=r"."):
                json.loads(line)
            continue
        chat = json.loads(line)
        said, case = chat["messages"], truth[chat["request"]]
        assert [message["role"] for message in said] == ["citizen", "clerk"] * (len(said) // 2)
        assert len(said) == (2 if case["missing"] == "nothing" else 4)
        if case["missing"] != "nothing":
            asked += 1
            assert said[1]["content"] == QUESTIONS[case["missing"]]
        if case["entitled"] == "no":
            sorry += 1
            assert said[-1]["content"] == f"I am sorry, this is for {who_may(SERVICES[case['service']])}."
        elif case["fee"]:
            assert f"form {case['form']} at the {case['office']}" in said[-1]["content"]
            assert f"The fee is {case['fee']} crowns" in said[-1]["content"]
    assert min(len(broken), asked, sorry) > 0


def test_every_planted_value_stands_at_its_place(town):
    raw = town.path / "raw"
    held, seen = {}, Counter()
    for row in lines(town.path / "truth" / "spans.jsonl"):
        path = raw / row["file"]
        if row["file"].endswith(".csv"):
            rows = held.setdefault(row["file"], table(path))
            text = rows[int(row["place"].removeprefix("row ")) - 1][rows[0].index(row["part"])]
        elif row["file"].endswith(".jsonl"):
            said = json.loads(path.read_bytes().splitlines()[int(row["place"].removeprefix("line ")) - 1])
            text = said["messages"][int(row["part"].removeprefix("message ")) - 1]["content"]
        else:
            mail = BytesParser(policy=policy.default).parsebytes(path.read_bytes())
            if row["part"] == "header From":
                assert row["text"] in str(mail["From"])
                continue
            text = mail.get_content().replace("\r\n", "\n")
        assert text[row["start"] : row["end"]] == row["text"], row
        seen[row["file"].rpartition(".")[2], row["type"]] += 1
    assert {kind for _, kind in seen} == {"name", "date", "phone", "email", "id", "address"}
    assert {suffix for suffix, _ in seen} == {"csv", "jsonl", "eml"}


def test_ages_fit_birthdays_and_the_papers_name_nobody(town):
    people = {row["key"]: row for row in lines(town.path / "truth" / "citizens.jsonl")}
    for case in lines(town.path / "truth" / "requests.jsonl"):
        day, born = date.fromisoformat(case["date"]), date.fromisoformat(people[case["citizen"]]["born"])
        age = day.year - born.year - ((day.month, day.day) < (born.month, born.day))
        assert case["age"] in ("", str(age))
        assert people[case["citizen"]]["years"] <= age
    names = {row["last"] for row in people.values()}
    log = "".join(path.read_text(encoding="utf-8") for path in town.path.parent.rglob("log.jsonl"))
    texts = [path.read_text(encoding="utf-8") for path in (town.path / "raw" / "rules").glob("*.md")]
    for text in [*texts, log, (town.path / "README.md").read_text(encoding="utf-8")]:
        assert not names & set(re.findall(r"\w+", text))
    assert "60 invented citizens" in log


def test_what_is_read_is_what_is_there_but_for_what_is_broken(town, tmp_path):
    tables = {
        "cases/*.csv": {"text": "message", "person": "citizen", "kind": "request"},
        "office/citizens.csv": {"person": "citizen", "kind": "office"},
        "*.jsonl": {"person": "citizen"},
    }
    config = read.Config(data="town", person_from=r"^mail/(?P<person>C\d+)", tables=tables)
    out = draft(tmp_path / "out")
    read.run(config, {"town": artifact(town.path)}, fp32_run(tmp_path), out)
    found = Counter(document.kind for document in read_documents(out.path))
    mails = len(list((town.path / "raw" / "mail").glob("*.eml")))
    assert found["request"] == len(cases(town))
    assert found["office"] == 60
    assert found["e-mail"] == mails - 2  # an empty one, and a copy of another
    assert found["dialogue"] > 10
    aside = {(row["file"], row["place"]) for row in lines(out.path / "set_aside.jsonl")}
    broken = {(row["file"], row["place"]) for row in lines(town.path / "truth" / "broken.jsonl")}
    copies = {row["file"] for row in lines(town.path / "truth" / "repeated.jsonl") if row["file"].endswith(".eml")}
    assert aside == broken | {(name, "whole file") for name in copies}


def test_the_rules_file_of_the_recipe_knows_the_offices_words(town):
    pytest.importorskip("simple_icd_10_cm")
    english = load_languages([str(RECIPES / "rules" / "townhall.toml")])["en"]
    texts = [f"{one.name} {' '.join(one.needs)} {one.office}" for one in SERVICES.values()]
    strange = {
        word
        for word in " ".join(texts).lower().split()
        if not english.is_plain(word) and word not in english.ordinary
    }  # fmt: skip
    assert strange == set()
    assert "crowns" in english.numbers.units


def test_the_recipe_asks_what_the_rules_answer_and_holds_people_out(tmp_path):
    recipe = tmp_path / "public-services.toml"
    lines_of = (RECIPES / "public-services.toml").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines_of if 'name = "tagger"' not in line and 'name = "redacted"' not in line]
    recipe.write_text("\n".join(kept).replace('data = "redacted"', 'data = "records"'))
    plan = plan_recipe(load_recipe(recipe, ["townhall.people=80", "machine.threads=1"]))
    until = [stage.name for stage in plan.stages].index("base")
    done = run_plan(replace(plan, stages=plan.stages[:until]), tmp_path / "runs")
    lessons = done["lessons"].path
    truth = {row["request"]: row for row in lines(done["townhall"].path / "truth" / "requests.jsonl")}
    head, *cells = table(done["townhall"].path / "raw" / "cases" / "register.csv")
    said = {
        row[head.index("message")]: truth[row[head.index("request")].removesuffix("-2")]
        for row in cells
        if len(row) > 3
    }
    for name, key in (("form", "form"), ("fee", "fee"), ("entitled", "entitled"), ("ask", "missing")):
        rows = lines(lessons / f"{name}.jsonl")
        people = {
            split: {row["meta"]["person"] for row in rows if row["split"] == split} for split in ("train", "test")
        }
        assert people["train"]
        assert people["test"]
        assert not people["train"] & people["test"]
        for row in rows:
            assert row["answer"] == said[row["question"].rpartition("\n")[0]][key]
    talks = [row for row in read_conversations(lessons / "conversations.jsonl").good if row.messages[0].role == "user"]
    assert len(talks) > 10
    assert any("fee is" in talk.messages[-1].content for talk in talks)
