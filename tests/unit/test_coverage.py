"""The stage `prepare.coverage`: who is counted, what is warned of, and which differences are flagged."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from school import artifact, draft
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.core.shares import difference, holm, share
from schoolhouse.prepare import coverage
from schoolhouse.prepare.counting.columns import Column
from schoolhouse.prepare.counting.rates import Grouping, Sums, flagged, rates_of, worth
from schoolhouse.prepare.coverage import Config
from schoolhouse.text.sourced import Document, Origin, write_documents


def document(number, person=None, **facts):
    origin = Origin("notes.csv", f"line {number}", "ab" * 32)
    return Document(f"d{number}", f"Note {number}", origin, facts.pop("kind", "note"), person, None, facts)


def source(folder, documents, held=()):
    folder.mkdir(parents=True)
    write_documents(folder, documents)
    if held:
        (folder / "held_out").mkdir()
        write_documents(folder / "held_out", held)
    return artifact(folder)


def count(folder, documents, held=(), exam=None, **config):
    given_ = documents if hasattr(documents, "path") else source(folder / "in", documents, held)
    out = draft(folder / "out")
    inputs = {"data": given_} | ({"exam": exam} if exam is not None else {})
    settings_ = Config(data="data", **config, **({"exam": "exam"} if exam is not None else {}))
    coverage.check(settings_)
    coverage.run(settings_, inputs, Run.for_tests(folder / "run"), out)
    return json.loads((out.path / "coverage.json").read_text()), (out.path / "README.md").read_text(), out


def cells(found, *keys):
    return {
        (cell["group"], cell["value"]): tuple(cell[key] for key in keys) if len(keys) > 1 else cell[keys[0]]
        for cell in found["cells"]
    }


def test_rows_and_persons_are_counted_by_group_with_those_that_do_not_say(tmp_path):
    learnt = [document(n, f"p{n // 2}", sex="f" if n % 2 else "m", ward="A") for n in range(60)]
    learnt += [document(60 + n, f"q{n}", sex=None, ward=" ") for n in range(20)]
    learnt += [document(80 + n, None, ward="B", sex=True) for n in range(10)]
    held = [document(100 + n, f"r{n}", sex="f", ward="A") for n in range(10)]
    found, page, out = count(tmp_path, learnt, held, groups=["sex", "ward", "kind"], thin=15, thin_share=0.0)
    assert cells(found, "rows", "persons", "held_out") == {
        ("sex", "f"): (40, 40, 10), ("sex", "m"): (30, 30, 0), ("sex", "yes"): (10, 10, 0),
        ("sex", "(missing)"): (20, 20, 0), ("ward", "A"): (70, 40, 10), ("ward", "B"): (10, 10, 0),
        ("ward", "(missing)"): (20, 20, 0), ("kind", "note"): (100, 70, 10),
    }  # fmt: skip
    assert (found["rows"], found["held_out"], found["persons"]) == (100, 10, 70)
    assert found["warnings"] == [
        "sex m: no row is held out, so that errors there cannot be measured",
        "sex yes: 10 rows (10.0%), fewer than 15 rows or 0.0% of all",
        "sex: 20.0% of the rows do not say",
        "ward B: 10 rows (10.0%), fewer than 15 rows or 0.0% of all",
        "ward: 20.0% of the rows do not say",
    ]
    assert all(f"- {warning}" in page for warning in found["warnings"])
    assert "| ward | B | 10 | 10.0% | 10 | 0 | thin |" in page
    assert out.meta == {"rows": 100, "held_out": 10, "persons": 70, "warnings": 5}


def test_a_small_share_is_thin_however_many_rows_it_has(tmp_path):
    documents = [document(n, None, ward="big" if n >= 60 else "small") for n in range(1200)]
    found, *_ = count(tmp_path, documents, groups=["ward"], thin_share=0.06)
    assert cells(found, "thin") == {("ward", "big"): False, ("ward", "small"): True}
    found, *_ = count(tmp_path / "b", documents, groups=["ward"], thin_share=0.05)
    assert not any(cells(found, "thin").values())


def test_two_groups_together_show_what_does_not_occur(tmp_path):
    documents = [document(n, None, sex="fm"[n % 2], ward="A" if n % 2 or n < 100 else "B") for n in range(300)]
    found, page, _ = count(tmp_path, documents, groups=["sex", "ward"], pairs=True)
    assert cells(found, "rows")["sex and ward", "m, B"] == 0
    assert cells(found, "rows")["sex and ward", "f, B"] == 100
    assert found["warnings"] == [
        "sex and ward: 1 of 4 combinations have fewer than 50 rows or 1.0% of all (m, B: 0)"
    ]  # fmt: skip
    assert "| sex and ward | m, B | 0 | 0.0% | 0 | 0 | thin |" in page
    alone, *_ = count(tmp_path / "b", documents, groups=["sex", "ward"])
    assert {group for group, _ in cells(alone, "rows")} == {"sex", "ward"}


def test_values_of_fewer_than_five_persons_are_never_named(tmp_path):
    documents = [document(n, f"p{n}", surname="Smith") for n in range(60)]
    documents += [document(100 + n, "z", surname="Quixby") for n in range(30)]  # one person with many rows
    documents += [document(200, "y", surname="Zorn")]
    _, page, out = count(tmp_path, documents, groups=["surname"], outcome="kind", thin=1)
    said = [page, (out.path / "coverage.json").read_text(), (tmp_path / "run" / "log.jsonl").read_text()]
    assert all("Smith" in text for text in said[:2])
    assert not any(name in text for text in said for name in ("Quixby", "Zorn"))
    assert "surname: 31 rows have values that fewer than 5 persons share (not named)" in page


def test_an_outcome_is_compared_with_all_other_rows_and_only_what_is_no_chance_is_flagged(tmp_path):
    rng = random.Random(0)
    documents = []
    for n in range(1500):
        ward, sex = "ABC"[n % 3], rng.choice("fm")
        urgent = rng.random() < (0.45 if ward == "B" else 0.2)
        documents.append(document(n, None, ward=ward, sex=sex, urgent=urgent))
    found, page, _ = count(tmp_path, documents, groups=["ward", "sex"], outcome="urgent")
    rates = {(rate["group"], rate["value"]): rate for rate in found["rates"]}
    assert {rate["what"] for rate in found["rates"]} == {"urgent yes"}  # no is what yes is not
    assert [key for key, rate in rates.items() if rate["flagged"] and rate["points"] > 0] == [("ward", "B")]
    b = rates["ward", "B"]
    of_b = [d.facts["urgent"] for d in documents if d.facts["ward"] == "B"]
    others = [d.facts["urgent"] for d in documents if d.facts["ward"] != "B"]
    expected = difference(share(sum(of_b), 500), share(sum(others), 1000))
    assert b["rate"] == sum(of_b) / 500 and b["worth"] == b["rows"] == 500  # noqa: PT018
    assert (b["low"], b["high"]) == tuple(share(sum(of_b), 500).interval)
    assert b["points"] == pytest.approx(100 * expected.value)
    assert b["points_low"] == pytest.approx(100 * expected.interval.low)
    assert b["p_value"] == pytest.approx(expected.p_value * 4)  # of four tests the least
    assert rates["sex", "m"]["p_value"] is None  # what of f is more is of m less
    assert any("urgent yes" in warning and "ward B" in warning for warning in found["warnings"])
    assert f"**{b['points']:+.1f} (" in page


def test_no_difference_is_flagged_in_nearly_all_data_without_one(tmp_path):
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        hit = rng.random(600) < 0.3
        columns = [Column(f"g{i}", 4, list("abcd"), rng.integers(0, 4, 600).astype(np.int32)) for i in range(3)]
        persons = np.arange(600, dtype=np.int32)
        over = np.ones(600, dtype=bool)
        rates = flagged(rate for c in columns for rate in rates_of("x", Grouping(c, over, persons), hit))
        found += any(rate.flagged for rate in rates)
    assert found <= 20  # 10 are to be expected at the most


def test_rows_that_do_not_say_the_outcome_are_compared_too_and_rare_outcomes_are_not(tmp_path):
    documents = [document(n, None, ward="AB"[n % 2], code="xyz"[n % 3] if n % 2 or n % 4 else None) for n in range(600)]
    documents += [document(1000 + n, None, ward="A", code="w") for n in range(6)]
    found, *_ = count(tmp_path, documents, groups=["ward"], outcome="code")
    rates = {(rate["what"], rate["value"]): rate for rate in found["rates"]}
    assert {what for what, _ in rates} == {"code x", "code y", "code z", "code (missing)"}
    missing = rates["code (missing)", "A"]
    assert (missing["rows"], round(missing["rate"] * 306)) == (306, 150)
    assert missing["flagged"]
    assert rates["code x", "A"]["rows"] == 156  # of those that say
    few, *_ = count(tmp_path / "b", documents, groups=["ward"], outcome="code", thin=1)
    assert "code w" in {rate["what"] for rate in few["rates"]}


def test_too_little_is_not_compared(tmp_path):
    documents = [document(n, None, ward="A" if n < 5 else "B", urgent=n < 5) for n in range(100)]
    found, page, _ = count(tmp_path, documents, groups=["ward"], outcome="urgent")
    assert all(rate["p_value"] is None and not rate["flagged"] for rate in found["rates"])
    assert "Without points: too few" in page


# --- several rows of one person ---------------------------------------------------------------------------------------


def sums_of(people):
    """People as (hits, rows) pairs."""
    return Sums(
        sum(n for _, n in people), len(people), sum(x for x, _ in people), sum(x * x for x, _ in people),
        sum(x * n for x, n in people), sum(n * n for _, n in people),
    )  # fmt: skip


def test_rows_of_one_person_that_say_the_same_are_worth_one():
    alone = worth(sums_of([(1, 1)] * 30 + [(0, 1)] * 70))
    tenfold = worth(sums_of([(10, 10)] * 30 + [(0, 10)] * 70))
    assert (alone.n, alone.value) == (100, 0.3)
    assert tenfold.n == pytest.approx(99, abs=0.5)
    assert tenfold.value == pytest.approx(0.3)
    assert tenfold.interval.low == pytest.approx(alone.interval.low, abs=0.002)
    mixed = worth(sums_of([(3, 10)] * 100))  # everybody is like all: rows are as good as persons
    assert mixed.n == 1000
    assert worth(sums_of([(10, 10)] * 7)).n == 7
    assert worth(sums_of([(4, 10)])).n == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_sums_of_groups_and_of_all_others_are_those_of_counting_one_by_one(rows):
    codes, persons = (np.array([row[i] for row in rows], dtype=np.int32) for i in (0, 1))
    hit, over = (np.array([row[i] for row in rows], dtype=bool) for i in (2, 3))
    found = Grouping(Column("g", 4, list("abcd"), codes), over, persons).sums(hit)
    for code in range(4):
        for part, chosen in zip(found[code], (over & (codes == code), over & (codes != code)), strict=True):
            people = [
                (int((hit & chosen & (persons == p)).sum()), int((chosen & (persons == p)).sum())) for p in range(7)
            ]
            assert part == sums_of([pair for pair in people if pair[1]])


def test_a_difference_that_few_persons_with_many_rows_make_is_not_flagged(tmp_path):
    def rows(each):
        return [
            document(1000 * p + n, f"p{p}", ward="AB"[p % 2], fell=p % 4 == 0 or p % 10 == 1)
            for p in range(40)
            for n in range(each)
        ]

    def flags(folder, each):
        found, *_ = count(tmp_path / folder, rows(each), groups=["ward"], outcome="fell", thin=1)
        return [rate["p_value"] for rate in found["rates"] if rate["p_value"] is not None]

    once, often = flags("once", 1), flags("often", 20)
    assert once == pytest.approx(often, abs=0.02)
    assert once[0] > 0.01


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090)), ((10, 10), (0, 10), (0.6075, 1))],
)
def test_intervals_of_differences_are_the_published_ones(first, second, interval):
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10."""
    found = difference(share(*first), share(*second))
    assert tuple(found.interval) == pytest.approx(interval, abs=6e-5)
    turned = difference(share(*second), share(*first))
    assert (turned.value, turned.p_value) == (-found.value, found.p_value)


def test_p_values_are_those_of_the_z_test_and_holm():
    scipy = pytest.importorskip("scipy.stats")
    chi2 = scipy.chi2_contingency([[30, 70], [45, 55]], correction=False).pvalue
    assert difference(share(30, 100), share(45, 100)).p_value == pytest.approx(chi2)
    assert difference(share(0, 9), share(0, 8)).p_value == 1.0
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    with pytest.raises(ValueError, match="both groups"):
        difference(share(0, 0), share(1, 2))


# --- exams ------------------------------------------------------------------------------------------------------------


def exam_of(folder, items):
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return artifact(folder)


def verdict(n, correct, model="m", mode="thinking", **meta):
    row = {"model": model, "mode": mode, "task": "t", "level": "all", "id": f"t/all/{n}", "correct": correct}
    return row | ({"meta": meta} if meta else {})


def test_errors_of_an_exam_are_counted_by_what_its_questions_or_their_documents_say(tmp_path):
    documents = [document(n, f"p{n}", sex="fm"[n % 2]) for n in range(400)]
    items = [verdict(n, n % 2 == 0 or n % 8 == 1, document=f"d{n}") for n in range(200)]  # m is wrong 3 times in 4
    items += [verdict(n, True, model="other", sex="f" if n % 2 else None) for n in range(60)]
    items += [verdict(900, False), verdict(901, False, document="nowhere")]
    found, page, _ = count(
        tmp_path, documents[:300], documents[300:], exam_of(tmp_path / "exam", items), groups=["sex"]
    )
    errors = {(rate["what"], rate["value"]): (rate["rows"], rate["rate"]) for rate in found["errors"]}
    assert errors == {
        ("m, thinking: wrong", "f"): (100, 0.0), ("m, thinking: wrong", "m"): (100, 0.75),
        ("other, thinking: wrong", "f"): (30, 0.0), ("other, thinking: wrong", "(missing)"): (30, 0.0),
    }  # fmt: skip
    assert found["verdicts_without_group"] == 2
    assert "2 verdicts are left out" in page
    assert [rate["flagged"] for rate in found["errors"]] == [True, False, False, False]
    assert any(warning.startswith("m, thinking: wrong: 0.0% of 100 rows with sex f") for warning in found["warnings"])


def test_an_exam_whose_questions_know_nothing_is_refused(tmp_path):
    documents = [document(n, None, sex="fm"[n % 2]) for n in range(20)]
    with pytest.raises(DataError, match="no question of the exam says sex"):
        count(tmp_path, documents, exam=exam_of(tmp_path / "exam", [verdict(1, True)]), groups=["sex"])
    with pytest.raises(DataError, match="nothing can be counted"):
        count(tmp_path / "b", documents, exam=exam_of(tmp_path / "empty", []), groups=["sex"])


# --- mistakes, other input --------------------------------------------------------------------------------------------


def test_mistakes_are_said_with_what_may_have_been_meant(tmp_path):
    documents = [document(n, None, age=n, sex="f") for n in range(300)]
    with pytest.raises(DataError, match="no row has a fact 'sec'; did you mean 'sex'"):
        count(tmp_path, documents, groups=["sec"])
    with pytest.raises(DataError, match="'age' has more than 200 different values"):
        count(tmp_path / "b", documents, groups=["age"])
    with pytest.raises(RecipeError, match="twice"):
        coverage.check(Config(data="data", groups=["sex", "sex"]))
    with pytest.raises(RecipeError, match="among the groups"):
        coverage.check(Config(data="data", groups=["sex"], outcome="sex"))
    given_ = source(tmp_path / "c" / "in", documents)
    (given_.path / "documents.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="1 bad rows"):
        count(tmp_path / "c", given_, groups=["sex"])


def test_an_outcome_may_have_very_many_values(tmp_path):
    documents = [document(n, None, sex="fm"[n % 2], code=f"c{n % 500}" if n < 1000 else "E11") for n in range(1100)]
    found, *_ = count(tmp_path, documents, groups=["sex"], outcome="code")
    assert {rate["what"] for rate in found["rates"]} == {"code E11"}


def test_conversations_say_their_groups_in_meta_or_its_facts(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    metas = [{"person": f"p{n}", **({"sex": "f"} if n % 2 else {"facts": {"sex": "m"}})} for n in range(40)]
    rows = [{"messages": [{"role": "user", "content": "Hello"}], "meta": meta} for meta in metas]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, *_ = count(tmp_path, artifact(folder), groups=["sex"])
    assert cells(found, "rows") == {("sex", "f"): 20, ("sex", "m"): 20}


def test_values_cannot_break_the_page(tmp_path):
    documents = [document(n, None, ward="A|B\n<script>" if n % 2 else 3.5) for n in range(40)]
    _, page, _ = count(tmp_path, documents, groups=["ward"])
    assert "| ward | A\\|B &lt;script> | 20 |" in page
    assert "| ward | 3.5 | 20 |" in page
