"""The arithmetic task, checked by a solver that reads only the question."""

import re

import pytest

from schoolhouse.tasks.load import load_task
from schoolhouse.tasks.task import Example, worked_conversation

TASK = load_task("arithmetic")


def solve(question):
    start, *steps, _ = re.findall(r"[^.?]+[.?]", question)
    value = int(re.findall(r"\d+", start)[0])
    results = []
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
        assert 0 <= value < 10
        results.append(str(value))
    return " ".join(results)


@pytest.mark.parametrize("level", TASK.levels)
def test_every_answer_is_what_a_reader_would_find(level):
    for example in TASK.examples("train", level, 300, 3):
        assert solve(example.question) == example.answer
        assert example.question.count(".") == int(level) + 1


@pytest.mark.parametrize("level", TASK.trace_levels)
def test_every_line_of_a_trace_is_true(level):
    for example in TASK.examples("train", level, 100, 1):
        assert example.trace is not None
        for line in example.trace.split("\n"):
            sentence, a, sign, b, right = re.fullmatch(r"(.+\.) (\d+)([-+*])(\d+)=(\d+)", line).groups()
            assert sentence in example.question
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(right)
        assert [line.rpartition("=")[2] for line in example.trace.split("\n")] == example.answer.split()
        reply = worked_conversation(example).messages[-1].content
        assert TASK.judge(example, reply).score == 1.0


def test_a_small_level_repeats_in_training_and_never_in_a_test():
    train = TASK.examples("train", "1", 2000, 0)
    test = TASK.examples("test", "1", 2000, 0)
    assert len(train) == 2000
    assert len({e.question for e in train}) < 400
    assert len({e.question for e in test}) == len(test) < 200


@pytest.mark.parametrize(
    ("answer", "score"),
    [("6 8 9", 1.0), ("6, 8, 9.", 1.0), ("6\n8\n9", 1.0), ("9", 0.1), ("6 8 8", 0.1), ("689", 0.1), ("6 8 9 9", 0.1)],
)
def test_all_results_are_asked_for(answer, score):
    question = "Start with 3. Double it. Add 2. Add 1. What is the result after each step?"
    example = Example("x", "arithmetic", "3", question, "6 8 9")
    assert TASK.judge(example, f"<think>\n3*2=6\n</think>\n<answer>{answer}</answer>").score == score
