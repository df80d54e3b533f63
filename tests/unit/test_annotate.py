"""Labels of people: schemas, label files, agreement, the queue that a learner orders, and what is exported."""

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import check_grad

from school import artifact, draft, fp32_run
from schoolhouse.core.errors import DataError, RecipeError, Stopped
from schoolhouse.prepare import annotate
from schoolhouse.prepare.annotation import active
from schoolhouse.prepare.annotation.active import (
    Known,
    ask_next,
    by_entropy,
    by_margin,
    by_votes,
    counted,
    grams,
    learn,
    weighed,
)
from schoolhouse.tasks.jsonl import load_jsonl
from schoolhouse.tasks.task import split_of
from schoolhouse.text.agreement import cohen_kappa, krippendorff_alpha, span_f1, word_f1
from schoolhouse.text.labels import (
    Label,
    LabelSchema,
    Span,
    append_label,
    load_schema,
    queue_for,
    read_labels,
    read_queue,
)
from schoolhouse.text.preferences import is_held_out, pairs_of, read_ratings
from schoolhouse.text.records import read_conversations, read_rows
from schoolhouse.text.sourced import HELD_OUT, Document, Origin, write_documents

TOPICS = {
    "heart": ["chest pain on effort", "murmur over the apex", "atrial flutter on the strip", "ankles swollen at night"],
    "skin": ["itching rash on the arm", "dry scaly plaque", "blister after sunlight", "mole that changed colour"],
    "bone": ["fracture of the wrist", "hip worn and stiff", "fall from a ladder", "cast removed today"],
}
CLASSES = {"kind": "classes", "question": "Which ward?", "names": list(TOPICS)}
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def document(name, text, person=None, **facts):
    return Document(name, text, Origin("notes.jsonl", f"line {name}", "0" * 64), person=person, facts=facts)


def notes(count, seed=0, weights=(8, 1, 1)):
    """Notes of three wards, of which one writes most; every person has two."""
    rng = random.Random(seed)
    for n in range(count):
        topic = rng.choices(list(TOPICS), weights)[0]
        yield document(
            f"d{n}", f"{rng.choice(TOPICS[topic])}, seen by team {rng.randrange(40)}", f"p{n // 2}", truth=topic
        )


def label(name, value, annotator="anna", kind="classes", minutes=0, seconds=5.0):
    at = (NOON + timedelta(minutes=minutes)).isoformat()
    return {"id": name, "annotator": annotator, "kind": kind, "value": value, "seconds": seconds, "at": at}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data(folder, documents):
    folder.mkdir(parents=True)
    write_documents(folder, documents)
    return artifact(folder)


def work(folder, source, labels=(), seed=0, **config):
    """Run the stage; returns the draft, with the queue read."""
    if labels:
        config["labels"] = str(write(folder / "labels" / "all.jsonl", labels))
    settings = annotate.Config(**{"data": "notes", "ask": CLASSES, **config})
    annotate.check(settings)
    out = draft(folder / "out")
    annotate.run(settings, {"notes": source}, fp32_run(folder, seed), out)
    return out, read_queue(out.path / "queue.jsonl")


def rows_of(out, name):
    return read_rows(out.path / name).good


# Agreement


def test_kappa_is_what_the_paper_computes_by_hand():
    # 20 + 15 of 50 equal; the first says yes 25 times, the second 30: (0.7 - 0.5) / (1 - 0.5)
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    found = cohen_kappa(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.n == 50
    assert found.low < 0.4 < found.high
    # three classes: 7 of 10 equal, by chance 0.4 * 0.3 + 0.3 * 0.4 + 0.3 * 0.3
    first, second = "aaaabbbccc", "aaabbbbcca"
    expected = (0.8 - (0.4 * 0.4 + 0.3 * 0.4 + 0.3 * 0.2)) / (1 - (0.4 * 0.4 + 0.3 * 0.4 + 0.3 * 0.2))
    assert cohen_kappa(first, second).value == pytest.approx(expected)


def test_alpha_is_what_the_paper_computes_for_four_people_and_gaps():
    # Krippendorff 2011, section C: four observers, twelve units, one of which a single observer saw
    people = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    found = krippendorff_alpha([[row[n] for row in people if row[n] != "."] for n in range(12)])
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.n == 11


ANSWERS = st.lists(st.sampled_from("abc"), min_size=2, max_size=30)


@settings(max_examples=40)
@given(ANSWERS, st.permutations("abc"))
def test_agreement_with_oneself_is_perfect_and_names_of_classes_do_not_matter(answers, names):
    other = answers[1:] + answers[:1]
    renamed = dict(zip("abc", names, strict=True))
    for measure in (cohen_kappa, lambda a, b: krippendorff_alpha(zip(a, b, strict=True))):
        alone = measure(answers, answers)
        assert alone.value == (None if len(set(answers)) == 1 else pytest.approx(1))
        plain, changed = measure(answers, other), measure([renamed[a] for a in answers], [renamed[a] for a in other])
        assert plain.value == pytest.approx(changed.value, abs=1e-9) if plain.value is not None else not changed.value
        turned = measure(other, answers).value
        assert turned == pytest.approx(plain.value, abs=1e-9) if turned is not None else plain.value is None


def test_people_who_throw_dice_agree_no_more_than_by_chance():
    rng = np.random.default_rng(0)
    a, b, c = (rng.choice(3, size=3000, p=[0.8, 0.15, 0.05]).tolist() for _ in range(3))
    for found in (cohen_kappa(a, b), krippendorff_alpha(zip(a, b, c, strict=True))):
        assert abs(found.value) < 0.05
        assert found.low < found.value < found.high
        assert found.high - found.low < 0.15


def test_agreement_is_not_defined_without_documents_or_with_one_answer_alone():
    assert cohen_kappa([], []).value is None
    assert krippendorff_alpha([["a"], ["b"]]).n == 0
    assert cohen_kappa("aaa", "aaa") == krippendorff_alpha(["aa", "aa", "aa"])


def test_spans_agree_exactly_or_by_overlap_and_only_of_one_type():
    name, wide, date = Span(0, 4, "name"), Span(0, 9, "name"), Span(0, 4, "date")
    assert span_f1([[[name], [name]]], overlap=False).value == 1
    assert span_f1([[[name], [wide]]], overlap=False).value == 0
    assert span_f1([[[name], [wide]]], overlap=True).value == 1
    assert span_f1([[[name], [date]]], overlap=True).value == 0
    assert span_f1([[[name], [Span(4, 9, "name")]]], overlap=True).value == 0
    # 1 of 1 and 1 of 2: 2 * 0.5 * 1 / 1.5
    assert span_f1([[[name], [name, Span(6, 9, "date")]]], overlap=False).value == pytest.approx(2 / 3)
    assert span_f1([[[], []]], overlap=False).value is None
    assert word_f1([["take it twice", "Take it once"]]).value == pytest.approx(2 / 3)


# Schemas and label files


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"kind": "classes", "names": ["a"]}, "at least two"),
        ({"kind": "classes", "names": ["a", "A"]}, "twice but for its case"),
        ({"kind": "classes", "names": ["a", " b"]}, "odd spaces"),
        ({"kind": "classes", "names": ["a", "b, c"], "several": True}, "comma"),
        ({"kind": "spans"}, "at least one type"),
        ({"kind": "pairs", "names": ["a", "b"]}, "take them out"),
        ({"kind": "free", "ties": True}, "ties is for pairs"),
        ({"kind": "spans", "names": ["a"], "several": True}, "several is for classes"),
        ({"kind": "stars"}, "classes"),
        ({"kind": "free", "question": ""}, "at least 1 character"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(schema, words):
    with pytest.raises(ValidationError, match=words):
        LabelSchema(**{"question": "Which?", **schema})


def test_a_schema_is_read_from_toml_and_json_and_errors_name_the_file(tmp_path):
    (tmp_path / "s.toml").write_text('kind = "classes"\nquestion = "Which ward?"\nnames = ["heart", "skin", "bone"]\n')
    (tmp_path / "s.json").write_text(json.dumps(CLASSES))
    assert load_schema(tmp_path / "s.toml") == load_schema(tmp_path / "s.json") == LabelSchema(**CLASSES)
    (tmp_path / "bad.json").write_text(json.dumps({**CLASSES, "name": []}))
    with pytest.raises(RecipeError, match=r"bad\.json: name.*did you mean 'names'"):
        load_schema(tmp_path / "bad.json")
    (tmp_path / "bad.toml").write_text("kind = ")
    with pytest.raises(RecipeError, match="no valid TOML"):
        load_schema(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="cannot read the schema"):
        load_schema(tmp_path / "none.toml")


def test_bad_label_rows_are_set_aside_with_their_place_and_reason(tmp_path):
    documents = {"d1": document("d1", "Mr Smith came.")}
    good = label("d1", "heart")
    rows = [
        good, good | {"value": "liver"}, good | {"id": "d9"}, good | {"annotator": " "}, good | {"at": "noon"},
        good | {"seconds": -1}, good | {"grade": 1}, good | {"kind": "spans", "value": []}, good | {"kind": "stars"},
        {k: v for k, v in good.items() if k != "value"}, good | {"seconds": None, "annotator": "ben"},
    ]  # fmt: skip
    path = write(tmp_path / "labels.jsonl", rows)
    path.write_text(path.read_text() + "{half a line\n")
    found = read_labels([path], LabelSchema(**CLASSES), documents)
    assert [(x.annotator, x.value, x.seconds) for x in found.good] == [("anna", "heart", 5.0), ("ben", "heart", None)]
    assert found.other == 1
    assert [bad.line for bad in found.bad] == [2, 3, 4, 5, 6, 7, 9, 10, 12]
    words = (
        "none of heart",
        "no document",
        "annotator",
        "write the time",
        "seconds",
        "grade",
        "stars",
        "none of",
        "JSON",
    )
    for bad, word in zip(found.bad, words, strict=True):
        assert word in bad.reason
        assert "Smith" not in bad.reason


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ({"start": 3, "end": 15, "type": "name"}, "3 to 15; the text has 14"),
        ({"start": -1, "end": 2, "type": "name"}, "-1 to 2"),
        ({"start": 5, "end": 5, "type": "name"}, "5 to 5"),
        ({"start": True, "end": 5, "type": "name"}, "True to 5"),
        ({"start": 3, "end": 8, "type": "place"}, "none of name, date"),
        ({"start": 3, "end": 8, "type": "name", "text": "Jones"}, "the text has changed"),
        ({"start": 3, "end": 8}, "no object with"),
    ],
)
def test_a_span_must_fit_the_text(tmp_path, span, words):
    schema = LabelSchema(kind="spans", question="Mark names and dates.", names=["name", "date"])
    fits = {"start": 3, "end": 8, "type": "name", "text": "Smith"}
    rows = [
        label("d1", [fits], kind="spans"),
        label("d1", [span], "ben", "spans"),
        label("d1", [fits] * 2, "eve", "spans"),
    ]
    found = read_labels([write(tmp_path / "l.jsonl", rows)], schema, {"d1": document("d1", "Mr Smith came.")})
    assert [x.value for x in found.good] == [(Span(3, 8, "name"),)]
    assert words in found.bad[0].reason
    assert "twice" in found.bad[1].reason


def test_the_latest_label_of_an_annotator_counts_wherever_it_stands(tmp_path):
    documents = {"d1": document("d1", "x")}
    rows = [label("d1", "skin", minutes=5), label("d1", "heart", minutes=1), label("d1", "bone", "ben", minutes=9)]
    rows.append(label("d1", "bone") | {"at": "2026-11-24T13:01:00+02:00"})  # that is earlier than noon
    found = read_labels([write(tmp_path / "l.jsonl", rows)], LabelSchema(**CLASSES), documents)
    assert {x.annotator: x.value for x in found.good} == {"anna": "skin", "ben": "bone"}
    assert found.replaced == 2


def test_a_label_is_appended_whole_even_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "anna.jsonl"
    one = Label("d1", "anna", "classes", ("heart", "skin"), 2.5, NOON)
    append_label(path, one)
    with path.open("a") as file:
        file.write('{"id": "d2", "ann')
    append_label(path, one)
    schema = LabelSchema(**{**CLASSES, "several": True})
    found = read_labels([path], schema, {"d1": document("d1", "x")})
    assert found.good == [one]
    assert [bad.line for bad in found.bad] == [2]


# What a learner asks


def rows(texts):
    return weighed(counted(map(grams, texts)))


def test_the_slope_is_the_slope_of_the_loss(monkeypatch):
    checked = []
    monkeypatch.setattr(
        "scipy.optimize.minimize", lambda loss, begin, **_: checked.append((loss, begin)) or _Done(begin)
    )
    texts = rows(["one two", "two three", "three four", "four five"])
    for one, targets in ((True, np.eye(3)[[0, 1, 2, 0]]), (False, np.array([[1.0, 0.5], [0, 1], [1, 1], [0, 0]]))):
        learn(Known(texts, targets, "abc", one=one))
    assert len(checked) == 2
    rng = np.random.default_rng(0)
    for loss, begin in checked:
        at = rng.normal(size=begin.size)
        assert check_grad(lambda x, f=loss: f(x)[0], lambda x, f=loss: f(x)[1], at, seed=0) < 1e-3


class _Done:
    def __init__(self, x):
        self.x = x


def test_words_and_parts_of_words_count_and_every_row_has_length_one():
    found = rows(["The cat sat", "the CAT sat!", "cats sit", "", "völlig anders"])
    alike = (found @ found.T).toarray()
    assert alike[0, 1] == pytest.approx(1)
    assert 0 < alike[0, 2] < 0.8
    assert alike[0, 4] < 0.05
    assert np.diag(alike)[[0, 1, 2, 4]] == pytest.approx(1)
    assert alike[3].max() == 0


def test_scores_say_what_is_open():
    sure, two, open_ = np.array([1.0, 0, 0]), np.array([0.5, 0.5, 0]), np.full(3, 1 / 3)
    likely = np.array([sure, two, open_])
    assert by_margin(likely, True) == pytest.approx([0, 1, 1])
    assert by_entropy(likely, True) == pytest.approx([0, np.log(2) / np.log(3), 1], abs=1e-6)
    several = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]])
    assert by_margin(several, False) == pytest.approx([0, 1, 1])
    assert by_entropy(several, False) == pytest.approx([0, 0.5, 1], abs=1e-6)
    agreed, split = np.array([[0.6, 0.4]] * 2), np.array([[0.9, 0.1]] * 2)
    split[1] = [0.1, 0.9]
    votes = by_votes([np.array([agreed[0], split[0]]), np.array([agreed[1], split[1]])], True)
    assert votes[0] < 0.02 < 0.98 < votes[1]


def test_a_batch_is_not_ten_copies_of_one_text():
    texts = ["swollen left knee"] * 30 + ["swollen right knee", "cough at night", "cannot sleep", "lost weight"]
    known = Known(rows(texts)[:0], np.zeros((0, 2)), "ab")
    assert len({texts[p.place] for p in ask_next("diversity", rows(texts), known, 5, 0)}) == 5
    taught = Known(rows([*texts, "knee", "cough"])[-2:], np.eye(2), "ab")
    pool = rows([*texts, "knee", "cough"])[:-2]
    assert len({texts[p.place] for p in ask_next("entropy", pool, taught, 4, 0)}) > 2


SIGNS = {
    "heart": "angina murmur flutter palpitation stent ischaemia valve oedema infarct pacemaker",
    "skin": "rash plaque blister mole eczema pruritus acne wart psoriasis scabies",
    "bone": "fracture sprain cast arthritis gout scoliosis bunion osteoma callus meniscus",
}


def wordy(count, seed, weights):
    """Two signs of a ward among words that say nothing."""
    rng = random.Random(seed)
    wards = rng.choices(list(SIGNS), weights, k=count)
    return wards, [
        " ".join([*rng.sample(SIGNS[ward].split(), 2), *(f"w{rng.randrange(30)}x" for _ in range(4))]) for ward in wards
    ]


def accuracy(order, budget, seed):
    """Of a learner on notes that it did not see, after so many labels in batches of ten."""
    wards, pool = wordy(500, seed, (40, 1, 1))
    truth, test = wordy(300, seed + 100, (1, 1, 1))
    every, names = rows(pool + test), list(SIGNS)
    targets = np.eye(3)[[names.index(ward) for ward in wards]]
    asked = np.zeros(0, dtype=int)
    while len(asked) < budget:
        left = np.setdiff1d(np.arange(len(pool)), asked)
        known = Known(every[asked], targets[asked], names)
        picks = ask_next(order, every[left], known, 10, len(asked) + seed)
        asked = np.append(asked, left[[pick.place for pick in picks]])
    guesses = learn(Known(every[asked], targets[asked], names)).guess(every[len(pool) :]).argmax(axis=1)
    return np.mean([names[guess] == ward for guess, ward in zip(guesses, truth, strict=True)])


@pytest.mark.parametrize("order", ["margin", "entropy", "disagreement", "diversity"])
def test_every_order_finds_the_rare_wards_sooner_than_chance(order):
    for seed in range(2):
        assert accuracy(order, 60, seed) > accuracy("random", 60, seed) + 0.2


# The stage


def truth_of(documents):
    return {d.id: d.facts["truth"] for d in documents}


@pytest.mark.parametrize("order", ["margin", "entropy", "disagreement", "diversity", "random"])
def test_the_queue_is_the_same_whenever_it_is_made_and_another_seed_gives_another(tmp_path, order):
    documents = list(notes(120))
    source = data(tmp_path / "notes", documents)
    said = [label(d.id, d.facts["truth"]) for d in documents[:20]]
    first, second = (work(tmp_path / name, source, said, order=order, batch=15)[1] for name in "ab")
    assert first == second
    assert len({asked.id for asked in first}) == len(first)
    assert first != work(tmp_path / "c", source, said, order=order, batch=15, seed=1)[1]


def test_the_first_queue_needs_no_label_and_says_why_each_stands_there(tmp_path):
    documents = list(notes(120))
    out, queue = work(tmp_path, data(tmp_path / "notes", documents), batch=20, exam=0.25)
    by_chance = [asked for asked in queue if asked.reason == "held out, by chance"]
    assert len(queue) == 20
    assert len(by_chance) == 5
    assert {a.reason for a in queue} == {"held out, by chance", "by chance"}
    people = {d.id: d.person for d in documents}
    assert {split_of(people[a.id]) for a in by_chance} == {"test"}
    assert {split_of(people[a.id]) for a in queue if a not in by_chance} == {"train"}
    assert "nothing is known of their agreement" in (out.path / "README.md").read_text()


def test_labels_are_taken_up_and_nobody_is_asked_twice(tmp_path):
    documents = list(notes(150))
    truth, source = truth_of(documents), data(tmp_path / "notes", documents)
    said, asked_of = [], {"anna": set(), "ben": set()}
    for step in range(5):
        out, queue = work(tmp_path / str(step), source, said, batch=12, annotators=2, overlap=0.5)
        for who in asked_of:
            mine = queue_for(who, queue)[:8]
            assert asked_of[who].isdisjoint(a.id for a in mine)
            asked_of[who] |= {a.id for a in mine}
            said += [label(a.id, truth[a.id], who) for a in mine]
    out, queue = work(tmp_path / "last", source, said, batch=12, annotators=2, overlap=0.5)
    waiting = [a for a in queue if a.by]
    assert waiting == queue[: len(waiting)]
    assert all(a.needed == 2 and len(a.by) == 1 for a in waiting)
    done = {row["id"] for row in rows_of(out, "labels.jsonl")} - {a.id for a in waiting}
    assert done.isdisjoint(a.id for a in queue)
    assert out.meta["labelled"] == len(asked_of["anna"] | asked_of["ben"])
    assert any(" 0." in a.reason for a in queue)  # the learner's guesses


def test_a_document_is_asked_again_when_its_only_label_was_no_good(tmp_path):
    source = data(tmp_path / "notes", notes(10))
    out, queue = work(tmp_path, source, [label("d1", "liver")], batch=50)
    assert "d1" in {a.id for a in queue}
    assert rows_of(out, "set_aside.jsonl")[0] | {"file": ""} == {
        "file": "", "line": 1, "reason": "the value is none of heart, skin, bone",
    }  # fmt: skip
    assert out.meta["set_aside"] == 1


def test_conflicts_are_found_and_an_adjudicator_ends_them(tmp_path):
    source = data(tmp_path / "notes", notes(10))
    said = [label("d1", "heart"), label("d1", "skin", "ben"), label("d2", "bone"), label("d2", "bone", "ben")]
    out, queue = work(tmp_path / "a", source, said, overlap=1.0, batch=50)
    assert rows_of(out, "conflicts.jsonl") == [
        {"id": "d1", "split": split_of("p0"), "labels": {"anna": "heart", "ben": "skin"}}
    ]
    assert {"d1", "d2"}.isdisjoint(a.id for a in queue)
    agreed = json.loads((out.path / "agreement.json").read_text())
    assert agreed["Cohen's kappa, anna and ben"]["n"] == 2
    said.append(label("d1", "skin", "chief"))
    out, _ = work(tmp_path / "b", source, said, overlap=1.0, adjudicator="chief")
    assert rows_of(out, "conflicts.jsonl") == []
    assert out.meta["settled"] == 2
    assert out.meta["agreement"]["Cohen's kappa, anna and ben"] == agreed["Cohen's kappa, anna and ben"]
    assert not any("chief" in name for name in out.meta["agreement"])


def test_a_majority_settles_only_where_the_recipe_says_so(tmp_path):
    source = data(tmp_path / "notes", notes(10))
    said = [label("d1", value, who) for who, value in (("anna", "heart"), ("ben", "skin"), ("eve", "heart"))]
    out, _ = work(tmp_path / "a", source, said, overlap=1.0, annotators=3)
    assert (out.meta["conflicts"], out.meta["settled"]) == (1, 0)
    out, _ = work(tmp_path / "b", source, said, overlap=1.0, annotators=3, settle="majority")
    assert (out.meta["conflicts"], out.meta["settled"]) == (0, 1)
    assert "heart" in (out.path / "questions.jsonl").read_text()
    out, _ = work(tmp_path / "c", source, said[:2], overlap=1.0, annotators=2, settle="majority")
    assert out.meta["conflicts"] == 1


def test_the_share_that_several_label_is_the_one_asked_for(tmp_path):
    source = data(tmp_path / "notes", notes(400))
    queue = work(tmp_path, source, order="random", batch=400, overlap=0.3, annotators=3)[1]
    needed = Counter(a.needed for a in queue)
    assert set(needed) == {1, 3}
    assert needed[3] / 400 == pytest.approx(0.3, abs=0.07)
    split = {"test": [], "train": []}
    for a in queue:
        split[split_of(f"p{int(a.id[1:]) // 2}")].append(a.needed == 3)
    assert all(0.15 < sum(part) / len(part) < 0.45 for part in split.values())  # held out or not has no part in it


def test_the_learner_never_learns_from_held_out_documents_but_is_measured_on_them(tmp_path, monkeypatch):
    documents = list(notes(200, weights=(1, 1, 1)))
    seen = []
    monkeypatch.setattr(
        "schoolhouse.prepare.annotation.taught.ask_next", lambda order, pool, known, *rest: seen.append(known) or []
    )
    said = [label(d.id, d.facts["truth"]) for d in documents]
    out, _ = work(tmp_path, data(tmp_path / "notes", documents), said, overlap=0.0)
    learnt = [d for d in documents if split_of(d.person) == "train"]
    assert seen[0].texts.shape[0] == len(learnt)
    assert seen[0].targets.sum(axis=0).tolist() == [sum(d.facts["truth"] == t for d in learnt) for t in TOPICS]
    card = (out.path / "README.md").read_text()
    assert f"of {200 - len(learnt)} held-out labelled documents" in card
    assert "guesses 100%" in card


def test_only_the_pool_is_weighed(tmp_path):
    source = data(tmp_path / "notes", notes(300))
    few = work(tmp_path / "a", source, pool=10, batch=10, exam=0.0)[1]
    same = work(tmp_path / "b", source, pool=10, batch=5, exam=0.0)[1]
    assert len(few) == 10
    assert {a.id for a in same} < {a.id for a in few}
    assert annotate.memory_bytes(annotate.Config(data="x", ask=CLASSES, pool=10), {}) == 2_000_000


def test_ctrl_c_is_heard_between_documents(tmp_path):
    source, run = data(tmp_path / "notes", notes(5)), fp32_run(tmp_path)
    run.interrupted.set()
    with pytest.raises(Stopped, match="stopped after 0 documents"):
        annotate.run(annotate.Config(data="notes", ask=CLASSES), {"notes": source}, run, draft(tmp_path / "out"))


def test_documents_that_an_earlier_stage_held_out_are_the_exam(tmp_path):
    documents = list(notes(60))
    source = data(tmp_path / "notes", documents[:40])
    (source.path / HELD_OUT).mkdir()
    write_documents(source.path / HELD_OUT, documents[40:])
    queue = work(tmp_path, source, batch=10, exam=0.5)[1]
    held = {d.id for d in documents[40:]}
    assert sum(a.id in held for a in queue) == 5
    assert all((a.id in held) == (a.reason == "held out, by chance") for a in queue)


def test_agreed_classes_become_questions_and_conversations(tmp_path):
    documents = [*notes(60, weights=(1, 1, 1)), document("again", next(iter(notes(1))).text, "p0")]
    said = [label(d.id, d.facts.get("truth", "heart")) for d in documents]
    out, queue = work(tmp_path, data(tmp_path / "notes", documents), said, overlap=0.0)
    assert queue == []
    task = load_jsonl(out.path / "questions.jsonl", "exact")
    assert task.set_aside == ()
    people = {d.id: d.person for d in documents}
    for split in ("train", "test"):
        examples = task.examples(split, "all", 1000 if split == "test" else 20, 0)
        assert examples
        for example in examples:
            assert split_of(people[example.meta["document"]]) == split
            assert example.question.endswith("Which ward?\n\nAnswer with one of these: heart, skin, bone.")
            assert task.judge(example, f"<answer>{example.answer}</answer>", thinking=False).score == 1
    talks = read_conversations(out.path / "conversations.jsonl")
    assert not talks.bad
    assert {split_of(people[t.meta["document"]]) for t in talks.good} == {"train"}
    assert all(t.messages[-1].content.startswith("<answer>") for t in talks.good)
    questions = rows_of(out, "questions.jsonl")
    assert len(questions) + out.meta["files"]["left_out"] == 61
    assert len({q["question"] for q in questions}) == len(questions)


def test_a_text_that_is_held_out_is_not_learnt_from_another_person(tmp_path):
    held = next(f"p{n}" for n in range(100) if split_of(f"p{n}") == "test")
    learnt = next(f"p{n}" for n in range(100) if split_of(f"p{n}") == "train")
    documents = [document("a", "the same words", learnt), document("b", "the same words", held)]
    out, _ = work(tmp_path, data(tmp_path / "notes", documents), [label(n, "skin") for n in "ab"], overlap=0.0)
    assert [row["split"] for row in rows_of(out, "questions.jsonl")] == ["test"]
    assert rows_of(out, "conversations.jsonl") == []


def test_several_classes_are_named_in_the_order_of_the_schema_or_none(tmp_path):
    documents = [document(str(n), f"text {n}") for n in range(3)]
    said = [label("0", ["bone", "heart"]), label("1", []), label("2", "heart")]
    ask = {**CLASSES, "several": True}
    out, _ = work(tmp_path, data(tmp_path / "notes", documents), said, ask=ask, overlap=0.0)
    answers = {row["meta"]["document"]: row["answer"] for row in rows_of(out, "questions.jsonl")}
    assert answers == {"0": "heart, bone", "1": "none"}
    assert out.meta["set_aside"] == 1


def test_agreed_spans_become_a_gold_set(tmp_path):
    ask = {"kind": "spans", "question": "Mark the names.", "names": ["name"]}
    documents = [document(str(n), f"Mr Smith came on day {n}.", f"p{n}") for n in range(40)]
    said = [label(d.id, [{"start": 3, "end": 8, "type": "name"}], kind="spans") for d in documents]
    said += [label("0", [{"start": 0, "end": 8, "type": "name"}], "ben", "spans"), label("1", [], "ben", "spans")]
    out, _ = work(tmp_path, data(tmp_path / "notes", documents), said, ask=ask, overlap=0.0)
    assert [row["id"] for row in rows_of(out, "conflicts.jsonl")] == ["0", "1"]
    gold = rows_of(out, "gold.jsonl")
    assert {split_of(row["person"]) for row in gold} == {"test"}
    assert len(gold) + len(rows_of(out, "gold-train.jsonl")) == 38
    assert set(gold[0]) == {"id", "text", "spans", "person"}
    assert [row["spans"] for row in gold] == [[{"start": 3, "end": 8, "type": "name"}]] * len(gold)
    found = out.meta["agreement"]
    assert found["F1 of spans"]["value"] == 0
    assert found["F1 of spans that overlap"]["value"] == pytest.approx(2 / 3)
    assert found["F1 of 'name'"]["n"] == 2


def test_preferences_become_ratings_and_held_out_questions_stay_so(tmp_path):
    ask = {"kind": "pairs", "question": "Which reply is better?", "replies": ["one", "two"], "ties": True}
    documents = [document(str(n), f"question {n}", one=f"short {n}", two=f"a longer reply {n}") for n in range(60)]
    documents += [document("same", "question", one="x", two="x"), document("none", "question", one="x")]
    source = data(tmp_path / "notes", documents)
    said = [label(str(n), "second" if n else "tie", kind="pairs") for n in range(30)]
    out, queue = work(tmp_path, source, said, ask=ask, overlap=0.0, batch=10, exam=0.2)
    assert out.meta["unfit"] == 2
    assert out.meta["files"]["ties"] == 1
    ratings = read_ratings(out.path / "ratings.jsonl").good
    pairs = pairs_of(ratings)
    assert len(pairs) == 29
    assert all(p.chosen.startswith("a longer") and p.rejected.startswith("short") for p in pairs)
    by_id = {p.asked.meta["document"]: p.asked for p in pairs}
    held = [a for a in queue if a.reason == "held out, by chance"]
    texts = {d.id: d for d in documents}
    assert len(held) == 2
    assert all(is_held_out(annotate.asked_of(texts[a.id])) for a in held)
    assert {name for name, asked in by_id.items() if is_held_out(asked)}.isdisjoint(a.id for a in queue)
    learnt = [a for a in queue if a not in held]
    assert all(a.reason.startswith("first 0.") for a in learnt)


def test_turning_a_pair_round_turns_what_is_learnt_of_it():
    texts = rows([f"a longer reply {n}" for n in range(6)] + [f"short {n}" for n in range(6)])
    turned = (texts[:6] - texts[6:]).tocsr()
    known = Known(turned[:5], np.ones((5, 1)), ["first"], one=False, bias=False)
    learner = learn(known)
    assert learner.guess(turned[5:])[0, 0] > 0.8
    assert learner.guess(turned[5:])[0, 0] + learner.guess(-turned[5:])[0, 0] == pytest.approx(1)


def test_free_answers_become_questions_and_small_differences_are_none(tmp_path):
    ask = {"kind": "free", "question": "What is to be done?"}
    documents = [document(str(n), f"note {n}") for n in range(3)]
    said = [
        label("0", "Rest  now", kind="free"),
        label("0", "rest now", "ben", "free"),
        label("1", "walk", kind="free"),
    ]
    said += [label("1", "walk more", "ben", "free"), label("2", "<answer>x</answer>", kind="free")]
    source = data(tmp_path / "notes", documents)
    out, _ = work(tmp_path, source, said, ask=ask, overlap=0.0, order="diversity")
    assert [row["answer"] for row in rows_of(out, "questions.jsonl")] == ["Rest  now"]
    assert [row["id"] for row in rows_of(out, "conflicts.jsonl")] == ["1"]
    assert out.meta["files"]["left_out"] == 1
    assert out.meta["agreement"]["F1 of words"]["value"] == pytest.approx((4 + 2) / (4 + 3))
    with pytest.raises(RecipeError, match="no classes to be unsure of"):
        annotate.check(annotate.Config(data="notes", ask=ask))


def test_the_card_counts_and_names_no_person(tmp_path):
    documents = [
        document("d1", "Smith, chest pain", "Smith"),
        document("d1", "other"),
        document("d2", "Jones fell", "Jones"),
    ]
    said = [label("d1", "heart", seconds=8), label("d1", "skin", "ben"), label("d2", "Jones")]
    out, _ = work(tmp_path, data(tmp_path / "notes", documents), said, overlap=1.0)
    card = (out.path / "README.md").read_text()
    log = (tmp_path / "log.jsonl").read_text()
    assert "1 of 2 documents have labels: 0 are settled" in card
    assert "1 in conflict" in card
    assert "1 have an id that stood before" in card
    assert "| anna | 1 | 8 |" in card
    assert "1 labels were set aside" in log
    assert not any(name in card + log for name in ("Smith", "Jones"))


def test_further_labels_make_another_artifact(tmp_path):
    config = annotate.Config(data="notes", ask=CLASSES, labels=str(tmp_path))
    annotate.check(config)
    before = annotate.fingerprint(config)
    write(tmp_path / "anna.jsonl", [label("d1", "heart")])
    assert annotate.fingerprint(config) != before


def test_a_schema_may_lie_in_a_file_and_stands_beside_the_queue(tmp_path):
    path = write(tmp_path / "s.json", [CLASSES])
    assert annotate.Config(data="notes", ask=str(path)) == annotate.Config(data="notes", ask=CLASSES)
    out, _ = work(tmp_path, data(tmp_path / "notes", notes(10)), ask=str(path))
    assert load_schema(out.path / "schema.json") == LabelSchema(**CLASSES)
    with pytest.raises(ValidationError, match=r"cannot read the schema none\.toml"):
        annotate.Config(data="notes", ask="none.toml")


def test_what_can_not_be_used_is_said_at_once(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="make the folder, or leave labels out"):
        annotate.check(annotate.Config(data="notes", ask=CLASSES, labels=str(tmp_path / "none")))
    monkeypatch.setattr(active.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"schoolhouse\[prepare\]"):
        annotate.check(annotate.Config(data="notes", ask=CLASSES))
    annotate.check(annotate.Config(data="notes", ask=CLASSES, order="random"))
    with pytest.raises(RecipeError, match="batch is 20 of a pool of 10"):
        annotate.check(annotate.Config(data="notes", ask=CLASSES, order="random", batch=20, pool=10))
    with pytest.raises(DataError, match="holds no document with a text"):
        work(tmp_path, data(tmp_path / "notes", [document("a", " ")]), order="random")
