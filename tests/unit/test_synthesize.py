"""Further documents that say the same: operators that touch no number and no fact, other words that were checked."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from school import artifact, draft, fp32_run
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.prepare import synthesize
from schoolhouse.prepare.operators import OPERATORS, SHORT
from schoolhouse.text.records import write_rows
from schoolhouse.text.sourced import Document, Origin, document_id, read_documents, write_documents

NOTE = (
    "Patient is a 54 year-old with hypertension and shortness of breath.\nBlood pressure: 150/95\nHeart rate: 88\n"
    "Weight: 70.5 kg\nAssessment: pneumonia, J18.9. Follow-up in 2 weeks without treatment changes."
)


def note(number, text=NOTE, **facts):
    origin = Origin("notes.csv", f"line {number}", "ab")
    known = {"name": "pneumonia", "code": "J18.9"} | facts
    return Document(document_id(origin), text, origin, "note", "p1", facts=known, history=("read",))


def made(tmp_path, documents, replies=None, held_out=(), **config):
    folder = tmp_path / "data"
    (folder / "held_out").mkdir(parents=True)
    write_documents(folder, documents)
    write_documents(folder / "held_out", held_out)
    inputs = {"notes": artifact(folder)}
    if replies is not None:
        (tmp_path / "replies").mkdir()
        write_rows(tmp_path / "replies" / "replies.jsonl", replies)
        inputs["said"] = artifact(tmp_path / "replies")
        config["replies"] = "said"
    settings = synthesize.Config(data="notes", **config)
    synthesize.check(settings)
    out = draft(tmp_path / "out")
    synthesize.run(settings, inputs, fp32_run(tmp_path), out)
    return out


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_changes_words_and_no_number_fact_or_origin(tmp_path, name):
    text = (
        NOTE if name != "spell-out" else "54 y/o pt, HTN, SOB. BP 150/95, HR 88. pneumonia (J18.9), no tx, f/u 2 weeks."
    )
    out = made(tmp_path, [note(i, f"{text} No {i}.") for i in range(8)], operators=[name], held_out=[note(9)])
    found = list(read_documents(out.path))
    originals = {d.id: d for d in found if len(d.history) == 1}
    for variant in (d for d in found if len(d.history) > 1):
        original = originals[variant.history[-1].split()[2].rstrip(":")]
        assert " ".join(variant.text.split()) != " ".join(original.text.split())
        assert Counter(re.findall(r"\d+", variant.text)) == Counter(re.findall(r"\d+", original.text))
        assert (variant.facts, variant.source, variant.person) == (original.facts, original.source, original.person)
        assert variant.history == ("read", f"varied from {original.id}: {name} (number 0, seed 0)")
        assert variant.id != original.id
    assert [d.text for d in read_documents(out.path / "held_out")] == [NOTE]
    assert len(originals) == 8
    if name == "typos":  # some would strike the name of the disease
        assert out.meta["made"][name] + out.meta["left_out"].get("typos: the fact name is gone", 0) == 8
    else:
        assert out.meta["made"] == {name: 8}


@given(st.text(), st.integers(0, 99), st.sampled_from(sorted(OPERATORS)))
def test_whatever_the_text_its_numbers_stay(text, seed, name):
    varied = OPERATORS[name](text, random.Random(seed))
    assert Counter(re.findall(r"[0-9]+", varied)) == Counter(re.findall(r"[0-9]+", text))
    assert OPERATORS[name](text, random.Random(seed)) == varied


class Always(random.Random):
    def random(self):
        return 0.0


def test_short_forms_mean_one_thing():
    assert len(set(SHORT.values())) == len(SHORT) - 1  # of "year-old" and "years old" there is one
    assert OPERATORS["spell-out"]("the pt with w/o in w/out", Always()) == "the patient with without in w/out"


def test_operators_come_in_turn_and_what_changes_nothing_is_counted(tmp_path):
    out = made(tmp_path, [note(1), note(2, "pneumonia J18.9")], operators=["lower-case", "reorder"], each=2)
    assert out.meta["made"] == {"lower-case": 2, "reorder": 1}
    assert out.meta["left_out"] == {"reorder: nothing changed": 1}


def reply(document, text, reason="stop"):
    return {"meta": {"document": document.id}, "replies": [{"text": text, "finish_reason": reason}]}


def test_other_words_stay_only_with_every_number_and_named_fact(tmp_path):
    documents = [note(i, "He is 54 and has pneumonia (J18.9) since 3 days.", drug="none") for i in range(7)]
    says = "<think>other words</think><answer>{}</answer>".format
    replies = [
        reply(documents[0], says("For 3 days, at age 54, pneumonia (J18.9).")),
        reply(documents[1], says("For 3 days, at age 55, pneumonia (J18.9).")),
        reply(documents[2], says("For 3 days, at age 54, a lung thing (J18.9).")),
        reply(documents[3], says("For 3 days, at age 54, pneumonia (J18.9)."), "length"),
        reply(documents[4], "For 3 days, at age 54, pneumonia (J18.9)."),
        reply(documents[5], says("He is 54 and  has pneumonia (J18.9) since 3 days.")),
        reply(documents[6], says("54, 3, pneumonia J18.9. " + "And so on. " * 20)),
        reply(note(77), says("whose?")),
    ]
    out = made(tmp_path, documents, replies, keep=["name", "drug"])
    variants = [d for d in read_documents(out.path) if len(d.history) > 1]
    assert [d.text for d in variants] == ["For 3 days, at age 54, pneumonia (J18.9)."]
    assert variants[0].history[-1] == f"varied from {documents[0].id}: reply 0 of the stage said"
    assert out.meta["left_out"] == {
        "reply: other numbers": 1, "reply: the fact name is gone": 1, "reply: cut off or not in the form": 2,
        "reply: nothing changed": 1, "reply: much shorter or longer": 1,
        "of a document that is not there, or held out": 1,
    }  # fmt: skip
    assert "the fact name is gone: 1" in (out.path / "README.md").read_text()


def test_replies_to_something_else_and_nothing_made_are_said(tmp_path):
    with pytest.raises(DataError, match="not about documents"):
        made(tmp_path / "a", [note(1)], [{"replies": []}])
    with pytest.raises(DataError, match=r"no further document could be made of 1 \(lower-case: nothing changed: 1\)"):
        made(tmp_path / "b", [note(1, "small")], operators=["lower-case"])


def test_keys_without_effect_are_refused():
    for config, told in (
        ({}, "neither operators nor replies"),
        ({"operators": ["typos"], "keep": ["code"]}, "keep is set"),
        ({"replies": "r", "each": 2}, "each is set"),
    ):
        with pytest.raises(RecipeError, match=told):
            synthesize.check(synthesize.Config(data="d", **config))
