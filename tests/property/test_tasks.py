"""Laws of tasks: judging is total, lists are deterministic, and training never meets the test."""

import functools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schoolhouse.tasks.load import TaskTable, load_task
from schoolhouse.tasks.verify import VERIFIERS
from schoolhouse.text.reply import TAGS, render_reply


@functools.cache
def task(name):
    if name in ("boxes", "arithmetic"):
        return load_task(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.jsonl"
        rows = [{"question": f"What is {i} plus 2?", "answer": i + 2, "level": i % 3} for i in range(300)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_task(TaskTable(task=str(path), verifier=name, name="own"))


NAMES = ["boxes", "arithmetic", "number", "exact"]
PIECES = st.one_of(
    st.sampled_from([*TAGS, "red, blue", "7", ", ", "-1", "1e9", "\\boxed{", "9**9", "\n"]), st.text(max_size=10)
)
REPLIES = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(reply=REPLIES, thinking=st.booleans(), level=st.integers(0, 2))
def test_any_text_gets_a_score(name, reply, thinking, level):
    example = task(name).examples("test", task(name).levels[level], 1, 0)[0]
    for text in (reply, render_reply("x" if thinking else None, reply)):
        verdict = task(name).judge(example, text, thinking=thinking)
        assert verdict.score in (0.0, 0.1, 1.0)
        assert verdict.parts == {"answer": float(verdict.score == 1), "format": float(verdict.score > 0)}
        assert (verdict.problem is None) == (verdict.score == 1)


@given(answer=st.text(max_size=20), expected=st.text(max_size=20))
def test_every_quick_verifier_takes_any_two_texts(answer, expected):
    for name in ("exact", "number", "choice"):
        assert VERIFIERS[name](answer, expected) in (True, False)


# Every example asks another process, and a strange pattern may end it.
@settings(max_examples=25)
@given(answer=st.text(max_size=20), expected=st.text(max_size=20))
def test_every_guarded_verifier_takes_any_two_texts(answer, expected):
    for name in ("maths", "regex"):
        assert VERIFIERS[name](answer, expected) in (True, False)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(level=st.integers(0, 20), seeds=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), n=st.integers(1, 60))
def test_training_never_meets_the_test(name, level, seeds, n):
    level = task(name).levels[level % len(task(name).levels)]
    train = task(name).examples("train", level, n, seeds[0])
    test = task(name).examples("test", level, n, seeds[1])
    assert {e.question for e in train}.isdisjoint(e.question for e in test)
    assert len({e.id for e in test}) == len(test) <= n
    assert len(train) == n
    assert train == task(name).examples("train", level, n, seeds[0])
    assert all((e.task, e.level) == (task(name).name, level) for e in train + test)


@pytest.mark.parametrize("name", ["boxes", "arithmetic"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**40), level=st.integers(0, 20))
def test_the_right_answer_and_no_other_earns_the_whole_score(name, seed, level):
    level = task(name).levels[level % len(task(name).levels)]
    one, *others = task(name).examples("train", level, 10, seed)
    assert task(name).judge(one, render_reply("x", one.answer)).score == 1.0
    for other in others:
        right = task(name).judge(one, render_reply("x", other.answer)).score == 1.0
        assert right == (other.answer == one.answer)
        # All candidates at once are not the answer.
        both = f"{one.answer} or {other.answer}"
        assert task(name).judge(one, render_reply("x", both)).score < 1.0
