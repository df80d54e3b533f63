"""The cold start's data."""

import json

import pytest

from schoolhouse.core.artifact import Draft
from schoolhouse.core.errors import DataError, TaskError
from schoolhouse.core.run import Run
from schoolhouse.prepare import traces
from schoolhouse.prepare.traces import Config, draw_traces
from schoolhouse.tasks.load import load_task
from schoolhouse.tasks.task import SYSTEM_DIRECT, SYSTEM_THINKING
from schoolhouse.text.records import read_conversations
from schoolhouse.text.reply import parse_reply


def make(tmp_path, name="out", seed=0, **config):
    out = Draft(tmp_path / name, {})
    out.path.mkdir()
    traces.run(Config(**config), {}, Run.for_tests(tmp_path, seed), out)
    return out


def test_worked_replies_and_bare_answers(tmp_path):
    out = make(tmp_path, tasks=["boxes", "arithmetic"], count=100, no_think=0.25)
    rows = read_conversations(out.path / "conversations.jsonl")
    assert rows.bad == []
    assert len(rows.good) == out.meta["rows"] == 200
    bare = 0
    for row in rows.good:
        task = load_task(row.meta["task"])
        assert row.meta["level"] in task.trace_levels
        system, _, reply = (message.content for message in row.messages)
        thinking = system == SYSTEM_THINKING
        assert thinking or system == SYSTEM_DIRECT
        assert parse_reply(reply, thinking=thinking).well_formed
        bare += not thinking
    assert bare == 48  # a quarter of 33, 33 and 34, for two tasks
    assert len({row.messages[1].content for row in rows.good}) == 200


def test_no_exam_question_is_among_them():
    for name in ("boxes", "arithmetic"):
        task = load_task(name)
        questions = {row.messages[1].content for row in draw_traces(task, 600, 0.1, 5)}
        for level in task.levels:
            for seed in (0, 5):
                assert questions.isdisjoint(e.question for e in task.examples("test", level, 500, seed))


def test_same_seed_same_bytes(tmp_path):
    first, again, other = (
        make(tmp_path, name, seed, tasks=["boxes"], count=50).meta["sha256"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_the_data_card_counts_what_is_there(tmp_path):
    out = make(tmp_path, tasks=["boxes"], count=30, no_think=0.2)
    card = (out.path / "README.md").read_text()
    assert "| boxes | 3-2 worked | 8 |" in card
    assert out.meta["sha256"] in card


def test_small_levels_give_fewer_and_say_so(tmp_path, capfd):
    out = make(tmp_path, tasks=["arithmetic"], count=3000)
    assert out.meta["rows"] < 3000
    assert "instead of 3000" in capfd.readouterr().err


def test_a_users_task(tmp_path, capfd):
    rows = [{"question": f"q{i}", "answer": "7", "level": i % 2} for i in range(200)]
    for row in rows[::20]:
        row["trace"] = "because"
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    spec = {"task": str(path), "verifier": "exact"}
    out = make(tmp_path, tasks=[spec], count=5)
    assert 0 < out.meta["rows"] <= 5
    assert "own: 1 rows were set aside, the first: " in capfd.readouterr().err
    before = traces.fingerprint(Config(tasks=[spec]))
    path.write_text(path.read_text().replace("because", "since"))
    assert traces.fingerprint(Config(tasks=[spec])) != before


def test_tasks_that_cannot_start_anything_are_named_early(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": "7"}) + "\n" for i in range(50)))
    with pytest.raises(DataError, match="own has no worked traces"):
        traces.check(Config(tasks=[{"task": str(path), "verifier": "exact"}]))
    with pytest.raises(TaskError, match="no task"):
        traces.check(Config(tasks=["nothing"]))
