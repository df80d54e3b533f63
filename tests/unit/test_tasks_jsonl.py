"""A task of the user's own, from a file of questions."""

import json

import pytest

from schoolhouse.core.errors import DataError, RecipeError, TaskError
from schoolhouse.evaluate import exam
from schoolhouse.tasks import arithmetic
from schoolhouse.tasks.load import TaskTable, complaints, fingerprint, load_task, load_tasks
from schoolhouse.tasks.task import SYSTEM_THINKING, SYSTEM_UNTAUGHT, Form, Task, judge_reply, split_of
from schoolhouse.train import grpo


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def capitals(n=100, **more):
    return [{"question": f"What is {i} + 1?", "answer": i + 1, **more} for i in range(n)]


def load(path, verifier="number", **more):
    return load_task(TaskTable(task=str(path), verifier=verifier, **more))


def test_questions_fall_into_splits_by_their_text(tmp_path):
    task = load(write(tmp_path / "sums.jsonl", capitals()))
    assert isinstance(task, Task)
    assert task.name == "sums"
    assert task.levels == ("all",)
    assert task.trace_levels == ()
    train, test = (task.examples(split, "all", 100, 0) for split in ("train", "test"))
    assert len(train) == 100  # starts over
    assert len({e.question for e in train} | {e.question for e in test}) == 100
    assert all(split_of(e.question) == "test" for e in test)
    assert task.examples("train", "all", 5, 1) == task.examples("train", "all", 5, 1)
    assert task.judge(test[0], f"<think>x</think><answer>{test[0].answer}.0</answer>").score == 1.0
    assert task.judge(test[0], "<think>x</think><answer>0</answer>").score == 0.1
    assert task.conversation(test[0]).messages[1].content == test[0].question


def test_levels_splits_and_traces_of_the_rows(tmp_path):
    rows = [
        *capitals(10, level=10, split="train"),
        {"question": "q", "answer": "1", "level": 2, "split": "test"},
        {"question": "r", "answer": "1", "level": 2, "trace": "so", "split": "train"},
    ]
    task = load(write(tmp_path / "t.jsonl", rows), name="mine", format_reward=0.2)
    assert task.name == "mine"
    assert task.levels == ("2", "10")
    assert task.trace_levels == ("2",)
    assert [e.question for e in task.examples("test", "2", 9, 0)] == ["q"]
    assert task.examples("test", "10", 9, 0) == []
    assert task.judge(task.examples("test", "2", 1, 0)[0], "<think>a</think><answer>5</answer>").score == 0.2


def test_named_levels_keep_the_order_of_the_file(tmp_path):
    rows = capitals(30, level="easy") + [{"question": f"h{i}", "answer": 1, "level": "advanced"} for i in range(30)]
    assert load(write(tmp_path / "t.jsonl", rows)).levels == ("easy", "advanced")


def test_bad_rows_are_set_aside_with_their_reasons(tmp_path):
    rows = [
        *capitals(),
        {"question": "What is 1 + 1?", "answer": 2},
        {"question": "no answer"},
        {"question": " ", "answer": 1},
        {"question": "x", "answer": "many"},
        {"question": "x", "answer": [1]},
        {"question": "x", "answer": True},
        {"question": "x", "answer": 1, "anwser": 2},
        {"question": "x", "answer": 1, "split": "exam"},
    ]
    task = load(write(tmp_path / "t.jsonl", rows))
    reasons = [bad.reason for bad in task.set_aside]
    words = ["earlier row", "needs a", "needs a", "no number", "is list", "is bool", "anwser", "'exam'"]
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))
    assert task.set_aside[0].line == 101
    assert complaints([task, load_task("boxes")]) == [
        f"{task.name}: {len(reasons)} rows were set aside, the first: {task.set_aside[0]}"
    ]


def test_a_schema_stands_in_a_row_as_it_is_or_as_text(tmp_path):
    schema = {"type": "object", "required": ["age"]}
    rows = [
        {
            "question": f"patient {i}",
            "answer": schema if i % 2 else json.dumps(schema),
            "split": ("train", "test")[i // 2],
        }
        for i in range(4)
    ]
    task = load(write(tmp_path / "t.jsonl", rows), "json")
    assert not task.set_aside
    for split in ("train", "test"):
        for example in task.examples(split, "all", 2, 0):
            right, wrong = (f'<think>so</think><answer>{{"{key}": 7}}</answer>' for key in ("age", "name"))
            assert task.judge(example, right).score == 1.0
            assert task.judge(example, wrong).score == 0.1


def test_a_folder_of_files(tmp_path):
    write(tmp_path / "a.jsonl", capitals(50))
    write(tmp_path / "b.jsonl", [{"question": f"b{i}", "answer": i} for i in range(50)])
    task = load(tmp_path)
    assert len({e.question for e in task.examples("train", "all", 90, 0)}) > 50
    before = fingerprint([TaskTable(task=str(tmp_path), verifier="number"), "boxes"])
    write(tmp_path / "b.jsonl", [{"question": "other", "answer": 1}])
    assert fingerprint([TaskTable(task=str(tmp_path), verifier="number"), "boxes"]) != before


def test_a_built_in_task_that_asks_otherwise_makes_its_artifacts_anew(monkeypatch):
    sums, boxes = fingerprint(["arithmetic"]), fingerprint(["boxes"])
    assert fingerprint(["arithmetic"]) == sums != boxes
    monkeypatch.setattr(arithmetic, "LARGEST", 7)
    assert fingerprint(["arithmetic"]) != sums
    assert fingerprint(["boxes"]) == boxes


def test_what_cannot_be_a_task(tmp_path):
    path = write(tmp_path / "t.jsonl", capitals())
    with pytest.raises(TaskError, match=r"no task and no file 'boxs'; did you mean 'boxes'"):
        load_task("boxs")
    with pytest.raises(TaskError, match=r"need a verifier.*exact, number, choice"):
        load_task(str(path))
    with pytest.raises(TaskError, match="no verifier 'nummer'"):
        load(path, "nummer")
    with pytest.raises(TaskError, match="own verifier"):
        load_task(TaskTable(task="boxes", verifier="exact"))
    with pytest.raises(TaskError, match="no question for train among 0 good rows"):
        load(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(TaskError, match=r"no question for test among 1 good rows \(1 set aside, the first: .*only"):
        load(write(tmp_path / "only.jsonl", [{"question": "q", "answer": 1, "split": "train"}, {"question": "r"}]))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(TaskError, match=r"holds no \.jsonl"):
        load(tmp_path / "nothing")
    (tmp_path / "nothing" / "x.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot open"):
        load(tmp_path / "nothing")


def test_two_tasks_of_one_name(tmp_path):
    with pytest.raises(TaskError, match="two tasks are called 'boxes'"):
        load_tasks(["boxes", "boxes"])
    assert [task.name for task in load_tasks(["boxes", "arithmetic"])] == ["boxes", "arithmetic"]


def test_a_model_that_never_saw_the_form_is_told_it_and_earns_a_part_of_it(tmp_path):
    path = write(tmp_path / "t.jsonl", capitals())
    spec = TaskTable(task=str(path), verifier="number", format_reward=0.5, untaught=True)
    task, plain = load_task(spec), load_task(spec.model_copy(update={"untaught": False}))
    (example,) = task.examples("train", "all", 1, 0)
    assert task.conversation(example).messages[0].content == SYSTEM_UNTAUGHT
    assert plain.conversation(example).messages[0].content == SYSTEM_THINKING
    assert task.conversation(example, thinking=False) == plain.conversation(example, thinking=False)
    scores = [task.judge(example, text).score for text in ("<think>a</think>", "<think>a</think><answer>x</answer>")]
    assert scores == pytest.approx([0.125, 0.5])
    assert plain.judge(example, "<think>a</think>").score == 0
    right = f"<think>a</think><answer>{example.answer}</answer>"
    assert task.judge(example, right) == plain.judge(example, right)
    assert judge_reply(SYSTEM_UNTAUGHT, lambda answer: True, form=Form(untaught=True)).score == 0  # copied


def test_open_questions_need_no_answer_and_only_their_form_is_judged(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"question": f"What is {i}?"} for i in range(40)])
    task = load_task(TaskTable(task=str(path), verifier="open"))
    (example,) = task.examples("train", "all", 1, 0)
    verdict = task.judge(example, "<think>a</think><answer>whatever</answer>")
    assert (verdict.score, verdict.parts) == (0.1, {"format": 1.0})
    assert task.judge(example, "whatever").score == 0
    with pytest.raises(TaskError, match="no question"):
        load_task(TaskTable(task=str(path), verifier="exact"))


def test_open_questions_are_no_exam_and_a_judge_without_them_is_refused(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"question": f"What is {i}?"} for i in range(40)])
    opened = {"task": str(path), "verifier": "open"}
    with pytest.raises(TaskError, match="nobody can say what is right"):
        exam.check(exam.Config(models=["m"], tasks=[opened]))
    with pytest.raises(RecipeError, match="every task checks its answers"):
        grpo.check(grpo.Config(model="m", tasks=["boxes"], preference="judge"))
    grpo.check(grpo.Config(model="m", tasks=["boxes", opened], preference="judge"))
