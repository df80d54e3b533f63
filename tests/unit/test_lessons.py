"""Lessons from documents: templates filled in, splits by person, every row with its origin, tasks of a stage."""

import json
from pathlib import Path

import pytest

from school import artifact, draft, fp32_run
from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import DataError, RecipeError, TaskError
from schoolhouse.evaluate import exam
from schoolhouse.pipeline import plan_recipe
from schoolhouse.prepare import lessons
from schoolhouse.tasks.load import TaskTable, load_task, load_tasks, tasks_at_hand
from schoolhouse.text.records import read_conversations
from schoolhouse.text.sourced import Document, Origin, document_id, write_documents

CODE = {
    "name": "codes",
    "kind": "note",
    "ask": "{text}\nWhich code?",
    "answer": "{code}",
    "think": "This is {name}.",
    "level": "{ward}",
}


def note(number, text=None, kind="note", person=None, **facts):
    origin = Origin("notes.csv", f"line {number}", "ab")
    known = {"code": f"E{number % 3}", "name": "gout", "ward": "a" if number % 2 else "b", "weight": 70.0} | facts
    return Document(document_id(origin), text or f"Note {number}.", origin, kind, person or f"p{number}", facts=known)


def made(tmp_path, documents, held_out=None, **config):
    folder = tmp_path / "data"
    folder.mkdir(parents=True)
    write_documents(folder, documents)
    if held_out is not None:
        (folder / lessons.HELD_OUT).mkdir()
        write_documents(folder / lessons.HELD_OUT, held_out)
    settings = lessons.Config(data="data", **config)
    lessons.check(settings)
    out = draft(tmp_path / "out")
    lessons.run(settings, {"data": artifact(folder)}, fp32_run(tmp_path), out)
    return out


def rows(out, name):
    return [json.loads(line) for line in (out.path / f"{name}.jsonl").read_text().splitlines()]


def test_templates_are_filled_in_and_each_row_knows_its_document(tmp_path):
    train, test = [note(1), note(2, kind="letter")], [note(4)]
    out = made(tmp_path, train, test, lessons=[CODE], groups=["ward"])
    learnt, asked = sorted(rows(out, "codes"), key=lambda row: row["split"], reverse=True)
    assert learnt["question"] == "Note 1.\nWhich code?"
    assert (learnt["answer"], learnt["trace"], learnt["level"], learnt["split"]) == (
        "E1",
        "This is gout.",
        "a",
        "train",
    )
    assert learnt["meta"] == {
        "document": train[0].id, "person": "p1", "ward": "a",
        "source": {"file": "notes.csv", "place": "line 1", "sha256": "ab"},
    }  # fmt: skip
    assert (asked["split"], asked["answer"], "trace" in asked) == ("test", "E1", False)
    (talk,) = read_conversations(out.path / "conversations.jsonl").good
    assert talk.messages[-1].content == "<think>\nThis is gout.\n</think>\n<answer>E1</answer>"
    assert talk.meta["document"] == train[0].id
    (held,) = read_conversations(out.path / "held_out" / "conversations.jsonl").good
    assert held.messages[-1].content == talk.messages[-1].content  # with its way, as it would have been taught
    assert held.meta["document"] == test[0].id
    assert out.meta["lessons"]["codes"] == {"train": 1, "test": 1, "left_out": {}}


def test_without_held_out_documents_no_person_is_on_both_sides(tmp_path):
    documents = [note(i, person=f"p{i % 20}") for i in range(100)]
    found = rows(made(tmp_path, documents, lessons=[CODE]), "codes")
    sides = {split: {row["meta"]["person"] for row in found if row["split"] == split} for split in ("train", "test")}
    assert len(found) == 100
    assert sides["train"]
    assert sides["test"]
    assert not sides["train"] & sides["test"]


def test_what_gives_no_question_is_counted_with_its_reason(tmp_path):
    train = [
        note(1),
        note(2, code=None),
        note(3, text="Note 1."),
        note(4, text="Note 9."),
        note(5, text="Note 1.", code="E1"),
    ]
    out = made(tmp_path, train, [note(9)], lessons=[CODE])
    left_out = out.meta["lessons"]["codes"]["left_out"]
    assert left_out == {"no code": 1, "asked before, with another answer": 2, "asked before": 1}
    assert [row["question"] for row in rows(out, "codes") if row["split"] == "test"] == ["Note 9.\nWhich code?"]
    assert len(read_conversations(out.path / "conversations.jsonl").good) == 1
    assert "no code: 1" in (out.path / "README.md").read_text()


def test_where_kind_and_most_choose_and_bare_answers_are_taught_without_thinking(tmp_path):
    plain = {"name": "urgent", "ask": "{text}", "answer": "{urgent}", "where": {"ward": "a"}}
    train = [note(i, urgent=i % 4 == 1) for i in range(1, 20)]
    out = made(tmp_path, train, [note(31, urgent=True)], lessons=[plain], most=4)
    found = rows(out, "urgent")
    assert [(row["question"], row["answer"]) for row in found if row["split"] == "train"] == [
        ("Note 1.", "yes"), ("Note 3.", "no"), ("Note 5.", "yes"), ("Note 7.", "no"),
    ]  # fmt: skip
    assert out.meta["lessons"]["urgent"]["left_out"] == {"more than most": 6}
    talk = read_conversations(out.path / "conversations.jsonl").good[0]
    assert talk.messages[-1].content == "<answer>yes</answer>"
    assert "Think" not in talk.messages[0].content


def test_an_answer_that_the_verifier_cannot_check_is_left_out(tmp_path):
    dose = {"name": "dose", "ask": "{text} How many mg?", "answer": "{dose}", "verifier": "number"}
    out = made(tmp_path, [note(1, dose=12.5), note(2, dose="plenty")], [note(3, dose=4.0)], lessons=[dose])
    assert [row["answer"] for row in rows(out, "dose")] == ["4", "12.5"]
    assert sum(out.meta["lessons"]["dose"]["left_out"].values()) == 1


def test_dialogues_become_conversations_from_the_user_to_the_assistant(tmp_path):
    text = "Nurse: Hello.\nPatient: It hurts.\nIn my foot.\nNurse: How much: a lot?\nNurse: Since?\nPatient: Bye."
    talk = {"user": "Patient", "assistant": "Nurse", "system": "You are a nurse."}
    documents = [note(i, text, kind="dialogue", person="p0") for i in range(2)]
    out = made(tmp_path, documents, [note(7, text, kind="dialogue")], talk=talk)
    first = read_conversations(out.path / "conversations.jsonl").good[0]
    assert [(m.role, m.content) for m in first.messages] == [
        ("system", "You are a nurse."), ("user", "It hurts.\nIn my foot."), ("assistant", "How much: a lot?\nSince?"),
    ]  # fmt: skip
    assert out.meta["talks"] == 2
    assert len(read_conversations(out.path / "held_out" / "conversations.jsonl").good) == 1
    with pytest.raises(DataError, match="lines that begin with Doctor: and then Nurse:"):
        made(tmp_path / "none", documents, [], talk=talk | {"user": "Doctor"})


def test_a_lesson_may_ask_about_the_opening_of_a_dialogue(tmp_path):
    said = "patient: I have {} coughs.\npatient: Also a fever.\nnurse: What is the heart rate?\npatient: It is 90."
    calls = [note(n, said.format(n), kind="dialogue", missing="heart rate") for n in range(4)]
    asks = {"name": "asks", "kind": "dialogue", "ask": "{opening}\nWhat is missing?", "answer": "{missing}"}
    out = made(tmp_path, calls[:-1], calls[-1:], talk={"user": "patient", "assistant": "nurse"}, lessons=[asks])
    asked = {row["question"]: row["split"] for row in rows(out, "asks")}
    question = "I have {} coughs.\nAlso a fever.\nWhat is missing?"
    assert asked == {question.format(n): "test" if n == 3 else "train" for n in range(4)}
    with pytest.raises(RecipeError, match=r"lessons.asks.ask holds {opening}: give talk"):
        lessons.check(lessons.Config(data="data", lessons=[asks]))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "neither lessons nor talk"),
        ({"lessons": [CODE | {"ask": "{text"}]}, r"lessons.codes.ask is '\{text'"),
        ({"lessons": [CODE | {"ask": "{text.upper}"}]}, "between braces stands"),
        ({"lessons": [CODE | {"answer": "{text}"}]}, "a whole document is no answer"),
        ({"lessons": [CODE | {"name": "conversations"}]}, "choose another name"),
    ],
)
def test_templates_that_cannot_be_filled_are_found_before_the_start(config, told):
    with pytest.raises(RecipeError, match=told):
        lessons.check(lessons.Config(data="data", **config))


def test_an_unknown_fact_is_told_with_a_near_one(tmp_path):
    with pytest.raises(DataError, match=r"no question for train \(no codes: 1\).*did you mean 'code'"):
        made(tmp_path, [note(1)], [], lessons=[CODE | {"answer": "{codes}"}])


def test_a_task_may_be_a_file_that_a_stage_made(tmp_path):
    out = made(tmp_path, [note(1)], [note(4)], lessons=[CODE], groups=["ward"])
    table = TaskTable(task="codes.jsonl", of="lessons", verifier="exact")
    inputs = {"lessons": artifact(out.path)}
    assert tasks_at_hand([table, "boxes"]) == load_tasks(["boxes"])
    task = load_task(table, inputs)
    (example,) = task.examples("test", "b", 1, 0)
    assert (task.name, example.meta["ward"], example.answer) == ("codes", "b", "E1")
    with pytest.raises(
        TaskError, match=r"made no file 'code.jsonl'; its .jsonl files: codes.jsonl, conversations.jsonl"
    ):
        load_task(table.model_copy(update={"task": "code.jsonl"}), inputs)
    with pytest.raises(TaskError, match="need a verifier"):
        tasks_at_hand([table.model_copy(update={"verifier": None})])
    with pytest.raises(TaskError, match="two tasks are called 'codes'"):
        tasks_at_hand([table, table])
    with pytest.raises(TaskError, match="levels are given for 'code'"):
        exam.check(exam.Config(models=["m"], tasks=[table], levels={"code": {"b": 1}}))
    exam.check(exam.Config(models=["m"], tasks=[table], levels={"codes": {"b": 1}}))


def test_a_recipe_binds_a_task_to_its_stage(tmp_path):
    path: Path = tmp_path / "r.toml"
    path.write_text(
        'name = "r"\nstage = [\n'
        '{ name = "base", run = "get", source = "smollm2-135m-instruct" },\n'
        '{ name = "raw", run = "prepare.traces", tasks = ["boxes"] },\n'
        '{ name = "notes", run = "prepare.lessons", data = "raw", talk = { user = "P", assistant = "N" } },\n'
        '{ name = "exam", run = "evaluate.exam", models = ["base"], '
        'tasks = [{ task = "a.jsonl", of = "notes", verifier = "exact" }] },\n]\n'
    )
    plan = plan_recipe(load_recipe(path))
    assert set(plan.stages[-1].inputs) == {"base", "notes"}
    path.write_text(path.read_text().replace('of = "notes"', 'of = "note"'))
    with pytest.raises(RecipeError, match="'note'"):
        plan_recipe(load_recipe(path))
