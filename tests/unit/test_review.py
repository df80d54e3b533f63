"""Replies of an exam for experts: how they are drawn and shown, and what marks come to."""

import base64
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from school import artifact, draft, fp32_run, write_bytes, write_pupil
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.evaluate import exam, review
from schoolhouse.prepare import annotate
from schoolhouse.text.agreement import cohen_kappa
from schoolhouse.text.labels import read_labels
from schoolhouse.text.records import read_rows
from schoolhouse.text.reply import render_reply
from schoolhouse.text.sourced import read_documents

EVIL = '<script>alert(1)</script> & "quotes"'
TASKS = {"triage": (60, 45), "dose": (40, 38)}  # questions, and how many replies the verifier calls right


def rows_of(model, mode, tasks=TASKS):
    """Replies to every question, of which so many are right, and where chance will have it."""
    for task, (asked, right) in tasks.items():
        order = random.Random(f"{task}{model}").sample(range(asked), right)
        for number in range(asked):
            reply = render_reply(f"thought of {number} {EVIL}" if mode == "thinking" else None, f"answer {number}")
            yield {
                "mode": mode, "task": task, "level": str(number % 3), "id": f"{task}/{number}", "model": model,
                "correct": number in order, "finish_reason": "stop", "tokens": 9, "problem": None, "score": 1.0,
                "question": f"{task} question {number}? {EVIL}", "answer": "secret", "reply": reply,
            }  # fmt: skip


def sat(folder, rows=None, models=("base", "rl"), modes=("thinking", "direct")):
    """An exam as `evaluate.exam` leaves it, as far as a review reads it."""
    folder.mkdir(parents=True)
    facts = {
        "models": {name: {mode: {} for mode in modes} for name in models},
        "artifacts": dict.fromkeys(models, "f" * 16),
    }
    (folder / exam.EXAM).write_text(json.dumps(facts))
    if rows is None:
        rows = [row for model in models for mode in modes for row in rows_of(model, mode)]
    (folder / exam.ALL_REPLIES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return artifact(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return sat(tmp_path_factory.mktemp("sat") / "exam")


def go(folder, source, labels=None, seed=0, **keys):
    """Run the stage; labels: lines of marks."""
    if labels is not None:
        (folder / "labels").mkdir(parents=True)
        (folder / "labels" / "marks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
        keys["labels"] = str(folder / "labels")
    config = review.Config(**{"exam": "exam", "model": "rl"} | keys)
    review.check(config)
    out = draft(folder / "out")
    review.run(config, {"exam": source}, fp32_run(folder, seed), out)
    return out, json.loads((out.path / review.REVIEW).read_text())


def documents(out):
    return list(read_documents(out.path / "held_out"))


def drawn(out, source):
    """Every drawn document with the exam's row that it stands for."""
    found = {row["question"]: row for row in read_rows(source.path / exam.ALL_REPLIES).good if row["model"] == "rl"}
    return [(doc, found[doc.text.split("Question:\n")[1].split("\n\nThinking")[0]]) for doc in documents(out)]


def mark(name, value, who="anna", kind="classes"):
    return {"id": name, "annotator": who, "kind": kind, "value": value, "seconds": None, "at": "2026-11-24T09:30:00Z"}


class Page(HTMLParser):
    """What stands on a sheet: its tags, what it would fetch, its boxes and its text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.links, self.boxes, self.text = [], [], {}, ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if named.get("type") == "radio":
            self.boxes.setdefault(named["name"], []).append(named["value"])

    def handle_data(self, data):
        self.text += data


# The sample


def test_half_of_the_drawn_replies_is_right_where_there_are_as_many(tmp_path, source):
    out, facts = go(tmp_path, source)
    assert facts["tasks"] == {
        "triage": {"asked": 60, "verifier_right": 45, "drawn": {"right": 10, "wrong": 10}},
        "dose": {"asked": 40, "verifier_right": 38, "drawn": {"right": 18, "wrong": 2}},
    }
    rows = [row for _, row in drawn(out, source)]
    assert len({row["id"] for row in rows}) == out.meta["drawn"] == 40
    assert sum(row["correct"] for row in rows) == 28
    assert {row["level"] for row in rows} == {"0", "1", "2"}


@given(st.integers(2, 60), st.integers(0, 80), st.integers(0, 80))
def test_as_many_are_drawn_as_there_are_and_as_even_as_can_be(each, right, wrong):
    a, b = review.halves(each, right, wrong)
    assert a + b == min(each, right + wrong)
    assert 0 <= a <= right
    assert 0 <= b <= wrong
    assert abs(a - b) <= 1 or a == right or b == wrong


def test_the_sample_follows_the_seed_and_takes_each_as_many(tmp_path, source):
    first, again = (go(tmp_path / name, source, seed=3)[0] for name in ("a", "b"))
    assert (first.path / review.SHEET).read_bytes() == (again.path / review.SHEET).read_bytes()
    other, facts = go(tmp_path / "c", source, seed=4, each=6)
    assert {d.id for d in documents(other)} - {d.id for d in documents(first)}
    assert [counts["drawn"] for counts in facts["tasks"].values()] == [
        {"right": 3, "wrong": 3}, {"right": 4, "wrong": 2},
    ]  # fmt: skip


def test_replies_are_mixed_and_nothing_says_which_are_right_or_whose_they_are(tmp_path, source):
    out, _ = go(tmp_path, source)
    verdicts = [row["correct"] for _, row in drawn(out, source)]
    tasks = [row["task"] for _, row in drawn(out, source)]
    for order in (verdicts, tasks):
        assert sum(a != b for a, b in pairwise(order)) > 6
    seen = (out.path / review.SHEET).read_text() + (out.path / "held_out" / "documents.jsonl").read_text()
    assert not re.search(r"\brl\b|secret|correct|verifier", seen)
    assert not (out.path / review.REVIEWED).exists(), "the verdicts lie beside the sheet only once there are marks"
    assert list(re.findall(r'data-id="(\w+)"', seen)) == [d.id for d in documents(out)]


def test_ids_follow_from_question_and_reply_so_that_marks_outlive_an_exam_made_anew(tmp_path, source):
    rows = read_rows(source.path / exam.ALL_REPLIES).good
    longer = [row | {"model": "third"} for row in rows if row["model"] == "base"] + rows[::-1]
    made_anew = sat(tmp_path / "exam", longer, ("base", "rl", "third"))
    first, second = (go(tmp_path / str(i), each, each=100)[0] for i, each in enumerate((source, made_anew)))
    assert {d.id for d in documents(first)} == {d.id for d in documents(second)}
    assert {d.source.place for d in documents(first)} != {d.source.place for d in documents(second)}


def test_without_thinking_in_the_exam_the_direct_replies_are_shown(tmp_path):
    out, facts = go(tmp_path, sat(tmp_path / "exam", modes=("direct",)))
    assert facts["mode"] == "direct"
    assert "thought of" not in (out.path / review.SHEET).read_text()
    assert "without thinking" in (out.path / review.CARD).read_text()


def test_what_a_reply_says_is_shown_as_a_user_would_see_it(tmp_path):
    def row(number, reply, **more):
        return next(rows_of("rl", "thinking", {"t": (1, 0)})) | {"id": f"t/{number}", "reply": reply} | more

    rows = [
        row(0, "<think>\nfirst\n</think>\n<answer>aspirin</answer>", meta={"person": "p7"}),
        row(1, "no tags at all"),
        row(2, "<think>\nnever ends", finish_reason="length"),
    ]
    out, _ = go(tmp_path, sat(tmp_path / "exam", rows))
    texts = {d.text.split("?")[1].split("\n", 1)[1].strip(): d for d in documents(out)}
    assert set(texts) == {
        "Thinking:\nfirst\n\nAnswer:\naspirin", "Answer:\nno tags at all",
        "Thinking:\nnever ends\n\nAnswer:\n\n\n(Cut off here.)",
    }  # fmt: skip
    assert texts["Thinking:\nfirst\n\nAnswer:\naspirin"].person == "p7"
    page = Page((out.path / review.SHEET).read_text()).text
    assert "(none)" in page
    assert "cut off" in page


# The sheet


def test_the_sheet_is_whole_safe_and_asks_nothing_of_the_network(tmp_path, source):
    out, _ = go(tmp_path, source)
    text = (out.path / review.SHEET).read_text()
    page = Page(text)
    assert page.links == []
    assert re.findall(r"https?://|@import|url\(", text) == []
    assert page.tags.count("script") == 1
    assert "<script>alert" not in text
    assert EVIL in page.text
    assert list(page.boxes) == [d.id for d in documents(out)]
    assert set(map(tuple, page.boxes.values())) == {review.NAMES}
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def opened(browser, path, **keys):
    """The sheet in a browser, and everything that it complains of or wants to fetch."""
    context = browser.new_context(accept_downloads=True, **keys)
    tab = context.new_page()
    wrong = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "blob:")) else 0
    )
    tab.goto(path.as_uri())
    return tab, wrong


def test_a_doctor_marks_two_replies_and_the_saved_file_counts(tmp_path, source, browser):
    out, _ = go(tmp_path / "first", source)
    tab, wrong = opened(browser, out.path / review.SHEET)
    names = [d.id for d in documents(out)]
    tab.click("#save")
    assert "write your name" in tab.text_content("#done")
    tab.fill("#who", "Dr. Ana Ünal")
    tab.click("#save")
    assert "Nothing is marked" in tab.text_content("#done")
    tab.check(f'[name="{names[0]}"][value="right"]')
    tab.check(f'[name="{names[1]}"][value="right"]')
    tab.check(f'[name="{names[1]}"][value="dangerous"]')
    tab.click(f'[name="{names[2]}"][value="wrong"]')
    tab.click(f'[name="{names[2]}"][value="wrong"]')  # taken back
    tab.fill(f'[data-id="{names[1]}"] textarea', 'ten times the dose, "per day"\nand <b>more</b>')
    assert tab.text_content("#done") == "2 of 40 marked"
    with tab.expect_download() as waiting:
        tab.click("#save")
    assert re.fullmatch(r"marks-Dr-Ana-Unal-[\d-]+\.jsonl", waiting.value.suggested_filename)
    (tmp_path / "labels").mkdir()
    waiting.value.save_as(tmp_path / "labels" / waiting.value.suggested_filename)
    assert wrong == []
    held = {d.id: d for d in documents(out)}
    labels = read_labels(sorted((tmp_path / "labels").iterdir()), review.MARKS, held)
    assert {label.id: label.value for label in labels.good} == {names[0]: "right", names[1]: "dangerous"}
    assert labels.bad == []
    out, facts = again(tmp_path, source)
    assert facts["marks"]["annotators"] == {"Dr. Ana Ünal": 2}
    assert [one["id"] for one in facts["marks"]["dangerous"]] == [names[1]]
    rows = {row["id"]: row for row in read_rows(out.path / review.REVIEWED).good}
    assert rows[names[1]]["remarks"] == {"Dr. Ana Ünal": 'ten times the dose, "per day"\nand <b>more</b>'}


def again(folder, source):
    """The stage once more, with the files that were saved."""
    config = review.Config(exam="exam", model="rl", labels=str(folder / "labels"))
    out = draft(folder / "again")
    review.run(config, {"exam": source}, fp32_run(folder), out)
    return out, json.loads((out.path / review.REVIEW).read_text())


def test_the_sheet_fits_a_phone_and_prints_without_its_buttons(tmp_path, source, browser):
    out, _ = go(tmp_path, source)
    tab, _ = opened(browser, out.path / review.SHEET, viewport={"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.emulate_media(media="print")
    assert not tab.is_visible("#save")
    assert tab.is_visible("text=Name: ____")


# The marks


def test_marks_are_weighted_back_by_how_often_each_kind_occurs(tmp_path, source):
    out, _ = go(tmp_path / "drawn", source)
    pairs = [(doc, row) for doc, row in drawn(out, source) if row["task"] == "triage"]
    right = [doc.id for doc, row in pairs if row["correct"]]
    wrong = [doc.id for doc, row in pairs if not row["correct"]]
    marks = [mark(name, "right" if i < 9 else "dangerous") for i, name in enumerate(right)]
    marks += [mark(name, "right" if i < 2 else "wrong") for i, name in enumerate(wrong)]
    out, facts = go(tmp_path / "marked", source, marks)
    found = facts["marks"]["tasks"]["triage"]
    assert found["right"]["value"] == pytest.approx(0.75 * 0.9 + 0.25 * 0.2)
    assert found["dangerous"]["value"] == pytest.approx(0.75 * 0.1)
    assert found["agrees"]["value"] == pytest.approx(0.75 * 0.9 + 0.25 * 0.8)
    assert (found["of_right"]["value"], found["of_wrong"]["value"]) == (0.9, 0.2)
    assert found["marked"] == found["right"]["n"] == 20
    assert facts["marks"]["tasks"]["dose"]["right"] is None, "nothing is known without marks"
    assert [one["id"] for one in facts["marks"]["dangerous"]] == [right[9]]
    assert facts["marks"]["dangerous"][0]["verifier"] == "right"
    assert json.loads(json.dumps(out.meta["marks"])) == facts["marks"]
    page = (out.path / review.CARD).read_text()
    for words in ("72.5% (", "not known", right[9], "| triage | 75.0% ("):
        assert words in page, words


def test_a_kind_of_which_nothing_is_marked_is_not_guessed(tmp_path, source):
    out, _ = go(tmp_path / "drawn", source)
    marks = [mark(doc.id, "right") for doc, row in drawn(out, source) if row["correct"]]
    _, facts = go(tmp_path / "marked", source, marks)
    assert facts["marks"]["tasks"]["triage"]["right"] is None
    assert "none that the verifier calls wrong is marked (10 of 20" in " ".join(review.sentences(facts))


def test_two_experts_and_the_verifier_are_compared(tmp_path, source):
    out, _ = go(tmp_path / "drawn", source)
    rng = random.Random(5)
    pairs = drawn(out, source)[:30]
    anna = {doc.id: rng.choice(review.NAMES) for doc, _ in pairs}
    ben = {name: value if rng.random() < 0.8 else rng.choice(review.NAMES) for name, value in anna.items()}
    marks = [mark(n, v) for n, v in anna.items()] + [mark(n, v, "ben") for n, v in list(ben.items())[:20]]
    _, facts = go(tmp_path / "marked", source, marks)
    agreement = facts["marks"]["agreement"]
    both = sorted(list(ben)[:20])
    expected = cohen_kappa([anna[n] for n in both], [ben[n] for n in both])
    found = agreement["Cohen's kappa of the four marks, anna and ben"]
    assert (found["value"], found["n"]) == (pytest.approx(expected.value), 20)
    assert agreement["Krippendorff's alpha of the four marks"]["n"] == 20
    verdicts = {doc.id: row["correct"] for doc, row in pairs}
    expected = cohen_kappa([anna[n] == "right" for n in verdicts], list(verdicts.values()))
    found = agreement["Cohen's kappa of right or not, anna and the verifier"]
    assert (found["value"], found["n"]) == (pytest.approx(expected.value), 30)


def test_where_experts_differ_each_counts_for_a_part(tmp_path):
    rows = list(rows_of("rl", "thinking", {"t": (4, 2)}))
    source = sat(tmp_path / "exam", rows)
    out, _ = go(tmp_path / "drawn", source)
    marks = [mark(d.id, "right", who) for d in documents(out) for who in ("anna", "ben")]
    marks[0]["value"] = "partly"
    _, facts = go(tmp_path / "marked", source, marks)
    assert facts["marks"]["tasks"]["t"]["right"]["value"] == pytest.approx(0.5 * 0.75 + 0.5 * 1)


def test_marks_that_cannot_be_used_are_set_aside_with_their_place(tmp_path, source, capfd):
    out, _ = go(tmp_path / "drawn", source)
    name = documents(out)[0].id
    marks = [
        mark(name, "right"), mark("no-such", "right"), mark(name, "fine"), mark(name, "a remark", kind="free"),
        mark(name, "first", kind="pairs"), {"id": name},
    ]  # fmt: skip
    out, facts = go(tmp_path / "marked", source, marks)
    aside = read_rows(out.path / review.SET_ASIDE).good
    assert [row["line"] for row in aside] == [2, 3, 6]
    assert facts["marks"]["set_aside"] == 3
    assert facts["marks"]["remarks"] == 1
    assert "3 marks were set aside" in capfd.readouterr().err


def test_further_marks_make_another_artifact(tmp_path):
    (tmp_path / "labels").mkdir()
    config = review.Config(exam="exam", model="rl", labels=str(tmp_path / "labels"))
    prints = [review.fingerprint(config)]
    for number in range(2):
        (tmp_path / "labels" / f"{number}.jsonl").write_text(json.dumps(mark("a", "right")) + "\n")
        prints.append(review.fingerprint(config))
    assert len(set(prints)) == 3


def test_what_is_missing_is_said_early_and_with_what_is_there(tmp_path, source):
    with pytest.raises(DataError, match="no such file or folder"):
        review.check(review.Config(exam="exam", model="rl", labels=str(tmp_path / "none")))
    with pytest.raises(RecipeError, match="'sft' did not sit the exam 'exam'; models there: base, rl"):
        go(tmp_path / "a", source, model="sft")
    bare = sat(tmp_path / "bare")
    (bare.path / exam.ALL_REPLIES).unlink()
    with pytest.raises(DataError, match="set all_replies = true"):
        go(tmp_path / "b", artifact(bare.path))


# Shares of strata


def test_a_share_of_everything_is_what_it_is():
    found = review.reweighted([(30, [1.0] * 24 + [0.0] * 6), (10, [0.0] * 10)])
    assert found.value == pytest.approx(24 / 40)
    assert found.n == 40
    one = review.reweighted([(30, [1.0] * 24 + [0.0] * 6), (0, [])])
    assert one.value == pytest.approx(0.8)
    assert review.reweighted([(30, [1.0]), (10, [])]) is None
    assert review.reweighted([]) is None


VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12)


@given(VALUES, VALUES, st.integers(0, 200), st.integers(0, 200))
def test_the_interval_holds_the_share_and_turns_with_it(first, second, more, others):
    strata = [(len(first) + more, first), (len(second) + others, second)]
    found = review.reweighted(strata)
    assert 0 <= found.interval.low <= found.value <= found.interval.high <= 1
    turned = review.reweighted([(size, [1 - value for value in values]) for size, values in strata])
    assert turned.value == pytest.approx(1 - found.value)
    assert turned.interval == pytest.approx((1 - found.interval.high, 1 - found.interval.low))


@pytest.mark.parametrize(("right", "if_right", "if_wrong"), [(0.7, 0.9, 0.2), (0.95, 0.98, 0.3), (0.3, 0.7, 0.02)])
def test_the_interval_covers_the_truth_about_95_times_in_100(right, if_right, if_wrong):
    rng = random.Random(1)
    truth = right * if_right + (1 - right) * if_wrong
    hits = trials = 0
    for _ in range(1500):
        kinds = sum(rng.random() < right for _ in range(200))
        drawn = review.halves(20, kinds, 200 - kinds)
        strata = [
            (size, [float(rng.random() < p) for _ in range(n)])
            for size, n, p in zip((kinds, 200 - kinds), drawn, (if_right, if_wrong), strict=True)
        ]
        found = review.reweighted(strata)
        trials += 1
        hits += found.interval.low <= truth <= found.interval.high
    assert 0.92 < hits / trials <= 1


# Beside other stages


def test_the_sample_may_be_annotated_and_nothing_learns_from_it(tmp_path, source):
    out, _ = go(tmp_path / "drawn", source)
    names = [d.id for d in documents(out)]
    (tmp_path / "labels").mkdir()
    marks = [mark(n, "right", who) for n in names[:8] for who in ("anna", "ben")] + [mark(names[9], "dangerous")]
    (tmp_path / "labels" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marks))
    config = annotate.Config(
        data="review", ask=str(out.path / "schema.json"), labels=str(tmp_path / "labels"), order="random", overlap=1.0
    )
    asked = draft(tmp_path / "annotate")
    annotate.run(config, {"review": artifact(out.path)}, fp32_run(tmp_path), asked)
    assert asked.meta["documents"] == 40
    assert asked.meta["settled"] == 8
    assert asked.meta["agreement"]["Krippendorff's alpha"]["n"] == 8
    assert read_rows(asked.path / "conversations.jsonl").good == [], "an exam is no lesson"
    assert {row["split"] for row in read_rows(asked.path / "questions.jsonl").good} == {"test"}


def test_an_exam_keeps_every_reply_unless_told_not_to(tmp_path):
    model = artifact(write_bytes(write_pupil(tmp_path / "model")))
    keys = {
        "models": ["m"],
        "tasks": ["arithmetic"],
        "items": 10,
        "items_base": 10,
        "items_direct": 5,
        "transcripts": 1,
    }
    kept = {}
    for keep in (True, False):
        config = exam.Config(**keys, max_new_tokens=4, max_new_tokens_direct=2, all_replies=keep)
        out = draft(tmp_path / f"exam-{keep}")
        exam.run(config, {"m": model}, fp32_run(tmp_path / f"run-{keep}"), out)
        kept[keep] = out.path
    assert not (kept[False] / exam.ALL_REPLIES).exists()
    rows = read_rows(kept[True] / exam.ALL_REPLIES).good
    items = read_rows(kept[True] / exam.ITEMS).good
    assert [(r["mode"], r["id"], r["correct"]) for r in rows] == [(r["mode"], r["id"], r["correct"]) for r in items]
    assert len(rows) == 15
    assert all(row["question"] and isinstance(row["reply"], str) for row in rows)
    transcripts = read_rows(kept[True] / exam.TRANSCRIPTS).good
    assert 0 < len(transcripts) < 15
    assert all(row in rows for row in transcripts)
    assert (kept[False] / exam.TRANSCRIPTS).read_bytes() == (kept[True] / exam.TRANSCRIPTS).read_bytes()
