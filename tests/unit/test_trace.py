"""Where an answer may come from: lineage with hashes, rows that share words, and the way back to file and line."""

import hashlib
import io
import json
import shutil
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from school import fp32_run
from schoolhouse.cli import app
from schoolhouse.core.artifact import Store
from schoolhouse.core.errors import ArtifactError, DataError
from schoolhouse.core.ledger import Ledger
from schoolhouse.evaluate.trace import trace
from schoolhouse.evaluate.tracing.facts import facts
from schoolhouse.evaluate.tracing.rows import Reader
from schoolhouse.evaluate.tracing.words import Asked, places, words
from schoolhouse.get import text as get_text
from schoolhouse.prepare import lessons, read, synthesize
from schoolhouse.text.preferences import is_held_out
from schoolhouse.text.records import Conversation, write_rows
from schoolhouse.text.sourced import Document, Origin, write_documents

SENTENCE = "swollen leg with redness after a long flight to the southern islands"
NOTES = [f"Visit {i}. {who} has a {what}." for i, (who, what) in enumerate(
    (who, what) for who in ("The baker", "The miller", "The nurse", "The smith", "The clerk", "The cook")
    for what in ("sore throat", "broken toe", "high fever", "rash on one arm")
)]  # fmt: skip
CODE = {"name": "codes", "ask": "{text}\nWhich code is right for this?", "answer": "{code}"}


class House:
    """A home with a store, in which stages are made one after the other."""

    def __init__(self, home):
        self.home, self.store, self.made = home, Store(home / "store"), {}

    def make(self, name, kind, fill, inputs=(), **config):
        """Make an artifact as the pipeline does; `fill` is a stage's module with a Config, or a function."""
        used = {one: self.made[one] for one in inputs}
        id = hashlib.sha256(f"{name}{kind}{config}{list(used)}".encode()).hexdigest()[:16]
        with self.store.create(id, kind, [artifact.id for artifact in used.values()]) as draft:
            if isinstance(fill, types.ModuleType):
                fill.run(fill.Config(**config), used, fp32_run(self.home / "run"), draft)
            else:
                fill(draft)
            ids = {one: artifact.id for one, artifact in used.items()}
            draft.meta |= {"stage": name, "recipe": "r", "config": config, "inputs": ids}
        self.made[name] = self.store.get(id)
        return self.made[name]

    def model(self, name, inputs, kind="train.sft", **config):
        def fill(draft):
            (draft.path / "config.json").write_text("{}")
            (draft.path / "model.safetensors").write_bytes(f"weights of {name}".encode())
            (draft.path / "README.md").write_text("a card")

        return self.make(name, kind, fill, inputs, **config)

    def rows(self, name, file, rows, inputs=(), kind="prepare.traces", **config):
        return self.make(name, kind, lambda draft: write_rows(draft.path / file, rows) and None, inputs, **config)

    def documents(self, name, documents, inputs=(), kind="prepare.clean", held_out=(), **config):
        def fill(draft):
            draft.meta["documents"] = write_documents(draft.path, documents)
            if held_out:
                (draft.path / "held_out").mkdir()
                write_documents(draft.path / "held_out", held_out)

        return self.make(name, kind, fill, inputs, **config)

    def trace(self, name, text=None, most=5, ledger=None):
        return facts(trace(self.made[name], self.store, ledger, text, most))

    def lose(self, name):
        shutil.rmtree(self.made[name].path)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path / "runs")


@pytest.fixture
def school(house, tmp_path):
    """Files, read, made into lessons, and a model whose manifest says that it learnt them."""
    folder = tmp_path / "files"
    folder.mkdir()
    texts = [*NOTES, f"The pilot came with a {SENTENCE}, and no fever."]
    rows = [{"id": i, "text": text, "person": f"p{i}", "code": f"E{i}"} for i, text in enumerate(texts)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {"*.jsonl": {"text": "text", "person": "person", "facts": ["code"]}}
    house.make("records", "prepare.read", read, source=str(folder), tables=tables)
    house.make("lessons", "prepare.lessons", lessons, ["records"], data="records", lessons=[CODE])
    house.model("base", [], kind="get", source="somewhere")
    house.model("taught", ["base", "lessons"], model="base", data="lessons")
    return house


def talk(question, answer, **meta):
    said = [("system", "You are kind."), ("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": words} for role, words in said], "meta": meta}


def document(number, text, history=(), id=None, **facts):
    origin = Origin("notes.csv", f"line {number}", "ab" * 32)
    return Document(id or f"{number:016x}", text, origin, facts=facts, history=history)


def learnt_note(house):
    """A text that is among the training conversations, with the id of its document."""
    row = json.loads(house.made["lessons"].file("conversations.jsonl").read_text().splitlines()[0])
    return row["messages"][1]["content"].split("\n")[0], row["meta"]["document"]


def test_an_answer_leads_to_the_row_the_document_the_file_and_the_line(school):
    note, id = learnt_note(school)
    found = school.trace("taught", f"I think of this: {note.upper()}")
    row = found["search"]["rows"][0]
    assert words(row["run"]) == words(note)
    assert (row["run_words"], row["part"], row["learnt_by"]) == (len(words(note)), "question", ["taught"])
    assert row["artifact"]["artifact"] == school.made["lessons"].id
    held = school.made["lessons"].file(row["file"]).read_text().splitlines()[row["row"] - 1]
    assert note in json.loads(held)["messages"][1]["content"]
    (step,) = row["made_from"]
    assert (step["id"], step["file"], step["artifact"]["stage"]) == (id, "documents.jsonl", "records")
    lines = school.made["records"].file("documents.jsonl").read_text().splitlines()
    assert json.loads(lines[step["row"] - 1])["text"] == note
    number = int(row["source"]["place"].split()[-1])
    source = (school.home.parent / "files" / "notes.jsonl").read_bytes()
    assert json.loads(source.splitlines()[number - 1])["text"] == note
    assert row["source"]["file"] == "notes.jsonl"
    assert row["source"]["sha256"] == hashlib.sha256(source).hexdigest()
    assert [node["kind"] for node in row["way"]] == ["prepare.read", "prepare.lessons"]
    assert row["may_name_people"]


def test_a_changed_word_cuts_the_run_and_the_share(school):
    note, _ = learnt_note(school)
    said = words(note)
    said[4] = "unheard"
    whole, changed = (school.trace("taught", text)["search"]["rows"] for text in (note, " ".join(said)))
    assert (whole[0]["run_words"], whole[0]["share"]) == (len(said), 1.0)
    assert all(row["run_words"] <= max(4, len(said) - 5) and row["share"] < 1 for row in changed)


def test_every_artifact_stands_there_with_the_hash_of_each_file(school):
    found = school.trace("taught")
    assert found["search"] is None
    assert [row["stage"] for row in found["learnt_from"]] == ["lessons", "records"]
    for row in found["learnt_from"]:
        assert row["files"] == school.made[row["stage"]].manifest["files"]
        for name, held in row["files"].items():
            path = school.made[row["stage"]].file(name)
            assert held["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    records = found["learnt_from"][1]
    assert records["counts"]["documents"] == 25
    assert records["sources"]["files"] == 1
    (file,) = records["sources"]["first"]
    source = school.home.parent / "files" / "notes.jsonl"
    assert file == {"file": "notes.jsonl", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert [(row["stage"], row["used_as"]) for row in found["models"]] == [
        ("taught", []), ("base", [{"by": "taught", "as": "model"}]),
    ]  # fmt: skip


def test_of_a_base_alone_it_says_that_nothing_is_known_and_names_the_card(school, capsys):
    found = school.trace("base", SENTENCE)
    assert found["learnt_from"] == []
    assert found["search"]["rows"] == []
    (base,) = found["models"]
    assert "not known here" in base["learnt_before"]
    assert base["card"] == str(school.made["base"].path / "README.md")
    app(["trace", school.made["base"].id, "--home", str(school.home)], standalone_mode=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "no data in its lineage" in said
    assert "what it learnt before is not known here" in said


def test_a_variant_leads_to_its_original_through_packed_ids(house, tmp_path):
    (tmp_path / "one.txt").write_text(
        "The patient has shortness of breath and hypertension. " + "No change at all. " * 3
    )
    house.make("records", "prepare.read", read, source=str(tmp_path / "one.txt"))
    house.make("more", "prepare.synthesize", synthesize, ["records"], data="records", operators=["abbreviate"], each=3)
    house.make("packed", "prepare.pack", lambda d: (d.path / "train.ids.u4").write_bytes(b"1"), ["more"], data="more")
    house.model("taught", ["packed"], kind="train.pretrain", data="packed", preset="nano")
    row = house.trace("taught", "The pt has SOB and HTN. No change")["search"]["rows"][0]
    assert row["file"] == "documents.jsonl"
    assert row["artifact"]["stage"] == "more"
    original = json.loads(house.made["more"].file("documents.jsonl").read_text().splitlines()[0])
    assert row["id"] != original["id"]
    assert row["history"][-1].startswith(f"varied from {original['id']}: abbreviate")
    assert [(step["id"], step["row"]) for step in row["made_from"]] == [(original["id"], 1)]
    assert row["source"]["file"] == "one.txt"
    assert [node["stage"] for node in row["way"]] == ["records", "more"]


def booked(house, *names):
    """The ledger as the pipeline writes it."""
    book = Ledger(f"sqlite:///{house.home / 'ledger.sqlite'}")
    run_id = book.start_run("r", 0, "", "0")
    for name in names:
        artifact = house.made[name]
        inputs, config = artifact.meta["inputs"], artifact.meta["config"]
        book.add_stage(run_id, name, artifact.kind, artifact.id, inputs=inputs, config=config, status="made")
    return house.home / "ledger.sqlite"


def test_a_lost_artifact_is_named_and_the_ledger_leads_on(school):
    ledger = booked(school, "records", "lessons", "base", "taught")
    note, id = learnt_note(school)
    school.lose("lessons")
    found = school.trace("taught", note, ledger=ledger)
    (missing,) = found["missing"]
    assert (missing["stage"], missing["kind"], missing["artifact"]) == (
        "lessons", "prepare.lessons", school.made["lessons"].id,
    )  # fmt: skip
    assert "no longer in" in missing["problem"]
    assert [row["stage"] for row in found["learnt_from"]] == ["lessons", "records"]
    assert found["search"]["rows"][0]["id"] == id


def test_without_a_ledger_the_lost_artifact_ends_the_way_and_the_rest_is_listed(school):
    school.lose("lessons")
    found = school.trace("taught", NOTES[0])
    assert [(row["stage"], "no ledger tells" in row["problem"]) for row in found["missing"]] == [("lessons", True)]
    assert [row["stage"] for row in found["models"]] == ["taught", "base"]
    assert found["search"]["rows_searched"] == 0
    school.lose("base")
    found = school.trace("taught")
    assert {row["stage"] for row in found["missing"]} == {"lessons", "base"}
    assert [row["stage"] for row in found["models"]] == ["taught", "base"]
    assert "not known here" in found["models"][1]["learnt_before"]


def test_a_damaged_manifest_is_told_and_stops_nothing(school):
    (school.made["lessons"].path / "manifest.json").write_text("{}")
    found = school.trace("taught")
    assert "changed or is damaged" in found["missing"][0]["problem"]


def redacted(house, tmp_path, inputs=("records",)):
    """Raw files, documents in which names are replaced, and a model that learnt these."""
    folder = tmp_path / "Jane Roe"
    folder.mkdir()
    (folder / "Jane.txt").write_text(f"Jane Roe came with a {SENTENCE} yesterday.")
    house.make("records", "prepare.read", read, source=str(tmp_path), person_from="^(?P<person>[^/]+)/")
    surrogate = Document(
        "f" * 16, f"Ann Lee came with a {SENTENCE} yesterday.", Origin("3f9c.txt", "whole file", "cd" * 32),
        history=("prepare.redact 12ab 34cd",),
    )  # fmt: skip
    other = document(1, "Ben Poe came as well.", history=("prepare.redact 12ab 56ef",))
    house.documents("hidden", [other, surrogate], ["records"], "prepare.redact", data="records")
    house.documents("clean", [surrogate], ["hidden"], data="hidden")
    asked = talk(f"{surrogate.text} Which code?", "E1", document="f" * 16, id="codes/1")
    house.rows("lessons", "conversations.jsonl", [asked], ["clean"], "prepare.lessons", data="clean")
    house.model("taught", ["lessons"], data="lessons")


def test_behind_redaction_neither_texts_nor_names_of_files_are_shown(house, tmp_path, capsys):
    redacted(house, tmp_path)
    found = house.trace("taught", f"Jane Roe came with a {SENTENCE} yesterday.")
    (row,) = found["search"]["rows"]
    assert row["run"] == f"came with a {SENTENCE} yesterday"
    assert row["redacted_by"] == "hidden"
    assert not row["may_name_people"]
    assert row["source"] == {"file": "3f9c.txt", "place": "whole file", "sha256": "cd" * 32}
    assert row["history"] == ["prepare.redact 12ab 34cd"]
    assert [(step["artifact"]["stage"], step["row"]) for step in row["made_from"]] == [("clean", 1), ("hidden", 2)]
    assert [node["stage"] for node in row["way"]] == ["records", "hidden", "clean", "lessons"]
    assert found["search"]["rows_searched"] == 1
    records = found["learnt_from"][-1]
    assert records["sources"]["files"] == 1
    assert records["sources"]["first"] == []
    app(["trace", house.made["taught"].id, SENTENCE, "--home", str(house.home)], standalone_mode=False)
    said = json.dumps(found) + capsys.readouterr().out
    assert "Jane" not in said
    assert "redacted by hidden" in said


def test_where_what_was_redacted_is_lost_nothing_older_is_searched(house, tmp_path):
    redacted(house, tmp_path)
    ledger = booked(house, "records", "hidden", "clean", "lessons", "taught")
    for name in ("lessons", "clean", "hidden"):
        house.lose(name)
    found = house.trace("taught", SENTENCE, ledger=ledger)
    assert {row["stage"] for row in found["missing"]} == {"lessons", "clean", "hidden"}
    assert [row["stage"] for row in found["learnt_from"]] == ["lessons", "clean", "hidden", "records"]
    assert (found["search"]["rows_searched"], found["search"]["rows"]) == (0, [])
    assert "Jane" not in json.dumps(found)


def test_held_out_rows_and_what_was_only_compared_with_are_not_searched(house):
    secret = document(2, f"Held out: {SENTENCE}.")
    house.documents("exam", [document(3, f"An exam on a {SENTENCE}.")])
    learnt = [document(1, "Nothing to see in this one, or so they say.")]
    house.documents(
        "clean", learnt, ["exam"], held_out=[secret], data="other", against_data=["exam"]
    )  # fmt: skip
    house.model("taught", ["clean"], kind="train.pretrain", data="clean", preset="nano")
    found = house.trace("taught", SENTENCE)
    assert (found["search"]["rows_searched"], found["search"]["rows"]) == (1, [])
    assert [row["stage"] for row in found["learnt_from"]] == ["clean"]
    assert [row["stage"] for row in found["only_compared_with"]] == ["exam"]


def test_texts_that_a_compression_looks_at_are_not_learnt(house):
    house.rows("seen", "conversations.jsonl", [talk(SENTENCE, "yes")])
    house.model("base", [], kind="get")
    house.model("small", ["base", "seen"], kind="compress.prune", model="base", data="seen")
    found = house.trace("small", SENTENCE)
    assert found["search"]["rows"] == []
    assert [row["stage"] for row in found["only_compared_with"]] == ["seen"]


def test_of_a_question_file_training_rows_count_and_lead_to_their_document(house):
    house.documents("clean", [document(7, f"Somebody with a {SENTENCE}."), document(8, "Another one.")])
    meta = {"document": f"{7:016x}", "source": vars(document(7, "").source)}
    rows = [
        {"question": f"Who had a {SENTENCE}?", "answer": "me", "split": "train", "meta": meta},
        {"question": f"Who, tell me, had a {SENTENCE}?", "answer": "you", "split": "test", "meta": meta},
    ]
    house.rows("lessons", "codes.jsonl", rows, ["clean"], "prepare.lessons", data="clean")
    house.model("base", [], kind="get")
    tasks = [{"task": "codes.jsonl", "of": "lessons", "verifier": "exact"}, "boxes"]
    house.model("rl", ["base", "lessons"], kind="train.grpo", model="base", tasks=tasks)
    said = talk(rows[0]["question"], "<answer>me</answer>", task="codes", id="codes/all/1", sampled=True)
    shown = talk("Who is it that came beside them all?", "nobody", id="shown")
    other = [{"question": "What else may one ask of them?", "answer": "it", "split": "train"}]
    house.rows("before", "before.jsonl", other, kind="prepare.lessons")
    house.rows("traces", "conversations.jsonl", [shown])
    tasks = [{"task": "before.jsonl", "of": "before"}, *tasks]
    house.rows(
        "sampled", "conversations.jsonl", [said, shown], ["rl", "before", "lessons", "traces"], "train.sample",
        model="rl", tasks=tasks, beside="traces",
    )  # fmt: skip
    house.model("again", ["base", "sampled"], model="base", data="sampled")
    found = house.trace("rl", SENTENCE)["search"]
    (row,) = found["rows"]
    assert (found["rows_searched"], found["rows_alike"]) == (1, 1)
    assert (row["file"], row["row"], row["part"]) == ("codes.jsonl", 1, "question")
    assert row["source"]["place"] == "line 7"
    rows = house.trace("again", SENTENCE)["search"]["rows"]
    assert [one["artifact"]["stage"] for one in rows] == ["sampled", "lessons"]
    assert rows[0]["said_by"]["stage"] == "rl"
    assert [(step["file"], step["row"]) for step in rows[0]["made_from"]] == [
        ("codes.jsonl", 1),
        ("documents.jsonl", 1),
    ]
    assert [node["stage"] for node in rows[0]["way"]] == ["clean", "lessons", "sampled"]
    assert rows[0]["source"]["place"] == "line 7"
    (row,) = house.trace("again", "somebody that came beside them all?")["search"]["rows"]
    assert [node["stage"] for node in row["way"]] == ["traces", "sampled"]
    assert row["said_by"] is None
    assert set(house.trace("again")["made_up_by_the_program"]) == {"boxes"}


def test_questions_outside_of_the_store_are_looked_at_as_they_are_now(house, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": f"Who had a {SENTENCE}?", "answer": "me", "split": "train"}) + "\n")
    house.model("base", [], kind="get")
    house.model("rl", ["base"], "train.grpo", model="base", tasks=[{"task": str(path), "verifier": "exact"}])
    found = house.trace("rl", SENTENCE)
    (row,) = found["search"]["rows"]
    assert (row["artifact"], row["file"], row["row"]) == (None, str(path), 1)
    path.unlink()
    found = house.trace("rl", SENTENCE)
    assert found["questions_outside_the_store"][0]["is_there_now"] is False
    assert found["search"]["rows"] == []


def test_a_row_of_a_code_system_leads_to_its_term(house):
    def fill(draft):
        write_rows(
            draft.path / "conversations.jsonl", [talk(f"Which code is {SENTENCE}?", "E9", source="x", code="E9")]
        )
        write_documents(draft.path, [document(4, "E8"), document(5, "E9: a leg", code="E9")])

    house.make("codes", "prepare.ontology", fill)
    house.model("taught", ["codes"], data="codes")
    (row,) = house.trace("taught", SENTENCE)["search"]["rows"]
    assert row["made_from"][0]["row"] == 2
    assert row["source"]["place"] == "line 5"


def test_ratings_are_searched_but_for_those_held_out(house):
    asked = [{"messages": [{"role": "user", "content": f"Question {i}"}]} for i in range(40)]
    rows = [one | {"reply": f"reply {i}: {SENTENCE}", "rating": "down"} for i, one in enumerate(asked)]
    house.rows("ratings", "ratings.jsonl", rows, kind="prepare.ratings")
    house.model("base", [], kind="get")
    house.model("liked", ["base", "ratings"], "train.prefer", model="base", data="ratings")
    learnt = sum(not is_held_out(Conversation.from_row(one)) for one in asked)
    found = house.trace("liked", SENTENCE, most=40)["search"]
    assert 0 < learnt < 40
    assert (found["rows_searched"], len(found["rows"])) == (learnt, learnt)
    assert {row["part"] for row in found["rows"]} == {"disliked reply"}


def test_the_best_rows_come_first_and_one_document_counts_once(house):
    half = " ".join(SENTENCE.split()[:7])
    rows = [talk(f"Is it {half}?", "no", document="b" * 16), *(talk(f"A {i} {SENTENCE}", "x", document="a" * 16)
            for i in range(3)), talk("Nothing like it.", "no")]  # fmt: skip
    rows += [talk(f"The same {half}", "so", id=f"row-{i}") for i in range(2)]
    house.rows("traces", "conversations.jsonl", rows)
    house.model("taught", ["traces"], data="traces")
    found = house.trace("taught", SENTENCE, most=3)["search"]
    assert [(row["document"], row["run_words"]) for row in found["rows"]] == [("a" * 16, 12), ("b" * 16, 7), (None, 7)]
    assert [place["row"] for place in found["rows"][0]["further_rows"]] == [3, 4]
    assert [place["row"] for place in found["rows"][2]["further_rows"]] == [7]
    assert found["rows_alike"] == 6
    assert [row["rows_with_its_rarest_words"] for row in found["rows"]] == [3, 6, 6]
    assert (found["runs_found"], found["runs"]) == (8, 8)
    assert len(house.trace("taught", SENTENCE, most=1)["search"]["rows"]) == 1


def test_a_text_that_nothing_is_like_says_how_much_is_not_shared(school, capsys):
    text = "colourless green ideas sleep furiously tonight"
    assert school.trace("taught", text)["search"]["rows"] == []
    app(["trace", school.made["taught"].id, text, "--home", str(school.home)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "No row of what it learnt shares more than 4 words in a row with this text." in said
    assert "no proof that this row did" in said


def test_a_short_text_is_found_whole_and_one_without_words_is_an_error(school):
    row = school.trace("taught", "Broken toe!")["search"]["rows"][0]
    assert (row["run"], row["share"]) == ("broken toe", 1.0)
    with pytest.raises(DataError, match="no word"):
        school.trace("taught", " ... ")


def test_what_was_changed_since_is_told(school):
    path = school.made["lessons"].file("conversations.jsonl")
    path.write_text(path.read_text() + "no row\n")
    found = school.trace("taught", NOTES[0])["search"]
    assert any("changed since it was made" in line for line in found["warnings"])
    assert any("1 rows cannot be read, the first: line" in line for line in found["warnings"])
    path.unlink()
    assert "was lost" in school.trace("taught", NOTES[0])["search"]["warnings"][0]


def test_places_of_texts_to_pretrain_on_are_kept(house, tmp_path):
    rows = [{"text": f"Row {i} of many: {SENTENCE} {i}."} for i in range(30)]
    write_rows(tmp_path / "rows.jsonl", rows)
    house.make("texts", "get.text", get_text, source=str(tmp_path / "rows.jsonl"), held_out=0.2)
    house.model("taught", ["texts"], kind="train.pretrain", data="texts", preset="nano")
    kept = json.loads(house.made["texts"].file("documents.jsonl").read_text().splitlines()[0])
    number = rows.index({"text": kept["text"]}) + 1
    found = house.trace("taught", kept["text"])
    assert found["search"]["rows"][0]["source"] == {"file": "rows.jsonl", "place": f"row {number}"}
    digest = hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert found["learnt_from"][0]["sources"]["first"] == [{"file": "rows.jsonl", "sha256": digest}]
    assert found["learnt_from"][0]["licence"] == "not stated"


def test_statements_of_redaction_privacy_and_terms_are_passed_on(house, capsys):
    def fill(draft):
        write_rows(draft.path / "conversations.jsonl", [talk(SENTENCE, "yes")])
        draft.meta |= {
            "redaction": {"recall": {"name": [98, 100]}},
            "endpoint_terms": ["be good"],
            "licence": {"id": "MIT"},
        }

    house.make("data", "prepare.traces", fill)
    house.model("taught", ["data"], data="data")
    (data,) = house.trace("taught")["learnt_from"]
    assert data["licence"] == "MIT"
    assert data["statements"] == {"redaction": {"recall": {"name": [98, 100]}}, "endpoint_terms": ["be good"]}
    app(["trace", house.made["taught"].id, "--home", str(house.home)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "name 0.980 (98 of 100" in said
    assert "data, endpoint_terms: be good" in said


def test_json_is_printed_for_machines_and_the_text_comes_from_standard_input(school, capsys, monkeypatch):
    note, _ = learnt_note(school)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(note.encode())))
    app(["trace", school.made["taught"].id, "-", "--json", "--most", "1", "--home", str(school.home)],
        standalone_mode=False)  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["stage"] == "taught"
    assert [row["share"] for row in found["search"]["rows"]] == [1.0]


def test_a_row_is_shown_with_its_file_and_line_for_people(school, capsys):
    note, id = learnt_note(school)
    app(["trace", school.made["taught"].id[:8], note, "--home", str(school.home)], standalone_mode=False)
    said = capsys.readouterr().out
    assert f"made from {id}: documents.jsonl, row" in said
    assert "source notes.jsonl, " in said
    assert "way: records (prepare.read) > lessons (prepare.lessons)" in said
    assert school.made["lessons"].manifest["files"]["conversations.jsonl"]["sha256"] in said


def test_a_folder_is_known_by_its_weights_or_its_manifest(school, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(school.made["taught"].file(name), out / name)
    for folder in (out, school.made["taught"].path, out / "model.safetensors"):
        app(["trace", str(folder), "--json", "--home", str(school.home)], standalone_mode=False)
        assert json.loads(capsys.readouterr().out)["model"]["artifact"] == school.made["taught"].id
    (out / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ArtifactError, match="holds the weights of"):
        app(["trace", str(out), "--home", str(school.home)], standalone_mode=False)


def test_what_is_no_model_or_unknown_is_an_error(school):
    with pytest.raises(ArtifactError, match="is no model; it holds README"):
        app(["trace", school.made["lessons"].id, "--home", str(school.home)], standalone_mode=False)
    with pytest.raises(ArtifactError, match="there is no artifact or stage 'nobody'"):
        app(["trace", "nobody", "--home", str(school.home)], standalone_mode=False)


def test_words_are_compared_without_case_punctuation_and_width():
    assert words("The patient's BP: 120/80, 37.5 °C; a_b") == words("THE PATIENT S bp 120 80 37 5 c A B")
    assert words("naïve ﬁne \uff21\uff22") == ["naïve", "fine", "ab"]
    assert words("e\u0301cole") == words("École")
    assert words("हिन्दी") == ["हिन्दी"]
    assert words("血压 high") == ["血", "压", "high"]


@given(st.text())
def test_every_word_has_its_place(text):
    assert [word for a, b in places(text) for word in words(text[a:b])] == words(text)


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=14)


@given(WORDS, WORDS)
def test_the_longest_run_is_the_longest_and_never_above_its_bound(text, said):
    asked = Asked(" ".join(text))
    runs = [(a, b, n) for a in range(len(said)) for b in range(len(text)) for n in range(1, 15)
            if said[a : a + n] == text[b : b + n] and len(said[a : a + n]) == n]  # fmt: skip
    longest = max((n for _, _, n in runs), default=0)
    shared = asked.shared(said)
    assert bool(shared) == (longest >= asked.n)
    assert asked.at_most(shared) >= (longest if shared else 0)
    start, at, size = asked.longest(said)
    assert size == longest
    assert said[start : start + size] == text[at : at + size]


def test_a_file_is_read_as_a_stream_with_its_hash(tmp_path):
    path = tmp_path / "documents.jsonl"
    write_rows(path, ({"text": f"row {i}"} for i in range(3)))
    reader = Reader(path, path.name)
    first = next(iter(reader))
    assert (first.number, first.parts[0].text, reader.sha256) == (1, "row 0", "")
    assert len(list(reader)) == 3
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
