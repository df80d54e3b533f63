"""Reasoning Gym by the adapter: its judges, its curricula as levels, and only full credit counts."""

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: pip install -e '.[gym]'")

from schoolhouse.core.errors import TaskError
from schoolhouse.tasks import gym
from schoolhouse.tasks.load import TaskTable, fingerprint, load_task
from schoolhouse.tasks.task import Example, Task

NAMES = ["gym:chain_sum", "gym:letter_counting", "gym:spell_backward", "gym:knights_knaves"]


def reply(answer):
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize("name", NAMES)
def test_its_own_answers_are_right_and_others_are_not(name):
    task = load_task(name)
    assert isinstance(task, Task)
    assert (task.name, task.levels[0], task.trace_levels) == (name, "1", ())
    for level in (task.levels[0], task.levels[-1]):
        for example in task.examples("train", level, 3, 0):
            assert task.judge(example, reply(example.answer)).score == 1
            assert task.judge(example, reply("no idea")).score == 0.1
            assert task.judge(example, example.answer).score == 0


def test_the_same_arguments_give_the_same_questions_and_the_splits_never_meet():
    task = load_task("gym:chain_sum")
    train, test = (task.examples(split, "2", 40, 3) for split in ("train", "test"))
    assert train == load_task("gym:chain_sum").examples("train", "2", 40, 3)
    assert {e.question for e in train}.isdisjoint(e.question for e in test)
    assert len({e.question for e in test}) == len(test)
    assert len(task.examples("train", "5", 1, 0)[0].question) > len(task.examples("train", "1", 1, 0)[0].question)


def test_a_question_is_judged_in_another_process_by_its_id(monkeypatch):
    task = load_task("gym:chain_sum")
    (example,) = task.examples("train", "1", 1, 0)
    gym._made.cache_clear()
    carried = Example(example.id, example.task, example.level, example.question, example.answer)
    assert task.judge(carried, reply(example.answer)).score == 1


def test_partial_credit_is_none_and_a_judge_that_falls_is_no_traceback(monkeypatch):
    task = load_task("gym:chain_sum")
    (example,) = task.examples("train", "1", 1, 0)

    class Made:
        def __getitem__(self, place):
            return {}

        def score_answer(self, answer, entry):
            return {"half": 0.99, "whole": 1.0}[answer]

    monkeypatch.setattr(gym, "_made", lambda *place: Made())
    assert [task.judge(example, reply(x)).score for x in ("half", "whole", "falls")] == [0.1, 1.0, 0.1]


def test_what_is_not_there_is_said(monkeypatch):
    with pytest.raises(TaskError, match=r"no dataset with levels 'chain_summ'.*chain_sum"):
        load_task("gym:chain_summ")
    with pytest.raises(TaskError, match="its own verifier"):
        load_task(TaskTable(task="gym:chain_sum", verifier="exact"))
    assert fingerprint(["gym:chain_sum"]) != fingerprint(["gym:letter_counting"])
    gym._library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"schoolhouse\[gym\]"):
        load_task("gym:chain_sum")
    gym._library.cache_clear()
