"""The stage `prepare.clean`: what it sets aside and says of it, whom it holds out, and that it changes nothing else."""

import json
import random

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from school import artifact, draft
from schoolhouse.core.errors import DataError, RecipeError, Stopped, TaskError
from schoolhouse.core.run import Run
from schoolhouse.prepare import clean
from schoolhouse.prepare.clean import Config
from schoolhouse.prepare.cleaning.decontaminate import Evaluations
from schoolhouse.prepare.cleaning.duplicates import NUMBERS, Before, bands_and_rows
from schoolhouse.prepare.cleaning.quality import RULES, Quality, Seen, unfit
from schoolhouse.prepare.cleaning.shingles import hashes, shingles, words
from schoolhouse.text.records import Conversation
from schoolhouse.text.sourced import Document, Origin, read_documents, write_documents

ANY = {"min_words": 0, "letters": 0, "min_word_length": 0}  # nearly every text is fit
VOCABULARY = [a + b + c for a in "bdfgkl" for b in "aeiou" for c in ("n", "rt", "st", "m", "lk")]


def prose(seed, count=60):
    """Words in a row that nothing else has."""
    rng = random.Random(seed)
    return " ".join(rng.choice(VOCABULARY) for _ in range(count)) + "."


def document(number, text=None, person=None, **facts):
    origin = Origin("notes.csv", f"line {number}", "ab" * 32)
    return Document(
        f"d{number}", prose(number) if text is None else text, origin, "note", person, "en", facts, ("read",)
    )


def source(folder, documents, held=()):
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder, documents)
    if held:
        (folder / "held_out").mkdir()
        write_documents(folder / "held_out", held)
    return artifact(folder)


def run(folder, documents, *, inputs=None, seed=0, held=(), **config):
    given_ = documents if hasattr(documents, "path") else source(folder / "in", documents, held)
    out = draft(folder / "out")
    settings_ = Config(**{"data": "data", "quality": ANY, **config})
    clean.check(settings_)
    clean.run(settings_, {"data": given_, **(inputs or {})}, Run.for_tests(folder / "run", seed), out)
    return out


def kept(out):
    return list(read_documents(out.path))


def held_out(out):
    return list(read_documents(out.path / "held_out")) if (out.path / "held_out").exists() else []


def aside(out):
    return [json.loads(line) for line in (out.path / "set_aside.jsonl").read_text(encoding="utf-8").splitlines()]


def jaccard(one, other):
    a, b = (set(shingles(hashes(words(text)), 5).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


# --- the laws ---------------------------------------------------------------------------------------------------------

edits = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 59), st.integers(0, 4)), min_size=3, max_size=25)


@settings(max_examples=25, deadline=None)
@given(edits, st.integers(0, 3))
def test_every_row_goes_one_way_unchanged_and_nothing_alike_or_of_one_person_lies_on_both_sides(
    tmp_path_factory, edited, seed
):
    documents = [document(100 + number, prose(100 + number)) for number in range(8)]
    for number, (which, at, person) in enumerate(edited):
        text = prose(which).split(" ")
        text[at] = "changed"  # 5 of 56 shingles
        documents.append(document(number, " ".join(text), f"p{person}" if person else None))
    folder = tmp_path_factory.mktemp("law")
    out = run(folder, documents, held_out=0.4, seed=seed)
    learnt, held, left = kept(out), held_out(out), aside(out)
    ids = [d.id for d in learnt] + [d.id for d in held] + [row["id"] for row in left]
    assert sorted(ids) == sorted(d.id for d in documents)
    assert learnt == [d for d in documents if d in learnt]  # in their order, all that they were
    assert held == [d for d in documents if d in held]
    assert not {d.person for d in learnt if d.person} & {d.person for d in held}
    assert all(jaccard(a.text, b.text) < 0.75 + 0.1 for a in learnt for b in held)
    assert [out.meta[k] for k in ("read", "documents", "held_out", "set_aside")] == [
        len(documents), len(learnt), len(held), len(left),
    ]  # fmt: skip
    again = run(folder / "again", artifact(out.path), held_out=0.4, seed=seed)
    assert (kept(again), held_out(again), aside(again)) == (learnt, held, [])


def test_what_is_kept_lies_in_both_files_byte_for_byte(tmp_path):
    documents = [document(n, None, f"p{n}", code="E11.9", age=70) for n in range(20)]
    out = run(tmp_path, documents, held_out=0)
    for name in ("documents.jsonl", "documents.parquet"):
        assert (out.path / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert not (out.path / "held_out").exists()


def test_a_person_is_held_out_by_a_hash_that_the_seed_keys_and_more_data_move_nobody(tmp_path):
    documents = [document(n, None, f"p{n % 40}") for n in range(120)]
    few = {d.person for d in held_out(run(tmp_path / "few", documents[:60], held_out=0.3))}
    many = {d.person for d in held_out(run(tmp_path / "many", documents, held_out=0.3))}
    other = {d.person for d in held_out(run(tmp_path / "other", documents, held_out=0.3, seed=1))}
    assert few == many != other
    assert 4 <= len(many) <= 22  # of 40
    assert {row["source"]["place"] for row in aside(run(tmp_path / "a", documents, held_out=0.3))} == set()
    table = pq.read_table(tmp_path / "many" / "out" / "held_out" / "documents.parquet")
    assert set(table["person"].to_pylist()) == many


def test_what_an_earlier_stage_held_out_stays_so_with_all_rows_of_its_persons(tmp_path):
    documents = [document(n, None, f"p{n}") for n in range(8)]
    copy = document(20, documents[3].text, "p20")
    out = run(tmp_path, documents, held=[document(10, None, "p0"), copy], held_out=0.9)
    assert [d.id for d in held_out(out)] == ["d10", "d20", "d0"]
    assert [d.id for d in kept(out)] == ["d1", "d2", "d4", "d5", "d6", "d7"]  # what is held out was there first
    assert [(row["id"], row["of"]) for row in aside(out)] == [("d3", "d20")]
    assert "as an earlier stage had chosen" in (out.path / "README.md").read_text()


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_a_repeated_text_is_set_aside_with_what_it_repeats_and_its_place_but_not_its_words(tmp_path):
    same = prose(1).upper().replace(" ", ",\n ")
    near = prose(1, 60).replace(".", "") + " and more"
    documents = [document(1), document(2, same), document(3, near), document(4)]
    out = run(tmp_path, documents, held_out=0)
    assert [d.id for d in kept(out)] == ["d1", "d4"]
    first, second = aside(out)
    assert first == {
        "id": "d2", "source": {"file": "notes.csv", "place": "line 2"}, "reason": "duplicate", "found": "100.0% alike",
        "of": "d1",
    }  # fmt: skip
    assert (second["id"], second["reason"], second["of"]) == ("d3", "near_duplicate", "d1")
    assert out.meta["reasons"] == {"duplicate": 1, "near_duplicate": 1}
    loose = run(tmp_path / "loose", documents, held_out=0, similar=1)
    assert [d.id for d in kept(loose)] == ["d1", "d3", "d4"]
    assert "Similar rows were not looked for" in (loose.path / "README.md").read_text()


@pytest.mark.parametrize("similar", [0.5, 0.75, 0.9])
def test_bands_miss_few_pairs_at_the_threshold_and_pairs_far_below_it_pass(similar):
    bands, rows = bands_and_rows(similar)
    assert bands * rows <= NUMBERS
    assert (1 - similar**rows) ** bands <= 0.01 < (1 - similar ** (rows + 1)) ** (NUMBERS // (rows + 1))
    before, size = Before(similar), 400
    for number in range(40):
        base = prose(f"base {number}", size).split()
        assert before.meet(" ".join(base), number) is None
        # k words at the end changed: k of size - 4 shingles differ, so that (s - k) / (s + k) are in common
        for common, found in ((similar + 0.75 * (1 - similar), True), (similar - 0.25, False)):
            k = round((size - 4) * (1 - common) / (1 + common))
            changed = [*base[:-k], *(f"new{i}" for i in range(k))]
            assert jaccard(" ".join(base), " ".join(changed)) == pytest.approx(common, abs=0.01)
            probe = Before(similar)
            probe.meet(" ".join(base), 7)
            twin = probe.meet(" ".join(changed), 8)
            assert (twin is not None) == found
            assert twin is None or (twin.number == 7 and abs(twin.similarity - common) < 0.15)


def test_texts_without_words_are_compared_as_they_are():
    before = Before(0.75)
    assert [before.meet(text, n) for n, text in enumerate(("!!", "??"))] == [None, None]
    assert before.meet("!!", 2).number == 0


def test_without_its_library_only_equal_texts_can_be_found(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"schoolhouse\[prepare\]"):
        clean.check(Config(data="data"))
    clean.check(Config(data="data", similar=1))


def test_the_memory_that_is_asked_for_grows_with_the_rows_and_not_for_equal_texts_alone():
    meta = {"data": {"documents": 1000}}
    near, equal = (clean.memory_bytes(Config(data="data", similar=s), meta) for s in (0.75, 1))
    assert near > 5 * equal > 0
    assert clean.memory_bytes(Config(data="data"), {}) == 0


# --- evaluation sets --------------------------------------------------------------------------------------------------

QUESTION = "Which of these medicines should not be given to a child with fever and chickenpox?"


def task_file(folder, questions=(QUESTION,), **extra):
    rows = [{"question": q, "answer": "aspirin", "split": "test", **extra} for q in questions]
    path = folder / "exam.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"question": "x", "answer": "y", "split": "train"}]))
    return {"task": str(path), "verifier": "exact"}


def test_a_question_of_an_exam_is_found_in_another_case_and_punctuation_and_counted_by_its_name(tmp_path):
    planted = QUESTION.upper().replace(" ", "  ").replace("?", "!!")
    documents = [
        document(0, f"{prose(0)}\n{planted}\n{prose(99)}"),
        document(1, f"{prose(1)} Can it be given to a child with fever?"),  # seven words of it in a row
        document(2, f"{prose(2)} Which of these medicines should not be given to a child?"),  # half of it
        document(3),
    ]
    out = run(tmp_path, documents, held_out=0, against=[task_file(tmp_path)])
    assert [d.id for d in kept(out)] == ["d1", "d2", "d3"]
    assert [(row["id"], row["reason"], row["of"]) for row in aside(out)] == [("d0", "evaluation", "exam")]
    assert (out.meta["reasons"], out.meta["evaluations"]) == ({"evaluation: exam": 1}, {"exam": 1})
    assert "| exam | 1 | 0 | 1 |" in (out.path / "README.md").read_text()
    strict = {"held_out": 0, "against": [task_file(tmp_path)], "overlap": 0.1}
    assert [d.id for d in kept(run(tmp_path / "strict", documents, **strict))] == ["d1", "d3"]
    assert [d.id for d in kept(run(tmp_path / "short", documents, **strict, ngram=7))] == ["d3"]


def test_a_short_question_is_found_only_where_it_is_the_whole_of_a_message(tmp_path):
    short = "What is 37 + 48?"
    rows = [
        Conversation.from_row({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
        for q, a in (("what is 37 + 48", "85"), (f"She asked: what is 37 + 48? And then {prose(1, 20)}", "85"))
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row.to_row()) + "\n" for row in rows))
    out = run(tmp_path, artifact(folder), held_out=0, against=[task_file(tmp_path, [short])])
    assert [row["id"] for row in aside(out)] == ["conversation 1"]
    assert "fewer than 8 words" in (tmp_path / "run" / "log.jsonl").read_text()


def test_test_questions_of_a_task_that_makes_them_are_sampled_as_its_exam_draws_them(tmp_path):
    from schoolhouse.tasks.load import load_task

    task = load_task("boxes")
    asked = [task.examples("test", level, 5, 3)[-1].question for level in task.levels]
    documents = [document(n, f"{prose(n)} {question}") for n, question in enumerate(asked)]
    out = run(tmp_path, [document(50), *documents], held_out=0, seed=3, against=["boxes"], questions=5, overlap=1)
    assert [d.id for d in kept(out)] == ["d50"]
    assert out.meta["evaluations"] == {"boxes": 5 * len(task.levels)}


def test_what_another_stage_holds_out_is_not_learnt_from_a_longer_or_a_shorter_text(tmp_path):
    held = source(tmp_path / "held", [document(70)], held=[document(80, prose(80, 200)), document(81, prose(81, 40))])
    page = " ".join(prose(80, 200).split()[50:90])
    documents = [document(0), document(1, f"{prose(1)} {prose(81, 40)}"), document(2, page)]
    out = run(tmp_path, documents, held_out=0, against_data=["held"], inputs={"held": held})
    assert [d.id for d in kept(out)] == ["d0"]
    assert out.meta["reasons"] == {"evaluation: held out of held": 2}
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "validation.jsonl").write_text(json.dumps({"text": prose(0)}) + "\n")
    out = run(tmp_path / "b", documents, held_out=0, against_data=["held"], inputs={"held": artifact(plain)})
    assert [row["id"] for row in aside(out)] == ["d0"]
    (plain / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="holds nothing out"):
        run(tmp_path / "c", documents, against_data=["held"], inputs={"held": artifact(plain)})


def test_the_set_that_has_most_in_common_is_named():
    sets = Evaluations(8, 0.5)
    sets.add("half", [f"{prose(1, 20)} {prose(2, 20)}"])
    sets.add("whole", [prose(1, 20)])
    sets.add("nothing", ["", "?!"])
    found = sets.find([f"{prose(1, 20)} {prose(3, 100)}"])
    assert (found.name, found.share) == ("whole", 1.0)
    assert [sets.find([prose(5)]), sets.find([""])] == [None, None]
    assert dict(sets.texts) == {"half": 1, "whole": 1}


# --- quality and language ---------------------------------------------------------------------------------------------

GOOD = (
    "The patient came to the clinic on Monday with a cough that had lasted for two weeks. She had no fever and was "
    "eating well. The doctor listened to her chest and heard nothing unusual. He asked her to drink plenty of water, "
    "to rest, and to come back on Friday if the cough had not gone by then. Her blood pressure was normal."
)


@pytest.mark.parametrize(
    ("rule", "text", "change"),
    [
        ("too_short", "Come back on Friday.", {}),
        ("too_long", GOOD, {"max_words": 20}),
        ("broken", GOOD.replace("cough", "toux Ã©levÃ©e"), {}),
        ("broken", GOOD.replace("cough", "co\ufffdgh"), {}),
        ("broken", GOOD.replace(" ", " â€™", 3), {}),
        ("broken", GOOD + " привет".encode().decode("cp1252", "ignore"), {}),
        ("odd_words", "a b c d e f g h i j " * 6, {}),
        ("odd_words", "antidisestablishmentarianism " * 60, {}),
        ("few_letters", "blood 120/80 72 98 36.6 " * 15, {}),
        ("symbols", GOOD.replace(" the ", " # # # # the "), {}),
        ("symbols", GOOD.replace(" ", "... ", 20), {}),
        ("bullets", "\n".join(f"- {s}" for s in GOOD.split(". ")), {}),
        ("ellipses", GOOD.replace(". ", "...\n"), {}),
        ("repeated_lines", "\n".join([GOOD, "None.", "None.", "None."]), {}),
        ("repeated_lines", "\n".join([GOOD, GOOD, "One.", "Two.", "Three.", "Four."]), {}),
        ("repeated_words", GOOD + " buy now" * 40, {}),
        ("repeated_words", " ".join([GOOD, GOOD]), {}),
        (
            "boilerplate",
            GOOD[:0] + "This site uses cookies. " * 1 + "Read our privacy policy. " + GOOD[:85],
            {"min_words": 5},
        ),
        ("boilerplate", GOOD, {"phrases": ["the "]}),
    ],
)
def test_each_rule_finds_what_it_is_for_and_its_number_lets_it_pass(rule, text, change):
    quality = Quality(**change)
    found = RULES[rule](Seen(text), quality)
    assert GOOD[:20] not in (found or GOOD)
    assert unfit(text, quality)[0] == rule or rule in ("repeated_words", "repeated_lines", "symbols", "ellipses")
    off = {
        "too_short": {"min_words": 0}, "too_long": {"max_words": 10**9}, "broken": {"broken": 1},
        "odd_words": {"min_word_length": 0, "max_word_length": 99}, "few_letters": {"letters": 0},
        "symbols": {"symbols": 99}, "bullets": {"bullets": 1}, "ellipses": {"ellipses": 1},
        "repeated_lines": {"repeated_lines": 1, "repeated_line_letters": 1},
        "repeated_words": {"top_ngrams": [9] * 3, "repeated_ngrams": [9] * 6}, "boilerplate": {"boilerplate": 1},
    }  # fmt: skip
    assert RULES[rule](Seen(text), Quality(**{**change, **off[rule]})) is None


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        # Accented letters before quotes, dashes and hard spaces, as French, German and a dose have them.
        f"{GOOD} \xab\xa0toux, déjà\xa0\xbb, CAFÉ\xa0: l\u2019ÉTÉ\u201d, 2\xd7\xbd Straße \u2013 naïve",
        "医生告诉病人每天要多喝水。今天的检查结果一切正常\uff0c病人可以回家休息\uff0c下周再来复查\uff0c如果发烧请马上联系我们。祝您早日康复。",
        "डॉक्टर ने मरीज़ को आराम करने और खूब पानी पीने की सलाह दी। " + GOOD,
    ],
)
def test_good_texts_of_many_scripts_are_fit(text):
    assert unfit(text, Quality()) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400))
def test_any_text_can_be_judged(text):
    found = unfit(text, Quality(min_words=0))
    assert found is None or found[0] in RULES
    assert words(" ".join(words(text))) == words(text)  # nothing is left to take away


def test_unfit_rows_are_counted_by_rule_and_more_than_half_is_told(tmp_path):
    documents = [document(0, GOOD), document(1, "Short."), document(2, "Also short.")]
    out = run(tmp_path, documents, held_out=0, quality={})
    assert [(row["id"], row["reason"], row["found"]) for row in aside(out)] == [
        ("d1", "too_short", "1 words"), ("d2", "too_short", "2 words"),
    ]  # fmt: skip
    assert "2 of 3 rows are set aside as too_short" in (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(DataError, match="nothing is left to learn from: of 2 rows 0 are held out and 2 set aside"):
        run(tmp_path / "none", documents[1:], quality={})


def test_rows_in_other_languages_are_set_aside(tmp_path):
    german = "Der Patient kam am Montag mit starkem Husten in die Klinik. Er hatte seit zwei Wochen kein Fieber mehr."
    documents = [document(0, GOOD), document(1, german)]
    out = run(tmp_path, documents, held_out=0, languages=["en"])
    assert [d.id for d in kept(out)] == ["d0"]
    assert out.meta["reasons"] == {"language": 1}
    assert [d.id for d in kept(run(tmp_path / "b", documents, held_out=0, languages=["en", "de"]))] == ["d0", "d1"]
    with pytest.raises(RecipeError, match="two-letter code"):
        clean.check(Config(data="data", languages=["english"]))


# --- conversations, bad input -----------------------------------------------------------------------------------------


def turn(role, seed):
    return {"role": role, "content": prose(seed, 40)}


def test_conversations_are_cleaned_alike_and_what_the_system_says_does_not_count(tmp_path):
    system = {"role": "system", "content": prose("system", 200)}
    rows = [
        {"messages": [system, turn("user", n), turn("assistant", -n - 1)],
         "meta": {"person": f"p{n % 5}", "id": f"q{n}", "document": f"d{n}", "source": {"file": "a.csv"}}}
        for n in range(30)
    ]  # fmt: skip
    rows.append({**rows[3], "meta": {}})
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(tmp_path, artifact(folder), held_out=0.4)
    learnt, held = (
        [json.loads(line) for line in (path / "conversations.jsonl").read_text().splitlines()]
        for path in (out.path, out.path / "held_out")
    )
    assert learnt == [row for row in rows if row in learnt]
    assert len(learnt) + len(held) == 30
    assert not {row["meta"]["person"] for row in learnt} & {row["meta"]["person"] for row in held}
    assert [(row["id"], row["of"], row["source"]["place"]) for row in aside(out)] == [
        ("conversation 31", "q3", "conversation 31")
    ]


def test_rows_of_one_document_that_is_nobodys_stay_together(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": prose(n)}], "meta": {"id": f"q{n}", "document": f"d{n % 10}"}}
        for n in range(60)
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(tmp_path, artifact(folder), held_out=0.4)
    learnt, held = (
        {json.loads(line)["meta"]["document"] for line in (path / "conversations.jsonl").read_text().splitlines()}
        for path in (out.path, out.path / "held_out")
    )
    assert learnt
    assert held
    assert not learnt & held


def test_a_line_that_cannot_be_read_is_set_aside_with_its_place(tmp_path):
    given_ = source(tmp_path / "in", [document(0), document(1)])
    lines = (given_.path / "documents.jsonl").read_text().splitlines()
    (given_.path / "documents.jsonl").write_text("\n".join([lines[0], "{broken", lines[1], '{"id": "x"}']) + "\n")
    out = run(tmp_path, given_, held_out=0)
    assert [d.id for d in kept(out)] == ["d0", "d1"]
    assert [(row["id"], row["source"], row["reason"]) for row in aside(out)] == [
        (None, {"file": "documents.jsonl", "place": "line 2"}, "unreadable"),
        (None, {"file": "documents.jsonl", "place": "line 4"}, "unreadable"),
    ]
    assert out.meta["read"] == 4 == sum(out.meta[k] for k in ("documents", "held_out", "set_aside"))
    (given_.path / "documents.jsonl").write_text('{"text": "plain"}\n')
    with pytest.raises(DataError, match=r'first unreadable row: .*needs "id" and "text"'):
        run(tmp_path / "b", given_)


def test_what_holds_no_rows_or_two_kinds_is_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(DataError, match="neither"):
        run(tmp_path, artifact(folder))
    for name in ("documents.jsonl", "conversations.jsonl"):
        (folder / name).write_text("")
    with pytest.raises(DataError, match="both"):
        run(tmp_path, artifact(folder))
    with pytest.raises(TaskError, match="no task and no file"):
        clean.check(Config(data="data", against=["no-such-task"]))


def test_its_id_follows_the_questions_and_a_small_share_of_few_persons_is_told(tmp_path):
    table = task_file(tmp_path)
    config = Config(data="data", against=[table])
    before = clean.fingerprint(config)
    task_file(tmp_path, [QUESTION, "Another one?"])
    assert clean.fingerprint(config) != before
    out = run(tmp_path, [document(0)], held_out=1e-9)
    assert out.meta["held_out"] == 0
    assert not (out.path / "held_out").exists()
    assert "too few persons for so small a share" in (tmp_path / "run" / "log.jsonl").read_text()


def test_asked_to_stop_it_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "_SAY_EVERY", 3)
    stopped = Run.for_tests(tmp_path / "run")
    stopped.interrupted.set()
    given_ = source(tmp_path / "in", [document(n) for n in range(5)])
    with pytest.raises(Stopped, match="stopped after 3 rows"):
        clean.run(Config(data="data", quality=ANY), {"data": given_}, stopped, draft(tmp_path / "out"))


def test_no_text_and_no_person_stands_in_card_log_or_reasons(tmp_path):
    documents = [document(n, f"{prose(n)} Zebulon Quixby", "Zebulon Quixby") for n in range(6)]
    documents += [document(9, documents[0].text, "Zebulon Quixby"), document(10, "Zebulon Quixby", "Zebulon Quixby")]
    out = run(tmp_path, documents, held_out=0, quality={**ANY, "min_words": 5})
    said = [(out.path / name).read_text() for name in ("README.md", "set_aside.jsonl")]
    said += [(tmp_path / "run" / "log.jsonl").read_text(), json.dumps(out.meta)]
    assert len(aside(out)) == 2
    assert not any("Quixby" in text or "Zebulon" in text for text in said)
