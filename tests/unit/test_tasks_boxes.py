"""The box task, checked by a solver that reads only the question."""

import re

import pytest

from schoolhouse.core.errors import TaskError
from schoolhouse.tasks.boxes import COLOURS, Move, apply_move, same_stack
from schoolhouse.tasks.load import load_task
from schoolhouse.tasks.task import worked_conversation

TASK = load_task("boxes")


def solve(question):
    """Do what a person would do: read the sentences one after the other."""
    first, *moves, last = re.findall(r"[^.?]+[.?]", question)
    stack = first.strip(" .").split(": ")[1].split()
    assert last.strip() == "What is the stack now?"
    for move in moves:
        words = move.strip(" .").split()
        if words[:2] == ["Add", "a"] or words[:3] == ["Put", "a", "new"]:
            assert words[3] not in stack
            stack.append(words[3])
        elif words[0] in ("Remove", "Take"):
            assert words[-2] == "top"
            stack.pop()
        else:
            assert words[-1] == "top"
            stack.remove(words[2])
            stack.append(words[2])
    return " ".join(stack)


def test_the_puzzle_of_the_talk():
    stack = apply_move(("red", "blue", "yellow"), Move("top", "blue"))
    assert apply_move(stack, Move("add", "green")) == ("red", "yellow", "blue", "green")


@pytest.mark.parametrize("level", TASK.levels)
def test_every_answer_is_what_a_reader_would_find(level):
    boxes, moves = map(int, level.split("-"))
    for example in TASK.examples("train", level, 200, 7):
        assert solve(example.question) == example.answer
        assert example.question.count(".") == moves + 1
        colours = example.answer.split()
        assert len(set(colours)) == len(colours)
        assert boxes - 1 <= len(colours) <= boxes + 1
        assert set(colours) <= set(COLOURS)
        assert len(example.question.split(".")[0].split(": ")[1].split()) == boxes


@pytest.mark.parametrize("level", TASK.trace_levels)
def test_traces_end_in_the_answer_and_earn_the_whole_score(level):
    for example in TASK.examples("train", level, 100, 1):
        assert example.trace is not None
        lines = example.trace.split("\n")
        assert len(lines) == 1 + int(level.split("-")[1])  # the stack as it stands, then one line a move
        assert lines[-1].split(": ")[1] == example.answer
        for thinking in (True, False):
            reply = worked_conversation(example, thinking).messages[-1].content
            assert TASK.judge(example, reply, thinking=thinking).score == 1.0


def test_only_easy_levels_have_traces():
    assert set(TASK.trace_levels) == {"2-1", "3-1", "3-2"}
    for level in TASK.levels[3:]:
        example = TASK.examples("train", level, 1, 0)[0]
        assert example.trace is None
        with pytest.raises(TaskError, match="no worked trace"):
            worked_conversation(example)


@pytest.mark.parametrize("text", ["red, blue", "RED,BLUE", " red  blue ", "Red; blue.", "red,\nblue"])
def test_ways_to_write_a_stack(text):
    assert same_stack("red, blue")(text)


@pytest.mark.parametrize(
    "text", ["blue, red", "red", "red, blue, red", "redblue", "", "red and blue", "r\u0435d, blue"]
)
def test_what_is_not_the_stack(text):
    assert not same_stack("red, blue")(text)


def test_questions_are_distinct_and_many():
    for level in TASK.levels[1:]:
        assert len({e.question for e in TASK.examples("train", level, 1500, 0)}) == 1500


def test_levels_that_do_not_exist():
    with pytest.raises(TaskError, match="no level '9-9'; its levels are 2-1"):
        TASK.examples("train", "9-9", 1, 0)
    with pytest.raises(TaskError, match="no split"):
        TASK.examples("exam", "2-1", 1, 0)
    with pytest.raises(TaskError, match="0 or more"):
        TASK.examples("train", "2-1", -1, 0)
