"""The arithmetic task, checked by a solver that reads only the question."""

import re

import pytest

from schoolhouse.tasks.load import load_task
from schoolhouse.tasks.task import worked_conversation

TASK = load_task("arithmetic")


def solve(question):
    start, *steps, _ = re.findall(r"[^.?]+[.?]", question)
    value = int(re.findall(r"\d+", start)[0])
    for step in steps:
        words = step.strip(" .").lower()
        x = int(words.split()[-1]) if words.split()[-1].isdigit() else 2
        if "add" in words:
            value += x
        elif "subtract" in words or "take away" in words:
            value -= x
        else:
            assert "multiply" in words or words == "double it"
            value *= x
        assert 0 <= value < 100
    return str(value)


@pytest.mark.parametrize("level", TASK.levels)
def test_every_answer_is_what_a_reader_would_find(level):
    for example in TASK.examples("train", level, 300, 3):
        assert solve(example.question) == example.answer
        assert example.question.count(".") == int(level.split("-")[1]) + 1


@pytest.mark.parametrize("level", TASK.trace_levels)
def test_every_line_of_a_trace_is_true(level):
    for example in TASK.examples("train", level, 100, 1):
        assert example.trace is not None
        for line in example.trace.split("\n"):
            sentence, a, sign, b, right = re.fullmatch(r"(.+\.) (\d+)([-+*])(\d+)=(\d+)", line).groups()
            assert sentence in example.question
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(right)
        assert example.trace.endswith(f"={example.answer}")
        reply = worked_conversation(example).messages[-1].content
        assert TASK.judge(example, reply).score == 1.0


def test_a_small_level_repeats_in_training_and_never_in_a_test():
    train = TASK.examples("train", "1-1", 2000, 0)
    test = TASK.examples("test", "1-1", 2000, 0)
    assert len(train) == 2000
    assert len({e.question for e in train}) < 400
    assert len({e.question for e in test}) == len(test) < 200
